"""The watchdog of the log's disk: a leader whose disk does not answer gives leadership up.

Such a leader still sends heartbeats, so nobody takes over, while each write waits for the other
voters, and a second slow disk among them would stop the cluster. A follower with a stalled disk
harms nobody as long as the others are a majority, and cannot even be elected: a vote is synced.

No clock or thread: whoever writes the log says since when it is at one step of its work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from raftkv.consensus.types import NO_MEMBER, Role

if TYPE_CHECKING:
    from raftkv.consensus.node import RaftNode
    from raftkv.server.replica import Replica

log = logging.getLogger(__name__)

BusySince = Callable[[], int | None]
"""Since when, on the member's clock, the log's writer is at one write or sync; None: it is not."""


def never_busy() -> None:
    """A `BusySince` of a log that nobody writes."""


def successors(node: RaftNode) -> list[int]:
    """Voters that were heard of lately, the one whose log is furthest first."""
    peers = node.status().peers
    voters = [
        (peers[voter].match, voter)
        for voter in node.conf.voters
        if voter in peers and voter != node.member_id and peers[voter].recent_active
    ]
    return [voter for _, voter in sorted(voters, reverse=True)]


class DiskWatch:
    """See the module. `look` is called every tick, on the loop that owns the member."""

    def __init__(self, replica: Replica, bound_ms: int, busy_since_ms: BusySince) -> None:
        self._replica = replica
        self._bound_ms = bound_ms
        self._busy_since_ms = busy_since_ms
        self._stalled_since_ms: int | None = None
        self._tried: set[int] = set()

    @property
    def stalled(self) -> bool:
        """Whether the disk did not answer when it was last looked at."""
        return self._stalled_since_ms is not None

    def look(self, now_ms: int) -> None:
        """Find out whether the disk answers, and act on it."""
        since_ms = self._busy_since_ms()
        if since_ms is None or now_ms - since_ms < self._bound_ms:
            self._answers(now_ms)
            return
        node = self._replica.node
        if self._stalled_since_ms is None:
            self._stalled_since_ms = since_ms
            self._replica.stats.disk_stalls += 1
            log.error(
                "the disk of the log does not answer",
                extra={"stalled_ms": now_ms - since_ms, "leading": node.role is Role.LEADER},
            )
        if node.role is Role.LEADER and node.lead_transferee == NO_MEMBER:
            self._give_up_leadership(node)

    def _answers(self, now_ms: int) -> None:
        if self._stalled_since_ms is not None:
            log.info(
                "the disk of the log answers again",
                extra={"stalled_ms": now_ms - self._stalled_since_ms},
            )
        self._stalled_since_ms = None
        self._tried.clear()

    def _give_up_leadership(self, node: RaftNode) -> None:
        """Ask the next voter to take over; one that does not within an election timeout may have
        a disk that is no better."""
        others = successors(node)
        if not others:
            return  # without a majority it does not lead for long, and alone nobody else could
        untried = [voter for voter in others if voter not in self._tried]
        if not untried:
            self._tried.clear()
            untried = others
        target = untried[0]
        self._tried.add(target)
        self._replica.stats.disk_stall_handovers += 1
        log.warning(
            "giving leadership up, because the disk of the log does not answer",
            extra={"to": f"{target:016x}", "term": node.term},
        )
        node.transfer_leader(target)
