"""Idempotency keys: once, and the same answer ever after."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv import limits
from raftkv.errors import (
    IdempotencyMismatch,
    InstanceClaimed,
    KeyNotFound,
    LeaseExists,
    NoSpace,
    Refused,
)
from raftkv.machine import commands as c
from raftkv.machine import once
from raftkv.machine.cluster import MemberInfo
from raftkv.machine.machine import Machine
from raftkv.machine.records import Record
from raftkv.machine.results import MemberResult, TxnResult
from raftkv.machine.tables import Table
from tests.unit.machine_support import Driver

P, D, R = c.put_op, c.delete_op, c.range_op


def service(lease: int, **more: Any) -> bytes:
    return c.service_register("web", "1", "h", 80, ttl_seconds=9, lease=lease, **more)


COMMANDS: list[Any] = [
    lambda o: c.put(b"k", b"new", prev=True, once=o),
    lambda o: c.delete(b"k", prev=True, once=o),
    lambda o: c.txn(
        [c.compare(0, 1, b"k", 0)],
        [P(b"x", b"1"), R(b"", b""), D(b"k", prev=True), c.txn_op([], [R(b"k")])],
        once=o,
    ),
    lambda o: c.compact(2, once=o),
    lambda o: c.lease_grant(5, 10, once=o),
    lambda o: c.lease_revoke(1, once=o),
    lambda o: service(9, once=o),
    lambda o: c.service_drain("old", "1", True, once=o),
    lambda o: c.service_deregister("old", "1", once=o),
    lambda o: c.alarm(1, 5, True, once=o),
    lambda o: c.put(b"missing", b"", ignore_value=True, once=o),
    lambda o: c.service_register("old", "1", "else", 1, ttl_seconds=9, lease=8, once=o),
]


def prepared() -> Driver:
    driver = Driver()
    driver.ok(c.put(b"k", b"old"))
    driver.ok(c.lease_grant(1, 10))
    driver.ok(c.put(b"leased", b"v", lease=1))
    driver.ok(c.service_register("old", "1", "h", 80, ttl_seconds=9, lease=2))
    return driver


@pytest.mark.parametrize("make", COMMANDS)
def test_a_repeat_answers_the_first_outcome_and_changes_nothing(make: Any) -> None:
    driver, plain = prepared(), prepared()
    first = driver.do(make(b"id"))
    alone = plain.do(make(None))
    if isinstance(first, Refused):
        assert (type(alone), alone.message, alone.facts) == (
            type(first),
            first.message,
            first.facts,
        )
    else:
        assert first == alone
    driver.ok(c.put(b"other", b"v")) if not driver.machine.alarms else None
    revision = driver.machine.revision
    driver.machine = Machine(driver.tables)
    again = driver.do(make(b"id"))
    assert driver.machine.revision == revision
    assert driver.applied is not None
    assert (driver.applied.events, driver.applied.leases) == ([], [])
    if isinstance(first, Refused):
        assert (type(again), again.message, again.facts) == (
            type(first),
            first.message,
            first.facts,
        )
    else:
        assert again == first


def test_refusals_are_kept_too() -> None:
    driver = prepared()
    refused = driver.do(c.put(b"late", b"", ignore_value=True, once=b"id"))
    assert isinstance(refused, KeyNotFound)
    driver.ok(c.put(b"late", b"now there"))
    assert isinstance(driver.do(c.put(b"late", b"", ignore_value=True, once=b"id")), KeyNotFound)
    claimed = driver.do(
        c.service_register("old", "1", "else", 1, ttl_seconds=9, lease=8, once=b"claim")
    )
    assert isinstance(claimed, InstanceClaimed)


def test_another_request_under_the_same_key() -> None:
    driver = Driver()
    driver.ok(c.put(b"k", b"1", once=b"id"))
    for other in (
        c.put(b"k", b"2", once=b"id"),
        c.put(b"k", b"1", prev=True, once=b"id"),
        c.delete(b"k", once=b"id"),
        c.put(b"k", b"1", keyspace=2, once=b"id"),
    ):
        assert isinstance(driver.do(other), IdempotencyMismatch)
    assert driver.machine.revision == 2
    # The mismatch has not disturbed what is kept.
    assert driver.ok(c.put(b"k", b"1", once=b"id")).revision == 2


def test_what_the_door_drew_by_lot_does_not_count() -> None:
    driver = Driver()
    assert driver.ok(c.lease_grant(11, 10, chosen=True, once=b"id")).lease == 11
    assert driver.ok(c.lease_grant(12, 10, chosen=True, once=b"id")).lease == 11
    assert isinstance(
        driver.do(c.lease_grant(12, 11, chosen=True, once=b"id")), IdempotencyMismatch
    )
    assert driver.ok(c.lease_grant(13, 10, once=b"by name")).lease == 13
    assert isinstance(driver.do(c.lease_grant(14, 10, once=b"by name")), IdempotencyMismatch)
    assert isinstance(driver.do(c.lease_grant(13, 10)), LeaseExists)
    assert driver.ok(service(21, once=b"reg")).lease == 21
    assert driver.ok(service(22, once=b"reg")).lease == 21
    assert isinstance(driver.do(service(23, once=b"reg", weight=5)), IdempotencyMismatch)


def test_a_full_store_is_no_outcome_to_keep() -> None:
    driver = Driver()
    driver.machine.bootstrap(1, 1, b"", [MemberInfo(5, "n5", (), (), False)])
    driver.ok(c.alarm(1, 5, True))
    assert isinstance(driver.do(c.put(b"k", b"v", once=b"id")), NoSpace)
    driver.ok(c.alarm(1, 5, False))
    assert driver.ok(c.put(b"k", b"v", once=b"id")).revision == 2


def test_twice_in_one_batch() -> None:
    driver = Driver()
    command = c.put(b"k", b"v", once=b"id")
    applied = driver.batch(command, command)
    assert applied.results[0] == applied.results[1]
    assert len(applied.events) == 1


def test_keys_are_forgotten_by_the_leaders_clock() -> None:
    driver = Driver()
    command = c.put(b"k", b"v", once=b"id")
    driver.ok(command)
    driver.now_ms += limits.IDEMPOTENCY_KEEP_MS
    assert driver.ok(command).revision == 2
    # A leader whose clock is behind does not turn time back.
    driver.now_ms = 5
    assert driver.ok(command).revision == 2
    assert driver.machine.clock_ms == 1_000 + limits.IDEMPOTENCY_KEEP_MS
    driver.now_ms = 1_001 + limits.IDEMPOTENCY_KEEP_MS
    assert driver.ok(command).revision == 3
    assert len(driver.tables.tables[Table.ONCE]) == len(driver.tables.tables[Table.ONCE_AGE]) == 1


def test_old_keys_go_a_few_at_a_time_but_count_as_gone_at_once() -> None:
    driver = Driver()
    for i in range(50):
        driver.ok(c.put(b"k", b"v", once=b"id%d" % i))
    driver.now_ms += limits.IDEMPOTENCY_KEEP_MS + 1
    assert driver.ok(c.put(b"k", b"v", once=b"id49")).revision == 52
    assert len(driver.tables.tables[Table.ONCE]) == 50 - 16
    for i in range(4):
        driver.ok(c.put(b"k", b"v", once=b"more%d" % i))
    assert len(driver.tables.tables[Table.ONCE]) == 5
    assert len(driver.tables.tables[Table.ONCE_AGE]) == 5


@pytest.mark.interpreted
def test_the_number_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDEMPOTENCY_KEYS_MAX", 10)
    driver = Driver()
    for i in range(30):
        driver.ok(c.put(b"k", b"v", once=b"id%d" % i))
    assert len(driver.tables.tables[Table.ONCE]) == 10
    assert driver.ok(c.put(b"k", b"v", once=b"id29")).revision == 31
    assert driver.ok(c.put(b"k", b"v", once=b"id5")).revision == 32


@pytest.mark.interpreted
def test_their_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDEMPOTENCY_RESULT_BYTES_MAX", 1_000)
    monkeypatch.setattr(limits, "IDEMPOTENCY_BYTES_MAX", 5_000)
    driver = Driver()
    for i in range(40):
        driver.ok(c.put(b"k", bytes(400), prev=True, once=b"id%d" % i))
        held = driver.tables.tables[Table.ONCE]
        size = sum(len(key) + len(row) - 32 for key, row in held.items())
        assert size <= 5_000
        assert size == driver.machine._state.once_bytes
        assert len(held) == driver.machine._state.once_count


def test_an_outcome_too_large_to_keep_loses_its_records() -> None:
    driver = Driver()
    big = bytes(limits.IDEMPOTENCY_RESULT_BYTES_MAX // 2)
    for key in (b"a", b"b", b"c"):
        driver.ok(c.put(key, big))
    command = c.txn(
        [], [P(b"d", b"v", prev=True), R(b"a", b"d", limit=2), D(b"a", b"c", prev=True)],
        once=b"id",
    )  # fmt: skip
    first = driver.ok(command)
    assert len(first.responses[1].records) == len(first.responses[2].previous) == 2
    again = driver.ok(command)
    assert (again.revision, again.succeeded) == (first.revision, True)
    put, found, deleted = again.responses
    assert (put.record.key, put.record.mod_revision, put.previous) == (b"d", 5, None)
    assert (found.count, found.more, found.records) == (3, True, [])
    assert (deleted.deleted, deleted.previous) == (2, [])
    assert once.without_records(KeyNotFound("x")).message == "x"  # type: ignore[union-attr]


def test_only_outcomes_are_packed() -> None:
    with pytest.raises(TypeError):
        once.pack_outcome(object())  # type: ignore[arg-type]
    result = TxnResult(7, True, [MemberResult(3, [[1, "n", [], [], False]])])
    assert once.unpack_outcome(once.pack_outcome(result)) == result
    assert isinstance(Record, type)


def test_outcomes_compare_by_content() -> None:
    first = TxnResult(7, True, [])
    assert first != TxnResult(8, True, [])
    assert first != MemberResult(7, [])
    assert hash(first) == hash(TxnResult(7, True, []))
    assert "succeeded=True" in repr(first)
