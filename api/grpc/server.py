"""The registry of gRPC services, and what all their connections share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from raftkv import limits
from raftkv.api.grpc import status
from raftkv.api.grpc.calls import (
    Call,
    GrpcHead,
    MethodCounts,
    Refusal,
    StreamCall,
    UnaryCall,
)
from raftkv.api.grpc.connection import Application, ServerConnection
from raftkv.api.grpc.header_blocks import Field, encode
from raftkv.api.grpc.messages import GZIP, IDENTITY, CallFault
from raftkv.api.grpc.requests import RequestHead
from raftkv.api.grpc.status import Status
from raftkv.checks import check

if TYPE_CHECKING:
    from raftkv.api.observe import Observer

UnaryHandler = Callable[[UnaryCall, bytes], None]
StreamHandler = Callable[[StreamCall], None]

_log = logging.getLogger(__name__)
_ENCODINGS: Final = {b"identity": IDENTITY, b"gzip": GZIP}


class GrpcServer:
    """Services by path, and the connections that use them. No I/O: see `shell`.

    Register everything before the first connection: decisions are remembered per header block.
    `http` may serve the requests that are not gRPC; without it they get 415. `on_error` hears of
    exceptions that a handler let escape, after its call has failed with INTERNAL.
    """

    def __init__(
        self,
        *,
        message_bytes_max: int = limits.GRPC_MESSAGE_BYTES_MAX,
        pings_min_seconds: float = limits.GRPC_PINGS_MIN_SECONDS,
        http: Application | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self.message_bytes_max = message_bytes_max
        self.pings_min_seconds = pings_min_seconds
        self.connections: set[ServerConnection] = set()
        self.timed: set[ServerConnection] = set()
        """Connections with deadlines running; `on_timed` is called when the first joins."""
        self.on_timed: Callable[[], None] | None = None
        self.draining = False
        self.observer: Observer | None = None
        """Who follows the calls of what is registered from now on, if anybody does."""
        self.bytes_received = 0
        self.bytes_sent = 0
        self._http = http
        self._on_error = on_error
        self._routes: dict[bytes, tuple[type[Call], Callable[..., None], MethodCounts]] = {}

    # ---- registration

    def unary(self, path: str, handler: UnaryHandler) -> None:
        """Serve ``/package.Service/Method``: `handler(call, message)`, answered by `call.reply`."""
        self._register(path, UnaryCall, handler, "unary")

    def streaming(self, path: str, handler: StreamHandler, kind: str = "bidi_stream") -> None:
        """Serve a streaming method of any kind: `handler(call)` at its start."""
        self._register(path, StreamCall, handler, kind)

    def server_streaming(self, path: str, handler: Callable[[StreamCall, bytes], None]) -> None:
        """Serve a method of one request message: `handler(call, message)`, then `call.send`…"""

        def start(call: StreamCall) -> None:
            _OneMessage(call, handler)

        self._register(path, StreamCall, start, "server_stream")

    def _register(
        self, path: str, opens: type[Call], handler: Callable[..., None], kind: str
    ) -> None:
        key = path.encode("ascii")
        check(path.startswith("/") and path.count("/") == 2, "not a gRPC path", path=path)
        check(key not in self._routes, "method registered twice", path=path)
        if self.observer is not None:
            follow = self.observer.unary if opens is UnaryCall else self.observer.stream
            handler = follow(path, handler)
        self._routes[key] = (opens, handler, MethodCounts(kind))

    @property
    def counts(self) -> dict[str, MethodCounts]:
        """What became of the calls, by path."""
        return {key.decode("ascii"): counts for key, (_, _, counts) in self._routes.items()}

    @property
    def paths(self) -> list[str]:
        """Every registered method, sorted."""
        return sorted(key.decode("ascii") for key in self._routes)

    @property
    def services(self) -> list[str]:
        """The full names of the registered services, sorted."""
        return sorted({path.split("/")[1] for path in self.paths})

    # ---- connections

    def connect(self, *, now: float, wake: Callable[[], None] | None = None) -> ServerConnection:
        """A new connection, whose `take_output` begins with our SETTINGS."""
        connection = ServerConnection(
            self, now=now, wake=wake, pings_min_seconds=self.pings_min_seconds
        )
        self.connections.add(connection)
        if self.draining:
            connection.drain(now)
        return connection

    def disconnect(self, connection: ServerConnection) -> None:
        """The socket is gone: cancel the connection's calls and forget it."""
        connection.lost()
        self.connections.discard(connection)
        self.timed.discard(connection)

    def drain(self, now: float) -> None:
        """Have every connection, present and future, finish what is open and end."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain(now)

    def stop_calls(self, text: str = "server is stopping") -> None:
        """Fail every open call with UNAVAILABLE."""
        for connection in list(self.connections):
            for stream in list(connection.streams.values()):
                if isinstance(stream, Call) and not stream.ended:
                    stream.fail(Status.UNAVAILABLE, text)
                    stream.tell_cancelled()

    def tick(self, now: float) -> None:
        """Housekeeping of every connection; about once a second."""
        for connection in list(self.connections):
            connection.tick(now)

    def expire(self, now: float) -> bool:
        """End calls past their deadline; whether any deadline is still running."""
        for connection in list(self.timed):
            connection.expire(now)
            if not connection.deadlines:
                self.timed.discard(connection)
        return bool(self.timed)

    def start_deadline(self, call: Call, seconds: float) -> None:
        """Have `call.expired` called `seconds` from the connection's now."""
        connection = call.connection
        if not connection.deadlines:
            first = not self.timed
            self.timed.add(connection)
            if first and self.on_timed is not None:
                self.on_timed()
        connection.deadlines[call.stream_id] = connection.now + seconds

    # ---- requests

    def interpret(self, head: RequestHead) -> RequestHead:
        """What the requests with this header section are: a call, or a refusal."""
        fields = dict(head.regular)
        content_type = fields.get(b"content-type", b"").lower()
        grpc = content_type == b"application/grpc" or content_type.startswith(
            (b"application/grpc+", b"application/grpc;")
        )
        if not grpc and not head.oversized and self._http is not None:
            return self._http.interpret(head)
        found = GrpcHead(head, self)
        if head.oversized:
            text = f"header list larger than {limits.HTTP2_HEADER_LIST_BYTES_MAX} bytes"
            return _refuse(found, status.http_refusal_block(431, Status.RESOURCE_EXHAUSTED, text))
        if not grpc:
            text = f"content-type {content_type.decode('latin-1')!r} is not application/grpc"
            return _refuse(found, status.http_refusal_block(415, Status.UNKNOWN, text))
        if head.method != b"POST":
            text = f"gRPC needs POST, not {head.method.decode('latin-1')}"
            return _refuse(found, status.http_refusal_block(405, Status.INTERNAL, text))
        route = self._routes.get(head.path)
        if route is None:
            return _refuse_status(found, Status.UNIMPLEMENTED, self._unknown(head.path))
        encoding = _ENCODINGS.get(fields.get(b"grpc-encoding", b"identity"))
        if encoding is None:
            return _refuse(found, _unknown_encoding(fields[b"grpc-encoding"]))
        timeout = fields.get(b"grpc-timeout")
        if timeout is not None:
            found.timeout_seconds = status.parse_timeout(timeout)
            if found.timeout_seconds is None:
                return _refuse_status(found, Status.INTERNAL, "malformed grpc-timeout")
        found.encoding = encoding
        found.opens, found.handler, found.counts = route
        found.prompt = found.opens is StreamCall
        return found

    def vary(self, head: RequestHead, field: Field) -> RequestHead | None:
        """A call's head with another deadline; None for anything but a well-formed one."""
        if not isinstance(head, GrpcHead) or head.refusal:
            return None
        seconds = status.parse_timeout(field[1])
        return None if seconds is None else head.with_timeout(seconds)

    def _unknown(self, path: bytes) -> str:
        service, _, method = path.decode("latin-1").lstrip("/").rpartition("/")
        if service in self.services:
            return f"unknown method {method} for service {service}"
        return f"unknown service {service}"

    def handler_failed(self, call: Call, error: Exception) -> None:
        """A handler raised: `CallFault` is an answer, anything else is a bug of ours."""
        if isinstance(error, CallFault):
            call.fail(error.status, error.text)
            return
        _log.error("handler of %s failed", call.path, exc_info=error)
        call.fail(Status.INTERNAL, "internal error")
        if self._on_error is not None:
            self._on_error(error)


