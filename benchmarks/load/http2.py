"""The client's side of HTTP/2 and gRPC, without I/O, made to cost next to nothing.

A request is a few bytes objects joined: its header block repeats once HPACK's dynamic table has
settled, so it is encoded once; answers' blocks repeat too and are looked up. What a well-behaved
gRPC server never sends (padding, CONTINUATION) is refused.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Final, Protocol

import hpack

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5
WINDOW_DEFAULT: Final = 65_535
WINDOW_MAX: Final = (1 << 31) - 1
FRAME_BYTES: Final = 16_384
RESET: Final = 1000
"""Added to the code of RST_STREAM, so that it is told from a gRPC status."""
NO_STATUS: Final = -1

_HEAD = struct.Struct(">HBBBI")
_RENEW = 1 << 30


class LoadError(Exception):
    """What was measured is worth nothing: a server broke the protocol or ended the connection."""


class Listener(Protocol):
    """Who is told of answers."""

    def message(self, connection: ClientConnection, stream: int, message: bytes) -> None:
        """A whole gRPC message, without its prefix."""

    def ended(self, connection: ClientConnection, stream: int, status: int) -> None:
        """The stream is over; its gRPC status, or RESET and a code."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload


def prefixed(message: bytes) -> bytes:
    """A gRPC message as it goes on the wire, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class ClientConnection:
    """One connection: `open` and `send` fill `out`; `receive` tells the listener.

    Flow control is kept in both directions: small requests pass at once, large ones in pieces as
    the windows open; the server's windows are as large as they go.
    """

    def __init__(self, authority: str, listener: Listener) -> None:
        self.out: list[bytes] = [
            PREFACE
            + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, WINDOW_MAX))
            + frame(WINDOW_UPDATE, 0, 0, (WINDOW_MAX - WINDOW_DEFAULT).to_bytes(4, "big"))
        ]
        self.now = 0.0
        """When the bytes in hand arrived, seconds."""
        self.last_error = ""
        """What the last refusal said."""
        self.pending: dict[int, Any] = {}
        """The listener's own notes on each open stream."""
        self._authority, self._listener = authority, listener
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._blocks: dict[str, tuple[bytes, bytes]] = {}
        self._statuses: dict[bytes, int] = {}
        self._next_stream = 1
        self._rest = b""
        self._parts: dict[int, bytearray] = {}
        self._window = WINDOW_DEFAULT
        self._stream_window = WINDOW_DEFAULT
        self._frame_bytes = FRAME_BYTES
        self._windows: dict[int, int] = {}
        self._blocked: deque[tuple[int, memoryview, bool]] = deque()
        self._received = 0

    def open(self, path: str, body: bytes, *, end: bool = True) -> int:
        """Begin a call with its first message, prefixed; `end` if there is no other."""
        stream = self._next_stream
        self._next_stream += 2
        sid = stream.to_bytes(4, "big")
        head, block = self._blocks.get(path) or self._encoded(path)
        size = len(body)
        self.out += (head, sid, block)
        if (
            end
            and not self._blocked
            and size <= self._window
            and size <= FRAME_BYTES
            and size <= self._stream_window
        ):
            self._window -= size
            self.out += (size.to_bytes(3, "big") + b"\0\1", sid, body)
        else:
            self._windows[stream] = self._stream_window
            self.send(stream, body, end=end)
        return stream

    def send(self, stream: int, body: bytes, *, end: bool = False) -> None:
        """Another message, prefixed, of a call that was opened without `end`."""
        self._blocked.append((stream, memoryview(body), end))
        self._send_blocked()

    def take(self) -> bytes:
        """What is to be written now."""
        taken = b"".join(self.out)
        self.out.clear()
        return taken

    def receive(self, data: bytes, now: float) -> None:
        """Bytes from the server. Raises LoadError for what a sound server never says."""
        self.now = now
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        unpack = _HEAD.unpack_from
        while size - at >= 9:
            high, low, kind, flags, stream = unpack(data, at)
            end = at + 9 + (high << 8 | low)
            if end > size:
                break
            payload = data[at + 9 : end]
            at = end
            if kind == DATA and not flags & PADDED:
                self._data(stream, payload, flags)
            elif kind == HEADERS and flags & ~END_STREAM == END_HEADERS:
                self._headers(stream, payload, flags)
            else:
                self._control(kind, flags, stream, payload)
        self._rest = data[at:]

    def _data(self, stream: int, payload: bytes, flags: int) -> None:
        self._received += len(payload)
        if self._received > _RENEW:
            self.out.append(frame(WINDOW_UPDATE, 0, 0, self._received.to_bytes(4, "big")))
            self._received = 0
        if stream not in self._parts and len(payload) >= 5:
            length = int.from_bytes(payload[1:5], "big")
            if len(payload) == 5 + length:
                self._listener.message(self, stream, payload[5:])
                payload = b""
        if payload:
            part = self._parts.setdefault(stream, bytearray())
            part += payload
            self._messages(stream, part)
        if flags & END_STREAM:
            self._over(stream, NO_STATUS)

    def _messages(self, stream: int, part: bytearray) -> None:
        at = 0
        while len(part) - at >= 5:
            end = at + 5 + int.from_bytes(part[at + 1 : at + 5], "big")
            if end > len(part):
                break
            self._listener.message(self, stream, bytes(part[at + 5 : end]))
            at = end
        del part[:at]
        if not part:
            del self._parts[stream]

    def _headers(self, stream: int, block: bytes, flags: int) -> None:
        status = self._statuses.get(block)
        if status is None:
            status = self._decoded(block)
        if flags & END_STREAM:
            self._over(stream, status)

    def _over(self, stream: int, status: int) -> None:
        self._parts.pop(stream, None)
        self._windows.pop(stream, None)
        self._listener.ended(self, stream, status)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            if not stream:
                self._window += increment
            elif stream in self._windows:
                self._windows[stream] += increment
            self._send_blocked()
        elif kind == SETTINGS and not flags & ACK:
            for number, value in struct.iter_unpack(">HI", payload):
                if number == INITIAL_WINDOW_SIZE:
                    for open_stream in self._windows:
                        self._windows[open_stream] += value - self._stream_window
                    self._stream_window = value
                elif number == MAX_FRAME_SIZE:
                    self._frame_bytes = value
            self.out.append(frame(SETTINGS, ACK, 0))
            self._send_blocked()
        elif kind == PING and not flags & ACK:
            self.out.append(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            if code := int.from_bytes(payload, "big"):  # 0 follows a whole answer: RFC 9113, 8.1
                self._over(stream, RESET + code)
        elif kind == GOAWAY:
            raise LoadError(f"the server goes away: {payload[8:].decode(errors='replace')!r}")
        elif kind in (DATA, HEADERS) or kind == 9:
            raise LoadError(f"frame of kind {kind} with flags {flags} is not expected")

    def _send_blocked(self) -> None:
        while self._blocked:
            stream, rest, end = self._blocked[0]
            if stream not in self._windows:  # ended meanwhile
                self._blocked.popleft()
                continue
            size = min(len(rest), self._window, self._windows[stream], self._frame_bytes)
            if size <= 0:
                return
            last = size == len(rest)
            self._window -= size
            self._windows[stream] -= size
            flags = END_STREAM if end and last else 0
            self.out.append(frame(DATA, flags, stream, bytes(rest[:size])))
            if last:
                self._blocked.popleft()
                if end:
                    del self._windows[stream]
            else:
                self._blocked[0] = (stream, rest[size:], end)

    def _encoded(self, path: str) -> tuple[bytes, bytes]:
        """Head without its stream, and block, of a HEADERS frame; kept once it changes no more."""
        table = self._encoder.header_table
        before = list(table.dynamic_entries)
        block = self._encoder.encode([
            (":method", "POST"), (":scheme", "http"), (":path", path),
            (":authority", self._authority), ("content-type", "application/grpc"),
            ("user-agent", "raftkv-bench"), ("te", "trailers"),
        ])  # fmt: skip
        made = len(block).to_bytes(3, "big") + bytes((HEADERS, END_HEADERS)), block
        if before == list(table.dynamic_entries):
            self._blocks[path] = made
        else:
            self._blocks.clear()  # what was inserted moved everything before it
        return made

    def _decoded(self, block: bytes) -> int:
        table = self._decoder.header_table
        before = list(table.dynamic_entries)
        fields = {str(name): str(value) for name, value in self._decoder.decode(block)}
        if fields.get(":status", "200") != "200":
            raise LoadError(f"HTTP status {fields[':status']}")
        status = int(fields.get("grpc-status", NO_STATUS))
        if status > 0:
            self.last_error = f"{status} {fields.get('grpc-message', '')}".rstrip()
        if before != list(table.dynamic_entries):
            self._statuses.clear()
        elif status <= 0:
            self._statuses[block] = status
        return status
