"""Bytes to HTTP/1.1 requests (RFC 9112), within bounds. No sockets, no clock, no event loop.

`RequestParser.feed` takes whatever the network delivered and calls `deliver` once for each complete
request, in order, from inside `feed`. A message that cannot be read is delivered too, as a
`Request` whose `refusal` says why; it is always the last one, and bytes after it are ignored.

`httptools` (llhttp) does the tokenising and refuses what smuggles requests: two lengths, a length
beside a chunked body, bare line feeds, folded headers, blanks before the colon. It sets no bounds
of its own, so they are here: the target, the headers (count and bytes), the body (its declared
length before the first byte of it is taken), and the wire bytes of a chunked body with its
extensions and trailers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httptools

from raftkv.api.http.refusals import (
    BadHttp,
    ExpectationFailed,
    HeadersTooLarge,
    HttpVersionUnsupported,
    TargetTooLong,
)
from raftkv.errors import Refused, TooLarge
from raftkv.limits import (
    HTTP_BODY_BYTES_MAX,
    HTTP_HEADER_BYTES_MAX,
    HTTP_HEADERS_MAX,
    HTTP_TARGET_BYTES_MAX,
)

HEAD_BYTES_MAX: Final = HTTP_TARGET_BYTES_MAX + HTTP_HEADER_BYTES_MAX
CHUNKED_WIRE_BYTES_MAX: Final = 2 * HTTP_BODY_BYTES_MAX
HEADER_OVERHEAD_BYTES: Final = 4
"""A header's colon, blank and line end, counted against the limit."""

SINGLE_HEADERS: Final = frozenset((b"host", b"content-type", b"origin", b"authorization"))
"""Headers that must not come twice: the two readings of such a message could differ."""


class _Stop(Exception):
    """Leaves httptools from a callback once a refusal has been recorded."""


class Request:
    """One request as it was sent. `headers` has lower-case names; repeated ones are joined."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "query", "refusal", "version")

    def __init__(
        self,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: dict[bytes, bytes],
        body: bytes,
        version: str,
        keep_alive: bool,
        refusal: Refused | None = None,
    ) -> None:
        self.method = method
        self.path = path
        """The target's path, still percent-encoded, without the query."""
        self.query = query
        """What follows the first question mark, still percent-encoded."""
        self.headers = headers
        self.body = body
        self.version = version
        self.keep_alive = keep_alive
        self.refusal = refusal


