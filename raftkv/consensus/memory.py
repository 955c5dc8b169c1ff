"""A log storage in memory, for tests, simulators and examples. It forgets when the process ends."""

from __future__ import annotations

from raftkv.checks import check
from raftkv.consensus.types import (
    ConfState,
    Entry,
    HardState,
    LogCompacted,
    LogUnavailable,
    SnapshotMeta,
    StorageWrite,
)

FOUNDING_INDEX = 1
FOUNDING_TERM = 1


class MemoryLogStorage:
    """A `LogStorage` that keeps everything in lists. Whatever is written counts as durable.

    With `conf` it is the disk of a founding member: the log begins with a snapshot that holds the
    first membership, so that a member with an empty log cannot take part before it has been sent
    a snapshot. Without, it is the disk of a member that joins.
    """

    def __init__(self, conf: ConfState | None = None) -> None:
        self.hard_state = HardState()
        self.conf = ConfState()
        """The membership to start from; the owner keeps it up to date with its applied index."""
        self.base = SnapshotMeta()
        """Stands for the whole log before the first entry kept."""
        self.log: list[Entry] = []
        self.sendable: SnapshotMeta | None = None
        """What `snapshot` answers."""
        if conf is not None:
            self.install(SnapshotMeta(FOUNDING_INDEX, FOUNDING_TERM, conf))

    def write(self, write: StorageWrite) -> None:
        """Take over a write, in the order that `StorageWrite` promises."""
        if write.snapshot is not None:
            self.install(write.snapshot)
        if write.entries:
            self.append(write.entries)
        if write.hard_state is not None:
            self.hard_state = write.hard_state

    def append(self, entries: tuple[Entry, ...]) -> None:
        """Put `entries` at their places; they replace everything from the first index on."""
        position = entries[0].index - self.base.index - 1
        check(0 <= position <= len(self.log), "a gap in the log", index=entries[0].index)
        self.log[position:] = entries

    def install(self, meta: SnapshotMeta) -> None:
        """Replace the whole log by a snapshot."""
        self.base = meta
        self.conf = meta.conf
        self.log = []
        self.sendable = meta

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which a snapshot covers."""
        if index > self.base.index:
            self.base = SnapshotMeta(index, self.term(index), self.conf)
            self.log = [entry for entry in self.log if entry.index > index]

    # LogStorage

    def initial_state(self) -> tuple[HardState, ConfState]:
        """See `LogStorage`."""
        return self.hard_state, self.conf

    def first_index(self) -> int:
        """See `LogStorage`."""
        return self.base.index + 1

    def last_index(self) -> int:
        """See `LogStorage`."""
        return self.base.index + len(self.log)

    def term(self, index: int) -> int:
        """See `LogStorage`."""
        if index == self.base.index:
            return self.base.term
        return self._entry(index).term

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """See `LogStorage`."""
        found = [self._entry(low)]
        size = len(found[0].data)
        for index in range(low + 1, high):
            entry = self._entry(index)
            size += len(entry.data)
            if size > bytes_max:
                break
            found.append(entry)
        return found

    def snapshot(self) -> SnapshotMeta | None:
        """See `LogStorage`."""
        return self.sendable

    def _entry(self, index: int) -> Entry:
        if index <= self.base.index:
            raise LogCompacted(index)
        if index > self.last_index():
            raise LogUnavailable(index)
        return self.log[index - self.base.index - 1]
