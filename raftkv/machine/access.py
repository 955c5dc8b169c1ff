"""Who may touch what: intervals of keys, what a command does to them, what a user is granted.

Pure arithmetic, shared by the gate, which decides, and the machine, which judges the keys of a
lease. A permission is on an interval of one keyspace: of the user's keys, as in etcd, or of the
service catalog, whose keys are ``service NUL instance``, so that a permission on a service is one
on a prefix of its names.

Deny by default: a command that `effects` does not know needs what nobody has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgpack

from raftkv.errors import InvalidAuthManagement
from raftkv.machine.catalog import catalog_key
from raftkv.machine.commands import WANT_PREVIOUS, Command, Op
from raftkv.machine.records import CATALOG

ROOT: Final = "root"
"""The user that must exist, and the role that may do everything."""
FIRST_KEY: Final = b"\0"
"""No key is empty, so an interval from the beginning begins here."""


class PermissionKind(IntEnum):
    """What a permission is for; numbered as in authpb."""

    READ = 0
    WRITE = 1
    READWRITE = 2


class Kind(IntEnum):
    """What an access is."""

    READ = 0
    WRITE = 1
    ADMIN = 2
    """Needs the role root."""
    USER = 3
    """Needs to be the user named by `start`, or the role root."""
    ROLE = 4
    """Needs to have the role named by `start`, or the role root."""
    NOBODY = 5
    """What only members do by themselves."""


class Access(NamedTuple):
    """One thing that a request does. The interval is as everywhere in the machine: `end` None is
    the one key `start`, b"" goes to the end of the keyspace, any other is exclusive."""

    kind: Kind
    keyspace: int = 0
    start: bytes = b""
    end: bytes | None = b""


class Permission(NamedTuple):
    """What a role may do. The interval is as in `Access`; `start` is never empty."""

    keyspace: int
    kind: PermissionKind
    start: bytes
    end: bytes | None


Accesses = tuple[Access, ...]
ADMIN: Final = Access(Kind.ADMIN)
NOBODY: Final = Access(Kind.NOBODY)


def service_interval(service: str) -> tuple[bytes, bytes]:
    """Where the catalog keeps the instances of one service."""
    name = service.encode()
    return name + b"\0", name + b"\1"


def etcd_interval(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """A key and etcd's `range_end` (empty: the one key; NUL: everything from the key on) as an
    interval of the machine. Raises InvalidAuthManagement for what is none."""
    end = None if not range_end else b"" if range_end == b"\0" else range_end
    if not key or (end and end <= key):
        raise InvalidAuthManagement("a permission's range is empty, or has no key")
    return key, end


# ---- what a user is granted ----------------------------------------------------------------------


class Intervals:
    """A set of keys as disjoint intervals in order, none touching the next."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, intervals: Iterable[tuple[bytes, bytes | None]]) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []
        """Exclusive; b"" is the end of all keys, and only the last can be so."""
        for start, end in sorted(_half_open(start, end) for start, end in intervals):
            if end and end <= start:
                continue  # no key at all
            if self._ends and (not self._ends[-1] or start <= self._ends[-1]):
                if self._ends[-1] and (not end or end > self._ends[-1]):
                    self._ends[-1] = end
            else:
                self._starts.append(start)
                self._ends.append(end)

    def covers(self, start: bytes, end: bytes | None) -> bool:
        """Whether every key of the interval, present or not, is in the set."""
        start, end = _half_open(start, end)
        at = bisect_right(self._starts, start) - 1
        if at < 0:
            return False
        last = self._ends[at]
        # An interval that has no key at all is covered by whatever covers its beginning.
        return not last or (end != b"" and max(end, start + b"\0") <= last)

    def gaps(self) -> Iterator[tuple[bytes, bytes]]:
        """The intervals of the keys that are not in the set, half open, in order."""
        start = FIRST_KEY
        for begin, end in zip(self._starts, self._ends, strict=True):
            if start < begin:
                yield start, begin
            start = end
            if not end:
                return
        yield start, b""

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """The intervals, half open, in order."""
        return zip(self._starts, self._ends, strict=True)


def _half_open(start: bytes, end: bytes | None) -> tuple[bytes, bytes]:
    start = start or FIRST_KEY
    return start, start + b"\0" if end is None else end


_NOTHING: Final = Intervals(())


