"""status and health: one row for each endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from raftkv.cli.exits import FAILED, UNAVAILABLE
from raftkv.cli.output import note, plain, size_text
from raftkv.cli.session import Session, common_options
from raftkv.cli.standing import Standing, ask_all, commit_index, health_text
from raftkv.errors import RaftkvError

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient
    from raftkv.client.results import Status

COLUMNS = ("NAME", "ENDPOINT", "ROLE", "TERM", "REVISION", "LAG", "DB", "HEALTH")


@click.command()
@click.option(
    "--cluster/--no-cluster",
    default=True,
    help="Ask every member, or only the given endpoints.  [default: every member]",
)
@common_options
def status(session: Session, cluster: bool) -> None:
    """Show how each member is.

    LAG is how many log entries it is behind what the cluster agreed on. Exits with 5 when no
    endpoint answers.
    """
    show(session, cluster=cluster)


def show(session: Session, *, cluster: bool = True) -> None:
    """Print how the members are, once."""

    async def work(client: AsyncClient) -> list[Standing]:
        if cluster:
            return await ask_all(session, client)
        return list(await client.cluster.statuses())

    found = session.run(work)
    if session.output.format == "table":
        agreed = commit_index(found)
        session.output.table(COLUMNS, [_row(endpoint, view, agreed) for endpoint, view in found])
    else:
        items = [_json(endpoint, view) for endpoint, view in found]
        if session.output.format == "json":
            session.output.json({"members": items})
        else:
            for item in items:
                session.output.json(item)
    if all(isinstance(view, RaftkvError) for _, view in found):
        click.get_current_context().exit(UNAVAILABLE)


def _row(endpoint: str, view: Status | RaftkvError, agreed: int) -> tuple[object, ...]:
    if isinstance(view, RaftkvError):
        return ("", endpoint, "", "", "", "", "", f"no answer: {view.message}")
    return (
        view.name,
        endpoint,
        view.role,
        view.term,
        view.revision,
        max(0, agreed - view.applied_index),
        size_text(view.db_bytes),
        health_text(view),
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
