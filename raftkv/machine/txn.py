"""Transactions: choose branches, check everything that can fail, then act.

All compares, those of nested transactions too, judge the state before the transaction; reads among
the operations see what the transaction wrote before them. Nothing can fail once the first
operation runs, so a refused transaction leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from raftkv.checks import check
from raftkv.errors import KeyNotFound, LeaseNotFound, NoSpace
from raftkv.machine.commands import (
    COUNT_ONLY,
    IGNORE_LEASE,
    IGNORE_VALUE,
    KEYS_ONLY,
    WANT_PREVIOUS,
    CompareTarget,
)
from raftkv.machine.draft import KEYSPACE, Draft, State
from raftkv.machine.mvcc import (
    Counted,
    RangeQuery,
    check_revision,
    live_row,
    live_rows,
    read_range,
    whole,
)
from raftkv.machine.quotas import Change, size_of
from raftkv.machine.records import CAUSE_REQUEST, DELETE, HEADER, U64, USER_KEYS, Record
from raftkv.machine.removal import collect, remove
from raftkv.machine.results import DeleteResult, PutResult, RangeResult, Result, TxnResult
from raftkv.machine.tables import CURRENT, LEASES, TableReader

if TYPE_CHECKING:
    from raftkv.machine.counts import LiveCounts

_PUT, _DELETE, _RANGE, _TXN = 1, 2, 3, 4
_FIELD: Final = {
    int(CompareTarget.VERSION): 6,
    int(CompareTarget.CREATE): 3,
    int(CompareTarget.MOD): 4,
    int(CompareTarget.LEASE): 7,
}
_VALUE: Final = int(CompareTarget.VALUE)


# ---- single operations, also used by the commands of the same names ----------------------------


def check_put(
    draft: Draft, keyspace: int, key: bytes, value: bytes, lease: int, flags: int
) -> None:
    """Raise what refuses a put: NoSpace, LeaseNotFound, KeyNotFound, in etcd's order; or
    QuotaExceeded."""
    if draft.no_space:
        raise NoSpace("the store is full: delete or compact; writes go on once there is space")
    _check_lease(draft, lease)
    _check_exists(draft, keyspace, key, flags)
    if draft.quotas is not None:
        _check_quotas(draft, keyspace, [(key, value, flags)])


def _check_lease(draft: Draft, lease: int) -> None:
    # An id that cannot have been granted is merely unknown.
    if lease and (lease < 0 or draft.get(LEASES, U64.pack(lease)) is None):
        raise LeaseNotFound("no such lease", lease=lease)


def _check_exists(draft: Draft, keyspace: int, key: bytes, flags: int) -> None:
    if flags & (IGNORE_VALUE | IGNORE_LEASE):
        old = draft.get(CURRENT, KEYSPACE[keyspace] + key)
        if old is None or old[0] == DELETE:
            raise KeyNotFound("key not found", key=key)


def _check_quotas(draft: Draft, keyspace: int, puts: list[tuple[bytes, bytes, int]]) -> None:
    if draft.quotas is None or keyspace != USER_KEYS:
        return
    changes = []
    for key, value, flags in puts:
        old = draft.get(CURRENT, KEYSPACE[keyspace] + key)
        old_size = 0 if old is None or old[0] == DELETE else size_of(old)
        size = old_size if flags & IGNORE_VALUE else len(key) + len(value)
        changes.append(Change(key, size, old_size))
    draft.quotas.check(draft.user, changes)


def do_put(
    draft: Draft, keyspace: int, key: bytes, value: bytes, lease: int, flags: int
) -> PutResult:
    """A put that passed `check_put`."""
    if flags & (IGNORE_VALUE | IGNORE_LEASE):
        row = draft.get(CURRENT, KEYSPACE[keyspace] + key)
        check(row is not None, "a put that keeps something was checked", key=key)
        old = Record(whole(draft.writer, row))  # type: ignore[arg-type]
        if flags & IGNORE_VALUE:
            value = old.value
        if flags & IGNORE_LEASE:
            lease = old.lease
    record, before = draft.put(keyspace, key, value, lease)
    previous = None
    if before is not None and flags & WANT_PREVIOUS:
        previous = Record(whole(draft.writer, before))
    return PutResult(draft.state.revision + 1, previous, record)


def do_delete(
    draft: Draft, keyspace: int, start: bytes, end: bytes | None, prev: bool
) -> DeleteResult:
    """Delete what is there."""
    doomed = collect(draft, live_rows(draft.writer, keyspace, start, end))
    rows, olds = [row for row, _ in doomed], [raw for _, raw in doomed]
    remove(draft, rows, olds, CAUSE_REQUEST)
    previous = [Record(whole(draft.writer, raw)) for raw in olds] if prev else []
    return DeleteResult(draft.seen_revision, len(rows), previous)


def _do_range(
    reader: TableReader,
    state: State,
    seen_revision: int,
    counted: Counted,
    keyspace: int,
    operation: list[Any],
) -> RangeResult:
    (_, start, end, limit, revision, sort_target, sort_order, flags,
     min_mod, max_mod, min_create, max_create) = operation  # fmt: skip
    query = RangeQuery(
        start, end, keyspace=keyspace, revision=revision, limit=limit, want_count=True,
        keys_only=bool(flags & KEYS_ONLY), count_only=bool(flags & COUNT_ONLY),
        sort_target=sort_target, sort_order=sort_order,
        min_mod=min_mod, max_mod=max_mod, min_create=min_create, max_create=max_create,
    )  # fmt: skip
    return read_range(reader, query, seen_revision, state.compact_revision, counted)


# ---- transactions ------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """A transaction whose branches are chosen; operations are lists, or plans in turn."""

    succeeded: bool
    operations: list[Any]


def apply_txn(draft: Draft, command: list[Any]) -> TxnResult:
    """The TXN command."""
    _, _, keyspace, compares, then, else_ = command
    if draft.no_space and (_has_put(then) or _has_put(else_)):
        raise NoSpace("the store is full: delete or compact; writes go on once there is space")
    plan = _choose(draft.writer, keyspace, compares, then, else_)
    _check_puts(draft, keyspace, plan)
    _check_ranges(draft.state, plan)
    if draft.quotas is not None:
        _check_quotas(draft, keyspace, list(_puts_of(plan)))
    result = _run(draft, keyspace, plan)
    result.revision = draft.end_command()
    return result


def read_txn(
    reader: TableReader,
    state: State,
    counts: LiveCounts,
    keyspace: int,
    compares: list[Any],
    *branches: list[Any],
) -> TxnResult:
    """What a transaction without writes would answer just now, read without a draft."""
    plan = _choose(reader, keyspace, compares, *branches)
    _check_ranges(state, plan)
    counted = Counted(state.keys, counts)
    return _run_reads(reader, state, counted, keyspace, plan)


def _has_put(operations: list[list[Any]]) -> bool:
    for operation in operations:
        kind = operation[0]
        if kind == _PUT:
            return True
        if kind == _TXN and (_has_put(operation[2]) or _has_put(operation[3])):
            return True
    return False


def _choose(
    reader: TableReader, keyspace: int, compares: list[Any], then: list[Any], else_: list[Any]
) -> _Plan:
    succeeded = True
    for compare in compares:
        if not _holds(reader, keyspace, compare):
            succeeded = False
            break
    operations = [
        _choose(reader, keyspace, *operation[1:]) if operation[0] == _TXN else operation
        for operation in (then if succeeded else else_)
    ]
    return _Plan(succeeded, operations)


def _holds(reader: TableReader, keyspace: int, compare: list[Any]) -> bool:
    target, relation, start, end, operand = compare
    if end is None:
        raw = live_row(reader, keyspace, start)
        if raw is not None:
            return _related(_compared(reader, raw, target), relation, operand)
    else:
        empty = True
        for _, each in live_rows(reader, keyspace, start, end):
            empty = False
            if not _related(_compared(reader, each, target), relation, operand):
                return False
        if not empty:
            return True
    return target != _VALUE and _related(0, relation, operand)


def _compared(reader: TableReader, raw: bytes, target: int) -> Any:
    if target == _VALUE:
        return Record(whole(reader, raw)).value
    return HEADER.unpack_from(raw)[_FIELD[target]]


def _related(actual: Any, relation: int, operand: Any) -> bool:
    if relation == 0:
        return bool(actual == operand)
    if relation == 1:
        return bool(actual > operand)
    if relation == 2:
        return bool(actual < operand)
    return bool(actual != operand)


def _check_puts(draft: Draft, keyspace: int, plan: _Plan) -> None:
    for operation in plan.operations:
        if isinstance(operation, _Plan):
            _check_puts(draft, keyspace, operation)
        elif operation[0] == _PUT:
            _, key, _, lease, flags = operation
            # The other way round than for a single put, as in etcd.
            _check_exists(draft, keyspace, key, flags)
            _check_lease(draft, lease)


def _puts_of(plan: _Plan) -> Iterator[tuple[bytes, bytes, int]]:
    for operation in plan.operations:
        if isinstance(operation, _Plan):
            yield from _puts_of(operation)
        elif operation[0] == _PUT:
            _, key, value, _, flags = operation
            yield key, value, flags


def _check_ranges(state: State, plan: _Plan) -> None:
    for operation in plan.operations:
        if isinstance(operation, _Plan):
            _check_ranges(state, operation)
        elif operation[0] == _RANGE and operation[4]:
            check_revision(operation[4], state.revision, state.compact_revision)


def _run(draft: Draft, keyspace: int, plan: _Plan) -> TxnResult:
    responses: list[Result] = []
    for operation in plan.operations:
        if isinstance(operation, _Plan):
            responses.append(_run(draft, keyspace, operation))
        elif operation[0] == _PUT:
            responses.append(do_put(draft, keyspace, *operation[1:]))
        elif operation[0] == _DELETE:
            responses.append(do_delete(draft, keyspace, *operation[1:]))
        else:
            counted = Counted(draft.state.keys, draft.counts, draft.came_and_went)
            seen = draft.seen_revision
            responses.append(
                _do_range(draft.writer, draft.state, seen, counted, keyspace, operation)
            )
    return TxnResult(draft.seen_revision, plan.succeeded, responses)


def _run_reads(
    reader: TableReader, state: State, counted: Counted, keyspace: int, plan: _Plan
) -> TxnResult:
    responses: list[Result] = []
    for operation in plan.operations:
        if isinstance(operation, _Plan):
            responses.append(_run_reads(reader, state, counted, keyspace, operation))
        else:
            check(operation[0] == _RANGE, "only reads are carried out without the log")
            responses.append(_do_range(reader, state, state.revision, counted, keyspace, operation))
    return TxnResult(state.revision, plan.succeeded, responses)
