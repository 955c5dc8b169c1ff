"""A part of a longer history as if the store had begun with it.

The checkers replay a history from an empty store at revision 1, and every revision must have a
maker. A batch of work has its own prefix of keys, which was empty before it; so its revisions are
counted from the one before the batch, and something is put in for what others wrote meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tests.linearizability.history import (
    Compact,
    CompactAnswer,
    Compare,
    DeleteAnswer,
    KeyRecord,
    LeaseAnswer,
    Operation,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Txn,
    TxnAnswer,
    WatchEvent,
    WatchLog,
    WatchResponse,
)

FIRST_REVISION = 1
"""Of an empty store."""
ALWAYS_US = (0, 1 << 61)
FOREIGN_KEY = b"\0foreign"


class Rebase:
    """Counts revisions from `first`, the store's revision before the batch."""

    def __init__(self, first: int) -> None:
        self._less = first - FIRST_REVISION

    def revision(self, revision: int) -> int:
        """0 stays 0: not told."""
        return revision - self._less if revision else 0

    def record(self, record: KeyRecord) -> KeyRecord:
        """A record, with its revisions."""
        return replace(
            record,
            create_revision=self.revision(record.create_revision),
            mod_revision=self.revision(record.mod_revision),
        )

    def operations(self, operations: Iterable[Operation]) -> list[Operation]:
        """Operations of the batch."""
        return [self._operation(operation) for operation in operations]

    def event(self, event: WatchEvent) -> WatchEvent:
        """An event, with the record before it."""
        previous = None if event.previous is None else self.record(event.previous)
        return replace(event, record=self.record(event.record), previous=previous)

    def log(self, log: WatchLog) -> WatchLog:
        """All that a watch was told."""
        return replace(
            log,
            start_revision=self.revision(log.start_revision),
            responses=[self._response(response) for response in log.responses],
        )

    def _response(self, response: WatchResponse) -> WatchResponse:
        return replace(
            response,
            revision=self.revision(response.revision),
            events=tuple(map(self.event, response.events)),
            compact_revision=self.revision(response.compact_revision),
        )

    def _operation(self, operation: Operation) -> Operation:
        request, answer = self._request(operation.request), operation.answer
        moved = None if answer is None else self._answer(answer)
        if isinstance(moved, RangeAnswer) and moved.revision < FIRST_REVISION:
            # A member that lags shows what was there before the batch: nothing.
            assert isinstance(request, Range) and request.serializable, operation
            assert not moved.records, f"records from before they were written: {operation}"
            moved = replace(moved, revision=FIRST_REVISION)
        told = getattr(moved, "revision", 0)
        assert told >= 0, f"an answer from before the batch: {operation}"
        return replace(operation, request=request, answer=moved)

    def _request(self, request: Any) -> Any:
        if isinstance(request, Range):
            return replace(request, revision=self.revision(request.revision))
        if isinstance(request, Compact):
            return Compact(self.revision(request.revision))
        if isinstance(request, Txn):
            return Txn(
                tuple(map(self._compare, request.compares)),
                tuple(map(self._request, request.success)),
                tuple(map(self._request, request.failure)),
            )
        return request

    def _compare(self, compare: Compare) -> Compare:
        if compare.target in ("create", "mod") and isinstance(compare.value, int):
            return replace(compare, value=self.revision(compare.value))
        return compare

    def _answer(self, answer: Any) -> Any:
        revision = self.revision(answer.revision)
        if isinstance(answer, PutAnswer):
            previous = None if answer.previous is None else self.record(answer.previous)
            return PutAnswer(revision, previous)
        if isinstance(answer, DeleteAnswer):
            return replace(
                answer, revision=revision, previous=tuple(map(self.record, answer.previous))
            )
        if isinstance(answer, RangeAnswer):
            return replace(
                answer, revision=revision, records=tuple(map(self.record, answer.records))
            )
        if isinstance(answer, TxnAnswer):
            return replace(
                answer, revision=revision, answers=tuple(map(self._answer, answer.answers))
            )
        assert isinstance(answer, LeaseAnswer | CompactAnswer)
        return replace(answer, revision=revision)


def foreign_writes(
    events: Mapping[int, tuple[WatchEvent, ...]], prefix: bytes, rebase: Rebase
) -> tuple[list[Operation], list[KeyRecord]]:
    """Stands for what was written outside of `prefix`: a put of one key for each such revision,
    by somebody who may have done it at any time; and what the checker finds of it at the end.
    """
    found: list[Operation] = []
    record: KeyRecord | None = None
    for revision, changes in events.items():
        inside = [event.record.key.startswith(prefix) for event in changes]
        if any(inside):
            assert all(inside), f"revision {revision} is of two batches: {changes}"
            continue
        at = rebase.revision(revision)
        value = b"%d" % at
        answer = PutAnswer(at)
        found.append(Operation(0, Put(FOREIGN_KEY, value), *ALWAYS_US, Outcome.OK, answer))
        if record is None:
            record = KeyRecord(FOREIGN_KEY, value, at, at, 1)
        else:
            record = replace(record, value=value, mod_revision=at, version=record.version + 1)
    return found, [record] if record is not None else []
