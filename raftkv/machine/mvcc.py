"""Reading: one key, a range, at the newest or an older revision, and history by revision.

All functions take a reader of the tables and never write. The cost of a range is that of the rows
it visits: how often other keys were written, or how long the history of a key is, does not matter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from raftkv.checks import check, violated
from raftkv.errors import Compacted, FutureRevision, InvalidRequest
from raftkv.machine.commands import SortOrder, SortTarget
from raftkv.machine.counts import Change, LiveCounts
from raftkv.machine.draft import KEYSPACE
from raftkv.machine.events import Event
from raftkv.machine.records import (
    DELETE,
    HEADER,
    HEADER_BYTES,
    KEY_ID_AT,
    KEY_ID_END,
    MOD_AT,
    NO_POSITION,
    POSITION_END,
    PREVIOUS_END,
    U64,
    USER_KEYS,
    Record,
    without_value,
)
from raftkv.machine.results import RangeResult
from raftkv.machine.tables import CURRENT, HISTORY, VERSIONS, TableReader

Row = tuple[bytes, bytes]
"""Name in CURRENT, and the row; or the record that it stands for."""

RUN_ROWS: Final = 256
"""Rows that are looked at together."""
ALL_ROWS: Final = sys.maxsize

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


def whole(reader: TableReader, raw: bytes) -> bytes:
    """The whole record of a row of CURRENT, or of a record that is whole already."""
    if len(raw) > HEADER_BYTES:
        return raw
    record = reader.get(HISTORY, raw[MOD_AT:POSITION_END])
    if record is None:
        violated("the newest record of a key is in history", position=raw[MOD_AT:POSITION_END])
    return record


def record_at(reader: TableReader, newest: bytes, revision: int) -> bytes | None:
    """The live record at `revision` of the key whose CURRENT row is `newest`, or that row itself if
    nothing newer was written since; None: no key then."""
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
    return None if raw is None else Record(whole(reader, raw))


def newest_record(reader: TableReader, keyspace: int, key: bytes) -> Record | None:
    """One key as it is now."""
    raw = reader.get(CURRENT, KEYSPACE[keyspace] + key)
    return None if raw is None or raw[0] == DELETE else Record(whole(reader, raw))


def live_row(reader: TableReader, keyspace: int, key: bytes) -> bytes | None:
    """CURRENT's row of a key that there is now, see `whole`; None if there is none."""
    raw = reader.get(CURRENT, KEYSPACE[keyspace] + key)
    return None if raw is None or raw[0] == DELETE else raw


