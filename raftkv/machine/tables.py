"""The ordered tables that the machine stands on, as a protocol.

`raftkv.storage.backend` implements it, on LMDB and in memory. The machine knows nothing else about
where its state lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Final, Protocol


class Table(IntEnum):
    """Every table. The numbers are part of the stored format and are never reused."""

    META = 0
    """A few fixed rows: counters, membership, the local progress of compaction."""
    CURRENT = 1
    """Keyspace byte + key -> header of the newest record, or all of it; see `machine.records`.
    Tombstones included until compaction removes them."""
    HISTORY = 2
    """Position (revision, sub) -> the record written there, whole; grows at its end."""
    VERSIONS = 3
    """Key id + revision of a superseded record -> its sub and the revision that superseded it."""
    LEASES = 4
    """Lease id -> TTL and flags."""
    LEASE_KEYS = 5
    """Lease id + CURRENT row name -> nothing."""
    ONCE = 6
    """Idempotency key -> fingerprint of the command and its first result."""
    ONCE_AGE = 7
    """Stamp + serial number -> idempotency key, for ageing."""
    MEMBERS = 8
    """Member id -> name, addresses, learner."""
    ALARMS = 9
    """Alarm kind + member id -> nothing."""
    AUTH = 10
    """Whether access control is on, users and roles; see `raftkv.machine.auth`."""
    TOKENS = 11
    """Hashes of the tokens of those who logged in; see `raftkv.machine.tokens`."""

    QUOTAS = 12
    """Kind + name of a quota -> its limits and what is used; see `raftkv.machine.quotas`."""
    QUOTA_OWNERS = 13
    """User key -> since when, and which quota of a user counts it."""


# Plain integers for the hot path: hashing an Enum member is a Python call.
META: Final = int(Table.META)
CURRENT: Final = int(Table.CURRENT)
HISTORY: Final = int(Table.HISTORY)
VERSIONS: Final = int(Table.VERSIONS)
LEASES: Final = int(Table.LEASES)
LEASE_KEYS: Final = int(Table.LEASE_KEYS)
ONCE: Final = int(Table.ONCE)
ONCE_AGE: Final = int(Table.ONCE_AGE)
MEMBERS: Final = int(Table.MEMBERS)
ALARMS: Final = int(Table.ALARMS)
AUTH: Final = int(Table.AUTH)
TOKENS: Final = int(Table.TOKENS)
QUOTAS: Final = int(Table.QUOTAS)
QUOTA_OWNERS: Final = int(Table.QUOTA_OWNERS)


class TableReader(Protocol):
    """A consistent view. Keys are ordered bytewise and at most KEY_BYTES_MAX + 32 bytes long."""

    def get(self, table: int, key: bytes) -> bytes | None:
        """The value at `key`, or None."""

    def scan(self, table: int, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Rows of [start, end), ascending. `end` None: to the end of the table.

        The table must not be written while the iterator is in use.
        """

    def scan_reverse(
        self, table: int, start: bytes, end: bytes | None
    ) -> Iterator[tuple[bytes, bytes]]:
        """The same interval, descending."""


class TableWriter(TableReader, Protocol):
    """A view that also writes; its reads see its own writes."""

    def put(self, table: int, key: bytes, value: bytes) -> None:
        """Write one row."""

    def append(self, table: int, key: bytes, value: bytes) -> None:
        """As `put`, for a key greater than every key of the table."""

    def put_many(self, table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """As `put` for each; best in order of the keys."""

    def delete(self, table: int, key: bytes) -> bool:
        """Remove one row; whether there was one."""


class Tables(Protocol):
    """Opens views. One writer at a time."""

    def read(self) -> AbstractContextManager[TableReader]:
        """A consistent view of the last committed state; not held across turns of the loop."""

    def write(self) -> AbstractContextManager[TableWriter]:
        """One atomic change: everything on a normal exit, nothing when an exception leaves it."""
