"""gRPC calls: streams of a connection that speak messages and statuses.

A unary call is made for speed. Its handler runs inside `receive`, as soon as the request is
complete, and answers then or in a later turn by `reply` or `fail`; either appends a few ready-made
pieces to the connection's output. No task, future, timer or lock is made for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final

from raftkv import limits
from raftkv.api.grpc import frames, status
from raftkv.api.grpc.connection import ServerConnection, Stream
from raftkv.api.grpc.frames import ErrorCode
from raftkv.api.grpc.messages import CallFault, MessageReader, framed, framed_all
from raftkv.api.grpc.requests import RequestHead
from raftkv.api.grpc.status import Metadata, Status

if TYPE_CHECKING:
    from raftkv.api.grpc.server import GrpcServer

_BLOCK: Final = status.HEADERS_BLOCK
_TRAILERS: Final = status.OK_TRAILERS_BLOCK
# HEADERS frame, then the header of a DATA frame and the prefix of the message in it.
_QUICK_HEAD: Final = Struct(f">5sI{len(_BLOCK)}sHBHIBI").pack
_QUICK_HEAD_PREFIX: Final = frames.frame(frames.HEADERS, frames.END_HEADERS, 0, _BLOCK)[:5]
_DATA_HEAD: Final = Struct(">HBHIBI").pack
_QUICK_TAIL: Final = Struct(f">5sI{len(_TRAILERS)}s").pack
_QUICK_TAIL_PREFIX: Final = frames.frame(
    frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0, _TRAILERS
)[:5]

DEADLINE_TEXT: Final = "context deadline exceeded"


class MethodCounts:
    """What became of the calls of one method. The hot path only adds to plain integers."""

    __slots__ = ("failed", "kind", "ok", "started")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        """``unary``, ``server_stream`` or ``bidi_stream``, as metrics name them."""
        self.started = 0
        self.ok = 0
        self.failed: dict[int, int] = {}
        """By code; those that the client cut off are CANCELLED."""

    def ended(self, code: int) -> None:
        """A call has its status."""
        if code:
            self.failed[code] = self.failed.get(code, 0) + 1
        else:
            self.ok += 1


class GrpcHead(RequestHead):
    """What every call with the same header block has in common."""

    __slots__ = (
        "_metadata",
        "counts",
        "encoding",
        "handler",
        "message_bytes_max",
        "refusal",
        "server",
        "timeout_seconds",
    )

    handler: Callable[..., None]
    counts: MethodCounts

    def __init__(self, head: RequestHead, server: GrpcServer) -> None:
        self.fields = head.fields
        self.prompt = head.prompt
        self.oversized = head.oversized
        self.method = head.method
        self.scheme = head.scheme
        self.path = head.path
        self.authority = head.authority
        self.content_length = head.content_length
        self.malformed = head.malformed
        self.server = server
        self.encoding = 0
        self.timeout_seconds: float | None = None
        self.message_bytes_max = server.message_bytes_max
        self.refusal = b""
        self._metadata: Metadata | None = None

    def with_timeout(self, seconds: float) -> GrpcHead:
        """The same head with a deadline."""
        head = GrpcHead(self, self.server)
        head.opens = self.opens
        head.handler = self.handler
        head.counts = self.counts
        head.encoding = self.encoding
        head.timeout_seconds = seconds
        head.refusal = self.refusal
        head._metadata = self.metadata
        return head

    @property
    def metadata(self) -> Metadata:
        """The request's custom metadata. Shared between calls: not to be changed."""
        if self._metadata is None:
            self._metadata = status.request_metadata(self.fields)
        return self._metadata


class Refusal(Stream):
    """A request that is answered from its header section alone."""

    __slots__ = ("head",)

    def __init__(self, connection: ServerConnection, stream_id: int, head: GrpcHead) -> None:
        super().__init__(connection, stream_id, head)
        self.head = head

    def opened(self) -> None:
        self.connection.send_headers(self, self.head.refusal, end_stream=True)

    def received(self, data: bytes) -> None:
        """Nothing is expected: the stream ended with its answer."""

    def finished(self, data: bytes) -> None:
        """Nothing is expected: the stream ended with its answer."""


