"""A raw HTTP/2 client for tests: it can break any rule. No I/O."""

from __future__ import annotations

from typing import NamedTuple

import hpack

from raftkv.api.grpc import frames
from raftkv.api.grpc.calls import StreamCall, UnaryCall
from raftkv.api.grpc.connection import ServerConnection
from raftkv.api.grpc.frames import PREFACE, ErrorCode, Setting
from raftkv.api.grpc.messages import framed
from raftkv.api.grpc.server import GrpcServer

END_HEADERS = frames.END_HEADERS
END_STREAM = frames.END_STREAM

GRPC_FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t.T/Echo"),
    (":authority", "a"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


def fields(path: str = "/t.T/Echo", *extra: tuple[str, str]) -> list[tuple[str, str]]:
    """A valid gRPC request's fields."""
    return [(n, path if n == ":path" else v) for n, v in GRPC_FIELDS] + list(extra)


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes


def split(data: bytes) -> list[Frame]:
    """What the server sent, frame by frame; it must end on a frame's boundary."""
    found: list[Frame] = []
    at = 0
    while at < len(data):
        high, low, kind, flags, stream_id = frames.HEADER.unpack_from(data, at)
        stop = at + 9 + (high << 8 | low)
        assert stop <= len(data)
        found.append(Frame(kind, flags, stream_id, data[at + 9 : stop]))
        at = stop
    return found


class Peer:
    """Two ends in one place: a server connection, and the client that talks to it."""

    def __init__(self, server: GrpcServer | None = None, *, greet: bool = True) -> None:
        self.server = server or echo_server()
        self.now = 1000.0
        self.wakes = 0
        self.connection: ServerConnection = self.server.connect(now=self.now, wake=self._wake)
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.greeting = split(self.connection.take_output())
        if greet:
            self.send(PREFACE + frames.settings({}) + frames.frame(frames.SETTINGS, 1, 0))

    def _wake(self) -> None:
        self.wakes += 1

    def send(self, data: bytes) -> list[Frame]:
        """Give the server bytes; what it answers."""
        self.connection.receive(data, self.now)
        return self.read()

    def read(self) -> list[Frame]:
        """What the server has to say."""
        said = b""
        while turn := self.connection.take_output():
            assert len(turn) < 40 * 2**20
            said += turn
            self.connection.flushed()
        return split(said)

    def headers(
        self,
        stream_id: int,
        wanted: list[tuple[str, str]] | None = None,
        flags: int = END_HEADERS,
    ) -> bytes:
        """A HEADERS frame."""
        block = self.encoder.encode(wanted if wanted is not None else GRPC_FIELDS)
        return frames.frame(frames.HEADERS, flags, stream_id, block)

    def request(
        self,
        stream_id: int,
        message: bytes = b"hi",
        path: str = "/t.T/Echo",
        *extra: tuple[str, str],
    ) -> bytes:
        """A whole unary request."""
        return self.headers(stream_id, fields(path, *extra)) + data(
            stream_id, framed(message), END_STREAM
        )

    def fields_of(self, frame: Frame) -> dict[str, str]:
        """A header section of the server's."""
        assert frame.kind == frames.HEADERS
        return dict(self.decoder.decode(frame.payload))

    def answer(self, found: list[Frame], stream_id: int) -> tuple[list[bytes], dict[str, str]]:
        """The messages and the trailers on one stream."""
        body = b"".join(f.payload for f in found if f.kind == 0 and f.stream_id == stream_id)
        trailers: dict[str, str] = {}
        for each in found:
            if each.kind == frames.HEADERS and each.stream_id == stream_id:
                trailers = self.fields_of(each)
        messages = []
        while body:
            size = int.from_bytes(body[1:5], "big")
            messages.append(body[5 : 5 + size])
            body = body[5 + size :]
        return messages, trailers


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    """A DATA frame."""
    return frames.frame(frames.DATA, flags, stream_id, payload)


def goaway_of(found: list[Frame]) -> ErrorCode | None:
    """The code of the last GOAWAY, if there is one."""
    codes = [ErrorCode(frames.uint32(f.payload, 4)) for f in found if f.kind == frames.GOAWAY]
    return codes[-1] if codes else None


def resets_of(found: list[Frame]) -> dict[int, ErrorCode]:
    """The codes of RST_STREAM frames by stream."""
    return {
        f.stream_id: ErrorCode(frames.uint32(f.payload))
        for f in found
        if f.kind == frames.RST_STREAM
    }


def setting(which: Setting, value: int) -> bytes:
    """A SETTINGS frame with one setting."""
    return frames.settings({which: value})


class Log:
    """What handlers saw, in order."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.unary: list[UnaryCall] = []
        self.streams: list[StreamCall] = []


def echo_server(log: Log | None = None) -> GrpcServer:
    """Echo, Hold (answers later), Bidi and Sink methods."""
    log = log or Log()
    server = GrpcServer(on_error=log.seen.append)

    def echo(call: UnaryCall, message: bytes) -> None:
        call.reply(message)

    def hold(call: UnaryCall, message: bytes) -> None:
        log.unary.append(call)
        call.on_cancel = lambda: log.seen.append("cancel")

    def bidi(call: StreamCall) -> None:
        log.streams.append(call)
        call.on_message = call.send
        call.on_end = call.finish
        call.on_cancel = lambda: log.seen.append("cancel")

    def sink(call: StreamCall) -> None:
        log.streams.append(call)
        call.on_message = log.seen.append
        call.on_end = lambda: log.seen.append("end")
        call.on_drain = lambda: log.seen.append("drain")
        call.on_cancel = lambda: log.seen.append("cancel")

    server.unary("/t.T/Echo", echo)
    server.unary("/t.T/Hold", hold)
    server.streaming("/t.T/Bidi", bidi)
    server.streaming("/t.T/Sink", sink)
    return server
