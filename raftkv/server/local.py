"""A whole store in one process and in memory: no consensus, no disk. For tests and for trying out.

`LocalStore` keeps every promise of `raftkv.server.store.Store` that one process can: the same
machine, batches a turn of the loop, leases that expire, watches fed from history. It keeps nothing
when it ends.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import raftkv
from raftkv.checks import check
from raftkv.errors import ChangeRefused, LeaseNotFound, RaftkvError, Stopping
from raftkv.limits import (
    BATCH_BYTES_MAX,
    BATCH_COMMANDS_MAX,
    FEATURE_LEVEL,
    KIB,
    LEASE_REVOKES_PER_BATCH,
    SNAPSHOT_CHUNK_BYTES,
    WATCH_PROGRESS_SECONDS,
)
from raftkv.machine.cluster import MemberInfo as RecordedMember
from raftkv.machine.commands import Command, encode_batch, lease_expire, stamp_batch
from raftkv.machine.machine import Machine
from raftkv.machine.results import Applied
from raftkv.server.shrink import Shrunk
from raftkv.server.store import (
    Done,
    KeepAliveResult,
    LeaseTime,
    MemberInfo,
    SnapshotStream,
    StoreStats,
)
from raftkv.server.watch import Watch, WatchHub, WatchSink, WatchSpec
from raftkv.storage.memory_backend import MemoryBackend

TERM: Final = 1
TICK_SECONDS: Final = 0.1
COMPACT_ROWS: Final = 1000


class LocalStore:
    """Implements `Store` on a machine in memory. Lives on the running loop; end it with `close`."""

    def __init__(self, *, member_id: int = 1, cluster_id: int = 1, name: str = "local") -> None:
        self.member_id = member_id
        self.cluster_id = cluster_id
        self.name = name
        self.stats = StoreStats()
        self.tables = MemoryBackend()
        self.machine = Machine(self.tables)
        self.machine.bootstrap(1, TERM, b"", [RecordedMember(member_id, name, (), (), False)])
        self.hub = WatchHub(self.machine, wake=self._wake)
        self._loop = asyncio.get_running_loop()
        self._queue: list[tuple[Command, Done]] = []
        self._answers: list[tuple[Done, Any]] = []
        self._scheduled = False
        self._pumping = False
        self._sequence = 0
        self._deadlines: dict[int, tuple[float, int]] = {}
        self._closed = False
        self._progress_at = self._loop.time() + WATCH_PROGRESS_SECONDS
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)

    def close(self) -> None:
        """Stop the clock; refuse what comes from now on."""
        self._closed = True
        self._timer.cancel()

    # ---- Store -------------------------------------------------------------------------------

    level = FEATURE_LEVEL
    """Nobody else has to know what this program knows."""

    def stamp(self) -> tuple[int, int, int]:
        return self.machine.revision, TERM, self.member_id

    def propose(self, command: Command, done: Done) -> None:
        self._queue.append((command, done))
        self._schedule()

    def read_index(self, done: Done) -> None:
        self.stats.reads_confirmed += 1
        self._answer(done, self._stopping())

    def keep_alive(self, lease: int, done: Done) -> None:
        ttl = self._renewed(lease)
        if ttl is None:
            self._answer(done, LeaseNotFound(f"there is no lease {lease:016x}", lease=lease))
        else:
            self._answer(done, self._stopping() or KeepAliveResult(lease, ttl))

    def keep_alives(self, leases: list[int], done: Done) -> None:
        ttls = [self._renewed(lease) for lease in leases]
        self._answer(done, self._stopping() or ttls)

    def _renewed(self, lease: int) -> int | None:
        """Its TTL in seconds, which begins anew; None: there is no such lease."""
        self.stats.keep_alives += 1
        held = self._deadlines.get(lease)
        if held is None:
            return None
        self._deadlines[lease] = (self._loop.time() + held[1], held[1])
        return held[1]

    def lease_time(self, lease: int, done: Done) -> None:
        held = self._deadlines.get(lease)
        if held is None:
            self._answer(done, LeaseNotFound(f"there is no lease {lease:016x}", lease=lease))
            return
        left = max(0, round((held[0] - self._loop.time()) * 1000))
        self._answer(done, LeaseTime(lease, held[1], left))

    def watch(self, spec: WatchSpec, sink: WatchSink) -> Watch:
        return self.hub.add(spec, sink)

    def status(self) -> dict[str, Any]:
        machine = self.machine
        return {
            "name": self.name,
            "member_id": f"{self.member_id:016x}",
            "cluster_id": f"{self.cluster_id:016x}",
            "version": raftkv.__version__,
            "role": "leader",
            "leader": f"{self.member_id:016x}",
            "term": TERM,
            "revision": machine.revision,
            "compact_revision": machine.compact_revision,
            "commit_index": machine.applied_index,
            "applied_index": machine.applied_index,
            "state_hash": machine.state_hash.hex(),
            "hash_index": machine.applied_index,
            "keys": machine.keys,
            "leases": len(self._deadlines),
            "watchers": len(self.hub),
            "alarms": [],
            "healthy": True,
        }

    def health(self) -> dict[str, str]:
        return {"stopping": "the store is closed"} if self._closed else {}

    def members(self) -> list[MemberInfo]:
        return [MemberInfo(self.member_id, self.name, (), (), False, True)]

    async def add_member(
        self,
        name: str,
        peer_urls: tuple[str, ...],
        learner: bool,
        *,
        promote: bool = False,
        instead_of: int | None = None,
    ) -> MemberInfo:
        raise ChangeRefused("a local store has one member and takes no other")

    async def remove_member(self, member_id: int) -> None:
        raise ChangeRefused("a local store has one member, which cannot leave")

    async def promote_member(self, member_id: int) -> None:
        raise ChangeRefused("a local store has no learners")

    async def transfer_leader(self, to: int | None) -> int:
        if to not in (None, self.member_id):
            raise ChangeRefused("a local store has one member, which leads")
        return self.member_id

    async def shrink(self) -> Shrunk:
        used = self.tables.used_bytes()
        return Shrunk(used, used)

    async def snapshot(self) -> SnapshotStream:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "image"
            self.tables.pin().copy_to(str(path))
            image = path.read_bytes()
        machine = self.machine
        return SnapshotStream(machine.applied_index, machine.revision, len(image), _chunks(image))

    # ---- within ------------------------------------------------------------------------------

    def wall_ms(self) -> int:
        """The wall clock that batches are stamped with, milliseconds."""
        return time.time_ns() // 1_000_000

    def _stopping(self) -> RaftkvError | None:
        return Stopping("the store is closed") if self._closed else None

    def _answer(self, done: Done, answer: Any) -> None:
        self._answers.append((done, answer))
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Apply everything that this turn of the loop has brought, as one entry."""
        self._scheduled = False
        queue, self._queue = self._queue, []
        answers, self._answers = self._answers, []
        if queue and self._closed:
            for _, done in queue:
                done(self._stopping())
        for part in _batches(queue if not self._closed else []):
            applied = self._apply([command for command, _ in part])
            for (_, done), result in zip(part, applied.results, strict=True):
                done(result)
        for done, answer in answers:
            done(answer)

    def _apply(self, commands: list[Command]) -> Applied:
        self._sequence += 1
        batch = encode_batch(self.member_id, 1, self._sequence, commands)
        data = stamp_batch(batch, self.wall_ms())
        index = self.machine.applied_index + 1
        (applied,) = self.machine.apply([(index, TERM, data)])
        check(len(applied.results) == len(commands), "one result a command")
        now = self._loop.time()
        for lease, ttl_seconds in applied.leases:
            if ttl_seconds:
                self._deadlines[lease] = (now + ttl_seconds, ttl_seconds)
            else:
                self._deadlines.pop(lease, None)
        self.stats.proposals_committed += len(commands)
        self.stats.proposals_applied += len(commands)
        if applied.events:
            self.hub.publish(applied.events)
        return applied

    def _wake(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self.hub.pump():
            self._wake()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)
        now = self._loop.time()
        expired = [lease for lease, (at, _) in self._deadlines.items() if at <= now]
        for start in range(0, len(expired), LEASE_REVOKES_PER_BATCH):
            leases = expired[start : start + LEASE_REVOKES_PER_BATCH]
            self.stats.leases_expired += len(leases)
            self._apply([lease_expire(leases, TERM)])
        if now >= self._progress_at:
            self._progress_at = now + WATCH_PROGRESS_SECONDS
            self.hub.mark_progress()
        self.machine.compact_step(COMPACT_ROWS)


def _batches(queue: list[tuple[Command, Done]]) -> Iterator[list[tuple[Command, Done]]]:
    """What was proposed, in order, in parts that each fit a batch."""
    part: list[tuple[Command, Done]] = []
    size = 0
    for proposal in queue:
        size += len(proposal[0])
        if part and (size > BATCH_BYTES_MAX - KIB or len(part) == BATCH_COMMANDS_MAX):
            yield part
            part, size = [], len(proposal[0])
        part.append(proposal)
    if part:
        yield part


async def _chunks(image: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(image), SNAPSHOT_CHUNK_BYTES):
        yield image[start : start + SNAPSHOT_CHUNK_BYTES]
