"""The door of a simulated member: from recorded requests to commands, from results to answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftkv.errors import OutcomeUnknown, RaftkvError
from raftkv.machine import commands
from raftkv.machine.machine import Machine
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
from raftkv.server.store import Done, KeepAliveResult
from raftkv.simulation import SimMember
from tests.linearizability.history import (
    Answer,
    Compact,
    CompactAnswer,
    Compare,
    Delete,
    DeleteAnswer,
    Grant,
    KeepAlive,
    KeyRecord,
    LeaseAnswer,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Request,
    Revoke,
    Txn,
    TxnAnswer,
)

_TARGETS = {
    "version": commands.CompareTarget.VERSION,
    "create": commands.CompareTarget.CREATE,
    "mod": commands.CompareTarget.MOD,
    "value": commands.CompareTarget.VALUE,
    "lease": commands.CompareTarget.LEASE,
}
_RELATIONS = {
    "=": commands.Relation.EQUAL,
    ">": commands.Relation.GREATER,
    "<": commands.Relation.LESS,
    "!=": commands.Relation.NOT_EQUAL,
}


def ask(member: SimMember, request: Request, done: Done, once: bytes | None = None) -> None:
    """Send a request to a member; `done` gets the machine's result or an error."""
    if isinstance(request, Range):
        member.read(_query(request), done, serializable=request.serializable)
    elif isinstance(request, KeepAlive):
        member.keep_alive(request.lease, done)
    else:
        member.propose(_command(request, once), done)


def outcome(result: Any) -> tuple[Outcome, Answer | None, str]:
    """What a history keeps of a result."""
    if isinstance(result, OutcomeUnknown):
        return Outcome.UNKNOWN, None, str(result)
    if isinstance(result, RaftkvError):
        return Outcome.REFUSED, None, str(result)
    return Outcome.OK, _answer(result), ""


def key_record(record: Record) -> KeyRecord:
    """A record of the machine, as histories keep it."""
    if record.deleted:
        return KeyRecord(record.key, b"", 0, record.mod_revision, 0)
    return KeyRecord(
        record.key,
        record.value,
        record.create_revision,
        record.mod_revision,
        record.version,
        record.lease,
    )


def _end(end: bytes | None) -> bytes | None:
    return b"" if end == b"\0" else end


def _query(request: Range) -> Callable[[Machine], RangeResult]:
    return lambda machine: machine.range(
        request.start,
        _end(request.end),
        limit=request.limit,
        revision=request.revision,
        want_count=True,
    )


def _command(request: Request, once: bytes | None) -> commands.Command:
    match request:
        case Put(key, value, lease, want_previous):
            return commands.put(key, value, lease=lease, prev=want_previous, once=once)
        case Delete(start, end, want_previous):
            return commands.delete(start, _end(end), prev=want_previous, once=once)
        case Txn(compares, success, failure):
            return commands.txn(
                [_compare(one) for one in compares],
                [_operation(one) for one in success],
                [_operation(one) for one in failure],
                once=once,
            )
        case Compact(revision):
            return commands.compact(revision, once=once)
        case Grant(lease, ttl_seconds):
            return commands.lease_grant(lease, ttl_seconds, once=once)
        case Revoke(lease):
            return commands.lease_revoke(lease, once=once)
    raise AssertionError(f"no command for {request}")


def _operation(request: Put | Delete | Range | Txn) -> Any:
    match request:
        case Put(key, value, lease, want_previous):
            return commands.put_op(key, value, lease=lease, prev=want_previous)
        case Delete(start, end, want_previous):
            return commands.delete_op(start, _end(end), prev=want_previous)
        case Range(start, end, limit):
            return commands.range_op(start, _end(end), limit=limit)
        case Txn(compares, success, failure):
            return commands.txn_op(
                [_compare(one) for one in compares],
                [_operation(one) for one in success],
                [_operation(one) for one in failure],
            )


def _compare(compare: Compare) -> Any:
    return commands.compare(
        _TARGETS[compare.target], _RELATIONS[compare.operator], compare.key, compare.value
    )


def _answer(result: Result | KeepAliveResult) -> Answer:
    match result:
        case PutResult():
            previous = result.previous
            return PutAnswer(result.revision, key_record(previous) if previous else None)
        case DeleteResult():
            previous = tuple(key_record(record) for record in result.previous)
            return DeleteAnswer(result.revision, result.deleted, previous)
        case RangeResult():
            records = tuple(key_record(record) for record in result.records)
            count = -1 if result.count is None else result.count
            return RangeAnswer(result.revision, records, count, result.more)
        case TxnResult():
            answers: Any = tuple(_answer(response) for response in result.responses)
            return TxnAnswer(result.revision, result.succeeded, answers)
        case CompactResult():
            return CompactAnswer(result.revision)
        case LeaseResult():
            return LeaseAnswer(result.lease, result.ttl_seconds, result.revision)
        case RevokeResult():
            return LeaseAnswer(result.lease, 0, result.revision)
        case KeepAliveResult():
            return LeaseAnswer(result.lease, result.ttl_seconds)
    raise AssertionError(f"no answer for {result}")
