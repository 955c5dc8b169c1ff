"""Keys and values: `/api/kv`."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.gate import by_command
from raftkv.api.http.codec import (
    decode_base64,
    decode_cursor,
    dump_json,
    encode_cursor,
    key_json,
    lease_name,
    parse_lease,
    record_json,
    text_or_base64,
)
from raftkv.api.http.exchange import JSON, NDJSON, OCTETS, Exchange
from raftkv.api.http.handling import (
    CONSISTENCY,
    END,
    KEY_ENCODING,
    PREFIX,
    START,
    answering,
    interval,
    once_key,
    read_then,
    reading,
    reads_interval,
    wants_ndjson,
)
from raftkv.api.http.refusals import PreconditionFailed
from raftkv.api.http.router import Answer, Param, Route
from raftkv.api.outcomes import http_problem
from raftkv.errors import Compacted, InvalidRequest, KeyNotFound, RaftkvError
from raftkv.limits import (
    HTTP_STREAM_SLICE_KEYS,
    HTTP_WAIT_SECONDS_DEFAULT,
    HTTP_WAIT_SECONDS_MAX,
    KEY_BYTES_MAX,
    MIB,
    PAGE_BYTES_MAX,
    PAGE_KEYS_DEFAULT,
    PAGE_KEYS_MAX,
)
from raftkv.machine.commands import (
    Compare,
    CompareTarget,
    Relation,
    compare,
    delete,
    delete_op,
    put,
    put_op,
    range_op,
    txn,
)
from raftkv.machine.results import DeleteResult, PutResult, RangeResult, TxnResult
from raftkv.server.watch import Watch, WatchSpec

if TYPE_CHECKING:
    from raftkv.machine.access import Accesses
    from raftkv.machine.events import Event
    from raftkv.machine.machine import Machine
    from raftkv.machine.records import Record

ENTITY_TAG: Final = re.compile(rb'"([0-9]{1,19})"')
FIRST_SLICE_KEYS: Final = 16
SLICE_BYTES: Final = MIB
EXAMINE_ROWS: Final = 4_000
"""Rows looked at between two turns of the loop: deleted keys cost time, too."""


def key_of(x: Exchange) -> bytes:
    """The key in the path."""
    key = x.places[0]
    if x.query["key_encoding"] == "base64":
        key = decode_base64(key, "The key")
    if not key:
        raise InvalidRequest("The key is empty: name one after /api/kv/")
    if len(key) > KEY_BYTES_MAX:
        raise InvalidRequest(f"A key has at most {KEY_BYTES_MAX} bytes", limit_bytes=KEY_BYTES_MAX)
    return key


def reads_key(x: Exchange) -> Accesses:
    """The guard of a call that reads the key in its path."""
    return reading(key_of(x))


def etag(revision: int) -> bytes:
    """The header line of a record's entity tag: its mod_revision."""
    return b'ETag: "%d"\r\n' % revision


def entity_tag(value: bytes, name: str) -> int | None:
    """The revision in a condition; None for the star."""
    if value == b"*":
        return None
    match = ENTITY_TAG.fullmatch(value)
    if match is None:
        raise InvalidRequest(f'{name} must be one revision in quotes, for example "7", or *')
    return int(match[1])


def conditions(x: Exchange, key: bytes) -> list[Compare]:
    """What `If-Match` and `If-None-Match` demand of the key (RFC 9110, section 13.1)."""
    compares = []
    match = x.header(b"if-match")
    if match is not None:
        revision = entity_tag(match, "If-Match")
        if revision is None:
            compares.append(compare(CompareTarget.CREATE, Relation.NOT_EQUAL, key, 0))
        else:
            # Revision 0 would match a key that does not exist.
            compares.append(compare(CompareTarget.MOD, Relation.EQUAL, key, revision or -1))
    none_match = x.header(b"if-none-match")
    if none_match is not None:
        revision = entity_tag(none_match, "If-None-Match")
        if revision is None:
            compares.append(compare(CompareTarget.CREATE, Relation.EQUAL, key, 0))
        else:
            compares.append(compare(CompareTarget.MOD, Relation.NOT_EQUAL, key, revision or -1))
    return compares


# ---- one key ---------------------------------------------------------------------------------


