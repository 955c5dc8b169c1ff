"""What a member does, without network and clock: the production files code under a real load.

A `Source` is the truth that a cluster agrees on: the committed entries, what the state is after
each, and snapshots of it. A `Member` takes them over as a follower does, in batches that share a
sync, with entries of deposed leaders that are overwritten later, snapshots of its own and received
ones, and every way to end and to start again. `Promises` is what it may have told others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from raftkv.consensus.codec import encode_conf
from raftkv.consensus.types import Entry, EntryKind, HardState, SnapshotMeta
from raftkv.limits import FEATURE_LEVEL
from raftkv.machine import commands
from raftkv.machine.commands import Command
from raftkv.machine.machine import Machine
from raftkv.server.bootstrap import Founding, found
from raftkv.server.config import ServerConfig
from raftkv.server.opening import Opened, begin_log, conf_of, open_files
from raftkv.simulation.disk import SimDisk
from raftkv.storage.datadir import DataDir
from raftkv.storage.disk import Disk
from raftkv.storage.snapshots import SnapshotInfo, SnapshotStore
from raftkv.storage.wal import Spawn, Wal, WalIdentity, WriteReceipt
from tests.crash.recording import RecordingDisk
from tests.crash.tables import EMPTY, MachineTables, Rows, digest

PATH = "/var/lib/raftkv"
SEGMENT_BYTES = 16 << 10
CHUNK_BYTES = 2_000
NAMES = ("a", "b", "c")
BLANK = HardState()


@dataclass(frozen=True, slots=True)
class Kind:
    """A life that a member may lead."""

    name: str
    members: int
    joins: bool = False
    """It starts without data in a cluster that exists, and waits for a snapshot."""

    @property
    def founding(self) -> Founding:
        """The cluster's, as its first member sees it."""
        cluster = ",".join(
            f"{name}=http://127.0.0.1:{7000 + n}" for n, name in enumerate(NAMES[: self.members])
        )
        return found(ServerConfig(name=NAMES[0], data_dir=PATH, initial_cluster=cluster))

    @property
    def identity(self) -> WalIdentity:
        """Of the member whose life it is."""
        founding = self.founding
        # One that joins was given an id by the cluster.
        member_id = 77 if self.joins else founding.member_id
        return WalIdentity(founding.cluster_id, member_id)


class Violation(Exception):
    """A promise was broken. The text says which."""


SINGLE = Kind("single", 1)
FOLLOWER = Kind("follower", 3)
JOINER = Kind("joiner", 3, joins=True)
KINDS = (SINGLE, FOLLOWER, JOINER)


@dataclass(frozen=True, slots=True)
class LogState:
    """What the log has to hold after some write."""

    hard_state: HardState = BLANK
    snapshot_index: int = 0
    """Of the newest snapshot that the log vouches for."""
    base_index: int = 0
    entries: tuple[Entry, ...] = ()
    """From base_index + 1 on, whether or not old segments were removed since."""

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)

    @property
    def recovered_hard_state(self) -> HardState:
        """With the commit index that a recovery may still claim."""
        state = self.hard_state
        commit = max(min(state.commit_index, self.last_index), self.snapshot_index)
        return HardState(state.term, state.vote, commit)

    def brief(self) -> str:
        return f"{self.hard_state} with entries up to {self.last_index}"


@dataclass(frozen=True, slots=True)
class Promises:
    """What holds at one moment of a member's life, for any image of that moment."""

    states: list[LogState]
    """One for each write so far, oldest first; grows. What is found has to equal one of them."""
    acknowledged: int = 0
    """Place of the newest one whose sync returned: nothing older may be found."""
    written: int = 0
    """Place of the newest one that the kernel has: nothing older after the end of a process."""
    submitted: int = 0
    """Place of the newest one that was begun: nothing newer can be found."""
    founded: bool = False
    """The directory has its owner."""
    tables: int = 0
    """Place of the last committed state of the tables in `Member.tables_history`."""


