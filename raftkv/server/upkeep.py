"""What a member does of its own accord: ticks, its space alarm, its name, snapshots, compaction.

No clock, thread or socket: the shell around it (`raftkv.server.member`, or a simulation) calls at
the right times and runs what takes long. So a simulated member decides as a real one does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raftkv.buggify import buggify
from raftkv.consensus.types import NO_MEMBER, Role
from raftkv.errors import RaftkvError
from raftkv.limits import DISK_STALL_MS_DEFAULT, SPACE_FREE_AT, WATCH_PROGRESS_SECONDS
from raftkv.machine import commands
from raftkv.server.auto_compaction import KEEP_ALL, AutoCompaction, Retention
from raftkv.server.disk_watch import BusySince, DiskWatch, never_busy
from raftkv.server.space import Space

if TYPE_CHECKING:
    from raftkv.server.opening import Opened
    from raftkv.server.replica import Replica
    from raftkv.storage.snapshots import SnapshotInfo
    from raftkv.storage.wal import Wal

log = logging.getLogger(__name__)

STALL_MS_MIN = 500
"""A tick that comes this much too late means that the process stood still."""
HOUSEKEEPING_SECONDS = 1.0
COMPACT_ROWS_PER_SLICE = 500
COMPACT_PAUSE_SECONDS = 0.002
"""Between two slices, at the least."""
COMPACT_PAUSE_SHARE = 4
"""For so many times as long as a slice took: compaction has a fifth of the loop, no more."""
SNAPSHOT_SHARE = 4
"""A snapshot is due when the log since the last one is more than this part of the data. A write
takes about two and a half times its log bytes in the tables, so snapshots come at a growing
distance: each costs about what was written since the one before."""


@dataclass(frozen=True, slots=True)
class UpkeepSettings:
    """What of a member's configuration matters here."""

    name: str
    client_urls: tuple[str, ...]
    tick_ms: int
    quota_bytes: int
    snapshot_log_bytes: int
    """No snapshot before the log since the last one is larger than this."""
    snapshot_catchup_entries: int
    """Entries that a snapshot leaves in the log, for followers that are a little behind."""
    disk_stall_ms: int = DISK_STALL_MS_DEFAULT
    """A leader whose log is at one write or sync for so long gives leadership up."""
    retention: Retention = KEEP_ALL
    """History that automatic compaction leaves."""


