"""The HTTP door: what its connections share, and the way of a request to its handler."""

from __future__ import annotations

import asyncio
import logging
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.etcd.door import EtcdDoor
from raftkv.api.etcd.gateway import Gateway
from raftkv.api.gate import Gate
from raftkv.api.grpc.server import GrpcServer
from raftkv.api.http import (
    auth,
    cluster,
    docs,
    health,
    kv,
    leases,
    metrics,
    quotas,
    services,
    txn,
    watch,
)
from raftkv.api.http.connection import HttpConnection
from raftkv.api.http.exchange import TEXT, Exchange
from raftkv.api.http.openapi import build_openapi
from raftkv.api.http.router import Route, Router
from raftkv.api.listener import Listener
from raftkv.errors import InvalidAuthToken, PermissionDenied, RaftkvError
from raftkv.limits import CONNECTIONS_MAX, HTTP_DRAIN_SECONDS
from raftkv.server.store import Store

if TYPE_CHECKING:
    from raftkv.server.tls.settings import ClientSide

log = logging.getLogger(__name__)

GET: Final = b"GET"
OPTIONS: Final = b"OPTIONS"


def all_routes() -> list[Route]:
    """Every call of the API, in the order of its documentation."""
    return [
        *kv.ROUTES,
        *txn.ROUTES,
        *watch.ROUTES,
        *leases.ROUTES,
        *services.ROUTES,
        *cluster.ROUTES,
        *quotas.ROUTES,
        *auth.ROUTES,
        *health.ROUTES,
        *metrics.ROUTES,
        *docs.ROUTES,
    ]


class HttpDoor:
    """One store behind HTTP. Handlers reach everything through `Exchange.door`."""

    def __init__(
        self,
        store: Store,
        *,
        gate: Gate | None = None,
        gateway: Gateway | None = None,
        grpc: GrpcServer | None = None,
    ) -> None:
        self.store = store
        self._machine = store.machine
        self.gateway = gateway
        self.grpc = grpc
        """The other server on this port, for its metrics."""
        self.gate = gate or Gate(store)
        self.loop = asyncio.get_running_loop()
        self.pages = self.gate.pages
        self.router = Router(all_routes())
        self.counters = metrics.Counters()
        self.listener: Listener | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.started = self.loop.time()
        self.draining = False
        self._openapi: dict[str, Any] | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._block = b""
        self._date = formatdate(usegmt=True).encode()

    @property
    def openapi(self) -> dict[str, Any]:
        """The description of this door, built from its routes when first asked for."""
        if self._openapi is None:
            self._openapi = build_openapi(self.router.routes)
        return self._openapi

    def handle(self, x: Exchange) -> None:
        """Find the handler of a request and let it answer. Never raises."""
        request = x.request
        observer = self.gate.observer
        if observer is not None:
            x.trail = observer.begin_http(x)
        try:
            if request.refusal is not None:
                raise request.refusal
            path = request.path
            if not path.startswith(b"/"):
                path = origin_form(path)
            if self.pages is not None:
                x.granted = self.pages.grant(request.headers, secure=x.secure)
                if request.method == OPTIONS:
                    x.send(b"", TEXT)
                    return
            if request.method != GET and not x.granted:
                Gate.admit(request.method, request.headers)
            if self.gateway is not None and self.gateway.handle(x, path):
                return
            if self.gate.pace is not None:
                self.gate.pace.of_address(x.source)
            route, x.places = self.router.find(request.method, path)
            x.route = route
            if x.trail is not None:
                x.trail.operation = route.operation
            x.query = route.read_query(request.query)
            if route.body is not None:
                Gate.admit_json(request.headers)
            if self._machine.auth.enabled:
                self._judge(x, route)
            else:
                if x.trail is not None:
                    x.caller = x.trail.follow(x.caller, route.guard(x))
                route.handler(x)
        except Exception as error:
            self.failed(x, error)

    def _judge(self, x: Exchange, route: Route, fresh: bool = False) -> None:
        """Give a request to its handler as the caller that it comes from, or raise.

        Nobody is refused for what this member has not heard of yet, a login at another member or a
        new right: the refusal is made with fresh state.
        """
        authorization, certified = x.header(b"authorization"), x.certified
        try:
            x.caller, x.needs = self.gate.judge(route.guard, authorization, x, certified)
        except (InvalidAuthToken, PermissionDenied):
            if fresh or (authorization is None and certified is None):
                raise
            self.store.read_index(partial(self._judge_again, x, route))
            return
        if x.trail is not None:
            x.caller = x.trail.follow(x.caller, x.needs)
        route.handler(x)

    def _judge_again(self, x: Exchange, route: Route, error: RaftkvError | None) -> None:
        if x.ended:
            return
        try:
            if error is not None:
                raise error
            self._judge(x, route, fresh=True)
        except Exception as failure:
            self.failed(x, failure)

    def failed(self, x: Exchange, error: Exception) -> None:
        """A handler raised: an expected refusal is the answer; anything else is a bug to report."""
        if not isinstance(error, RaftkvError):
            self.report(error)
        x.fail(error)

    def report(self, error: BaseException) -> None:
        """Hand an unexpected error to the loop's handler, which the member owns."""
        if not isinstance(error, RaftkvError):
            self.loop.call_exception_handler(
                {"message": "An HTTP handler failed", "exception": error}
            )

    def stamp_block(self) -> bytes:
        """Header lines that every answer carries. Rebuilt only when one of them changes."""
        stamp = self.store.stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            revision, term, member = stamp
            self._block = (
                b"Date: %b\r\nRaftkv-Revision: %d\r\nRaftkv-Term: %d\r\nRaftkv-Member: %016x\r\n"
                % (self._date, revision, term, member)
            )
        return self._block

    def tick(self) -> None:
        """About once a second: renew the date."""
        self._date = formatdate(usegmt=True).encode()
        self._stamp = None

    def drain(self) -> None:
        """From now on every answer closes its connection."""
        self.draining = True


