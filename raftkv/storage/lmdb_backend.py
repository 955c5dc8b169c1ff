"""Tables in LMDB, without its own syncs: a cache of the log that survives kill -9.

Why a writable map (`writemap`). Measured with 300 B records, a get and two tables a put, batches of
64, against pages copied through malloc and pwrite: 225,000 - 236,000 against 193,000 - 197,000 puts
a second on a quiet machine, 180,000 - 197,000 against 75,000 - 118,000 on a busy one.
What that asks for:

- kill -9 at any instruction is safe: pages of the last committed state are never written to, a
  commit is one store to the older of two meta pages, and its transaction number is stored last; the
  kernel keeps the mapped pages of a dead process. Tested by killing writers.
- A power cut is not safe without syncs in either mode; the boot id tells, and the tables are then
  rebuilt (datadir.py).
- A full disk would be a SIGBUS at some page fault. Therefore blocks are allocated ahead of every
  write, ALLOCATE_BYTES at a time, and running short is noticed in `write`, before anything changed.

The map is far larger than the quota (address space costs nothing), because a snapshot being copied
pins every page freed meanwhile. Should it still fill up, it grows between transactions.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, NoReturn

import lmdb

from raftkv.checks import check
from raftkv.errors import CorruptionError, DiskFullError, FormatError, StorageError
from raftkv.histogram import Histogram
from raftkv.limits import GIB, MIB, QUOTA_BYTES_DEFAULT
from raftkv.storage import overflow
from raftkv.storage.disk import (
    DIRECTORY_MODE,
    Disk,
    RealDisk,
    copy_range,
    fail,
    join,
    mapped,
)

TABLES: Final = 16
MAP_BYTES: Final = 2 * QUOTA_BYTES_DEFAULT + GIB
ALLOCATE_BYTES: Final = 64 * MIB
"""Blocks are set aside in steps of this."""
HEADROOM_BYTES: Final = 48 * MIB
"""Set aside before a write begins, if the disk has it."""
RESERVE_BYTES: Final = 16 * MIB
"""A write is refused when less than this is left of what was set aside."""
READERS_MAX: Final = 1024
DATA_NAME: Final = "data.mdb"
INSTALL_NAME: Final = "install.tmp"
TWIN_SUFFIX: Final = ".twin"
"""Of the folder in which another set of tables is made, to replace these."""
LAYERS_NAME: Final = b"layers"
_MAGIC_OFFSET: Final = 16
_MAGIC: Final = (0xBEEFC0DE).to_bytes(4, "little")
_SLICE: Final = overflow.SLICE_BYTES
_MANY: Final = 4
"""Rows from which on a cursor of their own is worth it."""

Row = tuple[bytes, bytes]


class MapGrownError(StorageError):
    """The map was full and is larger now; nothing was written, run the block again."""

    code = "map_grown"


def _ended(*_: object) -> Any:
    """In place of a transaction's calls once it is over: LMDB would crash the process."""
    raise lmdb.BadTxnError("the transaction is over")


class LmdbReader:
    """A read transaction as a context manager."""

    __slots__ = ("_dbs", "_env", "_get", "_layers", "_txn")

    _get: Callable[..., bytes | None]

    def __init__(self, env: lmdb.Environment, dbs: list[Any], layers: Any) -> None:
        self._env = env
        self._dbs = dbs
        self._layers = layers

    def __enter__(self) -> LmdbReader:
        self._txn = self._env.begin()
        self._get = self._txn.get
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._get = _ended
        self._txn.abort()

    def get(self, table: int, key: bytes) -> bytes | None:
        """See `Reader.get`."""
        if len(key) <= _SLICE:
            return self._get(key, None, self._dbs[table])
        return overflow.get(self._txn, self._dbs[table], self._layers, key)

    def scan(self, table: int, start: bytes, end: bytes | None) -> Iterator[Row]:
        """See `Reader.scan`."""
        return overflow.scan(self._txn, self._dbs[table], self._layers, start, end)

    def scan_reverse(self, table: int, start: bytes, end: bytes | None) -> Iterator[Row]:
        """See `Reader.scan_reverse`."""
        return overflow.scan_reverse(self._txn, self._dbs[table], self._layers, start, end)


