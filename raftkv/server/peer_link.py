"""One connection between two members: frames in, frames out, and the handshake at its start."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from raftkv.errors import PeerError
from raftkv.limits import (
    PEER_HELLO_BYTES_MAX,
    PEER_WRITE_BUFFER_BYTES,
)
from raftkv.server.frames import (
    FrameKind,
    FrameParser,
    Hello,
    check_welcome,
    frame_header,
    welcome_level,
)
from raftkv.server.tls.identity import Identity

_REASON_BYTES_MAX = PEER_HELLO_BYTES_MAX // 2


class LinkOwner(Protocol):
    """Who uses a link. Calls come on the loop."""

    def frame(self, link: PeerLink, kind: int, payload: bytes) -> None:
        """A frame has come. A PeerError raised here ends the connection."""

    def writable(self, link: PeerLink) -> None:
        """The output has drained after `PeerLink.paused`."""

    def lost(self, link: PeerLink) -> None:
        """The connection has ended; `PeerLink.error` says why, if anybody knows."""


class LinkStats:
    """Totals over all links of a member, for metrics."""

    __slots__ = ("frames_in", "frames_out", "received", "sent")

    def __init__(self) -> None:
        self.frames_in = 0
        self.frames_out = 0
        self.received: dict[int, int] = {}
        """Bytes by member; 0: before the handshake told which."""
        self.sent: dict[int, int] = {}


class PeerLink(asyncio.Protocol):
    """A connection, dialled or accepted. Nothing that comes in raises past it."""

    def __init__(self, owner: LinkOwner, stats: LinkStats, frame_bytes_max: int) -> None:
        """`frame_bytes_max` bounds a frame once `open` is called; until then it is a HELLO's."""
        self.owner = owner
        self.peer = 0
        """Member id of the other side once the handshake has told it."""
        self.error: Exception | None = None
        self.paused = False
        """Too much output is waiting: write nothing until `LinkOwner.writable`."""
        self.closed = False
        self.ended = asyncio.Event()
        """Set when the connection is gone."""
        self._refused: str | None = None
        self._stats = stats
        self._frame_bytes_max = frame_bytes_max
        self._parser = FrameParser()
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        """When bytes last came in, in seconds of the loop's clock."""
        self._transport: asyncio.Transport | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=PEER_WRITE_BUFFER_BYTES)
        if self.closed:
            self._transport.abort()
        elif self._refused is not None:
            self.refuse(self._refused)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self.heard_at = self._loop.time()
        received = self._stats.received
        received[self.peer] = received.get(self.peer, 0) + len(data)
        parser = self._parser
        try:
            for kind, payload in parser.feed(data):
                self._stats.frames_in += 1
                self.owner.frame(self, kind, payload)
                if self.closed:
                    return
            if parser.error is not None:
                raise parser.error
        except PeerError as error:
            self.fail(error)

    def pause_writing(self) -> None:
        """Called by the loop."""
        self.paused = True

    def resume_writing(self) -> None:
        """Called by the loop."""
        self.paused = False
        if not self.closed:
            self.owner.writable(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop, once."""
        self.closed = True
        if self.error is None:
            self.error = exc
        self.ended.set()
        self.owner.lost(self)

    # For owners

    @property
    def address(self) -> str:
        """Of the other side, for logs."""
        name = None if self._transport is None else self._transport.get_extra_info("peername")
        return f"{name[0]}:{name[1]}" if name else "?"

    @property
    def identity(self) -> Identity | None:
        """What the other side's certificate proved, if there was one."""
        return None if self._transport is None else self._transport.get_extra_info("identity")

    @property
    def waiting_bytes(self) -> int:
        """Output that the kernel has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def open(self) -> None:
        """The handshake is over: frames may have their full size."""
        self._parser.bytes_max = self._frame_bytes_max

    def send(self, kind: int, payload: bytes) -> None:
        """Write one frame. Without effect once the link is closed."""
        self.send_all([(kind, payload)])

    def send_all(self, frames: list[tuple[int, bytes]]) -> None:
        """Write frames, in one call to the transport. Without effect once the link is closed."""
        if self.closed or self._transport is None:
            return
        parts: list[bytes] = []
        for kind, payload in frames:
            parts.append(frame_header(kind, payload))
            parts.append(payload)
        self._stats.frames_out += len(frames)
        sent = self._stats.sent
        sent[self.peer] = sent.get(self.peer, 0) + sum(map(len, parts))
        if len(parts) == 2 and len(parts[1]) < 4096:
            self._transport.write(parts[0] + parts[1])
        else:
            self._transport.writelines(parts)

    def refuse(self, reason: str) -> None:
        """Tell the other side why, and end the connection once that is written."""
        if self._transport is None:
            self._refused = reason
            return
        self.send(FrameKind.REFUSED, reason.encode()[:_REASON_BYTES_MAX])
        self.error = PeerError(reason)
        self.hang_up()

    def hang_up(self) -> None:
        """End the connection once everything is written."""
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    def fail(self, error: Exception) -> None:
        """End the connection at once."""
        if self.error is None:
            self.error = error
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self, paused: bool) -> None:
        """Stop or go on taking bytes from the kernel."""
        if self._transport is None or self.closed:
            return
        if paused and self._transport.is_reading():
            self._transport.pause_reading()
        elif not paused and not self._transport.is_reading():
            self._transport.resume_reading()


class Greeting:
    """The dialler's half of a handshake: owns a link until it is welcome."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.level = 0
        """Feature level of the answerer, once it has answered."""
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, link: PeerLink) -> None:
        """Say HELLO and wait for the answer. Raises PeerError or OSError."""
        link.send(FrameKind.HELLO, self.hello.encode())
        await self._answer
        link.peer = self.hello.target
        link.open()

    def frame(self, link: PeerLink, kind: int, payload: bytes) -> None:
        """Take the one answer."""
        if self._answer.done():
            raise PeerError("a frame before it was asked for", kind=kind)
        if kind == FrameKind.WELCOME:
            check_welcome(payload, self.hello)
            self.level = welcome_level(payload)
            self._answer.set_result(None)
        elif kind == FrameKind.REFUSED:
            reason = payload[:_REASON_BYTES_MAX].decode(errors="replace")
            raise PeerError(f"refused: {reason}")
        else:
            raise PeerError("the handshake was answered with something else", kind=kind)

    def writable(self, link: PeerLink) -> None:
        """Nothing is waiting to be written."""

    def lost(self, link: PeerLink) -> None:
        """The connection ended before the answer, or while nobody owned it."""
        if not self._answer.done():
            self._answer.set_exception(link.error or ConnectionResetError("the peer hung up"))
