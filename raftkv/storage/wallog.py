"""The log as the core reads it: a `LogStorage` over durable writes, on the loop's side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import google_crc32c

from raftkv.buggify import buggify
from raftkv.checks import check
from raftkv.consensus.types import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    LogCompacted,
    LogUnavailable,
    SnapshotMeta,
)
from raftkv.errors import CorruptionError
from raftkv.limits import LOG_CACHE_BYTES
from raftkv.storage.disk import Disk, File, join
from raftkv.storage.frames import REPAIR
from raftkv.storage.logindex import LogIndex
from raftkv.storage.recovery import Recovered, segment_name
from raftkv.storage.wal import WriteReceipt

SPAN_BYTES_MAX: Final = 4 << 20
"""One read from disk covers neighbouring entries up to this."""
GAP_BYTES_MAX: Final = 64 << 10
"""And spans at most this much of what is not wanted between two of them."""
OPEN_FILES_MAX: Final = 8


class WalLog:
    """Implements `raftkv.consensus.types.LogStorage`.

    Used by the loop only; the append thread owns the `Wal`. They share nothing but receipts, and
    the files, which this side opens for reading by itself. Newly persisted entries are kept, not
    copied, in a cache of at most `cache_bytes`; older ones are read back with a check of each.
    """

    __slots__ = (
        "_bases",
        "_cache",
        "_cache_bytes",
        "_cache_bytes_max",
        "_cache_first",
        "_directory",
        "_disk",
        "_end_position",
        "_files",
        "_index",
        "_numbers",
        "_sent_snapshot",
        "_start",
    )

    def __init__(
        self,
        disk: Disk,
        directory: str,
        recovered: Recovered,
        *,
        conf: ConfState | None = None,
        cache_bytes: int = LOG_CACHE_BYTES,
    ) -> None:
        """`conf`: the membership as of the applied index; None: that of the snapshot marker."""
        self._disk = disk
        self._directory = directory
        self._index: LogIndex = recovered.index
        self._numbers = [segment.number for segment in recovered.segments]
        self._bases = [segment.base_position for segment in recovered.segments]
        self._end_position = (
            self._index.positions[-1] + self._index.lengths[-1]
            if len(self._index)
            else self._bases[-1]
        )
        self._start = (recovered.hard_state, recovered.snapshot.conf if conf is None else conf)
        self._sent_snapshot: SnapshotMeta | None = None
        self._cache: list[Entry] = []
        self._cache_first = self._index.last_index + 1
        self._cache_bytes = 0
        self._cache_bytes_max = cache_bytes
        self._files: dict[int, File] = {}

    # LogStorage

    def initial_state(self) -> tuple[HardState, ConfState]:
        """As recovered."""
        return self._start

    def first_index(self) -> int:
        """Of the oldest entry that can be read, or last_index() + 1."""
        return self._index.base_index + 1

    def last_index(self) -> int:
        """Of the newest durable entry."""
        return self._index.last_index

    def term(self, index: int) -> int:
        """Term of the entry at `index`; see `LogStorage.term`."""
        log = self._index
        place = index - log.base_index - 1
        if place < 0:
            if place == -1:
                return log.base_term
            raise LogCompacted
        if place >= len(log.terms):
            raise LogUnavailable
        return log.terms[place]

    def checksum(self, index: int) -> int:
        """CRC32C of the data of an entry that is here, as it was written."""
        return self._index.crcs[index - self._index.base_index - 1]

    def entries(self, low: int, high: int, bytes_max: int) -> Sequence[Entry]:
        """Entries of [low, high), at least one, within `bytes_max` after the first.

        Raises LogCompacted, LogUnavailable, or CorruptionError when the disk gives back something
        else than was written.
        """
        if low <= self._index.base_index:
            raise LogCompacted
        if high > self._index.last_index + 1 or low >= high:
            raise LogUnavailable
        high = self._bounded(low, high, bytes_max)
        if low >= self._cache_first:
            return self._cache[low - self._cache_first : high - self._cache_first]
        found = self._read(low, min(high, self._cache_first))
        if high > self._cache_first:
            found += self._cache[: high - self._cache_first]
        return found

    def snapshot(self) -> SnapshotMeta | None:
        """The newest snapshot that can be sent to a follower."""
        return self._sent_snapshot

    # What the shell tells it

    def persisted(self, receipt: WriteReceipt) -> None:
        """Take over a write that is durable now. Receipts come in the order of the writes."""
        for number, base in receipt.segments:
            self._numbers.append(number)
            self._bases.append(base)
        if receipt.installed is not None:
            self.install(receipt.installed)
        self._end_position = receipt.end_position
        entries = receipt.entries
        if not entries:
            return
        index = self._index
        first = entries[0].index
        if first <= index.last_index:
            check(first > index.base_index, "the log is not cut below its base", first=first)
            index.cut_from(first)
            self._cut_cache(first)
        check(first == index.last_index + 1, "receipts come in order", first=first)
        index.positions.extend(receipt.positions)
        index.crcs.extend(receipt.crcs)
        size = 0
        for entry in entries:
            length = len(entry.data)
            index.lengths.append(length)
            index.terms.append(entry.term)
            index.kinds.append(entry.kind)
            size += length
        self._cache += entries
        self._cache_bytes += size
        bytes_max = 0 if buggify("cold-cache") else self._cache_bytes_max
        if self._cache_bytes > bytes_max:
            self._trim_cache(bytes_max)

    def compact(self, index: int) -> None:
        """Forget entries <= `index`, which the newest snapshot covers. Before `Wal.release`."""
        log = self._index
        check(index <= log.last_index, "only what is there can be compacted", index=index)
        if index <= log.base_index:
            return
        log.drop_to(index)
        if index >= self._cache_first:
            count = index - self._cache_first + 1
            self._cache_bytes -= sum([len(entry.data) for entry in self._cache[:count]])
            del self._cache[:count]
            self._cache_first = index + 1
        oldest = log.positions[0] if len(log) else self._end_position
        gone = bisect_right(self._bases, oldest) - 1
        for number in self._numbers[:gone]:
            self._close(number)
        del self._numbers[:gone]
        del self._bases[:gone]

    def install(self, meta: SnapshotMeta) -> None:
        """The log now starts behind the received snapshot `meta`; nothing older is left.

        `persisted` does this by itself for a receipt whose write installed a snapshot.
        """
        self._index.reset(meta.index, meta.term)
        self._cache = []
        self._cache_first = meta.index + 1
        self._cache_bytes = 0
        self._sent_snapshot = meta

    def snapshot_ready(self, meta: SnapshotMeta | None) -> None:
        """`meta` is durable and can be sent from now on; None: there is none any more."""
        self._sent_snapshot = meta

    def bytes_since(self, index: int) -> int:
        """Bytes of log written after entry `index` (entries replaced since count, too)."""
        log = self._index
        # Behind a snapshot that was received there may be no entry yet.
        index = max(index, log.base_index)
        if index >= log.last_index:
            return 0
        return self._end_position - log.positions[index - log.base_index]

    def close(self) -> None:
        """Close the files opened for reading."""
        for number in list(self._files):
            self._close(number)

    # Reading back

    def _bounded(self, low: int, high: int, bytes_max: int) -> int:
        """The largest end <= high such that the data of [low, end) stays within bytes_max."""
        lengths = self._index.lengths
        start = low - self._index.base_index - 1
        total = lengths[start]
        for place in range(start + 1, start + high - low):
            total += lengths[place]
            if total > bytes_max:
                return low + place - start
        return high

    def _read(self, low: int, high: int) -> list[Entry]:
        log = self._index
        place = low - log.base_index - 1
        end = high - log.base_index - 1
        found: list[Entry] = []
        while place < end:
            stop = self._span(place, end)
            found += self._read_span(place, stop)
            place = stop
        return found

    def _span(self, place: int, end: int) -> int:
        """How far one read from one segment reaches."""
        log = self._index
        positions, lengths = log.positions, log.lengths
        start = positions[place]
        segment = bisect_right(self._bases, start)
        limit = self._bases[segment] if segment < len(self._bases) else 1 << 63
        limit = min(limit, start + max(SPAN_BYTES_MAX, lengths[place]))
        behind = start + lengths[place]
        place += 1
        while place < end:
            at = positions[place]
            if at - behind > GAP_BYTES_MAX or at + lengths[place] > limit:
                break
            behind = at + lengths[place]
            place += 1
        return place

    def _read_span(self, place: int, stop: int) -> list[Entry]:
        log = self._index
        start = log.positions[place]
        size = log.positions[stop - 1] + log.lengths[stop - 1] - start
        segment = bisect_right(self._bases, start) - 1
        offset = start - self._bases[segment]
        file = self._open(self._numbers[segment])
        data = file.read(offset, size)
        found = []
        for at in range(place, stop):
            skip = log.positions[at] - start
            piece = data[skip : skip + log.lengths[at]]
            if len(piece) != log.lengths[at] or google_crc32c.value(piece) != log.crcs[at]:
                raise CorruptionError(
                    f"{file.path}: offset {offset + skip}: entry {log.base_index + 1 + at} reads "
                    f"back differently from what was written; {REPAIR}",
                    path=file.path,
                    offset=offset + skip,
                )
            found.append(
                Entry(log.base_index + 1 + at, log.terms[at], EntryKind(log.kinds[at]), piece)
            )
        return found

    def _open(self, number: int) -> File:
        file = self._files.get(number)
        if file is None:
            while len(self._files) >= OPEN_FILES_MAX:
                self._close(next(iter(self._files)))
            file = self._disk.open(join(self._directory, segment_name(number)))
            self._files[number] = file
        return file

    def _close(self, number: int) -> None:
        file = self._files.pop(number, None)
        if file is not None:
            file.close()

    # The cache

    def _cut_cache(self, first: int) -> None:
        """Entries >= `first` are about to be replaced (cockroachdb/cockroach#63302)."""
        if first <= self._cache_first:
            self._cache, self._cache_bytes, self._cache_first = [], 0, first
            return
        keep = first - self._cache_first
        self._cache_bytes -= sum([len(entry.data) for entry in self._cache[keep:]])
        del self._cache[keep:]

    def _trim_cache(self, bytes_max: int) -> None:
        """Drop the oldest eighth at least, so that trimming is rare."""
        goal = bytes_max - bytes_max // 8
        count = 0
        for entry in self._cache:
            if self._cache_bytes <= goal:
                break
            self._cache_bytes -= len(entry.data)
            count += 1
        del self._cache[:count]
        self._cache_first += count
