"""The witness check accepts what one copy did: over seeds, with unknown outcomes and leases."""

from __future__ import annotations

import pytest

from tests.linearizability import witness
from tests.linearizability.history import (
    Answer,
    Delete,
    Grant,
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
)
from tests.linearizability.report import HistoryRejected
from tests.linearizability.simulated import ONE_KEY, Profile, simulate, watch
from tests.linearizability.witness import check_witness

PROFILES = {
    "plain": Profile(unknown=0),
    "some-unknown": Profile(),
    "many-unknown": Profile(unknown=0.25),
    "one-key": ONE_KEY,
    "wide": Profile(clients=10, keys=20, operations=600, unknown=0.08),
}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", PROFILES)
def test_what_one_copy_did_is_accepted(name: str, seed: int) -> None:
    run = simulate(seed, PROFILES[name])
    operations = run.history.operations
    check_witness(operations).check()
    check_witness(operations, final=run.final, final_revision=run.final_revision).check()


@pytest.mark.parametrize("seed", range(12))
def test_the_final_state_may_come_without_its_revision(seed: int) -> None:
    run = simulate(seed, Profile(unknown=0.1))
    check_witness(run.history.operations, final=run.final).check()


@pytest.mark.parametrize("seed", range(12))
def test_the_truth_found_is_what_happened(seed: int) -> None:
    run = simulate(seed, Profile(unknown=0))
    report = check_witness(
        run.history.operations, final=run.final, final_revision=run.final_revision
    ).check()
    assert list(report.truth) == run.truth
    assert report.causes is not None
    assert set(report.causes) == {event.record.mod_revision for event in run.truth}


@pytest.mark.parametrize("seed", range(12))
def test_watches_tell_what_unknown_operations_did(seed: int) -> None:
    run = simulate(seed, Profile(unknown=0.2))
    logs = [watch(seed * 10 + n, run)[0] for n in range(3)]
    report = check_witness(
        run.history.operations, final=run.final, final_revision=run.final_revision, watches=logs
    ).check()
    watched = {
        (event.record.mod_revision, event.record.key, event.kind)
        for log in logs
        for response in log.responses
        for event in response.events
    }
    truth = {(event.record.mod_revision, event.record.key, event.kind) for event in report.truth}
    assert watched <= truth


# ---- single cases -------------------------------------------------------------------------------

K, J = b"k", b"j"
MS = 1000
EVERYTHING = Range(b"", b"\0")


def op(
    request: Request, start: int, answer: Answer | None = None, *, client: int = 1, took: int = 1
) -> Operation:
    """Times in milliseconds. Without an answer: unknown, and it never returned."""
    if answer is None:
        return Operation(client, request, start * MS)
    end = (start + took) * MS
    return Operation(client, request, start * MS, end, Outcome.OK, answer)


def put(value: bytes, start: int, revision: int, key: bytes = K, lease: int = 0) -> Operation:
    return op(Put(key, value, lease), start, PutAnswer(revision))


def shown(start: int, revision: int, *records: KeyRecord, request: Range = EVERYTHING) -> Operation:
    return op(request, start, RangeAnswer(revision, records, len(records)))


def rec(
    value: bytes, mod: int, create: int, version: int, key: bytes = K, lease: int = 0
) -> KeyRecord:
    return KeyRecord(key, value, create, mod, version, lease)


def rules(*operations: Operation, final: tuple[KeyRecord, ...] | None = None) -> list[str]:
    report = check_witness(operations, final=final)
    assert not report.undecided
    return [violation.rule for violation in report.violations]


def test_nothing_is_linearizable() -> None:
    assert rules() == []
    assert rules(shown(0, 1)) == []
    assert rules(shown(0, 1), final=(rec(b"a", 2, 2, 1),)) == ["unexplained-revisions"]


