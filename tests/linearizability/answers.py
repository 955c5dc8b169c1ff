"""What an answer says: whether it changed anything, and where it differs from another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.linearizability.history import (
    Delete,
    DeleteAnswer,
    KeyRecord,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Txn,
    TxnAnswer,
)
from tests.linearizability.model import DataAnswer, DataRequest
from tests.linearizability.report import tell_record


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two answers part. `key` None: not in what is said of one key."""

    rule: str
    expected: str
    seen: str
    key: bytes | None = None
    record: KeyRecord | None = None
    """The record seen, if one was."""


def changed(request: DataRequest, answer: DataAnswer) -> bool:
    """Whether an answer tells of a change, which takes a revision."""
    if isinstance(answer, PutAnswer):
        return True
    if isinstance(answer, DeleteAnswer):
        return answer.deleted > 0
    if isinstance(answer, TxnAnswer) and isinstance(request, Txn):
        branch = request.success if answer.succeeded else request.failure
        return any(changed(*step) for step in zip(branch, answer.answers, strict=False))
    return False


def ran(request: DataRequest, answer: DataAnswer) -> Iterator[tuple[DataRequest, DataAnswer]]:
    """The single operations that ran, with their answers: itself, or those of the branches."""
    if isinstance(request, Txn) and isinstance(answer, TxnAnswer):
        branch = request.success if answer.succeeded else request.failure
        for step in zip(branch, answer.answers, strict=False):
            yield from ran(*step)
    else:
        yield request, answer


def operations_of(request: DataRequest) -> Iterator[Put | Delete | Range]:
    """The single operations that a request may run, in whatever branch."""
    if isinstance(request, Txn):
        for each in (*request.success, *request.failure):
            yield from operations_of(each)
    else:
        yield request


def differ(expected: DataAnswer, seen: DataAnswer) -> Difference | None:
    """The first difference, or None. Revisions and counts that were not told do not count."""
    if expected == seen:
        return None
    if isinstance(expected, RangeAnswer) and isinstance(seen, RangeAnswer):
        return differ_range(expected, seen) or _differ_revision(expected, seen)
    if isinstance(expected, PutAnswer) and isinstance(seen, PutAnswer):
        return _differ_revision(expected, seen) or _differ_records(
            _listed(expected.previous), _listed(seen.previous), "previous"
        )
    if isinstance(expected, DeleteAnswer) and isinstance(seen, DeleteAnswer):
        if expected.deleted != seen.deleted:
            return Difference("wrong-deleted-count", str(expected.deleted), str(seen.deleted))
        return _differ_revision(expected, seen) or _differ_records(
            expected.previous, seen.previous, "previous"
        )
    if isinstance(expected, TxnAnswer) and isinstance(seen, TxnAnswer):
        return _differ_txn(expected, seen)
    return Difference("wrong-kind-of-answer", type(expected).__name__, type(seen).__name__)


def differ_range(expected: RangeAnswer, seen: RangeAnswer) -> Difference | None:
    """As `differ`, whatever the revisions of the answers."""
    difference = _differ_records(expected.records, seen.records, "record")
    if difference is not None:
        return difference
    if seen.count not in (-1, expected.count):
        return Difference("wrong-count", f"count {expected.count}", f"count {seen.count}")
    if seen.more != expected.more:
        return Difference("wrong-more", f"more {expected.more}", f"more {seen.more}")
    return None


def _differ_txn(expected: TxnAnswer, seen: TxnAnswer) -> Difference | None:
    if expected.succeeded != seen.succeeded:
        return Difference(
            "wrong-branch", f"succeeded {expected.succeeded}", f"succeeded {seen.succeeded}"
        )
    if len(expected.answers) != len(seen.answers):
        return Difference(
            "wrong-number-of-answers", str(len(expected.answers)), str(len(seen.answers))
        )
    for pair in zip(expected.answers, seen.answers, strict=True):
        difference = differ(*pair)
        if difference is not None:
            return difference
    return _differ_revision(expected, seen)


def _differ_revision(expected: DataAnswer, seen: DataAnswer) -> Difference | None:
    if seen.revision in (0, expected.revision):
        return None
    return Difference(
        "wrong-revision", f"revision {expected.revision}", f"revision {seen.revision}"
    )


def _listed(record: KeyRecord | None) -> tuple[KeyRecord, ...]:
    return () if record is None else (record,)


def _differ_records(
    expected: Sequence[KeyRecord], seen: Sequence[KeyRecord], what: str
) -> Difference | None:
    if expected == seen:
        return None
    wanted = {record.key: record for record in expected}
    got = {record.key: record for record in seen}
    for key in sorted(wanted.keys() | got.keys()):
        if wanted.get(key) != got.get(key):
            return differ_record(key, wanted.get(key), got.get(key), what)
    return Difference(
        "wrong-order",
        f"keys {[record.key for record in expected]}",
        f"keys {[record.key for record in seen]}",
    )


def differ_record(
    key: bytes, expected: KeyRecord | None, seen: KeyRecord | None, what: str = "record"
) -> Difference | None:
    """How what is said of one key differs, by the kind of fault that it suggests."""
    if expected == seen:
        return None
    if seen is None:
        fault = "missing"
    elif expected is None:
        fault = "unexpected"
    elif seen.mod_revision < expected.mod_revision:
        fault = "stale"
    elif seen.mod_revision > expected.mod_revision:
        fault = "future"
    elif seen.value != expected.value:
        fault = "wrong-value"
    elif seen.create_revision != expected.create_revision:
        fault = "wrong-create-revision"
    elif seen.version != expected.version:
        fault = "wrong-version"
    else:
        fault = "wrong-lease"
    return Difference(f"{fault}-{what}", tell_record(expected), tell_record(seen), key, seen)
