"""A simulated disk for one machine: volatile until synced, and with faults to order.

`SimDisk` is a `raftkv.storage.disk.Disk` in memory. Without faults it answers as the real one does;
the same tests run against both. What the ends of a process and of a machine leave behind:

- `crash` (kill -9): everything written stays, because the kernel holds it, synced or not. Locks
  are gone, and handles of the dead process raise.
- `power_cut`: of the sectors (512 bytes) written since a file's last sync any subset is left, in no
  order, and one of those that are not may hold the beginning of its new bytes. A file's length is
  one of those it had since then. Creations, renames and removals that `sync_directory` did not
  make durable survive as far as some point in their order, for each folder by itself: what a file
  system with ordered metadata promises (ext4, XFS), and not a thing more. In particular the sync of
  a file does not make its name durable, nor does a rename wait for the file's bytes.

`sync_data` is as `sync`: the only metadata of a file here is its length, which a reader needs.
Permissions are durable at once. A rename stays within its folder.

Everything random is drawn from the `random.Random` that the disk was made with, in the order of
the calls, so equal seeds give equal disks. Used by one thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, NoReturn

from raftkv.errors import LockedError
from raftkv.simulation.inodes import SECTOR_BYTES, FileNode, FolderNode, Outcome
from raftkv.storage.disk import DIRECTORY_MODE, fail

KINDS: Final = (
    "crash",
    "power_cut",
    "read_error",
    "write_error",
    "sync_error",
    "full",
    "unsynced_lost",
    "sector_torn",
    "sector_rotten",
    "write_misdirected",
)
"""Keys of `SimDisk.injected`."""


@dataclass(slots=True)
class DiskFaults:
    """How often what goes wrong: probabilities from 0 (never) to 1, for each call."""

    read_error: float = 0.0
    """EIO from a read."""
    write_error: float = 0.0
    """EIO from a write, of which some beginning was written."""
    sync_error: float = 0.0
    """EIO from the sync of a file or folder. As on Linux, the pages count as clean afterwards: each
    sector either reached the medium, or never will unless it is written again."""
    write_misdirected: float = 0.0
    """A sync puts one sector of its file in the place of another, and says nothing."""


class SimFile:
    """`raftkv.storage.disk.File` of a simulated disk."""

    __slots__ = ("_disk", "_node", "_number", "_writable", "path")

    def __init__(
        self, disk: SimDisk, path: str, node: FileNode, number: int, *, writable: bool
    ) -> None:
        self.path = path
        self._disk = disk
        self._number = number
        self._node: FileNode | None = node
        self._writable: FileNode | None = node if writable else None

    def read(self, offset: int, size: int) -> bytes:
        """See `File.read`."""
        node = self._node or self._refuse("read")
        if self._disk.faults is not None and self._disk._happens("read_error"):
            _fail(errno.EIO, "read", self.path)
        return node.read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """See `File.write`."""
        node = self._writable or self._refuse("write")
        if not data:
            return
        if self._disk.faults is not None and self._disk._happens("write_error"):
            self._write_part(node, offset, data, self._disk._random.randrange(len(data)))
            _fail(errno.EIO, "write", self.path)
        more = offset + len(data) - node.length
        if more > 0:
            room = self._disk._take(node, more)
            if room < more:
                self._write_part(node, offset, data, len(data) - (more - room))
                _fail(errno.ENOSPC, "write", self.path)
        node.write(offset, data)

    def size(self) -> int:
        """See `File.size`."""
        return (self._node or self._refuse("stat")).length

    def truncate(self, size: int) -> None:
        """See `File.truncate`."""
        node = self._writable or self._refuse("truncate", errno.EINVAL)
        more = size - node.length
        if self._disk._take(node, more) < more:
            _fail(errno.ENOSPC, "truncate", self.path)
        node.truncate(size)

    def fill_zeros(self, start: int, end: int) -> None:
        """See `File.fill_zeros`."""
        node = self._writable or self._refuse("write")
        more = end - node.length
        if more > 0:
            room = self._disk._take(node, more)
            if room < more:
                node.fill_zeros(start, end - (more - room))
                _fail(errno.ENOSPC, "write", self.path)
        node.fill_zeros(start, end)

    def sync_data(self) -> None:
        """See `File.sync_data`."""
        self._sync("fdatasync")

    def sync(self) -> None:
        """See `File.sync`."""
        self._sync("fsync")

    def close(self) -> None:
        """See `File.close`."""
        self._node = self._writable = None
        self._disk._open.pop(self._number, None)

    def _sync(self, operation: str) -> None:
        node = self._node or self._refuse(operation, fatal=True)
        disk = self._disk
        if disk.faults is not None:
            if disk._happens("sync_error"):
                lost = [sector for sector in sorted(node.unsynced) if disk._random.random() < 0.5]
                disk.injected["unsynced_lost"] += len(lost)
                node.lose(lost)
                _fail(errno.EIO, operation, self.path, fatal=True)
            if node.unsynced and disk._happens("write_misdirected"):
                disk._misdirect(node)
        node.sync()

    def _write_part(self, node: FileNode, offset: int, data: bytes, size: int) -> None:
        more = max(offset + size - node.length, 0)
        if size > 0 and self._disk._take(node, more) == more:
            node.write(offset, data[:size])

    def _refuse(
        self, operation: str, number: int = errno.EBADF, *, fatal: bool = False
    ) -> NoReturn:
        """Fail as a descriptor that is closed, or not open for this, does."""
        _fail(number if self._node else errno.EBADF, operation, self.path, fatal=fatal)


class SimLock:
    """`raftkv.storage.disk.Lock` of a simulated disk."""

    __slots__ = ("_node",)

    def __init__(self, node: FileNode) -> None:
        self._node: FileNode | None = node

    def release(self) -> None:
        """See `Lock.release`."""
        if self._node is not None:
            self._node.locked = False
            self._node = None


class SimDisk:
    """`raftkv.storage.disk.Disk` of one simulated machine; see the module for what it promises.

    `capacity_bytes` bounds the sum of all lengths: what does not fit raises `DiskFullError`.
    """

    def __init__(
        self,
        random: Random,
        *,
        capacity_bytes: int = 1 << 40,
        faults: DiskFaults | None = None,
    ) -> None:
        self._random = random
        self._root = FolderNode(0, DIRECTORY_MODE)
        self._nodes = 1
        self._handles = 0
        self._open: dict[int, SimFile] = {}
        self._locks: list[SimLock] = []
        self._processes = 1
        self._boots = 1
        self._used_bytes = 0
        self.capacity_bytes = capacity_bytes
        """May be changed at any time."""
        self.faults = faults
        """May be changed at any time; None: nothing goes wrong by itself."""
        self.injected: dict[str, int] = dict.fromkeys(KINDS, 0)
        """How often each kind of fault has happened on this disk."""

    # Disk

    def open(self, path: str, *, write: bool = False, create: bool = False) -> SimFile:
        """See `Disk.open`."""
        folder, name = self._place("open", path)
        node = folder.entries.get(name)
        if isinstance(node, FolderNode):
            _fail(errno.EISDIR, "open", path)
        if node is None:
            if not create:
                _fail(errno.ENOENT, "open", path)
            node = self._new_file(folder, name)
        elif create:
            self._take(node, -node.length)
            node.truncate(0)
        self._handles += 1
        file = SimFile(self, path, node, self._handles, writable=write or create)
        self._open[self._handles] = file
        return file

    def exists(self, path: str) -> bool:
        """See `Disk.exists`."""
        return self._find(path) is not None

    def list(self, path: str) -> list[str]:
        """See `Disk.list`."""
        return sorted(self._folder("list", path).entries)

    def make_directory(self, path: str) -> None:
        """See `Disk.make_directory`."""
        folder = self._root
        for name in _names(path):
            node = folder.entries.get(name)
            if node is None:
                node = FolderNode(self._next_node(), DIRECTORY_MODE)
                folder.set((name, node))
            elif isinstance(node, FileNode):
                _fail(errno.ENOTDIR, "make directory", path)
            folder = node

    def directory_mode(self, path: str) -> int:
        """See `Disk.directory_mode`."""
        return self._folder("stat", path).mode

    def set_directory_mode(self, path: str, mode: int) -> None:
        """See `Disk.set_directory_mode`."""
        self._folder("chmod", path).mode = mode

    def remove(self, path: str) -> None:
        """See `Disk.remove`."""
        folder, name = self._place("remove", path)
        node = folder.entries.get(name)
        if node is None:
            _fail(errno.ENOENT, "remove", path)
        if isinstance(node, FolderNode):
            _fail(errno.EISDIR, "remove", path)
        folder.set((name, None))
        self._unname(node)

    def rename(self, source: str, target: str) -> None:
        """See `Disk.rename`; the folder has to be the same (`EXDEV`)."""
        folder, old = self._place("rename", source)
        other, new = self._place("rename", target)
        node, replaced = folder.entries.get(old), other.entries.get(new)
        if node is None:
            _fail(errno.ENOENT, "rename", source)
        if folder is not other:
            _fail(errno.EXDEV, "rename", source)
        if isinstance(replaced, FolderNode):
            _fail(errno.EISDIR, "rename", source)
        if node is replaced:
            return
        if replaced is not None:
            if isinstance(node, FolderNode):
                _fail(errno.ENOTDIR, "rename", source)
            self._unname(replaced)
        folder.set((old, None), (new, node))

    def sync_directory(self, path: str) -> None:
        """See `Disk.sync_directory`."""
        folder = self._folder("fsync directory", path, fatal=True)
        if self.faults is not None and self._happens("sync_error"):
            _fail(errno.EIO, "fsync directory", path, fatal=True)
        folder.sync()

    def free_bytes(self, path: str) -> int:
        """See `Disk.free_bytes`."""
        self._folder("statvfs", path)
        return max(self.capacity_bytes - self._used_bytes, 0)

    def lock(self, path: str) -> SimLock:
        """See `Disk.lock`."""
        folder, name = self._place("lock", path)
        node = folder.entries.get(name)
        if isinstance(node, FolderNode):
            _fail(errno.EISDIR, "lock", path)
        if node is None:
            node = self._new_file(folder, name)
        if node.locked:
            holder = node.read(0, 32).split(b"\n")[0].decode("ascii", "replace")
            raise LockedError(
                f"{os.path.dirname(path)} is in use by process {holder or 'unknown'}; "
                "stop it, or use another data directory",
                path=path,
                pid=holder,
            )
        node.truncate(0)
        node.write(0, b"%d\n" % self._processes)
        node.locked = True
        lock = SimLock(node)
        self._locks.append(lock)
        return lock

    def boot_id(self) -> str:
        """See `Disk.boot_id`."""
        return f"simulated-boot-{self._boots}"

    def random_bytes(self, size: int) -> bytes:
        """See `Disk.random_bytes`; here they are predictable."""
        return self._random.randbytes(size)

    # What happens to machines

    def crash(self) -> None:
        """End the process at this instant. The next one finds all that this one wrote.

        Except for what a failed sync left behind, which the kernel may have dropped by then.
        """
        self.injected["crash"] += 1
        self._end_process()
        for _, node in self._files():
            if node.lost and self._random.random() < 0.5:
                node.evict()

    def power_cut(self) -> None:
        """End the machine at this instant and start it again, with what its medium holds."""
        self.settle(self.draw_outcome())

    def draw_outcome(self) -> Outcome:
        """What a power cut at this instant would leave."""
        random = self._random
        outcome = Outcome()
        for folder in self.unsynced_folders():
            outcome.changes[folder.number] = random.randint(0, len(folder.changes))
        for node in self.unsynced_files():
            share = random.random()
            kept = frozenset(one for one in sorted(node.unsynced) if random.random() < share)
            outcome.sectors[node.number] = kept
            if node.lengths:
                outcome.lengths[node.number] = random.choice(node.lengths)
            dropped = [one for one in sorted(node.unsynced) if one not in kept]
            if dropped and random.random() < 0.5:
                outcome.torn[node.number] = (random.choice(dropped), random.randrange(SECTOR_BYTES))
        return outcome

    def settle(self, outcome: Outcome) -> None:
        """As `power_cut`, with a given outcome instead of a random one.

        For enumerating outcomes; `unsynced_files` and `unsynced_folders` say what there is.
        """
        self.injected["power_cut"] += 1
        self.injected["sector_torn"] += len(outcome.torn)
        for node in self.unsynced_files():
            kept = outcome.sectors.get(node.number, frozenset())
            self.injected["unsynced_lost"] += len(node.unsynced) - len(kept)
        self._boots += 1
        self._end_process()
        self._root.settle(outcome)
        self._used_bytes = 0
        for _, node in self._files():
            node.named = True
            self._used_bytes += node.length

    def unsynced_files(self) -> Sequence[FileNode]:
        """Files that a power cut may change, removed ones included whose removal is unsynced."""
        found: dict[int, FileNode] = {}
        for folder in self._folders():
            for node in folder.nodes():
                if isinstance(node, FileNode) and not node.clean:
                    found[node.number] = node
        return [found[number] for number in sorted(found)]

    def unsynced_folders(self) -> Sequence[FolderNode]:
        """Folders with changes that a power cut may undo."""
        return [folder for folder in self._folders() if folder.changes]

    def fork(self, random: Random) -> SimDisk:
        """The same medium and kernel state in another machine, where no process runs yet."""
        other = SimDisk(random, capacity_bytes=self.capacity_bytes)
        other._root = self._root.copy()
        other._nodes = self._nodes
        other._processes = self._processes + 1
        other._boots = self._boots
        other._used_bytes = self._used_bytes
        return other

    # Damage

    def rot(self, path: str, offset: int, mask: int = 1) -> None:
        """Flip the bits of `mask` in the byte at `offset` of a file."""
        node = self._find(path)
        if not isinstance(node, FileNode):
            _fail(errno.ENOENT if node is None else errno.EISDIR, "rot", path)
        if not 0 <= offset < node.length:
            _fail(errno.EINVAL, "rot", path)
        self.injected["sector_rotten"] += 1
        node.rot(offset, mask)

    def rot_somewhere(self, folder: str) -> tuple[str, int] | None:
        """Flip one random bit in a random file below `folder`; path and offset, None: no bytes.

        Hits what was written, not the zeros that a file was filled with behind it.
        """
        files = [(path, node) for path, node in self._files(folder) if node.content]
        if not files:
            return None
        path, node = self._random.choice(files)
        offset = self._random.randrange(len(node.content))
        self.rot(path, offset, 1 << self._random.randrange(8))
        return path, offset

    # Parts

    def _happens(self, kind: str) -> bool:
        """Draw whether a fault of this kind strikes now."""
        probability: float = getattr(self.faults, kind)
        if probability and self._random.random() < probability:
            self.injected[kind] += 1
            return True
        return False

    def _take(self, node: FileNode, more: int) -> int:
        """Account for `more` bytes of `node`, or for as many as there is room for; how many."""
        if not node.named:
            return more
        room = self.capacity_bytes - self._used_bytes
        if more > room:
            self.injected["full"] += 1
            return max(room, 0)
        self._used_bytes += more
        return more

    def _unname(self, node: FileNode) -> None:
        """Its last name is gone. What open handles still keep of it is not accounted for."""
        node.named = False
        self._used_bytes -= node.length

    def _misdirect(self, node: FileNode) -> None:
        sectors = sorted(node.unsynced)
        target = self._random.randrange((node.length + SECTOR_BYTES - 1) // SECTOR_BYTES)
        node.misdirect(self._random.choice(sectors), target)

    def _end_process(self) -> None:
        self._processes += 1
        for file in list(self._open.values()):
            file.close()
        for lock in self._locks:
            lock.release()
        self._locks = []

    def _next_node(self) -> int:
        self._nodes += 1
        return self._nodes

    def _new_file(self, folder: FolderNode, name: str) -> FileNode:
        node = FileNode(self._next_node())
        folder.set((name, node))
        return node

    def _find(self, path: str) -> FileNode | FolderNode | None:
        node: FileNode | FolderNode | None = self._root
        for name in _names(path):
            if not isinstance(node, FolderNode):
                return None
            node = node.entries.get(name)
        return node

    def _folder(self, operation: str, path: str, *, fatal: bool = False) -> FolderNode:
        node = self._find(path)
        if not isinstance(node, FolderNode):
            _fail(errno.ENOENT if node is None else errno.ENOTDIR, operation, path, fatal=fatal)
        return node

    def _place(self, operation: str, path: str) -> tuple[FolderNode, str]:
        """The folder that holds, or would hold, `path`, and the name in it."""
        *above, name = _names(path) or [""]
        node: FileNode | FolderNode | None = self._root
        for part in above:
            if isinstance(node, FolderNode):
                node = node.entries.get(part)
        if not isinstance(node, FolderNode):
            _fail(errno.ENOENT if node is None else errno.ENOTDIR, operation, path)
        if not name:
            _fail(errno.EISDIR, operation, path)
        return node, name

    def _folders(self) -> Iterator[FolderNode]:
        """Every folder, parents first, removed ones included whose removal is unsynced."""
        waiting = [self._root]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += [node for node in folder.nodes() if isinstance(node, FolderNode)]

    def _files(self, folder: str = "/") -> Sequence[tuple[str, FileNode]]:
        """Every file that has a name, in the order of paths."""
        found = []
        waiting = [(folder.rstrip("/"), self._folder("list", folder))]
        while waiting:
            path, node = waiting.pop()
            for name, entry in node.entries.items():
                if isinstance(entry, FolderNode):
                    waiting.append((f"{path}/{name}", entry))
                else:
                    found.append((f"{path}/{name}", entry))
        return sorted(found, key=lambda one: one[0])


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _fail(number: int, operation: str, path: str, *, fatal: bool = False) -> NoReturn:
    fail(OSError(number, os.strerror(number)), operation, path, fatal=fatal)
