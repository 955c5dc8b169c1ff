"""etcd's Watch service: one stream, many watchers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from raftkv.api.etcd import watch as watch_module
from raftkv.api.etcd.messages import ETCD
from raftkv.machine.commands import compact, delete, put
from tests.unit.etcd_support import EtcdClient, etcd_served


class Stream:
    """A Watch call of one client."""

    def __init__(self, client: EtcdClient, metadata: Any = None) -> None:
        method, self._request = client.method("Watch")
        self.call = method(metadata=metadata)

    async def send(self, kind: str, **fields: Any) -> None:
        name = "".join(part.title() for part in kind.split("_"))
        body = ETCD.message(f"etcdserverpb.Watch{name}Request")(**fields)
        await self.call.write(self._request(**{f"{kind}_request": body}))

    async def receive(self) -> Any:
        return await asyncio.wait_for(self.call.read(), 10)

    async def create(self, **fields: Any) -> Any:
        await self.send("create", **fields)
        created = await self.receive()
        assert created.created
        return created

    async def events(self) -> list[tuple[int, int, bytes, bytes]]:
        """(watch id, revision, key, value or b"-" for a deletion) of one response."""
        answer = await self.receive()
        return [
            (answer.watch_id, event.kv.mod_revision, event.kv.key,
             b"-" if event.type else event.kv.value)
            for event in answer.events
        ]  # fmt: skip


@pytest.fixture
async def client() -> AsyncIterator[EtcdClient]:
    async with etcd_served() as client:
        yield client


async def test_watchers_of_one_stream(client: EtcdClient) -> None:
    stream = Stream(client)
    first = await stream.create(key=b"a")
    assert (first.watch_id, first.header.revision, first.header.member_id) == (0, 1, 7)
    assert (await stream.create(key=b"p/", range_end=b"p0", watch_id=5)).watch_id == 5
    assert (await stream.create(key=b"\0", range_end=b"\0", filters=[0])).watch_id == 1
    await client.Put(key=b"a", value=b"1")
    assert await stream.events() == [(0, 2, b"a", b"1")]
    await client.Put(key=b"p/x", value=b"2")
    assert await stream.events() == [(5, 3, b"p/x", b"2")]
    await client.DeleteRange(key=b"a")
    told = [await stream.events(), await stream.events()]
    assert sorted(told) == [[(0, 4, b"a", b"-")], [(1, 4, b"a", b"-")]]
    await stream.send("cancel", watch_id=0)
    gone = await stream.receive()
    assert (gone.watch_id, gone.canceled, gone.header.revision) == (0, True, 4)
    await stream.send("cancel", watch_id=77)
    await stream.send("progress")
    progress = await stream.receive()
    assert (progress.watch_id, progress.header.revision, len(progress.events)) == (-1, 4, 0)
    stream.call.cancel()
    while len(client.store.hub):
        await asyncio.sleep(0.01)


async def test_history_comes_first_with_what_was_before(client: EtcdClient) -> None:
    await client.Put(key=b"k", value=b"1")
    await client.Put(key=b"k", value=b"2")
    await client.DeleteRange(key=b"k")
    stream = Stream(client)
    await stream.create(key=b"k", start_revision=2, prev_kv=True)
    answer = await stream.receive()
    assert [event.kv.mod_revision for event in answer.events] == [2, 3, 4]
    assert [event.HasField("prev_kv") for event in answer.events] == [False, True, True]
    assert [event.prev_kv.value for event in answer.events][1:] == [b"1", b"2"]
    assert answer.header.revision == 4
    await stream.create(key=b"k", start_revision=6)
    await client.Put(key=b"k", value=b"3")
    assert (await stream.events())[0][:2] == (0, 5)
    await client.Put(key=b"k", value=b"4")
    assert {(await stream.events())[0][0] for _ in range(2)} == {0, 1}
    stream.call.cancel()


async def test_watchers_that_cannot_be(client: EtcdClient) -> None:
    for number in range(5):
        client.store.propose(put(b"k", b"%d" % number), lambda _: None)
    client.store.propose(compact(4), lambda _: None)
    await client.Range(key=b"k")
    stream = Stream(client)
    for fields, reason in [
        ({"key": b"b", "range_end": b"a"}, "mvcc: watcher range is empty"),
        ({"key": b"b", "start_revision": -1},
         "etcdserver: mvcc: required revision has been compacted"),
    ]:  # fmt: skip
        refused = await stream.create(**fields)
        assert (refused.watch_id, refused.canceled, refused.cancel_reason) == (-1, True, reason)
    await stream.create(key=b"a", watch_id=3)
    refused = await stream.create(key=b"b", watch_id=3)
    assert refused.cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"
    late = await stream.create(key=b"k", start_revision=2)
    assert (late.watch_id, late.canceled) == (0, False)
    gone = await stream.receive()
    assert (gone.watch_id, gone.canceled, gone.compact_revision) == (0, True, 4)
    assert gone.header.revision == 0
    await stream.create(key=b"k", start_revision=4)
    stream.call.cancel()


@pytest.mark.interpreted
async def test_a_large_revision_is_split_only_if_wished(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "GRPC_MESSAGE_BYTES_MAX", 4000)
    stream = Stream(client)
    await stream.create(key=b"k", range_end=b"l", fragment=True)
    await stream.create(key=b"k", range_end=b"l")
    message = ETCD.message("etcdserverpb.RequestOp")
    operations = [message(request_put={"key": b"k%d" % n, "value": bytes(1000)}) for n in range(10)]
    await client.Txn(success=operations)
    parts: dict[int, list[Any]] = {0: [], 1: []}
    while len(parts[1]) < 1 or not parts[0] or parts[0][-1].fragment:
        answer = await stream.receive()
        parts[answer.watch_id].append(answer)
    assert [len(part.events) for part in parts[0]] == [3, 3, 3, 1]
    assert [part.fragment for part in parts[0]] == [True, True, True, False]
    assert [len(part.events) for part in parts[1]] == [10]
    stream.call.cancel()


async def test_a_client_that_does_not_read_holds_nobody_up_and_misses_nothing(
    client: EtcdClient,
) -> None:
    stream = Stream(client)
    await stream.create(key=b"k")
    for number in range(300):
        client.store.propose(put(b"k", b"%06d" % number + bytes(20_000)), lambda _: None)
        if number % 50 == 0:
            await client.Range(key=b"k")
    seen: list[int] = []
    while len(seen) < 300:
        seen += [revision for _, revision, _, _ in await stream.events()]
    assert seen == list(range(2, 302))
    stream.call.cancel()


async def test_progress_marks_are_for_those_who_asked(client: EtcdClient) -> None:
    stream = Stream(client)
    await stream.create(key=b"a", progress_notify=True)
    await stream.create(key=b"b")
    client.store.propose(delete(b"c"), lambda _: None)
    await client.Put(key=b"c")
    client.store.hub.mark_progress()
    client.store.hub.pump()
    client.store._loop.call_soon(lambda: None)
    await client.Put(key=b"b", value=b"1")
    mark = await stream.receive()
    assert (mark.watch_id, mark.header.revision, len(mark.events)) == (0, 2, 0)
    assert await stream.events() == [(1, 3, b"b", b"1")]
    stream.call.cancel()


async def test_streams_end_when_the_member_stops(client: EtcdClient) -> None:
    stream = Stream(client)
    await stream.create(key=b"a")
    closing = asyncio.create_task(client.listener.close(5.0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while True:
            await stream.receive()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await closing
    assert len(client.store.hub) == 0


async def test_a_watcher_too_many_is_refused_and_the_stream_goes_on(client: EtcdClient) -> None:
    client.store.hub.watches_max = 1
    stream = Stream(client)
    await stream.create(key=b"a")
    refused = await stream.create(key=b"b")
    assert (refused.watch_id, refused.canceled) == (-1, True)
    text = "rpc error: code = ResourceExhausted desc = etcdserver: too many requests"
    assert refused.cancel_reason == text
    await client.Put(key=b"a", value=b"1")
    assert await stream.events() == [(0, 2, b"a", b"1")]
    stream.call.cancel()


async def test_progress_is_not_told_while_a_watcher_is_behind(client: EtcdClient) -> None:
    await client.Put(key=b"a", value=b"1")
    client.store._pumping = True  # nothing is fed from history for now
    stream = Stream(client)
    await stream.create(key=b"a", start_revision=2)
    await stream.send("progress")
    await stream.create(key=b"b", start_revision=-1)  # answered, so the question was read
    client.store._pump()
    assert await stream.events() == [(0, 2, b"a", b"1")]
    await stream.send("progress")
    progress = await stream.receive()
    assert (progress.watch_id, progress.header.revision) == (-1, 2)
    stream.call.cancel()
