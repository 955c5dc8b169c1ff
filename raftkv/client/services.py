"""The service catalog: registering, finding, and hearing of changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from raftkv.client.errors import LeaseLost
from raftkv.client.keeper import Keeper
from raftkv.client.results import Instance, Registration, ServiceEvent, ServiceSummary
from raftkv.client.transport import Transport
from raftkv.client.watch import STALL_SECONDS, EventStream, Interruption
from raftkv.client.wire import query, segment, understood
from raftkv.errors import Compacted, InstanceNotFound, RaftkvError

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient


class Services:
    """Calls about services; reached as `AsyncClient.services`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def register(
        self,
        service: str,
        instance: str,
        address: str,
        port: int,
        *,
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        weight: int = 1,
        ttl: int = 10,
        owner: str = "",
        takeover: bool = False,
        timeout: float | None = None,
    ) -> Registration:
        """Register an instance for `ttl` seconds, or renew and change it.

        Raises InstanceClaimed when another live process holds the id: one with another `owner`,
        or, where no owner is named, with another address or port. `takeover` takes it anyway.
        """
        body = {
            "address": address,
            "port": port,
            "tags": list(tags),
            "meta": dict(meta or {}),
            "weight": weight,
            "ttl": ttl,
            "owner": owner,
            "takeover": takeover,
        }
        answer = await self._client.write(
            "PUT", _path(service, instance), json=body, timeout=timeout
        )
        result = answer.json()
        with understood():
            return Registration(
                service,
                instance,
                str(result.get("lease") or ""),
                int(result["ttl"]),
                str(result.get("expires_at") or ""),
                int(result["revision"]),
                bool(result.get("changed")),
                bool(result.get("created")),
            )

    async def heartbeat(
        self, service: str, instance: str, *, owner: str = "", timeout: float | None = None
    ) -> tuple[str, int]:
        """Renew an instance; its lease and TTL. Raises InstanceNotFound once it has expired."""
        answer = await self._client.write(
            "POST",
            _path(service, instance) + "/heartbeat",
            json={"owner": owner} if owner else None,
            repeatable=True,
            timeout=timeout,
        )
        body = answer.json()
        with understood():
            return str(body["lease"]), int(body["ttl"])

    async def drain(
        self, service: str, instance: str, *, draining: bool = True, timeout: float | None = None
    ) -> int:
        """Stop (or begin again) offering an instance while it is still known; the revision."""
        answer = await self._client.write(
            "POST",
            _path(service, instance) + "/drain",
            json={"draining": draining},
            timeout=timeout,
        )
        return _revision(answer.json())

    async def deregister(self, service: str, instance: str, *, timeout: float | None = None) -> int:
        """Remove an instance; the revision. Raises InstanceNotFound if there is none."""
        answer = await self._client.write("DELETE", _path(service, instance), timeout=timeout)
        return _revision(answer.json())

    async def list(
        self, *, prefix: str = "", timeout: float | None = None
    ) -> tuple[ServiceSummary, ...]:
        """Every service with its counts, by name."""
        found: list[ServiceSummary] = []
        cursor: str | None = None
        while True:
            target = "/api/services" + query({"prefix": prefix or None, "cursor": cursor})
            body = (await self._client.read(target, timeout=timeout)).json()
            with understood():
                for item in body["services"]:
                    instances = int(item["instances"])
                    passing = int(item.get("passing", instances))
                    found.append(ServiceSummary(str(item["service"]), instances, passing))
            cursor = body.get("cursor")
            if not cursor:
                return tuple(found)

    async def instances(
        self,
        service: str,
        *,
        tag: str | None = None,
        passing: bool = False,
        timeout: float | None = None,
    ) -> tuple[Instance, ...]:
        """The instances of a service; an unknown service has none."""
        target = f"/api/services/{segment(service)}" + query({"tag": tag, "passing": passing})
        body = (await self._client.read(target, timeout=timeout)).json()
        with understood():
            return tuple(Instance.from_json(item) for item in body["instances"])

    async def instance(
        self, service: str, instance: str, *, timeout: float | None = None
    ) -> Instance | None:
        """One instance, or None."""
        try:
            answer = await self._client.read(_path(service, instance), timeout=timeout)
        except InstanceNotFound:
            return None
        with understood():
            return Instance.from_json(answer.json())

    def watch(
        self, service: str | None = None, *, on_interruption: Interruption | None = None
    ) -> ServiceWatcher:
        """First the instances present, then one ``ready``, then every change; without end."""
        return ServiceWatcher(self._client.transport, service, on_interruption)

    def registered(
        self,
        service: str,
        instance: str,
        address: str,
        port: int,
        *,
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        weight: int = 1,
        ttl: int = 10,
        owner: str = "",
        takeover: bool = False,
        cancel_on_loss: bool = True,
        on_loss: Callable[[LeaseLost], None] | None = None,
    ) -> RegistrationKeeper:
        """An instance for the length of a block::

        async with client.services.registered("web", "web-1", "10.0.0.5", 8080, ttl=10):
            await serve_forever()
        """
        details: dict[str, Any] = {
            "tags": tuple(tags),
            "meta": dict(meta or {}),
            "weight": weight,
            "ttl": ttl,
            "owner": owner,
        }
        return RegistrationKeeper(
            self,
            (service, instance, address, port),
            details,
            takeover=takeover,
            cancel_on_loss=cancel_on_loss,
            on_loss=on_loss,
        )


