"""Connections: framing, order, bounds, deadlines, drain. Bytes on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from functools import partial

import pytest

from raftkv.api.gate import Gate
from raftkv.api.http import connection as connection_module
from raftkv.api.http.connection import HttpConnection
from raftkv.api.http.door import HttpDoor, origin_form, start_http
from raftkv.api.http.refusals import MethodNotAllowed, RouteNotFound
from raftkv.api.http.router import Router
from raftkv.api.listener import HTTP2_PREFACE, Listener, start_listeners
from raftkv.errors import ConfigError
from raftkv.limits import (
    HTTP_IDLE_SECONDS,
    HTTP_LINGER_SECONDS,
    HTTP_PIPELINE_BYTES_MAX,
    HTTP_REQUEST_SECONDS,
    HTTP_STREAM_BUFFER_BYTES,
    VALUE_BYTES_MAX,
)
from raftkv.server.config import ServerConfig
from raftkv.server.local import LocalStore
from tests.unit.http_support import Served, serving, until
from tests.unit.test_api_http_parser import mutated

GET = b"GET /api/kv/k HTTP/1.1\r\nHost: h\r\n\r\n"
PUT = b"PUT /api/kv/k HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"


def sweep(served: Served, seconds: float) -> None:
    """As if the listener's clock had moved on by `seconds`."""
    served.listener.now += seconds
    for connection in list(served.listener.connections):
        connection.sweep(served.listener.now)


async def test_byte_at_a_time() -> None:
    async with serving() as served:
        raw = await served.raw()
        for byte in PUT + GET:
            raw.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await raw.answer())[0] == 200
        assert b'"hello"' in (await raw.answer())[2]
        await raw.close()


