"""etcd's API as JSON over HTTP/1.1."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from google.protobuf import json_format

from raftkv.api.etcd.gateway import PATHS
from raftkv.api.etcd.guards import GUARDS
from raftkv.api.etcd.jsonform import fill, plain
from raftkv.api.etcd.messages import ETCD
from raftkv.api.gate import Gate
from raftkv.api.http.door import start_http
from raftkv.api.listener import Listener
from raftkv.errors import InvalidRequest
from raftkv.limits import ETCD_KEEP_ALIVES_WAITING_MAX
from raftkv.server.local import LocalStore


class Json:
    """A client of the gateway."""

    def __init__(
        self, session: aiohttp.ClientSession, store: LocalStore, listener: Listener
    ) -> None:
        self.session = session
        self.store = store
        self.listener = listener

    async def post(self, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """(status, answer)."""
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        async with self.session.post(path, data=data, **more) as answer:
            return answer.status, json.loads(await answer.read())


@asynccontextmanager
async def serving() -> AsyncIterator[Json]:
    store = LocalStore(member_id=7, cluster_id=9)
    listener = await start_http(store, "127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{listener.port}") as session:
            yield Json(session, store, listener)
    finally:
        await listener.close(1.0)
        store.close()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_calls_in_either_spelling() -> None:
    async with serving() as client:
        status, answer = await client.post("/v3/kv/put", {"key": b64(b"k"), "value": b64(b"1")})
        header = {"cluster_id": "9", "member_id": "7", "revision": "2", "raft_term": "1"}
        assert (status, answer) == (200, {"header": header})
        expected = {"key": "aw==", "create_revision": "2", "mod_revision": "2", "version": "1",
                    "value": "MQ=="}  # fmt: skip
        for body in (
            {"key": b64(b"a"), "range_end": b64(b"z"), "limit": "5"},
            {"key": b64(b"a"), "rangeEnd": "eg", "limit": 5, "no_such_field": [1]},
        ):
            status, answer = await client.post("/v3beta/kv/range", body)
            assert (status, answer["kvs"], answer["count"]) == (200, [expected], "1")
        _, answer = await client.post(
            "/v3/kv/txn",
            {
                "compare": [{"key": "aw==", "target": "VALUE", "result": 0, "value": "MQ=="}],
                "success": [{"requestRange": {"key": "aw==", "sort_order": "DESCEND"}}],
            },
        )
        assert answer["succeeded"] is True
        assert answer["responses"][0]["response_range"]["kvs"] == [expected]


async def test_errors_have_both_forms() -> None:
    async with serving() as client:
        text = "etcdserver: key is not provided"
        assert await client.post("/v3/kv/put", {}) == (
            400, {"error": text, "code": 3, "message": text, "details": []},
        )  # fmt: skip
        status, answer = await client.post("/v3/lease/revoke", {"ID": "77"})
        assert (status, answer["code"]) == (404, 5)
        for body in (b"{", b"[]", b'{"key": 1}', b'{"key": "%"}', b'{"lease": "x"}',
                     b'{"lease": 1e30}', b'{"prev_kv": "yes"}',
                     b'{"lease": "99999999999999999999"}',
                     b"\xff"):  # fmt: skip
            status, answer = await client.post("/v3/kv/put", body)
            assert (status, answer["code"]) == (400, 3), body
        assert (await client.post("/v3/kv/nothing"))[0] == 404
        assert (await client.post("/v3/watch", b"{"))[0] == 400
        async with client.session.get("/v3/kv/put") as wrong:
            assert wrong.status == 405
        async with client.session.post(
            "/v3/kv/put", data=b"{}", headers={"Origin": "http://elsewhere"}
        ) as foreign:
            assert foreign.status == 403
        deep: Any = {}
        for _ in range(200):
            deep = {"success": [{"request_txn": deep}]}
        assert (await client.post("/v3/kv/txn", deep))[0] == 400


async def test_streams_are_lines() -> None:
    async with serving() as client:
        await client.post("/v3/kv/put", {"key": b64(b"k"), "value": b64(b"1")})
        body = b"".join(
            json.dumps({"create_request": {"key": b64(b"k"), "start_revision": start}}).encode()
            for start in ("2", "3")
        )
        async with client.session.post("/v3/watch", data=body) as answer:
            first = json.loads(await answer.content.readline())["result"]
            assert (first["created"], first.get("watch_id")) == (True, None)
            second = json.loads(await answer.content.readline())["result"]
            assert second["watch_id"] == "1"
            event = json.loads(await answer.content.readline())["result"]
            assert event["events"][0]["kv"]["value"] == b64(b"1")
            await client.post("/v3/kv/deleterange", {"key": b64(b"k")})
            lines = [json.loads(await answer.content.readline()) for _ in range(2)]
            assert {line["result"]["events"][0]["type"] for line in lines} == {"DELETE"}
        while len(client.store.hub):
            await client.post("/v3/kv/range", {"key": b64(b"k")})


async def test_streams_that_end() -> None:
    async with serving() as client:
        await client.post("/v3/lease/grant", {"ID": "5", "TTL": "100"})
        async with client.session.post("/v3/lease/keepalive", data=b'{"ID":5}{"ID":6}') as answer:
            lines = [json.loads(line)["result"] for line in (await answer.read()).splitlines()]
        assert [line.get("TTL") for line in lines] == ["100", None]
        async with client.session.post("/v3/maintenance/snapshot", data=b"{}") as answer:
            blobs = [json.loads(line)["result"] for line in (await answer.read()).splitlines()]
        assert len(base64.b64decode(blobs[-1]["blob"])) == 32
        status, answer = await client.post("/v3/maintenance/hashkv", {"revision": "50"})
        assert (status, answer["code"]) == (400, 11)


async def test_streams_that_fail() -> None:
    async with serving() as client:
        await client.post("/v3/lease/grant", {"ID": "5", "TTL": "100"})
        client.store._closed = True
        status, answer = await client.post("/v3/lease/keepalive", {"ID": "5"})
        client.store._closed = False
        text = "etcdserver: server stopped"
        assert (status, answer["error"]["message"], answer["error"]["code"]) == (503, text, 14)
        assert (answer["error"]["grpc_code"], answer["error"]["http_code"]) == (14, 503)
        body = json.dumps({"create_request": {"key": b64(b"k")}})
        async with client.session.post("/v3/watch", data=body) as answer:
            await answer.content.readline()
            closing = asyncio.create_task(client.listener.close(5.0))
            last = json.loads(await answer.content.readline())["error"]
            assert (last["message"], last["code"]) == (text, 14)
            assert await answer.content.read() == b""
        await closing
        assert len(client.store.hub) == 0


async def test_a_wait_ends_when_the_member_stops() -> None:
    async with serving() as client:
        for lease in ("1", "2"):
            await client.post("/v3/lease/grant", {"ID": lease, "TTL": "100"})
        await client.post("/v3/lock/lock", {"name": b64(b"l"), "lease": "1"})
        waiting = asyncio.create_task(
            client.post("/v3/lock/lock", {"name": b64(b"l"), "lease": "2"})
        )
        while (await client.post("/v3/kv/range", {"key": b64(b"l/2")}))[1].get("count") != "1":
            await asyncio.sleep(0.01)
        await client.listener.close(5.0)
        status, answer = await waiting
        assert (status, answer["message"]) == (503, "etcdserver: server stopped")


async def test_more_keep_alives_than_may_wait_are_all_answered() -> None:
    async with serving() as client:
        await client.post("/v3/lease/grant", {"ID": "5", "TTL": "100"})
        body = b'{"ID":5}' * (2 * ETCD_KEEP_ALIVES_WAITING_MAX + 5)
        async with client.session.post("/v3/lease/keepalive", data=body) as answer:
            lines = (await answer.read()).splitlines()
        assert len(lines) == 2 * ETCD_KEEP_ALIVES_WAITING_MAX + 5


@pytest.mark.interpreted
async def test_the_gate_sees_the_authorization_header() -> None:
    seen: list[Any] = []

    class Seeing(Gate):
        enabled = True  # type: ignore[assignment]

        def judge(
            self, guard: Any, authorization: bytes | None, request: Any, certified: Any = None
        ) -> Any:
            seen.append((guard, authorization))
            return self.anyone, ()

    store = LocalStore()
    gate = Seeing(store)
    listener = await start_http(store, "127.0.0.1", 0, gate=gate)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{listener.port}") as session:
        await session.post("/v3/auth/status", data=b"", headers={"Authorization": "t.1"})
    assert seen == [(GUARDS["/etcdserverpb.Auth/AuthStatus"], b"t.1")]
    await listener.close(1.0)
    store.close()


def test_every_rpc_has_its_path() -> None:
    declared = {
        f"/{file.package}.{service.name}/{method.name}"
        for file in ETCD.files.file
        for service in file.service
        for method in service.method
    }
    assert declared - set(PATHS) == {"/etcdserverpb.KV/RangeStream"}


def test_the_json_form_is_protobufs_own() -> None:
    for name, fields in [
        ("RangeRequest", {"key": b"\xff", "limit": -5, "sort_order": 2, "serializable": True}),
        ("StatusResponse", {"errors": ["a", ""], "leader": 2**64 - 1, "downgradeInfo": {}}),
        ("HashKVResponse", {"hash": 2**32 - 1, "hash_revision": 2**63 - 1}),
        ("LeaseTimeToLiveResponse", {"TTL": -1, "keys": [b"", b"a"]}),
        ("AlarmResponse", {"alarms": [{"memberID": 5, "alarm": 1}, {}]}),
        ("TxnRequest", {"success": [{"request_txn": {"compare": [{"lease": 0}]}}, {}]}),
        ("WatchCreateRequest", {"filters": [0, 1, 1]}),
    ]:
        message = ETCD.message(f"etcdserverpb.{name}")(**fields)
        reference = json_format.MessageToDict(message, preserving_proto_field_name=True)
        assert plain(message) == reference
        for spelling in (True, False):
            body = json_format.MessageToDict(message, preserving_proto_field_name=spelling)
            assert fill(type(message)(), body) == message
    with pytest.raises(InvalidRequest):
        fill(ETCD.message("etcdserverpb.RangeRequest")(), {"sort_order": "SIDEWAYS"})
