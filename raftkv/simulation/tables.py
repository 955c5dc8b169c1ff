"""The tables of a simulated member: like LMDB without syncs, they outlive only the process."""

from __future__ import annotations

import random

from raftkv.errors import StorageError
from raftkv.storage.disk import Disk, join
from raftkv.storage.memory_backend import MemoryBackend, MemoryWriter

NAME = "tables.mem"
"""Stands for the LMDB file: whether it is there decides whether the tables are."""


class SimBackend(MemoryBackend):
    """Tables that know whether they were synced since they last changed."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk=disk)
        self._synced: list[int] | None = None
        self.transactions_left: int | None = None
        """The process is killed before the transaction that follows so many more; None: never."""

    def write(self) -> MemoryWriter:
        """See `Backend.write`."""
        if self.transactions_left == 0:
            self.transactions_left = None
            raise StorageError("killed between two transactions of the tables")
        if self.transactions_left is not None:
            self.transactions_left -= 1
        return super().write()

    def install(self) -> None:
        """See `Backend.install`."""
        super().install()
        self._synced = None

    def sync(self) -> None:
        """See `Backend.sync`."""
        self._synced = list(self._changes)

    def lose(self, chance: random.Random) -> None:
        """The machine went down: without a sync rows are torn out at random."""
        if self._synced == self._changes:
            return
        for rows in self._tables:
            for key in [key for key in rows if chance.random() < 0.3]:
                del rows[key]


class SimTables:
    """Keeps a member's tables while its process is down. `open` is an `OpenTables`."""

    def __init__(self) -> None:
        self._backend: SimBackend | None = None

    def open(self, path: str, disk: Disk) -> SimBackend:
        """The tables as the last process left them, or empty ones where there is no file."""
        file = join(path, NAME)
        if self._backend is None or not disk.exists(file):
            disk.open(file, create=True).close()
            self._backend = SimBackend(disk)
        self._backend.transactions_left = None
        return self._backend

    def kill_after(self, transactions: int) -> None:
        """Kill the process when it begins the transaction after so many more.

        What one call of the machine does in two transactions is torn apart by this, and only this.
        """
        if self._backend is not None:
            self._backend.transactions_left = transactions

    def power_cut(self, chance: random.Random) -> None:
        """What the kernel had not written back is gone.

        Recovery must not trust what is left then. If it does, the state hash tells.
        """
        if self._backend is not None:
            self._backend.lose(chance)
