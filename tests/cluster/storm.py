"""Everything at once, for as long as it takes: `python -m tests.cluster.storm --minutes 20`.

Three members behind proxies are killed, paused, cut off, slowed down and replaced, leadership is
handed around and history compacted, while recorded clients do all that the API offers. Every
minute or so everything is mended, and all that clients were told is judged.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.networks import ProxiedCluster
from tests.support.processes import Member
from tests.support.progress import Progress
from tests.support.proof import Auditor, Tally, judge, leases_end, settle
from tests.support.workload import Load, Mix

EXTRA = ["--snapshot-log-bytes", "4MiB", "--snapshot-catchup-entries", "500"]
ROUND_SECONDS = 60.0
MIX = Mix(plain=32, library=4, lease_holders=4, lock_holders=3, watchers=4, per_second=700.0)
KEPT_REVISIONS = 300
"""Compaction leaves at least these to watches that are behind."""


@dataclass(slots=True)
class Storm:
    """What was done, and what was seen."""

    seed: int
    minutes: float
    seconds: float = 0.0
    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in self.faults.most_common())
        rate = self.tally.operations / max(1.0, self.seconds)
        return (
            f"{self.seconds:.0f} s in {self.rounds} rounds: {faults}\n"
            f"{self.tally}\n{rate:.0f} operations a second; seed {self.seed}"
        )

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "seconds": round(self.seconds, 1),
            "rounds": self.rounds,
            "faults": dict(self.faults),
            "checked": dataclasses.asdict(self.tally),
        }


class Nemesis:
    """Spoils one cluster, one fault after another, and mends it again.

    Faults are told apart by name; every decision comes from `chance`.
    """

    def __init__(self, cluster: ProxiedCluster, chance: random.Random) -> None:
        self._cluster = cluster
        self._chance = chance
        self.faults: Counter[str] = Counter()
        self._kinds: list[tuple[int, Callable[[], Awaitable[str]]]] = [
            (5, self._kill),
            (4, self._pause),
            (4, self._isolate),
            (4, self._cut_one_way),
            (2, self._slow),
            (3, self._transfer),
            (1, self._replace),
        ]

    async def run(self, until: float) -> None:
        """Faults until `until` on the monotonic clock; the cluster is whole afterwards."""
        weights = [weight for weight, _ in self._kinds]
        while time.monotonic() < until:
            [(_, fault)] = self._chance.choices(self._kinds, weights)
            self.faults[await fault()] += 1
            await asyncio.sleep(self._chance.uniform(0.2, 1.5))
        for member in self._cluster.members:
            await self._cluster.ready(member)

    async def _victims(self) -> list[Member]:
        """One member, the leader more often than not; sometimes two, or all."""
        members, draw = self._cluster.members, self._chance.random()
        if draw < 0.5:
            return [await self._cluster.leader(seconds=20.0)]
        if draw < 0.75:
            return [self._chance.choice(members)]
        return self._chance.sample(members, 2) if draw < 0.9 else list(members)

    async def _kill(self) -> str:
        victims = await self._victims()
        for member in victims:
            member.kill()
        await asyncio.sleep(self._chance.choice((0.0, 0.0, self._chance.uniform(0.0, 3.0))))
        for member in victims:
            member.start()
        for member in victims:
            await self._cluster.ready(member)
        return f"kills of {len(victims)}"

    async def _pause(self) -> str:
        victims = await self._victims()
        for member in victims:
            member.pause()
        await asyncio.sleep(self._chance.uniform(0.1, 3.0))
        for member in victims:
            member.resume()
        return f"pauses of {len(victims)}"

    async def _isolate(self) -> str:
        victim = (await self._victims())[0]
        swallow = self._chance.random() < 0.4
        for other in self._cluster.members:
            if other is not victim:
                self._cluster.cut(victim, other, swallow)
                self._cluster.cut(other, victim, swallow)
        await self._troubled()
        return "members cut off"

    async def _cut_one_way(self) -> str:
        """Some of the six flows between three members, in any pattern."""
        members = self._cluster.members
        flows = [(one, two) for one in members for two in members if one is not two]
        swallow = self._chance.random() < 0.4
        for one, two in self._chance.sample(flows, self._chance.randint(1, 3)):
            self._cluster.cut(one, two, swallow)
        await self._troubled()
        return "one-way cuts"

    async def _slow(self) -> str:
        members = self._cluster.members
        for one in members:
            for two in members:
                if one is not two:
                    self._cluster.slow(one, two, self._chance.uniform(0.0, 0.3))
        await self._troubled()
        return "slow networks"

    async def _troubled(self) -> None:
        """Let a fault of the network last, perhaps with a kill on top; then mend it."""
        await asyncio.sleep(self._chance.uniform(0.3, 2.0))
        if self._chance.random() < 0.2:
            victim = self._chance.choice(self._cluster.members)
            victim.kill()
            victim.start()
            self.faults["kills in the middle"] += 1
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        self._cluster.heal()

    async def _transfer(self) -> str:
        target = self._chance.choice(self._cluster.members)
        asked = self._chance.choice(self._cluster.members)
        try:
            member_id = (await self._cluster.status(target))["member_id"]
            await self._cluster.call(asked, "POST", "/api/leader/transfer", json={"to": member_id})
        except (aiohttp.ClientError, OSError, TimeoutError):
            return "transfers without an answer"
        return "transfers"

    async def _replace(self) -> str:
        """A new member comes, learns and votes; an old one, perhaps the leader, goes."""
        cluster = self._cluster
        for member in cluster.members:
            await cluster.ready(member)
        newcomer = await cluster.add(learner=True)
        await cluster.ready_or_learner(newcomer)
        await cluster.learn(newcomer)
        await cluster.promote(newcomer)
        await cluster.ready(newcomer)
        await cluster.remove(self._chance.choice(cluster.members[:-1]))
        return "members replaced"


async def compact(cluster: ProxiedCluster, auditor: Auditor, chance: random.Random) -> None:
    """Forget history every few seconds, but nothing that the auditor has not seen."""
    while True:
        await asyncio.sleep(chance.uniform(2.0, 8.0))
        revision = auditor.revision - KEPT_REVISIONS
        member = chance.choice(cluster.members)
        if revision > 1:
            try:
                await cluster.call(member, "POST", "/api/compact", json={"revision": revision})
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue


async def storm(
    folder: Path,
    minutes: float,
    seed: int,
    progress: Progress | None = None,
    round_seconds: float = ROUND_SECONDS,
    mix: Mix = MIX,
) -> Storm:
    """Run it on a new cluster; raises AssertionError as soon as something does not hold."""
    chance = random.Random(seed)
    done = Storm(seed, minutes)
    began = time.monotonic()
    end = began + minutes * 60
    async with ProxiedCluster(folder, 3, EXTRA) as cluster:
        nemesis = Nemesis(cluster, random.Random(chance.getrandbits(64)))
        done.faults = nemesis.faults
        revision = int((await cluster.equal_hashes())["revision"])
        urls = lambda: cluster.urls  # noqa: E731
        async with Auditor(urls, chance, revision + 1) as auditor:
            while time.monotonic() < end:
                prefix = f"r{done.rounds:04}/"
                async with Load(urls, prefix, chance, mix, revision + 1) as load:
                    until = min(time.monotonic() + round_seconds, end)
                    ticker = asyncio.create_task(_tick(progress, began, load, done))
                    compaction = asyncio.create_task(compact(cluster, auditor, chance))
                    try:
                        await nemesis.run(until)
                    finally:
                        for task in (ticker, compaction):
                            task.cancel()
                        await asyncio.gather(ticker, compaction, return_exceptions=True)
                    evidence = await settle(cluster, load, auditor, revision)
                # In a thread: the proxies between the members live on this loop.
                await asyncio.to_thread(judge, evidence, done.tally, cluster.folder)
                revision = evidence.last_revision
                done.rounds += 1
                done.seconds = time.monotonic() - began
        await leases_end(cluster)
        await cluster.equal_hashes()
    return done


async def _tick(progress: Progress | None, began: float, load: Load, done: Storm) -> None:
    while progress is not None:
        operations = done.tally.operations + len(load.history.operations)
        progress.update(
            time.monotonic() - began, f"{operations} operations, {sum(done.faults.values())} faults"
        )
        await asyncio.sleep(0.5)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.storm")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--out", type=Path, default=None, help="where to write the figures as JSON")
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    repeat = f"python -m tests.cluster.storm --minutes {given.minutes:g} --seed {seed}"
    print(repeat, file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="raftkv-storm-"))
    progress = Progress("storm", given.minutes * 60)
    try:
        done = asyncio.run(storm(folder, given.minutes, seed, progress))
    except BaseException:
        progress.end()
        print(f"FAILED; data and logs are in {folder}\nrepeat: {repeat}", file=sys.stderr)
        raise
    progress.end()
    shutil.rmtree(folder)
    print(done)
    if given.out is not None:
        given.out.write_text(json.dumps(done.as_json(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
