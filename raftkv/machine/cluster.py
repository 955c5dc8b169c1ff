"""What the machine records about the cluster itself: members and alarms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgpack

from raftkv.errors import MemberExists, MemberNotFound
from raftkv.machine.draft import CONF_ROW, Draft
from raftkv.machine.records import U64
from raftkv.machine.results import AlarmResult, MemberResult
from raftkv.machine.tables import ALARMS, MEMBERS, META, TableReader

LEVEL_ROW: Final = b"level"
PROMOTIONS_ROW: Final = b"promotions"


class MemberInfo(NamedTuple):
    """One member as recorded."""

    member_id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    learner: bool

    def to_list(self) -> list[Any]:
        """As in `MemberResult.members`."""
        return [
            self.member_id, self.name, list(self.peer_urls), list(self.client_urls), self.learner,
        ]  # fmt: skip


class MemberChange(NamedTuple):
    """What a membership entry does to the table of members."""

    add: tuple[MemberInfo, ...] = ()
    """Added, or replaced when the id is known."""
    remove: tuple[int, ...] = ()
    learners: tuple[int, ...] | None = None
    """After that, exactly these are learners; None: leave the flags as they are."""


def apply_member_update(draft: Draft, command: list[Any]) -> MemberResult:
    """The MEMBER_UPDATE command."""
    _, _, member_id, name, peer_urls, client_urls = command
    members = {member.member_id: member for member in read_members(draft.writer)}
    old = members.get(member_id)
    if old is None:
        raise MemberNotFound("no such member", member_id=member_id)
    new = MemberInfo(
        member_id,
        old.name if name is None else name,
        old.peer_urls if peer_urls is None else tuple(peer_urls),
        old.client_urls if client_urls is None else tuple(client_urls),
        old.learner,
    )
    taken = {url for member in members.values() if member is not old for url in member.peer_urls}
    if taken.intersection(new.peer_urls) and new.peer_urls != old.peer_urls:
        raise MemberExists("another member has one of these peer addresses", member_id=member_id)
    if new != old:
        _write(draft, new)
    return member_result(draft)


def apply_level(draft: Draft, command: list[Any]) -> MemberResult:
    """The CLUSTER_LEVEL command."""
    level = command[2]
    if level > draft.level:
        draft.level = level
        draft.put_row(META, LEVEL_ROW, U64.pack(level))
        draft.mark("level", level)
    return member_result(draft)


def apply_promotion(draft: Draft, command: list[Any]) -> MemberResult:
    """The MEMBER_PROMOTION command."""
    member_id = command[2]
    learners = {member.member_id for member in read_members(draft.writer) if member.learner}
    if member_id not in learners:
        raise MemberNotFound("no such learner", member_id=member_id)
    _set_promotions(draft, {*read_promotions(draft.writer), member_id})
    return member_result(draft)


def change_members(draft: Draft, conf: bytes, change: MemberChange | None) -> None:
    """Record a configuration and the members it means."""
    draft.put_row(META, CONF_ROW, conf)
    draft.mark("conf", conf)
    if change is None:
        return
    for member_id in change.remove:
        draft.delete_row(MEMBERS, U64.pack(member_id))
        draft.mark("member", member_id, b"")
        alarms = frozenset(alarm for alarm in draft.alarms if alarm[1] != member_id)
        _set_alarms(draft, alarms)
    for member in change.add:
        _write(draft, member)
    if change.learners is not None:
        for member in list(read_members(draft.writer)):
            learner = member.member_id in change.learners
            if learner != member.learner:
                _write(draft, member._replace(learner=learner))
        # Who votes, or is gone, waits for no promotion.
        _set_promotions(draft, read_promotions(draft.writer) & set(change.learners))


def replace_members(draft: Draft, conf: bytes, members: tuple[MemberInfo, ...]) -> None:
    """Record other members instead of all that are known. Every alarm goes: all are of old ones."""
    _set_alarms(draft, frozenset())
    old = tuple(member.member_id for member in read_members(draft.writer))
    change_members(draft, conf, MemberChange(add=members, remove=old))
    _set_promotions(draft, set())


def apply_alarm(draft: Draft, command: list[Any]) -> AlarmResult:
    """The ALARM command."""
    _, _, kind, member_id, on = command
    old = draft.alarms
    if not on:
        _set_alarms(draft, old - {(kind, member_id)})
    elif not member_id or draft.writer.get(MEMBERS, U64.pack(member_id)) is not None:
        # A member that was removed meanwhile would never be there to clear it. One of no member
        # (etcd's clients raise it for the whole cluster) is taken back as it was raised, by hand.
        _set_alarms(draft, old | {(kind, member_id)})
    alarms = [list(alarm) for alarm in sorted(draft.alarms)]
    return AlarmResult(draft.state.revision, alarms, draft.alarms != old)


def member_result(draft: Draft) -> MemberResult:
    """The members as they are now."""
    members = [member.to_list() for member in read_members(draft.writer)]
    return MemberResult(draft.state.revision, members)


def read_members(reader: TableReader) -> Iterator[MemberInfo]:
    """All members, ordered by id."""
    for name, row in reader.scan(MEMBERS, b"", None):
        label, peer_urls, client_urls, learner = msgpack.unpackb(row)
        yield MemberInfo(U64.unpack(name)[0], label, tuple(peer_urls), tuple(client_urls), learner)


def read_level(reader: TableReader) -> int:
    """The feature level that is agreed; 0 before any was."""
    row = reader.get(META, LEVEL_ROW)
    return 0 if row is None else int(U64.unpack(row)[0])


def read_promotions(reader: TableReader) -> set[int]:
    """Learners that are to be promoted once they have caught up."""
    row = reader.get(META, PROMOTIONS_ROW) or b""
    return {U64.unpack_from(row, at)[0] for at in range(0, len(row), U64.size)}


def read_alarms(reader: TableReader) -> frozenset[tuple[int, int]]:
    """Alarms that are on, as (kind, member id)."""
    return frozenset(
        (name[0], U64.unpack_from(name, 1)[0]) for name, _ in reader.scan(ALARMS, b"", None)
    )


def _write(draft: Draft, member: MemberInfo) -> None:
    row: bytes = msgpack.packb(member.to_list()[1:])
    draft.put_row(MEMBERS, U64.pack(member.member_id), row)
    draft.mark("member", member.member_id, row)


def _set_promotions(draft: Draft, members: set[int]) -> None:
    # Nothing is written where nothing changes: members of level 0 do not know of it.
    if members != read_promotions(draft.writer):
        row = b"".join(U64.pack(member_id) for member_id in sorted(members))
        draft.put_row(META, PROMOTIONS_ROW, row)
        draft.mark("promotions", row)


def _set_alarms(draft: Draft, alarms: frozenset[tuple[int, int]]) -> None:
    # Sorted, because the hash must not depend on the order of a set.
    for kind, member_id in sorted(alarms ^ draft.alarms):
        name = bytes((kind,)) + U64.pack(member_id)
        on = (kind, member_id) in alarms
        if on:
            draft.put_row(ALARMS, name, b"")
        else:
            draft.delete_row(ALARMS, name)
        draft.mark("alarm", name, on)
    draft.set_alarms(alarms)
