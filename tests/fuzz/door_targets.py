"""Decoders of what clients send to a member, and of what a member answers to the client."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from raftkv.api.http.connection import HttpConnection
from raftkv.api.http.door import HttpDoor
from raftkv.api.http.parser import Request, RequestParser
from raftkv.api.http.refusals import (
    BadHttp,
    ExpectationFailed,
    HeadersTooLarge,
    HttpVersionUnsupported,
    TargetTooLong,
)
from raftkv.api.listener import Listener, _Sniffer
from raftkv.api.outcomes import HTTP_REASONS
from raftkv.client.errors import BadAnswer, error_from_problem
from raftkv.client.results import Event, Instance, Member, Record, Status, records, txn_result
from raftkv.client.sse import EventParser
from raftkv.client.wire import loads, understood
from raftkv.errors import RaftkvError, TooLarge
from raftkv.limits import HTTP_BODY_BYTES_MAX
from raftkv.server.local import LocalStore
from tests.fuzz.engine import Read, Target, plain
from tests.fuzz.mutate import json_tree, lines, tokens
from tests.fuzz.test_grpc_codec import new_server, run_case

# -- HTTP, the message ---------------------------------------------------------------------------


def request(method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    """An HTTP/1.1 request."""
    head = [f"{method} {target} HTTP/1.1", "Host: a", *headers]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


CHUNKED = (
    b"POST /api/txn HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n7;name=value\r\n"
    b'{"if":[\r\n3\r\n]}\n\r\n0\r\nTrailer: x\r\n\r\n'
)
HTTP_WORDS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"%", b"%00", b"%zz", b"?", b"&", b"=", b"/",
    b"\xff", b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"HTTP/9.9", b"GET ", b"PRI * ", b"CONNECT ",
    b"Content-Length: 5\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"content-length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Host: b\r\n",
    b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: h2c\r\n", b"ffffffffffffffff\r\n", b"0\r\n\r\n", b"x" * 9000, b"a: b\r\n" * 140,
    b'If-Match: "5"\r\n', b"If-None-Match: *\r\n", b"Idempotency-Key: k\r\n", b"Range: bytes=0-1",
    b"Accept: text/event-stream\r\n", b"Origin: http://b\r\n", b"http://h/api/kv/", b"/../", b"//",
    b"key_encoding=base64", b"revision=9999999999999999999", b"limit=0", b"nan", b"inf", b"1e999",
)  # fmt: skip


def _parser_samples() -> list[bytes]:
    return [
        request("GET", "/api/kv/a?wait=1"),
        request("PUT", "/api/kv/a", b"value", "Content-Type: x", "Expect: 100-continue"),
        CHUNKED,
        request("GET", "/a") + request("PUT", "/b", b"body") + CHUNKED,
        b"GET / HTTP/1.0\r\n\r\n",
    ]


def _read_http(data: bytes) -> bool:
    """At once or in pieces: the same requests, and the refusal at the same place, if any."""
    whole = _requests([data])
    rng = random.Random(data)
    pieces = []
    at = 0
    while at < len(data):
        step = rng.choice((1, 2, 7, 50, 1000))
        pieces.append(data[at : at + step])
        at += step
    parts = _requests(pieces)
    assert _shown(parts) == _shown(whole)
    for got in whole:
        assert len(got.body) <= HTTP_BODY_BYTES_MAX
        if got.refusal is not None:
            assert got is whole[-1]
            raise got.refusal
    return True


def _requests(pieces: list[bytes]) -> list[Request]:
    found: list[Request] = []
    parser = RequestParser(found.append, lambda: None)
    for piece in pieces:
        parser.feed(piece)
    parser.close()
    return found


def _shown(requests: list[Request]) -> list[Any]:
    """What must not depend on how the bytes were cut."""
    return [
        (got.method, got.path, got.query, got.headers, got.body, got.keep_alive)
        if got.refusal is None
        else "refused"
        for got in requests
    ]


# -- HTTP, the whole door ------------------------------------------------------------------------

JSON = "Content-Type: application/json"
TXN = {
    "if": [
        {"key": "a", "target": "value", "op": "=", "operand": "1"},
        {"prefix": "b", "target": "exists", "operand": False},
        {"key": "a", "target": "lease", "operand": None},
        {
            "key": "YQ==",
            "key_encoding": "base64",
            "target": "mod_revision",
            "op": ">",
            "operand": 2,
        },
    ],
    "then": [
        {"op": "put", "key": "a", "value": "Mg==", "encoding": "base64", "prev": True},
        {"op": "range", "prefix": "", "limit": 5, "keys_only": True},
    ],
    "else": [
        {"op": "get", "key": "a"},
        {"op": "delete", "start": "b", "end": "c", "prev": True},
        {"op": "txn", "if": [], "then": [{"op": "put", "key": "d", "value": "x"}], "else": []},
        {"op": "range", "start": "a", "end": "z", "count_only": True},
    ],
}
REGISTRATION = {
    "address": "10.0.0.1", "port": 80, "tags": ["a", "b"], "meta": {"zone": "1"}, "weight": 2,
    "ttl": 10, "owner": "me",
}  # fmt: skip


def _door_samples() -> list[bytes]:
    def post(target: str, body: Any, *headers: str, method: str = "POST") -> bytes:
        return request(method, target, orjson.dumps(body), JSON, *headers)

    put = request("PUT", "/api/kv/a", b"1", "Idempotency-Key: once")
    return [
        put + request("GET", "/api/kv/a"),
        put + request("PUT", "/api/kv/a?prev", b"2", 'If-Match: "2"'),
        put
        + request("GET", "/api/kv?prefix=a&limit=2")
        + request("GET", "/api/kv?start=YQ&key_encoding=base64"),
        request("PUT", "/api/kv/b%2Fc", b"\xff\xfe") + request("DELETE", "/api/kv/b%2Fc?prev=1"),
        post("/api/txn", TXN),
        put + post("/api/txn", TXN, "Idempotency-Key: t"),
        post("/api/leases", {"ttl": 60}) + request("GET", "/api/leases"),
        post("/api/leases", {"ttl": 60, "id": "7"}) + request("PUT", "/api/kv/l?lease=7", b"x"),
        post("/api/services/web/one", REGISTRATION, method="PUT")
        + post("/api/services/web/one/drain", {"draining": True})
        + request("POST", "/api/services/web/one/heartbeat")
        + request("GET", "/api/services/web")
        + request("DELETE", "/api/services/web/one?owner=me"),
        request("GET", "/api/watch?prefix=a&from=1", b"", "Accept: text/event-stream"),
        put + request("GET", "/api/kv/a?wait=3") + put,
        request("GET", "/api/status") + request("GET", "/api/members") + request("GET", "/health"),
        post("/api/compact", {"revision": 1}),
        put + request("HEAD", "/api/kv/a") + request("GET", "/api/snapshot"),
        post("/api/leases", {"ttl": 60, "id": "7"})
        + request("POST", "/api/leases/7/keepalive")
        + request("DELETE", "/api/leases/7"),
        request("GET", "/api/watch/services/web") + request("GET", "/metrics"),
        request("DELETE", "/api/kv?start=a&end=b&prev"),
    ]  # fmt: skip


class _Wire(asyncio.Transport):
    """A transport that nobody listens to: keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[bytes] = []
        self.closing = False
        self.protocol: Any = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        self.out.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ([A-Za-z ]+)\r\n")
