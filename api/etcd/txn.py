"""Transactions: TxnRequest to the machine's terms, the machine's result to TxnResponse."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from raftkv.api.etcd import answers
from raftkv.api.etcd.ranges import check_sort, interval, range_body
from raftkv.api.etcd.wire import field, number_field, records_field
from raftkv.checks import violated
from raftkv.limits import TXN_OPERATIONS_MAX
from raftkv.machine.commands import (
    Compare,
    CompareTarget,
    Op,
    Operation,
    compare,
    delete_op,
    put_op,
    range_op,
    txn_op,
)
from raftkv.machine.results import DeleteResult, PutResult, RangeResult, Result, TxnResult
from raftkv.machine.wire import SHORT

_RANGE: Final = int(Op.RANGE)
_TXN: Final = int(Op.TXN)
_OPERAND: Final = {
    CompareTarget.VERSION: "version",
    CompareTarget.CREATE: "create_revision",
    CompareTarget.MOD: "mod_revision",
    CompareTarget.VALUE: "value",
    CompareTarget.LEASE: "lease",
}


# ---- requests --------------------------------------------------------------------------------


class TxnParts(NamedTuple):
    """A request in the machine's terms."""

    compares: list[Compare]
    then: list[Operation]
    else_: list[Operation]


def txn_parts(request: Any) -> TxnParts:
    """Raises what is wrong with the request, in etcd's order: counts before keys."""
    return _parts(request, TXN_OPERATIONS_MAX)


def _parts(request: Any, room: int) -> TxnParts:
    # Slices, here and below: these containers have no iterator of their own, so a loop over one
    # ends with an IndexError that takes as long as three elements.
    compares, success, failure = request.compare, request.success, request.failure
    used = max(len(compares), len(success), len(failure))
    if used > room:
        raise answers.TOO_MANY_OPERATIONS.fault()
    room -= used
    return TxnParts(
        [_compare(each) for each in compares[:]],
        [_operation(each, room) for each in success[:]],
        [_operation(each, room) for each in failure[:]],
    )


def _compare(request: Any) -> Compare:
    start, end = interval(request.key, request.range_end)
    operand = getattr(request, _OPERAND.get(request.target, "version"))
    return compare(request.target, request.result, start, operand, end)


def _operation(request: Any, room: int) -> Operation:
    kind = request.WhichOneof("request")
    if kind == "request_put":
        body = request.request_put
        return put_op(
            body.key,
            body.value,
            lease=body.lease,
            prev=body.prev_kv,
            ignore_value=body.ignore_value,
            ignore_lease=body.ignore_lease,
        )
    if kind == "request_range":
        return _range(request.request_range)
    if kind == "request_delete_range":
        body = request.request_delete_range
        return delete_op(*interval(body.key, body.range_end), prev=body.prev_kv)
    if kind == "request_txn":
        return txn_op(*_parts(request.request_txn, room))
    raise answers.KEY_NOT_FOUND.fault()  # etcd's word for an operation that is none


def _range(body: Any) -> Operation:
    start, end = interval(body.key, body.range_end)
    check_sort(body)
    return range_op(
        start,
        end,
        limit=body.limit,
        revision=body.revision,
        sort_target=body.sort_target,
        sort_order=body.sort_order,
        keys_only=body.keys_only,
        count_only=body.count_only,
        min_mod=body.min_mod_revision,
        max_mod=body.max_mod_revision,
        min_create=body.min_create_revision,
        max_create=body.max_create_revision,
    )


def is_read_only(parts: TxnParts) -> bool:
    """Whether no branch can write."""
    return _only_reads(parts.then) and _only_reads(parts.else_)


def _only_reads(operations: list[Operation]) -> bool:
    for operation in operations:
        kind = operation[0]
        if kind == _TXN:
            if not (_only_reads(operation[2]) and _only_reads(operation[3])):
                return False
        elif kind != _RANGE:
            return False
    return True


def is_serializable(request: Any) -> bool:
    """Whether every operation is a read that is content with this member's copy."""
    return all(
        each.WhichOneof("request") == "request_range" and each.request_range.serializable
        for branch in (request.success, request.failure)
        for each in branch[:]
    )


# ---- answers ---------------------------------------------------------------------------------


class TxnEncoder:
    """Encodes one result. Operations' headers carry nothing but the revision that each one saw:
    that before the transaction, until something is written."""

    __slots__ = ("_after", "_seen")

    def __init__(self, result: TxnResult) -> None:
        self._after = result.revision
        self._seen = result.revision - (1 if _wrote(result) else 0)

    def body(self, result: TxnResult) -> bytes:
        """succeeded and responses of a TxnResponse."""
        parts = [b"\x10\x01" if result.succeeded else b""]
        for response in result.responses:
            if type(response) is PutResult and response.previous is None:
                self._seen = self._after
                parts.append(_plain_put(self._after))
            else:
                parts.append(field(3, self._response(response)))
        return b"".join(parts)

    def _response(self, response: Result) -> bytes:
        if isinstance(response, TxnResult):
            return field(4, b"\x0a\x00" + self.body(response))
        if _wrote(response):
            self._seen = self._after
        header = field(1, number_field(3, self._seen))
        if isinstance(response, PutResult):
            previous = response.previous
            return field(2, header if previous is None else header + field(2, previous.wire))
        if isinstance(response, DeleteResult):
            deleted = number_field(2, response.deleted)
            raws = [record.raw for record in response.previous]
            return field(3, header + deleted + records_field(raws, b"\x1a"))
        if isinstance(response, RangeResult):
            body = range_body(response.raws, response.more, response.count or 0)
            return field(1, header + body)
        violated("a transaction's operation has a known result", result=response)


def _plain_put(revision: int) -> bytes:
    """The whole response of a put that says nothing but its revision: at most 11 bytes of it."""
    header = number_field(3, revision)
    size = len(header)
    return b"".join(
        (b"\x1a", SHORT[size + 4], b"\x12", SHORT[size + 2], b"\x0a", SHORT[size], header)
    )


def _wrote(result: Result) -> bool:
    if isinstance(result, TxnResult):
        return any(_wrote(response) for response in result.responses)
    return isinstance(result, PutResult) or (
        isinstance(result, DeleteResult) and result.deleted > 0
    )
