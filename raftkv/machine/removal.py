"""Deleting keys, however many, at the revision of the command at hand.

A range delete or the end of a lease may take very many keys with it, and stays one change. So what
a key costs is kept low: its rows go into the tables together with those of all the others.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, TypeVar

from raftkv.checks import violated
from raftkv.machine.draft import MARK, STUBS, Draft, TooManyRemovals
from raftkv.machine.events import Event
from raftkv.machine.quotas import size_of
from raftkv.machine.records import (
    DELETE,
    HEADER_BYTES,
    KEY_ID_AT,
    KEY_ID_END,
    LEASE_AT,
    MOD_AT,
    MOD_END,
    POSITION_END,
    U64,
    USER_KEYS,
    Tombstones,
)
from raftkv.machine.tables import CURRENT, HISTORY, LEASE_KEYS, VERSIONS

T = TypeVar("T")
_U32: Final = struct.Struct(">I")
_NONE: Final = bytes(8)
PIECE_KEYS: Final = 4096
"""What is made for each key and needed no longer is in memory for so many keys at a time."""


def collect(draft: Draft, found: Iterable[T]) -> list[T]:
    """What is about to be deleted, as a list. Raises TooManyRemovals."""
    doomed = list(islice(found, draft.removals_left + 1))
    if len(doomed) > draft.removals_left:
        raise TooManyRemovals
    draft.removals_left -= len(doomed)
    return doomed


def remove(draft: Draft, rows: Sequence[bytes], olds: Sequence[bytes], cause: int) -> None:
    """Delete live keys: CURRENT's row names, all different and in order, and what stands there."""
    make = Tombstones(draft.state.revision + 1, cause).make
    for start in range(0, len(rows), PIECE_KEYS):
        end = start + PIECE_KEYS
        _remove_piece(draft, rows[start:end], olds[start:end], cause, make)
        if end < len(rows):
            draft.hash_parts()


def _remove_piece(
    draft: Draft,
    rows: Sequence[bytes],
    olds: Sequence[bytes],
    cause: int,
    make: Callable[[bytes, bytes, bytes], bytes],
) -> None:
    state = draft.state
    main = state.revision + 1
    if max(old[MOD_AT:MOD_END] for old in olds) >= U64.pack(main):
        violated("a key changes once a revision", revision=main)
    first = draft.sub
    places = [_U32.pack(sub) for sub in range(first, first + len(rows))]
    records = list(map(make, rows, olds, places))
    _write(draft, rows, olds, places, records)
    draft.parts += [
        MARK.pack(DELETE, record[1], cause, len(record) - HEADER_BYTES) + record[HEADER_BYTES:]
        for record in records
    ]
    draft.events += [
        Event(DELETE, row[0], row[1:], main, sub, record)
        for sub, (row, record) in enumerate(zip(rows, records, strict=True), first)
    ]
    draft.sub += len(rows)
    gone = [(row, -1) for row in rows if row[0] == USER_KEYS]
    state.keys -= len(gone)
    draft.came_and_went += gone
    if draft.quotas is not None:
        for row, old in zip(rows, olds, strict=True):
            if row[0] == USER_KEYS:
                draft.quotas.removed(row[1:], size_of(old))


def _write(
    draft: Draft,
    rows: Sequence[bytes],
    olds: Sequence[bytes],
    places: list[bytes],
    records: list[bytes],
) -> None:
    writer = draft.writer
    revision = U64.pack(draft.state.revision + 1)
    compacted = U64.pack(draft.state.compact_revision)
    stubs = [each[:HEADER_BYTES] for each in records] if draft.level >= STUBS else records
    writer.put_many(CURRENT, rows, stubs)
    writer.put_many(HISTORY, [revision + place for place in places], records)
    writer.put_many(
        VERSIONS,
        [old[KEY_ID_AT:KEY_ID_END] + old[MOD_AT:MOD_END] for old in olds],
        [old[MOD_END:POSITION_END] + revision for old in olds],
    )
    # Programs of level 0 compacted so that CURRENT had the only copy; older reads need it.
    kept = [old for old in olds if len(old) > HEADER_BYTES and old[MOD_AT:MOD_END] < compacted]
    writer.put_many(HISTORY, [old[MOD_AT:POSITION_END] for old in kept], kept)
    for row, old in zip(rows, olds, strict=True):
        lease = old[LEASE_AT:KEY_ID_AT]
        if lease != _NONE:
            draft.delete_row(LEASE_KEYS, lease + row)
