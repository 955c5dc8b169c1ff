"""A token bucket: how much of a cheap-to-send, costly-to-serve thing a peer may send."""

from __future__ import annotations


class Budget:
    """`burst` at once, `per_second` flowing back. Time is the caller's, in seconds."""

    __slots__ = ("_at", "_burst", "_left", "_per_second")

    def __init__(self, burst: int, per_second: int) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._left = float(burst)
        self._at = 0.0

    def spend(self, now: float) -> bool:
        """Take one; False when nothing is left."""
        left = self._left
        if left < self._burst:
            left = min(self._burst, left + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if left < 1.0:
            self._left = left
            return False
        self._left = left - 1.0
        return True
