"""The server's side of one HTTP/2 connection (RFC 9113), without I/O.

Theory of operation. The shell calls `receive(data, now)` with what the socket gave, `tick(now)`
from time to time, `pause`/`resume` as the socket's buffer fills and drains, and sends what
`take_output()` returns. A request becomes a `Stream` of the class its head names; the connection
tells it of data and endings, and it answers through `send_headers`, `send_data` and
`send_trailers`, during the call or any time later. `wake` is called when output appears outside
`receive`, so that the shell can flush once a turn.

Faults of the peer never leave `receive`: on one stream they become RST_STREAM, on the connection
GOAWAY, after which `closed` is true and the shell hangs up.

Memory is bounded: header blocks and lists, streams, unread request data (`input_bytes`), data that
flow control or the socket holds back (`held_bytes`), remembered blocks and ended streams all have
their limit. Frames that cost us more than they cost the sender are paid for from token buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from raftkv import limits
from raftkv.api.grpc import frames, header_blocks
from raftkv.api.grpc.budget import Budget
from raftkv.api.grpc.frames import ConnectionFault, ErrorCode, Setting, StreamFault
from raftkv.api.grpc.header_blocks import Field, Fields, HeaderBlockError, HeaderDecoder
from raftkv.api.grpc.requests import RequestHead, trailers_fault

_STREAM_WINDOW: Final = limits.HTTP2_STREAM_WINDOW_BYTES
_CONNECTION_WINDOW: Final = limits.HTTP2_CONNECTION_WINDOW_BYTES
_CONNECTION_WINDOW_LOW: Final = _CONNECTION_WINDOW // 2
_FRAME_MAX: Final = limits.HTTP2_FRAME_BYTES_MAX
_GATHERED_BYTES: Final = frames.FRAME_BYTES_DEFAULT
_GATHERED_FRAME_BYTES: Final = 256
_STREAMS_MAX: Final = limits.HTTP2_STREAMS_MAX

_GREETING: Final = frames.settings(
    {
        Setting.HEADER_TABLE_SIZE: limits.HTTP2_HEADER_TABLE_BYTES,
        Setting.MAX_CONCURRENT_STREAMS: _STREAMS_MAX,
        Setting.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
        Setting.MAX_FRAME_SIZE: _FRAME_MAX,
        Setting.MAX_HEADER_LIST_SIZE: limits.HTTP2_HEADER_LIST_BYTES_MAX,
    }
) + frames.window_update(0, _CONNECTION_WINDOW - frames.WINDOW_DEFAULT)
_SETTINGS_ACK: Final = frames.frame(frames.SETTINGS, frames.ACK, 0)
_KEEPALIVE_PING: Final = b"raftkvKA"
_DRAIN_PING: Final = b"raftkvDR"
_DRAIN_SECONDS: Final = 1.0
VARYING: Final = b"grpc-timeout"
_GAPS_KEPT: Final = 16
_RESET_BY_US: Final = 1
_RESET_BY_PEER: Final = 2


class Application(Protocol):
    """What serves the requests of a connection."""

    def interpret(self, head: RequestHead) -> RequestHead:
        """Decide, once for each distinct header block, what its requests mean.

        Returns a head (the same, or one of a subclass) whose `opens` is set. The answer is
        remembered, so it must depend on nothing but the head.
        """
        ...

    def vary(self, head: RequestHead, field: Field) -> RequestHead | None:
        """A head that differs from an interpreted one by a field of its own.

        Called for the first field named `VARYING`, which `head` was interpreted without: its
        value changes with nearly every request of some clients. None: interpret it in full.
        """
        ...


class Stream:
    """One request and its answer. Subclasses override the methods that tell them things.

    `finished` may be called after the answer is complete (`ended`); `received` too, until the
    stream is gone.
    """

    __slots__ = (
        "connection",
        "credit",
        "ended",
        "held",
        "pending",
        "remote_closed",
        "stream_id",
        "trailers",
        "ungranted",
        "unread",
        "waiting",
        "window",
    )
    gathers = False
    """Whether small parts that come together are given to `received` as one."""

    def __init__(self, connection: ServerConnection, stream_id: int, head: RequestHead) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.window = connection.peer_stream_window
        """Octets of DATA that the peer lets us send (may be negative, section 6.9.2)."""
        self.credit = _STREAM_WINDOW
        """Octets of DATA that we let the peer send."""
        self.unread = head.content_length
        """Octets of the announced content-length still to come, or -1."""
        self.remote_closed = False
        """The peer has ended its side."""
        self.ended = False
        """Our answer is complete, or nobody waits for it any more: nothing more is sent."""
        self.pending: bytearray | None = None
        self.trailers: bytes | None = None
        self.waiting = False
        self.held = 0
        self.ungranted = 0

    def opened(self) -> None:
        """The request's header section is complete. Only for heads that are `prompt`."""

    def received(self, data: bytes) -> None:
        """A part of the request's content that is not the last."""
        raise NotImplementedError

    def finished(self, data: bytes) -> None:
        """The last part, possibly empty: the peer's side is closed."""
        raise NotImplementedError

    def cancelled(self, code: ErrorCode) -> None:
        """The stream is gone: reset by the peer or for its fault, or with its connection.

        Called at most once, and only while the answer was not complete.
        """

    def drained(self) -> None:
        """Output that had made `writable` false has gone down; send again."""

    def expired(self) -> None:
        """The deadline set with `ServerConnection.deadlines` has passed."""

    @property
    def writable(self) -> bool:
        """Whether the stream should send more; otherwise `drained` will be called."""
        connection = self.connection
        if (
            not connection.paused
            and connection.turn_bytes < limits.HTTP2_TURN_OUTPUT_BYTES
            and connection.held_bytes < limits.CONNECTION_OUTPUT_BYTES_MAX
            and (self.pending is None or len(self.pending) < limits.HTTP2_STREAM_OUTPUT_BYTES_HIGH)
        ):
            return True
        connection.wait(self)
        return False