class RequestParser:
    """A connection's reading half.

    `deliver(request)` is called for every complete request. `expects()` is called when a head asks
    for ``100 Continue`` before its body comes.
    """

    __slots__ = (
        "_body",
        "_deliver",
        "_expects",
        "_head_bytes",
        "_header_bytes",
        "_headers",
        "_in_head",
        "_parser",
        "_refusal",
        "_seen_headers",
        "_target",
        "_wire_bytes",
        "begun",
        "finished",
        "mid_message",
    )

    def __init__(
        self, deliver: Callable[[Request], None], expects: Callable[[], None] | None = None
    ) -> None:
        self._deliver = deliver
        self._expects = expects
        self._parser = httptools.HttpRequestParser(self)
        self._refusal: Refused | None = None
        self.finished = False
        """No further request will be delivered."""
        self.mid_message = False
        """The first byte of a message has come, its last has not."""
        self.begun = 0
        """Messages begun so far: tells one that is slow from many that follow each other."""
        self._in_head = False
        self._head_bytes = 0
        self._wire_bytes = 0
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._seen_headers = 0
        self._body: bytes | bytearray = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection. Never raises on account of what they are."""
        if self.finished:
            return
        was_in_body = self.mid_message and not self._in_head
        was_idle = not self.mid_message
        begun = self.begun
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # An upgrade that is not taken up: the request was answered as it stands, and the
            # bytes after it belong to a protocol that was never agreed on.
            self.finished = True
        except httptools.HttpParserError as error:
            if not self.finished:
                self._fail(self._refusal or BadHttp(f"Not a valid HTTP/1.1 message: {error}"))
            return
        # What goes on growing over several deliveries has to be counted. Where a message began
        # in the midst of `data` its share is not known, and small enough to leave out.
        if self._in_head:
            if self.begun == begun:
                self._head_bytes += len(data)
            else:
                self._head_bytes = len(data) if was_idle and self.begun == begun + 1 else 0
            if self._head_bytes > HEAD_BYTES_MAX:
                self._fail(
                    HeadersTooLarge("The request's head never ends", limit=HTTP_HEADER_BYTES_MAX)
                    if self._target_complete()
                    else TargetTooLong("The target never ends", limit=HTTP_TARGET_BYTES_MAX)
                )
        elif self.mid_message:
            self._wire_bytes = self._wire_bytes + len(data) if was_in_body else 0
            if self._wire_bytes > CHUNKED_WIRE_BYTES_MAX:
                self._fail(TooLarge("The chunked body never ends", limit_bytes=HTTP_BODY_BYTES_MAX))

    def timed_out(self, refusal: Refused) -> None:
        """Give up on a message that is under way: deliver `refusal` in its place."""
        if not self.finished:
            self._fail(refusal)

    def close(self) -> None:
        """Let go of the callbacks, which would otherwise keep each other alive."""
        self.finished = True
        self._parser = self._deliver = self._expects = None  # type: ignore[assignment]

    def _target_complete(self) -> bool:
        return self._seen_headers > 0

    def _fail(self, refusal: Refused) -> None:
        self.finished = True
        self.mid_message = False
        path, _, query = self._target[:1024].partition(b"?")
        self._deliver(Request(b"", path, query, {}, b"", "1.1", False, refusal))
        self._reset()

    def _stop(self, refusal: Refused) -> None:
        self._refusal = refusal
        raise _Stop

    # What httptools calls.

    def on_message_begin(self) -> None:
        self.mid_message = True
        self._in_head = True
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        # The target comes in as many pieces as the network cut it into.
        self._target = self._target + url if self._target else url
        if len(self._target) > HTTP_TARGET_BYTES_MAX:
            self._stop(
                TargetTooLong(
                    f"The target is longer than {HTTP_TARGET_BYTES_MAX} bytes",
                    limit=HTTP_TARGET_BYTES_MAX,
                )
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._seen_headers += 1
        self._header_bytes += len(name) + len(value) + HEADER_OVERHEAD_BYTES
        if self._header_bytes > HTTP_HEADER_BYTES_MAX or self._seen_headers > HTTP_HEADERS_MAX:
            self._stop(
                HeadersTooLarge(
                    f"More than {HTTP_HEADERS_MAX} headers or {HTTP_HEADER_BYTES_MAX} bytes",
                    limit=HTTP_HEADER_BYTES_MAX,
                )
            )
        if not self._in_head:
            return  # a trailer: counted, and of no meaning here
        headers = self._headers
        if name in headers:
            if name in SINGLE_HEADERS:
                self._stop(BadHttp(f"The header {name.decode('latin-1')} must not be repeated"))
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        headers = self._headers
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop(HttpVersionUnsupported(f"HTTP/{version} is not spoken here"))
        if b"host" not in headers and version == "1.1":
            self._stop(BadHttp("An HTTP/1.1 request needs a Host header"))
        length = headers.get(b"content-length")
        # llhttp has made sure that it is one run of digits that fits 64 bits.
        if length is not None and int(length) > HTTP_BODY_BYTES_MAX:
            self._stop(_body_too_large())
        if b"expect" in headers:
            if headers[b"expect"].lower() != b"100-continue":
                self._stop(ExpectationFailed("Only `Expect: 100-continue` can be met"))
            if version == "1.1" and self._expects is not None:
                self._expects()

    def on_body(self, data: bytes) -> None:
        body = self._body
        if len(body) + len(data) > HTTP_BODY_BYTES_MAX:
            self._stop(_body_too_large())
        if not body:
            self._body = data
            return
        if not isinstance(body, bytearray):
            body = self._body = bytearray(body)
        body += data

    def on_message_complete(self) -> None:
        parser = self._parser
        self.mid_message = False
        path, _, query = self._target.partition(b"?")
        # What follows an upgrade is not read as HTTP, so the answer has to be the last.
        keep_alive = parser.should_keep_alive() and not parser.should_upgrade()
        request = Request(
            parser.get_method(),
            path,
            query,
            self._headers,
            bytes(self._body),
            parser.get_http_version(),
            keep_alive,
        )
        self._reset()
        if not keep_alive:
            self.finished = True
        self._deliver(request)


def _body_too_large() -> TooLarge:
    return TooLarge(
        f"The body is larger than {HTTP_BODY_BYTES_MAX} bytes", limit_bytes=HTTP_BODY_BYTES_MAX
    )
