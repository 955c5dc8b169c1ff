"""etcd's API on a member's client port: registers the services and takes HTTP/2 connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from raftkv.api.etcd.answers import STOPPED
from raftkv.api.etcd.auth import AuthService
from raftkv.api.etcd.cluster import ClusterService
from raftkv.api.etcd.election import ElectionService
from raftkv.api.etcd.kv import Kv
from raftkv.api.etcd.lease import LeaseService
from raftkv.api.etcd.lock import LockService
from raftkv.api.etcd.maintenance import MaintenanceService
from raftkv.api.etcd.messages import ETCD, METHODS
from raftkv.api.etcd.rpc import Rpcs, Service
from raftkv.api.etcd.watch import WatchService
from raftkv.api.gate import Gate
from raftkv.api.grpc.calls import Call, StreamCall, UnaryCall
from raftkv.api.grpc.health import Health
from raftkv.api.grpc.reflection import Reflection
from raftkv.api.grpc.server import GrpcServer
from raftkv.api.grpc.shell import GrpcProtocol, GrpcShell

if TYPE_CHECKING:
    from raftkv.api.listener import Listener
    from raftkv.server.store import Store

SERVICES: Final[tuple[type[Service], ...]] = (
    Kv,
    WatchService,
    LeaseService,
    ClusterService,
    MaintenanceService,
    AuthService,
    LockService,
    ElectionService,
)


WAITING: Final = frozenset(("/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign"))
"""Unary RPCs that wait for others by their nature."""


class EtcdDoor:
    """One store behind gRPC. Needs a running loop; `close` when its listener has closed."""

    def __init__(self, store: Store, *, gate: Gate | None = None) -> None:
        self.store = store
        self.rpcs = Rpcs(store, gate or Gate(store), self._report)
        self.server = GrpcServer()
        self.shell = GrpcShell(self.server)
        for service in SERVICES:
            service(self.rpcs)
        for path, (_, unary) in self.rpcs.unary.items():
            self.server.unary(path, unary)
        for path, (_, stream) in self.rpcs.streams.items():
            kind = "bidi_stream" if METHODS[path].client_streaming else "server_stream"
            self.server.streaming(path, stream, kind)
        self.server.observer = self.rpcs.gate.observer
        self.health = Health(self.server)
        Reflection(self.server, ETCD)
        self.tick()

    def connect(self, listener: Listener) -> EtcdConnection:
        """A connection of `listener`'s; see `raftkv.api.listener.Factory`."""
        return EtcdConnection(self.shell, listener)

    def tick(self) -> None:
        """About once a second: look at what this member is."""
        self.rpcs.tick()
        self.health.set(not self.store.health().keys() & {"corrupt", "stopping"})

    def drain(self) -> None:
        """The member stops: what waits in a task ends now."""
        self.server.draining = True
        for task in list(self.rpcs.tasks):
            task.cancel()

    def close(self) -> None:
        """Stop the clock."""
        self.shell.close()

    def _report(self, error: BaseException) -> None:
        self.rpcs.loop.call_exception_handler(
            {"message": "An RPC handler failed", "exception": error}
        )


class EtcdConnection(GrpcProtocol):
    """An HTTP/2 connection that a `Listener` owns."""

    __slots__ = ("_listener",)

    def __init__(self, shell: GrpcShell, listener: Listener) -> None:
        super().__init__(shell)
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._listener.connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.left(self)
        super().connection_lost(exc)

    def flush(self) -> None:
        """Write what this turn has gathered."""
        self._flush()

    def sweep(self, now: float) -> None:
        """Deadlines are the shell's."""

    def under_way(self) -> Iterator[UnaryCall]:
        """See `raftkv.api.listener.Connection`."""
        for stream in self._connection.streams.values():
            if isinstance(stream, UnaryCall) and not stream.ended and stream.path not in WAITING:
                yield stream

    def drain(self) -> None:
        """Let what is under way finish, end what would never end by itself, then close."""
        connection = self._connection
        connection.drain(self._loop.time())
        for stream in list(connection.streams.values()):
            if isinstance(stream, StreamCall) and not stream.ended:
                stop(stream)
        self._flush()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


def stop(call: Call) -> None:
    """End a call because the member stops."""
    call.fail(*STOPPED)
    call.tell_cancelled()
