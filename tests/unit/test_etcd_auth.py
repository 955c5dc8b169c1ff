"""etcd's Auth service, and that no RPC goes past the gate: enumerated, over gRPC and as JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc.aio
import pytest

from raftkv.api.etcd import auth, gateway
from raftkv.api.etcd.gateway import PATHS
from raftkv.api.etcd.guards import GUARDS
from raftkv.api.gate import Gate, public
from raftkv.api.http.door import start_http
from raftkv.machine import auth_commands as ac
from tests.unit.auth_support import Ruled, quick_passwords
from tests.unit.etcd_support import METHODS, EtcdClient, shown

SECRET = b"the secret value"
REQUESTS: dict[str, dict[str, Any]] = {
    "Range": {"key": b"secret"},
    "RangeStream": {"key": b"\0", "range_end": b"\0"},
    "Put": {"key": b"secret", "value": b"v"},
    "DeleteRange": {"key": b"secret"},
    "Txn": {"success": [{"request_range": {"key": b"secret"}}]},
    "Compact": {"revision": 1},
    "LeaseGrant": {"TTL": 60},
    "LeaseRevoke": {"ID": 7},
    "LeaseKeepAlive": {"ID": 7},
    "LeaseTimeToLive": {"ID": 7, "keys": True},
    "LeaseLeases": {},
    "MemberAdd": {"peerURLs": ["http://h:1"]},
    "MemberRemove": {"ID": 1},
    "MemberUpdate": {"ID": 1, "peerURLs": ["http://h:1"]},
    "MemberPromote": {"ID": 1},
    "Alarm": {"action": 0},
    "HashKV": {},
    "MoveLeader": {"targetID": 1},
    "Downgrade": {"action": 2},
    "Authenticate": {"name": "stranger", "password": "stranger-pass"},
    "UserAdd": {"name": "mallory", "password": "x"},
    "UserGet": {"name": "alice"},
    "UserDelete": {"name": "alice"},
    "UserChangePassword": {"name": "alice", "password": "x"},
    "UserGrantRole": {"user": "stranger", "role": "root"},
    "UserRevokeRole": {"name": "alice", "role": "app"},
    "RoleAdd": {"name": "mine"},
    "RoleGet": {"role": "app"},
    "RoleDelete": {"role": "app"},
    "RoleGrantPermission": {"name": "app", "perm": {"key": b"k"}},
    "RoleRevokePermission": {"role": "app", "key": b"app/", "range_end": b"app0"},
    "Watch": {"create_request": {"key": b"secret"}},
    "Lock": {"name": b"secret"},
    "Unlock": {"key": b"secret"},
    "Campaign": {"name": b"secret", "value": b"v"},
    "Proclaim": {"leader": {"name": b"s", "key": b"secret", "rev": 2, "lease": 7}},
    "Leader": {"name": b"secret"},
    "Observe": {"name": b"secret"},
    "Resign": {"leader": {"name": b"s", "key": b"secret", "rev": 2, "lease": 7}},
}
"""Requests that a user without a role may not make; those of other RPCs are empty."""
PLAIN = {
    "etcdserver: permission denied": "PERMISSION_DENIED",
    "etcdserver: invalid auth token": "UNAUTHENTICATED",
}
FOR_EVERY_USER = {"LeaseGrant", "LeaseLeases", "MemberList", "Status", "AuthStatus"}
WATCH_REFUSALS = {
    "rpc error: code = InvalidArgument": "INVALID_ARGUMENT",
    "rpc error: code = PermissionDenied": "PERMISSION_DENIED",
    "rpc error: code = Unauthenticated": "UNAUTHENTICATED",
}


class World:
    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.store: Ruled = client.store  # type: ignore[assignment]
        self.tokens: dict[str, str] = {}

    def metadata(self, user: str | None) -> Any:
        return None if user is None else (("token", self.tokens.get(user, user)),)

    async def by(self, user: str | None, name: str, /, **fields: Any) -> Any:
        """The answer of a call; of a stream, its first."""
        method = METHODS[name][1]
        callable_, request = self.client.method(name)
        metadata = self.metadata(user)
        if method.client_streaming:

            async def requests() -> AsyncIterator[Any]:
                yield request(**fields)

            call = callable_(requests(), metadata=metadata, timeout=10)
        else:
            call = callable_(request(**fields), metadata=metadata, timeout=10)
        if not method.server_streaming:
            return await call
        answer = await call.read()
        call.cancel()
        if answer is grpc.aio.EOF:
            raise AssertionError(await call.code())
        return answer

    async def code(self, user: str | None, name: str, /, **fields: Any) -> str:
        try:
            answer = await self.by(user, name, **fields)
            if name == "Watch" and answer.canceled:
                # A watcher is refused in its stream, with the code's name in the text.
                return WATCH_REFUSALS[answer.cancel_reason.partition(" desc = ")[0]]
        except grpc.aio.AioRpcError as error:
            text = error.details() or ""
            assert SECRET not in text.encode()
            # Of locks and elections etcd tells the text alone.
            return PLAIN.get(text, str(error.code().name))
        return "OK"


@asynccontextmanager
async def etcd_guarded() -> AsyncIterator[World]:
    """root, alice who reads and writes app/, and a stranger; a secret key hangs on lease 7."""
    store = Ruled()
    gate = Gate(store, passwords=quick_passwords(), clock_ms=store.wall_ms)
    listener = await start_http(store, "127.0.0.1", 0, gate=gate)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        client = EtcdClient(channel, store, listener)
        for user in ("root", "alice", "stranger"):
            await client.UserAdd(name=user, password=f"{user}-pass")
        await client.RoleAdd(name="root")
        await client.UserGrantRole(user="root", role="root")
        await client.RoleAdd(name="app")
        await client.RoleGrantPermission(
            name="app", perm={"permType": 2, "key": b"app/", "range_end": b"app0"}
        )
        await client.UserGrantRole(user="alice", role="app")
        await client.LeaseGrant(TTL=60, ID=7)
        await client.Put(key=b"secret", value=SECRET, lease=7)
        await client.AuthEnable()
        world = World(client)
        for user in ("root", "alice", "stranger"):
            answer = await client.Authenticate(name=user, password=f"{user}-pass")
            world.tokens[user] = answer.token
        try:
            yield world
        finally:
            await listener.close(1.0)
            gate.close()
            store.close()


def test_every_rpc_has_a_guard_and_only_logging_in_is_public() -> None:
    assert set(GUARDS) == {path for path, _ in METHODS.values()}
    assert [path for path, guard in GUARDS.items() if guard is public] == [
        "/etcdserverpb.Auth/Authenticate"
    ]


@pytest.mark.parametrize("token", [None, "forged", "A" * 43])
async def test_no_rpc_goes_without_a_token(token: str | None) -> None:
    """CVE-2026-33413, at etcd's own door."""
    async with etcd_guarded() as world:
        before = world.store.machine.revision, world.store.machine.auth
        for name in METHODS:
            refusal = "INVALID_ARGUMENT" if token is None else "UNAUTHENTICATED"
            expected = "OK" if GUARDS[METHODS[name][0]] is public else refusal
            assert await world.code(token, name, **REQUESTS.get(name, {})) == expected, name
        assert (world.store.machine.revision, world.store.machine.auth) == before


