"""Restarts and crashes: paper figure 2, persistent state; sections 5 and 8."""

from __future__ import annotations

import pytest

from raftkv.consensus.types import HardState, Role
from tests.interaction.group import Group


def test_t50_leader_restart_clears_state() -> None:
    """5.2: servers start as followers. A leader that restarts does not go on leading its term."""
    group = Group()
    group.elect(1)
    group[1].propose([b"=a"])
    group.stabilize()
    group.crash(1)
    group.start(1)
    node = group[1]
    assert (node.role, node.leader, node.term) == (Role.FOLLOWER, 0, 2)
    assert group.members[1].storage.hard_state.vote == 1
    group.tick(count=60)
    (leader,) = group.leaders()
    assert leader.term > 2


def test_a_single_voter_restarts_and_leads() -> None:
    group = Group(voters=(1,))
    group.elect(1)
    group[1].propose([b"=a"])
    group.stabilize()
    group.crash(1, power=True)
    group.start(1)
    group.tick(count=25)
    assert group[1].role is Role.LEADER
    assert group.data(1) == [b"=a"]


def test_t90_issue_920_non_voter_leader_restart() -> None:
    """A member whose disk says that it led, but that is no voter, starts as a quiet learner."""
    group = Group(voters=(2,), learners=(1,))
    group.members[1].storage.hard_state = HardState(term=5, vote=1, commit_index=1)
    group.start(1)
    group.tick([1], count=100)
    assert group[1].role is Role.FOLLOWER
    group.tick(count=60)
    assert group[2].role is Role.LEADER


@pytest.mark.parametrize("power", [False, True])
def test_all_members_restarted_at_once(power: bool) -> None:
    """Everything acknowledged survives the loss of all members at once."""
    group = Group()
    group.elect(1)
    group[1].propose([b"=%d" % number for number in range(5)])
    group.stabilize()
    for member in (1, 2, 3):
        group.crash(member, power=power)
    for member in (1, 2, 3):
        group.start(member)
    group.tick(count=60)
    (leader,) = group.leaders()
    leader.propose([b"=after"])
    group.tick(count=2)
    for member in (1, 2, 3):
        assert group.data(member) == [*(b"=%d" % number for number in range(5)), b"=after"]


def test_a_stored_commit_index_ahead_of_the_log_is_no_deadlock() -> None:
    """Trap 2: a commit index that reached the disk before its entries is learnt again."""
    group = Group()
    group.elect(1)
    group[1].propose([b"=a"])
    group.stabilize()
    group.crash(3, power=True)
    group.members[3].storage.hard_state = HardState(2, 1, 99)
    group.start(3)
    assert group[3].commit_index == group[3].last_index
    group.tick(count=3)
    assert group.data(3) == [b"=a"]


def test_a_stale_log_cannot_win_after_a_full_restart() -> None:
    """Trap 1: with terms and votes forgotten, a stale log would win and overwrite."""
    group = Group()
    group.elect(1)
    group.isolate(3)
    group[1].propose([b"=a"])
    group.stabilize()
    for member in (1, 2, 3):
        group.crash(member, power=True)
        group.start(member)
    group.heal()
    for _ in range(3):
        group[3].campaign()
        group.stabilize()
    assert group[3].role is not Role.LEADER
    group.tick(count=60)
    assert group.data(3) == [b"=a"]


@pytest.mark.parametrize("send_only", [True, False])
def test_backup_isolated_one_way(send_only: bool) -> None:
    """A follower that can only send, or only receive, does not disturb the others, and catches
    up when healed."""
    group = Group()
    group.elect(1)
    others = (1, 2)
    group.cut = {(o, 3) if send_only else (3, o) for o in others}
    for number in range(5):
        group[1].propose([b"=%d" % number])
        group.tick(count=20)
    assert (group[1].role, group[1].term) == (Role.LEADER, 2)
    group.heal()
    group.tick(count=5)
    assert group.data(3) == group.data(1)
    assert group[1].term == 2
