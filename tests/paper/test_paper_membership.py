"""Membership changes: thesis chapter 4, and Ongaro's correction of 2015."""

from __future__ import annotations

import pytest

from raftkv.consensus import codec
from raftkv.consensus.progress import ProgressState
from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    ConfState,
    Entry,
    EntryKind,
    Message,
    MessageKind,
    ProposalDropped,
    Role,
)
from tests.interaction.group import Group

K = MessageKind
ADD, LEARN, REMOVE = ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER, ChangeKind.REMOVE


def change(*steps: tuple[ChangeKind, int]) -> ConfigChange:
    return ConfigChange(tuple(steps))


def test_grow_from_one_to_five_and_back_to_three() -> None:
    """4.1: members are added and removed one at a time."""
    group = Group(voters=(1,))
    leader = group.elect(1)
    for member in range(2, 6):
        group.add(member)
        group.snapshot(1)
        leader.propose_change(change((LEARN, member)))
        group.tick(count=3)
        leader.propose_change(change((ADD, member)))
        group.tick(count=3)
    assert leader.conf == ConfState(voters=(1, 2, 3, 4, 5))
    leader.propose([b"=five"])
    group.tick()
    for member in (5, 4):
        leader.propose_change(change((REMOVE, member)))
        group.tick(count=3)
    leader.propose([b"=three"])
    group.tick()
    assert leader.conf == ConfState(voters=(1, 2, 3))
    assert group.data(3) == [b"=five", b"=three"]


def test_changes_wait_for_the_previous_one() -> None:
    """4.1: a leader begins no change before the previous one is committed (here: applied)."""
    group = Group()
    group.elect(1)
    group[1].propose_change(change((LEARN, 4)))
    with pytest.raises(ProposalDropped, match="pending"):
        group[1].propose_change(change((LEARN, 5)))
    group.stabilize()
    group[1].propose_change(change((LEARN, 5)))
    group.stabilize()
    assert group[1].conf.learners == (4, 5)


def test_changes_wait_for_an_entry_of_the_term() -> None:
    """Ongaro, raft-dev 2015 (trap 5): no change before an entry of the leader's term commits."""
    group = Group()
    group[1].campaign()
    for _ in range(4):
        for message in group.take():
            if message.kind is not K.APPEND:
                group.deliver(message)
    assert group[1].role is Role.LEADER
    with pytest.raises(ProposalDropped, match="no entry of this term"):
        group[1].propose_change(change((LEARN, 4)))


def test_a_new_leader_waits_for_changes_in_its_log() -> None:
    """An unapplied change of a former leader forbids the next one."""
    group = Group(eager_apply=False)
    group.elect(1)
    for member in (1, 2, 3):
        while group.members[member].unapplied:
            group.apply(member)
    group[1].propose_change(change((LEARN, 4)))
    group.stabilize()
    group[2].applied(group[2].applied_index)
    group.tick()
    while group.members[2].unapplied:
        group.apply(2)
    group[1].transfer_leader(2)
    group.stabilize()
    assert group[2].role is Role.LEADER
    with pytest.raises(ProposalDropped, match="pending"):
        # Everything up to its election could be a change and is not applied.
        group.members[2].unapplied.clear()
        group[2]._core.pending_conf_index = group[2].last_index
        group[2].propose_change(change((LEARN, 5)))


def test_conf_change_check_before_campaign() -> None:
    """A member with a committed but unapplied change would count by the wrong configuration: it
    does not campaign until it has applied it."""
    group = Group()
    group.elect(1)
    group.eager_apply = False
    group[1].propose_change(change((LEARN, 4)))
    group.stabilize()
    assert group[2].commit_index == 3
    group.tick([2], count=25)
    assert group[2].role is Role.FOLLOWER
    while group.members[2].unapplied:
        group.apply(2)
    group[2].campaign()
    assert group[2].role is Role.PRE_CANDIDATE


def test_several_changes_go_through_a_joint_configuration() -> None:
    """4.3: both majorities must agree while the joint configuration is in force; the leader then
    leaves it by itself."""
    group = Group()
    for member in (4, 5):
        group.add(member)
    group.elect(1)
    seen = []
    group.on_ready = lambda member, ready: seen.append(group[member].conf)
    group[1].propose_change(change((ADD, 4), (ADD, 5), (REMOVE, 2), (REMOVE, 3)))
    group.tick(count=5)
    joint = ConfState(voters=(1, 4, 5), voters_outgoing=(1, 2, 3), auto_leave=True)
    assert joint in seen
    assert group[1].conf == group[4].conf == ConfState(voters=(1, 4, 5))


