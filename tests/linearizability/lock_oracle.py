"""What locks promise: one holder at a time, told apart by a token that only grows.

A lock on a lease cannot stop a holder that has stalled past its lease from acting late. So two
things are judged: that no two clients may count on the lock at once, and that what they do under
it, guarded by their tokens, never interleaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.linearizability.report import Violation


@dataclass(frozen=True, slots=True)
class Holding:
    """One client's time with the lock.

    `token`: its fencing token. `asked_us`: when it asked; `acquired_us`: when it was told.
    `until_us`: when it ceased to count on the lock: it asked to release it, or its lease might have
    run out by its own clock (TTL from the invocation of its last success); None: it never did.
    """

    client: int
    token: int
    asked_us: int
    acquired_us: int
    until_us: int | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """Something done in a critical section and accepted by the guard.

    `token`: what it was guarded by. `revision`: its place in the order of effects.
    """

    token: int
    revision: int


def check_locks(holdings: Sequence[Holding], effects: Iterable[Effect] = ()) -> list[Violation]:
    """Judge one lock; what is wrong, in order of time."""
    found: list[Violation] = []
    ordered = sorted(holdings, key=lambda holding: (holding.acquired_us, holding.asked_us))
    tokens: dict[int, Holding] = {}
    newest: Holding | None = None
    longest: Holding | None = None
    for holding in ordered:
        if holding.token in tokens:
            rule, told = "token-given-twice", (tokens[holding.token], holding)
            found.append(_violation(rule, "a token of its own", f"token {holding.token}", told))
        tokens[holding.token] = holding
        if longest is not None and holding.acquired_us < _until_us(longest):
            expected = f"the lock is taken until {longest.until_us} us"
            seen = f"client {holding.client} had it at {holding.acquired_us} us"
            found.append(_violation("lock-held-twice", expected, seen, (longest, holding)))
        # Who asked before the other was told ran beside it, and may have been told late.
        beside = newest is None or holding.asked_us <= newest.acquired_us
        if newest is not None and holding.token < newest.token and not beside:
            expected, seen = f"a token above {newest.token}", f"token {holding.token}"
            found.append(_violation("token-went-back", expected, seen, (newest, holding)))
        if newest is None or holding.token > newest.token:
            newest = holding
        if longest is None or _until_us(holding) > _until_us(longest):
            longest = holding
    return found + _check_effects(tokens, effects)


def _check_effects(tokens: dict[int, Holding], effects: Iterable[Effect]) -> list[Violation]:
    found: list[Violation] = []
    last: Effect | None = None
    for effect in sorted(effects, key=lambda effect: effect.revision):
        if effect.token not in tokens:
            expected, seen = "a token that somebody was given", f"token {effect.token}"
            found.append(_violation("effect-of-no-holder", expected, seen, (), effect))
        elif last is not None and effect.token < last.token:
            told = (tokens[last.token], tokens[effect.token])
            expected = f"no more effects of tokens below {last.token}"
            seen = f"one of token {effect.token} at revision {effect.revision}"
            found.append(_violation("effects-interleave", expected, seen, told, last, effect))
        elif last is None or effect.token > last.token:
            last = effect
    return found


def _until_us(holding: Holding) -> int:
    return 1 << 62 if holding.until_us is None else holding.until_us


def _violation(
    rule: str, expected: str, seen: str, holdings: tuple[Holding, ...], *effects: Effect
) -> Violation:
    told = [
        f"client {each.client} asked at {each.asked_us} us, had token {each.token} from "
        f"{each.acquired_us} to {each.until_us} us"
        for each in holdings
    ]
    told += [f"effect of token {each.token} at revision {each.revision}" for each in effects]
    return Violation(rule, expected, seen, tuple(told))
