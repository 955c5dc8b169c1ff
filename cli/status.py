"""status and health: one row for each endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from raftkv.cli.exits import FAILED, UNAVAILABLE
from raftkv.cli.output import note, plain, size_text
from raftkv.cli.session import Session, common_options
from raftkv.errors import RaftkvError

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient
    from raftkv.client.results import Status

COLUMNS = (
    "ENDPOINT",
    "NAME",
    "ROLE",
    "TERM",
    "REVISION",
    "APPLIED",
    "STATE HASH",
    "SIZE",
    "HEALTH",
)


@click.command()
@click.option("--cluster", is_flag=True, help="Ask every member, not only the given endpoints.")
@common_options
def status(session: Session, cluster: bool) -> None:
    """Show how each member is.

    Exits with 5 when no endpoint answers.
    """

    async def work(client: AsyncClient) -> tuple[tuple[str, Status | RaftkvError], ...]:
        if cluster:
            members = await client.cluster.members()
            urls = [url for item in members for url in item.client_urls[:1]]
            async with session.client(urls or client.endpoints) as wide:
                return await wide.cluster.statuses()
        return await client.cluster.statuses()

    found = session.run(work)
    if session.output.format == "table":
        session.output.table(COLUMNS, [_row(endpoint, view) for endpoint, view in found])
    else:
        items = [_json(endpoint, view) for endpoint, view in found]
        if session.output.format == "json":
            session.output.json({"members": items})
        else:
            for item in items:
                session.output.json(item)
    if all(isinstance(view, RaftkvError) for _, view in found):
        click.get_current_context().exit(UNAVAILABLE)


def _row(endpoint: str, view: Status | RaftkvError) -> tuple[object, ...]:
    if isinstance(view, RaftkvError):
        return (endpoint, "", "", "", "", "", "", "", f"no answer: {view.message}")
    health = "ok" if view.healthy else ", ".join(view.alarms) or "not healthy"
    if view.raw.get("space_low"):
        health += ", space runs low"
    return (
        endpoint,
        view.name,
        view.role,
        view.term,
        view.revision,
        view.applied_index,
        f"{view.state_hash[:8]}@{view.hash_index}" if view.state_hash else "",
        size_text(view.db_bytes),
        health,
    )


def _json(endpoint: str, view: Status | RaftkvError) -> dict[str, Any]:
    if isinstance(view, RaftkvError):
        return {"endpoint": endpoint, "error": view.message, "code": view.code}
    return {"endpoint": endpoint, **plain(view.raw)}


@click.command()
@common_options
def health(session: Session) -> None:
    """Check that each member is healthy.

    Exits with 0 when all are, with 1 when one is not, with 5 when none answers.
    """

    async def ask(client: AsyncClient) -> list[dict[str, Any]]:
        import asyncio

        async def one(endpoint: str) -> dict[str, Any]:
            try:
                healthy, reason = await client.cluster.health(endpoint)
            except RaftkvError as error:
                return {
                    "endpoint": endpoint,
                    "healthy": False,
                    "answers": False,
                    "reason": error.message,
                }
            return {"endpoint": endpoint, "healthy": healthy, "answers": True, "reason": reason}

        return list(await asyncio.gather(*map(one, client.endpoints)))

    found = session.run(ask)
    session.output.rows(
        found,
        ("ENDPOINT", "HEALTH", "REASON"),
        lambda item: (item["endpoint"], "ok" if item["healthy"] else "not healthy", item["reason"]),
        name="endpoints",
        empty="no endpoints",
    )
    if not any(item["answers"] for item in found):
        note(
            "no endpoint answered. Start a store with `raftkv dev`, or name yours with --endpoints."
        )
        click.get_current_context().exit(UNAVAILABLE)
    if not all(item["healthy"] for item in found):
        click.get_current_context().exit(FAILED)
