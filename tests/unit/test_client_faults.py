"""The client under faults: fails over, retries what is safe, and never writes twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from raftkv.client import AsyncClient, PreconditionFailed, Unreachable
from raftkv.client.errors import BadAnswer
from raftkv.errors import (
    Compacted,
    IdempotencyMismatch,
    NoLeader,
    OperatingError,
    OutcomeUnknown,
    ReadTimedOut,
    Refused,
    TooManyRequests,
)
from tests.unit.client_fake_store import FakeStore


@pytest.fixture
async def store() -> AsyncIterator[FakeStore]:
    fake = FakeStore(endpoints=3)
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def client(store: FakeStore) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(store.urls, timeout=3, patience=0) as made:
        yield made


async def test_a_refused_connection_goes_to_the_next_endpoint_and_stays_there(
    store: FakeStore, client: AsyncClient
) -> None:
    await store.kill(0)
    await client.put("a", "1")
    await client.put("a", "2")
    assert [seen.endpoint for seen in store.seen] == [1, 1]
    assert store.applied == 2


async def test_nothing_reachable_is_definite_and_quick(store: FakeStore) -> None:
    for endpoint in range(3):
        await store.kill(endpoint)
    async with AsyncClient(store.urls, timeout=30, patience=0) as client:
        with pytest.raises(Unreachable, match=r"none of .* can be reached"):
            await asyncio.wait_for(client.put("a", "1"), 5)


async def test_patience_waits_for_a_store_that_comes_up(store: FakeStore) -> None:
    await store.kill(0)
    async with AsyncClient(store.urls[0], timeout=5, patience=0.2) as client:
        started = asyncio.get_running_loop().time()
        with pytest.raises(Unreachable, match="connection refused"):
            await client.get("a")
        assert 0.2 <= asyncio.get_running_loop().time() - started < 3


@pytest.mark.parametrize("code", ["no_leader", "stopping", "leadership_lost", "not_leader"])
async def test_a_passing_refusal_is_retried_even_without_an_idempotency_key(
    store: FakeStore, code: str
) -> None:
    store.fault("problem", code=code, times=2)
    async with AsyncClient(store.urls, timeout=3, idempotency=False) as client:
        assert (await client.put("a", "1")).version == 1
    assert len(store.calls("PUT")) == 3
    assert store.applied == 1


async def test_a_reset_after_the_write_is_repeated_under_its_key_and_done_once(
    store: FakeStore, client: AsyncClient
) -> None:
    store.fault("reset_after", method="PUT")
    result = await client.put("a", "1")
    assert (result.version, store.applied) == (1, 1)
    first, second = store.calls("PUT")
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert first.endpoint != second.endpoint


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
async def test_a_write_without_a_key_is_sent_once_and_its_outcome_is_unknown(
    store: FakeStore, method: str
) -> None:
    store.fault("reset_after", method=method)
    async with AsyncClient(store.urls, timeout=3, idempotency=False) as client:
        with pytest.raises(OutcomeUnknown, match="may have taken effect"):
            if method == "PUT":
                await client.put("a", "1")
            elif method == "DELETE":
                await client.delete("a")
            else:
                await client.txn().commit()
    assert len(store.calls(method)) == 1, "aiohttp must not repeat it either"


async def test_a_stale_connection_does_not_make_a_bare_write_go_twice(store: FakeStore) -> None:
    async with AsyncClient(store.urls[0], timeout=3, idempotency=False) as client:
        await client.put("a", "1")
        store.fault("reset_before", method="PUT")
        with pytest.raises(OutcomeUnknown):
            await client.put("a", "2")
    assert len(store.calls("PUT")) == 2


async def test_a_hung_member_does_not_use_up_the_deadline(store: FakeStore) -> None:
    store.fault("hang", endpoint=0)
    async with AsyncClient(store.urls, timeout=2) as client:
        assert await client.get("a") is None
    assert [seen.endpoint for seen in store.seen] == [0, 1]


async def test_a_read_that_is_never_answered_is_definite(store: FakeStore) -> None:
    store.fault("hang", times=99)
    async with AsyncClient(store.urls[0], timeout=0.2) as client:
        with pytest.raises(ReadTimedOut, match="did not answer"):
            await client.get("a")


async def test_a_write_that_is_never_answered_is_unknown(store: FakeStore) -> None:
    store.fault("hang_after", times=99)
    async with AsyncClient(store.urls[0], timeout=0.2) as client:
        with pytest.raises(OutcomeUnknown, match="did not answer"):
            await client.put("a", "1")


async def test_a_doubt_is_not_removed_by_a_later_refusal_of_a_door(store: FakeStore) -> None:
    store.fault("reset_after", method="PUT", endpoint=0)
    store.fault("problem", code="no_leader", times=999)
    async with AsyncClient(store.urls, timeout=0.6) as client:
        with pytest.raises(OutcomeUnknown, match="later attempts ended with"):
            await client.put("a", "1")
    assert store.applied == 1


async def test_a_doubt_is_settled_by_an_answer_of_the_machine(
    store: FakeStore, client: AsyncClient
) -> None:
    await client.put("a", "1")
    store.fault("reset_before", method="PUT")
    with pytest.raises(PreconditionFailed) as caught:
        await client.put("a", "2", if_absent=True)
    assert caught.value.facts["current"]["value"] == "1"


async def test_unknown_from_the_member_is_retried_only_under_a_key(store: FakeStore) -> None:
    store.fault("problem", status=504, code="outcome_unknown", outcome="unknown", times=2)
    async with AsyncClient(store.urls, timeout=3) as keyed:
        await keyed.put("a", "1")
    async with AsyncClient(store.urls, timeout=3, idempotency=False) as bare:
        store.fault("problem", status=504, code="outcome_unknown", outcome="unknown")
        with pytest.raises(OutcomeUnknown):
            await bare.put("a", "2")
    assert store.applied == 1


async def test_a_failure_of_the_member_leaves_a_write_open_but_not_a_read(
    store: FakeStore, client: AsyncClient
) -> None:
    store.fault("problem", status=500, code="storage", outcome="failed")
    with pytest.raises(OperatingError):
        await client.get("a")
    store.fault("problem", status=500, code="internal", outcome="failed", times=99)
    with pytest.raises(OutcomeUnknown):
        await client.put("a", "1", timeout=0.3)


async def test_what_is_no_raftkv_is_said_so(store: FakeStore, client: AsyncClient) -> None:
    store.fault("raw", status=404)
    with pytest.raises(BadAnswer, match="404"):
        await client.get("a")
    store.fault("raw", status=404)
    with pytest.raises(BadAnswer):
        await client.put("a", "1")
    store.fault("raw", status=200)
    with pytest.raises(BadAnswer, match="not JSON"):
        await client.get("a")
    store.fault("raw", status=502, times=99)
    with pytest.raises(OutcomeUnknown):
        await client.put("a", "1", timeout=0.2)


async def test_load_shedding_is_waited_out_as_asked(store: FakeStore, client: AsyncClient) -> None:
    store.fault("problem", status=429, code="too_many_requests", headers={"Retry-After": "1"})
    started = asyncio.get_running_loop().time()
    await client.put("a", "1")
    assert asyncio.get_running_loop().time() - started >= 0.5
    store.fault("problem", status=429, code="too_many_requests", times=99)
    with pytest.raises(TooManyRequests):
        await client.put("a", "1", timeout=0.2)


async def test_waking_up_past_the_deadline_leaves_a_refusal_one(
    store: FakeStore, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep

    async def oversleep(seconds: float) -> None:
        await sleep(seconds + 0.2)

    store.fault("problem", status=429, code="too_many_requests", times=99)
    monkeypatch.setattr(asyncio, "sleep", oversleep)
    with pytest.raises(TooManyRequests):
        await client.put("a", "1", timeout=0.2)


async def test_no_leader_until_the_deadline_is_a_refusal(store: FakeStore) -> None:
    store.fault("problem", code="no_leader", times=999)
    async with AsyncClient(store.urls, timeout=0.3) as client:
        with pytest.raises(NoLeader):
            await client.put("a", "1")


async def test_lasting_refusals_come_at_once(store: FakeStore, client: AsyncClient) -> None:
    store.fault("problem", status=410, code="compacted", facts={"oldest_revision": 9})
    with pytest.raises(Compacted) as caught:
        await client.get("a", revision=3)
    assert caught.value.facts["oldest_revision"] == 9
    store.fault("problem", status=409, code="idempotency_mismatch")
    with pytest.raises(IdempotencyMismatch):
        await client.put("a", "1")
    store.fault("problem", status=400, code="from_the_future")
    with pytest.raises(Refused) as unknown:
        await client.put("a", "1")
    assert unknown.value.facts["code"] == "from_the_future"
    assert len(store.seen) == 3


async def test_cancelling_a_call_leaves_the_client_usable(
    store: FakeStore, client: AsyncClient
) -> None:
    store.fault("hang")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.get("a"), 0.05)
    await client.put("a", "1")
