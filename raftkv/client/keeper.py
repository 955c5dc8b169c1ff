"""Keeping something alive that has a TTL, and noticing when that fails.

The holder's clock starts when a renewal is *sent*, so a keeper never believes in a lease longer
than the store does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from raftkv.client.errors import LeaseLost
from raftkv.errors import OutcomeUnknown, RaftkvError, Refused

RENEWALS_PER_TTL = 3


class Keeper:
    """Renews a TTL from a task of its own, as an async context manager.

    When the TTL is lost while the block runs, the block is cancelled and `LeaseLost` raised in its
    place, so that nobody goes on in the belief of holding it; with `cancel_on_loss=False` only
    `lost` is set and `on_loss` called.
    """

    def __init__(
        self,
        *,
        cancel_on_loss: bool = True,
        on_loss: Callable[[LeaseLost], None] | None = None,
    ) -> None:
        self.lease = ""
        self.ttl = 0
        self.renewals = 0
        """How often the TTL was renewed."""
        self._cancel_on_loss = cancel_on_loss
        self._on_loss = on_loss
        self._loss: LeaseLost | None = None
        self._lost = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[object] | None = None
        self._valid_until = 0.0

    @property
    def lost(self) -> bool:
        """Whether what was kept is gone, or has to be taken for gone."""
        return self._loss is not None

    def check(self) -> None:
        """Raise `LeaseLost` if it was lost. Safe to call from any thread."""
        if self._loss is not None:
            raise self._loss

    async def wait_lost(self) -> LeaseLost:
        """Wait until it is lost; cancel this when the news is no longer wanted."""
        while self._loss is None:
            await self._lost.wait()
        return self._loss

    async def _begin(self) -> tuple[str, int]:
        """Take hold; the lease and the TTL in seconds."""
        raise NotImplementedError

    async def _renew(self, timeout: float) -> tuple[str, int]:
        """Renew once; raises LeaseNotFound and the like when it is gone for good."""
        raise NotImplementedError

    async def _end(self) -> None:
        """Let go."""
        raise NotImplementedError

    async def start(self) -> None:
        """Take hold and begin to renew; `async with` does this."""
        clock = asyncio.get_running_loop().time
        sent = clock()
        self.lease, self.ttl = await self._begin()
        self._valid_until = sent + self.ttl
        self._renewing = asyncio.create_task(self._keep(), name=f"keep {self.lease}")

    async def stop(self) -> None:
        """Stop renewing and let go; when it was lost there is nothing to let go of."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if not self.lost and self.lease:
            try:
                await self._end()
            except (Refused, OutcomeUnknown):
                # It ends by itself with its TTL; the block's own outcome matters more.
                return

    async def __aenter__(self) -> Self:
        await self.start()
        self._owner = asyncio.current_task()
        if self.lost:
            await self.stop()
            self.check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        owner, self._owner = self._owner, None
        await self.stop()
        if (
            self._loss is not None
            and self._cancel_on_loss
            and owner is not None
            and isinstance(error, asyncio.CancelledError)
            and owner.uncancel() == 0
        ):
            raise self._loss from error

    async def _keep(self) -> None:
        clock = asyncio.get_running_loop().time
        pause = self.ttl / RENEWALS_PER_TTL
        while True:
            left = self._valid_until - clock()
            await asyncio.sleep(min(pause, left) if left > 0 else pause)
            left = self._valid_until - clock()
            if left <= 0 and self._expired():
                self._lose("it could not be renewed in time")
                return
            sent, share = clock(), self.ttl / RENEWALS_PER_TTL
            try:
                self.lease, self.ttl = await self._renew(min(left, share) if left > 0 else share)
            except RaftkvError as error:
                if self._final(error):
                    self._lose(error.message)
                    return
                pause = min(0.2, self.ttl / 10)
                continue
            self._valid_until = sent + self.ttl
            self.renewals += 1
            pause = self.ttl / RENEWALS_PER_TTL

    def _expired(self) -> bool:
        """Asked when the TTL ran out without a renewal: whether that is the end."""
        return True

    def _final(self, error: RaftkvError) -> bool:
        """Whether the store says that what was kept is gone."""
        return error.code in ("lease_not_found", "instance_not_found", "instance_claimed")

    def _lose(self, reason: str) -> None:
        self._loss = LeaseLost(f"{self._what()} was lost: {reason}", lease=self.lease)
        self._lost.set()
        if self._on_loss is not None:
            self._on_loss(self._loss)
        if self._cancel_on_loss and self._owner is not None:
            self._owner.cancel()

    def _what(self) -> str:
        return f"lease {self.lease}"
