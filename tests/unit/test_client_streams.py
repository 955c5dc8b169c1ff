"""Watches and keepers over connections that break: nothing lost, nothing twice, losses reported."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.client import AsyncClient, LeaseLost, txn
from raftkv.client.errors import BadAnswer
from raftkv.client.results import Event, ServiceEvent
from raftkv.client.services import ServiceWatcher
from raftkv.client.sse import EventParser, ServerEvent
from raftkv.client.watch import Watcher
from raftkv.errors import Compacted, InstanceClaimed, InvalidRequest
from tests.unit.client_fake_store import FakeStore


@pytest.fixture
async def store() -> AsyncIterator[FakeStore]:
    fake = FakeStore(endpoints=2)
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def client(store: FakeStore) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(store.urls, timeout=3) as made:
        yield made


async def take(events: AsyncIterator[Event], count: int) -> list[tuple[str, int, str]]:
    found = []
    for _ in range(count):
        event = await asyncio.wait_for(anext(events), 5)
        found.append((event.type, event.revision, event.key))
    return found


async def test_a_watch_tells_puts_and_deletes(client: AsyncClient) -> None:
    async with client.watch(prefix="", previous=True) as events:
        assert await events.opened() == 1
        await client.put("a", "1")
        await client.put("a", "2")
        await client.delete("a")
        first, second, third = [await anext(events) for _ in range(3)]
        assert first.record is not None and first.record.value == b"1" and first.previous is None
        assert second.previous == first.record
        assert (third.type, third.record, third.revision) == ("delete", None, 4)
        await asyncio.wait_for(_until(lambda: events.revision == 4), 2)


async def _until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("whole", range(9))
async def test_a_stream_cut_anywhere_loses_and_repeats_nothing(
    store: FakeStore, client: AsyncClient, whole: int
) -> None:
    await client.put("before", "x")
    # Three revisions, one of them with three events, cut after `whole` events of the stream.
    await client.put("k1", "x")
    await client.txn().then(*(txn.put(f"k{n}", "x") for n in (2, 3, 4))).commit()
    await client.put("k5", "x")
    store.fault("cut", after_events=whole)
    store.fault("cut", after_events=2)
    told: list[Exception] = []
    async with client.watch(from_revision=3, on_interruption=told.append) as events:
        found = await take(events, 5)
    assert found == [
        ("put", 3, "k1"),
        ("put", 4, "k2"),
        ("put", 4, "k3"),
        ("put", 4, "k4"),
        ("put", 5, "k5"),
    ]
    if whole < 5:
        assert told and store.calls(path="/api/watch")[1].endpoint == 1


async def test_a_watch_from_now_keeps_its_place_when_nothing_had_happened_yet(
    store: FakeStore, client: AsyncClient
) -> None:
    store.fault("cut", after_events=1)
    async with client.watch("a") as events:
        await events.opened()
        await client.put("b", "x")
        await client.put("a", "1")
        assert await take(events, 1) == [("put", 3, "a")]
    assert store.calls(path="/api/watch")[1].raw_path.endswith("from=2")


async def test_a_cancelled_wait_loses_nothing(store: FakeStore, client: AsyncClient) -> None:
    async with client.watch("a") as events:
        await events.opened()
        for number in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(events), 0.02)
            await client.put("a", str(number))
            assert (await take(events, 1))[0][1] == number + 2
    assert len(store.calls(path="/api/watch")) == 1


async def test_a_silent_stream_counts_as_broken(store: FakeStore, client: AsyncClient) -> None:
    events = Watcher(client.transport, {"key": "a"}, None, None, stall=0.1)
    await events.opened()
    silence = asyncio.create_task(anext(events))
    await asyncio.wait_for(_until(lambda: len(store.calls(path="/api/watch")) >= 3), 5)
    await client.put("a", "1")
    assert (await asyncio.wait_for(silence, 5)).key == "a"
    await events.close()


async def test_a_compacted_start_is_an_error_with_the_oldest_revision(
    store: FakeStore, client: AsyncClient
) -> None:
    store.revision, store.compacted = 9, 5
    async with client.watch(from_revision=2) as events:
        with pytest.raises(Compacted) as caught:
            await anext(events)
    assert caught.value.facts["oldest_revision"] == 6


async def test_service_watch_first_the_present_then_changes(
    store: FakeStore, client: AsyncClient
) -> None:
    await client.services.register("web", "w1", "10.0.0.1", 80, tags=("a",), meta={"z": "1"})
    async with client.services.watch() as events:
        assert [await _brief(events) for _ in range(2)] == [("instance", "w1"), ("ready", "")]
        await client.services.register("web", "w2", "10.0.0.2", 80)
        await client.services.drain("web", "w1")
        store.end_instance(("web", "w2"), "expired")
        assert [await _brief(events) for _ in range(3)] == [
            ("registered", "w2"),
            ("changed", "w1"),
            ("expired", "w2"),
        ]


async def _brief(events: ServiceWatcher) -> tuple[str, str]:
    event: ServiceEvent = await asyncio.wait_for(anext(events), 5)
    name = event.instance.instance if event.instance else ""
    return (event.reason if event.reason == "expired" else event.type), name


@pytest.mark.parametrize("compacted", [False, True])
async def test_service_watch_after_a_break_tells_the_difference_once(
    store: FakeStore, client: AsyncClient, compacted: bool
) -> None:
    for name in ("w1", "w2", "w3"):
        await client.services.register("web", name, "h", int(name[1:]))
    store.fault("cut", after_events=4)
    async with client.services.watch("web") as events:
        assert [(await _brief(events))[0] for _ in range(4)] == ["instance"] * 3 + ["ready"]
        store.end_instance(("web", "w1"), "deregistered")
        await client.services.drain("web", "w2")
        await client.services.register("web", "w4", "h", 4)
        if compacted:
            store.compacted = store.revision
        found = sorted([await _brief(events) for _ in range(3)])
    assert found == [("changed", "w2"), ("deregistered", "w1"), ("registered", "w4")]


async def test_the_catalog(store: FakeStore, client: AsyncClient) -> None:
    done = await client.services.register("web", "w1", "h", 80, weight=3, ttl=5)
    assert (done.created, done.ttl) == (True, 5)
    with pytest.raises(InstanceClaimed) as caught:
        await client.services.register("web", "w1", "other", 80)
    assert caught.value.facts["holder"]["address"] == "h"
    await client.services.register("web", "w1", "other", 80, takeover=True)
    (instance,) = await client.services.instances("web")
    assert (instance.address, instance.status) == ("other", "passing")
    await client.services.drain("web", "w1")
    (summary,) = await client.services.list()
    assert (summary.service, summary.instances, summary.passing) == ("web", 1, 0)
    assert (await client.services.heartbeat("web", "w1")) == (instance.lease, 10)
    assert await client.services.deregister("web", "w1") == store.revision
    assert await client.services.instance("web", "w1") is None
    with pytest.raises(InvalidRequest):
        await client.services.instances("")


async def test_a_keeper_keeps_its_lease_and_revokes_it(
    store: FakeStore, client: AsyncClient
) -> None:
    async with client.leases.keeper(1) as keeper:
        await asyncio.wait_for(_until(lambda: keeper.renewals >= 2), 5)
        assert store.renewed[keeper.lease] >= 2 and not keeper.lost
        keeper.check()
    assert store.leases == {}


async def test_a_keeper_whose_lease_is_revoked_cancels_its_block(
    store: FakeStore, client: AsyncClient
) -> None:
    with pytest.raises(LeaseLost):
        async with client.leases.keeper(1) as keeper:
            store.end_lease(keeper.lease)
            await asyncio.wait_for(asyncio.sleep(60), 5)
    current = asyncio.current_task()
    assert current is not None and current.cancelling() == 0


async def test_a_keeper_that_cannot_renew_gives_up_at_the_ttl_and_not_before(
    store: FakeStore, client: AsyncClient
) -> None:
    told: list[LeaseLost] = []
    loop = asyncio.get_running_loop()
    async with client.leases.keeper(1, cancel_on_loss=False, on_loss=told.append) as keeper:
        started = loop.time()
        store.fault("problem", path="/api/leases/", times=9999)
        loss = await asyncio.wait_for(keeper.wait_lost(), 5)
        assert 0.9 <= loop.time() - started <= 1.6
        assert told == [loss] and keeper.lost
        with pytest.raises(LeaseLost):
            keeper.check()


async def test_an_error_of_the_block_comes_out_as_it_is(client: AsyncClient) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.leases.keeper(5):
            raise ZeroDivisionError


async def test_a_registration_that_expired_is_made_again(
    store: FakeStore, client: AsyncClient
) -> None:
    async with client.services.registered("web", "w1", "h", 80, ttl=1) as keeper:
        store.end_instance(("web", "w1"), "expired")
        await asyncio.wait_for(_until(lambda: keeper.registrations == 2), 5)
        assert ("web", "w1") in store.instances and not keeper.lost
        # A long outage is survived too: the registration is the process's for as long as it runs.
        store.fault("problem", path="/api/services/", times=9999)
        await asyncio.sleep(1.2)
        store.faults.clear()
        store.end_instance(("web", "w1"), "expired")
        await asyncio.wait_for(_until(lambda: keeper.registrations == 3), 5)
    assert store.instances == {}


async def test_a_registration_that_was_taken_over_is_lost(
    store: FakeStore, client: AsyncClient
) -> None:
    with pytest.raises(LeaseLost, match="web/w1"):
        async with client.services.registered("web", "w1", "h", 80, ttl=1):
            store.end_instance(("web", "w1"), "expired")
            await client.services.register("web", "w1", "other", 81)
            store.fault(
                "problem",
                path="/api/services/web/w1/heartbeat",
                status=409,
                code="instance_claimed",
            )
            await asyncio.wait_for(asyncio.sleep(60), 5)
    assert store.instances["web", "w1"]["address"] == "other"


async def test_locks_exclude_go_in_order_and_hand_out_growing_tokens(
    store: FakeStore, client: AsyncClient
) -> None:
    order: list[tuple[int, int]] = []
    inside = 0

    async def contend(number: int) -> None:
        nonlocal inside
        async with client.locks.hold("a/b", str(number), ttl=5) as lock:
            inside += 1
            assert inside == 1
            holder = await client.locks.holder("a/b")
            assert holder is not None and holder.token == lock.token
            assert (await client.txn().when(lock.guard()).commit()).succeeded
            order.append((lock.token, number))
            inside -= 1

    await asyncio.gather(*(contend(number) for number in range(5)))
    assert order == sorted(order) and len(order) == 5
    assert await client.locks.holder("a/b") is None
    assert store.keys == {} and store.leases == {}


async def test_waiting_for_a_lock_ends_in_time_and_leaves_the_line(
    store: FakeStore, client: AsyncClient
) -> None:
    async with client.locks.hold("x", ttl=5):
        with pytest.raises(TimeoutError):
            async with client.locks.hold("x", ttl=5, wait=0.1):
                raise AssertionError("held twice")
        assert len(store.keys) == 1


async def test_losing_the_lease_of_a_lock_hands_it_on(
    store: FakeStore, client: AsyncClient
) -> None:
    first = client.locks.hold("x", ttl=1, cancel_on_loss=False)
    async with first:
        waiting = asyncio.create_task(_enter(client))
        await asyncio.wait_for(_until(lambda: len(store.keys) == 2), 5)
        store.end_lease(first.lease)
        assert await asyncio.wait_for(waiting, 5) > first.token
        assert not (await client.txn().when(first.guard()).commit()).succeeded
        await asyncio.wait_for(first.wait_lost(), 5)


async def _enter(client: AsyncClient) -> int:
    async with client.locks.hold("x", ttl=5) as lock:
        return lock.token


async def test_an_election_can_be_observed(client: AsyncClient) -> None:
    seen = client.elections.observe("boss")
    assert await anext(seen) is None
    async with client.elections.campaign("boss", "me", ttl=5) as tenure:
        leader = await asyncio.wait_for(anext(seen), 5)
        assert leader is not None and (leader.value, leader.token) == (b"me", tenure.token)
    assert await asyncio.wait_for(anext(seen), 5) is None
    await seen.aclose()  # type: ignore[attr-defined]


STREAM = (
    'id: 4\nevent: put\ndata: {"a":\ndata: 1}\n\n: a comment\n\ndata: \u20ac\r\n\r\nevent: x\n\n'
    "id: 5\ndata:tight\n\nretry: 10\ndata: unfinished\n"
).encode()
EVENTS = [
    ServerEvent("put", b'{"a":\n1}', "4"),
    ServerEvent("message", "\u20ac".encode(), None),
    ServerEvent("message", b"tight", "5"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_are_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    parser, found = EventParser(), []
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(places):
        found += parser.feed(STREAM[start:end])
    assert found == EVENTS


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.client.sse.EVENT_BYTES_MAX", 100)
    parser = EventParser()
    with pytest.raises(BadAnswer):
        for _ in range(50):
            list(parser.feed(b"data: 0123456789\n"))
