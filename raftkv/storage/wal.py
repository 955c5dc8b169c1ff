"""The write-ahead log: the truth about a member, kept by its append thread.

One `write` a batch, one `sync` a batch; between them nothing that the batch promises may be said to
anybody. Format: frames.py. Reading back: recovery.py (at start) and wallog.py (while running).

Segments are files of a fixed size, filled with zeros and synced before their first use, so that a
later fdatasync has no block allocation to make durable (measured on ext4: 2,800 - 3,600 syncs a
second against 750 - 2,150 with fallocate alone). The next segment is prepared through `spawn`,
normally in a thread, as soon as half of the present one is used, so changing over costs the writer
one small sync and a rename.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import google_crc32c

from raftkv.buggify import buggify
from raftkv.checks import check
from raftkv.consensus.types import Entry, HardState, SnapshotMeta
from raftkv.errors import CorruptionError, DiskFullError, StorageError
from raftkv.limits import WAL_RECORD_BYTES_MAX, WAL_SEGMENT_BYTES, WAL_SHORT_BYTES
from raftkv.storage.disk import Disk, File, join, parent
from raftkv.storage.frames import (
    CLOSE,
    FRAME,
    HEADER_BYTES,
    INSTALL,
    MARK,
    REPAIR,
    ROW,
    FrameWriter,
    SegmentHeader,
    WalIdentity,
    entry_row,
)
from raftkv.storage.metadata import encode_meta
from raftkv.storage.recovery import (
    SEGMENT_SUFFIX,
    Recovered,
    ScanState,
    Segment,
    recover,
    segment_name,
)

__all__ = ["Recovered", "Wal", "WalIdentity", "WriteReceipt"]

SPARE_NAME: Final = "next.tmp"
_FILL_BYTES: Final = 4 << 20

Spawn = Callable[[Callable[[], None]], object]
"""Runs a function in another thread, soon; see `in_thread`."""

crc_value = google_crc32c.value


def in_thread(job: Callable[[], None]) -> None:
    """Run `job` in a thread of its own."""
    threading.Thread(target=job, name="raftkv-wal-segment", daemon=True).start()


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """Where a write went. Given to `WalLog.persisted` once it is durable."""

    entries: tuple[Entry, ...]
    positions: tuple[int, ...]
    crcs: tuple[int, ...]
    installed: SnapshotMeta | None
    segments: tuple[tuple[int, int], ...]
    """(number, base position) of segments begun by this write."""
    end_position: int
    """Where the log ends after it."""


class WriteWitness(Protocol):
    """Who is told of a log's writes and syncs, in its thread; a simulation, for example."""

    def writing(
        self,
        entries: tuple[Entry, ...],
        hard_state: HardState | None,
        snapshot: SnapshotMeta | None,
    ) -> None:
        """`Wal.write` begins."""

    def written(self) -> None:
        """It has ended without an error."""

    def synced(self) -> None:
        """`Wal.sync` has: all that was written is durable."""


