"""Leases: keys that go when their holder does."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from raftkv.client.errors import LeaseLost
from raftkv.client.keeper import Keeper
from raftkv.client.results import Lease, LeaseRevoked, LeaseStatus
from raftkv.client.wire import decode, key_text, segment, understood

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient


class Leases:
    """Calls about leases; reached as `AsyncClient.leases`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def grant(
        self, ttl: int, *, lease: str | None = None, timeout: float | None = None
    ) -> Lease:
        """A new lease of `ttl` seconds, under an id of the caller's if one is given."""
        # The id is chosen here, so that a repeated request is the same request.
        lease = lease or f"{secrets.randbits(62) | 1:016x}"
        body = {"ttl": ttl, "id": lease}
        answer = await self._client.write("POST", "/api/leases", json=body, timeout=timeout)
        return _lease(answer.json())

    async def revoke(self, lease: str, *, timeout: float | None = None) -> LeaseRevoked:
        """End a lease and delete its keys. Raises LeaseNotFound if there is none."""
        answer = await self._client.write("DELETE", _path(lease), timeout=timeout)
        body = answer.json()
        with understood():
            return LeaseRevoked(
                str(body["lease"]), int(body["revision"]), int(body.get("deleted", 0))
            )

    async def keep_alive(self, lease: str, *, timeout: float | None = None) -> Lease:
        """Give a lease its whole TTL again. Raises LeaseNotFound once it has expired."""
        target = _path(lease) + "/keepalive"
        answer = await self._client.write("POST", target, repeatable=True, timeout=timeout)
        return _lease(answer.json())

    async def show(self, lease: str, *, timeout: float | None = None) -> LeaseStatus:
        """A lease with its remaining seconds and its keys."""
        body = (await self._client.read(_path(lease), timeout=timeout)).json()
        with understood():
            return LeaseStatus(
                str(body["lease"]),
                int(body["ttl"]),
                float(body.get("remaining") or 0),
                tuple(_key(item) for item in body.get("keys") or ()),
            )

    async def list(self, *, timeout: float | None = None) -> tuple[Lease, ...]:
        """Every lease."""
        body = (await self._client.read("/api/leases", timeout=timeout)).json()
        with understood():
            return tuple(_lease(item) for item in body["leases"])

    def keeper(
        self,
        ttl: int,
        *,
        cancel_on_loss: bool = True,
        on_loss: Callable[[LeaseLost], None] | None = None,
    ) -> LeaseKeeper:
        """A lease for the length of a block::

        async with client.leases.keeper(10) as keeper:
            await client.put("me", "here", lease=keeper.lease)
        """
        return LeaseKeeper(self, ttl, cancel_on_loss=cancel_on_loss, on_loss=on_loss)


class LeaseKeeper(Keeper):
    """Grants a lease, renews it at a third of its TTL, revokes it at the end."""

    def __init__(
        self,
        leases: Leases,
        ttl: int,
        *,
        cancel_on_loss: bool = True,
        on_loss: Callable[[LeaseLost], None] | None = None,
    ) -> None:
        super().__init__(cancel_on_loss=cancel_on_loss, on_loss=on_loss)
        self._leases = leases
        self._wanted_ttl = ttl

    async def _begin(self) -> tuple[str, int]:
        lease = await self._leases.grant(self._wanted_ttl)
        return lease.lease, lease.ttl

    async def _renew(self, timeout: float) -> tuple[str, int]:
        lease = await self._leases.keep_alive(self.lease, timeout=timeout)
        return lease.lease, lease.ttl

    async def _end(self) -> None:
        await self._leases.revoke(self.lease)


def _path(lease: str) -> str:
    return f"/api/leases/{segment(lease)}"


def _lease(body: dict[str, object]) -> Lease:
    with understood():
        return Lease(str(body["lease"]), int(str(body["ttl"])))


def _key(item: object) -> str:
    if isinstance(item, dict):
        return key_text(decode(item.get("key"), item.get("key_encoding")))
    return str(item)
