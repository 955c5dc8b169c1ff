"""The watch oracle accepts the truth, and names each of the nine properties when it is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.linearizability.history import KeyRecord, WatchEvent, WatchLog, WatchResponse
from tests.linearizability.simulated import Profile, simulate, watch
from tests.linearizability.watch_oracle import check_watch, check_watches, resume_revision


@pytest.mark.parametrize("seed", range(25))
def test_a_watch_that_was_told_the_truth_is_accepted(seed: int) -> None:
    run = simulate(seed, Profile(operations=120))
    for number in range(8):
        log, complete_to = watch(seed * 100 + number, run)
        found = check_watch(log, run.truth, compacted=run.compacted, complete_to=complete_to)
        assert not found, "\n".join(map(str, found))


def put(key: bytes, revision: int, create: int, version: int, old: WatchEvent | None) -> WatchEvent:
    record = KeyRecord(key, b"v%d" % revision, create, revision, version)
    return WatchEvent("put", record, None if old is None else old.record)


def gone(key: bytes, revision: int, old: WatchEvent) -> WatchEvent:
    return WatchEvent("delete", KeyRecord(key, b"", 0, revision, 0), old.record)


A2 = put(b"a", 2, 2, 1, None)
B3 = put(b"b", 3, 3, 1, None)
A4 = put(b"a", 4, 2, 2, A2)
A5, B5 = gone(b"a", 5, A4), gone(b"b", 5, B3)
Z6 = put(b"z", 6, 6, 1, None)
A7, B7 = put(b"a", 7, 7, 1, None), put(b"b", 7, 7, 1, None)
A8 = put(b"a", 8, 7, 2, A7)
TRUTH = [A2, B3, A4, A5, B5, Z6, A7, B7, A8]


def told(*events: WatchEvent) -> WatchResponse:
    return WatchResponse(0, events[-1].record.mod_revision, events)


def mark(revision: int) -> WatchResponse:
    return WatchResponse(0, revision, progress=True)


def compacted(revision: int) -> WatchResponse:
    return WatchResponse(0, 8, compact_revision=revision, cancelled=True)


def log(*responses: WatchResponse, start: int = 2, filters: tuple[str, ...] = ()) -> WatchLog:
    return WatchLog(b"a", b"c", start, True, frozenset(filters), list(responses))


GOOD = log(told(A2, B3), told(A4), told(A5, B5), mark(6), told(A7, B7), told(A8), mark(8))


def test_the_plain_case_is_accepted() -> None:
    assert check_watch(GOOD, TRUTH, complete_to=8) == []


WRONG: dict[str, tuple[str, WatchLog]] = {
    "reordered": ("Ordered", log(told(B3), told(A2), start=0)),
    "reordered within a revision": ("Ordered", log(told(A2, B3), told(A4), told(B5, A5))),
    "header below its events": ("Ordered", log(replace(told(A2, B3), revision=2))),
    "header goes back": ("Ordered", log(told(A2, B3), mark(6), replace(told(A4), revision=4))),
    "duplicate": ("Unique", log(told(A2, B3), told(B3))),
    "split revision": ("Atomic", log(told(A2, B3), told(A4), told(A5), told(B5))),
    "missed": ("Reliable", log(told(A2, B3), told(A5, B5))),
    "missed half a revision": ("Reliable", log(told(A2, B3), told(A4), told(A5), told(A7, B7))),
    "missed at the end": ("Reliable", log(told(A2, B3), told(A4))),
    "never happened": ("Reliable", log(told(A2), told(put(b"b", 2, 2, 1, None)))),
    "missed on resume": ("Resumable", log(told(A5, B5), start=4)),
    "too old on resume": ("Resumable", log(told(B3), told(A4), start=4)),
    "old event to a future watch": ("Resumable", log(told(A4), start=7)),
    "delete at the compaction revision missing": ("Resumable", log(told(A7, B7), start=5)),
    "compacted though it was kept": ("Resumable", log(compacted(3), start=4)),
    "compacted, and goes on": ("Resumable", log(compacted(5), told(A7, B7), start=3)),
    "compacted without end": ("Resumable", log(replace(compacted(5), cancelled=False), start=3)),
    "events after progress": ("Bookmarkable", log(told(A2), mark(4), told(B3))),
    "progress ahead of events": ("Bookmarkable", log(told(A2), mark(4))),
    "previous missing": ("PrevKV", log(told(A2, B3), told(replace(A4, previous=None)))),
    "previous wrong": ("PrevKV", log(told(A2, B3), told(replace(A4, previous=B3.record)))),
    "previous of a new key": ("PrevKV", log(told(replace(A2, previous=A2.record)))),
    "wrong create flag": (
        "IsCreate",
        log(told(A2, B3), told(replace(A4, record=replace(A4.record, create_revision=4)))),
    ),
    "wrong version": ("IsCreate", log(told(replace(A2, record=replace(A2.record, version=2))))),
    "put told as delete": ("IsCreate", log(told(replace(A2, kind="delete")))),
    "outside the range": ("Filter", log(told(A2, B3), told(A4), told(A5, B5), told(Z6))),
    "filtered kind": ("Filter", log(told(A2, B3), told(A4), told(A5, B5), filters=("delete",))),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_fault_is_caught_by_its_name(name: str) -> None:
    rule, wrong = WRONG[name]
    found = check_watch(wrong, TRUTH, complete_to=8)
    assert rule in [violation.rule for violation in found], found
    assert all(violation.story for violation in found)


def test_a_previous_record_not_asked_for_is_a_fault() -> None:
    asked = replace(GOOD, prev_kv=False)
    assert [each.rule for each in check_watch(asked, TRUTH)] == ["PrevKV"]


def test_a_compacted_previous_record_may_be_missing() -> None:
    lacking = log(told(A2, B3), told(replace(A4, previous=None)))
    assert check_watch(lacking, TRUTH, compacted=4) == []


def test_a_compacted_start_is_told() -> None:
    assert check_watch(log(compacted(5), start=3), TRUTH, compacted=5, complete_to=8) == []


def test_from_now_on_begins_where_the_watch_was_opened() -> None:
    opened = WatchResponse(0, 4)
    good = log(opened, told(A5, B5), told(A7, B7), start=0)
    assert check_watch(good, TRUTH) == []
    late = log(opened, told(A7, B7), start=0)
    assert [each.rule for each in check_watch(late, TRUTH)] == ["Resumable"]


@pytest.mark.parametrize("seed", range(10))
def test_a_watch_cut_anywhere_resumes_exactly(seed: int) -> None:
    run = simulate(seed, Profile(operations=80, compactions=False))
    whole, complete_to = watch(seed, run)
    for cut in range(1, len(whole.responses) + 1):
        first = replace(whole, responses=whole.responses[:cut])
        start = resume_revision(first)
        rest = replace(whole, start_revision=start, responses=whole.responses[cut:])
        assert check_watches([first, rest], run.truth) == []
        if start > whole.start_revision and any(response.events for response in rest.responses):
            early = replace(rest, start_revision=start - 1)
            late = replace(rest, start_revision=rest.responses[-1].revision + 1)
            assert check_watch(late, run.truth), "events below its start"
            missing = any(
                event.record.mod_revision == start - 1
                for response in first.responses
                for event in response.events
            )
            assert bool(check_watch(early, run.truth, complete_to=complete_to)) == missing


Mutation = Callable[[list[WatchResponse]], list[WatchResponse]]


def drop_first_events(responses: list[WatchResponse]) -> list[WatchResponse]:
    at = next(n for n, response in enumerate(responses) if response.events)
    return responses[:at] + responses[at + 1 :]


def repeat_events(responses: list[WatchResponse]) -> list[WatchResponse]:
    at = next(n for n, response in enumerate(responses) if response.events)
    return responses[: at + 1] + responses[at:]


def swap_events(responses: list[WatchResponse]) -> list[WatchResponse]:
    for (n, before), (m, after) in pairwise(
        [(n, response) for n, response in enumerate(responses) if response.events]
    ):
        swapped = list(responses)
        swapped[n], swapped[m] = after, before
        return swapped
    return drop_first_events(responses)


@pytest.mark.parametrize("mutate", [drop_first_events, repeat_events, swap_events])
@pytest.mark.parametrize("seed", range(8))
def test_a_random_watch_with_a_fault_is_rejected(seed: int, mutate: Mutation) -> None:
    run = simulate(seed, Profile(operations=80, compactions=False))
    for number in range(4):
        honest, complete_to = watch(seed * 10 + number, run)
        if any(response.events for response in honest.responses):
            faulty = replace(honest, responses=mutate(honest.responses))
            assert check_watch(faulty, run.truth, complete_to=complete_to)