async def test_a_user_without_roles_may_do_nothing_that_matters() -> None:
    async with etcd_guarded() as world:
        before = world.store.machine.revision, world.store.machine.auth
        for name in METHODS:
            allowed = name in FOR_EVERY_USER or GUARDS[METHODS[name][0]] is public
            expected = "OK" if allowed else "PERMISSION_DENIED"
            assert await world.code("stranger", name, **REQUESTS.get(name, {})) == expected, name
        assert (world.store.machine.revision, world.store.machine.auth) == before
        leases = await world.by("stranger", "LeaseLeases")
        assert 7 not in {lease.ID for lease in leases.leases}
        assert not (await world.by("stranger", "LeaseTimeToLive", ID=7)).keys


async def check_gateway_watch(session: aiohttp.ClientSession, url: str) -> None:
    """A watch is answered with a stream, whose first line refuses it."""
    for headers, text in (
        ({}, "user name is empty"), ({"Authorization": "forged"}, "invalid auth token"),
    ):  # fmt: skip
        body = {"create_request": {"key": "c2VjcmV0"}}
        async with session.post(url, json=body, headers=headers) as answer:
            first = json.loads(await answer.content.readline())["result"]
        assert first["canceled"] and text in first["cancel_reason"], first


async def test_the_gateway_is_guarded_like_grpc() -> None:
    async with etcd_guarded() as world:
        root = f"http://127.0.0.1:{world.client.listener.port}/v3/"
        async with aiohttp.ClientSession() as session:
            for path, places in PATHS.items():
                if path == "/etcdserverpb.Watch/Watch":
                    await check_gateway_watch(session, root + places[0])
                    continue
                for place in places:
                    async with session.post(root + place, data=b"{}") as answer:
                        body = await answer.read()
                        assert answer.status == 400, (place, body)
                        nobody = b"user name is empty" in body
                        assert nobody is (GUARDS[path] is not public), (place, body)
                    headers = {"Authorization": "forged"}
                    async with session.post(root + place, data=b"{}", headers=headers) as answer:
                        expected = 400 if GUARDS[path] is public else 401
                        assert answer.status == expected, (place, await answer.read())
            login = {"name": "alice", "password": "alice-pass"}
            async with session.post(root + "auth/authenticate", json=login) as answer:
                token = (await answer.json())["token"]
            for shown_as in (token, f"Bearer {token}"):
                headers = {"Authorization": shown_as}
                body = {"key": "YXBwL3g="}
                async with session.post(root + "kv/put", json=body, headers=headers) as answer:
                    assert answer.status == 200
                body = {"key": "c2VjcmV0"}
                async with session.post(root + "kv/range", json=body, headers=headers) as answer:
                    assert answer.status == 403
                    assert (await answer.json())["message"] == "etcdserver: permission denied"


