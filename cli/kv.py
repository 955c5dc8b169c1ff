"""put, get, del, txn and compact."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from raftkv.cli import etcd_calls
from raftkv.cli.exits import FAILED, NOT_FOUND, PRECONDITION, USAGE
from raftkv.cli.output import Failure, Output, plain, printable, record_json, value_text
from raftkv.cli.session import Session, common_options

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient
    from raftkv.client.results import Record, TxnResult

COLUMNS = ("KEY", "VALUE", "MODIFIED", "VERSION", "LEASE")


@click.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option("--lease", metavar="ID", help="Delete the key when this lease ends.")
@click.option("--prev", is_flag=True, help="Print what was there before.")
@click.option(
    "--if-revision",
    type=click.IntRange(min=0),
    metavar="REV",
    help="Only if the key was last modified at this revision; 0: if it does not exist.",
)
@click.option("--if-absent", is_flag=True, help="Only if the key does not exist.")
@click.option("--if-present", is_flag=True, help="Only if the key exists.")
@click.option("--idempotency-key", metavar="TEXT", help="Makes repeating this command harmless.")
@common_options
def put(
    session: Session,
    key: str,
    value: str | None,
    lease: str | None,
    prev: bool,
    if_revision: int | None,
    if_absent: bool,
    if_present: bool,
    idempotency_key: str | None,
) -> None:
    """Write a key.

    VALUE is taken from standard input when it is left out or is "-".
    """
    data = _value(value)

    async def work(client: AsyncClient) -> None:
        result = await client.put(
            key,
            data,
            lease=lease,
            previous=prev,
            if_revision=if_revision,
            if_absent=if_absent,
            if_present=if_present,
            idempotency_key=idempotency_key,
        )
        if session.output.etcd:
            head = await etcd_calls.header(client, result.revision)
            etcd_calls.show(session, "put", etcd_calls.put_answer(head, result))
            return
        answer: dict[str, Any] = {"key": key, **plain(result)}
        if not prev:
            del answer["previous"]

        def text() -> str:
            lines = [f"{printable(key)} written at revision {result.revision}"]
            if prev:
                before = result.previous
                lines.append("before: " + (value_text(before.value) if before else "(nothing)"))
            return "\n".join(lines)

        session.output.one(answer, text)

    session.run(work)


@click.command()
@click.argument("key", required=False)
@click.option("--prefix", metavar="TEXT", help='Every key that begins with TEXT; "" for all.')
@click.option("--end", metavar="KEY", help="Every key from KEY up to, not including, this one.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N keys.")
@click.option("--revision", type=click.IntRange(min=1), metavar="REV", help="As of this revision.")
@click.option("--keys-only", is_flag=True, help="Leave the values out.")
@click.option("--count-only", is_flag=True, help="Print only how many keys there are.")
@click.option("--reverse", is_flag=True, help="From the last key to the first.")
@click.option("--serializable", is_flag=True, help="Ask one member only; may be a little old.")
@click.option("--raw", is_flag=True, help="Print the value's bytes and nothing else.")
@common_options
def get(
    session: Session,
    key: str | None,
    prefix: str | None,
    end: str | None,
    limit: int | None,
    revision: int | None,
    keys_only: bool,
    count_only: bool,
    reverse: bool,
    serializable: bool,
    raw: bool,
) -> None:
    """Read a key, or a range of keys.

    Prints the value of KEY; exits with 3 when there is none. With --prefix or --end it prints
    every key of the range, all as of one revision.
    """
    if (key is None) == (prefix is None) or (end is not None and key is None):
        raise click.UsageError("give a KEY, or KEY and --end, or --prefix")
    if session.output.etcd and not raw:
        body = {"revision": revision or 0, "limit": limit or 0, "serializable": serializable,
                "keys_only": keys_only, "count_only": count_only,
                "sort_order": "DESCEND" if reverse else "NONE"}  # fmt: skip
        place = etcd_calls.place(key, prefix, end)
        found = etcd_calls.run(session, "get", "kv/range", place | body)
        if prefix is None and end is None and not found.get("count"):
            raise Failure(f"there is no key {printable(key or '')!r}", NOT_FOUND)
        return
    if prefix is None and end is None:
        _reject_range_options(limit, keys_only, count_only, reverse)
        session.run(
            lambda client: _get_one(client, session.output, key or "", revision, serializable, raw)
        )
        return
    if raw:
        raise click.UsageError("--raw prints one value; it does not go with a range")
    chosen = {"prefix": prefix or None, "start": key, "end": end}
    if count_only:
        session.run(lambda client: _count(client, session.output, chosen, revision))
    else:
        session.run(
            lambda client: _get_range(
                client, session.output, chosen, limit, revision, keys_only, reverse
            )
        )


def _reject_range_options(
    limit: int | None, keys_only: bool, count_only: bool, reverse: bool
) -> None:
    given = {
        "--limit": limit is not None,
        "--keys-only": keys_only,
        "--count-only": count_only,
        "--reverse": reverse,
    }
    for name, is_given in given.items():
        if is_given:
            raise click.UsageError(f"{name} needs a range: add --prefix or --end")


async def _get_one(
    client: AsyncClient,
    output: Output,
    key: str,
    revision: int | None,
    serializable: bool,
    raw: bool,
) -> None:
    record = await client.get(
        key,
        revision=revision,
        consistency="serializable" if serializable else "linearizable",
    )
    if record is None:
        raise Failure(f"there is no key {printable(key)!r}", NOT_FOUND)
    if raw:
        sys.stdout.buffer.write(record.value)
        sys.stdout.buffer.flush()
    else:
        output.one(record, lambda: _shown(record.value))


def _shown(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value_text(value)
    # Lines and tabs are what people store; other control characters could drive the terminal.
    return "".join(c if c.isprintable() or c in "\n\t" else printable(c) for c in text)


async def _count(
    client: AsyncClient, output: Output, place: dict[str, str | None], revision: int | None
) -> None:
    count = await client.count(
        prefix=place["prefix"], start=place["start"], end=place["end"], revision=revision
    )
    output.one({"count": count}, lambda: str(count))


async def _get_range(
    client: AsyncClient,
    output: Output,
    place: dict[str, str | None],
    limit: int | None,
    revision: int | None,
    keys_only: bool,
    reverse: bool,
) -> None:
    pages = client.pages(
        prefix=place["prefix"],
        start=place["start"],
        end=place["end"],
        page_size=None if limit is None else min(limit, 1000),
        revision=revision,
        keys_only=keys_only,
        reverse=reverse,
    )
    left = limit
    count = 0
    columns = COLUMNS[:1] + COLUMNS[2:] if keys_only else COLUMNS
    async for page in pages:
        records = page.records if left is None else page.records[:left]
        first = count == 0
        if output.format == "table":
            if records:
                output.table(columns, [_row(record, keys_only) for record in records])
        else:
            if first and output.format == "json":
                click.echo(f'{{"revision": {page.revision}, "items": [', nl=False)
            _write_records(records, output.format, first, keys_only)
        count += len(records)
        if left is not None:
            left -= len(records)
            if left <= 0:
                break
    if output.format == "json":
        click.echo(f'], "count": {count}}}')


def _write_records(records: tuple[Record, ...], format_: str, first: bool, keys_only: bool) -> None:
    texts = []
    for record in records:
        item = record_json(record) or {}
        if keys_only:
            del item["value"], item["encoding"]
        texts.append(json.dumps(item, ensure_ascii=False))
    if format_ == "json":
        click.echo(("" if first or not texts else ", ") + ", ".join(texts), nl=False)
    elif texts:
        click.echo("\n".join(texts))


def _row(record: Record, keys_only: bool) -> list[object]:
    tail: list[object] = [record.mod_revision, record.version, record.lease]
    value: list[object] = [] if keys_only else [value_text(record.value)]
    return [printable(record.key), *value, *tail]


@click.command("del")
@click.argument("key", required=False)
@click.option("--prefix", metavar="TEXT", help="Every key that begins with TEXT.")
@click.option("--end", metavar="KEY", help="Every key from KEY up to, not including, this one.")
@click.option("--all", "everything", is_flag=True, help="Every key there is.")
@click.option("--prev", is_flag=True, help="Print what was deleted.")
@click.option(
    "--if-revision",
    type=click.IntRange(min=1),
    metavar="REV",
    help="Only if the key was last modified at this revision.",
)
@common_options
def delete(
    session: Session,
    key: str | None,
    prefix: str | None,
    end: str | None,
    everything: bool,
    prev: bool,
    if_revision: int | None,
) -> None:
    """Delete a key, or a range of keys.

    Exits with 3 when KEY does not exist. A range may be empty.
    """
    if (key is not None) + (prefix is not None) + everything != 1 or (end and key is None):
        raise click.UsageError("give a KEY, or KEY and --end, or --prefix, or --all")
    if prefix == "":
        raise click.UsageError("an empty --prefix is every key; say so with --all")
    if if_revision is not None and (key is None or end is not None):
        raise click.UsageError("--if-revision goes with one KEY")

    async def work(client: AsyncClient) -> None:
        if key is not None and end is None:
            result = await client.delete(key, previous=prev, if_revision=if_revision)
        else:
            result = await client.delete_range(
                prefix=prefix, start=key, end=end, everything=everything, previous=prev
            )
        if session.output.etcd:
            head = await etcd_calls.header(client, result.revision)
            etcd_calls.show(session, "delete", etcd_calls.delete_answer(head, result))
        if not result.deleted and key is not None and end is None:
            raise Failure(f"there is no key {printable(key)!r}", NOT_FOUND)
        if session.output.etcd:
            return
        answer = plain(result)
        if not prev:
            del answer["previous"]
        keys = "1 key" if result.deleted == 1 else f"{result.deleted} keys"
        session.output.one(answer, lambda: f"{keys} deleted at revision {result.revision}")
        if prev and result.previous and session.output.format == "table":
            session.output.table(COLUMNS, [_row(record, False) for record in result.previous])

    session.run(work)


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@common_options
def txn(session: Session, file: Any) -> None:
    """Run a transaction given as JSON.

    FILE holds {"if": [...], "then": [...], "else": [...]}; standard input without FILE. Exits
    with 4 when a compare did not hold, after printing what the else branch answered.

    \b
    {"if":   [{"key": "stock", "target": "value", "op": "=", "operand": "1"}],
     "then": [{"op": "put", "key": "stock", "value": "0"}],
     "else": [{"op": "get", "key": "stock"}]}
    """
    try:
        body = json.loads(file.read())
    except (ValueError, UnicodeDecodeError) as error:
        raise Failure(f"the transaction is not JSON: {error}", USAGE) from error
    if not isinstance(body, dict):
        raise Failure('the transaction must be an object such as {"then": [...]}', USAGE)

    async def work(client: AsyncClient) -> TxnResult:
        result = await client.transact(body)
        if session.output.etcd:
            head = await etcd_calls.header(client, result.revision)
            etcd_calls.show(session, "txn", etcd_calls.txn_answer(head, result))
        return result

    result = session.run(work)
    if not session.output.etcd:
        session.output.one(txn_json(result), lambda: _txn_text(result))
    if not result.succeeded:
        click.get_current_context().exit(PRECONDITION)


def txn_json(result: TxnResult) -> dict[str, Any]:
    """The answer of a transaction in the API's form."""
    return {
        "revision": result.revision,
        "succeeded": result.succeeded,
        "results": [_part_json(part) for part in result.results],
    }


