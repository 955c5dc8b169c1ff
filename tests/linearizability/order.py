"""Real time: revisions must grow as operations follow one another.

If one operation returned before another was invoked, then all that the first knew had happened
before the second began. So a write takes a revision above, and a linearizable read is made at a
revision not below, every revision that was known when it was invoked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from tests.linearizability.history import KeepAlive, Operation, Outcome, Range
from tests.linearizability.report import Violation, story

NEVER_US: Final = 1 << 62


def seen_revision(operation: Operation) -> int:
    """The greatest revision that an answer proves to exist; 0: it tells none."""
    if operation.outcome is not Outcome.OK or operation.answer is None:
        return 0
    return operation.answer.revision


def _is_ordered(operation: Operation) -> bool:
    """Whether the operation's own revision must respect real time."""
    request = operation.request
    if isinstance(request, Range):
        # A door may echo the old revision that was asked for in place of the store's.
        told = request.revision == 0 or seen_revision(operation) > request.revision
        return told and not request.serializable
    # A keep-alive is answered by the leader's clock, not through the log.
    return not isinstance(request, KeepAlive)


class KnownBy:
    """When each revision was first known to exist."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        known = sorted(
            (revision, operation.returned_us)
            for operation in operations
            if (revision := seen_revision(operation)) and operation.returned_us is not None
        )
        self._revisions = [revision for revision, _ in known]
        self._times = [returned for _, returned in known]
        for at in range(len(known) - 2, -1, -1):
            self._times[at] = min(self._times[at], self._times[at + 1])

    def time_us(self, revision: int) -> int:
        """The earliest return of an operation that proves the revision, or NEVER_US."""
        at = bisect_left(self._revisions, revision)
        return self._times[at] if at < len(self._times) else NEVER_US


def check_real_time(
    operations: Sequence[Operation], writers: dict[int, int]
) -> Iterator[Violation]:
    """Yield what goes back in time. `writers`: revision -> index of the operation that made it."""
    ends = sorted(
        (operation.returned_us, index)
        for index, operation in enumerate(operations)
        if operation.returned_us is not None and seen_revision(operation)
    )
    floor, holder, passed = 0, -1, 0
    begins = sorted(range(len(operations)), key=lambda index: operations[index].invoked_us)
    for index in begins:
        operation = operations[index]
        now_us = operation.invoked_us
        while passed < len(ends) and ends[passed][0] < now_us:
            revision = seen_revision(operations[ends[passed][1]])
            if revision > floor:
                floor, holder = revision, ends[passed][1]
            passed += 1
        mine = seen_revision(operation)
        if not mine or not _is_ordered(operation):
            continue
        known, by = floor, holder
        # At equal times only the client's own order is certain.
        at = passed
        while at < len(ends) and ends[at][0] == now_us:
            other = ends[at][1]
            if other < index and operations[other].client == operation.client:
                revision = seen_revision(operations[other])
                if revision > known:
                    known, by = revision, other
            at += 1
        if writers.get(mine) == index:
            if known >= mine:
                yield Violation(
                    "writes-out-of-order" if writers.get(known) == by else "read-from-the-future",
                    f"a revision above {known}, known before this write was invoked",
                    f"revision {mine}",
                    story((operations[by], operation)),
                )
        elif known > mine:
            yield Violation(
                "stale-read",
                f"a revision of at least {known}, known before this operation was invoked",
                f"revision {mine}",
                story((operations[by], operation)),
            )
