"""lease grant, revoke, show, list, keep-alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raftkv.cli import etcd_calls
from raftkv.cli.etcd_form import Answer
from raftkv.cli.exits import NOT_FOUND
from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import Failure, note, printable
from raftkv.cli.session import Session, common_options

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient

COMMANDS = {
    "grant": Lazy("raftkv.cli.lease:grant", "Grant a lease of TTL seconds."),
    "revoke": Lazy("raftkv.cli.lease:revoke", "End a lease; its keys go with it."),
    "show": Lazy("raftkv.cli.lease:show", "Show a lease, its time left and its keys."),
    "list": Lazy("raftkv.cli.lease:list_", "List all leases."),
    "keep-alive": Lazy("raftkv.cli.lease:keep_alive", "Renew a lease until stopped."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def lease() -> None:
    """Leases: keys that go when their holder does."""


@click.command()
@click.argument("ttl", type=int)
@click.option("--id", "lease_id", metavar="ID", help="The lease's id; 16 hexadecimal digits.")
@common_options
def grant(session: Session, ttl: int, lease_id: str | None) -> None:
    """Grant a lease of TTL seconds."""
    if session.output.etcd:
        body = {"TTL": ttl, "ID": etcd_calls.number(lease_id or "0")}
        etcd_calls.run(session, "lease", "lease/grant", body, _granted)
        return
    result = session.run(lambda client: client.leases.grant(ttl, lease=lease_id))
    session.output.one(result, lambda: f"lease {result.lease} granted for {result.ttl} s")


@click.command()
@click.argument("lease_id", metavar="ID")
@common_options
def revoke(session: Session, lease_id: str) -> None:
    """End a lease; its keys go with it."""
    if session.output.etcd:
        etcd_calls.run(session, "header", "lease/revoke", {"ID": etcd_calls.number(lease_id)})
        return
    done = session.run(lambda client: client.leases.revoke(lease_id))
    session.output.one(done, lambda: f"lease {done.lease} ended, {done.deleted} keys deleted")


@click.command()
@click.argument("lease_id", metavar="ID")
@common_options
def show(session: Session, lease_id: str) -> None:
    """Show a lease, its time left and its keys."""
    if session.output.etcd:
        body = {"ID": etcd_calls.number(lease_id), "keys": True}
        if etcd_calls.run(session, "lease time", "lease/timetolive", body, _time_left)["TTL"] < 0:
            raise Failure(f"there is no lease {lease_id}", NOT_FOUND)
        return
    found = session.run(lambda client: client.leases.show(lease_id))

    def text() -> str:
        head = f"lease {found.lease}: {found.remaining:.1f} s left of {found.ttl} s"
        return "\n".join([head, *("  " + printable(key) for key in found.keys)])

    session.output.one(found, text)


@click.command("list")
@common_options
def list_(session: Session) -> None:
    """List all leases."""
    if session.output.etcd:
        etcd_calls.run(session, "leases", "lease/leases", {}, _listed)
        return
    found = session.run(lambda client: client.leases.list())
    session.output.rows(
        found,
        ("LEASE", "TTL"),
        lambda item: (item.lease, item.ttl),
        name="leases",
        empty="there are no leases",
    )


@click.command("keep-alive")
@click.argument("lease_id", metavar="ID")
@click.option("--once", is_flag=True, help="Renew it once and stop.")
@common_options
def keep_alive(session: Session, lease_id: str, once: bool) -> None:
    """Renew a lease until stopped.

    At a third of its TTL. Exits with 3 when the lease is gone.
    """
    session.run(lambda client: _keep(client, session, lease_id, once))


async def _keep(client: AsyncClient, session: Session, lease_id: str, once: bool) -> None:
    import asyncio

    from raftkv.cli.exits import UNAVAILABLE, exit_code
    from raftkv.errors import RaftkvError

    ttl = 0
    while True:
        try:
            renewed = await client.leases.keep_alive(lease_id)
        except RaftkvError as error:
            if once or not ttl or exit_code(error) != UNAVAILABLE:
                raise
            note(f"not renewed ({error}); trying again")
            await asyncio.sleep(min(0.5, ttl / 10))
            continue
        ttl = renewed.ttl
        text = f"lease {renewed.lease} renewed for {renewed.ttl} s"
        if session.output.etcd:
            head = (await etcd_calls.ask(client, "maintenance/status", {}))["header"]
            told = {**head, "ID": int(renewed.lease, 16), "TTL": renewed.ttl}
            etcd_calls.show(session, "lease", told)
        else:
            session.output.one(renewed, lambda text=text: text)  # type: ignore[misc]
        if once:
            return
        await asyncio.sleep(ttl / 3)


# ---- as etcdctl has them -------------------------------------------------------------------------


def _granted(answer: Answer) -> Answer:
    return {**answer["header"], "ID": answer["ID"], "TTL": answer["TTL"], "Error": ""}


def _time_left(answer: Answer) -> Answer:
    return {
        **answer["header"],
        "id": answer["ID"],
        "ttl": answer.get("TTL", 0),
        "granted-ttl": answer.get("grantedTTL", 0),
        "keys": answer.get("keys"),
    }


def _listed(answer: Answer) -> Answer:
    leases = [{"id": each["ID"]} for each in answer.get("leases", ())]
    return {**answer["header"], "leases": leases}
