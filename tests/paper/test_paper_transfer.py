"""Leadership transfer: thesis 3.10."""

from __future__ import annotations

import pytest

from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    Message,
    MessageKind,
    ProposalDropped,
    Role,
)
from tests.interaction.group import Group

K = MessageKind


def test_transfer_to_an_up_to_date_follower() -> None:
    """3.10: the target is told to time out at once; the others' lease does not protect the old
    leader, since it asked for this itself."""
    group = Group()
    group.elect(1)
    group.tick(count=2)
    group[1].transfer_leader(2)
    group.stabilize()
    assert (group[2].role, group[2].term) == (Role.LEADER, 3)
    assert group[1].role is Role.FOLLOWER


def test_transfer_asked_through_a_follower() -> None:
    group = Group()
    with pytest.raises(ProposalDropped, match="no leader"):
        group[3].transfer_leader(2)
    group.elect(1)
    group.tick()
    group[3].transfer_leader(2)
    group.stabilize()
    assert group[2].role is Role.LEADER


def test_transfer_to_slow_follower() -> None:
    """3.10: the leader first brings the target's log up to its own."""
    group = Group()
    group.elect(1)
    group.isolate(2)
    group[1].propose([b"=a"])
    group.stabilize()
    group.heal()
    group[1].transfer_leader(2)
    assert group[1].lead_transferee == 2
    group.tick(count=3)
    assert group[2].role is Role.LEADER
    assert group.data(2) == [b"=a"]


def test_transfer_after_snapshot() -> None:
    group = Group()
    group.elect(1)
    group.isolate(3)
    group[1].propose([b"=a", b"=b"])
    group.stabilize()
    group.snapshot(1)
    group.heal()
    group[1].transfer_leader(3)
    group.tick(count=3)
    assert group[3].role is Role.LEADER
    assert group.data(3) == [b"=a", b"=b"]


def test_transfer_timeout() -> None:
    """3.10: if it is not done within about an election timeout, the leader goes on."""
    group = Group()
    group.elect(1)
    group.isolate(3)
    group[1].transfer_leader(3)
    with pytest.raises(ProposalDropped, match="transfer"):
        group[1].propose([b"=x"])
    with pytest.raises(ProposalDropped, match="transfer"):
        group[1].propose_change(ConfigChange(((ChangeKind.ADD_LEARNER, 9),)))
    group.tick(count=10)
    assert (group[1].role, group[1].lead_transferee) == (Role.LEADER, 0)
    group[1].propose([b"=x"])
    group.stabilize()
    assert group.data(2) == [b"=x"]


def test_transfer_to_learner_is_refused() -> None:
    group = Group(learners=(4,))
    group.elect(1)
    for target in (4, 9):
        with pytest.raises(ProposalDropped, match="not a voter"):
            group[1].transfer_leader(target)
    for context in (b"4", b"garbage"):
        group[1].step(Message(K.TRANSFER_LEADER, 2, 1, context=context))
    group.stabilize()
    assert (group[1].role, group[1].lead_transferee) == (Role.LEADER, 0)


def test_transfer_to_itself_changes_nothing() -> None:
    group = Group()
    group.elect(1)
    group[1].transfer_leader(1)
    assert group[1].lead_transferee == 0


def test_a_second_transfer_replaces_the_first() -> None:
    group = Group()
    group.elect(1)
    group.isolate(3)
    group[1].transfer_leader(3)
    group.tick(count=5)
    group[1].transfer_leader(3)  # The same again does not prolong it.
    group[1].transfer_leader(2)
    group.stabilize()
    assert group[2].role is Role.LEADER


def test_transfer_while_the_target_is_removed() -> None:
    group = Group()
    group.elect(1)
    group.eager_apply = False
    group[1].propose_change(ConfigChange(((ChangeKind.REMOVE, 3),)))
    group.stabilize()
    group.isolate(3)
    group[1].transfer_leader(3)
    group.eager_apply = True
    while group.members[1].unapplied:
        group.apply(1)
    assert group[1].lead_transferee == 0
    group[1].propose([b"=on"])
    group.stabilize()
    assert group.data(1) == [b"=on"]


def test_transfer_with_a_higher_term_vote_midway() -> None:
    """Another election in between ends the transfer with the leadership."""
    group = Group(check_quorum=False)
    group.elect(1)
    group.isolate(3)
    group[1].transfer_leader(3)
    group.send(K.VOTE, 2, 1, term=9, index=99, log_term=8)
    assert (group[1].role, group[1].lead_transferee) == (Role.FOLLOWER, 0)


def test_transfer_with_concurrent_writes() -> None:
    """Every write is either refused or committed by one of the two leaders, once."""
    group = Group()
    group.elect(1)
    taken = []
    for number in range(40):
        if number == 10:
            group[1].transfer_leader(2)
        for member in (1, 3):
            data = b"=%d.%d" % (number, member)
            try:
                group[member].propose([data])
                taken.append(data)
            except ProposalDropped:
                pass
        for message in group.take():
            group.deliver(message)
    group.tick(count=3)
    assert group[2].role is Role.LEADER
    data = group.data(1)
    assert len(set(data)) == len(data)
    refused = {refusal.context for m in group.members.values() for refusal in m.refused}
    assert set(taken) - refused == set(data)


def test_only_the_leader_can_hurry_an_election() -> None:
    group = Group()
    group.elect(1)
    group.tick()
    group.send(K.TIMEOUT_NOW, 3, 2)
    assert group[2].role is Role.FOLLOWER
