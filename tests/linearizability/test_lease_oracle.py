"""Leases that were kept are accepted; early, endless and risen ones are caught."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.linearizability.history import (
    Answer,
    Grant,
    KeepAlive,
    KeyRecord,
    LeaseAnswer,
    Operation,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Request,
    Revoke,
    Txn,
    TxnAnswer,
)
from tests.linearizability.lease_oracle import LeaseEnd, check_leases, lease_ends
from tests.linearizability.simulated import EXPIRY_LAG_US, Profile, simulate
from tests.linearizability.witness import check_witness

S = 1_000_000
SLOW = Profile(operations=400, unknown=0, think_us=400_000, keys=60, intervals=False)
"""Long enough for leases to run out."""


@pytest.mark.parametrize("unknown", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(10))
def test_leases_of_one_copy_are_accepted(seed: int, unknown: float) -> None:
    run = simulate(seed, replace(SLOW, unknown=unknown))
    operations = run.history.operations
    report = check_witness(operations, final=run.final, final_revision=run.final_revision).check()
    ends = lease_ends(operations, report)
    found = check_leases(operations, ends, late_us=EXPIRY_LAG_US)
    assert not found, "\n".join(map(str, found))


def test_runs_hold_leases_that_ran_out_and_leases_that_were_revoked() -> None:
    expired = revoked = 0
    for seed in range(5):
        run = simulate(seed, SLOW)
        operations = run.history.operations
        expired += len(lease_ends(operations, check_witness(operations).check()))
        revoked += sum(
            isinstance(each.request, Revoke) and each.outcome is Outcome.OK for each in operations
        )
    assert expired > 5 and revoked > 5


def ok(request: Request, invoked_us: int, returned_us: int, answer: Answer) -> Operation:
    return Operation(1, request, invoked_us, returned_us, Outcome.OK, answer)


def shown(invoked_us: int, lease: int = 7) -> Operation:
    record = KeyRecord(b"k", b"v", 2, 2, 1, lease)
    answer = RangeAnswer(2, (record,), 1)
    return ok(Range(b"k"), invoked_us, invoked_us + 5, answer)


GRANT = ok(Grant(7, 10), 0, 10, LeaseAnswer(7, 10))
PUT = ok(Put(b"k", b"v", 7), 20, 30, PutAnswer(2))
ALIVE = ok(KeepAlive(7), 4 * S, 4 * S + 10, LeaseAnswer(7, 10))
REVOKE = ok(Revoke(7), 5 * S, 5 * S + 10, LeaseAnswer(7, 0))
GONE = Operation(1, KeepAlive(7), 9 * S, 9 * S + 10, Outcome.REFUSED, None, "lease_not_found")


def rules(*operations: Operation, ends: tuple[LeaseEnd, ...] = (), late_us: int = S) -> list[str]:
    return [each.rule for each in check_leases(operations, ends, late_us=late_us)]


def test_expiry_just_in_time_is_accepted() -> None:
    assert rules(GRANT, PUT, ALIVE, ends=(LeaseEnd(7, 3, 14 * S),)) == []


def test_expiry_before_the_ttl_of_the_last_success_is_early() -> None:
    assert rules(GRANT, PUT, ALIVE, ends=(LeaseEnd(7, 3, 14 * S - 1),)) == ["lease-expired-early"]


def test_an_unknown_keep_alive_gives_no_time() -> None:
    lost = Operation(1, KeepAlive(7), 4 * S)
    assert rules(GRANT, PUT, lost, ends=(LeaseEnd(7, 3, 10 * S),)) == []


def test_a_keep_alive_refused_within_the_ttl_is_early() -> None:
    assert rules(GRANT, PUT, GONE) == ["lease-expired-early"]


def test_a_keep_alive_refused_by_a_busy_door_says_nothing() -> None:
    assert rules(GRANT, PUT, replace(GONE, error="too_many_requests")) == []


def test_a_keep_alive_refused_after_a_revoke_is_right() -> None:
    lost = Operation(1, Revoke(7), 5 * S)
    assert rules(GRANT, PUT, REVOKE, GONE) == []
    assert rules(GRANT, PUT, lost, GONE) == []


def test_keys_of_a_lease_that_nobody_renews_go_in_time() -> None:
    assert rules(GRANT, PUT, ALIVE, shown(15 * S)) == []
    assert rules(GRANT, PUT, ALIVE, shown(15 * S + 20)) == ["lease-never-expires"]


def test_a_keep_alive_that_revives_a_lease_after_its_time_is_caught() -> None:
    late = ok(KeepAlive(7), 20 * S, 20 * S + 10, LeaseAnswer(7, 10))
    assert rules(GRANT, PUT, late) == ["lease-never-expires"]
    assert rules(GRANT, PUT, late, late_us=12 * S) == []


def test_a_lease_known_to_have_run_out_does_not_come_back() -> None:
    ends = (LeaseEnd(7, 3, 14 * S),)
    assert rules(GRANT, PUT, ALIVE, shown(14 * S + 1), ends=ends) == ["lease-never-expires"]


def test_an_unknown_keep_alive_may_have_kept_it() -> None:
    lost = Operation(1, KeepAlive(7), 9 * S)
    assert rules(GRANT, PUT, lost, shown(19 * S)) == []


def test_a_revoked_lease_stays_dead() -> None:
    assert rules(GRANT, PUT, REVOKE, shown(6 * S)) == ["revoked-lease-alive"]
    again = ok(KeepAlive(7), 6 * S, 6 * S + 5, LeaseAnswer(7, 10))
    assert rules(GRANT, PUT, REVOKE, again) == ["revoked-lease-alive"]
    put = ok(Txn((), (Put(b"k", b"w", 7),)), 6 * S, 7 * S, TxnAnswer(3, True, (PutAnswer(3),)))
    assert rules(GRANT, PUT, REVOKE, put) == ["revoked-lease-alive"]


def test_a_stale_read_may_show_a_dead_lease() -> None:
    stale = shown(6 * S)
    stale.request = Range(b"k", serializable=True)
    assert rules(GRANT, PUT, REVOKE, stale) == []


def test_a_put_on_a_lease_nobody_granted_is_caught() -> None:
    assert rules(PUT) == ["unknown-lease-accepted"]
    assert rules(replace(GRANT, invoked_us=31, returned_us=40), PUT) == ["unknown-lease-accepted"]
    nameless = Operation(2, Grant(0, 10), 0)
    assert rules(nameless, PUT) == []


def test_a_keep_alive_tells_the_ttl_that_was_granted() -> None:
    assert rules(GRANT, replace(ALIVE, answer=LeaseAnswer(7, 11))) == ["wrong-ttl"]


def test_one_id_is_not_granted_twice_at_once() -> None:
    again = ok(Grant(7, 10), 5 * S, 6 * S, LeaseAnswer(7, 10))
    assert rules(GRANT, again) == ["lease-granted-twice"]
    assert rules(GRANT, REVOKE, replace(again, invoked_us=6 * S, returned_us=7 * S)) == []
    assert rules(GRANT, replace(again, invoked_us=10 * S, returned_us=11 * S)) == []
