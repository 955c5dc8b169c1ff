"""The write-ahead log over a simulated disk against a plain list, through crashes and power cuts.

Every write makes a new state of the model. What was synced must come back; of what was written
after the last sync the end of the machine leaves any prefix, and the end of the process all of it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raftkv.consensus.types import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    LogCompacted,
    LogUnavailable,
    SnapshotMeta,
)
from raftkv.errors import DiskFullError, StorageError
from raftkv.simulation.disk import DiskFaults, SimDisk
from raftkv.storage.wal import Recovered, Wal, WalIdentity, WriteReceipt
from raftkv.storage.wallog import WalLog

IDENTITY = WalIdentity(0xC1, 0xA1)
FOLDER = "/wal"
SEGMENT = 8 * 1024
CONF = ConfState((1, 2, 3), (4,))


@dataclass
class Log:
    """What a log holds, as a list would."""

    entries: dict[int, Entry] = field(default_factory=dict)
    """Also those that a snapshot covers, since nobody has to remove them."""
    last: int = 0
    mark: SnapshotMeta = field(default_factory=SnapshotMeta)
    hard: HardState = field(default_factory=HardState)

    def append(self, entries: list[Entry]) -> None:
        """An entry replaces everything from its index on."""
        for index in range(entries[0].index, self.last + 1):
            self.entries.pop(index, None)
        self.entries |= {entry.index: entry for entry in entries}
        self.last = entries[-1].index

    def install(self, meta: SnapshotMeta) -> None:
        """A received snapshot replaces everything."""
        self.entries.clear()
        self.mark, self.last = meta, meta.index

    def term(self, index: int) -> int:
        """Of an entry, or of the snapshot that ends there."""
        if index == self.mark.index:
            return self.mark.term
        return self.entries[index].term

    @property
    def commit(self) -> int:
        """The commit index that can come back: within the log, and past the snapshot."""
        return max(min(self.hard.commit_index, self.last), self.mark.index)

    def is_what(self, recovered: Recovered, log: WalLog) -> bool:
        """Whether all of a recovered log is as here."""
        hard = recovered.hard_state
        if (hard.term, hard.vote) != (self.hard.term, self.hard.vote):
            return False
        if recovered.snapshot != self.mark or hard.commit_index != self.commit:
            return False
        if log.last_index() != self.last or log.first_index() > self.mark.index + 1:
            return False
        return read_all(log) == [
            self.entries.get(index) for index in range(log.first_index(), self.last + 1)
        ]


def read_all(log: WalLog) -> list[Entry]:
    """Every entry that is kept."""
    first, last = log.first_index(), log.last_index()
    return list(log.entries(first, last + 1, 1 << 40)) if first <= last else []


class WalAgainstList(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32), ahead=st.booleans())
    def start(self, seed: int, ahead: bool) -> None:
        self.random = Random(seed)
        self.faults = DiskFaults()
        self.disk = SimDisk(Random(seed + 1), faults=self.faults)
        # Segments are made ahead of need, or on the spot.
        self.spawn = (lambda job: job()) if ahead else None
        self.states = [Log()]
        """After each write since the last sync, which made the first of them durable."""
        self.receipts: list[WriteReceipt] = []
        self.compacted = 0
        self.open(create=True)

    @property
    def now(self) -> Log:
        return self.states[-1]

    def open(self, *, create: bool = False) -> None:
        """Open the log; what comes back has to be one of the states."""
        self.wal, recovered = Wal.open(
            self.disk, FOLDER, identity=IDENTITY, segment_bytes=SEGMENT, spawn=self.spawn,
            create=create,
        )  # fmt: skip
        self.log = WalLog(self.disk, FOLDER, recovered, cache_bytes=self.random.choice([0, 5000]))
        fitting = [state for state in self.states if state.is_what(recovered, self.log)]
        assert fitting, f"none of {len(self.states)} states came back"
        self.states = [fitting[-1]]
        self.receipts = []
        self.compacted = self.log.first_index() - 1

    def write(self, state: Log, entries: list[Entry], meta: SnapshotMeta | None = None) -> None:
        """One write. A full disk takes nothing of it, and it is tried again."""
        try:
            receipt = self.wal.write(entries, state.hard, meta)
        except DiskFullError:
            self.disk.capacity_bytes = 1 << 40
            receipt = self.wal.write(entries, state.hard, meta)
        self.receipts.append(receipt)
        self.states.append(state)

    def entries(self, first: int, count: int, term: int) -> list[Entry]:
        pick = self.random
        return [
            Entry(
                index,
                term,
                pick.choice(list(EntryKind)),
                pick.randbytes(pick.choice([0, 1, 30, 700, 3000])),
            )
            for index in range(first, first + count)
        ]

    @rule(count=st.integers(0, 6), term=st.integers(0, 1), commit=st.booleans())
    def append(self, count: int, term: int, commit: bool) -> None:
        """Entries at the end, perhaps with a new term, or only a vote."""
        state = copy.copy(self.now)
        state.entries = dict(state.entries)
        hard = state.hard
        term += hard.term
        known = min(state.last, hard.commit_index + 3) if commit else hard.commit_index
        state.hard = HardState(term, self.random.randrange(4), max(known, state.mark.index))
        entries = self.entries(state.last + 1, count, term)
        if entries:
            state.append(entries)
        self.write(state, entries)

    @precondition(lambda self: self.now.last > max(self.now.mark.index, self.now.commit))
    @rule(count=st.integers(1, 4), data=st.data())
    def overwrite(self, count: int, data: st.DataObject) -> None:
        """A newer leader's entries in place of uncommitted ones."""
        state = copy.copy(self.now)
        state.entries = dict(state.entries)
        first = data.draw(st.integers(max(state.mark.index, state.commit) + 1, state.last))
        state.hard = HardState(state.hard.term + 1, 0, state.hard.commit_index)
        entries = self.entries(first, count, state.hard.term)
        state.append(entries)
        self.write(state, entries)

    @rule(ahead=st.integers(1, 20), count=st.integers(0, 2))
    def install(self, ahead: int, count: int) -> None:
        """A received snapshot, with or without entries behind it."""
        state = copy.copy(self.now)
        state.entries = {}
        index = max(state.mark.index, state.commit) + ahead
        term = state.hard.term + 1
        meta = SnapshotMeta(index, term, CONF)
        state.install(meta)
        state.hard = HardState(term, 0, index)
        entries = self.entries(index + 1, count, term)
        if entries:
            state.append(entries)
        self.write(state, entries, meta)

    @precondition(lambda self: self.now.commit > self.now.mark.index)
    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        """A snapshot of its own, of something committed and durable."""
        self.sync()
        state = copy.copy(self.now)
        index = data.draw(st.integers(state.mark.index, state.commit))
        state.mark = SnapshotMeta(index, state.term(index), CONF)
        try:
            self.wal.mark_snapshot(state.mark)
        except DiskFullError:
            self.disk.capacity_bytes = 1 << 40
            self.wal.mark_snapshot(state.mark)
        self.states.append(state)

    @rule()
    def sync(self) -> None:
        self.wal.sync()
        for receipt in self.receipts:
            self.log.persisted(receipt)
        self.receipts = []
        self.states = [self.now]
        if self.now.mark.index > self.log.last_index() or not self.now.entries:
            self.compacted = self.log.first_index() - 1
        self.compacted = max(self.compacted, self.log.first_index() - 1)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Forget what the newest marker covers."""
        self.sync()
        index = data.draw(st.integers(0, self.now.mark.index))
        self.log.compact(index)
        self.compacted = max(self.compacted, self.log.first_index() - 1)
        self.wal.release(index)

    @rule()
    def crash(self) -> None:
        """The process ends; the kernel has all that was written."""
        self.disk.crash()
        self.states = [self.now]
        self.open()

    @rule()
    def cut_power(self) -> None:
        """The machine ends; of what was not synced any sectors are left."""
        self.disk.power_cut()
        self.open()

    @rule()
    def close(self) -> None:
        """A clean end proves that all is there, also to a machine that then goes down."""
        self.wal.close()
        self.log.close()
        self.states = [self.now]
        if self.random.random() < 0.5:
            self.disk.power_cut()
        self.open()

    @precondition(lambda self: len(self.states) > 1)
    @rule(power=st.booleans())
    def fail_to_sync(self, power: bool) -> None:
        """A failed sync ends the process: nobody knows what is on the disk."""
        self.faults.sync_error = 1.0
        with pytest.raises(StorageError) as caught:
            self.wal.sync()
        self.faults.sync_error = 0.0
        assert caught.value.fatal
        with pytest.raises(StorageError):
            self.wal.write([], self.now.hard)
        (self.disk.power_cut if power else self.disk.crash)()
        self.open()

    @rule(room=st.integers(0, 3 * SEGMENT))
    def fill_up(self, room: int) -> None:
        """The disk is nearly full until somebody meets it."""
        self.disk.capacity_bytes -= self.disk.free_bytes(FOLDER) - room

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """What is durable, in slices, from cache and file."""
        first, last = self.log.first_index(), self.log.last_index()
        if first > last:
            return
        low = data.draw(st.integers(first, last))
        high = data.draw(st.integers(low + 1, last + 1))
        bytes_max = data.draw(st.sampled_from([0, 100, 4000, 1 << 30]))
        found = list(self.log.entries(low, high, bytes_max))
        durable = self.states[0].entries
        assert found == [durable[index] for index in range(low, low + len(found))]
        size = sum(len(entry.data) for entry in found)
        assert len(found) == 1 or size <= bytes_max
        if low + len(found) < high:
            assert size + len(durable[low + len(found)].data) > bytes_max

    @invariant()
    def terms_and_ends(self) -> None:
        """The log stands where the last sync left it."""
        if not hasattr(self, "log"):
            return
        durable, log = self.states[0], self.log
        assert log.last_index() == durable.last
        assert log.first_index() == self.compacted + 1 <= durable.mark.index + 1
        for index in range(log.first_index(), log.last_index() + 1):
            assert log.term(index) == durable.entries[index].term
        with pytest.raises(LogUnavailable):
            log.term(log.last_index() + 1)
        if self.compacted:
            with pytest.raises(LogCompacted):
                log.entries(self.compacted, self.compacted + 1, 1)

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.disk.capacity_bytes = 1 << 40
            self.disk.power_cut()
            self.open()


def test_the_log_agrees_with_a_list() -> None:
    run_state_machine_as_test(
        WalAgainstList, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )
