"""The peer transport over real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from raftkv.consensus.codec import encode_messages
from raftkv.consensus.types import Entry, EntryKind, Message, MessageKind
from raftkv.errors import ConfigError, InvariantViolation, PeerError
from raftkv.server import transport
from raftkv.server.frames import FrameKind, FrameParser, Hello, frame
from raftkv.server.introduction import decode_introduction, encode_introduction
from raftkv.server.transport import Address, Transport, ask_introduction

CLUSTER = 0xC1


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Node:
    def __init__(self, member_id: int, *, cluster_id: int = CLUSTER, port: int = 0, **options: Any):
        self.got: list[tuple[int, Message]] = []
        self.frames: list[tuple[int, int, bytes]] = []
        self.unreachable: list[int] = []
        self.turns = 0
        self.transport = Transport(
            member_id=member_id,
            cluster_id=cluster_id,
            listen=[("127.0.0.1", port)],
            on_messages=self.messages,
            on_frame=lambda peer, kind, payload: self.frames.append((peer, kind, payload)),
            on_unreachable=self.unreachable.append,
            on_snapshot=lambda peer, message: None,
            **options,
        )
        self.id = member_id

    def messages(self, peer: int, messages: list[Message]) -> None:
        self.turns += 1
        self.got += [(peer, message) for message in messages]

    @property
    def address(self) -> Address:
        return self.transport.addresses[0]

    @property
    def indexes(self) -> list[int]:
        return [message.index for _, message in self.got]

    def beat(self, target: int, index: int = 0, data: bytes = b"") -> Message:
        entries = (Entry(index + 1, 1, EntryKind.BATCH, data),) if data else ()
        kind = MessageKind.APPEND if data else MessageKind.HEARTBEAT
        return Message(kind, self.id, target, term=1, index=index, entries=entries)


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    nodes: list[Node] = []

    async def starting(member_id: int, **options: Any) -> Node:
        node = Node(member_id, **options)
        nodes.append(node)
        await node.transport.start()
        return node

    yield starting
    for node in nodes:
        async with asyncio.timeout(5):
            await node.transport.close()


async def connect(one: Node, other: Node) -> None:
    one.transport.set_peers({other.id: [other.address]})
    await until(lambda: one.transport.peers[other.id].connected)


async def test_messages_and_frames_arrive_in_order(start: Start) -> None:
    one, two = await start(1), await start(2)
    await connect(one, two)
    one.transport.send(2, [one.beat(2, 1)])
    assert one.transport.send_frame(2, 5, b"hello")
    one.transport.send(2, [one.beat(2, 2), one.beat(2, 3)])
    one.transport.send(2, [])
    await until(lambda: len(two.got) == 3)
    assert two.indexes == [1, 2, 3] and two.frames == [(1, 5, b"hello")]
    assert {peer for peer, _ in two.got} == {1}
    stats = one.transport.stats
    assert stats.frames_out >= 4 and sum(stats.sent.values()) > 0 and stats.dropped == 0
    assert two.transport.stats.frames_in >= 4


async def test_a_turn_of_messages_leaves_in_one_frame(start: Start) -> None:
    one, two = await start(1), await start(2)
    await connect(one, two)
    for index in range(100):
        one.transport.send(2, [one.beat(2, index)])
    await until(lambda: len(two.got) == 100)
    assert two.turns == 1


async def test_large_messages_are_split_into_frames_and_all_arrive(start: Start) -> None:
    one, two = await start(1), await start(2)
    await connect(one, two)
    data = bytes(3_000_000)
    one.transport.send(2, [one.beat(2, index, data) for index in range(12)])
    await until(lambda: len(two.got) == 12)
    assert two.indexes == list(range(12))
    assert two.turns > 1
    assert all(message.entries[0].data == data for _, message in two.got)
    await until(lambda: one.transport.peers[2].waiting_bytes == 0)


async def test_what_cannot_be_sent_is_reported_once_a_turn(start: Start) -> None:
    one = await start(1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        one.transport.set_peers({2: [closed.getsockname()], 1: [("127.0.0.1", 1)]})
        assert list(one.transport.peers) == [2], "no member is its own peer"
        await until(lambda: not one.transport.peers[2]._dialling)
        for _ in range(5):
            one.transport.send(2, [one.beat(2)])
            one.transport.send(3, [one.beat(3)])
        assert one.unreachable == [], "never from within send"
        await until(lambda: sorted(one.unreachable) == [2, 3])
    assert one.transport.stats.dropped == 10
    assert not one.transport.send_frame(2, 1, b"")
    assert not one.transport.send_frame(9, 1, b"")


async def test_what_never_belongs_on_the_wire_is_a_bug(start: Start) -> None:
    one = await start(1)
    for kind in (MessageKind.SNAPSHOT, MessageKind.PERSISTED):
        with pytest.raises(InvariantViolation):
            one.transport.send(2, [Message(kind, 1, 2)])
    with pytest.raises(InvariantViolation):
        one.transport.send_frame(2, 128, b"")
    with pytest.raises(InvariantViolation):
        one.transport.set_peers({2: []})


async def test_messages_wait_for_a_connection_that_is_being_made(start: Start) -> None:
    one, two = await start(1), await start(2)
    one.transport.set_peers({2: [two.address]})
    await asyncio.sleep(0)
    one.transport.send(2, [one.beat(2, 7)])
    await until(lambda: two.indexes == [7])


async def test_it_reconnects_after_the_peer_restarts(start: Start) -> None:
    one, two = await start(1), await start(2)
    await connect(one, two)
    port = two.address[1]
    await two.transport.close()
    await until(lambda: not one.transport.peers[2].connected)
    await until(lambda: one.unreachable)
    again = await start(2, port=port)
    await until(lambda: one.transport.peers[2].connected)
    one.transport.send(2, [one.beat(2, 5)])
    await until(lambda: again.indexes == [5])
    assert one.transport.peers[2].connects == 2


async def test_addresses_may_change_and_any_that_works_is_used(start: Start) -> None:
    one, two, moved = await start(1), await start(2), await start(2)
    await connect(one, two)
    one.transport.set_peers({2: [two.address]})
    assert one.transport.peers[2].connected, "nothing changed"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        one.transport.set_peers({2: [closed.getsockname(), moved.address]})
        await until(lambda: one.transport.peers[2].connects == 2)
    assert one.transport.peers[2].address == "{}:{}".format(*moved.address)
    one.transport.send(2, [one.beat(2, 1)])
    await until(lambda: moved.indexes == [1])
    one.transport.set_peers({})
    await until(lambda: not moved.transport._accepted)
    assert two.got == [] and one.transport.peers == {}


async def test_a_peer_that_is_removed_is_told_what_waited_for_it(start: Start) -> None:
    one, two = await start(1), await start(2)
    await connect(one, two)
    one.transport.send(2, [one.beat(2, 7)])
    one.transport.set_peers({})
    await until(lambda: not two.transport._accepted)
    assert two.indexes == [7]


async def test_the_round_trip_is_measured(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PEER_PING_SECONDS", 0.02)
    one, two = await start(1), await start(2)
    await connect(one, two)
    peer = one.transport.peers[2]
    await until(lambda: peer.round_trip_ms is not None)
    assert 0 < peer.round_trip_ms < 5000
    first = peer._ping
    await until(lambda: peer._ping > first + 1)
    assert peer.connected and peer.connected_at is not None


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(0xBAD, 1, 2), b"cluster"),
        (Hello(CLUSTER, 1, 3), b"looks for"),
        (Hello(CLUSTER, 2, 2), b"cannot be"),
        (Hello(CLUSTER, 1, 2, version=9, version_oldest=9), b"protocol"),
    ],
)
async def test_strangers_are_refused_with_a_reason(
    start: Start, caplog: pytest.LogCaptureFixture, hello: Hello, reason: bytes
) -> None:
    two = await start(2)
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*two.address)
        writer.write(frame(FrameKind.HELLO, hello.encode()))
        [(kind, payload)] = FrameParser().feed(await reader.read())
        assert kind == FrameKind.REFUSED and reason in payload
        writer.close()
    await until(lambda: two.transport.stats.refused == 3)
    assert len([r for r in caplog.records if "refused" in r.message]) == 1, "said once a cause"
    assert not two.transport._accepted


async def test_a_dialler_of_another_cluster_keeps_trying_and_harms_nobody(start: Start) -> None:
    one, two = await start(1, cluster_id=0xBAD), await start(2)
    one.transport.set_peers({2: [two.address]})
    await until(lambda: two.transport.stats.refused >= 2)
    assert not one.transport.peers[2].connected and two.got == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        frame(FrameKind.MESSAGES, b"\x90"),
        frame(FrameKind.HELLO, b"nonsense"),
        frame(FrameKind.HELLO, Hello(CLUSTER, 1, 2).encode())[:-1] + b"\xff",
    ],
)
async def test_garbage_ends_its_connection_only(start: Start, data: bytes) -> None:
    one, two = await start(1), await start(2)
    await connect(one, two)
    reader, writer = await asyncio.open_connection(*two.address)
    writer.write(data)
    with pytest.raises(ConnectionResetError):
        if not await reader.read():
            raise ConnectionResetError
    writer.close()
    one.transport.send(2, [one.beat(2, 1)])
    await until(lambda: two.indexes == [1])
    assert two.transport.stats.refused == 1


async def test_silence_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PEER_HANDSHAKE_SECONDS", 0.05)
    two = await start(2)
    reader, writer = await asyncio.open_connection(*two.address)
    [(kind, payload)] = FrameParser().feed(await reader.read())
    assert kind == FrameKind.REFUSED and b"hello" in payload
    writer.close()
    assert two.transport.stats.refused == 1


@pytest.mark.interpreted
async def test_too_many_connections_are_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PEER_CONNECTIONS_MAX", 1)
    two = await start(2)
    _, first = await asyncio.open_connection(*two.address)
    await until(lambda: two.transport._accepted)
    reader, second = await asyncio.open_connection(*two.address)
    [(kind, payload)] = FrameParser().feed(await reader.read())
    assert kind == FrameKind.REFUSED and b"too many" in payload
    first.close()
    second.close()


async def raw(two: Node, source: int = 1) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A welcome connection to `two`, driven by hand."""
    reader, writer = await asyncio.open_connection(*two.address)
    writer.write(frame(FrameKind.HELLO, Hello(CLUSTER, source, two.id).encode()))
    [(kind, _)] = FrameParser().feed(await reader.read(200))
    assert kind == FrameKind.WELCOME
    return reader, writer


