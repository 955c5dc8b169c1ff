"""`SnapshotMeta` and `HardState` as bytes, shared by log segments and snapshot files."""

from __future__ import annotations

from typing import Any, Final

import msgpack

from raftkv.consensus.types import ConfState, SnapshotMeta
from raftkv.errors import CorruptionError
from raftkv.limits import LEARNERS_MAX, VOTERS_MAX

META_BYTES_MAX: Final = 2048
_MEMBERS_MAX: Final = 2 * (VOTERS_MAX + LEARNERS_MAX)
_UINT64_MAX: Final = 2**64 - 1


def encode_meta(meta: SnapshotMeta) -> bytes:
    """`meta` as msgpack, at most META_BYTES_MAX bytes."""
    conf = meta.conf
    data: bytes = msgpack.packb(
        [
            meta.index,
            meta.term,
            conf.voters,
            conf.learners,
            conf.voters_outgoing,
            conf.learners_next,
            conf.auto_leave,
        ]
    )
    return data


def decode_meta(data: bytes) -> SnapshotMeta:
    """The inverse of `encode_meta`; anything else raises `CorruptionError`."""
    if len(data) > META_BYTES_MAX:
        raise CorruptionError("snapshot description too long")
    try:
        fields = msgpack.unpackb(
            data, use_list=False, strict_map_key=True, max_array_len=_MEMBERS_MAX
        )
    except ValueError as error:
        raise CorruptionError("snapshot description is not readable") from error
    if type(fields) is not tuple or len(fields) != 7 or type(fields[6]) is not bool:
        raise CorruptionError("snapshot description has a wrong shape")
    return SnapshotMeta(
        index=_number(fields[0]),
        term=_number(fields[1]),
        conf=ConfState(
            voters=_members(fields[2]),
            learners=_members(fields[3]),
            voters_outgoing=_members(fields[4]),
            learners_next=_members(fields[5]),
            auto_leave=fields[6],
        ),
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _UINT64_MAX:
        raise CorruptionError("snapshot description holds no number where one belongs")
    return value


def _members(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple:
        raise CorruptionError("snapshot description holds no member list where one belongs")
    return tuple(_number(member) for member in value)
