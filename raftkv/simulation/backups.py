"""What a simulated member saves elsewhere: the production archive, and bases beside it.

As `raftkv.server.backups` in all that matters here: pieces are written one at a time while the
member goes on, and the log waits for them a little before it lets go of old entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from raftkv.errors import StorageError
from raftkv.server.archiver import Archiver
from raftkv.server.backups import ARCHIVE_PATIENCE_SECONDS
from raftkv.simulation.world import SECOND_US
from raftkv.storage.archive import Segment
from raftkv.storage.bases import BaseName, copy_base, list_bases
from raftkv.storage.disk import join, make_durably

if TYPE_CHECKING:
    from raftkv.simulation.member import SimMember
    from raftkv.storage.snapshots import SnapshotInfo

FOLDER: Final = "/backup"
_WRITE_US_MAX: Final = 50_000
_BASE_ODDS: Final = 0.1
"""Of a base being made when the archive is looked after."""


class SimBackups:
    """Those of one process of `member`, if its settings ask for them."""

    def __init__(self, member: SimMember) -> None:
        self._member = member
        self._interval_us = member.settings.archive_interval_ms * 1000
        self._disk = member.disk
        cluster = f"{member.opened.identity.cluster_id:016x}"
        self.folder = join(FOLDER, cluster)
        self._archiver = Archiver(member.opened, member.disk, self.folder, self._gap)
        self._waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._writing = False
        if self._interval_us:
            member.later(member.world.random.randrange(200_000), self._look)

    def before_release(self, then: Callable[..., None], *arguments: Any) -> None:
        """Call `then` once what is applied is archived, or patience ends."""
        if not self._interval_us:
            then(*arguments)
            return
        waiting = (then, arguments)
        self._waiting.append(waiting)
        self._member.later(int(ARCHIVE_PATIENCE_SECONDS * SECOND_US), self._let_go, waiting)
        self._archive()

    def _let_go(self, waiting: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            then, arguments = waiting
            then(*arguments)

    def _look(self) -> None:
        self._member.later(self._interval_us, self._look)
        try:
            make_durably(self._disk, self.folder)
            bases = list_bases(self._disk, self.folder)
            if not bases or self._member.world.chance(_BASE_ODDS):
                self._make_base({base.index for base in bases})
        except StorageError as error:
            self._failed(error)
        self._archive()

    def _make_base(self, known: set[int]) -> None:
        member = self._member
        info: SnapshotInfo | None = member.opened.snapshots.latest()
        if info is None or info.meta.index in known:
            return
        name = BaseName(info.meta.index, member.wall_ms(), member.member_id)
        path = member.opened.snapshots.path(info)
        copy_base(self._disk, path, info, self.folder, name)
        member.cluster.promises.seen["base"] += 1

    def _archive(self) -> None:
        if not self._writing:
            self._writing = True
            self._next()

    def _next(self) -> None:
        archiver, member = self._archiver, self._member
        piece = None
        try:
            if archiver.archived < 0:
                make_durably(self._disk, self.folder)
                archiver.look_back(())
            before = archiver.archived
            piece = archiver.next_piece()
        except StorageError as error:
            self._failed(error)
        if piece is None:
            self._over()
            return
        # After a gap the archive goes on where the log begins.
        first = max(before, archiver.archived) + 1
        member.later(member.world.random.randrange(_WRITE_US_MAX), self._write, piece, first)

    def _write(self, piece: Segment, first: int) -> None:
        archiver, member = self._archiver, self._member
        try:
            archiver.wrote(piece, archiver.write(piece))
        except StorageError as error:
            self._failed(error)
            self._over()
            return
        member.claimed.append((first, archiver.archived))
        member.cluster.promises.seen["piece of the archive"] += 1
        self._next()

    def _over(self) -> None:
        self._writing = False
        for waiting in list(self._waiting):
            self._let_go(waiting)

    def _gap(self, first: int, next_first: int) -> None:
        self._member.cluster.promises.seen["gap in an archive"] += 1

    def _failed(self, error: StorageError) -> None:
        self._member.cluster.promises.seen["archive failed"] += 1
        self._member.world.note(self._member.name, f"cannot archive: {error}")
