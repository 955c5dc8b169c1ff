"""A copy of the tables that overtakes them, on simulated members under load."""

from __future__ import annotations

import pytest

from raftkv.consensus.types import ChangeKind, ConfigChange
from raftkv.errors import CorruptionError, TooManyRequests
from raftkv.machine import commands
from raftkv.server.shrink import Shrink, Shrunk
from raftkv.simulation import MemberSettings, SimCluster, SimMember, World


def cluster_of(size: int, **settings: int) -> tuple[World, SimCluster, SimMember]:
    world = World(seed=3)
    cluster = SimCluster(world, size, settings=lambda member_id: MemberSettings(**settings))
    cluster.start()
    return world, cluster, cluster.wait_for_leader()


def put_some(world: World, member: SimMember, count: int) -> None:
    for number in range(count):
        command = commands.put(b"k%d" % (number % 40), bytes(100))
        if number % 5 == 4:
            command = commands.delete(b"k%d" % (number % 17))
        member.propose(command, lambda answer: None)
        world.run(0.01)


def run_to_end(shrink: Shrink, slices_max: int = 1_000) -> Shrunk:
    for _ in range(slices_max):
        shrunk = shrink.catch_up()
        if shrunk is not None:
            return shrunk
    raise AssertionError("it never came level")


@pytest.mark.parametrize("of_leader", [True, False])
def test_what_is_written_during_the_copy_is_in_the_tables_afterwards(of_leader: bool) -> None:
    world, cluster, leader = cluster_of(3, snapshot_log_bytes=1 << 30)
    put_some(world, leader, 100)
    leader.propose(commands.compact(leader.machine.revision - 20), lambda answer: None)
    world.run(1)
    member = next(one for one in cluster.members.values() if one.leads is of_leader)
    shrink = Shrink(member.opened)
    put_some(world, leader, 150)
    assert shrink.progress()["phase"] == "copy"
    shrink.copy()
    put_some(world, leader, 150)
    assert shrink.catch_up() is None and shrink.progress()["entries_left"]
    put_some(world, leader, 30)
    applied = member.machine.applied_index
    run_to_end(shrink)
    shrink.close()
    assert member.machine.applied_index == applied
    put_some(world, leader, 50)
    world.run(2)
    assert len({one.machine.state_hash for one in cluster.members.values()}) == 1
    other = next(one for one in cluster.members.values() if one is not member)
    for revision in (0, leader.machine.revision - 200):
        found = member.machine.range(b"", b"", revision=revision)
        assert [record.key for record in found.records]
        expected = other.machine.range(b"", b"", revision=revision)
        assert [one.wire for one in found.records] == [one.wire for one in expected.records]


def test_a_member_killed_after_it_goes_on_from_the_new_tables() -> None:
    world, cluster, leader = cluster_of(3, snapshot_log_bytes=1 << 30)
    put_some(world, leader, 60)
    shrink = Shrink(leader.opened)
    shrink.copy()
    put_some(world, leader, 20)
    run_to_end(shrink)
    leader.crash()
    leader.start()
    put_some(world, cluster.wait_for_leader(), 20)
    world.run(2)
    assert len({one.machine.state_hash for one in cluster.members.values()}) == 1


def test_a_change_of_members_in_between_refuses_it_and_changes_nothing() -> None:
    world, _, leader = cluster_of(3, snapshot_log_bytes=1 << 30)
    put_some(world, leader, 20)
    shrink = Shrink(leader.opened)
    shrink.copy()
    change = ConfigChange(((ChangeKind.ADD_LEARNER, 99),))
    leader.change_members(change, [99, "n99", ["http://n99:2380"], [], True], lambda answer: None)
    world.run(1)
    with pytest.raises(TooManyRequests, match="try again"):
        run_to_end(shrink)
    shrink.close()
    digest, applied = leader.machine.state_hash, leader.machine.applied_index
    leader.machine.reload()
    assert (leader.machine.state_hash, leader.machine.applied_index) == (digest, applied)
    assert run_to_end_of_another(leader).after_bytes


def run_to_end_of_another(member: SimMember) -> Shrunk:
    shrink = Shrink(member.opened)
    shrink.copy()
    return run_to_end(shrink)


def test_a_log_that_was_let_go_meanwhile_refuses_it() -> None:
    world, _, leader = cluster_of(1, snapshot_log_bytes=500, snapshot_catchup_entries=0)
    put_some(world, leader, 20)
    shrink = Shrink(leader.opened)
    shrink.copy()
    put_some(world, leader, 100)
    assert leader.opened.log.first_index() > 30
    with pytest.raises(TooManyRequests, match="try again"):
        run_to_end(shrink)


def test_a_copy_that_is_not_equal_never_becomes_the_tables() -> None:
    world, _, leader = cluster_of(1, snapshot_log_bytes=1 << 30)
    put_some(world, leader, 20)
    before = leader.machine.state_hash
    leader.machine._state.hash = bytes(16)
    shrink = Shrink(leader.opened)
    shrink.copy()
    with pytest.raises(CorruptionError, match="differs"):
        run_to_end(shrink)
    leader.machine.reload()
    assert leader.machine.state_hash == before
