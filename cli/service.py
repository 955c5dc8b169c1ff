"""service register, deregister, list, show, watch, drain, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from raftkv.cli.exits import NOT_FOUND
from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import Failure, Output, note, plain, printable
from raftkv.cli.session import Session, common_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftkv.client.client import AsyncClient
    from raftkv.client.results import Instance, ServiceEvent

COMMANDS = {
    "register": Lazy("raftkv.cli.service:register", "Register an instance for TTL seconds."),
    "deregister": Lazy("raftkv.cli.service:deregister", "Remove an instance."),
    "list": Lazy("raftkv.cli.service:list_", "List all services."),
    "show": Lazy("raftkv.cli.service:show", "Show the instances of a service."),
    "watch": Lazy("raftkv.cli.service:watch", "Print instances as they come and go."),
    "drain": Lazy("raftkv.cli.service:drain", "Stop offering an instance while it is still known."),
    "run": Lazy("raftkv.cli.service_run:run", "Run a program as an instance of a service."),
}
COLUMNS = ("INSTANCE", "ADDRESS", "STATUS", "TTL", "WEIGHT", "TAGS", "LEASE")


@click.group(cls=LazyGroup, lazy=COMMANDS)
def service() -> None:
    """Services that register with a TTL."""


def description_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What an instance says about itself."""
    for option in (
        click.option("--takeover", is_flag=True, help="Take the id from whoever holds it."),
        click.option(
            "--owner", default="", metavar="TEXT", help="Tells claimants of one id apart."
        ),
        click.option(
            "--ttl",
            type=click.IntRange(min=1),
            default=10,
            show_default=True,
            metavar="SECONDS",
            help="How long it is known without a heartbeat.",
        ),
        click.option(
            "--weight",
            type=click.IntRange(min=0),
            default=1,
            show_default=True,
            metavar="N",
            help="Its share of the work.",
        ),
        click.option(
            "--meta", multiple=True, metavar="NAME=TEXT", help="A note; may be given several times."
        ),
        click.option(
            "--tag", "tags", multiple=True, metavar="TEXT", help="May be given several times."
        ),
        click.option(
            "--port",
            type=click.IntRange(1, 65535),
            required=True,
            metavar="PORT",
            help="The port it serves on.",
        ),
    ):
        command = option(command)
    return command


def parse_meta(pairs: tuple[str, ...]) -> dict[str, str]:
    """NAME=TEXT pairs."""
    meta: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise click.UsageError(f"--meta takes NAME=TEXT, not {pair!r}")
        meta[name] = text
    return meta


@click.command()
@click.argument("service_name", metavar="SERVICE")
@click.argument("instance")
@click.option("--address", required=True, metavar="HOST", help="Where the instance is reached.")
@description_options
@common_options
def register(
    session: Session,
    service_name: str,
    instance: str,
    address: str,
    port: int,
    tags: tuple[str, ...],
    meta: tuple[str, ...],
    weight: int,
    ttl: int,
    owner: str,
    takeover: bool,
) -> None:
    """Register an instance for TTL seconds.

    It is gone after that unless it is registered again or sends heartbeats; `service run` does
    both for you.
    """
    notes = parse_meta(meta)

    async def work(client: AsyncClient) -> Any:
        return await client.services.register(
            service_name,
            instance,
            address,
            port,
            tags=tags,
            meta=notes,
            weight=weight,
            ttl=ttl,
            owner=owner,
            takeover=takeover,
        )

    done = session.run(work)
    until = f", until {done.expires_at}" if done.expires_at else ""
    session.output.one(
        done, lambda: f"{service_name}/{instance} registered for {done.ttl} s{until}"
    )


@click.command()
@click.argument("service_name", metavar="SERVICE")
@click.argument("instance")
@common_options
def deregister(session: Session, service_name: str, instance: str) -> None:
    """Remove an instance."""
    revision = session.run(lambda client: client.services.deregister(service_name, instance))
    session.output.one(
        {"service": service_name, "instance": instance, "revision": revision},
        lambda: f"{service_name}/{instance} deregistered at revision {revision}",
    )


