"""Tables in memory: the twin of LMDB for simulation and tests, and stricter where LMDB forgives.

It starts empty, as tables do whose machine lost power. It raises `InvariantViolation` when a view
is still open while a write begins, or when a table is written under an iterator.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from struct import Struct
from types import TracebackType
from typing import Any, Final

from sortedcontainers import SortedDict

from raftkv.checks import check
from raftkv.errors import CorruptionError, FormatError, StorageError
from raftkv.limits import KEY_BYTES_MAX, MIB
from raftkv.storage.disk import Disk, RealDisk

TABLES: Final = 16
KEY_MAX: Final = KEY_BYTES_MAX + 32
IMAGE_MAGIC: Final = b"RKVMEM\r\n"
_ROW: Final = Struct("<BII")
_FLUSH_BYTES: Final = MIB

Row = tuple[bytes, bytes]


class MemoryReader:
    """A view of the tables; a write may not begin before it is closed."""

    __slots__ = ("_backend", "_tables")

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self._tables = backend._tables

    def __enter__(self) -> MemoryReader:
        self._backend._views += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._backend._views -= 1

    def get(self, table: int, key: bytes) -> bytes | None:
        """See `Reader.get`."""
        value: bytes | None = self._tables[table].get(key)
        return value

    def scan(self, table: int, start: bytes, end: bytes | None) -> Iterator[Row]:
        """See `Reader.scan`."""
        return self._rows(table, start, end, reverse=False)

    def scan_reverse(self, table: int, start: bytes, end: bytes | None) -> Iterator[Row]:
        """See `Reader.scan_reverse`."""
        return self._rows(table, start, end, reverse=True)

    def _rows(self, table: int, start: bytes, end: bytes | None, *, reverse: bool) -> Iterator[Row]:
        rows, changes = self._tables[table], self._backend._changes
        if end is not None and end <= start:
            return
        before = changes[table]
        for key in rows.irange(start, end, (True, False), reverse):
            yield key, rows[key]
            check(changes[table] == before, "no table is written under its iterator", table=table)


class MemoryWriter(MemoryReader):
    """Writes at once and remembers how to undo it."""

    __slots__ = ("_undo", "_used_before")

    def __enter__(self) -> MemoryWriter:
        check(not self._backend._views, "views are closed before a write begins")
        self._backend._lock.acquire()
        self._backend._views += 1
        self._undo: list[tuple[int, bytes, bytes | None]] = []
        self._used_before = self._backend._used_bytes
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for table, key, value in reversed(self._undo):
                if value is None:
                    self._tables[table].pop(key, None)
                else:
                    self._tables[table][key] = value
            self._backend._used_bytes = self._used_before
        self._undo = []
        self._backend._views -= 1
        self._backend._lock.release()

    def put(self, table: int, key: bytes, value: bytes) -> None:
        """See `Writer.put`."""
        check(0 < len(key) <= KEY_MAX, "a key has a length that fits", bytes=len(key))
        rows = self._tables[table]
        old = rows.get(key)
        self._undo.append((table, key, old))
        rows[key] = value
        backend = self._backend
        backend._used_bytes += len(value) + (len(key) if old is None else -len(old))
        backend._changes[table] += 1

    def append(self, table: int, key: bytes, value: bytes) -> None:
        """See `Writer.append`."""
        self.put(table, key, value)

    def put_many(self, table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """See `Writer.put_many`."""
        for key, value in zip(keys, values, strict=True):
            self.put(table, key, value)

    def delete(self, table: int, key: bytes) -> bool:
        """See `Writer.delete`."""
        old = self._tables[table].pop(key, None)
        if old is None:
            return False
        self._undo.append((table, key, old))
        self._backend._used_bytes -= len(key) + len(old)
        self._backend._changes[table] += 1
        return True


class MemoryImage:
    """`Image` of copied tables."""

    __slots__ = ("_backend", "_disk", "_tables")

    def __init__(self, backend: MemoryBackend, tables: list[dict[bytes, bytes]]) -> None:
        self._backend = backend
        self._disk = backend._disk
        self._tables = tables

    def copy_to(self, path: str, offset: int = 0) -> None:
        """See `Image.copy_to`."""
        tables = self._tables
        file = self._disk.open(path, write=True, create=not self._disk.exists(path))
        try:
            parts, size = [IMAGE_MAGIC], len(IMAGE_MAGIC)
            for table, rows in enumerate(tables):
                for key in sorted(rows):
                    value = rows[key]
                    parts += (_ROW.pack(table, len(key), len(value)), key, value)
                    size += _ROW.size + len(key) + len(value)
                    if size >= _FLUSH_BYTES:
                        file.write(offset, b"".join(parts))
                        offset += size
                        parts, size = [], 0
            file.write(offset, b"".join(parts))
        finally:
            file.close()

    def twin(self) -> MemoryTwin:
        """See `Image.twin`."""
        return MemoryTwin(self._backend, self._tables)

    def twin_bytes(self) -> int:
        """See `Image.twin_bytes`. A twin is there at once."""
        return 0


class MemoryTwin:
    """`Twin` of tables in memory."""

    __slots__ = ("_backend", "tables")

    def __init__(self, backend: MemoryBackend, tables: list[dict[bytes, bytes]]) -> None:
        self._backend = backend
        self.tables = MemoryBackend(disk=backend._disk, tables=len(tables))
        self.tables._tables = [SortedDict(rows) for rows in tables]
        self.tables._used_bytes = _size(self.tables._tables)

    def adopt(self) -> None:
        """See `Twin.adopt`."""
        backend = self._backend
        check(not backend._views, "views are closed before the tables are replaced")
        with backend._lock:
            backend._tables[:] = self.tables._tables
            backend._used_bytes = self.tables._used_bytes
            backend._changes = [count + 1 for count in backend._changes]

    def discard(self) -> None:
        """See `Twin.discard`."""


class MemoryBackend:
    """`Backend` in sorted dictionaries. `disk` is where images are written and read."""

    def __init__(self, *, disk: Disk | None = None, tables: int = TABLES) -> None:
        self._disk: Disk = disk or RealDisk()
        self._tables: list[Any] = [SortedDict() for _ in range(tables)]
        self._changes = [0] * tables
        self._views = 0
        self._lock = threading.Lock()
        self.disk_full: StorageError | None = None
        self._staged: list[Any] | None = None
        self._used_bytes = 0

    def look_for_space(self) -> None:
        """Memory is never full."""

    def read(self) -> MemoryReader:
        """See `Backend.read`."""
        return MemoryReader(self)

    def write(self) -> MemoryWriter:
        """See `Backend.write`."""
        return MemoryWriter(self)

    def get(self, table: int, key: bytes) -> bytes | None:
        """One row."""
        value: bytes | None = self._tables[table].get(key)
        return value

    def hold(self) -> None:
        """See `Backend.hold`."""

    def release(self) -> None:
        """See `Backend.release`."""

    def pin(self) -> MemoryImage:
        """See `Backend.pin`."""
        with self._lock:
            tables = [dict.copy(rows) for rows in self._tables]
        return MemoryImage(self, tables)

    def stage(self, path: str, offset: int, size: int) -> None:
        """See `Backend.stage`."""
        file = self._disk.open(path)
        try:
            data = file.read(offset, size)
        finally:
            file.close()
        if data[: len(IMAGE_MAGIC)] != IMAGE_MAGIC:
            raise FormatError(f"{path}: offset {offset}: no image of tables", path=path)
        tables: list[Any] = [SortedDict() for _ in self._tables]
        at = len(IMAGE_MAGIC)
        while at < size:
            if at + _ROW.size > len(data):
                raise CorruptionError(f"{path}: offset {offset + at}: cut short", path=path)
            table, key_bytes, value_bytes = _ROW.unpack_from(data, at)
            at += _ROW.size
            end = at + key_bytes + value_bytes
            if table >= len(tables) or end > len(data):
                raise CorruptionError(f"{path}: offset {offset + at}: no row", path=path)
            tables[table][data[at : at + key_bytes]] = data[at + key_bytes : end]
            at = end
        self._staged = tables

    def install(self) -> None:
        """See `Backend.install`."""
        check(not self._views, "views are closed before the tables are replaced")
        check(self._staged is not None, "an image is staged before it is installed")
        with self._lock:
            self._tables[:] = self._staged or []
            self._used_bytes = _size(self._tables)
        self._staged = None

    def used_bytes(self) -> int:
        """See `Backend.used_bytes`. Keys and values only."""
        return self._used_bytes

    def file_bytes(self) -> int:
        """See `Backend.file_bytes`."""
        return self.used_bytes()

    def sync(self) -> None:
        """Nothing to make durable."""

    def close(self) -> None:
        """Nothing to let go of."""


def _size(tables: list[Any]) -> int:
    return sum(len(key) + len(value) for rows in tables for key, value in rows.items())