class _OneMessage:
    """Collects the one request message of a server-streaming call."""

    __slots__ = ("_call", "_handler", "_message")

    def __init__(self, call: StreamCall, handler: Callable[[StreamCall, bytes], None]) -> None:
        self._call = call
        self._handler = handler
        self._message: bytes | None = None
        call.on_message = self._take
        call.on_end = self._start

    def _take(self, message: bytes) -> None:
        if self._message is not None:
            raise CallFault(Status.INTERNAL, "more than one request message")
        self._message = message

    def _start(self) -> None:
        if self._message is None:
            raise CallFault(Status.INTERNAL, "request message missing")
        self._handler(self._call, self._message)


def _refuse(head: GrpcHead, block: bytes) -> GrpcHead:
    head.refusal = block
    head.prompt = True
    head.opens = Refusal
    return head


def _refuse_status(head: GrpcHead, code: Status, text: str) -> GrpcHead:
    return _refuse(head, status.trailers_only_block(code, text))


def _unknown_encoding(encoding: bytes) -> bytes:
    name = encoding.decode("latin-1")
    return status.trailers_only_block(
        Status.UNIMPLEMENTED, f"grpc-encoding {name!r} is not supported"
    ) + encode([(b"grpc-accept-encoding", b"identity,gzip")])
