"""watch: changes as they happen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from raftkv.cli import etcd_calls
from raftkv.cli.output import Output, key_json, note, printable, record_json, value_text
from raftkv.cli.session import Session, common_options

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient
    from raftkv.client.results import Event


@click.command()
@click.argument("key", required=False)
@click.option("--prefix", metavar="TEXT", help='Every key that begins with TEXT; "" for all.')
@click.option("--end", metavar="KEY", help="Every key from KEY up to, not including, this one.")
@click.option(
    "--from",
    "from_revision",
    type=click.IntRange(min=1),
    metavar="REV",
    help="Begin with the changes of this revision.  [default: from now on]",
)
@click.option("--prev", is_flag=True, help="Print what was there before, too.")
@click.option("--keys-only", is_flag=True, help="Leave the values out.")
@click.option("--only", type=click.Choice(["put", "delete"]), help="Only changes of this kind.")
@click.option(
    "-n", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N changes."
)
@common_options
def watch(
    session: Session,
    key: str | None,
    prefix: str | None,
    end: str | None,
    from_revision: int | None,
    prev: bool,
    keys_only: bool,
    only: Literal["put", "delete"] | None,
    count: int | None,
) -> None:
    """Print changes as they happen.

    Every change once and in order, also across broken connections and changes of leader. Prints
    one line a change; with -o json or ndjson, one JSON object a line. Ctrl-C stops it.
    """
    if (key is None) == (prefix is None) or (end is not None and key is None):
        raise click.UsageError("give a KEY, or KEY and --end, or --prefix")

    def interrupted(error: Exception) -> None:
        note(f"interrupted ({error}); going on elsewhere")

    if session.output.etcd:
        body: dict[str, object] = {**etcd_calls.place(key, prefix, end), "prev_kv": prev}
        if from_revision is not None:
            body["start_revision"] = from_revision
        if only is not None:
            body["filters"] = ["NODELETE" if only == "put" else "NOPUT"]
        session.run(lambda client: etcd_calls.watch(session, client, body, count, interrupted))
        return

    async def work(client: AsyncClient) -> None:
        left = count
        async with client.watch(
            key if end is None else None,
            prefix=prefix or None,
            start=key if end is not None else None,
            end=end,
            from_revision=from_revision,
            previous=prev,
            keys_only=keys_only,
            only=only,
            on_interruption=interrupted,
        ) as events:
            async for event in events:
                show(session.output, event, prev=prev, keys_only=keys_only)
                if left is not None:
                    left -= 1
                    if not left:
                        return

    session.run(work)


def show(output: Output, event: Event, *, prev: bool, keys_only: bool) -> None:
    """One event, as a line or a JSON object."""
    if output.format != "table":
        body: dict[str, object] = {
            "type": event.type,
            "revision": event.revision,
            **key_json(event.key),
        }
        if event.record is not None:
            record = record_json(event.record) or {}
            for name in ("value", "encoding") if keys_only else ():
                del record[name]
            body |= record
        if prev:
            body["previous"] = record_json(event.previous)
        Output("ndjson").json(body)
        return
    verb = click.style("PUT   ", fg="green") if event.record else click.style("DELETE", fg="red")
    line = f"{event.revision:>8}  {verb}  {printable(event.key)}"
    if event.record is not None and not keys_only:
        line += f" = {value_text(event.record.value)}"
    if prev:
        before = value_text(event.previous.value) if event.previous else "(nothing)"
        line += click.style(f"   before: {before}", dim=True)
    output.line(line)
