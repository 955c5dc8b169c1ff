"""Elections. Sections are of the extended Raft paper (2014) unless the thesis is named."""

from __future__ import annotations

import pytest

from raftkv.consensus.types import MessageKind, Role
from tests.interaction.group import Group

K = MessageKind


def test_a_follower_campaigns_after_silence_and_wins() -> None:
    """5.2: a follower that hears nothing over the election timeout starts an election; it votes
    for itself and asks the others; with a majority's votes it leads."""
    group = Group(election_timeout_ticks=10)
    group.tick([1], count=20)
    assert group[1].role is Role.LEADER
    assert group[1].term == 2
    assert {group[member].leader for member in (2, 3)} == {1}


def test_heartbeats_prevent_elections() -> None:
    """5.2: leaders send periodic heartbeats to all followers to keep their authority."""
    group = Group()
    group.elect(1)
    group.tick(count=200)
    assert (group[1].role, group[1].term) == (Role.LEADER, 2)


def test_election_timeouts_are_drawn_from_an_interval() -> None:
    """5.2: timeouts are chosen randomly from a fixed interval, anew for each election."""
    seen = set()
    for seed in range(200):
        group = Group(voters=(1, 2), seed=seed, pre_vote=False)
        for ticks in range(1, 25):
            group[1].tick()
            if group[1].role is Role.CANDIDATE:
                seen.add(ticks)
                break
    assert seen == set(range(10, 20))


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("kind", [K.VOTE, K.PRE_VOTE])
def test_vote_from_any_state(role: Role, kind: MessageKind) -> None:
    """5.1, 5.2: a request of a higher term is granted whatever the voter was, by log alone; a
    vote makes it a follower of that term, a pre-vote changes nothing (thesis 9.6)."""
    group = Group(check_quorum=False, pre_vote=role is Role.PRE_CANDIDATE)
    if role is Role.LEADER:
        group.elect(1)
    elif role is not Role.FOLLOWER:
        group[1].campaign()
        group.take()
    assert group[1].role is role
    before = group[1].term
    (answer,) = group.send(kind, 2, 1, term=9, index=99, log_term=8)
    assert not answer.reject
    assert answer.term == 9
    if kind is K.VOTE:
        assert (group[1].role, group[1].term) == (Role.FOLLOWER, 9)
        assert group.members[1].storage.hard_state.vote == 2
    else:
        assert (group[1].role, group[1].term) == (role, before)


def test_one_vote_a_term_first_come_first_served() -> None:
    """5.2: each server votes for at most one candidate in a term; repeating it is harmless."""
    group = Group()
    assert not group.send(K.VOTE, 2, 1, term=2, index=1, log_term=1)[0].reject
    assert group.send(K.VOTE, 3, 1, term=2, index=1, log_term=1)[0].reject
    assert not group.send(K.VOTE, 2, 1, term=2, index=1, log_term=1)[0].reject


def test_a_vote_outlives_a_crash() -> None:
    """Figure 2: votedFor and currentTerm are on stable storage before RPCs are answered."""
    group = Group()
    group.send(K.VOTE, 2, 1, term=2, index=1, log_term=1)
    group.crash(1, power=True)
    group.start(1)
    assert group.send(K.VOTE, 3, 1, term=2, index=1, log_term=1)[0].reject


def test_a_vote_is_said_only_when_durable() -> None:
    """Figure 2, as above: until the write is durable, the answer does not exist outside."""
    group = Group(eager_writes=False)
    assert group.send(K.VOTE, 2, 1, term=2, index=1, log_term=1) == []
    group.crash(1)
    group.start(1)
    assert group.send(K.VOTE, 3, 1, term=2, index=1, log_term=1) == []
    group.persist(1)
    (answer,) = group.take()
    assert (answer.target, answer.reject) == (3, False)


