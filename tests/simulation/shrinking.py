"""Clusters of five that lose two voters while their leader loses touch: one seed, a few rounds.

Trap 5 needs a majority that knows of two changes and another one that knows of none, at the same
time. Random faults meet that once in a million seeds, so here it is sought.
"""

from __future__ import annotations

from typing import Any

from raftkv.consensus.types import ChangeKind, ConfigChange
from raftkv.machine import commands
from raftkv.simulation import MemberSettings, SimCluster, SimMember, World

ROUNDS = 3
SIZE = 5


def run_shrinking(seed: int) -> None:
    """Raises InvariantViolation when two majorities have decided."""
    world = World(seed)
    settings = MemberSettings(pre_vote=seed % 2 == 0, snapshot_log_bytes=1 << 30)
    cluster = SimCluster(world, SIZE, settings=lambda member_id: settings)
    cluster.start()
    for _ in range(ROUNDS):
        _grow(cluster)
        _round(world, cluster)
        cluster.network.heal()
        world.run(8)


def _ignore(answer: Any) -> None:
    """What became of it shows in the invariants."""


def _remove(member: SimMember, member_id: int) -> None:
    change = ConfigChange(((ChangeKind.REMOVE, member_id),))
    member.change_members(change, [member_id], _ignore)


def _write(members: list[SimMember]) -> None:
    for member in members:
        if member.up:
            member.propose(commands.put(b"k", b"%d" % member.member_id), _ignore)


def _grow(cluster: SimCluster) -> None:
    """Bring the cluster back to its size."""
    for _ in range(20):
        leader = cluster.wait_for_leader()
        if len(leader.node.conf.voters) >= SIZE:
            return
        cluster.add_member(leader, learner=False, done=_ignore)
        cluster.world.run(2)


def _round(world: World, cluster: SimCluster) -> None:
    leader = cluster.wait_for_leader()
    others = [one for one in leader.node.conf.voters if one != leader.member_id]
    world.random.shuffle(others)
    first, second, close, far = others[:4]
    _remove(leader, first)
    world.run(world.random.choice((0.0, 0.002, 0.01)) * world.random.random())
    if world.chance(0.5):
        # The change is in a log or two when its leader goes, and the next one is asked at once.
        cuts = cluster.network.partition([leader.member_id], others)
        for _ in range(5_000):
            world.run(0.001)
            leading = cluster.leader()
            if leading is not None and leading is not leader:
                leader = leading
                break
        for source, target in cuts:
            cluster.network.mend(source, target)
        close = leader.member_id if close == leader.member_id else close
    _remove(leader, second)
    world.run(0.02 * world.random.random())
    near = {leader.member_id, close}
    cluster.network.partition(sorted(near), sorted({*others, *near, far, first} - near))
    for _ in range(12):
        _write(list(cluster.members.values()))
        world.run(0.5)
