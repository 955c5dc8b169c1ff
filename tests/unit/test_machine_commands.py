"""What is refused before it reaches the log, and the batch that carries commands."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from raftkv import limits
from raftkv.errors import (
    CorruptionError,
    DuplicateKey,
    FormatError,
    InvalidRequest,
    InvariantViolation,
    TooLarge,
    TtlOutOfRange,
)
from raftkv.machine import commands as c

PUT = c.put_op(b"k", b"v")


def register(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "service": "web", "instance": "1", "address": "h", "port": 80, "ttl_seconds": 10,
        "lease": 7,
    } | changes  # fmt: skip
    return c.service_register(
        fields.pop("service"), fields.pop("instance"), fields.pop("address"), fields.pop("port"),
        **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: c.put(b"", b"v"), InvalidRequest),
        (lambda: c.put(b"k" * (limits.KEY_BYTES_MAX + 1), b""), TooLarge),
        (lambda: c.put(b"k", bytes(limits.VALUE_BYTES_MAX + 1)), TooLarge),
        (lambda: c.put(b"k", b"v", lease=-(2**63) - 1), InvalidRequest),
        (lambda: c.put(b"k", b"v", lease=2**63), InvalidRequest),
        (lambda: c.put(b"k", b"v", ignore_value=True), InvalidRequest),
        (lambda: c.put(b"k", b"", ignore_lease=True, lease=1), InvalidRequest),
        (lambda: c.put(b"k", b"", keyspace=8), InvalidRequest),
        (lambda: c.put(b"k", b"", keyspace=-1), InvalidRequest),
        (lambda: c.put(b"k", b"", once=b""), InvalidRequest),
        (lambda: c.put(b"k", b"", once=b"x" * 129), InvalidRequest),
        (lambda: c.delete(b""), InvalidRequest),
        (lambda: c.delete(b"k" * (limits.KEY_BYTES_MAX + 1)), TooLarge),
        (lambda: c.delete(b"k", b"k" * (limits.KEY_BYTES_MAX + 2)), TooLarge),
        (lambda: c.range_op(b"k", sort_target=5), InvalidRequest),
        (lambda: c.range_op(b"k", sort_order=3), InvalidRequest),
        (lambda: c.range_op(b"k", sort_order=-1), InvalidRequest),
        (lambda: c.range_op(b"k", revision=2**63), InvalidRequest),
        (lambda: c.compare(5, 0, b"k", 0), InvalidRequest),
        (lambda: c.compare(0, 4, b"k", 0), InvalidRequest),
        (lambda: c.compare(0, 0, b"", 0), InvalidRequest),
        (lambda: c.compare(0, 0, b"k", b"bytes"), InvalidRequest),
        (lambda: c.compare(3, 0, b"k", 1), InvalidRequest),
        (lambda: c.compare(0, 0, b"k", 2**63), InvalidRequest),
        (lambda: c.compare(3, 0, b"k", bytes(limits.VALUE_BYTES_MAX + 1)), TooLarge),
        (lambda: c.txn([], [c.put_op(b"%d" % i, b"") for i in range(1025)]), InvalidRequest),
        (lambda: c.txn([], [c.put_op(b"1", bytes(10**6)), c.put_op(b"2", bytes(10**6))]), TooLarge),
        (lambda: c.compact(2**63), InvalidRequest),
        (lambda: c.lease_grant(0, 10), InvalidRequest),
        (lambda: c.lease_grant(2**63, 10), InvalidRequest),
        (lambda: c.lease_grant(1, 0), TtlOutOfRange),
        (lambda: c.lease_grant(1, 9_000_000_001), TtlOutOfRange),
        (lambda: c.lease_revoke(2**63), InvalidRequest),
        (lambda: register(service=""), InvalidRequest),
        (lambda: register(service="a\0b"), InvalidRequest),
        (lambda: register(instance="x" * 256), TooLarge),
        (lambda: register(instance="\ud800"), InvalidRequest),
        (lambda: register(address=""), InvalidRequest),
        (lambda: register(port=65_536), InvalidRequest),
        (lambda: register(port=-1), InvalidRequest),
        (lambda: register(weight=-1), InvalidRequest),
        (lambda: register(ttl_seconds=0), TtlOutOfRange),
        (lambda: register(tags=["t"] * 65), TooLarge),
        (lambda: register(meta={str(i): "" for i in range(65)}), TooLarge),
        (lambda: register(meta={"\udcff": ""}), InvalidRequest),
        (lambda: register(meta={str(i): "x" * 2_000 for i in range(60)}), TooLarge),
        (lambda: register(lease=0), InvalidRequest),
        (lambda: register(owner="\ud800"), InvalidRequest),
        (lambda: c.service_deregister("", "1"), InvalidRequest),
        (lambda: c.service_drain("web", "", True), InvalidRequest),
        (lambda: c.member_update(1, name="n" * 1025), TooLarge),
        (lambda: c.alarm(0, 1, True), InvalidRequest),
        (lambda: c.alarm(3, 1, True), InvalidRequest),
    ],
)  # fmt: skip
def test_refused_at_the_door(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_the_largest_key_and_value_fit() -> None:
    command = c.put(bytes(limits.KEY_BYTES_MAX), bytes(limits.VALUE_BYTES_MAX))
    assert len(c.encode_batch(1, 2, 3, [command])) <= limits.BATCH_BYTES_MAX
    c.delete(bytes(limits.KEY_BYTES_MAX), bytes(limits.KEY_BYTES_MAX) + b"\0")


# ---- rules about transactions ------------------------------------------------------------------


def nested(*operations: c.Operation, else_: tuple[c.Operation, ...] = ()) -> c.Operation:
    return c.txn_op([], operations, else_)


P, D = c.put_op, c.delete_op


@pytest.mark.parametrize(
    ("operations", "taken"),
    [
        ([P(b"a", b""), P(b"b", b"")], True),
        ([P(b"a", b""), P(b"a", b"")], False),
        ([P(b"a", b""), D(b"a")], False),
        ([D(b"a"), P(b"a", b"")], False),
        ([D(b"a"), D(b"a"), D(b"", b"")], True),
        ([P(b"b", b""), D(b"a", b"b")], True),
        ([P(b"b", b""), D(b"a", b"b\0")], False),
        ([P(b"b", b""), D(b"b", b"c")], False),
        ([P(b"b", b""), D(b"b\0", b"")], True),
        ([P(b"b", b""), D(b"c", b"a")], True),
        ([P(b"b", b""), D(b"", b"")], False),
        ([P(b"a", b""), nested(P(b"a", b""))], False),
        ([nested(P(b"a", b"")), nested(P(b"a", b""))], False),
        ([nested(P(b"a", b""), else_=(P(b"a", b""),))], True),
        ([nested(P(b"a", b""), else_=(D(b"a"),))], True),
        ([nested(P(b"a", b""), else_=(P(b"a", b""),)), P(b"a", b"")], False),
        ([nested(P(b"a", b""), else_=(P(b"a", b""),)), P(b"b", b"")], True),
        ([nested(P(b"a", b""), else_=(D(b"a", b"c"),)), P(b"b", b"")], False),
        ([nested(P(b"a", b""), P(b"c", b""), else_=(D(b"", b""),)), P(b"d", b"")], False),
        ([nested(P(b"a", b""), P(b"c", b""), else_=(D(b"a", b"d"),)), P(b"d", b"")], True),
        # Overlooked by etcd: a put in one nested transaction, a delete in a later one.
        ([nested(P(b"a", b"")), nested(D(b"a"))], False),
        ([nested(D(b"a")), nested(P(b"a", b""))], False),
        ([nested(nested(P(b"a", b"")), D(b"a"))], False),
        ([c.range_op(b"a"), P(b"a", b""), c.range_op(b"a")], True),
    ],
)
def test_no_branch_writes_a_key_twice(operations: list[c.Operation], taken: bool) -> None:
    for branches in ((operations, []), ([], operations)):
        if taken:
            c.txn([], *branches)
        else:
            with pytest.raises(DuplicateKey):
                c.txn([], *branches)


def test_then_and_else_exclude_each_other() -> None:
    c.txn([], [P(b"a", b"1")], [P(b"a", b"2")])
    c.txn([], [P(b"a", b"1")], [D(b"a")])


def test_nested_operations_draw_on_what_is_left() -> None:
    gets = [c.range_op(b"k")] * 3
    c.txn([], gets, operations_max=3)
    with pytest.raises(InvalidRequest) as refused:
        c.txn([], gets, operations_max=2)
    assert refused.value.facts["reason"] == "too_many_operations"
    # One list of two leaves two of four to each nested transaction.
    c.txn([], [nested(*gets[:2]), gets[0]], operations_max=4)
    with pytest.raises(InvalidRequest):
        c.txn([], [nested(*gets), gets[0]], operations_max=4)
    with pytest.raises(InvalidRequest):
        c.txn([c.compare(0, 0, b"k", 0)] * 3, [nested(*gets[:2])], operations_max=4)
    with pytest.raises(InvalidRequest):
        c.txn([], [], [nested(else_=tuple(gets)), gets[0]], operations_max=4)


def test_nesting_is_bounded() -> None:
    operation = nested()
    for _ in range(limits.TXN_NESTING_MAX - 2):
        operation = nested(operation)
    c.txn([], [operation])
    with pytest.raises(InvalidRequest):
        c.txn([], [nested(operation)])


# ---- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 15, 16, 300, limits.BATCH_COMMANDS_MAX])
def test_a_batch_comes_back(count: int) -> None:
    commands = [c.put(b"%d" % i, b"v", once=b"o") for i in range(count)]
    data = c.encode_batch(2**64 - 1, 7, 300, commands)
    assert c.decode_batch(data).stamp_ms == 0
    batch = c.decode_batch(c.stamp_batch(data, 1_700_000_000_000))
    assert batch[:4] == (1_700_000_000_000, 2**64 - 1, 7, 300)
    assert batch.commands == [[1, b"o", 0, b"%d" % i, b"v", 0, 0] for i in range(count)]


def test_a_batch_is_bounded() -> None:
    with pytest.raises(InvariantViolation):
        c.encode_batch(1, 1, 1, [])
    with pytest.raises(InvariantViolation):
        c.encode_batch(1, 1, 1, [c.delete(b"k")] * (limits.BATCH_COMMANDS_MAX + 1))
    with pytest.raises(InvariantViolation):
        c.encode_batch(1, 1, 1, [c.put(b"k", bytes(10**6))] * 5)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb([1, 2, 3]),
        msgpack.packb([1, 2, 3, 4]),
        msgpack.packb([1, 2, 3, [4]]),
        msgpack.packb([1, 2, 3, [[]]]),
        msgpack.packb([1, 2, 3, [[1]]]),
        msgpack.packb([1, 2, 3, [["put", None]]]),
        msgpack.packb([1, 2, 3, [[1, "text"]]]),
        msgpack.packb(["one", 2, 3, [[1, None]]]),
        msgpack.packb([1, 2, 3, {"a": 1}]),
        c.encode_batch(1, 2, 3, [c.delete(b"k")])[8:] + b"\0",
        c.encode_batch(1, 2, 3, [c.delete(b"k")])[8:-1],
    ],
)
def test_bytes_that_are_no_batch(body: bytes) -> None:
    with pytest.raises(CorruptionError):
        c.decode_batch(bytes(8) + body)


def test_a_short_batch_is_no_batch() -> None:
    with pytest.raises(CorruptionError):
        c.decode_batch(b"short")


@pytest.mark.parametrize("number", [0, -1, max(c.Op) + 1, 200])
@pytest.mark.parametrize("guard", [False, True])
def test_a_command_of_a_newer_version_stops_the_member(number: int, guard: bool) -> None:
    command = [14, None, 1, None, [number, None]] if guard else [number, None]
    with pytest.raises(FormatError, match="number"):
        c.decode_batch(bytes(8) + msgpack.packb([1, 2, 3, [command]]))


def test_a_guard_holds_a_command_and_no_guard() -> None:
    inner = c.put(b"k", b"v", once=b"id")
    (found,) = c.decode_batch(c.encode_batch(1, 2, 3, [c.guarded(inner, 7, "u")])).commands
    assert found == [14, None, 7, "u", msgpack.unpackb(inner)]
    with pytest.raises(FormatError):
        c.decode_batch(c.encode_batch(1, 2, 3, [c.guarded(c.guarded(inner, 7), 7)]))
    with pytest.raises(CorruptionError):
        c.decode_batch(bytes(8) + msgpack.packb([1, 2, 3, [[14, None, 1, None, [1, "text"]]]]))
