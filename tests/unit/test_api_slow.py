"""Slow requests are found and named; quick ones are not even looked at."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc.aio
import pytest

from raftkv.api.http.door import start_http
from raftkv.api.slow import SlowRequests
from raftkv.limits import SLOW_REQUESTS_LOGGED_MAX
from tests.unit.etcd_support import EtcdClient
from tests.unit.http_support import until
from tests.unit.test_api_audit import Slow


class Request:
    def __init__(self, name: str) -> None:
        self.name = name

    def described(self) -> dict[str, Any]:
        return {"operation": self.name}


def facts(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any]]:
    return [(r.message, getattr(r, "operation", None)) for r in caplog.records]


def test_what_is_under_way_for_long_is_told_when_found_and_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0
    slow = SlowRequests(400, lambda: now)
    stuck, brief = Request("stuck"), Request("brief")
    slow.look([stuck, brief])
    now = 300
    slow.look([stuck, Request("another")])
    assert not caplog.records
    now = 400
    slow.look([stuck])
    slow.look([stuck])
    assert facts(caplog) == [("a request is slow", "stuck")]
    assert caplog.records[0].__dict__["waited_ms"] == 400
    now = 900
    slow.look([])
    slow.look([])
    assert facts(caplog)[1:] == [("a slow request has ended", "stuck")]
    assert caplog.records[1].__dict__["took_ms"] == 900
    assert slow.found == 1


def test_many_at_once_are_counted_but_not_all_written_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0
    slow = SlowRequests(400, lambda: now)
    stuck = [Request(str(number)) for number in range(100)]
    slow.look(stuck)
    now = 500
    slow.look(stuck)
    slow.look(stuck)
    now = 600
    slow.look([])
    assert slow.found == 100
    assert len(caplog.records) == 2 * SLOW_REQUESTS_LOGGED_MAX + 1
    assert caplog.records[SLOW_REQUESTS_LOGGED_MAX].__dict__["number"] == 90


async def test_a_hanging_write_is_named_over_both_protocols(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Slow()
    listener = await start_http(store, "127.0.0.1", 0, slow_request_ms=40)
    caplog.set_level(logging.WARNING, "raftkv")
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"PUT /api/kv/topsecret HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            client = EtcdClient(channel, store, listener)
            call = asyncio.ensure_future(client.Put(key=b"topsecret", value=b"v"))
            await until(lambda: len(caplog.records) >= 2)
            named = {record.__dict__["operation"] for record in caplog.records}
            assert named == {"putKey", "/etcdserverpb.KV/Put"}
            assert {record.__dict__["source"] for record in caplog.records} == {"127.0.0.1"}
            store.release()
            await call
            await reader.readuntil(b"\r\n\r\n")
            await until(lambda: len(caplog.records) == 4)
        writer.close()
        # A watch may wait for ever and is not slow.
        _, watcher = await asyncio.open_connection("127.0.0.1", listener.port)
        watcher.write(b"GET /api/watch HTTP/1.1\r\nHost: h\r\n\r\n")
        slow = listener.slow
        assert slow is not None and slow.found == 2
        await asyncio.sleep(0.1)
        assert slow.found == 2 and "topsecret" not in caplog.text
        watcher.close()
    finally:
        await listener.close(1.0)
        store.close()