class Source:
    """The committed log of a cluster and the state that it leads to."""

    def __init__(self, founding: Founding, random: Random) -> None:
        self._random = random
        self._disk = SimDisk(Random(1))
        self._tables = MachineTables()
        self._disk.make_directory("/source")
        backend = self._tables.open("/source", self._disk)
        self._snapshots = SnapshotStore.open(
            self._disk, "/source/snapshots", cluster_id=founding.cluster_id
        )
        wal, _ = Wal.open(
            self._disk,
            "/source/wal",
            identity=WalIdentity(founding.cluster_id, founding.member_id),
            segment_bytes=SEGMENT_BYTES,
        )
        machine = Machine(backend)
        meta = founding.meta
        machine.bootstrap(meta.index, meta.term, encode_conf(founding.conf), founding.member_infos)
        begin_log(meta, backend, self._snapshots, wal)
        wal.close()
        self._backend = backend
        self.machine = machine
        self.term = meta.term
        self.entries: dict[int, Entry] = {}
        self.hashes: dict[int, tuple[bytes, bytes]] = {}
        """Index -> hash of the state after it, and digest of its tables."""
        self._note()

    @property
    def last_index(self) -> int:
        return self.machine.applied_index

    def entry(self) -> Entry:
        """One more committed entry."""
        index = self.last_index + 1
        entry = self.rival(index, self.term)
        self.entries[index] = entry
        self.machine.apply([(index, entry.term, entry.data)])
        finish_compaction(self.machine)
        self._note()
        return entry

    def rival(self, index: int, term: int) -> Entry:
        """An entry that some leader made, and that need not be committed ever."""
        made = [self._command() for _ in range(self._random.choice((1, 1, 2, 5)))]
        data = commands.encode_batch(9, 1, index, made)
        return Entry(index, term, EntryKind.BATCH, commands.stamp_batch(data, 1_000 * index))

    def snapshot(self) -> tuple[SnapshotInfo, SnapshotStore]:
        """Of the state as it is, and where its bytes can be read."""
        machine = self.machine
        meta = SnapshotMeta(machine.applied_index, machine.applied_term, conf_of(machine))
        writer = self._snapshots.begin(meta)
        self._backend.pin().copy_to(writer.path, writer.offset)
        return writer.finish(), self._snapshots

    def _note(self) -> None:
        machine = self.machine
        self.hashes[machine.applied_index] = (machine.state_hash, digest(self._tables.rows))

    def _command(self) -> Command:
        random = self._random
        key = b"key-%02d" % random.randrange(24)
        value = random.randbytes(random.choice((3, 30, 300, 300, 1_500)))
        lease = random.randrange(1, 5)
        match random.randrange(12):
            case 0:
                return commands.delete(key, b"key-99" if random.random() < 0.2 else None)
            case 1:
                return commands.lease_grant(lease, 60)
            case 2:
                return commands.lease_revoke(lease)
            case 3:
                return commands.put(key, value, lease=lease)
            case 4:
                found = commands.compare(
                    commands.CompareTarget.VERSION, commands.Relation.GREATER, key, 1
                )
                return commands.txn(
                    [found],
                    [commands.delete_op(key), commands.put_op(b"seen", value)],
                    [commands.put_op(key, value)],
                )
            case 5:
                return commands.service_register(
                    "web", f"w{lease}", "10.0.0.1", 80, ttl_seconds=30, lease=100 + lease
                )
            case 6:
                return commands.compact(max(self.machine.revision - 20, 1))
            case 7:
                return commands.cluster_level(FEATURE_LEVEL)
            case _:
                return commands.put(key, value, once=b"once-%d" % random.randrange(50))


def finish_compaction(machine: Machine) -> None:
    """Remove all that a compaction made unreachable, so that equal states have equal rows."""
    while machine.compact_step():
        pass


def open_on(
    disk: Disk,
    kind: Kind,
    tables: MachineTables,
    *,
    spawn: Spawn | None = None,
    founded: bool = False,
) -> Opened:
    """Open, found or recover the member on `disk`, as a start of the program does.

    `founded`: it must know already who it is.
    """
    data = DataDir.open(disk, PATH)
    if data.identity is None:
        if founded:
            raise Violation("the data directory has forgotten whose it is")
        data.found(kind.identity)
    return open_files(
        disk,
        data,
        founding=kind.founding,
        found_new=not kind.joins,
        segment_bytes=SEGMENT_BYTES,
        tables=tables.open,
        spawn=spawn,
    )


@dataclass(slots=True)
class Plants:
    """Bugs to order, for the proof that images find them."""

    acknowledges_early: bool = False
    wrap: Callable[[Disk], Disk] = lambda disk: disk


