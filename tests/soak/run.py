"""The whole soak: a cluster, half of its peak as load, and an operator's day as a schedule."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from raftkv.errors import RaftkvError
from tests.soak.clients import Clients
from tests.soak.judge import Faults, Life, check_memory, lives
from tests.soak.load import PREFIX, Load
from tests.soak.operations import Operator, client_of
from tests.soak.registers import Registers
from tests.soak.sampling import Sampler
from tests.support.certificates import Pki
from tests.support.processes import Cluster, Member
from tests.support.progress import Progress

PEAK_SECONDS = 15.0
SAMPLE_SECONDS = 5.0
SETTLE_SECONDS = 60.0
FAILURES = (
    AssertionError, OSError, RaftkvError, aiohttp.ClientError, subprocess.SubprocessError,
)  # fmt: skip
"""Of an operation: a fault to be named, and the rest goes on."""
WARM_SECONDS = 180.0
LIFE_SECONDS = 600.0
BOUND_BYTES_PER_HOUR = 24 * 2**20
"""For the second half. At some hundred requests a second an hour is more than a million: what
leaves one small object (56 bytes) behind with every one of them, grows by 56 MiB and more. Less
than that is in the noise of the allocator and of the tables' caches, which fill for a while."""

SCHEDULE: tuple[tuple[float, str], ...] = (
    (0.04, "transfer"),
    (0.08, "rotate_certificates"),
    (0.14, "kill_leader"),
    (0.19, "restore_snapshot"),
    (0.25, "rolling_restart"),
    (0.31, "replace"),
    (0.36, "kill_leader"),
    (0.40, "transfer"),
    (0.44, "fill_the_quota"),
    (0.50, "transfer"),
    (0.56, "rotate_authority"),
    (0.64, "restore_moment"),
    (0.71, "fill_the_quota"),
    (0.78, "rotate_certificates"),
    (0.83, "transfer"),
    (0.87, "restore_snapshot"),
)
"""When, as a share of the whole, and what. Nothing restarts in the second half, so that each
process has half an hour in which its memory can be judged; and each has by then met what needs most
memory, filler in large values, so that a mark which that leaves in the allocator is no growth."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    minutes: float
    seed: int

    @property
    def arguments(self) -> list[str]:
        """Settings of the members: history of a twentieth of the run, one to three minutes.

        The quota has room for that, and for what is remembered of idempotency keys: those of ten
        minutes, 100,000 at most, a page for four of them.
        """
        kept = max(60, min(180, int(self.minutes * 3)))
        every = max(20, min(300, int(self.minutes * 5)))
        return [
            "--quota-backend-bytes", "96MiB" if self.minutes < 10 else "256MiB",
            "--auto-compaction-mode", "periodic", "--auto-compaction-retention", f"{kept}s",
            "--backup-interval", f"{every}s", "--backup-keep", "3", "--archive-interval", "1s",
            "--wal-segment-bytes", "32MiB",
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Happened:
    """One thing that the operator did."""

    at: float
    seconds: float
    kind: str
    what: str


class Soak:
    """One run; everything that it saw is here afterwards."""

    def __init__(self, folder: Path, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.faults = Faults()
        self.happened: list[Happened] = []
        self.peak = 0.0
        self.seconds = 0.0
        self.lives: list[Life] = []
        self.load: Load
        self.registers: Registers
        self.sampler: Sampler
        self.operator: Operator
        self._folder = folder
        self._progress = progress
        self._chance = random.Random(plan.seed)

    async def run(self) -> None:
        """See the module. What does not hold is in `faults`."""
        pki = Pki(self._folder / "pki")
        saved = self._folder / "saved"
        where = ["--backup-dir", str(saved), "--archive-dir", str(saved)]
        arguments = [*self.plan.arguments, *where]
        async with Cluster(self._folder, 3, arguments, certificates=pki) as cluster:
            await switch_on_access_control(cluster)
            clients = Clients(lambda: cluster.urls, lambda: pki.client("soak"))
            self.load = Load(clients, self.faults, self._chance)
            revision = int((await cluster.equal_hashes())["revision"])
            self.registers = Registers(lambda: cluster.urls, pki, self.faults, self._chance)
            self.operator = Operator(
                cluster, pki, self.load, self.faults, saved, self._chance.getrandbits(32)
            )
            try:
                await self.load.follow(revision + 1)
                self.peak = await self.load.peak(PEAK_SECONDS)
                await self._under_load(cluster)
                await self._settle(cluster, pki)
            finally:
                await self.load.close()

    async def _under_load(self, cluster: Cluster) -> None:
        began = time.monotonic()
        self.sampler = Sampler(cluster, self.load, began)
        for latencies in self.load.latencies:
            latencies.clear()
        self.load.start(self.peak / 2)
        beside = [
            asyncio.create_task(self.sampler.run(SAMPLE_SECONDS)),
            asyncio.create_task(self.registers.run()),
            asyncio.create_task(self._look(began)),
        ]
        try:
            for share, kind in SCHEDULE:
                await self._wait(began + share * self.plan.minutes * 60, beside)
                await self._do(kind, getattr(self.operator, kind), began)
            await self._wait(began + self.plan.minutes * 60, beside)
        finally:
            self.seconds = time.monotonic() - began
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self.load.stop()

    async def _wait(self, until: float, beside: list[asyncio.Task[None]]) -> None:
        """Until then, as long as everything beside goes on."""
        while True:
            self.load.check_alive()
            for task in beside:
                if task.done():
                    task.result()
            if (left := until - time.monotonic()) <= 0:
                return
            await asyncio.sleep(min(left, 0.5))

    async def _do(self, kind: str, doing: Callable[[], Awaitable[str]], began: float) -> None:
        at = time.monotonic()
        try:
            what = await doing()
        except FAILURES as error:
            what = f"failed: {error}"
            self.faults.add(f"{kind} {what}")
        self.happened.append(
            Happened(round(at - began, 1), round(time.monotonic() - at, 1), kind, what)
        )

    async def _look(self, began: float) -> None:
        """Judge what has come, every second, and say at once what does not hold."""
        said = 0
        while True:
            await asyncio.sleep(1)
            for sentence in self.faults.said[said:]:
                print(f"\n{sentence}", file=sys.stderr, flush=True)
            said = len(self.faults.said)
            self.load.ledger.reconcile()
            self.load.leases.overdue(time.monotonic())
            done = self.load.ledger.confirmed_writes
            last = self.happened[-1].kind if self.happened else "quiet"
            spent = time.monotonic() - began
            self._progress.update(
                # The end itself is said at once, and is yet to come while operations are late.
                min(spent, self.plan.minutes * 60 - 1),
                f"{done} writes confirmed, {self.faults.count} faults, last: {last}",
            )

    async def _settle(self, cluster: Cluster, pki: Pki) -> None:
        """The end: all members alike, and all that was acknowledged on each of them."""
        for member in cluster.members:
            await cluster.ready(member)
        await cluster.equal_hashes(SETTLE_SECONDS)
        ledger = self.load.ledger
        last = max((each.revision for each in ledger.keys.values()), default=0)
        deadline = time.monotonic() + SETTLE_SECONDS
        while any(each.complete < max(last, each.last) for each in ledger.followers):
            if time.monotonic() > deadline:
                self.faults.add(f"watches do not come to the last write, revision {last}")
                break
            await asyncio.sleep(0.1)
        ledger.settle(
            {member.name: await contents(cluster, member, pki) for member in cluster.members}
        )
        half = self.seconds / 2
        found = [
            (each.member, each.pid, each.at, float(each.private_bytes))
            for each in self.sampler.samples
        ]
        self.lives = lives(found, half, self.seconds, WARM_SECONDS, LIFE_SECONDS)
        check_memory(self.lives, BOUND_BYTES_PER_HOUR, self.faults)


async def contents(cluster: Cluster, member: Member, pki: Pki) -> dict[str, tuple[str, int]]:
    """What one member itself has under the load's prefix."""
    held: dict[str, tuple[str, int]] = {}
    cursor: str | None = None
    async with client_of(pki, [member.client_url]) as client:
        while True:
            page = await client.range(
                prefix=PREFIX, cursor=cursor, limit=500, consistency="serializable"
            )
            held |= {each.key: (each.text, each.mod_revision) for each in page.records}
            if not page.more:
                return held
            cursor = page.cursor


async def switch_on_access_control(cluster: Cluster) -> None:
    """root may do everything; soak its own keys and its own services."""
    first = cluster.members[0]
    for user in ("root", "soak"):
        body = {"user": user, "password": f"{user}-pass"}
        await cluster.insist(first, "POST", "/api/auth/users", json=body)
    await cluster.insist(first, "PUT", "/api/auth/users/root/roles/root")
    await cluster.insist(first, "POST", "/api/auth/roles", json={"role": "soak"})
    for grant in ({"prefix": "soak/"}, {"service": "soak"}):
        await cluster.insist(
            first, "POST", "/api/auth/roles/soak/permissions", json={"access": "readwrite", **grant}
        )
    await cluster.insist(first, "PUT", "/api/auth/users/soak/roles/soak")
    await cluster.insist(first, "POST", "/api/auth/enable")
