"""What can be wrong with a transaction whatever the state: too many operations, nested too deeply,
or one key written twice by operations that may run together.

A branch may not put a key twice, nor put a key that it also deletes; `then` and `else` of one
transaction exclude each other, so they may. A key therefore changes at most once a revision, and
the machine's tables rely on it. (etcd overlooks a put in one nested transaction under a delete in
a later one; here that is refused as well.)
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from raftkv import limits
from raftkv.errors import DuplicateKey, InvalidRequest

_PUT, _DELETE, _TXN = 1, 2, 4
_Interval = tuple[bytes, bytes | None]


def check_operations(txn: list[Any], operations_max: int) -> None:
    """`txn` is an operation made by `txn_op`. Raises InvalidRequest or DuplicateKey.

    Each of the three lists may have `operations_max` elements; a nested transaction may have what
    the longest of its parent's lists left over.
    """
    _check_size(txn, operations_max, 1)
    for branch in (txn[2], txn[3]):
        if len(branch) > 1 or (branch and branch[0][0] == _TXN):
            _check_branch(branch)


def _check_size(txn: list[Any], operations_max: int, depth: int) -> None:
    _, compares, then, else_ = txn
    used = max(len(compares), len(then), len(else_))
    if used > operations_max:
        raise InvalidRequest(
            "too many operations in txn request", reason="too_many_operations", max=operations_max
        )
    if depth > limits.TXN_NESTING_MAX:
        raise InvalidRequest(
            f"transactions nest at most {limits.TXN_NESTING_MAX} deep", reason="nesting"
        )
    for branch in (then, else_):
        for operation in branch:
            if operation[0] == _TXN:
                _check_size(operation, operations_max - used, depth + 1)


def _check_branch(operations: list[list[Any]]) -> tuple[set[bytes], list[_Interval]]:
    """The keys put and the intervals deleted by a branch, which is in order in itself."""
    if len(operations) == 1:
        return _footprint(operations[0])
    puts: list[tuple[bytes, int]] = []
    deletes: list[tuple[_Interval, int]] = []
    for number, operation in enumerate(operations):
        its_puts, its_deletes = _footprint(operation)
        puts.extend((key, number) for key in its_puts)
        deletes.extend((interval, number) for interval in its_deletes)
    puts.sort()
    for i in range(1, len(puts)):
        if puts[i][0] == puts[i - 1][0]:
            raise _duplicate(puts[i][0])
    if puts and deletes:
        _check_overlap(puts, deletes)
    return {key for key, _ in puts}, [interval for interval, _ in deletes]


def _footprint(operation: list[Any]) -> tuple[set[bytes], list[_Interval]]:
    kind = operation[0]
    if kind == _PUT:
        return {operation[1]}, []
    if kind == _DELETE:
        return set(), [(operation[1], operation[2])]
    if kind == _TXN:
        then_puts, then_deletes = _check_branch(operation[2])
        else_puts, else_deletes = _check_branch(operation[3])
        return then_puts | else_puts, then_deletes + else_deletes
    return set(), []


def _check_overlap(puts: list[tuple[bytes, int]], deletes: list[tuple[_Interval, int]]) -> None:
    keys = [key for key, _ in puts]
    # From each put, the next one that belongs to another operation of the branch.
    next_other = [len(puts)] * len(puts)
    for i in range(len(puts) - 2, -1, -1):
        next_other[i] = i + 1 if puts[i][1] != puts[i + 1][1] else next_other[i + 1]
    for (start, end), owner in deletes:
        first = bisect_left(keys, start)
        if end is None:
            last = first + (first < len(keys) and keys[first] == start)
        else:
            last = bisect_left(keys, end) if end else len(keys)
        if first < last and (puts[first][1] != owner or next_other[first] < last):
            raise _duplicate(keys[first])


def _duplicate(key: bytes) -> DuplicateKey:
    return DuplicateKey("duplicate key given in txn request", key=key)
