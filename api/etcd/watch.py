"""Watch: any number of watchers on one stream, fed straight from the member's hub.

A watcher is a sink of the hub that writes to its call. When the client does not keep up the sink
says so, the hub lets the watch fall behind, and history feeds it once the output has drained; what
a watcher holds is the call's output and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import rpc_message
from raftkv.api.etcd.ranges import FROM_KEY
from raftkv.api.etcd.rpc import Rpcs, Service, Streaming
from raftkv.api.etcd.wire import Headers, field, number_field
from raftkv.errors import (
    Compacted,
    InvalidAuthToken,
    PermissionDenied,
    RaftkvError,
    Refused,
)
from raftkv.limits import GRPC_MESSAGE_BYTES_MAX, REQUEST_BYTES_MAX
from raftkv.machine.records import USER_KEYS
from raftkv.machine.wire import varint
from raftkv.server.watch import Place, Watch, WatchSpec

if TYPE_CHECKING:
    from raftkv.api.callers import Caller
    from raftkv.machine.events import Event

PATH: Final = "/etcdserverpb.Watch/Watch"
NO_WATCH: Final = -1
"""The watch id of what is about no watcher in particular."""

RANGE_EMPTY: Final = "mvcc: watcher range is empty"
ID_TAKEN: Final = "mvcc: duplicate watch ID provided on the WatchStream"

CREATED: Final = b"\x18\x01"
CANCELED: Final = b"\x20\x01"
FRAGMENT: Final = b"\x38\x01"
_EVENT: Final = b"\x5a"
_NO_PUT, _NO_DELETE = 0, 1
_RESPONSE_OVERHEAD_BYTES: Final = 128


class WatchService(Service):
    """Service etcdserverpb.Watch."""

    def __init__(self, rpcs: Rpcs) -> None:
        super().__init__(rpcs)
        self.encoded = Encoded(self.headers)
        rpcs.add_stream(PATH, rpc_message("WatchRequest"), self.watch)

    def watch(self, call: Streaming) -> Callable[[Any], None]:
        """Serve one stream."""
        return WatchStream(self, call).take


class WatchStream:
    """One Watch call and its watchers."""

    __slots__ = ("_next_id", "_watchers", "call", "encoded", "headers", "rpcs", "store")

    def __init__(self, service: WatchService, call: Streaming) -> None:
        self.call = call
        self.rpcs = service.rpcs
        self.store = service.store
        self.headers = service.headers
        self.encoded = service.encoded
        self._watchers: dict[int, Watcher] = {}
        self._next_id = 0
        call.on_drain = self._drained
        call.on_cancel = self._cancelled
        # The client's half-close says only that no more requests come.

    def take(self, request: Any) -> None:
        """One WatchRequest; an empty one means nothing."""
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self._create(request.create_request)
        elif kind == "cancel_request":
            self._cancel(request.cancel_request.watch_id)
        elif kind == "progress_request":
            self._progress()

    def _create(self, request: Any) -> None:
        start, end = request.key or FROM_KEY, request.range_end or None
        if end == FROM_KEY:
            start, end = (b"" if start == FROM_KEY else start), b""
        try:
            caller = self.rpcs.admit(self.call, PATH, request)
            self._create_as(caller, start, end, request)
        except Refused as refusal:
            # The stream goes on.
            code, text = answers.row_of(refusal)
            self._not_created(f"rpc error: code = {code.label} desc = {text}")

    def _create_as(self, caller: Caller, start: bytes, end: bytes | None, request: Any) -> None:
        if request.start_revision < 0:
            self._not_created(answers.COMPACTED.text)
        elif end and end <= start:
            self._not_created(RANGE_EMPTY)
        elif request.watch_id in self._watchers and request.watch_id:
            self._not_created(ID_TAKEN)
        else:
            spec = WatchSpec(
                USER_KEYS,
                start,
                end,
                request.start_revision,
                puts=_NO_PUT not in request.filters,
                deletes=_NO_DELETE not in request.filters,
                prev=request.prev_kv,
                progress=request.progress_notify,
            )
            self._start(caller, spec, request.watch_id or self._free_id(), request.fragment)

    def _free_id(self) -> int:
        while self._next_id in self._watchers:
            self._next_id += 1
        free = self._next_id
        self._next_id += 1
        return free

    def _start(self, caller: Caller, spec: WatchSpec, watch_id: int, fragment: bool) -> None:
        watcher = Watcher(self, watch_id, fragment, spec.prev)
        watcher.watch = caller.watch(spec, watcher)
        self._watchers[watch_id] = watcher
        self.call.send(self.headers.now() + number_field(2, watch_id) + CREATED)
        if watcher.error is not None:
            watcher.closed(watcher.error)

    def _not_created(self, reason: str) -> None:
        head = self.headers.now() + number_field(2, NO_WATCH)
        self.call.send(head + CREATED + CANCELED + field(6, reason.encode()))

    def _cancel(self, watch_id: int) -> None:
        watcher = self._watchers.pop(watch_id, None)
        if watcher is not None and watcher.watch is not None:
            watcher.watch.cancel()
            self.call.send(self.headers.now() + number_field(2, watch_id) + CANCELED)

    def _progress(self) -> None:
        """Tell how far all watchers have come, unless one of them is behind."""
        revision = self.store.stamp()[0]
        for watcher in self._watchers.values():
            watch = watcher.watch
            if watch is None or watch.place not in (Place.LIVE, Place.WAITING):
                return
            revision = min(revision, watch.delivered_revision)
        self.call.send(self.headers.at(revision) + number_field(2, NO_WATCH))

    def ended(self, watch_id: int, error: RaftkvError) -> None:
        """The hub gave a watcher up: its history is gone, or the member stops."""
        self._watchers.pop(watch_id, None)
        if isinstance(error, Compacted):
            head = self.headers.at(0) + number_field(2, watch_id) + CANCELED
            self.call.send(head + number_field(5, error.facts["oldest_revision"]))
        elif isinstance(error, InvalidAuthToken | PermissionDenied):
            # The rules changed. Other watchers of the stream may still be allowed.
            head = self.headers.now() + number_field(2, watch_id) + CANCELED
            self.call.send(head + field(6, answers.row_of(error).text.encode()))
        else:
            self.rpcs.break_off(self.call, error)

    def _drained(self) -> None:
        for watcher in list(self._watchers.values()):
            if watcher.watch is not None:
                watcher.watch.resume()

    def _cancelled(self) -> None:
        watchers, self._watchers = self._watchers, {}
        for watcher in watchers.values():
            if watcher.watch is not None:
                watcher.watch.cancel()


class Encoded:
    """The list of events that was delivered last, encoded once for all watchers that are given it.

    If `small`, an answer is `head`, the watcher's own tag and `body`: nobody wants it in pieces.
    """

    __slots__ = ("_headers", "body", "events", "head", "revision", "small")

    def __init__(self, headers: Headers) -> None:
        self._headers = headers
        self.events: list[Event] | None = None
        """Told by identity: the hub gives all watchers that see the same the very same list."""
        self.revision = 0
        self.head = self.body = b""
        self.small = False

    def take(self, revision: int, events: list[Event]) -> None:
        """Encode `events`; everything up to `revision` is delivered with them."""
        self.events = events
        self.revision = revision
        size = sum([len(event.wire) for event in events])
        self.small = size < min(REQUEST_BYTES_MAX, GRPC_MESSAGE_BYTES_MAX) // 2
        self.head = self.body = b""
        if self.small:
            self.head = self._headers.at(revision)
            self.body = b"".join([event_field(event.wire) for event in events])


def event_field(wire: bytes) -> bytes:
    """An encoded event as part of a WatchResponse."""
    return b"".join((_EVENT, varint(len(wire)), wire))


class Watcher:
    """One watcher: a sink of the hub."""

    __slots__ = ("_fragment", "_id", "_prev", "_stream", "_tag", "error", "watch")

    def __init__(self, stream: WatchStream, watch_id: int, fragment: bool, prev: bool) -> None:
        self._stream = stream
        self._prev = prev
        self._id = watch_id
        self._tag = number_field(2, watch_id)
        self._fragment = fragment
        self.watch: Watch | None = None
        """None until the hub has taken it on."""
        self.error: RaftkvError | None = None
        """Why it ended before it was announced."""

    def events(self, revision: int, events: list[Event]) -> bool:
        """See `WatchSink`."""
        call, headers, shared = self._stream.call, self._stream.headers, self._stream.encoded
        if not self._prev:
            if shared.events is not events or shared.revision != revision:
                shared.take(revision, events)
            if shared.small:
                return call.send(b"".join((shared.head, self._tag, shared.body)))
        encoded = [self._encode(event) for event in events]
        room = True
        size = begin = 0
        for at, event in enumerate(events):
            size += len(encoded[at])
            last = at + 1 == len(events)
            if last or (size >= REQUEST_BYTES_MAX and events[at + 1].revision != event.revision):
                head = headers.at(revision if last else event.revision) + self._tag
                for part in self._parts(encoded[begin : at + 1], size):
                    room = call.send(head + part)
                size, begin = 0, at + 1
        return room

    def _encode(self, event: Event) -> bytes:
        wire = event.wire
        if self._prev and self.watch is not None:
            previous = self.watch.previous(event)
            if previous is not None:
                wire += field(3, previous.wire)
        return event_field(wire)

    def _parts(self, encoded: list[bytes], size: int) -> Iterator[bytes]:
        """One response's worth of events, in pieces below the message limit if so wished."""
        limit = GRPC_MESSAGE_BYTES_MAX - _RESPONSE_OVERHEAD_BYTES
        if not self._fragment or size < limit:
            yield b"".join(encoded)
            return
        begin = used = 0
        for at, event in enumerate(encoded):
            if at > begin and used + len(event) >= limit:
                yield FRAGMENT + b"".join(encoded[begin:at])
                begin, used = at, 0
            used += len(event)
        yield b"".join(encoded[begin:])

    def progress(self, revision: int) -> None:
        """See `WatchSink`."""
        self._stream.call.send(self._stream.headers.at(revision) + self._tag)

    def closed(self, error: RaftkvError) -> None:
        """See `WatchSink`."""
        if self.watch is None:
            self.error = error  # the client does not know of the watcher yet
        else:
            self._stream.ended(self._id, error)
