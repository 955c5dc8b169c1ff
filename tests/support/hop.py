"""A hop that gives mTLS and an identity to clients that have neither.

A plain port on the loopback interface in front of one server. HTTP/2, which gRPC is, is passed on
byte by byte over TLS with the certificate of `grpc`. Into every HTTP/1.1 request goes an
`Authorization` header, over TLS with the certificate of `json`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

HTTP2: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PIECE_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Hop:
    """How to go on to the server at `port`."""

    port: int
    grpc: ssl.SSLContext
    """Offers h2."""
    json: ssl.SSLContext
    """Offers http/1.1."""
    authorization: str
    """The header's value, for HTTP/1.1."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, to its end."""
        with suppress(OSError, asyncio.IncompleteReadError):
            begun = await reader.readexactly(4)
            context = self.grpc if HTTP2.startswith(begun) else self.json
            there, back = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=context, server_hostname="127.0.0.1"
            )
            requests = _copy if context is self.grpc else self._requests
            answers = asyncio.create_task(_copy(b"", there, writer))
            try:
                await requests(begun, reader, back)
            finally:
                answers.cancel()
                back.close()
        writer.close()

    async def _requests(
        self, begun: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Requests of HTTP/1.1 with a length or without a body, one after the other."""
        while True:
            head = begun + await reader.readuntil(b"\r\n\r\n")
            begun = b""
            line, _, rest = head.partition(b"\r\n")
            writer.write(b"%s\r\nAuthorization: %s\r\n%s" % (
                line, self.authorization.encode(), rest))  # fmt: skip
            names = dict(
                (name.strip().lower(), value.strip())
                for name, _, value in (field.partition(b":") for field in rest.splitlines())
            )
            assert b"transfer-encoding" not in names, "a body in chunks is not for this hop"
            writer.write(await reader.readexactly(int(names.get(b"content-length", b"0"))))
            await writer.drain()


async def _copy(begun: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on; the end of them ends the other side's as well."""
    writer.write(begun)
    while piece := await reader.read(PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def hopping(hop: Hop, port: int) -> AsyncIterator[None]:
    """Take connections at `port` for the length of the block, and leave none behind."""
    open_now: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now.add(task)
        task.add_done_callback(open_now.discard)
        await hop.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for task in list(open_now):
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)
