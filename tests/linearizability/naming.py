"""From a bare contradiction to a violation with a name and a story."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def name(self, difference: Difference, revision: int, operation: Operation | None) -> Violation:
        """The violation that a difference is."""
        record = difference.record
        rule = difference.rule
        if record is not None and rule != UNEXPLAINED:
            rule = self.origin(record.key, record.value) or rule
        told = [] if operation is None else [operation]
        for each in self._around(difference.key, revision):
            if not any(each is other for other in told):
                told.append(each)
        where = f"{difference.expected} at revision {revision}"
        return Violation(rule, where, difference.seen, story(told))

    def unexplained(
        self, revision: int, shown: dict[bytes, KeyRecord | None], known_us: int
    ) -> Difference:
        """Why nothing can have made a revision. `known_us`: when it was first known to exist."""
        expected = "an operation or a lease that can have made it"
        for key, record in shown.items():
            if record is not None:
                rule = self.origin(key, record.value)
                unknown = self.writers(key, record.value)
                if rule is None and not unknown:
                    known = self.writers(key, record.value, Outcome.OK)
                    puts = any(isinstance(self._operations[i].request, Put) for i in known)
                    rule = "write-seen-twice" if puts else "branch-not-taken-seen"
                elif rule is None and self._began_us(unknown) > known_us:
                    rule = "write-seen-too-early"
                return Difference(rule or UNEXPLAINED, expected, tell_record(record), key, record)
        seen = "none fits with what was seen before and after"
        return Difference(UNEXPLAINED, expected, seen, next(iter(shown), None))

    def _began_us(self, indexes: Sequence[int]) -> int:
        return min(self._operations[index].invoked_us for index in indexes)

    def origin(self, key: bytes, value: bytes) -> str | None:
        """What is wrong with a value being there at all, by who asked for it."""
        if self.writers(key, value, Outcome.OK) or self.writers(key, value):
            return None
        refused = self.writers(key, value, Outcome.REFUSED)
        return "refused-write-seen" if refused else "value-from-nowhere"

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
