"""What the façade and the small parts promise, apart from what the paper says."""

from __future__ import annotations

import random

import pytest

from raftkv.consensus.config import RaftConfig
from raftkv.consensus.invariants import GroupHistory, check_log_matching
from raftkv.consensus.log import RaftLog
from raftkv.consensus.memory import MemoryLogStorage
from raftkv.consensus.node import RaftNode, describe_conf
from raftkv.consensus.progress import Progress, ProgressState
from raftkv.consensus.types import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    LogCompacted,
    LogUnavailable,
    Message,
    MessageKind,
    Ready,
    Role,
    SnapshotMeta,
    StorageWrite,
)
from raftkv.errors import ConfigError, InvariantViolation
from tests.interaction.group import Group

K = MessageKind


def entry(index: int, term: int, data: bytes = b"") -> Entry:
    return Entry(index, term, EntryKind.BATCH, data)


def log_of(*terms: int) -> RaftLog:
    """A log with a durable entry of each term, from index 1."""
    storage = MemoryLogStorage()
    storage.log = [entry(index, term, b"xx") for index, term in enumerate(terms, 1)]
    return RaftLog(storage, 0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"member_id": 0},
        {"member_id": 1 << 64},
        {"heartbeat_ticks": 0},
        {"election_timeout_ticks": 1},
        {"append_bytes_max": 0},
        {"inflight_messages_max": 0},
        {"pending_reads_max": -1},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        RaftConfig(**{"member_id": 1, **settings})


def test_ready_is_a_pure_look_and_advance_takes_it_over() -> None:
    group = Group(voters=(1,), eager_writes=False)
    node = group[1]
    assert not node.has_ready()
    assert node.ready() == Ready()
    node.campaign()
    assert node.has_ready()
    first = node.ready()
    assert node.ready() == first
    node.advance(first)
    assert not node.has_ready()


def test_advance_makes_nothing_durable_or_applied() -> None:
    group = Group(voters=(1,), eager_writes=False, eager_apply=False)
    node = group.members[1].up
    node.campaign()
    group.handle(1)
    group.persist(1)
    group.handle(1)
    assert (node.last_index, node.stable_index, node.commit_index) == (2, 1, 1)
    group.persist(1)
    group.handle(1)
    assert (node.stable_index, node.commit_index, node.applied_index) == (2, 2, 1)
    group.apply(1)
    assert node.applied_index == 2


def test_input_between_ready_and_advance_is_noticed() -> None:
    group = Group(logs={1: [2]})
    ready = group[1].ready()
    message = Message(K.APPEND, 2, 1, 3, 1, 1, (entry(2, 3),))
    group[1].step(message)
    with pytest.raises(InvariantViolation, match="between ready and advance"):
        group[1].advance(ready)


def test_a_write_carries_replies_and_the_commit_index_travels_along() -> None:
    group = Group()
    group.elect(1)
    group.eager_writes = False
    group.send(K.APPEND, 1, 2, index=2, log_term=2, entries=(entry(3, 2),), commit_index=3)
    (write,) = group.members[2].writes
    assert isinstance(write, StorageWrite)
    assert write.hard_state is not None
    assert [reply.kind for reply in write.replies] == [K.PERSISTED, K.APPEND_REPLY]
    assert write.must_sync


def test_committed_entries_come_in_bounded_portions() -> None:
    group = Group(voters=(1,), committed_bytes_max=10)
    group.elect(1)
    portions = []
    group.on_ready = lambda _, ready: portions.append(len(ready.committed))  # type: ignore
    group[1].propose([b"=%04d" % number for number in range(5)])
    group.stabilize()
    assert [count for count in portions if count] == [2, 2, 1]


def test_status_shows_the_leaders_view() -> None:
    group = Group(learners=(4,))
    group.elect(1)
    status = group[1].status()
    assert (status.role, status.term, status.vote, status.leader) == (Role.LEADER, 2, 1, 1)
    assert set(status.peers) == {1, 2, 3, 4}
    assert status.peers[4].match == 2
    assert group[2].status().peers == {}
    assert not group[1].is_learner


def test_describe_conf_is_one_line() -> None:
    conf = ConfState((1, 2), (5,), (1, 3), (3,), True)
    text = describe_conf(conf)
    assert text == "voters=[1, 2] outgoing=[1, 3] learners=[5] learners_next=[3] auto-leave"


def test_a_tie_of_terms_on_disk_and_log_is_settled_by_the_log() -> None:
    """A disk whose log is of a later term than its hard state: the term was entered."""
    storage = MemoryLogStorage(ConfState(voters=(1,)))
    node = RaftNode(RaftConfig(1), storage, random.Random(1), applied=1)
    assert node.term == 1


def test_values_are_equal_by_content_and_hashable() -> None:
    first, second = entry(1, 2, b"x"), entry(1, 2, b"x")
    assert first == second
    assert len({first, second}) == 1
    assert first != entry(1, 2, b"y") and first != (1, 2, EntryKind.BATCH, b"x")
    assert not hasattr(first, "__dict__")