@click.command("list")
@click.option("--prefix", default="", metavar="TEXT", help="Only names that begin with TEXT.")
@common_options
def list_(session: Session, prefix: str) -> None:
    """List all services."""
    found = session.run(lambda client: client.services.list(prefix=prefix))
    session.output.rows(
        found,
        ("SERVICE", "INSTANCES", "PASSING"),
        lambda item: (printable(item.service), item.instances, item.passing),
        name="services",
        empty="there are no services",
    )


@click.command()
@click.argument("service_name", metavar="SERVICE")
@click.argument("instance", required=False)
@click.option("--tag", metavar="TEXT", help="Only instances with this tag.")
@click.option("--passing", is_flag=True, help="Only instances that take work.")
@common_options
def show(
    session: Session, service_name: str, instance: str | None, tag: str | None, passing: bool
) -> None:
    """Show the instances of a service.

    With INSTANCE, only that one, with all it says about itself; exits with 3 when it is unknown.
    """
    if instance is None:
        found = session.run(
            lambda client: client.services.instances(service_name, tag=tag, passing=passing)
        )
        session.output.rows(
            found,
            COLUMNS,
            _row,
            name="instances",
            empty=f"service {service_name!r} has no such instances",
        )
        return
    if tag is not None or passing:
        raise click.UsageError("--tag and --passing choose among instances; leave INSTANCE out")
    name = instance
    one = session.run(lambda client: client.services.instance(service_name, name))
    if one is None:
        raise Failure(
            f"there is no instance {instance!r} of {service_name!r}",
            NOT_FOUND,
            f"`raftkv service show {service_name}` lists them.",
        )
    fields = plain(one)

    def text() -> str:
        width = max(map(len, fields))
        return "\n".join(f"{name:<{width}}  {_cell(value)}" for name, value in fields.items())

    session.output.one(one, text)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{name}={text}" for name, text in value.items()]
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _row(item: Instance) -> tuple[object, ...]:
    return (
        printable(item.instance),
        place(item),
        item.status,
        item.ttl,
        item.weight,
        printable(",".join(item.tags)),
        item.lease,
    )


def place(item: Instance) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    host = f"[{item.address}]" if ":" in item.address else item.address
    return printable(f"{host}:{item.port}")


@click.command()
@click.argument("service_name", metavar="[SERVICE]", required=False)
@common_options
def watch(session: Session, service_name: str | None) -> None:
    """Print instances as they come and go.

    First those that are there, then every change. Ctrl-C stops it.
    """

    async def work(client: AsyncClient) -> None:
        async with client.services.watch(
            service_name,
            on_interruption=lambda error: note(f"interrupted ({error}); going on elsewhere"),
        ) as events:
            async for event in events:
                show_event(session.output, event)

    session.run(work)


_COLOURS = {"registered": "green", "deregistered": "red", "changed": "yellow"}


def show_event(output: Output, event: ServiceEvent) -> None:
    """One change of the catalog, as a line or a JSON object."""
    item = event.instance
    if output.format != "table":
        body: dict[str, Any] = {"type": event.type, "revision": event.revision}
        if event.reason is not None:
            body["reason"] = event.reason
        Output("ndjson").json({**body, **(plain(item) if item else {})})
        return
    if item is None:
        note(f"present as of revision {event.revision}; waiting for changes")
        return
    word = event.reason if event.reason == "expired" else event.type
    word = "present" if word == "instance" else word
    verb = click.style(f"{word:<12}", fg=_COLOURS.get(event.type))
    what = printable(f"{item.service}/{item.instance}")
    output.line(f"{event.revision:>8}  {verb}  {what}  {place(item)}  {item.status}")


@click.command()
@click.argument("service_name", metavar="SERVICE")
@click.argument("instance")
@click.option("--undo", is_flag=True, help="Offer it again.")
@common_options
def drain(session: Session, service_name: str, instance: str, undo: bool) -> None:
    """Stop offering an instance while it is still known."""
    revision = session.run(
        lambda client: client.services.drain(service_name, instance, draining=not undo)
    )
    state = "is offered again" if undo else "gets no new work"
    session.output.one(
        {"service": service_name, "instance": instance, "draining": not undo, "revision": revision},
        lambda: f"{service_name}/{instance} {state}",
    )
