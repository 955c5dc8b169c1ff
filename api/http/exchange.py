"""One request and its answer.

A handler gets an `Exchange` and must end it exactly once, now or from any later callback: with
`json`, `send` or `fail`; or with `begin_stream`, any number of `push`, and `end_stream`. Once the
client has gone, all of these do nothing; `on_lost` is how a handler that holds something learns it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.http.codec import dump_json
from raftkv.api.outcomes import HTTP_REASONS, http_outcome, http_problem
from raftkv.errors import RaftkvError, Stopping

if TYPE_CHECKING:
    from raftkv.api.callers import Caller
    from raftkv.api.http.connection import HttpConnection
    from raftkv.api.http.door import HttpDoor
    from raftkv.api.http.parser import Request
    from raftkv.api.http.router import Route
    from raftkv.api.observe import Trail
    from raftkv.machine.access import Accesses
    from raftkv.machine.machine import Machine

STATUS_LINES: Final = {
    status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in HTTP_REASONS.items()
}
JSON: Final = b"application/json"
NDJSON: Final = b"application/x-ndjson"
EVENT_STREAM: Final = b"text/event-stream"
OCTETS: Final = b"application/octet-stream"
PROBLEM: Final = b"application/problem+json"
TEXT: Final = b"text/plain; charset=utf-8"
HTML: Final = b"text/html; charset=utf-8"
ANSWER_HEAD: Final = b"%b%b%bContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
STREAM_HEAD: Final = b"%b%b%bContent-Type: %b\r\nCache-Control: no-store\r\n%b\r\n"


class Exchange:
    """One request on its way to one answer. Slotted; created per request."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head_only",
        "_task",
        "_waiter",
        "caller",
        "door",
        "granted",
        "keep_alive",
        "needs",
        "on_lost",
        "on_stopping",
        "on_writable",
        "places",
        "query",
        "request",
        "route",
        "streaming",
        "trail",
    )

    def __init__(self, connection: HttpConnection, door: HttpDoor, request: Request) -> None:
        self._connection: HttpConnection | None = connection
        self.door = door
        self.caller: Caller = door.gate.anyone
        """Who asks, and the store as they may use it."""
        self.needs: Accesses = ()
        """What the call was found to need; judged again when rules change on the way."""
        self.granted = b""
        """Header lines that let a page of another site have the answer."""
        self.request = request
        self.keep_alive = request.keep_alive
        self._head_only = request.method == b"HEAD"
        self._chunked = False
        self.streaming = False
        self.on_lost: Callable[[], None] | None = None
        """Called once when the client goes before the end."""
        self.on_writable: Callable[[], None] | None = None
        """Called whenever `push` may be used again after it answered False."""
        self.on_stopping: Callable[[RaftkvError], None] | None = None
        """Called when the member drains; the handler ends the exchange soon."""
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.places: tuple[bytes, ...] = ()
        self.query: dict[str, Any] = {}
        self.route: Route | None = None
        self.trail: Trail | None = None
        """Where what it does is noted down, if anybody follows it."""

    @property
    def ended(self) -> bool:
        """The answer is complete, or nobody is there to read it."""
        return self._connection is None

    @property
    def level(self) -> int:
        """The feature level that all members know."""
        return self.door.store.level

    @property
    def machine(self) -> Machine:
        """The state as applied here, for what `needs` covers."""
        return self.door.store.machine

    @property
    def source(self) -> str:
        """The client's address; empty when it is not known, or the client has gone."""
        return "" if self._connection is None else self._connection.source

    @property
    def secure(self) -> bool:
        """Whether it came over TLS."""
        return self._connection is not None and self._connection.secure

    @property
    def certified(self) -> str | None:
        """The user that the client's certificate stands for."""
        return None if self._connection is None else self._connection.certified

    def read_index(self, done: Callable[[RaftkvError | None], None]) -> None:
        """See `Store.read_index`; the call is judged again if the rules changed meanwhile."""
        self.caller.read_index(done, self.needs)

    def header(self, name: bytes) -> bytes | None:
        """A request header by its lower-case name."""
        return self.request.headers.get(name)

    # Answers in one piece.

    def json(self, payload: Any, status: int = 200, headers: bytes = b"") -> None:
        """Answer with a JSON value. `headers`: complete lines, each with its line end."""
        self.send(dump_json(payload), JSON, status, headers)

    def send(self, body: bytes, media: bytes, status: int = 200, headers: bytes = b"") -> None:
        """Answer with `body`."""
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        door = self.door
        if not self.keep_alive or door.draining:
            self.keep_alive = False
            headers += b"Connection: close\r\n"
        elif self.request.version == "1.0":
            headers += b"Connection: keep-alive\r\n"
        headers += self.granted
        head = ANSWER_HEAD % (STATUS_LINES[status], door.stamp_block(), headers, media, len(body))
        connection.write(head if self._head_only else head + body)
        door.counters.count(self.route, status)
        if self.trail is not None:
            self.trail.answered(status)
        connection.finished(self)

    def empty(self, status: int, headers: bytes = b"") -> None:
        """Answer without a body: 204 or 304."""
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        if not self.keep_alive or self.door.draining:
            self.keep_alive = False
            headers += b"Connection: close\r\n"
        connection.write(
            b"".join(
                (STATUS_LINES[status], self.door.stamp_block(), headers, self.granted, b"\r\n")
            )
        )
        self.door.counters.count(self.route, status)
        if self.trail is not None:
            self.trail.answered(status)
        connection.finished(self)

    def fail(self, error: BaseException) -> None:
        """Answer with a problem; in the midst of a stream, cut it off where it is."""
        if self.streaming:
            self.cut_off()
            return
        if self.trail is not None:
            self.trail.failed(error)
        row = http_outcome(error)
        headers = b""
        if row.retry_after_seconds is not None:
            seconds = row.retry_after_seconds
            if isinstance(error, RaftkvError):
                seconds = error.facts.get("retry_after", seconds)
            headers = b"Retry-After: %d\r\n" % seconds
        if row.status == 401:
            headers += b'WWW-Authenticate: Bearer realm="raftkv"\r\n'
        if isinstance(error, RaftkvError) and "allow" in error.facts:
            headers += b"Allow: " + ", ".join(error.facts["allow"]).encode() + b"\r\n"
        self.send(dump_json(http_problem(error)), PROBLEM, row.status, headers)

    # Answers in many pieces.

    def begin_stream(
        self, media: bytes, headers: bytes = b"", length: int | None = None, status: int = 200
    ) -> None:
        """Send the head of an answer whose body follows in pieces.

        Without a `length` the body is chunked, or ends with the connection for HTTP/1.0.
        """
        connection = self._connection
        if connection is None:
            return
        self.streaming = True
        if length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif self.request.version == "1.0":
            framing = b""
            self.keep_alive = False
        else:
            framing = b"Transfer-Encoding: chunked\r\n"
            self._chunked = True
        if not self.keep_alive or self.door.draining:
            self.keep_alive = False
            framing += b"Connection: close\r\n"
        connection.write(
            STREAM_HEAD
            % (
                STATUS_LINES[status],
                self.door.stamp_block(),
                headers + self.granted,
                media,
                framing,
            )
        )
        self.door.counters.count(self.route, status)
        if self.trail is not None:
            self.trail.answered(status, begun=True)
        if self._head_only:
            self._chunked = False
            self.end_stream()
            if self.on_lost is not None:
                self.on_lost()  # nobody will read what the handler holds open

    def take_over(self, head: bytes, take: Callable[[bytes], None]) -> None:
        """Speak another protocol from here on, as agreed by an upgrade (RFC 9110, section 7.8).

        `head` is the whole answer to the request. What the client sends goes to `take`; `push` and
        `end_stream` send bytes as they are.
        """
        connection = self._connection
        if connection is None:
            return
        self.streaming = True
        self.keep_alive = False
        connection.write(head)
        connection.take_over(take)
        self.door.counters.count(self.route, 101)
        if self.trail is not None:
            self.trail.answered(101, begun=True)

    def push(self, data: bytes) -> bool:
        """Send a piece of the body. False: hold back until `on_writable`, or `writable()`."""
        connection = self._connection
        if connection is None:
            return False
        if data:
            connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return connection.writable

    async def writable(self) -> bool:
        """Wait until the client has taken enough. False once it has gone."""
        connection = self._connection
        if connection is None:
            return False
        if not connection.writable:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._connection is not None

    def end_stream(self) -> None:
        """The body is complete."""
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        if self._chunked:
            connection.write(b"0\r\n\r\n")
        connection.finished(self)

    def cut_off(self) -> None:
        """End a stream so that the client sees that it is not complete."""
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        self.keep_alive = False
        connection.finished(self)

    # Tasks, for what waits or takes long.

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on in a task, which is cancelled when the client goes or the member drains."""
        self._task = task = self.door.loop.create_task(work)
        self.door.tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self.door.tasks.discard(task)
        self._task = None
        if task.cancelled():
            self.fail(Stopping("The member is stopping"))
            return
        error = task.exception()
        if error is not None:
            self.door.report(error)
            self.fail(error)

    # What the connection calls.

    def described(self) -> dict[str, Any]:
        """What a log line may say of the request."""
        facts = {
            "operation": self.request.method.decode("latin-1")
            if self.route is None
            else self.route.operation,
            "source": self.source,
            "user": self.caller.user,
        }
        if self.trail is not None:
            facts["request"] = self.trail.request
        return facts

    def lost(self) -> None:
        """The client has gone."""
        if self._connection is None:
            return
        self._connection = None
        if self.trail is not None:
            self.trail.lost()
        if self._task is not None:
            self._task.cancel()
        self.wake()
        if self.on_lost is not None:
            self.on_lost()
        self.on_lost = self.on_writable = self.on_stopping = None

    def wake(self) -> None:
        """The connection's output has room again."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        elif self.on_writable is not None:
            self.on_writable()

    def stop(self) -> None:
        """The member drains: streams and waits end now, short work may finish."""
        if self.on_stopping is not None:
            self.on_stopping(Stopping("The member is stopping"))
        elif self._task is not None and self.streaming:
            self._task.cancel()