# The log


def test_log_reads_span_durable_and_new_entries() -> None:
    log = log_of(1, 1)
    log.append([entry(3, 2, b"yy"), entry(4, 2, b"yy")])
    assert [e.index for e in log.read(1, 100)] == [1, 2, 3, 4]
    assert [e.index for e in log.read(2, 100, 4)] == [2, 3]
    assert [e.index for e in log.read(2, 4)] == [2, 3]
    assert [e.index for e in log.read(1, 2)] == [1]
    assert [e.index for e in log.read(3, 1)] == [3]
    assert log.read(5, 100) == ()


def test_log_terms_and_bounds() -> None:
    log = log_of(1, 2)
    assert [log.term(index) for index in (0, 1, 2)] == [0, 1, 2]
    with pytest.raises(LogUnavailable):
        log.term(3)
    assert not log.matches(9, 1)


def test_log_refuses_a_gap_and_a_committed_conflict() -> None:
    log = log_of(1, 1)
    with pytest.raises(InvariantViolation, match="gap"):
        log.append([entry(5, 1)])
    log.commit_to(2)
    with pytest.raises(InvariantViolation, match="committed"):
        log.append([entry(2, 2)])
    with pytest.raises(InvariantViolation, match="beyond"):
        log.commit_to(9)
    with pytest.raises(InvariantViolation, match="not given out"):
        log.applied_to(2)


def test_log_replaced_tail_is_handed_out_again() -> None:
    log = log_of(1)
    log.append([entry(2, 1), entry(3, 1)])
    log.handed = 4
    log.append([entry(3, 2)])
    assert [(e.index, e.term) for e in log.unhanded()] == [(3, 2)]
    log.persisted(3, 1)  # Of the entry that was replaced.
    assert log.stable_index == 1
    log.persisted(9, 9)
    log.persisted(3, 2)
    assert log.stable_index == 3


def test_log_snapshot_in_progress_hides_what_is_before() -> None:
    log = log_of(1, 1)
    meta = SnapshotMeta(5, 2, ConfState((1,)))
    log.install(meta)
    assert (log.first_index(), log.last_index, log.last_term) == (6, 5, 2)
    assert log.stable_index == 0
    for call in (lambda: log.term(3), lambda: log.read(3, 10)):
        with pytest.raises(LogCompacted):
            call()
    assert log.agree_at_most(4, 1) == (4, 0)
    with pytest.raises(InvariantViolation):
        log.install(SnapshotMeta(4, 2, ConfState((1,))))
    log.snapshot_persisted(SnapshotMeta(4, 2, ConfState((1,))))
    assert log.snapshot is meta


def test_the_image_of_a_replaced_snapshot_tells_nothing() -> None:
    """The machine installed an image while a newer snapshot was already in the log (seed 2083)."""
    log = log_of(1, 1)
    log.install(SnapshotMeta(5, 2, ConfState((1,))))
    newer = SnapshotMeta(9, 2, ConfState((1,)))
    log.install(newer)
    log.snapshot_persisted(SnapshotMeta(5, 2, ConfState((1,))))
    log.applied_to(5)
    assert log.applied == 0
    log.snapshot_persisted(newer)
    log.applied_to(9)
    assert log.applied == 9


def test_log_hint_skips_terms() -> None:
    log = log_of(1, 1, 3, 3, 3)
    assert log.agree_at_most(9, 9) == (5, 3)
    assert log.agree_at_most(5, 2) == (2, 1)
    assert log_of(5, 5).agree_at_most(2, 1) == (0, 0)


def test_log_finds_config_entries_over_several_pages() -> None:
    log = log_of(1, 1)
    assert not log.has_config(1, 3)
    log.append([Entry(3, 1, EntryKind.CONFIG, b"")])
    assert log.has_config(1, 4)


# Progress


def test_progress_rejections() -> None:
    progress = Progress(10, match=3)
    assert not progress.rejected(5, 5)  # Not what was asked.
    assert progress.rejected(9, 6)
    assert progress.next == 7
    progress.become_replicate()
    assert progress.next == 4
    assert not progress.rejected(3, 0)  # Out of date: it is acknowledged.
    assert progress.rejected(8, 0)
    assert (progress.state, progress.next) == (ProgressState.PROBE, 4)


def test_progress_windows_empty_as_answers_come() -> None:
    progress = Progress(1)
    progress.become_replicate()
    for last in (2, 4, 6):
        progress.sent(last, 10)
    assert progress.acknowledged(4)
    assert (len(progress.inflight), progress.inflight_bytes, progress.next) == (1, 10, 7)
    assert not progress.acknowledged(4)


