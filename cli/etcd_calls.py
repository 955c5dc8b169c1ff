"""Commands that etcd has, too, done over etcd's API and printed as etcdctl prints them.

``-o json`` and ``-o fields`` come here. A request is asked of the JSON gateway; its answer is
turned into the value that etcdctl encodes (`raftkv.cli.etcd_form`). Errors have etcd's text, and
the exit codes that all commands have.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from raftkv.cli.etcd_form import Answer, as_fields, as_json, go_value, transacted, watched
from raftkv.cli.exits import FAILED, NOT_FOUND, PRECONDITION, UNAVAILABLE
from raftkv.cli.output import Failure
from raftkv.cli.session import Session

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient
    from raftkv.client.results import DeleteResult, PutResult, Record, TxnResult

ANY_STATUS: Final = tuple(range(200, 600))
CODES: Final = {5: NOT_FOUND, 9: PRECONDITION, 14: UNAVAILABLE, 8: UNAVAILABLE}
"""Exit codes by gRPC code; all others have failed."""


def encoded(text: str | bytes) -> str:
    """A key or value as a request has it."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return base64.b64encode(data).decode()


def place(key: str | None, prefix: str | None = None, end: str | None = None) -> dict[str, str]:
    """The range of a request: one key, a prefix, or from a key to another."""
    if prefix is None:
        first, last = (key or "").encode("utf-8", "surrogateescape"), end
        told = {"key": encoded(first or b"\0")}
        return told if last is None else {**told, "range_end": encoded(last or b"\0")}
    start = prefix.encode("utf-8", "surrogateescape")
    stem = start.rstrip(b"\xff")
    after = stem[:-1] + bytes((stem[-1] + 1,)) if stem else b"\0"
    return {"key": encoded(start or b"\0"), "range_end": encoded(after)}


def number(hex_id: str) -> str:
    """A lease's or member's id, which people write in hexadecimal, as a request has it."""
    try:
        return str(int(hex_id, 16))
    except ValueError:
        raise click.UsageError(f"{hex_id!r} is not an id, which has hexadecimal digits") from None


async def ask(client: AsyncClient, path: str, body: Any, endpoint: str | None = None) -> Answer:
    """One request of the gateway; `path` is what follows ``/v3/``. Raises `Failure`."""
    from raftkv.client.retry import Kind
    from raftkv.client.transport import Call

    reads = path.endswith(("/range", "/list", "/get", "/status", "/hashkv", "/leases",
                           "/timetolive"))  # fmt: skip
    call = Call(
        "POST",
        f"/v3/{path}",
        Kind.READ if reads else Kind.BARE,
        {"Content-Type": "application/json"},
        json.dumps(body).encode(),
        ANY_STATUS,
        endpoint,
    )
    answer = await client.call(call)
    return understood(answer.body.splitlines()[0] if answer.body else b"{}")


def understood(line: bytes) -> Answer:
    """An answer, or the message of a stream, in the form that Go has it. Raises `Failure`."""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Failure("the answer is not how a raftkv member answers")
    error = value.get("error")
    told: Answer = error if isinstance(error, dict) else value
    if "message" in told and "code" in told:
        code = told.get("grpc_code", told["code"])
        raise Failure(str(told["message"]), CODES.get(int(code or 0), FAILED))
    answer: Answer = go_value(value.get("result", value))
    return answer


def show(session: Session, kind: str, answer: Any) -> None:
    """Print what a command came to. Raises `Failure` for a form that etcdctl does not have."""
    if session.output.etcd == "json":
        click.echo(as_json(answer))
        return
    lines = as_fields(kind, answer)
    if lines is None:
        raise Failure("fields not supported as output format")
    click.echo("\n".join(lines))


def run(
    session: Session,
    kind: str,
    path: str,
    body: Any,
    shape: Callable[[Answer], Any] = lambda answer: answer,
) -> Answer:
    """Ask, print, and give back the answer."""
    answer: Answer = session.run(lambda client: ask(client, path, body))
    show(session, kind, shape(answer))
    return answer


# ---- writes: done as the command does them anyway, and then told as etcdctl tells them -----------


