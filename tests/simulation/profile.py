"""What a seed stands for: cluster, timing, links, disks, faults and workload, all drawn from it.

Each seed takes only some kinds of fault (swarm testing): what is always on hides what it covers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from raftkv.buggify import POINTS
from raftkv.simulation import LinkSettings, MemberSettings
from raftkv.simulation.nemesis import FAULTS
from tests.simulation.operations import draw_operation
from tests.simulation.rights import Rights, draw_rights
from tests.simulation.workload import Mix

_SIZES = (1, 2, 3, 3, 3, 3, 4, 5, 5)


@dataclass(frozen=True, slots=True)
class Profile:
    """One draw."""

    size: int
    settings: dict[int, MemberSettings]
    """By member id; those that join later take that of id 0."""
    links: LinkSettings
    faults: tuple[str, ...]
    fault_interval_us: int
    buggify: dict[str, float]
    mix: Mix
    fault_seconds: int
    rights: Rights | None = None
    told: str = field(default="", compare=False)

    def settings_of(self, member_id: int) -> MemberSettings:
        """The settings of a member."""
        return self.settings.get(member_id, self.settings[0])


def draw(seed: int) -> Profile:
    """The profile of a seed."""
    chance = random.Random(f"profile {seed}")
    size = chance.choice(_SIZES)
    operation = draw_operation(seed, size)
    common = {
        "segment_bytes": chance.choice((8, 16, 64)) * 1024,
        "snapshot_log_bytes": chance.choice((2, 8, 32, 1000)) * 1024,
        "snapshot_catchup_entries": chance.choice((0, 5, 50)),
        "append_bytes_max": chance.choice((200, 2_000, 64 * 1024)),
        "inflight_messages_max": chance.choice((1, 4, 16)),
        "snapshot_chunk_bytes": chance.choice((1024, 16 * 1024)),
        "turn_us_max": chance.choice((50, 100, 1_000, 10_000)),
        "pre_vote": chance.random() < 0.85,
        "sync_us_max": chance.choice((200, 1_500, 20_000)),
        "install_us_max": chance.choice((20_000, 20_000, 1_500_000)),
        "slow_sync": chance.choice((0.0, 0.0, 0.01)),
        "encode_messages": chance.random() < 0.3,
    }
    # No clock is fast: a lease would end early by the true time that its holders are judged by.
    slow = chance.choice((0, 0.02))
    settings = {
        member_id: MemberSettings(
            **common, **operation.of(member_id), clock_rate=1 - slow * chance.random()
        )
        for member_id in range(size + 1)
    }
    rough = chance.random() < 0.6
    links = LinkSettings(
        delay_us_max=chance.choice((500, 2_000, 20_000)),
        loss=chance.choice((0.0, 0.01, 0.1)) if rough else 0.0,
        duplication=chance.choice((0.0, 0.02, 0.2)) if rough else 0.0,
        reordering=chance.choice((0.0, 0.1, 0.9)) if rough else 0.0,
        straggling=chance.choice((0.0, 0.01)),
        straggling_us_max=chance.choice((100_000, 3_000_000)),
    )
    kinds = sorted(FAULTS)
    faults = tuple(kind for kind in kinds if chance.random() < chance.choice((0.2, 0.5)))
    points = sorted(POINTS)
    return Profile(
        size=size,
        settings=settings,
        links=links,
        faults=(*faults, *operation.kinds),
        fault_interval_us=chance.choice((300_000, 1_000_000, 3_000_000)),
        buggify={point: chance.choice((0.01, 0.1)) for point in points if chance.random() < 0.25},
        mix=Mix(
            clients=chance.choice((1, 2, 4)),
            keys=chance.choice((1, 3, 8)),
            think_us=chance.choice((100_000, 500_000, 1_500_000)),
            watchers=chance.choice((0, 1, 3)),
            lockers=chance.choice((0, 0, 1, 2)),
        ),
        fault_seconds=chance.choice((30, 60, 90, 150)),
        rights=draw_rights(seed),
    )


def in_operation(seed: int, profile: Profile) -> Profile:
    """A profile with much of what operation brings and few faults, for what is seldom otherwise."""
    operation = draw_operation(seed, profile.size, busy=True)
    settings = {
        member_id: replace(settings, **operation.of(member_id))
        for member_id, settings in profile.settings.items()
    }
    faults = ("kill", "partition", "clog", "slow disk", *operation.kinds)
    return replace(profile, settings=settings, faults=faults, fault_interval_us=500_000)
