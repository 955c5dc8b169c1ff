"""From a bare contradiction to a violation with a name and a story."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from tests.linearizability.answers import Difference, operations_of
from tests.linearizability.history import (
    Delete,
    KeyRecord,
    Operation,
    Outcome,
    Put,
    Range,
    Request,
    Txn,
)
from tests.linearizability.model import holds_key
from tests.linearizability.report import Violation, story, tell_record

UNEXPLAINED: Final = "unexplained-revision"
_WRITES_TOLD_MAX: Final = 4
_UNKNOWN_TOLD_MAX: Final = 3


def touches(request: Request, key: bytes) -> bool:
    """Whether a request may write a key."""
    if not isinstance(request, Put | Delete | Txn):
        return False
    for each in operations_of(request):
        if isinstance(each, Put) and each.key == key:
            return True
        if isinstance(each, Delete) and holds_key(each.start, each.end, key):
            return True
    return False


def deletes(request: Request, key: bytes) -> bool:
    """Whether a request may delete a key."""
    return isinstance(request, Delete | Txn) and any(
        isinstance(each, Delete) and holds_key(each.start, each.end, key)
        for each in operations_of(request)
    )


class Namer:
    """Knows who asked for which value, and tells what went on around a contradiction."""

    def __init__(self, operations: Sequence[Operation], writes: dict[int, int]) -> None:
        self._operations = operations
        self._writes = writes
        self._by_value: dict[tuple[bytes, bytes], list[int]] | None = None

    def writers(self, key: bytes, value: bytes, outcome: Outcome = Outcome.UNKNOWN) -> list[int]:
        """The operations of an outcome that put this value, if they happened."""
        if self._by_value is None:
            self._by_value = {}
            for index, operation in enumerate(self._operations):
                for put in _puts(operation.request):
                    self._by_value.setdefault((put.key, put.value), []).append(index)
        found = self._by_value.get((key, value), [])
        return [index for index in found if self._operations[index].outcome is outcome]

    def name(
        self,
        difference: Difference,
        revision: int,
        operation: Operation | None,
        shown: dict[bytes, KeyRecord | None],
    ) -> Violation:
        """The violation. `shown`: what somebody saw the revision make."""
        if difference.rule == UNEXPLAINED:
            difference = self._unexplained(revision, shown)
        elif difference.record is not None:
            rule = self._rule_of_value(difference.record, difference.rule)
            difference = replace(difference, rule=rule)
        told = [] if operation is None else [operation]
        told += [each for each in self._around(difference.key, revision) if each not in told]
        where = f"{difference.expected} at revision {revision}"
        return Violation(difference.rule, where, difference.seen, story(told))

    def _unexplained(self, revision: int, shown: dict[bytes, KeyRecord | None]) -> Difference:
        expected = "an operation or a lease that can have made it"
        for key, record in shown.items():
            if record is not None:
                rule = self._rule_of_value(record, UNEXPLAINED)
                return Difference(rule, expected, tell_record(record), key, record)
        seen = "none fits with what was seen before and after"
        return Difference(UNEXPLAINED, expected, seen, next(iter(shown), None))

    def _rule_of_value(self, record: KeyRecord, rule: str) -> str:
        """A better name when who asked for the value says it all."""
        known = self.writers(record.key, record.value, Outcome.OK)
        unknown = self.writers(record.key, record.value)
        if not known and not unknown:
            if self.writers(record.key, record.value, Outcome.REFUSED):
                return "refused-write-seen"
            return "value-from-nowhere"
        return "write-seen-twice" if rule == UNEXPLAINED else rule

    def _around(self, key: bytes | None, revision: int) -> Iterator[Operation]:
        """The write of a revision, and those of the key around it."""
        if revision in self._writes:
            yield self._operations[self._writes[revision]]
        if key is None:
            return
        own = [
            r for r, index in self._writes.items() if touches(self._operations[index].request, key)
        ]
        own.sort(key=lambda r: abs(r - revision))
        for r in own[:_WRITES_TOLD_MAX]:
            yield self._operations[self._writes[r]]
        unknown = [
            each
            for each in self._operations
            if each.outcome is not Outcome.OK and touches(each.request, key)
        ]
        yield from unknown[-_UNKNOWN_TOLD_MAX:]


def _puts(request: Request) -> Iterator[Put]:
    if isinstance(request, Put):
        yield request
    elif isinstance(request, Txn):
        for each in operations_of(request):
            if isinstance(each, Put):
                yield each


def footprint(request: Request) -> Iterator[Put | Delete | Range]:
    """What decides the effect of a request on its keys: operations, and compares as reads."""
    if isinstance(request, Txn):
        for compare in request.compares:
            yield Range(compare.key)
        for each in (*request.success, *request.failure):
            yield from footprint(each)
    elif isinstance(request, Put | Delete | Range):
        yield request