def live_rows(
    reader: TableReader, keyspace: int, start: bytes, end: bytes | None
) -> Iterator[tuple[bytes, bytes]]:
    """(name, row) in CURRENT of every key of an interval that there is now; see `whole`."""
    if end is None:
        raw = live_row(reader, keyspace, start)
        if raw is not None:
            yield KEYSPACE[keyspace] + start, raw
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
        # There is no order in a number.
        self.reverse = not count_only and (
            reverse or (sort_target == SortTarget.KEY and sort_order == SortOrder.DESCEND)
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


class Counted(NamedTuple):
    """What is known of the number of live user keys."""

    keys: int
    """All of them, as the reader sees the tables."""
    blocks: LiveCounts
    """Without what is not committed."""
    changes: Sequence[Change] = ()
    """Not committed, but seen by the reader."""


def read_range(
    reader: TableReader, query: RangeQuery, newest: int, compact_revision: int, counted: Counted
) -> RangeResult:
    """Answer a range. `newest`: the revision that CURRENT stands at.

    Raises FutureRevision, Compacted, or InvalidRequest.
    """
    at = query.revision
    if at:
        check_revision(at, newest, compact_revision)
    else:
        at = newest
    if query.sort_target != SortTarget.KEY:
        return _read_sorted(reader, query, at, newest)
    return _read_in_order(reader, query, at, newest, counted)


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
    """Those of `rows` whose key exists at revision `at`, with what `record_at` finds of it."""
    if at == newest:
        return [row for row in rows if row[1][0] != DELETE]
    return [(name, old) for name, raw in rows if (old := record_at(reader, raw, at)) is not None]


def _read_in_order(
    reader: TableReader, query: RangeQuery, at: int, newest: int, counted: Counted
) -> RangeResult:
    """Rows are read and judged a run at a time: what a single one costs decides here."""
    whole = query.end == b"" and not query.start and query.keyspace == USER_KEYS and at == newest
    if query.count_only:
        return _read_count(reader, query, at, newest, counted, whole)
    limit = query.limit
    filtered = query.filtered
    rows = _stored_rows(reader, query)
    raws: list[bytes] = []
    total = examined = 0
    stopped: bytes | None = None
    while True:
        size = RUN_ROWS
        if limit and not filtered:
            size = min(size, limit - len(raws) + 1)
        if query.examine_max:
            size = min(size, query.examine_max - examined)
            if not size:
                stopped = next(rows, (None,))[0]
                break
        run = list(islice(rows, size))
        if not run:
            break
        examined += len(run)
        live = _live(reader, run, at, newest)
        total += len(live)
        wanted = [row for row in live if query.passes(row[1])] if filtered else live
        room = limit - len(raws)
        if limit and len(wanted) > room:
            stopped = wanted[room][0]
            raws += [raw for _, raw in wanted[:room]]
            if query.want_count:
                total = (
                    counted.keys
                    if whole
                    else total
                    + _count_behind(reader, query, run[-1][0], at, newest, counted, examined)
                )
            break
        raws += [raw for _, raw in wanted]
    resume = None
    if stopped is not None:
        resume = stopped[1:] + b"\0" if query.reverse else stopped[1:]
    count = total if query.want_count else None
    return RangeResult(at, _wanted(reader, raws, query), count, stopped is not None, resume)


def _read_count(
    reader: TableReader, query: RangeQuery, at: int, newest: int, counted: Counted, whole: bool
) -> RangeResult:
    if whole:
        return RangeResult(at, [], counted.keys, False)
    low, high = bounds(query.keyspace, query.start, query.end or b"")
    if query.end is None:
        high = low + b"\0"
    total, rest = _count(reader, low, high, at, newest, counted, query.examine_max or ALL_ROWS)
    return RangeResult(at, [], total, rest is not None, None if rest is None else rest[1:])


def _count_behind(
    reader: TableReader,
    query: RangeQuery,
    row: bytes,
    at: int,
    newest: int,
    counted: Counted,
    examined: int,
) -> int:
    """Live keys that come after `row` in the order asked for, of the rows that may be visited."""
    rows_max = query.examine_max - examined if query.examine_max else ALL_ROWS
    low, high = bounds(query.keyspace, query.start, query.end or b"")
    if query.reverse:
        high = row
    else:
        low = row + b"\0"
    return _count(reader, low, high, at, newest, counted, rows_max)[0]


def _count(
    reader: TableReader,
    low: bytes,
    high: bytes,
    at: int,
    newest: int,
    counted: Counted,
    rows_max: int,
) -> tuple[int, bytes | None]:
    """Live keys of [low, high) at a revision, and where the rest begins once `rows_max` rows have
    been visited; None: there is no rest."""
    _, blocks, changes = counted
    total = 0
    # Other keyspaces have no blocks; nor is it known of a block at which revision of several that
    # are not committed it changed.
    plain = low[0] != USER_KEYS or (bool(changes) and at != newest)
    while low < high:
        if not plain:
            found, end = blocks.leap(low, high, at)
            if end > low:
                total += found
                total += sum(difference for row, difference in changes if low <= row < end)
                low = end
                continue
        if not rows_max:
            return total, low
        end = high if plain else min(high, blocks.block_end(low))
        rows = reader.scan(CURRENT, low, end)
        pieces: list[tuple[bytes, int]] = []
        visited = 0
        while run := list(islice(rows, min(blocks.block_rows, rows_max - visited))):
            visited += len(run)
            live = sum([raw[0] != DELETE for _, raw in run])
            total += live if at == newest else len(_live(reader, run, at, newest))
            pieces.append((run[0][0], live))
        if visited == rows_max:
            end = next(rows, (end,))[0]
        if not plain and not changes:
            blocks.learn(low, end, pieces, visited)
        low = end
        rows_max -= visited
    return total, None


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
    if query.sort_target == SortTarget.VALUE:
        raws = [whole(reader, raw) for raw in raws]
    raws.sort(
        key=_SORT_KEYS[query.sort_target],
        # Ties stay in key order either way.
        reverse=query.sort_order == SortOrder.DESCEND,
    )
    more = bool(query.limit) and len(raws) > query.limit
    if more:
        del raws[query.limit :]
    return RangeResult(at, _wanted(reader, raws, query), count, more)


def _wanted(reader: TableReader, raws: list[bytes], query: RangeQuery) -> list[bytes]:
    raws = [whole(reader, raw) for raw in raws]
    return [without_value(raw) for raw in raws] if query.keys_only else raws


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

    Visits at most `rows_max` rows of history from `cursor` on; the cursor is None at the end. A
    pass begins with the revision at which the last one ended: each row says what it replaced, so
    none older has to be looked at again, however many there are.
    """
    garbage: list[tuple[int, bytes]] = []
    target = U64.pack(revision)
    rows = reader.scan(HISTORY, cursor, U64.pack(revision + 1))
    for visited, (position, raw) in enumerate(rows):
        if visited == rows_max:
            return garbage, position
        key_id = raw[KEY_ID_AT:KEY_ID_END]
        replaced = raw[KEY_ID_END:PREVIOUS_END]
        if replaced != NO_POSITION:
            garbage.append((HISTORY, replaced))
            garbage.append((VERSIONS, key_id + replaced[:8]))
        # A deletion at the target itself is an event that is kept; the next pass begins with it.
        if raw[0] == DELETE and position[:8] < target:
            garbage.append((HISTORY, position))
            version = key_id + position[:8]
            if reader.get(VERSIONS, version) is None:
                record = Record(raw)
                garbage.append((CURRENT, KEYSPACE[record.keyspace] + record.key))
            else:
                garbage.append((VERSIONS, version))
    return garbage, None
