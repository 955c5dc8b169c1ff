"""The one call for a whole history."""

from __future__ import annotations

import pytest

from tests.linearizability import check, witness
from tests.linearizability.check import check_history
from tests.linearizability.history import (
    History,
    KeyRecord,
    Operation,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
)
from tests.linearizability.report import HistoryRejected
from tests.linearizability.simulated import Profile, simulate
from tests.linearizability.wgl import Search, Verdict

PROFILES = [Profile(unknown=0), Profile(unknown=0.15), Profile(clients=10, keys=20)]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(5))
def test_what_one_copy_did_passes_both_and_survives_its_file(seed: int, profile: Profile) -> None:
    run = simulate(seed, profile)
    kept = History.from_ndjson(run.history.to_ndjson())
    assert kept.operations == run.history.operations
    report = check_history(kept.operations, final=run.final, final_revision=run.final_revision)
    report.check()
    assert str(report) == "linearizable"


def test_the_order_of_the_witness_check_spares_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Search:
        raise AssertionError("a search was made")

    run = simulate(1, Profile(operations=400))
    monkeypatch.setattr(check, "search", never)
    check_history(
        run.history.operations, final=run.final, final_revision=run.final_revision
    ).check()


def wrong() -> list[Operation]:
    """A read that misses what was acknowledged before, by value; revisions that cannot tell."""
    old = KeyRecord(b"k", b"a", 2, 2, 1)
    return [
        Operation(1, Put(b"k", b"a"), 0, 1, Outcome.OK, PutAnswer(2)),
        Operation(1, Put(b"k", b"b"), 2, 3, Outcome.OK, PutAnswer(3)),
        Operation(1, Put(b"j", b"u"), 2),
        Operation(2, Range(b"k"), 5, 6, Outcome.OK, RangeAnswer(4, (old,), 1)),
    ]


def out_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "STEPS_MIN", 0)
    monkeypatch.setattr(witness, "STEPS_PER_OPERATION_MAX", 0)


def test_wgl_finds_what_the_witness_check_had_no_steps_for(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_steps(monkeypatch)
    report = check_history(wrong())
    [violation] = report.violations
    assert violation.rule == "not-linearizable" and report.undecided
    assert [line.split("] ")[1] for line in violation.story] == [
        "put k=a -> revision 2",
        "put k=b -> revision 3",
        "read k -> revision 4, [k=a (create=2 mod=2 version=1)], count 1",
    ]
    with pytest.raises(HistoryRejected, match="not-linearizable"):
        report.check()


def test_a_search_out_of_steps_is_told_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_steps(monkeypatch)
    monkeypatch.setattr(check, "search", lambda _: Search(Verdict.NOT_DECIDED, ()))
    report = check_history(wrong())
    assert not report.ok and not report.violations
    assert any(reason.startswith("key k:") for reason in report.undecided)


def test_the_final_state_is_judged_by_values_too(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_steps(monkeypatch)
    final = (KeyRecord(b"k", b"a", 2, 2, 1),)
    report = check_history(wrong()[:2], final=final, final_revision=3)
    assert [violation.rule for violation in report.violations] == ["not-linearizable"]