class Member:
    """One member living on a recording disk."""

    def __init__(self, kind: Kind, seed: str, plants: Plants | None = None) -> None:
        self.kind = kind
        self._random = Random(seed)
        self._plants = plants or Plants()
        self.source = Source(kind.founding, self._random)
        self.promises = Promises([LogState()])
        self.disk = RecordingDisk(SimDisk(Random(seed)), lambda: self.promises)
        self._seen = self._plants.wrap(self.disk)
        self.tables = MachineTables(changed=self._tables_changed)
        self.tables_history: list[tuple[Rows, bool]] = [(EMPTY, False)]
        """Rows after each commit, and whether they were synced."""
        self._jobs: list[Callable[[], None]] = []
        self._snapshotting: Callable[[], SnapshotInfo] | None = None
        self._vote = 0
        self._commit = 0
        self._opened: Opened
        self._receipts: list[WriteReceipt] = []

    # A life

    def live(self, steps: int) -> None:
        """Found or join, and do `steps` random things; ends without a clean end."""
        self.start()
        for _ in range(steps):
            self._random.choice(self._choices())()
            while self._jobs and self._random.random() < 0.7:
                self._jobs.pop(0)()

    def _choices(self) -> list[Callable[[], None]]:
        common = [self.append] * 8 + [self.snapshot] * 2 + [self.vote]
        ends = [self.end, self.kill, self.lose_power]
        if self.kind is SINGLE:
            return common + ends
        if self.state.last_index == 0:
            return [self.install, self.vote, *ends]
        return [*common, *ends, *[self.overwrite] * 4, self.install, self.commit]

    @property
    def state(self) -> LogState:
        """The log as of the newest write."""
        return self.promises.states[-1]

    def start(self) -> None:
        """Open the files; the first time, make them."""
        if not self.kind.joins and not self.promises.written:
            meta = self.kind.founding.meta
            first = LogState(HardState(meta.term, 0, meta.index), meta.index, meta.index)
            if len(self.promises.states) == 1:
                self._submit(first)
        spawn = self._random.choice((None, self._jobs.append, lambda job: job()))
        self._receipts = []
        self._opened = opened = open_on(
            self._seen, self.kind, self.tables, spawn=spawn, founded=self.promises.founded
        )
        place = find_state(opened, self.promises, self.promises.acknowledged)
        if place is None:
            raise Violation("the recorded member found a log that it never had")
        states = self.promises.states[: place + 1]
        self._promise(
            states=states, acknowledged=place, written=place, submitted=place, founded=True
        )
        hard_state = states[-1].recovered_hard_state
        self._vote, self._commit = hard_state.vote, hard_state.commit_index
        # A leader would tell it anew what is committed.
        if self.kind is SINGLE:
            self._commit = self.state.last_index
        self._apply()

    # What a follower does

    def append(self) -> None:
        """Take over some entries, in one or more writes that share a sync.

        What is not committed and not the leader's is overwritten.
        """
        for _ in range(self._random.choice((1, 1, 2, 3))):
            first = self._agreed() + 1
            wanted = self._random.choice((1, 1, 2, 4))
            self._write([self._entry(index) for index in range(first, first + wanted)])
        self._sync()
        self._commit_some()

    def overwrite(self) -> None:
        """Follow a leader whose entries do not last, and then its successor."""
        self.source.term += 1
        self._vote = self._random.choice((0, 2, 3))
        if self._agreed() == self.source.last_index == self.state.last_index:
            for _ in range(self._random.randrange(1, 5)):
                index = self.state.last_index + 1
                self._write([self.source.rival(index, self.source.term)])
                if self._random.random() < 0.5:
                    self._sync()
            self._sync()
        self.source.term += 1
        self._vote = 0
        if self._random.random() < 0.7:
            self.append()

    def vote(self) -> None:
        """Promise something to a candidate."""
        if self.kind is SINGLE:
            self._vote = self.kind.founding.member_id
        else:
            self._vote = self._random.choice((2, 3))
        self.source.term += 1
        self._write([])
        self._sync()

    def commit(self) -> None:
        """Note a commit index, which need not be durable."""
        self._commit_some()
        self._write([])

    def snapshot(self) -> None:
        """Pin the state, or make the snapshot of what was pinned before; let go of the old log."""
        if self._snapshotting is None:
            self._snapshotting = self._opened.begin_snapshot()
            if self._random.random() < 0.5:
                return
        opened = self._opened
        meta = self._snapshotting().meta
        self._snapshotting = None
        opened.log.snapshot_ready(meta)
        keep_from = max(0, meta.index - self._random.choice((0, 3, 10)))
        if keep_from > opened.log.first_index():
            opened.log.compact(keep_from)
        self._submit(replace(self.state, snapshot_index=meta.index))
        opened.wal.mark_snapshot(meta)
        self._promise(written=self.promises.submitted)
        self._sync()
        opened.wal.release(keep_from)

    def install(self) -> None:
        """Receive a snapshot of entries that are not here, perhaps only the second time."""
        if self._snapshotting is not None:
            self.snapshot()
        for _ in range(self._random.randrange(2, 9)):
            self.source.entry()
        info, store = self.source.snapshot()
        opened = self._opened
        if info.meta.index <= self._commit:
            return
        receiver = opened.snapshots.receive(info)
        while not receiver.complete:
            receiver.write_chunk(
                receiver.offset, *store.read_chunk(info, receiver.offset, CHUNK_BYTES)
            )
            if self._random.random() < 0.02:
                return
        receiver.finish()
        meta = info.meta
        self._commit = meta.index
        hard_state = HardState(max(self.source.term, meta.term), self._vote, meta.index)
        self._submit(LogState(hard_state, meta.index, meta.index))
        self._receipts.append(opened.wal.write((), hard_state, meta))
        self._promise(written=self.promises.submitted)
        self._sync()
        opened.stage_snapshot(meta)
        opened.backend.install()
        opened.machine.reload()

    # Ends

    def end(self) -> None:
        """Stop in good order and start again, perhaps on a machine that was switched off."""
        self._sync()
        self._opened.wal.close()
        self._opened.close(clean=True)
        self._again()
        if self._random.random() < 0.5:
            self._cut()
        self.start()

    def kill(self) -> None:
        """End the process in the middle of things, and start again."""
        if self._random.random() < 0.5:
            self._write([self._entry(self._agreed() + 1)] if self.state.last_index else [])
        self.disk.crash()
        self._again()
        self.start()

    def lose_power(self) -> None:
        """End the machine in the middle of things, and start again."""
        if self._random.random() < 0.5:
            self._write([self._entry(self._agreed() + 1)] if self.state.last_index else [])
        self._cut()
        self._again()
        self.start()

    def _cut(self) -> None:
        self.disk.settle(self.disk.inner.draw_outcome())
        self._promise(written=self.promises.acknowledged)
        self.tables.power_cut()
        self._tables_changed()

    def _again(self) -> None:
        self._jobs.clear()
        self._snapshotting = None

    # Parts

    def _entry(self, index: int) -> Entry:
        while index > self.source.last_index:
            self.source.entry()
        return self.source.entries[index]

    def _agreed(self) -> int:
        """Index up to which the log is what the leader has."""
        base, entries, index = self.state.base_index, self.state.entries, self._commit
        while index < self.state.last_index:
            if self.source.entries.get(index + 1) != entries[index - base]:
                break
            index += 1
        return index

    def _write(self, entries: list[Entry]) -> None:
        hard_state = HardState(self.source.term, self._vote, self._commit)
        state = self.state
        kept = state.entries
        if entries:
            kept = kept[: entries[0].index - state.base_index - 1] + tuple(entries)
        self._submit(replace(state, hard_state=hard_state, entries=kept))
        self._receipts.append(self._opened.wal.write(entries, hard_state))
        self._promise(written=self.promises.submitted)

    def _sync(self) -> None:
        if self._plants.acknowledges_early:
            self._promise(acknowledged=self.promises.submitted)
        self._opened.wal.sync()
        self._promise(acknowledged=self.promises.submitted)
        for receipt in self._receipts:
            self._opened.log.persisted(receipt)
        self._receipts = []

    def _commit_some(self) -> None:
        """Learn of some more commits, and apply them."""
        agreed = self._agreed()
        self._commit = agreed if self.kind is SINGLE else self._random.randint(self._commit, agreed)
        self._apply()

    def _apply(self) -> None:
        apply_to(self._opened, self._commit)

    def _submit(self, state: LogState) -> None:
        self.promises.states.append(state)
        self._promise(submitted=len(self.promises.states) - 1)

    def _promise(self, **changes: object) -> None:
        self.promises = replace(self.promises, **changes)  # type: ignore[arg-type]

    def _tables_changed(self) -> None:
        self.tables_history.append((self.tables.rows, self.tables.synced))
        self._promise(tables=len(self.tables_history) - 1)