def test_an_unknown_write_fills_the_gap_where_it_was_seen() -> None:
    unknown = op(Put(K, b"u"), 0)
    seen = shown(5, 3, rec(b"u", 3, 2, 2))
    report = check_witness([put(b"a", 0, 2), unknown, seen]).check()
    assert report.causes is not None and report.causes[3].operation == 1


def test_an_unknown_write_may_never_have_happened() -> None:
    assert rules(op(Put(K, b"u"), 0), put(b"a", 1, 2), shown(5, 2, rec(b"a", 2, 2, 1))) == []


def test_an_unknown_write_seen_twice() -> None:
    unknown = op(Put(K, b"u"), 0)
    first, again = shown(5, 2, rec(b"u", 2, 2, 1)), shown(9, 3, rec(b"u", 3, 2, 2))
    other = op(Delete(J), 1)
    assert rules(unknown, other, first) == []
    assert rules(unknown, other, first, again) == ["write-seen-twice"]


def test_an_acknowledged_write_seen_twice() -> None:
    again = shown(9, 3, rec(b"a", 3, 2, 2))
    assert rules(put(b"a", 0, 2), op(Delete(J), 1), again) == ["write-seen-twice"]


def test_a_refused_write_seen() -> None:
    refused = Operation(1, Put(K, b"r"), 0, 5, Outcome.REFUSED)
    seen = shown(9, 2, rec(b"r", 2, 2, 1))
    assert rules(refused, op(Put(K, b"u"), 0), seen) == ["refused-write-seen"]


def test_a_gap_too_old_for_the_only_write_that_could_fill_it() -> None:
    seen_at_three = put(b"a", 0, 3)
    assert rules(op(Put(J, b"u"), 0), seen_at_three) == []
    assert rules(seen_at_three, op(Put(J, b"u"), 9)) == ["unexplained-revision"]


def test_the_final_state_bounds_what_unknown_writes_did() -> None:
    operations = [put(b"a", 0, 2), op(Put(K, b"u"), 5)]
    assert rules(*operations, final=(rec(b"a", 2, 2, 1),)) == []
    assert rules(*operations, final=(rec(b"u", 3, 2, 2),)) == []
    assert rules(*operations, final=(rec(b"u", 3, 2, 3),)) == ["unexplained-revision"]
    assert (
        check_witness(operations, final=()).violations
        or check_witness(operations, final=()).undecided
    )
    assert rules(*operations, op(Delete(K), 6), final=()) == []


def test_leases_take_all_their_keys_at_one_revision() -> None:
    grant = op(Grant(7, 5), 0, LeaseAnswer(7, 5))
    puts = [put(b"a", 1, 2, K, 7), put(b"b", 1, 3, J, 7)]
    assert rules(grant, *puts, shown(9000, 4)) == []
    half = rec(b"a", 2, 2, 1, K, 7)
    assert rules(grant, *puts, shown(9000, 4, half)) != []
    # With a second grant there are enough makers of revisions, but none that fits.
    more = op(Grant(8, 5), 0, LeaseAnswer(8, 5))
    assert rules(grant, more, *puts, shown(9000, 5)) == ["unexplained-revision"]


def test_a_revoke_with_or_without_its_revision() -> None:
    grant, leased = op(Grant(7, 5), 0, LeaseAnswer(7, 5)), put(b"a", 1, 2, K, 7)
    for told in (0, 3):
        revoke = op(Revoke(7), 5, LeaseAnswer(7, 0, told))
        report = check_witness([grant, leased, revoke, shown(9, 3)]).check()
        assert report.causes is not None and report.causes[3].operation == 2
    useless = op(Revoke(7), 5, LeaseAnswer(7, 0, 2))
    assert rules(grant, leased, useless) == ["revoked-keys-remain"]
    assert rules(grant, put(b"a", 1, 2), useless) == []


def test_a_stale_read_is_right_only_if_it_was_asked_for() -> None:
    writes = [put(b"a", 0, 2), put(b"b", 2, 3)]
    old = rec(b"a", 2, 2, 1)
    stale = Range(b"", b"\0", serializable=True)
    assert rules(*writes, shown(5, 2, old, request=stale)) == []
    assert rules(*writes, shown(5, 2, old)) == ["stale-read"]
    assert rules(*writes, shown(5, 3, old, request=stale)) == ["stale-record"]


