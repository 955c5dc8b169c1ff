"""What leases promise: not a moment too early, not forever, and never back from the dead.

Times are judged by what clients can know. A lease must outlive its TTL counted from the invocation
of the last success of its holders, since the store can have acted no earlier than that; and it
must be gone, with its keys, a stated time after a TTL counted from the last return.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from tests.linearizability.answers import ran
from tests.linearizability.history import (
    KeepAlive,
    LeaseAnswer,
    Operation,
    Outcome,
    Put,
    Range,
    RangeAnswer,
    Request,
    Revoke,
    Txn,
)
from tests.linearizability.order import KnownBy
from tests.linearizability.report import Report, Violation, story
from tests.linearizability.tenures import NEVER_US, SECOND_US, Tenure, Tenures

_STORY_MAX: Final = 6


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """A lease ran out. `known_us`: the earliest time at which somebody knew its revision."""

    lease: int
    revision: int
    known_us: int


def lease_ends(operations: Sequence[Operation], report: Report) -> list[LeaseEnd]:
    """The leases with keys that ran out, by an accepted report of the witness check."""
    known_by = KnownBy(operations)
    return [
        LeaseEnd(cause.lease, revision, known_by.time_us(revision))
        for revision, cause in sorted((report.causes or {}).items())
        if cause.lease
    ]


def check_leases(
    operations: Sequence[Operation], ends: Iterable[LeaseEnd] = (), *, late_us: int = NEVER_US
) -> list[Violation]:
    """Judge all leases of a history.

    `ends`: as by `lease_ends`. `late_us`: how long after its TTL a lease may still be seen. Each
    change of leader may give it another TTL, so that is the caller's to say.
    """
    judge = _Judge(operations, late_us)
    found = [violation for end in ends for violation in judge.expired(end)]
    for operation in operations:
        if operation.outcome is Outcome.REFUSED:
            found += judge.refused(operation)
        elif operation.outcome is Outcome.OK:
            found += judge.succeeded(operation)
    found += judge.granted_twice()
    return found


class _Judge:
    def __init__(self, operations: Sequence[Operation], late_us: int) -> None:
        self.operations = operations
        self.late_us = late_us
        self.tenures = Tenures(operations)
        self.expired_us: dict[int, int] = {}
        """Lease -> when it was known to have run out."""

    # -- too early --------------------------------------------------------------------------------

    def expired(self, end: LeaseEnd) -> Iterator[Violation]:
        """It ran out, with its keys, at a revision."""
        self.expired_us.setdefault(end.lease, end.known_us)
        if not self.tenures.may_have_ended(end.lease, end.known_us):
            [tenure] = self.tenures.by_lease[end.lease][-1:]
            yield self._early(
                tenure, f"its keys were gone, by revision {end.revision}, ", end.known_us
            )

    def refused(self, operation: Operation) -> Iterator[Violation]:
        """A refused keep-alive tells that the lease was gone, unless the door was merely busy."""
        request, returned_us = operation.request, operation.returned_us
        if not isinstance(request, KeepAlive) or returned_us is None or not _tells_gone(operation):
            return
        tenures = self.tenures.by_lease.get(request.lease, [])
        sure = [tenure for tenure in tenures if tenure.grant.outcome is Outcome.OK]
        if len(tenures) == len(sure) == 1 and not sure[0].revokes:
            granted_us = sure[0].grant.returned_us or 0
            if granted_us < operation.invoked_us and returned_us < sure[0].until_us:
                yield self._early(sure[0], "a keep-alive was refused ", returned_us, operation)

    def _early(
        self, tenure: Tenure, what: str, known_us: int, operation: Operation | None = None
    ) -> Violation:
        told = [tenure.grant, *tenure.renewals[-3:], *([operation] if operation else [])]
        return Violation(
            "lease-expired-early",
            f"lease {tenure.lease} lives until {tenure.until_us} us at least",
            f"{what}at {known_us} us",
            story(told),
        )

    # -- too late ---------------------------------------------------------------------------------

    def succeeded(self, operation: Operation) -> Iterator[Violation]:
        """What a success says of the leases that it names or shows."""
        request, answer = operation.request, operation.answer
        if isinstance(request, KeepAlive) and isinstance(answer, LeaseAnswer):
            yield from self._alive(request.lease, operation)
            yield from self._check_ttl(request.lease, answer, operation)
        elif isinstance(request, Put | Txn):
            for each, _ in ran(request, answer):  # type: ignore[arg-type]
                if isinstance(each, Put) and each.lease:
                    yield from self._alive(each.lease, operation)
                    yield from self._check_granted(each.lease, operation)
        elif isinstance(answer, RangeAnswer) and _is_of_now(request):
            for lease in sorted({record.lease for record in answer.records} - {0}):
                yield from self._alive(lease, operation)

    def _alive(self, lease: int, operation: Operation) -> Iterator[Violation]:
        """An operation found the lease alive: can it be, at the time of its invocation?"""
        now_us = operation.invoked_us
        tenures = self.tenures.by_lease.get(lease, [])
        if len(tenures) != 1:
            return
        [tenure] = tenures
        for revoke in tenure.revokes:
            if revoke.outcome is Outcome.OK and (revoke.returned_us or 0) < now_us:
                yield Violation(
                    "revoked-lease-alive",
                    f"lease {lease} is gone since {revoke.returned_us} us",
                    f"it was alive after {now_us} us",
                    story([revoke, operation]),
                )
                return
        # Its own renewal does not excuse a lease that should have been gone before it.
        others = [each for each in tenure.renewals if each is not operation]
        last_us = Tenure(lease, tenure.ttl_us, tenure.grant, others).last_chance_us
        if now_us - last_us > self.late_us or self.expired_us.get(lease, NEVER_US) < now_us:
            yield Violation(
                "lease-never-expires",
                f"lease {lease} ran out by {min(last_us, self.expired_us.get(lease, NEVER_US))} us",
                f"it was alive after {now_us} us",
                story([tenure.grant, *others[-_STORY_MAX:], operation]),
            )

    # -- the rest ---------------------------------------------------------------------------------

    def _check_ttl(
        self, lease: int, answer: LeaseAnswer, operation: Operation
    ) -> Iterator[Violation]:
        for tenure in self.tenures.by_lease.get(lease, []):
            if tenure.ttl_us == answer.ttl_seconds * SECOND_US:
                return
        for tenure in self.tenures.by_lease.get(lease, [])[:1]:
            expected, seen = f"TTL {tenure.ttl_us // SECOND_US} s", f"{answer.ttl_seconds} s"
            yield Violation("wrong-ttl", expected, seen, story([tenure.grant, operation]))

    def _check_granted(self, lease: int, operation: Operation) -> Iterator[Violation]:
        returned_us = NEVER_US if operation.returned_us is None else operation.returned_us
        tenures = self.tenures.by_lease.get(lease, [])
        nameless = self.tenures.nameless_us
        begun_us = min([nameless, *(tenure.grant.invoked_us for tenure in tenures)])
        if begun_us > returned_us:
            yield Violation(
                "unknown-lease-accepted",
                f"a refusal, since nobody had granted lease {lease}",
                "a success",
                story([operation, *(tenure.grant for tenure in tenures)]),
            )

    def granted_twice(self) -> Iterator[Violation]:
        """One id granted again before its first life can have ended."""
        for lease, tenures in self.tenures.by_lease.items():
            sure = [tenure for tenure in tenures if tenure.grant.outcome is Outcome.OK]
            for first, second in pairwise(sure):
                revoked = any(
                    isinstance(each.request, Revoke) and each.request.lease == lease
                    for each in self.operations
                    if each.outcome is not Outcome.REFUSED
                )
                if not revoked and (second.grant.returned_us or 0) < first.until_us:
                    yield Violation(
                        "lease-granted-twice",
                        f"lease {lease} exists until {first.until_us} us at least",
                        "it was granted again",
                        story([first.grant, second.grant]),
                    )


def _is_of_now(request: Request) -> bool:
    return isinstance(request, Range) and not request.serializable and not request.revision


def _tells_gone(operation: Operation) -> bool:
    # As `lease_not_found`, or as "requested lease not found"; who may not renew it learns nothing.
    return "lease" in operation.error and "permission" not in operation.error
