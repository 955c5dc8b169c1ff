"""Quotas of prefixes and users: what is counted, what is refused, and that members agree."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raftkv.errors import InvalidRequest, QuotaExceeded, TooLarge
from raftkv.limits import QUOTA_COUNT_KEYS_MAX, QUOTAS_MAX
from raftkv.machine import commands as c
from raftkv.machine import quota_commands
from raftkv.machine.machine import Machine
from raftkv.machine.quota_commands import quota_set
from raftkv.machine.quotas import Quota, QuotaKind
from raftkv.machine.results import DeleteResult, PutResult, QuotaResult, TxnResult
from raftkv.machine.tables import Table
from tests.unit.machine_support import Driver

PREFIX, USER = QuotaKind.PREFIX, QuotaKind.USER


def usage(machine: Machine) -> dict[tuple[int, bytes], tuple[int, int]]:
    return {(one.kind, one.name): (one.keys, one.bytes) for one in machine.quotas}


def put_as(user: str, key: bytes, value: bytes) -> bytes:
    return c.guarded(c.put(key, value), 1, user)


def quota_of(machine: Machine, kind: int, name: bytes) -> Quota:
    return next(one for one in machine.quotas if (one.kind, one.name) == (kind, name))


def test_a_prefix_counts_what_is_there_and_what_comes() -> None:
    driver = Driver()
    driver.do(c.put(b"app/a", b"12345"))
    driver.do(c.put(b"other", b"12345"))
    assert driver.do(quota_set(PREFIX, b"app/", 3, 0)).changed
    assert usage(driver.machine) == {(PREFIX, b"app/"): (1, 10)}
    driver.do(c.put(b"app/b", b""))
    driver.do(c.put(b"app/a", b"1"))
    driver.do(c.put(b"app", b"not under it"))
    assert usage(driver.machine) == {(PREFIX, b"app/"): (2, 11)}
    driver.do(c.delete(b"app/", b"app0"))
    assert usage(driver.machine) == {(PREFIX, b"app/"): (0, 0)}


def test_one_key_too_many_is_refused_and_changes_nothing() -> None:
    driver = Driver()
    driver.do(quota_set(PREFIX, b"app/", 2, 0))
    driver.do(c.put(b"app/a", b"1"))
    driver.do(c.put(b"app/b", b"1"))
    revision, digest = driver.machine.revision, driver.machine.keys
    refused = driver.do(c.put(b"app/c", b"1"))
    assert isinstance(refused, QuotaExceeded)
    assert refused.facts == {"per": "prefix", "what": "keys", "limit": 2, "used": 2}
    assert (driver.machine.revision, driver.machine.keys) == (revision, digest)
    assert isinstance(driver.do(c.put(b"app/a", b"longer")), PutResult)
    assert isinstance(driver.do(c.put(b"elsewhere", b"1")), PutResult)
    assert isinstance(driver.do(c.delete(b"app/a")), DeleteResult)
    assert isinstance(driver.do(c.put(b"app/c", b"1")), PutResult)


def test_bytes_are_those_of_key_and_value_and_shrinking_always_passes() -> None:
    driver = Driver()
    driver.do(c.put(b"app/a", bytes(100)))
    driver.do(quota_set(PREFIX, b"app/", 0, 50))
    assert usage(driver.machine)[PREFIX, b"app/"] == (1, 105)
    assert isinstance(driver.do(c.put(b"app/b", b"")), QuotaExceeded)
    assert isinstance(driver.do(c.put(b"app/a", bytes(90))), PutResult)
    assert isinstance(driver.do(c.put(b"app/a", b"", ignore_value=True)), PutResult)
    assert isinstance(driver.do(c.put(b"app/a", bytes(45))), PutResult)
    assert isinstance(driver.do(c.put(b"app/a", bytes(46))), QuotaExceeded)


def test_a_transaction_is_taken_or_refused_as_a_whole() -> None:
    driver = Driver()
    driver.do(quota_set(PREFIX, b"a", 3, 0))
    driver.do(c.put(b"a1", b""))
    inner = c.txn_op((), [c.put_op(b"a3", b""), c.put_op(b"a4", b"")])
    refused = driver.do(c.txn((), [c.put_op(b"a2", b""), inner]))
    assert isinstance(refused, QuotaExceeded) and driver.machine.keys == 1
    taken = driver.do(c.txn((), [c.put_op(b"a2", b""), c.put_op(b"a3", b"")]))
    assert isinstance(taken, TxnResult) and usage(driver.machine)[PREFIX, b"a"] == (3, 6)
    # The branch that is not taken does not count, nor do deletes help.
    never = c.compare(c.CompareTarget.VERSION, c.Relation.EQUAL, b"a1", 99)
    many = [c.put_op(b"a%d" % number, b"") for number in range(10, 20)]
    assert isinstance(driver.do(c.txn([never], many, [c.put_op(b"a1", b"")])), TxnResult)
    swap = c.txn((), [c.delete_op(b"a2"), c.put_op(b"a9", b"")])
    assert isinstance(driver.do(swap), QuotaExceeded)


def test_nested_prefixes_all_count() -> None:
    driver = Driver()
    driver.do(quota_set(PREFIX, b"", 5, 0))
    driver.do(quota_set(PREFIX, b"a/", 4, 0))
    driver.do(quota_set(PREFIX, b"a/b/", 1, 0))
    driver.do(c.put(b"a/b/1", b""))
    assert isinstance(driver.do(c.put(b"a/b/2", b"")), QuotaExceeded)
    for number in range(3):
        driver.do(c.put(b"a/%d" % number, b""))
    assert isinstance(driver.do(c.put(b"a/9", b"")), QuotaExceeded)
    assert isinstance(driver.do(c.put(b"z", b"")), PutResult)
    assert isinstance(driver.do(c.put(b"zz", b"")), QuotaExceeded)


def test_keys_of_ended_leases_are_counted_no_more() -> None:
    driver = Driver()
    driver.do(quota_set(PREFIX, b"", 2, 0))
    driver.do(c.lease_grant(7, 60))
    driver.do(c.put(b"a", b"", lease=7))
    driver.do(c.put(b"b", b"", lease=7))
    driver.do(c.lease_revoke(7))
    assert usage(driver.machine) == {(PREFIX, b""): (0, 0)}


def test_a_user_counts_what_it_wrote_last() -> None:
    driver = Driver()
    driver.do(c.put(b"before", b"12"))
    driver.do(quota_set(USER, b"ann", 2, 0))
    driver.do(quota_set(USER, b"bob", 0, 100))
    driver.do(put_as("ann", b"a", b"123"))
    driver.do(put_as("ann", b"before", b"1"))
    assert usage(driver.machine)[USER, b"ann"] == (2, 4 + 7)
    assert isinstance(driver.do(put_as("ann", b"b", b"")), QuotaExceeded)
    driver.do(put_as("bob", b"a", b"12345"))
    assert usage(driver.machine) == {(USER, b"ann"): (1, 7), (USER, b"bob"): (1, 6)}
    driver.do(c.put(b"before", b"by nobody with a quota"))
    assert usage(driver.machine)[USER, b"ann"] == (0, 0)
    assert isinstance(driver.do(put_as("bob", b"b", bytes(94))), QuotaExceeded)
    assert isinstance(driver.do(put_as("bob", b"a", bytes(99))), PutResult)
    driver.do(c.delete(b"a", b"c"))
    assert usage(driver.machine) == {(USER, b"ann"): (0, 0), (USER, b"bob"): (0, 0)}


def test_a_quota_that_was_ended_and_comes_back_begins_at_nothing() -> None:
    driver = Driver()
    driver.do(quota_set(USER, b"ann", 5, 0))
    driver.do(put_as("ann", b"a", b"1"))
    driver.do(put_as("ann", b"b", b"1"))
    driver.do(quota_set(USER, b"ann", 0, 0))
    driver.do(c.delete(b"b"))
    driver.do(quota_set(USER, b"ann", 5, 0))
    driver.do(c.delete(b"a"))
    assert usage(driver.machine) == {(USER, b"ann"): (0, 0)}


def test_other_limits_keep_what_is_counted() -> None:
    driver = Driver()
    driver.do(quota_set(USER, b"ann", 5, 0))
    driver.do(put_as("ann", b"a", b"1"))
    assert driver.do(quota_set(USER, b"ann", 1, 9)).changed
    assert not driver.do(quota_set(USER, b"ann", 1, 9)).changed
    assert quota_of(driver.machine, USER, b"ann")[:6] == (USER, b"ann", 1, 9, 1, 2)


def test_a_refusal_for_a_quota_is_not_kept_under_an_idempotency_key() -> None:
    driver = Driver()
    driver.do(quota_set(PREFIX, b"", 1, 0))
    driver.do(c.put(b"a", b""))
    assert isinstance(driver.do(c.put(b"b", b"", once=b"id")), QuotaExceeded)
    driver.do(c.delete(b"a"))
    assert isinstance(driver.do(c.put(b"b", b"", once=b"id")), PutResult)


@pytest.mark.interpreted
def test_quotas_are_bounded_in_number_and_in_what_they_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver()
    for number in range(QUOTAS_MAX):
        driver.do(quota_set(PREFIX, b"%d" % number, 1, 0))
    assert isinstance(driver.do(quota_set(PREFIX, b"more", 1, 0)), TooLarge)
    assert driver.do(quota_set(PREFIX, b"7", 0, 0)).changed
    assert isinstance(driver.do(quota_set(PREFIX, b"more", 1, 0)), QuotaResult)
    assert QUOTA_COUNT_KEYS_MAX > 1000
    monkeypatch.setattr(quota_commands, "QUOTA_COUNT_KEYS_MAX", 2)
    other = Driver()
    for number in range(3):
        other.do(c.put(b"a%d" % number, b""))
    before = other.machine.state_hash
    assert isinstance(other.do(quota_set(PREFIX, b"a", 9, 0)), TooLarge)
    assert not other.machine.quotas and other.machine.state_hash != before


@pytest.mark.parametrize(
    ("kind", "name", "keys", "size"),
    [(3, b"a", 1, 0), (USER, b"", 1, 0), (USER, b"\xff", 1, 0), (PREFIX, b"a", -1, 0)],
)
def test_what_is_no_quota_is_refused_at_once(kind: int, name: bytes, keys: int, size: int) -> None:
    with pytest.raises(InvalidRequest):
        quota_set(kind, name, keys, size)


def test_who_may_do_everything_is_not_limited() -> None:
    driver = Driver()
    driver.do(quota_set(USER, b"root", 1, 0))
    for key in (b"a", b"b"):
        # As the gate proposes what users with the role root do.
        assert isinstance(driver.do(c.guarded(c.put(key, b""), 1, None)), PutResult)
    assert usage(driver.machine)[USER, b"root"] == (0, 0)


class Model:
    """The same, by brute force."""

    def __init__(self) -> None:
        self.live: dict[bytes, tuple[bytes, str | None]] = {}

    def prefix(self, prefix: bytes) -> tuple[int, int]:
        found = [(k, v) for k, (v, _) in self.live.items() if k.startswith(prefix)]
        return len(found), sum(len(k) + len(v) for k, v in found)

    def user(self, user: str) -> tuple[int, int]:
        found = [(k, v) for k, (v, owner) in self.live.items() if owner == user]
        return len(found), sum(len(k) + len(v) for k, v in found)


@pytest.mark.parametrize("seed", range(12))
def test_counters_equal_a_count_and_no_quota_is_ever_passed(seed: int) -> None:
    chance = random.Random(seed)
    driver, model = Driver(), Model()
    limits: dict[tuple[int, bytes], tuple[int, int]] = {
        (PREFIX, b"a"): (6, 60), (PREFIX, b"ab"): (3, 0), (PREFIX, b""): (12, 150),
        (USER, b"ann"): (4, 40), (USER, b"bob"): (0, 30),
    }  # fmt: skip
    for (kind, name), (keys, size) in limits.items():
        driver.do(quota_set(kind, name, keys, size))
    refused = 0
    for _ in range(400):
        user = chance.choice(["ann", "bob", None])
        puts = {
            bytes(chance.choices(b"ab", k=chance.randint(1, 4))): bytes(chance.randrange(12))
            for _ in range(chance.randint(1, 3))
        }
        if chance.random() < 0.25:
            start = bytes(chance.choices(b"ab", k=chance.randint(1, 3)))
            driver.do(c.delete(start, start + b"\xff"))
            for key in [key for key in model.live if start <= key < start + b"\xff"]:
                del model.live[key]
        else:
            command = c.txn((), [c.put_op(key, value) for key, value in puts.items()])
            if len(puts) == 1:
                ((key, value),) = puts.items()
                command = c.put(key, value)
            outcome: Any = driver.do(c.guarded(command, 1, user))
            after = Model()
            after.live = model.live | {key: (value, user) for key, value in puts.items()}
            fits = all(
                not _passes(_count(after, *name), _count(model, *name), limit)
                for name, limit in limits.items()
            )
            assert isinstance(outcome, QuotaExceeded) is not fits, (puts, user)
            refused += not fits
            if fits:
                model = after
        for limited in limits:
            assert usage(driver.machine)[limited] == _count(model, *limited)
    assert 20 < refused < 380
    reopened = Machine(driver.tables)
    assert usage(reopened) == usage(driver.machine)
    owners = driver.tables.tables[Table.QUOTA_OWNERS]
    assert set(owners) == {key for key, (_, owner) in model.live.items() if owner}


def _count(model: Model, kind: int, name: bytes) -> tuple[int, int]:
    return model.prefix(name) if kind == PREFIX else model.user(name.decode())


def _passes(after: tuple[int, int], before: tuple[int, int], limit: tuple[int, int]) -> bool:
    return any(
        most and new > most and new > old
        for new, old, most in zip(after, before, limit, strict=True)
    )


def test_a_restore_into_the_middle_of_a_batch_refuses_what_was_refused() -> None:
    """Quotas were left out of it: a write that no member had taken came to life in the restore."""
    driver = Driver()
    driver.do(quota_set(PREFIX, b"app/", 1, 0))
    machine = driver.machine
    data = c.encode_batch(
        1, 1, 1, [c.put(b"app/a", b""), c.put(b"app/b", b""), c.put(b"c", b""), c.put(b"d", b"")]
    )
    revision = machine.revision + 2
    machine.apply_until(machine.applied_index + 1, 1, c.stamp_batch(data, 1), revision)
    kept = [record.key for record in machine.range(b"", b"").records]
    assert (machine.revision, kept) == (revision, [b"app/a", b"c"])
    assert usage(machine) == {(PREFIX, b"app/"): (1, 5)}
