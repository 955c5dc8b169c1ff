"""Every call is guarded: all that the router knows are asked, none is left out.

What a call must answer follows from the guard that it declares. Without a token: one that is
`public` is served, any other is not. What a user without roles is told stands in `FOR_EVERY_USER`,
and is checked to the letter as well.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from raftkv import api
from raftkv.api.callers import Caller
from raftkv.api.gate import PUBLIC, Gate, admin, by_command, known, public
from raftkv.api.http.door import all_routes
from raftkv.api.http.router import Route, Router
from raftkv.errors import InvalidAuthToken, InvariantViolation, PermissionDenied
from raftkv.machine.access import ADMIN
from raftkv.server.local import LocalStore
from tests.unit.auth_support import Guarded, guarded, quick_passwords

LEASE = "00000000000000aa"
MEMBER = "0000000000000009"
REQUESTS: dict[str, tuple[str, str, Any]] = {
    "putKey": ("PUT", "/api/kv/secret", b"v"),
    "getKey": ("GET", "/api/kv/secret", None),
    "deleteKey": ("DELETE", "/api/kv/secret", None),
    "listKeys": ("GET", "/api/kv", None),
    "deleteKeys": ("DELETE", "/api/kv?all=1", None),
    "transact": ("POST", "/api/txn", {"then": [{"op": "get", "key": "secret"}]}),
    "watchKeys": ("GET", "/api/watch", None),
    "grantLease": ("POST", "/api/leases", {"ttl": 60}),
    "listLeases": ("GET", "/api/leases", None),
    "getLease": ("GET", f"/api/leases/{LEASE}", None),
    "keepLeaseAlive": ("POST", f"/api/leases/{LEASE}/keepalive", None),
    "revokeLease": ("DELETE", f"/api/leases/{LEASE}", None),
    "registerInstance": ("PUT", "/api/services/db/1", {"address": "h", "port": 1}),
    "heartbeat": ("POST", "/api/services/db/1/heartbeat", None),
    "drainInstance": ("POST", "/api/services/db/1/drain", None),
    "deregisterInstance": ("DELETE", "/api/services/db/1", None),
    "listServices": ("GET", "/api/services", None),
    "getService": ("GET", "/api/services/db", None),
    "getInstance": ("GET", "/api/services/db/1", None),
    "watchServices": ("GET", "/api/watch/services", None),
    "watchService": ("GET", "/api/watch/services/db", None),
    "getStatus": ("GET", "/api/status", None),
    "listMembers": ("GET", "/api/members", None),
    "addMember": ("POST", "/api/members", {"peer_urls": ["http://h:1"]}),
    "removeMember": ("DELETE", f"/api/members/{MEMBER}", None),
    "replaceMember": (
        "POST", f"/api/members/{MEMBER}/replace", {"peer_urls": ["http://h:1"]},
    ),
    "promoteMember": ("POST", f"/api/members/{MEMBER}/promote", None),
    "transferLeader": ("POST", "/api/leader/transfer", None),
    "compact": ("POST", "/api/compact", None),
    "shrink": ("POST", "/api/shrink", None),
    "listQuotas": ("GET", "/api/quotas", None),
    "setQuota": ("POST", "/api/quotas", {"prefix": "a", "keys": 1}),
    "getSnapshot": ("GET", "/api/snapshot", None),
    "logIn": ("POST", "/api/auth/login", {"user": "stranger", "password": "stranger-pass"}),
    "getAuth": ("GET", "/api/auth", None),
    "enableAuth": ("POST", "/api/auth/enable", None),
    "listUsers": ("GET", "/api/auth/users", None),
    "addUser": ("POST", "/api/auth/users", {"user": "mallory", "password": "x"}),
    "getUser": ("GET", "/api/auth/users/alice", None),
    "deleteUser": ("DELETE", "/api/auth/users/alice", None),
    "setPassword": ("PUT", "/api/auth/users/stranger/password", {"password": "x"}),
    "grantRole": ("PUT", "/api/auth/users/stranger/roles/root", None),
    "revokeRole": ("DELETE", "/api/auth/users/alice/roles/app", None),
    "listRoles": ("GET", "/api/auth/roles", None),
    "addRole": ("POST", "/api/auth/roles", {"role": "mine"}),
    "getRole": ("GET", "/api/auth/roles/app", None),
    "deleteRole": ("DELETE", "/api/auth/roles/app", None),
    "grantPermission": (
        "POST", "/api/auth/roles/app/permissions", {"access": "read", "prefix": ""},
    ),
    "revokePermission": ("DELETE", "/api/auth/roles/app/permissions?prefix=app/", None),
    "getHealth": ("GET", "/health", None),
    "getLivez": ("GET", "/livez", None),
    "getReadyz": ("GET", "/readyz", None),
    "getLivezCheck": ("GET", "/livez/serializable_read", None),
    "getReadyzCheck": ("GET", "/readyz/data_corruption", None),
    "getVersion": ("GET", "/version", None),
    "getMetrics": ("GET", "/metrics", None),
    "getOpenapi": ("GET", "/openapi.json", None),
    "getDocs": ("GET", "/docs", None),
    "disableAuth": ("POST", "/api/auth/disable", None),
    "logOut": ("POST", "/api/auth/logout", None),
}  # fmt: skip
"""One request of each call, on things that a user without any role may not touch. Those that end
what the others need come last."""

FOR_EVERY_USER: dict[str, dict[str, Any]] = {
    "grantLease": {"ttl": 60},
    "listLeases": {},
    "getLease": {"keys": []},
    "getStatus": {"healthy": True},
    "listMembers": {},
    "getAuth": {"user": "stranger", "roles": []},
    "getMetrics": {},
    "logOut": {"ended": True},
}
"""What needs no right but to be a user, and what it then shows."""


def test_the_table_of_requests_is_complete() -> None:
    assert set(REQUESTS) == {route.operation for route in all_routes()}
    for route in all_routes():
        method, target, _ = REQUESTS[route.operation]
        found, _ = Router(all_routes()).find(method.encode(), target.partition("?")[0].encode())
        assert found.operation == route.operation


async def prepared(world: Guarded) -> None:
    """Something that is secret to everybody but root, in every corner."""
    await world.ok("root", "POST", "/api/leases", {"ttl": 60, "id": LEASE})
    await world.ok("root", "PUT", f"/api/kv/secret?lease={LEASE}", b"the secret value")
    await world.ok("root", "PUT", "/api/services/db/1", {"address": "hidden-host", "port": 1})


async def statuses(world: Guarded, headers: dict[str, str]) -> dict[str, int]:
    """What each call answers, its body held against the OpenAPI."""
    found = {}
    for operation, (method, target, body) in REQUESTS.items():
        answer = await world.served.call(method, target, body, headers)
        found[operation] = answer.status
        if answer.status in (401, 403):
            assert answer.json["outcome"] == "refused"
            assert answer.status == 403 or answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert b"hidden-host" not in answer.body and b"secret value" not in answer.body
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer " + "A" * 43},
        {"Authorization": "Bearer " + "A" * 9000},
        {"Authorization": "Bearer"},
        {"Authorization": ""},
        {"Authorization": "Basic cm9vdDpyb290LXBhc3M="},
        {"Authorization": "Bearer eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QifQ."},
    ],
)
async def test_no_call_but_the_public_ones_goes_without_a_token(headers: dict[str, str]) -> None:
    """CVE-2026-33413: whole groups of calls lacked the check."""
    async with guarded() as world:
        await prepared(world)
        revision, rules = world.machine.revision, world.machine.auth
        found = await statuses(world, headers)
        refused = {operation for operation, status in found.items() if status == 401}
        assert refused == {one.operation for one in all_routes() if one.guard is not public}
        assert {found[one.operation] for one in all_routes() if one.guard is public} == {200}
        assert world.machine.revision == revision and world.machine.auth is rules


async def test_a_user_without_roles_may_do_nothing_that_matters() -> None:
    async with guarded() as world:
        await prepared(world)
        revision, rules = world.machine.revision, world.machine.auth
        public_ones = {one.operation for one in all_routes() if one.guard is public}
        found = await statuses(world, world.header("stranger"))
        refused = {operation for operation, status in found.items() if status == 403}
        assert refused == set(REQUESTS) - public_ones - set(FOR_EVERY_USER)
        assert {found[one] for one in public_ones | set(FOR_EVERY_USER)} <= {200, 201}
        world.tokens["stranger"] = (await world.log_in("stranger")).json["token"]
        for operation, shown in FOR_EVERY_USER.items():
            method, target, body = REQUESTS[operation]
            answer = await world.by("stranger", method, target, body)
            assert answer.status in (200, 201) and b"secret" not in answer.body
            for name, value in shown.items():
                assert answer.json[name] == value
            assert operation != "listLeases" or LEASE not in answer.body.decode()
        assert world.machine.revision == revision and world.machine.auth is rules


async def test_root_may_do_it_all() -> None:
    async with guarded() as world:
        await prepared(world)
        for operation, (method, target, body) in REQUESTS.items():
            url = f"http://127.0.0.1:{world.served.port}{target}"
            json_body = body if isinstance(body, dict) else None
            async with world.served.session.request(
                method, url, json=json_body, headers=world.header("root")
            ) as answer:
                assert answer.status not in (401, 403), operation


async def test_alice_may_do_what_her_role_says_and_not_a_step_more() -> None:
    async with guarded() as world:
        await prepared(world)
        await world.ok("root", "PUT", "/api/kv/shared/x", b"v")
        allowed: list[tuple[str, str, Any]] = [
            ("PUT", "/api/kv/app/x?prev=1", b"v"),
            ("PUT", "/api/kv/drop/x", b"v"),
            ("GET", "/api/kv/app/x", None),
            ("GET", "/api/kv/shared/x", None),
            ("GET", "/api/kv?prefix=app/", None),
            ("GET", "/api/kv?start=app/a&end=app/b", None),
            ("DELETE", "/api/kv?prefix=drop/", None),
            ("PUT", "/api/services/web/1", {"address": "h", "port": 1}),
            ("POST", "/api/services/web/1/heartbeat", None),
            ("GET", "/api/services/web", None),
            ("GET", "/api/services/web/1", None),
            ("DELETE", "/api/services/web/1", None),
            ("GET", "/api/auth/users/alice", None),
            ("GET", "/api/auth/roles/app", None),
        ]
        for method, target, body in allowed:
            answer = await world.by("alice", method, target, body)
            assert answer.status in (200, 201), (target, answer.body)
        denied: list[tuple[str, str, Any]] = [
            ("PUT", "/api/kv/shared/x", b"v"),
            ("PUT", "/api/kv/app", b"v"),
            ("PUT", "/api/kv/drop/x?prev=1", b"v"),
            ("GET", "/api/kv/drop/x", None),
            ("GET", "/api/kv/drop/x?wait=0", None),
            ("GET", "/api/kv/secret?consistency=serializable", None),
            ("HEAD", "/api/kv/secret", None),
            ("GET", "/api/kv?prefix=app", None),
            ("GET", "/api/kv?prefix=", None),
            ("GET", "/api/kv?start=app/", None),
            ("GET", "/api/kv?prefix=drop/&count_only=1", None),
            ("GET", "/api/kv?prefix=drop/&keys_only=1", None),
            ("DELETE", "/api/kv?prefix=drop/&prev=1", None),
            ("DELETE", "/api/kv?start=app/&end=shared0", None),
            ("GET", "/api/services?prefix=web", None),
            ("GET", "/api/watch/services", None),
            ("PUT", "/api/services/webs/1", {"address": "h", "port": 1}),
            ("GET", "/api/auth/users/root", None),
        ]
        for method, target, body in denied:
            answer = await world.by("alice", method, target, body)
            assert answer.status == 403, (target, answer.status, answer.body)


async def test_unknown_users_and_roles_are_no_way_to_learn_who_is_there() -> None:
    async with guarded() as world:
        for target in ("/api/auth/users/root", "/api/auth/users/nobody", "/api/auth/roles/none"):
            assert (await world.by("alice", "GET", target)).status == 403
        assert (await world.by("root", "GET", "/api/auth/users/nobody")).status == 404


# ---- by construction -----------------------------------------------------------------------------

TOUCHES_DATA = frozenset(("keep_alive", "lease_time", "leases", "propose", "watch"))
"""Calls of a store that a `Caller` judges."""


def test_handlers_touch_data_through_their_caller_only() -> None:
    assert all(callable(getattr(Caller, name)) for name in TOUCHES_DATA)
    places = Path(next(iter(api.__path__)), "http")
    of_stores = set()
    for path in sorted(places.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                base = getattr(node.value, "attr", getattr(node.value, "id", ""))
                if base in ("store", "_store"):
                    of_stores.add(node.attr)
                    assert node.attr not in TOUCHES_DATA, f"{path.name}:{node.lineno}"
            elif isinstance(node, ast.Assign) and getattr(node.value, "attr", "") == "store":
                # By another name it would go unseen.
                names = {getattr(each, "attr", getattr(each, "id", "")) for each in node.targets}
                assert names <= {"store", "_store"}, f"{path.name}:{node.lineno}"
    assert {"add_member", "health", "read_index"} <= of_stores


def route(**changes: Any) -> Route:
    return Route("GET", "/x", lambda x: None, "getX", "x", "Keys", **{"guard": known, **changes})


def test_what_is_public_stands_in_the_table_and_nowhere_else() -> None:
    assert {one.operation for one in all_routes() if one.guard is public} == PUBLIC
    Router([route()])
    with pytest.raises(InvariantViolation, match="named in one table"):
        Router([route(guard=public)])
    with pytest.raises(TypeError, match="guard"):
        Route("GET", "/x", lambda x: None, "getX", "x", "Keys")  # type: ignore[call-arg]


async def test_a_call_that_declares_nothing_is_refused_to_root() -> None:
    store = LocalStore()
    gate = Gate(store, passwords=quick_passwords())
    try:
        with pytest.raises(PermissionDenied, match="nothing says who"):
            gate.judge(None, None, None)
        assert gate.judge(admin, None, None) == (gate.anyone, ())
        for guard in (public, known, by_command):
            assert guard(None) == ()
        assert admin(None) == (ADMIN,)
    finally:
        gate.close()
        store.close()


async def test_the_table_of_guards_serves_other_doors_too() -> None:
    """A door of another protocol asks by its own names and gets the same judgement."""
    async with guarded() as world:
        gate = world.served.door.gate
        table = {"/etcdserverpb.KV/Put": by_command, "/etcdserverpb.Maintenance/Alarm": admin}
        token = world.tokens["stranger"].encode()
        caller, needs = gate.judge(table.get("/etcdserverpb.KV/Put"), token, None)
        assert (caller.user, needs) == ("stranger", ())
        for path in ("/etcdserverpb.Maintenance/Alarm", "/etcdserverpb.New/Thing"):
            with pytest.raises(PermissionDenied):
                gate.judge(table.get(path), token, None)
        with pytest.raises(InvalidAuthToken):
            gate.judge(by_command, None, None)
