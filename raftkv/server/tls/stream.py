"""TLS on top of a connection of the loop: handshakes in a thread, records on the loop.

asyncio and uvloop do handshakes on the loop, a millisecond of signing and verifying each, so that
strangers who only knock could keep a leader from its heartbeats. Here a handshake's arithmetic
runs in the one thread of a `HandshakeDesk`, which bounds how many are under way and how long
each may take. What comes after it is symmetric, cheap, and stays on the loop: a write is one
write to the kernel.

The context is asked for at each handshake, so that new files count for the next connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol, cast

from raftkv.errors import PeerError
from raftkv.limits import TLS_CAUSES_MAX, TLS_HANDSHAKE_BYTES_MAX, TLS_RECORD_BYTES_MAX
from raftkv.server.tls.identity import Identity, identity_of

log = logging.getLogger(__name__)

Bytes = bytes | bytearray | memoryview
_FAILURES: Final = (OSError, ValueError, PeerError)
"""What a handshake may fail with; `ssl.SSLError` is an OSError."""


class Side(Protocol):
    """One side of a handshake. Called in the desk's thread."""

    @property
    def server_side(self) -> bool: ...

    def context(self) -> ssl.SSLContext:
        """The context to use now."""

    def examine(self, identity: Identity | None) -> None:
        """Raise PeerError unless the other side, which proved to be this, is welcome."""

    def user_of(self, identity: Identity | None) -> str | None:
        """The user that a certificate stands for; None: nobody in particular."""