class Upkeep:
    """See the module. Everything is called on the loop that owns the member."""

    def __init__(
        self,
        settings: UpkeepSettings,
        replica: Replica,
        opened: Opened,
        now_ms: int,
        busy_since_ms: BusySince = never_busy,
    ) -> None:
        self._settings = settings
        self._replica = replica
        self._opened = opened
        self._last_tick_ms = now_ms
        self._next_progress_ms = now_ms + int(WATCH_PROGRESS_SECONDS * 1000)
        self._announcing = False
        self._alarming = False
        self._disk = DiskWatch(replica, settings.disk_stall_ms, busy_since_ms)
        self._warned = False
        self._auto_compaction = AutoCompaction(settings.retention)
        self.space = replica.space = Space(opened.backend, settings.quota_bytes)
        self.space.on_measure = self._watch_space
        self.log_disk_full = False
        """The log waits for space on its disk: told by whoever writes it."""

    @property
    def disk_stalled(self) -> bool:
        """Whether the disk of the log does not answer just now."""
        return self._disk.stalled

    def tick(self, now_ms: int) -> None:
        """One tick of the clock passed; `now_ms` tells how late it comes."""
        late_ms = now_ms - self._last_tick_ms - self._settings.tick_ms
        self._last_tick_ms = now_ms
        self.space.measure()
        self._disk.look(now_ms)
        self._replica.tick(now_ms, late_ms if late_ms >= STALL_MS_MIN else 0)

    def housekeeping(self, now_ms: int) -> Callable[[Wal], None] | None:
        """To be called every HOUSEKEEPING_SECONDS. Answers work for the log's writer, if any."""
        self._replica.share_hash()
        self.announce()
        if now_ms >= self._next_progress_ms:
            self._next_progress_ms = now_ms + int(WATCH_PROGRESS_SECONDS * 1000)
            self._replica.hub.mark_progress()
        self._compact_old_history(now_ms)
        return self._look_for_space()

    def announce(self) -> None:
        """Tell the cluster this member's name and client addresses, once they differ."""
        if self._announcing or self._replica.node.leader == NO_MEMBER:
            return
        settings, member_id = self._settings, self._replica.member_id
        members = self._opened.machine.members()
        own = next((info for info in members if info.member_id == member_id), None)
        urls = settings.client_urls
        if own is None or (own.name == settings.name and tuple(own.client_urls) == urls):
            return
        self._announcing = True

        def done(result: Any) -> None:
            self._announcing = False

        update = commands.member_update(member_id, name=settings.name, client_urls=urls)
        self._replica.propose(commands.guarded(update, commands.BY_MEMBER), done)

    # -- space -----------------------------------------------------------------------------------

    def _watch_space(self) -> None:
        """Raise or clear this member's space alarm, with the log's reserve still there."""
        machine, replica, quota = self._opened.machine, self._replica, self.space.quota_bytes
        used = self.space.used_bytes
        self._warn()
        disk_full = (
            self.log_disk_full
            or self._opened.wal.disk_full is not None
            or self._opened.backend.disk_full is not None
        )
        alarmed = (commands.AlarmKind.NOSPACE, replica.member_id) in machine.alarms
        if replica.node.leader == NO_MEMBER or self._alarming:
            return
        if (disk_full or used > quota) and not alarmed:
            log.warning(
                "out of space: only deletes and compaction pass",
                extra={"used_bytes": used, "quota_bytes": quota, "disk_full": disk_full},
            )
            self._propose_alarm(True)
        elif alarmed and not disk_full and used <= quota * SPACE_FREE_AT:
            log.info("there is space again", extra={"used_bytes": used, "quota_bytes": quota})
            self._propose_alarm(False)

    def _warn(self) -> None:
        """Say it once when space becomes scarce, long before the alarm, and once it is not."""
        space = self.space
        if space.low is self._warned:
            return
        self._warned = space.low
        facts = {"used_bytes": space.used_bytes, "quota_bytes": space.quota_bytes}
        if space.low:
            log.warning(
                "space runs low: delete, compact or give a larger quota, before writes are refused",
                extra=facts,
            )
        else:
            log.info("space is no longer low", extra=facts)

    def _look_for_space(self) -> Callable[[Wal], None] | None:
        """While writes are refused nothing else would find out that the disk has space again."""
        self._opened.backend.look_for_space()
        # Stuck in a write, the log's writer tries by itself.
        if not self.log_disk_full and self._opened.wal.disk_full is not None:
            return lambda wal: wal.look_for_space()
        return None

    def _propose_alarm(self, on: bool) -> None:
        self._alarming = True

        def done(result: Any) -> None:
            self._alarming = False

        alarm = commands.alarm(commands.AlarmKind.NOSPACE, self._replica.member_id, on)
        # Ahead of what waits: that is what must not be taken any more.
        self._replica.propose(commands.guarded(alarm, commands.BY_MEMBER), done, ahead=True)

    # -- history ---------------------------------------------------------------------------------

    def _compact_old_history(self, now_ms: int) -> None:
        """At the leader: propose what automatic compaction finds due."""
        machine, replica = self._opened.machine, self._replica
        leads = replica.node.role is Role.LEADER
        revision = self._auto_compaction.due(
            now_ms, machine.revision, machine.compact_revision, leads=leads
        )
        if not revision:
            return

        def done(result: Any) -> None:
            if isinstance(result, RaftkvError):
                log.info("automatic compaction did not happen: %s", result)
            else:
                replica.stats.auto_compactions += 1
                log.info("compacted old history", extra={"revision": revision})

        replica.propose(commands.guarded(commands.compact(revision), commands.BY_MEMBER), done)

    def compact_slice(self) -> bool:
        """Remove a little of what compaction made unreachable; whether more remains."""
        rows = 1 if buggify("one-row-compaction") else COMPACT_ROWS_PER_SLICE
        return self._opened.machine.compact_step(rows)

    # -- snapshots -------------------------------------------------------------------------------

    @property
    def snapshot_index(self) -> int:
        """Index of the newest snapshot; 0 for none."""
        info = self._opened.snapshots.latest()
        return info.meta.index if info is not None else 0

    def snapshot_due(self) -> bool:
        """Whether it is time for a snapshot of this member's own."""
        snapshot_index = self.snapshot_index
        if self._opened.machine.applied_index <= snapshot_index:
            # However much log there is that is not committed: it would be the same snapshot again.
            return False
        log_bytes = self._opened.log.bytes_since(snapshot_index)
        if log_bytes <= self._settings.snapshot_log_bytes:
            return log_bytes > 0 and buggify("early-snapshot")
        return log_bytes * SNAPSHOT_SHARE > self._opened.backend.used_bytes()

    def snapshot_made(self, info: SnapshotInfo) -> Callable[[Wal], None]:
        """A snapshot is durable: let go of the old log. The result is for the log's writer."""
        meta, opened = info.meta, self._opened
        self._replica.stats.snapshots_taken += 1
        if self.snapshot_index > meta.index:
            # A newer one was received while the log waited for its archive, and is marked already.
            return lambda wal: None
        opened.log.snapshot_ready(meta)
        kept = 0 if buggify("no-log-kept") else self._settings.snapshot_catchup_entries
        keep_from = max(0, meta.index - kept)
        if keep_from >= opened.log.first_index():
            opened.log.compact(keep_from)

        def release(wal: Wal) -> None:
            wal.mark_snapshot(meta)
            wal.sync()
            wal.release(keep_from)

        log.info("took a snapshot", extra={"index": meta.index})
        return release