async def test_pipelined_requests_are_answered_in_order_each_after_the_one_before() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send((PUT + GET + b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n" + GET) * 50)
        for at in range(50):
            assert b'"version":%d' % (at + 1) in (await raw.answer())[2]
            assert b'"version":%d' % (at + 1) in (await raw.answer())[2]
            assert b'"etcdserver"' in (await raw.answer())[2]
            assert b'"version":%d' % (at + 1) in (await raw.answer())[2]
        await raw.close()


async def test_thousands_of_pipelined_requests_answered_at_once_do_not_nest() -> None:
    async with serving() as served:
        raw = await served.raw()
        count = 3000
        raw.send(GET + b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n" * count)
        assert (await raw.answer())[0] == 404
        for _ in range(count):
            assert (await raw.answer())[0] == 200
        await raw.close()


async def test_a_flood_of_requests_behind_a_slow_one_is_not_read() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"GET /api/kv/k?wait=1&timeout=0.5 HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: len(served.store.hub) == 1)
        (connection,) = served.listener.connections
        assert isinstance(connection, HttpConnection)
        for _ in range(40):
            raw.send(GET * 1000)
        await until(lambda: connection._reading_paused)
        assert connection._queued_bytes <= 2 * HTTP_PIPELINE_BYTES_MAX + 2**20
        assert len(connection._queue) <= 40_000
        assert (await raw.answer())[0] == 304
        for _ in range(1000):
            assert (await raw.answer())[0] == 404
        await raw.close()


async def test_a_client_that_does_not_read_is_not_served_more() -> None:
    async with serving() as served:
        await served.call("PUT", "/api/kv/k", b"x" * VALUE_BYTES_MAX)
        raw = await served.raw()
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(b"GET /api/kv/k?raw HTTP/1.1\r\nHost: h\r\n\r\n" * 200)

        def stalled() -> list[HttpConnection]:
            held = [one for one in served.listener.connections if isinstance(one, HttpConnection)]
            return [one for one in held if not one.writable]

        await until(stalled)
        await asyncio.sleep(0.05)
        (connection,) = stalled()
        transport = connection._transport
        assert transport is not None
        assert transport.get_write_buffer_size() < VALUE_BYTES_MAX * 2 + HTTP_STREAM_BUFFER_BYTES
        assert len(connection._queue) > 100
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(200):
            assert len((await raw.answer())[2]) == VALUE_BYTES_MAX
        await raw.close()


async def test_keep_alive_and_close() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await raw.answer())[1]["connection"] == "close"
        assert await raw.rest() == b""
        raw = await served.raw()
        raw.send(b"GET /version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await raw.answer())[1]["connection"] == "keep-alive"
        raw.send(b"GET /version HTTP/1.0\r\n\r\n")
        assert (await raw.answer())[1]["connection"] == "close"
        assert await raw.rest() == b""


async def test_expect_continue() -> None:
    async with serving() as served:
        raw = await served.raw()
        head = PUT[:-5].replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        raw.send(head)
        assert (await raw.answer())[0] == 100
        raw.send(b"hello")
        assert (await raw.answer())[0] == 200
        raw.send(head.replace(b"100-continue", b"tea"))
        assert (await raw.answer())[0] == 417
        await raw.close()


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"a" * 400_000, 431),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        (b"PUT /api/kv/k HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"GET /api/kv/k?x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ],
)
async def test_malformed_requests_get_their_status(message: bytes, status: int) -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(GET + message)
        assert (await raw.answer())[0] == 404
        got, headers, body = await raw.answer()
        assert got == status and headers["content-type"] == "application/problem+json"
        if status != 400 or b"?x" not in message:
            # The rest of what we send is swallowed, so that the answer is not reset away.
            raw.send(b"x" * 100_000)
            assert headers["connection"] == "close" and await raw.rest() == b""
        assert b'"outcome":"refused"' in body
        await raw.close()


async def test_routes() -> None:
    async with serving() as served:
        lost = await served.call("GET", "/api/kw")
        assert lost.status == 404 and "/api/kv" in lost.json["near"]
        wrong = await served.call("PATCH", "/api/kv/k")
        assert wrong.status == 405 and wrong.headers["Allow"] == "DELETE, GET, HEAD, PUT"
        assert wrong.json["allow"] == ["DELETE", "GET", "HEAD", "PUT"]
        assert (await served.call("POST", "/health")).status == 405
        for path in ("/", "/api", "/api/", "/api/services/", "/api/services/a/b/c", "/api//kv"):
            assert (await served.call("GET", path)).status == 404, path
        unknown = await served.call("GET", "/health?colour=red")
        assert unknown.status == 400
        assert unknown.json["parameter"] == "colour"
        assert unknown.json["allowed"] == ["exclude", "serializable"]
        raw = await served.raw()
        for target, status in ((b"http://h/version", 200), (b"*", 404), (b"/%zz", 404)):
            raw.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target)
            assert (await raw.answer())[0] == status
        await raw.close()
        router: Router = served.door.router
        with pytest.raises(RouteNotFound):
            router.find(b"GET", b"nowhere")
        with pytest.raises(MethodNotAllowed):
            router.find(b"PUT", b"/version")


def test_origin_form() -> None:
    assert origin_form(b"HTTP://host:1/a/b") == b"/a/b"
    assert origin_form(b"https://host") == b"/"
    assert origin_form(b"*") == b"*"


async def test_foreign_pages_may_read_but_not_write() -> None:
    async with serving() as served:
        evil = {"Origin": "http://evil.example"}
        refused = await served.call("PUT", "/api/kv/k", b"", evil)
        assert refused.status == 403 and refused.json["code"] == "foreign_origin"
        assert (await served.call("GET", "/version", headers=evil)).status == 200
        own = {"Origin": f"http://127.0.0.1:{served.port}"}
        assert (await served.call("PUT", "/api/kv/k", b"", own)).status == 200


async def test_half_open_clients_get_their_answers() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(PUT + GET)
        raw.writer.write_eof()
        assert (await raw.answer())[0] == 200
        assert (await raw.answer())[0] == 200
        assert await raw.rest() == b""
        raw = await served.raw()
        raw.send(PUT[:-2])
        raw.writer.write_eof()
        assert await raw.rest() == b""


