"""The log view: what the core reads back, and a model test of log and view together."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raftkv.consensus.types import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    LogCompacted,
    LogUnavailable,
    SnapshotMeta,
)
from raftkv.errors import CorruptionError, InvariantViolation
from raftkv.simulation.disk import SimDisk
from raftkv.storage.disk import Disk, RealDisk, RealFile
from raftkv.storage.frames import WalIdentity
from raftkv.storage.wal import Wal
from raftkv.storage.wallog import WalLog

IDENTITY = WalIdentity(1, 2)
CONF = ConfState(voters=(1, 2, 3))
EVERYTHING = 1 << 40


class HastyFile(RealFile):
    """Leaves the waiting out."""

    __slots__ = ()

    def sync(self) -> None:
        pass

    def sync_data(self) -> None:
        pass


class HastyDisk(RealDisk):
    __slots__ = ()

    def open(self, path: str, *, write: bool = False, create: bool = False) -> RealFile:
        return HastyFile(path, super().open(path, write=write, create=create)._descriptor)

    def sync_directory(self, path: str) -> None:
        pass


def entry(index: int, term: int = 1, size: int = 100) -> Entry:
    kind = EntryKind.CONFIG if index % 7 == 0 else EntryKind.BATCH
    return Entry(index, term, kind, random.Random(f"{index}/{term}").randbytes(size))


def entries(low: int, high: int, term: int = 1, size: int = 100) -> list[Entry]:
    return [entry(index, term, size) for index in range(low, high + 1)]


class Pair:
    """A log and its view, written to and persisted together."""

    def __init__(
        self,
        path: Path,
        cache_bytes: int = 1 << 20,
        segment_bytes: int = 16384,
        disk: Disk | None = None,
    ) -> None:
        disk = disk or HastyDisk()
        self.wal, self.recovered = Wal.open(
            disk, str(path), identity=IDENTITY, segment_bytes=segment_bytes
        )
        self.log = WalLog(disk, str(path), self.recovered, cache_bytes=cache_bytes)

    def write(self, batch: list[Entry], snapshot: SnapshotMeta | None = None) -> None:
        receipt = self.wal.write(batch, None, snapshot)
        self.wal.sync()
        self.log.persisted(receipt)

    def everything(self) -> list[Entry]:
        first, end = self.log.first_index(), self.log.last_index() + 1
        return list(self.log.entries(first, end, EVERYTHING)) if first < end else []

    def close(self) -> None:
        self.log.close()
        self.wal.close()


@pytest.mark.parametrize("cache_bytes", [0, 350, 5_000, 1 << 20])
def test_entries_come_from_cache_and_disk_alike(tmp_path: Path, cache_bytes: int) -> None:
    pair = Pair(tmp_path, cache_bytes)
    for low in range(1, 301, 3):
        pair.write(entries(low, low + 2))
    assert pair.log._cache_bytes <= cache_bytes
    assert pair.everything() == entries(1, 300)
    chance = random.Random(3)
    for _ in range(200):
        low = chance.randrange(1, 300)
        high = chance.randrange(low + 1, 302)
        limit = chance.choice([0, 99, 100, 250, 5_000, EVERYTHING])
        found = pair.log.entries(low, high, limit)
        count = max(1, min(high - low, limit // 100))
        assert list(found) == entries(low, low + count - 1)
    pair.close()


def test_entries_just_written_are_shared_not_copied(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    batch = entries(1, 3)
    pair.write(batch)
    assert all(a is b for a, b in zip(pair.log.entries(1, 4, EVERYTHING), batch, strict=True))
    pair.close()


def test_bounds(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    assert (pair.log.first_index(), pair.log.last_index(), pair.log.term(0)) == (1, 0, 0)
    pair.write(entries(1, 10, term=4))
    pair.wal.mark_snapshot(SnapshotMeta(6, 4, CONF))
    pair.log.compact(5)
    pair.log.compact(3)
    assert (pair.log.first_index(), pair.log.last_index()) == (6, 10)
    assert (pair.log.term(5), pair.log.term(10)) == (4, 4)
    with pytest.raises(LogCompacted):
        pair.log.term(4)
    with pytest.raises(LogUnavailable):
        pair.log.term(11)
    with pytest.raises(LogCompacted):
        pair.log.entries(5, 7, EVERYTHING)
    for low, high in [(6, 12), (11, 12), (7, 7)]:
        with pytest.raises(LogUnavailable):
            pair.log.entries(low, high, EVERYTHING)
    with pytest.raises(InvariantViolation):
        pair.log.compact(11)
    pair.log.compact(10)
    assert pair.log.first_index() == 11
    pair.write(entries(11, 12, term=5))
    assert pair.everything() == entries(11, 12, term=5)
    pair.close()


def test_a_segment_that_a_marker_began_can_be_read(tmp_path: Path) -> None:
    pair = Pair(tmp_path, cache_bytes=0)
    pair.write(entries(1, 10, size=1_100))
    frame_bytes = 72 + 24
    left = 16_384 - (pair.wal._offset + frame_bytes + 64)
    pair.write([entry(11, size=left)])
    pair.wal.mark_snapshot(SnapshotMeta(5, 1, CONF))
    assert len(list(tmp_path.glob("*.wal"))) == 2, "the marker did not fit"
    pair.write(entries(12, 13))
    assert pair.everything() == [
        *entries(1, 10, size=1_100),
        entry(11, size=left),
        *entries(12, 13),
    ]
    pair.close()


def test_the_start_is_what_was_recovered(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.wal.write(entries(1, 3), HardState(3, 2, 2))
    pair.wal.mark_snapshot(SnapshotMeta(2, 1, CONF))
    pair.close()
    pair = Pair(tmp_path)
    assert pair.log.initial_state() == (HardState(3, 2, 2), CONF)
    other = ConfState(voters=(9,))
    log = WalLog(HastyDisk(), str(tmp_path), pair.recovered, conf=other)
    assert log.initial_state() == (HardState(3, 2, 2), other)
    assert log.snapshot() is None, "a marker alone is no file to send"
    log.snapshot_ready(SnapshotMeta(2, 1, CONF))
    assert log.snapshot() == SnapshotMeta(2, 1, CONF)
    log.snapshot_ready(None)
    assert log.snapshot() is None
    pair.close()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_the_cache_is_cut_with_the_log(tmp_path: Path, cache_bytes: int) -> None:
    """cockroachdb/cockroach#63302: entries that were replaced must not be read from a cache."""
    pair = Pair(tmp_path, cache_bytes)
    pair.write(entries(1, 20))
    pair.write(entries(8, 9, term=2))
    assert pair.everything() == entries(1, 7) + entries(8, 9, term=2)
    pair.write(entries(3, 3, term=3))
    assert pair.everything() == entries(1, 2) + entries(3, 3, term=3)
    assert pair.log.term(3) == 3
    pair.close()


