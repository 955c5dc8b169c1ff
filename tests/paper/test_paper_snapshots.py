"""Log compaction and snapshots: paper section 7, thesis 5."""

from __future__ import annotations

from raftkv.consensus.progress import ProgressState
from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    ConfState,
    Entry,
    EntryKind,
    MessageKind,
    Role,
    SnapshotMeta,
)
from tests.interaction.group import Group

K = MessageKind


def lagging(**settings: object) -> Group:
    """A group whose member 3 has missed entries that the leader has compacted."""
    group = Group(**settings)  # type: ignore[arg-type]
    group.elect(1)
    group.isolate(3)
    for number in range(10):
        group[1].propose([b"=%d" % number])
    group.stabilize()
    group.snapshot(1)
    return group


def test_slow_follower_after_compaction() -> None:
    """Section 7: the leader sends a snapshot when it has discarded the next entry to send."""
    group = lagging()
    group[1].propose([b"=after"])
    group.heal()
    group.tick(count=3)
    assert group.data(3) == group.data(1)
    assert group[3].first_index == 13
    assert group[1].status().peers[3].state is ProgressState.REPLICATE


def test_a_snapshot_counts_when_durable() -> None:
    """The follower answers for the snapshot when it is installed durably, and applies nothing
    that follows before."""
    group = lagging(eager_writes=True)
    group.heal()
    group.eager_writes = False
    group[1].propose([b"=after"])
    while group.members[1].writes:
        group.persist(1)
    for _ in range(6):
        group[1].tick()
        for message in group.take():
            group.deliver(message)
        for member in (1, 2):
            while group.members[member].writes:
                group.persist(member)
    assert any(write.snapshot for write in group.members[3].writes)
    assert group[3].commit_index >= 12
    assert group.members[3].applied == 2
    assert group[1].status().peers[3].match < 12
    group[3].campaign()
    assert group[3].role is Role.FOLLOWER
    group.eager_writes = True
    while group.members[3].writes:
        group.persist(3)
    group.tick(count=3)
    assert group.data(3) == group.data(1)


def test_snapshot_abort() -> None:
    """A failed transfer is reported; the leader probes again and sends another one later."""
    group = lagging()
    group.heal()
    group[1].tick()
    for _ in range(8):
        for message in group.take():
            if message.kind is K.SNAPSHOT:
                group[1].report_snapshot(3, False)
            else:
                group.deliver(message)
    progress = group[1].status().peers[3]
    assert (progress.state, progress.paused, progress.next) == (ProgressState.PROBE, True, 3)
    group.tick(count=3)
    assert group.data(3) == group.data(1)


def test_snapshot_succeed_via_append_reply_behind() -> None:
    """The follower got an older snapshot than the leader expects; as long as the leader's log
    goes on from there, its answer resumes replication."""
    group = lagging()
    older = group.members[1].storage.sendable
    assert older is not None
    group.heal()
    group[1].propose([b"=x", b"=y"])
    group.isolate(3)
    group.stabilize()
    newer = SnapshotMeta(group.members[1].applied, 2, older.conf)
    group.members[1].storage.sendable = newer
    group.heal()
    group[1].tick()
    snapshot = None
    while snapshot is None:
        for message in group.take():
            if message.kind is K.SNAPSHOT:
                snapshot = message
            else:
                group.deliver(message)
    assert snapshot.snapshot == newer
    assert group[1].status().peers[3].pending_snapshot == newer.index
    group.send(K.SNAPSHOT, 1, 3, snapshot=older)
    group.send(K.APPEND_REPLY, 3, 1, index=older.index)
    assert group[1].status().peers[3].state is ProgressState.REPLICATE
    group.tick()
    assert group.data(3) == group.data(1)


def test_restore_ignore_snapshot() -> None:
    """Section 7: a snapshot of a prefix changes nothing; committed entries after it stay."""
    group = Group()
    group.elect(1)
    group[1].propose([b"=a", b"=b"])
    group.stabilize()
    meta = SnapshotMeta(3, 2, group[3].conf)
    (answer,) = group.send(K.SNAPSHOT, 1, 3, snapshot=meta)
    assert (answer.kind, answer.index) == (K.APPEND_REPLY, 4)
    assert (group[3].last_index, group[3].first_index) == (4, 2)


def test_a_snapshot_of_entries_that_are_there_fast_forwards() -> None:
    """The log has the snapshot's last entry: everything up to it is committed, nothing is lost."""
    group = Group(logs={3: [2, 2, 2]})
    meta = SnapshotMeta(3, 2, group[3].conf)
    (answer,) = group.send(K.SNAPSHOT, 1, 3, term=2, snapshot=meta)
    assert answer.index == 3
    assert (group[3].commit_index, group[3].last_index) == (3, 4)
    assert group.members[3].storage.first_index() == 2


