"""The one call for a whole history: the witness check, then WGL on every key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from tests.linearizability.history import (
    TO_THE_END,
    KeyRecord,
    Operation,
    Outcome,
    Range,
    RangeAnswer,
    Revoke,
    WatchLog,
)
from tests.linearizability.order import seen_revision
from tests.linearizability.perkey import KeyOperation, LeaseEnd, split
from tests.linearizability.report import Report, Violation, story, tell_bytes
from tests.linearizability.wgl import Search, Verdict, follow, search
from tests.linearizability.witness import check_witness

_TOLD_MAX: Final = 6


def check_history(
    operations: Sequence[Operation],
    *,
    final: tuple[KeyRecord, ...] | None = None,
    final_revision: int = 0,
    watches: Iterable[WatchLog] = (),
) -> Report:
    """Judge a history in both ways; `Report.check` raises if it does not pass.

    The store was empty at the beginning. `final`: all records, read after everything had come to
    rest; `final_revision`: the revision of that read, which bounds what unknown operations did and
    should be given if it is known. `watches`: logs that tell more of them.
    """
    report = check_witness(operations, final=final, final_revision=final_revision, watches=watches)
    if report.violations:
        return report
    if final is not None:
        operations = [*operations, _last_read(operations, final, final_revision)]
    violations, undecided = list(report.violations), list(report.undecided)
    places = _Places(operations, report)
    for key, mine in split(operations).items():
        if follow(mine, [places.of(each) for each in mine]):
            continue
        found = search(mine)
        if found.verdict is Verdict.NOT_LINEARIZABLE:
            violations.append(_violation(operations, key, mine, found))
        elif found.verdict is Verdict.NOT_DECIDED:
            undecided.append(f"key {tell_bytes(key)}: the search by values took too many steps")
    return replace(report, violations=tuple(violations), undecided=tuple(undecided))


class _Places:
    """The order that the witness check found, as a proposal that WGL only has to verify."""

    def __init__(self, operations: Sequence[Operation], report: Report) -> None:
        self._places: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        for index, operation in enumerate(operations):
            revision = seen_revision(operation)
            if revision:
                self._places[index] = 2 * revision + 1
        for revision, cause in (report.causes or {}).items():
            if cause.operation is not None:
                self._places[cause.operation] = 2 * revision
                request = operations[cause.operation].request
                if isinstance(request, Revoke):
                    self._ends[request.lease] = 2 * revision
            else:
                self._ends[cause.lease] = 2 * revision

    def of(self, operation: KeyOperation) -> int | None:
        """Where an operation was placed; None: nowhere."""
        if isinstance(operation.kind, LeaseEnd):
            return self._ends.get(operation.kind.lease)
        return self._places.get(operation.index)


def _last_read(
    operations: Sequence[Operation], final: tuple[KeyRecord, ...], revision: int
) -> Operation:
    times = [each.returned_us or each.invoked_us for each in operations]
    end_us = max(times, default=0) + 1
    request = Range(b"", TO_THE_END)
    return Operation(-1, request, end_us, end_us, Outcome.OK, RangeAnswer(revision, final))


def _violation(
    operations: Sequence[Operation], key: bytes, mine: Sequence[KeyOperation], found: Search
) -> Violation:
    state = "no key" if found.state is None else tell_bytes(found.state)
    told = [operations[each.index] for each in _around(mine, found) if each.index >= 0]
    return Violation(
        "not-linearizable",
        f"an order in which the last of these operations on {tell_bytes(key)} can come next",
        f"no order: the longest reaches {len(found.order)} operations and the value {state}",
        story(told),
    )


def _around(mine: Sequence[KeyOperation], found: Search) -> Iterator[KeyOperation]:
    yield from found.order[-_TOLD_MAX:]
    if found.stuck is not None:
        done = set(map(id, found.order))
        for each in mine:
            beside = each.invoked_us <= found.stuck.returned_us and id(each) not in done
            if beside and each.required and each is not found.stuck:
                yield each
        yield found.stuck
