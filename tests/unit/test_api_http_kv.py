"""Keys and values over HTTP, through a real door and a real machine."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from raftkv.api.http import kv
from raftkv.errors import NoLeader, OutcomeUnknown
from raftkv.limits import HTTP_BODY_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX
from raftkv.server.local import LocalStore
from tests.unit.http_support import Served, serving, until


async def test_put_get_delete() -> None:
    async with serving() as served:
        put = await served.call("PUT", "/api/kv/a/b", b"one")
        assert put.status == 200 and put.headers["ETag"] == '"2"'
        assert put.json == {
            "revision": 2, "key": "a/b", "create_revision": 2, "mod_revision": 2,
            "version": 1, "lease": None,
        }  # fmt: skip
        put = await served.call("PUT", "/api/kv/a%2Fb?prev=1", b"two")
        assert put.json["previous"]["value"] == "one" and put.json["version"] == 2
        got = await served.call("GET", "/api/kv/a/b")
        assert got.headers["ETag"] == '"3"' and got.headers["Raftkv-Revision"] == "3"
        assert got.json == {
            "key": "a/b", "value": "two", "encoding": "utf-8", "create_revision": 2,
            "mod_revision": 3, "version": 2, "lease": None, "revision": 3,
        }  # fmt: skip
        head = await served.call("HEAD", "/api/kv/a/b")
        assert int(head.headers["Content-Length"]) == len(got.body)
        old = await served.call("GET", "/api/kv/a/b?revision=2&consistency=serializable")
        assert old.json["value"] == "one" and old.json["revision"] == 2
        gone = await served.call("DELETE", "/api/kv/a/b?prev")
        assert gone.json["deleted"] == 1 and gone.json["previous"][0]["value"] == "two"
        assert (await served.call("DELETE", "/api/kv/a/b")).json == {"revision": 4, "deleted": 0}
        missing = await served.call("GET", "/api/kv/a/b")
        assert missing.status == 404 and missing.json["code"] == "key_not_found"
        assert missing.json["key"] == "a/b" and missing.json["revision"] == 4
        first = await served.call("PUT", "/api/kv/new?prev=1", b"")
        assert first.json["previous"] is None


async def test_bytes_stay_bytes() -> None:
    async with serving() as served:
        value = bytes(range(256))
        key = base64.urlsafe_b64encode(b"\xff\x00k").decode()
        put = await served.call(
            "PUT", f"/api/kv/{key}?key_encoding=base64", value, {"Content-Type": "text/plain"}
        )
        assert put.json["key_encoding"] == "base64"
        for target in ("/api/kv/%FF%00k", f"/api/kv/{key.rstrip('=')}?key_encoding=base64"):
            got = await served.call("GET", target)
            assert got.json["encoding"] == "base64"
            assert base64.b64decode(got.json["value"]) == value
            assert base64.b64decode(got.json["key"]) == b"\xff\x00k"
        raw = await served.call("GET", "/api/kv/%FF%00k?raw")
        assert raw.body == value and raw.headers["ETag"] == '"2"'
        page = await served.call("GET", "/api/kv?prefix=_w&key_encoding=base64")
        assert page.json["items"] == [{k: v for k, v in got.json.items() if k != "revision"}]
        await served.call("PUT", "/api/kv/u", "höhe\0".encode())
        text = await served.call("GET", "/api/kv/u")
        assert (text.json["value"], text.json["encoding"]) == ("höhe\0", "utf-8")


async def test_conditions() -> None:
    async with serving() as served:
        once = {"If-None-Match": "*"}
        assert (await served.call("PUT", "/api/kv/k", b"1", once)).status == 200
        lost = await served.call("PUT", "/api/kv/k", b"2", once)
        assert lost.status == 412 and lost.json["current"]["value"] == "1"
        assert lost.json["outcome"] == "refused"
        won = await served.call("PUT", "/api/kv/k", b"2", {"If-Match": '"2"'})
        assert won.status == 200 and won.headers["ETag"] == '"3"'
        assert (await served.call("PUT", "/api/kv/k", b"3", {"If-Match": '"2"'})).status == 412
        assert (await served.call("PUT", "/api/kv/k", b"3", {"If-None-Match": '"3"'})).status == 412
        assert (await served.call("PUT", "/api/kv/k", b"3", {"If-Match": "*"})).status == 200
        none = await served.call("PUT", "/api/kv/none", b"3", {"If-Match": "*"})
        assert none.status == 412 and none.json["current"] is None
        assert (await served.call("PUT", "/api/kv/none", b"", {"If-Match": '"0"'})).status == 412
        stale = await served.call("DELETE", "/api/kv/k?prev=1", headers={"If-Match": '"3"'})
        assert stale.status == 412
        gone = await served.call("DELETE", "/api/kv/k?prev=1", headers={"If-Match": '"4"'})
        assert gone.json["deleted"] == 1 and gone.json["previous"][0]["value"] == "3"
        await served.call("PUT", "/api/kv/k", b"4")
        same = await served.call("GET", "/api/kv/k", headers={"If-None-Match": '"6"'})
        assert same.status == 304 and same.headers["ETag"] == '"6"'
        assert (await served.call("GET", "/api/kv/k", headers={"If-None-Match": "*"})).status == 304
        other = await served.call("GET", "/api/kv/k", headers={"If-None-Match": '"5"'})
        assert other.status == 200
        for bad in ("7", 'W/"7"', '"7", "8"', '"x"'):
            assert (await served.call("PUT", "/api/kv/k", b"", {"If-Match": bad})).status == 400


async def test_an_idempotency_key_makes_a_repeat_harmless() -> None:
    async with serving() as served:
        key = {"Idempotency-Key": "job-1"}
        first = await served.call("PUT", "/api/kv/k", b"1", key)
        again = await served.call("PUT", "/api/kv/k", b"1", key)
        assert first.json == again.json and served.store.machine.revision == 2
        other = await served.call("PUT", "/api/kv/k", b"2", key)
        assert other.status == 409 and other.json["code"] == "idempotency_mismatch"
        for bad in ("", "x" * 129):
            refused = await served.call("PUT", "/api/kv/k", b"1", {"Idempotency-Key": bad})
            assert refused.status == 400
        cas = {"Idempotency-Key": "job-2", "If-Match": '"9"'}
        assert (await served.call("PUT", "/api/kv/k", b"1", cas)).status == 412
        assert (await served.call("PUT", "/api/kv/k", b"1", cas)).status == 412


async def test_a_lease_holds_a_key() -> None:
    async with serving() as served:
        lease = (await served.call("POST", "/api/leases", {"ttl": 60})).json["lease"]
        put = await served.call("PUT", f"/api/kv/k?lease={lease}", b"v")
        assert put.json["lease"] == lease
        assert (await served.call("GET", "/api/kv/k")).json["lease"] == lease
        unknown = await served.call("PUT", "/api/kv/k?lease=77", b"v")
        assert unknown.status == 404 and unknown.json["lease"] == "0000000000000077"
        for bad in ("0", "xyz", "8000000000000000", "11111111111111111"):
            assert (await served.call("PUT", f"/api/kv/k?lease={bad}", b"v")).status == 400


async def fill(served: Served, count: int, prefix: str = "k") -> None:
    for at in range(count):
        await served.call("PUT", f"/api/kv/{prefix}{at:04}", b"v%d" % at)


@pytest.mark.parametrize("reverse", ["", "&reverse=1"])
async def test_pages_are_read_at_one_revision(reverse: str) -> None:
    async with serving() as served:
        await fill(served, 45)
        await served.call("PUT", "/api/kv/other", b"")
        seen = []
        target = f"/api/kv?prefix=k&limit=20{reverse}"
        page = await served.call("GET", target)
        revision = page.json["revision"]
        while True:
            seen += [item["key"] for item in page.json["items"]]
            assert page.json["revision"] == revision
            assert page.json["count"] == len(page.json["items"])
            if page.json["cursor"] is None:
                assert page.json["more"] is False
                break
            await served.call("PUT", f"/api/kv/k{len(seen):04}x", b"late")
            await served.call("DELETE", "/api/kv/k0044")
            page = await served.call("GET", f"{target}&cursor={page.json['cursor']}")
        wanted = [f"k{at:04}" for at in range(45)]
        assert seen == (wanted[::-1] if reverse else wanted)


async def test_cursors_are_for_their_query_only() -> None:
    async with serving() as served:
        await fill(served, 3)
        cursor = (await served.call("GET", "/api/kv?prefix=k&limit=1")).json["cursor"]
        for bad in (f"prefix=x&cursor={cursor}", "cursor=!!", "cursor=AAAA", f"cursor={cursor}",
                    f"prefix=k&cursor={cursor}&revision=1", "cursor=" + "A" * 30):  # fmt: skip
            assert (await served.call("GET", f"/api/kv?{bad}")).status == 400
        await served.call("PUT", "/api/kv/k", b"")
        await served.call("POST", "/api/compact", {})
        late = await served.call("GET", f"/api/kv?prefix=k&cursor={cursor}")
        assert late.status == 410 and late.json["oldest_revision"] == 5


async def test_ranges_and_their_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        await fill(served, 5)
        page = await served.call("GET", "/api/kv?start=k0001&end=k0003")
        assert [item["key"] for item in page.json["items"]] == ["k0001", "k0002"]
        page = await served.call("GET", "/api/kv?start=k0003&keys_only=1")
        assert [item["key"] for item in page.json["items"]] == ["k0003", "k0004"]
        assert all("value" not in item for item in page.json["items"])
        count = await served.call("GET", "/api/kv?prefix=k000&count_only=1")
        assert count.json["count"] == 5 and count.json["items"] == []
        assert (await served.call("GET", "/api/kv?count_only=1")).json["count"] == 5
        monkeypatch.setattr(kv, "EXAMINE_ROWS", 2)
        count = await served.call("GET", "/api/kv?prefix=k000&count_only=1&reverse=1")
        assert count.json["count"] == 5
        old = await served.call("GET", "/api/kv?revision=3")
        assert old.json["count"] == 2 and old.json["revision"] == 3
        assert (await served.call("GET", "/api/kv?end=k0002")).json["count"] == 2
        for bad in ("prefix=a&start=b", "start=b&end=a", "keys_only=1&count_only=1", "limit=0",
                    "limit=10001", "limit=x", "revision=0", "reverse=maybe", "consistency=odd",
                    "prefix=%zz", "prefix=!&key_encoding=base64", "limit=1&limit=2",
                    "cursor=%ff"):  # fmt: skip
            refused = await served.call("GET", f"/api/kv?{bad}")
            assert refused.status == 400, bad
        future = await served.call("GET", "/api/kv?revision=99")
        assert future.status == 400 and future.json["code"] == "future_revision"
        plus = await served.call("PUT", "/api/kv/a%20b", b"")
        assert plus.status == 200
        assert (await served.call("GET", "/api/kv?prefix=a+b&")).json["count"] == 1


async def test_a_stream_of_any_size() -> None:
    async with serving() as served:
        await fill(served, 40)
        lines = {"Accept": "application/x-ndjson"}
        got = await served.call("GET", "/api/kv?prefix=k", headers=lines)
        rows = [json.loads(line) for line in got.body.splitlines()]
        assert [row["key"] for row in rows[:-1]] == [f"k{at:04}" for at in range(40)]
        assert rows[-1] == {"end": True, "revision": 41, "count": 40}
        got = await served.call("GET", "/api/kv?prefix=k&limit=3&keys_only", headers=lines)
        assert len(got.body.splitlines()) == 4
        none = await served.call("GET", "/api/kv?prefix=none", headers=lines)
        assert json.loads(none.body)["count"] == 0
        early = await served.call("GET", "/api/kv?revision=99", headers=lines)
        assert early.status == 400


async def test_a_stream_overtaken_by_compaction_says_so_in_its_last_line() -> None:
    async with serving() as served:
        value = b"x" * VALUE_BYTES_MAX
        for at in range(24):
            await served.call("PUT", f"/api/kv/k{at:02}", value)
        raw = await served.raw()
        raw.send(b"GET /api/kv HTTP/1.1\r\nHost: h\r\nAccept: application/x-ndjson\r\n\r\n")
        await raw.reader.readline()
        await served.call("PUT", "/api/kv/k00", b"")
        await served.call("POST", "/api/compact", {})
        raw.send(b"GET /version HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        body = await raw.rest()
        assert b'{"error":{"type":"urn:raftkv:problem:compacted"' in body
        assert body.count(b"HTTP/1.1 200 OK") == 1  # the next answer, after a proper end
        await raw.close()


async def test_large_values_make_small_pages() -> None:
    async with serving() as served:
        for at in range(12):
            await served.call("PUT", f"/api/kv/k{at:02}", b"x" * 2**20)
        seen = 0
        cursor = ""
        pages = 0
        while True:
            page = await served.call("GET", f"/api/kv?prefix=k{cursor}")
            assert len(page.body) < 18 * 2**20
            seen += page.json["count"]
            pages += 1
            if page.json["cursor"] is None:
                break
            cursor = f"&cursor={page.json['cursor']}"
        assert seen == 12


async def test_delete_many() -> None:
    async with serving() as served:
        await fill(served, 6)
        await served.call("PUT", "/api/kv/z", b"")
        assert (await served.call("DELETE", "/api/kv")).status == 400
        assert (await served.call("DELETE", "/api/kv?prefix=")).status == 400
        assert (await served.call("DELETE", "/api/kv?prefix=k&all=1")).status == 400
        gone = await served.call("DELETE", "/api/kv?start=k0000&end=k0002&prev=1")
        assert [record["key"] for record in gone.json["previous"]] == ["k0000", "k0001"]
        assert (await served.call("DELETE", "/api/kv?prefix=k")).json["deleted"] == 4
        assert (await served.call("DELETE", "/api/kv?all=1")).json["deleted"] == 1


async def test_waiting_for_a_change() -> None:
    async with serving() as served:
        await served.call("PUT", "/api/kv/k", b"1")
        at_once = await served.call("GET", "/api/kv/k?wait=1")
        assert at_once.json["value"] == "1"
        waiting = asyncio.create_task(served.call("GET", "/api/kv/k?wait=2"))
        await until(lambda: len(served.store.hub) == 1)
        await served.call("PUT", "/api/kv/other", b"")
        await served.call("PUT", "/api/kv/k", b"2")
        assert (await waiting).json["value"] == "2"
        assert len(served.store.hub) == 0
        waiting = asyncio.create_task(served.call("GET", "/api/kv/k?wait=4"))
        await until(lambda: len(served.store.hub) == 1)
        await served.call("DELETE", "/api/kv/k")
        assert (await waiting).status == 404
        assert (await served.call("GET", "/api/kv/k?wait=4")).status == 404
        nothing = await served.call("GET", "/api/kv/k?wait=5&timeout=0.05")
        assert nothing.status == 304 and len(served.store.hub) == 0
        for bad in ("wait=1&revision=1", "wait=-1", "wait=1&timeout=601", "wait=1&timeout=nan"):
            assert (await served.call("GET", f"/api/kv/k?{bad}")).status == 400


async def test_waiting_past_compaction() -> None:
    async with serving() as served:
        await served.call("PUT", "/api/kv/k", b"1")
        await served.call("PUT", "/api/kv/o", b"1")
        await served.call("POST", "/api/compact", {})
        assert (await served.call("GET", "/api/kv/none?wait=1")).status == 404
        waiting = asyncio.create_task(served.call("GET", "/api/kv/k?wait=0"))
        assert (await waiting).status == 200
        await served.call("PUT", "/api/kv/o", b"2")
        await served.call("POST", "/api/compact", {})
        waiting = asyncio.create_task(served.call("GET", "/api/kv/k?wait=2"))
        await until(lambda: len(served.store.hub) == 1)
        await served.call("PUT", "/api/kv/k", b"2")
        assert (await waiting).json["value"] == "2"


async def test_a_waiting_client_that_goes_leaves_nothing() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"GET /api/kv/k?wait=5 HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: len(served.store.hub) == 1)
        await raw.close()
        await until(lambda: len(served.store.hub) == 0)


async def test_bounds_of_keys_and_values() -> None:
    async with serving() as served:
        key = "k" * KEY_BYTES_MAX
        assert (await served.call("PUT", f"/api/kv/{key}", b"")).status == 200
        assert (await served.call("GET", f"/api/kv/{'%6B' * KEY_BYTES_MAX}")).status == 200
        assert (await served.call("GET", f"/api/kv/{key}k")).status in (400, 413)
        assert (await served.call("PUT", f"/api/kv/{key}k", b"")).status in (400, 413)
        assert (await served.call("PUT", "/api/kv/", b"")).status == 400
        assert (await served.call("GET", "/api/kv/%")).status == 400
        over = await served.call("PUT", "/api/kv/k", b"x" * (VALUE_BYTES_MAX + 1))
        assert over.status == 413 and over.json["code"] == "too_large"
        raw = await served.raw()
        raw.send(
            b"PUT /api/kv/k HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
            % (HTTP_BODY_BYTES_MAX + 1)
        )
        status, headers, _ = await raw.answer()
        assert status == 413 and headers["connection"] == "close"
        await raw.close()


class Troubled(LocalStore):
    """A store in trouble of a chosen kind."""

    trouble: Exception

    def propose(self, command, done) -> None:  # type: ignore[no-untyped-def]
        asyncio.get_running_loop().call_soon(done, self.trouble)

    def read_index(self, done) -> None:  # type: ignore[no-untyped-def]
        asyncio.get_running_loop().call_soon(done, self.trouble)


async def test_refused_and_unknown_never_look_alike() -> None:
    store = Troubled()
    async with serving(store) as served:
        store.trouble = OutcomeUnknown("no answer in time")
        unknown = await served.call("PUT", "/api/kv/k", b"")
        assert unknown.status == 504 and unknown.json["outcome"] == "unknown"
        store.trouble = NoLeader("no leader is known")
        for method, target in (("PUT", "/api/kv/k"), ("GET", "/api/kv/k"), ("GET", "/api/kv"),
                               ("GET", "/api/leases"), ("GET", "/api/services"),
                               ("GET", "/api/services/s"), ("GET", "/api/services/s/i"),
                               ("GET", "/api/kv/k?wait=1"),
                               ("DELETE", "/api/leases/1")):  # fmt: skip
            refused = await served.call(method, target, b"" if method == "PUT" else None)
            assert refused.status == 503 and refused.json["outcome"] == "refused"
            assert refused.headers["Retry-After"] == "1"
        served.store.machine.get(b"k")
        local = await served.call("GET", "/api/kv/k?consistency=serializable")
        assert local.status == 404


class Broken(LocalStore):
    """A store with a bug."""

    def propose(self, command, done) -> None:  # type: ignore[no-untyped-def]
        raise ZeroDivisionError("secret")


async def test_a_bug_is_reported_and_its_text_kept() -> None:
    async with serving(Broken(), expect_errors=True) as served:
        failed = await served.call("PUT", "/api/kv/k", b"")
        assert failed.status == 500 and failed.json["outcome"] == "failed"
        assert b"secret" not in failed.body
        assert isinstance(served.errors[0]["exception"], ZeroDivisionError)
