"""Messages and membership changes as bytes: msgpack arrays, checked field by field when read.

Bytes come from other processes. Decoding gives values that obey the types of this package, or
raises `PeerError`; it never raises anything else and never allocates more than a small multiple
of its input. Entry data is carried as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from raftkv import limits
from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    ConfState,
    Entry,
    EntryKind,
    Message,
    MessageKind,
    SnapshotMeta,
)
from raftkv.errors import PeerError
from raftkv.packing import unpack

_UINT64 = 1 << 64
_CHANGES_MAX = limits.VOTERS_MAX + limits.LEARNERS_MAX
_CONTEXT_BYTES_MAX = limits.KIB
_CHANGE_BYTES_MAX = 64 * limits.KIB

_WIRE_KINDS = {int(kind): kind for kind in MessageKind if kind is not MessageKind.PERSISTED}
_ENTRY_KINDS = {int(kind): kind for kind in EntryKind}
_CHANGE_KINDS = {int(kind): kind for kind in ChangeKind}


def encode_messages(messages: Sequence[Message]) -> bytes:
    """Pack `messages` for one peer. They must not be PERSISTED, which never leaves its member."""
    packed: bytes = msgpack.packb([_pack_message(message) for message in messages])
    return packed


def decode_messages(data: bytes) -> list[Message]:
    """The messages in `data`. Raises `PeerError`."""
    rows = _unpack(data)
    if type(rows) is not tuple:
        raise PeerError("messages are not an array")
    return [_message(row) for row in rows]


def encode_change(change: ConfigChange) -> bytes:
    """Pack a membership change, the data of a CONFIG entry."""
    packed: bytes = msgpack.packb(
        [[[int(kind), member] for kind, member in change.changes], change.context]
    )
    return packed


def decode_change(data: bytes) -> ConfigChange:
    """The membership change in `data`. Raises `PeerError`."""
    if len(data) > _CHANGE_BYTES_MAX:
        raise PeerError("a membership change is too large", size=len(data))
    row = _unpack(data)
    if type(row) is not tuple or len(row) != 2:
        raise PeerError("a membership change has two fields")
    changes, context = row
    if type(changes) is not tuple or len(changes) > _CHANGES_MAX or type(context) is not bytes:
        raise PeerError("a malformed membership change")
    decoded = []
    for item in changes:
        if type(item) is not tuple or len(item) != 2:
            raise PeerError("a malformed step of a membership change")
        kind = _CHANGE_KINDS.get(item[0]) if type(item[0]) is int else None
        if kind is None:
            raise PeerError("an unknown kind of membership change")
        decoded.append((kind, _uint(item[1])))
    return ConfigChange(tuple(decoded), context)


def encode_conf(conf: ConfState) -> bytes:
    """Pack a configuration, as snapshots and the machine keep it."""
    packed: bytes = msgpack.packb(_pack_conf(conf))
    return packed


def decode_conf(data: bytes) -> ConfState:
    """The configuration in `data`. Raises `PeerError`."""
    return _conf(_unpack(data))


def _pack_message(message: Message) -> tuple[Any, ...]:
    snapshot = message.snapshot
    return (
        message.kind,
        message.source,
        message.target,
        message.term,
        message.index,
        message.log_term,
        [(entry.index, entry.term, entry.kind, entry.data) for entry in message.entries],
        message.commit_index,
        message.reject,
        message.hint_index,
        message.hint_term,
        None if snapshot is None else (snapshot.index, snapshot.term, _pack_conf(snapshot.conf)),
        message.context,
    )


def _pack_conf(conf: ConfState) -> tuple[Any, ...]:
    return (
        conf.voters,
        conf.learners,
        conf.voters_outgoing,
        conf.learners_next,
        conf.auto_leave,
    )


def _unpack(data: bytes) -> Any:
    try:
        return unpack(data, use_list=False, maps=False)
    except ValueError as error:
        raise PeerError(str(error)) from None


def _uint(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _UINT64:
        raise PeerError("not an unsigned 64-bit integer")
    return value


def _message(row: Any) -> Message:
    if type(row) is not tuple or len(row) != 13:
        raise PeerError("a message has 13 fields")
    (kind_, source, target, term, index, log_term, rows, commit_index, reject) = row[:9]
    hint_index, hint_term, snapshot, context = row[9:]
    kind = _WIRE_KINDS.get(kind_) if type(kind_) is int else None
    if kind is None:
        raise PeerError("an unknown kind of message")
    for value in (source, target, term, index, log_term, commit_index, hint_index, hint_term):
        # msgpack integers end at 64 bits; the sign is what is left to check.
        if type(value) is not int or value < 0:
            raise PeerError("not an unsigned 64-bit integer")
    if not source or not target:
        raise PeerError("a message from or to nobody")
    if type(reject) is not bool:
        raise PeerError("reject is not a boolean")
    if type(context) is not bytes or len(context) > _CONTEXT_BYTES_MAX:
        raise PeerError("a malformed context")
    if type(rows) is not tuple:
        raise PeerError("entries are not an array")
    entries = tuple([_entry(item) for item in rows]) if rows else ()
    if kind is MessageKind.APPEND:
        _check_sequence(entries, index, log_term, term)
    meta = None if snapshot is None else _snapshot(snapshot)
    if (meta is not None) is not (kind is MessageKind.SNAPSHOT):
        raise PeerError("SNAPSHOT, and nothing else, describes a snapshot")
    return Message(
        kind,
        source,
        target,
        term,
        index,
        log_term,
        entries,
        commit_index,
        reject,
        hint_index,
        hint_term,
        meta,
        context,
    )


def _entry(row: Any) -> Entry:
    if type(row) is not tuple or len(row) != 4:
        raise PeerError("an entry has four fields")
    index, term, kind_, data = row
    kind = _ENTRY_KINDS.get(kind_) if type(kind_) is int else None
    if kind is None:
        raise PeerError("an unknown kind of entry")
    if type(index) is not int or index < 0 or type(term) is not int or term < 0:
        raise PeerError("not an unsigned 64-bit integer")
    if type(data) is not bytes:
        raise PeerError("entry data is not bytes")
    return Entry(index, term, kind, data)


def _check_sequence(entries: tuple[Entry, ...], index: int, term: int, term_max: int) -> None:
    for entry in entries:
        index += 1
        if entry.index != index or not term <= entry.term <= term_max:
            raise PeerError("appended entries do not follow one another")
        term = entry.term


def _snapshot(row: Any) -> SnapshotMeta:
    if type(row) is not tuple or len(row) != 3:
        raise PeerError("a snapshot has three fields")
    return SnapshotMeta(_uint(row[0]), _uint(row[1]), _conf(row[2]))


def _conf(row: Any) -> ConfState:
    if type(row) is not tuple or len(row) != 5 or type(row[4]) is not bool:
        raise PeerError("a malformed configuration")
    return ConfState(_ids(row[0]), _ids(row[1]), _ids(row[2]), _ids(row[3]), row[4])


def _ids(row: Any) -> tuple[int, ...]:
    if type(row) is not tuple or len(row) > _CHANGES_MAX:
        raise PeerError("malformed member ids")
    ids = tuple([_uint(item) for item in row])
    if any(left >= right for left, right in zip((0, *ids), ids, strict=False)):
        raise PeerError("member ids are not sorted")
    return ids
