"""member list, add, remove, promote; leader transfer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raftkv.cli import etcd_calls
from raftkv.cli.exits import FAILED, NOT_FOUND
from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import Failure
from raftkv.cli.session import Session, common_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raftkv.client.client import AsyncClient
    from raftkv.client.results import Member

MEMBER_COMMANDS = {
    "list": Lazy("raftkv.cli.member:list_", "List the members."),
    "add": Lazy("raftkv.cli.member:add", "Add a member, as a learner at first."),
    "replace": Lazy("raftkv.cli.member:replace", "Put a new member in the place of a lost one."),
    "remove": Lazy("raftkv.cli.member:remove", "Remove a member."),
    "promote": Lazy("raftkv.cli.member:promote", "Make a learner a voter."),
}
LEADER_COMMANDS = {
    "transfer": Lazy("raftkv.cli.member:transfer", "Hand leadership to another member."),
}


@click.group(cls=LazyGroup, lazy=MEMBER_COMMANDS)
def member() -> None:
    """List, add, remove and promote members."""


@click.group(cls=LazyGroup, lazy=LEADER_COMMANDS)
def leader() -> None:
    """Move leadership."""


@click.command("list")
@common_options
def list_(session: Session) -> None:
    """List the members."""
    if session.output.etcd:
        etcd_calls.run(session, "members", "cluster/member/list", {"linearizable": True})
        return
    found = session.run(lambda client: client.cluster.members())
    session.output.rows(
        found,
        ("ID", "NAME", "ROLE", "CLIENT URLS", "PEER URLS"),
        lambda item: (
            item.member_id,
            item.name,
            "leader" if item.leader else item.role,
            ",".join(item.client_urls),
            ",".join(item.peer_urls),
        ),
        name="members",
        empty="there are no members",
    )


@click.command()
@click.argument("peer_urls", nargs=-1, required=True, metavar="PEER_URL...")
@click.option("--name", default="", metavar="NAME", help="The name that the new member will use.")
@click.option(
    "--voter", is_flag=True, help="Let it vote at once; it delays commits until it is up."
)
@click.option("--promote", is_flag=True, help="Let the leader promote it once it has caught up.")
@common_options
def add(
    session: Session, peer_urls: tuple[str, ...], name: str, voter: bool, promote: bool
) -> None:
    """Add a member, as a learner at first.

    Then start it with --initial-cluster-state existing; once it has caught up, promote it, or have
    the leader do so with --promote. `raftkv serve --join` does all of it from the new machine.
    """
    if voter and promote:
        raise click.UsageError("give --voter or --promote, not both")

    if session.output.etcd:
        # The name goes with the member itself, when it starts.
        body = {"peerURLs": peer_urls, "isLearner": not voter}
        etcd_calls.run(session, "members changed", "cluster/member/add", body)
        return

    async def work(client: AsyncClient) -> tuple[str, tuple[Member, ...]]:
        return await client.cluster.add_member(
            peer_urls, name=name, learner=not voter, promote=promote
        )

    member_id, members = session.run(work)
    by_hand = "" if voter or promote else f"raftkv member promote {member_id}"
    _show_added(session, member_id, members, name, peer_urls, by_hand)


@click.command()
@click.argument("which", metavar="ID_OR_NAME")
@click.argument("peer_urls", nargs=-1, metavar="[PEER_URL...]")
@click.option("--name", metavar="NAME", help="The new member's name.  [default: the old one's]")
@common_options
def replace(session: Session, which: str, peer_urls: tuple[str, ...], name: str | None) -> None:
    """Put a new member in the place of a lost one.

    In one step the old member is removed and the new one added, as a learner which the leader
    promotes once it has caught up. Without PEER_URL it is reached where the old one was. Then
    start it, with an empty data directory; the old one must not come back.
    """

    async def work(client: AsyncClient) -> tuple[Member, str, tuple[Member, ...]]:
        old = await find_member(client, which)
        member_id, members = await client.cluster.add_member(
            peer_urls or old.peer_urls,
            name=old.name if name is None else name,
            promote=True,
            instead_of=old.member_id,
        )
        return old, member_id, members

    old, member_id, members = session.run(work)
    called = old.name if name is None else name
    _show_added(session, member_id, members, called, peer_urls or old.peer_urls, "")


def _show_added(
    session: Session,
    member_id: str,
    members: tuple[Member, ...],
    name: str,
    peer_urls: Sequence[str],
    by_hand: str,
) -> None:
    """How to start a member that was added, and what is left to do by hand then."""

    def text() -> str:
        named = [
            f"{item.name or (name if item.member_id == member_id else '')}={url}"
            for item in members
            for url in item.peer_urls
        ]
        lines = [
            f"member {member_id} added; start it with:",
            f"  raftkv serve --name {name or 'NAME'} --initial-cluster-state existing \\",
            f"    --listen-peer-urls {','.join(peer_urls)} \\",
            f"    --initial-cluster {','.join(named)}",
        ]
        if by_hand:
            lines.append(f"then, once it has caught up: {by_hand}")
        return "\n".join(lines)

    session.output.one({"member_id": member_id, "members": members}, text)


@click.command()
@click.argument("which", metavar="ID_OR_NAME")
@common_options
def remove(session: Session, which: str) -> None:
    """Remove a member."""
    if session.output.etcd:
        _change(session, which, "remove")
        return

    async def work(client: AsyncClient) -> Member:
        found = await find_member(client, which)
        await client.cluster.remove_member(found.member_id)
        return found

    gone = session.run(work)
    session.output.one({"removed": gone.member_id}, lambda: f"member {gone.member_id} removed")


@click.command()
@click.argument("which", metavar="ID_OR_NAME")
@common_options
def promote(session: Session, which: str) -> None:
    """Make a learner a voter."""
    if session.output.etcd:
        _change(session, which, "promote")
        return

    async def work(client: AsyncClient) -> Member:
        found = await find_member(client, which)
        await client.cluster.promote_member(found.member_id)
        return found

    now = session.run(work)
    session.output.one(
        {"promoted": now.member_id}, lambda: f"member {now.member_id} votes from now on"
    )


@click.command()
@click.argument("which", metavar="[ID_OR_NAME]", required=False)
@common_options
def transfer(session: Session, which: str | None) -> None:
    """Hand leadership to another member.

    To the named one, or to the follower that is furthest along.
    """

    async def work(client: AsyncClient) -> str | None:
        to = (await find_member(client, which)).member_id if which else None
        return await client.cluster.transfer_leader(to)

    now = session.run(work)
    session.output.one({"leader": now}, lambda: f"member {now} leads")


def _change(session: Session, which: str, verb: str) -> None:
    async def work(client: AsyncClient) -> dict[str, object]:
        found = await find_member(client, which)
        body = {"ID": etcd_calls.number(found.member_id)}
        return await etcd_calls.ask(client, f"cluster/member/{verb}", body)

    etcd_calls.show(session, "members changed", session.run(work))


async def find_member(client: AsyncClient, which: str) -> Member:
    """The member with this id, leading zeros optional, or else this name."""
    members = await client.cluster.members()
    wanted = which.lower().lstrip("0")
    found = [item for item in members if item.member_id.lstrip("0") == wanted]
    found = found or [item for item in members if item.name == which]
    if not found:
        raise Failure(
            f"there is no member {which!r}", NOT_FOUND, "`raftkv member list` shows the members."
        )
    if len(found) > 1:
        raise Failure(f"several members are named {which!r}", FAILED, "Give the id instead.")
    return found[0]
