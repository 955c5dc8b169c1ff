"""One HTTP call after another until one has an answer; sockets, endpoints and deadlines.

aiohttp repeats PUT and DELETE by itself when a connection drops; here that is switched off,
because only `raftkv.client.retry` may decide to send a write again.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yarl

from raftkv import __version__
from raftkv.checks import check
from raftkv.client.errors import BadAnswer, Unreachable, error_from_problem
from raftkv.client.retry import ATTEMPT_SECONDS_MIN, Attempts, Kind
from raftkv.client.tls import TlsOptions, refusal
from raftkv.client.wire import dumps, loads
from raftkv.errors import (
    AuthNotEnabled,
    ConfigError,
    InvalidAuthToken,
    OutcomeUnknown,
    RaftkvError,
    ReadTimedOut,
)

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
class Credentials:
    """Who a client is: a user with a password, or a token that somebody got elsewhere."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if bool(self.user) is not bool(self.password):
            raise ConfigError("a user needs a password, and a password a user")
        if self.user and self.token:
            raise ConfigError("give either a user and a password, or a token")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; raises `BadAnswer` otherwise."""
        return loads(self.body)


def parse_endpoints(endpoints: str | Sequence[str], scheme: str = "http") -> list[str]:
    """Endpoints as URLs without a trailing slash, in order, each once.

    Accepts a comma-separated text too, and ``host:port`` for ``scheme://host:port``. Raises
    `ConfigError` naming what is wrong.
    """
    given = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    urls: dict[str, None] = {}
    for item in given:
        text = item.strip().rstrip("/")
        if not text:
            continue
        url = text if "://" in text else f"{scheme}://{text}"
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
        credentials: Credentials | None = None,
        tls: TlsOptions | None = None,
    ) -> None:
        self._credentials = credentials or Credentials()
        self._token = self._credentials.token or None
        self._logging_in = asyncio.Lock()
        self.endpoints = parse_endpoints(endpoints, "https" if tls else "http")
        https = any(endpoint.startswith("https:") for endpoint in self.endpoints)
        self._context = (tls or TlsOptions()).context() if https else True
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
        token = ""
        while True:
            endpoint = call.endpoint or self.current
            try:
                seconds = attempts.share(clock())
                with network_errors(call, endpoint, seconds):
                    async with asyncio.timeout(seconds):
                        token = await self._log_in(endpoint, seconds)
                        async with await self._request(call, endpoint, seconds, token) as response:
                            return await _whole(response, call)
            except InvalidAuthToken as error:
                await self._refused(error, token, endpoint, attempts, clock())
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
        token = ""
        while True:
            endpoint = call.endpoint or self.current
            try:
                seconds = attempts.share(clock())
                with network_errors(call, endpoint, seconds):
                    async with asyncio.timeout(seconds):
                        token = await self._log_in(endpoint, seconds)
                        response = await self._request(call, endpoint, seconds, token, stall)
                        if response.status in call.accept:
                            return response
                        async with response:
                            await _whole(response, call)
            except InvalidAuthToken as error:
                await self._refused(error, token, endpoint, attempts, clock())
            except RaftkvError as error:
                await self._after(error, endpoint, attempts, clock())

    def forget_token(self) -> None:
        """Log in again before the next call, if this client can."""
        if self._credentials.user:
            self._token = None

    async def _log_in(self, endpoint: str, seconds: float) -> str:
        """The token to send; empty for none. Logs in at `endpoint` when there is none yet.

        Concurrent calls share one login. A store without access control takes no token, and says
        so; should it be switched on later, a call is refused and comes here again.
        """
        if self._token is None and self._credentials.user:
            async with self._logging_in:
                if self._token is None:
                    self._token = await self._new_token(endpoint, seconds)
        return self._token or ""

    async def _new_token(self, endpoint: str, seconds: float) -> str:
        body = {"user": self._credentials.user, "password": self._credentials.password}
        headers = {"Content-Type": "application/json"}
        call = Call("POST", "/api/auth/login", Kind.READ, headers, dumps(body))
        try:
            with network_errors(call, endpoint, seconds):
                async with await self._request(call, endpoint, seconds, "") as response:
                    return str((await _whole(response, call)).json()["token"])
        except AuthNotEnabled:
            return ""

    async def _refused(
        self, error: InvalidAuthToken, token: str, endpoint: str, attempts: Attempts, now: float
    ) -> None:
        """A call was refused for its token. Nothing was done: log in again, once a call."""
        if self._credentials.user and attempts.logs_in_again:
            attempts.logs_in_again = False
            if self._token == token:
                self._token = None
        else:
            await self._after(error, endpoint, attempts, now)

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
        if asyncio.get_running_loop().time() + ATTEMPT_SECONDS_MIN >= attempts.deadline:
            # A busy process wakes up late. What is not sent any more cannot be in doubt.
            raise attempts.verdict() from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=CONNECTIONS_MAX, ttl_dns_cache=30, ssl=self._context
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"raftkv/{__version__}"},
                auto_decompress=False,
                skip_auto_headers=("Content-Type",),
            )
            check(hasattr(self._session, "_retry_connection"), "aiohttp has lost its retry switch")
            self._session._retry_connection = False
        return self._session

    async def _request(
        self,
        call: Call,
        endpoint: str,
        seconds: float,
        token: str,
        stall: float | None = None,
    ) -> aiohttp.ClientResponse:
        headers = {**call.headers, "Authorization": f"Bearer {token}"} if token else call.headers
        return await self._open_session().request(
            call.method,
            yarl.URL(endpoint + call.target, encoded=True),
            headers=headers,
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
        if (refused := refusal(error)) is not None:
            raise Unreachable(f"{endpoint}: {refused}", endpoint=endpoint) from error
        text = f"{endpoint} broke the connection off: {error or type(error).__name__}"
        raise _interrupted(call, text, endpoint) from error


def _connect_failure(error: aiohttp.ClientError) -> str:
    if not isinstance(error, aiohttp.ClientConnectorError):
        return "the connection timed out"
    if isinstance(error, aiohttp.ClientSSLError):
        return _tls_failure(error)
    if isinstance(error, aiohttp.ClientConnectorDNSError) or not error.errno or error.errno < 0:
        return "there is no such host"
    return os.strerror(error.errno).lower()


def _tls_failure(error: aiohttp.ClientSSLError) -> str:
    cause: BaseException = getattr(error, "certificate_error", None) or error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {cause.verify_message.rstrip('.')}"
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS"
    return refusal(cause) or f"no TLS connection: {cause}"


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
