"""Requests of a history as commands of the log, and the machine's results as its answers."""

from __future__ import annotations

from typing import Final

from raftkv.machine import commands
from raftkv.machine.commands import CompareTarget, Relation
from raftkv.machine.records import Record
from raftkv.machine.results import (
    CompactResult,
    DeleteResult,
    LeaseResult,
    PutResult,
    RangeResult,
    Result,
    RevokeResult,
    TxnResult,
)
from raftkv.server.store import KeepAliveResult
from tests.linearizability.history import (
    TO_THE_END,
    Answer,
    Compact,
    CompactAnswer,
    Compare,
    Delete,
    DeleteAnswer,
    Grant,
    KeyRecord,
    LeaseAnswer,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Request,
    Revoke,
    Txn,
    TxnAnswer,
)

_TARGETS: Final = {
    "version": CompareTarget.VERSION,
    "create": CompareTarget.CREATE,
    "mod": CompareTarget.MOD,
    "value": CompareTarget.VALUE,
    "lease": CompareTarget.LEASE,
}
_RELATIONS: Final = {
    "=": Relation.EQUAL,
    "!=": Relation.NOT_EQUAL,
    "<": Relation.LESS,
    ">": Relation.GREATER,
}


def command(request: Request, once: bytes | None = None) -> commands.Command:
    """A request as the command of the log; `once`: its idempotency key."""
    if isinstance(request, Put):
        previous = request.want_previous
        return commands.put(
            request.key, request.value, lease=request.lease, prev=previous, once=once
        )
    if isinstance(request, Delete):
        return commands.delete(
            request.start, end_of(request.end), prev=request.want_previous, once=once
        )
    if isinstance(request, Txn):
        return commands.txn(*_txn(request), once=once)
    if isinstance(request, Compact):
        return commands.compact(request.revision, once=once)
    if isinstance(request, Grant):
        return commands.lease_grant(request.lease, request.ttl_seconds, once=once)
    if isinstance(request, Revoke):
        return commands.lease_revoke(request.lease, once=once)
    raise ValueError(f"{request} does not go through the log")


def told(result: Result | KeepAliveResult) -> Answer:
    """A result of the machine as the answer of a history."""
    if isinstance(result, PutResult):
        before = None if result.previous is None else key_record(result.previous)
        return PutAnswer(result.revision, before)
    if isinstance(result, DeleteResult):
        return DeleteAnswer(result.revision, result.deleted, key_records(result.previous))
    if isinstance(result, RangeResult):
        count = -1 if result.count is None else result.count
        return RangeAnswer(result.revision, key_records(result.records), count, result.more)
    if isinstance(result, TxnResult):
        inside = tuple(told(response) for response in result.responses)
        return TxnAnswer(result.revision, result.succeeded, inside)  # type: ignore[arg-type]
    if isinstance(result, CompactResult):
        return CompactAnswer(result.revision)
    if isinstance(result, LeaseResult):
        return LeaseAnswer(result.lease, result.ttl_seconds, result.revision)
    if isinstance(result, RevokeResult):
        return LeaseAnswer(result.lease, 0, result.revision)
    if isinstance(result, KeepAliveResult):
        return LeaseAnswer(result.lease, result.ttl_seconds)
    raise ValueError(f"no request of a history leads to {result}")


def end_of(end: bytes | None) -> bytes | None:
    """The end of an interval, as the machine takes it."""
    return b"" if end == TO_THE_END else end


def _txn(
    txn: Txn,
) -> tuple[list[commands.Compare], list[commands.Operation], list[commands.Operation]]:
    return (
        [_compare(each) for each in txn.compares],
        [_operation(each) for each in txn.success],
        [_operation(each) for each in txn.failure],
    )


def _compare(compare: Compare) -> commands.Compare:
    target, relation = _TARGETS[compare.target], _RELATIONS[compare.operator]
    return commands.compare(target, relation, compare.key, compare.value)


def _operation(request: Put | Delete | Range | Txn) -> commands.Operation:
    if isinstance(request, Put):
        previous = request.want_previous
        return commands.put_op(request.key, request.value, lease=request.lease, prev=previous)
    if isinstance(request, Delete):
        return commands.delete_op(request.start, end_of(request.end), prev=request.want_previous)
    if isinstance(request, Range):
        end = end_of(request.end)
        return commands.range_op(request.start, end, limit=request.limit, revision=request.revision)
    return commands.txn_op(*_txn(request))


def key_record(record: Record) -> KeyRecord:
    """A record of the machine, as histories keep it."""
    if record.deleted:
        return KeyRecord(record.key, b"", 0, record.mod_revision, 0)
    return KeyRecord(
        record.key, record.value, record.create_revision, record.mod_revision, record.version,
        record.lease,
    )  # fmt: skip


def key_records(records: list[Record]) -> tuple[KeyRecord, ...]:
    """Records of the machine, as histories keep them."""
    return tuple([key_record(record) for record in records])
