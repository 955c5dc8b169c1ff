"""One port for every protocol: the first bytes of a connection tell which one it speaks.

A connection that opens with the HTTP/2 preface (RFC 9113, section 3.4) goes to the HTTP/2 factory
when there is one, as does one over TLS that agreed on h2 (ALPN, RFC 7301); every other goes to
HTTP/1.1. The listener owns what all connections share: the registry, the flush at the end of a
turn, one coarse clock with one sweep, and the drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from raftkv.api.slow import SlowRequests
from raftkv.errors import ConfigError
from raftkv.limits import (
    CONNECTIONS_MAX,
    HTTP_DRAIN_SECONDS,
    HTTP_REQUEST_SECONDS,
    TLS_HANDSHAKE_SECONDS,
    TLS_HANDSHAKES_MAX,
)
from raftkv.server.tls.settings import client_side
from raftkv.server.tls.stream import HandshakeDesk, TlsStream

if TYPE_CHECKING:
    from raftkv.api.gate import Gate
    from raftkv.server.config import ServerConfig
    from raftkv.server.store import Store
    from raftkv.server.tls.settings import ClientSide

HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SWEEP_SECONDS: Final = 1.0
ACCEPT_BACKLOG: Final = 1024


class Connection(Protocol):
    """What the listener asks of a connection of any protocol. It is an `asyncio.Protocol` too."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...

    def flush(self) -> None:
        """Write what this turn has gathered."""

    def sweep(self, now: float) -> None:
        """Enforce deadlines; `now` is the listener's coarse clock, in seconds."""

    def drain(self) -> None:
        """Finish what is under way, then close."""

    def abort(self) -> None:
        """Close at once."""

    def under_way(self) -> Iterable[Any]:
        """Requests that should be answered soon and are not yet; see `raftkv.api.slow`."""


Factory = Callable[["Listener"], Connection]


class Listener:
    """A listening port. Made by `Listener.open`."""

    def __init__(
        self,
        http1: Factory,
        http2: Factory | None = None,
        *,
        on_sweep: Callable[[], None] | None = None,
        on_drain: Callable[[], None] | None = None,
        on_closed: Callable[[], None] | None = None,
        connections_max: int = CONNECTIONS_MAX,
        slow_request_ms: int = 0,
        connections_per_address_max: int = 0,
    ) -> None:
        self.http1 = http1
        self.http2 = http2
        self.connections: set[Connection] = set()
        self.connections_max = connections_max
        self.connections_per_address_max = connections_per_address_max
        """0: as many as all together."""
        self.connections_refused = 0
        self._by_address: dict[str, int] = {}
        self._address_of: dict[Connection, str] = {}
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time()
        """Seconds on the loop's clock, refreshed by the sweep: precise enough for deadlines."""
        self.slow: SlowRequests | None = None
        if slow_request_ms:
            self.slow = SlowRequests(slow_request_ms, self._now_ms)
        self._looker: asyncio.TimerHandle | None = None
        self.tls: ClientSide | None = None
        self.handshakes: HandshakeDesk | None = None
        self._on_sweep = on_sweep
        self._on_drain = on_drain
        self._on_closed = on_closed
        self._dirty: list[Connection] = []
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def open(
        self,
        host: str,
        port: int,
        *,
        tls: ClientSide | None = None,
        reuse_port: bool = False,
    ) -> Listener:
        """Bind and accept. Raises `ConfigError` when the address cannot be had."""
        if tls is not None:
            self.tls = tls
            self.handshakes = HandshakeDesk(
                "a client", most=TLS_HANDSHAKES_MAX, seconds=TLS_HANDSHAKE_SECONDS
            )
        try:
            self._server = await self.loop.create_server(
                self._accept,
                host,
                port,
                backlog=ACCEPT_BACKLOG,
                reuse_address=True,
                reuse_port=reuse_port or None,
            )
        except OSError as error:
            raise ConfigError(_bind_trouble(host, port, error), host=host, port=port) from error
        self._schedule_sweep()
        if self.slow is not None:
            self._look(self.slow)
        return self

    def _accept(self) -> asyncio.Protocol:
        if self.tls is None or self.handshakes is None:
            return _Sniffer(self)
        return TlsStream(self.handshakes, self.tls, lambda stream: _Sniffer(self))

    @property
    def port(self) -> int:
        """The port bound, also when 0 was asked for."""
        return self.addresses[0][1]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Every address bound."""
        if self._server is None:
            return []
        return [sock.getsockname()[:2] for sock in self._server.sockets]

    def admits(self, address: str) -> bool:
        """Whether there may be one more connection, from there."""
        most = self.connections_per_address_max
        return (
            not self._closed
            and len(self.connections) < self.connections_max
            and not (most and self._by_address.get(address, 0) >= most)
        )

    def joined(self, connection: Connection, address: str) -> None:
        """A connection was accepted."""
        self.connections.add(connection)
        self._address_of[connection] = address
        self._by_address[address] = self._by_address.get(address, 0) + 1

    def handed_over(self, old: Connection, new: Connection) -> None:
        """What was `old` goes on as `new`."""
        self.connections.discard(old)
        self.connections.add(new)
        self._address_of[new] = self._address_of.pop(old)

    def left(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        address = self._address_of.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def flush_soon(self, connection: Connection) -> None:
        """Have `connection.flush()` called once this turn's callbacks have run."""
        if not self._dirty:
            self.loop.call_soon(self._flush)
        self._dirty.append(connection)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.flush()

    def _schedule_sweep(self) -> None:
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self.now = self.loop.time()
        if self._on_sweep is not None:
            self._on_sweep()
        for connection in list(self.connections):
            connection.sweep(self.now)
        self._schedule_sweep()

    def _now_ms(self) -> int:
        return int(self.loop.time() * 1000)

    def _look(self, slow: SlowRequests) -> None:
        self._looker = self.loop.call_later(slow.pause_seconds, self._look, slow)
        slow.look(self._under_way())

    def _under_way(self) -> Iterator[Any]:
        for connection in self.connections:
            yield from connection.under_way()

    async def close(self, grace_seconds: float = HTTP_DRAIN_SECONDS) -> None:
        """Stop accepting, let what is under way finish within the grace, then cut off the rest."""
        if self._closed:
            return
        self._closed = True
        if self._server is not None:
            self._server.close()
        if self.handshakes is not None:
            self.handshakes.close()
        if self._on_drain is not None:
            self._on_drain()
        self.now = self.loop.time()
        for connection in list(self.connections):
            connection.drain()
        deadline = self.loop.time() + grace_seconds
        while self.connections and self.loop.time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()
        while self.connections:
            await asyncio.sleep(0)
        for timer in (self._sweeper, self._looker):
            if timer is not None:
                timer.cancel()
        if self._server is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._server.wait_closed()
        if self._on_closed is not None:
            self._on_closed()


