"""The leader's lease clock. Decides when a lease has run out; expiry itself is a proposed command.

Time is an argument (monotonic milliseconds), so that the same code runs in simulation. Only the
leader's clock counts. A new leader gives every lease its full TTL again: a holder that was told
"renewed" by an earlier leader can then never lose its lease early (etcd#15247 and #12528 tell
what happens otherwise).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from raftkv.checks import check


class Lessor:
    """Deadlines of all leases while this member leads; empty otherwise.

    Renewing costs one dict write: the heap holds deadlines that may be early, and an early one is
    put back when it comes up.
    """

    def __init__(self) -> None:
        self.leading = False
        self._ttl_ms: dict[int, int] = {}
        self._deadline_ms: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []
        self._expiring: set[int] = set()

    def promote(self, leases: Iterable[tuple[int, int]], now_ms: int) -> None:
        """This member leads now: `leases` are (id, ttl_seconds), all of them alive."""
        self.demote()
        self.leading = True
        for lease, ttl_seconds in leases:
            self._ttl_ms[lease] = ttl_seconds * 1000
            self._deadline_ms[lease] = now_ms + ttl_seconds * 1000
        self._heap = [(deadline, lease) for lease, deadline in self._deadline_ms.items()]
        heapq.heapify(self._heap)

    def demote(self) -> None:
        """This member does not lead (any more); its clock means nothing."""
        self.leading = False
        self._ttl_ms.clear()
        self._deadline_ms.clear()
        self._heap.clear()
        self._expiring.clear()

    def replaced(self, leases: Iterable[tuple[int, int]], now_ms: int) -> None:
        """The state has jumped: `leases` are those that are alive now, each with its whole TTL.

        Those of which the end is proposed stay so, since that may be in the log.
        """
        expiring = set(self._expiring)
        self.promote(leases, now_ms)
        self._expiring = expiring & self._ttl_ms.keys()

    def granted(self, lease: int, ttl_seconds: int, now_ms: int) -> None:
        """A lease was granted, or its TTL changed, as of now."""
        if not self.leading:
            return
        self._ttl_ms[lease] = ttl_seconds * 1000
        self._deadline_ms[lease] = now_ms + ttl_seconds * 1000
        # A shorter TTL must come up earlier than the old deadline in the heap.
        heapq.heappush(self._heap, (now_ms + ttl_seconds * 1000, lease))
        self._expiring.discard(lease)

    def gone(self, lease: int) -> None:
        """A lease was revoked or has expired."""
        self._ttl_ms.pop(lease, None)
        self._deadline_ms.pop(lease, None)
        self._expiring.discard(lease)

    def renew(self, lease: int, now_ms: int) -> int | None:
        """Start the TTL again; the TTL in seconds, or None for a lease unknown or expiring.

        The answer may be given to the holder only after this member's leadership was confirmed
        at or after `now_ms`.
        """
        ttl_ms = self._ttl_ms.get(lease)
        if ttl_ms is None or lease in self._expiring:
            return None
        self._deadline_ms[lease] = now_ms + ttl_ms
        return ttl_ms // 1000

    def expiring(self, lease: int) -> bool:
        """Whether the lease ran out and its end is proposed, but not applied."""
        return lease in self._expiring

    def time(self, lease: int, now_ms: int) -> tuple[int, int] | None:
        """(ttl_seconds, remaining_ms >= 0), or None for an unknown lease."""
        ttl_ms = self._ttl_ms.get(lease)
        if ttl_ms is None:
            return None
        return ttl_ms // 1000, max(0, self._deadline_ms[lease] - now_ms)

    def take_expired(self, now_ms: int, count_max: int) -> list[int]:
        """Leases that ran out, at most `count_max`; each is told once until it is put back."""
        expired: list[int] = []
        heap = self._heap
        while heap and heap[0][0] <= now_ms and len(expired) < count_max:
            _, lease = heapq.heappop(heap)
            deadline = self._deadline_ms.get(lease)
            if deadline is None or lease in self._expiring:
                continue
            if deadline > now_ms:
                heapq.heappush(heap, (deadline, lease))
                continue
            self._expiring.add(lease)
            expired.append(lease)
        return expired

    def put_back(self, leases: Iterable[int], now_ms: int) -> None:
        """The proposal to expire these had no effect: offer them again."""
        for lease in leases:
            if lease in self._expiring:
                self._expiring.discard(lease)
                heapq.heappush(self._heap, (now_ms, lease))

    def stalled(self, gap_ms: int) -> None:
        """This process stood still for `gap_ms`: renewals may wait unread, so time did not pass."""
        check(gap_ms >= 0, "a stall has a length", gap_ms=gap_ms)
        for lease in self._deadline_ms:
            self._deadline_ms[lease] += gap_ms

    def __contains__(self, lease: int) -> bool:
        """Whether this lease is alive, as far as is applied here."""
        return lease in self._ttl_ms

    def __len__(self) -> int:
        return len(self._deadline_ms)
