"""The rules of repeating, one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.client.errors import PreconditionFailed, Unreachable, error_from_problem
from raftkv.client.retry import KEYED_RETRY_SECONDS_MAX, Attempts, Kind, may_repeat
from raftkv.errors import (
    InvalidRequest,
    LeadershipLost,
    NoLeader,
    OperatingError,
    OutcomeUnknown,
    RaftkvError,
    ReadTimedOut,
    Refused,
    Stopping,
    TooManyRequests,
)

ERRORS: list[RaftkvError] = [
    NoLeader("x"),
    Stopping("x"),
    LeadershipLost("x"),
    TooManyRequests("x", retry_after=1),
    ReadTimedOut("x"),
    Unreachable("x"),
    OutcomeUnknown("x"),
    InvalidRequest("x"),
    PreconditionFailed("x"),
    OperatingError("x"),
]


def attempts(kind: Kind, endpoints: int = 3, patience: float = 5.0) -> Attempts:
    return Attempts(
        kind=kind,
        endpoints=endpoints,
        started=0.0,
        deadline=10.0,
        patience=patience,
        chance=lambda: 0.5,
    )


@given(st.sampled_from(list(Kind)), st.lists(st.sampled_from(ERRORS), min_size=1, max_size=12))
def test_a_write_in_doubt_is_never_repeated_bare_nor_called_undone(
    kind: Kind, errors: list[RaftkvError]
) -> None:
    made, now, doubt = attempts(kind), 0.0, False
    for error in errors:
        doubt = doubt or (isinstance(error, OutcomeUnknown) and kind is not Kind.READ)
        pause = made.failed(error, now)
        if pause is None:
            break
        assert not (doubt and kind is Kind.BARE)
        assert 0 <= pause <= 1
        now += pause
    verdict = made.verdict()
    if doubt:
        assert isinstance(verdict, OutcomeUnknown | PreconditionFailed)
    else:
        assert verdict is made.last


@pytest.mark.parametrize("kind", list(Kind))
def test_lasting_errors_are_not_repeated(kind: Kind) -> None:
    assert not may_repeat(InvalidRequest("x"), kind)
    assert not may_repeat(OperatingError("x"), kind)
    assert may_repeat(NoLeader("x"), kind)


def test_the_next_endpoint_comes_at_once_and_a_full_round_pauses() -> None:
    made = attempts(Kind.READ)
    pauses = [made.failed(Stopping("x"), 0.0) for _ in range(6)]
    assert pauses[:2] == [0.0, 0.0] and pauses[3:5] == [0.0, 0.0]
    assert pauses[2] is not None and pauses[5] is not None and pauses[5] > pauses[2] > 0


def test_pauses_grow_to_a_bound_and_end_with_the_deadline() -> None:
    made = attempts(Kind.READ, endpoints=1)
    pauses = [made.failed(NoLeader("x"), 0.0) for _ in range(30)]
    assert max(p for p in pauses if p is not None) == 0.75
    assert made.failed(NoLeader("x"), 9.9) is None


def test_patience_with_an_unreachable_cluster_ends_only_after_a_round() -> None:
    made = attempts(Kind.BARE, patience=0.0)
    assert made.failed(Unreachable("x"), 0.0) is not None
    assert made.failed(Unreachable("x"), 0.0) is not None
    assert made.failed(Unreachable("x"), 0.0) is None


def test_an_old_doubt_is_not_repeated_past_the_memory_of_keys() -> None:
    made = attempts(Kind.KEYED)
    made.deadline = 1e9
    assert made.failed(OutcomeUnknown("x"), 0.0) is not None
    assert made.failed(OutcomeUnknown("x"), KEYED_RETRY_SECONDS_MAX + 1) is None
    assert isinstance(made.verdict(), OutcomeUnknown)


def test_shares_of_the_deadline() -> None:
    assert attempts(Kind.READ, endpoints=1).share(4.0) == 6.0
    assert attempts(Kind.READ).share(0.0) == 5.0
    assert attempts(Kind.READ).share(9.5) == 0.5
    assert attempts(Kind.READ).share(8.5) == 1.0


def test_a_deadline_that_passed_before_anything_was_sent_is_definite() -> None:
    assert isinstance(attempts(Kind.BARE).verdict(), Refused)


@pytest.mark.parametrize(
    ("problem", "writes", "kind"),
    [
        ({"code": "no_leader", "outcome": "refused"}, True, NoLeader),
        ({"code": "no_leader", "outcome": "unknown"}, True, OutcomeUnknown),
        ({"code": "new_thing", "outcome": "refused"}, True, Refused),
        ({"code": "internal", "outcome": "failed"}, True, OutcomeUnknown),
        ({"code": "invariant_violation", "outcome": "failed"}, False, OperatingError),
        ({}, False, OperatingError),
        ({}, True, OutcomeUnknown),
    ],
)
def test_problems_become_the_error_of_their_code_and_family(
    problem: dict[str, object], writes: bool, kind: type[RaftkvError]
) -> None:
    error = error_from_problem({**problem, "message": "m", "9x": 1, "lease": "7"}, writes=writes)
    assert type(error) is kind
    assert error.facts["lease"] == "7" and error.message
