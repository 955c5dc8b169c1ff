"""10,000 services with a TTL of 10 s on three members: kept alive for two minutes, then left.

    python -m tests.scale.services [--services N] [--seconds S]

Every instance must be there all the time, and all must be gone, and told to a watcher, within
12 s after the last heartbeat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.processes import Cluster, Member, running

TTL_SECONDS = 10
CONNECTIONS = 64


async def main() -> None:
    """Run the scenario and print what was seen; AssertionError when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder), 3) as cluster:
            await scenario(cluster, options.services, options.seconds)


async def scenario(cluster: Cluster, count: int, seconds: float) -> None:
    gone: dict[str, float] = {}
    early: list[dict[str, Any]] = []
    leaving = asyncio.Event()
    watching = asyncio.create_task(watch(cluster, cluster.members[2], gone, early, leaving))
    started = time.monotonic()
    await each(cluster, count, register)
    print(f"registered {count} in {time.monotonic() - started:.1f} s")
    started = time.monotonic()
    rounds = 0
    while time.monotonic() - started < seconds:
        begun = time.monotonic()
        await each(cluster, count, heartbeat)
        rounds += 1
        took = time.monotonic() - begun
        assert took < TTL_SECONDS, f"a round of heartbeats took {took:.1f} s"
        await asyncio.sleep(max(0.0, TTL_SECONDS / 3 - took))
    print(f"{rounds} rounds of heartbeats, the last in {took:.1f} s")
    assert await present(cluster) == count and not early, early[:3]
    leaving.set()
    begun = time.monotonic()
    await each(cluster, count, heartbeat)
    last = time.monotonic()
    while len(gone) < count or await present(cluster):
        assert time.monotonic() - last < 12, f"{count - len(gone)} not told, after 12 s"
        await asyncio.sleep(0.1)
    first = min(gone.values()) - begun
    print(
        f"first gone {first:.2f} s after the last round began, "
        f"all gone and told {time.monotonic() - last:.2f} s after it ended"
    )
    assert first > TTL_SECONDS - 0.05, "an instance expired early"
    watching.cancel()


def path(number: int) -> str:
    return f"/api/services/svc{number % 100}/i{number}"


async def register(cluster: Cluster, member: Member, number: int) -> None:
    body = {"address": "10.0.0.1", "port": 1 + number % 60_000, "ttl": TTL_SECONDS}
    code, answer, _ = await cluster.call(member, "PUT", path(number), json=body)
    assert code in (200, 201), answer


async def heartbeat(cluster: Cluster, member: Member, number: int) -> None:
    code, answer, _ = await cluster.call(member, "POST", path(number) + "/heartbeat")
    assert code == 200, answer


async def each(cluster: Cluster, count: int, call: Any) -> None:
    async def some(start: int) -> None:
        for number in range(start, count, CONNECTIONS):
            await call(cluster, cluster.members[number % len(cluster.members)], number)

    await asyncio.gather(*(some(start) for start in range(CONNECTIONS)))


async def present(cluster: Cluster) -> int:
    _, body, _ = await cluster.call(
        cluster.members[0], "GET", "/api/services", params={"limit": 1000}
    )
    return sum(each["instances"] for each in body["services"])


async def watch(
    cluster: Cluster,
    member: Member,
    gone: dict[str, float],
    early: list[dict[str, Any]],
    leaving: asyncio.Event,
) -> None:
    assert cluster.session is not None
    async with cluster.session.get(
        member.client_url + "/api/watch/services",
        headers={"Accept": "application/x-ndjson"},
        timeout=aiohttp.ClientTimeout(total=None),
    ) as answer:
        async for line in answer.content:
            event = json.loads(line)
            if event["type"] == "deregistered":
                if not leaving.is_set():
                    early.append(event)
                gone[event["instance"]] = time.monotonic()


if __name__ == "__main__":
    asyncio.run(main())