TURNS_MAX = 12


class _Door:
    """One HTTP door whose store is made anew for each input."""

    def __init__(self) -> None:
        self.problems: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.problems.append(context))
        self.listener = Listener(lambda listener: HttpConnection(self.door, listener))

    async def read(self, data: bytes) -> bool:
        store = LocalStore()
        self.door = HttpDoor(store)
        self.door.listener = self.listener
        wire = _Wire()
        sniffer = _Sniffer(self.listener)
        wire.protocol = sniffer
        sniffer.connection_made(wire)
        rng = random.Random(len(data))
        cut = rng.randrange(len(data) + 1) if len(data) % 3 == 0 else len(data)
        for piece in (data[:cut], data[cut:]):
            if piece and not wire.closing:
                wire.protocol.data_received(piece)
        written = -1
        for _ in range(TURNS_MAX):
            await asyncio.sleep(0)
            if len(wire.out) == written:
                break
            written = len(wire.out)
        wire.protocol.connection_lost(None)
        while self.door.tasks:
            await asyncio.sleep(0)
        store.close()
        await asyncio.sleep(0)
        assert not self.problems, self.problems
        assert not self.listener.connections
        return self._judge(b"".join(wire.out))

    def _judge(self, out: bytes) -> bool:
        """Every status is one that the door knows, and none says that the member failed."""
        counted = [s for by in self.door.counters.requests.values() for s in by]
        assert not out or STATUS.match(out) or out.startswith(b"HTTP/1.1 100")
        assert 500 not in counted and set(counted) <= HTTP_REASONS.keys(), counted
        return all(status < 400 for status in counted)


@contextmanager
def _door() -> Iterator[Read]:
    with asyncio.Runner() as runner:

        async def make() -> _Door:
            return _Door()

        door = runner.run(make())
        loop = runner.get_loop()
        yield lambda data: loop.run_until_complete(door.read(data))


def json_body(rng: random.Random, data: bytes) -> bytes:
    """Spoils one value in the body of the last request, whose length is made right again."""
    head, blank, body = data.rpartition(b"\r\n\r\n")
    if not body:
        return tokens(HTTP_WORDS)(rng, data)
    body = json_tree(rng, body)
    head = re.sub(rb"Content-Length: \d+\Z", b"Content-Length: %d" % len(body), head)
    return head + blank + body


