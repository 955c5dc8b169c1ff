"""The real state machine as one single copy: requests of a history in, answers out."""

from __future__ import annotations

from typing import Final

from raftkv.errors import Refused
from raftkv.machine import commands
from raftkv.machine.commands import CompareTarget, Relation
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
from raftkv.storage.memory_backend import MemoryBackend
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
    WatchEvent,
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


class SingleCopy:
    """One machine, to which each request is applied the moment it is given."""

    def __init__(self) -> None:
        self.machine = Machine(MemoryBackend())
        self.events: list[WatchEvent] = []
        """All that ever changed, in order."""
        self._records: dict[bytes, KeyRecord] = {}
        self._sequence = 0

    def apply(self, request: Request) -> Answer:
        """Carry out a request. Raises `raftkv.errors.Refused`; then nothing has happened."""
        if isinstance(request, Range):
            return self.range(request)
        return told(self._apply(command(request)))

    def range(self, request: Range, newest: int = 0) -> RangeAnswer:
        """A read; `newest`: as a member that has got no further than this revision."""
        end = _end(request.end)
        at = request.revision or newest
        found = self.machine.range(
            request.start, end, revision=at, limit=request.limit, want_count=True
        )
        revision = newest or self.machine.revision
        return RangeAnswer(revision, _records(found.records), found.count or 0, found.more)

    def expire(self, lease: int) -> None:
        """A lease has run out."""
        self._apply(commands.lease_expire([lease], 1))

    def final(self) -> tuple[KeyRecord, ...]:
        """All records."""
        return _records(self.machine.range(b"", b"").records)

    def _apply(self, packed: commands.Command) -> Result:
        self._sequence += 1
        batch = commands.stamp_batch(commands.encode_batch(1, 1, self._sequence, [packed]), 0)
        [applied] = self.machine.apply([(self._sequence, 1, batch)])
        for event in applied.events:
            record = _record(event.record)
            before = self._records.pop(record.key, None)
            if event.deleted:
                self.events.append(WatchEvent("delete", record, before))
            else:
                self._records[record.key] = record
                self.events.append(WatchEvent("put", record, before))
        [result] = applied.results
        if isinstance(result, Refused):
            raise result
        return result


def command(request: Request) -> commands.Command:
    """A request as the command of the log."""
    if isinstance(request, Put):
        previous = request.want_previous
        return commands.put(request.key, request.value, lease=request.lease, prev=previous)
    if isinstance(request, Delete):
        return commands.delete(request.start, _end(request.end), prev=request.want_previous)
    if isinstance(request, Txn):
        return commands.txn(*_txn(request))
    if isinstance(request, Compact):
        return commands.compact(request.revision)
    if isinstance(request, Grant):
        return commands.lease_grant(request.lease, request.ttl_seconds)
    if isinstance(request, Revoke):
        return commands.lease_revoke(request.lease)
    raise ValueError(f"{request} does not go through the log")


def told(result: Result) -> Answer:
    """A result of the machine as the answer of a history."""
    if isinstance(result, PutResult):
        before = None if result.previous is None else _record(result.previous)
        return PutAnswer(result.revision, before)
    if isinstance(result, DeleteResult):
        return DeleteAnswer(result.revision, result.deleted, _records(result.previous))
    if isinstance(result, RangeResult):
        count = -1 if result.count is None else result.count
        return RangeAnswer(result.revision, _records(result.records), count, result.more)
    if isinstance(result, TxnResult):
        inside = tuple(told(response) for response in result.responses)
        return TxnAnswer(result.revision, result.succeeded, inside)  # type: ignore[arg-type]
    if isinstance(result, CompactResult):
        return CompactAnswer(result.revision)
    if isinstance(result, LeaseResult):
        return LeaseAnswer(result.lease, result.ttl_seconds, result.revision)
    if isinstance(result, RevokeResult):
        return LeaseAnswer(result.lease, 0, result.revision)
    raise ValueError(f"no request of a history leads to {result}")


def _end(end: bytes | None) -> bytes | None:
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
        return commands.delete_op(request.start, _end(request.end), prev=request.want_previous)
    if isinstance(request, Range):
        end = _end(request.end)
        return commands.range_op(request.start, end, limit=request.limit, revision=request.revision)
    return commands.txn_op(*_txn(request))


def _record(record: Record) -> KeyRecord:
    if record.deleted:
        return KeyRecord(record.key, b"", 0, record.mod_revision, 0)
    return KeyRecord(
        record.key, record.value, record.create_revision, record.mod_revision, record.version,
        record.lease,
    )  # fmt: skip


def _records(records: list[Record]) -> tuple[KeyRecord, ...]:
    return tuple([_record(record) for record in records])
