"""A stored record: a fixed header and the encoded `mvccpb.KeyValue`, in one bytes object.

HISTORY has the record, whole, from the moment that it is written until compaction. CURRENT has the
header of the newest of each key, its *stub*, and `mvcc.whole` finds the rest. Records are never
re-encoded, only sliced. Members of feature level 0 know no stubs: until level 1 is agreed CURRENT
has whole records, and such rows may be met for ever after, which `whole` takes as they are.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from raftkv.machine.wire import SHORT, varint, varint_size

PUT: Final = 0
DELETE: Final = 1
"""Kinds of records and events, numbered as in mvccpb.Event."""

CAUSE_REQUEST: Final = 0
CAUSE_REVOKED: Final = 1
CAUSE_EXPIRED: Final = 2
"""Why a key was deleted: somebody asked, its lease was revoked, or its lease expired."""

USER_KEYS: Final = 0
CATALOG: Final = 1
KEYSPACES_MAX: Final = 8
"""Keyspaces share revisions, leases and watches; a range sees only its own."""

# kind, keyspace, cause, create_revision, mod_revision, sub, version, lease,
# key id (12), position of the previous version (12), key length, value offset, value length
HEADER: Final = struct.Struct(">BBBQQIQQ12s12sIII")
HEADER_BYTES: Final = HEADER.size
MOD_AT: Final = 11
MOD_END: Final = 19
POSITION_END: Final = 23
KEY_ID_AT: Final = 39
KEY_ID_END: Final = 51
PREVIOUS_END: Final = 63
LEASE_AT: Final = 31
LENGTHS_AT: Final = PREVIOUS_END

POSITION: Final = struct.Struct(">QI")
"""(revision, sub): where in history a record was written; the row name of HISTORY."""
NO_POSITION: Final = bytes(12)
UNTIL: Final = struct.Struct(">IQ")
"""Value of VERSIONS: sub of the superseded record, revision that superseded it."""
U64: Final = struct.Struct(">Q")


class Record:
    """A read-only view of one stored record. Created per answer, never per stored row."""

    __slots__ = ("_fields", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._fields: tuple[Any, ...] | None = None

    def _unpack(self) -> tuple[Any, ...]:
        """The header, unpacked when first asked for: most answers take `wire` and nothing else."""
        fields = self._fields
        if fields is None:
            fields = self._fields = HEADER.unpack_from(self.raw)
        return fields

    @property
    def deleted(self) -> bool:
        """Whether this is a tombstone; those are seen in history only."""
        return bool(self._unpack()[0])

    @property
    def keyspace(self) -> int:
        """The keyspace, see `USER_KEYS` and `CATALOG`."""
        return self._unpack()[1]  # type: ignore[no-any-return]

    @property
    def cause(self) -> int:
        """Of a tombstone: one of the CAUSE_ numbers."""
        return self._unpack()[2]  # type: ignore[no-any-return]

    @property
    def create_revision(self) -> int:
        """Revision at which the key came to be, counting from its last deletion."""
        return self._unpack()[3]  # type: ignore[no-any-return]

    @property
    def mod_revision(self) -> int:
        """Revision of this write."""
        return self._unpack()[4]  # type: ignore[no-any-return]

    @property
    def sub(self) -> int:
        """Place of this write within its revision, from 0."""
        return self._unpack()[5]  # type: ignore[no-any-return]

    @property
    def version(self) -> int:
        """Number of writes since the key came to be; 1 for the first."""
        return self._unpack()[6]  # type: ignore[no-any-return]

    @property
    def lease(self) -> int:
        """The lease the key hangs on; 0 for none."""
        return self._unpack()[7]  # type: ignore[no-any-return]

    @property
    def key(self) -> bytes:
        """The key, without its keyspace."""
        length = self._unpack()[10]
        start = HEADER_BYTES + 1 + varint_size(length)
        return self.raw[start : start + length]

    @property
    def value(self) -> bytes:
        """The value; empty in answers that left values out."""
        start, length = self._unpack()[11:]
        return self.raw[start : start + length]

    @property
    def value_bytes(self) -> int:
        """Length of `value`."""
        return self._unpack()[12]  # type: ignore[no-any-return]

    @property
    def wire(self) -> bytes:
        """The encoded `mvccpb.KeyValue`."""
        return self.raw[HEADER_BYTES:]

    @property
    def wire_without_value(self) -> bytes:
        """The encoded `mvccpb.KeyValue` with an empty value."""
        offset, length = self._unpack()[11:]
        if not length:
            return self.raw[HEADER_BYTES:]
        start = offset - varint_size(length) - 1
        return self.raw[HEADER_BYTES:start] + self.raw[offset + length :]

    def __eq__(self, other: object) -> bool:
        """Equal when every caller-visible field is: storage positions do not count."""
        if not isinstance(other, Record):
            return NotImplemented
        return self._unpack()[:3] == other._unpack()[:3] and self.wire == other.wire

    def __hash__(self) -> int:
        return hash(self.wire)

    def __repr__(self) -> str:
        kind = "deleted" if self.deleted else f"value={self.value!r}"
        return (
            f"Record({self.key!r} {kind} create={self.create_revision} mod={self.mod_revision} "
            f"version={self.version} lease={self.lease})"
        )


def without_value(raw: bytes) -> bytes:
    """The same record with an empty value, for answers that carry keys only."""
    fields = HEADER.unpack_from(raw)
    offset, length = fields[11], fields[12]
    if not length:
        return raw
    start = offset - varint_size(length) - 1
    header = HEADER.pack(*fields[:11], start, 0)
    return b"".join((header, raw[HEADER_BYTES:start], raw[offset + length :]))


def put_record(
    keyspace: int,
    key: bytes,
    value: bytes,
    lease: int,
    create: int,
    position: tuple[int, int],
    version: int,
    key_id: bytes,
    previous: bytes,
) -> tuple[bytes, bytes]:
    """A stored put: (record, its wire part)."""
    mod, sub = position
    key_length = len(key)
    value_length = len(value)
    # Most keys are short and most versions small: one table look-up instead of a call.
    key_size = SHORT[key_length] if key_length < 128 else varint(key_length)
    version_size = SHORT[version] if version < 128 else varint(version)
    create_size = varint(create)
    mod_size = create_size if mod == create else varint(mod)
    head: tuple[bytes, ...] = (
        b"\x0a", key_size, key, b"\x10", create_size, b"\x18", mod_size, b"\x20", version_size,
    )  # fmt: skip
    if value_length:
        head = (*head, b"\x2a", varint(value_length))
    front = b"".join(head)
    wire = b"".join((front, value, b"\x30", varint(lease))) if lease else front + value
    header = HEADER.pack(
        PUT, keyspace, 0, create, mod, sub, version, lease, key_id, previous,
        key_length, HEADER_BYTES + len(front), value_length,
    )  # fmt: skip
    return header + wire, wire


class Tombstones:
    """Makes the records of what one revision deletes for one cause.

    All but the key, its history and its place is alike for keys of one length, and made once.
    """

    __slots__ = ("_cause", "_mod", "_shapes", "_tail")

    def __init__(self, mod: int, cause: int) -> None:
        self._mod = mod
        self._cause = cause
        self._tail = b"\x18" + varint(mod)
        self._shapes: dict[tuple[int, int], tuple[bytes, bytes, bytes]] = {}

    def make(self, row: bytes, old: bytes, sub: bytes) -> bytes:
        """Of the live record `old` at CURRENT's `row`. `sub` is four bytes.

        Its wire part holds key and mod_revision only.
        """
        shape = (row[0], len(row))
        head, lengths, front = self._shapes.get(shape) or self._shape(*shape)
        return b"".join((
            head, sub, _NO_LEASE, old[KEY_ID_AT:KEY_ID_END], old[MOD_AT:POSITION_END], lengths,
            front, row[1:], self._tail,
        ))  # fmt: skip

    def _shape(self, keyspace: int, row_length: int) -> tuple[bytes, bytes, bytes]:
        key_length = row_length - 1
        front = b"\x0a" + varint(key_length)
        header = HEADER.pack(
            DELETE, keyspace, self._cause, 0, self._mod, 0, 0, 0, NO_POSITION, NO_POSITION,
            key_length, HEADER_BYTES + len(front) + key_length + len(self._tail), 0,
        )  # fmt: skip
        made = header[:MOD_END], header[LENGTHS_AT:], front
        self._shapes[keyspace, row_length] = made
        return made


_NO_LEASE: Final = bytes(16)
"""Version and lease of a tombstone."""
