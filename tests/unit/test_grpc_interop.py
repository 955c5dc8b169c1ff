"""grpcio, the reference client, over loopback: nothing between it and the codec is faked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from raftkv import limits
from raftkv.api.grpc.calls import StreamCall, UnaryCall
from raftkv.api.grpc.messages import CallFault
from raftkv.api.grpc.server import GrpcServer
from raftkv.api.grpc.shell import GrpcShell
from raftkv.api.grpc.status import Status
from raftkv.api.grpc.streams import AsyncCall, serve_async


def _identity(value: bytes) -> bytes:
    return value


class Service:
    """Methods that exercise the codec; later ones answer in another turn of the loop."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.metadata: list[tuple[str, str | bytes]] = []
        self.sent = 0
        self.errors: list[Exception] = []

    def register(self, server: GrpcServer) -> None:
        loop = asyncio.get_running_loop()

        def echo(call: UnaryCall, message: bytes) -> None:
            self.metadata = list(call.metadata)
            call.initial = [("first", "one")] if call.meta("want") else None
            trailing = [("last", "two"), ("raw-bin", b"\x00\xff")] if call.meta("want") else None
            call.reply(message, trailing)

        def later(call: UnaryCall, message: bytes) -> None:
            loop.call_later(0.01, call.reply, message)

        def fail(call: UnaryCall, message: bytes) -> None:
            call.fail(Status.FAILED_PRECONDITION, message.decode())

        def hang(call: UnaryCall, message: bytes) -> None:
            call.on_cancel = self.cancelled.set

        def broken(call: UnaryCall, message: bytes) -> None:
            raise KeyError("a bug")

        def big(call: UnaryCall, message: bytes) -> None:
            call.reply(b"x" * int(message))

        def count(call: StreamCall, message: bytes) -> None:
            for number in range(int(message)):
                call.send(str(number).encode())
            call.finish()

        def total(call: StreamCall) -> None:
            sizes: list[int] = []
            call.on_message = lambda message: sizes.append(len(message))

            def end() -> None:
                call.send(str(sum(sizes)).encode())
                call.finish()

            call.on_end = end

        def bidi(call: StreamCall) -> None:
            def take(message: bytes) -> None:
                call.send(message.upper())

            call.on_message = take
            call.on_end = call.finish
            call.on_cancel = self.cancelled.set

        def flood(call: StreamCall, message: bytes) -> None:
            left = int(message)

            def more() -> None:
                nonlocal left
                while left:
                    left -= 1
                    self.sent += 1
                    if not call.send(b"f" * 10_000):
                        return
                call.finish()

            call.on_drain = more
            more()

        async def chat(call: AsyncCall) -> None:
            async for message in call:
                if message == b"stop":
                    raise CallFault(Status.ABORTED, "told to stop")
                await call.send(b"re: " + message)

        server.unary("/t.T/Echo", echo)
        server.unary("/t.T/Later", later)
        server.unary("/t.T/Fail", fail)
        server.unary("/t.T/Hang", hang)
        server.unary("/t.T/Broken", broken)
        server.unary("/t.T/Big", big)
        server.server_streaming("/t.T/Count", count)
        server.streaming("/t.T/Total", total)
        server.streaming("/t.T/Bidi", bidi)
        server.server_streaming("/t.T/Flood", flood)
        server.streaming("/t.T/Chat", serve_async(chat))


class Running:
    def __init__(self, port: int, channel: grpc.aio.Channel, service: Service, shell: Any) -> None:
        self.port = port
        self.channel = channel
        self.service = service
        self.shell = shell
        self.server: GrpcServer = shell.server

    def unary(self, name: str) -> Callable[..., Any]:
        return self.channel.unary_unary(f"/t.T/{name}", _identity, _identity)

    def server_stream(self, name: str) -> Callable[..., Any]:
        return self.channel.unary_stream(f"/t.T/{name}", _identity, _identity)

    def client_stream(self, name: str) -> Callable[..., Any]:
        return self.channel.stream_unary(f"/t.T/{name}", _identity, _identity)

    def bidi(self, name: str) -> Callable[..., Any]:
        return self.channel.stream_stream(f"/t.T/{name}", _identity, _identity)


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Running]:
    service = Service()
    server = GrpcServer(on_error=service.errors.append, pings_min_seconds=0)
    service.register(server)
    shell = GrpcShell(server)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(shell.protocol, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    channel_options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        *options.get("options", []),
    ]
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=channel_options, compression=options.get("compression")
    ) as channel:
        yield Running(port, channel, service, shell)
    await shell.stop(grace_seconds=1.0)
    assert not server.connections
    listening.close()
    await listening.wait_closed()


async def test_unary_answers_now_and_later() -> None:
    async with running() as run:
        for name in ("Echo", "Later"):
            for message in (b"", b"a", bytes(range(256)) * 50):
                assert await run.unary(name)(message) == message


async def test_parallel_calls_share_a_connection() -> None:
    async with running() as run:
        later = run.unary("Later")
        messages = [b"%d" % number for number in range(500)]
        assert await asyncio.gather(*map(later, messages)) == messages
        assert len(run.server.connections) == 1


