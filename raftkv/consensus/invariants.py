"""What must hold at all times: on one member, checked in production, and over a group.

The group checks take the members' nodes, as simulators and tests have them. They are the safety
properties of the paper's figure 3, stated over what is observable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from raftkv.checks import check, violated
from raftkv.consensus.types import NO_MEMBER, Role

if TYPE_CHECKING:
    from raftkv.consensus.core import Core
    from raftkv.consensus.node import RaftNode


def check_core(core: Core) -> None:
    """The cheap checks, made whenever the shell takes over output."""
    log = core.log
    last = log.offset + len(log.entries) - 1
    if not (
        log.applied <= log.applying
        and log.committed <= last
        and log.offset <= log.handed <= last + 1
        and core.handed_term <= core.term
        and core.durable_term <= core.term
    ):
        violated(
            "indexes or terms out of order",
            applied=log.applied,
            applying=log.applying,
            committed=log.committed,
            offset=log.offset,
            handed=log.handed,
            last=last,
            term=core.term,
            handed_term=core.handed_term,
            durable_term=core.durable_term,
        )
    if core.role is Role.LEADER:
        check(
            core.leader == core.member_id and core.vote != NO_MEMBER,
            "a leader that does not lead",
            leader=core.leader,
            vote=core.vote,
        )


class GroupHistory:
    """What a group of members has shown so far. Feed it after every step of a simulation."""

    __slots__ = ("_committed", "_floor", "_leaders")

    def __init__(self) -> None:
        self._leaders: dict[int, int] = {}
        self._committed: dict[int, tuple[int, bytes]] = {}
        self._floor: dict[int, tuple[int, int]] = {}

    def observe(self, nodes: Iterable[RaftNode]) -> None:
        """Check every property over the members that are up. Raises `InvariantViolation`."""
        for node in nodes:
            self._check_leader(node)
            self._check_progress(node)
            self._check_committed(node)

    def restarted(self, member: int) -> None:
        """This member has lost what was not durable; its indexes may start lower."""
        self._floor.pop(member, None)

    def _check_leader(self, node: RaftNode) -> None:
        if node.role is Role.LEADER:
            known = self._leaders.setdefault(node.term, node.member_id)
            check(
                known == node.member_id,
                "election safety: two leaders in one term",
                term=node.term,
                first=known,
                second=node.member_id,
            )

    def _check_progress(self, node: RaftNode) -> None:
        term, committed = self._floor.get(node.member_id, (0, 0))
        check(node.term >= term, "a term went back", member=node.member_id)
        check(node.commit_index >= committed, "a commit index went back", member=node.member_id)
        self._floor[node.member_id] = (node.term, node.commit_index)

    def _check_committed(self, node: RaftNode) -> None:
        low = max(node.first_index, 1)
        for entry in node.entries(low, node.commit_index + 1):
            known = self._committed.setdefault(entry.index, (entry.term, entry.data))
            check(
                known == (entry.term, entry.data),
                "state machine safety: a committed entry changed",
                index=entry.index,
                member=node.member_id,
                first_term=known[0],
                term=entry.term,
            )

    def check_leader_complete(self, node: RaftNode) -> None:
        """A leader's log holds every entry that was ever seen committed (paper 5.4.3)."""
        if node.role is not Role.LEADER:
            return
        for index, (term, _) in self._committed.items():
            if index >= node.first_index:
                check(
                    index <= node.last_index and node.entry_term(index) == term,
                    "leader completeness: a committed entry is missing",
                    index=index,
                    leader=node.member_id,
                )

    @property
    def committed_index(self) -> int:
        """Greatest index seen committed anywhere."""
        return max(self._committed, default=0)


def check_log_matching(nodes: Iterable[RaftNode]) -> None:
    """Logs that agree on one entry's term agree on it and on everything before (paper 5.3)."""
    logs = [
        {entry.index: entry for entry in node.entries(node.first_index, node.last_index + 1)}
        for node in nodes
    ]
    for position, left in enumerate(logs):
        for right in logs[position + 1 :]:
            agreed = False
            for index in sorted(left.keys() & right.keys(), reverse=True):
                if left[index].term == right[index].term:
                    agreed = True
                    check(left[index] == right[index], "log matching: entries differ", index=index)
                else:
                    check(not agreed, "log matching: an agreement hides a conflict", index=index)