@pytest.mark.parametrize(
    ("log", "index", "term", "granted"),
    [
        ([2], 2, 2, True),
        ([2], 3, 2, True),
        ([2, 2], 2, 2, False),
        ([2, 2], 2, 3, True),
        ([3], 9, 2, False),
    ],
)
def test_voters_deny_candidates_with_older_logs(
    log: list[int], index: int, term: int, granted: bool
) -> None:
    """5.4.1: the log with the later last term is more up to date; of equal ones the longer."""
    group = Group(logs={1: log})
    (answer,) = group.send(K.VOTE, 2, 1, term=9, index=index, log_term=term)
    assert answer.reject is not granted


def test_leader_election_overwrite_newer_logs() -> None:
    """5.4.1, figure 8: entries of a newer term that no majority has yield to an older log that a
    majority will follow, once its candidate has passed the newer term."""
    group = Group(
        voters=range(1, 6),
        logs={1: [2], 2: [2], 3: [3], 4: [], 5: []},
        pre_vote=False,
    )
    for member in (4, 5):  # They voted for 3 in term 3.
        group.send(K.VOTE, 3, member, term=3, index=2, log_term=3)
    group[1].campaign()
    group.stabilize()
    assert group[1].role is Role.FOLLOWER
    assert group[1].term == 3
    group.elect(1)
    for member in range(1, 6):
        assert group.terms(member) == [2, 4]


def test_dueling_candidates() -> None:
    """5.2: a candidate that loses returns to follower when it hears of the other's later term;
    a stale log cannot win even with a higher term."""
    group = Group(pre_vote=False, check_quorum=False)
    group.cut = {(1, 3), (3, 1)}
    group[1].campaign()
    group[3].campaign()
    group.stabilize()
    assert group[1].role is Role.LEADER
    assert group[3].role is Role.CANDIDATE  # 2 had voted already, and 1 cannot be reached.
    group.heal()
    group[3].campaign()
    group.stabilize()
    assert group[1].role is Role.FOLLOWER
    assert group[3].role is Role.FOLLOWER
    assert {group[member].term for member in (1, 2, 3)} == {3}


def test_dueling_pre_candidates() -> None:
    """Thesis 9.6: the loser of a pre-vote disturbs nobody and raises no term."""
    group = Group(check_quorum=False)
    group.cut = {(1, 3), (3, 1)}
    group[1].campaign()
    group[3].campaign()
    group.stabilize()
    assert group[1].role is Role.LEADER
    term = group[1].term
    group.heal()
    group[3].campaign()
    group.stabilize()
    assert group[1].role is Role.LEADER
    assert group[1].term == term


def test_candidate_self_vote_after_lost_election() -> None:
    """A candidate's own vote arrives late, when it follows another already: it is ignored."""
    group = Group(voters=(1, 2, 3), pre_vote=False, eager_writes=False)
    group[1].campaign()
    group.handle(1)
    assert group[1].role is Role.CANDIDATE
    group.send(K.HEARTBEAT, 2, 1)
    assert (group[1].role, group[1].leader) == (Role.FOLLOWER, 2)
    while group.members[1].writes:
        group.persist(1)
    assert (group[1].role, group[1].leader) == (Role.FOLLOWER, 2)
    # Not even with the other votes it might have had.
    group.send(K.VOTE_REPLY, 3, 1)
    assert group[1].role is Role.FOLLOWER


def test_disruptive_follower() -> None:
    """Thesis 4.2.3: without pre-vote a member that timed out too early makes the leader step
    down by its higher term, but gets no votes while the others hear from the leader."""
    group = Group(pre_vote=False)
    group.elect(1)
    group.tick(count=3)
    group[3].campaign()
    group.stabilize()
    assert group[3].role is Role.CANDIDATE
    assert group[1].role is Role.LEADER
    group.tick([1])  # Its heartbeat is answered by the higher term.
    assert group[1].role is Role.FOLLOWER
    assert group[1].term == group[3].term


def test_disruptive_follower_pre_vote() -> None:
    """Thesis 9.6: with pre-vote it does not even raise its term."""
    group = Group()
    group.elect(1)
    group.tick(count=3)
    group[3].campaign()
    group.stabilize()
    assert group[3].role is Role.PRE_CANDIDATE
    group.tick([1])
    assert (group[1].role, group[3].role) == (Role.LEADER, Role.FOLLOWER)
    assert group[1].term == group[3].term == 2


