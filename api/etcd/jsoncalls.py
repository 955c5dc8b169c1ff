"""RPCs as HTTP exchanges with JSON: the calls that handlers see when they serve the gateway."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.etcd import answers
from raftkv.api.etcd.jsonform import fill, plain
from raftkv.api.grpc.status import Status
from raftkv.api.http.codec import dump_json
from raftkv.api.http.exchange import JSON
from raftkv.errors import InvalidRequest, RaftkvError

if TYPE_CHECKING:
    from raftkv.api.http.exchange import Exchange
    from raftkv.api.observe import Trail

HTTP_STATUS: Final[dict[int, int]] = {
    Status.CANCELLED: 499,
    Status.UNKNOWN: 500,
    Status.INVALID_ARGUMENT: 400,
    Status.DEADLINE_EXCEEDED: 504,
    Status.NOT_FOUND: 404,
    Status.ALREADY_EXISTS: 409,
    Status.PERMISSION_DENIED: 403,
    Status.RESOURCE_EXHAUSTED: 429,
    Status.FAILED_PRECONDITION: 400,
    Status.ABORTED: 409,
    Status.OUT_OF_RANGE: 400,
    Status.UNIMPLEMENTED: 501,
    Status.INTERNAL: 500,
    Status.UNAVAILABLE: 503,
    Status.DATA_LOSS: 500,
    Status.UNAUTHENTICATED: 401,
}
"""As the gateway of etcd 3.6 and later."""

_decoder: Final = json.JSONDecoder()


def decoded(body: bytes, request: Any) -> Iterator[bytes]:
    """The requests of a stream: one JSON object after another. Raises InvalidRequest."""
    try:
        text = body.decode().strip()
        while text:
            values, end = _decoder.raw_decode(text)
            yield fill(request(), values).SerializeToString()
            text = text[end:].lstrip()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def fail(x: Exchange, code: int, text: str, status: int = 0) -> None:
    """Answer with an error, in the forms of all versions."""
    # `error` is for clients of etcd before 3.6.
    body = {"error": text, "code": int(code), "message": text, "details": []}
    x.json(body, status or HTTP_STATUS.get(code, 500))


def error_json(code: int, text: str) -> bytes:
    """How a stream says an error. The longer names are for clients of etcd before 3.6."""
    error = {
        "code": int(code), "message": text, "details": [],
        "grpc_code": int(code), "http_code": HTTP_STATUS.get(code, 500),
    }  # fmt: skip
    return dump_json({"error": error})


class _JsonCall:
    """What both kinds of calls share."""

    __slots__ = ("_response", "_x")

    def __init__(self, x: Exchange, response: Any) -> None:
        self._x = x
        self._response = response

    @property
    def ended(self) -> bool:
        """See `AnyCall`."""
        return self._x.ended

    @property
    def on_cancel(self) -> Callable[[], None] | None:
        """See `AnyCall`."""
        return self._x.on_lost

    @on_cancel.setter
    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        self._x.on_lost = callback

    @property
    def source(self) -> str:
        """See `AnyCall`."""
        return self._x.source

    @property
    def certified(self) -> str | None:
        """See `AnyCall`. Nobody: etcd takes no certificate for a user here, since there it would be
        the gateway's own (CVE-2018-16886)."""
        return None

    def meta(self, name: str) -> str | None:
        """A metadata value, from the header that the gateway makes it of."""
        header = b"authorization" if name == "token" else b"grpc-metadata-" + name.encode()
        value = self._x.request.headers.get(header)
        return None if value is None else value.decode("latin-1")

    def _json(self, message: bytes) -> bytes:
        return dump_json(plain(self._response.FromString(message)))


class JsonUnary(_JsonCall):
    """A unary RPC as one HTTP request. See `rpc.Unary`."""

    __slots__ = ()

    @property
    def trail(self) -> Trail | None:
        """That of the HTTP request, which is told the answer, too."""
        return self._x.trail

    def reply(self, message: bytes) -> None:
        """See `Unary`."""
        if not self._x.ended:
            self._x.send(self._json(message), JSON)

    def fail(self, code: int, text: str = "") -> None:
        """See `AnyCall`."""
        fail(self._x, code, text)


class JsonStream(_JsonCall):
    """A streaming RPC as one HTTP request with an answer of many lines. See `rpc.Streaming`."""

    __slots__ = ("_inbox", "_reading", "on_end", "on_message")

    def __init__(self, x: Exchange, response: Any, messages: deque[bytes]) -> None:
        super().__init__(x, response)
        self._inbox = messages
        self._reading = False
        self.on_message: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        x.on_stopping = self._stopping

    @property
    def on_drain(self) -> Callable[[], None] | None:
        """See `Streaming`."""
        return self._x.on_writable

    @on_drain.setter
    def on_drain(self, callback: Callable[[], None] | None) -> None:
        self._x.on_writable = callback

    @property
    def writable(self) -> bool:
        """See `Streaming`."""
        return self._x.push(b"")

    def send(self, message: bytes) -> bool:
        """See `Streaming`."""
        x = self._x
        if x.ended:
            return False
        if not x.streaming:
            x.begin_stream(JSON)
        return x.push(b'{"result":%b}\n' % self._json(message))

    def finish(self) -> None:
        """See `Streaming`."""
        if not self._x.ended:
            if not self._x.streaming:
                self._x.begin_stream(JSON)
            self._x.end_stream()

    def fail(self, code: int, text: str = "") -> None:
        """See `AnyCall`."""
        x = self._x
        if x.ended:
            return
        if x.streaming:
            x.push(error_json(code, text) + b"\n")
            x.end_stream()
        else:
            x.send(error_json(code, text), JSON, HTTP_STATUS.get(code, 500))

    def _stopping(self, error: RaftkvError) -> None:
        self.fail(*answers.row_of(error))
        self._let_go()

    def _let_go(self) -> None:
        """Have whatever serves the call let go of it."""
        cancel, self.on_cancel = self.on_cancel, None
        if cancel is not None:
            cancel()

    def pause(self) -> None:
        """See `Streaming`."""
        self._reading = False

    def resume(self) -> None:
        """Give out the requests of the body, then its end."""
        if self._reading:
            return
        self._reading = True
        while self._inbox and self._reading and not self._x.ended:
            message = self._inbox.popleft()
            if self.on_message is not None:
                self.on_message(message)
        if self._reading and not self._x.ended and self.on_end is not None:
            end, self.on_end = self.on_end, None
            end()
