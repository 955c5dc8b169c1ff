"""Linearizable reads on their way: gathered into rounds, confirmed by the leader, then applied.

One ReadIndex round (thesis 6.4) serves every read that arrived before it began. A round's id is
used once and never again: an answer to an earlier attempt must not confirm a later one
(etcd#20418). Knows no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from raftkv.errors import RaftkvError, ReadTimedOut

ReadDone = Callable[[RaftkvError | None], None]


class _Round:
    __slots__ = ("deadline_ms", "dones", "started_ms")

    def __init__(self, dones: list[ReadDone], started_ms: int, deadline_ms: int) -> None:
        self.dones = dones
        self.started_ms = started_ms
        self.deadline_ms = deadline_ms


class ReadQueue:
    """Reads that wait for a round, for its confirmation, or for the machine to catch up."""

    def __init__(self, boot: int, rounds_max: int = 4) -> None:
        self._prefix = boot.to_bytes(8, "big")
        self._next = 1
        self._rounds_max = rounds_max
        self._gathering: list[ReadDone] = []
        self._gathering_deadline_ms = 0
        self._rounds: dict[bytes, _Round] = {}
        self._confirmed: list[tuple[int, int, list[ReadDone]]] = []
        self.waiting = 0
        self.confirmed_total = 0

    def add(self, done: ReadDone, deadline_ms: int) -> None:
        """Take a read on; it joins the next round to begin."""
        if not self._gathering:
            self._gathering_deadline_ms = deadline_ms
        self._gathering.append(done)
        self.waiting += 1

    def begin_round(self, now_ms: int) -> bytes | None:
        """The id of a new round for all gathered reads; None: nothing gathered, or enough rounds
        are under way and their end will begin the next."""
        if not self._gathering or len(self._rounds) >= self._rounds_max:
            return None
        context = self._prefix + self._next.to_bytes(8, "big")
        self._next += 1
        self._rounds[context] = _Round(self._gathering, now_ms, self._gathering_deadline_ms)
        self._gathering = []
        return context

    def confirmed(self, context: bytes, index: int) -> None:
        """The leader confirmed a round: reads are current once `index` is applied."""
        current = self._rounds.pop(context, None)
        if current is not None:
            heapq.heappush(self._confirmed, (index, self._next, current.dones))
            self._next += 1

    def refused(self, context: bytes, error: RaftkvError) -> None:
        """A round was dropped for good."""
        current = self._rounds.pop(context, None)
        if current is not None:
            self._finish(current.dones, error)

    def applied(self, index: int) -> None:
        """The machine has applied `index`: answer every read that waited for it."""
        heap = self._confirmed
        while heap and heap[0][0] <= index:
            _, _, dones = heapq.heappop(heap)
            self.confirmed_total += len(dones)
            self._finish(dones, None)

    def expire(self, now_ms: int, abandon_after_ms: int, error: RaftkvError) -> None:
        """Abandon rounds that got no answer for `abandon_after_ms`: with `error` those whose
        deadline is over, and the others begin again under a new id."""
        for context, current in list(self._rounds.items()):
            if now_ms - current.started_ms < abandon_after_ms:
                continue
            del self._rounds[context]
            if current.deadline_ms <= now_ms:
                self._finish(current.dones, error)
            else:
                self._gathering_deadline_ms = current.deadline_ms
                self._gathering = current.dones + self._gathering
        if self._gathering and self._gathering_deadline_ms <= now_ms:
            gathered, self._gathering = self._gathering, []
            self._finish(gathered, error)

    def fail_all(self, error: RaftkvError) -> None:
        """Answer everything that waits with `error`."""
        dones = self._gathering
        self._gathering = []
        for current in self._rounds.values():
            dones = dones + current.dones
        self._rounds.clear()
        for _, _, confirmed in self._confirmed:
            dones = dones + confirmed
        self._confirmed.clear()
        self._finish(dones, error)

    def _finish(self, dones: list[ReadDone], error: RaftkvError | None) -> None:
        self.waiting -= len(dones)
        for done in dones:
            done(error)


def read_timed_out() -> ReadTimedOut:
    """The refusal for a read whose confirmation did not come."""
    return ReadTimedOut(
        "no leader confirmed this read in time; a serializable read is answered from local state"
    )
