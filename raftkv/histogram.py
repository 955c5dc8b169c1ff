"""How long things take, counted in buckets as Prometheus keeps them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

DISK_SECONDS: Final = tuple(0.001 * 2**n for n in range(14))
"""1 ms to 8 s, as etcd has them for its disk."""
NETWORK_SECONDS: Final = tuple(0.0001 * 2**n for n in range(16))
"""0.1 ms to 3 s, as etcd has them between members."""


class Histogram:
    """Seconds by bucket. One thread at a time observes; any may read, at worst one behind."""

    __slots__ = ("_bounds", "_counts", "sum_seconds")

    def __init__(self, bounds: tuple[float, ...] = DISK_SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """One more that took so long."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum_seconds += seconds

    def buckets(self) -> Iterator[tuple[str, int]]:
        """For each upper bound, inclusive and as text: how many took at most so long."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield bound, total
