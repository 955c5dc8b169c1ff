"""The service catalog: who may register, what changes, and how an instance ends."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.errors import InstanceClaimed, InstanceNotFound, LeaseExists
from raftkv.machine import commands as c
from raftkv.machine.records import CATALOG, CAUSE_EXPIRED, CAUSE_REQUEST, CAUSE_REVOKED
from tests.unit.machine_support import Driver


def register(service: str = "web", instance: str = "1", **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "address": "10.0.0.1", "port": 80, "ttl_seconds": 10, "lease": 100, "tags": ["blue"],
        "meta": {"zone": "a", "rack": "7"},
    } | changes  # fmt: skip
    return c.service_register(
        service, instance, fields.pop("address"), fields.pop("port"), **fields
    )


@pytest.fixture
def driver() -> Driver:
    driver = Driver()
    result = driver.ok(register())
    assert (result.created, result.changed, result.lease, result.revision) == (True, True, 100, 2)
    return driver


def test_an_instance_hangs_on_a_lease_of_its_own(driver: Driver) -> None:
    machine = driver.machine
    found = machine.instance("web", "1")
    assert found is not None
    assert found.fields == {
        "service": "web", "instance": "1", "address": "10.0.0.1", "port": 80, "tags": ["blue"],
        "meta": {"zone": "a", "rack": "7"}, "weight": 1, "ttl_seconds": 10, "status": "passing",
        "owner": "", "lease": 100, "registered_ms": 1_000,
    }  # fmt: skip
    assert (found.service, found.instance, found.passing) == ("web", "1", True)
    assert found.record.lease == 100
    lease = machine.lease(100)
    assert lease is not None
    assert lease.service
    assert machine.lease_keys(100) == []
    assert machine.lease_keys(100, keyspace=CATALOG) == [b"web\x001"]
    assert driver.applied is not None
    assert driver.applied.leases == [(100, 10)]
    assert machine.range(b"", b"").records == []
    assert "10.0.0.1" in repr(found)
    assert found == machine.instance("web", "1")
    assert hash(found) == hash(machine.instance("web", "1"))


def test_registering_alike_changes_nothing(driver: Driver) -> None:
    driver.now_ms += 5_000
    result = driver.ok(register(lease=200))
    assert (result.created, result.changed, result.lease) == (False, False, 100)
    assert result.revision == driver.machine.revision == 2
    assert driver.machine.lease(200) is None
    assert driver.applied is not None
    assert (driver.applied.events, driver.applied.leases) == ([], [])


def test_the_same_claimant_changes_its_record(driver: Driver) -> None:
    driver.now_ms += 5_000
    result = driver.ok(register(lease=200, tags=["green"], weight=3))
    assert (result.created, result.changed, result.lease, result.revision) == (False, True, 100, 3)
    found = driver.machine.instance("web", "1")
    assert found is not None
    assert (found.fields["tags"], found.fields["weight"]) == (["green"], 3)
    assert found.fields["registered_ms"] == 1_000
    assert found.fields == result.instance
    assert driver.applied is not None
    assert driver.applied.leases == []


def test_a_new_ttl_is_the_leases_too(driver: Driver) -> None:
    result = driver.ok(register(lease=200, ttl_seconds=30))
    assert (result.changed, result.lease, result.ttl_seconds) == (True, 100, 30)
    lease = driver.machine.lease(100)
    assert lease is not None
    assert (lease.ttl_seconds, lease.service) == (30, True)
    assert driver.applied is not None
    assert driver.applied.leases == [(100, 30)]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({}, {}, True),
        ({}, {"port": 81}, False),
        ({}, {"address": "10.0.0.2"}, False),
        ({"owner": "x"}, {"owner": "x", "port": 81}, True),
        ({"owner": "x"}, {"owner": "y"}, False),
        ({"owner": "x"}, {}, True),
        ({"owner": "x"}, {"port": 81}, False),
        ({}, {"owner": "x"}, True),
        ({}, {"owner": "x", "port": 81}, False),
    ],
)
def test_who_is_the_same_claimant(
    first: dict[str, Any], second: dict[str, Any], same: bool
) -> None:
    driver = Driver()
    driver.ok(register(**first))
    outcome = driver.do(register(lease=200, **second))
    if same:
        assert outcome.lease == 100
        assert outcome.instance["owner"] == (first.get("owner") or second.get("owner", ""))
    else:
        assert isinstance(outcome, InstanceClaimed)
        assert outcome.facts["lease"] == 100
        assert outcome.facts["holder"]["port"] == 80
        assert driver.machine.lease(200) is None
        assert driver.machine.revision == 2


def test_takeover_ends_the_former_lease(driver: Driver) -> None:
    driver.ok(c.put(b"extra", b"v", lease=100))
    result = driver.ok(register(port=81, lease=200, takeover=True))
    assert (result.created, result.changed, result.lease) == (False, True, 200)
    assert driver.applied is not None
    assert driver.applied.leases == [(200, 10), (100, 0)]
    assert {e.revision for e in driver.applied.events} == {4}
    assert driver.machine.lease(100) is None
    assert driver.machine.get(b"extra") is None
    found = driver.machine.instance("web", "1")
    assert found is not None
    assert (found.fields["port"], found.record.lease) == (81, 200)
    assert driver.machine.lease_keys(200, keyspace=CATALOG) == [b"web\x001"]


def test_a_lease_id_that_is_taken_is_refused(driver: Driver) -> None:
    assert isinstance(driver.do(register(instance="2")), LeaseExists)
    assert isinstance(driver.do(register(port=81, takeover=True)), LeaseExists)
    assert driver.machine.revision == 2


def test_a_drain_outlives_registering_again(driver: Driver) -> None:
    result = driver.ok(c.service_drain("web", "1", True))
    assert (result.changed, result.created, result.instance["status"]) == (True, False, "draining")
    assert not driver.ok(c.service_drain("web", "1", True)).changed
    assert driver.machine.revision == 3
    assert not driver.ok(register(lease=200)).changed
    assert driver.ok(register(lease=200, weight=9)).instance["status"] == "draining"
    (summary,), _ = driver.machine.services()
    assert (summary.instances, summary.passing) == (1, 0)
    assert driver.ok(c.service_drain("web", "1", False)).instance["status"] == "passing"
    assert isinstance(driver.do(c.service_drain("web", "2", True)), InstanceNotFound)


def test_leaving_ends_the_lease_in_the_same_revision(driver: Driver) -> None:
    driver.ok(c.put(b"extra", b"v", lease=100))
    result = driver.ok(c.service_deregister("web", "1"))
    assert (result.lease, result.revision, result.instance["port"]) == (100, 4, 80)
    assert driver.applied is not None
    assert [(e.key, e.cause) for e in driver.applied.events] == [
        (b"web\x001", CAUSE_REQUEST), (b"extra", CAUSE_REQUEST),
    ]  # fmt: skip
    before = driver.machine.previous(driver.applied.events[0])
    assert before is not None
    assert b"10.0.0.1" in before.value
    assert driver.machine.lease(100) is None
    assert isinstance(driver.do(c.service_deregister("web", "1")), InstanceNotFound)
    assert driver.ok(register()).created


def test_only_its_owner_takes_an_instance_out() -> None:
    driver = Driver()
    driver.ok(register(owner="x"))
    assert isinstance(driver.do(c.service_deregister("web", "1", owner="y")), InstanceClaimed)
    driver.ok(c.service_deregister("web", "1", owner="x"))
    driver.ok(register(owner="x"))
    driver.ok(c.service_deregister("web", "1"))


@pytest.mark.parametrize(
    ("command", "cause"),
    [(c.lease_revoke(100), CAUSE_REVOKED), (c.lease_expire([100], 1), CAUSE_EXPIRED)],
)
def test_an_instance_goes_with_its_lease(driver: Driver, command: bytes, cause: int) -> None:
    driver.ok(command)
    assert driver.applied is not None
    ((event,)) = driver.applied.events
    assert (event.keyspace, event.key, event.deleted) == (CATALOG, b"web\x001", True)
    assert event.cause == cause
    assert driver.machine.instance("web", "1") is None
    assert driver.machine.instances("web") == []
    # The name is free again, for anybody.
    assert driver.ok(register(port=99, lease=300)).created


def test_an_instance_on_a_lease_that_a_user_granted_keeps_it() -> None:
    driver = Driver()
    driver.ok(register())
    # As an older record or another door may leave it: the lease is not the instance's own.
    found = driver.machine.instance("web", "1")
    assert found is not None
    value = found.record.value.replace(b'"lease":100', b'"lease":5')
    driver.batch(c.lease_grant(5, 60), c.put(b"web\x001", value, lease=5, keyspace=CATALOG))
    assert driver.ok(c.service_deregister("web", "1")).lease == 0
    assert driver.machine.lease(5) is not None


def test_listing_services_and_instances() -> None:
    driver = Driver()
    lease = 0
    for service, count in (("a", 1), ("ab", 3), ("b", 2), ("ä", 1)):
        for i in range(count):
            lease += 1
            driver.ok(register(service, f"i{i}", lease=lease))
    driver.ok(c.service_drain("ab", "i1", True))
    machine = driver.machine

    def names(**query: Any) -> tuple[list[tuple[str, int, int]], bool]:
        found, more = machine.services(**query)
        return [(s.service, s.instances, s.passing) for s in found], more

    every = [("a", 1, 1), ("ab", 3, 2), ("b", 2, 2), ("ä", 1, 1)]
    assert names() == (every, False)
    assert names(limit=4) == (every, False)
    assert names(limit=2) == (every[:2], True)
    assert names(limit=2, after="ab") == (every[2:], False)
    assert names(after="a") == (every[1:], False)
    assert names(prefix="a") == (every[:2], False)
    assert names(prefix="a", after="ab") == ([], False)
    assert names(prefix="zz") == ([], False)
    assert "ab" in repr(machine.services()[0][1])
    assert [i.instance for i in machine.instances("ab")] == ["i0", "i1", "i2"]
    assert [i.instance for i in machine.instances("ab", limit=2)] == ["i0", "i1"]
    assert [i.instance for i in machine.instances("a")] == ["i0"]
    assert machine.instances("nobody") == []
    assert machine.instance("ab", "i9") is None