class Wal:
    """The appending side of the log. Used by one thread; only `disk_full` is for others.

    After any fatal `StorageError` every further call raises it again: what is on the disk is not
    known, so the process has to end. After a `DiskFullError` nothing may be acknowledged, and the
    same write may be tried again as a whole.
    """

    def __init__(
        self,
        disk: Disk,
        directory: str,
        identity: WalIdentity,
        segment_bytes: int,
        spawn: Spawn | None,
    ) -> None:
        """Use `Wal.open`."""
        check(segment_bytes > HEADER_BYTES + FRAME.size, "a segment must hold a frame")
        self._disk = disk
        self._directory = directory
        self._identity = identity
        self._segment_bytes = segment_bytes
        self._spawn = spawn
        self._hard_state = HardState()
        self._mark = SnapshotMeta()
        self._last_index = 0
        self._segments: list[Segment] = []
        self._file: File | None = None
        self._offset = 0
        self._frames = FrameWriter(b"", 0, 0)
        self._written = (0, 0)
        self._told = (self._hard_state, self._mark)
        """Of the last frame that was written."""
        self._begun: list[tuple[int, int]] = []
        self._attempt_at = 0
        self._synced = 0
        self._failure: StorageError | None = None
        self._closed = False
        self._spare_lock = threading.Lock()
        self._spare: File | None = None
        self._preparing = False
        self.witness: WriteWitness | None = None
        self.disk_full: StorageError | None = None
        """Set while the next segment could not be prepared for lack of space. Half a segment is
        still left then: time to refuse new writes and to let deletes and compaction through."""

    @classmethod
    def open(
        cls,
        disk: Disk,
        directory: str,
        *,
        identity: WalIdentity,
        segment_bytes: int = WAL_SEGMENT_BYTES,
        spawn: Spawn | None = None,
        create: bool = True,
    ) -> tuple[Wal, Recovered]:
        """Open the log in `directory`, or make one there.

        Everything that is found is durable when this returns, also what a killed process had not
        synced yet. With `create` False a missing log is an error: the member had one. Without
        `spawn` new segments are made on the spot.

        Raises CorruptionError, FormatError (another program, a newer format, another member) or
        StorageError.
        """
        if not disk.exists(directory):
            disk.make_directory(directory)
            disk.sync_directory(parent(directory))
        wal = cls(disk, directory, identity, segment_bytes, spawn)
        names = []
        for name in disk.list(directory):
            if name.endswith(SEGMENT_SUFFIX):
                names.append(name)
            elif name.endswith(".tmp"):
                disk.remove(join(directory, name))
        if names:
            state = recover(disk, directory, names, identity)
            wal._resume(state)
            return wal, state.recovered
        if not create:
            raise CorruptionError(
                f"{directory}: the log of this member is gone; {REPAIR}", path=directory
            )
        wal._begin_segment()
        wal._begun = []
        recovered = Recovered(segments=list(wal._segments))
        return wal, recovered

    @property
    def hard_state(self) -> HardState:
        """As last written."""
        return self._hard_state

    @property
    def disk_bytes(self) -> int:
        """Bytes that the segments take up on disk."""
        return len(self._segments) * self._segment_bytes

    def write(
        self,
        entries: Sequence[Entry],
        hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None,
    ) -> WriteReceipt:
        """Append one batch with one pwrite; durable only once `sync` returned.

        `snapshot` is one that was received, verified and made durable: it replaces the whole log,
        before `entries`. An entry at index i replaces every entry >= i. `hard_state` None: as it
        was. A batch larger than WAL_RECORD_BYTES_MAX is split into several frames.
        """
        entries = tuple(entries)
        if self.witness is not None:
            self.witness.writing(entries, hard_state, snapshot)
        self._check_usable()
        if hard_state is not None:
            self._hard_state = hard_state
        if snapshot is None:
            receipt = self._append(entries, 0, b"", None)
        else:
            self._mark = snapshot
            receipt = self._append(entries, INSTALL, encode_meta(snapshot), snapshot)
        if self.witness is not None:
            self.witness.written()
        return receipt

    def is_short(self, entries: Sequence[Entry]) -> bool:
        """Whether writing them takes one small write and no new segment."""
        size = FRAME.size + len(entries) * ROW.size + sum([len(entry.data) for entry in entries])
        return size <= WAL_SHORT_BYTES and self._offset + size + 7 <= self._segment_bytes

    def mark_snapshot(self, meta: SnapshotMeta) -> None:
        """Note that a local snapshot of the applied state is durable; the log stays as it is.

        Allows `release` of what it covers, once synced.
        """
        self._check_usable()
        check(meta.index >= self._mark.index, "snapshots only move forward", index=meta.index)
        check(meta.index <= self._last_index, "a snapshot of entries that are in the log")
        self._mark = meta
        receipt = self._append((), MARK, encode_meta(meta), None)
        # A segment that the marker began is told of by the next receipt: `WalLog` gets to see
        # none for the marker.
        self._begun = list(receipt.segments)

    def sync(self) -> None:
        """Make every write so far durable, with one fdatasync. Any failure is fatal."""
        self._check_usable()
        if self._synced != self._frames.sequence:
            self._sync_file()
        if self.witness is not None:
            self.witness.synced()

    def release(self, index: int) -> int:
        """Remove the oldest segments that hold nothing but entries <= `index`; their number.

        Only what the newest snapshot marker covers goes. `WalLog.compact(index)` comes first, so
        that nobody reads there any more. From the oldest on, each removal made durable before the
        next, so that a crash leaves no gap.
        """
        self._check_usable()
        self.sync()
        covered = min(index, self._mark.index)
        removed = 0
        while len(self._segments) > 1 and self._segments[0].live_last <= covered:
            self._disk.remove(self._segments[0].path)
            try:
                self._disk.sync_directory(self._directory)
            except StorageError as error:
                raise self._fail(error) from error
            del self._segments[0]
            removed += 1
        return removed

    def close(self) -> None:
        """Sync, prove by a last frame that everything is complete, sync again, and let go."""
        if self._closed:
            return
        try:
            if self._failure is None and self._frames.sequence:
                self.sync()
                # On a full disk the end goes without proof; everything is durable all the same.
                with contextlib.suppress(DiskFullError):
                    self._append((), CLOSE, b"", None)
                    self.sync()
        finally:
            self._closed = True
            with self._spare_lock:
                for file in (self._file, self._spare):
                    if file is not None:
                        file.close()
                self._file = self._spare = None

    # Appending

    def _append(
        self,
        entries: tuple[Entry, ...],
        flags: int,
        meta: bytes,
        installed: SnapshotMeta | None,
    ) -> WriteReceipt:
        self._check_order(entries, installed)
        positions: list[int] = []
        crcs: list[int] = []
        batch = _Batch(installed)
        for group in _groups(entries):
            group_crcs = [crc_value(entry.data) for entry in group]
            rows = [entry_row(entry, crc) for entry, crc in zip(group, group_crcs, strict=True)]
            data_at = FRAME.size + len(rows) * ROW.size + len(meta)
            length = data_at + sum([len(entry.data) for entry in group]) + 7 & ~7
            at = self._offset + batch.size
            full = at + length > self._segment_bytes or buggify("early-segment")
            if full and at > HEADER_BYTES:
                self._flush(batch)
                self._next_segment()
                at = self._offset
            batch.add(
                self._frames.frame(group, rows, self._hard_state, self._synced, flags, meta), group
            )
            position = self._segments[-1].base_position + at + data_at
            for entry in group:
                positions.append(position)
                position += len(entry.data)
            crcs += group_crcs
            flags, meta = 0, b""
        self._flush(batch)
        begun, self._begun = tuple(self._begun), []
        end = self._segments[-1].base_position + self._offset
        self._prepare_ahead()
        return WriteReceipt(entries, tuple(positions), tuple(crcs), installed, begun, end)

    def _check_order(self, entries: tuple[Entry, ...], installed: SnapshotMeta | None) -> None:
        if not entries:
            return
        first = entries[0].index
        last = self._last_index if installed is None else installed.index
        floor = self._mark.index if installed is None else installed.index
        check(floor < first <= last + 1, "entries join the log", first=first, last=last)
        check(
            entries[-1].index - first == len(entries) - 1,
            "entries are consecutive",
            first=first,
            last=entries[-1].index,
            count=len(entries),
        )

    def _flush(self, batch: _Batch) -> None:
        """Hand what has been gathered for this segment to the kernel in one write."""
        if not batch.frames:
            return
        check(self._file is not None, "an open log has a file")
        try:
            self._file.write(self._offset, b"".join(batch.frames))  # type: ignore[union-attr]
        except DiskFullError:
            # The next attempt writes over whatever part of this one reached the file.
            self._frames.chain, self._frames.sequence = self._written
            raise
        except StorageError as error:
            raise self._fail(error) from error
        self._written = (self._frames.chain, self._frames.sequence)
        self._told = (self._hard_state, self._mark)
        self._offset += batch.size
        if batch.installed is not None:
            for older in self._segments:
                older.live_last = 0
            self._last_index = batch.installed.index
        if batch.first_index:
            for older in self._segments:
                older.live_last = min(older.live_last, batch.first_index - 1)
            self._segments[-1].live_last = self._last_index = batch.last_index
        batch.clear()

    # Segments

    def _next_segment(self) -> None:
        """Finish the present segment for good and go on in the next one."""
        self._sync_file()
        self._begin_segment()

    def _sync_file(self) -> None:
        check(self._file is not None, "an open log has a file")
        try:
            self._file.sync_data()  # type: ignore[union-attr]
        except StorageError as error:
            raise self._fail(error) from error
        self._synced = self._frames.sequence

    def _begin_segment(self) -> None:
        """Turn the spare file into the active segment. On failure the old one stays active."""
        before = self._segments[-1] if self._segments else None
        number = before.number + 1 if before else 1
        base = before.base_position + self._offset if before else 0
        header = SegmentHeader(
            identity=self._identity,
            number=number,
            base_position=base,
            sequence=self._frames.sequence,
            chain=self._frames.chain,
            salt=self._disk.random_bytes(8),
            # Not those of the write that needs the segment: its frame may be lost when the header
            # is not, and the header is what counts once the segments before it are gone.
            hard_state=self._told[0],
            snapshot=self._told[1],
        )
        page = header.pack()
        path = join(self._directory, segment_name(number))
        with self._spare_lock:
            file, self._spare = self._spare or self._make_spare(), None
            try:
                file.write(0, page)
                file.sync()
                self._disk.rename(file.path, path)
                self._disk.sync_directory(self._directory)
            except StorageError as error:
                file.close()
                raise self._fail(error) from error
        if self._file is not None:
            self._file.close()
        self._file = file
        file.path = path
        self._offset = HEADER_BYTES
        chain = int.from_bytes(page[12:16], "little")
        self._frames = FrameWriter(header.salt, chain, header.sequence)
        self._written = (chain, header.sequence)
        self._segments.append(Segment(number, path, base))
        self._begun.append((number, base))
        self._attempt_at = self._segment_bytes // 2

    def _make_spare(self) -> File:
        """A file of zeros, durable, so that nothing but data has to be synced later."""
        free = self._disk.free_bytes(self._directory)
        if free < self._segment_bytes:
            raise DiskFullError(
                f"{self._directory}: a log segment needs {self._segment_bytes} bytes, "
                f"{free} are free; free space on this file system",
                path=self._directory,
            )
        path = join(self._directory, SPARE_NAME)
        file = self._disk.open(path, create=True)
        try:
            # In pieces, so that syncs of the log need not wait behind one large flush.
            for start in range(0, self._segment_bytes, _FILL_BYTES):
                file.fill_zeros(start, min(start + _FILL_BYTES, self._segment_bytes))
                file.sync()
        except StorageError:
            file.close()
            self._disk.remove(path)
            raise
        return file

    def look_for_space(self) -> None:
        """Try again to prepare the next segment, if `disk_full`.

        To be called now and then: a store that refuses writes writes nothing that would try.
        """
        if self.disk_full is not None:
            self._attempt_at = 0
            self._prepare_ahead()

    def _prepare_ahead(self) -> None:
        if self._offset < self._attempt_at or self._spawn is None:
            return
        if self._spare is not None or self._preparing:
            return
        self._preparing = True
        self._attempt_at = self._offset + self._segment_bytes // 64
        self._spawn(self._prepare)

    def _prepare(self) -> None:
        """Runs in another thread."""
        with self._spare_lock:
            try:
                if self._spare is None and not self._closed:
                    self._spare = self._make_spare()
                self.disk_full = None
            except DiskFullError as error:
                self.disk_full = error
            except StorageError as error:
                self._failure = error
            finally:
                self._preparing = False

    # State

    def _resume(self, state: ScanState) -> None:
        recovered = state.recovered
        self._hard_state = recovered.hard_state
        self._mark = recovered.snapshot
        self._last_index = recovered.index.last_index
        self._segments = [
            Segment(one.number, one.path, one.base_position, one.live_last)
            for one in recovered.segments
        ]
        self._file = self._disk.open(self._segments[-1].path, write=True)
        if state.torn:
            self._file.fill_zeros(state.offset, state.offset + recovered.truncated_bytes)
        if state.unproven:
            # If a failed sync ended the last process, the kernel still shows these bytes but holds
            # them for clean, and would never write them (ATC 2020). Written again, they are dirty.
            start = state.unproven[0][1]
            self._file.write(start, self._file.read(start, state.offset - start))
        self._file.sync()
        self._disk.sync_directory(self._directory)
        self._offset = state.offset
        self._frames = FrameWriter(state.salt, state.chain, state.sequence)
        self._written = (state.chain, state.sequence)
        self._told = (self._hard_state, self._mark)
        self._synced = state.sequence
        self._attempt_at = self._segment_bytes // 2

    def _fail(self, error: StorageError) -> StorageError:
        """Remember that the state of the disk is unknown from here on."""
        error.fatal = not isinstance(error, DiskFullError)
        if error.fatal:
            self._failure = error
        return error

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        check(not self._closed, "the log is closed")


