"""Files and folders of a simulated machine: what programs see, and what the medium holds.

A file keeps its newest bytes and, for every sector written since the last sync, what the medium
still holds there. So a sync is forgetting, and a power cut puts old sectors back. A folder keeps
its newest entries and, in order, how to undo each change since its last sync.

Bytes after the last one written that is not a fill with zeros are not stored: a log segment
filled with zeros costs nothing before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SECTOR_BYTES: Final = 512
"""The unit in which a medium writes; a program has no say in their order between two syncs."""
_SHIFT: Final = 9

Undo = tuple[tuple[str, "FileNode | FolderNode | None"], ...]
"""Names that one change touched, each with what had it before."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What of the unsynced state is on the medium after a power cut, by inode number.

    A folder or file that is not mentioned loses everything unsynced.
    """

    changes: dict[int, int] = field(default_factory=dict)
    """Folder -> how many of its unsynced changes survive, in order from the oldest."""
    sectors: dict[int, frozenset[int]] = field(default_factory=dict)
    """File -> its unsynced sectors that survive."""
    lengths: dict[int, int] = field(default_factory=dict)
    """File -> its length in bytes, one of the lengths it had since the last sync or between two."""
    torn: dict[int, tuple[int, int]] = field(default_factory=dict)
    """File -> a sector that does not survive whole, and how many of its new bytes do."""


class FileNode:
    """One file, whatever names it has."""

    __slots__ = ("content", "length", "lengths", "locked", "lost", "named", "number", "unsynced")

    def __init__(self, number: int) -> None:
        self.number = number
        self.content = bytearray()
        """The newest bytes; between its end and `length` there are zeros."""
        self.length = 0
        self.unsynced: dict[int, bytes] = {}
        """Sector -> what the medium holds there, without zeros that lie beyond the stored bytes."""
        self.lengths: list[int] = []
        """The length on the medium and all that followed it; empty while they are the same."""
        self.lost: dict[int, bytes] = {}
        """As `unsynced`, for sectors that a failed sync left behind: no later sync writes them."""
        self.locked = False
        self.named = True
        """Whether it counts towards the capacity."""

    def copy(self) -> FileNode:
        """The same file of another machine, unlocked."""
        other = FileNode(self.number)
        other.content = self.content[:]
        other.length = self.length
        other.unsynced = self.unsynced.copy()
        other.lengths = self.lengths[:]
        other.lost = self.lost.copy()
        other.named = self.named
        return other

    @property
    def clean(self) -> bool:
        """Whether the medium holds what programs see."""
        return not (self.unsynced or self.lengths or self.lost)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer at the end."""
        end = min(offset + size, self.length)
        data = bytes(self.content[offset:end])
        missing = end - offset - len(data)
        return data + bytes(missing) if missing > 0 else data

    def write(self, offset: int, data: bytes) -> None:
        """Put `data`, not empty, at `offset`, unsynced."""
        end = offset + len(data)
        content, unsynced = self.content, self.unsynced
        if end > self.length:
            self._resize(end)
        for sector in range(offset >> _SHIFT, (end + SECTOR_BYTES - 1) >> _SHIFT):
            if sector not in unsynced:
                start = sector << _SHIFT
                unsynced[sector] = bytes(content[start : start + SECTOR_BYTES])
                if self.lost:
                    unsynced[sector] = self.lost.pop(sector, unsynced[sector])
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset:end] = data

    def fill_zeros(self, start: int, end: int) -> None:
        """Write zeros over [start, end)."""
        stored = min(end, len(self.content))
        if start < stored:
            self.write(start, bytes(stored - start))
        if end > self.length:
            self._resize(end)

    def truncate(self, size: int) -> None:
        """Cut off or extend with zeros."""
        if size < len(self.content):
            self.write(size, bytes(len(self.content) - size))
            del self.content[size:]
        if size != self.length:
            self._resize(size)

    def sync(self) -> None:
        """Let the medium hold what programs see, except for what is lost already."""
        if self.unsynced:
            self.unsynced = {}
        if self.lengths:
            self.lengths = []

    def lose(self, sectors: list[int]) -> None:
        """Give up writing `sectors`, which are unsynced: programs see them, the medium does not."""
        for sector in sectors:
            self.lost[sector] = self.unsynced.pop(sector)

    def evict(self) -> None:
        """Forget the newer bytes of lost sectors: from now on the medium's are seen."""
        for sector, old in self.lost.items():
            self._put_back(sector, old)
        self.lost = {}
        del self.content[self.length :]

    def rot(self, offset: int, mask: int) -> None:
        """Flip bits of one byte on the medium."""
        sector, at = offset >> _SHIFT, offset & (SECTOR_BYTES - 1)
        for held in (self.unsynced, self.lost):
            if sector in held:
                old = bytearray(held[sector].ljust(SECTOR_BYTES, b"\0"))
                old[at] ^= mask
                held[sector] = bytes(old)
                return
        self.content.extend(bytes(max(offset + 1 - len(self.content), 0)))
        self.content[offset] ^= mask

    def misdirect(self, sector: int, target: int) -> None:
        """Put the new bytes of an unsynced sector over another one; what it held itself stays."""
        start = sector << _SHIFT
        new = bytes(self.content[start : start + SECTOR_BYTES]).ljust(SECTOR_BYTES, b"\0")
        self._put_back(sector, self.unsynced.pop(sector))
        self.unsynced.pop(target, None)
        self._put_back(target, new)
        del self.content[self.length :]

    def settle(self, outcome: Outcome) -> None:
        """Become what `outcome` says the medium holds."""
        survivors = outcome.sectors.get(self.number, frozenset())
        torn, torn_bytes = outcome.torn.get(self.number, (-1, 0))
        length = outcome.lengths.get(self.number, self.lengths[0] if self.lengths else self.length)
        for sector, old in (*self.unsynced.items(), *self.lost.items()):
            if sector in survivors:
                continue
            if sector == torn:
                start = sector << _SHIFT
                new = bytes(self.content[start : start + torn_bytes]).ljust(torn_bytes, b"\0")
                old = new + old[torn_bytes:]
            self._put_back(sector, old)
        self.length = length
        del self.content[length:]
        self.unsynced, self.lengths, self.lost = {}, [], {}

    def _put_back(self, sector: int, old: bytes) -> None:
        start = sector << _SHIFT
        content = self.content
        if len(content) < start:
            content.extend(bytes(start - len(content)))
        # What stands behind the sector stays; zeros within it need no room at the end.
        old = old if len(content) <= start + SECTOR_BYTES else old.ljust(SECTOR_BYTES, b"\0")
        content[start : start + SECTOR_BYTES] = old

    def _resize(self, length: int) -> None:
        if not self.lengths:
            self.lengths = [self.length]
        self.lengths.append(length)
        self.length = length


