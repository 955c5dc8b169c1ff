"""Our own clients of a cluster whose members and certificates change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from raftkv.client import AsyncClient
from raftkv.server.tls.files import TlsFiles

CLOSE_SECONDS = 15.0
"""Calls under way over old connections have ended by then."""


class Clients:
    """A client for each member, which asks that member first and the others when it must."""

    def __init__(self, urls: Callable[[], list[str]], files: Callable[[], TlsFiles]) -> None:
        self._urls = urls
        self._files = files
        self._closing: set[asyncio.Task[None]] = set()
        self.all: list[AsyncClient] = self._made()
        self.generation = asyncio.Event()
        """Set, and replaced, when the clients are."""

    def _made(self) -> list[AsyncClient]:
        urls, files = self._urls(), self._files()
        return [
            AsyncClient([*urls[at:], *urls[:at]], cacert=files.ca, cert=files.cert, key=files.key)
            for at in range(len(urls))
        ]

    def renew(self) -> None:
        """New connections to the members there are now, with the certificate there is now."""
        old, self.all = self.all, self._made()
        generation, self.generation = self.generation, asyncio.Event()
        generation.set()
        task = asyncio.create_task(self._close(old, CLOSE_SECONDS))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all connections."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._close(self.all, 0)

    @staticmethod
    async def _close(clients: Sequence[AsyncClient], seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            for client in clients:
                await client.close()
