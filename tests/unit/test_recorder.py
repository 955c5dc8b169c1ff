"""What a recorded client may claim to know: exactly what it was told."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from raftkv.client.errors import Unreachable
from raftkv.errors import LeadershipLost, OutcomeUnknown
from tests.linearizability.history import (
    Compare,
    Delete,
    History,
    KeyRecord,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Txn,
    TxnAnswer,
)
from tests.support.http_requests import decode, encode
from tests.support.processes import free_ports
from tests.support.recorder import PlainClient, judged

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PUT = Put(b"a/k", b"v")
SHOWN = {
    "key": "a/k", "value": "v", "encoding": "utf-8",
    "create_revision": 3, "mod_revision": 4, "version": 2, "lease": "00000000000000ff",
}  # fmt: skip
RECORD = KeyRecord(b"a/k", b"v", 3, 4, 2, 0xFF)


@asynccontextmanager
async def member(answering: Answering) -> AsyncIterator[str]:
    served: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over = asyncio.Event()
        served.append(over)
        try:
            await answering(reader, writer)
        except OSError:
            pass  # the client has hung up
        finally:
            writer.close()
            over.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        for over in served:
            await over.wait()
        await asyncio.sleep(0)  # the loop lets go of what was closed


async def outcome(url: str, request: Put | Range, seconds: float = 2.0) -> tuple[Outcome, str]:
    history = History()
    client = PlainClient(history, 1, lambda: [url], random.Random(0), seconds)
    operation = await client.ask(request)
    await client.close()
    assert history.operations == [operation] and operation.returned_us is not None
    return operation.outcome, operation.error


async def test_no_connection_is_a_refusal() -> None:
    [port] = free_ports(1)
    told, error = await outcome(f"http://127.0.0.1:{port}", PUT)
    assert told is Outcome.REFUSED and error.startswith("not sent")


async def test_an_end_without_an_answer_is_unknown() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with member(hang_up) as url:
        assert (await outcome(url, PUT))[0] is Outcome.UNKNOWN


async def test_half_an_answer_is_unknown() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"revision":')

    async with member(half) as url:
        assert (await outcome(url, PUT))[0] is Outcome.UNKNOWN


async def test_no_answer_in_time_is_unknown() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with member(say_nothing) as url:
        assert (await outcome(url, PUT, seconds=0.2))[0] is Outcome.UNKNOWN


async def test_each_request_is_sent_once_even_when_a_kept_connection_drops() -> None:
    requests = 0

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        for body in (b'{"revision":7}', None):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r")[0]))
            requests += 1
            if body is not None:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with member(answer_once) as url:
        history = History()
        client = PlainClient(history, 1, lambda: [url], random.Random(0))
        first, second = await client.ask(PUT), await client.ask(PUT)
        await client.close()
    assert first.outcome is Outcome.OK and first.answer == PutAnswer(7)
    assert second.outcome is Outcome.UNKNOWN
    assert requests == 2


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (503, {"code": "no_leader", "outcome": "refused"}, Outcome.REFUSED),
        (504, {"code": "outcome_unknown", "outcome": "unknown"}, Outcome.UNKNOWN),
        (500, {"code": "internal", "outcome": "failed"}, Outcome.UNKNOWN),
        (503, None, Outcome.UNKNOWN),
        (502, {"error": "not ours"}, Outcome.UNKNOWN),
    ],
)
def test_an_error_proves_what_it_says(status: int, body: object, told: Outcome) -> None:
    assert decode(PUT, status, body)[0] is told


def test_a_key_that_is_not_there_is_an_answer() -> None:
    body = {"code": "key_not_found", "outcome": "refused", "revision": 9}
    assert decode(Range(b"k"), 404, body)[:2] == (Outcome.OK, RangeAnswer(9, (), 0))


def test_a_transaction_there_and_back() -> None:
    request = Txn(
        (Compare(b"a/k", "mod", "=", 4), Compare(b"a/k", "value", "!=", b"w")),
        (Put(b"a/k", b"x"), Range(b"a/k"), Delete(b"a/", b"b")),
        (Range(b"a/", b"\0"),),
    )
    sent = encode(request)
    assert (sent.method, sent.target) == ("POST", "/api/txn")
    body = {
        "revision": 12,
        "succeeded": True,
        "results": [{"op": "put"}, {"op": "get", "item": SHOWN}, {"op": "delete", "deleted": 2}],
    }
    told, answer, _ = decode(request, 200, body)
    assert told is Outcome.OK and isinstance(answer, TxnAnswer)
    assert answer.revision == 12
    assert answer.answers[1] == RangeAnswer(0, (RECORD,), 1)
    body = {
        "revision": 12,
        "succeeded": False,
        "results": [{"op": "range", "items": [SHOWN], "count": 1, "more": False}],
    }
    answer = decode(request, 200, body)[1]
    assert isinstance(answer, TxnAnswer)
    assert answer.answers == (RangeAnswer(0, (RECORD,), more=False),)


def test_errors_of_our_own_client_are_judged_alike() -> None:
    assert judged(PUT, LeadershipLost("gone"))[0] is Outcome.REFUSED
    assert judged(PUT, Unreachable("nobody there"))[0] is Outcome.REFUSED
    assert judged(PUT, OutcomeUnknown("who knows"))[0] is Outcome.UNKNOWN
