"""Clients of a real cluster that write down what they asked and what they learned.

Two kinds ask: `PlainClient` sends each request once, over connections that hide nothing;
`LibraryClient` goes through our own Python client, whose retries under an idempotency key must
look like one request done at most once.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from typing import Any, Protocol

import aiohttp

from raftkv.client.client import AsyncClient
from raftkv.client.retry import Kind
from raftkv.client.sse import EventParser, ServerEvent
from raftkv.client.transport import Call
from raftkv.client.wire import loads
from raftkv.errors import RaftkvError, Refused
from tests.linearizability.history import (
    Answer,
    History,
    KeyRecord,
    Operation,
    Outcome,
    Range,
    RangeAnswer,
    Request,
    WatchEvent,
    WatchLog,
    WatchResponse,
)
from tests.support.http_line import Broken, Line, NotSent
from tests.support.http_requests import Verdict, decode, encode, record

Urls = Callable[[], list[str]]
"""The client URLs of the members there are now."""


def now_us() -> int:
    """The clock of all recordings."""
    return time.monotonic_ns() // 1000


class Asks(Protocol):
    """A client that records."""

    async def ask(self, request: Request) -> Operation:
        """Send `request`, and answer with its record once it has ended."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class PlainClient:
    """One client that sends each request once, to a member drawn anew now and then."""

    def __init__(
        self,
        history: History,
        number: int,
        urls: Urls,
        chance: random.Random,
        seconds: float = 2.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`seconds` for each request; `context`: for https."""
        self._context = context
        self._history = history
        self._number = number
        self._urls = urls
        self._chance = chance
        self._seconds = seconds
        self._lines: dict[str, Line] = {}
        self._url = ""

    async def ask(self, request: Request) -> Operation:
        """See `Asks`."""
        urls = self._urls()
        if self._url not in urls or self._chance.random() < 0.2:
            self._url = self._chance.choice(urls)
        line = self._lines.setdefault(self._url, Line(self._url, self._context))
        http = encode(request)
        token = self._history.begin(self._number, request, now_us())
        try:
            reply = await line.request(
                http.method, http.target, http.body, http.headers, self._seconds
            )
        except NotSent as error:
            verdict: Verdict = Outcome.REFUSED, None, f"not sent: {error}"
        except Broken as error:
            verdict = Outcome.UNKNOWN, None, str(error)
        else:
            verdict = decode(request, reply.status, reply.json())
        self._history.end(token, now_us(), *verdict)
        if verdict[0] is not Outcome.OK:
            self._url = ""
        return self._history.operations[token]

    async def close(self) -> None:
        """See `Asks`."""
        for line in self._lines.values():
            line.close()


class LibraryClient:
    """One client that asks through `raftkv.client`, with its retries and idempotency keys."""

    def __init__(
        self, history: History, number: int, urls: Urls, chance: random.Random, seconds: float = 6.0
    ) -> None:
        self._history = history
        self._number = number
        self._urls = urls
        self._chance = chance
        self._seconds = seconds
        self._client: AsyncClient | None = None

    async def ask(self, request: Request) -> Operation:
        """See `Asks`."""
        if self._client is None or set(self._client.endpoints) != set(self._urls()):
            await self.close()
            urls = self._urls()
            self._chance.shuffle(urls)
            self._client = AsyncClient(urls)
        http = encode(request)
        headers = dict(http.headers)
        if not http.reads:
            headers["Idempotency-Key"] = f"{self._chance.getrandbits(96):024x}"
        call = Call(
            http.method,
            http.target,
            Kind.READ if http.reads else Kind.KEYED,
            headers,
            http.body or None,
        )
        token = self._history.begin(self._number, request, now_us())
        try:
            answer = await self._client.transport.call(call, self._seconds)
        except RaftkvError as error:
            verdict = judged(request, error)
        else:
            verdict = decode(request, answer.status, loads(answer.body))
        self._history.end(token, now_us(), *verdict)
        return self._history.operations[token]

    async def close(self) -> None:
        """See `Asks`."""
        if self._client is not None:
            await self._client.close()


def judged(request: Request, error: RaftkvError) -> Verdict:
    """What an error of our own client tells about `request`."""
    if error.code == "key_not_found" and isinstance(request, Range):
        return Outcome.OK, RangeAnswer(int(error.facts["revision"]), (), 0), ""
    outcome = Outcome.REFUSED if isinstance(error, Refused) else Outcome.UNKNOWN
    return outcome, None, f"{error.code}: {error}"


class WatchRecorder:
    """A watch that goes on at another member whenever it breaks, and every few seconds anyway.

    Each connection is a log of its own; together they must tell everything exactly once.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Urls,
        chance: random.Random,
        start: bytes,
        end: bytes | None,
        *,
        prev_kv: bool = False,
        without: str = "",
        from_revision: int = 0,
        life_seconds: tuple[float, float] = (1.0, 8.0),
    ) -> None:
        """`end` as in histories; `without`: "put" or "delete" events left out."""
        self._session = session
        self._urls = urls
        self._chance = chance
        self._start, self._end = start, end
        self._prev = prev_kv
        self._without = without
        self._life = life_seconds
        self._next = from_revision
        self.logs: list[WatchLog] = []
        self.open_logs: list[WatchLog] = []
        """The log of the connection there is now."""

    @property
    def revision(self) -> int:
        """Everything up to this one was told."""
        return self._next - 1

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            log = WatchLog(
                self._start,
                self._end,
                self._next,
                self._prev,
                frozenset((self._without,)) if self._without else frozenset(),
                [],
            )
            self.open_logs = [log]
            try:
                async with asyncio.timeout(self._chance.uniform(*self._life)):
                    await self._once(self._chance.choice(self._urls()), log)
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            finally:
                self.open_logs = []
                if log.responses:
                    self.logs.append(log)
            await asyncio.sleep(0.02)

    async def _once(self, url: str, log: WatchLog) -> None:
        parameters = {"from": str(self._next)} if self._next else {}
        if self._end is None:
            parameters["key"] = self._start.decode()
        else:
            parameters["start"] = self._start.decode()
            if self._end != b"\0":
                parameters["end"] = self._end.decode()
        if self._prev:
            parameters["prev"] = "1"
        if self._without:
            parameters["filter"] = "delete" if self._without == "put" else "put"
        headers = {"Accept": "text/event-stream"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=1.0)
        async with self._session.get(
            url + "/api/watch", params=parameters, headers=headers, timeout=timeout
        ) as answer:
            if answer.status == 410:
                oldest = int((await answer.json(content_type=None))["oldest_revision"])
                log.responses.append(
                    WatchResponse(now_us(), oldest, compact_revision=oldest, cancelled=True)
                )
                self._next = oldest
                return
            if answer.status != 200:
                return
            parser = EventParser()
            waiting: list[WatchEvent] = []
            async for chunk in answer.content.iter_any():
                for message in parser.feed(chunk):
                    if self._take(message, waiting, log):
                        return

    def _take(self, message: ServerEvent, waiting: list[WatchEvent], log: WatchLog) -> bool:
        """Note one message; True: it was the last."""
        body = loads(message.data)
        kind = body["type"]
        if kind == "error":
            return True
        revision = int(body["revision"])
        if kind == "ready":
            # Says where the watch stands, not that a start in the future was reached.
            if not self._next:
                self._next = log.start_revision = revision + 1
            return False
        if kind == "progress":
            log.responses.append(WatchResponse(now_us(), revision, progress=True))
            self._next = max(self._next, revision + 1)
            return False
        waiting.append(watch_event(body))
        if message.id is not None:
            log.responses.append(WatchResponse(now_us(), revision, tuple(waiting)))
            waiting.clear()
            self._next = revision + 1
        return False


def watch_event(body: dict[str, Any]) -> WatchEvent:
    """The API's `Event` object."""
    previous = record(body["previous"]) if body.get("previous") else None
    revision = int(body["revision"])
    if body["type"] == "delete":
        gone = KeyRecord(body["key"].encode(), b"", 0, revision, 0)
        return WatchEvent("delete", gone, previous)
    return WatchEvent("put", record({**body, "mod_revision": revision}), previous)


def answer_of(operation: Operation) -> Answer | None:
    """The answer of an operation that is known to have happened."""
    return operation.answer if operation.outcome is Outcome.OK else None
