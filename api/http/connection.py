"""The asyncio shell of one HTTP/1.1 connection.

Requests are answered one at a time and in order, whatever was pipelined; what waits is bounded by
one read from the socket, because reading pauses behind it. Output is gathered and written once a
turn of the loop. There is no task and no timer here: handlers answer by callback, and one sweep of
the listener looks after the deadlines of all connections.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from raftkv.api.http.exchange import Exchange
from raftkv.api.http.parser import Request, RequestParser
from raftkv.api.http.refusals import RequestTimedOut
from raftkv.limits import (
    CONNECTION_OUTPUT_BYTES_MAX,
    HTTP_IDLE_SECONDS,
    HTTP_LINGER_SECONDS,
    HTTP_PIPELINE_BYTES_MAX,
    HTTP_PIPELINE_REQUESTS_MAX,
    HTTP_REQUEST_SECONDS,
    HTTP_STREAM_BUFFER_BYTES,
)

if TYPE_CHECKING:
    from raftkv.api.http.door import HttpDoor
    from raftkv.api.listener import Listener


class HttpConnection(asyncio.Protocol):
    """Feeds one `RequestParser` and writes the answers of its exchanges."""

    __slots__ = (
        "_begun",
        "_closing",
        "_current",
        "_door",
        "_ended",
        "_listener",
        "_message_since",
        "_out",
        "_out_bytes",
        "_parser",
        "_paused",
        "_pumping",
        "_queue",
        "_queued_bytes",
        "_reading_paused",
        "_since",
        "_take",
        "_transport",
        "writable",
    )

    def __init__(self, door: HttpDoor, listener: Listener) -> None:
        self._door = door
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._parser = RequestParser(self._arrived, self._continue)
        self._current: Exchange | None = None
        self._queue: deque[Request] = deque()
        self._queued_bytes = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._paused = False
        self.writable = True
        """The client keeps up: what is waiting to be sent is below the stream buffer's size."""
        self._reading_paused = False
        self._pumping = False
        self._closing = False
        """Nothing more is answered; what was written is still being sent."""
        self._ended = False
        """The client has closed its sending side."""
        self._take: Callable[[bytes], None] | None = None
        """Where bytes go since the connection speaks another protocol."""
        self._begun = 0
        self._since = listener.now
        self._message_since = listener.now

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._transport.set_write_buffer_limits(high=HTTP_STREAM_BUFFER_BYTES)  # type: ignore[union-attr]
        self._listener.connections.add(self)
        self._door.counters.connections += 1
        keep_tcp_alive(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._transport = None
        self._listener.left(self)
        self._door.counters.connections -= 1
        self._queue.clear()
        self._out.clear()
        self._parser.close()
        current, self._current = self._current, None
        if current is not None:
            current.lost()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # lingering: read and forget, so that the last answer is not reset away
        parser = self._parser
        self._since = self._listener.now
        if self._take is not None:
            self._take(data)
            return
        parser.feed(data)
        if parser.begun != self._begun:
            self._begun = parser.begun
            self._message_since = self._since
        if self._current is not None or self._queue:
            self._queued_bytes += len(data)
            if (
                self._queued_bytes > HTTP_PIPELINE_BYTES_MAX
                or len(self._queue) > HTTP_PIPELINE_REQUESTS_MAX
            ):
                self._pause_reading()

    def eof_received(self) -> bool:
        current = self._current
        if self._closing or (current is None and not self._queue):
            return False
        if current is not None and (current.streaming or current.on_lost is not None):
            return False  # nobody listens to an unending answer with one ear closed
        self._ended = True
        return True

    def pause_writing(self) -> None:
        self._paused = True
        self.writable = False

    def resume_writing(self) -> None:
        self._paused = False
        self._since = self._listener.now
        if not self._out:
            self._room()

    # What the parser calls.

    def _arrived(self, request: Request) -> None:
        if self._closing:
            return
        if self._current is None and self.writable and not self._queue:
            self._begin(request)
        else:
            self._queue.append(request)

    def _continue(self) -> None:
        # Behind unanswered requests the client has to wait, or to send without being asked.
        if self._current is None and not self._queue:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # What exchanges call.

    @property
    def source(self) -> str:
        """The client's address, without the port."""
        transport = self._transport
        name = None if transport is None else transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) and name else ""

    @property
    def secure(self) -> bool:
        """Whether the client came over TLS."""
        transport = self._transport
        return transport is not None and transport.get_extra_info("ssl_object") is not None

    @property
    def certified(self) -> str | None:
        """The user that the client's certificate stands for."""
        transport = self._transport
        return None if transport is None else transport.get_extra_info("certified_user")

    def write(self, data: bytes) -> None:
        """Gather output for this turn of the loop."""
        out = self._out
        if not out:
            self._listener.flush_soon(self)
        out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > HTTP_STREAM_BUFFER_BYTES:
            self.writable = False

    def take_over(self, take: Callable[[bytes], None]) -> None:
        """Nothing that the client sends from now on is HTTP."""
        self._take = take

    def finished(self, exchange: Exchange) -> None:
        """An answer is complete; go on with the next request, or close."""
        self._current = None
        if not exchange.keep_alive:
            self._close(lingering=exchange.request.refusal is not None)
            return
        self._queued_bytes = 0
        self._since = self._message_since = self._listener.now
        if self._queue and not self._pumping:
            self._pump()
        elif self._current is None and not self._queue:
            if self._ended:
                self._close()
            elif self._reading_paused:
                self._resume_reading()

    # Within.

    def _begin(self, request: Request) -> None:
        self._current = exchange = Exchange(self, self._door, request)
        self._door.handle(exchange)

    def _pump(self) -> None:
        """Begin waiting requests until one has to wait. A loop, so that a thousand pipelined
        requests answered at once are not a thousand frames deep."""
        self._pumping = True
        queue = self._queue
        while queue and self._current is None and self.writable and not self._closing:
            self._begin(queue.popleft())
        self._pumping = False
        if not queue and self._current is None and not self._closing:
            if self._ended:
                self._close()
            elif self._reading_paused:
                self._resume_reading()

    def flush(self) -> None:
        """Hand this turn's output to the transport: one write."""
        out = self._out
        transport = self._transport
        if transport is None or not out:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._out_bytes = 0
        transport.write(data)
        if self._paused:
            if transport.get_write_buffer_size() > CONNECTION_OUTPUT_BYTES_MAX:
                transport.abort()
        elif not self.writable:
            self._room()

    def _room(self) -> None:
        self.writable = True
        if self._current is not None:
            self._current.wake()
        elif self._queue and not self._pumping:
            self._pump()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._reading_paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    def _close(self, lingering: bool = False) -> None:
        self._closing = True
        self._queue.clear()
        self.flush()
        transport = self._transport
        if transport is None:
            return
        self._since = self._listener.now
        if lingering and not self._ended and transport.can_write_eof():
            # Closing with unread input resets the connection, and the client might lose the
            # answer that says what was wrong. So: end our side, read to nowhere for a moment.
            if self._reading_paused:
                self._resume_reading()
            transport.write_eof()
        else:
            transport.close()

    # What the listener calls.

    def sweep(self, now: float) -> None:
        """Close what is over its time. Called about once a second."""
        transport = self._transport
        if transport is None:
            return
        if self._closing:
            if now - self._since > HTTP_LINGER_SECONDS and not self._sending(transport):
                transport.abort()
        elif self._paused:
            if now - self._since > HTTP_IDLE_SECONDS:
                transport.abort()
        elif self._current is not None:
            return
        elif self._parser.mid_message:
            if now - self._message_since > HTTP_REQUEST_SECONDS:
                self._parser.timed_out(
                    RequestTimedOut(f"The request was not complete in {HTTP_REQUEST_SECONDS} s")
                )
        elif now - self._since > (HTTP_IDLE_SECONDS if self._begun else HTTP_REQUEST_SECONDS):
            self._close()

    def _sending(self, transport: asyncio.Transport) -> bool:
        waiting: int = transport.get_write_buffer_size()
        return waiting > 0 and self._listener.now - self._since < HTTP_IDLE_SECONDS

    def under_way(self) -> Iterable[Any]:
        """See `raftkv.api.listener.Connection`. Streams, and calls that wait for something to
        happen, say so by `on_stopping`."""
        current = self._current
        if current is None or current.streaming or current.on_stopping is not None:
            return ()
        return (current,)

    def drain(self) -> None:
        """The member stops: close when idle, end what would never end by itself."""
        if self._current is not None:
            self._current.stop()
        elif not self._queue:
            self._close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


def keep_tcp_alive(transport: asyncio.BaseTransport) -> None:
    """Let the kernel find peers that vanished without a word, which no idle watch would."""
    sock: Any = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
