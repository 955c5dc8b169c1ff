"""Streaming calls for `async` code: one task a call, for handlers that are not on the hot path."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from raftkv.api.grpc.calls import StreamCall
from raftkv.api.grpc.messages import CallFault
from raftkv.api.grpc.status import Metadata, Status

_INBOX_HIGH: Final = 16


class AsyncCall:
    """A `StreamCall` to iterate over and to await.

    Iterating gives the client's messages until it half-closes. Messages not yet asked for make
    the client wait after a few.
    """

    def __init__(self, call: StreamCall) -> None:
        self.call = call
        self._inbox: deque[bytes] = deque()
        self._ended = False
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        call.on_message = self._take
        call.on_end = self._end
        call.on_drain = self._drained.set

    @property
    def metadata(self) -> Metadata:
        """The request's custom metadata."""
        return self.call.metadata

    def _take(self, message: bytes) -> None:
        self._inbox.append(message)
        if len(self._inbox) >= _INBOX_HIGH:
            self.call.pause()
        self._arrived.set()

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()

    async def receive(self) -> bytes | None:
        """The next message, or None once the client has sent its last."""
        while not self._inbox:
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        message = self._inbox.popleft()
        if not self._inbox:
            self.call.resume()
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.receive()) is not None:
            yield message

    async def send(self, message: bytes) -> None:
        """Send one message; waits while the client or its connection is slow."""
        self._drained.clear()
        if not self.call.send(message):
            if self.call.ended:
                raise asyncio.CancelledError("the call has ended")
            await self._drained.wait()


def serve_async(
    handler: Callable[[AsyncCall], Awaitable[None]],
) -> Callable[[StreamCall], None]:
    """A streaming handler that runs `handler` in a task.

    Returning ends the call with OK; raising `CallFault` with its status; anything else is reported
    as a bug. The task is cancelled when the call is.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def run(stream: AsyncCall) -> None:
        call = stream.call
        try:
            await handler(stream)
        except asyncio.CancelledError:
            call.fail(Status.CANCELLED, "cancelled by the server")
            raise
        except CallFault as fault:
            call.fail(fault.status, fault.text)
        except Exception as error:
            call.head.server.handler_failed(call, error)
        else:
            call.finish()

    def start(call: StreamCall) -> None:
        task = asyncio.get_running_loop().create_task(run(AsyncCall(call)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

        def cancel() -> None:
            task.cancel()

        call.on_cancel = cancel

    return start
