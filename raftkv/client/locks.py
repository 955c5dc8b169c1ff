"""Locks and elections out of leases and transactions.

A contender writes a key of its own under the lock's prefix, bound to its lease. The lock is held
by the contender whose key was created first; each other one waits for the one before it to go, so
a release wakes one waiter. The fencing token is the revision at which the key was created: it
grows with every holder, so a resource that remembers the greatest token it has seen can turn away
a holder who lost the lock without noticing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from raftkv.client.errors import LeaseLost
from raftkv.client.leases import LeaseKeeper
from raftkv.client.results import Record
from raftkv.client.txn import Compare, compare, missing, put
from raftkv.client.wire import Text
from raftkv.errors import RaftkvError

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient

TTL_SECONDS_DEFAULT = 10


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock, or leads."""

    key: str
    value: bytes
    lease: str | None
    token: int
    """The fencing token of this tenure."""


class Locks:
    """Mutual exclusion under one prefix; `AsyncClient.locks` and `AsyncClient.elections`."""

    def __init__(self, client: AsyncClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix

    def hold(
        self,
        name: str,
        value: Text = b"",
        *,
        ttl: int = TTL_SECONDS_DEFAULT,
        wait: float | None = None,
        cancel_on_loss: bool = True,
    ) -> Lock:
        """The lock `name` for the length of a block; `value` tells others who holds it.

        Waits for it at most `wait` seconds, then raises `TimeoutError`; without `wait`, as long
        as it takes. If the lease is lost within the block, the block is cancelled and `LeaseLost`
        raised::

            async with client.locks.hold("nightly-report") as lock:
                await store.write(report, fencing_token=lock.token)
        """
        return Lock(self._client, self._place(name), value, ttl, wait, cancel_on_loss)

    campaign = hold
    """The word for `hold` in an election: returns once this process leads."""

    async def holder(self, name: str) -> Holder | None:
        """Who holds the lock now."""
        first = await _first(self._client, self._place(name))
        if first is None:
            return None
        record = await self._client.get(first.key)
        if record is None or record.create_revision != first.create_revision:
            return await self.holder(name)
        return Holder(record.key, record.value, record.lease, record.create_revision)

    leader = holder

    async def observe(self, name: str) -> AsyncIterator[Holder | None]:
        """The holder now, and each new one (None while there is none), without end."""
        last: Holder | None = None
        started = False
        async with self._client.watch(prefix=self._place(name), keys_only=True) as changes:
            await changes.opened()
            while True:
                now = await self.holder(name)
                if not started or (now and now.token) != (last and last.token):
                    started, last = True, now
                    yield now
                await anext(changes)

    def _place(self, name: str) -> str:
        return f"{self._prefix}{quote(name, safe='')}/"


class Lock(LeaseKeeper):
    """A lock while it is held; see `Locks.hold`."""

    def __init__(
        self,
        client: AsyncClient,
        place: str,
        value: Text,
        ttl: int,
        wait: float | None,
        cancel_on_loss: bool,
    ) -> None:
        super().__init__(client.leases, ttl, cancel_on_loss=cancel_on_loss)
        self._client = client
        self._place = place
        self._value = value
        self._wait = wait
        self.key = ""
        self.token = 0
        """Greater than that of every earlier holder."""

    def guard(self) -> Compare:
        """A compare for transactions that must fail once the lock has passed on."""
        return compare(self.key, "create_revision", "=", self.token)

    async def start(self) -> None:
        """Take the lease, get in line, and wait for the turn; `async with` does this."""
        try:
            async with asyncio.timeout(self._wait):
                await super().start()
                self.key = self._place + self.lease
                await self._get_in_line()
                await self._wait_for_turn()
        except BaseException:
            # The lease takes the place in the line along.
            with suppress(RaftkvError):
                await self.stop()
            raise

    async def _get_in_line(self) -> None:
        result = await (
            self._client.txn()
            .when(missing(self.key))
            .then(put(self.key, self._value, lease=self.lease))
            .commit()
        )
        if not result.succeeded:
            raise LeaseLost(f"{self.key} exists already", lease=self.lease)
        self.token = result.revision

    async def _wait_for_turn(self) -> None:
        turn = asyncio.create_task(self._turn())
        loss = asyncio.create_task(self.wait_lost())
        try:
            await asyncio.wait((turn, loss), return_when=asyncio.FIRST_COMPLETED)
            self.check()
            await turn
        finally:
            turn.cancel()
            loss.cancel()
            await asyncio.gather(turn, loss, return_exceptions=True)

    async def _turn(self) -> None:
        while True:
            before = await _first(self._client, self._place, older_than=self.token)
            if before is None:
                return
            async with self._client.watch(
                before.key, from_revision=before.create_revision + 1, only="delete"
            ) as changes:
                await anext(changes)


async def _first(client: AsyncClient, place: str, older_than: int | None = None) -> Record | None:
    """The contender that holds the lock; with `older_than`, the last one before that token."""
    found: Record | None = None
    async for record in client.scan(prefix=place, keys_only=True):
        if older_than is None:
            if found is None or record.create_revision < found.create_revision:
                found = record
        elif record.create_revision < older_than and (
            found is None or record.create_revision > found.create_revision
        ):
            found = record
    return found
