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
from raftkv.limits import ETCD_RANGE_BYTES_MAX, MIB
from raftkv.machine.commands import SortOrder, SortTarget

if TYPE_CHECKING:
    from raftkv.machine.machine import Machine
    from raftkv.machine.records import Record

FROM_KEY: Final = b"\0"
"""As `range_end`: to the end of the keyspace."""

FIRST_SLICE_ROWS: Final = 256
SLICE_ROWS_MAX: Final = 4_000
SLICE_BYTES: Final = MIB

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

    `take`, if given, is handed the records of each step instead of their being gathered; it goes
    without a sort target.
    """

    __slots__ = (
        "_bytes", "_descend", "_end", "_filters", "_full", "_keys", "_limit", "_machine",
        "_request", "_reverse", "_rows", "_sort", "_start", "_taken", "count", "more",
        "records", "revision", "take",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        request: Any,
        take: Callable[[list[Record]], None] | None = None,
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
        self._taken = 0
        self._bytes = 0
        self._keys: int | None = None
        """How many keys the whole interval has, where the machine knows."""
        self.revision: int = max(request.revision, 0)
        """What is read at; 0 until the first step, unless asked for."""
        self.records: list[Record] = []
        self.count = 0
        self.more = False
        self.take = take or self.records.extend

    def step(self) -> bool:
        """Read the next slice; whether it was the last. Raises FutureRevision or Compacted."""
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
        if found.records:
            self._gather(found.records)
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

    def _gather(self, records: list[Record]) -> None:
        size = sum(len(record.raw) for record in records)
        # Large values make small slices.
        self._rows = max(1, min(SLICE_ROWS_MAX, self._rows * 4, SLICE_BYTES * len(records) // size))
        room = self._limit - self._taken
        if self._limit and len(records) > room:
            del records[room:]
            self._full = self.more = True
        self._taken += len(records)
        self._bytes += size
        self.take(records)
        if self._bytes > ETCD_RANGE_BYTES_MAX and self.records:
            raise answers.RANGE_TOO_LARGE.fault()

    def _finish(self) -> bool:
        if self._sort is not None:
            # Ties stay in key order either way.
            self.records.sort(key=self._sort, reverse=self._descend)
            limit = self._request.limit
            self.more = 0 < limit < len(self.records)
            if self.more:
                del self.records[limit:]
        return True

    def body(self) -> bytes:
        """Everything of a RangeResponse but its header."""
        return range_body(self.records, self.more, self.count, self._request.keys_only)


def range_body(records: list[Record], more: bool, count: int, keys_only: bool) -> bytes:
    """kvs, more and count of a RangeResponse."""
    kvs = records_field(records, values=not keys_only)
    return b"".join((kvs, b"\x18\x01" if more else b"", number_field(4, count)))
