"""The cluster: status, members, leadership, compaction, snapshots."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from raftkv.api.gate import admin, known
from raftkv.api.http.codec import hex_id, parse_hex_id
from raftkv.api.http.exchange import OCTETS, Exchange
from raftkv.api.http.fields import Field, read_fields
from raftkv.api.http.handling import answering, confirmed, once_key
from raftkv.api.http.router import Answer, Route
from raftkv.errors import InvalidRequest
from raftkv.machine.commands import compact
from raftkv.machine.results import CompactResult
from raftkv.server.store import MemberInfo

NEW_MEMBER: Final = (
    Field("peer_urls", "texts", "Where the other members reach it.", required=True),
    Field("name", "text", "A name for people.", default=""),
    Field("learner", "boolean", "Join without a vote, to be promoted later.", default=False),
    Field(
        "promote",
        "boolean",
        "Let the leader promote the learner once it has caught up.",
        default=False,
    ),
)
TRANSFER: Final = (Field("to", "hex", "The member to lead; absent: the one that is furthest."),)
COMPACTION: Final = (
    Field("revision", "integer", "Forget history before this revision.", minimum=1),
    Field("keep", "integer", "Keep this many revisions, counted from the newest."),
)


def get_status(x: Exchange) -> None:
    store, door = x.door.store, x.door
    status: dict[str, Any] = dict(store.status())
    status["connections"] = door.counters.connections
    status.setdefault("uptime_seconds", round(door.loop.time() - door.started, 3))
    for name in ("member_id", "cluster_id", "leader"):
        if isinstance(status.get(name), int):
            status[name] = hex_id(status[name]) if status[name] else None
    x.json(status)


def member_json(member: MemberInfo) -> dict[str, Any]:
    """The API's `Member` object."""
    shown: dict[str, Any] = {
        "member_id": hex_id(member.member_id),
        "name": member.name,
        "peer_urls": list(member.peer_urls),
        "client_urls": list(member.client_urls),
        "role": "learner" if member.learner else "voter",
        "leader": member.leader,
    }
    if member.match_index is not None:
        shown["match_index"] = member.match_index
    return shown


def _members(x: Exchange) -> dict[str, Any]:
    store = x.door.store
    return {
        "members": [member_json(member) for member in store.members()],
        "revision": store.machine.revision,
    }


def get_members(x: Exchange) -> None:
    x.json(_members(x))


def post_member(x: Exchange) -> None:
    body = read_fields(x.request.body, NEW_MEMBER)
    if not body["peer_urls"]:
        raise InvalidRequest("peer_urls needs at least one address", field="peer_urls")
    confirmed(x, lambda: _add(x, body))


async def _add(x: Exchange, body: dict[str, Any], instead_of: int | None = None) -> None:
    if body["promote"] and not body["learner"]:
        raise InvalidRequest("Only a learner can be promoted", field="promote")
    member = await x.door.store.add_member(
        body["name"],
        tuple(body["peer_urls"]),
        body["learner"],
        promote=body["promote"],
        instead_of=instead_of,
    )
    x.json({**member_json(member), **_members(x)}, 201)


def _member_of(x: Exchange) -> int:
    try:
        return parse_hex_id(x.places[0].decode(), "The member id")
    except UnicodeDecodeError:
        raise InvalidRequest("A member id is hexadecimal") from None


async def _change(x: Exchange, change: Coroutine[Any, Any, None]) -> None:
    await change
    x.json(_members(x))


def delete_member(x: Exchange) -> None:
    member = _member_of(x)
    confirmed(x, lambda: _change(x, x.door.store.remove_member(member)))


def post_replace(x: Exchange) -> None:
    body = read_fields(x.request.body, NEW_MEMBER)
    if not body["peer_urls"]:
        raise InvalidRequest("peer_urls needs at least one address", field="peer_urls")
    member = _member_of(x)
    confirmed(x, lambda: _add(x, body, member))


def post_promote(x: Exchange) -> None:
    read_fields(x.request.body, (), required=False)
    member = _member_of(x)
    confirmed(x, lambda: _change(x, x.door.store.promote_member(member)))


def post_transfer(x: Exchange) -> None:
    body = read_fields(x.request.body, TRANSFER, required=False)
    to = None if body["to"] is None else parse_hex_id(body["to"], "to")
    confirmed(x, lambda: _transfer(x, to))


async def _transfer(x: Exchange, to: int | None) -> None:
    x.json({"leader": hex_id(await x.door.store.transfer_leader(to))})


