"""Locks that excluded each other are accepted, others are not."""

from __future__ import annotations

import random

import pytest

from tests.linearizability.lock_oracle import Effect, Holding, check_locks

FIRST = Holding(1, 10, 0, 5, 20)
SECOND = Holding(2, 14, 8, 25, 40)


def rules(holdings: list[Holding], *effects: Effect) -> list[str]:
    return [each.rule for each in check_locks(holdings, effects)]


def test_one_after_the_other_is_accepted() -> None:
    effects = (Effect(10, 11), Effect(10, 12), Effect(14, 15))
    assert rules([SECOND, FIRST], *effects) == []


def test_two_holders_at_once() -> None:
    assert rules([FIRST, Holding(2, 14, 8, 19, 40)]) == ["lock-held-twice"]


def test_a_holder_that_never_lets_go_bars_the_rest() -> None:
    assert rules([Holding(1, 10, 0, 5), SECOND]) == ["lock-held-twice"]


def test_a_short_holding_does_not_hide_a_long_one() -> None:
    long, short = Holding(1, 10, 0, 5, 100), Holding(2, 14, 8, 25, 26)
    assert rules([long, short, Holding(3, 15, 30, 50, 60)]) == ["lock-held-twice"] * 2


def test_a_token_that_goes_back() -> None:
    assert rules([FIRST, Holding(2, 9, 8, 25, 40)]) == ["token-went-back"]


def test_a_token_told_late_is_no_fault() -> None:
    # The second asked before the first was told, and had let go before it was.
    assert rules([Holding(2, 14, 1, 5, 6), Holding(1, 10, 0, 9, 20)]) == []


def test_a_token_given_twice() -> None:
    assert rules([FIRST, Holding(2, 10, 8, 25, 40)]) == ["token-given-twice"]


def test_effects_that_interleave() -> None:
    effects = (Effect(10, 11), Effect(14, 15), Effect(10, 16))
    assert rules([FIRST, SECOND], *effects) == ["effects-interleave"]


def test_an_effect_under_a_token_that_nobody_had() -> None:
    assert rules([FIRST], Effect(11, 11)) == ["effect-of-no-holder"]


@pytest.mark.parametrize("seed", range(20))
def test_a_random_queue_of_holders(seed: int) -> None:
    rng = random.Random(seed)
    holdings, effects, now, revision = [], [], 0, 1
    for token in range(10, 200, 10):
        asked = rng.randint(max(0, now - 50), now)
        acquired = now + rng.randint(0, 5)
        now = acquired + rng.randint(1, 30)
        holdings.append(Holding(rng.randrange(5), token, asked, acquired, now))
        effects += [Effect(token, revision + n) for n in range(rng.randrange(3))]
        revision += 3
    assert check_locks(holdings, effects) == []
    early = rng.randrange(1, len(holdings))
    before, late = holdings[early - 1], holdings[early]
    assert before.until_us is not None
    holdings[early] = Holding(late.client, late.token, 0, before.until_us - 1, late.until_us)
    assert "lock-held-twice" in rules(holdings)
