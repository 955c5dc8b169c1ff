"""One snapshot file from one member to another, on a connection of its own.

    sender     OFFER   length u32 of info, packed `SnapshotInfo`, encoded SNAPSHOT message
    receiver   WANT    offset u64: send from here on (at first, and after a damaged chunk)
    sender     CHUNK   offset u64, crc32c u32, bytes
    receiver   HAVE    offset u64: everything below is written; also a sign of life while it checks
    receiver   ACCEPTED, or DECLINED with a reason in UTF-8

The sender keeps at most SNAPSHOT_CHUNKS_INFLIGHT_MAX chunks without a HAVE, reads one chunk at a
time in a thread, and so never holds up heartbeats for longer than one chunk takes to frame. When
the connection breaks it dials again and goes on where the receiver's WANT says. The receiver hands
the message on only when the whole file is verified and durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from struct import Struct
from typing import Any, Final, Protocol

from raftkv.consensus.codec import decode_messages, encode_messages
from raftkv.consensus.types import Message, MessageKind
from raftkv.errors import CorruptionError, PeerError, StorageError
from raftkv.limits import (
    KIB,
    PEER_BACKOFF_SECONDS_MAX,
    PEER_BACKOFF_SECONDS_MIN,
    PEER_SILENCE_SECONDS,
    SNAPSHOT_ATTEMPTS_MAX,
    SNAPSHOT_CHUNK_BYTES,
    SNAPSHOT_CHUNKS_INFLIGHT_MAX,
)
from raftkv.server.frames import Frame, FrameKind
from raftkv.server.peer_link import PeerLink
from raftkv.storage.snapshots import SnapshotInfo, SnapshotReceiver, SnapshotStore

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = SNAPSHOT_CHUNKS_INFLIGHT_MAX * SNAPSHOT_CHUNK_BYTES
SNAPSHOT_FRAME_BYTES_MAX: Final = SNAPSHOT_CHUNK_BYTES + 64 * KIB
"""An offer and a chunk fit; nothing larger is taken on such a connection."""

_QUEUE_HIGH: Final = 2 * SNAPSHOT_CHUNKS_INFLIGHT_MAX
_SIGN_OF_LIFE_SECONDS: Final = 1.0
_LENGTH: Final = Struct(">I")
_OFFSET: Final = Struct(">Q")
_CHUNK: Final = Struct(">QI")

Dial = Callable[["FrameQueue"], Awaitable[PeerLink]]


class StreamStats:
    """Totals over all snapshot transfers of a member, for metrics."""

    __slots__ = (
        "chunks_damaged",
        "chunks_in",
        "chunks_out",
        "received",
        "resumed",
        "send_failures",
        "sent",
    )

    def __init__(self) -> None:
        self.chunks_in = 0
        self.chunks_out = 0
        self.chunks_damaged = 0
        """Refused by the receiver, and asked for again."""
        self.resumed = 0
        """Times that a receiver had a part of the file already."""
        self.received = 0
        self.sent = 0
        self.send_failures = 0


class FrameQueue:
    """Owns a link for a task: its frames wait here, and reading stops while many wait."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._lost: Exception | None = None
        self._news = asyncio.Event()
        self._link: PeerLink | None = None

    def __bool__(self) -> bool:
        return bool(self._frames) or self._lost is not None

    def frame(self, link: PeerLink, kind: int, payload: bytes) -> None:
        """A frame has come."""
        self._link = link
        self._frames.append((kind, payload))
        self._news.set()
        if len(self._frames) >= _QUEUE_HIGH:
            link.pause_reading(True)

    def writable(self, link: PeerLink) -> None:
        """The window bounds what is written."""

    def lost(self, link: PeerLink) -> None:
        """The connection has ended."""
        self._lost = link.error or ConnectionResetError("the peer hung up")
        self._news.set()

    async def next(self) -> Frame:
        """The next frame. Raises what ended the connection, or TimeoutError after silence."""
        while not self._frames:
            if self._lost is not None:
                raise self._lost
            self._news.clear()
            async with asyncio.timeout(PEER_SILENCE_SECONDS):
                await self._news.wait()
        item = self._frames.popleft()
        if self._link is not None and len(self._frames) < _QUEUE_HIGH // 2:
            self._link.pause_reading(False)
        return item