def post_compact(x: Exchange) -> None:
    body = read_fields(x.request.body, COMPACTION, required=False)
    revision, keep = body["revision"], body["keep"]
    if revision is not None and keep is not None:
        raise InvalidRequest("Give revision or keep, not both")
    machine = x.machine
    if revision is None:
        revision = machine.revision - (keep or 0)
        if revision <= machine.compact_revision:
            # Less is kept already than is asked to be kept.
            x.json(
                {
                    "compact_revision": machine.compact_revision,
                    "revision": machine.revision,
                }
            )
            return
    x.caller.propose(compact(revision, once=once_key(x)), partial(_compacted, x))


@answering
def _compacted(x: Exchange, result: CompactResult) -> None:
    x.json({"compact_revision": result.compact_revision, "revision": result.revision})


def post_shrink(x: Exchange) -> None:
    read_fields(x.request.body, (), required=False)
    confirmed(x, lambda: _shrink(x))


async def _shrink(x: Exchange) -> None:
    shrunk = await x.door.store.shrink()
    x.json({"before_bytes": shrunk.before_bytes, "after_bytes": shrunk.after_bytes})


def get_snapshot(x: Exchange) -> None:
    confirmed(x, lambda: _snapshot(x))


async def _snapshot(x: Exchange) -> None:
    snapshot = await x.door.store.snapshot()
    x.begin_stream(
        OCTETS,
        b'Content-Disposition: attachment; filename="raftkv-%d.snapshot"\r\n'
        b"Raftkv-Snapshot-Index: %d\r\nRaftkv-Snapshot-Revision: %d\r\n"
        % (snapshot.revision, snapshot.index, snapshot.revision),
        length=snapshot.size_bytes,
    )
    async for chunk in snapshot.chunks:
        if not x.push(chunk) and not await x.writable():
            return
    x.end_stream()


CLUSTER: Final = "Cluster"
MEMBERS: Final = (Answer(200, "All members, after the change.", "Members"),)

ROUTES: Final = [
    Route(
        "GET", "/api/status", get_status, "getStatus", "How this member is", CLUSTER,
        guard=known,
        answers=(Answer(200, "The status.", "Status"),),
    ),
    Route(
        "GET", "/api/members", get_members, "listMembers", "List the members", CLUSTER,
        guard=known,
        answers=(Answer(200, "The members.", "Members"),),
    ),
    Route(
        "POST", "/api/members", post_member, "addMember", "Add a member", CLUSTER,
        guard=admin,
        body=NEW_MEMBER,
        answers=(Answer(201, "Added.", "AddedMember"),),
        problems=(409, 415), writes=True, once=False,
    ),
    Route(
        "DELETE", "/api/members/{member}", delete_member, "removeMember", "Remove a member",
        CLUSTER,
        guard=admin, answers=MEMBERS, problems=(404, 409), writes=True, once=False,
    ),
    Route(
        "POST", "/api/members/{member}/replace", post_replace, "replaceMember",
        "Put another member in the place of one", CLUSTER,
        guard=admin,
        doc="Removes the one and adds the other in one step, for a member that is lost for good.",
        body=NEW_MEMBER, answers=(Answer(201, "The new member, and all of them.", "AddedMember"),),
        problems=(404, 409, 415), writes=True, once=False,
    ),
    Route(
        "POST", "/api/members/{member}/promote", post_promote, "promoteMember",
        "Give a learner a vote", CLUSTER,
        guard=admin,
        body=(), body_required=False, answers=MEMBERS, problems=(404, 409, 415),
        writes=True, once=False,
    ),
    Route(
        "POST", "/api/leader/transfer", post_transfer, "transferLeader", "Hand leadership over",
        CLUSTER,
        guard=admin, body=TRANSFER, body_required=False,
        answers=(Answer(200, "Who leads now.", "Leader"),),
        problems=(404, 409, 415), writes=True, once=False,
    ),
    Route(
        "POST", "/api/compact", post_compact, "compact", "Forget old history", CLUSTER,
        guard=admin,
        doc="With neither `revision` nor `keep`, everything before the newest revision.",
        body=COMPACTION, body_required=False,
        answers=(Answer(200, "Compacted.", "CompactAnswer"),),
        problems=(410, 415), writes=True,
    ),
    Route(
        "POST", "/api/shrink", post_shrink, "shrink", "Give free space back to the disk", CLUSTER,
        guard=admin,
        doc="Of this member alone, beside the traffic. Never needed to go on writing: free space "
        "is used again. Answers when it is done; `shrink` in the status tells how far it is.",
        body=(), body_required=False,
        answers=(Answer(200, "Done.", "Shrunk"),),
        problems=(415,), writes=True, once=False,
    ),
    Route(
        "GET", "/api/snapshot", get_snapshot, "getSnapshot", "Download a backup", CLUSTER,
        guard=admin,
        doc="One file that holds the whole store at one revision, with its digest at the end.",
        answers=(Answer(200, "The file.", None, "application/octet-stream"),),
    ),
]  # fmt: skip
