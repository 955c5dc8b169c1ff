"""Learners that were added to become voters: when the leader promotes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkv.consensus.node import Status


class Promotions:
    """Looks at the leader's view about once a second, and names who has caught up.

    A learner has when it holds everything that was committed at the look before, so it is at most
    about a second behind, and it answers. Being promoted it then delays no commit.
    """

    def __init__(self) -> None:
        self._term = 0
        self._goal: int | None = None

    def due(self, status: Status, wanted: Iterable[int]) -> int | None:
        """The learner to promote now; one at a time, for changes come one at a time."""
        goal = self._goal if self._term == status.term else None
        self._term, self._goal = status.term, status.commit_index
        if goal is None:
            return None
        for member_id in sorted(set(wanted) & set(status.conf.learners)):
            peer = status.peers.get(member_id)
            if peer is not None and peer.recent_active and peer.match >= goal:
                return member_id
        return None
