"""TLS streams over real sockets, on both event loops, against Python's own TLS."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from raftkv.errors import PeerError
from raftkv.limits import TLS_RELOAD_SECONDS
from raftkv.server.tls.files import ContextSource, TlsPolicy
from raftkv.server.tls.settings import ClientSide, PeerSide
from raftkv.server.tls.stream import HandshakeDesk, TlsStream, connect
from tests.support.certificates import CLIENT, Pki

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    def running(scenario: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await scenario()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(bounded())

    return running


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


class Above(asyncio.Protocol):
    """A protocol that keeps what it is told; echoes unless told otherwise."""

    def __init__(self, echo: bool = True) -> None:
        self.echo = echo
        self.got = bytearray()
        self.calls = 0
        self.ended = False
        self.goes_on = False
        self.paused = 0
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.calls += 1
        if self.echo:
            self.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        return self.goes_on

    def pause_writing(self) -> None:
        self.paused += 1
        if self.echo:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.echo:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)


class Served:
    """A port behind a desk."""

    def __init__(self, side: Any, *, most: int = 64, seconds: float = 5.0, **above: Any) -> None:
        self.desk = HandshakeDesk("a client", most=most, seconds=seconds)
        self.side = side
        self.above: list[Above] = []
        self.options = above
        self.writers: list[asyncio.StreamWriter] = []
        self.server: asyncio.Server
        self.port = 0

    def make(self, stream: TlsStream) -> Above:
        self.above.append(Above(**self.options))
        return self.above[-1]

    async def __aenter__(self) -> Served:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            lambda: TlsStream(self.desk, self.side, self.make), "127.0.0.1", 0
        )
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.desk.close()
        for above in self.above:
            above.transport.abort()
        for writer in self.writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await asyncio.gather(*(above.lost for above in self.above))
        await self.server.wait_closed()

    async def open(
        self, context: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect over TLS, or as a stranger who does not speak it."""
        host = None if context is None else "127.0.0.1"
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=host
        )
        self.writers.append(writer)
        return reader, writer


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def plain(pki: Pki) -> ClientSide:
    return ClientSide(pki.member("server"), TlsPolicy())


def mutual(pki: Pki, **more: Any) -> ClientSide:
    return ClientSide(pki.member("server"), TlsPolicy(), mutual=True, identifies=True, **more)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_bytes_of_any_size_come_through(run: Run, pki: Pki, version: ssl.TLSVersion) -> None:
    async def scenario() -> None:
        async with Served(plain(pki)) as served:
            context = pki.connecting(None, "h2", "http/1.1")
            context.minimum_version = context.maximum_version = version
            reader, writer = await served.open(context)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
            for size in (1, 16_384, 16_385, 1_000_003):
                sent = os.urandom(size)
                writer.write(sent)
                got = await reader.readexactly(size)
                assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()
            writer.close()
            await writer.wait_closed()
            assert await served.above[0].lost is None
            assert served.above[0].ended and served.desk.done == 1 and served.desk.failed == 0

    run(scenario)


