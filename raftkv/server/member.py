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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
    PeerError,
    RaftkvError,
    TooManyRequests,
)
from raftkv.limits import REMOVED_LINGER_TIMEOUTS, SHRINK_CATCH_UP_SECONDS
from raftkv.machine import commands
from raftkv.machine.commands import AlarmKind, Command
from raftkv.machine.machine import Worked
from raftkv.server.append_thread import AppendThread, Written
from raftkv.server.append_thread import monotonic_ms as now_ms
from raftkv.server.aside import Aside
from raftkv.server.backups import Backups, BackupSettings
from raftkv.server.config import ServerConfig, split_url
from raftkv.server.disk_watch import successors
from raftkv.server.file_chunks import file_chunks
from raftkv.server.leading import Leading
from raftkv.server.levels import AUTO_PROMOTION, PeerLevels, check_agreed
from raftkv.server.opening import Opened
from raftkv.server.replica import Batch, Replica
from raftkv.server.shrink import PAUSE_SECONDS, Shrink, Shrunk
from raftkv.server.store import Done, MemberInfo, SnapshotStream, StoreStats
from raftkv.server.sync_pace import SyncPace
from raftkv.server.tls.settings import peer_tls
from raftkv.server.transport import Transport
from raftkv.server.upkeep import (
    COMPACT_PAUSE_SECONDS,
    COMPACT_PAUSE_SHARE,
    HOUSEKEEPING_SECONDS,
    Upkeep,
    UpkeepSettings,
)
from raftkv.server.watch import Watch, WatchSink, WatchSpec
from raftkv.storage.lmdb_backend import LmdbBackend
from raftkv.storage.snapshots import SnapshotInfo

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_MS = 7_000
"""How long a request may be without an outcome before it is called unknown.

As in etcd by default: 5 s to queue, compute and reach the disk, and two election timeouts of 1 s.
"""


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
        self.member_id = opened.identity.member_id
        self.cluster_id = opened.identity.cluster_id
        self.machine = opened.machine
        self.ended: asyncio.Future[RaftkvError | None] = loop.create_future()
        self._opened = opened
        self._loop = loop
        self._started_at = time.monotonic()
        self._stopping = False
        self._turn_due = False
        self._turn_scheduled = False
        self._tick_ms = config.heartbeat_interval
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._snapshotting: asyncio.Task[Any] | None = None
        self._installing = False
        self._copies = 0
        """Snapshots of this member's own in the making; tables are not replaced meanwhile."""
        self._compacting = False
        self._formatting: asyncio.Future[None] | None = None
        self._shrink: Shrink | None = None
        self._shrinking: asyncio.Task[Shrunk] | None = None
        self._aside = Aside(loop, opened.machine, opened.backend)
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="raftkv-snapshot")
        self._append = AppendThread(
            opened.wal,
            loop,
            self.stats,
            SyncPace(),
            may_wait=self._may_wait,
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
        self._upkeep = Upkeep(
            UpkeepSettings(
                name=config.name,
                client_urls=tuple(config.advertised_client_urls),
                tick_ms=self._tick_ms,
                quota_bytes=config.quota_backend_bytes,
                snapshot_log_bytes=config.snapshot_log_bytes,
                snapshot_catchup_entries=config.snapshot_catchup_entries,
                disk_stall_ms=config.disk_stall_ms,
                retention=config.retention,
            ),
            self.replica,
            opened,
            now_ms(),
            lambda: self._append.busy_since_ms,
        )
        self._levels = PeerLevels(config.feature_level, lambda: self.machine.level)
        self._leading = Leading(self._levels, self.replica)
        self._backups = Backups(BackupSettings.of(config), opened, self.stats, self._take_snapshot)
        self.transport = Transport(
            member_id=self.member_id,
            cluster_id=self.cluster_id,
            listen=config.peer_addresses,
            on_messages=self._on_messages,
            on_frame=self.replica.receive_frame,
            on_unreachable=self._on_unreachable,
            on_snapshot=self._on_snapshot,
            on_fatal=self._on_failed,
            on_introduction=self._introduce,
            snapshots=opened.snapshots,
            snapshot_executor=self._copier,
            levels=self._levels,
            tls=peer_tls(config),
        )
        self.stats.peers = self.transport.stats
        if isinstance(opened.backend, LmdbBackend):
            self.stats.table_commit_times = opened.backend.commits
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
        if self._backups.on:
            self._spawn(self._backups.run())
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
        await self._backups.close()
        self.replica.close()
        await self.transport.close()
        self._append.end()
        await self._loop.run_in_executor(None, self._append.join)
        await self._loop.run_in_executor(None, self._aside.close)
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

    @property
    def level(self) -> int:
        """See `Store.level`."""
        return self.machine.level

    def stamp(self) -> tuple[int, int, int]:
        """See `Store.stamp`."""
        return self.machine.revision, self.node.term, self.member_id

    def propose(self, command: Command, done: Done) -> None:
        """See `Store.propose`."""
        self.replica.propose(command, done)

    def read_index(self, done: Callable[[RaftkvError | None], None]) -> None:
        """See `Store.read_index`."""
        self.replica.read_index(done)

    def keep_alive(self, lease: int, done: Done) -> None:
        """See `Store.keep_alive`."""
        self.replica.keep_alive(lease, done)

    def keep_alives(self, leases: list[int], done: Done) -> None:
        """See `Store.keep_alives`."""
        self.replica.keep_alives(leases, done)

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
            "level": machine.level,
            "term": node.term,
            "revision": machine.revision,
            "compact_revision": machine.compact_revision,
            "commit_index": node.commit_index,
            "applied_index": machine.applied_index,
            "first_index": node.first_index,
            "last_index": node.last_index,
            "state_hash": machine.state_hash.hex(),
            "hash_index": machine.applied_index,
            "keys": machine.keys,
            "leases": len(self.replica.lessor) if self.replica.lessor.leading else None,
            "watchers": len(self.replica.hub),
            "db_bytes": opened.backend.file_bytes(),
            "db_used_bytes": opened.backend.used_bytes(),
            "quota_bytes": self.config.quota_backend_bytes,
            "space_low": self._upkeep.space.low,
            "shrink": self._shrink.progress() if self._shrink is not None else None,
            "wal_bytes": opened.wal.disk_bytes,
            "snapshot_index": self._upkeep.snapshot_index,
            **self._backups.status(),
            "pending": self.replica.pending.commands,
            "uptime_seconds": round(time.monotonic() - self._started_at, 3),
            "alarms": [
                {"alarm": AlarmKind(kind).name.lower(), "member_id": f"{member:016x}"}
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
        if any(kind == AlarmKind.NOSPACE for kind, _ in self.machine.alarms):
            problems["no_space"] = "a member is out of space: only deletes and compaction pass"
        if self._upkeep.disk_stalled:
            problems["disk_stalled"] = "the disk of the log does not answer"
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

    async def add_member(
        self,
        name: str,
        peer_urls: tuple[str, ...],
        learner: bool,
        *,
        promote: bool = False,
        instead_of: int | None = None,
    ) -> MemberInfo:
        """See `Store.add_member`."""
        if promote:
            check_agreed(self.machine, AUTO_PROMOTION, "promotion by the leader")
        changes: list[tuple[ChangeKind, int]] = []
        if instead_of is not None:
            self._known(instead_of)
            changes.append((ChangeKind.REMOVE, instead_of))
        member_id = secrets.randbits(63) or 1
        changes.append((ChangeKind.ADD_LEARNER if learner else ChangeKind.ADD_VOTER, member_id))
        await self._change(tuple(changes), [member_id, name, list(peer_urls), [], learner])
        if promote:
            command = commands.guarded(commands.member_promotion(member_id), commands.BY_MEMBER)
            await self._outcome(lambda done: self.propose(command, done))
        return next(info for info in self.members() if info.member_id == member_id)

    async def remove_member(self, member_id: int) -> None:
        """See `Store.remove_member`."""
        self._known(member_id)
        await self._change(((ChangeKind.REMOVE, member_id),), [member_id])

    async def promote_member(self, member_id: int) -> None:
        """See `Store.promote_member`."""
        if not self._known(member_id).learner:
            raise ChangeRefused(f"member {member_id:016x} is a voter already", member_id=member_id)
        await self._change(((ChangeKind.ADD_VOTER, member_id),), [member_id])

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
        # Counted low under writes: what is certainly inside.
        revision = self.machine.revision
        info = await self._take_snapshot()
        # It may be an older file; a backup that was damaged since is worse than none.
        snapshots = self._opened.snapshots
        await self._loop.run_in_executor(self._copier, snapshots.verify, info)
        chunks = file_chunks(snapshots, info, self._copier)
        return SnapshotStream(info.meta.index, revision, info.size, chunks)

    async def shrink(self) -> Shrunk:
        """See `Store.shrink`."""
        if self._shrinking is None:
            self._shrinking = self._loop.create_task(self._run_shrink())
            self._tasks.add(self._shrinking)
            self._shrinking.add_done_callback(self._shrink_ended)
        return await asyncio.shield(self._shrinking)

    # -- Surroundings ----------------------------------------------------------------------------

    def wake(self) -> None:
        """See `Surroundings.wake`."""
        self._turn_due = True
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._woken)

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

    def send_snapshot(self, message: Message) -> None:
        """See `Surroundings.send_snapshot`."""
        snapshots = self._opened.snapshots
        info = snapshots.latest()
        peer = message.target
        if info is None or message.snapshot is None or info.meta.index < message.snapshot.index:
            self._loop.call_soon(self._snapshot_sent, peer, False)
            return
        log.info("sending a snapshot", extra={"to": f"{peer:016x}", "index": info.meta.index})
        message = Message(message.kind, message.source, peer, message.term, snapshot=info.meta)
        self.transport.send_snapshot(
            peer, message, info, snapshots, lambda delivered: self._snapshot_sent(peer, delivered)
        )

    def install(self, meta: SnapshotMeta) -> None:
        """See `Surroundings.install`."""
        self._spawn(self._install(meta))

    def apply_aside(self, entries: list[Batch]) -> None:
        """See `Surroundings.apply_aside`."""
        self._aside.start(entries, self._worked_out)

    def _worked_out(self, worked: Worked | None) -> None:
        try:
            self.replica.worked_out(worked)
        except Exception as error:
            self._crashed(error)

    async def _install(self, meta: SnapshotMeta) -> None:
        self._installing = True
        try:
            while self._copies:
                await asyncio.sleep(0.01)
            await self._loop.run_in_executor(self._copier, self._opened.stage_snapshot, meta)
            while self._aside.busy:
                await asyncio.sleep(0.01)
            self._opened.backend.install()
            self.machine.reload()
        finally:
            self._installing = False
        log.info("installed a snapshot", extra={"index": meta.index})
        self.replica.installed(meta)

    def members_changed(self) -> None:
        """See `Surroundings.members_changed`."""
        urls = {info.member_id: info.peer_urls for info in self.machine.members()}
        urls = urls or self._opened.introduced
        self.transport.set_peers(
            {
                member_id: [split_url(url) for url in peer_urls]
                for member_id, peer_urls in urls.items()
                if member_id != self.member_id
            }
        )

    def removed(self) -> None:
        """See `Surroundings.removed`."""
        log.warning("removed from the cluster: answers its members a little longer, then ends")
        seconds = REMOVED_LINGER_TIMEOUTS * self.config.election_timeout / 1000
        error = ChangeRefused(
            "this member was removed from its cluster; wipe its data directory before it "
            "is added again"
        )
        self._timer("removed", seconds, partial(self._fail, error))

    # -- what arrives ----------------------------------------------------------------------------

    def _woken(self) -> None:
        self._turn_scheduled = False
        if self._turn_due:
            self._turn()

    def _turn(self) -> None:
        self._turn_due = False
        if self._stopping or self.ended.done():
            return
        try:
            self.replica.turn()
        except Exception as error:
            self._crashed(error)
            return
        role, leader = self.node.role, self.node.leader
        if role is not self._role_seen or leader != self._leader_seen:
            self._role_seen, self._leader_seen = role, leader
            log.info(
                "%s",
                "leading" if role is Role.LEADER else role.name.lower(),
                extra={
                    "term": self.node.term,
                    "leader": f"{leader:016x}" if leader != NO_MEMBER else "none",
                },
            )
            self._upkeep.announce()
        quiet = self._snapshotting is None and self._shrink is None and not self._installing
        if quiet and self._upkeep.snapshot_due():
            self._snapshotting = self._spawn(self._snapshot_and_compact())
        if self.machine.compaction_pending and not self._compacting:
            self._compacting = True
            self._loop.call_soon(self._compact_slice)

    def _crashed(self, error: Exception) -> None:
        """A bug or a broken file: nothing may be repaired here, the member ends."""
        log.critical("this member cannot go on", exc_info=error)
        if isinstance(error, RaftkvError):
            self._fail(error)
        else:
            self._fail(RaftkvError(f"{type(error).__name__}: {error}"))

    def _on_messages(self, peer: int, messages: list[Message]) -> None:
        if not self._stopping:
            try:
                self.replica.receive(peer, messages)
            except PeerError:
                raise
            except Exception as error:
                self._crashed(error)

    def _on_unreachable(self, peer: int) -> None:
        self.node.report_unreachable(peer)

    def _on_snapshot(self, peer: int, message: Message) -> None:
        """A snapshot's whole file arrived and was verified."""
        self._on_messages(peer, [message])

    def _snapshot_sent(self, peer: int, delivered: bool) -> None:
        if delivered:
            self.stats.snapshots_sent += 1
        self.node.report_snapshot(peer, delivered)
        self.wake()

    def _may_wait(self) -> bool:
        """Whether the loop may wait for a sync: not while others need this member's heartbeats."""
        return self.node.role is not Role.LEADER or not self.transport.peers

    def _on_written(self, written: Written) -> None:
        if self._stopping or self.ended.done():
            return
        try:
            for write, _ in written:
                self.stats.wal_bytes_written += sum(len(entry.data) for entry in write.entries)
            self.replica.written(written)
        except Exception as error:
            self._crashed(error)
            return
        self._turn()

    def _on_failed(self, error: BaseException) -> None:
        """The log could not be written or synced: nothing is known about it any more."""
        if isinstance(error, RaftkvError):
            self._fail(error)
        else:
            self._fail(RaftkvError(f"the log failed: {type(error).__name__}: {error}"))

    def _on_full(self, full: bool) -> None:
        if full:
            log.error("the disk of the log is full: no write is acknowledged until there is space")
        else:
            log.info("the disk of the log has space again")
        self._upkeep.log_disk_full = full

    # -- time ------------------------------------------------------------------------------------

    def _timer(self, name: str, seconds: float, callback: Callable[[], None]) -> None:
        self._timers[name] = self._loop.call_later(seconds, callback)

    def _tick(self) -> None:
        self._timer("tick", self._tick_ms / 1000, self._tick)
        try:
            self._upkeep.tick(now_ms())
        except Exception as error:
            self._crashed(error)

    def _housekeeping(self) -> None:
        self._timer("housekeeping", HOUSEKEEPING_SECONDS, self._housekeeping)
        try:
            job = self._upkeep.housekeeping(now_ms())
            self._leading.step()
        except Exception as error:
            self._crashed(error)
            return
        if job is not None:
            self._append.run(job)
        self._keep_format()
        self.wake()

    def _compact_slice(self) -> None:
        if self._stopping or self.ended.done():
            return
        if self._aside.busy:
            self._timer("compact", COMPACT_PAUSE_SECONDS, self._compact_slice)
            return
        began = time.perf_counter()
        try:
            more = self._upkeep.compact_slice()
        except Exception as error:
            self._crashed(error)
            return
        if more:
            took = time.perf_counter() - began
            pause = max(COMPACT_PAUSE_SECONDS, COMPACT_PAUSE_SHARE * took)
            self._timer("compact", pause, self._compact_slice)
        else:
            self._compacting = False

    # -- snapshots -------------------------------------------------------------------------------

    async def _snapshot_and_compact(self) -> None:
        try:
            await self._take_snapshot()
        except RaftkvError as error:
            log.error("no snapshot could be taken: %s", error)
            await asyncio.sleep(10)
        finally:
            self._snapshotting = None

    async def _take_snapshot(self) -> SnapshotInfo:
        """Make a snapshot of the applied state beside the traffic, and let go of the old log."""
        opened = self._opened
        while self._installing or self._shrink is not None:
            await asyncio.sleep(0.01)
        self._copies += 1
        try:
            info = await self._loop.run_in_executor(self._copier, opened.begin_snapshot())
        finally:
            self._copies -= 1
        await self._backups.before_release()
        self._append.run(self._upkeep.snapshot_made(info))
        return info

    async def _run_shrink(self) -> Shrunk:
        while self._installing or self._copies:
            await asyncio.sleep(0.01)
        shrink = self._shrink = Shrink(self._opened)
        self._copies += 1
        try:
            await self._loop.run_in_executor(self._copier, shrink.copy)
            deadline = self._loop.time() + SHRINK_CATCH_UP_SECONDS
            while self._aside.busy or (shrunk := shrink.catch_up()) is None:
                if self._loop.time() > deadline:
                    raise TooManyRequests(
                        "writes came faster than a copy of the tables took them in; "
                        "nothing was changed, try again when there are fewer"
                    )
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._copies -= 1
            self._shrink = None
            shrink.close()
        log.info(
            "gave space back to the disk",
            extra={"before_bytes": shrunk.before_bytes, "after_bytes": shrunk.after_bytes},
        )
        return shrunk

    def _shrink_ended(self, task: asyncio.Task[Shrunk]) -> None:
        self._tasks.discard(task)
        self._shrinking = None
        if not task.cancelled() and task.exception() is not None:
            log.warning("no space was given back to the disk: %s", task.exception())

    # -- membership ------------------------------------------------------------------------------

    def _known(self, member_id: int) -> Any:
        for info in self.machine.members():
            if info.member_id == member_id:
                return info
        raise MemberNotFound(f"no member {member_id:016x} in this cluster", member_id=member_id)

    def _most_advanced(self) -> int | None:
        return next(iter(successors(self.node)), None)

    async def _change(
        self, changes: tuple[tuple[ChangeKind, int], ...], attributes: list[Any]
    ) -> None:
        change = ConfigChange(changes)
        await self._outcome(lambda done: self.replica.change_members(change, attributes, done))

    def _keep_format(self) -> None:
        """The files say which programs must not open them; written once a level is agreed."""
        data, level = self._opened.data, self.machine.level
        if level and data.outdated(level) and self._formatting is None:
            self._formatting = self._loop.run_in_executor(self._copier, data.reformat, level)
            self._formatting.add_done_callback(self._formatted)

    def _formatted(self, done: asyncio.Future[None]) -> None:
        self._formatting = None
        if not done.cancelled() and done.exception() is not None:
            log.error("the format of the data directory cannot be noted: %s", done.exception())

    async def _confirmed(self) -> None:
        """Wait until local state is as new as any acknowledged write."""
        await self._outcome(self.replica.read_index)

    async def _outcome(self, start: Callable[[Done], None]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()

        def done(result: Any) -> None:
            if not future.done():
                future.set_result(result)

        start(done)
        result = await future
        if isinstance(result, RaftkvError):
            raise result
        return result

    def _introduce(self) -> list[Any]:
        """Who is in the cluster, for newcomers that know only an address of it."""
        # A member announces its client addresses as soon as it takes part.
        members = [
            [info.member_id, info.name, info.peer_urls, bool(info.client_urls)]
            for info in self.machine.members()
        ]
        return [self.cluster_id, members]

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            self._crashed(error if isinstance(error, Exception) else RaftkvError(str(error)))
