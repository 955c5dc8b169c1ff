"""The client port over TLS: ALPN, both protocols, and users by their certificates."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest

from raftkv.api.gate import Gate
from raftkv.api.http.door import start_http
from raftkv.api.listener import HTTP2_PREFACE, Listener
from raftkv.machine import auth_commands as ac
from raftkv.server.tls.files import TlsFiles, TlsPolicy
from raftkv.server.tls.settings import ClientSide
from tests.support.certificates import Pki
from tests.unit.auth_support import Ruled, quick_passwords
from tests.unit.etcd_support import EtcdCalls

PREFACE = HTTP2_PREFACE + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
USERS = ("root", "alice", "stranger")


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


class World:
    def __init__(self, pki: Pki, store: Ruled, listener: Listener) -> None:
        self.pki = pki
        self.store = store
        self.listener = listener
        self.url = f"https://127.0.0.1:{listener.port}"

    async def call(
        self,
        files: TlsFiles | None,
        method: str,
        target: str,
        headers: Any = None,
        body: Any = None,
    ) -> tuple[int, Any]:
        """One call over HTTP/1.1 on a connection of its own."""
        connector = aiohttp.TCPConnector(ssl=self.pki.connecting(files))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, self.url + target, json=body, headers=headers or {}) as got,
        ):
            return got.status, await got.json(content_type=None)

    def channel(self, files: TlsFiles | None) -> grpc.aio.Channel:
        key = None if files is None else Path(files.key).read_bytes()
        chain = None if files is None else Path(files.cert).read_bytes()
        credentials = grpc.ssl_channel_credentials(Path(self.pki.ca).read_bytes(), key, chain)
        return grpc.aio.secure_channel(f"127.0.0.1:{self.listener.port}", credentials)

    async def raw(self, *alpn: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.listener.port, ssl=self.pki.connecting(None, *alpn)
        )


async def hashed(gate: Gate, password: str) -> str:
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    gate.passwords.hash(password, found.set_result)
    return str(await found)


@asynccontextmanager
async def served(
    pki: Pki, *, auth: bool = False, connections_max: int = 100, **side: Any
) -> AsyncIterator[World]:
    """A door over TLS; with `auth`: alice reads and writes app/, stranger has no role."""
    store = Ruled()
    gate = Gate(store, passwords=quick_passwords(), clock_ms=store.wall_ms)
    tls = ClientSide(pki.member("server"), TlsPolicy(), **side)
    listener = await start_http(
        store, "127.0.0.1", 0, gate=gate, tls=tls, connections_max=connections_max
    )
    if auth:
        commands = [
            *[ac.user_add(user, await hashed(gate, f"{user}-pass")) for user in USERS],
            ac.role_add("root"),
            ac.user_grant("root", "root"),
            ac.role_add("app"),
            ac.role_grant("app", 2, b"app/", b"app0"),
            ac.user_grant("alice", "app"),
            ac.auth_enable(),
        ]
        store.apply_now(*commands)
    try:
        yield World(pki, store, listener)
    finally:
        await listener.close(1)
        gate.close()
        store.close()


async def test_both_protocols_on_the_one_port(pki: Pki) -> None:
    async with served(pki) as world:
        assert (await world.call(None, "GET", "/health"))[0] == 200
        async with world.channel(None) as channel:
            await EtcdCalls(channel).Put(key=b"a", value=b"1")
            assert (await EtcdCalls(channel).Range(key=b"a")).kvs[0].value == b"1"
        for alpn, agreed in (
            (("h2", "http/1.1"), "h2"),
            (("http/1.1",), "http/1.1"),
            ((), None),
            (("spdy/3",), None),
        ):
            reader, writer = await world.raw(*alpn)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == agreed
            if agreed == "h2":
                writer.write(PREFACE)
                assert (await reader.readexactly(9))[3] == 4
            else:
                writer.write(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        reader, writer = await world.raw()
        writer.write(PREFACE)
        assert (await reader.readexactly(9))[3] == 4, "without ALPN the preface tells"
        writer.close()


async def test_clear_text_on_a_port_of_tls_gets_nothing(pki: Pki) -> None:
    async with served(pki) as world:
        assert world.listener.handshakes is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", world.listener.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
            assert answer == b"" or answer[0] == 0x15, "a TLS alert, and nothing of ours"
        writer.close()
        assert not world.listener.connections
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=pki.connecting())) as session,
            session.get(world.url + "/metrics") as got,
        ):
            text = await got.text()
        assert 'raftkv_tls_handshakes_total{outcome="failed"} 1.0' in text
        assert 'raftkv_tls_handshakes_total{outcome="done"} 1.0' in text


async def test_the_bound_on_connections_holds_whatever_was_agreed(pki: Pki) -> None:
    async with served(pki, connections_max=1) as world:
        reader, writer = await world.raw("h2")
        writer.write(PREFACE)
        assert (await reader.readexactly(9))[3] == 4
        for alpn in ("h2", "http/1.1"):
            second, other = await world.raw(alpn)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert await second.read() == b""
            other.close()
        assert world.listener.connections_refused == 2
        writer.close()


async def test_the_common_name_is_the_user(pki: Pki) -> None:
    """etcd: `--client-cert-auth` with auth on. A token goes first; the JSON gateway takes none."""
    alice, mallory = pki.client("alice"), pki.client("mallory")
    stranger = pki.client("stranger")
    async with served(pki, auth=True, mutual=True, identifies=True) as world:
        put = ("PUT", "/api/kv/app/x")
        assert (await world.call(alice, *put, body="1"))[0] == 200
        assert (await world.call(alice, "GET", "/api/kv/secret"))[0] == 403
        assert (await world.call(stranger, *put, body="1"))[0] == 403
        assert (await world.call(mallory, *put, body="1"))[0] == 403
        forged = {"Authorization": "Bearer nonsense"}
        assert (await world.call(alice, *put, forged, "1"))[0] == 401, "a token goes first"

        async with world.channel(alice) as channel:
            client = EtcdCalls(channel)
            await client.Put(key=b"app/y", value=b"2")
            assert await client.refused("Put", key=b"secret") == (
                "PERMISSION_DENIED", "etcdserver: permission denied",
            )  # fmt: skip
            token = (await client.Authenticate(name="stranger", password="stranger-pass")).token
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.Put((("token", token),), key=b"app/y")
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(grpc.aio.AioRpcError):
                await client.Put((("token", "nonsense"),), key=b"app/y")
        body = {"key": "YXBwL3g="}
        status, answer = await world.call(alice, "POST", "/v3/kv/range", None, body)
        assert status == 400 and answer["message"] == "etcdserver: user name is empty"

        world.store.apply_now(ac.user_password("alice", None))
        assert (await world.call(alice, "GET", "/api/kv/app/x"))[0] == 200, "no password is needed"
        world.store.apply_now(ac.user_delete("alice"))
        assert (await world.call(alice, "GET", "/api/kv/app/x"))[0] == 403


async def test_a_certificate_is_nobody_unless_it_was_said_that_it_is(pki: Pki) -> None:
    """etcd: a CA alone makes clients show certificates, and takes none for a user."""
    alice = pki.client("alice")
    async with served(pki, auth=True, mutual=True) as world:
        assert (await world.call(alice, "GET", "/api/kv/app/x"))[0] == 401
        async with world.channel(alice) as channel:
            code, text = await EtcdCalls(channel).refused("Range", key=b"app/x")
            assert text == "etcdserver: user name is empty" and code == "INVALID_ARGUMENT"


async def test_a_watch_by_certificate_ends_with_the_right_to_it(pki: Pki) -> None:
    alice = pki.client("alice")
    async with served(pki, auth=True, mutual=True, identifies=True) as world:
        context = pki.connecting(alice)
        connector = aiohttp.TCPConnector(ssl=context)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(world.url + "/api/watch?prefix=app/") as got,
        ):
            assert got.status == 200
            world.store.apply_now(ac.user_revoke("alice", "app"))
            text = await got.text()
            assert "permission denied" in text, text


async def test_a_large_answer_and_a_drain_go_through_tls(pki: Pki) -> None:
    async with served(pki) as world:
        value = "v" * 1_000_000
        for place in range(4):
            assert (await world.call(None, "PUT", f"/api/kv/big{place}", None, value))[0] == 200
        status, answer = await world.call(None, "GET", "/api/kv?prefix=big")
        assert status == 200 and len(json.dumps(answer)) > 4_000_000
        connector = aiohttp.TCPConnector(ssl=pki.connecting())
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(world.url + "/api/watch?prefix=big") as got,
        ):
            assert got.status == 200
            await world.listener.close(5)
            async for _ in got.content:
                pass
        assert not world.listener.connections