def test_both_ends_are_ours_and_know_each_other(run: Run, pki: Pki) -> None:
    files = pki.member("m1")

    async def scenario() -> None:
        accepting = PeerSide(files, TlsPolicy(), server_side=True, mutual=True)
        dialling = PeerSide(files, TlsPolicy(), server_side=False, mutual=True)
        async with Served(accepting) as served:
            desk = HandshakeDesk("", most=4, seconds=5)
            above = Above(echo=False)
            await connect(desk, dialling, above, "127.0.0.1", served.port)
            above.transport.writelines([b"one", b"two"])
            await until(lambda: bytes(above.got) == b"onetwo")
            for transport in (above.transport, served.above[0].transport):
                identity = transport.get_extra_info("identity")
                assert identity.common_name == "m1" and identity.covers("127.0.0.1")
                assert identity.covers("LOCALHOST") and not identity.covers("127.0.0.2")
            above.transport.close()
            assert await served.above[0].lost is None and await above.lost is None
            desk.close()

    run(scenario)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("none", "peer did not return a certificate"),
        ("expired", "certificate has expired"),
        ("early", "not yet valid"),
        ("self-signed", "self-signed certificate"),
        ("foreign", "unable to get local issuer"),
        ("server only", "unsuitable certificate purpose"),
        ("revoked", "certificate revoked"),
        ("wrong host", "none of the allowed host names"),
    ],
)
def test_a_bad_certificate_never_reaches_the_protocol(
    run: Run, pki: Pki, tmp_path: Path, kind: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = pki.member("good")
    bad = {
        "none": lambda: None,
        "expired": lambda: pki.odd("bad", days=(-9, -1)),
        "early": lambda: pki.odd("bad", days=(1, 9)),
        "self-signed": lambda: pki.odd("bad", own=True),
        "foreign": lambda: Pki(tmp_path / "other", "another CA").member("bad"),
        "server only": lambda: pki.odd("bad", usages=(tls_usage("serverAuth"),)),
        "revoked": lambda: pki.client("bad"),
        "wrong host": lambda: pki.member("bad", ("10.1.1.1",)),
    }[kind]()
    pki.revoke(*([bad] if kind == "revoked" else [pki.client("somebody")]))

    async def scenario() -> None:
        side = mutual(pki, allowed_hostnames=("127.0.0.1",) if kind == "wrong host" else ())
        async with Served(side) as served:
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                reader, writer = await served.open(pki.connecting(bad))
                writer.write(b"let me in")
                await reader.readexactly(1)
            await until(lambda: served.desk.failed == 1)
            assert served.above == [] and served.desk.under_way == 0
            reader, writer = await served.open(pki.connecting(good))
            writer.write(b"me too")
            assert await reader.readexactly(6) == b"me too"
            writer.close()

    run(scenario)
    assert cause in caplog.text


def tls_usage(name: str) -> Any:
    from cryptography.x509.oid import ExtendedKeyUsageOID

    return {"serverAuth": ExtendedKeyUsageOID.SERVER_AUTH, "clientAuth": CLIENT[0]}[name]


def test_a_server_that_is_not_who_it_should_be_is_not_spoken_to(run: Run, pki: Pki) -> None:
    ours = pki.member("m1")

    async def scenario() -> None:
        dialling = PeerSide(ours, TlsPolicy(), server_side=False, mutual=True)
        desk = HandshakeDesk("", most=4, seconds=5)
        for files, told in (
            (pki.member("elsewhere", ("10.9.9.9",)), "IP address mismatch"),
            (pki.odd("old", days=(-9, -1)), "expired"),
            (pki.client("client"), "purpose"),
        ):
            accepting = PeerSide(files, TlsPolicy(), server_side=True, mutual=False)
            async with Served(accepting) as served:
                above = Above()
                with pytest.raises(ssl.SSLError, match=told):
                    await connect(desk, dialling, above, "127.0.0.1", served.port)
                assert above.transport is None
        desk.close()

    run(scenario)


def test_a_reader_that_is_slow_stops_the_writer(run: Run, pki: Pki) -> None:
    async def scenario() -> None:
        async with Served(plain(pki), echo=False) as served:
            reader, writer = await served.open(pki.connecting())
            slow: Any = writer.transport
            writer.write(b"x")
            await until(lambda: served.above and served.above[0].got)
            above = served.above[0]
            above.transport.set_write_buffer_limits(high=65536)
            slow.pause_reading()
            sent = 0
            while not above.paused:
                above.transport.write(bytes(65536))
                sent += 65536
                await asyncio.sleep(0)
                assert sent < 64 << 20, "the mark was never reached"
            assert above.transport.get_write_buffer_size() >= 65536
            slow.resume_reading()
            assert len(await reader.readexactly(sent)) == sent
            above.transport.pause_reading()
            writer.write(bytes(1 << 20))
            await asyncio.sleep(0.05)
            before = above.calls
            await asyncio.sleep(0.05)
            assert above.calls == before and len(above.got) < 1 << 20
            above.transport.resume_reading()
            await until(lambda: len(above.got) == 1 + (1 << 20))
            writer.close()

    run(scenario)


def test_an_announced_end_may_still_be_answered_and_a_bare_one_may_not(run: Run, pki: Pki) -> None:
    """A bare end of the connection can be forged, so it ends everything."""

    async def scenario() -> None:
        async with Served(plain(pki), echo=False) as served:
            loop = asyncio.get_running_loop()
            for place, announced in enumerate((True, False)):
                link = await loop.run_in_executor(None, blocking, pki, served.port)
                await until(lambda place=place: len(served.above) > place)
                served.above[-1].goes_on = True
                await loop.run_in_executor(None, link.sendall, b"question")
                above = served.above[-1]
                await until(lambda above=above: above.got == b"question")
                if announced:
                    await loop.run_in_executor(None, half_close, link)
                    await until(lambda above=above: above.ended)
                    above.transport.write(b"answer")
                    above.transport.close()
                    assert await loop.run_in_executor(None, link.recv, 100) == b"answer"
                else:
                    socket.socket.shutdown(link, socket.SHUT_WR)
                    await above.lost
                    assert not above.ended
                link.close()

    run(scenario)


def blocking(pki: Pki, port: int) -> ssl.SSLSocket:
    return pki.connecting().wrap_socket(
        socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1"
    )


def half_close(link: ssl.SSLSocket) -> None:
    """Say that nothing more follows, without waiting for the other side to say so."""
    link.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        link.unwrap()
    link.setblocking(True)


def test_writing_may_end_before_reading_does(run: Run, pki: Pki) -> None:
    async def scenario() -> None:
        async with Served(plain(pki), echo=False) as served:
            reader, writer = await served.open(pki.connecting())
            writer.write(b"a long request")
            await until(lambda: served.above and served.above[0].got)
            transport = served.above[0].transport
            assert transport.can_write_eof()
            transport.write(b"no")
            transport.write_eof()
            transport.write(b"never sent")
            assert await reader.read() == b"no"
            transport.close()

    run(scenario)


def test_damaged_records_end_the_connection(run: Run, pki: Pki) -> None:
    async def scenario() -> None:
        async with Served(plain(pki)) as served:
            loop = asyncio.get_running_loop()
            link = await loop.run_in_executor(None, blocking, pki, served.port)
            with socket.socket(fileno=os.dup(link.fileno())) as below:
                below.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))
            await until(lambda: served.above)
            assert isinstance(await served.above[0].lost, ssl.SSLError)
            assert served.above[0].got == b""
            link.close()

    run(scenario)