def origin_form(target: bytes) -> bytes:
    """The path of an absolute target, which a server has to accept (RFC 9112, section 3.2.2)."""
    for scheme in (b"http://", b"https://"):
        if target[: len(scheme)].lower() == scheme:
            _, slash, path = target[len(scheme) :].partition(b"/")
            return slash + path or b"/"
    return target


async def start_http(
    store: Store,
    host: str,
    port: int,
    *,
    tls: ClientSide | None = None,
    reuse_port: bool = False,
    gate: Gate | None = None,
    connections_max: int = CONNECTIONS_MAX,
    slow_request_ms: int = 0,
    connections_per_address_max: int = 0,
) -> Listener:
    """Serve `store` on `host`:`port` (0: any free port, see `Listener.port`), to HTTP/1.1 and to
    the gRPC clients of etcd's API.

    `await Listener.close()` drains: what is under way finishes, streams are told and ended.
    Raises `ConfigError` when the address cannot be had.
    """
    gate = gate or Gate(store)
    etcd = EtcdDoor(store, gate=gate)
    door = HttpDoor(store, gate=gate, gateway=Gateway(etcd.rpcs), grpc=etcd.server)

    def tick() -> None:
        door.tick()
        etcd.tick()

    def drain() -> None:
        door.drain()
        etcd.drain()

    listener = Listener(
        lambda listener: HttpConnection(door, listener),
        etcd.connect,
        on_sweep=tick,
        on_drain=drain,
        on_closed=etcd.close,
        connections_max=connections_max,
        slow_request_ms=slow_request_ms,
        connections_per_address_max=connections_per_address_max,
    )
    door.listener = listener
    return await listener.open(host, port, tls=tls, reuse_port=reuse_port)


__all__ = ["HTTP_DRAIN_SECONDS", "HttpDoor", "start_http"]