async def test_alice_may_do_what_her_role_says() -> None:
    async with etcd_guarded() as world:
        mine = {"key": b"app/", "range_end": b"app0"}
        await world.by("alice", "Put", key=b"app/x", value=b"v", prev_kv=True)
        assert (await world.by("alice", "Range", **mine)).count == 1
        assert (await world.by("alice", "UserGet", name="alice")).roles == ["app"]
        assert shown((await world.by("alice", "RoleGet", role="app")).perm[0]) == {
            "permType": "READWRITE", "key": "YXBwLw==", "range_end": "YXBwMA==",
        }  # fmt: skip
        await world.by("alice", "Lock", name=b"app/lock")
        reads: list[dict[str, Any]] = [
            {"success": [{"request_range": {"key": b"secret"}}]},
            {"compare": [{"key": b"secret", "target": 0, "result": 1}]},
            {"success": [{"request_txn": {"failure": [{"request_range": {"key": b"secret"}}]}}]},
            {"success": [{"request_txn": {"success": [
                {"request_put": {"key": b"app/x", "lease": 7}}]}}]},
            {"success": [{"request_put": {"key": b"app/x", "lease": 7}}]},
        ]  # fmt: skip
        for fields in reads:
            assert await world.code("alice", "Txn", **fields) == "PERMISSION_DENIED", fields
        assert await world.code("alice", "Put", key=b"app/x", lease=7) == "PERMISSION_DENIED"
        assert await world.code("alice", "Range", key=b"app/", range_end=b"\0") == (
            "PERMISSION_DENIED"
        )
        assert await world.code("alice", "LeaseTimeToLive", ID=7, keys=True) == "PERMISSION_DENIED"


async def test_a_watcher_that_is_refused_does_not_end_its_stream() -> None:
    async with etcd_guarded() as world:
        callable_, request = world.client.method("Watch")
        call = callable_(metadata=world.metadata("alice"))

        async def ask(**create: Any) -> Any:
            await call.write(request(create_request=create))
            return await call.read()

        for create in ({"key": b"secret"}, {"key": b"app/", "range_end": b"\0"}, {}):
            refused = await ask(**create)
            assert refused.created and refused.canceled and refused.watch_id == -1
            assert "permission denied" in refused.cancel_reason
        allowed = await ask(key=b"app/", range_end=b"app0")
        assert allowed.created and not allowed.canceled
        await world.by("root", "Put", key=b"app/x", value=b"v")
        assert (await call.read()).events[0].kv.key == b"app/x"
        await world.by("root", "UserRevokeRole", name="alice", role="app")
        await world.by("root", "Put", key=b"app/x", value=b"hidden")
        ended = await call.read()
        assert ended.canceled and ended.watch_id == allowed.watch_id and not ended.events
        call.cancel()

        stranger = callable_(metadata=world.metadata("nobody"))
        await stranger.write(request(create_request={"key": b"app/x"}))
        refused = await stranger.read()
        assert refused.canceled and "invalid auth token" in refused.cancel_reason
        stranger.cancel()

        nobody = callable_()
        await nobody.write(request(create_request={"key": b"app/x"}))
        refused = await nobody.read()
        assert refused.canceled and "user name is empty" in refused.cancel_reason
        nobody.cancel()


