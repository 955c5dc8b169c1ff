"""The proxies themselves, between a dialler and a listener that are no members."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from raftkv.server.frames import FrameKind, Hello, frame
from tests.support.processes import free_ports
from tests.support.proxy import ProxyNetwork

ONE, TWO = 1, 2
GREETING = frame(FrameKind.HELLO, Hello(cluster_id=9, source=ONE, target=TWO).encode())
LATE_SECONDS = 0.2

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[ProxyNetwork, Streams, Streams]]:
    """The network, and both ends of a connection from ONE to TWO that has said hello."""
    accepted: asyncio.Queue[Streams] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait((reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    [port] = free_ports(1)
    network = ProxyNetwork()
    await network.open(port, server.sockets[0].getsockname()[1])
    near = await asyncio.open_connection("127.0.0.1", port)
    near[1].write(GREETING)
    far = await accepted.get()
    assert await far[0].readexactly(len(GREETING)) == GREETING
    try:
        yield network, near, far
    finally:
        for _, writer in (near, far):
            writer.transport.abort()
        await network.close()
        server.close()


async def test_everything_passes_both_ways() -> None:
    async with connected() as (_, near, far):
        near[1].write(b"there")
        assert await far[0].readexactly(5) == b"there"
        far[1].write(b"back")
        assert await near[0].readexactly(4) == b"back"
        near[1].write_eof()
        assert await far[0].read() == b""


async def test_what_is_held_comes_late_and_the_other_direction_at_once() -> None:
    async with connected() as (network, near, far):
        network.cut(ONE, TWO)
        near[1].write(b"late")
        far[1].write(b"soon")
        assert await near[0].readexactly(4) == b"soon"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(LATE_SECONDS):
                await far[0].readexactly(4)
        network.mend(ONE, TWO)
        assert await far[0].readexactly(4) == b"late"


async def test_what_is_swallowed_never_comes_and_its_connection_is_reset_when_mended() -> None:
    async with connected() as (network, near, far):
        network.cut(TWO, ONE, swallow=True)
        far[1].write(b"lost")
        near[1].write(b"heard")
        assert await far[0].readexactly(5) == b"heard"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(LATE_SECONDS):
                await near[0].readexactly(4)
        network.mend_all()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await near[0].readexactly(4)


async def test_delays_and_bandwidths_hold_bytes_back_in_order() -> None:
    async with connected() as (network, near, far):
        network.slow(ONE, TWO, delay_seconds=LATE_SECONDS, bytes_per_second=100_000)
        began = time.monotonic()
        data = bytes(range(256)) * 80
        near[1].write(data)
        assert await far[0].readexactly(len(data)) == data
        assert time.monotonic() - began >= LATE_SECONDS + len(data) / 100_000 - 0.01
