"""Members that stand still and go on as if nothing had been: SIGSTOP and SIGCONT under load."""

import asyncio
from pathlib import Path

from tests.support.processes import running
from tests.support.proof import under_load
from tests.support.workload import Mix

MIX = Mix(plain=6, library=2, lease_holders=2, lock_holders=2, watchers=3, per_second=150)
SHORTER, LONGER = 0.3, 1.5
"""Than the election time-out of 0.6 to 1.2 seconds."""


async def test_pauses_are_no_harm(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster, under_load(cluster, 1, MIX):
        for leading, seconds in ((False, SHORTER), (True, SHORTER), (True, LONGER)):
            leader = await cluster.leader()
            follower = next(each for each in cluster.members if each is not leader)
            victim = leader if leading else follower
            victim.pause()
            await asyncio.sleep(seconds)
            victim.resume()
            # It does not know yet how late it is: reads that it answers now are the test.
            await asyncio.sleep(0.3)
        for member in cluster.members:
            member.pause()
        await asyncio.sleep(LONGER)
        for member in cluster.members:
            member.resume()