def test_a_joint_configuration_needs_both_majorities() -> None:
    group = Group(check_quorum=False)
    for member in (4, 5):
        group.add(member)
    group.elect(1)
    group[1].propose_change(change((ADD, 4), (ADD, 5), (REMOVE, 2), (REMOVE, 3)))
    group.isolate(4, 5)
    group.tick(count=5)
    stuck = group[1].commit_index
    assert group[1].conf.voters_outgoing == (1, 2, 3)
    group[1].propose([b"=x"])
    group.tick(count=5)
    assert group[1].commit_index == stuck
    group.heal()
    group.tick(count=10)
    assert group.data(4) == [b"=x"]
    assert group[1].conf == ConfState(voters=(1, 4, 5))


def test_a_new_leader_leaves_the_joint_configuration() -> None:
    group = Group(check_quorum=False)
    for member in (4, 5):
        group.add(member)
    group.elect(1)
    group[1].propose_change(change((ADD, 4), (ADD, 5), (REMOVE, 3)))
    group.isolate(4, 5)
    group.tick(count=5)
    assert group[2].conf.auto_leave
    group.crash(1)
    group.heal()
    group.tick([2, 3, 4, 5], count=80)
    (leader,) = group.leaders()
    assert leader.member_id != 1
    assert leader.conf == ConfState(voters=(1, 2, 4, 5))


def test_confchange_v2_replace_leader() -> None:
    """4.2.2 and 4.3: the leader is replaced in one change; it leads until the joint configuration
    is left, steps down, and the others elect one among them."""
    group = Group()
    group.add(4)
    group.elect(1)
    group[1].propose_change(change((REMOVE, 1), (ADD, 4)))
    group.tick(count=5)
    assert group[1].role is Role.FOLLOWER
    assert group[2].conf == ConfState(voters=(2, 3, 4))
    group.tick([2, 3, 4], count=60)
    (leader,) = group.leaders()
    assert group[4].conf == ConfState(voters=(2, 3, 4))
    leader.propose([b"=without-1"])
    group.stabilize()
    assert group.data(4) == [b"=without-1"]


def test_removed_leader_steps_down() -> None:
    """4.2.2: a leader that is removed steps down once the change is committed; until then it
    does not count itself. The others know that it is committed."""
    group = Group()
    group.elect(1)
    group[1].propose_change(change((REMOVE, 1)))
    group.stabilize()
    assert group[1].role is Role.FOLLOWER
    assert group[2].conf == group[3].conf == ConfState(voters=(2, 3))
    group.tick([1], count=60)
    assert group[1].role is Role.FOLLOWER
    group.tick([2, 3], count=60)
    assert len(group.leaders()) == 1


def test_a_removed_leader_cannot_disturb_what_it_does_not_count_in() -> None:
    group = Group(voters=(1, 2))
    group.elect(1)
    group[1].propose_change(change((REMOVE, 1)))
    group.stabilize()
    with pytest.raises(ProposalDropped):
        group[1].propose([b"=x"])


def test_campaign_learner_must_vote() -> None:
    """etcd#10998: a promoted member that does not know it yet answers vote requests, or a group
    that depends on its vote could never elect."""
    group = Group(voters=(1, 2), learners=(3,))
    group.elect(1)
    group.tick()
    group.isolate(3)
    group[1].propose_change(change((ADD, 3)))
    group.stabilize()
    assert group[2].conf.voters == (1, 2, 3)
    assert group[3].is_learner
    group.crash(1)
    group.heal()
    group.tick([2, 3], count=80)
    assert group[2].role is Role.LEADER


def test_commit_after_remove_node() -> None:
    """Removing a member makes the quorum smaller: entries that wait for it are committed."""
    group = Group(voters=(1, 2), check_quorum=False)
    group.elect(1)
    group[1].propose_change(change((REMOVE, 2)))
    group[1].propose([b"=waits"])
    for message in group.take():
        if message.kind is K.APPEND:
            entries = tuple(e for e in message.entries if e.kind is EntryKind.CONFIG)
            group[2].step(
                Message(message.kind, 1, 2, message.term, message.index, message.log_term, entries)
            )
    group.isolate(2)
    group.handle(2)
    answers = [m for m in group.take() if m.source == 2]
    group.heal()
    for message in answers:
        group.deliver(message)
    group.isolate(2)
    group.stabilize()
    assert group.data(1) == [b"=waits"]
    assert group[1].conf.voters == (1,)


def test_remove_follower_split_cluster() -> None:
    """A follower that was removed while it was cut off cannot form a second cluster with what
    it still believes in."""
    group = Group(voters=(1, 2, 3, 4))
    group.elect(1)
    group.isolate(3, 4)
    group.tick([1, 2], count=3)
    with pytest.raises(AssertionError):
        group.isolate(3)
        group.elect(3)
    group.heal()
    group.tick(count=60)
    (leader,) = group.leaders()
    target = next(m for m in (2, 3, 4) if m != leader.member_id)
    leader.propose_change(change((REMOVE, target)))
    group.isolate(target)
    group.tick(count=60)
    group[target].campaign()
    group.tick([target], count=60)
    assert group[target].role is not Role.LEADER
    assert len([node for node in group.leaders() if node.member_id != target]) == 1


