"""etcd's API on three real members: any of them serves, and what one did the others show."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from raftkv.api.etcd.messages import ETCD
from raftkv.server.offline import snapshot_status
from tests.support.processes import Cluster, running
from tests.unit.etcd_support import EtcdCalls


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path, 3) as cluster:
        yield cluster


@pytest.fixture
async def clients(cluster: Cluster) -> AsyncIterator[list[EtcdCalls]]:
    """One for each member."""
    channels = [grpc.aio.insecure_channel(url.removeprefix("http://")) for url in cluster.urls]
    yield [EtcdCalls(channel) for channel in channels]
    for channel in channels:
        await channel.close()


async def test_every_member_serves(clients: list[EtcdCalls]) -> None:
    for number, client in enumerate(clients):
        await client.LeaseGrant(ID=number + 1, TTL=60)
        await client.Put(key=b"k%d" % number, value=b"v", lease=number + 1)
        for other in clients:
            assert (await other.Range(key=b"k%d" % number)).kvs[0].lease == number + 1
            told = await other.LeaseTimeToLive(ID=number + 1, keys=True)
            assert list(told.keys) == [b"k%d" % number] and 50 <= told.TTL <= 60
    hashes = {(await client.HashKV(revision=4)).hash for client in clients}
    assert len(hashes) == 1
    statuses = [await client.Status() for client in clients]
    assert len({status.leader for status in statuses}) == 1
    assert sum(status.leader == status.header.member_id for status in statuses) == 1
    listed = await clients[0].MemberList(linearizable=True)
    assert sorted(member.name for member in listed.members) == ["n1", "n2", "n3"]


async def test_a_lock_is_one_for_all_members(clients: list[EtcdCalls]) -> None:
    await clients[0].LeaseGrant(ID=1, TTL=60)
    await clients[1].LeaseGrant(ID=2, TTL=60)
    first = await clients[0].Lock(name=b"l", lease=1)
    second = asyncio.ensure_future(clients[1].Lock(name=b"l", lease=2))
    while (await clients[2].Range(key=b"l/", range_end=b"l0", count_only=True)).count < 2:
        await asyncio.sleep(0.01)
    assert not second.done()
    await clients[2].Unlock(key=first.key)
    assert (await asyncio.wait_for(second, 5)).key == b"l/2"


async def test_leadership_moves_and_a_stream_stays(clients: list[EtcdCalls]) -> None:
    status = await clients[0].Status()
    by_id = {(await client.Status()).header.member_id: client for client in clients}
    leader = by_id.pop(status.leader)
    (target, follower), *_ = by_id.items()
    assert await follower.refused("MoveLeader", targetID=target) == (
        "FAILED_PRECONDITION", "etcdserver: not leader",
    )  # fmt: skip
    method, request = follower.method("Watch")
    stream = method()
    create = ETCD.message("etcdserverpb.WatchCreateRequest")(key=b"k")
    await stream.write(request(create_request=create))
    assert (await stream.read()).created
    await leader.MoveLeader(targetID=target)
    seen: list[Any] = []
    await leader.Put(key=b"k", value=b"after")
    while not seen:
        seen += (await asyncio.wait_for(stream.read(), 10)).events
    assert seen[0].kv.value == b"after"
    assert (await follower.Status()).leader == target
    stream.cancel()


async def test_a_snapshot_is_a_file_that_can_be_restored(
    clients: list[EtcdCalls], tmp_path: Path
) -> None:
    await clients[0].Put(key=b"k", value=bytes(100_000))
    whole = b"".join([part.blob async for part in clients[1].Snapshot()])
    assert hashlib.sha256(whole[:-32]).digest() == whole[-32:]
    # What etcd's own client demands of the length before it takes a file.
    assert len(whole) % 512 == 32
    (tmp_path / "snapshot").write_bytes(whole)
    assert snapshot_status(tmp_path / "snapshot")["keys"] == 1


async def test_a_member_added_by_an_etcd_client_joins(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as cluster:
        url = cluster.urls[0].removeprefix("http://")
        async with grpc.aio.insecure_channel(url) as channel:
            client = EtcdCalls(channel)
            await client.Put(key=b"k", value=b"v")
            # etcd's protocol gives a new member no name: it brings its own when it starts.
            member = cluster._new_member()
            added = await client.MemberAdd(peerURLs=[member.peer_url], isLearner=True)
            assert (added.member.name, len(added.members)) == ("", 2)
            await cluster.start_added(member)
            await cluster.ready_or_learner(member)
            while True:
                try:
                    await client.MemberPromote(ID=added.member.ID)
                    break
                except grpc.aio.AioRpcError as error:
                    assert "in sync with leader" in str(error.details())
                    await asyncio.sleep(0.1)
            await cluster.ready(member)
            while not all(each.name for each in (await client.MemberList()).members):
                await asyncio.sleep(0.1)
            other = member.client_url.removeprefix("http://")
            async with grpc.aio.insecure_channel(other) as second:
                assert (await EtcdCalls(second).Range(key=b"k")).kvs[0].value == b"v"
            await client.MemberRemove(ID=added.member.ID)
            assert len((await client.MemberList(linearizable=True)).members) == 1


async def test_metrics_that_dashboards_of_etcd_read_are_measured(
    cluster: Cluster, clients: list[EtcdCalls]
) -> None:
    for client in clients:
        await client.Put(key=b"k", value=b"v")
    others = {f"{(await client.Status()).header.member_id:x}" for client in clients[1:]}
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        _, page, _ = await cluster.call(cluster.members[0], "GET", "/metrics")
        samples = {
            (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
        }
        pinged = [("etcd_network_peer_round_trip_time_seconds_count", each) for each in others]
        if all(samples.get(name, 0) for name in pinged):
            break
        assert asyncio.get_running_loop().time() < deadline, samples
        await asyncio.sleep(0.1)
    for name in (
        "etcd_disk_wal_fsync_duration_seconds",
        "etcd_disk_backend_commit_duration_seconds",
    ):
        assert samples[f"{name}_bucket", "+Inf"] == samples[f"{name}_count",] >= 3
        assert samples[f"{name}_sum",] > 0
    for each in others:
        assert samples["etcd_network_peer_sent_bytes_total", each] > 0
        assert samples["etcd_network_peer_received_bytes_total", each] > 0
    assert samples["etcd_network_client_grpc_sent_bytes_total",] > 0
    assert samples["grpc_server_handled_total", "OK", "Put", "etcdserverpb.KV", "unary"] == 1
