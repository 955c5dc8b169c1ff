"""Checkers against each other: `python -m tests.linearizability.crosscheck --seeds 1000`.

One key, few clients, answers that are sometimes wrong. Three judges share nothing but the history:
WGL, a plain search through all orders, and the witness check. The last needs revisions, so a
history of values is given those of an order: of the one that WGL found, and then the witness check
must accept; or, where there is none, of several that keep real time, and then it must refuse all.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tests.linearizability.check import check_history
from tests.linearizability.faults import MUTATIONS
from tests.linearizability.history import (
    Answer,
    Compare,
    Delete,
    DeleteAnswer,
    KeyRecord,
    Operation,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Txn,
    TxnAnswer,
)
from tests.linearizability.model import Model
from tests.linearizability.perkey import Keep, KeyOperation, State, split
from tests.linearizability.simulated import ONE_KEY, Profile, simulate
from tests.linearizability.wgl import Verdict, follow, search
from tests.linearizability.witness import check_witness

KEY: Final = b"k"
BRUTE_FORCE_MAX: Final = 7
ORDERS: Final = 6
SHORT: Final = replace(ONE_KEY, operations=80)
CORRUPT_STEPS_MAX: Final = 20_000


class Disagreement(AssertionError):
    """Two judges came to different verdicts."""


# ---- histories of values ------------------------------------------------------------------------


def value_history(seed: int) -> list[Operation]:
    """Operations on one key, answered by one copy, then some of the answers changed.

    Revisions in the answers mean nothing. No two times are equal.
    """
    rng = random.Random(seed)
    count = rng.randint(3, 12)
    times = rng.sample(range(10 * count), 2 * count)
    spans = sorted(tuple(sorted(times[2 * n : 2 * n + 2])) for n in range(count))
    # Short spans make real time tell; one client each, since they may overlap at will.
    spans = [(start, min(end, start + rng.choice([3, 8, 1000]))) for start, end in spans]
    model = Model()
    operations: list[Operation] = []
    for client, (start, end) in enumerate(spans):
        operation = _draw(rng, client, 4 * start, 4 * end + 1)
        operations.append(operation)
    for operation in sorted(operations, key=lambda each: rng.uniform(*_span(each))):
        if operation.outcome is Outcome.OK:
            operation.answer = model.run(operation.request)  # type: ignore[arg-type]
        elif rng.random() < 0.5:
            model.run(operation.request)  # type: ignore[arg-type]
    for _ in range(rng.choice([0, 1, 1, 2])):
        _spoil(rng, rng.choice(operations))
    return operations


def _span(operation: Operation) -> tuple[int, int]:
    return operation.invoked_us, operation.returned_us or operation.invoked_us + 40


def _draw(rng: random.Random, client: int, start: int, end: int) -> Operation:
    value = b"v%d" % rng.choice([client, client, client, rng.randrange(3)])
    other = b"v%d" % rng.randrange(6)
    cas = Compare(KEY, "value", rng.choice(["=", "=", "!="]), other)
    if rng.random() < 0.4:
        cas = Compare(KEY, "version", rng.choice(["=", ">"]), 0)
    put, read = Put(KEY, value, 0, rng.random() < 0.3), Range(KEY)
    txn = Txn((cas,), (Put(KEY, value),), (read,))
    requests: list[Put | Delete | Range | Txn] = [put, put, Delete(KEY), read, read, txn]
    request = rng.choice(requests)
    unknown = not isinstance(request, Range) and rng.random() < 0.25
    outcome = Outcome.UNKNOWN if unknown else Outcome.OK
    return Operation(client, request, start, None if unknown else end, outcome)


def _spoil(rng: random.Random, operation: Operation) -> None:
    answer = operation.answer
    if isinstance(answer, RangeAnswer):
        value = b"v%d" % rng.randrange(6)
        shown = (KeyRecord(KEY, value, 2, 2, 1),) if rng.random() < 0.7 else ()
        operation.answer = RangeAnswer(answer.revision, shown, len(shown))
    elif isinstance(answer, DeleteAnswer):
        operation.answer = replace(answer, deleted=1 - answer.deleted)
    elif isinstance(answer, TxnAnswer):
        shown = RangeAnswer(1, (), 0) if answer.succeeded else PutAnswer(1)  # type: ignore[assignment]
        operation.answer = TxnAnswer(1, not answer.succeeded, (shown,))  # type: ignore[arg-type]


# ---- a plain search -----------------------------------------------------------------------------


def brute_force(operations: Sequence[KeyOperation]) -> bool:
    """Whether there is a linearization, by trying every order."""

    def reach(left: frozenset[int], state: State) -> bool:
        due = [operations[n].returned_us for n in left if operations[n].required]
        if not due:
            return True
        for n in left:
            if operations[n].invoked_us <= min(due):
                for step in operations[n].steps:
                    after = step.apply(state)
                    if not isinstance(after, Keep) and reach(left - {n}, after):
                        return True
        return False

    return reach(frozenset(range(len(operations))), None)


# ---- revisions for an order ---------------------------------------------------------------------


def with_revisions(operations: Sequence[Operation], order: Sequence[int]) -> list[Operation]:
    """The history with the revisions that it would have if this were the order of effects.

    What the clients were told of values stays. Operations outside the order have not happened.
    """
    model = Model()
    revised = [replace(operation) for operation in operations]
    for index in order:
        operation = revised[index]
        expected = model.run(operation.request)  # type: ignore[arg-type]
        if operation.answer is not None:
            operation.answer = _revised(expected, operation.answer)
    return revised


def _revised(expected: Answer, told: Answer) -> Answer:
    if isinstance(expected, RangeAnswer) and isinstance(told, RangeAnswer):
        same = [each.value for each in expected.records] == [each.value for each in told.records]
        records = expected.records if same else told.records
        return RangeAnswer(expected.revision, records, len(records))
    if isinstance(expected, DeleteAnswer) and isinstance(told, DeleteAnswer):
        return replace(told, revision=expected.revision)
    if isinstance(expected, PutAnswer) and isinstance(told, PutAnswer):
        value = None if told.previous is None else told.previous.value
        wanted = None if expected.previous is None else expected.previous.value
        return expected if value == wanted else replace(told, revision=expected.revision)
    if isinstance(expected, TxnAnswer) and isinstance(told, TxnAnswer):
        if expected.succeeded != told.succeeded:
            return replace(told, revision=expected.revision)
        inside = tuple(map(_revised, expected.answers, told.answers))
        return TxnAnswer(expected.revision, expected.succeeded, inside)  # type: ignore[arg-type]
    raise ValueError(f"{told} does not answer as {expected} does")


def random_order(rng: random.Random, operations: Sequence[Operation]) -> list[int]:
    """An order of effects that keeps real time, with some of the unknown operations."""
    chosen = [
        index
        for index, operation in enumerate(operations)
        if operation.outcome is Outcome.OK or rng.random() < 0.5
    ]
    return sorted(chosen, key=lambda index: rng.uniform(*_span(operations[index])))


# ---- the checks ---------------------------------------------------------------------------------


def check_values(seed: int) -> Verdict:
    """One history of values, before all judges. Raises Disagreement."""
    operations = value_history(seed)
    mine = split(operations).get(KEY, [])
    found = search(mine)
    if len(mine) <= BRUTE_FORCE_MAX and brute_force(mine) != (
        found.verdict is Verdict.LINEARIZABLE
    ):
        raise Disagreement(f"seed {seed}: a search through all orders, and WGL: {found.verdict}")
    if found.verdict is Verdict.LINEARIZABLE:
        order = [each.index for each in found.order]
        report = check_witness(with_revisions(operations, order))
        if not report.ok:
            raise Disagreement(f"seed {seed}: the order of WGL, and the witness check:\n{report}")
        where = {id(each): place for place, each in enumerate(found.order)}
        if not follow(mine, [where.get(id(each)) for each in mine]):
            raise Disagreement(f"seed {seed}: the order of WGL is none")
    elif found.verdict is Verdict.NOT_LINEARIZABLE:
        rng = random.Random(seed)
        for _ in range(ORDERS):
            order = random_order(rng, operations)
            if check_witness(with_revisions(operations, order)).ok:
                raise Disagreement(f"seed {seed}: the witness check accepts order {order}")
    return found.verdict


@dataclass(frozen=True)
class Agreement:
    """What became of a corrupt history of one key."""

    witness: bool
    """The witness check found a violation."""
    wgl: Verdict


def check_corrupt(seed: int, profile: Profile = SHORT) -> Agreement | None:
    """A correct history with a random fault: what WGL refuses, the witness check refuses too.

    None: the run had no place for the fault. Raises Disagreement.
    """
    rng = random.Random(seed)
    run = simulate(seed, profile)
    name = rng.choice(list(MUTATIONS))
    operations = MUTATIONS[name][0](rng, run)
    if operations is None:
        return None
    report = check_witness(operations, final=run.final, final_revision=run.final_revision)
    verdicts = [search(mine, CORRUPT_STEPS_MAX).verdict for mine in split(operations).values()]
    wgl = max(verdicts, key=[*Verdict].index, default=Verdict.LINEARIZABLE)
    if Verdict.NOT_LINEARIZABLE in verdicts:
        wgl = Verdict.NOT_LINEARIZABLE
        if report.ok:
            raise Disagreement(f"seed {seed}: {name} is not linearizable, and the witness accepts")
    return Agreement(bool(report.violations), wgl)


def check_correct(seed: int, profile: Profile) -> bool:
    """A correct history: nobody finds a violation. Whether all was decided."""
    run = simulate(seed, profile)
    operations = run.history.operations
    report = check_history(operations, final=run.final, final_revision=run.final_revision)
    if report.violations:
        raise Disagreement(f"seed {seed}: a correct history was refused:\n{report}")
    return report.ok


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Hold the checkers against each other.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    profiles = (Profile(), ONE_KEY, Profile(unknown=0.2), Profile(clients=10, keys=20))
    tasks: dict[str, Callable[[int], object]] = {
        "values": check_values,
        "corrupt": check_corrupt,
        "correct": lambda seed: check_correct(seed, profiles[seed % len(profiles)]),
    }
    failed = 0
    for name, task in tasks.items():
        counts: dict[str, int] = {}
        for seed in seeds:
            try:
                outcome = str(task(seed))
            except Disagreement as disagreement:
                outcome = "DISAGREEMENT"
                failed += 1
                print(disagreement)
            counts[outcome] = counts.get(outcome, 0) + 1
        print(
            name, *(f"{outcome}: {count}" for outcome, count in sorted(counts.items())), sep="\n  "
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
