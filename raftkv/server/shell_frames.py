"""Kinds of peer frames that the replica itself uses, beside consensus messages."""

from __future__ import annotations

from enum import IntEnum


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
