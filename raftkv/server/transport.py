"""Members talking to each other: one TCP connection a direction, and one a snapshot transfer.

Each member dials every peer and sends on that connection only; what it accepts it only reads (and
answers pings on). What `send` takes in one turn of the loop leaves in one write. Delivery is what
Raft asks of a network: messages arrive in order or not at all, and a loss that is noticed is
reported through `on_unreachable`, never raised.

Other rooms may send frames of their own, `send_frame` and `on_frame`, in order with the messages.

Nothing that a stranger sends raises past its connection: it is refused with a reason, counted, and
logged once a cause.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from struct import Struct
from typing import Any, Final

from raftkv.checks import check
from raftkv.consensus.codec import decode_messages, encode_messages
from raftkv.consensus.types import Message, MessageKind
from raftkv.errors import ConfigError, PeerError, StorageError
from raftkv.histogram import NETWORK_SECONDS, Histogram
from raftkv.limits import (
    APPEND_BYTES_MAX,
    PEER_ADDRESSES_MAX,
    PEER_BACKOFF_SECONDS_MAX,
    PEER_BACKOFF_SECONDS_MIN,
    PEER_CONNECTIONS_MAX,
    PEER_DIAL_SECONDS,
    PEER_FRAME_BYTES_MAX,
    PEER_HANDSHAKE_SECONDS,
    PEER_PING_SECONDS,
    PEER_QUEUE_BYTES_MAX,
    PEER_SILENCE_SECONDS,
    PEER_WRITE_BUFFER_BYTES,
    SNAPSHOT_TRANSFERS_MAX,
    TLS_PEER_HANDSHAKES_MAX,
)
from raftkv.server.frames import (
    SHELL_KINDS,
    Frame,
    FrameKind,
    Hello,
    Purpose,
    decode_hello,
    encode_welcome,
    refusal,
)
from raftkv.server.introduction import ask_introduction as ask_introduction
from raftkv.server.introduction import encode_introduction
from raftkv.server.levels import PeerLevels
from raftkv.server.peer_link import Greeting, LinkOwner, LinkStats, PeerLink
from raftkv.server.snapshot_stream import (
    SNAPSHOT_FRAME_BYTES_MAX,
    FrameQueue,
    SnapshotIntake,
    SnapshotSend,
    StreamStats,
)
from raftkv.server.tls.settings import PeerTls
from raftkv.server.tls.stream import HandshakeDesk, TlsStream, connect
from raftkv.storage.snapshots import SnapshotInfo, SnapshotStore

log = logging.getLogger(__name__)

Address = tuple[str, int]
_Task = asyncio.Task[None]

_MESSAGE_OVERHEAD_BYTES: Final = 256
_ENTRY_OVERHEAD_BYTES: Final = 64
_CAUSES_MAX: Final = 256
_PING: Final = Struct(">Q")
_NEVER_SENT: Final = frozenset({MessageKind.PERSISTED, MessageKind.SNAPSHOT})


def message_bytes(message: Message) -> int:
    """About how long `message` is when encoded, never less."""
    size = _MESSAGE_OVERHEAD_BYTES + len(message.context)
    for entry in message.entries:
        size += len(entry.data) + _ENTRY_OVERHEAD_BYTES
    return size


class TransportStats(LinkStats):
    """Totals over all peers, for metrics. Read at any time."""

    __slots__ = (
        "accepted", "damaged", "desks", "dialled", "dropped", "refused", "round_trips",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.accepted = 0
        self.refused = 0
        """Strangers sent away: another cluster, version or target, garbage, silence."""
        self.damaged = 0
        """Welcome connections cut because of what came in."""
        self.dialled = 0
        self.dropped = 0
        """Messages that found no connection or no room."""
        self.desks: dict[str, HandshakeDesk] = {}
        """TLS handshakes, where there are any: "accepted" and "dialled"."""
        self.round_trips: dict[int, Histogram] = {}
        """Times of pings, by member."""

    def pinged(self, member_id: int, seconds: float) -> None:
        """A member has answered a ping."""
        if member_id not in self.round_trips:
            self.round_trips[member_id] = Histogram(NETWORK_SECONDS)
        self.round_trips[member_id].observe(seconds)


class Peer:
    """The outgoing stream to one peer."""

    __slots__ = (
        "_dialling",
        "_flushing",
        "_link",
        "_moves",
        "_ping",
        "_pinged_at",
        "_queue",
        "_queued_bytes",
        "_task",
        "_transport",
        "addresses",
        "connected_at",
        "connects",
        "dropped",
        "member_id",
        "messages_out",
        "round_trip_ms",
    )

    def __init__(self, transport: Transport, member_id: int, addresses: Sequence[Address]) -> None:
        self.member_id = member_id
        self.addresses = list(addresses)
        self.connected_at: float | None = None
        """When the present connection was made, in seconds of the loop's clock."""
        self.round_trip_ms: float | None = None
        """Of the last ping, in milliseconds."""
        self.connects = 0
        self.dropped = 0
        self.messages_out = 0
        self._transport = transport
        self._link: PeerLink | None = None
        self._queue: deque[tuple[int, Message | Frame]] = deque()
        self._queued_bytes = 0
        self._flushing = False
        self._dialling = False
        self._moves = 0
        self._ping = 0
        self._pinged_at: float | None = None
        self._task = transport.spawn(self._keep_connected())

    @property
    def connected(self) -> bool:
        """Whether the peer can be written to just now."""
        return self._link is not None

    @property
    def address(self) -> str | None:
        """Where it is connected to, for logs and status."""
        return None if self._link is None else self._link.address

    @property
    def waiting_bytes(self) -> int:
        """About what is queued and not yet with the kernel."""
        link = self._link
        return self._queued_bytes + (0 if link is None else link.waiting_bytes)

    # Sending

    def send(self, messages: Sequence[Message]) -> None:
        """Queue `messages`, or drop them and say so."""
        if self._link is None and not self._dialling:
            self._drop(len(messages))
            return
        room = PEER_QUEUE_BYTES_MAX - self.waiting_bytes
        for place, message in enumerate(messages):
            size = message_bytes(message)
            if size > room or size > PEER_FRAME_BYTES_MAX:
                # Later ones would only be rejected without it.
                self._drop(len(messages) - place)
                break
            room -= size
            self._queued_bytes += size
            self._queue.append((size, message))
        self._schedule()

    def send_frame(self, kind: int, payload: bytes) -> bool:
        """Queue another room's frame; False: it was dropped."""
        size = len(payload) + _MESSAGE_OVERHEAD_BYTES
        if (
            self._link is None
            or size > PEER_FRAME_BYTES_MAX
            or size + self.waiting_bytes > PEER_QUEUE_BYTES_MAX
        ):
            return False
        self._queued_bytes += size
        self._queue.append((size, (kind, payload)))
        self._schedule()
        return True

    def _schedule(self) -> None:
        if not self._flushing and self._link is not None and self._queue:
            self._flushing = True
            self._transport.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what waits, up to one write buffer; the rest follows when that has drained."""
        self._flushing = False
        link = self._link
        if link is None or link.paused:
            return
        frames: list[Frame] = []
        budget = PEER_WRITE_BUFFER_BYTES
        batch: list[Message] = []
        batch_bytes = 0
        while self._queue and budget > 0:
            size, item = self._queue.popleft()
            self._queued_bytes -= size
            budget -= size
            if isinstance(item, Message):
                if batch and batch_bytes + size > APPEND_BYTES_MAX:
                    frames.append((FrameKind.MESSAGES, encode_messages(batch)))
                    batch, batch_bytes = [], 0
                batch.append(item)
                batch_bytes += size
                self.messages_out += 1
                continue
            if batch:
                frames.append((FrameKind.MESSAGES, encode_messages(batch)))
                batch, batch_bytes = [], 0
            frames.append(item)
        if batch:
            frames.append((FrameKind.MESSAGES, encode_messages(batch)))
        link.send_all(frames)
        if not link.paused:
            self._schedule()

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._transport.stats.dropped += count
        self._transport.unreachable(self.member_id)

    def _clear(self) -> None:
        if self._queue:
            dropped = len(self._queue)
            self._queue.clear()
            self._queued_bytes = 0
            self._drop(dropped)

    # LinkOwner: the peer answers pings on this connection and says nothing else.

    def frame(self, link: PeerLink, kind: int, payload: bytes) -> None:
        """Take a pong."""
        if kind == FrameKind.REFUSED:
            raise PeerError(payload.decode(errors="replace"))
        if kind != FrameKind.PONG or self._pinged_at is None or payload != _PING.pack(self._ping):
            raise PeerError("the dialled side may only answer pings", kind=kind)
        seconds = self._transport.loop.time() - self._pinged_at
        self.round_trip_ms = seconds * 1000
        self._transport.stats.pinged(self.member_id, seconds)
        self._pinged_at = None

    def writable(self, link: PeerLink) -> None:
        """The output has drained."""
        self._schedule()

    def lost(self, link: PeerLink) -> None:
        """The connection has ended."""
        if self._link is link:
            self._link = None
            self.connected_at = None
            self._pinged_at = None
            self._clear()
            self._transport.unreachable(self.member_id)

    # Keeping the connection

    def each_second(self) -> None:
        """Measure the round trip; cut a connection whose other end is silent."""
        link = self._link
        if link is None:
            return
        now = self._transport.loop.time()
        if self._pinged_at is None:
            self._ping += 1
            self._pinged_at = now
            payload = _PING.pack(self._ping)
            size = len(payload) + _MESSAGE_OVERHEAD_BYTES
            self._queued_bytes += size
            self._queue.append((size, (FrameKind.PING, payload)))
            self._schedule()
        elif now - self._pinged_at > PEER_SILENCE_SECONDS:
            link.fail(PeerError("the peer is silent"))

    def move(self, addresses: Sequence[Address]) -> None:
        """Use other addresses from now on."""
        if self.addresses == list(addresses):
            return
        self.addresses = list(addresses)
        self._moves += 1
        if self._link is not None:
            self._link.fail(PeerError("the peer has moved"))

    def leave(self) -> None:
        """The peer is a member no more: write what waits for it, then hang up.

        The last of it may be the news that its removal is committed, without which it would go
        on to look for a leader.
        """
        self._task.cancel()
        self._dialling = False
        link = self._link
        if link is None or self.waiting_bytes > PEER_WRITE_BUFFER_BYTES:
            self.close()
            return
        self._flush()
        self._link = None
        link.hang_up()

    def close(self) -> None:
        """Stop dialling and hang up."""
        self._task.cancel()
        self._dialling = False
        if self._link is not None:
            self._link.fail(PeerError("no longer a peer"))
        self._queue.clear()
        self._queued_bytes = 0

    async def _keep_connected(self) -> None:
        failures = 0
        loop = self._transport.loop
        said: str | None = None
        while True:
            started = loop.time()
            moves = self._moves
            self._dialling = True
            try:
                link = await self._transport.dial(self.member_id, Purpose.MESSAGES, self)
            except (OSError, PeerError) as error:
                self._dialling = False
                self._clear()
                failures += 1
                if str(error) != said:
                    said = str(error)
                    log.info("peer %016x cannot be reached: %s", self.member_id, said)
            else:
                self._dialling = False
                said = None
                self._link = link
                self.connects += 1
                self.connected_at = loop.time()
                log.info("connected to peer %016x at %s", self.member_id, link.address)
                self._schedule()
                if moves != self._moves:
                    link.fail(PeerError("the peer has moved"))
                await link.ended.wait()
                log.info("connection to peer %016x ended: %s", self.member_id, link.error)
                stable = loop.time() - started > PEER_BACKOFF_SECONDS_MAX
                failures = 1 if stable else failures + 1
            pause = min(PEER_BACKOFF_SECONDS_MIN * 2 ** min(failures, 10), PEER_BACKOFF_SECONDS_MAX)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311


class Transport:
    """All connections of one member with its peers. Everything is called on its loop."""

    def __init__(
        self,
        *,
        member_id: int,
        cluster_id: int,
        listen: Sequence[Address],
        on_messages: Callable[[int, list[Message]], None],
        on_frame: Callable[[int, int, bytes], None],
        on_unreachable: Callable[[int], None],
        on_snapshot: Callable[[int, Message], None],
        on_introduction: Callable[[], Sequence[Any]] | None = None,
        snapshots: SnapshotStore | None = None,
        snapshot_executor: Executor | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
        levels: PeerLevels | None = None,
        tls: PeerTls | None = None,
    ) -> None:
        """`snapshots` takes what peers send; without it snapshots are declined.

        `on_messages(peer, messages)` and `on_frame(peer, kind, payload)` are called as they come
        in. `on_unreachable(peer)` is called in a turn of its own, at most once a turn and peer.
        `on_snapshot(peer, message)` is called when the message's file is verified and durable.
        `on_introduction()` gives [cluster id, rows as `introduction.Introduced`], for newcomers.
        `on_fatal` is told of errors that must end the process: a disk that fails to sync, a bug.
        `snapshot_executor` is the one thread that changes `snapshots`; None: one is made.
        """
        check(member_id > 0, "member ids are positive")
        self.member_id = member_id
        self.cluster_id = cluster_id
        self.stats = TransportStats()
        self.stream_stats = StreamStats()
        self.peers: dict[int, Peer] = {}
        self.loop = asyncio.get_running_loop()
        self._listen = listen
        self._on_messages = on_messages
        self._on_frame = on_frame
        self._on_unreachable = on_unreachable
        self._on_snapshot = on_snapshot
        self._on_introduction = on_introduction
        self._on_fatal = on_fatal
        self._snapshots = snapshots
        self._own_executor = snapshot_executor is None
        self._intake_executor = snapshot_executor or ThreadPoolExecutor(
            1, thread_name_prefix="raftkv-snapshot-in"
        )
        self._send_executor = ThreadPoolExecutor(2, thread_name_prefix="raftkv-snapshot-out")
        self._levels = levels or PeerLevels()
        self._tls = tls
        # Two threads: strangers who knock must not keep this member from dialling.
        self._accepting = None if tls is None else _desk("a peer")
        self._dialling = None if tls is None else _desk("")
        if self._accepting is not None and self._dialling is not None:
            self.stats.desks = {"accepted": self._accepting, "dialled": self._dialling}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepted: dict[PeerLink, asyncio.TimerHandle | None] = {}
        """Every accepted link, with its deadline while it has not said hello."""
        self._incoming: dict[int, PeerLink] = {}
        self._unreachable: set[int] = set()
        self._causes: set[tuple[str, str]] = set()
        self._sending: dict[int, tuple[SnapshotSend, list[Callable[[bool], None]], _Task]] = {}
        self._receiving: tuple[SnapshotIntake, _Task] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._closing = False

    # Life

    async def start(self) -> None:
        """Listen. Raises ConfigError when the address cannot be used."""
        for host, port in self._listen:
            try:
                server = await self.loop.create_server(self._knocked, host, port)
            except OSError as error:
                raise ConfigError(
                    f"cannot listen for peers on {host}:{port}: {error.strerror or error}; "
                    "choose another address or stop what uses it"
                ) from error
            self._servers.append(server)
        self._each_second()

    async def close(self) -> None:
        """Hang up on everybody and stop; queued messages are lost, as Raft allows."""
        self._closing = True
        if self._ticker is not None:
            self._ticker.cancel()
        for server in self._servers:
            server.close()
        for peer in self.peers.values():
            peer.close()
        self.set_peers({})
        for link in list(self._accepted):
            link.fail(PeerError("the member stops"))
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        for desk in (self._accepting, self._dialling):
            if desk is not None:
                desk.close()
        while self._accepted:
            await asyncio.sleep(0)
        self._send_executor.shutdown(wait=False, cancel_futures=True)
        if self._own_executor:
            self._intake_executor.shutdown(wait=False, cancel_futures=True)
        for server in self._servers:
            await server.wait_closed()

    @property
    def addresses(self) -> list[Address]:
        """Where this member listens; the port is the real one when 0 was asked for."""
        names = [sock.getsockname() for server in self._servers for sock in server.sockets]
        return [(name[0], name[1]) for name in names]

    def set_peers(self, peers: Mapping[int, Sequence[Address]]) -> None:
        """Dial these members, each under any of its addresses, and no others.

        Connections whose peer and addresses did not change stay as they are.
        """
        for member_id in [known for known in self.peers if known not in peers]:
            self.peers.pop(member_id).leave()
            sending = self._sending.get(member_id)
            if sending is not None:
                sending[2].cancel()
        for member_id, addresses in peers.items():
            if member_id == self.member_id:
                continue
            check(0 < len(addresses) <= PEER_ADDRESSES_MAX, "a peer has addresses", peer=member_id)
            known = self.peers.get(member_id)
            if known is None:
                self.peers[member_id] = Peer(self, member_id, addresses)
            else:
                known.move(addresses)

    # Sending

    def send(self, peer: int, messages: Sequence[Message]) -> None:
        """Queue messages for the write at the end of this turn, or drop them.

        A drop (no such peer, no connection, no room) is reported through `on_unreachable`.
        SNAPSHOT messages go through `send_snapshot`; PERSISTED ones never leave the member.
        """
        for message in messages:
            check(message.kind not in _NEVER_SENT, "not a message for the wire", kind=message.kind)
        known = self.peers.get(peer)
        if known is None:
            self.stats.dropped += len(messages)
            self.unreachable(peer)
        elif messages:
            known.send(messages)

    def send_frame(self, peer: int, kind: int, payload: bytes) -> bool:
        """Queue another room's frame of `kind` 0 to 127, in order with the messages.

        False: it was not sent and never will be. True says no more than that it may arrive.
        """
        check(0 <= kind < SHELL_KINDS, "a frame kind out of range", kind=kind)
        known = self.peers.get(peer)
        return known is not None and known.send_frame(FrameKind.SHELL + kind, payload)

    def send_snapshot(
        self,
        peer: int,
        message: Message,
        info: SnapshotInfo,
        store: SnapshotStore,
        done: Callable[[bool], None],
    ) -> None:
        """Stream the file of `info` beside the messages, then have the peer step `message`.

        `done(delivered)` is called once, in a later turn; not after `close`. One transfer a peer:
        the same snapshot joins the one under way, another one replaces it (whose done is False).
        """
        check(message.kind is MessageKind.SNAPSHOT, "a SNAPSHOT message", kind=message.kind)
        under_way = self._sending.get(peer)
        if under_way is not None:
            if under_way[0].info == info:
                under_way[1].append(done)
                return
            under_way[2].cancel()
        elif len(self._sending) >= SNAPSHOT_TRANSFERS_MAX or peer not in self.peers:
            self.loop.call_soon(done, False)
            return

        async def dial(frames: FrameQueue) -> PeerLink:
            return await self.dial(peer, Purpose.SNAPSHOT, frames)

        send = SnapshotSend(
            message,
            info,
            store,
            dial=dial,
            executor=self._send_executor,
            stats=self.stream_stats,
        )
        waiting = [done]
        task = self.spawn(self._stream(peer, send, waiting))
        self._sending[peer] = (send, waiting, task)

    async def _stream(
        self, peer: int, send: SnapshotSend, waiting: list[Callable[[bool], None]]
    ) -> None:
        delivered = False
        try:
            delivered = await send.run()
        finally:
            present = self._sending.get(peer)
            if present is not None and present[0] is send:
                del self._sending[peer]
            if not self._closing:
                for done in waiting:
                    self.loop.call_soon(done, delivered)

    # For peers and intakes

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` until it ends or the transport closes; a failure of it is fatal."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fatal(error)

    def fatal(self, error: BaseException) -> None:
        """Say that the process must end."""
        if self._on_fatal is not None:
            self._on_fatal(error)
        else:
            self.loop.call_exception_handler(
                {"message": "the peer transport failed", "exception": error}
            )

    def unreachable(self, peer: int) -> None:
        """Report a loss, once a turn, and never from within a call of ours."""
        if peer not in self._unreachable and not self._closing:
            self._unreachable.add(peer)
            self.loop.call_soon(self._report, peer)

    def _report(self, peer: int) -> None:
        self._unreachable.discard(peer)
        if not self._closing:
            self._on_unreachable(peer)

    async def dial(self, peer: int, purpose: Purpose, owner: LinkOwner) -> PeerLink:
        """A welcome connection to `peer`, given over to `owner`. Raises OSError or PeerError."""
        known = self.peers.get(peer)
        if known is None:
            raise PeerError(f"member {peer:016x} is no peer")
        hello = Hello(self.cluster_id, self.member_id, peer, purpose, level=self._levels.own)
        failure: Exception = PeerError("no address")
        for host, port in list(known.addresses):
            self.stats.dialled += 1
            try:
                return await self._dial(host, port, hello, owner)
            except (OSError, PeerError) as error:
                failure = error
        raise failure

    async def _dial(self, host: str, port: int, hello: Hello, owner: LinkOwner) -> PeerLink:
        greeting = Greeting(hello)
        link = PeerLink(greeting, self.stats, SNAPSHOT_FRAME_BYTES_MAX)
        try:
            async with asyncio.timeout(PEER_DIAL_SECONDS):
                if self._tls is not None and self._dialling is not None:
                    await connect(self._dialling, self._tls.dialling, link, host, port)
                    self._check_certificate(link)
                else:
                    await self.loop.create_connection(lambda: link, host, port)
                await greeting.wait(link)
                reason = self._levels.refusal(hello.target, greeting.level)
                if reason is not None:
                    raise PeerError(reason)
        except BaseException:
            link.fail(PeerError("not welcome"))
            raise
        link.owner = owner
        if link.closed:
            raise link.error or ConnectionResetError("the peer hung up")
        return link

    # Accepting

    def _knocked(self) -> asyncio.Protocol:
        if self._tls is not None and self._accepting is not None:
            return TlsStream(self._accepting, self._tls.accepting, lambda _: self._accept())
        return self._accept()

    def _check_certificate(self, link: PeerLink, member_id: int | None = None) -> None:
        """Raise PeerError unless the other end may speak as a member, or as this one.

        A member that nobody here has heard of may be one all the same: this one may have slept
        while the cluster changed, and only they can tell. Its certificate makes it a member.
        """
        if self._tls is None:
            return
        peer = None if member_id is None else self.peers.get(member_id)
        hosts = () if peer is None else tuple(host for host, _ in peer.addresses)
        trouble = self._tls.trouble(link.identity, hosts)
        if trouble is not None:
            raise PeerError(trouble)

    def _accept(self) -> PeerLink:
        link = PeerLink(self, self.stats, PEER_FRAME_BYTES_MAX)
        self.stats.accepted += 1
        if len(self._accepted) < PEER_CONNECTIONS_MAX:
            delay, reason = PEER_HANDSHAKE_SECONDS, "no hello in time"
        else:
            delay, reason = 0.0, "too many connections"
        self._accepted[link] = self.loop.call_later(delay, self._refuse, link, reason)
        return link

    def frame(self, link: PeerLink, kind: int, payload: bytes) -> None:
        """LinkOwner of accepted links: a hello, and then what the peer has to say."""
        if not link.peer:
            self._greet(link, kind, payload)
        elif kind == FrameKind.MESSAGES:
            messages = decode_messages(payload)
            for message in messages:
                if message.source != link.peer or message.target != self.member_id:
                    raise PeerError("a message from or for somebody else", kind=message.kind)
                if message.kind in _NEVER_SENT:
                    raise PeerError("not a message for the wire", kind=message.kind)
            self._on_messages(link.peer, messages)
        elif kind == FrameKind.PING:
            if len(payload) != _PING.size or link.paused:
                raise PeerError("a ping of another size than 8 bytes, or pongs are not read")
            link.send(FrameKind.PONG, payload)
        elif kind >= FrameKind.SHELL:
            self._on_frame(link.peer, kind - FrameKind.SHELL, payload)
        else:
            raise PeerError("a frame that does not belong here", kind=kind)

    def writable(self, link: PeerLink) -> None:
        """Only pongs are written, and none while they are not read."""

    def lost(self, link: PeerLink) -> None:
        """An accepted connection has ended."""
        deadline = self._accepted.pop(link, None)
        if deadline is not None:
            deadline.cancel()
        if self._incoming.get(link.peer) is link:
            del self._incoming[link.peer]
        if isinstance(link.error, PeerError) and not self._closing:
            if link.peer:
                self.stats.damaged += 1
                self._say_once(f"connection from {link.peer:016x} cut", str(link.error))
            else:
                self.stats.refused += 1
                host = link.address.rpartition(":")[0]
                self._say_once(f"a dialler from {host} was refused", str(link.error))

    def _greet(self, link: PeerLink, kind: int, payload: bytes) -> None:
        if self._refused(link):
            return
        if kind == FrameKind.INTRODUCE and self._on_introduction is not None:
            cluster_id, members = self._on_introduction()
            link.send(FrameKind.INTRODUCTION, encode_introduction(cluster_id, members))
            link.hang_up()
            return
        if kind != FrameKind.HELLO:
            raise PeerError("not a raftkv member")
        hello = decode_hello(payload)
        reason = refusal(
            hello, cluster_id=self.cluster_id, member_id=self.member_id
        ) or self._levels.refusal(hello.source, hello.level)
        if reason is not None:
            link.refuse(reason)
            return
        if self._refused(link, hello.source):
            return
        deadline = self._accepted.get(link)
        if deadline is not None:
            deadline.cancel()
            self._accepted[link] = None
        link.peer = hello.source
        link.open()
        welcome = encode_welcome(
            hello, cluster_id=self.cluster_id, member_id=self.member_id, level=self._levels.own
        )
        if hello.purpose is Purpose.MESSAGES:
            older = self._incoming.get(hello.source)
            self._incoming[hello.source] = link
            if older is not None:
                older.fail(ConnectionResetError("the peer dialled anew"))
        elif self._snapshots is None:
            link.refuse("this member takes no snapshots")
            return
        else:
            intake = SnapshotIntake(link, _Host(self, self._snapshots))
            intake_task = self.spawn(self._take_in(intake))
            intake_task.add_done_callback(lambda _: self._left(link))
        link.send(FrameKind.WELCOME, welcome)

    async def _take_in(self, intake: SnapshotIntake) -> None:
        try:
            await intake.run()
        except StorageError as error:
            intake.link.fail(error)
            self.fatal(error)

    def _refused(self, link: PeerLink, member_id: int | None = None) -> bool:
        try:
            self._check_certificate(link, member_id)
        except PeerError as error:
            link.refuse(error.message)
            return True
        return False

    def _left(self, link: PeerLink) -> None:
        self._accepted.pop(link, None)
        link.hang_up()

    async def claim(self, intake: SnapshotIntake) -> bool:
        """One snapshot comes in at a time; a leader of a newer term goes before an older one."""
        while self._receiving is not None and not self._receiving[1].done():
            other, task = self._receiving
            if other.term > intake.term:
                return False
            other.link.fail(ConnectionResetError("another transfer takes its place"))
            await asyncio.wait({task})
        present = asyncio.current_task()
        check(present is not None, "an intake runs in a task")
        self._receiving = (intake, present)  # type: ignore[assignment]
        return True

    def _refuse(self, link: PeerLink, reason: str) -> None:
        if not link.peer and not link.closed:
            link.refuse(reason)

    def _say_once(self, what: str, cause: str) -> None:
        """Strangers may knock a thousand times a second; the log hears of each cause once."""
        if (what, cause) not in self._causes and len(self._causes) < _CAUSES_MAX:
            self._causes.add((what, cause))
            log.warning("%s: %s (said once; metrics count on)", what, cause)

    def _each_second(self) -> None:
        self._ticker = self.loop.call_later(PEER_PING_SECONDS, self._each_second)
        now = self.loop.time()
        for peer in self.peers.values():
            peer.each_second()
        for link in list(self._incoming.values()):
            if now - link.heard_at > PEER_SILENCE_SECONDS:
                link.fail(ConnectionResetError("the peer is silent"))


def _desk(name: str) -> HandshakeDesk:
    return HandshakeDesk(name, most=TLS_PEER_HANDSHAKES_MAX, seconds=PEER_HANDSHAKE_SECONDS)


class _Host:
    """What intakes see of the transport."""

    __slots__ = ("_transport", "executor", "member_id", "stats", "store")

    def __init__(self, transport: Transport, store: SnapshotStore) -> None:
        self._transport = transport
        self.member_id = transport.member_id
        self.store = store
        self.executor = transport._intake_executor
        self.stats = transport.stream_stats

    async def claim(self, intake: SnapshotIntake) -> bool:
        """See `Transport.claim`."""
        return await self._transport.claim(intake)

    def received(self, message: Message) -> None:
        """Pass it to the member."""
        self._transport._on_snapshot(message.source, message)