# -- what the client reads -----------------------------------------------------------------------

RECORD = {
    "key": "a", "value": "1", "encoding": "utf-8", "create_revision": 2, "mod_revision": 3,
    "version": 2, "lease": None,
}  # fmt: skip
INSTANCE = {
    "service": "web", "instance": "one", "address": "10.0.0.1", "port": 80, "tags": ["a"],
    "meta": {"k": "v"}, "weight": 1, "ttl": 10, "status": "passing", "owner": "me",
    "lease": "0000000000000007", "create_revision": 5, "mod_revision": 5,
}  # fmt: skip
ANSWERS: tuple[tuple[Any, Callable[[Any], object]], ...] = (
    (RECORD, Record.from_json),
    ({"items": [RECORD, RECORD]}, lambda body: records(body.get("items"))),
    ({"type": "put", "revision": 3, **RECORD, "previous": RECORD}, Event.from_json),
    ({"type": "delete", "revision": 3, "key": "/w==", "key_encoding": "base64"}, Event.from_json),
    (
        {
            "revision": 4,
            "succeeded": True,
            "results": [
                {"op": "put", "previous": RECORD},
                {"op": "delete", "deleted": 1, "previous": [RECORD]},
                {"op": "get", "item": None},
                {"op": "range", "items": [RECORD], "count": 1, "more": False},
                {"op": "txn", "succeeded": False, "results": []},
            ],
        },
        lambda body: txn_result(body, body.get("revision")),
    ),
    (INSTANCE, Instance.from_json),
    ({"member_id": "1", "peer_urls": ["http://a:1"], "role": "voter"}, Member.from_json),
    ({"member_id": "1", "cluster_id": "2", "term": 3, "alarms": ["NOSPACE"]}, Status.from_json),
    (
        {"code": "no_space", "outcome": "refused", "detail": "full", "status": 507, "retry": 1},
        lambda body: error_from_problem(body, writes=True),
    ),
)


def _answer_samples() -> list[bytes]:
    return [bytes((at,)) + orjson.dumps(body) for at, (body, _) in enumerate(ANSWERS)]


def _read_answer(data: bytes) -> bool:
    """The first byte says what was asked."""
    if not data or data[0] >= len(ANSWERS):
        return False
    with understood():
        got = ANSWERS[data[0]][1](loads(data[1:]))
    assert got is not None and (not isinstance(got, RaftkvError) or got.code)
    return True


def _read_events(data: bytes) -> bool:
    """At once or in pieces: the same events."""
    whole = list(EventParser().feed(data))
    parser = EventParser()
    rng = random.Random(data)
    found = []
    at = 0
    while at < len(data):
        step = rng.choice((1, 2, 7, 50))
        found += parser.feed(data[at : at + step])
        at += step
    assert found == whole
    return bool(whole)


_EVENTS = (
    b': a comment\n\nid: 7\nevent: put\ndata: {"a":1}\ndata: more\n\n'
    b"event: progress\r\ndata:{}\r\n\r\nretry: 10\n\ndata\n\n"
)


def _read_grpc(data: bytes) -> bool:
    """A conversation of `tests.fuzz.test_grpc_codec`, made from this seed."""
    return run_case(int.from_bytes(data, "big"), new_server()) == "accepted"


TARGETS = (
    Target(
        "http-parser",
        "api/http/parser.py: RequestParser",
        _parser_samples,
        plain(_read_http),
        (
            BadHttp, TargetTooLong, HeadersTooLarge, HttpVersionUnsupported, ExpectationFailed,
            TooLarge,
        ),
        spoils=(tokens(HTTP_WORDS), lines),
    ),
    Target(
        "http-door",
        "api/listener.py, api/http: bytes to commands, results to bytes; a problem is a refusal",
        _door_samples,
        _door,
        spoils=(tokens(HTTP_WORDS), json_body, lines),
        memory_factor=200,
        pytest_executions=1500,
    ),
    Target(
        "grpc",
        "api/grpc: HTTP/2 frames, header blocks, messages; GOAWAY and RST_STREAM are refusals",
        list,
        plain(_read_grpc),
        make=lambda rng: rng.randbytes(6),
        memory_factor=0,
        pytest_executions=500,
    ),
    Target(
        "client-answers",
        "client/wire.py, results.py, errors.py: JSON answers and problems",
        _answer_samples,
        plain(_read_answer),
        (BadAnswer,),
        spoils=(lambda rng, data: data[:1] + json_tree(rng, data[1:]),),
    ),
    Target(
        "client-events",
        "client/sse.py: EventParser",
        lambda: [_EVENTS],
        plain(_read_events),
        (BadAnswer,),
        spoils=(lines, tokens((b"\n", b"\r\n", b"data:", b"id:", b"\0", b":", b"\xff"))),
    ),
)  # fmt: skip
