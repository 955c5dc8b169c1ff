"""Seeded fuzzing of the HTTP/2 and gRPC codec.

Each case is a valid conversation, generated from a seed, then spoilt: octets flipped, cut, doubled
or removed, frames swapped or invented, and cut into reads at random places. The oracle: the bytes
are accepted, or answered by GOAWAY or RST_STREAM with a code of RFC 9113; never another exception;
what the server says stays well-formed; what it keeps stays bounded; nothing leaks when it ends.

    python -m tests.fuzz.test_grpc_codec 1000000        a million cases, from seed 0
    python -m tests.fuzz.test_grpc_codec 1 --seed 4711  one case again

Under pytest GRPC_FUZZ_CASES sets the number of cases.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable

from raftkv import limits
from raftkv.api.grpc import frames
from raftkv.api.grpc.calls import StreamCall, UnaryCall
from raftkv.api.grpc.connection import ServerConnection
from raftkv.api.grpc.frames import PREFACE, ErrorCode
from raftkv.api.grpc.header_blocks import encode
from raftkv.api.grpc.messages import framed
from raftkv.api.grpc.server import GrpcServer
from tests.fuzz.grpc_peer import Log, Peer, data, echo_server, fields, split

_PATHS = ("/t.T/Echo", "/t.T/Hold", "/t.T/Bidi", "/t.T/Sink", "/t.T/None")
_EXTRAS = (
    ("token", "secret"),
    ("grpc-timeout", "1S"),
    ("grpc-timeout", "20m"),
    ("grpc-encoding", "gzip"),
    ("content-length", "7"),
    ("blob-bin", "AAE"),
)
Mutation = Callable[[random.Random, list[bytes]], None]


def conversation(rng: random.Random, peer: Peer) -> list[bytes]:
    """Valid frames, most of them requests."""
    parts = [PREFACE, frames.settings({}), frames.frame(frames.SETTINGS, frames.ACK, 0)]
    stream_id = 1
    for _ in range(rng.randrange(1, 12)):
        kind = rng.randrange(12)
        if kind < 6:
            extra = [e for e in _EXTRAS if rng.random() < 0.15]
            message = rng.randbytes(rng.choice((0, 2, 100, 5000)))
            parts.append(peer.headers(stream_id, fields(rng.choice(_PATHS), *extra)))
            body = framed(message)
            cut = rng.randrange(len(body) + 1) if rng.random() < 0.3 else len(body)
            parts.append(data(stream_id, body[:cut], frames.END_STREAM * (cut == len(body))))
            if cut < len(body):
                parts.append(data(stream_id, body[cut:], frames.END_STREAM))
            stream_id += 2
        elif kind == 6:
            block = encode([(n.encode(), v.encode()) for n, v in fields(rng.choice(_PATHS))])
            cut = rng.randrange(len(block))
            parts.append(frames.frame(frames.HEADERS, 0, stream_id, block[:cut]))
            parts.append(frames.frame(frames.CONTINUATION, 4, stream_id, block[cut:]))
            stream_id += 2
        elif kind == 7:
            sizes = [0, 1, 100, 65_535, 2**31 - 1]
            which = rng.choice((1, 2, 3, 4, 5, 6, 99))
            value = rng.choice(sizes) if which == 4 else rng.choice((0, 1, 4096, 16_384))
            payload = which.to_bytes(2, "big") + value.to_bytes(4, "big")
            parts.append(frames.frame(frames.SETTINGS, 0, 0, payload))
        elif kind == 8:
            target = rng.choice((0, 1, stream_id - 2 if stream_id > 2 else 0))
            parts.append(frames.window_update(target, rng.choice((1, 1000, 2**30))))
        elif kind == 9 and stream_id > 1:
            parts.append(frames.rst_stream(rng.randrange(1, stream_id, 2), ErrorCode.CANCEL))
        elif kind == 10:
            parts.append(frames.frame(frames.PING, 0, 0, rng.randbytes(8)))
        else:
            parts.append(frames.frame(frames.PRIORITY, 0, stream_id, bytes(5)))
    return parts


def _flip(rng: random.Random, parts: list[bytes]) -> None:
    at = rng.randrange(len(parts))
    part = bytearray(parts[at])
    if part:
        # Half of the flips go into the frame's header, where they do most.
        where = rng.randrange(min(9, len(part)) if rng.random() < 0.5 else len(part))
        part[where] ^= 1 << rng.randrange(8)
    parts[at] = bytes(part)


def _overwrite(rng: random.Random, parts: list[bytes]) -> None:
    at = rng.randrange(len(parts))
    part = bytearray(parts[at])
    if len(part) > 9:
        where = rng.randrange(9, len(part))
        part[where : where + rng.randrange(1, 5)] = rng.randbytes(rng.randrange(1, 5))
        size = len(part) - 9
        part[:3] = size.to_bytes(3, "big")
    parts[at] = bytes(part)


def _cut(rng: random.Random, parts: list[bytes]) -> None:
    at = rng.randrange(len(parts))
    parts[at] = parts[at][: rng.randrange(len(parts[at]) + 1)]


def _swap(rng: random.Random, parts: list[bytes]) -> None:
    a, b = rng.randrange(len(parts)), rng.randrange(len(parts))
    parts[a], parts[b] = parts[b], parts[a]


def _double(rng: random.Random, parts: list[bytes]) -> None:
    at = rng.randrange(len(parts))
    parts[at:at] = [parts[at]] * rng.choice((1, 2, 30))


def _drop(rng: random.Random, parts: list[bytes]) -> None:
    if len(parts) > 1:
        del parts[rng.randrange(len(parts))]


def _invent(rng: random.Random, parts: list[bytes]) -> None:
    payload = rng.randbytes(rng.choice((0, 1, 4, 5, 6, 8, 9, 40, 300)))
    flags = rng.choice((0, 1, 4, 5, 8, 0x20, 0x2D, rng.randrange(256)))
    stream_id = rng.choice((0, 1, 2, 3, 5, 7, 99, 2**31 - 1))
    kind = rng.choice((0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, rng.randrange(256)))
    parts.insert(rng.randrange(len(parts) + 1), frames.frame(kind, flags, stream_id, payload))


def _noise(rng: random.Random, parts: list[bytes]) -> None:
    parts.insert(rng.randrange(len(parts) + 1), rng.randbytes(rng.randrange(1, 60)))


MUTATIONS: tuple[Mutation, ...] = (
    _flip, _flip, _overwrite, _cut, _swap, _double, _drop, _invent, _invent, _noise,
)  # fmt: skip


def reads(rng: random.Random, stream: bytes) -> list[bytes]:
    """The stream as a socket may give it."""
    if rng.random() < 0.5:
        return [stream]
    found = []
    at = 0
    while at < len(stream):
        step = rng.choice((1, 3, 9, 10, 50, 1000, 20_000))
        found.append(stream[at : at + step])
        at += step
    return found


def check_bounds(connection: ServerConnection) -> None:
    """Everything the connection keeps, against its limit and its own accounts."""
    assert len(connection.streams) <= limits.HTTP2_STREAMS_MAX
    assert connection.input_bytes == sum(s.held for s in connection.streams.values())
    assert connection.input_bytes <= limits.HTTP2_CONNECTION_INPUT_BYTES_MAX + 20_000
    pending = sum(len(s.pending or b"") for s in connection.streams.values())
    assert connection.held_bytes == pending
    assert len(connection._rest) <= limits.HTTP2_FRAME_BYTES_MAX + 9
    assert connection._continued_bytes <= limits.HTTP2_HEADER_BLOCK_BYTES_MAX + 20_000
    assert len(connection._fixed) <= limits.HTTP2_MEMO_BLOCKS_MAX
    assert len(connection._until_change) <= limits.HTTP2_MEMO_BLOCKS_MAX
    assert len(connection._by_fields) <= limits.HTTP2_MEMO_BLOCKS_MAX
    assert len(connection._reset_streams) <= limits.HTTP2_ENDED_STREAMS_KEPT
    assert len(connection._gaps) <= 16
    assert connection._decoder.table_bytes <= limits.HTTP2_HEADER_TABLE_BYTES
    for kept in (connection.blocked, connection.waiting, connection.deadlines):
        assert kept.keys() <= connection.streams.keys()


def answer_some(rng: random.Random, log: Log) -> None:
    """What handlers do in later turns."""
    calls: list[UnaryCall] = [c for c in log.unary if rng.random() < 0.5]
    for call in calls:
        log.unary.remove(call)
        if rng.random() < 0.8:
            call.reply(bytes(rng.choice((0, 10, 70_000))))
        else:
            call.fail(rng.randrange(17), "no")
    streams: list[StreamCall] = [c for c in log.streams if rng.random() < 0.3]
    for stream in streams:
        action = rng.randrange(4)
        if action == 0:
            stream.send(bytes(rng.choice((0, 10, 70_000))))
        elif action == 1:
            stream.finish()
        elif action == 2:
            stream.pause()
        else:
            stream.resume()


def run_case(seed: int, servers: tuple[GrpcServer, Log] | None = None) -> str:
    """One case; how it ended, for the summary. Raises AssertionError or whatever is a bug."""
    rng = random.Random(seed)
    server, log = servers or new_server()
    log.seen.clear()
    log.unary.clear()
    log.streams.clear()
    peer = Peer(server, greet=False)
    connection = peer.connection
    parts = conversation(rng, peer)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        rng.choice(MUTATIONS)(rng, parts)
    out = b""
    for piece in reads(rng, b"".join(parts)):
        peer.now += rng.choice((0, 0, 0.01))
        connection.receive(piece, peer.now)
        if rng.random() < 0.3:
            answer_some(rng, log)
        if rng.random() < 0.1:
            connection.pause(peer.now)
        elif connection.paused:
            connection.resume()
        if rng.random() < 0.1:
            server.expire(peer.now)
            connection.tick(peer.now)
        out += connection.take_output()
        connection.flushed()
        check_bounds(connection)
    if rng.random() < 0.3:
        connection.drain(peer.now)
        connection.tick(peer.now + 2)
    answer_some(rng, log)
    while turn := connection.take_output():
        out += turn
        connection.flushed()
    check_bounds(connection)
    ended = "accepted"
    for frame in split(out):
        if frame.kind == frames.GOAWAY and not connection.draining:
            ended = f"GOAWAY {ErrorCode(frames.uint32(frame.payload, 4)).name}"
        elif frame.kind == frames.RST_STREAM and ended == "accepted":
            code = ErrorCode(frames.uint32(frame.payload))
            if code is not ErrorCode.NO_ERROR:
                ended = f"RST_STREAM {code.name}"
    assert ended not in ("GOAWAY INTERNAL_ERROR", "RST_STREAM INTERNAL_ERROR")
    assert not [error for error in log.seen if isinstance(error, Exception)]
    server.disconnect(connection)
    assert not connection.streams
    assert not connection.deadlines
    assert not connection.blocked
    assert not connection.waiting
    assert connection.input_bytes == connection.held_bytes == 0
    assert not server.connections
    assert not server.timed
    return ended


def new_server() -> tuple[GrpcServer, Log]:
    """A server whose handlers' mistakes are in its log."""
    log = Log()
    return echo_server(log), log


def run(cases: int, first_seed: int) -> dict[str, int]:
    """Many cases; how often each ending was seen."""
    endings: dict[str, int] = {}
    servers = new_server()
    for seed in range(first_seed, first_seed + cases):
        try:
            ended = run_case(seed, servers)
        except BaseException:
            print(f"\nreproduce: python -m tests.fuzz.test_grpc_codec 1 --seed {seed}")
            raise
        endings[ended] = endings.get(ended, 0) + 1
    return endings


def test_spoilt_conversations() -> None:
    cases = int(os.environ.get("GRPC_FUZZ_CASES", "3000"))
    endings = run(cases, 0)
    # The cases must reach both sides of the oracle, or they prove nothing.
    assert endings["accepted"] > cases // 20
    assert sum(n for name, n in endings.items() if name.startswith("GOAWAY")) > cases // 20
    assert sum(n for name, n in endings.items() if name.startswith("RST")) > cases // 100
    assert len(endings) > 8


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[sys.argv.index("--seed") + 1]) if "--seed" in sys.argv else 0
    started = time.monotonic()
    for name, count in sorted(run(cases, seed).items(), key=lambda item: -item[1]):
        print(f"{count:9,}  {name}")
    print(f"{cases:,} cases in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
