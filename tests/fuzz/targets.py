"""Every decoder that reads from a socket or a disk, with the errors by which it may refuse."""

from __future__ import annotations

from tests.fuzz import disk_targets, door_targets, peer_targets
from tests.fuzz.engine import Target

TARGETS: tuple[Target, ...] = (
    *peer_targets.TARGETS,
    *disk_targets.TARGETS,
    *door_targets.TARGETS,
)


def by_name(name: str) -> Target:
    """The target of that name; raises SystemExit when there is none."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise SystemExit(f"no target {name}; --list names them")
