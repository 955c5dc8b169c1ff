"""Peer frames that the replica itself uses, beside consensus messages, checked field by field."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from raftkv.errors import PeerError
from raftkv.limits import PEER_SHELL_FRAME_BYTES_MAX
from raftkv.packing import unpack


class ShellFrame(IntEnum):
    """Payloads are msgpack arrays. A question is [boot of the asker, number]."""

    PROPOSAL_REFUSED = 32
    """[boot, sequence, reason]: the leader did not take a forwarded batch on."""
    KEEP_ALIVE = 33
    """[question, [lease]]; answered by [ttl_seconds or nil for each], or a text of refusal."""
    LEASE_TIME = 34
    """[question, lease]; answered by [ttl_seconds, remaining_ms], nil, or a text of refusal."""
    ANSWER = 35
    """[question, answer]."""
    HASH = 36
    """[index, state hash]."""


_FIELDS: Final[dict[int, tuple[type, ...]]] = {
    ShellFrame.PROPOSAL_REFUSED: (int, int, str),
    ShellFrame.KEEP_ALIVE: (list, list),
    ShellFrame.LEASE_TIME: (list, int),
    ShellFrame.ANSWER: (list, object),
    ShellFrame.HASH: (int, bytes),
}


def decode_shell(kind: int, payload: bytes) -> list[Any]:
    """The fields of a frame, of the types that its kind has. Raises PeerError.

    What an ANSWER may hold depends on the question: see `is_ttls` and `is_time`.
    """
    types = _FIELDS.get(kind)
    if types is None:
        raise PeerError(f"unknown frame kind {kind}", kind=kind)
    if len(payload) > PEER_SHELL_FRAME_BYTES_MAX:
        raise PeerError(f"a frame of kind {kind} is too large", kind=kind, size=len(payload))
    try:
        fields = unpack(payload, maps=False)
    except ValueError as error:
        raise PeerError(f"malformed frame of kind {kind}: {error}", kind=kind) from None
    if (
        type(fields) is not list
        or len(fields) != len(types)
        or not all(type(f) is t for f, t in zip(fields, types, strict=True) if t is not object)
        or (types[0] is list and [type(part) for part in fields[0]] != [int, int])
        or (kind == ShellFrame.KEEP_ALIVE and not all(type(lease) is int for lease in fields[1]))
    ):
        raise PeerError(f"malformed frame of kind {kind}", kind=kind)
    return fields


def is_ttls(answer: Any, count: int) -> bool:
    """Whether `answer` is one to a KEEP_ALIVE of `count` leases."""
    if type(answer) is str:
        return True
    return (
        type(answer) is list
        and len(answer) == count
        and all(ttl is None or type(ttl) is int for ttl in answer)
    )


def is_time(answer: Any) -> bool:
    """Whether `answer` is one to a LEASE_TIME."""
    if answer is None or type(answer) is str:
        return True
    return type(answer) is list and [type(part) for part in answer] == [int, int]