async def test_a_slow_message_is_given_up() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(GET + PUT[:-2])
        assert (await raw.answer())[0] == 404
        sweep(served, HTTP_REQUEST_SECONDS - 1)
        raw.send(b"l")
        await asyncio.sleep(0.02)
        sweep(served, 2)
        status, _, body = await raw.answer()
        assert status == 408 and b'"request_timed_out"' in body
        assert await raw.rest() == b""
        await raw.close()


async def test_idle_connections_are_closed() -> None:
    async with serving() as served:
        silent = await served.raw()
        begun = await served.raw()
        begun.send(b"P")  # might yet be HTTP/2
        used = await served.raw()
        used.send(GET)
        await used.answer()
        await until(lambda: len(served.listener.connections) == 3)
        sweep(served, HTTP_REQUEST_SECONDS + 1)
        assert await silent.rest() == b""
        assert await begun.rest() == b""
        assert len(served.listener.connections) == 1
        sweep(served, HTTP_IDLE_SECONDS)
        assert await used.rest() == b""


async def test_a_waiting_request_is_not_idle() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"GET /api/kv/k?wait=1 HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: len(served.store.hub) == 1)
        sweep(served, HTTP_IDLE_SECONDS + 1)
        await served.call("PUT", "/api/kv/k", b"")
        assert (await raw.answer())[0] == 200
        await raw.close()


async def test_a_reader_that_stopped_for_good_is_cut_off() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"GET /api/watch HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: len(served.store.hub) == 1)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = served.listener.connections
        while not connection._paused:  # type: ignore[attr-defined]
            await served.call("PUT", "/api/kv/k", b"x" * 500_000)
        sweep(served, HTTP_IDLE_SECONDS + 1)
        await until(lambda: len(served.store.hub) == 0)
        await raw.close()


async def test_a_lingering_connection_ends() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"nonsense\r\n\r\n")
        assert (await raw.answer())[0] == 400
        assert len(served.listener.connections) == 1
        sweep(served, HTTP_LINGER_SECONDS + 1)
        await until(lambda: not served.listener.connections)
        await raw.close()


