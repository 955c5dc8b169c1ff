"""One running member: a replica with a loop, a log thread, peers and files around it.

The member owns its loop. Everything of the replica happens there; one thread writes the log, one
makes snapshots. See `raftkv.server.replica` for what a turn does.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raftkv import __version__
from raftkv.consensus.config import RaftConfig
from raftkv.consensus.node import RaftNode
from raftkv.consensus.types import (
    NO_MEMBER,
    ChangeKind,
    ConfigChange,
    Message,
    ProposalDropped,
    Role,
    SnapshotMeta,
    StorageWrite,
)
from raftkv.errors import (
    ChangeRefused,
    MemberNotFound,
    NoLeader,
    OutcomeUnknown,
    RaftkvError,
)
from raftkv.limits import SNAPSHOT_CHUNK_BYTES, WATCH_PROGRESS_SECONDS
from raftkv.machine import commands
from raftkv.server.append_thread import AppendThread, Written
from raftkv.server.config import ServerConfig, split_url
from raftkv.server.opening import Opened
from raftkv.server.replica import Replica
from raftkv.server.store import Done, MemberInfo, SnapshotStream, StoreStats
from raftkv.server.transport import Transport
from raftkv.server.watch import Watch, WatchSink, WatchSpec

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_MS = 5_000
"""How long a request may be without an outcome before it is called unknown."""
STALL_MS_MIN = 500
"""A tick that comes this much too late means that the process stood still."""
HOUSEKEEPING_SECONDS = 1.0
COMPACT_ROWS_PER_SLICE = 500
COMPACT_PAUSE_SECONDS = 0.002
NO_SPACE_CLEARED_AT = 0.95
"""A space alarm clears itself once this share of the quota is used, or less."""
LEARNER_READY_SHARE = 0.9


def now_ms() -> int:
    """Monotonic milliseconds."""
    return time.monotonic_ns() // 1_000_000


class Member:
    """Implements `raftkv.server.store.Store` and the replica's `Surroundings`.

    Made of files that `raftkv.server.opening.open_member` opened. `ended` is done when the member
    can not go on: with None after `stop`, else with what to tell the operator.
    """

    def __init__(
        self, config: ServerConfig, opened: Opened, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.config = config
        self.stats = StoreStats()
        self.member_id = opened.member_id
        self.cluster_id = opened.cluster_id
        self.machine = opened.machine
        self.ended: asyncio.Future[RaftkvError | None] = loop.create_future()
        self._opened = opened
        self._loop = loop
        self._started_at = time.monotonic()
        self._stopping = False
        self._disk_full = False
        self._tick_ms = config.heartbeat_interval
        self._last_tick_ms = now_ms()
        self._next_progress = time.monotonic() + WATCH_PROGRESS_SECONDS
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._snapshotting: asyncio.Task[Any] | None = None
        self._compacting = False
        self._announcing = False
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="raftkv-snapshot")
        self._append = AppendThread(
            opened.wal,
            loop,
            self.stats,
            on_written=self._on_written,
            on_failed=self._on_failed,
            on_full=self._on_full,
        )
        node = RaftNode(
            RaftConfig(
                member_id=self.member_id,
                election_timeout_ticks=max(2, config.election_timeout // self._tick_ms),
                heartbeat_ticks=1,
                pre_vote=config.pre_vote,
            ),
            opened.log,
            random.SystemRandom(),
            applied=self.machine.applied_index,
            trace=log.debug if log.isEnabledFor(logging.DEBUG) else None,
        )
        self.replica = Replica(
            member_id=self.member_id,
            boot=secrets.randbits(48) or 1,
            node=node,
            log=opened.log,
            machine=self.machine,
            surroundings=self,
            stats=self.stats,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            watches_max=config.max_watchers,
        )
        self.node = node
        self.transport = Transport(
            member_id=self.member_id,
            cluster_id=self.cluster_id,
            listen=config.peer_addresses,
            on_messages=self._on_messages,
            on_frame=self.replica.receive_frame,
            on_unreachable=self._on_unreachable,
            on_snapshot=self._on_snapshot,
            on_introduction=self._introduce,
            snapshots=opened.snapshots,
        )
        self._role_seen = node.role
        self._leader_seen = NO_MEMBER

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for peers and begin to take part. Raises ConfigError when a port is taken."""
        await self.transport.start()
        self.members_changed()
        self._append.start()
        if self.node.conf.voters == (self.member_id,):
            self.node.campaign()
        self._timer("tick", self._tick_ms / 1000, self._tick)
        self._timer("housekeeping", HOUSEKEEPING_SECONDS, self._housekeeping)
        self.wake()

    async def stop(self) -> None:
        """Hand leadership on if possible, finish what is durable anyway, and close all files."""
        if self._stopping:
            return
        await self._hand_over()
        self._stopping = True
        for timer in self._timers.values():
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.replica.close()
        await self.transport.close()
        await self._loop.run_in_executor(None, self._append.close)
        await self._loop.run_in_executor(None, self._copier.shutdown)
        self._opened.close(clean=not self.ended.done())
        if not self.ended.done():
            self.ended.set_result(None)

    async def _hand_over(self) -> None:
        if self.node.role is not Role.LEADER or self.ended.done():
            return
        target = self._most_advanced()
        if target is None:
            return
        try:
            await asyncio.wait_for(self.transfer_leader(target), 1.0)
        except (RaftkvError, TimeoutError):
            log.info("no other member took leadership over before the stop")

    def _fail(self, error: RaftkvError) -> None:
        """The member can not go on."""
        if not self.ended.done():
            log.error("stopping: %s", error)
            self.ended.set_result(error)

    # -- Store -----------------------------------------------------------------------------------

    def stamp(self) -> tuple[int, int, int]:
        """See `Store.stamp`."""
        return self.machine.revision, self.node.term, self.member_id

    def propose(self, command: commands.Command, done: Done) -> None:
        """See `Store.propose`."""
        self.replica.propose(command, done)

    def read_index(self, done: Callable[[RaftkvError | None], None]) -> None:
        """See `Store.read_index`."""
        self.replica.read_index(done)

    def keep_alive(self, lease: int, done: Done) -> None:
        """See `Store.keep_alive`."""
        self.replica.keep_alive(lease, done)

    def lease_time(self, lease: int, done: Done) -> None:
        """See `Store.lease_time`."""
        self.replica.lease_time(lease, done)

    def watch(self, spec: WatchSpec, sink: WatchSink) -> Watch:
        """See `Store.watch`."""
        return self.replica.watch(spec, sink)

    def status(self) -> dict[str, Any]:
        """See `Store.status`."""
        node, machine, opened = self.node, self.machine, self._opened
        problems = self.health()
        return {
            "name": self.config.name,
            "member_id": f"{self.member_id:016x}",
            "cluster_id": f"{self.cluster_id:016x}",
            "version": __version__,
            "role": "learner" if node.is_learner else node.role.name.lower(),
            "leader": f"{node.leader:016x}" if node.leader != NO_MEMBER else None,
            "term": node.term,
            "revision": machine.revision,
            "compact_revision": machine.compact_revision,
            "commit_index": node.commit_index,
            "applied_index": machine.applied_index,
            "first_index": node.first_index,
            "last_index": node.last_index,
            "state_hash": machine.state_hash.hex(),
            "keys": machine.keys,
            "leases": len(self.replica.lessor) if self.replica.lessor.leading else None,
            "watchers": len(self.replica.hub),
            "db_bytes": opened.backend.file_bytes(),
            "db_used_bytes": opened.backend.used_bytes(),
            "quota_bytes": self.config.quota_backend_bytes,
            "wal_bytes": opened.wal.disk_bytes,
            "snapshot_index": self._snapshot_index(),
            "pending": self.replica.pending.commands,
            "uptime_seconds": round(time.monotonic() - self._started_at, 3),
            "alarms": [
                {"alarm": commands.AlarmKind(kind).name.lower(), "member_id": f"{member:016x}"}
                for kind, member in sorted(machine.alarms)
            ],
            "healthy": not problems,
            "problems": list(problems.values()),
        }

    def health(self) -> dict[str, str]:
        """See `Store.health`."""
        problems: dict[str, str] = {}
        if self._stopping:
            problems["stopping"] = "this member is shutting down"
        if self.node.leader == NO_MEMBER:
            problems["no_leader"] = "no leader is known"
        if self.replica.corrupt:
            problems["corrupt"] = "this member's state differs from the others'"
        if any(kind == commands.AlarmKind.NOSPACE for kind, _ in self.machine.alarms):
            problems["no_space"] = "a member is out of space: only deletes and compaction pass"
        if self.node.is_learner:
            problems["learner"] = "this member is a learner"
        return problems

    def members(self) -> list[MemberInfo]:
        """See `Store.members`."""
        leader = self.node.leader
        peers = self.node.status().peers
        return [
            MemberInfo(
                info.member_id,
                info.name,
                tuple(info.peer_urls),
                tuple(info.client_urls),
                info.learner,
                info.member_id == leader,
                peers[info.member_id].match if info.member_id in peers else None,
            )
            for info in self.machine.members()
        ]

    async def add_member(self, name: str, peer_urls: tuple[str, ...], learner: bool) -> MemberInfo:
        """See `Store.add_member`."""
        member_id = secrets.randbits(63) or 1
        kind = ChangeKind.ADD_LEARNER if learner else ChangeKind.ADD_VOTER
        await self._change(kind, member_id, [name, list(peer_urls), [], learner])
        return next(info for info in self.members() if info.member_id == member_id)

    async def remove_member(self, member_id: int) -> None:
        """See `Store.remove_member`."""
        self._known(member_id)
        await self._change(ChangeKind.REMOVE, member_id, [])

    async def promote_member(self, member_id: int) -> None:
        """See `Store.promote_member`."""
        if not self._known(member_id).learner:
            raise ChangeRefused(f"member {member_id:016x} is a voter already", member_id=member_id)
        await self._change(ChangeKind.ADD_VOTER, member_id, [])

    async def transfer_leader(self, to: int | None) -> int:
        """See `Store.transfer_leader`."""
        await self._confirmed()
        target = to if to is not None else self._most_advanced() or self.member_id
        if self._known(target).learner:
            raise ChangeRefused(f"member {target:016x} is a learner; promote it first")
        try:
            self.node.transfer_leader(target)
        except ProposalDropped as dropped:
            raise NoLeader(f"{dropped.reason}; try again shortly") from dropped
        self.wake()
        deadline = time.monotonic() + 2 * self.config.election_timeout / 1000
        while self.node.leader != target:
            if time.monotonic() > deadline:
                raise OutcomeUnknown(
                    f"member {target:016x} did not take leadership over in time; "
                    "see `raftkv status` for who leads"
                )
            await asyncio.sleep(0.01)
        return target

    async def snapshot(self) -> SnapshotStream:
        """See `Store.snapshot`."""
        await self._confirmed()
        info = await self._take_snapshot()
        size = self._opened.snapshots.size_of(info)
        return SnapshotStream(info.meta.index, self.machine.revision, size, self._chunks(info))

    # -- Surroundings ----------------------------------------------------------------------------

    def wake(self) -> None:
        """See `Surroundings.wake`."""
        self._loop.call_soon(self._turn)

    def now_ms(self) -> int:
        """See `Surroundings.now_ms`."""
        return now_ms()

    def wall_ms(self) -> int:
        """See `Surroundings.wall_ms`."""
        return time.time_ns() // 1_000_000

    def send(self, peer: int, messages: list[Message]) -> None:
        """See `Surroundings.send`."""
        self.transport.send(peer, messages)

    def send_frame(self, peer: int, kind: int, payload: bytes) -> bool:
        """See `Surroundings.send_frame`."""
        return self.transport.send_frame(peer, kind, payload)

    def append(self, write: StorageWrite) -> None:
        """See `Surroundings.append`."""
        self._append.submit(write)
