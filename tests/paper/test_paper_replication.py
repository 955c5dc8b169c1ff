"""Log replication and commitment. Sections are of the extended Raft paper (2014)."""

from __future__ import annotations

import pytest

from raftkv.consensus.progress import ProgressState
from raftkv.consensus.types import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageKind,
    ProposalDropped,
    Role,
)
from tests.interaction.group import Group

K = MessageKind


def test_a_committed_entry_reaches_every_machine() -> None:
    """5.3: the leader appends, replicates, applies once a majority has it, and keeps telling
    followers how far the log is committed."""
    group = Group()
    leader = group.elect(1)
    assert leader.propose([b"=a", b"=b"]) == (3, 2)
    group.stabilize()
    for member in (1, 2, 3):
        assert group.data(member) == [b"=a", b"=b"]
        assert group[member].commit_index == 4


def test_one_append_per_follower_carries_all_of_a_turn() -> None:
    """Several proposals of one turn travel together, and sends do not wait for the own disk."""
    group = Group(eager_writes=False)
    group.eager_writes = True
    group.elect(1)
    group.eager_writes = False
    group[1].propose([b"=a"])
    group[1].propose([b"=b"])
    appends = group.take()
    assert [(message.kind, message.target, len(message.entries)) for message in appends] == [
        (K.APPEND, 2, 2),
        (K.APPEND, 3, 2),
    ]
    assert len(group.members[1].writes) == 1


def test_a_leader_counts_itself_only_when_durable() -> None:
    """Thesis 10.2.1: a leader may write in parallel with its followers; it counts its own copy
    when durable, and may commit before that if the followers alone are a majority."""
    group = Group()
    group.elect(1)
    group.eager_writes = False
    group[1].propose([b"=a"])
    for message in group.take():
        if message.target == 2:
            group.deliver(message)
    group.handle(2)
    group.persist(2)
    for message in group.take():
        group.deliver(message)
    assert group[1].commit_index == 2
    group.persist(1)
    assert group[1].commit_index == 3


def test_followers_alone_can_commit_but_the_leader_applies_what_is_durable() -> None:
    """As above; the leader knows the entry to be committed, but its machine outlives a crash and
    must never be ahead of its disk."""
    group = Group()
    group.elect(1)
    group.eager_writes = False
    group[1].propose([b"=a"])
    for message in group.take():
        group.deliver(message)
    for member in (2, 3):
        group.handle(member)
        group.persist(member)
    for message in group.take():
        if message.target == 1:
            group.deliver(message)
    group.handle(1)
    assert group[1].commit_index == 3
    assert group.data(1) == []
    group.persist(1)
    group.handle(1)
    assert group.data(1) == [b"=a"]


def test_a_tail_that_was_being_replaced_is_not_taken_for_committed_after_a_crash() -> None:
    """A follower's stale tail is replaced and the new entries are committed by the others; it
    crashes before its disk has them. What it then holds at these indexes is still the old tail."""
    group = Group(logs={1: [2, 2], 2: [], 3: []})
    group.members[3].storage.hard_state = HardState(4)
    group.start(3)
    group.isolate(1)
    group.elect(3)
    group[3].propose([b"=new"])
    group.stabilize()
    group.eager_writes = False
    group.heal()
    for _ in range(12):
        group[3].tick()
        for message in group.take():
            group.deliver(message)
        for member in (1, 2, 3):
            writes = group.members[member].writes
            while writes and not (member == 1 and writes[0].entries):
                group.persist(member)
    assert group[1].commit_index == 3
    group.crash(1)
    group.start(1)
    assert group.terms(1) == [2, 2]
    assert group[1].commit_index == 1
    assert group.members[1].applied == 1
    group.eager_writes = True
    group.tick(count=5)
    assert group.terms(1) == group.terms(3) == [5, 5]
    assert group.data(1) == [b"=new"]


def test_cannot_commit_without_new_term_entry() -> None:
    """5.4.2: entries of former terms are not committed by counting replicas; an entry of the
    leader's own term commits them along."""
    group = Group(voters=range(1, 6), logs={member: [2, 2] for member in (1, 2)})
    group.cut = {(1, other) for other in (3, 4, 5)}
    node = group[1]
    node.campaign()
    for member in (2, 3, 4):
        group.cut.discard((1, member))
    for _ in range(4):  # Election only: pre-votes, votes, and the appends held back.
        for message in group.take():
            if message.kind is not K.APPEND:
                group.deliver(message)
    assert node.role is Role.LEADER
    group.committed_seen = 99  # The answers are made up: no disk holds what they claim.
    # A majority has the entries of term 2, index 3; nothing of term 3 is anywhere else.
    for member in (2, 3, 4):
        group.send(K.APPEND_REPLY, member, 1, term=3, index=3)
    assert node.commit_index == 1
    for member in (2, 3):
        group.send(K.APPEND_REPLY, member, 1, term=3, index=4)
    assert node.commit_index == 4