def test_t33_snapshot_delete_conflict_logs() -> None:
    """A snapshot that conflicts with the log replaces all of it, uncommitted entries beyond the
    snapshot included."""
    group = Group(logs={3: [2, 2, 2, 2]})
    conf = ConfState(voters=(1, 2, 3))
    group.images[4] = (tuple((index, b"=s") for index in range(2, 5)), conf)
    group.send(K.SNAPSHOT, 1, 3, term=5, snapshot=SnapshotMeta(4, 4, conf))
    node = group[3]
    assert (node.first_index, node.last_index, node.commit_index) == (5, 4, 4)
    assert node.entry_term(4) == 4
    assert group.members[3].applied == 4


def test_a_snapshot_brings_the_membership() -> None:
    """Section 7 and thesis 5.1: a snapshot includes the latest configuration as of its index."""
    group = lagging()
    group[1].propose_change(ConfigChange(((ChangeKind.ADD_LEARNER, 4),)))
    group.stabilize()
    group.add(4)
    group.snapshot(1)
    group.heal()
    group.tick(count=3)
    for member in (1, 2, 3, 4):
        assert group[member].conf == ConfState(voters=(1, 2, 3), learners=(4,))
    assert group.data(4) == group.data(1)


def test_request_snapshot_on_role_change() -> None:
    """A leader that steps down forgets the transfers it was waiting for; the next leader begins
    its own, and a late report changes nothing."""
    group = lagging()
    group.snapshot(2)
    group.heal()
    group[1].tick()
    for _ in range(8):
        for message in group.take():
            if message.kind is not K.SNAPSHOT:
                group.deliver(message)
    assert group[1].status().peers[3].state is ProgressState.SNAPSHOT
    group[1].transfer_leader(2)
    group.stabilize()
    assert group[2].role is Role.LEADER
    group[1].report_snapshot(3, True)
    group.tick(count=3)
    assert group.data(3) == group.data(1)


def test_t35_building_snapshot_does_not_block_append() -> None:
    """While there is no snapshot to send yet, and while one is on its way, everybody else goes
    on."""
    group = lagging()
    storage = group.members[1].storage
    storage.sendable = None
    group.heal()
    group.tick(count=2)
    assert group[1].status().peers[3].state is ProgressState.PROBE
    group[1].propose([b"=while-building"])
    group.stabilize()
    assert group.data(2)[-1] == b"=while-building"
    group.snapshot(1)
    group.tick(count=3)
    assert group.data(3) == group.data(1)


def test_t90_issue_808_an_unreachable_member_does_not_block() -> None:
    """A member that never answers gets no snapshot and costs the others nothing."""
    group = lagging()
    group.tick(count=30)
    assert group[1].role is Role.LEADER
    before = len(group.dropped)
    group.tick(count=30)
    kinds = {message.kind for message in group.dropped[before:]}
    assert K.SNAPSHOT not in kinds
    group[1].propose([b"=on"])
    group.stabilize()
    assert group.data(2)[-1] == b"=on"


def test_two_snapshots_in_quick_succession() -> None:
    """etcd#18055: the second arrives while the first is still being installed; the second holds."""
    group = Group(logs={3: []})
    conf = ConfState(voters=(1, 2, 3))
    for last in (5, 8):
        group.images[last] = (tuple((index, b"=s") for index in range(2, last + 1)), conf)
    group.eager_writes = False
    group.send(K.SNAPSHOT, 1, 3, term=2, snapshot=SnapshotMeta(5, 2, conf))
    group.send(K.SNAPSHOT, 1, 3, term=2, snapshot=SnapshotMeta(8, 2, conf))
    group.persist(3)
    assert group[3].stable_index == 0
    group.persist(3)
    assert (group[3].applied_index, group[3].stable_index, group[3].last_index) == (8, 8, 8)
    entry = Entry(9, 2, EntryKind.BATCH, b"=n")
    group.send(K.APPEND, 1, 3, term=2, index=8, log_term=2, entries=(entry,), commit_index=9)
    group.persist(3)
    group.handle(3)
    assert group.data(3) == [b"=s"] * 7 + [b"=n"]


def test_first_entry_after_a_snapshot_is_appended_once() -> None:
    """Trap 15: an append that joins right after the compacted part, sent twice."""
    group = lagging()
    group.heal()
    group.tick(count=3)
    entry = Entry(13, 2, EntryKind.BATCH, b"=n")
    for _ in range(2):
        group.send(K.APPEND, 1, 3, index=12, log_term=2, entries=(entry,), commit_index=12)
    assert group[3].last_index == 13
    (answer,) = group.send(K.APPEND, 1, 3, index=0, log_term=0, commit_index=12)
    assert (answer.reject, answer.index) == (False, 12)


def test_entries_kept_behind_a_snapshot_spare_a_transfer() -> None:
    """Compaction keeps a tail, so that a brief lag does not cost a snapshot."""
    group = Group()
    group.elect(1)
    group.isolate(3)
    for number in range(10):
        group[1].propose([b"=%d" % number])
    group.stabilize()
    group.snapshot(1, keep=20)
    group.heal()
    sent = []
    group.on_ready = lambda _, ready: sent.extend(ready.messages)  # type: ignore[attr-defined]
    group.tick(count=3)
    assert group.data(3) == group.data(1)
    assert K.SNAPSHOT not in {message.kind for message in sent}