def put_key(x: Exchange) -> None:
    key = key_of(x)
    query = x.query
    lease = 0 if query["lease"] is None else parse_lease(query["lease"])
    value = x.request.body
    headers = x.request.headers
    if b"if-match" in headers or b"if-none-match" in headers:
        operation = put_op(key, value, lease=lease, prev=query["prev"])
        command = txn(conditions(x, key), [operation], [range_op(key)], once=once_key(x))
        x.caller.propose(command, partial(_conditional_put_done, x))
    else:
        command = put(key, value, lease=lease, prev=query["prev"], once=once_key(x))
        x.caller.propose(command, partial(_put_done, x))


@answering
def _put_done(x: Exchange, result: PutResult) -> None:
    record = result.record
    key, key_encoding = text_or_base64(record.key)
    answer: dict[str, Any] = {
        "revision": result.revision,
        "key": key,
        "create_revision": record.create_revision,
        "mod_revision": record.mod_revision,
        "version": record.version,
        "lease": lease_name(record.lease),
    }
    if key_encoding != "utf-8":
        answer["key_encoding"] = key_encoding
    if x.query["prev"]:
        answer["previous"] = None if result.previous is None else record_json(result.previous)
    x.json(answer, headers=etag(record.mod_revision))


@answering
def _conditional_put_done(x: Exchange, result: TxnResult) -> None:
    response = _branch(result)
    if isinstance(response, PutResult):
        _put_done(x, response)


def _branch(result: TxnResult) -> Any:
    """The only response of a conditional write; raises when the condition did not hold."""
    response = result.responses[0]
    if result.succeeded:
        return response
    records = response.records if isinstance(response, RangeResult) else []
    raise PreconditionFailed(
        "The key is not as the condition says; `current` shows what it is",
        revision=result.revision,
        current=record_json(records[0]) if records else None,
    )


def get_key(x: Exchange) -> None:
    key = key_of(x)
    if x.query["wait"] is not None:
        if x.query["revision"]:
            raise InvalidRequest("wait watches the newest record: leave revision out")
        read_then(x, partial(_wait, key))
    elif x.query["consistency"] == "serializable":
        _get_ready(x, key, None)
    else:
        x.read_index(partial(_get_ready, x, key))


@answering
def _get_ready(x: Exchange, key: bytes, error: RaftkvError | None) -> None:
    machine = x.machine
    revision = x.query["revision"]
    if revision:
        records = machine.range(key, None, revision=revision).records
        show_record(x, key, records[0] if records else None, revision)
    else:
        show_record(x, key, machine.get(key), machine.revision)


def show_record(x: Exchange, key: bytes, record: Record | None, revision: int) -> None:
    """Answer with one record, or say that it does not exist."""
    if record is None:
        raise KeyNotFound(f"There is no key {_shown(key)}", key=key, revision=revision)
    tag = etag(record.mod_revision)
    none_match = x.request.headers.get(b"if-none-match")
    if none_match is not None and entity_tag(none_match, "If-None-Match") in (
        None,
        record.mod_revision,
    ):
        x.empty(304, tag)
    elif x.query["raw"]:
        x.send(record.value, OCTETS, headers=tag + b"X-Content-Type-Options: nosniff\r\n")
    else:
        answer = record_json(record)
        answer["revision"] = revision
        x.json(answer, headers=tag)


def _shown(key: bytes) -> str:
    text = key.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 128 else text[:128] + "…")


def _wait(key: bytes, x: Exchange, error: RaftkvError | None) -> None:
    _wait_ready(x, key, error)


@answering
def _wait_ready(x: Exchange, key: bytes, error: RaftkvError | None) -> None:
    machine = x.machine
    after: int = x.query["wait"]
    record = machine.get(key)
    if record is not None and record.mod_revision > after:
        show_record(x, key, record, machine.revision)
        return
    if after + 1 < machine.compact_revision:
        if record is None:
            # Deleted before or after that revision: nobody knows any more, and both are news.
            show_record(x, key, None, machine.revision)
            return
        after = machine.revision  # unchanged since, or it would have a greater revision
    _LongPoll(x, key, after + 1)


