"""Linearizable reads without log writes: paper section 8, thesis 6.4."""

from __future__ import annotations

import pytest

from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    Message,
    MessageKind,
    ReadState,
    Refusal,
    Role,
)
from tests.interaction.group import Group

K = MessageKind


def contexts(group: Group, member_id: int) -> list[bytes]:
    return [state.context for state in group.members[member_id].read_states]


@pytest.mark.parametrize("member", [1, 2, 3, 4])
def test_reads_are_answered_through_every_member(member: int) -> None:
    """6.4: the leader serves reads, followers and learners ask it for its read index."""
    group = Group(learners=(4,))
    group.elect(1)
    group[1].propose([b"=a"])
    group.stabilize()
    group.tick()
    group.read(member, b"r")
    group.stabilize()
    assert group.members[member].read_states == [ReadState(3, b"r")]


def test_read_only_for_new_leader() -> None:
    """Section 8: a leader does not know what is committed until its no-op is; reads wait for it
    (trap 3)."""
    group = Group()
    group.elect(1)
    group[1].propose([b"=a"])
    group.stabilize()
    group.eager_writes = False
    group[1].transfer_leader(2)
    for _ in range(6):  # 2 wins, but nobody makes its no-op durable.
        for message in group.take():
            if message.kind is not K.APPEND:
                group.deliver(message)
        if group[2].role is not Role.LEADER:
            for member in (1, 2, 3):
                while group.members[member].writes:
                    group.persist(member)
    assert group[2].role is Role.LEADER
    group.read(2, b"r")
    assert [m for m in group.take() if m.kind is K.HEARTBEAT] == []
    assert contexts(group, 2) == []
    group.eager_writes = True
    group.tick(count=3)
    (state,) = group.members[2].read_states
    assert state.index >= 4


def test_waiting_reads_share_one_round() -> None:
    """6.4: the leader may gather reads: one round of heartbeats serves all that wait."""
    group = Group()
    group.elect(1)
    for number in range(50):
        group.read(1, b"%d" % number)
    beats = group.take()
    assert [(m.kind, m.target) for m in beats] == [(K.HEARTBEAT, 2), (K.HEARTBEAT, 3)]
    group.read(1, b"later")  # While the round is under way the next one gathers.
    assert group.take() == []
    group.deliver(beats[0])
    for message in group.take():
        group.deliver(message)
    assert len(contexts(group, 1)) == 0
    second = group.take()
    assert len(contexts(group, 1)) == 50
    assert {m.context for m in second}.isdisjoint({m.context for m in beats})
    for message in second:
        group.deliver(message)
    group.stabilize()
    assert contexts(group, 1)[-1] == b"later"


def test_a_single_voter_answers_at_once() -> None:
    group = Group(voters=(1,), learners=(2,))
    group.elect(1)
    group.read(1, b"r")
    assert group.take() == []
    assert contexts(group, 1) == [b"r"]


def test_node_read_index_to_old_leader() -> None:
    """A read that goes to a deposed leader is not answered by it; it is refused, and the member
    asks whom it knows as leader then."""
    group = Group()
    group.elect(1)
    group.isolate(1)
    group.tick([2, 3], count=40)
    (new,) = [node for node in group.leaders() if node.member_id != 1]
    group.read(1, b"old")
    for message in group.take():
        group.deliver(message)
    assert contexts(group, 1) == []
    group.heal()
    group.tick(count=3)
    assert group.members[1].refused == [Refusal(K.READ_INDEX, b"old")]
    assert contexts(group, 1) == []
    follower = 1
    assert group[follower].leader == new.member_id
    group.read(follower, b"new")
    group.stabilize()
    assert contexts(group, follower) == [b"new"]


def test_a_member_that_does_not_lead_refuses_what_is_forwarded_to_it() -> None:
    group = Group()
    group.elect(1)
    group.tick()
    group.read(2, b"r")
    (question,) = group.take()
    group[3].step(Message(K.READ_INDEX, 2, 3, context=question.context))
    (answer,) = [m for m in group.take() if m.kind is K.READ_INDEX_REPLY]
    assert (answer.target, answer.reject) == (2, True)
    group[2].step(answer)  # Not from its leader: still waiting.
    assert group.members[2].refused == []
    group.deliver(question)
    group.stabilize()
    assert contexts(group, 2) == [b"r"]


def test_read_only_duplicate_request() -> None:
    """The same context twice, and every message twice: each request is answered once."""
    group = Group()
    group.elect(1)
    group.tick()
    group.read(2, b"same")
    group.read(2, b"same")
    for _ in range(8):
        for message in group.take():
            group.deliver(message)
            group.deliver(message)
    assert contexts(group, 2) == [b"same", b"same"]


