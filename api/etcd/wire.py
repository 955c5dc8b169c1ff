"""Answers put together from bytes: stored records are encoded already, the rest is a few fields."""

from __future__ import annotations

from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from raftkv.machine.records import HEADER_BYTES, Record
from raftkv.machine.wire import SHORT, varint

if TYPE_CHECKING:
    from raftkv.server.store import Store

_KVS: Final = b"\x12"
_WIRE_OF: Final = itemgetter(slice(HEADER_BYTES, None))
"""The KeyValue of a stored record, without a step of Python."""


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field (`number` < 16)."""
    return b"".join((SHORT[number << 3 | 2], varint(len(content)), content))


def number_field(number: int, value: int) -> bytes:
    """An integer field (`number` < 16); nothing for zero. Negative ones are 64-bit."""
    if not value:
        return b""
    return SHORT[number << 3] + varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def records_field(raws: list[bytes], tag: bytes = _KVS, *, values: bool = True) -> bytes:
    """A repeated field of KeyValues, of stored records."""
    if values:
        wires = list(map(_WIRE_OF, raws))
    else:
        wires = [Record(raw).wire_without_value for raw in raws]
    sizes = list(map(len, wires))
    # Few lengths differ among the records of a range; more often than not, none.
    heads = {size: tag + varint(size) for size in set(sizes)}
    if len(heads) == 1:
        return heads[sizes[0]].join((b"", *wires))
    return b"".join(chain.from_iterable(zip(map(heads.__getitem__, sizes), wires, strict=True)))


class Headers:
    """Encoded response headers of one member, as field 1 of an answer."""

    __slots__ = ("_at", "_ids", "_last", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids = number_field(1, store.cluster_id) + number_field(2, store.member_id)
        self._at = (-1, -1)
        self._last = b""

    def now(self) -> bytes:
        """With the revision that the store is at."""
        revision, term, _ = self._store.stamp()
        return self.at(revision, term)

    def at(self, revision: int, term: int = -1) -> bytes:
        """With a revision of one's own; the term is the member's unless given."""
        if term < 0:
            term = self._store.stamp()[1]
        if self._at != (revision, term):
            self._at = (revision, term)
            body = self._ids + number_field(3, revision) + number_field(4, term)
            self._last = b"\x0a" + SHORT[len(body)] + body  # at most 4 fields of 11 bytes
        return self._last