def test_progress_of_a_replaced_disk() -> None:
    progress = Progress(9, match=8)
    progress.become_replicate()
    progress.regressed(2)
    assert (progress.match, progress.next, progress.state) == (0, 3, ProgressState.PROBE)
    progress.become_snapshot(20)
    progress.regressed(0)
    assert (progress.match, progress.state) == (0, ProgressState.SNAPSHOT)


# The invariants notice


def test_two_leaders_in_one_term_are_noticed() -> None:
    groups = [Group(), Group()]
    history = GroupHistory()
    history.observe([groups[0].elect(1)])
    with pytest.raises(InvariantViolation, match="two leaders"):
        history.observe([groups[1].elect(2)])


def test_a_changed_committed_entry_is_noticed() -> None:
    history = GroupHistory()
    for data in (b"=a", b"=b"):
        group = Group(voters=(1,))
        leader = group.elect(1)
        leader.propose([data])
        group.stabilize()
        if data == b"=a":
            history.observe([leader])
        else:
            with pytest.raises(InvariantViolation, match="committed entry changed"):
                history.observe([leader])
    assert history.committed_index == 3


def test_indexes_that_go_back_are_noticed() -> None:
    history = GroupHistory()
    group = Group()
    group.elect(1)
    history.observe([group[2]])
    group.crash(2)
    stored = group.members[2].storage
    stored.hard_state = HardState(1, stored.hard_state.vote, stored.hard_state.commit_index)
    group.members[2].storage.log.clear()
    group.start(2)
    with pytest.raises(InvariantViolation, match="went back"):
        history.observe([group[2]])


def test_a_leader_without_a_committed_entry_is_noticed() -> None:
    group = Group()
    group.elect(1)
    group[1].propose([b"=a"])
    group.stabilize()
    other = Group(voters=(1,))
    leader = other.elect(1)
    group.history.check_leader_complete(group[2])
    with pytest.raises(InvariantViolation, match="completeness"):
        group.history.check_leader_complete(leader)


def test_logs_that_do_not_match_are_noticed() -> None:
    left, right = Group(voters=(1,), logs={1: [1, 2]}), Group(voters=(1,), logs={1: [2, 2]})
    with pytest.raises(InvariantViolation, match="hides a conflict"):
        check_log_matching([left[1], right[1]])
    right = Group(voters=(1,), logs={1: [1, 2]})
    right.members[1].storage.log[1] = entry(3, 2, b"other")
    with pytest.raises(InvariantViolation, match="entries differ"):
        check_log_matching([left[1], right[1]])


def test_a_core_out_of_order_is_noticed() -> None:
    group = Group()
    node = group.elect(1)
    core = node._core
    core.leader = 2
    with pytest.raises(InvariantViolation, match="does not lead"):
        node.advance(node.ready())
    core.log.applied = 99
    with pytest.raises(InvariantViolation, match="out of order"):
        node.advance(node.ready())


# Storage in memory


def test_memory_storage_behaves_like_a_log() -> None:
    storage = MemoryLogStorage(ConfState((1,)))
    storage.append((entry(2, 1, b"aa"), entry(3, 1, b"bb"), entry(4, 2, b"cc")))
    assert [e.index for e in storage.entries(2, 5, 4)] == [2, 3]
    storage.compact(3)
    storage.compact(2)
    assert (storage.first_index(), storage.last_index(), storage.term(3)) == (4, 4, 1)
    with pytest.raises(LogCompacted):
        storage.term(2)
    with pytest.raises(LogUnavailable):
        storage.entries(5, 6, 1)
    with pytest.raises(InvariantViolation, match="gap"):
        storage.append((entry(9, 2),))


def test_a_machine_ahead_of_the_log_vouches_for_nothing_in_it() -> None:
    """A snapshot was loaded, and the crash came before the log knew of it."""
    storage = MemoryLogStorage(ConfState((1, 2)))
    storage.append((entry(2, 1), entry(3, 1)))
    storage.conf = ConfState((1, 2, 3))
    node = RaftNode(RaftConfig(1), storage, random.Random(1), applied=9)
    assert (node.commit_index, node.applied_index) == (1, 9)
    node.step(Message(K.SNAPSHOT, 2, 1, 4, snapshot=SnapshotMeta(6, 3, ConfState((1, 2)))))
    assert node.conf == ConfState((1, 2, 3))  # As of what is applied already.
    ready = node.ready()
    node.advance(ready)
    assert ready.write is not None
    storage.write(ready.write)
    for reply in ready.write.replies:
        if reply.target == 1:
            node.step(reply)
    later = tuple(entry(index, 4) for index in range(7, 11))
    node.step(Message(K.APPEND, 2, 1, 4, 6, 3, later, commit_index=10))
    for _ in range(2):
        ready = node.ready()
        node.advance(ready)
        if ready.write is not None:
            storage.write(ready.write)
            node.step(ready.write.replies[0])
    assert [e.index for e in ready.committed] == [10]
