"""Space under real processes: the quota, automatic compaction, and a file that is used again."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from tests.support.processes import Cluster, Member, running
from tests.support.proof import under_load
from tests.support.workload import Mix

MIB = 1024 * 1024
QUOTA = 16 * MIB
VALUE = b"v" * (32 * 1024)


async def put(cluster: Cluster, member: Member, key: str) -> int:
    code, _, _ = await cluster.call(member, "PUT", f"/api/kv/{key}", data=VALUE)
    return code


async def until(cluster: Cluster, member: Member, wanted: Any) -> dict[str, Any]:
    """The first status of `member` that is as wanted."""
    for _ in range(600):
        status = await cluster.status(member)
        if wanted(status):
            return status
        await asyncio.sleep(0.05)
    raise AssertionError(f"never: {status}")


async def test_the_quota_is_hit_hard_and_left_again(tmp_path: Path) -> None:
    async with running(tmp_path, 3, ["--quota-backend-bytes", "16MiB"]) as cluster:
        warned = False
        refused = 0
        for start in range(0, 2_000, 20):
            codes = await asyncio.gather(
                *(
                    put(cluster, cluster.members[number % 3], f"fill/{number}")
                    for number in range(start, start + 20)
                )
            )
            assert set(codes) <= {200, 507}, codes
            status = await cluster.status(cluster.members[0])
            warned = warned or (status["space_low"] and status["healthy"])
            refused += codes.count(507)
            if refused:
                break
        assert refused and warned
        for member in cluster.members:
            status = await cluster.status(member)
            assert status["db_used_bytes"] < QUOTA * 1.05, status
        first = cluster.members[0]
        code, _, _ = await cluster.call(first, "DELETE", "/api/kv?prefix=fill/")
        assert code == 200
        code, _, _ = await cluster.call(first, "POST", "/api/compact", json={"keep": 0})
        assert code == 200
        await until(cluster, first, lambda status: not status["alarms"])
        assert await put(cluster, first, "again") == 200


async def test_history_goes_by_itself_and_its_pages_are_used_again(tmp_path: Path) -> None:
    arguments = ["--auto-compaction-retention", "1s"]
    async with running(tmp_path, 1, arguments) as cluster:
        (member,) = cluster.members
        sizes: list[int] = []
        for _ in range(12):
            for _ in range(2):
                codes = await asyncio.gather(
                    *(put(cluster, member, f"k{number}") for number in range(64))
                )
                assert set(codes) == {200}
            revision = (await cluster.status(member))["revision"]
            # Only revisions that are old enough go, so the next round's make this one's go.
            await asyncio.sleep(1.2)
            assert await put(cluster, member, "tick") == 200
            await until(
                cluster, member, lambda status, past=revision: status["compact_revision"] >= past
            )
            sizes.append((await cluster.status(member))["db_bytes"])
        # 12 rounds wrote 48 MiB, twice over in the tables; what is alive are 2 MiB. Where
        # compaction comes late once, a round is written before the last one's pages are free:
        # 128 values, each on nine pages of 4 KiB, since a record is longer than its value.
        assert max(sizes[6:]) <= max(sizes[:6]) + 6 * MIB, sizes
        assert sizes[-1] < 32 * MIB, sizes


async def fill_and_empty(cluster: Cluster, member: Member, count: int) -> None:
    """Leave tables that are nearly all free space."""
    for start in range(0, count, 50):
        numbers = range(start, start + 50)
        await asyncio.gather(*(put(cluster, member, f"fill/{number}") for number in numbers))
    code, _, _ = await cluster.call(member, "DELETE", "/api/kv?prefix=fill/")
    assert code == 200
    code, _, _ = await cluster.call(member, "POST", "/api/compact", json={"keep": 0})
    assert code == 200
    await until(cluster, member, lambda status: status["db_used_bytes"] < 2 * MIB)


async def test_space_goes_back_to_the_disk_under_load(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster:
        first = cluster.members[0]
        await fill_and_empty(cluster, first, 3_000)
        mix = Mix(plain=4, library=1, watchers=2, per_second=100)
        async with under_load(cluster, 1, mix):
            await asyncio.sleep(0.3)
            for member in cluster.members:
                on_disk = tables_on_disk(member)
                code, body, _ = await cluster.call(member, "POST", "/api/shrink", json={})
                assert code == 200 and body["after_bytes"] * 5 < body["before_bytes"], body
                assert tables_on_disk(member) < on_disk
            await asyncio.sleep(0.3)
        await cluster.equal_hashes()


def tables_on_disk(member: Member) -> int:
    return (member.data_dir / "tables" / "data.mdb").stat().st_blocks * 512


async def test_a_member_killed_while_it_gives_space_back_has_lost_nothing(tmp_path: Path) -> None:
    chance = random.Random(5)
    async with running(tmp_path, 1) as cluster:
        (member,) = cluster.members
        await fill_and_empty(cluster, member, 300)
        for number in range(200):
            assert await put(cluster, member, f"kept/{number}") == 200
        acknowledged = 200
        for _ in range(12):
            shrink = asyncio.ensure_future(cluster.call(member, "POST", "/api/shrink", json={}))
            until_s = asyncio.get_running_loop().time() + chance.uniform(0.0, 0.15)
            while asyncio.get_running_loop().time() < until_s:
                assert await put(cluster, member, f"kept/{acknowledged}") == 200
                acknowledged += 1
            member.kill()
            await asyncio.gather(shrink, return_exceptions=True)
            member.start()
            await cluster.ready(member)
            code, body, _ = await cluster.call(
                member, "GET", "/api/kv?prefix=kept/&count_only=true"
            )
            assert code == 200 and body["count"] == acknowledged, body
            names = sorted(path.name for path in member.data_dir.iterdir())
            assert "tables.twin" not in names, names
        code, _, _ = await cluster.call(member, "POST", "/api/shrink", json={})
        assert code == 200
