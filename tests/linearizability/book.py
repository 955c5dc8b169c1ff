"""A history sorted by revision: who certainly made each, who saw it, and who may fill the gaps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from tests.linearizability.answers import changed
from tests.linearizability.history import (
    Delete,
    Grant,
    KeyRecord,
    Operation,
    Outcome,
    Put,
    Range,
    Revoke,
    Txn,
)
from tests.linearizability.order import seen_revision
from tests.linearizability.report import Violation, story


class Book:
    """The history sorted by revision."""

    def __init__(
        self,
        operations: Sequence[Operation],
        final: Sequence[KeyRecord] | None,
        final_revision: int,
    ) -> None:
        self.operations = operations
        self.final = final
        self.writes: dict[int, int] = {}
        """Revision -> the operation that certainly made it."""
        self.reads: dict[int, list[int]] = {}
        """Revision -> operations that saw the store at it and changed nothing."""
        self.revokes: dict[int, list[int]] = {}
        """Revision -> revokes answered at it: they made it, or their lease had no keys."""
        self.open: list[int] = []
        """Operations that may have made a revision nobody told, in order of their beginning."""
        self.grants = 0
        self.spare = 0
        """How many more revisions there may have been than anything tells of."""
        self.violations: list[Violation] = []
        self.last = final_revision
        for index, operation in enumerate(operations):
            self._enter(index, operation)
        if final is not None:
            self.last = max([self.last, *(record.mod_revision for record in final)])
        self.open.sort(key=lambda index: operations[index].invoked_us)
        if not self.violations:
            self._check_gaps()

    def _enter(self, index: int, operation: Operation) -> None:
        request = operation.request
        if operation.outcome is not Outcome.OK:
            if operation.outcome is Outcome.UNKNOWN:
                if isinstance(request, Put | Delete | Txn | Revoke):
                    self.open.append(index)
                self.grants += isinstance(request, Grant)
            return
        answer = operation.answer
        revision = seen_revision(operation)
        self.last = max(self.last, revision)
        if isinstance(request, Put | Delete | Txn | Range) and revision < 1:
            raise ValueError(f"operation {index} was recorded without its revision")
        if isinstance(request, Range):
            self.reads.setdefault(request.revision or revision, []).append(index)
            if request.revision > revision:
                self._read_ahead(operation)
        elif isinstance(request, Put | Delete | Txn):
            if not changed(request, answer):  # type: ignore[arg-type]
                self.reads.setdefault(revision, []).append(index)
            elif revision in self.writes or revision < 2:
                self._claimed_twice(index, revision)
            else:
                self.writes[revision] = index
        elif isinstance(request, Revoke):
            if revision:
                self.revokes.setdefault(revision, []).append(index)
            else:
                self.open.append(index)
        self.grants += isinstance(request, Grant)

    def _read_ahead(self, operation: Operation) -> None:
        expected = "a refusal: the revision did not exist yet"
        told = story([operation])
        self.violations.append(Violation("read-of-a-future-revision", expected, "an answer", told))

    def _claimed_twice(self, index: int, revision: int) -> None:
        both = [self.operations[index]]
        if revision in self.writes:
            both.append(self.operations[self.writes[revision]])
        seen = f"{len(both)} writes answered with revision {revision}"
        self.violations.append(
            Violation("two-writes-one-revision", "one write for each revision", seen, story(both))
        )

    def _check_gaps(self) -> None:
        gaps = self.last - 1 - len(self.writes)
        makers = len(self.open) + self.grants + sum(len(each) for each in self.revokes.values())
        self.spare = makers - gaps
        if self.spare < 0:
            missing = (r for r in range(2, self.last + 1) if r not in self.writes)
            told = ", ".join(str(revision) for revision in islice(missing, 20))
            self.violations.append(
                Violation(
                    "unexplained-revisions",
                    f"at most {makers} revisions by unknown operations and leases",
                    f"{gaps} that no answered write made: {told}",
                )
            )