class _Batch:
    """Frames gathered for one write to one segment."""

    __slots__ = ("first_index", "frames", "installed", "last_index", "size")

    def __init__(self, installed: SnapshotMeta | None) -> None:
        self.installed = installed
        self.clear()
        self.installed = installed

    def clear(self) -> None:
        self.frames: list[bytes] = []
        self.size = self.first_index = self.last_index = 0
        self.installed = None

    def add(self, frame: bytes, entries: Sequence[Entry]) -> None:
        self.frames.append(frame)
        self.size += len(frame)
        if entries:
            self.first_index = self.first_index or entries[0].index
            self.last_index = entries[-1].index


def _groups(entries: tuple[Entry, ...]) -> list[Sequence[Entry]]:
    """Split so that the data of each group fits into one frame; at least one group."""
    total = 0
    for entry in entries:
        check(len(entry.data) <= WAL_RECORD_BYTES_MAX, "an entry within its bound")
        total += len(entry.data) + ROW.size
    if total <= WAL_RECORD_BYTES_MAX:
        return [entries]
    groups: list[Sequence[Entry]] = []
    start = total = 0
    for place, entry in enumerate(entries):
        size = len(entry.data) + ROW.size
        if total and total + size > WAL_RECORD_BYTES_MAX:
            groups.append(entries[start:place])
            start, total = place, 0
        total += size
    groups.append(entries[start:])
    return groups
