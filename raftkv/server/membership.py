"""Which membership changes a leader takes on, and what a committed one does to the members' table.

Consensus itself keeps changes one at a time and its quorums overlapping; here is what only the
shell can know: names, addresses, who is reachable, who has caught up. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgpack

from raftkv.consensus.types import ChangeKind, ConfigChange, ConfState
from raftkv.errors import ChangeRefused, MemberExists, MemberNotFound, PeerError
from raftkv.limits import LEARNERS_MAX, VOTERS_MAX
from raftkv.machine.cluster import MemberChange, MemberInfo
from raftkv.packing import unpack

if TYPE_CHECKING:
    from raftkv.consensus.node import PeerStatus, Status


def change_context(origin: int, boot: int, sequence: int, attributes: list[Any]) -> bytes:
    """What travels with a change: who asked, and the new member's attributes."""
    return bytes(msgpack.packb([origin, boot, sequence, attributes]))


def read_context(context: bytes) -> tuple[int, int, int, list[Any]]:
    """(origin, boot, sequence, attributes); zeros for a change that consensus made by itself.

    Raises PeerError for a context that `change_context` does not make.
    """
    if not context:
        return 0, 0, 0, []
    try:
        fields = unpack(context, maps=False)
    except ValueError as error:
        raise PeerError(f"a malformed context of a membership change: {error}") from None
    if type(fields) is not list or [type(field) for field in fields] != [int, int, int, list]:
        raise PeerError("a malformed context of a membership change")
    origin, boot, sequence, attributes = fields
    types = [type(attribute) for attribute in attributes]
    texts = [text for part in attributes[2:4] if type(part) is list for text in part]
    if types not in ([], [int], [int, str, list, list, bool]) or any(
        type(text) is not str for text in texts
    ):
        raise PeerError("malformed attributes of a member")
    return origin, boot, sequence, attributes


def everybody(conf: ConfState) -> set[int]:
    """All members of a configuration."""
    return {*conf.voters, *conf.learners, *conf.voters_outgoing}


def member_change(change: ConfigChange, conf: ConfState) -> MemberChange:
    """What a committed change that led to `conf` does to the table of members."""
    attributes = read_context(change.context)[3]
    removed = tuple(member for kind, member in change.changes if kind is ChangeKind.REMOVE)
    added: tuple[MemberInfo, ...] = ()
    if len(attributes) > 1:
        member_id, name, peer_urls, client_urls, learner = attributes
        added = (MemberInfo(member_id, name, tuple(peer_urls), tuple(client_urls), learner),)
    return MemberChange(added, removed, conf.learners)


def check_change(change: ConfigChange, status: Status, known: Iterable[MemberInfo]) -> None:
    """Refuse what would be wrong or unsafe, as the leader with `status`.

    Raises MemberNotFound, MemberExists or ChangeRefused.
    """
    voters, learners = set(status.conf.voters), set(status.conf.learners)
    attributes = read_context(change.context)[3]
    removed = {member_id for kind, member_id in change.changes if kind is ChangeKind.REMOVE}
    for kind, member_id in change.changes:
        if kind is ChangeKind.REMOVE:
            if member_id not in voters | learners:
                raise MemberNotFound(
                    f"no member {member_id:016x} in this cluster", member_id=member_id
                )
        elif kind is ChangeKind.ADD_VOTER and member_id in learners:
            _check_caught_up(member_id, status)
        elif member_id in voters | learners:
            raise MemberExists(f"member {member_id:016x} exists already", member_id=member_id)
        elif len(attributes) > 1:
            staying = [other for other in known if other.member_id not in removed]
            _check_addresses(set(attributes[2]), staying)
        else:
            # A promotion, asked for where the learner's removal was not known yet. Nobody could
            # reach the voter that it would make.
            raise MemberNotFound(f"no member {member_id:016x} in this cluster", member_id=member_id)
        voters.discard(member_id)
        learners.discard(member_id)
        if kind is not ChangeKind.REMOVE:
            (voters if kind is ChangeKind.ADD_VOTER else learners).add(member_id)
    _check_sizes(voters, learners)
    if len(voters) < len(status.conf.voters):
        _check_reachable(voters, status.member_id, status.peers)


def _check_caught_up(member_id: int, status: Status) -> None:
    match = status.peers[member_id].match
    if match * 10 < status.commit_index * 9:
        raise ChangeRefused(
            f"member {member_id:016x} has {match} of {status.commit_index} entries; promote it "
            "once it has caught up",
            member_id=member_id,
        )


def _check_addresses(wanted: set[str], known: Iterable[MemberInfo]) -> None:
    for other in known:
        if wanted & set(other.peer_urls):
            raise MemberExists(
                f"member {other.member_id:016x} has that peer address already",
                member_id=other.member_id,
            )


def _check_sizes(voters: set[int], learners: set[int]) -> None:
    if not voters:
        raise ChangeRefused("the last voter cannot be removed")
    if len(voters) > VOTERS_MAX:
        raise ChangeRefused(f"a cluster has at most {VOTERS_MAX} voters", limit=VOTERS_MAX)
    if len(learners) > LEARNERS_MAX:
        raise ChangeRefused(f"a cluster has at most {LEARNERS_MAX} learners", limit=LEARNERS_MAX)


def _check_reachable(voters: set[int], leader: int, peers: Mapping[int, PeerStatus]) -> None:
    """A smaller cluster must not be one that cannot commit its own change."""
    reachable = sum(
        voter == leader or (voter in peers and peers[voter].recent_active) for voter in voters
    )
    if reachable * 2 <= len(voters):
        raise ChangeRefused(
            f"only {reachable} of the {len(voters)} voters left would be reachable; start or "
            "repair members first"
        )
