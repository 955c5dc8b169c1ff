"""Cluster calls, health, metrics, the description and its page."""

from __future__ import annotations

import html.parser
import json
import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client.parser import text_string_to_metric_families

from raftkv.api.etcd.version import SERVER_VERSION
from raftkv.api.http.docs import render_docs
from raftkv.api.http.door import all_routes
from raftkv.api.http.openapi import build_openapi, places, problem_statuses, request_headers
from raftkv.errors import MemberNotFound, NoLeader
from raftkv.server.local import LocalStore
from raftkv.server.store import MemberInfo
from tests.unit.http_support import serving


class Cluster(LocalStore):
    """A store with other members on its list, and ailments on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.others: dict[int, MemberInfo] = {}
        self.ailments: dict[str, str] = {}
        self.no_leader = False
        self.to_be_promoted = False

    def members(self) -> list[MemberInfo]:
        return [*super().members(), *self.others.values()]

    async def add_member(
        self,
        name: str,
        peer_urls: tuple[str, ...],
        learner: bool,
        *,
        promote: bool = False,
        instead_of: int | None = None,
    ) -> MemberInfo:
        if promote:
            self.to_be_promoted = True
        if instead_of is not None:
            await self.remove_member(instead_of)
        member = MemberInfo(7, name, peer_urls, (), learner, False, match_index=0)
        self.others[7] = member
        return member

    async def remove_member(self, member_id: int) -> None:
        if self.others.pop(member_id, None) is None:
            raise MemberNotFound(f"no member {member_id:x}", member_id=member_id)

    async def promote_member(self, member_id: int) -> None:
        old = self.others[member_id]
        self.others[member_id] = MemberInfo(7, old.name, old.peer_urls, (), False, False)

    def health(self) -> dict[str, str]:
        return self.ailments

    def read_index(self, done) -> None:  # type: ignore[no-untyped-def]
        self._answer(done, NoLeader("no leader is known") if self.no_leader else None)


async def test_status_and_members() -> None:
    async with serving(Cluster()) as served:
        status = (await served.call("GET", "/api/status")).json
        assert status["role"] == "leader" and status["connections"] == 1
        members = (await served.call("GET", "/api/members")).json
        assert members["members"][0]["member_id"] == "0000000000000001"
        body = {"peer_urls": ["http://h:2380"], "learner": True, "name": "m7"}
        added = await served.call("POST", "/api/members", body)
        assert added.status == 201 and added.json["role"] == "learner"
        assert added.json["member_id"] == "0000000000000007" and len(added.json["members"]) == 2
        promoted = await served.call("POST", "/api/members/7/promote")
        assert promoted.json["members"][1]["role"] == "voter"
        assert len((await served.call("DELETE", "/api/members/7")).json["members"]) == 1
        gone = await served.call("DELETE", "/api/members/7")
        assert gone.status == 404 and gone.json["member_id"] == "0000000000000007"
        for bad in ({}, {"peer_urls": []}, {"peer_urls": "x"}, {"peer_urls": ["x"], "y": 1}):
            assert (await served.call("POST", "/api/members", bad)).status == 400
        assert (await served.call("DELETE", "/api/members/xyz")).status == 400
        assert (await served.call("DELETE", "/api/members/%FF")).status == 400


async def test_a_local_store_says_what_it_cannot_do() -> None:
    async with serving() as served:
        refused = await served.call("POST", "/api/members", {"peer_urls": ["http://h:1"]})
        assert refused.status == 409 and refused.json["code"] == "change_refused"
        assert (await served.call("DELETE", "/api/members/1")).status == 409
        assert (await served.call("POST", "/api/members/1/promote")).status == 409
        assert (await served.call("POST", "/api/leader/transfer", {"to": "2"})).status == 409
        moved = await served.call("POST", "/api/leader/transfer")
        assert moved.json == {"leader": "0000000000000001"}
        assert (await served.call("POST", "/api/leader/transfer", {"to": "x"})).status == 400


async def test_compaction() -> None:
    async with serving() as served:
        for at in range(6):
            await served.call("PUT", "/api/kv/k", b"%d" % at)
        kept = await served.call("POST", "/api/compact", {"keep": 2})
        assert kept.json == {"compact_revision": 5, "revision": 7}
        more = await served.call("POST", "/api/compact", {"keep": 5})
        assert more.json["compact_revision"] == 5
        assert (await served.call("GET", "/api/kv/k?revision=4")).status == 410
        assert (await served.call("POST", "/api/compact", {"revision": 3})).status == 410
        assert (await served.call("POST", "/api/compact", {"revision": 99})).status == 400
        both = await served.call("POST", "/api/compact", {"revision": 6, "keep": 1})
        assert both.status == 400
        assert (await served.call("POST", "/api/compact")).json["compact_revision"] == 7


async def test_a_snapshot_is_a_file_of_known_length() -> None:
    async with serving() as served:
        await served.call("PUT", "/api/kv/k", b"v" * 1_000_000)
        got = await served.call("GET", "/api/snapshot")
        assert int(got.headers["Content-Length"]) == len(got.body) > 1_000_000
        assert got.headers["Raftkv-Snapshot-Revision"] == "2"
        assert "attachment" in got.headers["Content-Disposition"]


async def test_health() -> None:
    store = Cluster()
    async with serving(store) as served:
        assert (await served.call("GET", "/health")).json == {"health": "true", "reason": ""}
        assert (await served.call("GET", "/livez")).body == b"ok\n"
        ready = (await served.call("GET", "/readyz?verbose")).body.decode()
        assert "[+]linearizable_read ok" in ready and ready.endswith("ok\n")
        store.ailments = {"no_space": "the quota is used up", "learner": "not a voter yet"}
        sick = await served.call("GET", "/health")
        assert sick.status == 503
        assert sick.json == {"health": "false", "reason": "ALARM NOSPACE"}
        learning = await served.call("GET", "/health?exclude=NOSPACE")
        assert learning.json["reason"] == "RANGE ERROR:etcdserver: rpc not supported for learner"
        assert (await served.call("GET", "/health?exclude=NOSPACE&serializable=true")).status == 200
        assert (await served.call("GET", "/health?exclude=no_space,learner")).status == 200
        unready = await served.call("GET", "/readyz")
        assert unready.status == 503
        assert b"[-]non_learner failed: not a voter yet" in unready.body
        excluded = await served.call("GET", "/readyz?exclude=non_learner&verbose=1")
        assert excluded.status == 200 and b"non_learner excluded" in excluded.body
        assert (await served.call("GET", "/readyz?exclude=nothing")).status == 400
        store.ailments = {}
        store.no_leader = True
        reason = (await served.call("GET", "/health")).json["reason"]
        assert reason == "RANGE ERROR:etcdserver: no leader"
        assert (await served.call("GET", "/readyz/linearizable_read")).status == 503
        assert (await served.call("GET", "/readyz/non_learner")).status == 200
        assert (await served.call("GET", "/livez/serializable_read")).status == 200
        assert (await served.call("GET", "/livez/nothing")).status == 404
        assert (await served.call("GET", "/readyz")).status == 503
        assert (await served.call("GET", "/readyz?exclude=linearizable_read")).status == 200
        assert (await served.call("GET", "/livez")).status == 200
        version = (await served.call("GET", "/version")).json
        assert set(version) == {"version", "etcdserver", "etcdcluster", "storage"}


async def test_metrics_count_what_happened() -> None:
    async with serving() as served:
        for _ in range(3):
            await served.call("PUT", "/api/kv/k", b"")
        await served.call("GET", "/api/kv/none")
        await served.call("GET", "/nothing")
        text = (await served.call("GET", "/metrics")).body.decode()
        samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        count = "raftkv_http_requests_total"
        assert samples[count, ("operation", "putKey"), ("status", "200")] == 3
        assert samples[count, ("operation", "getKey"), ("status", "404")] == 1
        assert samples[count, ("operation", "none"), ("status", "404")] == 1
        assert samples["etcd_server_has_leader",] == 1
        assert samples["etcd_debugging_mvcc_keys_total",] == 1
        assert samples["etcd_server_is_learner",] == 0
        assert samples["etcd_server_version", ("server_version", SERVER_VERSION)] == 1
        assert samples["etcd_debugging_mvcc_current_revision",] == 4
        assert samples["process_resident_memory_bytes",] > 1_000_000
        assert samples["etcd_disk_wal_fsync_duration_seconds_count",] == 0  # it has no log
        assert samples["raftkv_revision",] == 4
        assert samples["raftkv_proposals_committed_total",] == 3
        assert samples["raftkv_http_connections",] == 1


async def test_the_description_is_served_and_valid() -> None:
    async with serving() as served:
        spec = (await served.call("GET", "/openapi.json")).json
        OpenAPIV31SpecValidator(spec).validate()
        assert spec == json.loads(json.dumps(build_openapi(all_routes())))


def test_the_description_tells_of_every_call_and_of_nothing_else() -> None:
    routes = all_routes()
    spec = build_openapi(routes)
    told = {(method.upper(), path) for path, methods in spec["paths"].items() for method in methods}
    assert told == {(route.method, route.template) for route in routes}
    for route in routes:
        operation = spec["paths"][route.template][route.method.lower()]
        parameters = {(one["in"], one["name"]) for one in operation.get("parameters", [])}
        assert parameters == {
            *(("path", name) for name in places(route.template)),
            *(("query", param.name) for param in route.query),
            *(("header", name) for name in request_headers(route)),
        }
        assert ("requestBody" in operation) == (route.body is not None or bool(route.raw_body))
        statuses = {int(status) for status in operation["responses"]}
        assert statuses == {answer.status for answer in route.answers} | problem_statuses(route)
        assert route.tag in {tag["name"] for tag in spec["tags"]}


def test_every_schema_is_used_and_every_reference_leads_somewhere() -> None:
    spec = build_openapi(all_routes())
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(spec)))
    streams = {"Event", "ServiceEvent"}
    assert named | streams == set(spec["components"]["schemas"])


def test_every_write_takes_an_idempotency_key_or_needs_none() -> None:
    for route in all_routes():
        assert route.writes == (route.method != "GET"), route.operation


class Page(html.parser.HTMLParser):
    """Collects ids, links and anything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given: dict[str, Any] = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        elif "src" in given or "href" in given:
            self.fetched.append(given.get("src") or given["href"])
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_the_page_needs_nothing_else() -> None:
    async with serving() as served:
        got = await served.call("GET", "/docs")
        assert "default-src 'none'" in got.headers["Content-Security-Policy"]
        page = Page()
        page.feed(got.body.decode())
        assert not page.open
        assert page.fetched == ["data:,"]
        assert len(set(page.ids)) == len(page.ids)
        for link in page.links:
            assert link == "/openapi.json" or link.removeprefix("#") in page.ids, link
        for route in all_routes():
            assert route.operation in page.ids
        assert "@import" not in got.body.decode() and "url(" not in got.body.decode()


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", 'a"b'])
def test_the_page_escapes_what_it_shows(text: str) -> None:
    spec = build_openapi(all_routes())
    spec["info"]["title"] = text
    assert text not in render_docs(spec).partition("<body>")[2]
