"""Watches over HTTP: order, resumption, filters, slow readers, ends."""

from __future__ import annotations

import pytest

from raftkv.limits import CONNECTION_OUTPUT_BYTES_MAX, HTTP_STREAM_BUFFER_BYTES
from raftkv.server.watch import Place
from tests.unit.http_support import serving, until

LINES = {"Accept": "application/x-ndjson"}


@pytest.mark.parametrize("headers", [{}, LINES])
async def test_every_change_once_and_in_order(headers: dict[str, str]) -> None:
    async with serving() as served, served.stream("/api/watch?prefix=a", headers) as stream:
        assert await stream.next() == {"type": "ready", "revision": 1}
        lease = (await served.call("POST", "/api/leases", {"ttl": 60})).json["lease"]
        await served.call("PUT", f"/api/kv/a1?lease={lease}", b"v")
        await served.call("PUT", "/api/kv/b1", b"v")
        await served.call("PUT", "/api/kv/a%FF", b"\xff")
        await served.call("DELETE", "/api/kv/a1")
        assert await stream.next() == {
            "type": "put", "revision": 2, "key": "a1", "value": "v", "encoding": "utf-8",
            "create_revision": 2, "version": 1, "lease": lease,
        }  # fmt: skip
        binary = await stream.next()
        assert (binary["key_encoding"], binary["encoding"]) == ("base64", "base64")
        assert await stream.next() == {"type": "delete", "revision": 5, "key": "a1"}
        served.store.hub.mark_progress()
        assert await stream.next() == {"type": "progress", "revision": 5}


async def test_ids_resume_without_loss_or_repeat() -> None:
    async with serving() as served:
        await served.call("PUT", "/api/kv/a", b"1")
        txn = {"then": [{"op": "put", "key": key, "value": "2"} for key in "abc"]}
        await served.call("POST", "/api/txn", txn)
        async with served.stream("/api/watch?from=2&prev=1") as stream:
            assert (await stream.next())["revision"] == 1
            assert stream.last_id == "1"
            assert (await stream.next())["previous"] is None
            assert stream.last_id == "2"
            ids = []
            for key in "abc":
                event = await stream.next()
                assert (event["key"], event["revision"]) == (key, 3)
                if key == "a":
                    assert event["previous"]["value"] == "1"
                ids.append(stream.last_id)
            # One revision is one step: its id comes with its last event.
            assert ids == ["", "", "3"]
        async with served.stream("/api/watch", {"Last-Event-ID": "2"}) as stream:
            await stream.next()
            assert [(await stream.next())["key"] for _ in "abc"] == ["a", "b", "c"]
        await until(lambda: len(served.store.hub) == 0)


async def test_what_is_watched() -> None:
    async with serving() as served:
        for key in ("a", "ab", "b"):
            await served.call("PUT", f"/api/kv/{key}", b"1")
        await served.call("DELETE", "/api/kv?all=1")

        async def seen(query: str, count: int) -> list[tuple[str, str]]:
            async with served.stream(f"/api/watch?from=1&{query}", LINES) as stream:
                await stream.next()
                events = [await stream.next() for _ in range(count)]
                if "keys_only" in query:
                    assert all("value" not in event for event in events)
                return [(event["type"], event["key"]) for event in events]

        assert await seen("key=a", 2) == [("put", "a"), ("delete", "a")]
        assert await seen("prefix=a&filter=put", 2) == [("put", "a"), ("put", "ab")]
        assert await seen("filter=delete", 3) == [("delete", key) for key in ("a", "ab", "b")]
        assert await seen("start=b&keys_only", 2) == [("put", "b"), ("delete", "b")]
        assert await seen("key=YQ&key_encoding=base64", 1) == [("put", "a")]
        for bad in ("key=", "key=a&prefix=b", "start=b&end=a", "from=0", "filter=both", "x=1"):
            assert (await served.call("GET", f"/api/watch?{bad}")).status == 400
        for bad in ("x", "-1", "1" * 19):
            refused = await served.call("GET", "/api/watch", headers={"Last-Event-ID": bad})
            assert refused.status == 400


