"""Which pieces of a member's log go into its archive, and what is there already.

No thread, loop or clock: whoever keeps it (`raftkv.server.backups`, or a simulation) says when a
piece is written, one at a time, and may do the writing itself in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from raftkv.limits import ARCHIVE_CUT_BYTES, ARCHIVE_CUT_ENTRIES
from raftkv.storage.archive import (
    HASH_UNKNOWN,
    Segment,
    SegmentName,
    list_segments,
    write_segment,
)
from raftkv.storage.disk import Disk, join

if TYPE_CHECKING:
    from raftkv.consensus.types import Entry
    from raftkv.server.opening import Opened


class Archiver:
    """The archive of one member in `folder`. `on_gap(first, next_first)`: the log has let go of
    entries from `first` on before they were archived; it goes on at `next_first`."""

    def __init__(
        self, opened: Opened, disk: Disk, folder: str, on_gap: Callable[[int, int], None]
    ) -> None:
        self._opened = opened
        self._disk = disk
        self.folder = folder
        self._on_gap = on_gap
        self.archived = -1
        """Index of the last archived entry; -1: not looked yet."""
        self.sizes: dict[SegmentName, int] = {}
        """Bytes of each of this member's files."""

    def look_back(self, bases: Iterable[int]) -> None:
        """Find what earlier runs of this member have archived; `bases`: indexes of its bases.

        Raises StorageError.
        """
        for name in list_segments(self._disk, self.folder):
            if name.member_id == self._opened.identity.member_id:
                file = self._disk.open(join(self.folder, name.text))
                try:
                    self.sizes[name] = file.size()
                finally:
                    file.close()
        reached = [name.last_index for name in self.sizes]
        self.archived = max((*reached, *bases), default=0)

    def next_piece(self) -> Segment | None:
        """What is applied and not archived yet, as much of it as goes into one file."""
        machine, kept = self._opened.machine, self._opened.log
        first, applied = self.archived + 1, machine.applied_index
        if first < kept.first_index():
            self.archived = kept.first_index() - 1
            # Nothing of an archive that begins late is missing, but one with a hole has a gap.
            if first > 1:
                self._on_gap(first, kept.first_index())
            first = kept.first_index()
        if first > applied:
            return None
        last = min(applied, first + ARCHIVE_CUT_ENTRIES - 1)
        entries: list[Entry] = list(kept.entries(first, last + 1, ARCHIVE_CUT_BYTES))
        identity, before = self._opened.identity, kept.term(first - 1)
        if entries[-1].index != applied:
            return Segment(identity.cluster_id, identity.member_id, before, entries)
        return Segment(
            identity.cluster_id,
            identity.member_id,
            before,
            entries,
            machine.revision,
            machine.clock_ms,
            machine.state_hash or HASH_UNKNOWN,
        )

    def write(self, piece: Segment) -> int:
        """Store a piece, durably; its size in bytes. Raises StorageError."""
        return write_segment(self._disk, self.folder, piece)

    def wrote(self, piece: Segment, size: int) -> None:
        """A piece is stored; the next one comes after it."""
        self.sizes[piece.name] = size
        self.archived = piece.name.last_index
