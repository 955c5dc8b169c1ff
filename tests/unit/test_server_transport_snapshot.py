"""Snapshot transfers between two real members' transports, with real files."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from raftkv.consensus.codec import encode_messages
from raftkv.consensus.types import ConfState, Message, MessageKind, SnapshotMeta
from raftkv.errors import CorruptionError, InvariantViolation, PeerError, StorageError
from raftkv.limits import SNAPSHOT_CHUNK_BYTES
from raftkv.server import snapshot_stream, transport
from raftkv.server.frames import FrameKind, FrameParser, Hello, Purpose, frame
from raftkv.server.transport import Address, Transport
from raftkv.storage.disk import RealDisk
from raftkv.storage.snapshots import SnapshotInfo, SnapshotReceiver, SnapshotStore

CLUSTER = 0xC1


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def open_store(path: Path, *, cluster_id: int = CLUSTER) -> SnapshotStore:
    return SnapshotStore.open(RealDisk(), str(path), cluster_id=cluster_id)


def make(store: SnapshotStore, index: int, size: int) -> SnapshotInfo:
    writer = store.begin(SnapshotMeta(index, 1, ConfState(voters=(1, 2, 3))))
    with open(writer.path, "r+b") as file:
        file.seek(writer.offset)
        file.write(random.Random(index).randbytes(size))
    return writer.finish()


class Node:
    def __init__(self, member_id: int, path: Path, *, stored: bool = True) -> None:
        self.id = member_id
        self.store = open_store(path / str(member_id))
        self.snapshots: list[Message] = []
        self.messages: list[Message] = []
        self.fatal: list[BaseException] = []
        self.transport = Transport(
            member_id=member_id,
            cluster_id=CLUSTER,
            listen=[("127.0.0.1", 0)],
            on_messages=lambda peer, messages: self.messages.extend(messages),
            on_frame=lambda peer, kind, payload: None,
            on_unreachable=lambda peer: None,
            on_snapshot=self.received,
            snapshots=self.store if stored else None,
            on_fatal=self.fatal.append,
        )

    def received(self, peer: int, message: Message) -> None:
        assert message.snapshot is not None and peer == message.source
        [info] = [info for info in self.store.all() if info.meta == message.snapshot]
        self.store.verify(info)
        self.snapshots.append(message)

    @property
    def address(self) -> Address:
        return self.transport.addresses[0]

    def send(self, target: Node, info: SnapshotInfo, term: int = 1) -> asyncio.Future[bool]:
        message = Message(MessageKind.SNAPSHOT, self.id, target.id, term, snapshot=info.meta)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.transport.send_snapshot(target.id, message, info, self.store, future.set_result)
        return future


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Node]]:
    nodes = [Node(member_id, tmp_path) for member_id in (1, 2, 3)]
    for node in nodes:
        await node.transport.start()
    addresses = {node.id: [node.address] for node in nodes}
    for node in nodes:
        node.transport.set_peers(addresses)
    yield nodes
    for node in nodes:
        async with asyncio.timeout(5):
            await node.transport.close()
        node.store.close()
        assert node.fatal == []


class Proxy:
    """Passes bytes on, and cuts each connection after as many bytes as `cuts` says."""

    def __init__(self, target: Address, cuts: list[int]) -> None:
        self.target = target
        self.cuts = cuts
        self.flip: int | None = None
        self.connections = 0
        self.server: asyncio.Server | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Address:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        name = self.server.sockets[0].getsockname()
        return name[0], name[1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = self.cuts.pop(0) if self.cuts else 1 << 60
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        back = asyncio.create_task(self.copy(far_reader, writer))
        self.tasks.add(back)
        passed = 0
        while left > 0 and (data := await reader.read(min(65536, left))):
            if self.flip is not None and passed <= self.flip < passed + len(data):
                at = self.flip - passed
                data = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
                self.flip = None
            passed += len(data)
            left -= len(data)
            far_writer.write(data)
            await asyncio.sleep(0)
        far_writer.close()
        writer.transport.abort()
        back.cancel()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def stop(self) -> None:
        assert self.server is not None
        await until(lambda: all(task.done() for task in self.tasks))
        self.server.close()
        await self.server.wait_closed()


async def test_a_snapshot_arrives_verified_and_byte_for_byte(nodes: list[Node]) -> None:
    one, two, _ = nodes
    info = make(one.store, 50, 5 * SNAPSHOT_CHUNK_BYTES + 17)
    assert await one.send(two, info)
    [message] = two.snapshots
    assert message.snapshot == info.meta
    assert Path(two.store.path(info)).read_bytes() == Path(one.store.path(info)).read_bytes()
    assert two.transport.stream_stats.received == one.transport.stream_stats.sent == 1
    await until(lambda: not one.transport._sending)


async def test_one_that_is_there_already_is_not_sent_again(nodes: list[Node]) -> None:
    one, two, _ = nodes
    info = make(one.store, 50, SNAPSHOT_CHUNK_BYTES)
    assert await one.send(two, info)
    chunks = one.transport.stream_stats.chunks_out
    assert await one.send(two, info, term=2)
    assert one.transport.stream_stats.chunks_out == chunks
    assert [message.term for message in two.snapshots] == [1, 2]


async def test_one_that_is_there_but_damaged_is_fetched_anew(nodes: list[Node]) -> None:
    one, two, _ = nodes
    info = make(one.store, 50, SNAPSHOT_CHUNK_BYTES)
    assert await one.send(two, info)
    path = Path(two.store.path(info))
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert await one.send(two, info)
    two.store.verify(info)


async def test_a_transfer_that_is_cut_goes_on_where_it_was(nodes: list[Node]) -> None:
    one, two, _ = nodes
    info = make(one.store, 50, 12 * SNAPSHOT_CHUNK_BYTES)
    cut = 5 * SNAPSHOT_CHUNK_BYTES + 1000
    proxy = Proxy(two.address, [1 << 60, cut, cut])
    address = await proxy.start()
    one.transport.set_peers({2: [address]})
    await until(lambda: proxy.connections == 1 and one.transport.peers[2].connected)
    assert await one.send(two, info)
    assert len(two.snapshots) == 1
    assert two.transport.stream_stats.resumed == 2
    assert two.transport.stream_stats.chunks_in == 13, "no chunk is written twice"
    one.transport.set_peers({})
    await proxy.stop()


async def test_a_bit_flipped_on_the_way_cuts_the_connection_and_is_made_good(
    nodes: list[Node],
) -> None:
    one, two, _ = nodes
    info = make(one.store, 50, 6 * SNAPSHOT_CHUNK_BYTES)
    proxy = Proxy(two.address, [])
    proxy.flip = 2 * SNAPSHOT_CHUNK_BYTES
    address = await proxy.start()
    one.transport.set_peers({2: [address]})
    await until(lambda: proxy.connections == 1 and one.transport.peers[2].connected)
    assert await one.send(two, info)
    assert proxy.flip is None and two.transport.stream_stats.resumed == 1
    one.transport.set_peers({})
    await proxy.stop()


async def test_a_damaged_chunk_is_refused_and_asked_for_again(nodes: list[Node]) -> None:
    one, two, _ = nodes
    info = make(one.store, 50, 12 * SNAPSHOT_CHUNK_BYTES)
    honest = one.store.read_chunk
    damaged: list[int] = []

    def read_chunk(info: SnapshotInfo, offset: int, size: int) -> tuple[bytes, int]:
        data, crc = honest(info, offset, size)
        if offset == 3 * SNAPSHOT_CHUNK_BYTES and len(damaged) < 2:
            damaged.append(offset)
            crc ^= 1
        return data, crc

    one.store.read_chunk = read_chunk  # type: ignore[method-assign]
    assert await one.send(two, info)
    assert two.transport.stream_stats.chunks_damaged == 2
    assert two.transport.stream_stats.resumed == 0, "over one connection"


async def test_a_chunk_that_stays_damaged_fails_the_transfer(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_ATTEMPTS_MAX", 2)
    one, two, _ = nodes
    info = make(one.store, 50, 2 * SNAPSHOT_CHUNK_BYTES)
    one.store.read_chunk = lambda *_: (b"damaged", 0)  # type: ignore[method-assign]
    assert not await one.send(two, info)
    assert two.snapshots == [] and one.transport.stream_stats.send_failures == 1


async def test_a_file_damaged_at_its_source_is_declined_whole(nodes: list[Node]) -> None:
    one, two, _ = nodes
    info = make(one.store, 50, 3 * SNAPSHOT_CHUNK_BYTES)
    path = Path(one.store.path(info))
    data = bytearray(path.read_bytes())
    data[SNAPSHOT_CHUNK_BYTES + 5] ^= 1
    path.write_bytes(data)
    assert not await one.send(two, info)
    assert two.snapshots == [] and two.store.all() == ()


async def test_a_file_that_went_away_fails_the_transfer(nodes: list[Node]) -> None:
    one, two, _ = nodes
    gone = make(one.store, 50, 1000)
    one.store.discard(gone)
    assert not await one.send(two, gone)
    short = make(one.store, 51, 3 * SNAPSHOT_CHUNK_BYTES)
    with open(one.store.path(short), "r+b") as file:
        file.truncate(SNAPSHOT_CHUNK_BYTES + 9)
    assert not await one.send(two, short)
    assert two.snapshots == []


async def test_two_peers_are_served_at_once_and_messages_pass_by(nodes: list[Node]) -> None:
    one, two, three = nodes
    info = make(one.store, 50, 40 * SNAPSHOT_CHUNK_BYTES)
    await until(lambda: all(peer.connected for peer in one.transport.peers.values()))
    transfers = [one.send(two, info), one.send(three, info)]
    slowest = 0.0
    loop = asyncio.get_running_loop()
    while not all(transfer.done() for transfer in transfers):
        before = len(two.messages)
        started = loop.time()
        one.transport.send(2, [Message(MessageKind.HEARTBEAT, 1, 2, 1)])
        await until(lambda seen=before: len(two.messages) > seen)
        slowest = max(slowest, loop.time() - started)
    assert [transfer.result() for transfer in transfers] == [True, True]
    assert len(two.snapshots) == len(three.snapshots) == 1
    assert slowest < 0.5


async def test_the_same_snapshot_joins_and_another_replaces_the_one_under_way(
    nodes: list[Node],
) -> None:
    one, two, _ = nodes
    old = make(one.store, 50, 30 * SNAPSHOT_CHUNK_BYTES)
    new = make(one.store, 60, 3 * SNAPSHOT_CHUNK_BYTES)
    joined = [one.send(two, old), one.send(two, old)]
    await until(lambda: one.transport.stream_stats.chunks_out > 2)
    assert await one.send(two, new)
    assert [await future for future in joined] == [False, False]
    assert [message.snapshot for message in two.snapshots] == [new.meta]


async def test_a_newer_leader_goes_before_an_older_one(nodes: list[Node]) -> None:
    one, two, three = nodes
    slow = make(one.store, 50, 40 * SNAPSHOT_CHUNK_BYTES)
    quick = make(three.store, 60, 4 * SNAPSHOT_CHUNK_BYTES)
    older = one.send(two, slow, term=5)
    await until(lambda: two.transport.stream_stats.chunks_in > 2)
    declined = three.send(two, quick, term=4)
    assert not await declined, "an older leader has to wait"
    newer = three.send(two, quick, term=6)
    assert await newer
    await older
    assert quick.meta in [message.snapshot for message in two.snapshots]


@pytest.mark.interpreted
async def test_nobody_to_send_to(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = nodes
    info = make(one.store, 50, 10)
    one.transport.set_peers({2: [two.address]})
    assert not await one.send(three, info)
    monkeypatch.setattr(transport, "SNAPSHOT_TRANSFERS_MAX", 0)
    assert not await one.send(two, info)
    with pytest.raises(InvariantViolation):
        one.transport.send_snapshot(
            2, Message(MessageKind.APPEND, 1, 2), info, one.store, lambda delivered: None
        )


async def test_a_peer_that_is_away_fails_the_transfer(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_ATTEMPTS_MAX", 3)
    one, two, _ = nodes
    await two.transport.close()
    assert not await one.send(two, make(one.store, 50, 10))
    removed = one.send(two, make(one.store, 60, 10))
    await asyncio.sleep(0)
    one.transport.set_peers({})
    assert not await removed


async def test_a_member_without_a_store_takes_none(
    tmp_path: Path, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_ATTEMPTS_MAX", 2)
    bare = Node(4, tmp_path, stored=False)
    await bare.transport.start()
    one = nodes[0]
    one.transport.set_peers({4: [bare.address]})
    assert not await one.send(bare, make(one.store, 50, 10))
    await bare.transport.close()


async def hand_driven(two: Node) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*two.address)
    hello = Hello(CLUSTER, 1, two.id, Purpose.SNAPSHOT)
    writer.write(frame(FrameKind.HELLO, hello.encode()))
    [(kind, _)] = FrameParser().feed(await reader.read(200))
    assert kind == FrameKind.WELCOME
    return reader, writer


def offer(info: SnapshotInfo, *messages: Message) -> bytes:
    packed = info.pack()
    return frame(
        FrameKind.OFFER, len(packed).to_bytes(4, "big") + packed + encode_messages(messages)
    )


META = SnapshotMeta(9, 1, ConfState(voters=(1,)))
INFO = SnapshotInfo(META, CLUSTER, 4096 + 32 + 1000, bytes(32))


def snapshot(source: int = 1, target: int = 2, meta: SnapshotMeta = META) -> Message:
    return Message(MessageKind.SNAPSHOT, source, target, 1, snapshot=meta)


@pytest.mark.parametrize(
    "data",
    [
        frame(FrameKind.CHUNK, bytes(20)),
        frame(FrameKind.OFFER, b""),
        frame(FrameKind.OFFER, bytes(40)),
        offer(INFO),
        offer(INFO, snapshot(), snapshot()),
        offer(INFO, snapshot(source=3)),
        offer(INFO, snapshot(target=3)),
        offer(INFO, snapshot(meta=SnapshotMeta(10, 1))),
        offer(INFO, Message(MessageKind.VOTE, 1, 2)),
        offer(SnapshotInfo(META, 0xBAD, INFO.size, INFO.digest), snapshot()),
        offer(INFO, snapshot()) + frame(FrameKind.HAVE, bytes(8)),
        offer(INFO, snapshot()) + frame(FrameKind.CHUNK, bytes(12)),
        offer(INFO, snapshot()) + frame(FrameKind.CHUNK, (99).to_bytes(8, "big") + bytes(6)),
        offer(INFO, snapshot()) + frame(FrameKind.CHUNK, bytes(12 + 6000)),
    ],
)
async def test_a_sender_of_nonsense_is_cut_or_asked_again(nodes: list[Node], data: bytes) -> None:
    two = nodes[1]
    reader, writer = await hand_driven(two)
    writer.write(data)
    writer.write_eof()
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(5):
            while await reader.read(65536):
                pass
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    await until(lambda: not two.transport._accepted or len(two.transport._incoming) >= 1)
    assert two.snapshots == [] and two.store.all() == ()


@pytest.mark.parametrize(
    "answer",
    [
        frame(FrameKind.MESSAGES, b""),
        frame(FrameKind.WANT, b"123"),
        frame(FrameKind.WANT, (1 << 40).to_bytes(8, "big")),
    ],
)
async def test_a_receiver_of_nonsense_fails_the_transfer(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_ATTEMPTS_MAX", 2)
    one, two, _ = nodes

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(200)
        from raftkv.server.frames import encode_welcome

        welcome = encode_welcome(Hello(CLUSTER, 1, 2), cluster_id=CLUSTER, member_id=2)
        writer.write(frame(FrameKind.WELCOME, welcome))
        await reader.read(200)
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    one.transport.set_peers({2: [server.sockets[0].getsockname()]})
    assert not await one.send(two, make(one.store, 50, 10))
    one.transport.set_peers({})
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.05)


async def test_a_failed_sync_of_the_received_file_is_fatal(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = nodes
    info = make(one.store, 50, 1000)

    def finish(receiver: SnapshotReceiver) -> SnapshotInfo:
        error = StorageError("fsync failed")
        error.fatal = True  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(SnapshotReceiver, "finish", finish)
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_ATTEMPTS_MAX", 1)
    assert not await one.send(two, info)
    assert [str(error) for error in two.fatal] == ["fsync failed"]
    two.fatal.clear()


async def test_a_full_disk_declines_and_a_long_check_gives_signs_of_life(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = nodes
    info = make(one.store, 50, 1000)
    monkeypatch.setattr(snapshot_stream, "_SIGN_OF_LIFE_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    release = asyncio.Event()
    checking = SnapshotReceiver.finish

    def finish(receiver: SnapshotReceiver) -> SnapshotInfo:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(5)
        return checking(receiver)

    monkeypatch.setattr(SnapshotReceiver, "finish", finish)
    monkeypatch.setattr(snapshot_stream, "PEER_SILENCE_SECONDS", 0.1)
    sent = one.send(two, info)
    await asyncio.sleep(0.4)
    assert not sent.done()
    release.set()
    assert await sent

    def full(receiver: SnapshotReceiver) -> SnapshotInfo:
        raise StorageError("no space left")

    monkeypatch.setattr(SnapshotReceiver, "finish", full)
    assert not await one.send(two, make(one.store, 60, 1000))


async def test_a_flood_of_frames_stops_the_reading() -> None:
    frames = snapshot_stream.FrameQueue()

    class Link:
        paused = False

        def pause_reading(self, paused: bool) -> None:
            self.paused = paused

    link: Any = Link()
    for number in range(snapshot_stream._QUEUE_HIGH):
        assert not link.paused
        frames.frame(link, number % 256, b"")
    assert link.paused and frames
    while frames:
        await frames.next()
    assert not link.paused
    link.error = PeerError("gone")
    frames.lost(link)
    with pytest.raises(PeerError):
        await frames.next()


def test_errors_of_the_store_keep_their_family() -> None:
    assert issubclass(CorruptionError, StorageError)
    assert not issubclass(StorageError, PeerError)
