"""The write-ahead log on a real file system: what comes back, what is cut off, what is refused."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import pytest

from raftkv.consensus.types import ConfState, Entry, EntryKind, HardState, SnapshotMeta
from raftkv.errors import (
    CorruptionError,
    DiskFullError,
    FormatError,
    InvariantViolation,
    StorageError,
)
from raftkv.simulation.disk import DiskFaults, SimDisk
from raftkv.simulation.inodes import Outcome
from raftkv.storage.disk import RealDisk, RealFile, fail
from raftkv.storage.frames import FRAME, HEADER_BYTES, FrameWriter, WalIdentity
from raftkv.storage.recovery import Recovered
from raftkv.storage.wal import Wal, in_thread
from raftkv.storage.wallog import WalLog

IDENTITY = WalIdentity(cluster_id=0xC1, member_id=0xA1)
SEGMENT = 16 * 1024
CONF = ConfState(voters=(1, 2, 3), learners=(4,))


class QuickFile(RealFile):
    """Syncs are counted, made to fail on demand, and otherwise left out."""

    __slots__ = ("disk",)
    disk: QuickDisk

    def write(self, offset: int, data: bytes) -> None:
        failure = self.disk.write_error
        if failure and self.path.endswith(self.disk.write_suffix):
            half = len(data) // 2
            super().write(offset, data[:half])
            fail(OSError(failure, "made up"), "write", self.path)
        super().write(offset, data)

    def sync_data(self) -> None:
        self.disk.syncs += 1
        if self.disk.sync_error:
            fail(OSError(self.disk.sync_error, "made up"), "fdatasync", self.path, fatal=True)

    def sync(self) -> None:
        self.sync_data()


class QuickDisk(RealDisk):
    """The real file system without the waiting, and with faults to order."""

    __slots__ = ("directory_error", "free", "sync_error", "syncs", "write_error", "write_suffix")

    def __init__(self) -> None:
        self.syncs = 0
        self.sync_error = 0
        self.directory_error = 0
        self.write_error = 0
        self.write_suffix = ".wal"
        self.free = 1 << 40

    def open(self, path: str, *, write: bool = False, create: bool = False) -> RealFile:
        real = super().open(path, write=write, create=create)
        file = QuickFile(path, real._descriptor)
        file.disk = self
        return file

    def sync_directory(self, path: str) -> None:
        if self.directory_error:
            fail(OSError(self.directory_error, "made up"), "fsync directory", path, fatal=True)

    def free_bytes(self, path: str) -> int:
        return self.free


def entry(index: int, term: int = 1, size: int = 100, kind: EntryKind = EntryKind.BATCH) -> Entry:
    return Entry(index, term, kind, random.Random(f"{index}/{term}").randbytes(size))


def entries(low: int, high: int, term: int = 1, size: int = 100) -> list[Entry]:
    """Entries low..high, both included."""
    return [entry(index, term, size) for index in range(low, high + 1)]


def open_wal(path: Path, disk: RealDisk | None = None, **options: object) -> tuple[Wal, Recovered]:
    options.setdefault("segment_bytes", SEGMENT)
    return Wal.open(disk or QuickDisk(), str(path), identity=IDENTITY, **options)  # type: ignore[arg-type]


def stored(path: Path, recovered: Recovered) -> list[Entry]:
    """Every live entry, read back from disk."""
    log = WalLog(QuickDisk(), str(path), recovered)
    try:
        if log.first_index() > log.last_index():
            return []
        return list(log.entries(log.first_index(), log.last_index() + 1, 1 << 40))
    finally:
        log.close()


def reopened(path: Path) -> tuple[list[Entry], Recovered]:
    wal, recovered = open_wal(path)
    found = stored(path, recovered)
    wal.close()
    return found, recovered


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.wal"))


def each(wal: Wal, batch: list[Entry]) -> None:
    """A write for every entry, so that they spread over segments."""
    for one in batch:
        wal.write([one])


def kill(wal: Wal) -> None:
    """Let go of the files as a killed process does: nothing is written any more."""
    assert wal._file is not None
    wal._file.close()


# What comes back


def test_a_new_log_is_empty(tmp_path: Path) -> None:
    wal, recovered = open_wal(tmp_path / "wal", RealDisk())
    assert recovered.hard_state == HardState()
    assert recovered.snapshot == SnapshotMeta()
    assert recovered.index.last_index == 0
    wal.close()
    found, recovered = reopened(tmp_path / "wal")
    assert (found, recovered.truncated_bytes, recovered.notes) == ([], 0, ())


def test_entries_and_hard_state_survive_on_the_real_disk(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path, RealDisk())
    batch = [
        Entry(1, 1, EntryKind.BATCH, b""),
        Entry(2, 1, EntryKind.CONFIG, b"change"),
        Entry(3, 2, EntryKind.BATCH, bytes(range(256))),
    ]
    wal.write(batch, HardState(2, 3, 1))
    wal.sync()
    wal.write((), HardState(2, 3, 2))
    wal.sync()
    wal.close()
    found, recovered = reopened(tmp_path)
    assert found == batch
    assert recovered.hard_state == HardState(2, 3, 2)


def test_hard_state_stays_when_a_write_does_not_name_it(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    wal.write((), HardState(7, 3, 0))
    wal.write(entries(1, 2, term=7))
    assert wal.hard_state == HardState(7, 3, 0)
    kill(wal)
    assert reopened(tmp_path)[1].hard_state == HardState(7, 3, 0)


def test_a_commit_index_beyond_the_log_is_not_believed(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 3), HardState(1, 1, 9))
    kill(wal)
    assert reopened(tmp_path)[1].hard_state.commit_index == 3


def test_one_write_and_one_sync_a_batch(tmp_path: Path) -> None:
    disk = QuickDisk()
    wal, _ = open_wal(tmp_path, disk)
    before = disk.syncs
    wal.write(entries(1, 20))
    wal.sync()
    assert disk.syncs == before + 1
    wal.sync()
    assert disk.syncs == before + 1, "nothing new, nothing to sync"
    wal.close()


@pytest.mark.parametrize("killed", [True, False])
def test_overwritten_entries_never_come_back(tmp_path: Path, killed: bool) -> None:
    wal, _ = open_wal(tmp_path)
    each(wal, entries(1, 400))
    wal.write(entries(120, 130, term=2))
    wal.write(entries(125, 126, term=3))
    expected = entries(1, 119) + entries(120, 124, term=2) + entries(125, 126, term=3)
    kill(wal) if killed else wal.close()
    for _ in range(3):
        found, recovered = reopened(tmp_path)
        assert found == expected
        assert recovered.index.last_term == 3
    assert len(segments(tmp_path)) > 2, "the overwritten tail spans segments"


def test_a_shorter_log_after_overwriting_can_grow_again(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 10))
    wal.write(entries(4, 4, term=2))
    wal.close()
    wal, _ = open_wal(tmp_path)
    wal.write(entries(5, 6, term=2))
    wal.close()
    assert reopened(tmp_path)[0] == entries(1, 3) + entries(4, 6, term=2)


def test_segments_follow_each_other(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    for index in range(1, 301):
        wal.write([entry(index)], HardState(1, 1, index - 1))
    assert len(segments(tmp_path)) > 2
    assert wal.disk_bytes == len(segments(tmp_path)) * SEGMENT
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == wal.disk_bytes
    wal.close()
    found, recovered = reopened(tmp_path)
    assert found == entries(1, 300)
    assert recovered.hard_state.commit_index == 299


def test_the_next_segment_is_prepared_in_a_thread(tmp_path: Path) -> None:
    jobs = []
    wal, _ = open_wal(tmp_path, spawn=jobs.append)
    index = 1
    while not jobs:
        wal.write([entry(index)])
        index += 1
    assert wal._offset < SEGMENT * 3 // 4
    assert not (tmp_path / "next.tmp").exists()
    in_thread(jobs[0])
    with wal._spare_lock:
        pass
    wal.write([entry(index)])
    assert len(jobs) == 1, "asked for once"
    while len(segments(tmp_path)) == 1:
        index += 1
        wal.write([entry(index)])
    wal.close()
    assert not (tmp_path / "next.tmp").exists(), "the prepared file is the new segment"
    assert reopened(tmp_path)[0] == entries(1, index)


def test_an_entry_larger_than_a_segment_gets_a_segment_of_its_own(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    batch = [entry(1), entry(2, size=3 * SEGMENT), entry(3)]
    for one in batch:
        wal.write([one])
    wal.close()
    assert reopened(tmp_path)[0] == batch


def test_a_write_larger_than_a_frame_is_split(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path, segment_bytes=8 << 20)
    data = bytes(5 << 20)
    batch = [Entry(index, 1, EntryKind.BATCH, data) for index in range(1, 9)]
    receipt = wal.write(batch, HardState(1, 1, 0))
    assert len(receipt.positions) == 8
    wal.close()
    assert reopened(tmp_path)[0] == batch


def test_leftovers_are_removed(tmp_path: Path) -> None:
    open_wal(tmp_path)[0].close()
    (tmp_path / "next.tmp").write_bytes(b"half")
    open_wal(tmp_path)[0].close()
    assert not (tmp_path / "next.tmp").exists()


def test_a_log_that_must_exist_is_missed(tmp_path: Path) -> None:
    with pytest.raises(CorruptionError, match="is gone"):
        open_wal(tmp_path, create=False)


def test_misuse_is_noticed(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 3))
    with pytest.raises(InvariantViolation, match="join the log"):
        wal.write([entry(5)])
    with pytest.raises(InvariantViolation, match="consecutive"):
        wal.write([entry(4), entry(6)])
    with pytest.raises(InvariantViolation, match="in the log"):
        wal.mark_snapshot(SnapshotMeta(4, 1, CONF))
    wal.mark_snapshot(SnapshotMeta(2, 1, CONF))
    with pytest.raises(InvariantViolation, match="forward"):
        wal.mark_snapshot(SnapshotMeta(1, 1, CONF))
    with pytest.raises(InvariantViolation, match="join the log"):
        wal.write([entry(2, term=2)])
    wal.close()
    wal.close()
    with pytest.raises(InvariantViolation, match="closed"):
        wal.write([entry(4)])


# Snapshots and release


def test_an_installed_snapshot_replaces_the_log(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 50))
    meta = SnapshotMeta(1000, 9, CONF)
    wal.write(entries(1001, 1003, term=9), HardState(9, 0, 1002), meta)
    kill(wal)
    found, recovered = reopened(tmp_path)
    assert found == entries(1001, 1003, term=9)
    assert recovered.snapshot == meta
    assert (recovered.index.base_index, recovered.index.base_term) == (1000, 9)


def test_an_installed_snapshot_may_go_back_in_index(tmp_path: Path) -> None:
    """A log full of entries that lost an election is longer than the snapshot that replaces it."""
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 50))
    wal.write((), None, SnapshotMeta(20, 2, CONF))
    wal.write(entries(21, 22, term=3))
    wal.close()
    found, recovered = reopened(tmp_path)
    assert found == entries(21, 22, term=3)
    assert recovered.snapshot.index == 20


def test_release_removes_what_the_marker_covers(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    for index in range(1, 401):
        wal.write([entry(index)])
    before = len(segments(tmp_path))
    assert wal.release(400) == 0, "no snapshot, no release"
    wal.mark_snapshot(SnapshotMeta(200, 1, CONF))
    removed = wal.release(150)
    assert removed > 0
    assert wal.release(400) > 0, "up to the marker"
    assert len(segments(tmp_path)) < before - removed
    kill(wal)
    found, recovered = reopened(tmp_path)
    assert recovered.snapshot == SnapshotMeta(200, 1, CONF)
    assert recovered.index.base_index <= 200
    assert found == entries(recovered.index.base_index + 1, 400)


def test_release_keeps_the_marker_and_the_vote(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 200), HardState(4, 2, 0))
    wal.mark_snapshot(SnapshotMeta(200, 1, CONF))
    for index in range(201, 500):
        wal.write([entry(index)])
    wal.release(499)
    wal.close()
    _, recovered = reopened(tmp_path)
    assert recovered.hard_state.term == 4
    assert recovered.hard_state.vote == 2
    assert recovered.snapshot.index == 200


def test_release_after_overwriting_leaves_no_ghosts(tmp_path: Path) -> None:
    """The oldest segment holds 1..n, the next begins with entries that were overwritten later."""
    wal, _ = open_wal(tmp_path)
    each(wal, entries(1, 300))
    wal.write(entries(60, 70, term=2))
    wal.mark_snapshot(SnapshotMeta(65, 2, CONF))
    assert wal.release(65) > 0
    kill(wal)
    found, recovered = reopened(tmp_path)
    assert found == entries(recovered.index.base_index + 1, 70, term=2)
    assert recovered.index.base_index <= 65


def test_release_after_an_installed_snapshot(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    for index in range(1, 301):
        wal.write([entry(index)])
    wal.write((), None, SnapshotMeta(40, 5, CONF))
    assert wal.release(40) == len(segments(tmp_path)) or len(segments(tmp_path)) == 1
    wal.write(entries(41, 42, term=5))
    wal.close()
    assert reopened(tmp_path)[0] == entries(41, 42, term=5)


# Torn tails


def build(path: Path) -> tuple[bytes, bytes, int]:
    """A log of one segment: its file before and after the last batch, and where that starts."""
    wal, _ = open_wal(path)
    for index in range(1, 6):
        wal.write([entry(index)], HardState(1, 1, index - 1))
        wal.sync()
    (file,) = segments(path)
    start = wal._offset
    before = file.read_bytes()
    wal.write(entries(4, 6, term=2), HardState(2, 3, 5))
    kill(wal)
    return before, file.read_bytes(), start


def check_before(path: Path, what: object) -> None:
    """The log is as before the last batch, and goes on from there."""
    wal, recovered = open_wal(path)
    assert stored(path, recovered) == entries(1, 5), what
    assert recovered.hard_state == HardState(1, 1, 4), what
    assert recovered.truncated_bytes > 0, what
    assert "cut off" in recovered.notes[0]
    wal.write([entry(6, term=8)], HardState(8, 1, 5))
    kill(wal)
    found, recovered = reopened(path)
    assert found == [*entries(1, 5), entry(6, term=8)], what
    assert recovered.truncated_bytes == 0, what


def test_a_last_batch_torn_at_any_byte_is_cut_off(tmp_path: Path) -> None:
    before, after, start = build(tmp_path)
    (file,) = segments(tmp_path)
    end = len(after.rstrip(b"\0"))
    for cut in range(start + 1, end):
        file.write_bytes(after[:cut] + before[cut:])
        check_before(tmp_path, cut)
    file.write_bytes(before)
    assert reopened(tmp_path)[1].truncated_bytes == 0
    file.write_bytes(after)
    found, recovered = reopened(tmp_path)
    assert found == entries(1, 3) + entries(4, 6, term=2)
    assert recovered.hard_state == HardState(2, 3, 5)


def test_a_last_batch_with_any_sector_missing_is_cut_off(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 5), HardState(1, 1, 4))
    wal.sync()
    start = wal._offset
    (file,) = segments(tmp_path)
    before = file.read_bytes()
    wal.write(entries(6, 9, size=900), HardState(1, 1, 5))
    end = wal._offset
    kill(wal)
    after = file.read_bytes()
    sectors = range(start // 512, (end + 511) // 512)
    for missing in sectors:
        low, high = missing * 512, (missing + 1) * 512
        file.write_bytes(after[:low] + before[low:high] + after[high:])
        check_before(tmp_path, missing)
    file.write_bytes(before[: start + 600] + after[start + 600 :])
    check_before(tmp_path, "only the end arrived")


@pytest.mark.parametrize("length", [0, 1, 79, 300])
def test_a_file_cut_short_behind_the_last_sync_is_cut_off(tmp_path: Path, length: int) -> None:
    _, after, start = build(tmp_path)
    (file,) = segments(tmp_path)
    file.write_bytes(after[: start + length])
    wal, recovered = open_wal(tmp_path)
    assert stored(tmp_path, recovered) == entries(1, 5)
    wal.write([entry(6, term=3)])
    wal.close()
    assert reopened(tmp_path)[0] == [*entries(1, 5), entry(6, term=3)]


def test_two_unsynced_batches_fall_together(tmp_path: Path) -> None:
    """The later one is whole, but claims nothing about the earlier one: neither was promised."""
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 5), HardState(1, 1, 4))
    wal.sync()
    start = wal._offset
    wal.write([entry(6)])
    wal.write([entry(7)])
    kill(wal)
    flip(segments(tmp_path)[0], start + FRAME.size + 3)
    check_before(tmp_path, "both")


def test_bytes_inside_a_value_prove_nothing(tmp_path: Path) -> None:
    """A value that looks like a frame of this log must not turn a torn tail into a refusal."""
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 5), HardState(1, 1, 4))
    wal.sync()
    forged = FrameWriter(b"guessing", 0, 1 << 40).frame([], [], HardState(), 1 << 40)
    start = wal._offset
    data = b"\0" * (-(start + FRAME.size + 20) % 8) + forged * 4
    wal.write([Entry(6, 1, EntryKind.BATCH, data)])
    kill(wal)
    flip(segments(tmp_path)[0], start + 20)
    check_before(tmp_path, "forged")


# Damage


def flip(file: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1 << bit
    file.write_bytes(bytes(data))


def test_a_flipped_bit_before_synced_frames_is_refused(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    for index in range(1, 6):
        wal.write([entry(index, size=40)], HardState(1, 1, index - 1))
        wal.sync()
        last_start = wal._offset
    wal.write([entry(6, size=40)])
    kill(wal)
    (file,) = segments(tmp_path)
    good = file.read_bytes()
    chance = random.Random(5)
    for offset in range(HEADER_BYTES, last_start):
        damaged = bytearray(good)
        damaged[offset] ^= 1 << chance.randrange(8)
        file.write_bytes(bytes(damaged))
        with pytest.raises(CorruptionError) as caught:
            open_wal(tmp_path)
        assert str(file) in caught.value.message
        assert HEADER_BYTES <= caught.value.facts["offset"] <= offset
        assert "restore" in caught.value.message
        assert file.read_bytes() == bytes(damaged), "a refused log is not touched"
    file.write_bytes(good)
    assert reopened(tmp_path)[0] == entries(1, 6, size=40)


def test_after_a_clean_end_no_flipped_bit_is_taken_for_a_torn_tail(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    for index in range(1, 4):
        wal.write([entry(index, size=30)])
    wal.sync()
    end = wal._offset
    wal.close()
    (file,) = segments(tmp_path)
    good = file.read_bytes()
    for offset in range(HEADER_BYTES, end):
        file.write_bytes(good[:offset] + bytes([good[offset] ^ 64]) + good[offset + 1 :])
        with pytest.raises(CorruptionError):
            open_wal(tmp_path)


def test_a_flipped_bit_in_a_segment_header_is_refused(tmp_path: Path) -> None:
    open_wal(tmp_path)[0].close()
    (file,) = segments(tmp_path)
    good = file.read_bytes()
    for offset in [*range(120), *range(120, HEADER_BYTES, 97), HEADER_BYTES - 1]:
        file.write_bytes(good[:offset] + bytes([good[offset] ^ 4]) + good[offset + 1 :])
        with pytest.raises((CorruptionError, FormatError), match=r"restore|use the version"):
            open_wal(tmp_path)


def test_a_flipped_bit_behind_the_end_is_cleared(tmp_path: Path) -> None:
    _, after, _ = build(tmp_path)
    (file,) = segments(tmp_path)
    flip(file, len(after.rstrip(b"\0")) + 4000)
    found, recovered = reopened(tmp_path)
    assert found[-1].index == 6
    assert recovered.truncated_bytes > 0
    assert reopened(tmp_path)[1].truncated_bytes == 0


def several(path: Path) -> list[Path]:
    wal, _ = open_wal(path)
    for index in range(1, 401):
        wal.write([entry(index)])
    kill(wal)
    files = segments(path)
    assert len(files) >= 4
    return files


def test_damage_in_an_earlier_segment_is_refused(tmp_path: Path) -> None:
    files = several(tmp_path / "wal")
    shutil.copytree(tmp_path / "wal", tmp_path / "good")
    for file in files[:-1]:
        used = len(file.read_bytes().rstrip(b"\0"))
        for offset in (HEADER_BYTES + 5, (HEADER_BYTES + used) // 2, used - 1):
            flip(file, offset)
            with pytest.raises(CorruptionError) as caught:
                open_wal(tmp_path / "wal")
            assert caught.value.facts["path"] == str(file)
            shutil.copy(tmp_path / "good" / file.name, file)


def test_an_earlier_segment_cut_short_is_refused(tmp_path: Path) -> None:
    file = several(tmp_path)[1]
    file.write_bytes(file.read_bytes()[: HEADER_BYTES + 1000])
    with pytest.raises(CorruptionError, match="missing"):
        open_wal(tmp_path)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1])
def test_a_segment_shorter_than_its_header_is_refused(tmp_path: Path, length: int) -> None:
    file = several(tmp_path)[-1]
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CorruptionError, match="shorter than its header"):
        open_wal(tmp_path)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_missing_segment_is_refused(tmp_path: Path, place: int) -> None:
    several(tmp_path)[place].unlink()
    with pytest.raises(CorruptionError, match="missing"):
        open_wal(tmp_path)


def test_segments_under_wrong_names_are_refused(tmp_path: Path) -> None:
    files = several(tmp_path)
    files[1].rename(tmp_path / "x")
    files[2].rename(files[1])
    (tmp_path / "x").rename(files[2])
    with pytest.raises(CorruptionError, match="name says otherwise"):
        open_wal(tmp_path)


def test_a_marker_that_contradicts_the_log_is_refused(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    wal.write(entries(1, 5))
    wal.mark_snapshot(SnapshotMeta(3, 77, CONF))
    wal.close()
    with pytest.raises(CorruptionError, match="term 1"):
        open_wal(tmp_path)


def test_foreign_and_newer_files_are_refused_in_words(tmp_path: Path) -> None:
    open_wal(tmp_path)[0].close()
    (file,) = segments(tmp_path)
    good = file.read_bytes()
    file.write_bytes(good[:8] + (2).to_bytes(4, "little") + good[12:])
    with pytest.raises(FormatError, match="log format 2, but this program reads format 1"):
        open_wal(tmp_path)
    file.write_bytes(b"#!/bin/sh\n" * 1000)
    with pytest.raises(FormatError, match="not a raftkv log segment"):
        open_wal(tmp_path)
    file.write_bytes(good)
    for other in (WalIdentity(0xC2, 0xA1), WalIdentity(0xC1, 0xA2)):
        with pytest.raises(FormatError, match="belongs to member 00000000000000a1"):
            Wal.open(QuickDisk(), str(tmp_path), identity=other, segment_bytes=SEGMENT)
    assert reopened(tmp_path)[0] == []


def test_random_garbage_gives_named_errors_only(tmp_path: Path) -> None:
    _, after, _ = build(tmp_path)
    (file,) = segments(tmp_path)
    chance = random.Random(17)
    for _ in range(300):
        data = bytearray(after)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data) // 3)
            data[at : at + chance.randrange(1, 60)] = chance.randbytes(chance.randrange(60))
        file.write_bytes(bytes(data))
        try:
            wal, recovered = open_wal(tmp_path)
        except StorageError:
            continue
        good = entries(1, 3) + entries(4, 6, term=2)
        found = stored(tmp_path, recovered)
        assert found in (entries(1, len(found)), good)
        kill(wal)


# Failing disks


def test_a_failed_sync_is_fatal_for_good(tmp_path: Path) -> None:
    disk = QuickDisk()
    wal, _ = open_wal(tmp_path, disk)
    wal.write([entry(1)])
    disk.sync_error = errno.EIO
    with pytest.raises(StorageError) as caught:
        wal.sync()
    assert caught.value.fatal
    disk.sync_error = 0
    for call in (wal.sync, lambda: wal.write([entry(2)]), lambda: wal.release(0)):
        with pytest.raises(StorageError) as again:
            call()
        assert again.value.fatal, "a second attempt must not look like success"
    wal.close()


def test_enospc_from_a_sync_is_fatal_too(tmp_path: Path) -> None:
    disk = QuickDisk()
    wal, _ = open_wal(tmp_path, disk)
    wal.write([entry(1)])
    disk.sync_error = errno.ENOSPC
    with pytest.raises(StorageError) as caught:
        wal.sync()
    assert caught.value.fatal
    assert not isinstance(caught.value, DiskFullError)
    wal.close()


def test_a_failed_write_is_fatal(tmp_path: Path) -> None:
    disk = QuickDisk()
    wal, _ = open_wal(tmp_path, disk)
    disk.write_error = errno.EIO
    with pytest.raises(StorageError) as caught:
        wal.write([entry(1)])
    assert caught.value.fatal
    wal.close()


def test_a_failed_directory_sync_is_fatal(tmp_path: Path) -> None:
    disk = QuickDisk()
    wal, _ = open_wal(tmp_path, disk)
    for index in range(1, 301):
        wal.write([entry(index)])
    wal.mark_snapshot(SnapshotMeta(300, 1, CONF))
    disk.directory_error = errno.EIO
    with pytest.raises(StorageError) as caught:
        wal.release(300)
    assert caught.value.fatal
    wal.close()
    disk.directory_error = 0
    assert reopened(tmp_path)[0][-1] == entry(300)


def test_a_failed_sync_while_changing_segments_is_fatal(tmp_path: Path) -> None:
    disk = QuickDisk()
    wal, _ = open_wal(tmp_path, disk)
    each(wal, entries(1, 80))
    disk.sync_error = errno.EIO
    with pytest.raises(StorageError) as caught:
        each(wal, entries(81, 160))
    assert caught.value.fatal
    wal.close()


def test_a_full_disk_loses_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    disk = QuickDisk()
    wal, recovered = open_wal(tmp_path, disk)
    log = WalLog(disk, str(tmp_path), recovered)
    log.persisted(wal.write(entries(1, 3), HardState(1, 1, 0)))
    disk.write_error = errno.ENOSPC
    for _ in range(2):
        with pytest.raises(DiskFullError, match="free space") as caught:
            wal.write(entries(4, 9, size=300), HardState(2, 2, 0))
        assert not caught.value.fatal
    disk.write_error = 0
    log.persisted(wal.write(entries(4, 5), HardState(2, 2, 0)))
    wal.sync()
    assert log.entries(1, 6, 1 << 30) == entries(1, 5)
    kill(wal)
    found, recovered = reopened(tmp_path)
    assert found == entries(1, 5)
    assert recovered.hard_state == HardState(2, 2, 0)


def test_space_for_the_next_segment_is_found_without_a_write(tmp_path: Path) -> None:
    disk = QuickDisk()
    wal, _ = open_wal(tmp_path, disk, spawn=lambda job: job())
    disk.free = SEGMENT - 1
    index = 1
    while wal.disk_full is None:
        wal.write([entry(index)])
        index += 1
    wal.look_for_space()
    assert wal.disk_full is not None
    disk.free = 1 << 40
    wal.look_for_space()
    assert wal.disk_full is None
    wal.close()


def test_no_room_for_the_next_segment(tmp_path: Path) -> None:
    disk = QuickDisk()
    jobs: list[object] = []
    wal, recovered = open_wal(tmp_path, disk, spawn=lambda job: (jobs.append(job), job()))
    log = WalLog(disk, str(tmp_path), recovered)
    disk.free = SEGMENT - 1
    index = 1
    while wal.disk_full is None:
        log.persisted(wal.write([entry(index)]))
        index += 1
    assert wal._offset < SEGMENT * 3 // 4, "known long before it hurts"
    with pytest.raises(DiskFullError):
        while True:
            log.persisted(wal.write([entry(index)]))
            index += 1
    assert len(jobs) < 50, "not tried anew at every write"
    with pytest.raises(DiskFullError):
        each(wal, entries(index, index + 200))
    disk.free = 1 << 40
    for one in entries(index, index + 200):
        log.persisted(wal.write([one]))
    assert wal.disk_full is None
    wal.sync()
    assert log.entries(1, index + 201, 1 << 40) == entries(1, index + 200)
    wal.close()
    assert reopened(tmp_path)[0] == entries(1, index + 200)


def test_a_disk_that_fills_up_while_a_segment_is_made(tmp_path: Path) -> None:
    disk = QuickDisk()
    wal, _ = open_wal(tmp_path, disk)
    each(wal, entries(1, 80))
    disk.write_error, disk.write_suffix = errno.ENOSPC, ".tmp"
    with pytest.raises(DiskFullError):
        each(wal, entries(81, 160))
    assert not (tmp_path / "next.tmp").exists()
    disk.write_error = 0
    each(wal, entries(wal._last_index + 1, 160))
    wal.close()
    assert reopened(tmp_path)[0] == entries(1, 160)


def test_a_failed_sync_of_the_prepared_segment_is_fatal(tmp_path: Path) -> None:
    disk = QuickDisk()
    jobs: list[object] = []
    wal, _ = open_wal(tmp_path, disk, spawn=jobs.append)
    index = 1
    while not jobs:
        wal.write([entry(index)])
        index += 1
    disk.sync_error = errno.EIO
    jobs[0]()  # type: ignore[operator]
    with pytest.raises(StorageError) as caught:
        wal.write([entry(index)])
    assert caught.value.fatal
    wal.close()


def test_receipts_name_every_entry(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    receipts = [wal.write(entries(low, low + 9)) for low in range(1, 301, 10)]
    positions = [position for receipt in receipts for position in receipt.positions]
    assert sorted(set(positions)) == positions
    assert len(positions) == 300
    begun = [number for receipt in receipts for number, _ in receipt.segments]
    assert begun == list(range(2, len(segments(tmp_path)) + 1))
    wal.close()


@pytest.mark.interpreted
def test_an_entry_of_an_unknown_kind_is_damage(tmp_path: Path) -> None:
    wal, _ = open_wal(tmp_path)
    wal.write([Entry(1, 1, 300, b"")], HardState(1, 0, 0))  # type: ignore[arg-type]
    wal.close()
    with pytest.raises(CorruptionError, match="unknown kind 300"):
        open_wal(tmp_path)


def sim_wal(disk: SimDisk) -> tuple[Wal, Recovered]:
    return Wal.open(disk, "/wal", identity=IDENTITY, segment_bytes=SEGMENT)


def test_a_segment_header_tells_nothing_of_the_write_that_needed_the_segment() -> None:
    """The header is durable before the frame; once it is the oldest, it is believed."""
    disk = SimDisk(random.Random(1))
    wal, _ = sim_wal(disk)
    wal.write(entries(1, 3), HardState(1, 2, 3))
    wal.mark_snapshot(SnapshotMeta(3, 1, CONF))
    wal.write([entry(4, size=11_500)])
    wal.sync()
    receipt = wal.write(entries(10, 10, 5), HardState(5, 1, 9), SnapshotMeta(9, 5, CONF))
    assert receipt.segments
    disk.settle(Outcome())  # the power fails, and nothing that was not synced is left
    wal, recovered = sim_wal(disk)
    assert (recovered.hard_state, recovered.snapshot.index) == (HardState(1, 2, 3), 3)
    wal.write(entries(4, 4, 2), HardState(2, 3, 3))
    assert wal.release(3) == 1
    disk.crash()
    _, recovered = sim_wal(disk)
    assert (recovered.hard_state, recovered.snapshot.index) == (HardState(2, 3, 3), 3)
    assert recovered.index.last_index == 4


def test_what_a_failed_sync_left_in_the_page_cache_is_written_again() -> None:
    """The kernel calls it clean; a process that starts on it would acknowledge thin air."""
    for seed in range(20):
        faults = DiskFaults()
        disk = SimDisk(random.Random(seed), faults=faults)
        wal, _ = sim_wal(disk)
        wal.write(entries(1, 2), HardState(1, 2, 0))
        wal.sync()
        wal.write(entries(3, 4), HardState(1, 2, 1))
        faults.sync_error = 1.0
        with pytest.raises(StorageError):
            wal.sync()
        faults.sync_error = 0.0
        disk.crash()
        _, found = sim_wal(disk)
        disk.power_cut()
        _, again = sim_wal(disk)
        assert again.index.last_index == found.index.last_index
        assert again.hard_state == found.hard_state


def test_a_log_closes_on_a_full_disk(tmp_path: Path) -> None:
    """Its last frame may need a segment that there is no room for."""
    disk = QuickDisk()
    wal, _ = open_wal(tmp_path, disk)
    wal.write([entry(1, size=SEGMENT - HEADER_BYTES - FRAME.size - 24 & ~7)], HardState(1, 0, 0))
    disk.free = 0
    wal.close()
    found, recovered = reopened(tmp_path)
    assert [one.index for one in found] == [1]
    assert not recovered.truncated_bytes
