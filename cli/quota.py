"""quota list, set, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import printable, size_text
from raftkv.cli.session import Session, common_options

if TYPE_CHECKING:
    from raftkv.client.results import Quota

COMMANDS = {
    "list": Lazy("raftkv.cli.quota:list_", "Show all quotas and what is used of them."),
    "set": Lazy("raftkv.cli.quota:set_", "Limit the keys and bytes of a prefix or a user."),
    "remove": Lazy("raftkv.cli.quota:remove", "End a quota."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def quota() -> None:
    """Bounds of prefixes and users."""


@click.command("list")
@common_options
def list_(session: Session) -> None:
    """Show all quotas and what is used of them."""
    quotas = session.run(lambda client: client.cluster.quotas())
    if session.output.format == "table":
        session.output.table(("OF", "KEYS", "OF AT MOST", "BYTES", "OF AT MOST"), map(_row, quotas))
    else:
        session.output.one({"quotas": quotas}, str)


def _row(one: Quota) -> tuple[object, ...]:
    of = f"user {one.user}" if one.prefix is None else f"prefix {printable(one.prefix)}"
    most = size_text(one.bytes) if one.bytes else "any"
    return (of, one.used_keys, one.keys or "any", size_text(one.used_bytes), most)


def _named(prefix: str | None, user: str | None) -> None:
    if (prefix is None) == (user is None):
        raise click.UsageError("give either --prefix or --of-user")


@click.command("set")
@click.option("--prefix", metavar="TEXT", help="Keys that begin with this.")
@click.option("--of-user", metavar="NAME", help="What this user wrote last.")
@click.option("--keys", type=click.IntRange(min=1), metavar="N", help="Most keys.")
@click.option("--bytes", "size", type=click.IntRange(min=1), metavar="N", help="Most bytes.")
@common_options
def set_(
    session: Session, prefix: str | None, of_user: str | None, keys: int | None, size: int | None
) -> None:
    """Limit the keys and bytes of a prefix or a user."""
    _named(prefix, of_user)
    if keys is None and size is None:
        raise click.UsageError("give --keys, --bytes or both")
    changed = session.run(
        lambda client: client.cluster.set_quota(
            prefix=prefix, user=of_user, keys=keys or 0, size=size or 0
        )
    )
    session.output.one({"changed": changed}, lambda: "set" if changed else "it was so already")


@click.command()
@click.option("--prefix", metavar="TEXT", help="The quota of this prefix.")
@click.option("--of-user", metavar="NAME", help="The quota of this user.")
@common_options
def remove(session: Session, prefix: str | None, of_user: str | None) -> None:
    """End a quota."""
    _named(prefix, of_user)
    changed = session.run(lambda client: client.cluster.set_quota(prefix=prefix, user=of_user))
    session.output.one({"changed": changed}, lambda: "ended" if changed else "there was none")
