"""The asyncio shell: carries bytes between a transport and a `ServerConnection`, and keeps time."""

from __future__ import annotations

import asyncio
import logging

from raftkv import limits
from raftkv.api.grpc.connection import ServerConnection
from raftkv.api.grpc.frames import ConnectionFault, ErrorCode
from raftkv.api.grpc.server import GrpcServer

_log = logging.getLogger(__name__)
_TICK_SECONDS = 1.0
_DEADLINE_TICK_SECONDS = 0.02
_LINGER_SECONDS = 1.0


class GrpcShell:
    """The clock of a `GrpcServer`, and the maker of its protocols. Needs a running loop."""

    def __init__(self, server: GrpcServer) -> None:
        self.server = server
        self.loop = asyncio.get_running_loop()
        self._tick: asyncio.TimerHandle | None = self.loop.call_later(_TICK_SECONDS, self._ticked)
        self._expire: asyncio.TimerHandle | None = None
        server.on_timed = self._arm

    def protocol(self) -> GrpcProtocol:
        """A protocol for one accepted connection; pass it to `create_server` or `set_protocol`."""
        return GrpcProtocol(self)

    def _ticked(self) -> None:
        self._tick = self.loop.call_later(_TICK_SECONDS, self._ticked)
        self.server.tick(self.loop.time())

    def _arm(self) -> None:
        if self._expire is None and self._tick is not None:
            self._expire = self.loop.call_later(_DEADLINE_TICK_SECONDS, self._expired)

    def _expired(self) -> None:
        self._expire = None
        if self.server.expire(self.loop.time()):
            self._arm()

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Drain: GOAWAY, let open calls end for `grace_seconds`, fail the rest, hang up."""
        server = self.server
        server.drain(self.loop.time())
        end = self.loop.time() + grace_seconds
        while server.connections and self.loop.time() < end:
            await asyncio.sleep(0.02)
        server.stop_calls()
        for connection in list(server.connections):
            connection.fail(ConnectionFault(ErrorCode.NO_ERROR, "server is stopping"))
        end = self.loop.time() + 2 * _LINGER_SECONDS
        while server.connections and self.loop.time() < end:
            await asyncio.sleep(0.02)
        self.close()

    def close(self) -> None:
        """Stop the clock; nothing is timed from now on."""
        for timer in (self._tick, self._expire):
            if timer is not None:
                timer.cancel()
        self._tick = self._expire = None


class GrpcProtocol(asyncio.Protocol):
    """One connection. Clear text or TLS, accepted or handed over: it does not care.

    A listener that has sniffed the first bytes calls `connection_made(transport)`, then
    `data_received(bytes it has read)`, and sets this as the transport's protocol.
    """

    __slots__ = ("_connection", "_hanging_up", "_loop", "_server", "_transport")

    def __init__(self, shell: GrpcShell) -> None:
        self._server = shell.server
        self._loop = shell.loop
        self._hanging_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._connection: ServerConnection = self._server.connect(
            now=self._loop.time(), wake=self._wake
        )
        self._connection.info = transport.get_extra_info
        self._transport.set_write_buffer_limits(high=limits.MIB)
        self._flush()

    def data_received(self, data: bytes) -> None:
        connection = self._connection
        self._server.bytes_received += len(data)
        try:
            connection.receive(data, self._loop.time())
        except Exception:
            _log.exception("HTTP/2 connection failed by a bug")
            connection.fail(ConnectionFault(ErrorCode.INTERNAL_ERROR, "internal error"))
        self._flush()

    def eof_received(self) -> bool:
        """Half-closed by the client: nobody is left to send requests, so end."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.disconnect(self._connection)

    def pause_writing(self) -> None:
        # A client that does not read is not read from: its output cannot grow without bound.
        self._connection.pause(self._loop.time())
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._connection.resume()
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _wake(self) -> None:
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        connection = self._connection
        out = connection.take_output()
        if out:
            self._server.bytes_sent += len(out)
            self._transport.write(out)
        connection.flushed()
        if connection.closed and not self._hanging_up:
            self._hang_up()

    def _hang_up(self) -> None:
        """Let the last frames arrive: closing with input unread would make the kernel reset."""
        self._hanging_up = True
        transport = self._transport
        if transport.is_closing():
            return
        if connection_stalled(transport):
            transport.abort()
        elif transport.can_write_eof():
            transport.write_eof()
            self._loop.call_later(_LINGER_SECONDS, transport.close)
        else:
            transport.close()


def connection_stalled(transport: asyncio.Transport) -> bool:
    """Whether so much output waits that closing politely would wait for a client that is deaf."""
    return transport.get_write_buffer_size() > limits.MIB