def test_a_lost_round_is_asked_again_under_a_new_id() -> None:
    """Trap 14: the repeated question has an id of its own; an answer to the first one still
    counts for what was asked then."""
    group = Group()
    group.elect(1)
    group.read(1, b"a")
    lost = group.take()
    group[1].tick()
    again = [m for m in group.take() if m.context]
    assert {m.context for m in lost}.isdisjoint({m.context for m in again})
    group.deliver(lost[0])
    group.stabilize()
    assert contexts(group, 1) == [b"a"]
    group.read(1, b"b")
    group.stabilize()
    assert contexts(group, 1) == [b"a", b"b"]


def test_a_forwarded_read_that_got_lost_is_asked_again() -> None:
    group = Group()
    group.elect(1)
    group.tick()
    group.read(2, b"a")
    group.take()
    group.tick()
    assert contexts(group, 2) == [b"a"]


def test_many_lost_rounds_are_joined() -> None:
    """Rounds that nobody answers do not pile up; when the network heals all are answered."""
    group = Group(check_quorum=False)
    group.elect(1)
    group.isolate(1)
    for number in range(100):
        group.read(1, b"%d" % number)
        group.tick([1])
    assert group[1].status().pending_reads == 100
    group.heal()
    group.tick([1])
    assert contexts(group, 1) == [b"%d" % number for number in range(100)]
    assert group[1].status().pending_reads == 0


def test_answers_to_an_earlier_run_of_a_member_are_ignored() -> None:
    """A member restarts within a term and asks anew; the answer to its former self is late."""
    group = Group()
    group.elect(1)
    group.tick()
    group[2].read_index(b"before")
    for message in group.take():
        group.deliver(message)
    beats = group.take()
    for message in beats:
        group.deliver(message)
    answers = []
    for _ in range(2):
        for message in group.take():
            if message.kind is K.READ_INDEX_REPLY:
                answers.append(message)
            else:
                group.deliver(message)
    assert answers
    group.crash(2)
    group.start(2)
    group[1].propose([b"=new"])
    group.tick()
    group.read(2, b"after")
    group.take()
    for message in answers:
        group.deliver(message)
    assert contexts(group, 2) == []


def test_too_many_waiting_reads_are_refused() -> None:
    group = Group(pending_reads_max=2)
    group.elect(1)
    for number in range(3):
        group[1].read_index(b"%d" % number)
    group.stabilize()
    assert contexts(group, 1) == [b"0", b"1"]
    assert group.members[1].refused == [Refusal(K.READ_INDEX, b"2")]


def test_reads_without_a_leader_are_refused() -> None:
    group = Group()
    group[1].read_index(b"r")
    group.take()
    assert group.members[1].refused == [Refusal(K.READ_INDEX, b"r")]


def test_losing_the_leader_refuses_waiting_reads() -> None:
    group = Group()
    group.elect(1)
    group.tick()
    group.isolate(1)
    group[1].read_index(b"leader")
    group[2].read_index(b"follower")
    group.tick(count=60)
    assert group.members[1].refused == [Refusal(K.READ_INDEX, b"leader")]
    assert group.members[2].refused == [Refusal(K.READ_INDEX, b"follower")]


def test_a_deposed_leader_refuses_the_reads_of_others() -> None:
    group = Group()
    group.elect(1)
    group.tick()
    group[2].read_index(b"r")
    for message in group.take():
        group.deliver(message)
    group.take()
    group.send(K.HEARTBEAT, 3, 1, term=9)
    assert [m for m in group.dropped if m.kind is K.READ_INDEX_REPLY] == []
    assert group[1].role is Role.FOLLOWER
    assert group[1].status().pending_reads == 0


def test_read_when_quorum_becomes_less() -> None:
    """Removing a member makes the quorum smaller, and waiting reads are answered by what is
    there already."""
    group = Group(voters=(1, 2), check_quorum=False)
    group.elect(1)
    group[1].propose_change(ConfigChange(((ChangeKind.REMOVE, 2),)))
    group.eager_apply = False
    group.stabilize()
    group.read(1, b"r")
    group.take()
    assert contexts(group, 1) == []
    group.eager_apply = True
    while group.members[1].unapplied:
        group.apply(1)
    group.take()
    assert contexts(group, 1) == [b"r"]


def test_garbled_round_ids_are_ignored() -> None:
    group = Group()
    group.elect(1)
    group.tick()
    group.read(1, b"r")
    group.take()
    for context in (b"", b"short", bytes(24)):
        group.send(K.HEARTBEAT_REPLY, 2, 1, index=2, context=context)
    assert contexts(group, 1) == []
    group.read(2, b"r")
    group.take()
    group.send(K.READ_INDEX_REPLY, 1, 2, index=1, context=bytes(24))
    assert contexts(group, 2) == []
