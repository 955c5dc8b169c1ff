"""What operation brings, made likely: situations that seeds may take long to come upon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raftkv.errors import ChangeRefused
from raftkv.machine import commands
from raftkv.server.levels import QUOTAS, check_agreed
from raftkv.simulation import MemberSettings, SimCluster, SimMember, World


def _promote(leader: SimMember, member_id: int) -> None:
    wish = commands.guarded(commands.member_promotion(member_id), commands.BY_MEMBER)
    leader.propose(wish, lambda answer: None)


def test_a_learner_is_measured_by_what_was_committed_a_second_ago() -> None:
    """It was measured by the leader's last look of all, after which nobody had waited for long."""
    world = World(5)
    settings = MemberSettings(election_timeout_ticks=50)
    cluster = SimCluster(world, 3, settings=lambda member_id: settings)
    cluster.start()
    leader = cluster.wait_for_leader()
    world.run(3)
    answers: list[Any] = []
    # Enough for the newcomer to hold most of the log even without the newest writes.
    for number in range(100):
        leader.propose(commands.put(b"k%d" % number, b""), answers.append)
        world.run(0.01)
    early = cluster.add_member(leader, learner=True, promote=True, done=answers.append)
    world.run(4)
    assert early in leader.node.conf.voters
    late = cluster.add_member(leader, learner=True, done=answers.append)
    world.run(4)
    for other in (1, 2, 3, early):
        cluster.network.cut(other, late)
    for number in range(5):
        leader.propose(commands.put(b"k%d" % number, b""), answers.append)
    world.run(2.5)
    _promote(leader, late)
    world.run(2)
    assert late in leader.machine.promotions() and late in leader.node.conf.learners
    cluster.network.heal()
    world.run(3)
    assert late in leader.node.conf.voters


def test_what_came_with_a_level_waits_for_the_last_upgrade() -> None:
    world = World(3)
    cluster = SimCluster(
        world, 3, settings=lambda member_id: MemberSettings(feature_level=int(member_id != 3))
    )
    cluster.start()
    leader = cluster.wait_for_leader()
    world.run(5)
    with pytest.raises(ChangeRefused):
        check_agreed(leader.machine, QUOTAS, "a quota")
    last = cluster.members[3]
    last.settings = replace(last.settings, feature_level=1)
    last.stop()
    cluster.restart(last)
    world.run(10)
    for member in cluster.members.values():
        check_agreed(member.machine, QUOTAS, "a quota")
    assert cluster.promises.seen["level agreed"] == 1


def test_a_program_that_is_too_old_is_refused_by_its_files_and_comes_back() -> None:
    world = World(4)
    cluster = SimCluster(world, 3)
    cluster.start()
    cluster.wait_for_leader()
    world.run(5)
    member = cluster.members[2]
    member.stop()
    member.settings = replace(member.settings, feature_level=0)
    assert not member.start() and "downgrade is not possible" in str(member.failed_start)
    member.settings = replace(member.settings, feature_level=1)
    assert member.start()


@pytest.mark.parametrize("of_leader", [True, False])
def test_shrinking_changes_nothing_but_the_space(of_leader: bool) -> None:
    world = World(6)
    cluster = SimCluster(world, 3)
    cluster.start()
    leader = cluster.wait_for_leader()
    world.run(3)
    member = next(one for one in cluster.members.values() if one.leads is of_leader)
    member.shrink()
    for number in range(200):
        leader.propose(commands.put(b"k%d" % (number % 9), b"%d" % number), lambda answer: None)
        world.run(0.005)
    world.run(3)
    assert cluster.promises.seen["shrunk"] == 1
    assert len({one.machine.state_hash for one in cluster.members.values()}) == 1
    assert len(member.machine.members()) == 3


def test_a_newcomer_that_is_in_the_log_only_is_asked_for_its_level() -> None:
    """The leader asked the members that its tables knew; entries reach a newcomer before that."""
    world = World(8)
    levels = {1: 1, 2: 1, 3: 0}
    cluster = SimCluster(
        world, 3, settings=lambda member_id: MemberSettings(feature_level=levels.get(member_id, 0))
    )
    cluster.start()
    cluster.wait_for_leader()
    world.run(5)
    last = cluster.members[3]
    last.settings = replace(last.settings, feature_level=1)
    last.stop()
    cluster.restart(last)
    leader = cluster.wait_for_leader()
    while leader.levels.told.told.get(3) != 1:
        world.run(0.0005)
    answers: list[Any] = []
    newcomer = cluster.add_member(leader, learner=True, done=answers.append)
    while not leader.replica.node.change_pending:
        world.run(0.0001)
    assert not leader.replica.members_known and leader.machine.level == 0
    leader.leading.step()
    world.run(10)
    assert {member.machine.level for member in cluster.members.values()} == {0}
    assert cluster.members[newcomer].machine.applied_index == leader.machine.applied_index