def apply_to(opened: Opened, index: int) -> None:
    """Apply the log up to `index`, as far as it is there, and compact behind each entry.

    Rows that compaction may remove decide about names of rows that are made later, so members at
    equal points of it have equal rows.
    """
    machine = opened.machine
    finish_compaction(machine)
    first, end = machine.applied_index + 1, min(index, opened.log.last_index()) + 1
    if first < end:
        for entry in opened.log.entries(first, end, 1 << 40):
            machine.apply([(entry.index, entry.term, entry.data)])
            finish_compaction(machine)


def find_state(opened: Opened, promises: Promises, oldest: int) -> int | None:
    """Place of the state that was found, from the newest down to `oldest`; None: it is no state
    that the log ever had."""
    log = opened.log
    hard_state, last = log.initial_state()[0], log.last_index()
    first = log.first_index()
    entries: tuple[Entry, ...] | None = None
    for place in range(promises.submitted, oldest - 1, -1):
        state = promises.states[place]
        if state.last_index != last or state.recovered_hard_state != hard_state:
            continue
        if not state.base_index <= first - 1 <= max(state.snapshot_index, state.base_index):
            continue
        if entries is None:
            entries = tuple(log.entries(first, last + 1, 1 << 40)) if first <= last else ()
        if state.entries[first - 1 - state.base_index :] == entries:
            return place
    return None