async def test_big_messages_cross_flow_control_both_ways() -> None:
    async with running() as run:
        message = bytes(1_800_000)
        assert await run.unary("Echo")(message) == message
        assert len(await run.unary("Big")(b"12000000")) == 12_000_000
        sizes = await asyncio.gather(*(run.unary("Big")(b"700000") for _ in range(20)))
        assert [len(size) for size in sizes] == [700_000] * 20
        assert all(connection.held_bytes == 0 for connection in run.server.connections)


async def test_a_message_over_the_limit_names_it() -> None:
    async with running() as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.unary("Echo")(bytes(limits.GRPC_MESSAGE_BYTES_MAX + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(limits.GRPC_MESSAGE_BYTES_MAX) in caught.value.details()
        assert await run.unary("Echo")(b"still here") == b"still here"


@pytest.mark.parametrize("text", ["plain", "per%cent \u00fc\u4e16 \n\x7f", "", "x" * 3000])
async def test_status_and_message_arrive(text: str) -> None:
    async with running() as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.unary("Fail")(text.encode())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == text


async def test_unknown_methods_and_services() -> None:
    async with running() as run:
        for path, text in (("/t.T/No", "unknown method No for service t.T"), ("/u.U/No", "u.U")):
            for make in (run.channel.unary_unary, run.channel.stream_unary):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    call = make(path, _identity, _identity)
                    await (call(b"") if make == run.channel.unary_unary else call())
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
                assert text in caught.value.details()


async def test_a_bug_in_a_handler_is_internal_and_reported() -> None:
    async with running() as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.unary("Broken")(b"")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert isinstance(run.service.errors[0], KeyError)


async def test_metadata_both_ways() -> None:
    async with running() as run:
        sent = (("want", "1"), ("token", "abc"), ("blob-bin", b"\x00\x01\xfe"), ("twice", "a"))
        call = run.unary("Echo")(b"m", metadata=(*sent, ("twice", "b")))
        assert await call == b"m"
        assert [pair for pair in run.service.metadata if pair[0] != "user-agent"] == [
            ("want", "1"),
            ("token", "abc"),
            ("blob-bin", b"\x00\x01\xfe"),
            ("twice", "a"),
            ("twice", "b"),
        ]
        assert dict(await call.initial_metadata())["first"] == "one"
        trailing = dict(await call.trailing_metadata())
        assert trailing["last"] == "two"
        assert trailing["raw-bin"] == b"\x00\xff"


async def test_gzip_requests() -> None:
    async with running(compression=grpc.Compression.Gzip) as run:
        message = b"compressible " * 20_000
        assert await run.unary("Echo")(message) == message
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.unary("Echo")(bytes(50_000_000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_deflate_is_refused() -> None:
    async with running(compression=grpc.Compression.Deflate) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.unary("Echo")(b"z" * 2000)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "deflate" in caught.value.details()


async def test_deadline_reaches_the_handler() -> None:
    async with running() as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.unary("Hang")(b"", timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(run.service.cancelled.wait(), 5)


async def test_cancelling_reaches_the_handler() -> None:
    async with running() as run:
        call = run.unary("Hang")(b"")
        await asyncio.sleep(0.1)
        call.cancel()
        await asyncio.wait_for(run.service.cancelled.wait(), 5)


async def test_streams_of_every_kind() -> None:
    async with running() as run:
        got = [message async for message in run.server_stream("Count")(b"2000")]
        assert got == [b"%d" % number for number in range(2000)]

        async def parts() -> AsyncIterator[bytes]:
            for size in range(100):
                yield bytes(size * 1000)

        assert await run.client_stream("Total")(parts()) == b"4950000"
        call = run.bidi("Bidi")()
        for word in (b"one", b"two"):
            await call.write(word)
            assert await call.read() == word.upper()
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_async_handlers() -> None:
    async with running() as run:
        call = run.bidi("Chat")()
        await call.write(b"hello")
        assert await call.read() == b"re: hello"
        await call.write(b"stop")
        assert await call.code() is grpc.StatusCode.ABORTED
        assert await call.details() == "told to stop"
        call = run.bidi("Chat")()
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_client_that_does_not_read_stops_the_sender() -> None:
    async with running(options=[("grpc.http2.lookahead_bytes", 65_536)]) as run:
        call = run.server_stream("Flood")(b"4000")
        assert await call.read() == b"f" * 10_000
        sent, before = run.service.sent, -1
        while sent != before:
            await asyncio.sleep(0.2)
            sent, before = run.service.sent, sent
        assert sent < 4000
        assert all(
            connection.held_bytes <= limits.HTTP2_STREAM_OUTPUT_BYTES_HIGH + 20_000
            for connection in run.server.connections
        )
        got = 1
        while await call.read() != grpc.aio.EOF:
            got += 1
        assert got == 4000


async def test_stopping_lets_open_calls_finish() -> None:
    async with running() as run:
        calls = [run.unary("Later")(b"x") for _ in range(5)]
        await asyncio.sleep(0.005)
        stream = run.bidi("Bidi")()
        await stream.write(b"q")
        assert await stream.read() == b"Q"
        await run.shell.stop(grace_seconds=0.1)
        assert await asyncio.gather(*calls) == [b"x"] * 5
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE
        assert run.service.cancelled.is_set()
