"""A leader whose disk is really slow: its syncs are held up in the kernel, by strace."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import Cluster, Member, running

SYNC_SECONDS = 60
STALL = ["--disk-stall-ms", "500"]


@asynccontextmanager
async def slow_disk(member: Member) -> AsyncIterator[None]:
    """For the length of the block each sync of the member's files takes SYNC_SECONDS."""
    assert member.process is not None
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(member.process.pid), "-o", "/dev/null",
         "-e", "trace=fdatasync", "-e", f"inject=fdatasync:delay_enter={SYNC_SECONDS * 1_000_000}"],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert tracer.stderr is not None
        told = await asyncio.to_thread(tracer.stderr.readline)
        assert b"attached" in told, told
        yield
    finally:
        tracer.terminate()
        await asyncio.to_thread(tracer.communicate)


async def counted(cluster: Cluster, member: Member, name: str) -> float:
    _, page, _ = await cluster.call(member, "GET", "/metrics")
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            if sample.name == name:
                return sample.value
    raise AssertionError(name)


async def another_leads(cluster: Cluster, than: Member) -> Member:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        leader = await cluster.leader()
        if leader is not than:
            return leader
        await asyncio.sleep(0.05)
    raise AssertionError(than.output())


@pytest.mark.tools("strace")
async def test_a_leader_with_a_slow_disk_gives_way_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, 3, STALL) as cluster:
        victim = await cluster.leader()
        async with slow_disk(victim):
            write = asyncio.ensure_future(cluster.call(victim, "PUT", "/api/kv/k", data=b"1"))
            leader = await another_leads(cluster, victim)
            # The cluster takes writes while the sync still hangs.
            await cluster.insist(leader, "PUT", "/api/kv/k2", data=b"2")
            status = await cluster.status(victim)
            assert status["problems"] == ["the disk of the log does not answer"], status
            assert status["healthy"] is False and status["role"] == "follower"
            assert await counted(cluster, victim, "raftkv_disk_stalls_total") >= 1
            assert await counted(cluster, victim, "raftkv_disk_stall_handovers_total") >= 1
            code, _, _ = await cluster.call(victim, "GET", "/readyz")
            assert code == 503
        code, body, _ = await write
        # Other voters had it: done, or nobody can say; never a refusal.
        assert code in (200, 504), body
        await cluster.ready(victim)
        await cluster.equal_hashes()
        deadline = time.monotonic() + 10
        # Noticed with the next tick.
        while not (await cluster.status(victim))["healthy"] and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        told = victim.output()
        for sentence in (
            "the disk of the log does not answer",
            "giving leadership up, because the disk of the log does not answer",
            "the disk of the log answers again",
        ):
            assert sentence in told, told
        await cluster.insist(victim, "PUT", "/api/kv/k3", data=b"3")
