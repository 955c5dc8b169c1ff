"""Leases: granted, revoked and expired by commands; what hangs on one goes in one revision.

When a lease runs out is the leader's judgement, made outside; the machine only carries it out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from raftkv.checks import violated
from raftkv.errors import LeaseExists, LeaseNotFound, NoSpace
from raftkv.machine.draft import Draft
from raftkv.machine.records import (
    CAUSE_EXPIRED,
    CAUSE_REVOKED,
    DELETE,
    U64,
    USER_KEYS,
)
from raftkv.machine.removal import collect, remove
from raftkv.machine.results import ExpireResult, LeaseResult, RevokeResult
from raftkv.machine.tables import CURRENT, LEASE_KEYS, LEASES, TableReader

_LEASE: Final = struct.Struct(">QQB")


class Lease(NamedTuple):
    """A lease as recorded. How much of it is left, only the leader's clock knows."""

    lease: int
    ttl_seconds: int
    granted_ms: int
    """By the machine's clock: stamps of leaders, milliseconds."""
    service: bool
    """Made for a service instance, and ends with it."""


def apply_grant(draft: Draft, command: list[Any]) -> LeaseResult:
    """The LEASE_GRANT command."""
    _, _, lease, ttl_seconds, _ = command
    if draft.no_space:
        raise NoSpace("the store is full: delete or compact; writes go on once there is space")
    if draft.get(LEASES, U64.pack(lease)) is not None:
        raise LeaseExists("lease already exists", lease=lease)
    write_lease(draft, Lease(lease, ttl_seconds, draft.state.clock_ms, False))
    return LeaseResult(draft.state.revision, lease, ttl_seconds)


def apply_revoke(draft: Draft, command: list[Any]) -> RevokeResult:
    """The LEASE_REVOKE command."""
    _, _, lease = command
    # An id that cannot have been granted is merely unknown.
    if lease <= 0 or draft.get(LEASES, U64.pack(lease)) is None:
        raise LeaseNotFound("no such lease", lease=lease)
    deleted = end_lease(draft, lease, CAUSE_REVOKED)
    return RevokeResult(draft.end_command(), deleted, lease)


def apply_expire(draft: Draft, command: list[Any]) -> ExpireResult:
    """The LEASE_EXPIRE command. Each lease's keys go in a revision of their own."""
    _, _, leases, term = command
    if term != draft.term:
        return ExpireResult(draft.state.revision, [], True)
    expired = []
    for lease in leases:
        if draft.get(LEASES, U64.pack(lease)) is not None:
            end_lease(draft, lease, CAUSE_EXPIRED)
            draft.end_command()
            expired.append(lease)
    return ExpireResult(draft.state.revision, expired, False)


def write_lease(draft: Draft, lease: Lease) -> None:
    """Record a lease, new or changed."""
    row = _LEASE.pack(lease.ttl_seconds, lease.granted_ms, lease.service)
    draft.put_row(LEASES, U64.pack(lease.lease), row)
    draft.mark("lease", lease.lease, row)
    draft.leases.append((lease.lease, lease.ttl_seconds))


def end_lease(draft: Draft, lease: int, cause: int) -> int:
    """Remove a lease and delete its keys at the revision under way; how many."""
    name = U64.pack(lease)
    held = collect(draft, draft.writer.scan(LEASE_KEYS, name, _after(lease)))
    rows = [key[8:] for key, _ in held]
    olds = []
    for row in rows:
        raw = draft.get(CURRENT, row)
        if raw is None or raw[0] == DELETE:
            violated("a lease's key is there", lease=lease, row=row)
        olds.append(raw)
    remove(draft, rows, olds, cause)
    draft.delete_row(LEASES, name)
    draft.mark("lease", lease, b"")
    draft.leases.append((lease, 0))
    return len(rows)


def read_lease(reader: TableReader, lease: int) -> Lease | None:
    """One lease, or None."""
    if not 0 < lease < 2**63:
        return None
    row = reader.get(LEASES, U64.pack(lease))
    return None if row is None else _unpack(lease, row)


def read_leases(reader: TableReader, after: int = 0) -> Iterator[Lease]:
    """All leases with a greater id, ordered by it."""
    for name, row in reader.scan(LEASES, _after(after), None):
        yield _unpack(U64.unpack(name)[0], row)


def read_lease_keys(reader: TableReader, lease: int, keyspace: int = USER_KEYS) -> list[bytes]:
    """The keys of a keyspace that hang on a lease, in order."""
    if not 0 < lease < 2**63:
        return []
    start = U64.pack(lease) + bytes((keyspace,))
    end = U64.pack(lease) + bytes((keyspace + 1,))
    return [name[9:] for name, _ in reader.scan(LEASE_KEYS, start, end)]


def _after(lease: int) -> bytes:
    return U64.pack(lease + 1)


def _unpack(lease: int, row: bytes) -> Lease:
    ttl_seconds, granted_ms, service = _LEASE.unpack(row)
    return Lease(lease, ttl_seconds, granted_ms, bool(service))