class HandshakeDesk:
    """The handshakes under way on one port, or towards the peers. Lives on the running loop.

    Once `most` are under way the oldest gives way to a new one: an honest one takes milliseconds,
    so what is old is what waits for nothing.
    """

    def __init__(self, name: str, *, most: int, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.done = 0
        self.failed = 0
        self._most = most
        self._seconds = seconds
        self._name = name
        self._under_way: dict[TlsStream, asyncio.TimerHandle] = {}
        self._causes: set[str] = set()
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftkv-tls")

    @property
    def under_way(self) -> int:
        """How many handshakes have begun and not ended."""
        return len(self._under_way)

    def close(self) -> None:
        """The listener has closed: cut off what is under way, and end the thread."""
        self._closed = True
        for stream in list(self._under_way):
            stream.abort()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def begin(self, stream: TlsStream) -> None:
        """Count a handshake in, and give it its time."""
        if self._closed:
            stream.abort()  # accepted while the port was being closed
            return
        if len(self._under_way) >= self._most:
            next(iter(self._under_way)).give_up("too many handshakes at a time")
        self._under_way[stream] = self.loop.call_later(
            self._seconds, stream.give_up, f"no handshake within {self._seconds:g} s"
        )

    def end(self, stream: TlsStream, cause: str | None) -> None:
        """Count it out. `cause`: why it failed, if it did."""
        timer = self._under_way.pop(stream, None)
        if timer is None:
            return
        timer.cancel()
        if cause is None:
            self.done += 1
            return
        self.failed += 1
        # Strangers may knock a thousand times a second; the log hears of each cause once. Who
        # dials tells by itself.
        if stream.accepted and cause not in self._causes and len(self._causes) < TLS_CAUSES_MAX:
            self._causes.add(cause)
            log.warning(
                "TLS handshake of %s from %s failed: %s (said once)",
                self._name, stream.address, cause,
            )  # fmt: skip

    def submit(self, work: Callable[[], bool], done: Callable[[Future[bool]], None]) -> None:
        """Run `work` in the thread, then `done` on the loop."""

        def ended(future: Future[bool]) -> None:
            if not future.cancelled() and not self.loop.is_closed():
                self.loop.call_soon_threadsafe(done, future)

        self._thread.submit(work).add_done_callback(ended)


class TlsStream(asyncio.Transport, asyncio.Protocol):
    """A protocol to the network below, and a transport to the protocol above.

    The one above is made once the handshake is over and its peer is welcome; before that nothing
    of what came in has been shown to anybody. `get_extra_info` also knows ``identity`` (the
    `Identity` that a certificate proved, or None), ``certified_user`` and ``alpn``.
    """

    def __init__(
        self,
        desk: HandshakeDesk,
        side: Side,
        make: Callable[[TlsStream], asyncio.BaseProtocol],
        *,
        server_hostname: str | None = None,
        on_end: Callable[[Exception | None], None] | None = None,
    ) -> None:
        """`make(stream)` makes the protocol above. `on_end` hears how the handshake ended."""
        super().__init__()
        self._desk = desk
        self._side = side
        self._make = make
        self._server_hostname = server_hostname
        self._on_end = on_end
        self._raw: asyncio.Transport | None = None
        self._app: asyncio.Protocol | None = None
        self._ssl: ssl.SSLObject | None = None
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._identity: Identity | None = None
        self._early: list[bytes] = []
        """What came in while the thread has the handshake."""
        self._handshake_bytes = 0
        self._stepping = False
        self._paused = False
        self._closing = False
        self._heard_end = False
        """The other side has said that it sends no more."""
        self._said_end = False
        self._error: Exception | None = None

    # The network below.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._raw = cast(asyncio.Transport, transport)
        self._desk.begin(self)
        if not self._side.server_side:
            self._step()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._app is not None:
            if not self._said_end:
                self._in.write(data)
                self._deliver()
            return
        self._handshake_bytes += len(data)
        if self._handshake_bytes > TLS_HANDSHAKE_BYTES_MAX:
            self.give_up(f"a handshake of more than {TLS_HANDSHAKE_BYTES_MAX} bytes")
            return
        self._early.append(data)
        if not self._stepping:
            self._step()

    def eof_received(self) -> bool:
        """Called by the loop. An end that was not announced may be a forged one: no half-close."""
        return self._app is not None and self._heard_end and not self._closing

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop, once."""
        self._closing = True
        self._finish(self._error or exc or ConnectionResetError("the other side hung up"))
        if self._app is not None:
            self._app.connection_lost(self._error or exc)

    def pause_writing(self) -> None:
        """Called by the loop."""
        if self._app is not None:
            self._app.pause_writing()

    def resume_writing(self) -> None:
        """Called by the loop."""
        if self._app is not None:
            self._app.resume_writing()

    # The handshake.

    def give_up(self, reason: str) -> None:
        """Cut off a handshake."""
        self._error = PeerError(reason)
        self._finish(self._error)
        self.abort()

    def _step(self) -> None:
        if self._closing:
            return
        self._stepping = True
        self._pause_raw()
        data = b"".join(self._early)
        self._early.clear()
        self._desk.submit(lambda: self._compute(data), self._stepped)

    def _compute(self, data: bytes) -> bool:
        """One step of the handshake, in the thread; whether it is complete."""
        tls = self._ssl
        if tls is None:
            self._ssl = tls = self._side.context().wrap_bio(
                self._in,
                self._out,
                server_side=self._side.server_side,
                server_hostname=self._server_hostname,
            )
        self._in.write(data)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._identity = identity_of(tls)
        self._side.examine(self._identity)
        return True

    def _stepped(self, step: Future[bool]) -> None:
        self._stepping = False
        if self._closing or self._raw is None:
            return
        try:
            complete = step.result()
        except _FAILURES as error:
            self._error = error
            self._finish(error)
            self._closing = True
            self._send()  # the alert that tells why
            self._raw.close()
            return
        self._send()
        if not complete:
            self._resume_raw()
            if self._early:
                self._step()
            return
        self._in.write(b"".join(self._early))
        self._early.clear()
        self._app = cast(asyncio.Protocol, self._make(self))
        self._app.connection_made(self)
        self._finish(None)
        if not self._paused:
            self._resume_raw()
            self._deliver()

    def _finish(self, error: Exception | None) -> None:
        self._desk.end(self, None if error is None else _cause(error))
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(error)

    # Records.

    def _deliver(self) -> None:
        """Give what can be decrypted to the protocol above, in one piece."""
        tls, app = self._ssl, self._app
        if tls is None or app is None or self._closing:
            return
        pieces: list[bytes] = []
        try:
            while self._in.pending:
                piece = tls.read(TLS_RECORD_BYTES_MAX)
                if not piece:
                    self._heard_end = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass  # the rest of a record is still to come
        except ssl.SSLZeroReturnError:
            self._heard_end = True
        except ssl.SSLError as error:
            self._error = error
        if self._out.pending:
            self._send()
        if pieces:
            app.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._error is not None:
            self._end()
        elif self._heard_end and not self._closing and not self._app_goes_on():
            self.close()

    def _app_goes_on(self) -> bool:
        return self._app is not None and bool(self._app.eof_received())

    def _send(self) -> None:
        if self._raw is not None and self._out.pending:
            self._raw.write(self._out.read())

    # The protocol above.

    def write(self, data: Bytes) -> None:
        """Encrypt and send. Without effect once the stream is closed."""
        tls, raw = self._ssl, self._raw
        if self._closing or self._said_end or not data or tls is None or raw is None:
            return
        try:
            sent = tls.write(data)
            if sent < len(data):
                rest = memoryview(data)[sent:]
                while rest:
                    rest = rest[tls.write(rest) :]
        except ssl.SSLError as error:
            self._error = error
            self._end()
            return
        raw.write(self._out.read())

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        """As `write` of all of them."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """True: TLS has an end of its own for each direction."""
        return True

    def write_eof(self) -> None:
        """Say that nothing more follows. What still comes in is read and dropped."""
        if not self._closing and not self._said_end and self._raw is not None:
            self._say_end()
            self._raw.write_eof()

    def close(self) -> None:
        """End the stream once what was written is sent."""
        if self._app is None:
            self.abort()
        elif not self._closing:
            self._say_end()
            self._end()

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        """Whether the stream has ended, or is about to."""
        return self._closing or self._raw is None or self._raw.is_closing()

    def _end(self) -> None:
        self._closing = True
        if self._raw is not None:
            self._raw.close()

    def _say_end(self) -> None:
        if self._ssl is None or self._said_end:
            return
        self._said_end = True
        # The notice is written; the other side's is not waited for.
        with contextlib.suppress(ssl.SSLError):
            self._ssl.unwrap()
        self._send()

    def pause_reading(self) -> None:
        """Take nothing more from the network for now."""
        self._paused = True
        self._pause_raw()

    def resume_reading(self) -> None:
        """Go on taking it."""
        self._paused = False
        self._resume_raw()
        if self._in.pending:
            self._desk.loop.call_soon(self._deliver_unless_paused)

    def _deliver_unless_paused(self) -> None:
        if not self._paused:
            self._deliver()

    def is_reading(self) -> bool:
        """Whether input is taken."""
        return not self._paused and not self.is_closing()

    def _pause_raw(self) -> None:
        if self._raw is not None and not self._raw.is_closing():
            self._raw.pause_reading()

    def _resume_raw(self) -> None:
        if self._raw is not None and not self._raw.is_closing():
            self._raw.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.WriteTransport`; in bytes as sent."""
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Low and high water, in bytes."""
        return (0, 0) if self._raw is None else self._raw.get_write_buffer_limits()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Put another protocol above."""
        self._app = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol above; before the handshake is over, this."""
        return self if self._app is None else self._app

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See the class; all else is asked of the connection below."""
        if name == "identity":
            return self._identity
        if name == "certified_user":
            return self._side.user_of(self._identity)
        if name == "alpn":
            return default if self._ssl is None else self._ssl.selected_alpn_protocol()
        if name == "ssl_object":
            return self._ssl
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    @property
    def accepted(self) -> bool:
        """Whether the other side has dialled."""
        return self._side.server_side

    @property
    def address(self) -> str:
        """Of the other side, for logs."""
        name = self.get_extra_info("peername")
        return str(name[0]) if name else "?"


async def connect(
    desk: HandshakeDesk, side: Side, protocol: asyncio.Protocol, host: str, port: int
) -> None:
    """Connect `protocol` over TLS to a server whose certificate names `host`.

    Raises OSError (`ssl.SSLError` is one) or PeerError. The caller sets the deadline.
    """
    loop = desk.loop
    ended: asyncio.Future[None] = loop.create_future()

    def on_end(error: Exception | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    stream = TlsStream(desk, side, lambda _: protocol, server_hostname=host, on_end=on_end)
    try:
        await loop.create_connection(lambda: stream, host, port)
        await ended
    except BaseException:
        stream.abort()
        raise


def _cause(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error) or type(error).__name__
