"""The only code of raftkv that opens files: a `Disk` protocol and `RealDisk`.

Everything durable except the LMDB tables goes through `Disk`, so that a simulated disk (volatile
sectors, torn writes, EIO, ENOSPC) or a recorder of crash images can stand in for the real one.

What a caller may rely on:

- `File.write` is not durable until `File.sync` or `File.sync_data` returned.
- `Disk.rename` and `Disk.remove` are atomic, but durable only after `Disk.sync_directory` of the
  folder (etcd#6368).
- A failed sync raises a `StorageError` with `fatal` set. The kernel may have dropped the dirty
  pages and call the next attempt a success, so nobody may retry: the process has to end
  (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
- Running out of space raises `DiskFullError`, which is never fatal.

Paths are absolute or relative to the process; names are plain strings.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Final, NoReturn, Protocol

from raftkv.errors import DiskFullError, LockedError, StorageError
from raftkv.limits import MIB

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
COPY_BYTES: Final = 4 * MIB
_ZEROS: Final = bytes(MIB)


class File(Protocol):
    """An open file. Offsets and sizes are in bytes. Used by one thread at a time."""

    path: str

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""

    def write(self, offset: int, data: bytes) -> None:
        """All of `data` at `offset`. When it raises, any part of it may have been written."""

    def size(self) -> int:
        """The present length of the file."""

    def truncate(self, size: int) -> None:
        """Cut or extend (with zeros) to `size`."""

    def fill_zeros(self, start: int, end: int) -> None:
        """Write zeros over [start, end), so that later writes there need no block allocation."""

    def sync_data(self) -> None:
        """Make the contents durable (fdatasync). Failure is fatal."""

    def sync(self) -> None:
        """Make contents and metadata durable (fsync). Failure is fatal."""

    def close(self) -> None:
        """Release the descriptor; repeated calls do nothing. Makes nothing durable."""


class Lock(Protocol):
    """An exclusive lock, held until released or until the process ends."""

    def release(self) -> None:
        """Let go; repeated calls do nothing."""


class Disk(Protocol):
    """A file system. Every method raises `StorageError` naming the path when it fails."""

    def open(self, path: str, *, write: bool = False, create: bool = False) -> File:
        """Open an existing file, or with `create` make an empty one (an old one is emptied)."""

    def exists(self, path: str) -> bool:
        """Whether a file or folder of that name is there."""

    def list(self, path: str) -> list[str]:
        """Names in a folder, sorted."""

    def make_directory(self, path: str) -> None:
        """Make the folder and its parents, mode 0700; existing ones stay as they are."""

    def directory_mode(self, path: str) -> int:
        """Permission bits of a folder."""

    def set_directory_mode(self, path: str, mode: int) -> None:
        """Change the permission bits of a folder."""

    def remove(self, path: str) -> None:
        """Remove one file; it may be open elsewhere."""

    def rename(self, source: str, target: str) -> None:
        """Atomically give `source` the name `target`, replacing what had it."""

    def sync_directory(self, path: str) -> None:
        """Make creations, renames and removals in the folder durable. Failure is fatal."""

    def free_bytes(self, path: str) -> int:
        """Bytes that this process may still allocate on the file system of `path`."""

    def lock(self, path: str) -> Lock:
        """Lock `path` (made when missing) against other processes, or raise `LockedError`."""

    def boot_id(self) -> str:
        """Changes whenever the machine (and with it the page cache) starts anew."""

    def random_bytes(self, size: int) -> bytes:
        """Unpredictable bytes."""


def fail(error: OSError, operation: str, path: str, *, fatal: bool = False) -> NoReturn:
    """Raise the `StorageError` for an `OSError` met while doing `operation` on `path`."""
    reason = error.strerror or str(error)
    number = error.errno or 0
    if number in FULL_ERRNOS and not fatal:
        raise DiskFullError(
            f"{operation} {path}: {reason}; free space on this file system",
            path=path,
            operation=operation,
            errno=number,
        ) from error
    raise StorageError(
        f"{operation} {path}: {reason}",
        fatal=fatal,
        path=path,
        operation=operation,
        errno=number,
    ) from error


@contextlib.contextmanager
def mapped(operation: str, path: str, *, fatal: bool = False) -> Iterator[None]:
    """Turn any `OSError` inside the block into a `StorageError`."""
    try:
        yield
    except OSError as error:
        fail(error, operation, path, fatal=fatal)


class RealFile:
    """`File` over one descriptor."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, offset)
            if len(data) == size or not data:
                return data
            parts = [data]
            got = len(data)
            while got < size:
                data = os.pread(self._descriptor, size - got, offset + got)
                if not data:
                    break
                parts.append(data)
                got += len(data)
            return b"".join(parts)
        except OSError as error:
            fail(error, "read", self.path)

    def write(self, offset: int, data: bytes) -> None:
        try:
            written = os.pwrite(self._descriptor, data, offset)
            if written < len(data):
                rest = memoryview(data)
                while written < len(data):
                    written += os.pwrite(self._descriptor, rest[written:], offset + written)
        except OSError as error:
            fail(error, "write", self.path)

    def size(self) -> int:
        with mapped("stat", self.path):
            return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        with mapped("truncate", self.path):
            os.ftruncate(self._descriptor, size)

    def fill_zeros(self, start: int, end: int) -> None:
        for offset in range(start, end, len(_ZEROS)):
            self.write(offset, _ZEROS[: end - offset])

    def sync_data(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            fail(error, "fdatasync", self.path, fatal=True)

    def sync(self) -> None:
        with mapped("fsync", self.path, fatal=True):
            os.fsync(self._descriptor)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with mapped("close", self.path):
                os.close(descriptor)


class RealLock:
    """`Lock` by flock on an open file; the kernel drops it when the process ends."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class RealDisk:
    """`Disk` over the operating system."""

    __slots__ = ()

    def open(self, path: str, *, write: bool = False, create: bool = False) -> RealFile:
        flags = os.O_RDWR if write or create else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | os.O_TRUNC
        with mapped("open", path):
            return RealFile(path, os.open(path, flags | os.O_CLOEXEC, FILE_MODE))

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def list(self, path: str) -> list[str]:
        with mapped("list", path):
            return sorted(os.listdir(path))

    def make_directory(self, path: str) -> None:
        with mapped("make directory", path):
            parent = os.path.dirname(os.path.abspath(path))
            if not os.path.isdir(parent):
                self.make_directory(parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, DIRECTORY_MODE)
            if not os.path.isdir(path):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def directory_mode(self, path: str) -> int:
        with mapped("stat", path):
            return os.stat(path).st_mode & 0o7777

    def set_directory_mode(self, path: str, mode: int) -> None:
        with mapped("chmod", path):
            os.chmod(path, mode)

    def remove(self, path: str) -> None:
        with mapped("remove", path):
            os.unlink(path)

    def rename(self, source: str, target: str) -> None:
        with mapped("rename", source):
            os.rename(source, target)

    def sync_directory(self, path: str) -> None:
        with mapped("fsync directory", path, fatal=True):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def free_bytes(self, path: str) -> int:
        with mapped("statvfs", path):
            status = os.statvfs(path)
            return status.f_bavail * status.f_frsize

    def lock(self, path: str) -> RealLock:
        with mapped("lock", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).split(b"\n")[0].decode("ascii", "replace")
                os.close(descriptor)
                raise LockedError(
                    f"{os.path.dirname(path)} is in use by process {holder or 'unknown'}; "
                    "stop it, or use another data directory",
                    path=path,
                    pid=holder,
                ) from error
            except OSError:
                os.close(descriptor)
                raise
        return RealLock(descriptor)

    def boot_id(self) -> str:
        with mapped("read", "/proc/sys/kernel/random/boot_id"):
            descriptor = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, 64).decode("ascii").strip()
            finally:
                os.close(descriptor)

    def random_bytes(self, size: int) -> bytes:
        return os.urandom(size)


def join(*parts: str) -> str:
    """A path from its parts."""
    return os.path.join(*parts)


def parent(path: str) -> str:
    """The folder that holds `path`."""
    return os.path.dirname(path) or "."


def make_durably(disk: Disk, path: str) -> None:
    """Make the folder and what is missing above it, each durable before the next one is made.

    So at most the deepest one that is there already is not durable yet, if an earlier start was
    cut short behind its making.
    """
    missing: list[str] = []
    deepest = path
    while not disk.exists(deepest) and deepest != parent(deepest):
        missing.append(deepest)
        deepest = parent(deepest)
    try:
        disk.sync_directory(parent(deepest))
    except StorageError as error:
        # We cannot have made it in a folder that we may not even read.
        if error.facts.get("errno") not in (errno.EACCES, errno.EPERM):
            raise
    for folder in reversed(missing):
        disk.make_directory(folder)
        disk.sync_directory(parent(folder))


def read_file(disk: Disk, path: str, bytes_max: int) -> bytes:
    """The whole of a small file; more than `bytes_max` bytes raise `StorageError`."""
    file = disk.open(path)
    try:
        data = file.read(0, bytes_max + 1)
    finally:
        file.close()
    if len(data) > bytes_max:
        raise StorageError(f"{path} is larger than {bytes_max} bytes", path=path)
    return data


def replace_file(disk: Disk, path: str, data: bytes) -> None:
    """Atomically and durably make `data` the contents of `path`."""
    temporary = path + ".tmp"
    file = disk.open(temporary, create=True)
    try:
        file.write(0, data)
        file.sync()
    finally:
        file.close()
    disk.rename(temporary, path)
    disk.sync_directory(parent(path))


def copy_range(source: File, offset: int, size: int, target: File, target_offset: int) -> None:
    """Copy `size` bytes in large blocks; raises `StorageError` when `source` ends early."""
    done = 0
    while done < size:
        block = source.read(offset + done, min(COPY_BYTES, size - done))
        if not block:
            raise StorageError(
                f"{source.path} ends at byte {offset + done}, {size - done} bytes too early",
                path=source.path,
            )
        target.write(target_offset + done, block)
        done += len(block)