async def test_users_and_roles_as_etcd_has_them() -> None:
    async with etcd_guarded() as world:
        refused = world.client.refused
        root = {"metadata": world.metadata("root")}
        for name, fields, code, text in (
            ("UserAdd", {"name": "root"}, "FAILED_PRECONDITION", "user name already exists"),
            ("UserAdd", {"password": "x"}, "INVALID_ARGUMENT", "user name is empty"),
            ("UserGet", {"name": "n"}, "FAILED_PRECONDITION", "user name not found"),
            ("UserDelete", {"name": "root"}, "INVALID_ARGUMENT", "invalid auth management"),
            ("UserGrantRole", {"user": "alice", "role": "n"}, "FAILED_PRECONDITION",
             "role name not found"),
            ("UserRevokeRole", {"name": "alice", "role": "n"}, "FAILED_PRECONDITION",
             "role is not granted to the user"),
            ("RoleAdd", {"name": "app"}, "FAILED_PRECONDITION", "role name already exists"),
            ("RoleAdd", {}, "INVALID_ARGUMENT", "role name is empty"),
            ("RoleGrantPermission", {"name": "app"}, "INVALID_ARGUMENT", "permission not given"),
            ("RoleGrantPermission", {"name": "app", "perm": {"key": b"b", "range_end": b"a"}},
             "INVALID_ARGUMENT", "invalid auth management"),
            ("RoleRevokePermission", {"role": "app", "key": b"k"}, "FAILED_PRECONDITION",
             "permission is not granted to the role"),
            ("Authenticate", {"name": "alice", "password": "n"}, "INVALID_ARGUMENT",
             "authentication failed, invalid user ID or password"),
        ):  # fmt: skip
            if name == "UserAdd" and "password" not in fields:
                fields["password"] = "x"
            assert await refused(name, **root, **fields) == (code, f"etcdserver: {text}"), name
        status = await world.by("root", "AuthStatus")
        assert status.enabled and status.authRevision == world.store.machine.auth.revision
        assert (await world.by("root", "UserList")).users == ["alice", "root", "stranger"]
        assert (await world.by("root", "RoleList")).roles == ["app", "root"]
        await world.by("root", "UserAdd", name="cert", options={"no_password": True})
        assert world.store.machine.auth.users["cert"].password_hash is None
        await world.by("root", "UserChangePassword", name="alice", password="new")
        assert await world.code("alice", "AuthStatus") == "UNAUTHENTICATED"
        await world.by("root", "AuthDisable")
        await world.client.Put(key=b"anything")
        assert not any(b"-pass" in command for command in world.store.proposed)


@pytest.mark.interpreted
async def test_requests_keep_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2021-28235, at etcd's own door: over gRPC and as JSON."""
    seen: list[Any] = []
    bodies: list[Any] = []
    taken, begin = auth._taken, gateway.Gateway._begin

    def take(request: Any) -> str:
        seen.append(request)
        return taken(request)

    def keep(x: Any, target: Any) -> None:
        bodies.append(x.request)
        begin(x, target)

    monkeypatch.setattr(auth, "_taken", take)
    monkeypatch.setattr(gateway.Gateway, "_begin", staticmethod(keep))
    async with etcd_guarded() as world:
        url = f"http://127.0.0.1:{world.client.listener.port}/v3/auth/authenticate"
        async with aiohttp.ClientSession() as session:
            body = {"name": "alice", "password": "alice-pass"}
            async with session.post(url, json=body) as answer:
                assert answer.status == 200
        await world.by("root", "UserChangePassword", name="alice", password="new-pass")
    assert len(seen) == 8 and not any(request.password for request in seen)
    assert len(bodies) == 1 and not bodies[0].body


async def test_rules_that_change_on_the_way() -> None:
    async with etcd_guarded() as world:
        store = world.store
        store.before_read = [ac.user_revoke("alice", "app")]
        assert await world.code("alice", "Range", key=b"app/x") == "PERMISSION_DENIED"
        store.before_read = [ac.user_grant("alice", "app")]
        assert await world.code("alice", "Range", key=b"app/x") == "OK"
        store.apply_now(ac.auth_disable())
        for name, fields in (
            ("Range", {"key": b"secret"}), ("LeaseLeases", {}), ("UserList", {}),
            ("MemberRemove", {"ID": 1}), ("Leader", {"name": b"secret"}),
        ):  # fmt: skip
            store.before_read = [ac.auth_enable()]
            assert await world.code(None, name, **fields) == "UNAUTHENTICATED", name
            store.apply_now(ac.auth_disable())
        store.before_propose = [ac.auth_enable()]
        code = await world.code(None, "Put", key=b"k")
        assert code == "INVALID_ARGUMENT" and store.machine.get(b"k") is None
