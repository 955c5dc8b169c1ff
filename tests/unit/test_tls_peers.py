"""Members over mTLS: a peer's certificate is checked for its role and against the membership."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from raftkv.errors import ConfigError
from raftkv.server.frames import FrameKind, FrameParser, Hello, Purpose, frame
from raftkv.server.introduction import ask_introduction
from raftkv.server.tls.files import TlsFiles, TlsPolicy
from raftkv.server.tls.identity import Identity
from raftkv.server.tls.settings import PeerSide, PeerTls
from tests.support.certificates import CLIENT, Pki
from tests.unit.test_server_transport import CLUSTER, Node, connect, until

Start = Callable[..., Any]


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    nodes: list[Node] = []

    async def starting(member_id: int, tls: PeerTls | None, **options: Any) -> Node:
        node = Node(member_id, tls=tls, **options)
        nodes.append(node)
        await node.transport.start()
        return node

    yield starting
    for node in nodes:
        async with asyncio.timeout(5):
            await node.transport.close()


def peers(files: TlsFiles, **rules: Any) -> PeerTls:
    policy = TlsPolicy()
    return PeerTls(
        PeerSide(files, policy, server_side=True, mutual=True),
        PeerSide(files, policy, server_side=False, mutual=True),
        mutual=True,
        **rules,
    )


async def test_messages_and_large_frames_travel_between_members(pki: Pki, start: Start) -> None:
    one = await start(1, peers(pki.member("m1")))
    two = await start(2, peers(pki.member("m2")))
    await connect(one, two)
    await connect(two, one)
    data = bytes(3_000_000)
    one.transport.send(2, [one.beat(2, index, data) for index in range(12)])
    for index in range(100):
        two.transport.send(1, [two.beat(1, index)])
    await until(lambda: len(two.got) == 12 and len(one.got) == 100)
    assert two.indexes == list(range(12)) and one.indexes == list(range(100))
    await until(lambda: one.transport.peers[2].round_trip_ms is not None)
    assert one.transport._accepting.failed == 0


async def test_a_turn_of_messages_is_one_write_to_the_kernel(pki: Pki, start: Start) -> None:
    one = await start(1, peers(pki.member("m1")))
    two = await start(2, peers(pki.member("m2")))
    await connect(one, two)
    link = one.transport.peers[2]._link
    stream = link._transport
    writes: list[int] = []
    raw = stream._raw

    class Counting:
        def write(self, data: bytes) -> None:
            writes.append(len(data))
            raw.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(raw, name)

    stream._raw = Counting()
    for index in range(100):
        one.transport.send(2, [one.beat(2, index)])
    await until(lambda: len(two.got) == 100)
    stream._raw = raw
    assert two.turns == 1 and len([size for size in writes if size > 1000]) == 1


async def knock(
    port: int, context: ssl.SSLContext, kind: int, payload: bytes
) -> tuple[int, str] | None:
    """What a stranger hears after one frame; None: the connection just ended."""
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="127.0.0.1"
        )
    except OSError:
        return None
    try:
        writer.write(frame(kind, payload))
        parser = FrameParser()
        while data := await reader.read(65536):
            for answer in parser.feed(data):
                return answer[0], answer[1].decode(errors="replace")
    except OSError:
        pass
    finally:
        writer.transport.abort()
    return None


def hello(source: int = 1) -> tuple[int, bytes]:
    return FrameKind.HELLO, Hello(CLUSTER, source, 2, Purpose.MESSAGES).encode()


@pytest.mark.parametrize("first", ["hello", "introduce"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("client", "not a member's certificate"),
        ("no usages", "not a member's certificate"),
        ("wrong host", "not for the host of this member's peer URLs"),
        ("none", None),
        ("expired", None),
        ("self-signed", None),
        ("foreign", None),
        ("revoked", None),
    ],
)
async def test_who_is_no_member_never_speaks_raft(
    pki: Pki, start: Start, tmp_path: Path, kind: str, reason: str | None, first: str
) -> None:
    """CVE-2021-37219: any certificate of the CA could speak Raft."""
    bad: TlsFiles | None = {
        "client": lambda: pki.odd("c", usages=CLIENT),
        "no usages": lambda: pki.odd("c", usages=()),
        "wrong host": lambda: pki.member("m7", ("10.7.7.7",)),
        "none": lambda: None,
        "expired": lambda: pki.odd("bad", days=(-9, -1)),
        "self-signed": lambda: pki.odd("bad", own=True),
        "foreign": lambda: Pki(tmp_path / "other", "another").member("m1"),
        "revoked": lambda: pki.member("bad"),
    }[kind]()
    pki.revoke(*([bad] if kind == "revoked" and bad else [pki.client("somebody")]))
    one = await start(1, peers(pki.member("m1")))
    two = await start(2, peers(pki.member("m2")), on_introduction=lambda: (CLUSTER, []))
    two.transport.set_peers({1: [one.address]})
    opening = hello() if first == "hello" else (FrameKind.INTRODUCE, b"")
    answer = await knock(two.address[1], pki.connecting(bad), *opening)
    if first == "introduce" and kind == "wrong host":
        assert answer is not None and answer[0] == FrameKind.INTRODUCTION, "who is only asking"
        return
    if reason is None:
        assert answer is None or answer[0] == FrameKind.REFUSED
    else:
        assert answer is not None
        assert answer[0] == FrameKind.REFUSED and reason in answer[1]
    assert two.got == [] and 1 not in two.transport._incoming


async def test_a_member_cannot_pass_for_another(pki: Pki, start: Start) -> None:
    two = await start(2, peers(pki.member("m2")))
    two.transport.set_peers({1: [("127.0.0.9", 1)], 3: [("127.0.0.1", 1)]})
    third = pki.connecting(pki.member("m3", ("127.0.0.1",)))
    answer = await knock(two.address[1], third, *hello(1))
    assert answer is not None and answer[0] == FrameKind.REFUSED
    answer = await knock(two.address[1], third, *hello(3))
    assert answer is not None and answer[0] == FrameKind.WELCOME


async def test_a_member_unheard_of_is_let_in_by_its_certificate(pki: Pki, start: Start) -> None:
    """One that slept while all others were replaced must be reachable by those it never met."""
    two = await start(2, peers(pki.member("m2")))
    answer = await knock(two.address[1], pki.connecting(pki.member("m8")), *hello(8))
    assert answer is not None and answer[0] == FrameKind.WELCOME


@pytest.mark.parametrize(
    ("rules", "welcome"),
    [
        ({"allowed_names": ("m1", "m9")}, True),
        ({"allowed_names": ("m9",)}, False),
        ({"allowed_hostnames": ("localhost",)}, True),
        ({"allowed_hostnames": ("peer.example",)}, False),
    ],
)
async def test_allowed_names(pki: Pki, start: Start, rules: dict[str, Any], welcome: bool) -> None:
    two = await start(2, peers(pki.member("m2"), **rules))
    two.transport.set_peers({1: [("127.0.0.1", 1)]})
    answer = await knock(two.address[1], pki.connecting(pki.member("m1")), *hello())
    assert answer is not None
    assert (answer[0] == FrameKind.WELCOME) is welcome


async def test_a_dialler_checks_whom_it_reaches(pki: Pki, start: Start) -> None:
    """A server of the same CA and host that is no member gets no message."""
    one = await start(1, peers(pki.member("m1"), allowed_names=("m2",)))
    two = await start(2, peers(pki.member("m3")))
    one.transport.set_peers({2: [two.address]})
    await until(lambda: two.transport._accepting.done >= 1)
    await until(lambda: not one.transport.peers[2]._dialling)
    assert not one.transport.peers[2].connected and two.got == []


async def test_clear_text_and_tls_do_not_mix(pki: Pki, start: Start) -> None:
    one = await start(1, None)
    two = await start(2, peers(pki.member("m2")))
    one.transport.set_peers({2: [two.address]})
    two.transport.set_peers({1: [one.address]})
    await until(lambda: two.transport._accepting.failed >= 1)
    await until(lambda: one.transport.stats.refused >= 1)
    assert not one.transport.peers[2].connected and not two.transport.peers[1].connected


async def test_introductions_travel_over_tls(pki: Pki, start: Start) -> None:
    rows = [(2, "m2", ["https://127.0.0.1:1"], True)]
    two = await start(2, peers(pki.member("m2")), on_introduction=lambda: (CLUSTER, rows))
    assert await ask_introduction([two.address], tls=peers(pki.member("m1"))) == (CLUSTER, rows)
    with pytest.raises(ConfigError, match="not a member's certificate"):
        client = peers(pki.client("c"))
        await ask_introduction([two.address], seconds=0, tls=client)


async def test_thousands_of_half_handshakes_do_not_stop_heartbeats(pki: Pki, start: Start) -> None:
    """Strangers who say half a hello, or a whole one to have us sign, while messages go on."""
    one = await start(1, peers(pki.member("m1")))
    two = await start(2, peers(pki.member("m2")))
    await connect(one, two)
    whole = client_hello(pki)
    opened: list[asyncio.StreamWriter] = []
    port = two.address[1]
    for round_ in range(20):
        for number in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(whole if number % 2 else whole[:40])
            opened.append(writer)
        before = len(two.got)
        one.transport.send(2, [one.beat(2, round_)])
        await until(lambda before=before: len(two.got) == before + 1, seconds=2)
        assert two.transport._accepting.under_way <= 64
    assert two.transport._accepting.failed >= 1900
    assert one.transport.peers[2].connects == 1
    for writer in opened:
        writer.transport.abort()


def client_hello(pki: Pki) -> bytes:
    """The first bytes of a handshake."""
    out = ssl.MemoryBIO()
    tls = pki.connecting().wrap_bio(ssl.MemoryBIO(), out, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = out.read()
    assert struct.unpack(">BHH", hello[:5])[2] == len(hello) - 5
    return hello


def test_names_are_compared_as_browsers_do() -> None:
    identity = Identity("x", ("m1.Example.com", "*.svc.local"), ("::1", "10.0.0.1"), b"")
    for host in ("M1.example.COM", "m1.example.com.", "a.svc.local", "0:0::1", "[::1]", "10.0.0.1"):
        assert identity.covers(host), host
    for host in ("example.com", "svc.local", "a.b.svc.local", ".svc.local", "10.0.0.2", "x", ""):
        assert not identity.covers(host), host
