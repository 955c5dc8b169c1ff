"""The tables of one machine as the ends of processes and of the machine leave them.

LMDB writes around the `Disk`, without syncs. A killed process leaves the last committed state; a
power cut leaves anything at all, unless the tables were synced at a clean end. Here, after a power
cut, they look fine and lack rows, so whoever trusts them is found out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sortedcontainers import SortedDict

from raftkv.machine.machine import COMPACTION_ROW
from raftkv.machine.tables import META
from raftkv.storage.backend import Backend, MemoryBackend
from raftkv.storage.disk import Disk, join
from raftkv.storage.memory_backend import TABLES

Rows = tuple[dict[bytes, bytes], ...]
EMPTY: Rows = tuple({} for _ in range(TABLES))
FILE_NAME = "data.mdb"


class MachineTables:
    """What `tables/` of one machine holds, across its processes."""

    def __init__(
        self,
        rows: Rows = EMPTY,
        *,
        synced: bool = False,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._rows = rows
        self._backend: _CommittedBackend | None = None
        self.synced = synced
        self.changed = changed
        """Called after every commit and sync."""

    @property
    def rows(self) -> Rows:
        """As last committed."""
        if self._backend is None:
            return self._rows
        return tuple(dict(rows) for rows in self._backend._tables)

    def open(self, path: str, disk: Disk) -> Backend:
        """For `open_files`: what is there, or new tables if the file was removed."""
        file = join(path, FILE_NAME)
        self._rows, self._backend = self.rows, None
        if not disk.exists(file):
            self._rows = EMPTY
            self.synced = False
            self.changed()
            disk.open(file, create=True).close()
        self._backend = _CommittedBackend(self, disk)
        return self._backend

    def power_cut(self) -> None:
        """What was not synced is spoilt."""
        if not self.synced:
            self._rows, self._backend = spoilt(self.rows), None


class _CommittedBackend(MemoryBackend):
    """Tells its machine of every commit."""

    def __init__(self, machine: MachineTables, disk: Disk) -> None:
        super().__init__(disk=disk)
        self._machine = machine
        self._tables: list[Any] = [SortedDict(rows) for rows in machine.rows]

    @contextmanager
    def write(self) -> Iterator[Any]:  # type: ignore[override]
        with super().write() as writer:
            yield writer
        self._committed()

    def install(self) -> None:
        super().install()
        self._committed()

    def sync(self) -> None:
        self._machine.synced = True
        self._machine.changed()

    def _committed(self) -> None:
        self._machine.synced = False
        self._machine.changed()


def spoilt(rows: Rows) -> Rows:
    """The same tables with their counters and without some of their rows."""
    kept = []
    for number, table in enumerate(rows):
        names = list(table)
        gone = set() if number == META else set(names[len(names) // 3 :])
        kept.append({name: value for name, value in table.items() if name not in gone})
    return tuple(kept)


def digest(rows: Rows) -> bytes:
    """Over all rows but what a member notes for itself about its progress in compaction."""
    total = hashlib.blake2b(digest_size=16)
    for number, table in enumerate(rows):
        for name in sorted(table):
            if number == META and name == COMPACTION_ROW:
                continue
            value = table[name]
            total.update(b"%d %d %d " % (number, len(name), len(value)))
            total.update(name + value)
    return total.digest()
