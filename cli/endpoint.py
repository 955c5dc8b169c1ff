"""endpoint status, health and hashkv; alarm list and disarm: as etcdctl has them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from raftkv.cli import etcd_calls
from raftkv.cli.etcd_form import Answer
from raftkv.cli.exits import FAILED
from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import Failure, note, size_text
from raftkv.cli.session import Session, common_options
from raftkv.errors import RaftkvError

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient

ENDPOINT_COMMANDS = {
    "status": Lazy("raftkv.cli.endpoint:status", "Show how each endpoint is."),
    "health": Lazy("raftkv.cli.endpoint:health", "Check that each endpoint serves."),
    "hashkv": Lazy("raftkv.cli.endpoint:hashkv", "Show the hash of each endpoint's keys."),
}
ALARM_COMMANDS = {
    "list": Lazy("raftkv.cli.endpoint:alarms", "List the alarms."),
    "disarm": Lazy("raftkv.cli.endpoint:disarm", "Take all alarms back."),
}


@click.group(cls=LazyGroup, lazy=ENDPOINT_COMMANDS)
def endpoint() -> None:
    """Endpoints, one by one, as etcdctl shows them."""


@click.group(cls=LazyGroup, lazy=ALARM_COMMANDS)
def alarm() -> None:
    """Alarms, as etcdctl shows them."""


def _each(session: Session, name: str, path: str, body: Answer) -> list[Answer]:
    """What every endpoint answers; those that do not are told of. All failing fails."""

    async def work(client: AsyncClient) -> list[Answer]:
        answers: list[Answer] = []
        failed: RaftkvError | Failure | None = None
        for url in client.endpoints:
            try:
                found = await etcd_calls.ask(client, path, body, url)
            except (RaftkvError, Failure) as error:
                failed = error
                note(f"Failed to get the status of endpoint {url} ({error})")
            else:
                answers.append({"Endpoint": url, name: found})
        if failed is not None and not answers:
            raise failed
        return answers

    return session.run(work)


@click.command()
@common_options
def status(session: Session) -> None:
    """Show how each endpoint is."""
    found = _each(session, "Status", "maintenance/status", {})
    if session.output.etcd:
        etcd_calls.show(session, "statuses", found)
        return
    session.output.rows(
        found,
        ("ENDPOINT", "ID", "VERSION", "DB SIZE", "LEADER", "LEARNER", "TERM", "INDEX", "APPLIED"),
        lambda each: (each["Endpoint"], *_status_row(each["Status"])),
        name="endpoints",
        empty="no endpoints",
    )


def _status_row(status: Answer) -> tuple[Any, ...]:
    return (
        f"{status['header']['member_id']:x}",
        status["version"],
        size_text(status.get("dbSize", 0)),
        status["header"]["member_id"] == status.get("leader"),
        status.get("isLearner", False),
        status.get("raftTerm", 0),
        status.get("raftIndex", 0),
        status.get("raftAppliedIndex", 0),
    )


@click.command()
@common_options
def hashkv(session: Session) -> None:
    """Show the hash of each endpoint's keys, as of now."""
    found = _each(session, "HashKV", "maintenance/hashkv", {})
    if session.output.etcd:
        etcd_calls.show(session, "hashes", found)
        return
    session.output.rows(
        found,
        ("ENDPOINT", "HASH"),
        lambda each: (each["Endpoint"], each["HashKV"].get("hash", 0)),
        name="endpoints",
        empty="no endpoints",
    )


@click.command()
@common_options
def health(session: Session) -> None:
    """Check that each endpoint serves.

    That it reads a key, after asking the cluster. Exits with 1 when one does not.
    """

    async def work(client: AsyncClient) -> list[Answer]:
        return [await _health(client, url) for url in client.endpoints]

    found = session.run(work)
    if session.output.etcd:
        etcd_calls.show(session, "healths", found)
    else:
        session.output.rows(
            found,
            ("ENDPOINT", "HEALTH", "TOOK", "ERROR"),
            lambda each: (each["endpoint"], each["health"], each["took"], each.get("error", "")),
            name="endpoints",
            empty="no endpoints",
        )
    if not all(each["health"] for each in found):
        click.get_current_context().exit(FAILED)


async def _health(client: AsyncClient, url: str) -> Answer:
    began = time.perf_counter()
    reason = ""
    try:
        await etcd_calls.ask(client, "kv/range", etcd_calls.place("health"), url)
    except Failure as error:
        # Nobody has to be allowed to read that key: who is refused was served.
        if "permission denied" not in error.message:
            reason = error.message
    except RaftkvError as error:
        reason = error.message
    took = f"{(time.perf_counter() - began) * 1000:.6f}ms"
    told = {"endpoint": url, "health": not reason, "took": took}
    return {**told, "error": reason} if reason else told


@click.command("list")
@common_options
def alarms(session: Session) -> None:
    """List the alarms."""
    _alarm(session, {"action": "GET"})


@click.command()
@common_options
def disarm(session: Session) -> None:
    """Take all alarms back."""
    _alarm(session, {"action": "DEACTIVATE", "memberID": "0", "alarm": "NONE"})


def _alarm(session: Session, body: Answer) -> None:
    found = session.run(lambda client: etcd_calls.ask(client, "maintenance/alarm", body))
    if session.output.etcd:
        etcd_calls.show(session, "alarms", found)
        return
    session.output.rows(
        found.get("alarms", []),
        ("MEMBER", "ALARM"),
        lambda each: (
            f"{each.get('memberID', 0):x}",
            ("NONE", "NOSPACE", "CORRUPT")[each["alarm"]],
        ),
        name="alarms",
        empty="there are no alarms",
    )
