"""What watchers are told: one event for each record written or deleted."""

from __future__ import annotations

from typing import Any

from raftkv.machine.records import DELETE, HEADER, HEADER_BYTES, Record
from raftkv.machine.wire import event_wire, varint_size


class Event:
    """One change of one key. Shared by every watcher, so encodings are made once and kept."""

    __slots__ = ("_wire", "json", "key", "keyspace", "kind", "raw", "revision", "sub")

    def __init__(
        self, kind: int, keyspace: int, key: bytes, revision: int, sub: int, raw: bytes
    ) -> None:
        self.kind = kind
        """`PUT` (0) or `DELETE` (1)."""
        self.keyspace = keyspace
        self.key = key
        self.revision = revision
        self.sub = sub
        """Place within the revision, from 0."""
        self.raw = raw
        """The stored record."""
        self.json: Any = None
        """Room for one door's own encoding; the machine never looks at it."""
        self._wire: bytes | None = None

    @classmethod
    def of(cls, raw: bytes) -> Event:
        """The event that wrote the stored record `raw`."""
        fields = HEADER.unpack_from(raw)
        length = fields[10]
        start = HEADER_BYTES + 1 + varint_size(length)
        key = raw[start : start + length]
        return cls(fields[0], fields[1], key, fields[4], fields[5], raw)

    @property
    def deleted(self) -> bool:
        """Whether the key was deleted."""
        return self.kind == DELETE

    @property
    def record(self) -> Record:
        """The record written; of a deletion: key and mod_revision only."""
        return Record(self.raw)

    @property
    def lease(self) -> int:
        """The lease the key was put on; 0 for none and for deletions."""
        return Record(self.raw).lease

    @property
    def cause(self) -> int:
        """Of a deletion: one of the CAUSE_ numbers in `raftkv.machine.records`."""
        return self.raw[2]

    @property
    def wire(self) -> bytes:
        """The encoded `mvccpb.Event`, without the previous record."""
        wire = self._wire
        if wire is None:
            wire = self._wire = event_wire(self.kind == DELETE, self.raw[HEADER_BYTES:])
        return wire

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self.sub == other.sub and self.record == other.record

    def __hash__(self) -> int:
        return hash((self.revision, self.sub))

    def __repr__(self) -> str:
        kind = "DELETE" if self.deleted else "PUT"
        return f"Event({kind} {self.revision}.{self.sub} {self.keyspace}:{self.key!r})"
