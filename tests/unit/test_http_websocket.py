"""WebSocket frames, and etcd's streams over them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import pytest

from raftkv.api.http import websocket
from raftkv.api.http.websocket import FrameReader, WebSocketFault, accept_key, frame
from tests.unit.test_etcd_gateway import b64, serving


def masked(opcode: int, content: bytes, *, final: bool = True) -> bytes:
    """A client's frame."""
    whole = bytearray(frame(opcode, content))
    if not final:
        whole[0] &= 0x7F
    head = len(whole) - len(content)
    whole[1] |= 0x80
    mask = b"\x01\x80\xff\x00"
    cipher = bytes(byte ^ mask[at % 4] for at, byte in enumerate(content))
    return bytes(whole[:head]) + mask + cipher


def test_the_handshake_of_the_rfc() -> None:
    assert accept_key(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    for bad in (b"", b"x", b"c2hvcnQ="):
        with pytest.raises(ValueError):
            accept_key(bad)


@pytest.mark.parametrize("seed", range(20))
def test_messages_come_whole_however_they_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    expected: list[tuple[int, bytes]] = []
    wire = b""
    for _ in range(8):
        content = chance.randbytes(chance.choice((0, 1, 125, 126, 65_535, 65_536, 70_000)))
        kind = chance.choice((websocket.TEXT, websocket.BINARY))
        cuts = sorted(chance.randint(0, len(content)) for _ in range(chance.randint(0, 2)))
        parts = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
        for at, part in enumerate(parts):
            wire += masked(0 if at else kind, part, final=at == len(parts) - 1)
            if at < len(parts) - 1:  # control frames may come between fragments
                wire += masked(websocket.PING, b"p")
                expected.append((websocket.PING, b"p"))
        expected.append((kind, content))
    reader = FrameReader(100_000)
    found: list[tuple[int, bytes]] = []
    while wire:
        size = chance.randint(1, 50_000)
        found += reader.feed(wire[:size])
        wire = wire[size:]
    assert found == expected


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(websocket.TEXT, b"x"), websocket.PROTOCOL_ERROR),  # not masked
        (masked(3, b""), websocket.PROTOCOL_ERROR),
        (b"\xc1\x80\0\0\0\0", websocket.PROTOCOL_ERROR),
        (masked(websocket.PING, bytes(126)), websocket.PROTOCOL_ERROR),
        (masked(websocket.PING, b"", final=False), websocket.PROTOCOL_ERROR),
        (masked(0, b"x"), websocket.PROTOCOL_ERROR),
        (masked(1, b"x", final=False) + masked(1, b"x"), websocket.PROTOCOL_ERROR),
        (masked(1, bytes(1001)), websocket.TOO_BIG),
        (masked(1, bytes(600), final=False) + masked(0, bytes(600)), websocket.TOO_BIG),
        (b"\x81\xff" + b"\xff" * 8, websocket.TOO_BIG),
    ],
)
def test_what_breaks_the_protocol_or_a_bound(data: bytes, code: int) -> None:
    with pytest.raises(WebSocketFault) as caught:
        FrameReader(1000).feed(data)
    assert caught.value.code == code


async def test_a_watch_whose_requests_come_one_by_one() -> None:
    async with serving() as client, client.session.ws_connect("/v3/watch") as socket:

        async def created(key: bytes) -> Any:
            await socket.send_json({"create_request": {"key": b64(key)}})
            return (await socket.receive_json(timeout=5))["result"]

        assert (await created(b"a"))["created"] is True
        await client.post("/v3/kv/put", {"key": b64(b"a"), "value": b64(bytes(100_000))})
        event = (await socket.receive_json(timeout=5))["result"]["events"][0]
        assert len(event["kv"]["value"]) > 100_000
        assert (await created(b"b"))["watch_id"] == "1"
        await socket.send_json({"cancel_request": {"watch_id": "1"}})
        assert (await socket.receive_json(timeout=5))["result"]["canceled"] is True
        await socket.ping(b"are you there")
        await client.post("/v3/kv/deleterange", {"key": b64(b"a")})
        assert (await socket.receive_json(timeout=5))["result"]["events"][0]["type"] == "DELETE"
        await socket.close()
        assert socket.close_code == websocket.NORMAL
        while len(client.store.hub):
            await asyncio.sleep(0.01)


async def test_faults_close_the_socket_and_leave_nothing_behind() -> None:
    async with serving() as client:
        for send, code in [
            (lambda socket: socket.send_str("no json"), websocket.INTERNAL),
            (lambda socket: socket.send_bytes(b"\xff"), websocket.INTERNAL),
            (lambda socket: socket._writer.send_frame(b"x", 0x3), websocket.PROTOCOL_ERROR),
        ]:
            async with client.session.ws_connect("/v3/watch") as socket:
                await socket.send_json({"create_request": {"key": b64(b"a")}})
                assert (await socket.receive_json(timeout=5))["result"]["created"]
                await send(socket)
                message = await socket.receive(timeout=5)
                if code == websocket.INTERNAL:
                    assert message.json()["error"]["code"] == 3
                    message = await socket.receive(timeout=5)
                assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, code)
        while len(client.store.hub):
            await asyncio.sleep(0.01)


async def test_sockets_that_are_not_opened() -> None:
    async with serving() as client:
        for path, headers, status in [
            ("/v3/watch", {"Origin": "http://elsewhere"}, 403),
            ("/v3/watch", {"Sec-WebSocket-Version": "8"}, 400),
            ("/v3/watch", {"Sec-WebSocket-Key": "x"}, 400),
            ("/v3/kv/put", {}, 405),
            ("/v3/nothing", {}, 404),
        ]:
            asked = {
                "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **headers,
            }  # fmt: skip
            async with client.session.get(path, headers=asked) as answer:
                assert answer.status == status, path


async def test_a_browser_sends_its_token_as_a_subprotocol() -> None:
    async with serving() as client:
        root = {"name": "root", "password": "secret"}
        for path, body in (
            ("user/add", root),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("enable", {}),
        ):
            status, _ = await client.post(f"/v3/auth/{path}", body)
            assert status == 200
        _, answer = await client.post("/v3/auth/authenticate", root)
        for token, result in ((answer["token"], "result"), ("forged", "error")):
            async with client.session.ws_connect(
                "/v3/lease/keepalive", protocols=("Bearer", token)
            ) as socket:
                assert socket.protocol == "Bearer"
                await socket.send_json({"ID": "5"})
                assert result in await socket.receive_json(timeout=5)


async def test_a_member_that_stops_says_so_on_the_socket() -> None:
    async with serving() as client, client.session.ws_connect("/v3/watch") as socket:
        await socket.send_json({"create_request": {"key": b64(b"a")}})
        await socket.receive_json(timeout=5)
        closing = asyncio.create_task(client.listener.close(5.0))
        assert (await socket.receive_json(timeout=5))["error"]["code"] == 14
        assert (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
        await closing