class Grants:
    """All that one user may do, its roles taken together."""

    __slots__ = ("_allowed", "admin", "roles", "user")

    def __init__(self, user: str, roles: Iterable[str], permissions: Iterable[Permission]) -> None:
        self.user = user
        self.roles = frozenset(roles)
        self.admin = ROOT in self.roles
        collected: dict[tuple[int, int], list[tuple[bytes, bytes | None]]] = {}
        for keyspace, kind, start, end in permissions:
            for one in (Kind.READ, Kind.WRITE):
                if kind in (PermissionKind.READWRITE, one):
                    collected.setdefault((one, keyspace), []).append((start, end))
        self._allowed = {name: Intervals(found) for name, found in collected.items()}

    def intervals(self, kind: int, keyspace: int) -> Intervals:
        """What may be read or written of a keyspace, the role root aside."""
        return self._allowed.get((kind, keyspace), _NOTHING)

    def allows(self, access: Access) -> bool:
        """Whether the user may do this."""
        kind, keyspace, start, end = access
        if kind == Kind.NOBODY:
            return False
        if self.admin:
            return True
        if kind <= Kind.WRITE:
            return self.intervals(kind, keyspace).covers(start, end)
        if kind == Kind.USER:
            return start == self.user.encode()
        return kind == Kind.ROLE and start.decode("utf-8", "replace") in self.roles


# ---- what a command does -------------------------------------------------------------------------


def effects(command: Command) -> Accesses:
    """Everything that a command reads and writes, whichever way its conditions fall.

    Not the keys of the leases that it ends or attaches to: these change until it is applied, so
    the machine judges them then (`raftkv.machine.auth.check_guard`).
    """
    body: list[Any] = msgpack.unpackb(command, raw=False, use_list=True)
    rule = _RULES.get(body[0])
    return (NOBODY,) if rule is None else tuple(rule(body))


def _put(body: list[Any]) -> Iterator[Access]:
    _, _, keyspace, key, _, _, flags = body
    return _put_of(keyspace, key, flags)


def _put_of(keyspace: int, key: bytes, flags: int) -> Iterator[Access]:
    yield Access(Kind.WRITE, keyspace, key, None)
    if flags & WANT_PREVIOUS:
        yield Access(Kind.READ, keyspace, key, None)


def _delete(body: list[Any]) -> Iterator[Access]:
    _, _, keyspace, start, end, previous = body
    return _delete_of(keyspace, start, end, previous)


def _delete_of(keyspace: int, start: bytes, end: bytes | None, previous: bool) -> Iterator[Access]:
    yield Access(Kind.WRITE, keyspace, start, end)
    if previous:
        yield Access(Kind.READ, keyspace, start, end)


def _txn(body: list[Any]) -> Iterator[Access]:
    _, _, keyspace, compares, then, else_ = body
    return _txn_of(keyspace, compares, then, else_)


def _txn_of(
    keyspace: int, compares: list[Any], then: list[Any], else_: list[Any]
) -> Iterator[Access]:
    for _, _, start, end, _ in compares:
        yield Access(Kind.READ, keyspace, start, end)
    for operation in (*then, *else_):
        kind = operation[0]
        if kind == Op.PUT:
            yield from _put_of(keyspace, operation[1], operation[4])
        elif kind == Op.DELETE:
            yield from _delete_of(keyspace, *operation[1:])
        elif kind == Op.RANGE:
            yield Access(Kind.READ, keyspace, operation[1], operation[2])
        elif kind == Op.TXN:
            yield from _txn_of(keyspace, *operation[1:])
        else:
            yield NOBODY


def _instance(body: list[Any]) -> Iterator[Access]:
    yield Access(Kind.WRITE, CATALOG, catalog_key(body[2], body[3]), None)


def _nothing(body: list[Any]) -> Accesses:
    return ()


def _admin(body: list[Any]) -> Accesses:
    return (ADMIN,)


_RULES: Final[dict[int, Callable[[list[Any]], Iterable[Access]]]] = {
    Op.PUT: _put,
    Op.DELETE: _delete,
    Op.TXN: _txn,
    Op.COMPACT: _admin,
    Op.LEASE_GRANT: _nothing,
    Op.LEASE_REVOKE: _nothing,
    Op.SERVICE_REGISTER: _instance,
    Op.SERVICE_DEREGISTER: _instance,
    Op.SERVICE_DRAIN: _instance,
    Op.MEMBER_UPDATE: _admin,
    Op.CLUSTER_LEVEL: _admin,
    Op.MEMBER_PROMOTION: _admin,
    Op.ALARM: _admin,
    Op.AUTH_ENABLE: _admin,
    Op.AUTH_DISABLE: _admin,
    Op.USER_ADD: _admin,
    Op.USER_DELETE: _admin,
    Op.USER_PASSWORD: _admin,
    Op.USER_GRANT: _admin,
    Op.USER_REVOKE: _admin,
    Op.ROLE_ADD: _admin,
    Op.ROLE_DELETE: _admin,
    Op.ROLE_GRANT: _admin,
    Op.ROLE_REVOKE: _admin,
    Op.QUOTA_SET: _admin,
}
"""Commands that a door may propose. Expiry, tokens and guards are made by members themselves."""
