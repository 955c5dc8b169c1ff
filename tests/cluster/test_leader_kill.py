"""Kill -9 the leader, over and over, under load: writes go on, nothing acknowledged is lost."""

import time
from pathlib import Path

from tests.support.load import Writers
from tests.support.processes import running


async def test_ten_leader_kills_under_load(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster:
        async with Writers(cluster) as writers:
            gaps = []
            for _ in range(10):
                leader = await cluster.leader()
                before = len(writers.times)
                while len(writers.times) < before + 20:
                    await writers.resumed(time.monotonic())
                leader.kill()
                killed = time.monotonic()
                gaps.append(await writers.resumed(killed + 0.05) + 0.05)
                leader.start()
                await cluster.ready(leader)
            assert max(gaps) < 2.0, gaps
        await cluster.equal_hashes()
        await writers.check()
        assert len(writers.times) > 500


async def test_all_members_killed_at_once_come_back_with_everything(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster:
        acknowledged: dict[str, tuple[str, int]] = {}
        for _ in range(2):
            async with Writers(cluster) as writers:
                await writers.resumed(time.monotonic() + 0.5)
            acknowledged.update(writers.acknowledged)
            for member in cluster.members:
                member.kill()
            for member in cluster.members:
                member.start()
            for member in cluster.members:
                await cluster.ready(member)
        await cluster.equal_hashes()
        writers.acknowledged = acknowledged
        await writers.check()
