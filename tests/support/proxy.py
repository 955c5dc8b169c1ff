"""A network between members that can be spoilt: TCP proxies before their peer ports.

Every member advertises the address of its proxy, so all that the others send to it passes there.
Who a connection comes from is read off its HELLO; so each *flow*, the bytes from one member to
another, can be treated on its own:

- `hold`: bytes wait in the proxy and arrive late, as after a partition that TCP survives;
- `swallow`: bytes are taken and lost, so the connection is dead without anybody being told
  (half-open); it is reset when the flow is mended, as the peer's kernel would;
- a delay and a bandwidth.

Connections made while a flow is cut are accepted, and then wait. All of it works in one
direction alone.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field

from raftkv.server.frames import FrameKind, FrameParser, decode_hello

PIECE_BYTES = 64 * 1024
QUEUE_PIECES = 64

Place = tuple[int, int]
"""(source, target) of a flow, as member ids; 0 is somebody who has not said who."""


@dataclass(slots=True)
class Flow:
    """How the bytes from one member to another fare."""

    hold: bool = False
    swallow: bool = False
    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0
    """0: no limit."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class ProxyNetwork:
    """The proxies of one cluster, on one event loop."""

    def __init__(self) -> None:
        self._flows: defaultdict[Place, Flow] = defaultdict(Flow)
        self._servers: dict[int, asyncio.Server] = {}
        self._links: set[_Link] = set()
        self.bytes_passed = 0

    async def open(self, port: int, peer_port: int) -> None:
        """Listen on `port` for what is meant for the member that listens on `peer_port`."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = _Link(self, reader, writer, peer_port)
            self._links.add(link)
            try:
                await link.run()
            finally:
                self._links.discard(link)

        self._servers[port] = await asyncio.start_server(accept, "127.0.0.1", port)

    async def close(self) -> None:
        """End everything."""
        for server in self._servers.values():
            server.close()
        for link in list(self._links):
            link.abort()
        while self._links:
            await asyncio.sleep(0.01)

    def flow(self, source: int, target: int) -> Flow:
        """The flow as it is now; change it with the methods below."""
        return self._flows[source, target]

    def cut(self, source: int, target: int, swallow: bool = False) -> None:
        """Let nothing through from `source` to `target`."""
        flow = self._flows[source, target]
        flow.hold, flow.swallow = not swallow, swallow
        flow.changed.set()

    def slow(
        self, source: int, target: int, delay_seconds: float, bytes_per_second: float = 0.0
    ) -> None:
        """Delay what goes from `source` to `target`, in order, and bound how much it is."""
        flow = self._flows[source, target]
        flow.delay_seconds, flow.bytes_per_second = delay_seconds, bytes_per_second

    def mend(self, source: int, target: int) -> None:
        """Let everything through again, at once. A connection that lost bytes is reset."""
        flow = self._flows[source, target]
        flow.hold = flow.swallow = False
        flow.delay_seconds = flow.bytes_per_second = 0.0
        flow.changed.set()
        for link in list(self._links):
            if link.lost(source, target):
                link.abort()

    def mend_all(self) -> None:
        """Mend every flow."""
        for source, target in list(self._flows):
            self.mend(source, target)

    def isolate(self, member: int, others: list[int], swallow: bool = False) -> None:
        """Cut `member` off from `others`, in both directions."""
        for other in others:
            self.cut(member, other, swallow)
            self.cut(other, member, swallow)


class _Link:
    """One connection of a dialler to a member, in two halves."""

    def __init__(
        self,
        network: ProxyNetwork,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer_port: int,
    ) -> None:
        self._network = network
        self._reader, self._writer = reader, writer
        self._peer_port = peer_port
        self._far: asyncio.StreamWriter | None = None
        self._source = self._target = 0
        self._lost: set[Place] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def lost(self, source: int, target: int) -> bool:
        """Whether bytes of that flow were swallowed here."""
        return (source, target) in self._lost

    def abort(self) -> None:
        """Reset both halves."""
        for task in self._tasks:
            task.cancel()
        self._writer.transport.abort()
        if self._far is not None:
            self._far.transport.abort()

    async def run(self) -> None:
        """Pass bytes on until one side ends."""
        with suppress(OSError, asyncio.CancelledError):
            first = await self._greeting()
            if first:
                near, self._far = await asyncio.open_connection("127.0.0.1", self._peer_port)
                self._tasks = [
                    asyncio.create_task(self._pump(self._reader, self._far, True, first)),
                    asyncio.create_task(self._pump(near, self._writer, False, b"")),
                ]
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _greeting(self) -> bytes:
        """The first bytes, once they tell who is speaking to whom. Empty: nobody did."""
        parser = FrameParser()
        first = b""
        while True:
            piece = await self._reader.read(PIECE_BYTES)
            first += piece
            for kind, payload in parser.feed(piece):
                if kind == FrameKind.HELLO:
                    hello = decode_hello(payload)
                    self._source, self._target = hello.source, hello.target
                return first
            if not piece or parser.error is not None:
                return first

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        forward: bool,
        first: bytes,
    ) -> None:
        place = (self._source, self._target) if forward else (self._target, self._source)
        flow = self._network.flow(*place)
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_PIECES)
        clock = asyncio.get_running_loop().time
        delivery = asyncio.create_task(self._deliver(due, writer, flow, place))
        try:
            piece, free_at = first, 0.0
            while True:
                if piece:
                    free_at = max(clock(), free_at)
                    if flow.bytes_per_second:
                        free_at += len(piece) / flow.bytes_per_second
                    await due.put((free_at + flow.delay_seconds, piece))
                piece = await reader.read(PIECE_BYTES)
                if not piece:
                    break
            await due.put((0.0, b""))
            await delivery
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)

    async def _deliver(
        self,
        due: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        flow: Flow,
        place: Place,
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            at, piece = await due.get()
            if at > clock():
                await asyncio.sleep(at - clock())
            while flow.hold:
                flow.changed.clear()
                await flow.changed.wait()
            if flow.swallow or place in self._lost:
                # Also the end of the stream is not told.
                self._lost.add(place)
                if piece:
                    continue
                await asyncio.Event().wait()
            if not piece:
                return
            self._network.bytes_passed += len(piece)
            writer.write(piece)
            await writer.drain()
