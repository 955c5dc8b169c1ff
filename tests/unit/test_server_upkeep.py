"""What a member does by itself, on simulated members."""

from __future__ import annotations

from raftkv.machine import commands
from raftkv.server.upkeep import Upkeep, UpkeepSettings
from raftkv.simulation import MemberSettings, SimCluster, SimMember, World


def cluster_of(size: int, **settings: int) -> tuple[World, SimCluster, SimMember]:
    world = World(seed=1)
    cluster = SimCluster(world, size, settings=lambda member_id: MemberSettings(**settings))
    cluster.start()
    return world, cluster, cluster.wait_for_leader()


def put_many(world: World, member: SimMember, count: int) -> None:
    for number in range(count):
        member.propose(commands.put(b"k%d" % number, bytes(100)), lambda answer: None)
        world.run(0.01)


def test_log_that_is_not_committed_makes_no_snapshot_due_again() -> None:
    world, cluster, leader = cluster_of(3, snapshot_log_bytes=2_000)
    put_many(world, leader, 50)
    cluster.network.partition(
        [leader.member_id], [one for one in (1, 2, 3) if one != leader.member_id]
    )
    put_many(world, leader, 50)
    assert leader.opened.log.bytes_since(leader.opened.snapshots.all()[-1].meta.index) > 2_000
    taken = leader.replica.stats.snapshots_taken
    world.run(0.5)
    assert leader.leads and leader.replica.stats.snapshots_taken == taken


def test_the_log_is_forgotten_as_far_as_its_files_are_removed() -> None:
    """A file that held nothing but the oldest entry went, and the entry was still read from it."""
    world, _, member = cluster_of(1, snapshot_log_bytes=1 << 30, segment_bytes=8192)
    put_many(world, member, 20)
    first, applied = member.opened.log.first_index(), member.machine.applied_index
    upkeep = Upkeep(
        UpkeepSettings("n1", (), 100, 1 << 30, 1 << 30, applied - first),
        member.replica,
        member.opened,
        member.now_ms(),
    )
    upkeep.snapshot_made(member.opened.begin_snapshot()())(member.opened.wal)
    assert member.opened.log.first_index() == first + 1


def test_a_snapshot_that_waited_gives_way_to_a_newer_one() -> None:
    """One that waits for the archive may be overtaken by one that the leader sends."""
    world, _, member = cluster_of(1, snapshot_log_bytes=1 << 30, segment_bytes=8192)
    upkeep, wal = member.upkeep, member.opened.wal
    put_many(world, member, 20)
    waiting = member.opened.begin_snapshot()()
    put_many(world, member, 20)
    newer = member.opened.begin_snapshot()()
    upkeep.snapshot_made(newer)(wal)
    first = member.opened.log.first_index()
    upkeep.snapshot_made(waiting)(wal)
    assert upkeep.snapshot_index == newer.meta.index > waiting.meta.index
    assert member.opened.log.first_index() == first
