"""A million keys of 256 bytes through the API, then kill -9, a restart, pages and a stream.

    python -m tests.scale.keys [--keys N]

The restarted member must serve within 2 s, a page of 1,000 come in under 20 ms, and streaming all
keys add less than 64 MiB to the member's own memory.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import aiohttp

from tests.support.processes import Cluster, Member, running

CONNECTIONS = 64
VALUE = b"v" * 256
MIB = 1 << 20


async def main() -> None:
    """Run the scenario and print what was measured; AssertionError when a bound was passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder), 1) as cluster:
            member = cluster.members[0]
            await load(member, options.keys)
            await restart(cluster, member, options.keys)
            await pages(cluster, member, options.keys)
            await stream(cluster, member, options.keys)


async def load(member: Member, count: int) -> None:
    started = time.monotonic()
    address = urlsplit(member.client_url)

    async def some(first: int) -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for number in range(first, count, CONNECTIONS):
            writer.write(
                b"PUT /api/kv/key/%08d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                % (number, len(VALUE))
                + VALUE
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    await asyncio.gather(*(some(first) for first in range(CONNECTIONS)))
    took = time.monotonic() - started
    print(f"loaded {count} keys in {took:.1f} s, {count / took:.0f} a second")


async def restart(cluster: Cluster, member: Member, count: int) -> None:
    member.kill()
    started = time.monotonic()
    member.start()
    while True:
        try:
            code, _, _ = await cluster.call(member, "GET", f"/api/kv/key/{count - 1:08d}")
        except (aiohttp.ClientError, OSError):
            code = 0
        if code == 200:
            break
        await asyncio.sleep(0.005)
    took = time.monotonic() - started
    print(f"kill -9 to first linearizable answer: {took:.2f} s")
    assert took < 2


async def pages(cluster: Cluster, member: Member, count: int) -> None:
    took = []
    for turn in range(50):
        start = f"key/{turn * count // 51:08d}"
        begun = time.monotonic()
        code, body, _ = await cluster.call(
            member, "GET", "/api/kv", params={"start": start, "limit": 1000}
        )
        took.append(time.monotonic() - begun)
        assert code == 200 and len(body["items"]) == 1000
    print(f"a page of 1,000: median {median(took) * 1000:.1f} ms, worst {max(took) * 1000:.1f} ms")
    assert median(took) < 0.02


async def stream(cluster: Cluster, member: Member, count: int) -> None:
    assert cluster.session is not None
    before = most = member.private_bytes()
    lines = 0
    started = time.monotonic()
    async with cluster.session.get(
        member.client_url + "/api/kv",
        headers={"Accept": "application/x-ndjson"},
        timeout=aiohttp.ClientTimeout(total=None),
    ) as answer:
        async for _ in answer.content:
            lines += 1
            if lines % 20_000 == 0:
                most = max(most, member.private_bytes())
    added = (most - before) / MIB
    print(f"streamed {lines - 1} keys in {time.monotonic() - started:.1f} s, {added:.1f} MiB added")
    assert lines == count + 1 and added < 64


if __name__ == "__main__":
    asyncio.run(main())
