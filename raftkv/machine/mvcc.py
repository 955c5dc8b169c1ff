"""Reading: one key, a range, at the newest or an older revision, and history by revision.

All functions take a reader of the tables and never write. The cost of a range is that of the rows
it visits: how often other keys were written, or how long the history of a key is, does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

from raftkv.errors import Compacted, FutureRevision, InvalidRequest, check
from raftkv.machine.commands import SortOrder, SortTarget
from raftkv.machine.draft import KEYSPACE
from raftkv.machine.events import Event
from raftkv.machine.records import (
    DELETE,
    HEADER,
    KEY_ID_AT,
    KEY_ID_END,
    MOD_AT,
    U64,
    UNTIL,
    USER_KEYS,
    Record,
    without_value,
)
from raftkv.machine.results import RangeResult
from raftkv.machine.tables import CURRENT, HISTORY, VERSIONS, TableReader

Row = tuple[bytes, bytes]
"""Name and record."""

RUN_ROWS: Final = 256
"""Rows that are looked at together."""

_mod_of: Final = U64.unpack_from


def check_revision(revision: int, newest: int, compact_revision: int) -> None:
    """Refuse a revision that cannot be read: FutureRevision or Compacted."""
    if revision > newest:
        raise FutureRevision(
            f"revision {revision} does not exist yet; the store is at {newest}",
            revision=newest,
        )
    if revision < compact_revision:
        raise Compacted(
            f"revision {revision} has been compacted; the oldest kept is {compact_revision}",
            oldest_revision=compact_revision,
        )


def bounds(keyspace: int, start: bytes, end: bytes) -> tuple[bytes, bytes]:
    """Row names of CURRENT for the interval [start, end) of a keyspace; `end` b"": all the rest."""
    return KEYSPACE[keyspace] + start, KEYSPACE[keyspace] + end if end else KEYSPACE[keyspace + 1]


def record_at(reader: TableReader, newest: bytes, revision: int) -> bytes | None:
    """The live record at `revision` of the key whose CURRENT row is `newest`; None: no key then."""
    if _mod_of(newest, MOD_AT)[0] <= revision:
        return None if newest[0] == DELETE else newest
    key_id = newest[KEY_ID_AT:KEY_ID_END]
    if _mod_of(key_id)[0] > revision:
        return None
    older = reader.scan_reverse(VERSIONS, key_id, key_id + U64.pack(revision + 1))
    for name, value in older:
        check(_mod_of(value, 4)[0] > revision, "versions of a key have no gap", name=name)
        record = reader.get(HISTORY, name[12:] + value[:4])
        check(record is not None, "a kept version is in history", key_id=key_id, name=name)
        return None if record is None or record[0] == DELETE else record
    return None


def get(reader: TableReader, keyspace: int, key: bytes, revision: int) -> Record | None:
    """One key at a revision that passed `check_revision`."""
    raw = reader.get(CURRENT, KEYSPACE[keyspace] + key)
    if raw is not None:
        raw = record_at(reader, raw, revision)
    return None if raw is None else Record(raw)


def live_rows(
    reader: TableReader, keyspace: int, start: bytes, end: bytes | None
) -> Iterator[tuple[bytes, bytes]]:
    """(row name, record) of every key of an interval as it is now."""
    if end is None:
        row = KEYSPACE[keyspace] + start
        raw = reader.get(CURRENT, row)
        if raw is not None and raw[0] != DELETE:
            yield row, raw
        return
    low, high = bounds(keyspace, start, end)
    if low < high:
        for row, raw in reader.scan(CURRENT, low, high):
            if raw[0] != DELETE:
                yield row, raw


class RangeQuery:
    """What a range asks for; the fields are documented at `Machine.range`."""

    __slots__ = (
        "count_only", "end", "examine_max", "keys_only", "keyspace", "limit", "max_create",
        "max_mod", "min_create", "min_mod", "reverse", "revision", "sort_order", "sort_target",
        "start", "want_count",
    )  # fmt: skip

    def __init__(
        self,
        start: bytes,
        end: bytes | None = None,
        *,
        keyspace: int = USER_KEYS,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        want_count: bool = False,
        reverse: bool = False,
        sort_target: int = SortTarget.KEY,
        sort_order: int = SortOrder.NONE,
        min_mod: int = 0,
        max_mod: int = 0,
        min_create: int = 0,
        max_create: int = 0,
        examine_max: int = 0,
    ) -> None:
        self.start = start
        self.end = end
        self.keyspace = keyspace
        self.revision = revision
        self.limit = limit
        self.keys_only = keys_only
        self.count_only = count_only
        self.want_count = want_count or count_only
        self.reverse = reverse or (
            sort_target == SortTarget.KEY and sort_order == SortOrder.DESCEND
        )
        self.sort_target = sort_target
        self.sort_order = sort_order
        self.min_mod = min_mod
        self.max_mod = max_mod
        self.min_create = min_create
        self.max_create = max_create
        self.examine_max = examine_max

    @property
    def filtered(self) -> bool:
        """Whether any revision filter is set."""
        return bool(self.min_mod or self.max_mod or self.min_create or self.max_create)

    def passes(self, raw: bytes) -> bool:
        """Whether a record passes the revision filters."""
        fields = HEADER.unpack_from(raw)
        create, mod = fields[3], fields[4]
        return (
            mod >= self.min_mod
            and (not self.max_mod or mod <= self.max_mod)
            and create >= self.min_create
            and (not self.max_create or create <= self.max_create)
        )


def read_range(
    reader: TableReader, query: RangeQuery, newest: int, compact_revision: int, keys: int
) -> RangeResult:
    """Answer a range. `newest`: the revision that CURRENT stands at; `keys`: all live user keys.

    Raises FutureRevision, Compacted, or InvalidRequest.
    """
    at = query.revision
    if at:
        check_revision(at, newest, compact_revision)
    else:
        at = newest
    if query.sort_target != SortTarget.KEY:
        return _read_sorted(reader, query, at, newest)
    return _read_in_order(reader, query, at, newest, keys)


def _stored_rows(reader: TableReader, query: RangeQuery) -> Iterator[Row]:
    """The rows of CURRENT that have to be looked at, in the order asked for."""
    if query.end is None:
        row = KEYSPACE[query.keyspace] + query.start
        raw = reader.get(CURRENT, row)
        return iter(()) if raw is None else iter(((row, raw),))
    low, high = bounds(query.keyspace, query.start, query.end)
    if low >= high:
        return iter(())
    return (
        reader.scan_reverse(CURRENT, low, high)
        if query.reverse
        else reader.scan(CURRENT, low, high)
    )


def _live(reader: TableReader, rows: list[Row], at: int, newest: int) -> list[Row]:
    """Those of `rows` whose key exists at revision `at`, with the record that it had then."""
    if at == newest:
        return [row for row in rows if row[1][0] != DELETE]
    return [(name, old) for name, raw in rows if (old := record_at(reader, raw, at)) is not None]


def _read_in_order(
    reader: TableReader, query: RangeQuery, at: int, newest: int, keys: int
) -> RangeResult:
    """Rows are read and judged a run at a time: what a single one costs decides here."""
    whole = query.end == b"" and not query.start and query.keyspace == USER_KEYS and at == newest
    if query.count_only and whole:
        return RangeResult(at, [], keys, False)
    limit = query.limit
    keep = not query.count_only
    filtered = query.filtered
    rows = _stored_rows(reader, query)
    raws: list[bytes] = []
    total = examined = 0
    stopped: bytes | None = None
    while True:
        size = RUN_ROWS
        if limit and keep and not filtered:
            size = min(size, limit - len(raws) + 1)
        if query.examine_max:
            size = min(size, query.examine_max - examined)
            if not size:
                stopped = stopped or next(rows, (None,))[0]
                break
        run = list(islice(rows, size))
        if not run:
            break
        examined += len(run)
        live = _live(reader, run, at, newest)
        total += len(live)
        if not keep:
            continue
        wanted = [row for row in live if query.passes(row[1])] if filtered else live
        room = limit - len(raws)
        if limit and len(wanted) > room:
            stopped = wanted[room][0]
            del wanted[room:]
            keep = False
        raws += [raw for _, raw in wanted]
        if not keep:
            if not query.want_count:
                break
            if whole:
                total = keys
                break
    resume = None
    if stopped is not None:
        resume = stopped[1:] + b"\0" if query.reverse else stopped[1:]
    count = total if query.want_count else None
    return RangeResult(at, _records(raws, query), count, stopped is not None, resume)


def _read_sorted(reader: TableReader, query: RangeQuery, at: int, newest: int) -> RangeResult:
    if query.examine_max:
        raise InvalidRequest("a sorted range cannot be read in slices")
    rows = list(_stored_rows(reader, query))
    raws = [raw for _, raw in _live(reader, rows, at, newest)]
    count = len(raws) if query.want_count else None
    if query.count_only:
        return RangeResult(at, [], count, False)
    if query.filtered:
        raws = [raw for raw in raws if query.passes(raw)]
    elif query.limit and query.sort_order == SortOrder.NONE:
        # As in etcd: without an order, what is sorted is what the limit let through, and one more.
        raws = raws[: query.limit + 1]
    raws.sort(
        key=_SORT_KEYS[query.sort_target],
        # Ties stay in key order either way.
        reverse=query.sort_order == SortOrder.DESCEND,
    )
    more = bool(query.limit) and len(raws) > query.limit
    if more:
        del raws[query.limit :]
    return RangeResult(at, _records(raws, query), count, more)


def _records(raws: list[bytes], query: RangeQuery) -> list[Record]:
    if query.keys_only:
        return [Record(without_value(raw)) for raw in raws]
    return [Record(raw) for raw in raws]


_SORT_KEYS: Final[dict[int, Callable[[bytes], Any]]] = {
    SortTarget.VERSION: lambda raw: HEADER.unpack_from(raw)[6],
    SortTarget.CREATE: lambda raw: HEADER.unpack_from(raw)[3],
    SortTarget.MOD: lambda raw: HEADER.unpack_from(raw)[4],
    SortTarget.VALUE: lambda raw: Record(raw).value,
}


def history(
    reader: TableReader, from_revision: int, to_revision: int, events_max: int
) -> list[Event]:
    """Events of [from_revision, to_revision], whole revisions only.

    Ends with the revision that brings it to `events_max` events or more.
    """
    events: list[Event] = []
    last = 0
    for _, raw in reader.scan(HISTORY, U64.pack(from_revision), U64.pack(to_revision + 1)):
        revision = _mod_of(raw, MOD_AT)[0]
        if len(events) >= events_max and revision != last:
            break
        events.append(Event.of(raw))
        last = revision
    return events


def previous(reader: TableReader, event: Event, compact_revision: int) -> Record | None:
    """The record that `event` replaced or deleted; None: there was none, or it is compacted.

    What is compacted is decided by revision, so that every member answers alike.
    """
    if event.revision <= compact_revision:
        return None
    raw = reader.get(HISTORY, HEADER.unpack_from(event.raw)[9])
    return None if raw is None or raw[0] == DELETE else Record(raw)


def compaction_slice(
    reader: TableReader, cursor: bytes, revision: int, rows_max: int
) -> tuple[list[tuple[int, bytes]], bytes | None]:
    """What compaction at `revision` may remove next: rows as (table, name), and the new cursor.

    Visits at most `rows_max` rows of history from `cursor` on; the cursor is None at the end.
    Oldest first, so that a record goes only after everything older of its key.
    """
    garbage: list[tuple[int, bytes]] = []
    rows = reader.scan(HISTORY, cursor, U64.pack(revision))
    for visited, (position, raw) in enumerate(rows):
        if visited == rows_max:
            return garbage, position
        version = raw[KEY_ID_AT:KEY_ID_END] + position[:8]
        superseded = reader.get(VERSIONS, version)
        if superseded is None:
            # The key's newest record: CURRENT keeps it, unless the key is gone.
            garbage.append((HISTORY, position))
            if raw[0] == DELETE:
                record = Record(raw)
                garbage.append((CURRENT, KEYSPACE[record.keyspace] + record.key))
        elif raw[0] == DELETE or UNTIL.unpack(superseded)[1] <= revision:
            garbage.append((HISTORY, position))
            garbage.append((VERSIONS, version))
    return garbage, None