class _Sniffer(asyncio.Protocol):
    """Hands the socket over to HTTP/2 or HTTP/1.1: by what TLS agreed on, or by the first bytes."""

    __slots__ = ("_listener", "_seen", "_since", "_transport")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._seen = b""
        self._since = listener.now
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        listener = self._listener
        name = transport.get_extra_info("peername")
        address = str(name[0]) if isinstance(name, tuple) and name else ""
        if not listener.admits(address):
            listener.connections_refused += 1
            self._transport.abort()  # type: ignore[union-attr]
            return
        listener.joined(self, address)
        if transport.get_extra_info("alpn") == "h2":
            self._hand_over(listener.http2, b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._listener.left(self)

    def data_received(self, data: bytes) -> None:
        seen = self._seen + data if self._seen else data
        if seen[: len(HTTP2_PREFACE)] == HTTP2_PREFACE[: len(seen)]:
            if len(seen) < len(HTTP2_PREFACE):
                self._seen = seen
                return
            self._hand_over(self._listener.http2, seen)
        else:
            self._hand_over(self._listener.http1, seen)

    def _hand_over(self, factory: Factory | None, seen: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        if factory is None:
            transport.close()  # a protocol that is not served here
            return
        connection = factory(self._listener)
        self._listener.handed_over(self, connection)
        transport.set_protocol(connection)  # type: ignore[arg-type]
        connection.connection_made(transport)
        if seen:
            connection.data_received(seen)

    def flush(self) -> None:
        """Nothing is written before the protocol is known."""

    def sweep(self, now: float) -> None:
        if now - self._since > HTTP_REQUEST_SECONDS and self._transport is not None:
            self._transport.abort()

    def under_way(self) -> Iterable[Any]:
        return ()

    def drain(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _bind_trouble(host: str, port: int, error: OSError) -> str:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"Another process listens on {where} already: stop it, or choose another port"
    if error.errno == errno.EACCES:
        return f"Not allowed to listen on {where}: ports below 1024 need privileges"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"This machine has no address {host}"
    return f"Cannot listen on {where}: {error.strerror or error}"


async def start_listeners(store: Store, config: ServerConfig, gate: Gate) -> list[Listener]:
    """Serve `store` on every client URL of `config`. All or none: raises `ConfigError`."""
    # The doors stand on this module, so they are only looked up when they are opened.
    from raftkv.api.http.door import start_http

    tls = client_side(config)
    listeners: list[Listener] = []
    try:
        for url, (host, port) in zip(
            config.listen_client_urls, config.client_addresses, strict=True
        ):
            listeners.append(
                await start_http(
                    store,
                    host,
                    port,
                    tls=tls if url.startswith("https://") else None,
                    gate=gate,
                    connections_max=config.max_connections,
                    slow_request_ms=config.slow_request_ms,
                    connections_per_address_max=config.max_connections_per_address,
                )
            )
    except ConfigError:
        for listener in listeners:
            await listener.close(0)
        raise
    return listeners