def _part_json(part: Any) -> dict[str, Any]:
    from raftkv.client import results

    match part:
        case results.TxnPut(previous):
            return {"op": "put", "previous": record_json(previous)}
        case results.TxnDelete(deleted, previous):
            return {"op": "delete", "deleted": deleted, "previous": plain(previous)}
        case results.TxnRange(records, count, more):
            return {"op": "range", "items": plain(records), "count": count, "more": more}
        case results.TxnResult():
            return {"op": "txn", **txn_json(part)}
    return {"op": "get", "item": record_json(part)}


def _txn_text(result: TxnResult) -> str:
    branch = "then" if result.succeeded else "else"
    return "\n".join([f"{branch} ran at revision {result.revision}", *_txn_lines(result, 1)])


def _txn_lines(result: TxnResult, depth: int) -> list[str]:
    from raftkv.client import results

    lines: list[str] = []
    for part in result.results:
        match part:
            case results.TxnPut():
                text = "put: done"
            case results.TxnDelete(deleted):
                text = f"delete: {deleted} deleted"
            case results.TxnRange(records, count):
                found = [f"{printable(r.key)} = {value_text(r.value)}" for r in records]
                text = "\n".join([f"range: {count} keys", *("  " + line for line in found)])
            case results.TxnResult(succeeded=succeeded):
                inner = _txn_lines(part, depth)
                text = "\n".join([f"txn: {'then' if succeeded else 'else'} ran", *inner])
            case None:
                text = "get: no such key"
            case results.Record() as record:
                text = f"get: {printable(record.key)} = {value_text(record.value)}"
        lines += ["  " * depth + line for line in text.splitlines()]
    return lines


@click.command()
@click.argument("revision", type=click.IntRange(min=1), required=False)
@click.option(
    "--keep", type=click.IntRange(min=0), metavar="N", help="Forget all but the last N revisions."
)
@common_options
def compact(session: Session, revision: int | None, keep: int | None) -> None:
    """Forget old history.

    History before REVISION goes for good; the newest value of every key stays.
    """
    if (revision is None) == (keep is None):
        raise click.UsageError("give either REVISION or --keep")
    done = session.run(lambda client: client.cluster.compact(revision, keep=keep))
    if session.output.etcd:
        session.output.line(f"compacted revision {done.compact_revision}")
        return
    session.output.one(done, lambda: f"history before revision {done.compact_revision} is gone")


def _value(value: str | None) -> bytes:
    if value is not None and value != "-":
        return value.encode("utf-8", "surrogateescape")
    if value is None and sys.stdin.isatty():
        raise click.UsageError("give a VALUE, or pipe one in")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise Failure(f"standard input cannot be read: {error.strerror}", FAILED) from error
