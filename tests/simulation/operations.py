"""What operation brings to a seed: levels, quotas, retention, and what an operator does meanwhile.

Drawn apart from the faults, so that a seed's faults stay what they are when something is added.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from raftkv.limits import FEATURE_LEVEL, MIB
from raftkv.server.auto_compaction import KEEP_ALL, Mode, Retention
from raftkv.simulation import SimMember
from raftkv.simulation.operations import OPERATIONS
from tests.linearizability.history import Compact, Delete
from tests.simulation.workload import ALL_KEYS, Workload

_RETENTIONS: Final = (
    KEEP_ALL,
    KEEP_ALL,
    Retention(Mode.PERIODIC, 2_000),
    Retention(Mode.PERIODIC, 10_000),
    Retention(Mode.REVISION, 20),
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One draw."""

    kinds: tuple[str, ...]
    """Names of `OPERATIONS`."""
    settings: dict[str, Any]
    """Of every member."""
    levels: dict[int, int]
    """Feature level of each member's first program, where it is not the newest; by id, 0 for
    those that join."""

    def of(self, member_id: int) -> dict[str, Any]:
        """The settings of a member."""
        return self.settings | {"feature_level": self.levels.get(member_id, FEATURE_LEVEL)}


def draw_operation(seed: int, size: int, *, busy: bool = False) -> Operation:
    """That of a seed whose cluster is founded by `size` members; `busy`: nearly all at once."""
    chance = random.Random(f"operation {seed}")
    mixed = chance.random() < (0.7 if busy else 0.35)
    levels = {one: chance.randrange(FEATURE_LEVEL + 1) for one in range(size + 1) if mixed}
    share = 0.8 if busy else 0.25
    kinds = tuple(kind for kind in sorted(OPERATIONS) if chance.random() < share)
    if mixed and "upgrade" not in kinds and chance.random() < 0.8:
        kinds = tuple(sorted((*kinds, "upgrade")))
    small = chance.random() < (0.5 if busy else 0.3)
    settings = {
        "retention": chance.choice(_RETENTIONS),
        "archive_interval_ms": chance.choice((0, 0, 500, 3_000)),
        "quota_bytes": chance.choice((10_000, 25_000)) if small else 64 * MIB,
    }
    return Operation(kinds, settings, levels)


def short_of_space(members: Iterable[SimMember]) -> bool:
    """Whether any of these is near its quota, or the cluster is out of space."""
    return any(
        member.machine.alarms or member.upkeep.space.used_bytes > member.settings.quota_bytes * 0.7
        for member in members
    )


def free_space(workload: Workload) -> None:
    """What an operator does when space is short: delete what is there, and forget its history."""
    for request in (Delete(*ALL_KEYS), Compact(workload.newest_revision)):
        workload.send(-1, request, lambda outcome, result: None)


def enlarge(members: Iterable[SimMember]) -> None:
    """What is left to do when that was not enough: a larger quota for each, by a restart."""
    for member in members:
        if member.settings.quota_bytes < 64 * MIB:
            member.cluster.promises.seen["quota enlarged"] += 1
            member.settings = replace(member.settings, quota_bytes=64 * MIB)
            member.stop()
            member.cluster.restart(member)