class SnapshotSend:
    """One transfer, over as many connections as it takes."""

    def __init__(
        self,
        message: Message,
        info: SnapshotInfo,
        store: SnapshotStore,
        *,
        dial: Dial,
        executor: Executor,
        stats: StreamStats,
    ) -> None:
        """`dial` opens a connection for the purpose and gives it to the queue."""
        self.info = info
        self._message = message
        self._store = store
        self._dial = dial
        self._executor = executor
        self._stats = stats
        self._best = -1
        self._progressed = False

    async def run(self) -> bool:
        """Whether the receiver has verified the file and taken the message."""
        failures = 0
        while True:
            self._progressed = False
            try:
                delivered = await self._attempt()
            except (OSError, PeerError) as error:  # TimeoutError is an OSError
                failures = 1 if self._progressed else failures + 1
                log.info("snapshot to %016x: %s", self._message.target, error)
                if failures >= SNAPSHOT_ATTEMPTS_MAX:
                    break
                pause = PEER_BACKOFF_SECONDS_MIN * 2**failures
                await asyncio.sleep(min(pause, PEER_BACKOFF_SECONDS_MAX))
                continue
            except StorageError as error:
                log.warning("snapshot to %016x: %s", self._message.target, error)
                break
            if delivered:
                self._stats.sent += 1
                return True
            break
        self._stats.send_failures += 1
        return False

    async def _attempt(self) -> bool:
        replies = FrameQueue()
        link = await self._dial(replies)
        try:
            return await self._over(link, replies)
        finally:
            link.fail(PeerError("the transfer is over"))

    async def _over(self, link: PeerLink, replies: FrameQueue) -> bool:
        packed = self.info.pack()
        offer = _LENGTH.pack(len(packed)) + packed + encode_messages([self._message])
        link.send(FrameKind.OFFER, offer)
        size = self.info.size
        loop = asyncio.get_running_loop()
        sent = acknowledged = size  # nothing may be sent before the first WANT
        rewinds = 0
        while True:
            if not replies and sent < min(size, acknowledged + WINDOW_BYTES):
                data, crc = await loop.run_in_executor(
                    self._executor, self._store.read_chunk, self.info, sent, SNAPSHOT_CHUNK_BYTES
                )
                if not data:
                    raise CorruptionError(f"the snapshot file ends early at {sent}", offset=sent)
                # Should a WANT be waiting by now, the receiver passes this chunk over.
                link.send(FrameKind.CHUNK, _CHUNK.pack(sent, crc) + data)
                self._stats.chunks_out += 1
                sent += len(data)
                continue
            kind, payload = await replies.next()
            if kind == FrameKind.WANT:
                rewinds += 1
                sent = acknowledged = _offset(payload, size)
                if rewinds > SNAPSHOT_ATTEMPTS_MAX:
                    raise PeerError("the receiver keeps asking for the same bytes")
            elif kind == FrameKind.HAVE:
                acknowledged = _offset(payload, sent)
                if acknowledged > self._best:
                    self._best = acknowledged
                    self._progressed = True
                    rewinds = 0
            elif kind == FrameKind.ACCEPTED:
                return True
            elif kind == FrameKind.DECLINED:
                reason = payload[: 4 * KIB].decode(errors="replace")
                log.warning("snapshot declined by %016x: %s", self._message.target, reason)
                return False
            else:
                raise PeerError("not a receiver's frame", kind=kind)


class IntakeHost(Protocol):
    """What an intake needs of its member."""

    member_id: int
    store: SnapshotStore
    executor: Executor
    """One thread: the store is changed by one at a time."""
    stats: StreamStats

    async def claim(self, intake: SnapshotIntake) -> bool:
        """Make this the one transfer that comes in; False: another is more important."""

    def received(self, message: Message) -> None:
        """The file of `message` is verified and durable."""


