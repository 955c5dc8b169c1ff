"""Leases: what hangs on them, and how they end."""

from __future__ import annotations

from raftkv.errors import LeaseExists, LeaseNotFound
from raftkv.machine import commands as c
from raftkv.machine.records import CAUSE_EXPIRED, CAUSE_REVOKED
from tests.unit.machine_support import Driver


def test_a_lease_is_recorded_with_the_leaders_time() -> None:
    driver = Driver()
    driver.now_ms = 5_000
    result = driver.ok(c.lease_grant(7, 10))
    assert (result.lease, result.ttl_seconds, result.revision) == (7, 10, 1)
    assert driver.applied is not None
    assert driver.applied.leases == [(7, 10)]
    lease = driver.machine.lease(7)
    assert lease == (7, 10, 5_000, False)
    assert driver.machine.leases() == [lease]
    refused = driver.do(c.lease_grant(7, 10))
    assert isinstance(refused, LeaseExists)
    assert refused.facts == {"lease": 7}
    assert driver.applied.leases == []


def test_unknown_leases() -> None:
    driver = Driver()
    for lease in (0, -1, 5, 2**63, 2**70):
        assert driver.machine.lease(lease) is None
        assert driver.machine.lease_keys(lease) == []
    for lease in (0, -1, 5):
        assert isinstance(driver.do(c.lease_revoke(lease)), LeaseNotFound)
    assert isinstance(driver.do(c.put(b"k", b"v", lease=5)), LeaseNotFound)


def test_keys_move_between_leases() -> None:
    driver = Driver()
    driver.batch(c.lease_grant(1, 10), c.lease_grant(2, 10))
    driver.ok(c.put(b"k", b"v", lease=1))
    assert driver.machine.lease_keys(1) == [b"k"]
    driver.ok(c.put(b"k", b"v", lease=2))
    assert (driver.machine.lease_keys(1), driver.machine.lease_keys(2)) == ([], [b"k"])
    driver.ok(c.put(b"k", b"v"))
    assert driver.machine.lease_keys(2) == []
    driver.ok(c.put(b"k", b"v", lease=1))
    driver.ok(c.delete(b"k"))
    assert driver.machine.lease_keys(1) == []
    driver.ok(c.put(b"k", b"v"))
    assert driver.ok(c.lease_revoke(1)).deleted == 0
    assert driver.machine.get(b"k") is not None


def test_revoking_deletes_all_keys_in_one_revision() -> None:
    driver = Driver()
    driver.ok(c.lease_grant(1, 10))
    for i in range(5):
        driver.ok(c.put(b"k%d" % i, b"v", lease=1))
    driver.ok(c.put(b"k", b"v", lease=1, keyspace=2))
    driver.ok(c.put(b"other", b"v"))
    result = driver.ok(c.lease_revoke(1))
    assert (result.deleted, result.revision) == (6, 9)
    assert driver.applied is not None
    assert driver.applied.leases == [(1, 0)]
    events = driver.applied.events
    assert [(e.revision, e.sub, e.keyspace, e.key) for e in events] == [
        *((9, i, 0, b"k%d" % i) for i in range(5)), (9, 5, 2, b"k"),
    ]  # fmt: skip
    assert {e.cause for e in events} == {CAUSE_REVOKED}
    assert [r.key for r in driver.machine.range(b"", b"").records] == [b"other"]


def test_revoking_an_empty_lease_has_no_revision() -> None:
    driver = Driver()
    driver.ok(c.lease_grant(1, 10))
    assert driver.ok(c.lease_revoke(1)).revision == 1
    assert isinstance(driver.do(c.lease_revoke(1)), LeaseNotFound)


def test_expiry_takes_a_revision_for_each_lease_with_keys() -> None:
    driver = Driver()
    driver.batch(c.lease_grant(1, 10), c.lease_grant(2, 10), c.lease_grant(3, 10))
    driver.batch(c.put(b"a", b"", lease=1), c.put(b"b", b"", lease=3), c.put(b"c", b"", lease=3))
    result = driver.ok(c.lease_expire([3, 2, 9, 1, 3], driver.term))
    assert (result.expired, result.stale, result.revision) == ([3, 2, 1], False, 6)
    assert driver.applied is not None
    assert [(e.revision, e.key, e.cause) for e in driver.applied.events] == [
        (5, b"b", CAUSE_EXPIRED), (5, b"c", CAUSE_EXPIRED), (6, b"a", CAUSE_EXPIRED),
    ]  # fmt: skip
    assert driver.applied.leases == [(3, 0), (2, 0), (1, 0)]


def test_a_former_leaders_expiry_is_ignored() -> None:
    driver = Driver()
    driver.batch(c.lease_grant(1, 10), c.put(b"a", b"", lease=1))
    late = c.lease_expire([1], driver.term)
    driver.term = 2
    result = driver.ok(late)
    assert (result.expired, result.stale) == ([], True)
    assert driver.machine.lease(1) is not None
    assert driver.machine.get(b"a") is not None


def test_leases_are_read_in_slices_each_once() -> None:
    driver = Driver()
    ids = sorted({number * 7919 % 1000 + 1 for number in range(25)})
    for lease in ids:
        driver.do(c.lease_grant(lease, 60))
    for size in (1, 4, 25, 26, 1000):
        seen: list[int] = []
        after: int | None = 0
        while after is not None:
            part, after = driver.machine.lease_slice(after, size)
            assert len(part) <= size
            seen += [held.lease for held in part]
        assert seen == ids