class LmdbWriter:
    """A write transaction as a context manager."""

    __slots__ = ("_backend", "_dbs", "_get", "_layers", "_put", "_txn")

    _get: Callable[..., bytes | None]
    _put: Callable[..., Any]

    def __init__(self, backend: LmdbBackend) -> None:
        self._backend = backend
        self._dbs = backend._dbs
        self._layers = backend._layers

    def __enter__(self) -> LmdbWriter:
        try:
            self._backend._make_room()
            self._txn = self._backend._env.begin(write=True)
        except lmdb.Error as error:
            self._backend._raise(error)
        self._get = self._txn.get
        self._put = self._txn.put
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._get = self._put = _ended
        if error is None:
            began = time.perf_counter()
            try:
                self._txn.commit()
            except lmdb.Error as failure:
                self._backend._raise(failure)
            self._backend.commits.observe(time.perf_counter() - began)
            return
        self._txn.abort()
        if isinstance(error, lmdb.Error):
            self._backend._raise(error)

    def get(self, table: int, key: bytes) -> bytes | None:
        """See `Reader.get`."""
        if len(key) <= _SLICE:
            return self._get(key, None, self._dbs[table])
        return overflow.get(self._txn, self._dbs[table], self._layers, key)

    def put(self, table: int, key: bytes, value: bytes) -> None:
        """See `Writer.put`."""
        if len(key) <= _SLICE:
            self._put(key, value, True, True, False, self._dbs[table])
        else:
            overflow.put(self._txn, self._dbs[table], self._layers, key, value)

    def append(self, table: int, key: bytes, value: bytes) -> None:
        """See `Writer.append`."""
        if len(key) > _SLICE or not self._put(key, value, True, True, True, self._dbs[table]):
            self.put(table, key, value)

    def put_many(self, table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """See `Writer.put_many`."""
        if len(keys) < _MANY or max(map(len, keys)) > _SLICE:
            for key, value in zip(keys, values, strict=True):
                self.put(table, key, value)
            return
        with self._txn.cursor(self._dbs[table]) as cursor:
            cursor.putmulti(zip(keys, values, strict=True))

    def delete(self, table: int, key: bytes) -> bool:
        """See `Writer.delete`."""
        if len(key) <= _SLICE:
            return self._txn.delete(key, b"", self._dbs[table])
        return overflow.delete(self._txn, self._dbs[table], self._layers, key)

    def scan(self, table: int, start: bytes, end: bytes | None) -> Iterator[Row]:
        """See `Reader.scan`."""
        return overflow.scan(self._txn, self._dbs[table], self._layers, start, end)

    def scan_reverse(self, table: int, start: bytes, end: bytes | None) -> Iterator[Row]:
        """See `Reader.scan_reverse`."""
        return overflow.scan_reverse(self._txn, self._dbs[table], self._layers, start, end)


class LmdbImage:
    """`Image` over one read transaction."""

    __slots__ = ("_backend", "_env", "_released", "_txn")

    def __init__(self, backend: LmdbBackend, env: lmdb.Environment) -> None:
        self._backend = backend
        self._env = env
        self._released = False
        self._txn = env.begin()

    def copy_to(self, path: str, offset: int = 0) -> None:
        """See `Image.copy_to`. A compacting copy, without the interpreter's lock."""
        try:
            with mapped("copy the tables to", path):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.lseek(descriptor, offset, os.SEEK_SET)
                    self._env.copyfd(descriptor, compact=True, txn=self._txn)
                except lmdb.Error as error:
                    self._backend._raise(error)
                finally:
                    os.close(descriptor)
        finally:
            self._release()

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._txn.abort()
            self._backend._copying -= 1

    def twin(self) -> LmdbTwin:
        """See `Image.twin`. In a folder beside the tables, removed whenever they are opened."""
        backend = self._backend
        folder = backend._path + TWIN_SUFFIX
        try:
            backend._disk.make_directory(folder)
            self.copy_to(join(folder, DATA_NAME))
            # Not for safety: the sync of the folder when it is adopted would write all of it.
            file = backend._disk.open(join(folder, DATA_NAME), write=True)
            try:
                file.sync()
            finally:
                file.close()
            tables = LmdbBackend(
                folder,
                disk=backend._disk,
                map_bytes=backend._map_bytes,
                tables=backend._tables,
                allocate_bytes=backend._allocate_bytes,
            )
        except BaseException:
            self._release()
            backend._remove_twin()
            raise
        return LmdbTwin(backend, tables)

    def twin_bytes(self) -> int:
        """See `Image.twin_bytes`."""
        try:
            return os.stat(join(self._backend._path + TWIN_SUFFIX, DATA_NAME)).st_size
        except FileNotFoundError:
            return 0


class LmdbTwin:
    """`Twin` in a folder of its own."""

    __slots__ = ("_backend", "tables")

    def __init__(self, backend: LmdbBackend, tables: LmdbBackend) -> None:
        self._backend = backend
        self.tables = tables

    def adopt(self) -> None:
        """See `Twin.adopt`. Nothing is synced, as ever: a power cut makes the member rebuild."""
        self.tables.close()
        self._backend._replace(join(self.tables._path, DATA_NAME))

    def discard(self) -> None:
        """See `Twin.discard`."""
        self.tables.close()
        self._backend._remove_twin()


class LmdbBackend:
    """`Backend` over one LMDB environment in the folder `path`.

    Open it once a process. LMDB reaches its files by itself; `disk` serves everything around them.
    """

    def __init__(
        self,
        path: str,
        *,
        disk: Disk | None = None,
        map_bytes: int = MAP_BYTES,
        tables: int = TABLES,
        allocate_bytes: int = ALLOCATE_BYTES,
    ) -> None:
        """Open or make the tables. Raises StorageError, CorruptionError or FormatError."""
        self._path = path
        self._disk: Disk = disk or RealDisk()
        self._map_bytes = map_bytes
        self._tables = tables
        self._allocate_bytes = allocate_bytes
        self._copying = 0
        self._closed = False
        self.disk_full: StorageError | None = None
        self.commits = Histogram()
        """How long each commit took."""
        self._disk.make_directory(path)
        self._open()

    def _open(self) -> None:
        leftover = join(self._path, INSTALL_NAME)
        if self._disk.exists(leftover):
            self._disk.remove(leftover)
        self._remove_twin()
        with mapped("create", join(self._path, DATA_NAME)):
            self._descriptor = os.open(
                join(self._path, DATA_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        try:
            self._env = lmdb.Environment(
                self._path,
                map_size=self._map_bytes,
                metasync=False,
                sync=False,
                mode=DIRECTORY_MODE,
                writemap=True,
                max_readers=READERS_MAX,
                max_dbs=self._tables + 1,
                max_spare_txns=1,
            )
            self._env.reader_check()
            self._dbs = [self._env.open_db(b"%d" % table) for table in range(self._tables)]
            self._layers = self._env.open_db(LAYERS_NAME)
        except lmdb.Error as error:
            os.close(self._descriptor)
            self._raise(error)
        self._page_bytes = self._env.stat()["psize"]
        self._map_bytes = self._env.info()["map_size"]
        # What an earlier run set aside is still there; a full disk must not prevent a start.
        with mapped("stat", join(self._path, DATA_NAME)):
            self._allocated = os.fstat(self._descriptor).st_blocks * 512 & -MIB
        with contextlib.suppress(DiskFullError):
            self._make_room()

    def look_for_space(self) -> None:
        """See `Backend.look_for_space`."""
        if self.disk_full is not None:
            with contextlib.suppress(DiskFullError):
                self._make_room()

    def read(self) -> LmdbReader:
        """See `Backend.read`."""
        return LmdbReader(self._env, self._dbs, self._layers)

    def write(self) -> LmdbWriter:
        """See `Backend.write`."""
        return LmdbWriter(self)

    def get(self, table: int, key: bytes) -> bytes | None:
        """One row in a transaction of its own."""
        with LmdbReader(self._env, self._dbs, self._layers) as reader:
            return reader.get(table, key)

    def hold(self) -> None:
        """See `Backend.hold`. As while a copy is made: the map's size must not change."""
        self._copying += 1

    def release(self) -> None:
        """See `Backend.release`."""
        self._copying -= 1

    def pin(self) -> LmdbImage:
        """See `Backend.pin`. Pins every page freed from now on until the copy is made, so the
        file may grow by what is written meanwhile."""
        self._copying += 1
        return LmdbImage(self, self._env)

    def stage(self, path: str, offset: int, size: int) -> None:
        """See `Backend.stage`. The staged copy is durable."""
        source = self._disk.open(path)
        try:
            if source.read(offset + _MAGIC_OFFSET, len(_MAGIC)) != _MAGIC:
                raise FormatError(f"{path}: offset {offset}: no image of tables", path=path)
            target = self._disk.open(join(self._path, INSTALL_NAME), create=True)
            try:
                copy_range(source, offset, size, target, 0)
                target.sync()
            finally:
                target.close()
        finally:
            source.close()

    def install(self) -> None:
        """See `Backend.install`."""
        self._replace(join(self._path, INSTALL_NAME))

    def _replace(self, source: str) -> None:
        check(not self._copying, "tables are not replaced while they are copied")
        # Held open, the old file does not go with its name: freeing a large one takes long.
        old = os.dup(self._descriptor)
        self._close()
        try:
            self._disk.rename(source, join(self._path, DATA_NAME))
            # A clean end vouches for what is under the name.
            self._disk.sync_directory(self._path)
        finally:
            threading.Thread(target=os.close, args=(old,), name="raftkv-free").start()
            self._open()

    def _remove_twin(self) -> None:
        folder = self._path + TWIN_SUFFIX
        if not self._disk.exists(folder):
            return
        with mapped("remove", folder):
            for name in os.listdir(folder):
                os.remove(join(folder, name))
            os.rmdir(folder)

    def used_bytes(self) -> int:
        """See `Backend.used_bytes`."""
        pages = 0
        with self._env.begin() as txn:
            for db in (*self._dbs, self._layers):
                stat = txn.stat(db)
                pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * self._page_bytes

    def file_bytes(self) -> int:
        """See `Backend.file_bytes`."""
        return int((self._env.info()["last_pgno"] + 1) * self._page_bytes)

    def sync(self) -> None:
        """See `Backend.sync`. Failure is fatal."""
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            number = error.code
            fail(OSError(number, os.strerror(number)), "sync", self._path, fatal=True)

    def close(self) -> None:
        """See `Backend.close`."""
        if not self._closed:
            self._closed = True
            self._close()

    def _close(self) -> None:
        self._env.close()
        os.close(self._descriptor)

    def _make_room(self) -> None:
        """Before a write: blocks on disk and room in the map for what it may add."""
        used = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        if used + HEADROOM_BYTES > self._allocated:
            self._allocate(used)
        while used + HEADROOM_BYTES > self._map_bytes and not self._copying:
            self._grow()

    def _allocate(self, used: int) -> None:
        target = min(used + HEADROOM_BYTES + self._allocate_bytes, self._map_bytes)
        if target <= self._allocated:
            return
        try:
            os.posix_fallocate(self._descriptor, self._allocated, target - self._allocated)
        except OSError as error:
            try:
                fail(error, "allocate", join(self._path, DATA_NAME))
            except DiskFullError as full:
                self.disk_full = full
                if used + RESERVE_BYTES > self._allocated:
                    raise
                return
        self._allocated = target
        self.disk_full = None

    def _grow(self) -> None:
        self._map_bytes *= 2
        try:
            self._env.set_mapsize(self._map_bytes)
        except lmdb.Error as error:
            self._raise(error)

    def _raise(self, error: lmdb.Error) -> NoReturn:
        """Raise what an LMDB error means to the member."""
        path = join(self._path, DATA_NAME)
        if isinstance(error, lmdb.MapFullError):
            if self._copying:
                raise DiskFullError(
                    f"{path}: full while its size cannot change", path=path
                ) from error
            self._grow()
            raise MapGrownError(f"{path}: was full, has grown to {self._map_bytes}") from error
        number = getattr(error, "code", 0)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(f"{path}: {error}; free space", path=path) from error
        if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)):
            raise CorruptionError(
                f"{path}: {error}; remove this folder, it is rebuilt from the last snapshot "
                "and the log",
                path=path,
            ) from error
        if isinstance(error, lmdb.VersionMismatchError):
            raise FormatError(f"{path}: {error}; made by another version", path=path) from error
        raise StorageError(f"{path}: {error}", path=path) from error
