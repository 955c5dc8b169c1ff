"""The tables of a simulated member: like LMDB without syncs, they outlive only the process."""

from __future__ import annotations

import random

from raftkv.storage.disk import Disk, join
from raftkv.storage.memory_backend import MemoryBackend

NAME = "tables.mem"
"""Stands for the LMDB file: whether it is there decides whether the tables are."""


class SimTables:
    """Keeps a member's tables while its process is down. `open` is an `OpenTables`."""

    def __init__(self) -> None:
        self._backend: MemoryBackend | None = None

    def open(self, path: str, disk: Disk) -> MemoryBackend:
        """The tables as the last process left them, or empty ones where there is no file."""
        file = join(path, NAME)
        if self._backend is None or not disk.exists(file):
            disk.open(file, create=True).close()
            self._backend = MemoryBackend(disk=disk)
        return self._backend

    def power_cut(self, chance: random.Random) -> None:
        """What the kernel had not written back is gone: rows are torn out at random.

        Recovery must not trust these tables. If it does, the state hash tells.
        """
        if self._backend is None:
            return
        for rows in self._backend._tables:
            for key in [key for key in rows if chance.random() < 0.3]:
                del rows[key]
