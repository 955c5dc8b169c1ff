"""One HTTP call after another until one has an answer; sockets, endpoints and deadlines.

aiohttp repeats PUT and DELETE by itself when a connection drops; here that is switched off,
because only `raftkv.client.retry` may decide to send a write again.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yarl

from raftkv import __version__
from raftkv.client.errors import BadAnswer, Unreachable, error_from_problem
from raftkv.client.retry import Attempts, Kind
from raftkv.client.wire import loads
from raftkv.errors import ConfigError, OutcomeUnknown, RaftkvError, ReadTimedOut, check

DEFAULT_ENDPOINT = "http://127.0.0.1:2379"
CONNECT_SECONDS_MAX = 2.0
CONNECTIONS_MAX = 100
LARGE_BODY_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Call:
    """A request, complete but for the endpoint."""

    method: str
    target: str
    """Path and query, percent-encoded."""
    kind: Kind = Kind.READ
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    accept: tuple[int, ...] = (200, 201, 204)
    endpoint: str | None = None
    """Ask this endpoint and no other."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; raises `BadAnswer` otherwise."""
        return loads(self.body)


def parse_endpoints(endpoints: str | Sequence[str]) -> list[str]:
    """Endpoints as URLs without a trailing slash, in order, each once.

    Accepts a comma-separated text too, and ``host:port`` for ``http://host:port``. Raises
    `ConfigError` naming what is wrong.
    """
    given = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    urls: dict[str, None] = {}
    for item in given:
        text = item.strip().rstrip("/")
        if not text:
            continue
        url = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.path or parts.query or parts.fragment:
            raise ConfigError(f"the endpoint {item!r} is not of the form http://HOST:PORT")
        urls[url] = None
    if not urls:
        raise ConfigError("no endpoint was given; for example http://127.0.0.1:2379")
    return list(urls)


