"""Ranges: read in slices at one revision, so that a long one never holds up the loop.

A range that fits its first slice is answered at once; only a longer one costs an object and more
turns of the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.etcd import answers
from raftkv.api.etcd.wire import number_field, records_field
from raftkv.limits import ETCD_RANGE_BYTES_MAX, KIB
from raftkv.machine.commands import SortOrder, SortTarget
from raftkv.machine.records import Record

if TYPE_CHECKING:
    from raftkv.machine.machine import Machine

FROM_KEY: Final = b"\0"
"""As `range_end`: to the end of the keyspace."""

FIRST_SLICE_ROWS: Final = 256
SLICE_ROWS_MAX: Final = 4_000
SLICE_BYTES: Final = 128 * KIB
"""Read and encoded before the next: what the caches of a core hold."""
TURN_BYTES: Final = 512 * KIB
"""Read before others have a turn; or SLICE_ROWS_MAX rows, if that is less."""

_SORT_BY: Final = {
    SortTarget.VERSION: attrgetter("version"),
    SortTarget.CREATE: attrgetter("create_revision"),
    SortTarget.MOD: attrgetter("mod_revision"),
    SortTarget.VALUE: attrgetter("value"),
}


def interval(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """The machine's interval of a request's. Raises for an empty key."""
    if not key:
        raise answers.EMPTY_KEY.fault()
    if not range_end:
        return key, None
    if range_end == FROM_KEY:
        # From the least key there is: the machine knows how many that are without looking.
        return (b"" if key == FROM_KEY else key), b""
    return key, range_end


def check_sort(request: Any) -> None:
    """Raise for a sort order or target that does not exist."""
    if not (
        0 <= request.sort_order <= SortOrder.DESCEND
        and 0 <= request.sort_target <= SortTarget.VALUE
    ):
        raise answers.SORT_OPTION.fault()


class RangeReader:
    """One Range request under way. `step` until it says so; nothing is held between steps.

    `take`, if given, is handed the encoded records of each step instead of their being gathered; it
    goes without a sort target.
    """

    __slots__ = (
        "_bytes", "_descend", "_end", "_filters", "_full", "_keys", "_kvs", "_limit", "_machine",
        "_request", "_reverse", "_rows", "_rows_left", "_sort", "_start", "_take", "_taken",
        "_unsorted", "count", "more", "revision",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        request: Any,
        take: Callable[[bytes], None] | None = None,
    ) -> None:
        self._machine = machine
        self._request = request
        self._start, self._end = interval(request.key, request.range_end)
        self._sort = _SORT_BY.get(request.sort_target)
        self._descend = request.sort_order == SortOrder.DESCEND
        self._reverse = self._sort is None and self._descend and not request.count_only
        filters = {
            "min_mod": request.min_mod_revision,
            "max_mod": request.max_mod_revision,
            "min_create": request.min_create_revision,
            "max_create": request.max_create_revision,
        }
        self._filters: dict[str, Any] = filters if any(filters.values()) else {}
        self._limit: int = max(request.limit, 0)
        if self._sort is not None and self._limit:
            # As in etcd: without an order, what is sorted is what the limit lets through, and one
            # more; with an order, or with filters, it is everything.
            ordered = request.sort_order != SortOrder.NONE or self._filters
            self._limit = 0 if ordered else self._limit + 1
        self._full: bool = request.count_only
        """No more records are wanted, only how many keys there are."""
        self._rows = FIRST_SLICE_ROWS
        self._rows_left = 0
        self._taken = 0
        self._bytes = 0
        self._keys: int | None = None
        """How many keys the whole interval has, where the machine knows."""
        self.revision: int = max(request.revision, 0)
        """What is read at; 0 until the first step, unless asked for."""
        self.count = 0
        self.more = False
        self._kvs: list[bytes] = []
        """Encoded records. What is in order is encoded as it comes, while it is in the caches."""
        self._unsorted: list[Record] = []
        self._take = take or self._kvs.append

    def step(self) -> bool:
        """Read on for one turn; whether that was the last. Raises FutureRevision or Compacted."""
        self._rows_left = SLICE_ROWS_MAX
        enough = self._bytes + TURN_BYTES
        while not self._slice():
            if self._rows_left <= 0 or self._bytes >= enough:
                return False
        return True

    def _slice(self) -> bool:
        machine = self._machine
        if not self._start and self._end == b"" and self.revision in (0, machine.revision):
            self._keys = machine.keys
            self.revision = machine.revision
        if self._full and self._keys is not None:
            self.count = self._keys
            return self._finish()
        rows = SLICE_ROWS_MAX if self._full else self._rows
        if self._limit and not self._full and not self._filters:
            rows = min(rows, self._limit - self._taken + 1)
        self._rows_left -= rows
        found = machine.range(
            self._start,
            self._end,
            revision=self.revision,
            count_only=self._full,
            want_count=True,
            reverse=self._reverse,
            examine_max=rows,
            **self._filters,
        )
        self.revision = found.revision
        self.count += found.count or 0
        if found.raws:
            self._gather(found.raws)
        if found.resume is None:
            return self._finish()
        if self._reverse:
            self._end = found.resume
        else:
            self._start = found.resume
        if self._full:
            # What is left is a number, which has no order.
            self._reverse = False
        return False

    def _gather(self, raws: list[bytes]) -> None:
        size = sum(map(len, raws))
        # Large values make small slices.
        self._rows = max(1, min(SLICE_ROWS_MAX, self._rows * 4, SLICE_BYTES * len(raws) // size))
        room = self._limit - self._taken
        if self._limit and len(raws) > room:
            del raws[room:]
            self._full = self.more = True
        self._taken += len(raws)
        self._bytes += size
        if self._sort is not None:
            self._unsorted += map(Record, raws)
        elif raws:
            self._take(records_field(raws, values=not self._request.keys_only))
        if self._bytes > ETCD_RANGE_BYTES_MAX and (self._kvs or self._unsorted):
            raise answers.RANGE_TOO_LARGE.fault()

    def _finish(self) -> bool:
        if self._sort is not None:
            records = self._unsorted
            # Ties stay in key order either way.
            records.sort(key=self._sort, reverse=self._descend)
            limit = self._request.limit
            self.more = 0 < limit < len(records)
            if self.more:
                del records[limit:]
            raws = [record.raw for record in records]
            self._kvs.append(records_field(raws, values=not self._request.keys_only))
        return True

    def answer(self, header: bytes) -> bytes:
        """The RangeResponse: its header, what was gathered of the records, more and count."""
        return b"".join((header, *self._kvs, _end(self.more, self.count)))


def range_body(raws: list[bytes], more: bool, count: int) -> bytes:
    """Everything of a RangeResponse but its header."""
    return records_field(raws) + _end(more, count)


def _end(more: bool, count: int) -> bytes:
    return (b"\x18\x01" if more else b"") + number_field(4, count)
