"""An independent record of what a member's log was promised to be, kept beside the log itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import google_crc32c

from raftkv.checks import check, violated
from raftkv.consensus.types import Entry, HardState, SnapshotMeta
from raftkv.storage.wallog import WalLog

_Write = tuple[tuple[Entry, ...], HardState | None, SnapshotMeta | None]


class DurableLog:
    """What is durable of one member's log, and what was written since and may be or not.

    Outlives the member's processes. Knows nothing of files: it sees writes and syncs only.
    """

    __slots__ = ("base", "failed", "hard_state", "pending", "replaced", "terms")

    def __init__(self, replaced: Callable[[int, int, int], None]) -> None:
        """`replaced(index, term, crc)` is told of each entry that a later write took away."""
        self.replaced = replaced
        self.base = 0
        """Index before the first known entry."""
        self.terms: list[tuple[int, int]] = []
        """(term, crc of the data) of the entries from base + 1 on."""
        self.hard_state = HardState()
        self.pending: list[_Write] = []
        self.failed: _Write | None = None
        """A write for which there was no space; some of it, or all, may be on the disk."""

    @property
    def last_index(self) -> int:
        """Index of the newest durable entry."""
        return self.base + len(self.terms)

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry of `term` at `index` is durable, in a log or inside a snapshot."""
        place = index - self.base - 1
        return place < 0 or (place < len(self.terms) and self.terms[place][0] == term)

    def writing(
        self,
        entries: tuple[Entry, ...],
        hard_state: HardState | None,
        snapshot: SnapshotMeta | None,
    ) -> None:
        """See `WriteWitness.writing`."""
        self.failed = (entries, hard_state, snapshot)

    def written(self) -> None:
        """See `WriteWitness.written`."""
        check(self.failed is not None, "what was written was begun before")
        self.pending.append(self.failed)  # type: ignore[arg-type]
        self.failed = None

    def synced(self) -> None:
        """See `WriteWitness.synced`."""
        for write in self.pending:
            self._take(write)
        self.pending = []

    def started(self, log: WalLog, who: str) -> None:
        """Compare with what recovery found, which is durable from now on.

        Recovery may find the durable log with any number of the later writes, in order; nothing
        less, and nothing else.
        """
        hard_state, _ = log.initial_state()
        expected = [self._described(hard_state, log)]
        for write in [*self.pending, self.failed]:
            if write is None or expected[-1] is None:
                break
            self._take(write)
            expected.append(self._described(hard_state, log))
        if self.terms and all(difference is not None for difference in expected):
            violated(
                "recovery gives back another log than was made durable",
                member=who,
                durable=expected[0],
                with_all_writes=expected[-1],
            )
        self.pending, self.failed = [], None
        self.base = log.first_index() - 1
        self.hard_state = hard_state
        indexes = range(self.base + 1, log.last_index() + 1)
        self.terms = [(log.term(index), log.checksum(index)) for index in indexes]

    def _described(self, hard_state: HardState, log: WalLog) -> str | None:
        """How the log differs from this record; None: it does not."""
        own = self.hard_state
        if (hard_state.term, hard_state.vote) != (own.term, own.vote):
            return f"term {own.term}, vote {own.vote}; found {hard_state.term}, {hard_state.vote}"
        if log.last_index() != max(self.last_index, log.first_index() - 1):
            return f"ends at {self.last_index}; found {log.last_index()}"
        first = max(self.base + 1, log.first_index())
        for index in range(first, self.last_index + 1):
            found = (log.term(index), log.checksum(index))
            if found != self.terms[index - self.base - 1]:
                return f"index {index}: {self.terms[index - self.base - 1]}; found {found}"
        return None

    def _take(self, write: _Write) -> None:
        entries, hard_state, snapshot = write
        if hard_state is not None:
            self.hard_state = hard_state
        if snapshot is not None:
            self.base, self.terms = snapshot.index, []
        if entries:
            place = max(0, entries[0].index - self.base - 1)
            before = self.terms[place:]
            self.terms[place:] = [
                (entry.term, google_crc32c.value(entry.data)) for entry in entries
            ]
            for offset, (old, new) in enumerate(zip_longest(before, self.terms[place:])):
                if old is not None and old != new:
                    self.replaced(self.base + 1 + place + offset, *old)
