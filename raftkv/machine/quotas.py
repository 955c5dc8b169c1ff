"""Quotas on parts of the store: keys and bytes under a prefix, or written by a user.

Counted are user keys as they are now, each with the bytes of its key and its value; history, leases
and services are the byte quota's affair. A prefix counts all its keys from the moment on that it
gets a quota. A user counts what it wrote last, from that moment on: what another writes over, or
deletes, is its own no more. Users with the role root are not limited.

A write that would pass a quota is refused as a whole, before anything of it is done; one that makes
nothing larger never is. Deletes in the same transaction do not count in its favour.

Everything here is part of the deterministic machine: equal members refuse equal writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Final, NamedTuple

from raftkv.errors import QuotaExceeded
from raftkv.machine.records import HEADER, U64
from raftkv.machine.tables import QUOTA_OWNERS, QUOTAS, TableReader, TableWriter

_ROW: Final = struct.Struct(">QQQQQ")


class QuotaKind(IntEnum):
    """What a quota is on; part of the stored format."""

    PREFIX = 1
    USER = 2


_USER: Final = bytes((QuotaKind.USER,))
_PREFIX: Final = bytes((QuotaKind.PREFIX,))


class Quota(NamedTuple):
    """A quota and what is used of it."""

    kind: int
    name: bytes
    """The prefix, or the user's name."""
    keys_max: int
    """0: any number."""
    bytes_max: int
    """0: any number."""
    keys: int
    bytes: int
    since: int
    """Revision at which it was made: tells it from an earlier one of the same name."""


class Change(NamedTuple):
    """What one put does: sizes are those of key and value together."""

    key: bytes
    size: int
    old_size: int
    """0: there was no such key."""


def size_of(raw: bytes) -> int:
    """What the stored record of a live key counts."""
    header = HEADER.unpack_from(raw)
    return int(header[10] + header[12])


def read_quotas(reader: TableReader) -> Iterator[Quota]:
    """All quotas, prefixes first, each kind in order."""
    for row, fields in reader.scan(QUOTAS, b"", None):
        yield Quota(row[0], row[1:], *_ROW.unpack(fields))


def packed(quota: Quota) -> bytes:
    """The stored form, but for the name."""
    return _ROW.pack(*quota[2:])


class Quotas:
    """All quotas, by the name of their rows. Never changed once it is made."""

    __slots__ = ("lengths", "rules", "users")

    def __init__(self, quotas: Iterable[Quota]) -> None:
        self.rules: Mapping[bytes, Quota] = {bytes((one.kind,)) + one.name: one for one in quotas}
        self.lengths = sorted(
            {len(one.name) for one in self.rules.values() if one.kind == QuotaKind.PREFIX}
        )
        """Of the prefixes."""
        self.users = any(one.kind == QuotaKind.USER for one in self.rules.values())

    def used(self, rules: Mapping[bytes, Quota]) -> Quotas:
        """The same quotas with what is used of them now."""
        made = Quotas(())
        made.rules, made.lengths, made.users = rules, self.lengths, self.users
        return made


NO_QUOTAS: Final = Quotas(())


class QuotaBook:
    """The quotas as one apply finds and changes them. Nothing is kept unless the apply is."""

    def __init__(self, writer: TableWriter, quotas: Quotas) -> None:
        self._writer = writer
        self._quotas = quotas
        self._lengths = quotas.lengths
        self._users = quotas.users
        self.rules = dict(quotas.rules)
        self._touched: set[bytes] = set()

    def closed(self) -> Quotas:
        """The quotas after it."""
        return self._quotas.used(self.rules) if self._touched else self._quotas

    def check(self, user: str | None, changes: Iterable[Change]) -> None:
        """Raise QuotaExceeded if these puts together, by `user`, would pass a quota."""
        added: dict[bytes, list[int]] = {}
        own = None if user is None else _USER + user.encode()
        if own is not None and own not in self.rules:
            own = None
        for key, size, old_size in changes:
            keys, grown = 0 if old_size else 1, size - old_size
            for row in self._prefixes(key):
                _add(added, row, keys, grown)
            if own is not None:
                # Another's key is taken over whole.
                mine = old_size and self._owner(key) == own
                _add(added, own, 0 if mine else 1, grown if mine else size)
        for row, (keys, grown) in added.items():
            quota = self.rules[row]
            if keys > 0 and 0 < quota.keys_max < quota.keys + keys:
                raise _exceeded(quota, "keys", quota.keys_max, quota.keys)
            if grown > 0 and 0 < quota.bytes_max < quota.bytes + grown:
                raise _exceeded(quota, "bytes", quota.bytes_max, quota.bytes)

    def written(self, user: str | None, key: bytes, size: int, old_size: int) -> None:
        """A key was put."""
        for row in self._prefixes(key):
            self._count(row, 0 if old_size else 1, size - old_size)
        if self._users:
            owned = self._disown(key, old_size)
            own = None if user is None else _USER + user.encode()
            quota = self.rules.get(own) if own is not None else None
            if own is not None and quota is not None:
                self._count(own, 1, size)
                self._writer.put(QUOTA_OWNERS, key, U64.pack(quota.since) + own)
            elif owned:
                self._writer.delete(QUOTA_OWNERS, key)

    def removed(self, key: bytes, old_size: int) -> None:
        """A key was deleted."""
        for row in self._prefixes(key):
            self._count(row, -1, -old_size)
        if self._users and self._disown(key, old_size):
            self._writer.delete(QUOTA_OWNERS, key)

    def save(self) -> None:
        """Write what is used now."""
        for row in sorted(self._touched):
            self._writer.put(QUOTAS, row, packed(self.rules[row]))

    def _prefixes(self, key: bytes) -> Iterator[bytes]:
        for length in self._lengths:
            row = _PREFIX + key[:length]
            if length <= len(key) and row in self.rules:
                yield row

    def _count(self, row: bytes, keys: int, grown: int) -> None:
        quota = self.rules[row]
        self.rules[row] = quota._replace(keys=quota.keys + keys, bytes=quota.bytes + grown)
        self._touched.add(row)

    def _owner(self, key: bytes) -> bytes | None:
        """The row of the quota that counts this key, of those that are still in force."""
        entry = self._writer.get(QUOTA_OWNERS, key)
        if entry is None:
            return None
        quota = self.rules.get(entry[8:])
        return None if quota is None or entry[:8] != U64.pack(quota.since) else entry[8:]

    def _disown(self, key: bytes, old_size: int) -> bool:
        """Whoever had the key has it no more; whether a row says otherwise."""
        if not old_size:
            return False
        row = self._owner(key)
        if row is not None:
            self._count(row, -1, -old_size)
        return self._writer.get(QUOTA_OWNERS, key) is not None


def _add(added: dict[bytes, list[int]], row: bytes, keys: int, grown: int) -> None:
    total = added.setdefault(row, [0, 0])
    total[0] += keys
    total[1] += grown


def _exceeded(quota: Quota, what: str, limit: int, used: int) -> QuotaExceeded:
    on = "this prefix" if quota.kind == QuotaKind.PREFIX else "this user"
    return QuotaExceeded(
        f"the quota of {on} is {limit} {what}, and {used} are used; delete some first",
        per="prefix" if quota.kind == QuotaKind.PREFIX else "user",
        what=what,
        limit=limit,
        used=used,
    )
