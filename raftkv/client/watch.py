"""Watches that survive their connection.

A watch is a stream of server-sent events. Its position is a revision all of whose events have
been given out, and how many events of the next one have been. After a break it asks another
endpoint for what follows that revision and skips what it has given out already: events of one
revision come in the same order from every member. So nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from raftkv.client.errors import error_from_problem
from raftkv.client.results import Event
from raftkv.client.retry import BACKOFF_SECONDS_FIRST, BACKOFF_SECONDS_MAX, Kind, may_repeat
from raftkv.client.sse import EventParser, ServerEvent
from raftkv.client.transport import Call, Transport, network_errors, origin
from raftkv.client.wire import loads, query, understood
from raftkv.errors import RaftkvError, ReadTimedOut
from raftkv.limits import WATCH_PROGRESS_SECONDS

if TYPE_CHECKING:
    import aiohttp

STALL_SECONDS: Final = 2.5 * WATCH_PROGRESS_SECONDS
"""Silence after which a stream counts as broken; members send progress far more often."""

Interruption = Callable[[Exception], None]


class EventStream:
    """Server-sent events of one target, the stream opened again whenever it breaks.

    `position` answers the target and the ``Last-Event-ID`` to open it with; `stall` is in seconds.
    The first opening fails like any call. Once the stream has been open, errors that pass are
    waited out for as long as it takes; others are raised. `next` may be cancelled and called again
    without losing anything.
    """

    __slots__ = (
        "_call",
        "_failures",
        "_on_interruption",
        "_opened",
        "_parser",
        "_pending",
        "_position",
        "_response",
        "_stall",
        "_transport",
    )

    def __init__(
        self,
        transport: Transport,
        position: Callable[[], tuple[str, str | None]],
        on_interruption: Interruption | None = None,
        stall: float = STALL_SECONDS,
    ) -> None:
        self._transport = transport
        self._position = position
        self._on_interruption = on_interruption
        self._stall = stall
        self._call = Call("GET", "/")
        self._response: aiohttp.ClientResponse | None = None
        self._parser = EventParser()
        self._pending: deque[ServerEvent] = deque()
        self._failures = 0
        self._opened = False

    async def next(self) -> tuple[ServerEvent, dict[str, Any]]:
        """The next event with its JSON; problems of the stream never come out as events."""
        while True:
            try:
                while not self._pending:
                    await self._read()
                event = self._pending.popleft()
                body = loads(event.data)
                if event.name == "error" or body.get("type") == "error":
                    raise error_from_problem(body, writes=False)
            except RaftkvError as error:
                await self._broken(error)
                continue
            self._failures = 0
            return event, body

    async def close(self) -> None:
        """End the stream; `next` must not be called again."""
        self._drop()

    async def _read(self) -> None:
        if self._response is None:
            target, last_event_id = self._position()
            headers = {"Accept": "text/event-stream"}
            if last_event_id is not None:
                headers["Last-Event-ID"] = last_event_id
            self._call = Call("GET", target, headers=headers, accept=(200,))
            self._response = await self._transport.open(self._call, stall=self._stall)
            self._parser = EventParser()
            self._opened = True
        endpoint = origin(self._response)
        with network_errors(self._call, endpoint, self._stall):
            chunk = await self._response.content.readany()
        if not chunk:
            raise ReadTimedOut(f"{endpoint} ended the stream", endpoint=endpoint)
        self._pending.extend(self._parser.feed(chunk))

    async def _broken(self, error: RaftkvError) -> None:
        if self._response is not None:
            self._transport.moved(origin(self._response))
        self._drop()
        if not self._opened or not may_repeat(error, Kind.READ):
            raise error
        if self._on_interruption is not None:
            self._on_interruption(error)
        doubled = BACKOFF_SECONDS_FIRST * 2.0 ** min(self._failures, 10)
        self._failures += 1
        await asyncio.sleep(min(BACKOFF_SECONDS_MAX, doubled))

    def _drop(self) -> None:
        response, self._response = self._response, None
        self._pending.clear()
        if response is not None:
            response.close()


class Watcher:
    """An endless async iterator of `Event`; see `AsyncClient.watch`."""

    __slots__ = ("_first", "_given", "_given_of", "_parameters", "_revision", "_skip", "_stream")

    def __init__(
        self,
        transport: Transport,
        parameters: Mapping[str, object],
        from_revision: int | None,
        on_interruption: Interruption | None,
        stall: float = STALL_SECONDS,
    ) -> None:
        self._parameters = dict(parameters)
        self._revision = None if from_revision is None else from_revision - 1
        self._given_of = 0
        self._given = 0
        self._skip = 0
        self._first: Event | None = None
        self._stream = EventStream(transport, self._position, on_interruption, stall)

    @property
    def revision(self) -> int | None:
        """Every change up to this revision has been given out; None before the stream opened.

        To go on later where this watch stopped, watch from `revision` + 1.
        """
        return self._revision

    async def opened(self) -> int:
        """Wait until the store has the watch: every change after the revision answered will come.

        With `from_revision` that is the revision before it.
        """
        while self._revision is None:
            if self._first is not None:
                return self._first.revision - 1
            self._first = await self._step()
        return self._revision

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event, self._first = self._first, None
        while event is None:
            event = await self._step()
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the watch."""
        await self._stream.close()

    def _position(self) -> tuple[str, str | None]:
        self._skip = self._given
        start = None if self._revision is None else self._revision + 1
        return "/api/watch" + query({**self._parameters, "from": start}), None

    async def _step(self) -> Event | None:
        message, body = await self._stream.next()
        kind = body.get("type")
        if kind not in ("put", "delete"):
            # The stream's place is known from here on. A later `ready` says nothing new: what
            # is still to come of the past has not been given out when it arrives.
            if self._revision is None or kind == "progress":
                with understood():
                    self._complete(int(body.get("revision", 0)))
            return None
        with understood():
            event = Event.from_json(body)
        if self._revision is not None and event.revision <= self._revision:
            return None
        repeated = False
        if event.revision == self._given_of and self._skip:
            self._skip -= 1
            repeated = True
        else:
            if event.revision != self._given_of:
                if self._given_of:
                    self._complete(self._given_of)
                self._given_of, self._given, self._skip = event.revision, 0, 0
            self._given += 1
        if message.id is not None:
            self._complete(event.revision)
        return None if repeated else event

    def _complete(self, revision: int) -> None:
        if self._revision is None or revision > self._revision:
            self._revision = revision
        if self._given_of <= revision:
            self._given_of = self._given = self._skip = 0
