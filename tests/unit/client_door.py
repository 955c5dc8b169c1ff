"""The real HTTP door over a store in memory, on a loop in a thread, for the client and the CLI."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from raftkv.api.http.door import start_http
from raftkv.server.local import LocalStore

R = TypeVar("R")


class Door:
    """A served store. `call` runs something on its loop."""

    def __init__(self) -> None:
        self.url = ""
        self.store: LocalStore
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def call(self, work: Callable[[], R]) -> R:
        async def run() -> R:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _open(self) -> None:
        self.store = LocalStore()
        self._listener = await start_http(self.store, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.port}"

    async def _close(self) -> None:
        await self._listener.close()
        self.store.close()


@contextmanager
def real_door() -> Iterator[Door]:
    """Serve a fresh store."""
    door = Door()
    door._thread.start()
    try:
        asyncio.run_coroutine_threadsafe(door._open(), door._loop).result(10)
        yield door
        asyncio.run_coroutine_threadsafe(door._close(), door._loop).result(10)
    finally:
        door._loop.call_soon_threadsafe(door._loop.stop)
        door._thread.join(10)
        door._loop.close()