class Call(Stream):
    """What unary and streaming calls share."""

    __slots__ = ("_reader", "head", "initial", "on_cancel")

    def __init__(self, connection: ServerConnection, stream_id: int, head: GrpcHead) -> None:
        super().__init__(connection, stream_id, head)
        self.head = head
        self._reader: MessageReader | None = None
        self.initial: Metadata | None = None
        """Custom metadata to send before the first message."""
        self.on_cancel: Callable[[], None] | None = None
        """Called once if the call ends before its answer is complete: cancelled by the client,
        past its deadline, or cut off with its connection. Nothing can be sent from then on."""
        head.counts.started += 1
        if head.timeout_seconds is not None:
            head.server.start_deadline(self, head.timeout_seconds)

    @property
    def path(self) -> str:
        """``/package.Service/Method``."""
        return self.head.path.decode("latin-1")

    @property
    def metadata(self) -> Metadata:
        """The request's custom metadata, in order. Not to be changed."""
        return self.head.metadata

    def meta(self, name: str) -> str | bytes | None:
        """The first value of a metadata name, or None."""
        for key, value in self.head.metadata:
            if key == name:
                return value
        return None

    @property
    def deadline(self) -> float | None:
        """When the call expires, on the clock of the connection's `now`; None: never."""
        return self.connection.deadlines.get(self.stream_id)

    @property
    def peer(self) -> str:
        """The client's address as text; empty when it is not known."""
        info = self.connection.info
        name = info("peername") if info is not None else None
        if isinstance(name, tuple) and len(name) >= 2:
            return f"{name[0]}:{name[1]}"
        return str(name or "")

    @property
    def source(self) -> str:
        """The client's address, without the port; empty when it is not known."""
        info = self.connection.info
        name = info("peername") if info is not None else None
        return str(name[0]) if isinstance(name, tuple) and name else ""

    @property
    def certified(self) -> str | None:
        """The user that the client's certificate stands for."""
        info = self.connection.info
        user = info("certified_user") if info is not None else None
        return user if isinstance(user, str) else None

    def fail(
        self, code: int, text: str = "", details: bytes = b"", trailing: Metadata | None = None
    ) -> None:
        """End the call with a status other than OK. Ignored once the call has ended.

        `details` is a serialised ``google.rpc.Status``; `trailing` is custom metadata.
        """
        raise NotImplementedError

    def cancelled(self, code: ErrorCode) -> None:
        self.head.counts.ended(Status.CANCELLED)
        self.tell_cancelled()

    def expired(self) -> None:
        """Answer DEADLINE_EXCEEDED; cut off an answer that is stuck half-way."""
        if self.ended or self.pending is not None:
            told = self.ended
            self.connection.reset(self, ErrorCode.CANCEL)
            if told:
                return
            self.head.counts.ended(Status.DEADLINE_EXCEEDED)
        else:
            self.fail(Status.DEADLINE_EXCEEDED, DEADLINE_TEXT)
        self.tell_cancelled()

    def tell_cancelled(self) -> None:
        """Have whatever serves the call let go of it; once."""
        on_cancel, self.on_cancel = self.on_cancel, None
        if on_cancel is not None:
            try:
                on_cancel()
            except Exception as error:
                self.head.server.handler_failed(self, error)

    def _read(self, data: bytes) -> list[bytes]:
        """The messages `data` completes, with what is kept accounted for. Raises `CallFault`."""
        reader = self._reader
        if reader is None:
            reader = MessageReader(self.head.encoding, self.head.message_bytes_max)
            self._reader = reader
        return reader.feed(data)

    def _hold(self, size: int) -> None:
        if not self.connection.hold(self, size):
            raise CallFault(
                Status.RESOURCE_EXHAUSTED,
                "unfinished requests of this connection exceed "
                f"{limits.HTTP2_CONNECTION_INPUT_BYTES_MAX} bytes",
            )