class _LongPoll:
    """Waits for one event of a key, without a task."""

    __slots__ = ("_key", "_timer", "_watch", "_x")

    def __init__(self, x: Exchange, key: bytes, from_revision: int) -> None:
        self._x = x
        self._key = key
        spec = WatchSpec(0, key, None, from_revision, progress=False)
        self._watch: Watch = x.caller.watch(spec, self)
        self._timer = x.door.loop.call_later(x.query["timeout"], self._timed_out)
        x.on_lost = self._forget
        x.on_stopping = self.closed

    def events(self, revision: int, events: list[Event]) -> bool:
        self._forget()
        machine = self._x.machine
        answering(show_record)(self._x, self._key, machine.get(self._key), machine.revision)
        return True

    def progress(self, revision: int) -> None:
        """Not asked for."""

    def closed(self, error: RaftkvError) -> None:
        self._forget()
        self._x.fail(error)

    def _timed_out(self) -> None:
        self._forget()
        self._x.empty(304)

    def _forget(self) -> None:
        self._timer.cancel()
        self._watch.cancel()
        self._x.on_lost = self._x.on_stopping = None


def delete_key(x: Exchange) -> None:
    key = key_of(x)
    prev = x.query["prev"]
    headers = x.request.headers
    if b"if-match" in headers or b"if-none-match" in headers:
        command = txn(
            conditions(x, key), [delete_op(key, prev=prev)], [range_op(key)], once=once_key(x)
        )
        x.caller.propose(command, partial(_conditional_delete_done, x))
    else:
        command = delete(key, prev=prev, once=once_key(x))
        x.caller.propose(command, partial(_delete_done, x))


@answering
def _delete_done(x: Exchange, result: DeleteResult) -> None:
    answer: dict[str, Any] = {"revision": result.revision, "deleted": result.deleted}
    if x.query["prev"]:
        answer["previous"] = [record_json(record) for record in result.previous]
    x.json(answer)


@answering
def _conditional_delete_done(x: Exchange, result: TxnResult) -> None:
    response = _branch(result)
    if isinstance(response, DeleteResult):
        _delete_done(x, response)


# ---- ranges ----------------------------------------------------------------------------------


def delete_range(x: Exchange) -> None:
    bounds = interval(x.query)
    if bounds is None:
        if not x.query["all"]:
            raise InvalidRequest("Say what to delete: prefix, or start and end, or all=1")
        bounds = (b"", b"")
    elif x.query["all"]:
        raise InvalidRequest("all=1 goes without prefix, start and end")
    elif bounds == (b"", b"") and not x.query["all"]:
        raise InvalidRequest("This would delete every key: say so with all=1")
    command = delete(bounds[0], bounds[1], prev=x.query["prev"], once=once_key(x))
    x.caller.propose(command, partial(_delete_done, x))


def get_range(x: Exchange) -> None:
    query = x.query
    start, end = interval(query) or (b"", b"")
    if query["keys_only"] and query["count_only"]:
        raise InvalidRequest("Give keys_only or count_only, not both")
    pages = RangeReader(x.machine, start, end, query)
    if query["cursor"] is not None:
        pages.go_to(query["cursor"], query["revision"])
    read_then(x, partial(_range_ready, pages))


def _range_ready(pages: RangeReader, x: Exchange, error: RaftkvError | None) -> None:
    _range_begin(x, pages, error)


@answering
def _range_begin(x: Exchange, pages: RangeReader, error: RaftkvError | None) -> None:
    if x.query["count_only"]:
        x.run(_count(x, pages))
    elif wants_ndjson(x):
        x.run(_stream(x, pages))
    else:
        x.run(_page(x, pages))


