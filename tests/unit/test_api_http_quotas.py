"""Quotas through the doors: who may set them, who they refuse, and with which words."""

from __future__ import annotations

import grpc.aio

from raftkv.api.http.door import start_http
from raftkv.machine import commands
from raftkv.machine.quota_commands import quota_set
from raftkv.server.local import LocalStore
from tests.unit.auth_support import guarded
from tests.unit.etcd_support import EtcdCalls
from tests.unit.http_support import serving


async def test_a_prefix_is_limited_and_shows_what_it_uses() -> None:
    async with serving() as served:
        await served.call("PUT", "/api/kv/app/a", b"123")
        done = await served.call("POST", "/api/quotas", {"prefix": "app/", "keys": 2})
        assert done.status == 200 and done.json["changed"]
        again = await served.call("POST", "/api/quotas", {"prefix": "app/", "keys": 2})
        assert not again.json["changed"]
        assert (await served.call("PUT", "/api/kv/app/b", b"1")).status == 200
        refused = await served.call("PUT", "/api/kv/app/c", b"1")
        assert refused.status == 507 and refused.json["code"] == "quota_exceeded"
        assert refused.json["outcome"] == "refused"
        assert (await served.call("PUT", "/api/kv/other", b"1")).status == 200
        (shown,) = (await served.call("GET", "/api/quotas")).json["quotas"]
        assert shown == {
            "prefix": "app/", "key_encoding": "utf-8", "keys": 2, "bytes": 0,
            "used_keys": 2, "used_bytes": 14,
        }  # fmt: skip
        metrics = (await served.call("GET", "/metrics")).body.decode()
        assert 'raftkv_quota_used{kind="prefix",name="app/",what="keys"} 2.0' in metrics
        assert 'raftkv_quota_limit{kind="prefix",name="app/",what="keys"} 2.0' in metrics
        ended = await served.call("POST", "/api/quotas", {"prefix": "app/"})
        assert ended.json["changed"]
        assert (await served.call("GET", "/api/quotas")).json["quotas"] == []
        binary = {"prefix": "/w==", "key_encoding": "base64", "bytes": 9}
        assert (await served.call("POST", "/api/quotas", binary)).status == 200
        (shown,) = (await served.call("GET", "/api/quotas")).json["quotas"]
        assert shown["prefix"] == "/w==" and shown["key_encoding"] == "base64"


async def test_one_thing_is_limited_at_a_time() -> None:
    async with serving() as served:
        for body in (
            {},
            {"prefix": "a", "user": "b", "keys": 1},
            {"prefix": "a", "keys": -1},
            {"user": "", "keys": 1},
            {"prefix": "a", "key_encoding": "hex", "keys": 1},
        ):
            assert (await served.call("POST", "/api/quotas", body)).status == 400, body


async def test_a_user_is_limited_and_does_not_see_the_quotas() -> None:
    async with guarded() as door:
        await door.ok("root", "POST", "/api/quotas", {"user": "alice", "keys": 1})
        await door.ok("root", "POST", "/api/quotas", {"prefix": "secret/", "keys": 1})
        assert (await door.by("alice", "PUT", "/api/kv/app/a", {})).status == 200
        refused = await door.by("alice", "PUT", "/api/kv/app/b", {})
        assert refused.status == 507 and refused.json["code"] == "quota_exceeded"
        assert (await door.by("root", "PUT", "/api/kv/app/b", {})).status == 200
        assert (await door.by("alice", "GET", "/api/quotas")).status == 403
        unlimited = await door.by("alice", "POST", "/api/quotas", {"user": "alice"})
        assert unlimited.status == 403
        metrics = (await door.by("alice", "GET", "/metrics")).body
        assert b"secret/" not in metrics and b"raftkv_quota_used" not in metrics
        assert b"secret/" in (await door.by("root", "GET", "/metrics")).body


async def test_over_grpc_it_is_resource_exhausted() -> None:
    store = LocalStore()
    listener = await start_http(store, "127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            client = EtcdCalls(channel)
            store.propose(quota_set(1, b"a", 1, 0), lambda result: None)
            store.propose(commands.put(b"a1", b""), lambda result: None)
            code, text = await client.refused("Put", key=b"a2", value=b"2")
            assert code == "RESOURCE_EXHAUSTED" and "quota" in text
    finally:
        await listener.close(1.0)
        store.close()
