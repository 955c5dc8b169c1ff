"""Faults planted on purpose: in recorded histories, and in the copy that clients talk to.

A mutation takes a correct run and answers a history with one named fault, or None where the run
offers no place for it. A faulty copy is a store that is wrong now and then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from tests.linearizability.history import (
    Answer,
    Delete,
    DeleteAnswer,
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
    WatchEvent,
)
from tests.linearizability.model import interval_slice
from tests.linearizability.simulated import Simulated
from tests.linearizability.single_copy import SingleCopy

Mutation = Callable[[random.Random, Simulated], list[Operation] | None]
MUTATIONS: Final[dict[str, tuple[Mutation, tuple[str, ...]]]] = {}
"""Name -> the mutation, and beginnings of the rules that may name it."""


def _mutation(name: str, *rules: str) -> Callable[[Mutation], Mutation]:
    def register(mutation: Mutation) -> Mutation:
        MUTATIONS[name] = (mutation, rules)
        return mutation

    return register


# ---- places for a fault -------------------------------------------------------------------------


def state_at(truth: Sequence[WatchEvent], revision: int) -> dict[bytes, KeyRecord]:
    """All records at a revision."""
    state: dict[bytes, KeyRecord] = {}
    for event in truth:
        if event.record.mod_revision > revision:
            break
        state.pop(event.record.key, None)
        if event.kind == "put":
            state[event.record.key] = event.record
    return state


def read_at(truth: Sequence[WatchEvent], request: Range, revision: int) -> RangeAnswer:
    """What a read at a revision answers."""
    state = state_at(truth, revision)
    names = interval_slice(sorted(state), request.start, request.end)
    shown = names[: request.limit or None]
    more = len(shown) < len(names)
    return RangeAnswer(revision, tuple(state[name] for name in shown), len(names), more)


def _answered(run: Simulated, *kinds: type) -> Iterator[tuple[int, Any, Any]]:
    for index, operation in enumerate(run.history.operations):
        if operation.outcome is Outcome.OK and isinstance(operation.request, kinds):
            yield index, operation.request, operation.answer


def _reads(run: Simulated) -> list[tuple[int, Range, RangeAnswer]]:
    return [each for each in _answered(run, Range) if not each[1].revision]


def _strict_reads(run: Simulated) -> list[tuple[int, Range, RangeAnswer]]:
    return [each for each in _reads(run) if not each[1].serializable]


def _with(run: Simulated, index: int, **changes: Any) -> list[Operation]:
    operations = list(run.history.operations)
    operations[index] = replace(operations[index], **changes)
    return operations


def _pick(rng: random.Random, places: Sequence[Any]) -> Any:
    return rng.choice(places) if places else None


def _known_before(run: Simulated, index: int) -> int:
    """The greatest revision that somebody knew before an operation began."""
    begun_us = run.history.operations[index].invoked_us
    return max(
        (
            each.answer.revision
            for each in run.history.operations
            if each.answer is not None and (each.returned_us or 0) < begun_us
        ),
        default=0,
    )


# ---- time ---------------------------------------------------------------------------------------


@_mutation("stale read", "stale-read")
def _stale_read(rng: random.Random, run: Simulated) -> list[Operation] | None:
    places = [each for each in _strict_reads(run) if _known_before(run, each[0]) > 2]
    if not places:
        return None
    index, request, _ = rng.choice(places)
    old = rng.randint(1, _known_before(run, index) - 1)
    return _with(run, index, answer=read_at(run.truth, request, old))


@_mutation("read from the future", "read-from-the-future", "stale-read")
def _future_read(rng: random.Random, run: Simulated) -> list[Operation] | None:
    operations = run.history.operations
    places = []
    for index, request, _ in _strict_reads(run):
        returned_us = operations[index].returned_us or 0
        later = [
            answer.revision
            for at, _, answer in _answered(run, Put)
            if operations[at].invoked_us > returned_us
        ]
        if later:
            places.append((index, request, min(later)))
    if not places:
        return None
    index, request, revision = rng.choice(places)
    return _with(run, index, answer=read_at(run.truth, request, revision))


@_mutation("time travel of writes", "writes-out-of-order", "read-from-the-future")
def _time_travel(rng: random.Random, run: Simulated) -> list[Operation] | None:
    puts = list(_answered(run, Put))
    operations = run.history.operations
    places = [
        (a, b)
        for a in puts
        for b in puts
        if (operations[a[0]].returned_us or 0) < operations[b[0]].invoked_us
    ]
    if not places:
        return None
    (first, _, one), (second, _, other) = rng.choice(places)
    changed = _with(run, first, answer=replace(one, revision=other.revision))
    changed[second] = replace(operations[second], answer=replace(other, revision=one.revision))
    return changed


@_mutation("two writes with one revision", "two-writes-one-revision")
def _shared_revision(rng: random.Random, run: Simulated) -> list[Operation] | None:
    puts = list(_answered(run, Put))
    if len(puts) < 2:
        return None
    one, other = rng.sample(puts, 2)
    return _with(run, one[0], answer=replace(one[2], revision=other[2].revision))


@_mutation("a write that nobody asked for", "unexplained", "value-from-nowhere")
def _forgotten_write(rng: random.Random, run: Simulated) -> list[Operation] | None:
    # As if the write had never been asked for: its revision has no maker.
    place = _pick(
        rng, [each for each in _answered(run, Put) if each[2].revision < run.final_revision]
    )
    if place is None:
        return None
    operations = list(run.history.operations)
    del operations[place[0]]
    return operations


# ---- content of reads ---------------------------------------------------------------------------


def _change_record(
    rng: random.Random, run: Simulated, change: Callable[[KeyRecord], KeyRecord]
) -> list[Operation] | None:
    place = _pick(rng, [each for each in _reads(run) if each[2].records])
    if place is None:
        return None
    index, _, answer = place
    records = list(answer.records)
    at = rng.randrange(len(records))
    records[at] = change(records[at])
    return _with(run, index, answer=replace(answer, records=tuple(records)))


@_mutation("wrong version", "wrong-version")
def _wrong_version(rng: random.Random, run: Simulated) -> list[Operation] | None:
    return _change_record(rng, run, lambda record: replace(record, version=record.version + 1))


@_mutation("wrong create revision", "wrong-create-revision")
def _wrong_create(rng: random.Random, run: Simulated) -> list[Operation] | None:
    return _change_record(
        rng, run, lambda record: replace(record, create_revision=record.create_revision - 1)
    )


@_mutation("wrong mod revision", "future-record", "stale-record", "unexplained")
def _wrong_mod(rng: random.Random, run: Simulated) -> list[Operation] | None:
    return _change_record(
        rng, run, lambda record: replace(record, mod_revision=record.mod_revision - 1)
    )


@_mutation("wrong lease", "wrong-lease")
def _wrong_lease(rng: random.Random, run: Simulated) -> list[Operation] | None:
    return _change_record(rng, run, lambda record: replace(record, lease=record.lease + 1))


@_mutation("value from nowhere", "value-from-nowhere")
def _no_value(rng: random.Random, run: Simulated) -> list[Operation] | None:
    return _change_record(rng, run, lambda record: replace(record, value=b"nobody's"))


@_mutation("value of an earlier write", "wrong-value")
def _old_value(rng: random.Random, run: Simulated) -> list[Operation] | None:
    def older(record: KeyRecord) -> KeyRecord:
        values = [
            event.record.value
            for event in run.truth
            if event.record.key == record.key
            and event.kind == "put"
            and event.record.mod_revision != record.mod_revision
        ]
        return replace(record, value=rng.choice(values)) if values else record

    changed = _change_record(rng, run, older)
    return None if changed == run.history.operations else changed


@_mutation("old records under a new revision", "stale", "missing", "unexpected", "wrong-count")
def _old_records(rng: random.Random, run: Simulated) -> list[Operation] | None:
    places = []
    for index, request, answer in _reads(run):
        old = read_at(run.truth, request, max(1, answer.revision - 3))
        if old.records != answer.records:
            places.append((index, replace(old, revision=answer.revision)))
    place = _pick(rng, places)
    return None if place is None else _with(run, place[0], answer=place[1])


@_mutation("two revisions mixed in one read", "stale", "missing", "unexpected", "future", "wrong")
def _torn_read(rng: random.Random, run: Simulated) -> list[Operation] | None:
    places = []
    for index, request, answer in _reads(run):
        if request.end is None or request.limit or len(answer.records) < 2:
            continue
        old = read_at(run.truth, request, max(1, answer.revision - 4)).records
        middle = answer.records[len(answer.records) // 2].key
        mixed = [record for record in answer.records if record.key < middle]
        mixed += [record for record in old if record.key >= middle]
        if tuple(mixed) != answer.records:
            torn = replace(answer, records=tuple(mixed), count=len(mixed))
            places.append((index, torn))
    place = _pick(rng, places)
    return None if place is None else _with(run, place[0], answer=place[1])


@_mutation("missing record", "missing-record")
def _missing_record(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, [each for each in _reads(run) if each[2].records and not each[1].limit])
    if place is None:
        return None
    index, _, answer = place
    records = list(answer.records)
    del records[rng.randrange(len(records))]
    wrong = replace(answer, records=tuple(records), count=len(records))
    return _with(run, index, answer=wrong)


@_mutation("deleted key shown", "unexpected-record")
def _ghost(rng: random.Random, run: Simulated) -> list[Operation] | None:
    places = []
    for index, request, answer in _reads(run):
        gone = [
            event.previous
            for event in run.truth
            if event.kind == "delete"
            and event.record.key == request.start
            and event.record.mod_revision <= answer.revision
        ]
        if request.end is None and not answer.records and gone:
            places.append((index, gone[-1]))
    place = _pick(rng, places)
    if place is None:
        return None
    index, record = place
    answer = run.history.operations[index].answer
    assert isinstance(answer, RangeAnswer)
    return _with(run, index, answer=replace(answer, records=(record,), count=1))


@_mutation("records out of order", "wrong-order")
def _unsorted(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, [each for each in _reads(run) if len(each[2].records) > 1])
    if place is None:
        return None
    index, _, answer = place
    return _with(run, index, answer=replace(answer, records=answer.records[::-1]))


@_mutation("wrong count", "wrong-count")
def _wrong_count(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, _reads(run))
    if place is None:
        return None
    index, _, answer = place
    return _with(run, index, answer=replace(answer, count=answer.count + 1))


@_mutation("wrong more", "wrong-more")
def _wrong_more(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, _reads(run))
    if place is None:
        return None
    index, _, answer = place
    return _with(run, index, answer=replace(answer, more=not answer.more))


@_mutation("wrong read of an old revision", "stale", "future", "missing", "unexpected")
def _wrong_old_read(rng: random.Random, run: Simulated) -> list[Operation] | None:
    places = []
    for index, request, answer in _answered(run, Range):
        if request.revision > 2:
            wrong = read_at(run.truth, request, request.revision - 2)
            if wrong.records != answer.records:
                places.append((index, replace(wrong, revision=answer.revision)))
    place = _pick(rng, places)
    return None if place is None else _with(run, place[0], answer=place[1])


# ---- answers of writes --------------------------------------------------------------------------


@_mutation("dirty delete count", "wrong-deleted-count")
def _dirty_count(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, [each for each in _answered(run, Delete) if each[2].deleted])
    if place is None:
        return None
    index, _, answer = place
    return _with(run, index, answer=replace(answer, deleted=answer.deleted + 1))


@_mutation("a delete that says it found nothing", "wrong-deleted", "unexplained")
def _blind_delete(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, [each for each in _answered(run, Delete) if each[2].deleted])
    if place is None:
        return None
    index, _, answer = place
    return _with(run, index, answer=DeleteAnswer(answer.revision - 1, 0))


@_mutation("wrong previous record of a put", "wrong-version-previous", "unexpected-previous")
def _wrong_previous(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, [each for each in _answered(run, Put) if each[2].previous])
    if place is None:
        return None
    index, _, answer = place
    wrong = replace(answer.previous, version=answer.previous.version + 1)
    return _with(run, index, answer=replace(answer, previous=wrong))


@_mutation("wrong previous record of a delete", "missing-previous")
def _missing_previous(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, [each for each in _answered(run, Delete) if each[2].previous])
    if place is None:
        return None
    index, _, answer = place
    return _with(run, index, answer=replace(answer, previous=answer.previous[1:]))


@_mutation("wrong branch of a transaction", "wrong-branch", "unexplained", "branch-not-taken")
def _wrong_branch(rng: random.Random, run: Simulated) -> list[Operation] | None:
    places = [
        each
        for each in _answered(run, Txn)
        if each[1].compares and not (each[1].failure if each[2].succeeded else each[1].success)
    ]
    place = _pick(rng, places)
    if place is None:
        return None
    index, _, answer = place
    flipped = TxnAnswer(answer.revision, not answer.succeeded, ())
    return _with(run, index, answer=flipped)


@_mutation("a read in a transaction that sees another state", "stale", "missing", "future")
def _wrong_txn_read(rng: random.Random, run: Simulated) -> list[Operation] | None:
    places = []
    for index, _, answer in _answered(run, Txn):
        for at, inside in enumerate(answer.answers):
            if isinstance(inside, RangeAnswer) and inside.records:
                places.append((index, answer, at, inside))
    place = _pick(rng, places)
    if place is None:
        return None
    index, answer, at, inside = place
    answers = list(answer.answers)
    answers[at] = replace(inside, records=inside.records[1:])
    return _with(run, index, answer=replace(answer, answers=tuple(answers)))


# ---- outcomes -----------------------------------------------------------------------------------


def _seen_puts(run: Simulated) -> list[tuple[int, Put, PutAnswer]]:
    seen = {(record.key, record.value) for _, _, answer in _reads(run) for record in answer.records}
    return [each for each in _answered(run, Put) if (each[1].key, each[1].value) in seen]


@_mutation("refused write seen", "refused-write-seen", "unexplained")
def _refused_seen(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, _seen_puts(run))
    if place is None:
        return None
    return _with(run, place[0], outcome=Outcome.REFUSED, answer=None, error="no space")


@_mutation("unknown write seen before it was asked for", "write-seen-too-early", "unexplained")
def _seen_early(rng: random.Random, run: Simulated) -> list[Operation] | None:
    place = _pick(rng, _seen_puts(run))
    if place is None:
        return None
    end_us = run.end_us + 1
    changes = {"outcome": Outcome.UNKNOWN, "answer": None, "returned_us": None}
    return _with(run, place[0], invoked_us=end_us, **changes)


# ---- faulty copies ------------------------------------------------------------------------------


class FaultyCopy(SingleCopy):
    """Does wrong now and then, from some time on."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.faults = 0
        """How often it was wrong."""

    def strikes(self, chance: float = 0.1) -> bool:
        """Whether to be wrong now."""
        wrong = self.machine.revision > 10 and self.rng.random() < chance
        self.faults += wrong
        return wrong