def test_free_stuck_candidate_with_check_quorum() -> None:
    """A candidate alone in a high term, ignored by voters with a living leader, is freed: its
    answer to the leader's heartbeat makes that leader step down to its term, and elect anew."""
    group = Group(pre_vote=False)
    group.elect(1)
    group.isolate(1)
    group[1].report_unreachable(2)
    group.heal()
    group.isolate(3)
    for _ in range(3):
        group[3].campaign()
        group.stabilize()
    stuck = group[3].term
    assert stuck == 5
    group.heal()
    group[3].campaign()
    group.stabilize()
    assert group[1].role is Role.LEADER
    group.tick([1])
    assert (group[1].role, group[1].term) == (Role.FOLLOWER, stuck + 1)
    group.tick(count=60)
    assert len(group.leaders()) == 1
    assert len({group[member].term for member in (1, 2, 3)}) == 1


def test_pre_vote_with_split_vote() -> None:
    """Two candidates that both won the pre-vote split the vote; the next election decides."""
    group = Group()
    group.elect(1)
    group.isolate(1)
    for member in (2, 3):  # The lease on the old leader runs out.
        while group[member].role is Role.FOLLOWER:
            group[member].tick()
    first = group.take()
    for message in first:
        group.deliver(message)
    votes = group.take()
    for message in votes:
        group.deliver(message)
    group.stabilize()
    assert {group[2].role, group[3].role} == {Role.CANDIDATE}
    group.tick([2, 3], count=60)
    leaders = [node for node in group.leaders() if node.member_id != 1]
    assert len(leaders) == 1
    assert leaders[0].term > 2


def test_node_with_smaller_term_can_complete_election() -> None:
    """A pre-candidate that was cut off is refused, learns the higher term from the refusal, and
    then helps to elect the other survivor."""
    group = Group()
    group.elect(1)
    group.isolate(3)
    group.tick([3], count=40)
    assert (group[3].role, group[3].term) == (Role.PRE_CANDIDATE, 2)
    group[1].transfer_leader(2)
    group.stabilize()
    assert (group[2].role, group[2].term) == (Role.LEADER, 3)
    group.crash(1)
    group.tick([2], count=20)
    assert group[2].role is Role.FOLLOWER  # No quorum.
    group.heal()
    group[3].campaign()
    group.stabilize()
    assert (group[3].role, group[3].term) == (Role.FOLLOWER, 3)
    group.elect(2)
    assert (group[3].leader, group[3].term) == (2, 4)


@pytest.mark.parametrize("stale", [1, 2])
def test_pre_vote_migration_can_complete_election(stale: int) -> None:
    """Mixed versions: one member without pre-vote, in a higher term with an older log, beside
    members with it. They still elect a leader."""
    group = Group(pre_vote=True)
    group.elect(1)
    group.crash(3)
    group.start(3, pre_vote=False)
    group.isolate(3)
    group[3].campaign()
    group[3].campaign()
    group.stabilize()
    group[1].propose([b"=a"])
    group.stabilize()
    group.crash(stale)
    group.heal()
    group.tick(count=80)
    assert len(group.leaders()) == 1
    assert group.leaders()[0].member_id != 3
    group.start(stale)
    group.tick(count=60)
    assert group.data(stale) == group.data(3) == [b"=a"]


def test_learner_campaign() -> None:
    """Thesis 4.2.1: a learner never campaigns: not by itself, nor when told."""
    group = Group(voters=(1, 2), learners=(3,))
    group.elect(1)
    group[3].campaign()
    group.tick([3], count=100)
    assert group[3].role is Role.FOLLOWER
    group.send(K.TIMEOUT_NOW, 1, 3)
    assert group[3].role is Role.FOLLOWER
    assert group[3].is_learner


def test_a_learner_forgets_a_leader_it_does_not_hear() -> None:
    group = Group(voters=(1, 2), learners=(3,))
    group.elect(1)
    group.tick(count=2)
    assert group[3].leader == 1
    group.isolate(3)
    group.tick([3], count=60)
    assert group[3].leader == 0


