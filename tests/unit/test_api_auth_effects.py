"""The whole effect of a request is judged, through a real door: what etcd's advisories teach."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

import pytest

from raftkv.errors import AuthRevisionOld, InvalidAuthToken, NoLeader, PermissionDenied
from raftkv.machine import auth_commands as ac
from raftkv.machine import commands as c
from raftkv.machine.access import PermissionKind
from raftkv.machine.commands import guarded as guard
from raftkv.server.watch import WatchSpec
from tests.unit.auth_support import Guarded, Ruled, guarded
from tests.unit.http_support import until

SECRET = "/api/kv/secret"


async def with_secret(world: Guarded) -> None:
    await world.ok("root", "PUT", SECRET, b"the secret value")


# ---- transactions, previous values ---------------------------------------------------------------


def put(key: str, **more: Any) -> dict[str, Any]:
    return {"op": "put", "key": key, "value": "v", **more}


GET = {"op": "get", "key": "secret"}
TRANSACTIONS: list[dict[str, Any]] = [
    {"then": [GET]},
    {"else": [GET]},
    {"then": [put("app/x"), GET]},
    {"then": [{"op": "txn", "then": [GET]}]},
    {"else": [{"op": "txn", "else": [{"op": "txn", "then": [GET]}]}]},
    {"then": [{"op": "txn", "then": [put("secret")]}]},
    {"then": [{"op": "txn", "then": [{"op": "delete", "key": "secret"}]}]},
    {"then": [{"op": "delete", "prefix": ""}]},
    {"then": [{"op": "range", "prefix": ""}]},
    {"then": [{"op": "range", "start": "app/"}]},
    {"then": [{"op": "range", "prefix": "s", "count_only": True}]},
    {"if": [{"key": "secret", "target": "value", "op": "<", "operand": "t"}]},
    {"if": [{"key": "secret", "target": "exists"}]},
    {"if": [{"key": "app/", "range_end": "t", "target": "version", "op": ">", "operand": 0}]},
    {"then": [{"op": "txn", "if": [{"key": "secret", "target": "exists"}]}]},
    {"then": [put("drop/x", prev=True)]},
    {"then": [{"op": "txn", "then": [put("drop/x", prev=True)]}]},
    {"then": [{"op": "txn", "else": [{"op": "delete", "prefix": "drop/", "prev": True}]}]},
]


@pytest.mark.parametrize("number", range(len(TRANSACTIONS)))
async def test_cve_2026_33343_transactions_are_judged_to_their_leaves(number: int) -> None:
    """CVE-2026-33343 and CVE-2026-44283: what was nested, or came back as a previous value, or was
    only compared, was not judged."""
    async with guarded() as world:
        await with_secret(world)
        before = world.machine.revision
        answer = await world.by("alice", "POST", "/api/txn", TRANSACTIONS[number])
        assert answer.status == 403, answer.body
        assert b"secret value" not in answer.body and world.machine.revision == before
        assert (await world.by("root", "POST", "/api/txn", TRANSACTIONS[number])).status == 200


async def test_a_transaction_within_the_rights_of_its_caller_runs() -> None:
    async with guarded() as world:
        document = {
            "if": [{"key": "shared/x", "target": "exists", "operand": False}],
            "then": [
                put("app/x", prev=True), put("drop/x"), {"op": "range", "prefix": "shared/"},
                {"op": "txn", "then": [{"op": "delete", "prefix": "app/y", "prev": True}]},
            ],
        }  # fmt: skip
        answer = await world.ok("alice", "POST", "/api/txn", document)
        assert answer["succeeded"] and len(answer["results"]) == 4


async def test_a_condition_reads_what_it_is_about() -> None:
    """A conditional write tells the present record when it fails, so it needs to read."""
    async with guarded() as world:
        await world.ok("root", "PUT", "/api/kv/drop/x", b"v")
        for method, name in (("PUT", "If-None-Match"), ("DELETE", "If-Match")):
            headers = {**world.header("alice"), name: "*"}
            answer = await world.served.call(method, "/api/kv/drop/x", b"new", headers)
            assert answer.status == 403 and b'"v"' not in answer.body


# ---- leases ------------------------------------------------------------------------------------


async def leased(world: Guarded) -> None:
    for lease in ("a1", "a2", "a3"):
        await world.ok("root", "POST", "/api/leases", {"ttl": 60, "id": lease})
    await world.ok("root", "PUT", f"{SECRET}?lease=a1", b"v")
    await world.ok("root", "PUT", "/api/kv/app/mine?lease=a1", b"v")
    await world.ok("root", "PUT", "/api/kv/shared/x?lease=a2", b"v")


async def test_cve_2026_44283_no_way_onto_a_lease_that_one_may_not_end() -> None:
    async with guarded() as world:
        await leased(world)
        inner = {"op": "txn", "then": [put("app/x", lease="a1")]}
        for method, target, body in (
            ("PUT", "/api/kv/app/x?lease=a1", b"v"),
            ("POST", "/api/txn", {"then": [put("app/x", lease="a1")]}),
            ("POST", "/api/txn", {"then": [inner]}),
            ("POST", "/api/txn", {"else": [{"op": "txn", "else": [inner]}]}),
            ("DELETE", "/api/leases/a1", None),
            ("DELETE", "/api/leases/a2", None),
        ):
            answer = await world.by("alice", method, target, body)
            assert answer.status == 403, (target, answer.body)
        assert world.machine.get(b"secret") is not None and world.machine.get(b"app/x") is None
        await world.ok("alice", "PUT", "/api/kv/app/x?lease=a3", b"v")
        await world.ok("alice", "DELETE", "/api/leases/a3")


async def test_cve_2023_32082_a_lease_tells_only_the_keys_one_may_read() -> None:
    async with guarded() as world:
        await leased(world)
        shown = await world.ok("alice", "GET", "/api/leases/a1")
        assert shown["keys"] == ["app/mine"] and shown["ttl"] == 60
        shown = await world.ok("stranger", "GET", "/api/leases/a1")
        assert shown["keys"] == [] and "secret" not in str(shown)
        assert (await world.ok("root", "GET", "/api/leases/a1"))["keys"] == ["app/mine", "secret"]

        async def listed(user: str) -> list[str]:
            leases = (await world.ok(user, "GET", "/api/leases"))["leases"]
            return [lease["lease"][-2:] for lease in leases]

        assert await listed("root") == ["a1", "a2", "a3"] == await listed("alice")
        assert await listed("stranger") == ["a3"]


async def test_a_lease_is_kept_alive_by_those_with_something_on_it() -> None:
    async with guarded() as world:
        await leased(world)
        for user, lease, status in (
            ("alice", "a1", 200), ("alice", "a2", 403), ("alice", "a3", 200),
            ("stranger", "a1", 403), ("stranger", "a3", 200), ("root", "a2", 200),
            ("stranger", "ffff", 404),
        ):  # fmt: skip
            answer = await world.by(user, "POST", f"/api/leases/{lease}/keepalive")
            assert answer.status == status, (user, lease, answer.body)


# ---- services ------------------------------------------------------------------------------------


async def test_a_claimed_instance_shows_its_holder_to_readers_only() -> None:
    async with guarded() as world:
        await world.ok("root", "POST", "/api/auth/roles", {"role": "writer"})
        await world.grant("writer", access="write", service="web")
        await world.ok("root", "PUT", "/api/auth/users/stranger/roles/writer")
        await world.ok("root", "PUT", "/api/services/web/1", {"address": "hidden", "port": 1})
        claim = {"address": "other", "port": 2}
        for user, tells in (("stranger", False), ("alice", True)):
            answer = await world.by(user, "PUT", "/api/services/web/1", claim)
            assert answer.status == 409 and (b"hidden" in answer.body) is tells
        beat = {"owner": "me"}
        await world.ok("root", "PUT", "/api/services/web/2",
                       {"address": "hidden", "port": 1, "owner": "them"})  # fmt: skip
        answer = await world.by("stranger", "POST", "/api/services/web/2/heartbeat", beat)
        assert answer.status == 409 and b"hidden" not in answer.body
        answer = await world.by("stranger", "DELETE", "/api/services/web/2?owner=me")
        assert answer.status == 409 and b"hidden" not in answer.body


async def test_rights_to_keys_are_none_to_services_and_the_other_way_round() -> None:
    async with guarded() as world:
        await world.ok("root", "POST", "/api/auth/roles", {"role": "keys"})
        await world.grant("keys", access="readwrite", prefix="")
        await world.ok("root", "PUT", "/api/auth/users/stranger/roles/keys")
        await world.ok("stranger", "GET", "/api/kv")
        assert (await world.by("stranger", "GET", "/api/services")).status == 403
        await world.grant("keys", access="read", service_prefix="")
        await world.ok("stranger", "GET", "/api/services")
        assert (await world.by("stranger", "PUT", "/api/services/x/1",
                               {"address": "h", "port": 1})).status == 403  # fmt: skip


# ---- watches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("key=app/only", 200),
        ("start=app/only&end=app/only%00", 200),
        ("start=app/only", 403),
        ("start=app/only&end=app/only%00%00", 403),
        ("prefix=app/only", 403),
        ("key=app/onl", 403),
        ("", 403),
        ("key=AGFwcA==&key_encoding=base64", 403),
    ],
)
async def test_ghsa_xg4h_6gfc_h4m8_a_one_key_grant_covers_no_open_end(
    target: str, status: int
) -> None:
    async with guarded() as world:
        await world.ok("root", "POST", "/api/auth/roles", {"role": "one"})
        await world.grant("one", access="read", key="app/only")
        await world.ok("root", "PUT", "/api/auth/users/stranger/roles/one")
        url = f"http://127.0.0.1:{world.served.port}/api/watch?{target}"
        async with world.served.session.get(url, headers=world.header("stranger")) as answer:
            assert answer.status == status


async def test_a_caller_starts_no_watch_that_it_may_not_have() -> None:
    """Whatever the door in front has judged: some take the range from a later message."""

    class Sink:
        def events(self, revision: int, events: list[Any]) -> bool:
            raise AssertionError("nothing is told")

        progress = closed = events  # type: ignore[assignment]

    async with guarded() as world:
        gate = world.served.door.gate
        caller = gate.enter(world.tokens["alice"].encode())
        for spec in (WatchSpec(0, b"app/", b""), WatchSpec(1, b"app/1"), WatchSpec(0, b"", b"")):
            with pytest.raises(PermissionDenied):
                caller.watch(spec, Sink())  # type: ignore[arg-type]
        caller.watch(WatchSpec(0, b"app/1"), Sink()).cancel()  # type: ignore[arg-type]
        with pytest.raises(InvalidAuthToken):
            gate.anyone.watch(WatchSpec(0, b"app/1"), Sink())  # type: ignore[arg-type]
        assert len(world.store.hub) == 0


async def test_a_watch_that_has_ended_is_forgotten() -> None:
    class Sink:
        def events(self, revision: int, events: list[Any]) -> bool:
            return True

        def progress(self, revision: int) -> None: ...

        def closed(self, error: Exception) -> None: ...

    async with guarded() as world:
        gate = world.served.door.gate
        caller = gate.enter(world.tokens["alice"].encode())
        cancelled, closed, refused = (
            caller.watch(WatchSpec(0, b"app/", b"app0"), Sink()) for _ in range(3)
        )
        assert set(gate._watches) == {cancelled, closed, refused}
        cancelled.cancel()
        closed.close(NoLeader("nobody leads"))
        assert set(gate._watches) == {refused}
        await world.ok("root", "DELETE", "/api/auth/users/alice")
        assert refused.closed and not gate._watches


async def test_a_watch_ends_before_the_first_event_it_may_no_longer_show() -> None:
    async with guarded() as world:
        store = world.store
        target = "/api/watch?prefix=app/"
        async with world.served.stream(target, world.header("alice")) as stream:
            assert (await stream.next())["type"] == "ready"
            await world.ok("root", "PUT", "/api/kv/app/1", b"v")
            assert (await stream.next())["key"] == "app/1"
            # Other rules under which the watch is still allowed do not disturb it.
            await world.grant("app", access="read", key="else")
            await world.ok("root", "PUT", "/api/kv/app/2", b"v")
            assert (await stream.next())["key"] == "app/2"
            # One entry takes the right away and writes: nothing of the write is told.
            revision = world.machine.auth.revision
            store._apply(
                [
                    guard(ac.user_revoke("alice", "app"), revision),
                    guard(c.put(b"app/3", b"v"), revision + 1),
                ]
            )
            last = await stream.next()
            assert last["type"] == "error" and last["code"] == "permission_denied"
            assert await stream.next() is None
        assert len(store.hub) == 0


@pytest.mark.parametrize("target", ["/api/watch", "/api/watch/services"])
async def test_watches_of_nobody_end_when_access_control_is_switched_on(target: str) -> None:
    async with guarded() as world:
        await world.ok("root", "POST", "/api/auth/disable")
        schema = "Event" if target == "/api/watch" else "ServiceEvent"
        async with world.served.stream(target, schema=schema) as stream:
            assert (await stream.next())["type"] == "ready"
            await world.served.call("POST", "/api/auth/enable")
            assert (await stream.next())["code"] == "invalid_auth_token"


async def test_a_long_poll_ends_with_the_right_to_it() -> None:
    async with guarded() as world:
        await world.ok("root", "PUT", "/api/kv/app/1", b"v")
        waiting = world.served.store.hub
        target = f"/api/kv/app/1?wait={world.machine.revision}&timeout=30"
        poll = asyncio.create_task(world.by("alice", "GET", target))
        await until(lambda: len(waiting) == 1)
        await world.ok("root", "DELETE", "/api/auth/users/alice/roles/app")
        assert (await poll).status == 403


# ---- rules that change on the way ----------------------------------------------------------------


async def test_a_write_under_other_rules_is_judged_again_and_done_once() -> None:
    async with guarded() as world:
        store: Ruled = world.store
        store.before_propose = [ac.role_add("unrelated")]
        answer = await world.ok("alice", "PUT", "/api/kv/app/x", b"v")
        assert answer["version"] == 1
        store.before_propose = [ac.user_revoke("alice", "app")]
        assert (await world.by("alice", "PUT", "/api/kv/app/x", b"w")).status == 403
        record = world.machine.get(b"app/x")
        assert record is not None and record.value == b"v"


async def test_rules_that_keep_changing_refuse_in_the_end() -> None:
    async with guarded() as world:
        store = world.store
        number = 0
        plain = store.propose

        def propose(command: c.Command, done: Any) -> None:
            nonlocal number
            number += 1
            store.before_propose = [ac.role_add(f"r{number}")]
            plain(command, done)

        store.propose = propose  # type: ignore[method-assign]
        answer = await world.by("alice", "PUT", "/api/kv/app/x", b"v")
        store.before_propose = []
        assert answer.status == 409 and answer.json["code"] == AuthRevisionOld.code
        assert answer.json["outcome"] == "refused" and number == 2
        assert world.machine.get(b"app/x") is None


async def test_nobody_is_refused_for_what_this_member_has_not_heard_of_yet() -> None:
    """Granted, or logged in, through another member a moment ago."""
    async with guarded() as world:
        store = world.store
        right = ac.role_grant("app", PermissionKind.READWRITE, b"secret")
        requests: list[tuple[str, str, Any]] = [
            ("PUT", SECRET, b"v"), ("GET", SECRET, None),
            ("POST", "/api/txn", {"then": [GET]}),
        ]  # fmt: skip
        for method, target, body in requests:
            assert (await world.by("alice", method, target, body)).status == 403
            store.before_read = [right]
            await world.ok("alice", method, target, body)
            store.apply_now(ac.role_revoke("app", b"secret"))
        await leased(world)
        assert (await world.by("alice", "POST", "/api/leases/a2/keepalive")).status == 403
        store.before_read = [c.put(b"app/x", b"v", lease=0xA2)]
        await world.ok("alice", "POST", "/api/leases/a2/keepalive")

        token = "T" * 43
        world.tokens["late"] = token
        assert (await world.by("late", "GET", SECRET)).status == 401
        digest = sha256(token.encode()).digest()
        store.before_read = [ac.token_add(digest, "root", 60_000, world.machine.auth.revision)]
        await world.ok("late", "GET", SECRET)


async def test_a_refusal_by_a_member_without_a_leader_is_none() -> None:
    async with guarded() as world:

        def headless(done: Any) -> None:
            done(NoLeader("no leader"))

        world.store.read_index = headless  # type: ignore[method-assign]
        for method, target, body in (("GET", SECRET, None), ("PUT", SECRET, b"v")):
            assert (await world.by("alice", method, target, body)).status == 503
        assert (await world.served.call("GET", SECRET)).status == 401


async def test_a_linearizable_read_is_judged_by_the_rules_it_reads_under() -> None:
    """A member that lags must not show what was taken away before the read began."""
    async with guarded() as world:
        await world.ok("root", "PUT", "/api/kv/app/x", b"v")
        for target in ("/api/kv/app/x", "/api/kv?prefix=app/", "/api/kv/app/x?wait=1"):
            world.store.before_read = [ac.role_revoke("app", b"app/", b"app0")]
            answer = await world.by("alice", "GET", target)
            assert answer.status == 403 and b'"v"' not in answer.body, target
            grant = ac.role_grant("app", PermissionKind.READWRITE, b"app/", b"app0")
            world.store.apply_now(grant)
            world.store.before_read = [ac.role_add(f"unrelated {len(world.machine.auth.roles)}")]
            assert (await world.by("alice", "GET", target)).status == 200, target


@pytest.mark.parametrize(
    "target", ["/api/watch?prefix=app/&from=1", "/api/watch/services/web", "/api/services/web"]
)
async def test_a_watch_begins_by_the_rules_in_force(target: str) -> None:
    """It may begin in the past; a right from the past is none."""
    async with guarded() as world:
        await world.ok("root", "PUT", "/api/kv/app/x", b"hidden-host")
        await world.ok("root", "PUT", "/api/services/web/1", {"address": "hidden-host", "port": 1})
        world.store.before_read = [ac.user_revoke("alice", "app")]
        answer = await world.by("alice", "GET", target)
        assert answer.status == 403 and b"hidden-host" not in answer.body


async def test_a_member_that_does_not_know_yet_lets_nobody_in() -> None:
    """Access control is on, and this member has not applied it when the request comes."""
    async with guarded() as world:
        await world.ok("root", "PUT", "/api/kv/app/x", b"v")
        on = ac.auth_enable()
        for method, target, body, status in (
            ("GET", "/api/kv/app/x", None, 401),
            ("GET", "/api/kv", None, 401),
            ("GET", "/api/leases", None, 401),
            ("GET", "/api/auth/users", None, 401),
            ("GET", "/api/snapshot", None, 401),
            ("DELETE", "/api/members/0000000000000001", None, 401),
            ("PUT", "/api/kv/app/x", b"w", 409),
            ("POST", "/api/compact", None, 409),
            ("POST", "/api/auth/roles", {"role": "mine"}, 409),
        ):
            world.store.apply_now(ac.auth_disable())
            world.store.before_read = [on]
            world.store.before_propose = [on]
            answer = await world.served.call(method, target, body)
            assert answer.status == status, (method, target, answer.body)
            assert b'"v"' not in answer.body
        record = world.machine.get(b"app/x")
        assert record is not None and record.value == b"v"
        assert "mine" not in world.machine.auth.roles