def test_remove_partitioned_node() -> None:
    """A member is removed while cut off and comes back: it raises no term and disturbs nobody."""
    group = Group()
    group.elect(1)
    group.isolate(3)
    group.tick(count=3)
    group[1].propose_change(change((REMOVE, 3)))
    group.tick(count=40)
    term = group[1].term
    group.heal()
    group.tick(count=100)
    assert group[1].role is Role.LEADER
    assert group[1].term == term
    group[1].propose([b"=on"])
    group.stabilize()
    assert group.data(2) == [b"=on"]


def test_t99_issue_584_replication_state_reverted() -> None:
    """A member that was removed and added again, with an empty disk, is replicated to from the
    start: nothing of the old progress is kept."""
    group = Group()
    group.elect(1)
    group[1].propose([b"=a", b"=b"])
    group.stabilize()
    group[1].propose_change(change((REMOVE, 3)))
    group.stabilize()
    group.wipe(3)
    group[1].propose_change(change((ADD, 3)))
    group.stabilize()
    group.tick(count=3)
    assert group.data(3) == [b"=a", b"=b"]
    progress = group[1].status().peers[3]
    assert (progress.match, progress.state) == (group[1].last_index, ProgressState.REPLICATE)


def test_a_demoted_voter_becomes_a_learner_when_the_joint_configuration_ends() -> None:
    """4.3: as long as its vote counts in the outgoing half it is no learner."""
    group = Group()
    group.add(4)
    group.elect(1)
    seen = []
    group.on_ready = lambda member, ready: seen.append(group[member].conf)
    group[1].propose_change(change((LEARN, 3), (ADD, 4)))
    group.tick(count=5)
    assert any(conf.learners_next == (3,) and conf.learners == () for conf in seen)
    assert group[1].conf == ConfState(voters=(1, 2, 4), learners=(3,))
    assert group[3].is_learner


def test_changes_are_forwarded_and_refused_at_the_leader() -> None:
    group = Group()
    group.elect(1)
    group.tick()
    assert group[2].propose_change(change((LEARN, 4))) is None
    group.stabilize()
    assert group[2].conf.learners == (4,)
    group[2].propose_change(change((REMOVE, 1), (REMOVE, 2), (REMOVE, 3)))
    group.stabilize()
    (refusal,) = group.members[1].refused
    assert (refusal.kind, refusal.entry_kind) == (K.PROPOSE, EntryKind.CONFIG)
    entries = (Entry(0, 0, EntryKind.CONFIG, b"garbage"),)
    garbage = Message(K.PROPOSE, 2, 1, term=group[1].term, entries=entries)
    group[1].step(garbage)
    group.take()
    assert group.members[1].refused[-1].context == b"garbage"


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (((ADD, 0),), "0 is no member"),
        (((ADD, 4), (REMOVE, 4)), "named twice"),
        (((REMOVE, 1), (REMOVE, 2), (REMOVE, 3)), "no voter would remain"),
        (tuple((ADD, member) for member in range(4, 20)), "voters"),
        (tuple((LEARN, member) for member in range(4, 14)), "learners"),
        ((), "no joint configuration"),
    ],
)
def test_impossible_changes_are_refused(
    steps: tuple[tuple[ChangeKind, int], ...], reason: str
) -> None:
    group = Group()
    group.elect(1)
    with pytest.raises(ProposalDropped, match=reason):
        group[1].propose_change(ConfigChange(steps))


def test_no_change_inside_a_joint_configuration() -> None:
    group = Group(check_quorum=False)
    group.elect(1)
    group.eager_apply = False
    group[1].propose_change(change((LEARN, 4), (LEARN, 5)))
    group.stabilize()
    conf = group[1].apply_change(change((LEARN, 4), (LEARN, 5)))
    assert conf.auto_leave
    assert group[1].apply_change(change((LEARN, 6))) == conf
    assert codec.decode_conf(codec.encode_conf(conf)) == conf


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_removed_leader_that_alone_knows_of_it_does_not_block_the_rest(
    restarted: bool, pre_vote: bool
) -> None:
    """4.2.2: the leader of two removes itself, with further entries behind; the news of the
    commit is lost. The other one still asks for its vote, which its longer log refuses: but the
    refusal says what is committed."""
    group = Group(voters=(1, 2), pre_vote=pre_vote)
    group.elect(1)
    group.tick()
    group[1].propose_change(change((REMOVE, 1)))
    for message in group.take():
        group.deliver(message)
    answers = group.take()
    group[1].propose([b"=never-sent"])
    group.handle(1)
    for message in answers:
        group.deliver(message)
    group.isolate(2)
    group.stabilize()
    assert group[1].role is Role.FOLLOWER
    assert group[1].last_index > group[2].last_index
    assert group[2].conf.voters == (1, 2)
    if restarted:
        group.crash(1)
        group.start(1)
    group.heal()
    group.tick(count=80)
    assert group[2].role is Role.LEADER
    assert group[2].conf.voters == (2,)
