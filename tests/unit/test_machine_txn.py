"""Transactions and single writes, rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.errors import (
    Compacted,
    FutureRevision,
    InvalidRequest,
    InvariantViolation,
    KeyNotFound,
    LeaseNotFound,
)
from raftkv.machine import commands as c
from tests.unit.machine_support import Driver

P, D, R = c.put_op, c.delete_op, c.range_op
VERSION, CREATE, MOD, VALUE, LEASE = range(5)
EQUAL, GREATER, LESS, NOT_EQUAL = range(4)


@pytest.fixture
def driver() -> Driver:
    """a: created at 2, written at 2 and 3, lease 9; b: at 4. Revision 5: c put and deleted at 6."""
    driver = Driver()
    driver.ok(c.lease_grant(9, 60))
    driver.ok(c.put(b"a", b"1"))
    driver.ok(c.put(b"a", b"2", lease=9))
    driver.ok(c.put(b"b", b"2"))
    driver.ok(c.put(b"c", b"x"))
    driver.ok(c.delete(b"c"))
    assert driver.machine.revision == 6
    return driver


@pytest.mark.parametrize(
    ("target", "key", "actual"),
    [
        (VERSION, b"a", 2), (CREATE, b"a", 2), (MOD, b"a", 3), (LEASE, b"a", 9),
        (VERSION, b"missing", 0), (CREATE, b"missing", 0), (MOD, b"missing", 0),
        (LEASE, b"missing", 0), (VERSION, b"c", 0), (CREATE, b"c", 0), (MOD, b"c", 0),
    ],
)  # fmt: skip
def test_numbers_compare(driver: Driver, target: int, key: bytes, actual: int) -> None:
    truth = {
        (EQUAL, 0): True, (EQUAL, 1): False, (EQUAL, -1): False,
        (NOT_EQUAL, 0): False, (NOT_EQUAL, 1): True, (NOT_EQUAL, -1): True,
        (GREATER, 0): False, (GREATER, 1): False, (GREATER, -1): True,
        (LESS, 0): False, (LESS, 1): True, (LESS, -1): False,
    }  # fmt: skip
    for (relation, offset), expected in truth.items():
        result = driver.ok(c.txn([c.compare(target, relation, key, actual + offset)], []))
        assert result.succeeded is expected, (relation, offset)


@pytest.mark.parametrize(
    ("relation", "key", "operand", "expected"),
    [
        (EQUAL, b"a", b"2", True), (EQUAL, b"a", b"1", False), (EQUAL, b"a", b"", False),
        (NOT_EQUAL, b"a", b"1", True), (NOT_EQUAL, b"a", b"2", False),
        (GREATER, b"a", b"1", True), (GREATER, b"a", b"2", False), (GREATER, b"a", b"", True),
        (LESS, b"a", b"20", True), (LESS, b"a", b"2", False),
        # Of a missing key's value nothing holds, not even that it differs.
        (EQUAL, b"missing", b"", False), (NOT_EQUAL, b"missing", b"x", False),
        (LESS, b"missing", b"x", False), (NOT_EQUAL, b"c", b"nothing", False),
    ],
)  # fmt: skip
def test_values_compare(
    driver: Driver, relation: int, key: bytes, operand: bytes, expected: bool
) -> None:
    result = driver.ok(c.txn([c.compare(VALUE, relation, key, operand)], []))
    assert result.succeeded is expected


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        (c.compare(VALUE, EQUAL, b"a", b"2", b"c"), True),
        (c.compare(VALUE, EQUAL, b"a", b"2", b""), True),
        (c.compare(VERSION, EQUAL, b"a", 2, b"c"), False),
        (c.compare(VERSION, GREATER, b"a", 0, b"z"), True),
        (c.compare(MOD, LESS, b"", 5, b""), True),
        (c.compare(MOD, LESS, b"", 4, b""), False),
        (c.compare(CREATE, EQUAL, b"x", 0, b"z"), True),
        (c.compare(CREATE, GREATER, b"x", 0, b"z"), False),
        (c.compare(VALUE, NOT_EQUAL, b"x", b"1", b"z"), False),
        (c.compare(CREATE, EQUAL, b"b", 0, b"a"), True),
    ],
)
def test_a_compare_over_a_range_holds_for_every_key(
    driver: Driver, compare: c.Compare, expected: bool
) -> None:
    assert driver.ok(c.txn([compare], [])).succeeded is expected


def test_all_compares_must_hold(driver: Driver) -> None:
    yes, no = c.compare(VERSION, EQUAL, b"a", 2), c.compare(VERSION, EQUAL, b"a", 3)
    assert driver.ok(c.txn([], [])).succeeded
    assert driver.ok(c.txn([yes, yes], [])).succeeded
    assert not driver.ok(c.txn([yes, no], [])).succeeded


def test_one_revision_a_transaction(driver: Driver) -> None:
    result = driver.ok(c.txn([], [P(b"x", b"1"), D(b"a"), P(b"y", b"2"), D(b"b")]))
    assert result.revision == driver.machine.revision == 7
    assert driver.applied is not None
    assert [(e.revision, e.sub, e.key, e.deleted) for e in driver.applied.events] == [
        (7, 0, b"x", False), (7, 1, b"a", True), (7, 2, b"y", False), (7, 3, b"b", True),
    ]  # fmt: skip
    assert driver.machine.history(7, 7, 100) == driver.applied.events


@pytest.mark.parametrize(
    "command",
    [
        c.delete(b"missing"),
        c.delete(b"x", b"z"),
        c.delete(b"c"),
        c.txn([], [R(b"", b"")]),
        c.txn([], [D(b"missing"), R(b"a")]),
        c.txn([c.compare(MOD, EQUAL, b"a", 99)], [P(b"a", b"never")]),
        c.txn([], [c.txn_op([], [D(b"missing")])]),
    ],
)
def test_what_writes_nothing_has_no_revision(driver: Driver, command: bytes) -> None:
    result = driver.ok(command)
    assert result.revision == driver.machine.revision == 6
    assert driver.applied is not None
    assert driver.applied.events == []


def test_reads_see_what_the_transaction_wrote(driver: Driver) -> None:
    result = driver.ok(
        c.txn(
            [],
            [
                R(b"a", b"z"),
                P(b"ab", b"new"),
                R(b"a", b"z", keys_only=True),
                D(b"a"),
                c.txn_op([], [R(b"a", b"z")]),
                R(b"", b"", revision=3),
                R(b"", b"", count_only=True),
            ],
        )
    )
    before, _, after_put, _, inner, old, count = result.responses
    assert [r.key for r in before.records] == [b"a", b"b"]
    assert before.revision == 6
    assert [(r.key, r.value) for r in after_put.records] == [(b"a", b""), (b"ab", b""), (b"b", b"")]
    assert after_put.revision == 7
    assert [r.key for r in inner.responses[0].records] == [b"ab", b"b"]
    assert [(r.key, r.value) for r in old.records] == [(b"a", b"2")]
    assert (count.count, count.records, count.more) == (2, [], False)


def test_all_compares_judge_the_state_before(driver: Driver) -> None:
    inner = c.txn_op([c.compare(VERSION, EQUAL, b"n", 0)], [P(b"m", b"then")], [P(b"m", b"else")])
    result = driver.ok(c.txn([], [P(b"n", b"1"), inner]))
    assert result.responses[1].succeeded
    record = driver.machine.get(b"m")
    assert record is not None
    assert record.value == b"then"


def test_a_refused_transaction_leaves_nothing(driver: Driver) -> None:
    before = driver.tables.dump()
    cases: list[tuple[c.Operation, Any]] = [
        (P(b"z", b"1", lease=77), LeaseNotFound),
        (P(b"z", b"", ignore_value=True), KeyNotFound),
        (P(b"z", b"1", ignore_lease=True), KeyNotFound),
        (R(b"z", revision=7), FutureRevision),
    ]
    for operation, error in cases:
        for bad in (operation, c.txn_op([], [operation])):
            assert isinstance(driver.do(c.txn([], [P(b"y", b"1"), bad])), error)
    assert driver.machine.revision == 6
    assert driver.tables.dump()[1:] == before[1:]
    # What is not chosen is not judged.
    driver.ok(c.txn([], [], [cases[0][0]]))


def test_an_old_revision_in_a_transaction(driver: Driver) -> None:
    driver.ok(c.compact(4))
    assert isinstance(driver.do(c.txn([], [R(b"a", revision=3)])), Compacted)
    assert driver.ok(c.txn([], [R(b"", b"", revision=4)])).responses[0].count == 2


def test_put_keeps_value_or_lease_when_told(driver: Driver) -> None:
    same_value = driver.ok(c.put(b"a", b"", ignore_value=True, prev=True))
    assert (same_value.record.value, same_value.record.lease) == (b"2", 0)
    assert (same_value.previous.value, same_value.previous.lease) == (b"2", 9)
    assert driver.machine.lease_keys(9) == []
    driver.ok(c.put(b"a", b"3", lease=9))
    same_lease = driver.ok(c.put(b"a", b"4", ignore_lease=True))
    assert (same_lease.record.value, same_lease.record.lease) == (b"4", 9)
    assert same_lease.previous is None
    both = driver.ok(c.put(b"a", b"", ignore_lease=True, ignore_value=True))
    assert (both.record.value, both.record.lease, both.record.version) == (b"4", 9, 6)
    assert driver.machine.lease_keys(9) == [b"a"]
    for flags in ({"ignore_value": True}, {"ignore_lease": True}):
        for key in (b"missing", b"c"):
            assert isinstance(driver.do(c.put(key, b"", **flags)), KeyNotFound)
    assert isinstance(driver.do(c.put(b"a", b"", lease=8, ignore_value=True)), LeaseNotFound)


def test_version_and_create_start_again_after_a_deletion(driver: Driver) -> None:
    record = driver.ok(c.put(b"c", b"again", prev=True)).record
    assert (record.create_revision, record.mod_revision, record.version) == (7, 7, 1)
    record = driver.ok(c.put(b"c", b"more")).record
    assert (record.create_revision, record.mod_revision, record.version) == (7, 8, 2)


def test_keyspaces_do_not_see_each_other(driver: Driver) -> None:
    driver.ok(c.put(b"a", b"other", keyspace=3))
    machine = driver.machine
    assert machine.keys == 2
    assert [r.key for r in machine.range(b"", b"").records] == [b"a", b"b"]
    other = machine.range(b"", b"", keyspace=3, want_count=True, limit=1)
    assert (other.count, [r.value for r in other.records]) == (1, [b"other"])
    assert machine.range(b"", b"", keyspace=3, count_only=True).count == 1
    assert machine.range(b"", b"", keyspace=2).records == []
    assert driver.ok(c.delete(b"", b"", keyspace=3)).deleted == 1
    assert machine.keys == 2


def test_whole_store_counts_need_no_scan(driver: Driver) -> None:
    result = driver.machine.range(b"", b"", limit=1, want_count=True)
    assert (result.count, result.more, result.resume) == (2, True, b"b")
    assert driver.machine.range(b"", b"", count_only=True).count == 2
    assert driver.machine.range(b"", b"", count_only=True, revision=3).count == 1


def test_a_sorted_range_is_not_read_in_slices(driver: Driver) -> None:
    with pytest.raises(InvalidRequest):
        driver.machine.range(b"", b"", sort_target=MOD, examine_max=5)


def test_several_reads_of_one_view(driver: Driver) -> None:
    from raftkv.machine import RangeQuery

    with driver.machine.view() as view:
        record = view.get(b"a")
        assert record is not None
        assert record.value == b"2"
        assert view.get(b"c") is None
        assert view.get(b"missing") is None
        assert view.range(RangeQuery(b"b")).records == [driver.machine.get(b"b")]


def test_a_key_at_an_old_revision(driver: Driver) -> None:
    machine = driver.machine
    values = [machine.get(b"a", revision=r) for r in range(1, 7)]
    assert [v and v.value for v in values] == [None, b"1", b"2", b"2", b"2", b"2"]
    assert [machine.get(b"c", revision=r) is None for r in (4, 5, 6)] == [True, False, True]
    assert machine.get(b"missing", revision=3) is None
    with pytest.raises(FutureRevision):
        machine.get(b"a", revision=7)
    driver.ok(c.compact(3))
    with pytest.raises(Compacted) as refused:
        machine.get(b"a", revision=2)
    assert refused.value.facts == {"oldest_revision": 3}


def test_a_transaction_that_only_reads_needs_no_entry(driver: Driver) -> None:
    compares = [c.compare(VALUE, EQUAL, b"a", b"2")]
    then = [R(b"a"), c.txn_op([c.compare(VERSION, EQUAL, b"b", 7)], [R(b"a")], [R(b"", b"")])]
    applied = driver.ok(c.txn(compares, then))
    index = driver.machine.applied_index
    read = driver.machine.read_txn(compares, then)
    assert read == applied
    assert driver.machine.applied_index == index
    with pytest.raises(FutureRevision):
        driver.machine.read_txn([], [R(b"a", revision=99)])
    with pytest.raises(InvariantViolation):
        driver.machine.read_txn([], [P(b"a", b"")])


def test_refusals_come_in_etcds_order(driver: Driver) -> None:
    missing = P(b"n", b"", lease=77, ignore_value=True)
    assert isinstance(driver.do(c.put(b"n", b"", lease=77, ignore_value=True)), LeaseNotFound)
    assert isinstance(driver.do(c.txn([], [missing])), KeyNotFound)
    assert isinstance(driver.do(c.txn([], [R(b"a", revision=99), missing])), KeyNotFound)
    assert isinstance(driver.do(c.txn([], [R(b"a", revision=-1)])), Compacted)
    assert isinstance(driver.do(c.put(b"n", b"", lease=-1)), LeaseNotFound)


def test_without_an_order_only_what_the_limit_lets_through_is_sorted(driver: Driver) -> None:
    for key, value in ((b"d", b"0"), (b"e", b"1")):
        driver.ok(c.put(key, value))
    ranges = [
        R(b"", b"", limit=1, sort_target=4),
        R(b"", b"", limit=1, sort_target=4, sort_order=1),
        R(b"", b"", limit=1, sort_target=4, min_mod=1),
    ]
    result = driver.ok(c.txn([], ranges))
    assert [part.records[0].key for part in result.responses] == [b"a", b"d", b"d"]
    assert [(part.count, part.more) for part in result.responses] == [(4, True)] * 3
