"""Ordered tables under the state machine, as bytes on disk (LMDB) or in memory (the twin).

Both implement the tables protocol of the machine (`raftkv.machine.tables`), structurally, and what
the member needs around it, `Backend`. They pass the same conformance and model tests.

Keys have 1 to KEY_BYTES_MAX + 32 bytes and are ordered bytewise; values have any length. Tables are
numbered from 0. Everything but `Image.copy_to` is called by the one thread that owns the member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from raftkv.errors import StorageError
from raftkv.storage.lmdb_backend import LmdbBackend, MapGrownError
from raftkv.storage.memory_backend import MemoryBackend

__all__ = [
    "Backend",
    "Image",
    "LmdbBackend",
    "MapGrownError",
    "MemoryBackend",
    "Reader",
    "Twin",
    "Writer",
]

Row = tuple[bytes, bytes]


class Reader(Protocol):
    """A consistent view."""

    def get(self, table: int, key: bytes) -> bytes | None:
        """The value at `key`, or None."""

    def scan(self, table: int, start: bytes, end: bytes | None) -> Iterator[Row]:
        """Rows of [start, end), ascending; `end` None: to the end of the table.

        The table must not be written while the iterator is in use.
        """

    def scan_reverse(self, table: int, start: bytes, end: bytes | None) -> Iterator[Row]:
        """The same rows, descending."""


class Writer(Reader, Protocol):
    """A view that also writes, and sees what it wrote."""

    def put(self, table: int, key: bytes, value: bytes) -> None:
        """Write one row."""

    def append(self, table: int, key: bytes, value: bytes) -> None:
        """As `put`; faster when `key` is greater than every key of the table."""

    def put_many(self, table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """As `put` for each; much faster for very many, best in order of their keys."""

    def delete(self, table: int, key: bytes) -> bool:
        """Remove one row; whether there was one."""


class Image(Protocol):
    """The state as it was when it was pinned, whatever is written since."""

    def copy_to(self, path: str, offset: int = 0) -> None:
        """Write it into `path` from `offset` on, not synced, and let go of it.

        Once; may run in another thread while reads and writes go on.
        """

    def twin(self) -> Twin:
        """Make tables of their own out of it, without free space, instead of a file.

        Once; may run in another thread; takes as long as a copy. Raises StorageError, and then
        nothing of it is left.
        """

    def twin_bytes(self) -> int:
        """How much of a twin there is so far, for showing progress."""


class Twin(Protocol):
    """A second set of tables, beside those that it is a copy of. A crash leaves nothing of it."""

    @property
    def tables(self) -> Backend:
        """To be brought up to date."""

    def adopt(self) -> None:
        """Make its state the whole state of the tables that it is a copy of. Atomic: after a crash
        there is the old state or the new one. No view may be open, no image pinned."""

    def discard(self) -> None:
        """Remove it."""


class Backend(Protocol):
    """Tables, and the member's handling of them as a whole."""

    disk_full: StorageError | None
    """Set while no space can be set aside ahead of writes: time to refuse new data. A reserve for
    deletes and compaction is left then."""

    def look_for_space(self) -> None:
        """Try again to set space aside, if `disk_full`. To be called now and then: a store that
        refuses writes writes nothing that would try."""

    def read(self) -> AbstractContextManager[Reader]:
        """A view of the last committed state. Cheap; never held across turns of the loop."""

    def write(self) -> AbstractContextManager[Writer]:
        """One atomic change: all of it on a normal exit, nothing after an exception.

        Survives the end of the process at any instruction, but not, by itself, of the machine.
        Raises `DiskFullError` on entry, with nothing written, or `MapGrownError` at any point:
        nothing was written then either, and the same block will pass when run again.
        """

    def hold(self) -> None:
        """From here to `release` the next `write` may be made in another thread, beside reads.

        It raises DiskFullError where it would have to grow the map. No other write meanwhile.
        """

    def release(self) -> None:
        """See `hold`."""

    def pin(self) -> Image:
        """The committed state of this moment, to be copied beside the traffic."""

    def stage(self, path: str, offset: int, size: int) -> None:
        """Make the image at [offset, offset + size) of `path` ready to become the state.

        May run in another thread while reads and writes go on; takes as long as a copy. Raises
        FormatError or CorruptionError when it is no image.
        """

    def install(self) -> None:
        """Make the staged image the whole state. Atomic: after a crash there is the old state or
        the new one. No view may be open."""

    def used_bytes(self) -> int:
        """What the quota counts: bytes of tables in use, without free space inside the file."""

    def file_bytes(self) -> int:
        """Bytes of the file that hold or once held something."""

    def sync(self) -> None:
        """Make the committed state durable (at a clean end; never needed for correctness)."""

    def close(self) -> None:
        """Let go of the files; repeated calls do nothing."""
