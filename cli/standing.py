"""How all members are: who is asked, and what of their answers people look at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raftkv.errors import RaftkvError

if TYPE_CHECKING:
    from raftkv.cli.session import Session
    from raftkv.client.client import AsyncClient
    from raftkv.client.results import Status

Standing = tuple[str, "Status | RaftkvError"]
"""An endpoint, and what it answered or why it did not."""


async def places(client: AsyncClient) -> tuple[list[str], list[str]]:
    """A client URL of each member; and these with the endpoints given, none twice. Without the
    former if nobody tells of the members."""
    try:
        members = await client.cluster.members()
    except RaftkvError:
        members = ()
    urls = [url for member in members for url in member.client_urls[:1]]
    return urls, list(dict.fromkeys((*urls, *client.endpoints)))


async def ask_all(session: Session, client: AsyncClient) -> list[Standing]:
    """Every member of the cluster that the client's endpoints belong to, once each."""
    urls, wide_urls = await places(client)
    if wide_urls == list(client.endpoints):
        return once_each(await client.cluster.statuses(), urls)
    async with session.client(wide_urls, patience=0) as wide:
        return once_each(await wide.cluster.statuses(), urls)


def once_each(standings: Sequence[Standing], urls: Sequence[str] = ()) -> list[Standing]:
    """Ordered by name, without those who answered before under another address, unless it is
    one of `urls`."""
    seen: set[str] = set()
    kept: list[Standing] = []
    for endpoint, view in standings:
        if isinstance(view, RaftkvError):
            kept.append((endpoint, view))
        elif endpoint in urls or view.member_id not in seen:
            seen.add(view.member_id)
            kept.append((endpoint, view))
    return sorted(kept, key=_name)


def _name(standing: Standing) -> tuple[bool, str]:
    endpoint, view = standing
    silent = isinstance(view, RaftkvError)
    return silent, endpoint if isinstance(view, RaftkvError) else view.name


def commit_index(standings: Sequence[Standing]) -> int:
    """How far the cluster has agreed, as far as anybody who answers knows."""
    return max((view.commit_index for _, view in standings if not isinstance(view, RaftkvError)),
               default=0)  # fmt: skip


def health_text(view: Status) -> str:
    """`ok`, or the alarms and other problems of a member."""
    alarms = [
        f"{alarm.get('alarm')} at {alarm.get('member_id')}"
        for alarm in view.raw.get("alarms") or ()
        if isinstance(alarm, dict)
    ]
    if alarms:
        return ", ".join(alarms)
    if view.healthy:
        return "ok, space runs low" if view.raw.get("space_low") else "ok"
    return "; ".join(map(str, view.raw.get("problems") or ())) or "not healthy"
