"""The asyncio shell over real sockets: bad clients, deaf clients, TLS, hand-over."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from raftkv.api.grpc import frames
from raftkv.api.grpc.calls import StreamCall
from raftkv.api.grpc.frames import PREFACE, ErrorCode, Setting
from raftkv.api.grpc.messages import framed
from raftkv.api.grpc.server import GrpcServer
from raftkv.api.grpc.shell import GrpcShell
from tests.fuzz.grpc_peer import Log, Peer, data, echo_server, fields, goaway_of, setting, split


@asynccontextmanager
async def listening(
    server: GrpcServer, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, GrpcShell]]:
    shell = GrpcShell(server)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(shell.protocol, "127.0.0.1", 0, ssl=tls)
    yield listener.sockets[0].getsockname()[1], shell
    await shell.stop(grace_seconds=0.2)
    listener.close()
    assert not server.connections


async def echo(port: int, message: bytes) -> bytes:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        return await channel.unary_unary("/t.T/Echo")(message)


async def test_bad_clients_are_told_and_others_are_undisturbed() -> None:
    server = echo_server()
    async with (
        listening(server) as (port, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as good,
    ):
        call = good.unary_unary("/t.T/Echo")
        assert await call(b"before") == b"before"
        for garbage, code in (
            (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.PROTOCOL_ERROR),
            (PREFACE + bytes(100), ErrorCode.PROTOCOL_ERROR),
            (PREFACE + frames.settings({}) + b"\xff" * 60_000, ErrorCode.FRAME_SIZE_ERROR),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            said = await asyncio.wait_for(reader.read(), 5)
            assert goaway_of(split(said)) is code
            writer.close()
            assert await call(b"still") == b"still"
        # Half a frame, then gone.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + frames.settings({})[:5])
        await writer.drain()
        writer.close()
        assert await call(b"after") == b"after"


@pytest.mark.interpreted
async def test_a_bug_in_the_codec_ends_one_connection_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = echo_server()
    async with listening(server) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + frames.settings({}))
        await reader.readexactly(9)
        (connection,) = server.connections

        def broken(head: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(server, "interpret", broken)
        writer.write(Peer(echo_server()).request(1))
        said = await asyncio.wait_for(reader.read(), 5)
        assert said.endswith(b"internal error")
        assert connection.closed
        monkeypatch.undo()
        writer.close()
        assert await echo(port, b"fine") == b"fine"
    assert "by a bug" in caplog.text


async def test_a_deaf_client_is_held_to_its_bound() -> None:
    log = Log()
    server = echo_server(log)
    async with listening(server) as (port, _):
        raw = socket.create_connection(("127.0.0.1", port))
        peer = Peer(echo_server())
        raw.sendall(
            PREFACE
            + setting(Setting.INITIAL_WINDOW_SIZE, 2**31 - 1)
            + frames.window_update(0, 2**30)
            + peer.headers(1, fields("/t.T/Sink"))
        )
        while not log.streams:
            await asyncio.sleep(0.01)
        call: StreamCall = log.streams[0]
        sent = 0
        while True:
            while call.send(bytes(10_000)):
                sent += 1
            await asyncio.sleep(0.05)
            if not call.writable:
                break
        # Kernel buffers and the transport's, and ours: tens of megabytes would be a leak.
        assert sent * 10_000 < 24 * 2**20
        connection = call.connection
        assert connection.paused
        # Not being read from any more: a second request waits in the kernel.
        raw.sendall(peer.headers(3, fields("/t.T/Sink")))
        await asyncio.sleep(0.05)
        assert len(log.streams) == 1
        assert await echo(port, b"others") == b"others"
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        got = 0
        while len(log.streams) == 1 or "drain" not in log.seen:
            got += len(await asyncio.wait_for(loop.sock_recv(raw, 1 << 20), 5))
        assert got > 0
        assert not connection.paused
        raw.close()


async def test_bytes_already_read_are_handed_over() -> None:
    server = echo_server()
    async with listening(server) as (_, shell):
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        peer = Peer(echo_server())
        first = PREFACE + frames.settings({}) + peer.headers(1)

        class Sniffing(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                protocol = shell.protocol()
                transport.set_protocol(protocol)
                protocol.connection_made(transport)
                protocol.data_received(first)

        await loop.create_connection(Sniffing, sock=ours)
        theirs.setblocking(False)
        await loop.sock_sendall(theirs, data(1, framed(b"handed over"), frames.END_STREAM))
        said = b""
        while b"handed over" not in said:
            said += await asyncio.wait_for(loop.sock_recv(theirs, 65_536), 5)
        (connection,) = server.connections
        assert connection.streams == {}
        theirs.close()


async def test_deadlines_pass_without_traffic() -> None:
    log = Log()
    server = echo_server(log)
    async with listening(server) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        peer = Peer(echo_server())
        writer.write(PREFACE + frames.settings({}))
        for stream_id, timeout in ((1, "30m"), (3, "90m")):
            writer.write(peer.request(stream_id, b"", "/t.T/Hold", ("grpc-timeout", timeout)))
        said = b""
        while said.count(b"deadline exceeded") < 2:
            said += await asyncio.wait_for(reader.read(65_536), 5)
        assert log.seen == ["cancel", "cancel"]
        assert not server.timed
        writer.close()


async def test_over_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    async with listening(echo_server(), context) as (port, _):
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            call = channel.unary_unary("/t.T/Echo")
            for message in (b"secret", bytes(1_500_000)):
                assert await call(message) == message