class RegistrationKeeper(Keeper):
    """Registers an instance, sends heartbeats at a third of its TTL, deregisters at the end.

    An instance that expired although its process lives (a long pause, a cut network) is
    registered again; it is lost only when another process holds its id by then.
    """

    def __init__(
        self,
        services: Services,
        place: tuple[str, str, str, int],
        details: dict[str, Any],
        *,
        takeover: bool,
        cancel_on_loss: bool,
        on_loss: Callable[[LeaseLost], None] | None,
    ) -> None:
        super().__init__(cancel_on_loss=cancel_on_loss, on_loss=on_loss)
        self._services = services
        self._place = place
        self._details = details
        self._takeover = takeover
        self.registrations = 0
        """How often the instance had to be registered; 1 unless it expired in between."""

    async def _begin(self) -> tuple[str, int]:
        return await self._register(None, self._takeover)

    async def _register(self, timeout: float | None, takeover: bool) -> tuple[str, int]:
        done = await self._services.register(
            *self._place, **self._details, takeover=takeover, timeout=timeout
        )
        self.registrations += 1
        return done.lease, done.ttl

    async def _renew(self, timeout: float) -> tuple[str, int]:
        service, instance, _, _ = self._place
        try:
            return await self._services.heartbeat(
                service, instance, owner=self._details["owner"], timeout=timeout
            )
        except InstanceNotFound:
            return await self._register(timeout, False)

    def _final(self, error: RaftkvError) -> bool:
        return error.code == "instance_claimed"

    def _expired(self) -> bool:
        # Whoever finds services hears of the expiry; the next renewal registers again.
        return False

    async def _end(self) -> None:
        service, instance, _, _ = self._place
        await self._services.deregister(service, instance)

    def _what(self) -> str:
        return f"the registration of {self._place[0]}/{self._place[1]}"


class ServiceWatcher:
    """An endless async iterator of `ServiceEvent`.

    When the history that it needs after a break has been compacted, it takes the present set
    anew and tells the difference, so that a view built from its events stays true.
    """

    __slots__ = ("_known", "_out", "_present", "_ready", "_revision", "_service", "_stream")

    def __init__(
        self,
        transport: Transport,
        service: str | None,
        on_interruption: Interruption | None,
        stall: float = STALL_SECONDS,
    ) -> None:
        self._service = service
        self._revision: int | None = None
        self._ready = False
        self._known: dict[tuple[str, str], Instance] = {}
        self._present: dict[tuple[str, str], Instance] = {}
        self._out: deque[ServiceEvent] = deque()
        self._stream = EventStream(transport, self._position, on_interruption, stall)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServiceEvent:
        while not self._out:
            try:
                message, body = await self._stream.next()
            except Compacted:
                if self._revision is None:
                    raise
                self._revision = None
                continue
            with understood():
                self._take(message.id is not None, body)
        return self._out.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the watch."""
        await self._stream.close()

    def _position(self) -> tuple[str, str | None]:
        target = "/api/watch/services"
        if self._service is not None:
            target += f"/{segment(self._service)}"
        self._present = {}
        return target, None if self._revision is None else str(self._revision)

    def _take(self, complete: bool, body: dict[str, Any]) -> None:
        kind, revision = body.get("type"), int(body.get("revision", 0))
        if kind == "instance":
            found = Instance.from_json(body)
            self._present[found.service, found.instance] = found
        elif kind == "ready":
            if self._revision is None:
                self._resync(revision)
                self._revision = revision
        elif kind == "progress":
            self._revision = max(revision, self._revision or 0)
        elif kind in ("registered", "changed", "deregistered"):
            self._change(kind, revision, body)
            if complete:
                self._revision = revision

    def _change(self, kind: Any, revision: int, body: dict[str, Any]) -> None:
        instance = Instance.from_json(body)
        place = (instance.service, instance.instance)
        known = self._known.get(place)
        if kind == "deregistered":
            if known is None:
                return
            del self._known[place]
        else:
            if known is not None and known.mod_revision >= instance.mod_revision:
                return
            self._known[place] = instance
        self._out.append(ServiceEvent(kind, revision, instance, body.get("reason")))

    def _resync(self, revision: int) -> None:
        first = not self._ready
        for place, instance in self._present.items():
            known = self._known.get(place)
            if first:
                self._out.append(ServiceEvent("instance", revision, instance))
            elif known is None:
                self._out.append(ServiceEvent("registered", revision, instance))
            elif known.mod_revision != instance.mod_revision:
                self._out.append(ServiceEvent("changed", revision, instance))
        for place in self._known.keys() - self._present.keys():
            self._out.append(ServiceEvent("deregistered", revision, self._known[place]))
        self._known = self._present
        if first:
            self._out.append(ServiceEvent("ready", revision, None))
            self._ready = True


def _revision(body: Mapping[str, Any]) -> int:
    with understood():
        return int(body["revision"])


def _path(service: str, instance: str) -> str:
    return f"/api/services/{segment(service)}/{segment(instance)}"