class LosesWrites(FaultyCopy):
    """Acknowledges a put that it never makes, and gives its revision to the next."""

    def apply(self, request: Request) -> Answer:
        if isinstance(request, Put) and not request.lease and self.strikes():
            return PutAnswer(self.machine.revision + 1)
        return super().apply(request)


class HalfApplies(FaultyCopy):
    """Of a transaction's writes makes all but the last, and acknowledges all."""

    def apply(self, request: Request) -> Answer:
        if isinstance(request, Txn):
            branch = request.success
            puts = [each for each in branch if isinstance(each, Put)]
            if not request.compares or len(puts) < 2 or branch[-1] is not puts[-1]:
                return super().apply(request)
            answer = super().apply(replace(request, success=branch[:-1]))
            assert isinstance(answer, TxnAnswer)
            if not answer.succeeded:
                return answer
            self.faults += 1
            return replace(answer, answers=(*answer.answers, PutAnswer(answer.revision)))
        return super().apply(request)


class AppliesTwice(FaultyCopy):
    """Makes a put again some time after it was acknowledged, as a blind retry does."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.again: list[Put] = []

    def apply(self, request: Request) -> Answer:
        if self.again and self.rng.random() < 0.3:
            super().apply(self.again.pop())
        answer = super().apply(request)
        if isinstance(request, Put) and not request.lease and self.strikes():
            self.again.append(request)
        return answer


class ReadsBehind(FaultyCopy):
    """Answers linearizable reads from a copy that lags."""

    def range(self, request: Range, newest: int = 0) -> RangeAnswer:
        machine = self.machine
        behind = machine.revision - 3
        if newest or request.revision or behind <= machine.compact_revision or not self.strikes():
            return super().range(request, newest)
        return super().range(request, behind)


class SplitBrain(FaultyCopy):
    """For a while some clients talk to a copy of their own."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.other: SingleCopy | None = None
        self.made: list[Request] = []

    def apply(self, request: Request) -> Answer:
        if self.other is None and self.strikes(0.05):
            self.other = SingleCopy()
            for each in self.made:
                self.other.apply(each)
        if self.other is not None and self.rng.random() < 0.5:
            return self.other.apply(request)
        answer = super().apply(request)
        if self.other is None and not isinstance(request, Range):
            self.made.append(request)
        return answer


class KeepsRevoked(FaultyCopy):
    """Ends a lease but leaves its keys."""

    def apply(self, request: Request) -> Answer:
        if isinstance(request, Revoke) and self.machine.lease_keys(request.lease):
            self.faults += 1
            return LeaseAnswer(request.lease, 0, self.machine.revision)
        return super().apply(request)


FAULTY_COPIES: Final[dict[str, Callable[[int], FaultyCopy]]] = {
    "lost acknowledged write": LosesWrites,
    "transaction half applied": HalfApplies,
    "write made twice": AppliesTwice,
    "reads from a copy that lags": ReadsBehind,
    "split brain": SplitBrain,
    "keys of a revoked lease remain": KeepsRevoked,
}
