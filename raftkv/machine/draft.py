"""The machine's counters, and the draft in which one apply changes them and the tables.

A draft lives inside one write transaction of the tables. Nothing of it is visible, in memory or on
disk, unless that transaction commits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b
from sys import maxsize
from typing import TYPE_CHECKING, Any, Final

import msgpack

from raftkv.checks import check, violated
from raftkv.machine.events import Event
from raftkv.machine.quotas import NO_QUOTAS, QuotaBook, Quotas, size_of
from raftkv.machine.records import (
    HEADER,
    HEADER_BYTES,
    KEY_ID_AT,
    KEY_ID_END,
    KEYSPACES_MAX,
    MOD_AT,
    MOD_END,
    NO_POSITION,
    POSITION,
    POSITION_END,
    PUT,
    U64,
    UNTIL,
    USER_KEYS,
    put_record,
)
from raftkv.machine.tables import CURRENT, HISTORY, LEASE_KEYS, META, VERSIONS, TableWriter

if TYPE_CHECKING:
    from raftkv.machine.auth import AuthState
    from raftkv.machine.counts import Change, LiveCounts

HASH_BYTES: Final = 16
UNLIMITED: Final = maxsize - 1
STUBS: Final = 1
"""First feature level whose programs know stubs."""
STATE_ROW: Final = b"state"
CONF_ROW: Final = b"conf"
_STATE: Final = struct.Struct(">QQQQQ16sQQQQ")
MARK: Final = struct.Struct(">BBBI")
"""Before each change in what the hash covers: kind, keyspace, cause, length."""
_OTHER: Final = 0xFF
KEYSPACE: Final = tuple(bytes((n,)) for n in range(KEYSPACES_MAX + 1))
"""Keyspace number -> the prefix of its rows in CURRENT; the next one bounds it above."""
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


@dataclass(slots=True)
class State:
    """What is true after the last applied entry, kept in one row beside the data it describes."""

    applied_index: int = 0
    applied_term: int = 0
    revision: int = 1
    compact_revision: int = 0
    clock_ms: int = 0
    """Greatest stamp of a leader so far, milliseconds; never goes back."""
    hash: bytes = bytes(HASH_BYTES)
    """Chained over every logical change; equal on all members at equal applied index."""
    keys: int = 0
    """Live user keys."""
    once_count: int = 0
    once_bytes: int = 0
    once_serial: int = 0

    def copy(self) -> State:
        """Another with the same values."""
        return State(
            self.applied_index, self.applied_term, self.revision, self.compact_revision,
            self.clock_ms, self.hash, self.keys, self.once_count, self.once_bytes,
            self.once_serial,
        )  # fmt: skip

    def pack(self) -> bytes:
        """The stored form."""
        return _STATE.pack(
            self.applied_index, self.applied_term, self.revision, self.compact_revision,
            self.clock_ms, self.hash, self.keys, self.once_count, self.once_bytes,
            self.once_serial,
        )  # fmt: skip

    @classmethod
    def unpack(cls, row: bytes | None) -> State:
        """From the stored form; None is an empty store."""
        return cls() if row is None else cls(*_STATE.unpack(row))


class TooManyRemovals(Exception):
    """The entries delete more keys than was allowed for; nothing of them was applied."""


class Draft:
    """One apply under way: the writer, the counters, and what has come of it so far."""

    __slots__ = (
        "_digest", "alarms", "append_row", "auth", "came_and_went", "corrupt", "counts",
        "delete_row", "events", "get", "guarded", "leases", "level", "no_space", "parts",
        "put_row", "quotas", "removals_left", "state", "sub", "term", "tokens_removed", "user",
        "writer",
    )  # fmt: skip

    def __init__(
        self,
        writer: TableWriter,
        state: State,
        alarms: frozenset[tuple[int, int]],
        auth: AuthState,
        counts: LiveCounts,
        quotas: Quotas = NO_QUOTAS,
        level: int = 0,
    ) -> None:
        self.writer = writer
        self.level = level
        """The feature level that is agreed."""
        self.counts = counts
        """Blocks of user keys as they were before this draft."""
        self.came_and_went: list[Change] = []
        """User keys that it creates and deletes."""
        self.get = writer.get
        self.put_row = writer.put
        self.append_row = writer.append
        self.delete_row = writer.delete
        self.state = state.copy()
        self.set_alarms(alarms)
        self.set_auth(auth)
        self.set_quotas(quotas)
        self.user: str | None = None
        """Who asked for the command at hand, if it is a user with bounds."""
        self.sub = 0
        """Writes made so far by the command at hand, all at `state.revision + 1`."""
        self.term = 0
        """Term of the entry at hand."""
        self.events: list[Event] = []
        self.parts: list[bytes] = []
        """What the hash of the entry at hand has yet to cover."""
        self._digest = blake2b(state.hash, digest_size=HASH_BYTES)
        self.leases: list[tuple[int, int]] = []
        self.tokens_removed = 0
        self.removals_left = UNLIMITED
        """Keys that may still be deleted; with one more all of it ends with TooManyRemovals."""

    def set_alarms(self, alarms: frozenset[tuple[int, int]]) -> None:
        """Alarms as (kind, member id)."""
        self.alarms = alarms
        kinds = {kind for kind, _ in alarms} if alarms else ()
        self.no_space = 1 in kinds
        self.corrupt = 2 in kinds

    def set_auth(self, auth: AuthState) -> None:
        """The access rules in force from here on."""
        self.auth = auth
        self.guarded = auth.enabled
        """Commands need a guard, see `raftkv.machine.commands.guarded`."""

    def set_quotas(self, quotas: Quotas) -> None:
        """The quotas in force from here on, with what is used of them."""
        self.quotas: QuotaBook | None = QuotaBook(self.writer, quotas) if quotas.rules else None

    @property
    def seen_revision(self) -> int:
        """The revision of what the command at hand sees, its own writes included."""
        return self.state.revision + (self.sub > 0)

    # -- keys -----------------------------------------------------------------------------------

    def put(
        self, keyspace: int, key: bytes, value: bytes, lease: int
    ) -> tuple[bytes, bytes | None]:
        """Write a key; its lease exists. Answers (record, CURRENT's row before or None)."""
        state = self.state
        main = state.revision + 1
        sub = self.sub
        row = KEYSPACE[keyspace] + key
        old = self.get(CURRENT, row)
        create = main
        version = 1
        old_lease = 0
        before = None
        if old is None:
            key_id = POSITION.pack(main, sub)
            previous = NO_POSITION
        else:
            previous = old[MOD_AT:POSITION_END]
            key_id = old[KEY_ID_AT:KEY_ID_END]
            if old[0] == PUT:
                before = old
                _, _, _, create, _, _, version, old_lease, _, _, _, _, _ = HEADER.unpack_from(old)
                version += 1
            self._supersede(old, key_id, previous, main)
        record, wire = put_record(
            keyspace, key, value, lease, create, (main, sub), version, key_id, previous
        )
        self.put_row(CURRENT, row, record[:HEADER_BYTES] if self.level >= STUBS else record)
        self.append_row(HISTORY, POSITION.pack(main, sub), record)
        if lease != old_lease:
            if old_lease:
                self.delete_row(LEASE_KEYS, U64.pack(old_lease) + row)
            if lease:
                self.put_row(LEASE_KEYS, U64.pack(lease) + row, b"")
        if before is None and keyspace == USER_KEYS:
            state.keys += 1
            self.came_and_went.append((row, 1))
        if self.quotas is not None and keyspace == USER_KEYS:
            old_size = 0 if before is None else size_of(before)
            self.quotas.written(self.user, key, len(key) + len(value), old_size)
        self.parts.append(MARK.pack(PUT, keyspace, 0, len(wire)))
        self.parts.append(wire)
        self.events.append(Event(PUT, keyspace, key, main, sub, record))
        self.sub = sub + 1
        return record, before

    def _supersede(self, old: bytes, key_id: bytes, previous: bytes, main: int) -> None:
        mod, old_sub = POSITION.unpack(previous)
        if mod >= main:
            violated("a key changes once a revision", mod=mod, revision=main)
        self.put_row(VERSIONS, key_id + old[MOD_AT:MOD_END], UNTIL.pack(old_sub, main))
        if mod < self.state.compact_revision and len(old) > HEADER_BYTES and old[0] == PUT:
            # Programs of level 0 compacted so that CURRENT had the only copy; older reads need it.
            self.put_row(HISTORY, previous, old)

    # -- everything else ------------------------------------------------------------------------

    def mark(self, *change: Any) -> None:
        """Let the hash cover a change that is not of a key."""
        packed = _pack(change)
        self.parts.append(MARK.pack(_OTHER, 0, 0, len(packed)))
        self.parts.append(packed)

    def end_command(self) -> int:
        """One revision for all that the command wrote; the store's revision now."""
        state = self.state
        if self.sub:
            state.revision += 1
            self.sub = 0
        return state.revision

    def begin_entry(self, index: int, term: int) -> None:
        """The next entry of the log. A gap or a repeat is a bug of the caller."""
        state = self.state
        check(
            index == state.applied_index + 1 and term >= state.applied_term,
            "entries are applied once each, in order",
            index=index, term=term, applied_index=state.applied_index,
            applied_term=state.applied_term,
        )  # fmt: skip
        state.applied_index = index
        state.applied_term = self.term = term
        self.events = []
        self.parts = []
        self.leases = []
        self._digest = blake2b(state.hash, digest_size=HASH_BYTES)
        self._digest.update(U64.pack(index))

    def hash_parts(self) -> None:
        """Let the hash cover what `parts` has so far. Large changes do so now and then, so that
        they need not be in memory as a whole once more."""
        self._digest.update(b"".join(self.parts))
        self.parts = []

    def end_entry(self) -> None:
        """Chain the hash over what the entry changed."""
        self.hash_parts()
        self.state.hash = self._digest.digest()

    def save(self) -> None:
        """Write the counters; last thing before the transaction ends."""
        if self.quotas is not None:
            self.quotas.save()
        self.put_row(META, STATE_ROW, self.state.pack())
