"""Whether the disk is quick enough that the loop may wait for it. Pure."""

from __future__ import annotations

from typing import Final

SYNC_QUICK_SECONDS: Final = 0.001
"""Syncs that take less on average are waited for. Longer ones are worth a thread: the hand-over
costs little beside them, and the loop would be still for too long."""
SYNCS_REMEMBERED: Final = 64
"""About so many of the last syncs decide."""
SLOW_AT_FIRST_SECONDS: Final = 0.01


class SyncPace:
    """The mean of recent syncs, each counting for less as others follow.

    One sync that takes a second weighs as much as a mean of 16 milliseconds, and it takes 180 quick
    ones to be forgotten. A disk that nothing is known of yet is held to be slow.
    """

    __slots__ = ("_mean_seconds",)

    def __init__(self) -> None:
        self._mean_seconds = SLOW_AT_FIRST_SECONDS

    def took(self, seconds: float) -> None:
        """A sync has taken so long."""
        self._mean_seconds += (seconds - self._mean_seconds) / SYNCS_REMEMBERED

    @property
    def quick(self) -> bool:
        """Whether the next sync may be expected to be short."""
        return self._mean_seconds < SYNC_QUICK_SECONDS
