"""etcd's Lease, Cluster, Maintenance, Lock, Election and Auth services over gRPC."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc.aio
import pytest

from raftkv.api.etcd.messages import ETCD
from raftkv.errors import ChangeRefused
from raftkv.machine.commands import alarm
from raftkv.server.store import MemberInfo
from tests.unit.etcd_support import EtcdClient, etcd_served, shown


@pytest.fixture
async def client() -> AsyncIterator[EtcdClient]:
    async with etcd_served() as client:
        yield client


# ---- leases


async def test_a_lease_from_grant_to_revoke(client: EtcdClient) -> None:
    granted = await client.LeaseGrant(ID=5, TTL=100)
    assert (granted.ID, granted.TTL, granted.header.revision) == (5, 100, 1)
    assert (await client.LeaseGrant(TTL=-3)).TTL == 2
    drawn = await client.LeaseGrant(TTL=1)
    assert drawn.ID > 0 and drawn.TTL == 2
    await client.Put(key=b"k", lease=5)
    told = await client.LeaseTimeToLive(ID=5, keys=True)
    assert told.grantedTTL == 100 and 90 < told.TTL <= 100 and list(told.keys) == [b"k"]
    assert not (await client.LeaseTimeToLive(ID=5)).keys
    assert 5 in [lease.ID for lease in (await client.LeaseLeases()).leases]
    assert (await client.LeaseRevoke(ID=5)).header.revision == 3
    assert (await client.Range(key=b"k")).count == 0
    gone = await client.LeaseTimeToLive(ID=5)
    assert (gone.ID, gone.TTL, gone.grantedTTL) == (5, -1, 0)


async def test_leases_that_are_refused(client: EtcdClient) -> None:
    await client.LeaseGrant(ID=5, TTL=100)
    assert await client.refused("LeaseGrant", ID=5, TTL=9) == (
        "FAILED_PRECONDITION", "etcdserver: lease already exists",
    )  # fmt: skip
    assert await client.refused("LeaseGrant", ID=6, TTL=9_000_000_001) == (
        "OUT_OF_RANGE", "etcdserver: too large lease TTL",
    )  # fmt: skip
    assert await client.refused("LeaseRevoke", ID=6) == (
        "NOT_FOUND", "etcdserver: requested lease not found",
    )  # fmt: skip


async def test_keep_alives_are_answered_in_order(client: EtcdClient) -> None:
    await client.LeaseGrant(ID=5, TTL=100)
    await client.LeaseGrant(ID=6, TTL=50)
    method, request = client.method("LeaseKeepAlive")
    asked = [5, 99, 6, 5] * 400
    answers = [answer async for answer in method(iter([request(ID=lease) for lease in asked]))]
    expected = {5: 100, 6: 50, 99: 0}
    assert [(answer.ID, answer.TTL) for answer in answers] == [(i, expected[i]) for i in asked]
    assert answers[0].header.member_id == 7


async def test_keep_alives_of_a_stream_are_judged_by_rules_that_came_later(
    client: EtcdClient,
) -> None:
    await client.LeaseGrant(ID=5, TTL=100)
    method, request = client.method("LeaseKeepAlive")
    call = method()
    for _ in range(20):
        await call.write(request(ID=5))
    assert [(await call.read()).TTL for _ in range(20)] == [100] * 20
    await client.UserAdd(name="root", password="p")
    await client.RoleAdd(name="root")
    await client.UserGrantRole(user="root", role="root")
    await client.AuthEnable()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.write(request(ID=5))
        await call.read()
    assert caught.value.details() == "etcdserver: user name is empty"


async def test_many_leases_are_kept_alive_under_odd_encodings(client: EtcdClient) -> None:
    """Requests are remembered by their bytes, of which there may be many for one lease."""
    await client.LeaseGrant(ID=5, TTL=100)
    path = "/etcdserverpb.Lease/LeaseKeepAlive"
    _, request = client.method("LeaseKeepAlive")
    answer = ETCD.message("etcdserverpb.LeaseKeepAliveResponse")
    call = client.channel.stream_stream(path, None, answer.FromString)
    asked = [
        b"\x08\x05", b"\x08\x85\x00", b"", b"\x08\x07\x08\x05",
        b"\x08\x05\x7a\x20" + bytes(32), request(ID=-1).SerializeToString(),
    ] * 3  # fmt: skip
    answers = [got async for got in call(iter(asked))]
    expected = [(5, 100), (5, 100), (0, 0), (5, 100), (5, 100), (-1, 0)] * 3
    assert [(got.ID, got.TTL) for got in answers] == expected


# ---- cluster, maintenance, auth


async def test_members(client: EtcdClient) -> None:
    (member,) = (await client.MemberList(linearizable=True)).members
    assert (member.ID, member.name, member.isLearner) == (7, "local", False)
    updated = await client.MemberUpdate(ID=7, peerURLs=["http://127.0.0.1:1"])
    assert len(updated.members) == 1
    for name, fields, code, text in [
        ("MemberAdd", {}, "INVALID_ARGUMENT", "given member URLs are invalid"),
        ("MemberAdd", {"peerURLs": ["nonsense"]}, "INVALID_ARGUMENT",
         "given member URLs are invalid"),
        ("MemberAdd", {"peerURLs": ["http://a:1"], "isLearner": True}, "FAILED_PRECONDITION",
         "too many learner members in cluster"),
        ("MemberRemove", {"ID": 7}, "FAILED_PRECONDITION",
         "re-configuration failed due to not enough started members"),
        ("MemberPromote", {"ID": 7}, "FAILED_PRECONDITION", "can only promote a learner member"),
        ("MemberUpdate", {"ID": 8, "peerURLs": ["http://a:1"]}, "NOT_FOUND", "member not found"),
        ("MoveLeader", {"targetID": 8}, "FAILED_PRECONDITION", "bad leader transferee"),
        ("Downgrade", {"version": "x"}, "INVALID_ARGUMENT",
         "wrong downgrade target version format"),
        ("Downgrade", {"action": 1, "version": "3.6.0"}, "INVALID_ARGUMENT",
         "invalid downgrade target version"),
        ("Downgrade", {"action": 2}, "FAILED_PRECONDITION", "no inflight downgrade job"),
        ("Authenticate", {"name": "root"}, "FAILED_PRECONDITION",
         "authentication is not enabled"),
    ]:  # fmt: skip
        assert await client.refused(name, **fields) == (code, f"etcdserver: {text}"), name
    assert (await client.MoveLeader(targetID=7)).header.member_id == 7
    status = await client.AuthStatus()
    assert (status.enabled, status.authRevision) == (False, 1)


async def test_status_and_alarms(client: EtcdClient) -> None:
    status = await client.Status()
    assert (status.version, status.leader, status.raftTerm) == ("3.7.0", 7, 1)
    assert status.raftIndex == status.raftAppliedIndex == client.store.machine.applied_index
    assert not status.errors and not (await client.Alarm()).alarms
    raised = await client.Alarm(action=1, memberID=7, alarm=1)
    assert shown(raised)["alarms"] == [{"memberID": "7", "alarm": "NOSPACE"}]
    assert list((await client.Status()).errors) == ["memberID:7 alarm:NOSPACE "]
    full = ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded")
    assert await client.refused("Put", key=b"k") == full
    assert await client.refused("LeaseGrant", TTL=9) == full
    assert (await client.DeleteRange(key=b"k")).deleted == 0
    assert len((await client.Alarm(action=2, memberID=7, alarm=1)).alarms) == 1
    assert not (await client.Alarm(action=2, memberID=7, alarm=1)).alarms
    client.store.propose(alarm(2, 7, True), lambda _: None)
    assert await client.refused("Put", key=b"k") == ("DATA_LOSS", "etcdserver: corrupt cluster")
    assert shown(await client.Defragment()) == {}


async def test_hashes(client: EtcdClient) -> None:
    await client.Put(key=b"k", value=b"1")
    first = await client.HashKV()
    assert first.hash and first.hash_revision == 2
    await client.Put(key=b"k", value=b"2")
    assert (await client.HashKV()).hash != first.hash
    assert (await client.HashKV(revision=2)).hash == first.hash
    assert (await client.Hash()).hash
    await client.Compact(revision=3)
    assert (await client.HashKV()).compact_revision == 3
    assert (await client.refused("HashKV", revision=2))[0] == "OUT_OF_RANGE"


async def test_a_snapshot_is_the_file_in_pieces(client: EtcdClient) -> None:
    await client.Put(key=b"k", value=bytes(500_000))
    whole = b""
    lefts = []
    async for part in client.Snapshot():
        lefts.append(part.remaining_bytes)
        whole += part.blob
    assert len(whole) > 500_000 and lefts[-1] == lefts[-2] == 0
    assert lefts[0] == len(whole) - 32 - 32 * 1024
    assert hashlib.sha256(whole[:-32]).digest() != b""


# ---- locks and elections


async def test_a_lock_passes_from_one_to_the_next(client: EtcdClient) -> None:
    for lease in (1, 2, 3):
        await client.LeaseGrant(ID=lease, TTL=100)
    first = await client.Lock(name=b"l", lease=1)
    assert first.key == b"l/1"
    assert (await client.Lock(name=b"l", lease=1)).key == b"l/1"
    second = asyncio.ensure_future(client.Lock(name=b"l", lease=2))
    third = asyncio.ensure_future(client.Lock(name=b"l", lease=3))
    while (await client.Range(key=b"l/", range_end=b"l0")).count < 3:
        await asyncio.sleep(0.01)
    assert not second.done() and not third.done()
    await client.Unlock(key=first.key)
    assert (await asyncio.wait_for(second, 5)).key == b"l/2"
    assert not third.done()
    await client.LeaseRevoke(ID=2)
    assert (await asyncio.wait_for(third, 5)).key == b"l/3"
    assert (await client.Lock(name=b"other")).key.startswith(b"other/")


async def test_who_gives_up_waiting_leaves_the_queue(client: EtcdClient) -> None:
    await client.LeaseGrant(ID=1, TTL=100)
    await client.LeaseGrant(ID=2, TTL=100)
    await client.Lock(name=b"l", lease=1)
    method, request = client.method("Lock")
    waiting = method(request(name=b"l", lease=2), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await waiting
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    while (await client.Range(key=b"l/", range_end=b"l0")).count > 1:
        await asyncio.sleep(0.01)
    assert (await client.refused("Lock", name=b"l", lease=77)) == (
        "UNKNOWN", "etcdserver: requested lease not found",
    )  # fmt: skip
    assert (await client.refused("Unlock")) == ("UNKNOWN", "etcdserver: key is not provided")


async def test_a_lock_whose_lease_ends_while_it_waits(client: EtcdClient) -> None:
    await client.LeaseGrant(ID=1, TTL=100)
    await client.LeaseGrant(ID=2, TTL=100)
    first = await client.Lock(name=b"l", lease=1)
    second = asyncio.ensure_future(client.Lock(name=b"l", lease=2))
    while (await client.Range(key=b"l/", range_end=b"l0")).count < 2:
        await asyncio.sleep(0.01)
    await client.LeaseRevoke(ID=2)
    await client.Unlock(key=first.key)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await second
    assert caught.value.details() == "mutex: session is expired"


async def test_an_election(client: EtcdClient) -> None:
    assert await client.refused("Leader", name=b"e") == ("UNKNOWN", "election: no leader")
    assert (await client.refused("Resign"))[1] == '"leader" field must be provided'
    for lease in (1, 2):
        await client.LeaseGrant(ID=lease, TTL=100)
    observed = client.Observe(name=b"e")
    won = await client.Campaign(name=b"e", lease=1, value=b"one")
    leader = won.leader
    assert (leader.name, leader.key, leader.rev, leader.lease) == (b"e", b"e/1", 2, 1)
    assert (await client.Leader(name=b"e")).kv.value == b"one"
    again = await client.Campaign(name=b"e", lease=1, value=b"uno")
    assert again.leader.rev == 2
    rival = asyncio.ensure_future(client.Campaign(name=b"e", lease=2, value=b"two"))
    await client.Proclaim(leader=leader, value=b"eins")
    while (await client.Range(key=b"e/", range_end=b"e0")).count < 2:
        await asyncio.sleep(0.01)
    assert not rival.done()
    await client.Resign(leader=leader)
    assert (await asyncio.wait_for(rival, 5)).leader.key == b"e/2"
    assert await client.refused("Proclaim", leader=leader, value=b"x") == (
        "UNKNOWN", "election: not leader",
    )  # fmt: skip
    assert (await client.Resign(leader=leader)).header.member_id == 7
    values: list[Any] = []
    while not values or values[-1] != b"two":
        values.append((await asyncio.wait_for(observed.read(), 5)).kv.value)
    assert values in ([b"one", b"uno", b"eins", b"two"], [b"uno", b"eins", b"two"])
    observed.cancel()


# ---- every RPC


async def test_without_a_leader_those_who_insist_are_refused(client: EtcdClient) -> None:
    client.store.health = lambda: {"no_leader": "none"}  # type: ignore[method-assign]
    insist = (("hasleader", "true"),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.Range(key=b"k", metadata=insist)
    assert (caught.value.code().name, caught.value.details()) == (
        "UNAVAILABLE", "etcdserver: no leader",
    )  # fmt: skip
    await client.Range(key=b"k")
    method, _ = client.method("Watch")
    stream = method(metadata=insist)
    create = ETCD.message("etcdserverpb.WatchCreateRequest")(key=b"a")
    client.store.health = dict  # type: ignore[method-assign]
    await stream.write(ETCD.message("etcdserverpb.WatchRequest")(create_request=create))
    assert (await stream.read()).created
    client.store.health = lambda: {"no_leader": "none"}  # type: ignore[method-assign]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await asyncio.wait_for(stream.read(), 10) is not grpc.aio.EOF:
            pass
    assert caught.value.details() == "etcdserver: no leader"


async def test_learners_serve_little(client: EtcdClient) -> None:
    client.store.health = lambda: {"learner": "not a voter yet"}  # type: ignore[method-assign]
    client.listener._sweep()
    refused = ("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner")
    assert await client.refused("Put", key=b"k") == refused
    assert await client.refused("Range", key=b"k") == refused
    assert (await client.Range(key=b"k", serializable=True)).count == 0
    assert (await client.Status()).version == "3.7.0"


async def test_membership_changes_are_told(client: EtcdClient) -> None:
    store = client.store
    voter = MemberInfo(7, "local", (), (), False, True)
    added = MemberInfo(8, "", ("http://a:1",), (), True, False)
    members = [voter]
    store.members = lambda: members  # type: ignore[method-assign]

    async def add(name: str, peer_urls: tuple[str, ...], learner: bool) -> MemberInfo:
        assert (name, peer_urls, learner) == ("", ("http://a:1",), True)
        members.append(added)
        return added

    async def remove(member_id: int) -> None:
        members.pop()

    async def promote(member_id: int) -> None:
        if len(members) == 2:
            raise ChangeRefused("it lags")

    store.add_member, store.remove_member = add, remove  # type: ignore[method-assign]
    store.promote_member = promote  # type: ignore[method-assign]
    answer = await client.MemberAdd(peerURLs=["http://a:1"], isLearner=True)
    assert (answer.member.ID, answer.member.isLearner, len(answer.members)) == (8, True, 2)
    assert answer.header.revision == 0
    assert (await client.refused("MemberPromote", ID=8))[1] == (
        "etcdserver: can only promote a learner member which is in sync with leader"
    )
    assert len((await client.MemberRemove(ID=8)).members) == 1
    members += [added, added]
    assert len((await client.MemberPromote(ID=8)).members) == 3


async def test_a_store_that_stops_says_so(client: EtcdClient) -> None:
    await client.LeaseGrant(ID=5, TTL=100)
    client.store._closed = True
    stopped = ("UNAVAILABLE", "etcdserver: server stopped")
    assert await client.refused("Put", key=b"k") == stopped
    assert await client.refused("Range", key=b"k") == stopped
    method, request = client.method("LeaseKeepAlive")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in method(iter([request(ID=5)])):
            pass
    assert (caught.value.code().name, caught.value.details()) == stopped
    client.store._closed = False


async def test_a_range_stream_that_cannot_be(client: EtcdClient) -> None:
    for fields, code in [
        ({}, "INVALID_ARGUMENT"),
        ({"key": b"k", "sort_order": 1}, "UNIMPLEMENTED"),
        ({"key": b"k", "min_mod_revision": 1}, "UNIMPLEMENTED"),
        ({"key": b"k", "revision": 99}, "OUT_OF_RANGE"),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in client.RangeStream(**fields):
                pass
        assert caught.value.code().name == code, fields
    await client.Put(key=b"k", value=b"1")
    parts = [part async for part in client.RangeStream(key=b"k", serializable=True)]
    assert [len(part.range_response.kvs) for part in parts] == [1, 0]


async def test_a_bug_in_a_handler_is_reported_and_the_call_answered(client: EtcdClient) -> None:
    reported: list[Any] = []
    client.store._loop.set_exception_handler(lambda loop, context: reported.append(context))
    client.store.status = lambda: {}  # type: ignore[method-assign]
    assert await client.refused("Status") == ("INTERNAL", "internal error")
    assert isinstance(reported[0]["exception"], KeyError)


async def test_metrics_tell_what_became_of_the_calls(client: EtcdClient) -> None:
    await client.Put(key=b"k")
    await client.Put(key=b"k")
    await client.refused("Put")
    method, request = client.method("Watch")
    stream = method()
    await stream.write(request(create_request={"key": b"k"}))
    await stream.read()
    stream.cancel()
    while len(client.store.hub):
        await asyncio.sleep(0.01)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{client.listener.port}/metrics") as answer,
    ):
        page = await answer.text()
    kv = 'grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"'
    watch = 'grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"'
    for line in (
        f"grpc_server_started_total{{{kv}}} 3.0",
        f'grpc_server_handled_total{{grpc_code="OK",{kv}}} 2.0',
        f'grpc_server_handled_total{{grpc_code="InvalidArgument",{kv}}} 1.0',
        f'grpc_server_handled_total{{grpc_code="Canceled",{watch}}} 1.0',
        "etcd_server_proposals_committed_total 2.0",
        "raftkv_grpc_connections 1.0",
    ):
        assert line in page.splitlines(), line