def test_a_cut_off_leader_steps_down() -> None:
    """Thesis 6.2 (check-quorum): a leader without a heartbeat round to a majority over an
    election timeout steps down."""
    group = Group()
    group.elect(1)
    group.isolate(1)
    group.tick([1], count=20)
    assert (group[1].role, group[1].leader) == (Role.FOLLOWER, 0)


def test_without_check_quorum_a_cut_off_leader_stays() -> None:
    group = Group(check_quorum=False)
    group.elect(1)
    group.isolate(1)
    group.tick([1], count=50)
    assert group[1].role is Role.LEADER


def test_cluster_can_regain_stability_when_non_voter_with_higher_term_joins() -> None:
    """A member that left and ran up its term alone comes back as a learner: the group settles in
    the higher term and keeps working."""
    group = Group(voters=(1, 2), learners=(3,))
    group.elect(1)
    group.isolate(3)
    group.send(K.HEARTBEAT, 9, 3, term=30)  # As if it had followed somebody far ahead.
    group.heal()
    group.tick(count=80)
    (leader,) = group.leaders()
    assert leader.term > 30
    leader.propose([b"=after"])
    group.stabilize()
    assert group.data(3) == [b"=after"]


def test_vote_not_granted_when_node_not_in_cluster() -> None:
    """Thesis 4.2.3: members that hear from a leader ignore a removed or foreign server's
    requests, votes and pre-votes alike; the term stays."""
    group = Group()
    group.elect(1)
    group.tick(count=2)
    for kind in (K.PRE_VOTE, K.VOTE):
        for member in (1, 2, 3):
            assert group.send(kind, 9, member, term=50, index=99, log_term=49) == []
            assert group[member].term == 2


def test_a_stranger_in_no_configuration_is_still_voted_for_without_a_leader() -> None:
    """Thesis 4.1: servers process requests of servers that are not in their configuration: the
    candidate may have been added without their knowing."""
    group = Group()
    assert not group.send(K.VOTE, 9, 1, term=5, index=9, log_term=4)[0].reject


def test_t14_one_way_isolation() -> None:
    """A follower that can send but not receive does not unseat the leader; a leader that can
    send but not hear steps down and the others elect another."""
    group = Group()
    group.elect(1)
    group.tick(count=2)
    group.cut = {(1, 3), (2, 3)}
    group.tick(count=100)
    assert group[1].role is Role.LEADER
    assert group[1].term == 2
    group.cut = {(2, 1), (3, 1)}
    group.tick(count=100)
    assert [node.member_id for node in group.leaders()] != [1]
    group.heal()
    group.tick(count=60)
    assert len(group.leaders()) == 1


def test_t61_heartbeat_reject_vote() -> None:
    """Thesis 4.2.3: within the least election timeout of a heartbeat no vote is given; after it
    votes are given again."""
    group = Group()
    group.elect(1)
    group.tick(count=2)
    assert group.send(K.VOTE, 3, 2, term=9, index=99, log_term=8) == []
    for _ in range(9):
        group[2].tick()
    assert group.send(K.VOTE, 3, 2, term=9, index=99, log_term=8) == []
    group[2].tick()
    (answer,) = group.send(K.VOTE, 3, 2, term=9, index=99, log_term=8)
    assert not answer.reject


def test_stale_terms_are_answered_with_the_newer_one() -> None:
    """5.1: a request with a stale term is rejected, and the stale sender learns the term."""
    group = Group()
    group.elect(1)
    (answer,) = group.send(K.APPEND, 3, 2, term=1, index=1, log_term=1)
    assert (answer.kind, answer.term) == (K.APPEND_REPLY, 2)
    (answer,) = group.send(K.PRE_VOTE, 3, 2, term=1, index=1, log_term=1)
    assert (answer.kind, answer.term, answer.reject) == (K.PRE_VOTE_REPLY, 2, True)
    assert group.send(K.VOTE, 3, 2, term=1, index=1, log_term=1) == []


def test_a_message_for_another_member_is_ignored() -> None:
    group = Group()
    node = group[1]
    message = group.send(K.VOTE, 2, 1, term=2, index=1, log_term=1)[0]
    node.step(message)
    assert not node.has_ready()
