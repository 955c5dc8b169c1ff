"""Requests that take long, found by looking now and then at what is under way.

A request costs nothing for it: a few times within the bound all connections are asked what they
are still serving, and what was there long enough ago is logged, while it still waits and when it
ends. So times are known to a quarter of the bound. Keys and values are not logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from raftkv.limits import SLOW_REQUESTS_LOGGED_MAX

log = logging.getLogger(__name__)

LOOKS_PER_BOUND: Final = 4


class SlowRequests:
    """For one listener. `look` is called `LOOKS_PER_BOUND` times within `bound_ms`."""

    def __init__(self, bound_ms: int, now_ms: Callable[[], int]) -> None:
        self.bound_ms = bound_ms
        self.found = 0
        """Slow requests since the start."""
        self._now_ms = now_ms
        self._seen: dict[Any, int] = {}
        self._slow: dict[Any, dict[str, Any]] = {}
        """Those that were slow at the last look, with what was said of them."""

    @property
    def pause_seconds(self) -> float:
        """Until the next look."""
        return self.bound_ms / LOOKS_PER_BOUND / 1000

    def look(self, under_way: Iterable[Any]) -> None:
        """Note what is under way: things that have `described()`, and are gone once answered."""
        now_ms = self._now_ms()
        seen: dict[Any, int] = {}
        fresh = []
        for request in under_way:
            since_ms = seen[request] = self._seen.get(request, now_ms)
            if now_ms - since_ms >= self.bound_ms and request not in self._slow:
                fresh.append(request)
        for request in [request for request in self._slow if request not in seen]:
            facts = self._slow.pop(request)
            if not facts:
                continue
            took_ms = now_ms - self._seen[request]
            log.warning("a slow request has ended", extra={**facts, "took_ms": took_ms})
        self._seen = seen
        self.found += len(fresh)
        for request in fresh[:SLOW_REQUESTS_LOGGED_MAX]:
            facts = self._slow[request] = request.described()
            waited_ms = now_ms - seen[request]
            log.warning("a request is slow", extra={**facts, "waited_ms": waited_ms})
        if len(fresh) > SLOW_REQUESTS_LOGGED_MAX:
            log.warning(
                "more requests are slow",
                extra={"number": len(fresh) - SLOW_REQUESTS_LOGGED_MAX},
            )
            # Counted, and not looked at again.
            self._slow.update((request, {}) for request in fresh[SLOW_REQUESTS_LOGGED_MAX:])