class Transport:
    """Connections to the endpoints, used by one event loop."""

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        timeout: float,
        patience: float,
    ) -> None:
        self.endpoints = parse_endpoints(endpoints)
        self.timeout = timeout
        self.patience = patience
        self._current = 0
        self._session: aiohttp.ClientSession | None = None
        # Jitter needs no secrecy, but it must differ between processes.
        self._chance = random.Random(secrets.randbits(64)).random  # noqa: S311

    async def close(self) -> None:
        """Close every connection. Calls under way fail."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, call: Call, timeout: float | None = None) -> Answer:
        """Send `call` until it is answered or `timeout` seconds are over.

        Raises the refusal of the cluster, `Unreachable`, `ReadTimedOut` for reads, and
        `OutcomeUnknown` for writes whose fate is open. A write is never done twice.
        """
        attempts, clock = self._attempts(call, timeout), asyncio.get_running_loop().time
        while True:
            endpoint = call.endpoint or self.current
            try:
                seconds = attempts.share(clock())
                with network_errors(call, endpoint, seconds):
                    async with asyncio.timeout(seconds):
                        async with await self._request(call, endpoint, seconds) as response:
                            return await _whole(response, call)
            except RaftkvError as error:
                await self._after(error, endpoint, attempts, clock())

    async def open(
        self, call: Call, *, stall: float, timeout: float | None = None
    ) -> aiohttp.ClientResponse:
        """A response whose body is still to come, for the caller to read and close.

        Opening it is retried like `call`. `stall` bounds the seconds between two pieces of the
        body. Wrap the reading in `network_errors`.
        """
        attempts, clock = self._attempts(call, timeout), asyncio.get_running_loop().time
        while True:
            endpoint = call.endpoint or self.current
            try:
                seconds = attempts.share(clock())
                with network_errors(call, endpoint, seconds):
                    async with asyncio.timeout(seconds):
                        response = await self._request(call, endpoint, seconds, stall)
                        if response.status in call.accept:
                            return response
                        async with response:
                            await _whole(response, call)
            except RaftkvError as error:
                await self._after(error, endpoint, attempts, clock())

    def moved(self, endpoint: str) -> None:
        """Prefer the endpoint after `endpoint` from now on, unless that was done already."""
        if self.endpoints[self._current] == endpoint:
            self._current = (self._current + 1) % len(self.endpoints)

    @property
    def current(self) -> str:
        """The endpoint that the next call goes to first."""
        return self.endpoints[self._current]

    def _attempts(self, call: Call, timeout: float | None) -> Attempts:
        now = asyncio.get_running_loop().time()
        return Attempts(
            kind=call.kind,
            endpoints=1 if call.endpoint else len(self.endpoints),
            started=now,
            deadline=now + (self.timeout if timeout is None else timeout),
            patience=self.patience,
            chance=self._chance,
        )

    async def _after(
        self, error: RaftkvError, endpoint: str, attempts: Attempts, now: float
    ) -> None:
        pause = attempts.failed(error, now)
        if pause is None:
            verdict = attempts.verdict()
            if isinstance(verdict, Unreachable) and attempts.endpoints > 1:
                tried = ", ".join(self.endpoints)
                verdict = Unreachable(f"none of {tried} can be reached", tried=self.endpoints)
            raise verdict from (error.__cause__ if verdict is error else error)
        self.moved(endpoint)
        await asyncio.sleep(pause)
        if asyncio.get_running_loop().time() >= attempts.deadline:
            # A busy process wakes up late. What is not sent any more cannot be in doubt.
            raise attempts.verdict() from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ttl_dns_cache=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"raftkv/{__version__}"},
                auto_decompress=False,
                skip_auto_headers=("Content-Type",),
            )
            check(hasattr(self._session, "_retry_connection"), "aiohttp has lost its retry switch")
            self._session._retry_connection = False
        return self._session

    async def _request(
        self, call: Call, endpoint: str, seconds: float, stall: float | None = None
    ) -> aiohttp.ClientResponse:
        return await self._open_session().request(
            call.method,
            yarl.URL(endpoint + call.target, encoded=True),
            headers=call.headers,
            # From memory all the same, but aiohttp sends a file piece by piece.
            data=call.body
            if len(call.body or b"") < LARGE_BODY_BYTES
            else BytesIO(call.body or b""),
            # A little less than the whole, so that a connection which never opens is told apart
            # from an answer which never comes.
            timeout=aiohttp.ClientTimeout(
                sock_connect=min(seconds * 0.9, CONNECT_SECONDS_MAX), sock_read=stall
            ),
            allow_redirects=False,
        )


@contextmanager
def network_errors(call: Call, endpoint: str, seconds: float) -> Iterator[None]:
    """Turn failures of the network into errors that tell what they prove."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        text = _connect_failure(error)
        raise Unreachable(f"{endpoint} cannot be reached: {text}", endpoint=endpoint) from error
    except TimeoutError as error:
        text = f"{endpoint} did not answer within {seconds:.3g} s"
        raise _interrupted(call, text, endpoint) from error
    except (aiohttp.ClientError, OSError) as error:
        text = f"{endpoint} broke the connection off: {error or type(error).__name__}"
        raise _interrupted(call, text, endpoint) from error


def _connect_failure(error: aiohttp.ClientError) -> str:
    if not isinstance(error, aiohttp.ClientConnectorError):
        return "the connection timed out"
    if isinstance(error, aiohttp.ClientConnectorDNSError) or not error.errno or error.errno < 0:
        return "there is no such host"
    return os.strerror(error.errno).lower()


def origin(response: aiohttp.ClientResponse) -> str:
    """The endpoint that gave `response`."""
    return f"{response.url.scheme}://{response.url.authority}"


def _interrupted(call: Call, text: str, endpoint: str) -> RaftkvError:
    if call.kind is Kind.READ:
        return ReadTimedOut(text, endpoint=endpoint)
    return OutcomeUnknown(f"{text}; the write may have taken effect", endpoint=endpoint)


async def _whole(response: aiohttp.ClientResponse, call: Call) -> Answer:
    body = await response.read()
    if response.status in call.accept:
        return Answer(response.status, response.headers, body)
    writes = call.kind is not Kind.READ
    endpoint = origin(response)
    try:
        if response.content_type != "application/problem+json":
            raise BadAnswer("not a problem document")
        problem = loads(body)
    except BadAnswer as error:
        text = f"{endpoint} answered {response.status} {response.reason or ''}".rstrip()
        if writes and response.status >= 500:
            text = f"{text}; the write may have taken effect"
            raise OutcomeUnknown(text, endpoint=endpoint) from error
        text = f"{text}, which is not how a raftkv member answers"
        raise BadAnswer(text, endpoint=endpoint) from error
    after = response.headers.get("Retry-After", "")
    if after.isdigit():
        problem["retry_after"] = int(after)
    raise error_from_problem({**problem, "endpoint": endpoint}, writes=writes)
