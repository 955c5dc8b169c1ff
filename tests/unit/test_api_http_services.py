"""Leases and services over HTTP."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest

from raftkv.errors import NoLeader
from raftkv.server.local import LocalStore
from tests.unit.http_support import serving, until

WEB: dict[str, Any] = {"address": "10.0.0.1", "port": 80}


async def test_leases_from_grant_to_end() -> None:
    async with serving() as served:
        granted = await served.call("POST", "/api/leases", {"ttl": 60, "id": "ff"})
        assert granted.status == 201
        assert granted.headers["Location"] == "/api/leases/00000000000000ff"
        assert granted.json == {"lease": "00000000000000ff", "ttl": 60, "revision": 1}
        twice = await served.call("POST", "/api/leases", {"ttl": 60, "id": "ff"})
        assert twice.status == 409 and twice.json["lease"] == "00000000000000ff"
        drawn = (await served.call("POST", "/api/leases", {"ttl": 5, "id": None})).json["lease"]
        await served.call("PUT", "/api/kv/k?lease=ff", b"")
        await served.call("PUT", "/api/kv/%FF?lease=ff", b"")
        shown = (await served.call("GET", "/api/leases/ff")).json
        assert shown["keys"] == ["k"] and shown["binary_keys"] == ["/w=="]
        assert 59 < shown["remaining"] <= 60
        alive = await served.call("POST", "/api/leases/ff/keepalive")
        assert alive.json == {"lease": "00000000000000ff", "ttl": 60}
        listed = (await served.call("GET", "/api/leases")).json["leases"]
        assert {lease["lease"] for lease in listed} == {"00000000000000ff", drawn}
        ended = await served.call("DELETE", "/api/leases/ff")
        assert ended.json["deleted"] == 2
        for method, target in (("GET", ""), ("DELETE", ""), ("POST", "/keepalive")):
            gone = await served.call(method, f"/api/leases/ff{target}")
            assert gone.status == 404 and gone.json["code"] == "lease_not_found"
        for body in ({}, {"ttl": "1"}, {"ttl": 0}, {"ttl": -1}, {"ttl": 10**10}, {"ttl": 1.5},
                     {"ttl": True}, {"ttl": 1, "id": "0"}, {"ttl": 1, "id": 7}, {"ttl": 1, "x": 1},
                     [], {"ttl": 1, "id": "zz"}):  # fmt: skip
            assert (await served.call("POST", "/api/leases", body)).status == 400, body
        for bad in ("0", "x", "%FF"):
            assert (await served.call("GET", f"/api/leases/{bad}")).status == 400


async def test_a_lease_that_is_not_kept_ends_and_its_watchers_hear_of_it() -> None:
    async with serving() as served, served.stream("/api/watch") as stream:
        await stream.next()
        started = asyncio.get_running_loop().time()
        lease = (await served.call("POST", "/api/leases", {"ttl": 1})).json["lease"]
        await served.call("PUT", f"/api/kv/k?lease={lease}", b"")
        assert (await stream.next())["type"] == "put"
        assert await stream.next() == {"type": "delete", "revision": 3, "key": "k"}
        assert 1 <= asyncio.get_running_loop().time() - started < 5


async def test_a_service_from_registration_to_end() -> None:
    async with serving() as served:
        body = {**WEB, "tags": ["blue"], "meta": {"zone": "a"}, "weight": 3, "ttl": 30}
        new = await served.call("PUT", "/api/services/web/1", body)
        assert new.status == 201 and new.json["created"] and new.json["changed"]
        datetime.fromisoformat(new.json["expires_at"])
        same = await served.call("PUT", "/api/services/web/1", body)
        assert same.status == 200 and not same.json["changed"] and not same.json["created"]
        assert same.json["lease"] == new.json["lease"] and same.json["revision"] == 2
        changed = await served.call("PUT", "/api/services/web/1", {**body, "weight": 4})
        assert changed.json["changed"] and changed.json["revision"] == 3
        await served.call("PUT", "/api/services/web/2", {**WEB, "port": 81})
        await served.call("PUT", "/api/services/db/1", WEB)
        shown = (await served.call("GET", "/api/services/web/1")).json
        assert shown["weight"] == 4 and shown["meta"] == {"zone": "a"} and shown["ttl"] == 30
        drained = await served.call("POST", "/api/services/web/2/drain")
        assert drained.json["status"] == "draining" and drained.json["changed"]
        found = (await served.call("GET", "/api/services/web")).json["instances"]
        assert [one["instance"] for one in found] == ["1", "2"]
        passing = (await served.call("GET", "/api/services/web?passing=1")).json["instances"]
        assert [one["instance"] for one in passing] == ["1"]
        blue = (await served.call("GET", "/api/services/web?tag=blue")).json["instances"]
        assert [one["instance"] for one in blue] == ["1"]
        assert (await served.call("GET", "/api/services/none")).json["instances"] == []
        listed = (await served.call("GET", "/api/services")).json["services"]
        assert listed == [
            {"service": "db", "instances": 1, "passing": 1},
            {"service": "web", "instances": 2, "passing": 1},
        ]
        await served.call("POST", "/api/services/web/2/drain", {"draining": False})
        assert (await served.call("GET", "/api/services?prefix=w")).json["services"] == [
            {"service": "web", "instances": 2, "passing": 2}
        ]
        beat = await served.call("POST", "/api/services/web/1/heartbeat")
        assert beat.json["lease"] == new.json["lease"] and beat.json["ttl"] == 30
        assert (await served.call("DELETE", "/api/services/web/1")).json["deleted"] == 1
        for method, target in (("GET", ""), ("DELETE", ""), ("POST", "/heartbeat"),
                               ("POST", "/drain")):  # fmt: skip
            gone = await served.call(method, f"/api/services/web/1{target}")
            assert gone.status == 404 and gone.json["code"] == "instance_not_found"


async def test_two_claims_to_one_instance() -> None:
    async with serving() as served:
        await served.call("PUT", "/api/services/web/1", {**WEB, "owner": "a"})
        claimed = await served.call("PUT", "/api/services/web/1", {**WEB, "owner": "b"})
        assert claimed.status == 409 and claimed.json["code"] == "instance_claimed"
        served.valid("Instance", claimed.json["holder"])
        assert claimed.json["holder"]["owner"] == "a"
        beat = await served.call("POST", "/api/services/web/1/heartbeat", {"owner": "b"})
        assert beat.status == 409 and beat.json["holder"]["owner"] == "a"
        assert (await served.call("DELETE", "/api/services/web/1?owner=b")).status == 409
        taken = await served.call(
            "PUT", "/api/services/web/1", {**WEB, "owner": "b", "takeover": True}
        )
        assert taken.status == 200 and taken.json["changed"]
        beat = await served.call("POST", "/api/services/web/1/heartbeat", {"owner": "a"})
        assert beat.status == 409
        beat = await served.call("POST", "/api/services/web/1/heartbeat", {"owner": "b"})
        assert beat.status == 200


async def test_services_come_in_pages() -> None:
    async with serving() as served:
        for at in range(5):
            await served.call("PUT", f"/api/services/s{at}/1", WEB)
            await served.call("PUT", f"/api/services/s{at}/2", WEB)
        names, cursor = [], ""
        while True:
            page = (await served.call("GET", f"/api/services?prefix=s&limit=2{cursor}")).json
            names += [service["service"] for service in page["services"]]
            assert all(service["instances"] == 2 for service in page["services"])
            if page["cursor"] is None:
                break
            cursor = f"&cursor={page['cursor']}"
        assert names == [f"s{at}" for at in range(5)]
        assert (await served.call("GET", f"/api/services?prefix=x{cursor}")).status == 400
        assert (await served.call("GET", f"/api/services?prefix=s{cursor}x!")).status == 400


@pytest.mark.parametrize("headers", [{}, {"Accept": "application/x-ndjson"}])
async def test_watching_services(headers: dict[str, str]) -> None:
    async with serving() as served:
        await served.call("PUT", "/api/services/web/1", WEB)
        await served.call("PUT", "/api/services/other/1", WEB)
        async with served.stream("/api/watch/services/web", headers, "ServiceEvent") as stream:
            present = await stream.next()
            assert (present["type"], present["instance"]) == ("instance", "1")
            ready = await stream.next()
            assert ready == {"type": "ready", "revision": 3}
            await served.call("PUT", "/api/services/web/2", {**WEB, "port": 9, "ttl": 1})
            await served.call("PUT", "/api/services/other/2", WEB)
            await served.call("PUT", "/api/services/web/1", {**WEB, "weight": 7})
            await served.call("DELETE", "/api/services/web/1")
            kinds = [await stream.next() for _ in range(4)]
            assert [(one["type"], one["instance"], one.get("reason")) for one in kinds] == [
                ("registered", "2", None),
                ("changed", "1", None),
                ("deregistered", "1", "deregistered"),
                ("deregistered", "2", "expired"),
            ]
            assert kinds[2]["weight"] == 7 and kinds[3]["port"] == 9
            served.store.hub.mark_progress()
            assert (await stream.next())["type"] == "progress"
        resume = {**headers, "Last-Event-ID": "3"}
        async with served.stream("/api/watch/services", resume, "ServiceEvent") as stream:
            assert await stream.next() == {"type": "ready", "revision": 3}
            assert (await stream.next())["instance"] == "2"
        async with served.stream("/api/watch/services?from=7", {}, "ServiceEvent") as stream:
            await stream.next()
            assert (await stream.next())["type"] == "deregistered"
        await served.call("POST", "/api/compact", {})
        gone = await served.call("GET", "/api/watch/services?from=1")
        assert gone.status == 410
        await until(lambda: len(served.store.hub) == 0)


async def test_a_large_catalog_is_sent_in_slices() -> None:
    async with serving() as served:
        for at in range(600):
            await served.call("PUT", f"/api/services/web/{at:04}", WEB)
        assert len((await served.call("GET", "/api/services/web")).json["instances"]) == 600
        listed = (await served.call("GET", "/api/services")).json["services"]
        assert listed == [{"service": "web", "instances": 600, "passing": 600}]
        async with served.stream("/api/watch/services", {}, "ServiceEvent") as stream:
            seen = [(await stream.next())["instance"] for _ in range(600)]
            assert seen == [f"{at:04}" for at in range(600)]
            assert (await stream.next())["type"] == "ready"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"address": "h"},
        {"address": "h", "port": 70_000},
        {"address": "h", "port": -1},
        {"address": "", "port": 1},
        {"address": 1, "port": 1},
        {**WEB, "tags": "blue"},
        {**WEB, "tags": [1]},
        {**WEB, "meta": {"a": 1}},
        {**WEB, "meta": []},
        {**WEB, "ttl": 0},
        {**WEB, "weight": -1},
        {**WEB, "takeover": 1},
        {**WEB, "colour": "red"},
    ],
)
async def test_bad_registrations(body: Any) -> None:
    async with serving() as served:
        refused = await served.call("PUT", "/api/services/web/1", body)
        assert refused.status == 400 and served.store.machine.revision == 1


async def test_names_of_services() -> None:
    async with serving() as served:
        for bad in ("%FF/1", "web/%FF", "a%00b/1", f"{'x' * 300}/1"):
            answer = await served.call("PUT", f"/api/services/{bad}", WEB)
            assert answer.status in (400, 413), bad
        assert (await served.call("PUT", "/api/services/w%C3%A9b%2Fx/1", WEB)).status == 201
        assert (await served.call("GET", "/api/services")).json["services"][0]["service"] == "wéb/x"


class Headless(LocalStore):
    """Finds no leader to renew leases once told so."""

    headless = False

    def keep_alive(self, lease, done) -> None:  # type: ignore[no-untyped-def]
        if self.headless:
            self._answer(done, NoLeader("no leader is known"))
        else:
            super().keep_alive(lease, done)

    def read_index(self, done) -> None:  # type: ignore[no-untyped-def]
        if self.headless:
            self._answer(done, NoLeader("no leader is known"))
        else:
            super().read_index(done)


async def test_heartbeats_without_a_leader_are_refused_for_now() -> None:
    store = Headless()
    async with serving(store) as served:
        await served.call("PUT", "/api/services/web/1", WEB)
        store.headless = True
        for target in ("web/1", "web/none"):
            beat = await served.call("POST", f"/api/services/{target}/heartbeat", {})
            assert beat.status == 503 and beat.headers["Retry-After"] == "1"