class UnaryCall(Call):
    """One message in, one message or error out.

    The handler is called as ``handler(call, message)`` once the request is complete.
    """

    __slots__ = ()

    def received(self, data: bytes) -> None:
        if self.ended:
            return
        try:
            complete = self._read(data)
            reader = self._reader
            if complete and reader is not None:
                # Whole before END_STREAM: kept until the end says that nothing else comes.
                if len(complete) > 1 or len(reader) or self.initial is not None:
                    raise CallFault(Status.INTERNAL, "more than one request message")
                self._reader = _Kept(complete[0])
                self._hold(len(complete[0]))
            elif reader is not None:
                self._hold(len(reader))
        except CallFault as fault:
            self.fail(fault.status, fault.text)
        else:
            self.connection.grant(self, len(data))

    def finished(self, data: bytes) -> None:
        size = len(data) - 5
        if (
            self._reader is None
            and size >= 0
            and int.from_bytes(data[:5], "big") == size  # not compressed, and exactly one message
            and size <= self.head.message_bytes_max
        ):
            message = data[5:]
        else:
            if self.ended:
                return
            try:
                message = self._only_message(data)
            except CallFault as fault:
                self.fail(fault.status, fault.text)
                return
        try:
            self.head.handler(self, message)
        except Exception as error:
            self.head.server.handler_failed(self, error)

    def _only_message(self, data: bytes) -> bytes:
        complete = self._read(data)
        if len(complete) != 1 or (self._reader is not None and len(self._reader)):
            if complete:
                raise CallFault(Status.INTERNAL, "more than one request message")
            raise CallFault(Status.INTERNAL, "request message missing or cut short")
        self.connection.hold(self, 0)
        return complete[0]

    def described(self) -> dict[str, str]:
        """What a log line may say of the call."""
        return {"operation": self.path, "source": self.source}

    def reply(self, message: bytes, trailing: Metadata | None = None) -> None:
        """Answer with one message and status OK. Ignored once the call has ended."""
        connection = self.connection
        size = len(message) + 5
        if (
            size <= connection.quick_bytes
            and size <= self.window
            and size <= connection.send_window
            and not self.ended
            and trailing is None
            and self.initial is None
        ):
            self.ended = True
            self.head.counts.ok += 1
            connection.send_window -= size
            connection.answered = True
            stream_id = self.stream_id
            connection.out += (
                _QUICK_HEAD(
                    _QUICK_HEAD_PREFIX, stream_id, _BLOCK,
                    size >> 8, size & 0xFF, 0, stream_id, 0, size - 5,
                ),
                message,
                _QUICK_TAIL(_QUICK_TAIL_PREFIX, stream_id, _TRAILERS),
            )  # fmt: skip
            if not connection.scheduled:
                connection.touch()
            connection.sent_all(self)
        elif not self.ended:
            self._reply_at_length(message, trailing)

    def _reply_at_length(self, message: bytes, trailing: Metadata | None) -> None:
        connection = self.connection
        if connection.held_bytes > limits.CONNECTION_OUTPUT_BYTES_MAX:
            # What was asked for may well have been done, so this is no refusal.
            self.fail(
                Status.UNKNOWN,
                "answer dropped: more than "
                f"{limits.CONNECTION_OUTPUT_BYTES_MAX} bytes wait for this connection to be read",
            )
            return
        self.head.counts.ok += 1
        connection.send_headers(self, _initial_block(self.initial))
        connection.send_data(self, framed(message))
        if trailing:
            block = status.trailers_block_with(Status.OK, "", trailing, only=False)
        else:
            block = _TRAILERS
        connection.send_trailers(self, block)

    @property
    def certified(self) -> str | None:
        """The user that the client's certificate stands for."""
        info = self.connection.info
        user = info("certified_user") if info is not None else None
        return user if isinstance(user, str) else None

    def fail(
        self, code: int, text: str = "", details: bytes = b"", trailing: Metadata | None = None
    ) -> None:
        """End the call with a status other than OK, in a trailers-only answer."""
        if self.ended:
            return
        self.head.counts.ended(code)
        if trailing:
            block = status.trailers_block_with(code, text, trailing, only=True)
        else:
            block = status.trailers_only_block(int(code), text, details)
        self.connection.send_headers(self, block, end_stream=True)


