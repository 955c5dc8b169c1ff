"""A disk that writes down what is done to it, and the machine that does it again, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from raftkv.simulation.disk import SimDisk, SimFile, SimLock
from raftkv.simulation.inodes import Outcome
from raftkv.storage.disk import File, Lock


class Operation(NamedTuple):
    """One call that changed something, in the order of calls."""

    name: str
    handle: int
    """Which open file or lock it was called on; 0: the disk itself."""
    args: tuple[Any, ...]
    result: int
    """Number of the handle it gave; 0: none."""
    moment: Any
    """What the caller had promised to anybody when the call began."""


class RecordingDisk:
    """`Disk` over a simulated one. Reads pass unrecorded, and so do calls that fail."""

    def __init__(self, disk: SimDisk, moment: Callable[[], Any] = lambda: None) -> None:
        self.inner = disk
        self.operations: list[Operation] = []
        self._moment = moment
        self._handles = 0

    def done(
        self, call: Callable[..., Any], name: str, *args: Any, handle: int = 0, gives: bool = False
    ) -> Any:
        """Carry out one call and write it down."""
        moment = self._moment()
        value = call(*args)
        number = 0
        if gives:
            self._handles = number = self._handles + 1
        self.operations.append(Operation(name, handle, args, number, moment))
        return value

    # Disk

    def open(self, path: str, *, write: bool = False, create: bool = False) -> File:
        if not (write or create):
            return self.inner.open(path)

        def opened(path: str, write: bool, create: bool) -> SimFile:
            return self.inner.open(path, write=write, create=create)

        file = self.done(opened, "open", path, write, create, gives=True)
        return RecordingFile(self, file, self._handles)

    def exists(self, path: str) -> bool:
        return self.inner.exists(path)

    def list(self, path: str) -> list[str]:
        return self.inner.list(path)

    def make_directory(self, path: str) -> None:
        self.done(self.inner.make_directory, "make_directory", path)

    def directory_mode(self, path: str) -> int:
        return self.inner.directory_mode(path)

    def set_directory_mode(self, path: str, mode: int) -> None:
        self.done(self.inner.set_directory_mode, "set_directory_mode", path, mode)

    def remove(self, path: str) -> None:
        self.done(self.inner.remove, "remove", path)

    def rename(self, source: str, target: str) -> None:
        self.done(self.inner.rename, "rename", source, target)

    def sync_directory(self, path: str) -> None:
        self.done(self.inner.sync_directory, "sync_directory", path)

    def free_bytes(self, path: str) -> int:
        return self.inner.free_bytes(path)

    def lock(self, path: str) -> Lock:
        lock = self.done(self.inner.lock, "lock", path, gives=True)
        return RecordingLock(self, lock, self._handles)

    def boot_id(self) -> str:
        return self.inner.boot_id()

    def random_bytes(self, size: int) -> bytes:
        return self.inner.random_bytes(size)

    # Its machine

    def crash(self) -> None:
        self.done(self.inner.crash, "crash")

    def settle(self, outcome: Outcome) -> None:
        self.done(self.inner.settle, "settle", outcome)


class RecordingFile:
    """`File` over a simulated one."""

    def __init__(self, disk: RecordingDisk, file: SimFile, number: int) -> None:
        self.path = file.path
        self._disk = disk
        self._file = file
        self._number = number

    def read(self, offset: int, size: int) -> bytes:
        return self._file.read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._disk.done(self._file.write, "write", offset, data, handle=self._number)

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._disk.done(self._file.truncate, "truncate", size, handle=self._number)

    def fill_zeros(self, start: int, end: int) -> None:
        self._disk.done(self._file.fill_zeros, "fill_zeros", start, end, handle=self._number)

    def sync_data(self) -> None:
        self._disk.done(self._file.sync_data, "sync_data", handle=self._number)

    def sync(self) -> None:
        self._disk.done(self._file.sync, "sync", handle=self._number)

    def close(self) -> None:
        self._file.close()


class RecordingLock:
    """`Lock` over a simulated one."""

    def __init__(self, disk: RecordingDisk, lock: SimLock, number: int) -> None:
        self._disk = disk
        self._lock = lock
        self._number = number

    def release(self) -> None:
        self._disk.done(self._lock.release, "release", handle=self._number)


class Replay:
    """Does recorded operations again, on a disk of its own."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self._handles: dict[int, Any] = {0: disk}

    def apply(self, operation: Operation) -> None:
        """Do the next operation."""
        name, handle, args, result, _ = operation
        if name == "open":
            path, write, create = args
            self._handles[result] = self.disk.open(path, write=write, create=create)
            return
        value = getattr(self._handles[handle], name)(*args)
        if result:
            self._handles[result] = value

    def file(self, handle: int) -> SimFile:
        """The open file that an operation to come is going to use."""
        file: SimFile = self._handles[handle]
        return file


class PowerGone(BaseException):
    """The machine ended in the middle of a program, which has no chance to notice."""


class EndingDisk(RecordingDisk):
    """Ends for good before the operation with the number `ends_at`, counted from 0."""

    def __init__(self, disk: SimDisk, ends_at: int) -> None:
        super().__init__(disk)
        self._left = ends_at

    def done(
        self, call: Callable[..., Any], name: str, *args: Any, handle: int = 0, gives: bool = False
    ) -> Any:
        if self._left <= 0:
            raise PowerGone
        self._left -= 1
        return super().done(call, name, *args, handle=handle, gives=gives)
