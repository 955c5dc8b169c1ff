"""Majorities, and majorities of two configurations at once (thesis 4.3). Pure arithmetic.

An empty half of a joint configuration agrees with whatever the other half says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum


class VoteResult(IntEnum):
    """Where a vote stands."""

    PENDING = 0
    LOST = 1
    WON = 2


def majority_index(indexes: list[int]) -> int:
    """The greatest index that a majority has reached. `indexes` holds one index a voter.

    Sorts `indexes` in place, every time: cheap for at most 15 voters, and there is no state to
    get wrong.
    """
    indexes.sort()
    return indexes[(len(indexes) - 1) // 2]


def joint_index(incoming: list[int], outgoing: list[int]) -> int:
    """The greatest index reached by a majority of each half that is not empty; 0 for neither."""
    if not outgoing:
        return majority_index(incoming) if incoming else 0
    if not incoming:
        return majority_index(outgoing)
    return min(majority_index(incoming), majority_index(outgoing))


def majority_vote(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """Where the vote of one configuration stands. Votes of others do not count; no voters: won."""
    if not voters:
        return VoteResult.WON
    granted = refused = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is True:
            granted += 1
        elif vote is False:
            refused += 1
    needed = len(voters) // 2 + 1
    if granted >= needed:
        return VoteResult.WON
    if len(voters) - refused < needed:
        return VoteResult.LOST
    return VoteResult.PENDING


def joint_vote(
    incoming: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]
) -> VoteResult:
    """Where a vote stands that both halves must win; one lost half loses it."""
    first = majority_vote(incoming, votes)
    if not outgoing:
        return first
    second = majority_vote(outgoing, votes)
    if first is second:
        return first
    if VoteResult.LOST in (first, second):
        return VoteResult.LOST
    return VoteResult.PENDING
