"""One simulated member: the production replica, log, snapshots and upkeep under virtual time."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from raftkv.checks import check
from raftkv.consensus import codec
from raftkv.consensus.config import RaftConfig
from raftkv.consensus.node import RaftNode
from raftkv.consensus.types import (
    ConfigChange,
    Message,
    ProposalDropped,
    Role,
    SnapshotMeta,
    StorageWrite,
)
from raftkv.errors import (
    DiskFullError,
    FormatError,
    NoLeader,
    OutcomeUnknown,
    RaftkvError,
    StorageError,
)
from raftkv.limits import DISK_STALL_MS_DEFAULT, FEATURE_LEVEL, MIB, REMOVED_LINGER_TIMEOUTS
from raftkv.machine.commands import Command
from raftkv.machine.machine import Machine
from raftkv.machine.results import Applied
from raftkv.server.auto_compaction import KEEP_ALL, Retention
from raftkv.server.bootstrap import Founding
from raftkv.server.leading import Leading
from raftkv.server.levels import check_known
from raftkv.server.opening import Opened, open_files
from raftkv.server.replica import Batch, Replica
from raftkv.server.store import Done, StoreStats
from raftkv.server.upkeep import (
    COMPACT_PAUSE_SECONDS,
    HOUSEKEEPING_SECONDS,
    Upkeep,
    UpkeepSettings,
)
from raftkv.server.watch import Watch, WatchSink, WatchSpec
from raftkv.simulation.backups import SimBackups
from raftkv.simulation.disk import SimDisk
from raftkv.simulation.levels import SimLevels
from raftkv.simulation.log_writer import LogWriter
from raftkv.simulation.shrinking import Shrinking
from raftkv.simulation.tables import SimTables
from raftkv.simulation.transfers import Transfers
from raftkv.simulation.witness import DurableLog
from raftkv.simulation.world import SECOND_US, World
from raftkv.storage.datadir import DataDir
from raftkv.storage.frames import WalIdentity
from raftkv.storage.snapshots import SnapshotInfo

if TYPE_CHECKING:
    from raftkv.simulation.cluster import SimCluster

DATA_DIRECTORY = "/raftkv"
WALL_MS = 1_700_000_000_000
"""Wall clock at the beginning of time."""
ASIDE_US_MAX = 300_000
"""How long an apply takes that is done aside."""


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """How a simulated member is set up; small sizes, so that every change-over happens often."""

    tick_ms: int = 100
    election_timeout_ticks: int = 10
    pre_vote: bool = True
    segment_bytes: int = 64 * 1024
    snapshot_log_bytes: int = 32 * 1024
    snapshot_catchup_entries: int = 20
    quota_bytes: int = 64 * MIB
    retention: Retention = KEEP_ALL
    feature_level: int = FEATURE_LEVEL
    """What the program knows that is started next, see `raftkv.server.levels`."""
    append_bytes_max: int = 64 * 1024
    inflight_messages_max: int = 16
    request_timeout_ms: int = 5_000
    snapshot_chunk_bytes: int = 4096
    turn_us_max: int = 100
    """A turn of the loop begins at most this long after it was asked for."""
    sync_us_min: int = 100
    sync_us_max: int = 1_500
    slow_sync: float = 0.0
    """This sync takes up to `slow_sync_us_max` instead."""
    slow_sync_us_max: int = 800_000
    disk_stall_ms: int = DISK_STALL_MS_DEFAULT
    install_us_max: int = 20_000
    """How long the tables' change to a received snapshot may take."""
    clock_rate: float = 1.0
    """This member's clock against true time."""
    archive_interval_ms: int = 0
    """How often the log is archived; 0: never, and no bases are kept."""
    encode_messages: bool = False
    """Put every message through the wire format."""


