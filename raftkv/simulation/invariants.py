"""What must hold after every step of a simulated cluster; the first breach raises.

The properties of the paper's figure 3 and of its thesis, stated over what a member shows, and
stricter where a simulation can see more: what is durable on every disk, also of members that are
down. Checks look at what changed since the last step of the same member, so a step costs little.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import google_crc32c

from raftkv.checks import violated
from raftkv.consensus.types import ConfState, Message, MessageKind, Role
from raftkv.server.bootstrap import FIRST_INDEX

if TYPE_CHECKING:
    from raftkv.simulation.cluster import SimCluster
    from raftkv.simulation.member import SimMember

_Entry = tuple[int, int]
"""(term, crc of the data)."""


@dataclass(slots=True)
class _Seen:
    """A member as it was after its last step."""

    role: Role = Role.FOLLOWER
    term: int = 0
    vote: int = 0
    commit_index: int = 0
    applied_index: int = 0
    revision: int = 0
    conf: ConfState = field(default_factory=ConfState)


class Invariants:
    """Everything that a cluster has shown so far."""

    def __init__(self, cluster: SimCluster) -> None:
        self.checks = 0
        self.leaders: dict[int, int] = {}
        """Who led in which term."""
        self.committed: dict[int, _Entry] = {}
        self.committed_index = FIRST_INDEX
        """Greatest index that any leader has shown committed."""
        self._committed_in: dict[int, int] = {}
        """The term whose leader committed the entry, by its index."""
        self._states: dict[int, tuple[bytes, int]] = {}
        """(state hash, revision) by applied index."""
        self._cluster = cluster
        self._seen: dict[int, _Seen] = {}

    def started(self, member: SimMember) -> None:
        """A process of `member` came up from its disk; nothing was stepped yet."""
        member.durable.started(member.opened.log, member.name)
        hard_state = member.durable.hard_state
        machine = member.opened.machine
        self._seen[member.member_id] = _Seen(
            Role.FOLLOWER,
            hard_state.term,
            hard_state.vote,
            0,
            machine.applied_index,
            machine.revision,
        )
        if machine.applied_index:
            self._check_state(member)

    def told(self, member: SimMember, message: Message) -> None:
        """`member` is about to tell a peer something; what a crash could make untrue is durable.

        The harm would show only in a crash within the moment until the next sync, and seldom then.
        """
        if message.reject:
            return
        durable, node = member.durable, member.node
        if message.kind is MessageKind.VOTE_REPLY:
            stored = durable.hard_state
            if (stored.term, stored.vote) != (message.term, message.target) and (
                stored.term <= message.term
            ):
                violated(
                    "a vote was told before it was durable",
                    member=member.name,
                    term=message.term,
                    durable_term=stored.term,
                    durable_vote=stored.vote,
                )
        elif message.kind is MessageKind.APPEND_REPLY and message.term == node.term:
            index = message.index
            if index > node.last_index or (
                index >= node.first_index and not durable.holds(index, node.entry_term(index))
            ):
                violated(
                    "entries were acknowledged before they were durable",
                    member=member.name,
                    index=index,
                    durable=durable.last_index,
                )

    def replaced(self, member: SimMember, index: int, term: int, crc: int) -> None:
        """An entry went from the log on a disk. What is committed stays wherever it is."""
        if self.committed.get(index) == (term, crc):
            violated(
                "a committed entry was taken from a disk",
                member=member.name,
                index=index,
                term=term,
            )

    def check(self, member: SimMember) -> None:
        """After a step of `member`."""
        self.checks += 1
        node, machine = member.node, member.machine
        seen = self._seen[member.member_id]
        term, commit_index, role = node.term, node.commit_index, node.role
        if term != seen.term or node.vote != seen.vote:
            self._check_vote(member, seen)
        if role is not seen.role or term != seen.term:
            self._check_role(member)
        if commit_index != seen.commit_index:
            self._check_commit(member, seen)
            seen.commit_index = commit_index
        seen.role, seen.term = role, term
        if machine.applied_index != seen.applied_index:
            self._check_applied(member, seen)
        seen.conf = node.conf

    def _check_vote(self, member: SimMember, seen: _Seen) -> None:
        node = member.node
        if node.term < seen.term:
            violated("a term went back", member=member.name, was=seen.term, now=node.term)
        if node.term == seen.term and seen.vote and node.vote != seen.vote:
            violated("a vote changed within its term", member=member.name, term=node.term)
        seen.vote = node.vote

    def _check_role(self, member: SimMember) -> None:
        node = member.node
        if node.role is not Role.LEADER:
            return
        known = self.leaders.setdefault(node.term, member.member_id)
        if known != member.member_id:
            violated(
                "election safety: two leaders in one term",
                term=node.term,
                first=known,
                second=member.member_id,
            )
        for index in range(max(node.first_index, 1), self.committed_index + 1):
            term, _ = self.committed.get(index, (0, 0))
            if self._committed_in.get(index, node.term) >= node.term:
                # By a later leader than this one, which was elected too late to do harm.
                continue
            if term and (index > node.last_index or node.entry_term(index) != term):
                violated(
                    "leader completeness: a committed entry is missing",
                    leader=member.name,
                    leader_term=node.term,
                    index=index,
                    term=term,
                )

    def _check_commit(self, member: SimMember, seen: _Seen) -> None:
        node = member.node
        commit_index = node.commit_index
        if commit_index < seen.commit_index:
            violated(
                "a commit index went back",
                member=member.name,
                was=seen.commit_index,
                now=commit_index,
            )
        # A leader that committed its own removal leads no longer when the step is over.
        leader_term = node.term if node.role is Role.LEADER else seen.term
        if commit_index > self.committed_index:
            if Role.LEADER not in (node.role, seen.role):
                violated(
                    "a follower knows of a commit that no leader has made",
                    member=member.name,
                    index=commit_index,
                    committed=self.committed_index,
                )
            self._check_quorum(member, seen, leader_term)
        low = max(seen.commit_index + 1, node.first_index)
        for index in range(low, commit_index + 1):
            mine = _entry(member, index)
            known = self.committed.setdefault(index, mine)
            if known != mine:
                violated(
                    "state machine safety: a committed entry changed",
                    member=member.name,
                    index=index,
                    first_term=known[0],
                    term=mine[0],
                )
            self._committed_in.setdefault(index, leader_term)
        self.committed_index = max(self.committed_index, commit_index)

    def _check_quorum(self, member: SimMember, seen: _Seen, leader_term: int) -> None:
        """A leader has moved the commit index: is the entry durable on enough disks?"""
        node = member.node
        index, term = node.commit_index, node.entry_term(node.commit_index)
        if term != leader_term:
            violated(
                "an entry of an earlier term was committed by counting (paper 5.4.2)",
                leader=member.name,
                index=index,
                term=term,
                leader_term=leader_term,
            )
        if not any(self._durable_on(conf, index, term) for conf in (seen.conf, node.conf)):
            members = self._cluster.members.values()
            violated(
                "committed without a quorum of disks that hold the entry",
                leader=member.name,
                index=index,
                term=term,
                conf=node.conf,
                durable_on=[one.name for one in members if one.durable.holds(index, term)],
            )

    def _durable_on(self, conf: ConfState, index: int, term: int) -> bool:
        for voters in (conf.voters, conf.voters_outgoing):
            holding = 0
            for voter in voters:
                member = self._cluster.members.get(voter)
                holding += member is not None and member.durable.holds(index, term)
            if voters and holding <= len(voters) // 2:
                return False
        return bool(conf.voters)

    def _check_applied(self, member: SimMember, seen: _Seen) -> None:
        node, machine, log = member.node, member.machine, member.opened.log
        if machine.applied_index < seen.applied_index:
            violated("an applied index went back", member=member.name)
        if machine.revision < seen.revision:
            violated("a revision went back", member=member.name)
        seen.applied_index, seen.revision = machine.applied_index, machine.revision
        latest = member.opened.snapshots.latest()
        snapshot = latest.meta.index if latest is not None else 0
        purged, applied, committed = log.first_index() - 1, machine.applied_index, node.commit_index
        # A received snapshot may be ahead of what its member knows, and outlive its installation.
        # While one is installed the log may begin after a newer one already, which comes next.
        reached = purged <= applied or member.installing
        if not (reached and applied <= committed and purged <= snapshot <= self.committed_index):
            violated(
                "purged <= applied <= committed, purged <= snapshot <= committed anywhere",
                member=member.name,
                purged=purged,
                snapshot=snapshot,
                applied=applied,
                committed=committed,
            )
        if not node.commit_index <= node.last_index:
            violated("committed <= last", member=member.name)
        if machine.applied_index > log.last_index():
            violated(
                "applied what is not durable here",
                member=member.name,
                applied=machine.applied_index,
                durable=log.last_index(),
            )
        self._check_state(member)

    def _check_state(self, member: SimMember) -> None:
        machine = member.opened.machine
        mine = (machine.state_hash, machine.revision)
        known = self._states.setdefault(machine.applied_index, mine)
        if known != mine:
            violated(
                "members differ at the same applied index",
                member=member.name,
                index=machine.applied_index,
                revision=machine.revision,
                other_revision=known[1],
            )


def _entry(member: SimMember, index: int) -> _Entry:
    """An entry of a member's log. Nothing is read from the disk, where a fault might strike."""
    log, term = member.opened.log, member.node.entry_term(index)
    if index <= log.last_index() and log.term(index) == term:
        return term, log.checksum(index)
    # Not durable yet, or what is durable is about to be replaced.
    [entry] = member.node.entries(index, index + 1)
    return entry.term, google_crc32c.value(entry.data)