class FolderNode:
    """One folder."""

    __slots__ = ("changes", "entries", "mode", "number")

    def __init__(self, number: int, mode: int) -> None:
        self.number = number
        self.mode = mode
        self.entries: dict[str, FileNode | FolderNode] = {}
        self.changes: list[Undo] = []
        """How to undo what was not synced yet, oldest first."""

    def copy(self) -> FolderNode:
        """The same folder, with all that is in it or was, of another machine."""
        copies: dict[int, FileNode | FolderNode] = {}

        def of(node: FileNode | FolderNode) -> FileNode | FolderNode:
            if node.number not in copies:
                copies[node.number] = node.copy()
            return copies[node.number]

        other = FolderNode(self.number, self.mode)
        other.entries = {name: of(node) for name, node in self.entries.items()}
        other.changes = [
            tuple((name, node and of(node)) for name, node in undo) for undo in self.changes
        ]
        return other

    def set(self, *pairs: tuple[str, FileNode | FolderNode | None]) -> None:
        """Give each name to a node, or (None) take it away: one atomic change, unsynced."""
        self.changes.append(tuple((name, self.entries.get(name)) for name, _ in pairs))
        self._assign(pairs)

    def nodes(self) -> list[FileNode | FolderNode]:
        """What is in it, or would be again if a change were undone."""
        if not self.changes:
            return list(self.entries.values())
        found = {node.number: node for node in self.entries.values()}
        for undo in self.changes:
            found.update((node.number, node) for _, node in undo if node is not None)
        return list(found.values())

    def sync(self) -> None:
        """Let the medium hold the entries that programs see."""
        self.changes = []

    def settle(self, outcome: Outcome) -> None:
        """Become what `outcome` says the medium holds, with all that is left in it."""
        surviving = outcome.changes.get(self.number, 0)
        for undo in reversed(self.changes[surviving:]):
            self._assign(undo)
        self.changes = []
        for node in self.entries.values():
            node.settle(outcome)

    def _assign(self, pairs: Undo) -> None:
        for name, node in pairs:
            if node is None:
                del self.entries[name]
            else:
                self.entries[name] = node
