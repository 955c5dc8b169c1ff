"""What operation brings, made likely: situations that seeds may take long to come upon."""

from __future__ import annotations

from typing import Any

from raftkv.machine import commands
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