class SnapshotIntake:
    """The receiving half, on one accepted connection."""

    def __init__(self, link: PeerLink, host: IntakeHost) -> None:
        self.link = link
        self.term = 0
        """Of the sender, as known once its offer is here."""
        self._host = host
        self._frames = FrameQueue()
        link.owner = self._frames

    async def run(self) -> None:
        """Until the connection ends; what has come is kept for a resumption."""
        try:
            await self._receive()
        except (OSError, PeerError) as error:
            log.info("snapshot from %016x: %s", self.link.peer, error)
            self.link.fail(error)
        except StorageError as error:
            if getattr(error, "fatal", False):
                raise
            self._decline(str(error))

    async def _receive(self) -> None:
        kind, payload = await self._frames.next()
        if kind != FrameKind.OFFER:
            raise PeerError("a transfer begins with an offer", kind=kind)
        info, message = _decode_offer(payload)
        if (message.source, message.target) != (self.link.peer, self._host.member_id):
            raise PeerError("a snapshot for or from somebody else")
        if message.snapshot != info.meta:
            raise PeerError("a snapshot message that does not fit its file")
        self.term = message.term
        if not await self._host.claim(self):
            self._decline("another snapshot is arriving")
            return
        if not await self._run(self._held, info):
            receiver: SnapshotReceiver = await self._run(self._host.store.receive, info)
            await self._fill(receiver)
            await self._finish(receiver)
        self._host.stats.received += 1
        self._host.received(message)
        self.link.send(FrameKind.ACCEPTED, b"")

    def _held(self, info: SnapshotInfo) -> bool:
        """Whether the whole file is here already, from an earlier transfer."""
        store = self._host.store
        if info not in store.all():
            return False
        try:
            store.verify(info)
        except CorruptionError:
            store.discard(info)
            return False
        return True

    async def _fill(self, receiver: SnapshotReceiver) -> None:
        stats = self._host.stats
        if receiver.offset:
            stats.resumed += 1
        self.link.send(FrameKind.WANT, _OFFSET.pack(receiver.offset))
        rewinding = False
        while not receiver.complete:
            kind, payload = await self._frames.next()
            if kind != FrameKind.CHUNK or len(payload) <= _CHUNK.size:
                raise PeerError("not a chunk", kind=kind)
            offset, crc = _CHUNK.unpack_from(payload)
            if rewinding and offset != receiver.offset:
                continue  # was on its way when the damaged one was refused
            try:
                await self._run(receiver.write_chunk, offset, payload[_CHUNK.size :], crc)
            except CorruptionError as error:
                log.warning("snapshot from %016x: %s", self.link.peer, error)
                stats.chunks_damaged += 1
                rewinding = True
                self.link.send(FrameKind.WANT, _OFFSET.pack(receiver.offset))
                continue
            rewinding = False
            stats.chunks_in += 1
            self.link.send(FrameKind.HAVE, _OFFSET.pack(receiver.offset))

    async def _finish(self, receiver: SnapshotReceiver) -> None:
        done = asyncio.ensure_future(self._run(receiver.finish))
        while not (await asyncio.wait({done}, timeout=_SIGN_OF_LIFE_SECONDS))[0]:
            self.link.send(FrameKind.HAVE, _OFFSET.pack(receiver.offset))
        done.result()

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._host.executor, work, *arguments)
        return await asyncio.shield(future)

    def _decline(self, reason: str) -> None:
        log.warning("snapshot from %016x declined: %s", self.link.peer, reason)
        self.link.send(FrameKind.DECLINED, reason.encode()[: 4 * KIB])


def _offset(payload: bytes, bound: int) -> int:
    if len(payload) != _OFFSET.size:
        raise PeerError("an offset has 8 bytes")
    offset: int = _OFFSET.unpack(payload)[0]
    if offset > bound:
        raise PeerError("an offset past the end", offset=offset, bound=bound)
    return offset


def _decode_offer(payload: bytes) -> tuple[SnapshotInfo, Message]:
    if len(payload) < _LENGTH.size:
        raise PeerError("an offer is too short")
    length = _LENGTH.unpack_from(payload)[0]
    start = _LENGTH.size + length
    try:
        info = SnapshotInfo.unpack(payload[_LENGTH.size : start])
    except (StorageError, ValueError) as error:
        raise PeerError(f"an offer of an unreadable snapshot: {error}") from None
    messages = decode_messages(payload[start:])
    if len(messages) != 1 or messages[0].kind is not MessageKind.SNAPSHOT:
        raise PeerError("an offer without its message")
    return info, messages[0]
