"""A watch of etcd's Go client over leaders that are killed: nothing lost, nothing told twice.

    python -m tests.interop.failover [--kills N] [--rate N] [--secure]

`etcdctl watch` follows a prefix while writers put under it at `--rate` a second; every few seconds
the leader is killed and started again. At the end what etcdctl was told is compared with history.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import grpc.aio

from raftkv.api.etcd.messages import ETCD
from tests.interop.peers import etcd_programs
from tests.interop.security import Security, add_options, cluster_of, serving
from tests.support.processes import Cluster

WRITERS: Final = 16
BETWEEN_KILLS_SECONDS: Final = 3.0
CATCH_UP_SECONDS: Final = 60.0
PREFIX: Final = b"w/"


def method(channel: grpc.aio.Channel, kind: str, service: str, name: str) -> tuple[Any, Any]:
    """(grpcio's callable, class of the request) of an RPC of package etcdserverpb."""
    request = ETCD.message(f"etcdserverpb.{name}Request")
    response = ETCD.message(f"etcdserverpb.{name}Response")
    call = getattr(channel, kind)(
        f"/etcdserverpb.{service}/{name}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    return call, request


class Writers:
    """Put under the prefix at a steady rate; a put that fails is repeated at another member."""

    def __init__(self, cluster: Cluster, security: Security, rate: int) -> None:
        self._channels = [security.aio_channel(url) for url in cluster.urls]
        self._numbers = itertools.count()
        self._interval = WRITERS / rate
        self.acknowledged = 0
        self.failures = 0
        self.stop = False

    async def run(self) -> None:
        """Until `stop`."""
        await asyncio.gather(*(self._write(number) for number in range(WRITERS)))
        for channel in self._channels:
            await channel.close()

    async def _write(self, at: int) -> None:
        puts = [method(channel, "unary_unary", "KV", "Put") for channel in self._channels]
        due = time.monotonic()
        while not self.stop:
            number = next(self._numbers)
            while not self.stop:
                put, request = puts[at % len(puts)]
                try:
                    await put(request(key=PREFIX + b"%d" % (number % 500)), timeout=5)
                except grpc.aio.AioRpcError:
                    self.failures += 1
                    at += 1
                    await asyncio.sleep(0.05)
                else:
                    self.acknowledged += 1
                    break
            due += self._interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def kill_leaders(cluster: Cluster, kills: int) -> None:
    """Kill whoever leads, `kills` times, and start it again."""
    for _ in range(kills):
        await asyncio.sleep(BETWEEN_KILLS_SECONDS)
        leader = await cluster.leader()
        leader.kill()
        await asyncio.sleep(1.0)
        leader.start()
        await cluster.ready(leader)


async def history(cluster: Cluster, security: Security) -> list[tuple[int, str]]:
    """(revision, key) of every event under the prefix, from a watch at one member."""
    async with security.aio_channel(cluster.urls[0]) as channel:
        read, request = method(channel, "unary_unary", "KV", "Range")
        last = (await read(request(key=PREFIX))).header.revision
        watch, request = method(channel, "stream_stream", "Watch", "Watch")
        stream = watch()
        create = {"key": PREFIX, "range_end": b"w0", "start_revision": 1}
        await stream.write(request(create_request=create))
        found: list[tuple[int, str]] = []
        while not found or found[-1][0] < last:
            for event in (await stream.read()).events:
                found.append((event.kv.mod_revision, event.kv.key.decode()))
        stream.cancel()
    return found


def told(output: Path) -> list[tuple[int, str]]:
    """(revision, key) of every event that etcdctl printed."""
    found = []
    for line in output.read_text().splitlines():
        try:
            events = json.loads(line).get("Events") or []
        except json.JSONDecodeError:
            break  # the last line, cut off
        found += [(event["kv"]["mod_revision"], event["kv"]["key"]) for event in events]
    return [(revision, base64.b64decode(key).decode()) for revision, key in found]


async def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--rate", type=int, default=1000)
    add_options(parser, size=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "told"
        cluster = cluster_of(options, Path(name))
        async with serving(cluster) as security:
            with output.open("wb") as target:
                etcdctl = subprocess.Popen(
                    [etcd_programs() / "etcdctl", f"--endpoints={','.join(cluster.urls)}",
                     *security.etcdctl_flags, "watch", "--prefix", "w/", "--rev=1", "-w", "json"],
                    stdout=target, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            try:
                writers = Writers(cluster, security, options.rate)
                began = time.monotonic()
                writing = asyncio.create_task(writers.run())
                await kill_leaders(cluster, options.kills)
                writers.stop = True
                await writing
                seconds = time.monotonic() - began
                expected = await history(cluster, security)
                deadline = time.monotonic() + CATCH_UP_SECONDS
                while len(told(output)) < len(expected) and time.monotonic() < deadline:
                    await asyncio.sleep(0.2)
            finally:
                etcdctl.terminate()
                etcdctl.wait()
        seen = told(output)
    pairs = enumerate(zip(seen, expected, strict=False))
    differing = next((at for at, (left, right) in pairs if left != right), "the end")
    assert seen == expected, f"{len(seen)} of {len(expected)} told; they part at {differing}"
    print(
        f"{len(seen)} events over {options.kills} killed leaders, each told once and in order; "
        f"{writers.acknowledged / seconds:.0f} writes/s, {writers.failures} refused or cut off"
    )


if __name__ == "__main__":
    asyncio.run(main())
