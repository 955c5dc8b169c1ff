"""What a member saves elsewhere by itself: a snapshot now and then, and its log as it is applied.

Both are off unless told where to. Everything lies under the cluster's id in the folder given, so
that a restored cluster, which is another one, never writes among the files of the first.

A base that fails is tried again after a minute; it is never the reason for anything else to fail.
The archive is written in pieces; a piece that fails is tried again. The log waits for it a little
before it lets go of old entries, then no longer: a full disk of backups must not fill the disk of
the store. What is missing then is a gap, which is logged, counted and answered with a new base.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from raftkv.errors import RaftkvError
from raftkv.limits import ARCHIVE_CUT_BYTES, BACKUP_RETRY_SECONDS
from raftkv.server.archiver import Archiver
from raftkv.storage.archive import SegmentName
from raftkv.storage.bases import BaseName, copy_base, list_bases
from raftkv.storage.disk import Disk, RealDisk, join, make_durably
from raftkv.storage.snapshots import TEMPORARY

if TYPE_CHECKING:
    from raftkv.server.config import ServerConfig
    from raftkv.server.opening import Opened
    from raftkv.server.store import StoreStats
    from raftkv.storage.snapshots import SnapshotInfo

log = logging.getLogger(__name__)
T = TypeVar("T")

STEP_SECONDS = 0.5
ARCHIVE_PATIENCE_SECONDS = 5.0
"""How long the log keeps old entries for an archive that is behind."""


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """Where to, how often, how much; an empty folder turns a part off."""

    backup_dir: str
    backup_interval_ms: int
    backup_keep: int
    archive_dir: str
    archive_interval_ms: int
    archive_bytes: int

    @classmethod
    def of(cls, config: ServerConfig) -> BackupSettings:
        """Those of a configuration."""
        return cls(
            config.backup_dir,
            config.backup_interval,
            config.backup_keep,
            config.archive_dir,
            config.archive_interval,
            config.archive_bytes,
        )


class Backups:
    """See the module. Lives on the member's loop; threads of its own touch the files."""

    def __init__(
        self,
        settings: BackupSettings,
        opened: Opened,
        stats: StoreStats,
        take_snapshot: Callable[[], Awaitable[SnapshotInfo]],
        *,
        disk: Disk | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._opened = opened
        self._stats = stats
        self._take_snapshot = take_snapshot
        self._disk = disk or RealDisk()
        self._wall = wall
        cluster = f"{opened.identity.cluster_id:016x}"
        self._member_id = opened.identity.member_id
        self._bases = settings.backup_dir and join(settings.backup_dir, cluster)
        folder = settings.archive_dir and join(settings.archive_dir, cluster)
        self._archive = Archiver(opened, self._disk, folder, self._note_gap) if folder else None
        self._thread = ThreadPoolExecutor(2, thread_name_prefix="raftkv-backup")
        self._last_success_seconds = 0
        self._last_bytes = 0
        self._base_due = 0.0
        self._base_tried = 0.0
        self._base_index = 0
        """Of this member's newest base."""
        self._piece_due = 0.0
        self._failing = False
        """The last piece failed: the next attempt waits until it is due."""
        self._archiving = asyncio.Lock()

    @property
    def on(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._bases or self._archive)

    def status(self) -> dict[str, int]:
        """For the member's status and metrics; nothing of a part that is off."""
        told: dict[str, int] = {}
        if self._bases:
            # Seconds since 1970; 0: none since the start.
            told["backup_last_success_seconds"] = self._last_success_seconds
            told["backup_last_bytes"] = self._last_bytes
        if self._archive:
            told["archived_index"] = max(self._archive.archived, 0)
        return told

    async def run(self) -> None:
        """Do what is due, until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(STEP_SECONDS)

    async def step(self) -> None:
        """Do what is due now."""
        if self._archive and self._piece_is_due(self._archive):
            await self._archive_pieces(self._archive)
        if self._bases and self._wall() >= self._base_due:
            await self._back_up()

    async def before_release(self) -> None:
        """The log is about to let go of what is applied: archive it first, if that is quick."""
        if self._archive:
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self._archive_pieces(self._archive), ARCHIVE_PATIENCE_SECONDS
                )

    async def close(self) -> None:
        """Wait for the file that is being written."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # -- bases -----------------------------------------------------------------------------------

    async def _back_up(self) -> None:
        """Make a base, and remove the oldest ones of this member's."""
        started = self._base_tried = self._wall()
        try:
            newest = await self._in_thread(self._newest_base)
            due = (newest.made_ms if newest else 0) / 1000 + self._interval
            if not self._base_due and due > started:
                # The last run of this member made one not long ago.
                self._base_due = due
                self._base_index = newest.index if newest else 0
                return
            info = await self._take_snapshot()
            name = BaseName(info.meta.index, int(started * 1000), self._member_id)
            oldest = await self._in_thread(partial(self._store_base, info, name))
            await self._forget_before(oldest)
        except RaftkvError as error:
            self._stats.backup_failures += 1
            self._base_due = self._wall() + BACKUP_RETRY_SECONDS
            log.error("the backup failed: %s", error)
            return
        self._base_due = started + self._interval
        self._base_index = name.index
        self._stats.backups_made += 1
        self._last_success_seconds, self._last_bytes = int(started), info.size
        log.info(
            "made a backup",
            extra={"path": join(self._bases, name.text), "bytes": info.size, "index": name.index},
        )

    @property
    def _interval(self) -> float:
        return self._settings.backup_interval_ms / 1000

    def _newest_base(self) -> BaseName | None:
        self._clear(self._bases)
        return max(self._own_bases(), key=lambda one: one.made_ms, default=None)

    def _clear(self, folder: str) -> None:
        """Make a folder, or remove what this member was writing there when it ended."""
        make_durably(self._disk, folder)
        mark = f"-{self._member_id:016x}."
        for name in self._disk.list(folder):
            if name.endswith(TEMPORARY) and mark in name:
                self._disk.remove(join(folder, name))

    def _own_bases(self) -> list[BaseName]:
        found = list_bases(self._disk, self._bases)
        return [one for one in found if one.member_id == self._member_id]

    def _store_base(self, info: SnapshotInfo, name: BaseName) -> int:
        """Keep a snapshot as a base; the index of the oldest base in the folder, anybody's."""
        snapshots = self._opened.snapshots
        copy_base(self._disk, snapshots.path(info), info, self._bases, name)
        for old in self._own_bases()[: -self._settings.backup_keep]:
            self._disk.remove(join(self._bases, old.text))
        return list_bases(self._disk, self._bases)[0].index

    async def _forget_before(self, index: int) -> None:
        """Drop what was archived before the oldest base: nothing can be restored out of it."""
        archive = self._archive
        if archive is None:
            return
        async with self._archiving:
            for name in [one for one in archive.sizes if one.last_index <= index]:
                await self._drop(archive, name)

    # -- the archive -----------------------------------------------------------------------------

    def _piece_is_due(self, archive: Archiver) -> bool:
        if self._wall() >= self._piece_due:
            return True
        if self._failing:
            return False
        return self._opened.log.bytes_since(max(archive.archived, 0)) >= ARCHIVE_CUT_BYTES

    async def _archive_pieces(self, archive: Archiver) -> None:
        """Archive what is applied and not archived yet."""
        async with self._archiving:
            self._piece_due = self._wall() + self._settings.archive_interval_ms / 1000
            self._failing = True
            try:
                if archive.archived < 0:
                    await self._in_thread(partial(self._look_back, archive))
                while (piece := archive.next_piece()) is not None:
                    size = await self._in_thread(partial(archive.write, piece))
                    archive.wrote(piece, size)
                    await self._keep_bound(archive)
                    self._stats.archive_bytes_written += size
                self._failing = False
            except RaftkvError as error:
                self._stats.archive_failures += 1
                log.error("the log could not be archived: %s", error)

    def _look_back(self, archive: Archiver) -> None:
        self._clear(archive.folder)
        archive.look_back([base.index for base in self._own_bases()] if self._bases else ())

    def _note_gap(self, first: int, next_first: int) -> None:
        self._stats.archive_gaps += 1
        self._base_due = 1.0
        log.error(
            "entries %d to %d of the log are gone before they were archived: a restore to a moment "
            "after them needs a backup that was made after them",
            first,
            next_first - 1,
        )

    async def _keep_bound(self, archive: Archiver) -> None:
        """Drop the oldest files past the bound; long before that, make a base that needs none."""
        sizes = archive.sizes
        needed = [size for name, size in sizes.items() if name.last_index > self._base_index]
        if self._bases and 2 * sum(needed) > self._settings.archive_bytes:
            self._base_due = min(self._base_due, self._base_tried + BACKUP_RETRY_SECONDS)
        while sum(sizes.values()) > self._settings.archive_bytes and len(sizes) > 1:
            oldest = min(sizes, key=lambda name: name.first_index)
            await self._drop(archive, oldest)
            self._stats.archive_files_dropped += 1
            log.warning("the archive is full: dropped its oldest file", extra={"file": oldest.text})

    async def _drop(self, archive: Archiver, name: SegmentName) -> None:
        await self._in_thread(partial(self._disk.remove, join(archive.folder, name.text)))
        del archive.sizes[name]
