"""What a checker found, told so that a person can follow it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.linearizability.history import (
    TO_THE_END,
    Compact,
    Compare,
    Delete,
    DeleteAnswer,
    Grant,
    KeepAlive,
    KeyRecord,
    Operation,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Request,
    Revoke,
    TxnAnswer,
    WatchEvent,
)

_SHOWN_BYTES_MAX: Final = 40
_SHOWN_RECORDS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Violation:
    """Something no single copy could have done.

    `rule`: its short name. `story`: the few operations around it, in order of time.
    """

    rule: str
    expected: str
    seen: str
    story: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.rule}", f"  expected: {self.expected}", f"  seen:     {self.seen}"]
        if self.story:
            lines += ["  what happened around it:", *(f"    {line}" for line in self.story)]
        return "\n".join(lines)


class HistoryRejected(AssertionError):
    """Raised by `Report.check`; the text is the whole report."""


@dataclass(frozen=True, slots=True)
class Cause:
    """What made a revision: an operation (its index in the history), or a lease that ran out."""

    operation: int | None
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on a history. It passes only if nothing is wrong and nothing was left undecided.

    `truth` and `causes` are the one history that explains everything: all events in order, and
    what made each revision. They are complete only if there is no violation. Where an unknown
    operation had to be guessed and several guesses fit, it is one of them.
    """

    violations: tuple[Violation, ...] = ()
    undecided: tuple[str, ...] = ()
    truth: tuple[WatchEvent, ...] = ()
    causes: dict[int, Cause] | None = None

    @property
    def ok(self) -> bool:
        """Whether the history was judged, wholly, to be one of a single copy."""
        return not self.violations and not self.undecided

    def check(self) -> Report:
        """Itself if it passes. Raises HistoryRejected."""
        if not self.ok:
            raise HistoryRejected(str(self))
        return self

    def __str__(self) -> str:
        if self.ok:
            return "linearizable"
        parts = [str(violation) for violation in self.violations]
        parts += [f"not decided: {reason}" for reason in self.undecided]
        return "\n\n".join(parts)


# ---- telling -------------------------------------------------------------------------------------


def tell_bytes(data: bytes) -> str:
    """A key or value, shortened."""
    text = data.decode("latin-1").encode("unicode_escape").decode("ascii")
    return text if len(text) <= _SHOWN_BYTES_MAX else text[:_SHOWN_BYTES_MAX] + "..."


def tell_interval(start: bytes, end: bytes | None) -> str:
    """What a range or a delete names."""
    if end is None:
        return tell_bytes(start)
    return f"[{tell_bytes(start)}, {'the end' if end == TO_THE_END else tell_bytes(end)})"


def tell_record(record: KeyRecord | None) -> str:
    """One record, or its absence."""
    if record is None:
        return "no key"
    lease = f" lease={record.lease}" if record.lease else ""
    return (
        f"{tell_bytes(record.key)}={tell_bytes(record.value)} (create={record.create_revision} "
        f"mod={record.mod_revision} version={record.version}{lease})"
    )


def tell_records(records: Sequence[KeyRecord]) -> str:
    """Several records, the first few of many."""
    told = ", ".join(tell_record(record) for record in records[:_SHOWN_RECORDS_MAX])
    rest = len(records) - _SHOWN_RECORDS_MAX
    return f"[{told}{f', and {rest} more' if rest > 0 else ''}]"


def _tell_compare(compare: Compare) -> str:
    value = tell_bytes(compare.value) if isinstance(compare.value, bytes) else compare.value
    return f"{compare.target}({tell_bytes(compare.key)}) {compare.operator} {value}"


def tell_request(request: Request) -> str:
    """What was asked."""
    if isinstance(request, Put):
        lease = f" lease={request.lease}" if request.lease else ""
        return f"put {tell_bytes(request.key)}={tell_bytes(request.value)}{lease}"
    if isinstance(request, Delete):
        return f"delete {tell_interval(request.start, request.end)}"
    if isinstance(request, Range):
        how = " serializable" if request.serializable else ""
        at = f" at revision {request.revision}" if request.revision else ""
        limit = f" limit={request.limit}" if request.limit else ""
        return f"read {tell_interval(request.start, request.end)}{how}{at}{limit}"
    if isinstance(request, Compact):
        return f"compact {request.revision}"
    if isinstance(request, Grant):
        return f"grant lease {request.lease} for {request.ttl_seconds} s"
    if isinstance(request, Revoke):
        return f"revoke lease {request.lease}"
    if isinstance(request, KeepAlive):
        return f"keep alive lease {request.lease}"
    compares = " and ".join(_tell_compare(compare) for compare in request.compares) or "always"
    success = "; ".join(tell_request(operation) for operation in request.success)
    failure = "; ".join(tell_request(operation) for operation in request.failure)
    return f"txn if {compares} then {{{success}}} else {{{failure}}}"


def tell_answer(answer: object) -> str:
    """What was answered."""
    if isinstance(answer, PutAnswer):
        before = f", before: {tell_record(answer.previous)}" if answer.previous else ""
        return f"revision {answer.revision}{before}"
    if isinstance(answer, DeleteAnswer):
        before = f", before: {tell_records(answer.previous)}" if answer.previous else ""
        return f"revision {answer.revision}, {answer.deleted} deleted{before}"
    if isinstance(answer, RangeAnswer):
        count = "" if answer.count < 0 else f", count {answer.count}"
        more = ", more" if answer.more else ""
        return f"revision {answer.revision}, {tell_records(answer.records)}{count}{more}"
    if isinstance(answer, TxnAnswer):
        inside = "; ".join(tell_answer(each) for each in answer.answers)
        how = "then" if answer.succeeded else "else"
        return f"revision {answer.revision}, {how} {{{inside}}}"
    return repr(answer)


def tell_operation(operation: Operation) -> str:
    """One line: who, when, what, and what came of it."""
    returned = operation.returned_us
    span = f"{operation.invoked_us}..{'never' if returned is None else returned} us"
    if operation.outcome is Outcome.OK:
        outcome = tell_answer(operation.answer)
    else:
        outcome = operation.outcome.value + (f" ({operation.error})" if operation.error else "")
    what = tell_request(operation.request)
    return f"client {operation.client} [{span}] {what} -> {outcome}"


def story(operations: Iterable[Operation]) -> tuple[str, ...]:
    """Operations as lines, in the order of their beginning."""
    ordered = sorted(operations, key=lambda operation: operation.invoked_us)
    return tuple(tell_operation(operation) for operation in ordered)