async def test_frames_may_come_a_byte_at_a_time(start: Start) -> None:
    two = await start(2)
    _, writer = await raw(two)
    wire = frame(FrameKind.MESSAGES, encode_messages([Message(MessageKind.HEARTBEAT, 1, 2)]))
    for at in range(len(wire)):
        writer.write(wire[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0)
    await until(lambda: len(two.got) == 1)
    writer.close()


@pytest.mark.parametrize(
    "data",
    [
        frame(FrameKind.MESSAGES, b"\xc1"),
        frame(FrameKind.MESSAGES, encode_messages([Message(MessageKind.VOTE, 3, 2)])),
        frame(FrameKind.MESSAGES, encode_messages([Message(MessageKind.VOTE, 1, 3)])),
        frame(FrameKind.MESSAGES, encode_messages([Message(MessageKind.SNAPSHOT, 1, 2)])),
        frame(FrameKind.PING, b"123"),
        frame(FrameKind.WELCOME, b""),
        frame(FrameKind.CHUNK, b""),
        frame(99, b""),
        b"\xff" * 9,
    ],
)
async def test_a_peer_that_speaks_garbage_is_cut_and_never_heard(start: Start, data: bytes) -> None:
    two = await start(2)
    reader, writer = await raw(two)
    writer.write(data)
    with pytest.raises(ConnectionResetError):
        if not await reader.read():
            raise ConnectionResetError
    writer.close()
    await until(lambda: two.transport.stats.damaged == 1)
    assert two.got == [] and not two.transport._accepted


async def test_a_newer_connection_of_a_peer_takes_the_place_of_the_older(start: Start) -> None:
    two = await start(2)
    old, old_writer = await raw(two)
    _, writer = await raw(two)
    with pytest.raises(ConnectionResetError):
        if not await old.read():
            raise ConnectionResetError
    writer.write(frame(FrameKind.SHELL + 3, b"new"))
    await until(lambda: two.frames == [(1, 3, b"new")])
    old_writer.close()
    writer.close()


@pytest.mark.interpreted
async def test_a_silent_peer_is_cut_on_both_sides(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PEER_PING_SECONDS", 0.02)
    monkeypatch.setattr(transport, "PEER_SILENCE_SECONDS", 0.2)
    one, two = await start(1), await start(2)
    reader, writer = await raw(two)
    with pytest.raises(ConnectionResetError):
        if not await reader.read():
            raise ConnectionResetError
    writer.close()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(200)
        writer.write(frame(FrameKind.WELCOME, _welcome(one.id, 3)))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    one.transport.set_peers({3: [server.sockets[0].getsockname()]})
    await until(lambda: one.transport.peers[3].connects >= 2)
    assert 3 in one.unreachable
    one.transport.set_peers({})
    server.close()
    await server.wait_closed()


def _welcome(source: int, member: int) -> bytes:
    from raftkv.server.frames import encode_welcome

    return encode_welcome(Hello(CLUSTER, source, member), cluster_id=CLUSTER, member_id=member)


@pytest.mark.interpreted
async def test_a_peer_that_never_reads_costs_a_bounded_queue(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PEER_QUEUE_BYTES_MAX", 20_000_000)
    one = await start(1)
    release = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(200)
        writer.write(frame(FrameKind.WELCOME, _welcome(1, 3)))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await release.wait()
        writer.transport.abort()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    one.transport.set_peers({3: [server.sockets[0].getsockname()]})
    peer = one.transport.peers[3]
    await until(lambda: peer.connected)
    message = one.beat(3, 1, bytes(1_000_000))
    for _ in range(60):
        one.transport.send(3, [message])
        await asyncio.sleep(0)
        assert peer.waiting_bytes <= 20_000_000
    assert 3 in one.unreachable and peer.dropped > 0
    assert not one.transport.send_frame(3, 1, bytes(8_000_000))
    release.set()
    await until(lambda: not peer.connected)
    assert peer.waiting_bytes == 0
    one.transport.set_peers({})
    server.close()
    await server.wait_closed()


async def test_a_slow_peer_gets_everything_that_was_taken(start: Start) -> None:
    one, two = await start(1), await start(2)
    await connect(one, two)
    [link] = two.transport._incoming.values()
    link.pause_reading(True)
    sent = 40
    for index in range(sent):
        one.transport.send(2, [one.beat(2, index, bytes(500_000))])
        await asyncio.sleep(0)
    await until(lambda: one.transport.peers[2]._link.paused)
    link.pause_reading(False)
    await until(lambda: len(two.got) == sent)
    assert two.indexes == list(range(sent)) and one.transport.stats.dropped == 0


@pytest.mark.interpreted
async def test_a_message_too_large_for_any_frame_is_dropped(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await start(1), await start(2)
    await connect(one, two)
    monkeypatch.setattr(transport, "PEER_FRAME_BYTES_MAX", 100_000)
    one.transport.send(2, [one.beat(2, 1), one.beat(2, 2, bytes(200_000)), one.beat(2, 3)])
    await until(lambda: 2 in one.unreachable)
    await until(lambda: two.indexes == [1])
    assert one.transport.peers[2].dropped == 2
    assert not one.transport.send_frame(2, 1, bytes(200_000))


async def test_an_address_in_use_is_said_in_words(start: Start) -> None:
    one = await start(1)
    with pytest.raises(ConfigError, match="cannot listen for peers"):
        await start(2, port=one.address[1])


async def test_a_newcomer_is_introduced(start: Start) -> None:
    rows = [[1, "one", ["http://127.0.0.1:2380"], True], [2, "two", [], False]]
    one = await start(1, on_introduction=lambda: [CLUSTER, rows])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        answer = await ask_introduction([closed.getsockname(), one.address])
    assert answer == (
        CLUSTER,
        [(1, "one", ["http://127.0.0.1:2380"], True), (2, "two", [], False)],
    )
    await until(lambda: not one.transport._accepted)
    assert one.transport.stats.refused == 0


async def test_nobody_to_ask_is_said_in_words(start: Start) -> None:
    silent = await start(1)
    with pytest.raises(ConfigError, match="no member of the cluster could be asked"):
        await ask_introduction([silent.address], seconds=0.3)
    with pytest.raises(ConfigError):
        await ask_introduction([], seconds=0)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x93\x01\x02\x03", encode_introduction(1, [["x", "n", [], True]]),
     encode_introduction(1, [[1, 2, [], True]]), encode_introduction(1, [[1, "n"]]),
     encode_introduction(1, [[1, "n", [], 1]]), b"\x92\x01\x01"],
)  # fmt: skip
def test_unreadable_introductions_are_peer_errors(payload: bytes) -> None:
    with pytest.raises(PeerError):
        decode_introduction(payload)