async def header(client: AsyncClient, revision: int) -> Answer:
    """The header of an answer that was given at `revision`."""
    found: Answer = (await ask(client, "maintenance/status", {}))["header"]
    return {name: revision if name == "revision" else value for name, value in found.items()}


def kv(record: Record) -> Answer:
    """A record as etcd has it."""
    fields = {
        "key": encoded(record.key_bytes),
        "create_revision": record.create_revision,
        "mod_revision": record.mod_revision,
        "version": record.version,
        "value": encoded(record.value),
        "lease": int(record.lease or "0", 16),
    }
    return {name: value for name, value in fields.items() if value}


def put_answer(head: Answer, result: PutResult) -> Answer:
    """The answer of a put."""
    previous = {} if result.previous is None else {"prev_kv": kv(result.previous)}
    return {"header": head, **previous}


def delete_answer(head: Answer, result: DeleteResult) -> Answer:
    """The answer of a deletion."""
    found = {"header": head, "deleted": result.deleted,
             "prev_kvs": [kv(record) for record in result.previous]}  # fmt: skip
    return {name: value for name, value in found.items() if value}


def txn_answer(head: Answer, result: TxnResult) -> Answer:
    """The answer of a transaction."""
    found = {"header": head, "succeeded": result.succeeded,
             "responses": [_part(part, result.revision) for part in result.results]}  # fmt: skip
    return transacted({name: value for name, value in found.items() if value})


def _part(part: Any, revision: int) -> Answer:
    from raftkv.client import results

    head = {"revision": revision}
    told: Answer
    match part:
        case results.TxnPut(previous):
            told = {} if previous is None else {"prev_kv": kv(previous)}
            return {"response_put": {"header": head, **told}}
        case results.TxnDelete(deleted, previous):
            told = {"deleted": deleted, "prev_kvs": [kv(record) for record in previous]}
            name = "response_delete_range"
        case results.TxnRange(records, count, more):
            told = {"kvs": [kv(record) for record in records], "more": more, "count": count}
            name = "response_range"
        case results.TxnResult(succeeded=succeeded, results=inner):
            told = {"succeeded": succeeded, "responses": [_part(each, revision) for each in inner]}
            name = "response_txn"
        case _:
            told = {} if part is None else {"kvs": [kv(part)], "count": 1}
            name = "response_range"
    return {name: {"header": head, **{key: value for key, value in told.items() if value}}}


async def after(client: AsyncClient) -> Answer:
    """An answer that has a header and nothing else, for what has just been done."""
    return {"header": (await ask(client, "maintenance/status", {}))["header"]}


# ---- watching ------------------------------------------------------------------------------------


async def watch(
    session: Session, client: AsyncClient, body: Answer, count: int | None, interrupted: Any
) -> None:
    """Print what a watch tells, each message on a line, until it ends or `count` was told.

    When the connection breaks it goes on at another endpoint, behind what was printed.
    """
    from raftkv.client.retry import Kind
    from raftkv.client.transport import Call, network_errors
    from raftkv.errors import RaftkvError
    from raftkv.limits import HTTP_WAIT_SECONDS_MAX

    while True:
        call = Call("POST", "/v3/watch", Kind.READ, {"Content-Type": "application/json"},
                    json.dumps({"create_request": body}).encode(), ANY_STATUS)  # fmt: skip
        response = await client.open(call, stall=HTTP_WAIT_SECONDS_MAX)
        try:
            with network_errors(call, "the member", HTTP_WAIT_SECONDS_MAX):
                async with response:
                    while line := await response.content.readline():
                        answer = watched(understood(line))
                        if answer["Created"]:
                            body.setdefault("start_revision", answer["Header"]["revision"] + 1)
                            continue
                        if answer["Events"] or answer["Canceled"]:
                            show(session, "watch", answer)
                        if answer["Canceled"]:
                            raise Failure("watch is canceled by the server")
                        for event in answer["Events"]:
                            body["start_revision"] = event["kv"]["mod_revision"] + 1
                        if count is not None:
                            count -= len(answer["Events"])
                            if count <= 0:
                                return
        except RaftkvError as error:
            interrupted(error)
