"""What the C library keeps of memory that was freed.

A snapshot, a large batch or a handshake with a new authority takes some MiB for a moment. glibc
keeps them, more after each larger one, and once for every thread (mallopt(3)): a member's private
memory stepped up by 4 to 8 MiB with each and never came down (docs/reliability.md, the soak).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from raftkv.limits import (
    HEAP_ARENAS_MAX,
    HEAP_KEPT_BYTES,
    HEAP_MAPPED_BYTES,
    HEAP_TRIM_SECONDS,
)


class _Setting(NamedTuple):
    parameter: int
    """Its number in malloc.h."""
    value: int
    variable: str
    """What an operator sets it by, which prevails (mallopt(3))."""


_SETTINGS: Final = (
    _Setting(-8, HEAP_ARENAS_MAX, "MALLOC_ARENA_MAX"),
    _Setting(-1, HEAP_KEPT_BYTES, "MALLOC_TRIM_THRESHOLD_"),
    _Setting(-3, HEAP_MAPPED_BYTES, "MALLOC_MMAP_THRESHOLD_"),
)


def give_back_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """From now on, large blocks go back to the system when they are freed. To be called before
    there are threads. False: the C library has no such setting (musl), nothing was changed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    for setting in _SETTINGS:
        if setting.variable not in environment:
            mallopt(setting.parameter, setting.value)
    return True


class Trimmer:
    """Gives free pages in the midst of the heaps back now and then, in a thread (malloc_trim(3)).

    Each heap is locked while that is done, some milliseconds for a hundred MiB.
    """

    def __init__(self, seconds: float = HEAP_TRIM_SECONDS) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            self._trim: Callable[[int], int] = trim
            self._wait()

    def close(self) -> None:
        """No more of it; one that is under way ends by itself."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, _: Any = None) -> None:
        if not self._closed:
            self._timer = self._loop.call_later(self._seconds, self._begin)

    def _begin(self) -> None:
        self._loop.run_in_executor(None, self._trim, 0).add_done_callback(self._wait)