class ServerConnection:
    """The state of one connection. One thread, one loop; see the module's text."""

    __slots__ = (
        "_ack_deadline",
        "_application",
        "_by_fields",
        "_chatter",
        "_continued",
        "_continued_bytes",
        "_continued_flags",
        "_continued_stream",
        "_credit",
        "_decoder",
        "_drain_at",
        "_fixed",
        "_full",
        "_gaps",
        "_greeted",
        "_keepalive_sent",
        "_last_ping",
        "_over_turn",
        "_paused_at",
        "_ping_strikes",
        "_refusing",
        "_reset_streams",
        "_resets",
        "_rest",
        "_size_update",
        "_until_change",
        "answered",
        "blocked",
        "closed",
        "deadlines",
        "draining",
        "fault",
        "frame_max",
        "held_bytes",
        "info",
        "input_bytes",
        "last_stream_id",
        "now",
        "opened_at",
        "out",
        "paused",
        "peer_stream_window",
        "pings_min_seconds",
        "quick_bytes",
        "received_at",
        "scheduled",
        "send_window",
        "settings_acknowledged",
        "streams",
        "turn_bytes",
        "waiting",
        "wake",
    )

    def __init__(
        self,
        application: Application,
        *,
        now: float = 0.0,
        wake: Callable[[], None] | None = None,
        pings_min_seconds: float = limits.GRPC_PINGS_MIN_SECONDS,
    ) -> None:
        self._application = application
        self.wake = wake
        self.info: Callable[[str], object] | None = None
        """`get_extra_info` of the transport, for the peer's address and certificate."""
        self.now = now
        self.opened_at = now
        self.received_at = now
        self.pings_min_seconds = pings_min_seconds
        self.out: list[bytes] = [_GREETING]
        self.scheduled = False
        self.streams: dict[int, Stream] = {}
        self.deadlines: dict[int, float] = {}
        self.blocked: dict[int, Stream] = {}
        self.waiting: dict[int, Stream] = {}
        self.last_stream_id = 0
        self.closed = False
        self.fault: ConnectionFault | None = None
        self.paused = False
        self.draining = False
        self.settings_acknowledged = False
        # What the peer lets us send.
        self.peer_stream_window = frames.WINDOW_DEFAULT
        self.send_window = frames.WINDOW_DEFAULT
        self.frame_max = frames.FRAME_BYTES_DEFAULT
        self.quick_bytes = self.frame_max
        """A DATA frame up to this size may be appended to `out` without asking further, windows
        permitting; 0 while the socket is full or a table size update is due."""
        self.held_bytes = 0
        self.turn_bytes = 0
        """Content in `out` that flow control and the socket have not yet slowed down."""
        self._full = False
        self._over_turn = False
        self._size_update = False
        # What we let the peer send.
        self._credit = _CONNECTION_WINDOW
        self.input_bytes = 0
        # Parsing.
        self._rest = b""
        self._greeted = 0
        self._decoder = HeaderDecoder(
            limits.HTTP2_HEADER_TABLE_BYTES, limits.HTTP2_HEADER_LIST_BYTES_MAX
        )
        self._fixed: dict[bytes, RequestHead] = {}
        self._by_fields: dict[tuple[Field, ...], RequestHead] = {}
        self._until_change: dict[bytes, RequestHead] = {}
        self._continued: list[bytes] = []
        self._continued_stream = 0
        self._continued_flags = 0
        self._continued_bytes = 0
        # Streams that are no more.
        self._reset_streams: dict[int, int] = {}
        self._gaps: list[tuple[int, int]] = []
        # Patience.
        self._resets = Budget(limits.HTTP2_RESETS_BURST, limits.HTTP2_RESETS_PER_SECOND)
        self._chatter = Budget(limits.HTTP2_CHATTER_BURST, limits.HTTP2_CHATTER_PER_SECOND)
        self._ping_strikes = 0
        self._last_ping = -1e9
        self.answered = False
        """Something of an answer has gone out since the last PING."""
        self._keepalive_sent: float | None = None
        self._paused_at = 0.0
        self._drain_at: float | None = None
        self._refusing = False

    # ---- input

    def receive(self, data: bytes, now: float) -> None:
        """Take in what the socket gave. Raises nothing that the peer could cause."""
        if self.closed:
            return
        self.now = self.received_at = now
        self.scheduled = True
        try:
            self._receive(data)
        except ConnectionFault as fault:
            self.fail(fault)
        finally:
            self.scheduled = False

    def take_output(self) -> bytes:
        """Everything to send now, in order; empty when there is nothing.

        Hand it to the socket, then call `flushed`.
        """
        out = self.out
        self.scheduled = False
        self.turn_bytes = 0
        if not out:
            return b""
        self.out = []
        return b"".join(out)

    def _receive(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = 0
        if self._greeted == 0:
            preface = frames.PREFACE
            if not data.startswith(preface):
                if not preface.startswith(data):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 preface")
                self._rest = data
                return
            self._greeted = 1
            at = len(preface)
        end = len(data)
        unpack = frames.HEADER.unpack_from
        streams = self.streams
        while end - at >= 9:
            high, low, kind, flags, stream_id = unpack(data, at)
            size = high << 8 | low
            if size > _FRAME_MAX:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame above MAX_FRAME_SIZE")
            start = at + 9
            stop = start + size
            if stop > end:
                break
            at = stop
            if stream_id > 0x7FFF_FFFF:  # the reserved bit (section 4.1)
                stream_id &= 0x7FFF_FFFF
            if (self._continued_stream or self._greeted == 1) and not self._expected(
                kind, flags, stream_id
            ):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame out of order")
            try:
                if kind == 0:
                    payload = data[start:stop]
                    if flags & 0x8:
                        payload = frames.unpadded(payload)
                    self._credit -= size
                    if self._credit < _CONNECTION_WINDOW_LOW:
                        self._grant_connection()
                    stream = streams.get(stream_id)
                    if stream is None or stream.remote_closed:
                        self._data_nowhere(stream_id, stream)
                        continue
                    stream.credit -= size
                    if stream.credit < 0:
                        raise StreamFault(
                            stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded"
                        )
                    if stream.unread >= 0:
                        stream.unread -= len(payload)
                        if stream.unread < 0 or (flags & 0x1 and stream.unread):
                            raise StreamFault(
                                stream_id, ErrorCode.PROTOCOL_ERROR, "content-length differs"
                            )
                    if flags & 0x1:
                        stream.remote_closed = True
                        stream.finished(payload)
                    elif payload:
                        if (
                            stream.gathers
                            and size <= _GATHERED_FRAME_BYTES
                            and data.startswith(data[start - 9 : start], at)
                        ):
                            payload = self._gather(stream, data, start, size, flags)
                            at += (len(payload) // size - 1) * (size + 9)
                        stream.received(payload)
                    else:
                        self._spend_chatter()
                elif kind == 1:
                    if flags & 0x2C == 0x4:
                        self._headers(stream_id, flags, data[start:stop])
                    else:
                        self._uncommon_headers(stream_id, flags, data[start:stop])
                else:
                    self._other(kind, flags, stream_id, data[start:stop])
            except StreamFault as fault:
                self._fail_stream(fault)
            if self.closed:
                return
        if at < end:
            self._rest = data[at:]

    def _gather(self, stream: Stream, data: bytes, start: int, size: int, flags: int) -> bytes:
        """The payloads of whole frames that are alike, of which the one whose payload is at `start`
        is accounted for: small messages of a stream come in such runs. Their credit is there, and
        together they are no larger than a frame."""
        parts = [data[start : start + size]]
        if flags or stream.unread >= 0:
            return parts[0]
        head = data[start - 9 : start]
        at, step = start + size, size + 9
        room = min(_GATHERED_BYTES, stream.credit + size) // size
        end = len(data)
        while len(parts) < room and at + step <= end and data.startswith(head, at):
            parts.append(data[at + 9 : at + step])
            at += step
        more = (len(parts) - 1) * size
        stream.credit -= more
        self._credit -= more
        if self._credit < _CONNECTION_WINDOW_LOW:
            self._grant_connection()
        return b"".join(parts)

    def _expected(self, kind: int, flags: int, stream_id: int) -> bool:
        """Sections 3.4 and 6.10: SETTINGS first; nothing between HEADERS and CONTINUATION."""
        if self._continued_stream:
            return kind == frames.CONTINUATION and stream_id == self._continued_stream
        if kind != frames.SETTINGS or flags & frames.ACK:
            return False
        self._greeted = 2
        return True

    def _grant_connection(self) -> None:
        if self._credit < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        self.out.append(frames.window_update(0, _CONNECTION_WINDOW - self._credit))
        self._credit = _CONNECTION_WINDOW

    def _data_nowhere(self, stream_id: int, stream: Stream | None) -> None:
        """DATA for a stream that takes none (sections 5.1 and 6.1)."""
        if stream is None:
            if stream_id == 0 or stream_id > self.last_stream_id or not stream_id & 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on an idle stream")
            if self._reset_streams.get(stream_id) == _RESET_BY_US:
                self._spend_chatter()
                return
        raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after the end")

    def _uncommon_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        """HEADERS with padding, priority, or continuations (section 6.2)."""
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
        if flags & frames.PRIORITY_FLAG:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without priority")
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._headers(stream_id, flags, payload)
            return
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        self._continued_stream = stream_id
        self._continued_flags = flags
        self._continued = [payload]
        self._continued_bytes = len(payload)

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._continued_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._continued.append(payload)
        self._continued_bytes += len(payload)
        if (
            self._continued_bytes > limits.HTTP2_HEADER_BLOCK_BYTES_MAX
            or len(self._continued) > limits.HTTP2_CONTINUATIONS_MAX
        ):
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"header block above {limits.HTTP2_HEADER_BLOCK_BYTES_MAX} bytes or "
                f"{limits.HTTP2_CONTINUATIONS_MAX} frames",
            )
        if flags & frames.END_HEADERS:
            block = b"".join(self._continued)
            self._continued = []
            self._continued_stream = 0
            self._headers(stream_id, self._continued_flags, block)

    def _headers(self, stream_id: int, flags: int, block: bytes) -> None:
        """A whole header block: a request, or the trailers of one."""
        # Decoded first whatever follows: the compression state must move on (section 4.3).
        head = self._fixed.get(block) or self._until_change.get(block) or self._decode(block)
        last = self.last_stream_id
        if stream_id <= last or not stream_id & 1:
            self._late_headers(stream_id, flags, head)
            return
        if stream_id != last + 2 and stream_id > 1:
            self._gaps = [*self._gaps[1 - _GAPS_KEPT :], (last, stream_id)]
        self.last_stream_id = stream_id
        if self._refusing or len(self.streams) >= _STREAMS_MAX:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "not taken on")
        if head.malformed:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, head.malformed)
        stream = self.streams[stream_id] = head.opens(self, stream_id, head)
        if flags & 0x1:
            if stream.unread > 0:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "content-length differs")
            stream.remote_closed = True
            if head.prompt:
                stream.opened()
            stream.finished(b"")
        elif head.prompt:
            stream.opened()

    def _decode(self, block: bytes) -> RequestHead:
        decoder = self._decoder
        try:
            fields = decoder.decode(block)
        except HeaderBlockError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        head = None if decoder.oversized else self._varied(fields)
        if head is None:
            head = RequestHead(fields, oversized=decoder.oversized)
            if not head.malformed:
                head = self._application.interpret(head)
        keeps = decoder.keeps
        if keeps == header_blocks.NEVER:
            self._until_change.clear()
        elif len(block) <= limits.HTTP2_MEMO_BLOCK_BYTES_MAX:
            memo = self._fixed if keeps == header_blocks.FOREVER else self._until_change
            if len(memo) >= limits.HTTP2_MEMO_BLOCKS_MAX:
                memo.clear()
            memo[block] = head
        return head

    def _varied(self, fields: Fields) -> RequestHead | None:
        """The head of a block that is known but for its deadline: decoded, not interpreted again.

        Clients that send deadlines put a new value into their table with every request, so that
        no block repeats.
        """
        names = [name for name, _ in fields]
        if VARYING not in names:
            return None
        at = names.index(VARYING)
        field = fields[at]
        if at + 1 < len(names) and names[at + 1][:1] == b":":
            return None  # a late pseudo-header field: malformed only because of this one
        del fields[at]
        key = tuple(fields)
        known = self._by_fields.get(key)
        fields.insert(at, field)
        if known is None:
            known = RequestHead(list(key))
            if known.malformed:
                return None
            known = self._application.interpret(known)
            if len(self._by_fields) >= limits.HTTP2_MEMO_BLOCKS_MAX:
                self._by_fields.clear()
            if sum(len(name) + len(value) for name, value in key) <= (
                limits.HTTP2_MEMO_BLOCK_BYTES_MAX
            ):
                self._by_fields[key] = known
        return self._application.vary(known, field)

    def _late_headers(self, stream_id: int, flags: int, head: RequestHead) -> None:
        """HEADERS that open nothing: trailers, or a mistake (sections 5.1, 5.1.1 and 8.1)."""
        stream = self.streams.get(stream_id)
        if stream is None:
            how = self._reset_streams.get(stream_id)
            if how == _RESET_BY_US:
                self._spend_chatter()
                return
            if how == _RESET_BY_PEER:
                raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after RST_STREAM")
            if not stream_id & 1 or any(low < stream_id < high for low, high in self._gaps):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stream id even or too low")
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        if stream.remote_closed:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after the end")
        if not flags & frames.END_STREAM:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        if stream.unread > 0:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "content-length differs")
        fault = trailers_fault(head.fields)
        if fault:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, fault)
        stream.remote_closed = True
        stream.finished(b"")

    def _other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._window_update(stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._rst_stream(stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._continuation(flags, stream_id, payload)
        elif kind == frames.PRIORITY:
            self._priority(stream_id, payload)
        elif kind in (frames.SETTINGS, frames.PING, frames.GOAWAY):
            if stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "connection frame on a stream")
            if kind == frames.SETTINGS:
                self._settings(flags, payload)
            elif kind == frames.PING:
                self._ping(flags, payload)
            elif len(payload) < 8:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "short GOAWAY")
            else:
                self._spend_chatter()  # the peer opens no more streams; those open go on
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
        else:
            self._spend_chatter()  # unknown types are ignored (section 5.5), not for ever

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE not of 4 bytes")
        increment = frames.uint31(payload)
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "window increment of 0")
            self.send_window += increment
            if self.send_window > frames.WINDOW_MAX:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window overflow")
            if self.blocked:
                self._pump_blocked()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "WINDOW_UPDATE")
            return
        if increment == 0:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "window increment of 0")
        stream.window += increment
        if stream.window > frames.WINDOW_MAX:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window overflow")
        if stream.pending is not None:
            self._pump(stream)

    def _check_not_idle(self, stream_id: int, what: str) -> None:
        if stream_id > self.last_stream_id or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on an idle stream")

    def _rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM not of 4 bytes")
        self._check_not_idle(stream_id, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._spend_chatter()
            return
        self._spend_reset()
        code = frames.uint32(payload)
        self._forget(stream, _RESET_BY_PEER)
        self._cancel(stream, ErrorCode(code) if code <= 0xD else ErrorCode.INTERNAL_ERROR)

    def _priority(self, stream_id: int, payload: bytes) -> None:
        """Deprecated (section 5.3.2): checked for form, otherwise ignored."""
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            if stream_id in self.streams:
                raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY not of 5 bytes")
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY not of 5 bytes")
        self._spend_chatter()

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with content")
            self.settings_acknowledged = True
            self._spend_chatter()
            return
        self._spend_chatter()
        for identifier, value in frames.parse_settings(payload):
            if identifier == Setting.INITIAL_WINDOW_SIZE:
                self._initial_window(value)
            elif identifier == Setting.MAX_FRAME_SIZE:
                if not frames.FRAME_BYTES_DEFAULT <= value <= frames.FRAME_BYTES_LIMIT:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of range")
                self.frame_max = value
            elif identifier == Setting.HEADER_TABLE_SIZE:
                # Our encoder starts at 4,096 and uses nothing: one update to zero suits any value.
                if value < limits.HTTP2_HEADER_TABLE_BYTES:
                    self._size_update = True
            elif identifier == Setting.ENABLE_PUSH and value > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH neither 0 nor 1")
        self._set_quick()
        self.out.append(_SETTINGS_ACK)
        if self.blocked:
            self._pump_blocked()

    def _initial_window(self, value: int) -> None:
        """Section 6.9.2: the change applies to open streams; their windows may turn negative."""
        if value > frames.WINDOW_MAX:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE too large")
        change = value - self.peer_stream_window
        self.peer_stream_window = value
        for stream in self.streams.values():
            stream.window += change
            if stream.window > frames.WINDOW_MAX:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window overflow")

    def _ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING not of 8 bytes")
        if flags & frames.ACK:
            self._keepalive_sent = None
            if payload == _DRAIN_PING:
                self._refuse_new()
            else:
                self._spend_chatter()
            return
        # gRPC's keepalive policy: pings closer than allowed, with nothing answered in between,
        # are strikes. With no call open, the allowed distance is hours. A ping behind an answer is
        # free: Go's client sends one a round trip, to learn how large a window should be.
        if self.answered:
            self.answered = False
            self._ping_strikes = 0
        else:
            self._spend_chatter()
            idle = not self.streams
            distance = limits.GRPC_IDLE_PINGS_MIN_SECONDS if idle else self.pings_min_seconds
            if self.now - self._last_ping < distance:
                self._ping_strikes += 1
                strikes_max = limits.GRPC_PING_STRIKES_MAX
                if self._ping_strikes > strikes_max and self.pings_min_seconds > 0:
                    raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._last_ping = self.now
        self.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _spend_chatter(self) -> None:
        if not self._chatter.spend(self.now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames to no purpose")

    def _spend_reset(self) -> None:
        if not self._resets.spend(self.now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset")

    # ---- endings

    def _forget(self, stream: Stream, how: int = 0) -> None:
        """Take `stream` out of every list; nothing is told to it."""
        stream_id = stream.stream_id
        self.streams.pop(stream_id, None)
        if self.deadlines:
            self.deadlines.pop(stream_id, None)
        if stream.held:
            self.input_bytes -= stream.held
            stream.held = 0
        if stream.pending is not None:
            self.held_bytes -= len(stream.pending)
            stream.pending = None
            self.blocked.pop(stream_id, None)
        if stream.waiting:
            stream.waiting = False
            self.waiting.pop(stream_id, None)
        if how:
            self._remember_reset(stream_id, how)

    def _remember_reset(self, stream_id: int, how: int) -> None:
        kept = self._reset_streams
        if len(kept) >= limits.HTTP2_ENDED_STREAMS_KEPT:
            del kept[next(iter(kept))]
        kept[stream_id] = how

    def _cancel(self, stream: Stream, code: ErrorCode) -> None:
        if not stream.ended:
            stream.ended = True
            stream.cancelled(code)

    def _fail_stream(self, fault: StreamFault) -> None:
        """Section 5.4.2. Resets that the peer provokes are paid for as its own are."""
        self._spend_reset()
        self.out.append(frames.rst_stream(fault.stream_id, fault.code))
        stream = self.streams.get(fault.stream_id)
        if stream is None:
            self._remember_reset(fault.stream_id, _RESET_BY_US)
            return
        self._forget(stream, _RESET_BY_US)
        self._cancel(stream, fault.code)

    def fail(self, fault: ConnectionFault) -> None:
        """Section 5.4.1: say why in a GOAWAY, and end everything."""
        if self.closed:
            return
        self.fault = fault
        self._emit(frames.goaway(self.last_stream_id, fault.code, fault.text))
        self._close(fault.code)

    def lost(self) -> None:
        """The socket is gone: every open stream is cancelled."""
        if not self.closed:
            self._close(ErrorCode.CANCEL)

    def _close(self, code: ErrorCode) -> None:
        self.closed = True
        self.quick_bytes = 0
        self._rest = b""
        for stream in list(self.streams.values()):
            self._forget(stream)
            self._cancel(stream, code)

    # ---- time

    def tick(self, now: float) -> None:
        """Handshake, acknowledgement, keepalive, stall and drain. Call about once a second."""
        if self.closed:
            return
        self.now = now
        age = now - self.opened_at
        if self._greeted < 2 and age > limits.HTTP2_HANDSHAKE_SECONDS:
            self.fail(ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no SETTINGS in time"))
        elif not self.settings_acknowledged and age > 3 * limits.HTTP2_HANDSHAKE_SECONDS:
            self.fail(ConnectionFault(ErrorCode.SETTINGS_TIMEOUT, "SETTINGS not acknowledged"))
        elif self.paused:
            if now - self._paused_at > limits.HTTP2_STALL_SECONDS:
                self.fail(ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "output not read"))
        elif self._keepalive_sent is not None:
            if self.received_at > self._keepalive_sent:
                self._keepalive_sent = None
            elif now - self._keepalive_sent > limits.GRPC_KEEPALIVE_TIMEOUT_SECONDS:
                self.fail(ConnectionFault(ErrorCode.NO_ERROR, "keepalive ping not answered"))
        elif now - self.received_at > limits.GRPC_KEEPALIVE_SECONDS:
            self._keepalive_sent = now
            self._emit(frames.frame(frames.PING, 0, 0, _KEEPALIVE_PING))
        if self._full and self.held_bytes < limits.CONNECTION_OUTPUT_BYTES_MAX:
            self._tell_waiting()
        if self._drain_at is not None and now >= self._drain_at and not self._refusing:
            self._refuse_new()

    def expire(self, now: float) -> None:
        """Tell every stream whose deadline has passed."""
        self.now = now
        due = [stream_id for stream_id, at in self.deadlines.items() if at <= now]
        for stream_id in due:
            del self.deadlines[stream_id]
            self.streams[stream_id].expired()

    def drain(self, now: float) -> None:
        """Section 6.8: announce the end, take on nothing after a round trip, finish what is open.

        `closed` turns true once the last open stream has ended; see `finish_drain`.
        """
        if self.draining or self.closed:
            return
        self.draining = True
        self.now = now
        self._drain_at = now + _DRAIN_SECONDS
        self._emit(frames.goaway(frames.STREAM_ID_MAX, ErrorCode.NO_ERROR, "draining"))
        self._emit(frames.frame(frames.PING, 0, 0, _DRAIN_PING))

    def _refuse_new(self) -> None:
        if self.draining and not self._refusing:
            self._refusing = True
            self._emit(frames.goaway(self.last_stream_id, ErrorCode.NO_ERROR, "draining"))
            self.finish_drain()

    def finish_drain(self) -> bool:
        """Whether a draining connection has nothing left to do; it is closed then."""
        if self._refusing and not self.streams and not self.closed:
            self._close(ErrorCode.NO_ERROR)
            self._emit(b"")
        return self.closed

    # ---- output

    def _emit(self, data: bytes) -> None:
        self.out.append(data)
        if not self.scheduled:
            self.scheduled = True
            if self.wake is not None:
                self.wake()

    def touch(self) -> None:
        """Output was appended to `out`: have it flushed once this turn."""
        if not self.scheduled:
            self.scheduled = True
            if self.wake is not None:
                self.wake()

    def flushed(self) -> None:
        """The output taken is with the socket: go on with what one turn had no room for."""
        if self._over_turn and not self.paused:
            self._over_turn = False
            self._pump_blocked()
            self._tell_waiting()

    def pause(self, now: float) -> None:
        """The socket's buffer is full: data stays here, streams are told to wait."""
        self.paused = True
        self._paused_at = now
        self._set_quick()

    def resume(self) -> None:
        """The socket's buffer has drained."""
        self.paused = False
        self._set_quick()
        self._pump_blocked()
        self._tell_waiting()

    def wait(self, stream: Stream) -> None:
        """Have `stream.drained` called once it is worth sending more."""
        if self.held_bytes >= limits.CONNECTION_OUTPUT_BYTES_MAX:
            self._full = True
        if self.turn_bytes >= limits.HTTP2_TURN_OUTPUT_BYTES:
            self._over_turn = True
        if not stream.waiting and not stream.ended:
            stream.waiting = True
            self.waiting[stream.stream_id] = stream

    def _tell_waiting(self) -> None:
        self._full = False
        for stream in list(self.waiting.values()):
            if stream.waiting:  # one told before may have had this one told, or ended
                self._maybe_drained(stream)

    def _set_quick(self) -> None:
        self.quick_bytes = 0 if self.paused or self._size_update or self.closed else self.frame_max

    def send_headers(self, stream: Stream, block: bytes, *, end_stream: bool = False) -> None:
        """A header section, at once: it is not subject to flow control."""
        if self._size_update:
            self._size_update = False
            self._set_quick()
            block = header_blocks.TABLE_EMPTIED + block
        stream_id = stream.stream_id
        flags = frames.END_STREAM if end_stream else 0
        limit = self.frame_max
        if len(block) <= limit:
            self._emit(frames.frame(frames.HEADERS, flags | 4, stream_id, block))
        else:
            self._emit(frames.frame(frames.HEADERS, flags, stream_id, block[:limit]))
            for at in range(limit, len(block), limit):
                last = frames.END_HEADERS if at + limit >= len(block) else 0
                self._emit(
                    frames.frame(frames.CONTINUATION, last, stream_id, block[at : at + limit])
                )
        if end_stream:
            self.sent_all(stream)

    def send_data(self, stream: Stream, data: bytes) -> None:
        """Content, as far as windows and the socket allow now; the rest later, in order."""
        if stream.ended:
            return
        pending = stream.pending
        size = len(data)
        if pending is None:
            if (
                size <= self.quick_bytes
                and size <= stream.window
                and size <= self.send_window
                and self.turn_bytes < limits.HTTP2_TURN_OUTPUT_BYTES
            ):
                self.turn_bytes += size
                stream.window -= size
                self.send_window -= size
                self.answered = True
                self._emit(frames.frame(frames.DATA, 0, stream.stream_id, data))
                return
            # Most of a long message may go: only the rest is kept.
            with memoryview(data) as view:
                sent = self._send_frames(stream, view)
                if sent == size:
                    return
                stream.pending = bytearray(view[sent:])
            self.held_bytes += size - sent
            self._block(stream)
        else:
            pending += data
            self.held_bytes += size
            self._pump(stream)

    def _send_frames(self, stream: Stream, view: memoryview) -> int:
        """Send what may be sent now of `view`; how many bytes."""
        if self.paused:
            return 0
        at, size = 0, len(view)
        while at < size and self.turn_bytes < limits.HTTP2_TURN_OUTPUT_BYTES:
            room = min(stream.window, self.send_window, self.frame_max, size - at)
            if room <= 0:
                break
            stream.window -= room
            self.send_window -= room
            self.turn_bytes += room
            self.out += (
                frames.head(frames.DATA, 0, stream.stream_id, room),
                bytes(view[at : at + room]),
            )
            at += room
        if at:
            self.answered = True
            self.touch()
        return at

    def _block(self, stream: Stream) -> None:
        """What is left of `stream.pending` waits for windows, the socket or the next turn."""
        if self.turn_bytes >= limits.HTTP2_TURN_OUTPUT_BYTES:
            self._over_turn = True
        self.blocked[stream.stream_id] = stream

    def send_trailers(self, stream: Stream, block: bytes) -> None:
        """The end of the answer, after all its content. Nothing may follow."""
        if stream.ended:
            return
        stream.ended = True
        if stream.pending is None:
            self.send_headers(stream, block, end_stream=True)
        else:
            stream.trailers = block

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream without an answer (section 6.4); nothing is told to it."""
        if self.streams.get(stream.stream_id) is stream:
            stream.ended = True
            self._forget(stream, _RESET_BY_US)
            self._emit(frames.rst_stream(stream.stream_id, code))
            if self._refusing:
                self.finish_drain()

    def sent_all(self, stream: Stream) -> None:
        """END_STREAM has been sent. A request still coming in is cut short (section 8.1)."""
        stream.ended = True
        self.answered = True
        if stream.remote_closed:
            self._forget(stream)
        else:
            self._forget(stream, _RESET_BY_US)
            self._emit(frames.rst_stream(stream.stream_id, ErrorCode.NO_ERROR))
        if self._refusing:
            self.finish_drain()

    def _pump(self, stream: Stream) -> None:
        """Send what may be sent of `stream.pending`, then the trailers that wait behind it."""
        pending = stream.pending
        if pending is None:
            return
        with memoryview(pending) as view:
            sent = self._send_frames(stream, view)
        self.held_bytes -= sent
        if sent < len(pending):
            del pending[:sent]
            self._block(stream)
        else:
            stream.pending = None
            self.blocked.pop(stream.stream_id, None)
            if stream.trailers is not None:
                self.send_headers(stream, stream.trailers, end_stream=True)
        if stream.waiting:
            self._maybe_drained(stream)
        if self._full and self.held_bytes < limits.CONNECTION_OUTPUT_BYTES_MAX:
            self._tell_waiting()

    def _pump_blocked(self) -> None:
        """Serve the streams that wait for the connection's window, the longest waiting first."""
        blocked, self.blocked = self.blocked, {}
        for stream in blocked.values():
            self._pump(stream)

    def _maybe_drained(self, stream: Stream) -> None:
        """Tell a waiting stream to send more, or see to it that what hinders it comes back here."""
        pending = stream.pending
        if self.paused:
            return  # `resume` asks again
        if self.turn_bytes >= limits.HTTP2_TURN_OUTPUT_BYTES:
            self._over_turn = True  # `flushed` asks again
        elif self.held_bytes >= limits.CONNECTION_OUTPUT_BYTES_MAX:
            self._full = True  # `_pump` and `tick` ask again
        elif pending is None or len(pending) < limits.HTTP2_STREAM_OUTPUT_BYTES_HIGH // 2:
            stream.waiting = False
            self.waiting.pop(stream.stream_id, None)
            if not stream.ended:
                stream.drained()

    # ---- request content

    def hold(self, stream: Stream, size: int) -> bool:
        """Account for `size` octets of request content kept for `stream`; False over the bound.

        `size` replaces what was held before.
        """
        self.input_bytes += size - stream.held
        stream.held = size
        return self.input_bytes <= limits.HTTP2_CONNECTION_INPUT_BYTES_MAX

    def grant(self, stream: Stream, size: int) -> None:
        """Let the peer send `size` more octets (section 6.9), gathered into few frames."""
        stream.ungranted += size
        if stream.ungranted >= _STREAM_WINDOW // 2 and not stream.remote_closed:
            stream.credit += stream.ungranted
            self._emit(frames.window_update(stream.stream_id, stream.ungranted))
            stream.ungranted = 0
