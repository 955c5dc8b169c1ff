"""How many requests a second one client may send: a bucket of tokens for each address and user.

Off unless configured. A bucket holds what RATE_BURST_SECONDS bring; a request takes one token, and
one that finds none is refused before it costs anything, with how long to wait. Each message that
asks for something counts: a request of HTTP, an RPC, and each message of a stream of requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import Final

from raftkv.errors import TooManyRequests
from raftkv.limits import RATE_BURST_SECONDS, RATE_CLIENTS_MAX


class Buckets:
    """One bucket a name, for up to RATE_CLIENTS_MAX names; who was quiet longest is forgotten."""

    def __init__(self, per_second: int, clock: Callable[[], float]) -> None:
        self._rate = per_second
        self._burst: Final = float(per_second * RATE_BURST_SECONDS)
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Name -> (tokens, when)."""

    def wait_seconds(self, name: str) -> float:
        """Take a token: 0; or, with none there, how long until there is one."""
        now = self._clock()
        tokens, then = self._kept.get(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        taken = tokens >= 1.0
        self._kept[name] = (tokens - 1.0 if taken else tokens, now)
        self._kept.move_to_end(name)
        if len(self._kept) > RATE_CLIENTS_MAX:
            self._kept.popitem(last=False)
        return 0.0 if taken else (1.0 - tokens) / self._rate


class Pace:
    """The rates of one member's doors; 0: none."""

    def __init__(self, per_address: int, per_user: int, clock: Callable[[], float]) -> None:
        self._addresses = Buckets(per_address, clock) if per_address else None
        self._users = Buckets(per_user, clock) if per_user else None
        self._per = {"address": per_address, "user": per_user}
        self.refused = {"address": 0, "user": 0}
        """Requests refused so far, by what had too many."""

    def of_address(self, address: str) -> None:
        """A request came from there. Raises TooManyRequests."""
        self._take(self._addresses, "address", address)

    def of_user(self, user: str) -> None:
        """A request of theirs came. Raises TooManyRequests."""
        self._take(self._users, "user", user)

    def _take(self, buckets: Buckets | None, what: str, name: str) -> None:
        seconds = buckets.wait_seconds(name) if buckets is not None and name else 0.0
        if seconds:
            self.refused[what] += 1
            raise TooManyRequests(
                f"more than {self._per[what]} requests a second from one {what}; nothing was done",
                limit=self._per[what],
                per=what,
                retry_after=ceil(seconds),
            )
