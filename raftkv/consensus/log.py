"""The log as the core sees it: what storage holds durably, then what is still on its way there.

    storage (durable)            | entries: handed to storage | entries: not handed yet
    ..., first_index ... offset-1 | offset ... handed-1        | handed ... last_index

Entries leave the tail only when storage has said that these very entries are durable.
"""

from __future__ import annotations

from collections.abc import Sequence

from raftkv.checks import check
from raftkv.consensus.types import (
    Entry,
    EntryKind,
    LogCompacted,
    LogStorage,
    LogUnavailable,
    SnapshotMeta,
)


class RaftLog:
    """One member's log. `committed`, `applying` and `applied` never go back."""

    __slots__ = (
        "applied",
        "applying",
        "committed",
        "entries",
        "handed",
        "offset",
        "snapshot",
        "snapshot_handed",
        "storage",
        "truncations",
    )

    def __init__(self, storage: LogStorage, committed: int, applied: int) -> None:
        last = storage.last_index()
        self.storage = storage
        # What was applied was committed and durable here. A machine that is ahead of the log all
        # the same (a snapshot loaded before the log knew of it) vouches for nothing in the log.
        known = max(committed, applied) if applied <= last else committed
        self.committed = max(min(known, last), storage.first_index() - 1)
        """Greatest index known to be committed. Never beyond the log: a commit index stored ahead
        of its entries is learnt again from the leader."""
        self.applying = max(applied, storage.first_index() - 1)
        """Greatest index given out to be applied."""
        self.applied = self.applying
        self.offset = last + 1
        self.entries: list[Entry] = []
        self.handed = last + 1
        self.snapshot: SnapshotMeta | None = None
        """A snapshot that replaces everything before `offset` and is not durable yet."""
        self.snapshot_handed = False
        self.truncations = 0
        """Counts how often the tail was cut, to notice inputs between ready and advance."""

    @property
    def last_index(self) -> int:
        """Index of the newest entry, durable or not."""
        return self.offset + len(self.entries) - 1

    @property
    def last_term(self) -> int:
        """Term of the newest entry."""
        entries = self.entries
        return entries[-1].term if entries else self.term(self.offset - 1)

    @property
    def stable_index(self) -> int:
        """Every entry up to here is durable on this member."""
        return self.offset - 1 if self.snapshot is None else 0

    @property
    def applicable_index(self) -> int:
        """Everything up to here is committed and durable on this member."""
        if self.snapshot is not None:
            return 0
        return min(self.committed, self.offset - 1)

    def first_index(self) -> int:
        """Index of the oldest entry that can be read."""
        if self.snapshot is not None:
            return self.snapshot.index + 1
        return self.storage.first_index()

    def term(self, index: int) -> int:
        """Term of the entry at `index`. Raises LogCompacted or LogUnavailable."""
        position = index - self.offset
        if position >= 0:
            if position >= len(self.entries):
                raise LogUnavailable(index)
            return self.entries[position].term
        if self.snapshot is not None:
            if index == self.snapshot.index:
                return self.snapshot.term
            raise LogCompacted(index)
        return self.storage.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Whether the entry at `index` is here and of `term`."""
        try:
            return self.term(index) == term
        except (LogCompacted, LogUnavailable):
            return False

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends in (`index`, `term`) is at least as good (paper 5.4.1)."""
        last_term = self.last_term
        return term > last_term or (term == last_term and index >= self.last_index)

    def agree_at_most(self, index: int, term: int) -> tuple[int, int]:
        """The greatest index <= `index` whose term is <= `term`, and that term.

        Entries above it cannot agree with a log whose entry at `index` is of `term` (paper 5.3,
        end: skip a whole term at a time). The term is 0 where it is not known any more.
        """
        index = min(index, self.last_index)
        while index > 0:
            try:
                own = self.term(index)
            except (LogCompacted, LogUnavailable):
                return index, 0
            if own <= term:
                return index, own
            index -= 1
        return 0, 0

    def read(self, low: int, bytes_max: int, high: int | None = None) -> tuple[Entry, ...]:
        """Entries from `low` to before `high` (None: the end), at least one where there is one.

        Stops before `bytes_max` is exceeded. Raises LogCompacted.
        """
        end = self.last_index + 1 if high is None else high
        if low >= end:
            return ()
        offset = self.offset
        if low >= offset:
            return _limited(self.entries[low - offset : end - offset], bytes_max)
        if self.snapshot is not None:
            raise LogCompacted(low)
        stored = self.storage.entries(low, min(end, offset), bytes_max)
        check(stored and stored[0].index == low, "storage answered another entry", low=low)
        if end <= offset or low + len(stored) < offset:
            return tuple(stored)
        return _limited([*stored, *self.entries[: end - offset]], bytes_max)

    def append(self, entries: Sequence[Entry]) -> None:
        """Put `entries` at their places; they replace everything from the first one's index on."""
        first = entries[0].index
        check(first > self.committed, "a committed entry is replaced", index=first)
        offset = self.offset
        position = first - offset
        count = len(self.entries)
        check(position <= count, "a gap in the log", first=first, last=offset + count - 1)
        if position == count:
            self.entries.extend(entries)
            return
        self.truncations += 1
        if position <= 0:
            self.entries = list(entries)
            self.offset = first
            self.handed = first
            return
        self.entries[position:] = entries
        self.handed = min(self.handed, first)

    def merge(self, entries: Sequence[Entry]) -> None:
        """Append those of `entries` that are new, cutting the log at the first conflict only.

        Entries that are here already stay: an old message must not shorten the log (paper 5.3;
        figure 2, AppendEntries rules 3 and 4).
        """
        last = self.last_index
        if entries[0].index == last + 1:
            self.append(entries)
            return
        for position, entry in enumerate(entries):
            if entry.index > last or not self.matches(entry.index, entry.term):
                self.append(entries[position:])
                return

    def commit_to(self, index: int) -> bool:
        """Everything up to `index` is committed; whether that is news."""
        if index <= self.committed:
            return False
        check(index <= self.last_index, "commit beyond the log", index=index, last=self.last_index)
        self.committed = index
        return True

    def persisted(self, index: int, term: int) -> None:
        """Storage holds the log up to (`index`, `term`) durably; ignored for replaced entries."""
        position = index - self.offset
        if 0 <= position < len(self.entries) and self.entries[position].term == term:
            del self.entries[: position + 1]
            self.offset = index + 1
            self.handed = max(self.handed, self.offset)

    def unhanded(self) -> tuple[Entry, ...]:
        """Entries that storage has not been given yet."""
        return tuple(self.entries[self.handed - self.offset :])

    def install(self, meta: SnapshotMeta) -> None:
        """Replace the whole log by a snapshot."""
        check(meta.index > self.committed, "a snapshot behind the commit", index=meta.index)
        self.truncations += 1
        self.snapshot = meta
        self.snapshot_handed = False
        self.entries = []
        self.offset = meta.index + 1
        self.handed = meta.index + 1
        self.committed = meta.index

    def snapshot_persisted(self, meta: SnapshotMeta) -> None:
        """The snapshot is durable and in force in the machine; ignored for a replaced one."""
        if self.snapshot is not None and self.snapshot.index == meta.index:
            self.snapshot = None
            self.snapshot_handed = False
            self.applying = max(self.applying, meta.index)
            self.applied_to(meta.index)

    def next_committed(self, bytes_max: int) -> tuple[Entry, ...]:
        """Committed entries that were not given out yet and are durable here.

        The machine's state outlives the process. Were it ahead of the log, then after a crash the
        log could still hold, below the applied index, an entry that was being replaced.
        """
        high = self.applicable_index
        if high <= self.applying:
            return ()
        return self.read(self.applying + 1, bytes_max, high + 1)

    def applied_to(self, index: int) -> None:
        """The machine has applied everything up to `index`; older news is ignored."""
        if self.snapshot is not None and index < self.snapshot.index:
            # The image of a snapshot that this one has replaced; it will tell in its turn.
            return
        if index > self.applied:
            check(index <= self.applying, "applied what was not given out", index=index)
            self.applied = index

    def has_config(self, low: int, high: int) -> bool:
        """Whether a CONFIG entry lies in [low, high)."""
        while low < high:
            page = self.read(low, 1 << 20, high)
            if any(entry.kind is EntryKind.CONFIG for entry in page):
                return True
            low += len(page)
        return False


def _limited(entries: list[Entry], bytes_max: int) -> tuple[Entry, ...]:
    """The longest prefix of `entries` within `bytes_max` data bytes, at least one entry."""
    if len(entries) > 1:
        size = 0
        for position, entry in enumerate(entries):
            size += len(entry.data)
            if size > bytes_max and position:
                return tuple(entries[:position])
    return tuple(entries)
