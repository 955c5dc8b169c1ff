"""HTTP/1.1 with nothing hidden: one request, one answer, and never a second try.

A recorded history needs to know of each request whether it can have reached the member. Client
libraries repeat requests by themselves when a kept connection drops; this one does not.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

HEAD_BYTES_MAX = 64 * 1024
CONNECT_SECONDS = 1.0


class NotSent(Exception):
    """No connection: the request definitely did not leave."""


class Broken(Exception):
    """No whole answer came: the request may have been carried out, or may still be."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whole."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None when it is something else."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None


class Line:
    """A kept connection to one member, for one request at a time."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        """`context`: for https."""
        self._context = context
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        seconds: float = 2.0,
    ) -> Reply:
        """Ask once. Raises `NotSent` or `Broken`; the connection is then closed."""
        if self._streams is None:
            try:
                async with asyncio.timeout(min(CONNECT_SECONDS, seconds)):
                    self._streams = await asyncio.open_connection(
                        self._host, self._port, limit=HEAD_BYTES_MAX, ssl=self._context
                    )
            except (OSError, TimeoutError) as error:
                raise NotSent(str(error) or "the connection timed out") from error
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body or method in ("PUT", "POST"):
            lines.append(f"Content-Length: {len(body)}")
        reader, writer = self._streams
        try:
            async with asyncio.timeout(seconds):
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                reply, keep = await _reply(reader)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise Broken(f"{type(error).__name__}: {error}") from error
        except BaseException:
            # Cancelled in the middle: what comes next on this connection belongs to nobody.
            self.close()
            raise
        if not keep:
            self.close()
        return reply

    def close(self) -> None:
        """Hang up at once."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _reply(reader: asyncio.StreamReader) -> tuple[Reply, bool]:
    """One answer, and whether the connection stays open after it."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        status_line, *rows = head[:-4].split(b"\r\n")
        status = int(status_line.split(b" ", 2)[1])
        fields = {}
        for row in rows:
            name, _, value = row.partition(b":")
            fields[name.strip().lower()] = value.strip().lower()
        if status != 100:
            break
    keep = fields.get(b"connection") != b"close"
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return Reply(status, await _chunks(reader)), keep
    return Reply(status, await reader.readexactly(int(fields.get(b"content-length", b"0")))), keep


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        piece = await reader.readexactly(size + 2)
        if not size:
            return b"".join(pieces)
        pieces.append(piece[:-2])