def test_receipts_in_flight_are_taken_over_one_by_one(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    one = pair.wal.write(entries(1, 5))
    two = pair.wal.write(entries(4, 4, term=2))
    pair.wal.sync()
    pair.log.persisted(one)
    assert pair.everything() == entries(1, 5)
    pair.log.persisted(two)
    assert pair.everything() == entries(1, 3) + entries(4, 4, term=2)
    pair.close()


def test_an_installed_snapshot_empties_the_view(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.write(entries(1, 20))
    meta = SnapshotMeta(500, 6, CONF)
    pair.write(entries(501, 502, term=6), meta)
    assert pair.everything() == entries(501, 502, term=6)
    assert pair.log.term(500) == 6
    assert pair.log.snapshot() == meta
    pair.close()


def test_bytes_since(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    assert pair.log.bytes_since(0) == 0
    for one in entries(1, 200, size=1000):
        pair.write([one])
    total = pair.log.bytes_since(0)
    assert 200_000 < total < 300_000
    assert 100_000 < pair.log.bytes_since(100) < 150_000
    assert pair.log.bytes_since(200) == 0
    pair.close()
    pair = Pair(tmp_path)
    assert abs(pair.log.bytes_since(0) - total) < 200
    pair.close()


def test_bytes_since_behind_a_received_snapshot(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.write(entries(1, 10))
    pair.log.install(SnapshotMeta(500, 6, CONF))
    assert [pair.log.bytes_since(index) for index in (0, 10, 499, 500, 501)] == [0] * 5
    pair.close()


def test_files_of_released_segments_are_closed_and_gone(tmp_path: Path) -> None:
    pair = Pair(tmp_path, cache_bytes=0)
    for one in entries(1, 1500, size=200):
        pair.write([one])
    assert pair.everything() == entries(1, 1500, size=200)
    assert 0 < len(pair.log._files) <= 8
    pair.wal.mark_snapshot(SnapshotMeta(1400, 1, CONF))
    pair.log.compact(1300)
    assert pair.wal.release(1300) > 10
    assert len(pair.log._numbers) == len(list(tmp_path.glob("*.wal")))
    assert pair.everything() == entries(1301, 1500, size=200)
    pair.close()


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_entries_that_read_back_differently_are_refused(tmp_path: Path, damage: str) -> None:
    pair = Pair(tmp_path, cache_bytes=0)
    receipt = pair.wal.write(entries(1, 5))
    pair.log.persisted(receipt)
    (file,) = tmp_path.glob("*.wal")
    data = bytearray(file.read_bytes())
    data[receipt.positions[2] + 50] ^= 1
    file.write_bytes(bytes(data) if damage == "flip" else bytes(data[: receipt.positions[2] + 50]))
    assert pair.log.entries(1, 3, EVERYTHING) == entries(1, 2)
    with pytest.raises(CorruptionError, match="entry 3 reads back differently") as caught:
        pair.log.entries(1, 6, EVERYTHING)
    assert caught.value.facts["offset"] == receipt.positions[2]
    pair.log.close()


class WalModel(RuleBasedStateMachine):
    """The log and its view against a plain dictionary, through writes, overwrites, snapshots,
    release, clean ends, kills, and kills that lose the unsynced tail."""

    def __init__(self) -> None:
        super().__init__()
        self.make_machine()
        self.pair = self.opened()
        self.unsynced: Entry | None = None
        """Written by a process that lost power before the sync; may come back or not."""
        self.log: dict[int, Entry] = {}
        self.base = SnapshotMeta()
        self.mark = SnapshotMeta()
        self.state = HardState()
        self.term = 1

    def make_machine(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.disk: Disk = HastyDisk()

    def opened(self) -> Pair:
        return Pair(self.path, cache_bytes=2_000, segment_bytes=8192, disk=self.disk)

    @property
    def last(self) -> int:
        return max(self.log, default=self.base.index)

    @rule(count=st.integers(1, 12), size=st.sampled_from([0, 1, 60, 700]))
    def append(self, count: int, size: int) -> None:
        self._write(entries(self.last + 1, self.last + count, self.term, size))

    @precondition(lambda self: self.last > max(self.mark.index, self.base.index))
    @rule(data=st.data(), count=st.integers(1, 5))
    def overwrite(self, data: st.DataObject, count: int) -> None:
        self.term += 1
        floor = max(self.mark.index, self.base.index)
        first = data.draw(st.integers(floor + 1, self.last))
        self._write(entries(first, first + count - 1, self.term))

    def _write(self, batch: list[Entry]) -> None:
        self.state = HardState(self.term, self.term % 3, self.mark.index)
        receipt = self.pair.wal.write(batch, self.state)
        self.pair.wal.sync()
        self.pair.log.persisted(receipt)
        self.log = {at: one for at, one in self.log.items() if at < batch[0].index}
        self.log.update({one.index: one for one in batch})

    @precondition(lambda self: self.log and self.last > self.mark.index)
    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(max(self.mark.index + 1, min(self.log)), self.last))
        self.mark = SnapshotMeta(index, self.log[index].term, CONF)
        self.pair.wal.mark_snapshot(self.mark)
        self.pair.wal.sync()

    @precondition(lambda self: self.mark.index in self.log)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(min(self.log), self.mark.index))
        self.base = SnapshotMeta(index, self.log[index].term)
        self.log = {at: one for at, one in self.log.items() if at > index}
        self.pair.log.compact(index)
        self.pair.wal.release(index)

    @rule(jump=st.integers(1, 30), count=st.integers(0, 3))
    def install(self, jump: int, count: int) -> None:
        self.term += 1
        index = max(self.mark.index, self.base.index) + jump
        self.base = self.mark = SnapshotMeta(index, self.term, CONF)
        batch = entries(index + 1, index + count, self.term)
        self.pair.write(batch, self.mark)
        self.log = {one.index: one for one in batch}

    @rule(how=st.sampled_from(["clean", "kill", "lose tail"]))
    def restart(self, how: str) -> None:
        wal = self.pair.wal
        self.pair.log.close()
        if how == "clean":
            wal.close()
        elif how == "kill":
            self.kill()
        else:
            self.lose_tail()
        self.pair = self.opened()
        if self.unsynced is not None and self.pair.log.last_index() > self.last:
            self.log[self.unsynced.index] = self.unsynced
        self.unsynced = None
        recovered = self.pair.recovered
        assert recovered.snapshot == self.mark
        assert (recovered.hard_state.term, recovered.hard_state.vote) == (
            self.state.term,
            self.state.vote,
        )
        # Segments keep a little more than what was compacted away, or one entry less when the term
        # of the entry before went with the segment that held it; never less than the marker needs.
        first = self.pair.log.first_index()
        assert first <= max(self.base.index + 1, min(self.base.index + 2, self.mark.index + 1))
        if first == self.base.index + 2:
            self.base = SnapshotMeta(first - 1, self.log.pop(first - 1).term)
        self.pair.log.compact(self.base.index)

    def kill(self) -> None:
        self.pair.wal._file.close()  # type: ignore[union-attr]

    def lose_tail(self) -> None:
        wal = self.pair.wal
        offset, path = wal._offset, Path(wal._segments[-1].path)
        if wal._segment_bytes - offset > 2000:
            wal.write([entry(self.last + 1, self.term, 900)])
            data = path.read_bytes()
            path.write_bytes(data[: offset + 500] + bytes(len(data) - offset - 500))
        self.kill()

    @invariant()
    def same(self) -> None:
        assert self.pair.log.last_index() == self.last
        assert self.pair.log.first_index() == self.base.index + 1
        assert self.pair.log.term(self.base.index) == self.base.term
        assert self.pair.everything() == [self.log[at] for at in sorted(self.log)]

    def teardown(self) -> None:
        self.pair.close()
        shutil.rmtree(self.path)


class SimulatedWalModel(WalModel):
    """The same on a simulated machine, where a lost tail is whatever a power cut leaves of it."""

    def make_machine(self) -> None:
        self.path = Path("/member/wal")
        self.simulated = self.disk = SimDisk(random.Random(7))
        self.disk.make_directory("/member")
        self.disk.sync_directory("/")

    def kill(self) -> None:
        self.simulated.crash()

    def lose_tail(self) -> None:
        self.unsynced = entry(self.last + 1, self.term, 900)
        self.pair.wal.write([self.unsynced])
        self.simulated.power_cut()

    def teardown(self) -> None:
        self.pair.close()


def test_a_marker_before_the_oldest_entries_left(tmp_path: Path) -> None:
    """The marker and the entries behind it are in one segment, what it covers was in another.

    Found by the model: the log was refused for a gap that is none.
    """
    pair = Pair(tmp_path, segment_bytes=8192)
    pair.write(entries(1, 6, size=700))
    pair.wal.mark_snapshot(SnapshotMeta(5, 1, CONF))
    pair.write(entries(7, 7, size=900))
    pair.write(entries(6, 6, term=2, size=300))
    pair.log.compact(5)
    assert pair.wal.release(5) == 1
    pair.close()
    pair = Pair(tmp_path, segment_bytes=8192)
    assert pair.everything() == entries(6, 6, term=2, size=300)
    assert (pair.log.first_index(), pair.log.term(5)) == (6, 1)
    pair.close()


WalModel.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestWalModel = WalModel.TestCase
SimulatedWalModel.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None
)
TestSimulatedWalModel = SimulatedWalModel.TestCase
