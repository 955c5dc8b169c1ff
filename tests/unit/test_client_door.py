"""The client against the real door: both sides mean the same by every call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import AsyncClient, Client, LeaseLost, PreconditionFailed, results, txn
from raftkv.errors import (
    Compacted,
    ConfigError,
    FutureRevision,
    IdempotencyMismatch,
    InstanceClaimed,
    InvalidRequest,
    LeaseNotFound,
    TooLarge,
    TtlOutOfRange,
)
from tests.unit.client_door import Door, real_door


@pytest.fixture
def door() -> Iterator[Door]:
    with real_door() as made:
        yield made


@pytest.fixture
def client(door: Door) -> Iterator[Client]:
    with Client(door.url, timeout=5) as made:
        yield made


@pytest.mark.parametrize("key", ["a/b", "a//b", "../x", "a b?c#d%2F", "ключ", b"\xff\xfe/\x00"])
def test_keys_and_values_of_any_bytes(client: Client, key: str | bytes) -> None:
    written = client.put(key, b"\x00\xff")
    record = client.get(key)
    assert record is not None
    assert record.value == b"\x00\xff" and record.mod_revision == written.revision
    assert client.range(start=key).records == (record,)
    assert client.delete(key, previous=True).previous == (record,)
    assert client.get(key) is None


def test_conditions_and_idempotency(client: Client) -> None:
    first = client.create("a", "1")
    with pytest.raises(PreconditionFailed) as caught:
        client.create("a", "2")
    assert caught.value.facts["current"]["value"] == "1"
    second = client.put("a", "2", if_revision=first.revision, idempotency_key="k")
    assert client.put("a", "2", if_revision=first.revision, idempotency_key="k") == second
    with pytest.raises(IdempotencyMismatch):
        client.put("a", "3", idempotency_key="k")
    assert client.update("a", lambda value: (value or b"") + b"!").version == 3
    with pytest.raises(PreconditionFailed):
        client.delete("a", if_revision=first.revision)


def test_a_repeated_registration_or_lease_is_the_first_one(client: Client) -> None:
    body = {"address": "h", "port": 80, "ttl": 10}
    answers = [
        client.loop.run(
            client.inner.write(
                "PUT", "/api/services/web/w1", json=body, idempotency_key="once", timeout=3
            )
        ).json()
        for _ in range(2)
    ]
    assert answers[0]["lease"] == answers[1]["lease"]
    assert answers[0]["revision"] == answers[1]["revision"]


def test_pages_scan_and_counts_at_one_revision(client: Client) -> None:
    for number in range(25):
        client.put(f"k/{number:02}", str(number))
    pages = client.pages(prefix="k/", page_size=10)
    first = next(pages)
    client.put("k/99", "late")
    rest = [record.key for page in pages for record in page.records]
    assert [record.key for record in first.records] + rest == [f"k/{n:02}" for n in range(25)]
    assert client.count(prefix="k/") == 26
    assert next(r.key for r in client.scan(prefix="k/", reverse=True, keys_only=True)) == "k/99"
    assert client.range(prefix="k/", limit=2, consistency="serializable").more
    assert client.delete_range(prefix="k/").deleted == 26
    assert client.delete_range(everything=True).deleted == 0


def test_transactions(client: Client) -> None:
    client.put("a", "1")
    record = client.get("a")
    assert record is not None
    result = (
        client.txn()
        .when(txn.unchanged(record), txn.missing("b"), txn.compare("a", "value", "=", "1"))
        .then(
            txn.put("b", b"\xfe", previous=True),
            txn.get("a"),
            txn.range_(prefix="", limit=1),
            txn.nested([txn.exists("zzz")], [], [txn.delete("a", previous=True)]),
        )
        .commit()
    )
    put, get, found, nested = result.results
    assert result.succeeded and isinstance(put, results.TxnPut) and get == record
    assert isinstance(found, results.TxnRange) and found.records == (record,)
    assert isinstance(nested, results.TxnResult)
    assert nested.results == (results.TxnDelete(1, (record,)),)
    assert not client.txn().when(txn.exists("a")).commit().succeeded


def test_errors_keep_their_class_and_facts(client: Client) -> None:
    client.put("a", "1")
    client.put("a", "2")
    client.cluster.compact(keep=0)
    with pytest.raises(Compacted):
        client.get("a", revision=2)
    with pytest.raises(FutureRevision):
        client.get("a", revision=10_000)
    with pytest.raises(TooLarge):
        client.put("big", b"x" * 2_000_000)
    with pytest.raises(TtlOutOfRange):
        client.leases.grant(0)
    with pytest.raises(LeaseNotFound):
        client.leases.show("00000000000000aa")
    with pytest.raises(InvalidRequest):
        client.transact({"iff": []})


def test_leases_and_services(client: Client) -> None:
    lease = client.leases.grant(60)
    client.put("mine", "x", lease=lease.lease)
    shown = client.leases.show(lease.lease)
    assert shown.keys == ("mine",) and 58 < shown.remaining <= 60
    assert client.leases.keep_alive(lease.lease) == lease
    assert [item.lease for item in client.leases.list()] == [lease.lease]
    assert client.leases.revoke(lease.lease).deleted == 1
    client.services.register("web", "w1", "h", 80, tags=["a"], meta={"zone": "b"}, owner="me")
    with pytest.raises(InstanceClaimed) as caught:
        client.services.register("web", "w1", "h", 80, owner="you")
    assert caught.value.facts["holder"]["owner"] == "me"
    assert client.services.heartbeat("web", "w1", owner="me")[1] == 10
    client.services.drain("web", "w1")
    assert client.services.instances("web", passing=True) == ()
    (instance,) = client.services.instances("web", tag="a")
    assert instance.meta == {"zone": "b"} and instance.status == "draining"
    assert client.services.instance("web", "w1") == instance
    (summary,) = client.services.list(prefix="w")
    assert (summary.instances, summary.passing) == (1, 0)
    client.services.deregister("web", "w1")
    assert client.services.instance("web", "w1") is None


def test_the_cluster_and_a_snapshot(client: Client, door: Door, tmp_path: Path) -> None:
    client.put("a", "1")
    status = client.cluster.status()
    assert status.healthy and status.revision == 2 and status.role == "leader"
    assert client.cluster.health() == (True, "")
    (member,) = client.cluster.members()
    assert member.leader and member.member_id == status.member_id
    assert client.cluster.statuses()[0][0] == door.url
    saved = client.cluster.save_snapshot(tmp_path / "image")
    assert saved.size_bytes == (tmp_path / "image").stat().st_size > 0
    assert saved.index is not None


def test_watches_in_threads(client: Client) -> None:
    with client.watch(prefix="w/", previous=True) as events:
        assert events.next(0.05) is None
        client.put("w/a", "1")
        client.put("other", "1")
        client.delete("w/a")
        put, delete = next(events), next(events)
        assert put.record is not None and put.record.value == b"1"
        assert delete.previous == put.record
    with client.watch(from_revision=2) as again:
        assert [next(again).key for _ in range(3)] == ["w/a", "other", "w/a"]
    with client.services.watch() as catalog:
        assert next(catalog).type == "ready"
        client.services.register("web", "w1", "h", 80)
        assert next(catalog).type == "registered"
        client.services.deregister("web", "w1")
        gone = next(catalog)
        assert (gone.type, gone.reason) == ("deregistered", "deregistered")


def test_blocks_in_threads(client: Client) -> None:
    with client.leases.keeper(5) as keeper:
        client.put("here", "x", lease=keeper.lease)
    assert client.get("here") is None
    with client.services.registered("web", "w1", "h", 80, ttl=5):
        assert len(client.services.instances("web")) == 1
    assert client.services.instances("web") == ()
    tokens = []

    def work() -> None:
        with client.locks.hold("x", ttl=5) as lock:
            tokens.append(lock.token)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(tokens) == 4 and tokens == sorted(tokens)
    with client.elections.campaign("boss", "me", ttl=5):
        leader = client.elections.leader("boss")
        assert leader is not None and leader.value == b"me"
    assert next(client.elections.observe("boss")) is None


def test_a_service_that_dies_is_seen_to_expire(client: Client) -> None:
    with client.services.watch("web") as catalog:
        assert next(catalog).type == "ready"
        client.services.register("web", "w1", "h", 80, ttl=1)
        assert next(catalog).type == "registered"
        gone = catalog.next(3.0)
        assert gone is not None and (gone.type, gone.reason) == ("deregistered", "expired")


async def test_a_lock_whose_lease_is_revoked_ends_its_block(door: Door) -> None:
    async with AsyncClient(door.url, timeout=5) as client:
        with pytest.raises(LeaseLost):
            async with client.locks.hold("x", ttl=1) as lock:
                await client.leases.revoke(lock.lease)
                await asyncio.wait_for(asyncio.sleep(60), 5)


def test_a_closed_client_says_so(door: Door) -> None:
    client = Client(door.url)
    client.close()
    client.close()
    with pytest.raises(ConfigError, match="closed"):
        client.get("a")
