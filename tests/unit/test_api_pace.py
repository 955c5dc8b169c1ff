"""Rates and connections of one client: refused by name, counted, and of nobody else's concern."""

from __future__ import annotations

import contextlib

import grpc.aio
import pytest

from raftkv.api.gate import Gate
from raftkv.api.http.door import start_http
from raftkv.api.pace import Buckets, Pace
from raftkv.errors import TooManyRequests
from raftkv.limits import RATE_BURST_SECONDS, RATE_CLIENTS_MAX
from raftkv.server.local import LocalStore
from tests.unit.auth_support import guarded
from tests.unit.etcd_support import EtcdCalls
from tests.unit.http_support import serving, until


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    buckets = Buckets(10, clock)
    burst = 10 * RATE_BURST_SECONDS
    assert [buckets.wait_seconds("a") for _ in range(burst)] == [0.0] * burst
    assert buckets.wait_seconds("a") == pytest.approx(0.1)
    assert buckets.wait_seconds("b") == 0.0
    taken = 0
    for _ in range(1_000):
        clock.now += 0.01
        taken += buckets.wait_seconds("a") == 0.0
    assert taken == pytest.approx(100, abs=1)
    clock.now += 1_000
    assert sum(buckets.wait_seconds("a") == 0.0 for _ in range(100)) == burst


def test_refusals_cost_nothing_of_what_comes_back() -> None:
    clock = Clock()
    buckets = Buckets(1, clock)
    while buckets.wait_seconds("a") == 0.0:
        pass
    for _ in range(50):
        buckets.wait_seconds("a")
    clock.now += 1.001
    assert buckets.wait_seconds("a") == 0.0


def test_names_are_forgotten_by_how_long_they_were_quiet() -> None:
    buckets = Buckets(1, Clock())
    while buckets.wait_seconds("loud") == 0.0:
        pass
    for number in range(RATE_CLIENTS_MAX - 1):
        buckets.wait_seconds(f"n{number}")
        if number % 1_000 == 0:
            assert buckets.wait_seconds("loud") > 0.0
    assert len(buckets._kept) == RATE_CLIENTS_MAX
    buckets.wait_seconds("one more")
    assert len(buckets._kept) == RATE_CLIENTS_MAX
    assert buckets.wait_seconds("loud") > 0.0


def test_what_is_not_limited_is_never_refused() -> None:
    pace = Pace(0, 5, Clock())
    for _ in range(1_000):
        pace.of_address("10.0.0.1")
        pace.of_user("")
    with pytest.raises(TooManyRequests) as caught:
        for _ in range(100):
            pace.of_user("ann")
    assert caught.value.facts == {"limit": 5, "per": "user", "retry_after": 1}
    assert pace.refused == {"address": 0, "user": 1}


async def test_over_http_it_is_429_with_when_to_come_back() -> None:
    clock = Clock()

    def gate(store: LocalStore) -> Gate:
        return Gate(store, pace=Pace(5, 0, clock))

    async with serving(gate=gate) as served:
        for _ in range(5 * RATE_BURST_SECONDS):
            assert (await served.call("PUT", "/api/kv/a", b"1")).status == 200
        revision = served.store.machine.revision
        refused = await served.call("PUT", "/api/kv/a", b"2")
        assert refused.status == 429 and refused.headers["Retry-After"] == "1"
        assert refused.json["code"] == "too_many_requests"
        assert refused.json["outcome"] == "refused"
        assert served.store.machine.revision == revision
        clock.now += 2
        text = (await served.call("GET", "/metrics")).body.decode()
        assert 'raftkv_requests_over_rate_total{per="address"} 1.0' in text


async def test_a_user_is_limited_wherever_they_come_from_and_alone() -> None:
    async with guarded(pace=Pace(0, 3, Clock())) as door:
        statuses = [(await door.by("root", "GET", "/api/members")).status for _ in range(20)]
        assert statuses.count(429) and statuses[-1] == 429 and statuses[0] == 200
        assert (await door.by("alice", "GET", "/api/members")).status == 200


async def test_over_grpc_it_is_resource_exhausted() -> None:
    store = LocalStore()
    listener = await start_http(store, "127.0.0.1", 0, gate=Gate(store, pace=Pace(4, 0, Clock())))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            client = EtcdCalls(channel)
            for _ in range(4 * RATE_BURST_SECONDS):
                await client.Put(key=b"a", value=b"1")
            code, text = await client.refused("Put", key=b"a", value=b"2")
            assert code == "RESOURCE_EXHAUSTED" and "too many requests" in text
    finally:
        await listener.close(1.0)
        store.close()


async def test_one_address_may_have_so_many_connections_and_no_more() -> None:
    async with serving() as served:
        served.listener.connections_per_address_max = 3
        held = [await served.raw() for _ in range(3)]
        for raw in held:
            raw.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await raw.answer())[0] == 200
        refused = await served.raw()
        with contextlib.suppress(ConnectionError):
            assert await refused.rest() == b""
        assert served.listener.connections_refused == 1
        await held[0].close()
        await until(lambda: len(served.listener.connections) == 2)
        again = await served.raw()
        again.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await again.answer())[0] == 200
        for raw in (again, *held):
            await raw.close()
        await until(lambda: not served.listener.connections)
        assert not served.listener._by_address and not served.listener._address_of
