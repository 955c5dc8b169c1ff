"""Which pages of other sites may call, and under which names a member answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from raftkv.api.gate import Gate
from raftkv.api.http.pages import Pages, hostname
from raftkv.errors import ConfigError
from raftkv.server.config import load_config
from tests.unit.http_support import Served, serving

SHOP = {"Origin": "https://shop.example"}
EVIL = {"Origin": "https://evil.example"}
ALLOWED = "Access-Control-Allow-Origin"


@asynccontextmanager
async def serving_pages(cors: str = "", hosts: str = "*") -> AsyncIterator[Served]:
    config = load_config({"cors": cors, "host_whitelist": hosts})
    pages = Pages(config.cors, config.host_whitelist)
    async with serving(gate=lambda store: Gate(store, pages=pages)) as served:
        yield served


async def test_a_page_of_a_named_origin_may_do_all_and_another_nothing() -> None:
    async with serving_pages("https://Shop.example/,https://other.example:8443") as served:
        put = await served.call("PUT", "/api/kv/a", b"1", SHOP)
        assert put.status == 200 and put.headers[ALLOWED] == "https://shop.example"
        assert put.headers["Vary"] == "Origin"
        refused = await served.call("PUT", "/api/kv/a", b"2", EVIL)
        assert refused.status == 403 and ALLOWED not in refused.headers
        read = await served.call("GET", "/api/kv/a?raw", headers=EVIL)
        assert read.body == b"1" and ALLOWED not in read.headers
        missing = await served.call("GET", "/api/kv/none", headers=SHOP)
        assert missing.status == 404 and missing.headers[ALLOWED] == "https://shop.example"
        unchanged = await served.call(
            "GET", "/api/kv/a?raw", headers={**SHOP, "If-None-Match": read.headers["ETag"]}
        )
        assert unchanged.status == 304 and unchanged.headers[ALLOWED] == "https://shop.example"


async def test_the_preflight_is_answered_as_etcd_answers_it() -> None:
    async with serving_pages("https://shop.example") as served:
        async with served.session.options(f"http://127.0.0.1:{served.port}/v3/kv/put",
                                          headers=SHOP) as got:  # fmt: skip
            assert got.status == 200 and await got.read() == b""
            assert got.headers[ALLOWED] == "https://shop.example"
            assert got.headers["Access-Control-Allow-Methods"] == "POST, GET, OPTIONS, PUT, DELETE"
            for header in ("accept", "content-type", "authorization"):
                assert header in got.headers["Access-Control-Allow-Headers"].split(", ")
        async with served.session.options(f"http://127.0.0.1:{served.port}/v3/kv/put",
                                          headers=EVIL) as got:  # fmt: skip
            assert got.status == 200 and ALLOWED not in got.headers


async def test_any_origin() -> None:
    async with serving_pages("*") as served:
        assert (await served.call("GET", "/version")).headers[ALLOWED] == "*"
        put = await served.call("PUT", "/api/kv/a", b"1", EVIL)
        assert put.status == 200 and put.headers[ALLOWED] == "*"
        lines = await served.call("GET", "/api/kv?prefix=a", headers={
            **EVIL, "Accept": "application/x-ndjson"})  # fmt: skip
        assert lines.status == 200 and lines.headers[ALLOWED] == "*"


async def test_a_host_that_is_not_on_the_list_is_misdirected() -> None:
    async with serving_pages(hosts="store.example,127.0.0.1") as served:
        assert (await served.call("PUT", "/api/kv/a", b"1")).status == 200
        own = {"Host": "STORE.example:2379"}
        assert (await served.call("GET", "/api/kv/a?raw", headers=own)).body == b"1"
        rebound = {"Host": "evil.example:2379", "Origin": "http://evil.example:2379"}
        refused = await served.call("GET", "/api/kv/a?raw", headers=rebound)
        assert refused.status == 421 and refused.json["code"] == "misdirected"
        assert "evil.example" in refused.json["detail"]
        assert (await served.call("PUT", "/api/kv/a", b"2", rebound)).status == 421


def test_hosts_are_not_asked_of_requests_over_tls() -> None:
    pages = Pages((), ("store.example",))
    assert pages.grant({b"host": b"other"}, secure=True) == b""


def test_names_of_hosts() -> None:
    assert hostname(b"A.example:1") == b"a.example"
    assert hostname(b"[::1]:2379") == hostname(b"[::1]") == b"::1"
    assert hostname(b"") == b""


@pytest.mark.parametrize("text", ["shop.example", "https://a/b", "https://u@a", "https://"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--cors must hold origins"):
        load_config({"cors": text})