def test_half_handshakes_are_bounded_timed_out_and_in_nobodys_way(run: Run, pki: Pki) -> None:
    async def scenario() -> None:
        async with Served(plain(pki), most=8, seconds=1.0) as served:
            idle = [await served.open() for _ in range(30)]
            for number, (_, writer) in enumerate(idle):
                # Nothing, the beginning of a hello, or not TLS at all.
                writer.write(
                    (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n")[number % 3]
                )
            reader, writer = await served.open(pki.connecting())
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert served.desk.under_way <= 8
            for reader, _ in idle:
                with pytest.raises((OSError, asyncio.IncompleteReadError)):
                    while True:
                        await reader.readexactly(1)
            assert served.desk.under_way == 0 and served.desk.failed == 30
            assert served.desk.done == 1 and len(served.above) == 1

    run(scenario)


def test_a_handshake_of_endless_bytes_is_cut_off(run: Run, pki: Pki) -> None:
    async def scenario() -> None:
        async with Served(plain(pki)) as served:
            _, writer = await served.open()
            record = b"\x16\x03\x01\x40\x00\x01\x7f\xff\xff" + bytes(16_380)
            sent = 0
            with contextlib.suppress(OSError, RuntimeError):  # uvloop's word for a closed one
                while not served.desk.failed:
                    writer.write(record)
                    await writer.drain()
                    sent += len(record)
                    assert sent < 64 << 20
                    await asyncio.sleep(0.002)
            await until(lambda: served.desk.failed == 1)

    run(scenario)


# -- files ---------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_new_files_count_for_the_next_handshake(
    pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    files = pki.member("server")
    source = ContextSource(files, TlsPolicy(), server_side=True, mutual=True, clock=clock)
    first = source.context()
    clock.now += TLS_RELOAD_SECONDS
    assert source.context() is first, "nothing changed"
    pki.member("server")
    assert source.context() is first, "looked at a moment ago"
    clock.now += TLS_RELOAD_SECONDS
    second = source.context()
    assert second is not first

    other = pki.member("other")
    Path(files.cert).write_bytes(Path(other.cert).read_bytes())
    clock.now += TLS_RELOAD_SECONDS
    assert source.context() is second and "the old ones stay in use" in caplog.text
    Path(files.key).unlink()
    clock.now += TLS_RELOAD_SECONDS
    assert source.context() is second
    Path(files.key).write_bytes(Path(other.key).read_bytes())
    clock.now += TLS_RELOAD_SECONDS
    third = source.context()
    assert third is not second

    Path(files.ca).write_bytes(b"not a certificate")
    clock.now += TLS_RELOAD_SECONDS
    assert source.context() is third
    Path(files.ca).write_bytes(Path(Pki(tmp_path / "new").ca).read_bytes())
    clock.now += TLS_RELOAD_SECONDS
    fourth = source.context()
    assert len(fourth.get_ca_certs()) == 1, "what is not in the file any more is not believed"


def test_revocation_and_a_new_ca_count_without_a_restart(
    run: Run, pki: Pki, tmp_path: Path
) -> None:
    """Nothing is resumed: each handshake is judged by the files of its time, under traffic."""
    clock = Clock()
    alice, bob = pki.client("alice"), pki.client("bob")
    pki.revoke(pki.client("nobody"))

    async def scenario() -> None:
        side = mutual(pki)
        side._clock = clock
        side._looked_at = 0.0
        async with Served(side) as served:
            context = pki.connecting(alice)
            old, traffic = await served.open(context)
            pki.revoke(alice)
            clock.now += TLS_RELOAD_SECONDS
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                reader, writer = await served.open(context)
                writer.write(b"?")
                await reader.readexactly(1)
            reader, writer = await served.open(pki.connecting(bob))
            for stream, sink in ((old, traffic), (reader, writer)):
                sink.write(b"still here")
                assert await stream.readexactly(10) == b"still here"
            users = [above.transport.get_extra_info("certified_user") for above in served.above]
            assert users == ["alice", "bob"]

    run(scenario)


def test_what_cannot_be_loaded_is_said_in_words(pki: Pki, tmp_path: Path) -> None:
    from raftkv.errors import ConfigError
    from raftkv.server.tls.files import TlsFiles

    good, other = pki.member("good"), pki.member("other")
    locked = tmp_path / "locked.key"
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(Path(good.key).read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret")
        )
    )
    for files, told in (
        (TlsFiles(good.cert, other.key, good.ca), "not a certificate and its key"),
        (TlsFiles(good.cert, str(locked), good.ca), "encrypted"),
        (TlsFiles(good.cert, str(tmp_path / "none"), good.ca), "cannot read .*none"),
        (TlsFiles(good.cert, good.key, good.key), "holds nothing to verify with"),
    ):
        with pytest.raises(ConfigError, match=told):
            ClientSide(files, TlsPolicy(), mutual=True)


