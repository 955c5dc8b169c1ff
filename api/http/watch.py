"""Watches of keys: `GET /api/watch`, as server-sent events or NDJSON.

A stream is a sink of the watch hub that writes straight to its connection: no task, no queue of its
own. When the client does not keep up the sink says so, the hub lets it fall behind, and history
feeds it once the output has drained; its memory is the connection's output buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from raftkv.api.http.codec import dump_json, lease_name, record_json, text_or_base64
from raftkv.api.http.exchange import EVENT_STREAM, NDJSON, Exchange
from raftkv.api.http.handling import (
    END,
    KEY_ENCODING,
    PREFIX,
    START,
    interval,
    reading,
    settled,
    wants_ndjson,
)
from raftkv.api.http.router import Answer, Param, Route
from raftkv.api.outcomes import http_problem
from raftkv.errors import Compacted, InvalidRequest, RaftkvError
from raftkv.server.watch import Watch, WatchSpec

if TYPE_CHECKING:
    from raftkv.machine.access import Accesses
    from raftkv.machine.events import Event

USER_KEYS: Final = 0


class EventStream:
    """Frames JSON objects as server-sent events or as lines, and ends with the exchange."""

    __slots__ = ("_lines", "x")

    def __init__(self, x: Exchange) -> None:
        self.x = x
        self._lines = wants_ndjson(x)

    def begin(self) -> None:
        """Send the head."""
        self.x.begin_stream(NDJSON if self._lines else EVENT_STREAM)

    def frame(self, kind: bytes, data: bytes, revision: int = 0) -> bytes:
        """One message. `revision`: set on the last one of a revision, from where one may resume."""
        if self._lines:
            return data + b"\n"
        if revision:
            return b"id: %d\nevent: %b\ndata: %b\n\n" % (revision, kind, data)
        return b"event: %b\ndata: %b\n\n" % (kind, data)

    def mark(self, kind: str, revision: int) -> bytes:
        """A message that only says how far the stream has come."""
        data = b'{"type":"%b","revision":%d}' % (kind.encode(), revision)
        return self.frame(kind.encode(), data, revision)

    def fail(self, error: RaftkvError) -> None:
        """Say what went wrong: as the last message, or as the answer when none was sent yet."""
        if not self.x.streaming:
            self.x.fail(error)
            return
        self.x.push(self.frame(b"error", dump_json({**http_problem(error), "type": "error"})))
        self.x.end_stream()


class KeyWatch:
    """The sink of one client's watch."""

    __slots__ = ("_keys_only", "_prev", "_stream", "_watch")

    def __init__(self, x: Exchange, spec: WatchSpec) -> None:
        self._stream = EventStream(x)
        self._keys_only: bool = x.query["keys_only"]
        self._prev = spec.prev
        self._watch: Watch | None = None
        watch = self._watch = x.caller.watch(spec, self)
        if x.ended:
            return  # refused at once, through `closed`
        x.on_lost = watch.cancel
        x.on_writable = watch.resume
        x.on_stopping = self.closed
        self._stream.begin()
        x.push(self._stream.mark("ready", watch.delivered_revision))

    def events(self, revision: int, events: list[Event]) -> bool:
        frame = self._stream.frame
        last = len(events) - 1
        pieces = []
        for at, event in enumerate(events):
            ends = at == last or events[at + 1].revision != event.revision
            kind = b"delete" if event.deleted else b"put"
            pieces.append(frame(kind, self._show(event), event.revision if ends else 0))
        return self._stream.x.push(b"".join(pieces))

    def _show(self, event: Event) -> bytes:
        if self._keys_only:
            data = dump_json(event_json(event, values=False))
        else:
            data = shared_event(event)
        if not self._prev:
            return data
        previous = self._watch.previous(event) if self._watch is not None else None
        shown = b"null" if previous is None else dump_json(record_json(previous))
        return b'%b,"previous":%b}' % (data[:-1], shown)

    def progress(self, revision: int) -> None:
        self._stream.x.push(self._stream.mark("progress", revision))

    def closed(self, error: RaftkvError) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._stream.fail(error)


