"""`kill -9` over and over, under load: `python -m tests.cluster.kills --cycles 1000 --seed 7`.

Each cycle ends one, two or all of three members at once, wherever they are, starts them again, and
waits until they serve. After every batch of cycles all that the API promises is checked of all
that clients were told. It shows that a process may die at any instruction; what a power cut does
to the disk is another test's business, since the kernel's cache survives here.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import Cluster, Member
from tests.support.progress import Progress
from tests.support.proof import Auditor, Tally, judge, settle
from tests.support.workload import Load, Mix

SMALL_LOG = ["--snapshot-log-bytes", "1MiB", "--snapshot-catchup-entries", "500"]
CYCLES_PER_BATCH = 25
MIX = Mix(plain=8, library=2, lease_holders=2, lock_holders=2, watchers=3, per_second=150)


@dataclass(slots=True)
class Kills:
    """What was done, and what was seen."""

    cycles: int = 0
    killed: int = 0
    leaders: int = 0
    at_start: int = 0
    all_at_once: int = 0
    recovery_seconds: list[float] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def __str__(self) -> str:
        slowest = max(self.recovery_seconds, default=0.0)
        usual = statistics.median(self.recovery_seconds or [0.0])
        return (
            f"{self.cycles} cycles: {self.killed} members killed ({self.leaders} times the leader, "
            f"{self.all_at_once} times all at once, {self.at_start} during their start); "
            f"serving again after {usual:.2f} s (median), {slowest:.2f} s (most)\n{self.tally}"
        )


class KillLoop:
    """Kills members of one cluster; every decision comes from `chance`."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self._cluster = cluster
        self._chance = chance
        self.kills = Kills()

    async def run(self, cycles: int, progress: Progress | None = None) -> None:
        """Kill and check. Raises AssertionError as soon as something does not hold."""
        cluster = self._cluster
        revision = int((await cluster.equal_hashes())["revision"])
        async with Auditor(lambda: cluster.urls, self._chance, revision + 1) as auditor:
            while self.kills.cycles < cycles:
                count = min(CYCLES_PER_BATCH, cycles - self.kills.cycles)
                prefix = f"b{self.kills.cycles:05}/"
                load = Load(lambda: cluster.urls, prefix, self._chance, MIX, revision + 1)
                async with load:
                    for _ in range(count):
                        await self._cycle()
                        if progress is not None:
                            progress.update(self.kills.cycles, f"{self.kills.tally.brief()}")
                    evidence = await settle(cluster, load, auditor, revision)
                judge(evidence, self.kills.tally, cluster.folder)
                revision = evidence.last_revision
                await cluster.insist(
                    await cluster.leader(), "POST", "/api/compact", json={"revision": revision}
                )

    async def _cycle(self) -> None:
        chance, cluster = self._chance, self._cluster
        victims = await self._choose()
        for member in victims:
            member.kill()
        self.kills.killed += len(victims)
        began = time.monotonic()
        for member in victims:
            member.start()
        if chance.random() < 0.15:
            # Start-up reads and mends the log: the worst moment to die in.
            victim = chance.choice(victims)
            await asyncio.sleep(chance.uniform(0.0, 0.6))
            victim.kill()
            self.kills.killed += 1
            self.kills.at_start += 1
            victim.start()
        for member in victims:
            await cluster.ready(member)
        self.kills.recovery_seconds.append(time.monotonic() - began)
        self.kills.cycles += 1
        await asyncio.sleep(chance.uniform(0.05, 0.35))

    async def _choose(self) -> list[Member]:
        chance, members = self._chance, self._cluster.members
        draw = chance.random()
        leader = await self._cluster.leader()
        if draw < 0.35:
            victims = [leader]
        elif draw < 0.65:
            victims = [chance.choice(members)]
        elif draw < 0.85:
            victims = chance.sample(members, 2)
        else:
            victims = list(members)
            self.kills.all_at_once += 1
        self.kills.leaders += leader in victims
        return victims


async def kill_cycles(
    folder: Path, cycles: int, seed: int, progress: Progress | None = None
) -> Kills:
    """Run `cycles` on a new cluster of three; raises AssertionError."""
    async with Cluster(folder, 3, SMALL_LOG) as cluster:
        loop = KillLoop(cluster, random.Random(seed))
        await loop.run(cycles, progress)
        return loop.kills


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.kills")
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    repeat = f"python -m tests.cluster.kills --cycles {given.cycles} --seed {seed}"
    print(repeat, file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="raftkv-kills-"))
    progress = Progress("kill -9", given.cycles)
    began = time.monotonic()
    try:
        kills = asyncio.run(kill_cycles(folder, given.cycles, seed, progress))
    except BaseException:
        progress.end()
        print(f"FAILED; data and logs are in {folder}\nrepeat: {repeat}", file=sys.stderr)
        raise
    progress.end()
    shutil.rmtree(folder)
    print(f"{kills}\nin {time.monotonic() - began:.0f} s; seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