class SimMember:
    """A member's machine, disk and, while it is up, its process. Implements `Surroundings`.

    Requests go in by `propose`, `read`, `keep_alive`, `watch` and `change_members`, as from a
    client's connection: `done` is called once, with `OutcomeUnknown` if the process ends first.
    """

    def __init__(
        self,
        cluster: SimCluster,
        member_id: int,
        name: str,
        founding: Founding,
        *,
        founder: bool,
        settings: MemberSettings,
    ) -> None:
        self.cluster = cluster
        self.world: World = cluster.world
        self.member_id = member_id
        self.name = name
        self.settings = settings
        self.disk = SimDisk(random.Random(self.world.random.getrandbits(64)))
        self.tables = SimTables()
        self.durable = DurableLog(self._entry_replaced)
        self.wall_wrong_ms = self.world.random.randrange(-5_000, 5_000)
        self.life = 0
        """Counts the processes of this member."""
        self.claimed: list[tuple[int, int]] = []
        """What this member took for archived, as (first, last) indexes."""
        self.newest_level = 0
        """The highest feature level of a program that ever ran here."""
        self.up = False
        self.gone = False
        """Removed from the cluster; its process has ended for good."""
        self.failed_start: RaftkvError | None = None
        self.paused_until_us = 0
        self._deaf = False
        self._founding = replace(founding, member_id=member_id)
        self._founder = founder
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def __repr__(self) -> str:
        return f"SimMember({self.name})"

    def _entry_replaced(self, index: int, term: int, crc: int) -> None:
        self.cluster.invariants.replaced(self, index, term, crc)

    # -- the process -----------------------------------------------------------------------------

    def start(self) -> bool:
        """Boot the process from what is on disk; False: it could not start, see `failed_start`."""
        check(not self.up, "a member is started once", member=self.name)
        self.life += 1
        self.failed_start = None
        self._backlog = []
        self.paused_until_us = 0
        try:
            opened = self._open()
        except StorageError as error:
            self.failed_start = error
            if isinstance(error, FormatError):
                self.cluster.promises.seen["old program refused by its files"] += 1
            self.world.note(self.name, f"does not start: {error}")
            self.disk.crash()
            return False
        self._take_up(opened)
        return True

    def _open(self) -> Opened:
        data = DataDir.open(self.disk, DATA_DIRECTORY)
        level = self.settings.feature_level
        check_known(data.level, level, data.path)
        if data.identity is None:
            data.found(WalIdentity(self._founding.cluster_id, self.member_id))
        opened = open_files(
            self.disk,
            data,
            founding=self._founding,
            found_new=self._founder,
            segment_bytes=self.settings.segment_bytes,
            tables=self.tables.open,
            spawn=lambda job: self.later(self.world.random.randrange(5_000), job),
        )
        check_known(opened.machine.level, level, data.path)
        return opened

    def _take_up(self, opened: Opened) -> None:
        world, settings = self.world, self.settings
        self.up = True
        self.opened = opened
        self.machine: Machine = opened.machine
        self.machine.listener = self
        self.newest_level = max(self.newest_level, settings.feature_level)
        self.levels = SimLevels(self)
        self.cluster.invariants.started(self)
        wal = opened.wal
        wal.witness = self.durable
        self._writer = LogWriter(self, wal, self._written)
        self._installing = False
        self._aside = False
        self.copies = 0
        """Threads that read the tables: no image can take their place meanwhile."""
        self._snapshotting = False
        self.shrinking: Shrinking | None = None
        """The tables are being given back what space they do not need."""
        self._compacting = False
        self._waiting: dict[int, Done] = {}
        self._watches: dict[WatchSink, Watch] = {}
        self.transfers = Transfers(self)
        self._requests = 0
        self.node = RaftNode(
            RaftConfig(
                member_id=self.member_id,
                election_timeout_ticks=settings.election_timeout_ticks,
                pre_vote=settings.pre_vote,
                append_bytes_max=settings.append_bytes_max,
                inflight_messages_max=settings.inflight_messages_max,
            ),
            opened.log,
            random.Random(world.random.getrandbits(64)),
            applied=self.machine.applied_index,
            trace=(lambda text: world.note(self.name, text)) if world.story is not None else None,
        )
        self.replica = Replica(
            member_id=self.member_id,
            boot=world.random.getrandbits(48) | 1,
            node=self.node,
            log=opened.log,
            machine=self.machine,
            surroundings=self,
            stats=StoreStats(),
            request_timeout_ms=settings.request_timeout_ms,
            watches_max=1_000,
        )
        self.upkeep = Upkeep(
            UpkeepSettings(
                name=self.name,
                client_urls=(f"http://{self.name}:2379",),
                tick_ms=settings.tick_ms,
                quota_bytes=settings.quota_bytes,
                snapshot_log_bytes=settings.snapshot_log_bytes,
                snapshot_catchup_entries=settings.snapshot_catchup_entries,
                disk_stall_ms=settings.disk_stall_ms,
                retention=settings.retention,
            ),
            self.replica,
            opened,
            self.now_ms(),
            lambda: self._writer.syncing_since_ms,
        )
        self.backups = SimBackups(self)
        self.leading = Leading(self.levels.told, self.replica)
        if world.story is not None:
            world.note(
                self.name,
                f"starts at level {self.levels.own}: term={self.node.term} "
                f"log={self.node.first_index}..{self.node.last_index} "
                f"applied={self.machine.applied_index}",
            )
        if self.node.conf.voters == (self.member_id,):
            self.deliver(self.node.campaign)
        self.later(world.random.randrange(settings.tick_ms * 1000), self._tick)
        self.later(world.random.randrange(SECOND_US), self._housekeeping)
        self.wake()

    def crash(self, *, power: bool = False) -> None:
        """End the process at once; with `power`, the machine too: what was not synced may be lost.

        A machine may lose power while its process is down already.
        """
        if power:
            self.disk.power_cut()
            self.tables.power_cut(self.world.random)
            self.world.note(self.name, "loses power")
        else:
            self.disk.crash()
            self.world.note(self.name, "is killed")
        self._end()

    def stop(self) -> None:
        """End the process as an operator would: everything queued is written, files are closed."""
        if not self.up:
            return
        self.world.note(self.name, "stops")
        self.replica.close()
        try:
            self._writer.finish()
            self.opened.wal.close()
            self.opened.close(clean=True)
        except StorageError as error:
            self.world.note(self.name, f"does not stop cleanly: {error}")
        self.disk.crash()
        self._end()

    def pause(self, microseconds: int) -> None:
        """Let the process stand still, as by SIGSTOP. At times what peers send it is lost, so that
        it goes on with what it knew, although it serves requests that came meanwhile."""
        if not self.up or self.paused_until_us > self.world.now_us:
            return
        self._deaf = self.world.chance(0.5)
        self.paused_until_us = self.world.now_us + microseconds
        self.world.at(self.paused_until_us, self._resumed, self.life)

    def resume(self) -> None:
        """Let a paused process go on now."""
        self.paused_until_us = self.world.now_us
        self._resumed(self.life)

    def _resumed(self, life: int) -> None:
        if self.up and life == self.life and self.paused_until_us <= self.world.now_us:
            self.world.note(self.name, "goes on")
            backlog, self._backlog = self._backlog, []
            for callback, arguments in backlog:
                self.later(0, callback, *arguments)

    def _end(self) -> None:
        if not self.up:
            return
        self.up = False
        lost = OutcomeUnknown("the connection to the member was lost")
        for done in list(self._waiting.values()):
            self.world.after(0, done, lost)
        self._waiting = {}
        for sink in self._watches:
            self.world.after(0, sink.closed, lost)
        self._watches = {}

    def _died(self, error: RaftkvError) -> None:
        """The process ends itself, as `Member` does."""
        self.world.note(self.name, f"ends itself: {error}")
        self.disk.crash()
        self._end()
        self.cluster.died(self)

    def later(self, delay_us: int, callback: Callable[..., None], *arguments: Any) -> None:
        """Call within this process, if it is still there."""
        self.world.after(delay_us, self._fire, self.life, callback, arguments)

    def deliver(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Something arrives from outside, now."""
        self._fire(self.life, callback, arguments)

    def _fire(self, life: int, callback: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life != self.life or not self.up:
            return
        if self.paused_until_us > self.world.now_us:
            self._backlog.append((callback, arguments))
            return
        failed: StorageError | None = None
        try:
            callback(*arguments)
        except StorageError as error:
            failed = error
        if self.up:
            # Also of a step that failed half-way: what it sent is on its way.
            self.cluster.invariants.check(self)
        if failed is not None:
            self._died(failed)

    # -- requests --------------------------------------------------------------------------------

    def propose(self, command: Command, done: Done) -> None:
        """As `Store.propose`."""
        self.ask(done, lambda tracked: self.replica.propose(command, tracked))

    def read(self, query: Callable[[Machine], Any], done: Done, *, serializable: bool) -> None:
        """done(query(machine)), linearizably or of what is here; or done(error)."""

        def begin(tracked: Done) -> None:
            def confirmed(error: RaftkvError | None) -> None:
                if error is not None:
                    tracked(error)
                    return
                try:
                    answer = query(self.machine)
                except RaftkvError as refused:
                    answer = refused
                tracked(answer)

            if serializable:
                confirmed(None)
            else:
                self.replica.read_index(confirmed)

        self.ask(done, begin)

    def keep_alive(self, lease: int, done: Done) -> None:
        """As `Store.keep_alive`."""
        self.ask(done, lambda tracked: self.replica.keep_alive(lease, tracked))

    def change_members(self, change: ConfigChange, attributes: list[Any], done: Done) -> None:
        """As `Replica.change_members`."""
        self.ask(done, lambda tracked: self.replica.change_members(change, attributes, tracked))

    def watch(
        self,
        spec: WatchSpec,
        sink: WatchSink,
        through: Callable[[WatchSpec, WatchSink], Watch] | None = None,
    ) -> None:
        """As `Store.watch`, or by what stands before it; a refusal comes by `sink.closed`."""

        def begin() -> None:
            try:
                self._watches[sink] = (through or self.replica.watch)(spec, sink)
            except RaftkvError as refused:
                sink.closed(refused)

        if self.up:
            self.deliver(begin)
        else:
            self.world.after(0, sink.closed, _not_there())

    def watch_of(self, sink: WatchSink) -> Watch | None:
        """The watch that feeds `sink`, while the process lives."""
        return self._watches.get(sink) if self.up else None

    def unwatch(self, sink: WatchSink) -> None:
        """End a watch."""
        watch = self._watches.pop(sink, None) if self.up else None
        if watch is not None:
            watch.cancel()

    def transfer_leader(self, target: int) -> None:
        """Ask for leadership to be handed over; refusals are nobody's business here."""

        def ask() -> None:
            with contextlib.suppress(ProposalDropped):
                self.node.transfer_leader(target)
            self.wake()

        self.deliver(ask)

    def ask(self, done: Done, begin: Callable[[Done], None]) -> None:
        """begin(tracked) in the process that runs now; what it tells `tracked` goes to `done`,
        unless the process ends before."""
        if not self.up:
            self.world.after(0, done, _not_there())
            return
        self._requests += 1
        token, life = self._requests, self.life
        self._waiting[token] = done

        def tracked(answer: Any) -> None:
            if life == self.life and self._waiting.pop(token, None) is not None:
                done(answer)

        self.deliver(begin, tracked)

    def working_out(self, entries: Sequence[Batch]) -> None:
        """See `ApplyListener.working_out`."""
        if self.levels.own < FEATURE_LEVEL:
            self.levels.check_known(entries)
        self._worked_entries = entries

    def adopted(self, applied: list[Applied]) -> None:
        """Every event of the cluster is seen here, at the first member that applies it."""
        for entry in applied:
            self.cluster.happened(entry.events)
        for listener in self.cluster.on_applied:
            listener(self, self._worked_entries, applied)

    def configured(self, applied: Applied) -> None:
        """See `ApplyListener.configured`."""
        self.cluster.promises.configured(applied)

    @property
    def leads(self) -> bool:
        """Whether this member believes that it leads."""
        return self.up and self.node.role is Role.LEADER

    # -- Surroundings ----------------------------------------------------------------------------

    def wake(self) -> None:
        """See `Surroundings.wake`."""
        self.later(self.world.below(self.settings.turn_us_max), self._turn)

    def now_ms(self) -> int:
        """See `Surroundings.now_ms`."""
        return int(self.world.now_us * self.settings.clock_rate) // 1000

    def wall_ms(self) -> int:
        """See `Surroundings.wall_ms`."""
        return WALL_MS + self.wall_wrong_ms + self.world.now_us // 1000

    def send(self, peer: int, messages: list[Message]) -> None:
        """See `Surroundings.send`."""
        for message in messages:
            self.cluster.invariants.told(self, message)
            if self.settings.encode_messages:
                [message] = codec.decode_messages(codec.encode_messages([message]))
            self.to_peer(peer, "_receive", message)

    def send_frame(self, peer: int, kind: int, payload: bytes) -> bool:
        """See `Surroundings.send_frame`."""
        return self.to_peer(peer, "_receive_frame", kind, payload)

    def to_peer(self, peer: int, method: str, *items: Any) -> bool:
        """Have a method of the peer called with this member's id and `items`; False: it is lost
        for certain."""
        target = self.cluster.members.get(peer)
        if target is None:
            return False
        sent = self.cluster.network.send(
            self.member_id, peer, target.arrive, self.member_id, method, items
        )
        if not sent:
            self.later(1_000, self._unreachable, peer)
        return sent

    def arrive(self, source: int, method: str, items: tuple[Any, ...]) -> None:
        """Something from a peer, off the network."""
        if self._deaf and self.paused_until_us > self.world.now_us:
            return
        if self.up and self.levels.admits(self.cluster.members[source]):
            self.deliver(attrgetter(method)(self), source, *items)

    def _unreachable(self, peer: int) -> None:
        self.node.report_unreachable(peer)

    def _receive(self, source: int, message: Message) -> None:
        self.replica.receive(source, [message])

    def _receive_frame(self, source: int, kind: int, payload: bytes) -> None:
        self.replica.receive_frame(source, kind, payload)

    def append(self, write: StorageWrite) -> None:
        """See `Surroundings.append`."""
        self._writer.add(write)

    def _written(self, written: Any) -> None:
        self.replica.written(written)
        self._turn()

    def members_changed(self) -> None:
        """See `Surroundings.members_changed`. The simulated network knows everybody."""

    def removed(self) -> None:
        """See `Surroundings.removed`."""
        self.gone = True
        timeout_us = self.settings.election_timeout_ticks * self.settings.tick_ms * 1000
        self.later(REMOVED_LINGER_TIMEOUTS * timeout_us, self._leave)

    def _leave(self) -> None:
        self.world.note(self.name, "is removed, and ends")
        self.disk.crash()
        self._end()

    # -- time ------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self.replica.turn()
        quiet = not self._snapshotting and self.shrinking is None and not self._installing
        if quiet and self.upkeep.snapshot_due():
            self._snapshotting = True
            self._begin_copy()
        if self.machine.compaction_pending and not self._compacting:
            self._compacting = True
            self.later(0, self._compact_slice)

    def _tick(self) -> None:
        tick_us = int(self.settings.tick_ms * 1000 / self.settings.clock_rate)
        self.later(tick_us, self._tick)
        self.upkeep.tick(self.now_ms())

    def _housekeeping(self) -> None:
        self.later(int(HOUSEKEEPING_SECONDS * SECOND_US), self._housekeeping)
        job = self.upkeep.housekeeping(self.now_ms())
        if job is not None:
            self._writer.add(job)
        last_index = self.node.last_index
        self.leading.step()
        self.cluster.promises.led(self, last_index)
        if self.opened.data.outdated(self.machine.level):
            self.later(self.world.random.randrange(50_000), self._note_level)
        self.wake()

    def _note_level(self) -> None:
        # What fails is tried again, as long as the former format is there.
        with contextlib.suppress(StorageError):
            self.opened.data.reformat(self.machine.level)

    def _compact_slice(self) -> None:
        if self.upkeep.compact_slice():
            self.later(int(COMPACT_PAUSE_SECONDS * SECOND_US), self._compact_slice)
        else:
            self._compacting = False

    # -- snapshots -------------------------------------------------------------------------------

    def _begin_copy(self) -> None:
        self.copies += 1
        make = self.opened.begin_snapshot()
        self.later(self.world.random.randrange(50_000), self._copied, make)

    def _copied(self, make: Callable[[], SnapshotInfo]) -> None:
        self.copies -= 1
        try:
            info = make()
        except DiskFullError:
            self.later(10 * SECOND_US, self._snapshot_over)
            return
        self.backups.before_release(self._release, info)

    def _release(self, info: SnapshotInfo) -> None:
        self._writer.add(self.upkeep.snapshot_made(info))
        self._snapshot_over()

    def shrink(self) -> None:
        """As `Store.shrink`, unless that goes on already."""
        if self.up and self.shrinking is None:
            self.shrinking = Shrinking(self)
            self.deliver(self.shrinking.begin)

    def _snapshot_over(self) -> None:
        self._snapshotting = False

    def install(self, meta: SnapshotMeta) -> None:
        """See `Surroundings.install`."""
        self._installing = True
        self.later(self.world.random.randrange(1_000), self._stage, meta)

    def _stage(self, meta: SnapshotMeta) -> None:
        if self.copies:
            self.later(10_000, self._stage, meta)
            return
        self.opened.stage_snapshot(meta)
        self.later(self.world.below(self.settings.install_us_max), self._installed, meta)

    def _installed(self, meta: SnapshotMeta) -> None:
        if self._aside:
            self.later(10_000, self._installed, meta)
            return
        self.opened.backend.install()
        self.machine.reload()
        self._installing = False
        self.world.note(self.name, f"installed the snapshot at {meta.index}")
        self.replica.installed(meta)

    def apply_aside(self, entries: list[Batch]) -> None:
        """See `Surroundings.apply_aside`."""
        self._aside = True
        self.later(self.world.random.randrange(ASIDE_US_MAX), self._work_out, entries)

    def _work_out(self, entries: list[Batch]) -> None:
        self._aside = False
        worked = None
        with contextlib.suppress(DiskFullError):
            worked = self.machine.work_out(entries)
        self.replica.worked_out(worked)

    @property
    def tables_busy(self) -> bool:
        """Whether the tables are being copied or replaced, so that no image can be taken in."""
        return self._installing or self.copies > 0

    @property
    def installing(self) -> bool:
        """Whether the tables are about to be replaced by a received snapshot."""
        return self._installing or self.replica._installing > 0

    def send_snapshot(self, message: Message) -> None:
        """See `Surroundings.send_snapshot`."""
        self.transfers.send(message)

    def snapshot_sent(self, peer: int, delivered: bool) -> None:
        """A transfer to `peer` has ended, one way or the other."""
        self.node.report_snapshot(peer, delivered)
        self.wake()


def _not_there() -> NoLeader:
    return NoLeader("the member does not run; nothing was done")
