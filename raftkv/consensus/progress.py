"""What a leader knows about one member's log, and how fast it may send.

   PROBE      does not know where the logs agree: one append at a time, next on an answer or
              after a heartbeat's answer
   REPLICATE  knows: appends are pipelined, bounded in number and in bytes
   SNAPSHOT   the entries needed are compacted: nothing is sent until the snapshot is reported

         +-- rejected, unreachable --+
         v                           |
       PROBE -- acknowledged --> REPLICATE
         |  ^
compacted|  | reported, or acknowledged far enough
         v  |
       SNAPSHOT
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum


class ProgressState(IntEnum):
    """How appends to this member are paced."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


_PROBE = ProgressState.PROBE
_REPLICATE = ProgressState.REPLICATE
_SNAPSHOT = ProgressState.SNAPSHOT


class Progress:
    """One member as its leader sees it. Indexes are log indexes."""

    __slots__ = (
        "active_before",
        "inflight",
        "inflight_bytes",
        "match",
        "next",
        "paused",
        "pending_snapshot",
        "poke",
        "recent_active",
        "sent_commit",
        "state",
        "tick_match",
    )

    def __init__(self, next_index: int, *, match: int = 0, recent_active: bool = False) -> None:
        self.match = match
        """Greatest index known to be durable there and equal to the leader's."""
        self.next = next_index
        """Index of the next entry to send; match < next."""
        self.state = _PROBE
        self.paused = False
        """PROBE: an append is under way."""
        self.poke = False
        """Send an append even if it is empty."""
        self.pending_snapshot = 0
        """SNAPSHOT: the index of the snapshot under way."""
        self.recent_active = recent_active
        """Heard from since the last quorum check."""
        self.active_before = False
        """Heard from between the last quorum check and the one before."""
        self.sent_commit = 0
        """Greatest commit index sent."""
        self.tick_match = -1
        """`match` at the last heartbeat; -1 once that heartbeat's answer was used."""
        self.inflight: deque[tuple[int, int]] = deque()
        """(last index, data bytes) of each unanswered append, oldest first."""
        self.inflight_bytes = 0

    def become_probe(self) -> None:
        """Look again for the point of agreement, after a snapshot from its end."""
        if self.state is _SNAPSHOT:
            self.next = max(self.match, self.pending_snapshot) + 1
        else:
            self.next = self.match + 1
        self._enter(_PROBE)
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        """Stream from `match` on."""
        self.next = self.match + 1
        self._enter(_REPLICATE)

    def become_snapshot(self, index: int) -> None:
        """Wait for the snapshot at `index` to be reported."""
        self._enter(_SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.pending_snapshot = 0
        self.inflight.clear()
        self.inflight_bytes = 0

    def acknowledged(self, index: int) -> bool:
        """The member has everything up to `index`; whether that is news."""
        if index <= self.match:
            return False
        self.match = index
        self.paused = False
        if self.next <= index:
            self.next = index + 1
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]
        return True

    def rejected(self, index: int, agree_at_most: int) -> bool:
        """An append after `index` was rejected; False when the rejection is out of date.

        The next probe starts after `agree_at_most`, the last index where the logs may agree.
        """
        if self.state is _REPLICATE:
            if index <= self.match:
                return False
            self.become_probe()
            return True
        if self.next - 1 != index:
            return False
        self.next = max(min(index, agree_at_most + 1), self.match + 1)
        self.paused = False
        self.sent_commit = min(self.sent_commit, self.next - 1)
        return True

    def regressed(self, last_index: int) -> None:
        """The member's log ends before `match`: its disk was replaced. Start over from there."""
        self.match = 0
        if self.state is _SNAPSHOT:
            return
        self._enter(_PROBE)
        self.next = last_index + 1
        self.sent_commit = 0

    def sent(self, last_index: int, data_bytes: int) -> None:
        """An append that ends in `last_index` is on its way."""
        if self.state is _REPLICATE:
            self.next = last_index + 1
            self.inflight.append((last_index, data_bytes))
            self.inflight_bytes += data_bytes
        else:
            self.paused = True
