"""A server that answers every call with one fixed Put answer: what the load generator can do.

    python -m benchmarks.load.trivial PORT

No store, no parsing but of frames. Any real server costs more, so a rate measured against this one
is a bound that our load generator and it share; real figures have to stay well below it.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import cast

import hpack
import uvloop

from benchmarks.load.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    WINDOW_UPDATE,
    frame,
    prefixed,
)  # fmt: skip

_HEAD = struct.Struct(">HBBBI")
_ANSWER = prefixed(b"\x0a\x08\x08\x01\x10\x01\x18\x02\x20\x02")


class Answering(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._rest = b""
        self._greeted = False
        encoder = hpack.Encoder()
        encoder.header_table_size = 0
        heads = encoder.encode([(":status", "200"), ("content-type", "application/grpc")])
        tails = encoder.encode([("grpc-status", "0")])
        self._parts = [
            (part[:5], part[9:])  # what stands before the stream's number, and behind it
            for part in (
                frame(HEADERS, END_HEADERS, 0, heads),
                frame(DATA, 0, 0, _ANSWER),
                frame(HEADERS, END_HEADERS | END_STREAM, 0, tails),
            )
        ]

    def data_received(self, data: bytes) -> None:
        """Frames, in part perhaps."""
        data = self._rest + data
        out: list[bytes] = []
        at = 0
        if not self._greeted:
            self._greeted, at = True, len(PREFACE)
            increment = (WINDOW_MAX - WINDOW_DEFAULT).to_bytes(4, "big")
            out += (frame(SETTINGS, 0, 0), frame(WINDOW_UPDATE, 0, 0, increment))
        (head, head_end), (body, body_end), (tail, tail_end) = self._parts
        while len(data) - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            end = at + 9 + (high << 8 | low)
            if end > len(data):
                break
            at = end
            if kind == DATA and flags & END_STREAM:
                sid = stream.to_bytes(4, "big")
                out += (head, sid, head_end, body, sid, body_end, tail, sid, tail_end)
            elif kind == SETTINGS and not flags & ACK:
                out.append(frame(SETTINGS, ACK, 0))
        self._rest = data[at:]
        self._transport.write(b"".join(out))


async def serve(port: int) -> None:
    """Answer until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
