"""The proof itself: evidence of a sound cluster passes, and each forged piece of it fails."""

import asyncio
import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.linearizability.history import (
    KeyRecord,
    Operation,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
)
from tests.support.processes import running
from tests.support.proof import Auditor, Evidence, Tally, judge, settle
from tests.support.workload import Load, Mix

MIX = Mix(per_second=400)


async def gathered(folder: Path) -> Evidence:
    """Of two seconds of work, the second batch of a store."""
    async with running(folder, 1) as cluster:
        code, body, _ = await cluster.call(cluster.members[0], "PUT", "/api/kv/before", data=b"x")
        assert code == 200
        urls = cluster.urls
        async with (
            Auditor(lambda: urls, random.Random(1), body["revision"] + 1) as auditor,
            Load(lambda: urls, "b/", random.Random(1), MIX, body["revision"] + 1) as load,
        ):
            await asyncio.sleep(2.0)
            return await settle(cluster, load, auditor, body["revision"])


def first_put(evidence: Evidence) -> int:
    return next(
        at
        for at, each in enumerate(evidence.operations)
        if isinstance(each.request, Put) and each.outcome is Outcome.OK
    )


def unwritten(evidence: Evidence) -> None:
    """An acknowledged write is missing."""
    answer = evidence.operations[first_put(evidence)].answer
    assert isinstance(answer, PutAnswer)
    del evidence.events[answer.revision]


def refused_and_done(evidence: Evidence) -> None:
    at = first_put(evidence)
    evidence.operations[at] = replace(evidence.operations[at], outcome=Outcome.REFUSED, answer=None)


def done_twice(evidence: Evidence) -> None:
    put = evidence.operations[first_put(evidence)].request
    assert isinstance(put, Put)
    revision = max(evidence.events)
    event = next(
        event
        for events in evidence.events.values()
        for event in events
        if (event.record.key, event.record.value) == (put.key, put.value)
    )
    evidence.events[revision] = (*evidence.events[revision], event)


def stale(evidence: Evidence) -> None:
    """A read of now is answered with the past."""
    at, before = next(
        (at, each)
        for at, each in enumerate(evidence.operations)
        if at > len(evidence.operations) // 2
        and isinstance(each.request, Range)
        and not each.request.serializable
        and isinstance(each.answer, RangeAnswer)
    )
    old = RangeAnswer(evidence.first_revision, (), 0)
    evidence.operations[at] = replace(before, answer=old)


def invented(evidence: Evidence) -> None:
    """A read shows what nobody wrote."""
    at = next(
        at
        for at, each in enumerate(evidence.operations)
        if isinstance(each.answer, RangeAnswer) and each.answer.records
    )
    operation: Operation = evidence.operations[at]
    assert isinstance(operation.answer, RangeAnswer)
    first: KeyRecord = operation.answer.records[0]
    records = (replace(first, value=b"forged"), *operation.answer.records[1:])
    evidence.operations[at] = replace(operation, answer=replace(operation.answer, records=records))


def token_passed_over(evidence: Evidence) -> None:
    """A holder of a lock writes after the next one has."""
    guarded = [
        revision
        for revision, events in evidence.events.items()
        if events[0].record.key.startswith(b"fenced/")
    ]
    one, two = guarded[0], guarded[-1]
    events = evidence.events
    assert events[one][0].record.value != events[two][0].record.value
    events[one], events[two] = events[two], events[one]


def held_twice(evidence: Evidence) -> None:
    """Two clients count on one lock at once."""
    first, second = evidence.holdings[0], evidence.holdings[1]
    evidence.holdings[0] = replace(first, until_us=second.acquired_us + 1)


def event_left_out(evidence: Evidence) -> None:
    """A watch skips what it should have told."""
    log = next(log for log in evidence.watches[0] if len(log.responses) > 2)
    del log.responses[1]


FORGERIES: list[Callable[[Evidence], None]] = [
    unwritten,
    refused_and_done,
    done_twice,
    stale,
    invented,
    token_passed_over,
    held_twice,
    event_left_out,
]


async def test_sound_evidence_passes_and_forged_evidence_does_not(tmp_path: Path) -> None:
    evidence = await gathered(tmp_path)
    tally = Tally()
    judge(evidence, tally)
    assert tally.acknowledged_writes and tally.guarded_writes and tally.watch_events
    for forge in FORGERIES:
        forged = copy.deepcopy(evidence)
        forge(forged)
        try:
            judge(forged, Tally())
        except AssertionError:
            continue
        pytest.fail(f"{forge.__name__} passed")
