"""Files in a dictionary: a `Disk` for millions of executions, which forgets nothing."""

from __future__ import annotations

import os

from raftkv.storage.disk import fail


class MemoryFile:
    """`File` over bytes in memory."""

    def __init__(self, path: str, data: bytearray) -> None:
        self.path = path
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self._data):
            self._data += bytes(offset - len(self._data))
        self._data[offset : offset + len(data)] = data

    def size(self) -> int:
        return len(self._data)

    def truncate(self, size: int) -> None:
        del self._data[size:]
        self._data += bytes(size - len(self._data))

    def fill_zeros(self, start: int, end: int) -> None:
        self.write(start, bytes(end - start))

    def sync_data(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryLock:
    """A lock that nobody else wants."""

    def release(self) -> None:
        pass


class MemoryDisk:
    """`Disk` over a dictionary from path to contents. Folders are made by naming them."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {path: bytearray(data) for path, data in (files or {}).items()}
        self.folders = {os.path.dirname(path) for path in self.files}

    def open(self, path: str, *, write: bool = False, create: bool = False) -> MemoryFile:
        if create:
            self.files[path] = bytearray()
        elif path not in self.files:
            fail(FileNotFoundError(2, "No such file or directory"), "open", path)
        return MemoryFile(path, self.files[path])

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.folders

    def list(self, path: str) -> list[str]:
        found = {*self.files, *self.folders}
        return sorted(os.path.basename(one) for one in found if os.path.dirname(one) == path)

    def make_directory(self, path: str) -> None:
        self.folders.add(path)

    def directory_mode(self, path: str) -> int:
        return 0o700

    def set_directory_mode(self, path: str, mode: int) -> None:
        pass

    def remove(self, path: str) -> None:
        del self.files[path]

    def rename(self, source: str, target: str) -> None:
        self.files[target] = self.files.pop(source)

    def sync_directory(self, path: str) -> None:
        pass

    def free_bytes(self, path: str) -> int:
        return 1 << 40

    def lock(self, path: str) -> MemoryLock:
        return MemoryLock()

    def boot_id(self) -> str:
        return "the boot of this test"

    def random_bytes(self, size: int) -> bytes:
        return bytes(range(size))
