"""Disks that are full, and disks that fail, under real processes with a recorded load.

A full disk takes nothing away: writes are refused until there is space. A disk that fails a sync
or a write cannot be trusted any more: the member ends, and says why.
"""

import asyncio
import errno
import time
from pathlib import Path
from typing import Any

import pytest

from raftkv.cli.exits import FAILED
from tests.support.disks import fill, small_disk
from tests.support.processes import Cluster, Member, running
from tests.support.proof import under_load
from tests.support.workload import Mix

MIX = Mix(plain=4, library=1, lease_holders=1, lock_holders=1, watchers=3, per_second=100)
DISK_MIB = 200
"""The tables set 112 MiB aside, a log segment takes 32, and so does the next one."""
SMALL_SEGMENTS = ["--wal-segment-bytes", "32MiB"]
VALUE_BYTES = 256 * 1024


async def lead(cluster: Cluster, member: Member) -> None:
    """Make `member` the leader."""
    member_id = (await cluster.status(member))["member_id"]
    await cluster.insist(member, "POST", "/api/leader/transfer", json={"to": member_id})


async def until_refused(cluster: Cluster) -> dict[str, Any]:
    """Write large values through all members until one is refused; the refusal."""
    for number in range(400):
        member = cluster.members[number % len(cluster.members)]
        code, body, _ = await cluster.call(
            member, "PUT", f"/api/kv/fill/{number}", data=b"x" * VALUE_BYTES
        )
        if code != 200:
            return dict(body)
    raise AssertionError("nothing is refused")


@pytest.mark.privileged
@pytest.mark.parametrize("leading", [True, False], ids=["leader", "follower"])
async def test_a_full_disk_refuses_writes_and_loses_nothing(tmp_path: Path, leading: bool) -> None:
    with small_disk(tmp_path / "n1", DISK_MIB):
        async with running(tmp_path, 3, SMALL_SEGMENTS) as cluster:
            victim, other, _ = cluster.members
            await lead(cluster, victim if leading else other)
            async with under_load(cluster, 1, MIX):
                await asyncio.sleep(0.5)
                ballast = fill(victim.data_dir)
                refusal = await until_refused(cluster)
                assert (refusal["code"], refusal["outcome"]) == ("no_space", "refused"), refusal
                for member in (victim, other):
                    code, body, _ = await cluster.call(member, "DELETE", "/api/kv/fill/0")
                    assert code == 200, body
                    code, body, _ = await cluster.call(
                        member, "POST", "/api/compact", json={"revision": 2}
                    )
                    assert code in (200, 410), body
                assert (await cluster.status(victim))["alarms"]
                await asyncio.sleep(0.5)
                ballast.unlink()
                await writable(cluster, victim)
            assert not (await cluster.status(victim))["alarms"]


async def writable(cluster: Cluster, member: Member, seconds: float = 10.0) -> None:
    """Wait until a member takes writes again."""
    deadline = time.monotonic() + seconds
    while True:
        code, body, _ = await cluster.call(member, "PUT", "/api/kv/after", data=b"x")
        if code == 200:
            return
        assert time.monotonic() < deadline, body
        await asyncio.sleep(0.05)


def faulty(member: Member, *faults: str) -> None:
    """Start `member` on a disk with faults; see fiu-run(1) for what they are called."""
    member.command = ["fiu-run", "-x"]
    for fault in faults:
        member.command += ["-c", fault]
    member.start()


async def ended(member: Member, seconds: float = 20.0) -> int:
    """Wait for the process to end by itself; its exit code."""
    assert member.process is not None
    return await asyncio.to_thread(member.process.wait, seconds)


@pytest.mark.privileged
async def test_a_member_whose_disk_fails_ends_and_says_why(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster, under_load(cluster, 2, MIX):
        victim = cluster.members[0]
        for call in ("sync/fdatasync", "rw/pwrite"):
            victim.kill()
            fault = f"enable_random name=posix/io/{call},probability=0.05,failinfo={errno.EIO}"
            faulty(victim, fault)
            assert await ended(victim) == FAILED, victim.output()
            last = victim.output().splitlines()[-1]
            assert last.startswith("error: ") and "Input/output error" in last, last
            victim.command = []
            victim.start()
            await cluster.ready(victim)


@pytest.mark.privileged
async def test_writes_that_the_kernel_takes_in_parts_are_whole(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster, under_load(cluster, 3, MIX):
        victim = cluster.members[0]
        victim.stop()
        faulty(victim, "enable_random name=posix/io/rw/pwrite/reduce,probability=0.3")
        await cluster.ready(victim)
        await lead(cluster, victim)
        await asyncio.sleep(1.0)
        # What it wrote has to be read back, too.
        victim.kill()
        victim.command = []
        victim.start()
        await cluster.ready(victim)
