"""Where every live entry of the log lies on disk: five flat arrays, 25 bytes an entry."""

from __future__ import annotations

from array import array
from typing import Final

UNKNOWN_TERM: Final = -1


class LogIndex:
    """Positions of the entries base_index + 1 .. last_index.

    A position is the byte offset in the whole log since it was made: a segment's base position
    plus the offset in its file. Positions rise with the index.
    """

    __slots__ = ("base_index", "base_term", "crcs", "kinds", "lengths", "positions", "terms")

    def __init__(self, base_index: int = 0, base_term: int = 0) -> None:
        self.reset(base_index, base_term)

    def reset(self, base_index: int, base_term: int) -> None:
        """Forget every entry; the next one is base_index + 1."""
        self.base_index = base_index
        self.base_term = base_term
        self.positions = array("Q")
        self.lengths = array("I")
        self.crcs = array("I")
        self.terms = array("Q")
        self.kinds = array("B")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def last_index(self) -> int:
        """Of the newest entry, or base_index when there is none."""
        return self.base_index + len(self.positions)

    @property
    def last_term(self) -> int:
        """Term of the entry at last_index."""
        return self.terms[-1] if self.terms else self.base_term

    def columns(self) -> tuple[array[int], array[int], array[int], array[int], array[int]]:
        """The five arrays, in the order in which `add` takes their items."""
        return (self.positions, self.lengths, self.crcs, self.terms, self.kinds)

    def add(self, position: int, length: int, crc: int, term: int, kind: int) -> None:
        """Append one entry."""
        self.positions.append(position)
        self.lengths.append(length)
        self.crcs.append(crc)
        self.terms.append(term)
        self.kinds.append(kind)

    def cut_from(self, index: int) -> None:
        """Drop every entry >= `index`, which is greater than base_index."""
        keep = index - self.base_index - 1
        for column in self.columns():
            del column[keep:]

    def drop_to(self, index: int) -> None:
        """Make `index`, a live entry, the new base: entries <= `index` are forgotten."""
        count = index - self.base_index
        if count <= 0:
            return
        self.base_term = self.terms[count - 1]
        self.base_index = index
        for column in self.columns():
            del column[:count]
