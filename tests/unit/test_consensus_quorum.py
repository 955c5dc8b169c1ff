"""Quorum arithmetic against brute force: every majority, and joints of up to 5 + 5 members."""

from __future__ import annotations

import itertools

import pytest

from raftkv.consensus.quorum import (
    VoteResult,
    joint_index,
    joint_vote,
    majority_index,
    majority_vote,
)


def brute_index(matches: list[int]) -> int:
    """The greatest index that more than half have reached, by trying each."""
    return max(
        index
        for index in [0, *matches]
        if sum(match >= index for match in matches) * 2 > len(matches)
    )


def brute_vote(voters: tuple[int, ...], votes: dict[int, bool]) -> VoteResult:
    """Try every way in which the missing votes could still come in."""
    missing = [voter for voter in voters if voter not in votes]
    ends = set()
    for rest in itertools.product((True, False), repeat=len(missing)):
        final = {**votes, **dict(zip(missing, rest, strict=True))}
        ends.add(sum(final[voter] for voter in voters) * 2 > len(voters) or not voters)
    if ends == {True}:
        return VoteResult.WON
    return VoteResult.LOST if ends == {False} else VoteResult.PENDING


@pytest.mark.parametrize("size", range(1, 6))
def test_majority_index_is_what_counting_says(size: int) -> None:
    for matches in itertools.product(range(4), repeat=size):
        assert majority_index(list(matches)) == brute_index(list(matches))


def test_joint_index_needs_both_halves() -> None:
    for first, second in itertools.product(range(6), repeat=2):
        for left in itertools.product(range(3), repeat=first):
            for right in itertools.islice(itertools.product(range(3), repeat=second), 81):
                halves = [list(half) for half in (left, right) if half]
                expected = min((brute_index(half) for half in halves), default=0)
                assert joint_index(list(left), list(right)) == expected


def all_votes(voters: tuple[int, ...]) -> list[dict[int, bool]]:
    """Every combination of yes, no and silence."""
    return [
        {voter: vote for voter, vote in zip(voters, votes, strict=True) if vote is not None}
        for votes in itertools.product((True, False, None), repeat=len(voters))
    ]


@pytest.mark.parametrize("size", range(6))
def test_majority_vote_is_what_every_ending_says(size: int) -> None:
    voters = tuple(range(1, size + 1))
    for votes in all_votes(voters):
        assert majority_vote(voters, votes) is brute_vote(voters, votes)


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("second", range(6))
def test_joint_vote_needs_both_halves(first: int, second: int) -> None:
    left = tuple(range(1, first + 1))
    for shift in range(first + 1):
        right = tuple(range(1 + shift, second + 1 + shift))
        everybody = tuple(sorted({*left, *right}))
        cases = all_votes(everybody) if len(everybody) <= 5 else all_votes(everybody)[::97]
        for votes in cases:
            one, two = brute_vote(left, votes), brute_vote(right, votes)
            if one is two:
                expected = one
            elif VoteResult.LOST in (one, two):
                expected = VoteResult.LOST
            else:
                expected = VoteResult.PENDING
            assert joint_vote(left, right, votes) is expected


def test_votes_of_strangers_do_not_count() -> None:
    assert majority_vote((1, 2, 3), {7: True, 8: True, 1: True}) is VoteResult.PENDING
