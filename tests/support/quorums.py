"""Majorities by brute force, by the words of the thesis (4.3)."""

from __future__ import annotations

import itertools

from raftkv.consensus.confchange import members
from raftkv.consensus.types import ConfState


def most(voters: tuple[int, ...], present: frozenset[int]) -> bool:
    """Whether more than half of `voters` are there; an empty half agrees."""
    return not voters or 2 * len(present.intersection(voters)) > len(voters)


def agrees(conf: ConfState, present: frozenset[int]) -> bool:
    """Whether these members can elect and commit, by the words of the thesis (4.3)."""
    return most(conf.voters, present) and most(conf.voters_outgoing, present)


def check_overlap(before: ConfState, after: ConfState) -> None:
    """No two sets without a common member can both decide, the one here and the other there."""
    everybody = sorted(members(before) | members(after))
    for size in range(len(everybody) + 1):
        for chosen in itertools.combinations(everybody, size):
            present = frozenset(chosen)
            if agrees(before, present):
                rest = frozenset(everybody) - present
                assert not agrees(after, rest), f"{before} {after}: {chosen} against the others"
                assert not agrees(before, rest)