async def test_a_compacted_start_is_gone() -> None:
    async with serving() as served:
        for _ in range(3):
            await served.call("PUT", "/api/kv/a", b"1")
        await served.call("POST", "/api/compact", {"keep": 1})
        for target, headers in (("/api/watch?from=2", {}), ("/api/watch", {"Last-Event-ID": "1"})):
            gone = await served.call("GET", target, headers=headers)
            assert gone.status == 410 and gone.json["oldest_revision"] == 3
        async with served.stream("/api/watch?from=3") as stream:
            await stream.next()
            assert (await stream.next())["revision"] == 3


async def test_a_future_start_waits() -> None:
    async with serving() as served, served.stream("/api/watch?from=4") as stream:
        assert (await stream.next())["type"] == "ready"
        for _ in range(3):
            await served.call("PUT", "/api/kv/a", b"1")
        assert (await stream.next())["revision"] == 4


async def test_a_slow_reader_costs_bounded_memory_and_misses_nothing() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"GET /api/watch HTTP/1.1\r\nHost: h\r\n\r\n")
        await raw.reader.readuntil(b'ready"')
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (watch,) = served.store.hub._watches
        value = b"x" * 200_000
        count = 0
        while watch.place is not Place.PAUSED or count < 60:
            await served.call("PUT", f"/api/kv/{count}", value)
            count += 1
            assert count < 500
        (connection,) = [
            held
            for held in served.listener.connections
            if held._current is not None  # type: ignore[attr-defined]
        ]
        waiting = connection._transport.get_write_buffer_size()  # type: ignore[attr-defined]
        assert waiting < HTTP_STREAM_BUFFER_BYTES + 2 * len(value)
        assert waiting < CONNECTION_OUTPUT_BYTES_MAX
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for revision in range(2, 2 + count):
            await raw.reader.readuntil(b"id: %d\nevent: put\n" % revision)
        await raw.close()
        await until(lambda: len(served.store.hub) == 0)


async def test_history_compacted_under_a_slow_reader_is_said() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"GET /api/watch HTTP/1.1\r\nHost: h\r\nAccept: application/x-ndjson\r\n\r\n")
        await raw.reader.readuntil(b'ready"')
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (watch,) = served.store.hub._watches
        count = 0
        while watch.place is not Place.PAUSED:
            await served.call("PUT", f"/api/kv/{count}", b"x" * 200_000)
            count += 1
        for _ in range(3):
            await served.call("PUT", "/api/kv/more", b"")
        await served.call("POST", "/api/compact", {})
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        tail = b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            tail = (tail + await raw.reader.read(2**16))[-2000:]
        assert b'"code":"compacted"' in tail[-600:] and b'"type":"error"' in tail[-600:]
        await raw.close()


@pytest.mark.parametrize("target", ["/api/watch", "/api/watch/services", "/api/kv/k?wait=9"])
async def test_a_stopping_member_tells_its_streams(target: str) -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target.encode())
        await until(lambda: len(served.store.hub) == 1)
        await served.listener.close(5)
        rest = await raw.rest()
        assert b'"code":"stopping"' in rest
        assert len(served.store.hub) == 0
        await raw.close()


async def test_streams_over_http_1_0_end_with_the_connection() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"GET /api/watch HTTP/1.0\r\n\r\n")
        head = await raw.reader.readuntil(b"\r\n\r\n")
        assert b"chunked" not in head and b"Connection: close" in head
        assert (await raw.reader.readline()) == b"id: 1\n"
        await raw.close()
        await until(lambda: len(served.store.hub) == 0)


async def test_head_of_a_watch_starts_none() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"HEAD /api/watch HTTP/1.1\r\nHost: h\r\n\r\n")
        status, headers, _ = await raw.answer(head_only=True)
        assert status == 200 and headers["content-type"] == "text/event-stream"
        raw.send(b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await raw.answer())[0] == 200
        assert len(served.store.hub) == 0
        await raw.close()