def shared_event(event: Event) -> bytes:
    """The event as JSON, made once and kept with it for every watcher."""
    data: bytes | None = event.json
    if data is None:
        data = event.json = dump_json(event_json(event))
    return data


def event_json(event: Event, values: bool = True) -> dict[str, Any]:
    """The API's `Event` object."""
    key, key_encoding = text_or_base64(event.key)
    shown: dict[str, Any] = {"type": "put", "revision": event.revision, "key": key}
    if key_encoding != "utf-8":
        shown["key_encoding"] = key_encoding
    if event.deleted:
        shown["type"] = "delete"
        return shown
    record = event.record
    if values:
        shown["value"], shown["encoding"] = text_or_base64(record.value)
    shown["create_revision"] = record.create_revision
    shown["version"] = record.version
    shown["lease"] = lease_name(record.lease)
    return shown


def start_revision(x: Exchange) -> int:
    """Where to begin: after `Last-Event-ID`, else at `from`, else with what comes next (0).

    Raises `Compacted` when that is no longer kept.
    """
    last = x.header(b"last-event-id")
    revision: int = x.query["from"] or 0
    if last is not None:
        if not last.isdigit() or len(last) > 18:
            raise InvalidRequest("Last-Event-ID must be the revision that an event had as its id")
        revision = int(last) + 1
    oldest = x.machine.compact_revision
    if 0 < revision < oldest:
        raise Compacted(
            f"Revision {revision} is compacted; the oldest kept is {oldest}: "
            "read the present state, then watch from its revision + 1",
            oldest_revision=oldest,
        )
    return revision


def watched(x: Exchange) -> tuple[bytes, bytes | None]:
    """The key or the interval that a watch is for."""
    query = x.query
    if query["key"] is not None:
        if any(query[name] is not None for name in ("prefix", "start", "end")):
            raise InvalidRequest("Give either key, or prefix, or start and end")
        start: bytes = query["key"]
        end: bytes | None = None
        if not start:
            raise InvalidRequest("The key is empty")
    else:
        start, end = interval(query) or (b"", b"")
    return start, end


def reads_watched(x: Exchange) -> Accesses:
    """The guard of a watch: its whole interval, up to its open end."""
    return reading(*watched(x))


def get_watch(x: Exchange) -> None:
    settled(x, _begin_watch)


def _begin_watch(x: Exchange) -> None:
    query = x.query
    start, end = watched(x)
    spec = WatchSpec(
        USER_KEYS,
        start,
        end,
        start_revision(x),
        puts=query["filter"] != "delete",
        deletes=query["filter"] != "put",
        prev=query["prev"],
    )
    KeyWatch(x, spec)


FROM: Final = Param(
    "from", "integer", "First revision wanted, inclusive; absent: what comes next.", minimum=1
)

ROUTES: Final = [
    Route(
        "GET", "/api/watch", get_watch, "watchKeys", "Watch keys", "Watches",
        guard=reads_watched,
        doc="Server-sent events, or NDJSON with `Accept: application/x-ndjson`. First comes "
        "`ready`, then every change in order, each once. An event's id is its revision, given "
        "on the last event of it; `Last-Event-ID` resumes after it. `progress` says how far the "
        "stream has come when there is nothing to tell.",
        query=(
            Param("key", "key", "Watch this key alone."),
            PREFIX, START, END, FROM,
            Param("keys_only", "flag", "Leave the values out.", default=False),
            Param("prev", "flag", "Tell what was there before, too.", default=False),
            Param(
                "filter", "choice", "Only these events.", choices=("put", "delete")
            ),
            KEY_ENCODING,
        ),
        headers=("Last-Event-ID",),
        answers=(
            Answer(200, "The stream.", "Event", "text/event-stream"),
            Answer(200, "The stream, as lines.", "Event", "application/x-ndjson"),
        ),
        problems=(410, 429),
    ),
]  # fmt: skip
