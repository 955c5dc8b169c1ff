"""How many keys an interval has, without visiting them all.

The rows of CURRENT that are user keys are cut into blocks of about BLOCK_ROWS rows, and of each
block it is known how many live keys it has. Only where blocks begin and their counts are kept, in
memory: a few bytes a thousand keys. A count adds up whole blocks and visits the rows of the two
that the interval cuts.

All of it is derived from the tables and costs nothing until somebody counts: it begins as one
block, and a visit to too many rows of one block cuts that block into pieces. So the first count
after a start takes as long as the rows take, and those after it do not.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

from raftkv.checks import check
from raftkv.machine.records import USER_KEYS

BLOCK_ROWS: Final = 512
FIRST_ROW: Final = bytes((USER_KEYS,))
BEHIND_ROWS: Final = bytes((USER_KEYS + 1,))
UNKNOWN: Final = -1

Change = tuple[bytes, int]
"""Row name of a user key; 1: it came to be, -1: it was deleted."""
Piece = tuple[bytes, int]
"""Row name at which it begins, live keys from there to the next piece."""


class LiveCounts:
    """Blocks of rows and the live keys of each, as of the last committed change."""

    __slots__ = ("_bounds", "_changed", "_counts", "_last_change", "_unknown", "block_rows")

    def __init__(self, keys: int, revision: int, block_rows: int = BLOCK_ROWS) -> None:
        """`keys`: all live user keys at `revision`, the newest."""
        self.block_rows = block_rows
        self._bounds = [FIRST_ROW, BEHIND_ROWS]
        """Where blocks begin, and where the last one ends."""
        self._counts = [keys]
        """Live keys of each block, or UNKNOWN."""
        self._changed = [revision]
        """At which revision a key of the block last came or went, at most; so its count of now is
        that of every revision from there on."""
        self._last_change = revision
        """The greatest of these."""
        self._unknown = 0
        """How many blocks are not known."""

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self._counts)

    def leap(self, low: bytes, high: bytes, at: int) -> tuple[int, bytes]:
        """Live keys at revision `at` in the known blocks from `low` on that end by `high`, and
        where the last of them ends; 0 and `low` when no block begins there, or it is not known.
        """
        bounds, counts, changed = self._bounds, self._counts, self._changed
        first = bisect_left(bounds, low)
        last = bisect_right(bounds, high) - 1
        if last <= first or bounds[first] != low:
            return 0, low
        found = counts[first:last]
        unknown = self._unknown and min(found) == UNKNOWN
        if unknown or (at < self._last_change and max(changed[first:last]) > at):
            for place in range(first, last):
                if counts[place] == UNKNOWN or changed[place] > at:
                    last = place
                    break
            found = counts[first:last]
        return sum(found), bounds[last]

    def block_end(self, row: bytes) -> bytes:
        """Where the block that `row` is in ends."""
        return self._bounds[bisect_right(self._bounds, row)]

    def learn(self, low: bytes, reached: bytes, pieces: Sequence[Piece], rows: int) -> None:
        """Take note of a visit to all `rows` rows of [low, reached), a part of one block.

        Each piece but the last has `block_rows` rows, and counts what is live now.
        """
        bounds, counts = self._bounds, self._counts
        place = bisect_right(bounds, low) - 1
        start, end = bounds[place], bounds[place + 1]
        seen = sum(live for _, live in pieces)
        unseen = UNKNOWN
        if counts[place] != UNKNOWN:
            unseen = counts[place] - seen
            check(
                unseen >= 0 if low > start or reached < end else unseen == 0,
                "live keys are counted as they come and go",
                counted=counts[place], seen=seen,
            )  # fmt: skip
        if rows < 2 * self.block_rows:
            if low == start and reached == end:
                self._unknown -= counts[place] == UNKNOWN
                counts[place] = seen
            return
        # The last piece may be small: it stays with the one before.
        *begun, (name, live), (_, tail) = pieces
        cut = [*begun, (name, live + tail)]
        cut[0] = (low, cut[0][1])
        if low > start:
            cut.insert(0, (start, unseen if reached == end else UNKNOWN))
        if reached < end:
            cut.append((reached, unseen if low == start else UNKNOWN))
        bounds[place : place + 1] = [name for name, _ in cut]
        counts[place : place + 1] = [live for _, live in cut]
        self._changed[place : place + 1] = [self._changed[place]] * len(cut)
        self._unknown = counts.count(UNKNOWN)

    def note(self, changes: Sequence[Change], revision: int) -> None:
        """Keys came and went, at `revision` or before; what was changed is committed."""
        self._last_change = revision
        bounds, counts, changed = self._bounds, self._counts, self._changed
        for row, difference in changes:
            place = bisect_right(bounds, row) - 1
            changed[place] = revision
            if counts[place] != UNKNOWN:
                counts[place] += difference

    def tidy(self) -> None:
        """Join small blocks, of which many rows may have gone."""
        bounds, counts, changed = [self._bounds[0]], self._counts[:1], self._changed[:1]
        for place in range(1, len(self._counts)):
            count = self._counts[place]
            known = count != UNKNOWN and counts[-1] != UNKNOWN
            if known and counts[-1] + count <= self.block_rows:
                counts[-1] += count
                changed[-1] = max(changed[-1], self._changed[place])
            else:
                bounds.append(self._bounds[place])
                counts.append(count)
                changed.append(self._changed[place])
        self._bounds = [*bounds, self._bounds[-1]]
        self._counts, self._changed = counts, changed
