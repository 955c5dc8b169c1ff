"""How somebody who knows only addresses learns which cluster is behind them, and who is in it.

A member that joins an existing cluster has no ids to say hello with. It sends one INTRODUCE frame
and is answered with the cluster's id and members, which are no secret among peers, and nothing
else: to talk it has to come back with a proper hello.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from raftkv.errors import ConfigError, PeerError
from raftkv.limits import (
    PEER_DIAL_SECONDS,
    PEER_HANDSHAKE_SECONDS,
    PEER_INTRODUCTION_BYTES_MAX,
    TLS_PEER_HANDSHAKES_MAX,
)
from raftkv.packing import unpack
from raftkv.server.frames import FrameKind
from raftkv.server.peer_link import LinkStats, PeerLink
from raftkv.server.tls.settings import PeerTls
from raftkv.server.tls.stream import HandshakeDesk, connect

Introduced = tuple[int, str, list[str], bool]
"""Member id, name, peer URLs, and whether that member has ever taken part."""

_PAUSE_SECONDS: Final = 0.25


def encode_introduction(cluster_id: int, members: Sequence[Sequence[Any]]) -> bytes:
    """The payload of an INTRODUCTION: `members` are rows as `Introduced`."""
    payload: bytes = msgpack.packb([cluster_id, [list(row) for row in members]])
    return payload


def decode_introduction(payload: bytes) -> tuple[int, list[Introduced]]:
    """Cluster id and members. Raises PeerError."""
    try:
        cluster_id, rows = unpack(payload, maps=False)
        members = [(number, name, urls, started) for number, name, urls, started in rows]
    except (ValueError, TypeError):
        raise PeerError("an introduction that cannot be read") from None
    if any(type(urls) is not list for _, _, urls, _ in members):
        raise PeerError("an introduction of a wrong shape")
    texts = [text for _, name, urls, _ in members for text in (name, *urls)]
    numbers = [cluster_id, *(number for number, _, _, _ in members)]
    if any(type(text) is not str for text in texts) or any(type(n) is not int for n in numbers):
        raise PeerError("an introduction of a wrong shape")
    if any(type(started) is not bool for _, _, _, started in members):
        raise PeerError("an introduction of a wrong shape")
    return cluster_id, members


async def ask_introduction(
    addresses: Sequence[tuple[str, int]],
    *,
    seconds: float = 10.0,
    tls: PeerTls | None = None,
) -> tuple[int, list[Introduced]]:
    """Ask each address in turn, for up to `seconds`, which cluster it belongs to.

    Raises ConfigError with the last reason when nobody answers.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        failures = []
        for host, port in addresses:
            try:
                async with asyncio.timeout(PEER_DIAL_SECONDS):
                    return await _ask(host, port, tls)
            except (OSError, PeerError) as error:
                failures.append(f"{host}:{port}: {error or type(error).__name__}")
        if loop.time() + _PAUSE_SECONDS > end:
            raise ConfigError(
                f"no member of the cluster could be asked who is in it ({'; '.join(failures)}); "
                "check the peer addresses and that the cluster is up"
            )
        await asyncio.sleep(_PAUSE_SECONDS)


async def _ask(host: str, port: int, tls: PeerTls | None) -> tuple[int, list[Introduced]]:
    asker = _Asker()
    link = PeerLink(asker, LinkStats(), PEER_INTRODUCTION_BYTES_MAX)
    link.open()
    try:
        if tls is None:
            await asyncio.get_running_loop().create_connection(lambda: link, host, port)
        else:
            await _connect(link, host, port, tls)
        link.send(FrameKind.INTRODUCE, b"")
        return await asker.answer
    finally:
        link.fail(PeerError("answered"))


async def _connect(link: PeerLink, host: str, port: int, tls: PeerTls) -> None:
    desk = HandshakeDesk("peer", most=TLS_PEER_HANDSHAKES_MAX, seconds=PEER_HANDSHAKE_SECONDS)
    try:
        await connect(desk, tls.dialling, link, host, port)
    finally:
        desk.close()
    trouble = tls.trouble(link.identity)
    if trouble is not None:
        raise PeerError(trouble)


class _Asker:
    """Owns the link until the one answer is there."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, list[Introduced]]] = (
            asyncio.get_running_loop().create_future()
        )

    def frame(self, link: PeerLink, kind: int, payload: bytes) -> None:
        if kind == FrameKind.REFUSED:
            raise PeerError(f"refused: {payload.decode(errors='replace')}")
        if kind != FrameKind.INTRODUCTION:
            raise PeerError("not an introduction", kind=kind)
        if not self.answer.done():
            self.answer.set_result(decode_introduction(payload))

    def writable(self, link: PeerLink) -> None:
        """One small frame is written."""

    def lost(self, link: PeerLink) -> None:
        if not self.answer.done():
            self.answer.set_exception(link.error or ConnectionResetError("the peer hung up"))