def test_versions_and_suites_are_as_configured(run: Run, pki: Pki) -> None:
    suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"

    async def scenario() -> None:
        files = pki.member("server")
        async with Served(ClientSide(files, TlsPolicy("tls1.3"))) as served:
            context = pki.connecting()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(OSError):
                await served.open(context)
        async with Served(ClientSide(files, TlsPolicy("tls1.2", "tls1.2", (suite,)))) as served:
            _, writer = await served.open(pki.connecting())
            assert writer.get_extra_info("cipher")[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
            context = pki.connecting()
            context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
            with pytest.raises(OSError):
                await served.open(context)
            writer.close()

    run(scenario)


def test_a_desk_that_closes_cuts_off_what_is_under_way(run: Run, pki: Pki) -> None:
    async def scenario() -> None:
        async with Served(plain(pki)) as served:
            reader, _ = await served.open()
            await until(lambda: served.desk.under_way)
            served.desk.close()
            late, writer = await served.open()
            with contextlib.suppress(OSError):
                writer.write(b"\x16\x03\x01")
            for stream in (reader, late):
                with pytest.raises((OSError, asyncio.IncompleteReadError)):
                    await stream.readexactly(1)
            assert served.desk.under_way == 0

    run(scenario)


async def test_a_dialler_hears_why(pki: Pki) -> None:
    writers: list[asyncio.StreamWriter] = []
    files = pki.member("m1")
    dialling = PeerSide(files, TlsPolicy(), server_side=False, mutual=True)
    desk = HandshakeDesk("", most=1, seconds=0.2)
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(PeerError, match=r"no handshake within 0\.2 s"):
        await connect(desk, dialling, Above(), "127.0.0.1", port)
    silent.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    desk.close()