class _Kept(MessageReader):
    """A reader whose one message is complete: any more is too much, the end gives it out."""

    __slots__ = ("_message",)

    def __init__(self, message: bytes) -> None:
        super().__init__(0, 0)
        self._message = message

    def feed(self, data: bytes) -> list[bytes]:
        if data:
            raise CallFault(Status.INTERNAL, "more than one request message")
        return [self._message]


def _initial_block(initial: Metadata | None) -> bytes:
    return status.headers_block(initial) if initial else _BLOCK


class StreamCall(Call):
    """Messages both ways, as callbacks. The handler is called as ``handler(call)`` at the start.

    It sets `on_message` and the like before it returns; messages that came with the request are
    delivered after that. Every callback runs on the loop, inside `receive`.
    """

    __slots__ = (
        "_inbox",
        "_inbox_bytes",
        "_reading",
        "headers_sent",
        "on_drain",
        "on_end",
        "on_message",
        "on_run",
    )
    gathers = True

    def __init__(self, connection: ServerConnection, stream_id: int, head: GrpcHead) -> None:
        super().__init__(connection, stream_id, head)
        self.on_message: Callable[[bytes], None] | None = None
        """Called for each message of the client, in order."""
        self.on_run: Callable[[list[bytes]], None] | None = None
        """If set, called instead with messages that came together: at most a frame
        full of them, which are not kept back when the first of them pauses the call."""
        self.on_end: Callable[[], None] | None = None
        """Called once when the client has sent its last message (half-close)."""
        self.on_drain: Callable[[], None] | None = None
        """Called when sending is worth while again after `send` returned False."""
        self.headers_sent = False
        self._inbox: deque[bytes | None] | None = None
        self._inbox_bytes = 0
        self._reading = True

    # ---- what the connection tells

    def opened(self) -> None:
        try:
            self.head.handler(self)
        except Exception as error:
            self.head.server.handler_failed(self, error)

    def received(self, data: bytes) -> None:
        if self.ended:
            return
        try:
            messages = self._read(data)
            self.ungranted += len(data)
            if self.on_run is not None and self._reading and not self._inbox:
                if messages:
                    self._hand_over_run(self.on_run, messages)
            else:
                for message in messages:
                    self._deliver(message)
            self._settle()
        except CallFault as fault:
            self._break_off(fault)

    def finished(self, data: bytes) -> None:
        if self.ended:
            return
        try:
            messages = self._read(data) if data else []
            for message in messages:
                self._deliver(message)
            if self._reader is not None and len(self._reader):
                raise CallFault(Status.INTERNAL, "request message cut short")
            self._deliver(None)
            self._settle()
        except CallFault as fault:
            self._break_off(fault)

    def drained(self) -> None:
        if self.on_drain is not None:
            self._guarded(self.on_drain)

    def _break_off(self, fault: CallFault) -> None:
        if not self.ended:
            self.fail(fault.status, fault.text)
            self.tell_cancelled()

    def _deliver(self, message: bytes | None) -> None:
        """Hand on a message, or the client's end; keep it while the handler is paused."""
        if self._reading and not self._inbox:
            self._hand_over(message)
            return
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(message)
        self._inbox_bytes += len(message or b"")

    def _hand_over(self, message: bytes | None) -> None:
        if self.ended:
            return
        if message is None:
            if self.on_end is not None:
                self._guarded(self.on_end)
        elif self.on_message is not None:
            try:
                self.on_message(message)
            except Exception as error:
                self.head.server.handler_failed(self, error)

    def _hand_over_run(self, take: Callable[[list[bytes]], None], messages: list[bytes]) -> None:
        try:
            take(messages)
        except Exception as error:
            self.head.server.handler_failed(self, error)

    def _settle(self) -> None:
        """Account for what is kept, and let the client send on unless the handler is paused."""
        connection = self.connection
        if connection.streams.get(self.stream_id) is not self:
            return
        kept = self._inbox_bytes + (len(self._reader) if self._reader is not None else 0)
        if kept != self.held:
            self._hold(kept)
        if self._reading:
            connection.grant(self, 0)

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            self.head.server.handler_failed(self, error)

    # ---- what the handler does

    def pause(self) -> None:
        """Take no more messages: they wait, and then flow control makes the client wait."""
        self._reading = False

    def resume(self) -> None:
        """Take messages again, first those that waited. `on_message` may be called at once."""
        if self._reading:
            return
        self._reading = True
        inbox = self._inbox
        while inbox and self._reading and not self.ended:
            message = inbox.popleft()
            self._inbox_bytes -= len(message or b"")
            self._hand_over(message)
        try:
            self._settle()
        except CallFault as fault:
            self._break_off(fault)

    def send_headers(self) -> None:
        """Send the initial metadata now instead of with the first message."""
        if not self.headers_sent and not self.ended:
            self.headers_sent = True
            self.connection.send_headers(self, _initial_block(self.initial))

    def send(self, message: bytes) -> bool:
        """Send one message. False: wait for `on_drain` before the next (or the call has ended)."""
        connection = self.connection
        size = len(message) + 5
        if not (
            self.headers_sent
            and size <= connection.quick_bytes
            and size <= self.window
            and size <= connection.send_window
            and connection.turn_bytes < limits.HTTP2_TURN_OUTPUT_BYTES
            and self.pending is None
            and not self.ended
        ):
            return self.send_framed(framed(message))
        connection.turn_bytes += size
        connection.send_window -= size
        connection.answered = True
        self.window -= size
        connection.out += (
            _DATA_HEAD(size >> 8, size & 0xFF, 0, self.stream_id, 0, size - 5),
            message,
        )
        if not connection.scheduled:
            connection.touch()
        return self.writable

    def send_all(self, messages: list[bytes]) -> bool:
        """As `send`, for several messages."""
        return self.send_framed(framed_all(messages))

    def send_framed(self, data: bytes) -> bool:
        """As `send`, for one or more messages that `messages.framed` has already prefixed.

        The same bytes may be sent to any number of calls.
        """
        if self.ended:
            return False
        if not self.headers_sent:
            self.send_headers()
        connection = self.connection
        held = connection.held_bytes
        if held and held + len(data) > limits.CONNECTION_OUTPUT_BYTES_MAX:
            connection.reset(self, ErrorCode.ENHANCE_YOUR_CALM)
            self.head.counts.ended(Status.RESOURCE_EXHAUSTED)
            self.tell_cancelled()
            return False
        connection.send_data(self, data)
        return self.writable

    def finish(self, trailing: Metadata | None = None) -> None:
        """End the call with status OK, after all that was sent. Ignored once it has ended."""
        self._end(Status.OK, "", b"", trailing)

    @property
    def certified(self) -> str | None:
        """The user that the client's certificate stands for."""
        info = self.connection.info
        user = info("certified_user") if info is not None else None
        return user if isinstance(user, str) else None

    def fail(
        self, code: int, text: str = "", details: bytes = b"", trailing: Metadata | None = None
    ) -> None:
        """End the call with a status, after all that was sent. Ignored once it has ended."""
        self._end(code, text, details, trailing)

    def _end(self, code: int, text: str, details: bytes, trailing: Metadata | None) -> None:
        if self.ended:
            return
        self.head.counts.ended(code)
        only = not self.headers_sent
        if only and self.initial:
            self.send_headers()
            only = False
        if trailing:
            block = status.trailers_block_with(code, text, trailing, only=only)
        elif only:
            block = status.trailers_only_block(int(code), text, details)
        else:
            block = status.trailers_block(int(code), text, details)
        self.connection.send_trailers(self, block)