class RangeReader:
    """Reads an interval at one fixed revision in slices short enough to leave the loop free.

    The revision is fixed by the first slice, unless given. No view of the tables is held between
    slices; should compaction overtake the revision, the next slice raises `Compacted`.
    """

    def __init__(self, machine: Machine, start: bytes, end: bytes, query: dict[str, Any]) -> None:
        self._machine = machine
        self._start = start
        self._end = end
        # A number has no order.
        self._reverse: bool = query["reverse"] and not query["count_only"]
        self._keys_only: bool = query["keys_only"]
        self._slice = FIRST_SLICE_KEYS
        self.revision: int = query["revision"] or 0
        self.more = True
        self._identity = b"%d\0%d\0%b\0%b" % (
            self._reverse, self._keys_only, start.hex().encode(), end.hex().encode(),
        )  # fmt: skip

    def go_to(self, cursor: str, revision: int | None) -> None:
        """Go on where an earlier page ended, at that page's revision."""
        fixed, position = decode_cursor(cursor, self._identity)
        if position < self._start or (self._end and position > self._end):
            raise InvalidRequest("cursor points outside of the range")
        if revision not in (None, fixed):
            raise InvalidRequest(f"cursor belongs to revision {fixed}: leave revision out")
        self.revision = fixed
        self._move(position)

    def cursor(self) -> str:
        """Where the next page begins."""
        return encode_cursor(
            self.revision, self._identity, self._end if self._reverse else self._start
        )

    def read(self, keys_max: int) -> tuple[list[bytes], int]:
        """The next records as JSON, and the bytes of their values. May be empty with more left."""
        result = self._machine.range(
            self._start,
            self._end,
            revision=self.revision,
            limit=min(keys_max, self._slice),
            keys_only=self._keys_only,
            reverse=self._reverse,
            examine_max=EXAMINE_ROWS,
        )
        self._took(result)
        encode = key_json if self._keys_only else record_json
        rows = [dump_json(encode(record)) for record in result.records]
        size = sum(map(len, rows))
        if rows:
            # Large values make small slices.
            self._slice = max(1, min(HTTP_STREAM_SLICE_KEYS, SLICE_BYTES * len(rows) // size))
        return rows, size

    def count(self) -> int:
        """Keys in the next slice."""
        examine = 0 if self._whole() else EXAMINE_ROWS
        result = self._machine.range(
            self._start, self._end, revision=self.revision, count_only=True, examine_max=examine
        )
        self._took(result)
        return result.count or 0

    def _whole(self) -> bool:
        # The machine knows the number of all keys without looking at them.
        newest = self._machine.revision
        return not self._start and not self._end and self.revision in (0, newest)

    def _took(self, result: RangeResult) -> None:
        self.revision = result.revision
        self.more = result.more
        if result.resume is not None:
            self._move(result.resume)

    def _move(self, position: bytes) -> None:
        if self._reverse:
            self._end = position
        else:
            self._start = position


async def _count(x: Exchange, pages: RangeReader) -> None:
    total = 0
    while pages.more:
        total += pages.count()
        await asyncio.sleep(0)
    x.json({"revision": pages.revision, "items": [], "count": total, "more": False, "cursor": None})


async def _page(x: Exchange, pages: RangeReader) -> None:
    limit = x.query["limit"] or PAGE_KEYS_DEFAULT
    rows: list[bytes] = []
    size = 0
    while pages.more and len(rows) < limit and size < PAGE_BYTES_MAX:
        if rows:
            await asyncio.sleep(0)
        more, bytes_more = pages.read(limit - len(rows))
        rows += more
        size += bytes_more
    cursor = dump_json(pages.cursor()) if pages.more else b"null"
    x.send(
        b'{"revision":%d,"items":[%b],"count":%d,"more":%b,"cursor":%b}'
        % (
            pages.revision,
            b",".join(rows),
            len(rows),
            b"true" if pages.more else b"false",
            cursor,
        ),
        JSON,
    )


async def _stream(x: Exchange, pages: RangeReader) -> None:
    limit = x.query["limit"]
    sent = 0
    # The first slice comes before the head: what is wrong with the request is still a status.
    rows, _ = pages.read(limit or PAGE_KEYS_MAX)
    x.begin_stream(NDJSON)
    try:
        while True:
            sent += len(rows)
            if rows and not x.push(b"\n".join(rows) + b"\n") and not await x.writable():
                return
            if not pages.more or (limit and sent >= limit):
                break
            await asyncio.sleep(0)
            rows, _ = pages.read(limit - sent if limit else PAGE_KEYS_MAX)
    except Compacted as error:
        x.push(dump_json({"error": http_problem(error)}) + b"\n")
        x.end_stream()
        return
    end = {"end": True, "revision": pages.revision, "count": sent}
    x.push(dump_json(end) + b"\n")
    x.end_stream()


# ---- declarations ----------------------------------------------------------------------------

PREV: Final = Param("prev", "flag", "Answer with what was there before, too.", default=False)
REVISION: Final = Param(
    "revision", "integer", "Read as of this revision; it must not be compacted.", minimum=1
)
KV: Final = "Keys and values"

ROUTES: Final = [
    Route(
        "PUT", "/api/kv/{key}", put_key, "putKey", "Write a key", KV,
        guard=by_command,
        doc="The body is the value, byte for byte. With `If-Match` or `If-None-Match` it is "
        "a compare-and-set; when the condition fails, 412 shows the current record.",
        query=(
            Param("lease", "text", "Lease (hexadecimal) that the key shall live on."),
            PREV,
            KEY_ENCODING,
        ),
        raw_body="The value, of any content type.",
        headers=("If-Match", "If-None-Match"),
        answers=(Answer(200, "Written.", "Put"),),
        problems=(404, 412, 507),
        greedy=True, writes=True,
    ),
    Route(
        "GET", "/api/kv/{key}", get_key, "getKey", "Read a key", KV,
        guard=reads_key,
        doc="With `wait`, the answer comes as soon as the key is written or deleted after that "
        "revision, or 304 when the time is over.",
        query=(
            Param("raw", "flag", "Answer with the value's bytes alone.", default=False),
            REVISION,
            CONSISTENCY,
            Param("wait", "integer", "Wait until the key changes after this revision."),
            Param(
                "timeout", "seconds", "How long to wait, in seconds.",
                default=HTTP_WAIT_SECONDS_DEFAULT, maximum=HTTP_WAIT_SECONDS_MAX,
            ),
            KEY_ENCODING,
        ),
        headers=("If-None-Match",),
        answers=(
            Answer(200, "The record.", "KeyedRecord"),
            Answer(200, "With `raw`: the value.", None, "application/octet-stream"),
            Answer(304, "Not changed.", None, ""),
        ),
        problems=(404, 410),
        greedy=True,
    ),
    Route(
        "DELETE", "/api/kv/{key}", delete_key, "deleteKey", "Delete a key", KV,
        guard=by_command,
        doc="Deleting a key that does not exist is no error: `deleted` is 0.",
        query=(PREV, KEY_ENCODING),
        headers=("If-Match", "If-None-Match"),
        answers=(Answer(200, "Done.", "Deleted"),),
        problems=(412,),
        greedy=True, writes=True,
    ),
    Route(
        "GET", "/api/kv", get_range, "listKeys", "Read many keys", KV,
        guard=reads_interval,
        doc="Pages are read at one fixed revision: pass `cursor` back until it is null. "
        "`Accept: application/x-ndjson` streams the whole range, one record a line; the last "
        "line is `{\"end\":true,…}`, or `{\"error\":…}` when it could not be completed.",
        query=(
            PREFIX, START, END,
            Param(
                "limit", "integer", f"Most keys to answer; a page has {PAGE_KEYS_DEFAULT} unless "
                "told, a stream has no limit.", minimum=1, maximum=PAGE_KEYS_MAX,
            ),
            Param("cursor", "text", "Where the page before ended, as it said."),
            Param("keys_only", "flag", "Leave the values out.", default=False),
            Param("count_only", "flag", "Answer with the number of keys alone.", default=False),
            REVISION,
            Param("reverse", "flag", "Descending order.", default=False),
            CONSISTENCY, KEY_ENCODING,
        ),
        answers=(
            Answer(200, "A page.", "Page"),
            Answer(200, "A stream, when asked for by `Accept`.", "PageLine",
                   "application/x-ndjson"),
        ),
        problems=(410,),
    ),
    Route(
        "DELETE", "/api/kv", delete_range, "deleteKeys", "Delete many keys", KV,
        guard=by_command,
        doc="All at one revision. To delete every key, say `all=1`.",
        query=(
            PREFIX, START, END,
            Param("all", "flag", "Really delete every key.", default=False),
            PREV, KEY_ENCODING,
        ),
        answers=(Answer(200, "Done.", "Deleted"),),
        writes=True,
    ),
]  # fmt: skip