@pytest.mark.interpreted
async def test_output_beyond_all_bounds_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "CONNECTION_OUTPUT_BYTES_MAX", 4 * 2**20)
    async with serving() as served:
        raw = await served.raw()
        raw.send(b"GET /api/watch HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: len(served.store.hub) == 1)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = served.listener.connections
        assert isinstance(connection, HttpConnection)
        for _ in range(12):  # a sender that does not look at what `push` answers
            connection.write(b"x" * 2**20)
            connection.flush()
        await until(lambda: not served.listener.connections)
        await raw.close()


async def test_stopping_finishes_what_is_under_way() -> None:
    class Slow(LocalStore):
        def propose(self, command, done) -> None:  # type: ignore[no-untyped-def]
            asyncio.get_running_loop().call_later(0.1, super().propose, command, done)

    async with serving(Slow()) as served:
        idle_one = await served.raw()
        idle_one.send(GET)
        await idle_one.answer()
        raw = await served.raw()
        raw.send(PUT)
        await until(lambda: len(served.listener.connections) == 2)
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(served.listener.close(5))
        assert await idle_one.rest() == b""
        status, headers, _ = await raw.answer()
        assert status == 200 and headers["connection"] == "close"
        await closing
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", served.port)
        await raw.close()
        await idle_one.close()


async def test_what_does_not_finish_in_the_grace_is_cut_off() -> None:
    class Stuck(LocalStore):
        def propose(self, command, done) -> None:  # type: ignore[no-untyped-def]
            pass

    async with serving(Stuck()) as served:
        raw = await served.raw()
        raw.send(PUT)
        await until(lambda: served.listener.connections)
        await asyncio.sleep(0.02)
        await served.listener.close(0.05)
        assert not served.listener.connections
        assert await raw.rest() == b""


async def test_an_answer_for_a_client_that_has_gone() -> None:
    held = []

    class Late(LocalStore):
        def propose(self, command, done) -> None:  # type: ignore[no-untyped-def]
            held.append((command, done))

    store = Late()
    async with serving(store) as served:
        raw = await served.raw()
        raw.send(PUT)
        await until(lambda: held)
        # A reset, not an end of sending: after that one a client may still be reading.
        sock = raw.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await raw.close()
        await until(lambda: not served.listener.connections)
        LocalStore.propose(store, *held[0])
        await until(lambda: store.machine.revision == 2)


# ---- the listener ------------------------------------------------------------------------------


async def test_a_port_in_use_is_said_in_words() -> None:
    async with serving() as served:
        with pytest.raises(ConfigError, match="Another process listens"):
            await start_http(served.store, "127.0.0.1", served.port)
        with pytest.raises(ConfigError, match="no address"):
            await start_http(served.store, "203.0.113.1", 0)
        with pytest.raises(ConfigError, match="Cannot listen"):
            await start_http(served.store, "no-such-host.invalid", 0)


async def test_http2_goes_to_its_factory_however_the_preface_is_cut() -> None:
    received: list[bytes] = []

    class Http2(asyncio.Protocol):
        def __init__(self, listener: Listener) -> None:
            self._listener = listener

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._listener.connections.add(self)  # type: ignore[arg-type]
            self.transport = transport

        def connection_lost(self, exc: Exception | None) -> None:
            self._listener.connections.discard(self)  # type: ignore[arg-type]

        def data_received(self, data: bytes) -> None:
            received.append(data)

        def abort(self) -> None:
            self.transport.abort()  # type: ignore[attr-defined]

        drain = abort

    store = LocalStore()
    door = HttpDoor(store)
    listener = Listener(partial(HttpConnection, door), Http2)  # type: ignore[arg-type]
    await listener.open("127.0.0.1", 0)
    stream = HTTP2_PREFACE + b"frames"
    for step in (1, 24, 100):
        received.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        for at in range(0, len(stream), step):
            writer.write(stream[at : at + step])
            await asyncio.sleep(0.001)
        await until(lambda: b"".join(received) == stream)
        writer.close()
        await writer.wait_closed()
    await listener.close(0.1)
    store.close()


async def test_http2_without_a_factory_is_closed() -> None:
    async with serving() as served:
        raw = await served.raw()
        raw.send(HTTP2_PREFACE)
        assert await raw.rest() == b""
        raw = await served.raw()
        raw.send(b"PRI * HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await raw.answer())[0] == 400


async def test_connections_over_the_limit_are_refused_and_counted() -> None:
    async with serving() as served:
        served.listener.connections_max = 1
        first = await served.raw()
        first.send(GET)
        await first.answer()
        second = await served.raw()
        with contextlib.suppress(ConnectionError):
            assert await second.rest() == b""
        assert served.listener.connections_refused == 1
        await first.close()


async def test_the_sweep_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.api.listener.SWEEP_SECONDS", 0.01)
    async with serving() as served:
        before = served.listener.now
        date = served.door.stamp_block()
        served.door._date = b"then"
        await until(lambda: served.listener.now > before)
        assert b"then" not in served.door.stamp_block() and date.startswith(b"Date: ")
        await served.listener.close()
        await served.listener.close()


@pytest.mark.parametrize("seed", range(4))
async def test_fuzz_the_door_stays_up(seed: int) -> None:
    """Mutated streams against a real store: answers or closes, never a failing handler."""
    rng = random.Random(seed)
    async with serving() as served:
        for _ in range(60):
            raw = await served.raw()
            raw.send(mutated(rng))
            raw.writer.write_eof()
            rest = await raw.rest()
            for line in rest.split(b"\r\n"):
                if line.startswith(b"HTTP/1.1 "):
                    assert line[9:12] in (
                        b"100", b"200", b"400", b"403", b"404", b"405", b"412", b"413", b"414",
                        b"415", b"417", b"431", b"505",
                    ), line  # fmt: skip
            await raw.close()
        assert (await served.call("GET", "/version")).status == 200


# ---- long answers ------------------------------------------------------------------------------


async def large_store(served: Served, values: int = 40) -> None:
    for at in range(values):
        await served.call("PUT", f"/api/kv/{at:03}", b"x" * 500_000)


LINES = b"GET /api/kv HTTP/1.1\r\nHost: h\r\nAccept: application/x-ndjson\r\n\r\n"


async def test_a_slow_reader_of_a_long_answer_costs_bounded_memory() -> None:
    async with serving() as served:
        await large_store(served)
        raw = await served.raw()
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(LINES + GET)
        await until(lambda: served.door.tasks)
        for _ in range(20):
            await asyncio.sleep(0.005)
            for held in served.listener.connections:
                assert isinstance(held, HttpConnection) and held._transport is not None
                # One slice at most beyond what the socket has not taken.
                waiting = held._transport.get_write_buffer_size() + held._out_bytes
                assert waiting < 17 * 510_000 + HTTP_STREAM_BUFFER_BYTES
        assert served.door.tasks
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        status, _, body = await raw.answer()
        assert status == 200 and body.endswith(b'"count":40}\n')
        assert (await raw.answer())[0] == 404
        assert not served.door.tasks


async def test_a_client_that_goes_in_the_midst_of_a_long_answer() -> None:
    async with serving() as served:
        await large_store(served)
        for target in (LINES, LINES.replace(b"/api/kv", b"/api/snapshot")):
            raw = await served.raw()
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            raw.send(target)
            await until(lambda: served.door.tasks)
            await asyncio.sleep(0.02)
            await raw.close()
            await until(lambda: not served.door.tasks)


async def test_a_long_answer_cut_off_by_a_stop_is_seen_to_be_incomplete() -> None:
    async with serving() as served:
        await large_store(served)
        raw = await served.raw()
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(LINES)
        await until(lambda: served.door.tasks)
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(served.listener.close(5))
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        rest = await raw.rest()
        await closing
        assert rest.startswith(b"HTTP/1.1 200 OK") and not rest.endswith(b"0\r\n\r\n")


async def test_long_answers_over_http_1_0_end_with_the_connection() -> None:
    async with serving() as served:
        await served.call("PUT", "/api/kv/k", b"v")
        raw = await served.raw()
        raw.send(b"GET /api/kv HTTP/1.0\r\nAccept: application/x-ndjson\r\n\r\n")
        rest = await raw.rest()
        assert rest.endswith(b'{"end":true,"revision":2,"count":1}\n')
        raw = await served.raw()
        raw.send(b'GET /api/kv/k HTTP/1.0\r\nIf-None-Match: "2"\r\n\r\n')
        rest = await raw.rest()
        assert rest.startswith(b"HTTP/1.1 304 ") and b"Connection: close" in rest
        raw = await served.raw()
        raw.send(LINES.replace(b"GET", b"HEAD").replace(b"Host", b"Connection: close\r\nHost"))
        rest = await raw.rest()
        assert rest.endswith(b"\r\n\r\n") and b"chunked" in rest


async def test_a_bug_in_a_task_is_an_answer_too() -> None:
    class Broken(LocalStore):
        async def transfer_leader(self, to: int | None) -> int:
            raise ZeroDivisionError

    async with serving(Broken(), expect_errors=True) as served:
        failed = await served.call("POST", "/api/leader/transfer")
        assert failed.status == 500
        assert isinstance(served.errors[0]["exception"], ZeroDivisionError)


async def test_listeners_for_every_address_or_none() -> None:
    store = LocalStore()
    gate = Gate(store)
    listeners = await start_listeners(
        store,
        listening_on(0, 0),
        gate,
    )
    assert len({one.port for one in listeners}) == 2
    taken = listeners[0].port
    with pytest.raises(ConfigError):
        await start_listeners(store, listening_on(0, taken), gate)
    for one in listeners:
        await one.close(0)
    store.close()


def listening_on(*ports: int) -> ServerConfig:
    return ServerConfig(listen_client_urls=tuple(f"http://127.0.0.1:{port}" for port in ports))