@pytest.mark.parametrize(
    "log",
    [
        [1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 4],
        [1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 4, 4, 4, 4],
        [1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ],
)
def test_leader_sync_follower_log(log: list[int]) -> None:
    """5.3, figure 7: a leader brings every kind of diverged follower into line with its log."""
    own = [1, 1, 4, 4, 5, 5, 6, 6, 6]
    group = Group(logs={1: own, 2: log, 3: []}, pre_vote=False)
    group.members[1].storage.hard_state = HardState(8)
    group.start(1)
    group.isolate(2)
    group.elect(1)
    group.heal()
    group.tick(count=3)
    assert group.terms(2) == group.terms(1) == group.terms(3) == [*own, 9]
    assert group.members[2].machine == group.members[1].machine


def test_fast_log_rejection() -> None:
    """5.3, end: a rejection names a hint that skips a whole term, so that hundreds of conflicting
    entries cost a few messages."""
    group = Group(
        logs={1: [1] * 2 + [5] * 300, 2: [1] * 2 + [2] * 100 + [3] * 100, 3: []},
        pre_vote=False,
    )
    group.isolate(2)
    group.elect(1)
    group.heal()
    rejections = []
    group[1].tick()
    for _ in range(20):
        for message in group.take():
            if message.kind is K.APPEND_REPLY and message.reject:
                rejections.append(message)
            group.deliver(message)
    assert group.terms(2) == group.terms(1)
    assert 1 <= len(rejections) <= 3


def test_an_old_append_does_not_shorten_the_log() -> None:
    """5.3 and figure 2, AppendEntries 3: entries are deleted only on a conflict; what follows
    the last new entry may already be acknowledged (trap 6)."""
    group = Group(logs={2: [1, 1, 1]})
    old = Entry(2, 1, EntryKind.BATCH, b"=2/1")
    (answer,) = group.send(K.APPEND, 1, 2, term=2, index=1, log_term=1, entries=(old,))
    assert (answer.reject, answer.index) == (False, 2)
    assert group.terms(2) == [1, 1, 1]
    new = Entry(4, 2, EntryKind.BATCH, b"=new")
    same = Entry(3, 1, EntryKind.BATCH, b"=3/1")
    group.send(K.APPEND, 1, 2, term=2, index=1, log_term=1, entries=(old, same, new))
    assert group.terms(2) == [1, 1, 2]


def test_commit_is_bounded_by_what_this_append_matched() -> None:
    """Figure 2, AppendEntries 5: min(leaderCommit, index of last new entry): what lies beyond may
    be another leader's (trap 6)."""
    group = Group(logs={2: [1, 1, 1]})
    entry = Entry(2, 3, EntryKind.BATCH, b"=x")
    group.send(K.APPEND, 1, 2, term=3, index=1, log_term=1, commit_index=4)
    assert group[2].commit_index == 1
    group.send(K.APPEND, 1, 2, term=3, index=1, log_term=1, entries=(entry,), commit_index=4)
    assert group[2].commit_index == 2
    assert group[2].last_index == 2


def test_t10_conflict_with_empty_entries() -> None:
    """An append without entries that does not fit is rejected and removes nothing; one that fits
    is accepted and removes nothing."""
    group = Group(logs={2: [1, 1, 2]})
    (answer,) = group.send(K.APPEND, 1, 2, term=3, index=4, log_term=3)
    assert answer.reject
    assert group.terms(2) == [1, 1, 2]
    (answer,) = group.send(K.APPEND, 1, 2, term=3, index=3, log_term=1)
    assert not answer.reject
    assert answer.index == 3
    assert group.terms(2) == [1, 1, 2]


def test_log_replication_with_reordered_message() -> None:
    """Pipelined appends that arrive in the wrong order are rejected, looked for and repaired."""
    group = Group()
    group.elect(1)
    batches = []
    for number in range(5):
        group[1].propose([b"=%d" % number])
        batches.append(group.take())
    for messages in reversed(batches):
        for message in messages:
            group.deliver(message)
    group.stabilize()
    assert group.data(2) == group.data(3) == [b"=%d" % number for number in range(5)]


def test_leader_self_ack_after_term_change() -> None:
    """A leader's own write becomes durable after it has stepped down: that counts for nobody."""
    group = Group()
    group.elect(1)
    group.eager_writes = False
    group[1].propose([b"=a"])
    group.handle(1)
    group.send(K.HEARTBEAT, 2, 1, term=5)
    while group.members[1].writes:
        group.persist(1)
    assert (group[1].role, group[1].commit_index) == (Role.FOLLOWER, 2)
    assert group[1].stable_index == 3


def test_heartbeat_reply_recovers_from_probing() -> None:
    """A caught-up follower whose messages got lost leaves PROBE on the next heartbeat's answer."""
    group = Group()
    group.elect(1)
    group[1].report_unreachable(2)
    assert group[1].status().peers[2].state is ProgressState.PROBE
    group.tick()
    assert group[1].status().peers[2].state is ProgressState.REPLICATE


def test_replicate_pause() -> None:
    """At most inflight_messages_max appends are unanswered; answers open the window again."""
    group = Group(inflight_messages_max=3, append_bytes_max=10)
    group.elect(1)
    group.isolate(3)
    group[1].propose([b"=%09d" % number for number in range(10)])
    appends = [message for message in group.take() if message.target == 3]
    assert len(appends) == 3
    assert group[1].status().peers[3].inflight_messages == 3
    group[1].propose([b"=more"])
    assert [message for message in group.take() if message.target == 3] == []
    for message in appends[:1]:
        group.heal()
        group.deliver(message)
    for message in group.take():
        group.deliver(message)
    assert len([message for message in group.take() if message.target == 3]) == 1


def test_inflight_bytes_are_capped() -> None:
    """The window is also one of bytes; one append always goes."""
    group = Group(inflight_bytes_max=25, append_bytes_max=10)
    group.elect(1)
    group[1].propose([b"=%09d" % number for number in range(10)])
    appends = [message for message in group.take() if message.target == 3]
    assert len(appends) == 3
    assert group[1].status().peers[3].inflight_bytes == 30


def test_lagging_commit() -> None:
    """A follower that missed only the news of the commit learns it from a heartbeat."""
    group = Group()
    group.elect(1)
    group[1].propose([b"=a"])
    for message in group.take():
        group.deliver(message)
    for message in group.take():
        group.deliver(message)
    assert group[1].commit_index == 3
    for message in group.take():
        if message.target != 2:
            group.deliver(message)
    assert group[2].commit_index == 2
    group.tick()
    assert group[2].commit_index == 3


def test_a_heartbeat_commits_only_what_the_follower_surely_has() -> None:
    """A heartbeat carries min(match, commit): a follower's own tail may differ."""
    group = Group()
    group.elect(1)
    group.isolate(3)
    group[1].propose([b"=a"])
    group.stabilize()
    group[1].tick()
    (beat,) = [m for m in group.take() if m.target == 3 and m.kind is K.HEARTBEAT]
    assert group[1].commit_index == 3
    assert beat.commit_index == 2


def test_async_storage_writes_append_aba_race() -> None:
    """Seven members. An entry being written is replaced and then put back by later leaders while
    the first write is still under way: that write's end must not vouch for the last one."""
    group = Group(voters=range(1, 8))
    node, member = group[1], group.members[1]
    group.eager_writes = False
    first = Entry(2, 2, EntryKind.BATCH, b"=A")
    other = Entry(2, 3, EntryKind.BATCH, b"=B")
    again = Entry(3, 4, EntryKind.BATCH, b"=C")
    group.send(K.APPEND, 2, 1, term=2, index=1, log_term=1, entries=(first,))
    group.send(K.APPEND, 3, 1, term=3, index=1, log_term=1, entries=(other,))
    group.send(K.APPEND, 4, 1, term=4, index=1, log_term=1, entries=(first, again))
    assert len(member.writes) == 3
    group.persist(1)
    # Index 2 is of term 2 again in the log, and of term 2 on the disk; yet the disk will go
    # through term 3 first, and a crash in between would lose what is acknowledged.
    assert node.stable_index == 1
    assert [m for m in group.take() if m.term == 4] == []
    group.persist(1)
    assert node.stable_index == 1
    group.persist(1)
    assert node.stable_index == 3
    answers = [m for m in group.take() if m.term == 4]
    assert [(m.target, m.index) for m in answers] == [(4, 3)]
    assert member.storage.log == [first, again]


def test_an_old_term_tail_is_acknowledged_by_the_next_write() -> None:
    """The end of a write of an old term is ignored; the write that carries the new term answers
    for the entries still on their way."""
    group = Group()
    group.eager_writes = False
    entry = Entry(2, 2, EntryKind.BATCH, b"=A")
    group.send(K.APPEND, 2, 1, term=2, index=1, log_term=1, entries=(entry,))
    group.send(K.HEARTBEAT, 3, 1, term=3)
    group.persist(1)
    assert group[1].stable_index == 1
    group.persist(1)
    assert group[1].stable_index == 2


def test_t62_follower_clear_restart_recover() -> None:
    """A follower whose disk was replaced comes back under its id with an empty log: the leader
    notices the shortened log and sends everything again; nothing crashes."""
    group = Group()
    group.elect(1)
    group[1].propose([b"=a", b"=b"])
    group.stabilize()
    group.wipe(3)
    group.tick(count=5)
    assert group.data(3) == [b"=a", b"=b"]
    assert group[3].conf == ConfState(voters=(1, 2, 3))
    assert group[1].status().peers[3].match == group[1].last_index


def test_bounded_log_growth_with_partition() -> None:
    """A leader without a quorum refuses proposals past its cap instead of growing for ever; once
    the entries commit, it takes more."""
    group = Group(uncommitted_bytes_max=100, check_quorum=False)
    group.elect(1)
    group.isolate(1)
    with pytest.raises(ProposalDropped, match="too much uncommitted"):
        for _ in range(100):
            group[1].propose([b"=" + bytes(29)])
    assert group[1].status().uncommitted_bytes == 90
    assert group[1].last_index == 5
    group.heal()
    group.tick(count=3)
    assert group[1].status().uncommitted_bytes == 0
    group[1].propose([b"=" + bytes(500)])  # Alone it passes whatever its size.
    with pytest.raises(ProposalDropped):
        group[1].propose([b"=x"])


def test_a_proposal_is_taken_whole_or_not_at_all() -> None:
    group = Group(uncommitted_bytes_max=10, check_quorum=False)
    group.elect(1)
    group.isolate(1)
    group[1].propose([b"=a"])
    with pytest.raises(ProposalDropped):
        group[1].propose([b"=123", b"=456", b"=789"])
    assert group[1].last_index == 3


def test_proposals_are_forwarded_to_the_leader() -> None:
    """Section 8: a follower passes a client's request on to the leader."""
    group = Group()
    with pytest.raises(ProposalDropped, match="no leader"):
        group[2].propose([b"=early"])
    group.elect(1)
    assert group[2].propose([b"=a", b"=b"]) is None
    group.stabilize()
    assert group.data(3) == [b"=a", b"=b"]


def test_a_forwarded_proposal_that_cannot_be_taken_is_refused_where_it_is() -> None:
    group = Group()
    group.elect(1)
    group[2].propose([b"=a"])
    for message in group.take():
        group.deliver(Message(message.kind, 2, 3, entries=message.entries))
    group.stabilize()
    assert [refusal.context for refusal in group.members[3].refused] == [b"=a"]
    assert group.data(1) == []


def test_stepping_down_keeps_the_log() -> None:
    """5.3, leader append-only; trap 13: a leader that steps down must not cut its log."""
    group = Group()
    group.elect(1)
    group.isolate(1)
    group[1].propose([b"=a"])
    group.send(K.HEARTBEAT, 2, 1, term=7)
    assert group[1].role is Role.FOLLOWER
    assert group[1].last_index == 3


def test_a_silent_commit_append_is_not_answered() -> None:
    """News of the commit alone costs one message, not two."""
    group = Group()
    group.elect(1)
    group[1].propose([b"=a"])
    for _ in range(2):
        for message in group.take():
            group.deliver(message)
    news = group.take()
    assert [(m.kind, m.entries, m.commit_index) for m in news] == [(K.APPEND, (), 3)] * 2
    for message in news:
        group.deliver(message)
    assert group.take() == []


def test_a_reply_beyond_the_log_or_from_a_stranger_is_ignored() -> None:
    group = Group()
    group.elect(1)
    group.send(K.APPEND_REPLY, 2, 1, index=99)
    assert group[1].status().peers[2].match == 2
    group.send(K.APPEND_REPLY, 9, 1, index=2)
    group.send(K.HEARTBEAT_REPLY, 9, 1, index=2)
    assert set(group[1].status().peers) == {1, 2, 3}