def test_a_stale_read_proves_that_its_revision_exists() -> None:
    stale = Range(b"", b"\0", serializable=True)
    early = shown(0, 2, rec(b"a", 2, 2, 1), request=stale)
    assert rules(early, put(b"a", 5, 2)) == ["read-from-the-future"]


def test_a_read_of_an_old_revision() -> None:
    writes = [put(b"a", 0, 2), put(b"b", 2, 3)]
    at_two = Range(K, revision=2)
    for header in (2, 3):
        assert rules(*writes, shown(5, header, rec(b"a", 2, 2, 1), request=at_two)) == []
        assert rules(*writes, shown(5, header, request=at_two)) == ["missing-record"]
    ahead = shown(1, 2, rec(b"a", 2, 2, 1), request=Range(K, revision=3))
    assert rules(*writes, ahead) == ["read-of-a-future-revision"]


def test_at_equal_times_only_a_clients_own_order_counts() -> None:
    writes = [put(b"a", 0, 2), op(Put(K, b"b"), 2, PutAnswer(3))]
    old = RangeAnswer(2, (rec(b"a", 2, 2, 1),), 1)
    assert rules(*writes, op(Range(K), 3, old, client=2)) == []
    assert rules(*writes, op(Range(K), 3, old, client=1)) == ["stale-read"]


def test_reads_never_go_back_in_real_time() -> None:
    writes = [put(b"a", 0, 2), op(Put(J, b"b"), 2, PutAnswer(3), took=50)]
    a, b = rec(b"a", 2, 2, 1), rec(b"b", 3, 3, 1, J)
    assert rules(*writes, shown(5, 2, a), shown(8, 3, b, a)) == []
    assert rules(*writes, shown(5, 3, b, a), shown(8, 2, a)) == ["stale-read"]


def test_a_wrong_guess_is_taken_back() -> None:
    # Revision 3 could be either delete; only later it shows that J outlived it.
    writes = [put(b"a", 0, 2), put(b"b", 1, 3, J)]
    unknown = [op(Delete(K), 5), op(Delete(J), 6)]
    seen = shown(20, 4, rec(b"b", 3, 3, 1, J))
    report = check_witness([*writes, *unknown, seen]).check()
    assert report.causes is not None and report.causes[4].operation == 2


def test_a_bound_on_guesses_that_is_reached_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    run = simulate(2, Profile(unknown=0.25))
    monkeypatch.setattr(witness, "STEPS_MIN", 10)
    monkeypatch.setattr(witness, "STEPS_PER_OPERATION_MAX", 0)
    report = check_witness(run.history.operations)
    assert report.undecided and not report.violations and not report.ok
    with pytest.raises(HistoryRejected, match="not decided"):
        report.check()


def test_a_read_recorded_without_its_revision_is_an_error_of_the_recorder() -> None:
    with pytest.raises(ValueError, match="without its revision"):
        check_witness([shown(0, 0)])


def test_the_story_names_who_did_what_and_when() -> None:
    writes = [put(b"a", 0, 2), put(b"b", 2, 3)]
    [violation] = check_witness([*writes, shown(5, 3, rec(b"a", 2, 2, 1))]).violations
    assert str(violation).splitlines() == [
        "stale-record",
        "  expected: k=b (create=2 mod=3 version=2) at revision 3",
        "  seen:     k=a (create=2 mod=2 version=1)",
        "  what happened around it:",
        "    client 1 [0..1000 us] put k=a -> revision 2",
        "    client 1 [2000..3000 us] put k=b -> revision 3",
        "    client 1 [5000..6000 us] read [, the end) -> revision 3, "
        "[k=a (create=2 mod=2 version=1)], count 1",
    ]
