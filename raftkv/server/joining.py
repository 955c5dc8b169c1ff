"""How a new member learns who it is: it asks any member of the cluster over the peer port.

    ASK       magic, protocol version u16
    MEMBERS   msgpack [cluster id, [[member id, name, [peer url, ...]], ...]]

The answer says nothing that a member's own address does not say already; taking part needs a
HELLO with the right ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgpack

from raftkv.errors import ConfigError, PeerError
from raftkv.limits import PEER_DIAL_SECONDS
from raftkv.server.frames import MAGIC, VERSION, FrameKind, FrameParser, frame

ASK_SECONDS = 30.0
"""How long a newcomer keeps asking around before it gives up."""
ASK_PAUSE_SECONDS = 0.5
ANSWER_BYTES_MAX = 1 << 20

Answer = tuple[int, list[tuple[int, str, list[str]]]]


def encode_question() -> bytes:
    """The payload of an ASK."""
    return MAGIC + VERSION.to_bytes(2, "big")


def check_question(payload: bytes) -> None:
    """Raise PeerError unless `payload` is an ASK of ours."""
    if not payload.startswith(MAGIC):
        raise PeerError("not a raftkv member")


def encode_members(cluster_id: int, members: Sequence[tuple[int, str, Sequence[str]]]) -> bytes:
    """The payload of a MEMBERS."""
    rows = [[member_id, name, list(urls)] for member_id, name, urls in members]
    return bytes(msgpack.packb([cluster_id, rows]))


def decode_members(payload: bytes) -> Answer:
    """The inverse; raises PeerError for anything else."""
    try:
        cluster_id, rows = msgpack.unpackb(payload)
        members = [
            (int(member_id), str(name), [str(u) for u in urls]) for member_id, name, urls in rows
        ]
        return int(cluster_id), members
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise PeerError(f"the answer of a member makes no sense: {error}") from error


async def ask_members(addresses: Sequence[tuple[str, int]]) -> Answer:
    """Ask the members at `addresses`, one after the other, until one answers.

    Raises ConfigError when none does within ASK_SECONDS.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ASK_SECONDS
    trouble: dict[str, str] = {}
    while True:
        for host, port in addresses:
            try:
                async with asyncio.timeout(PEER_DIAL_SECONDS):
                    return await _ask(host, port)
            except (OSError, PeerError, TimeoutError) as error:
                trouble[f"{host}:{port}"] = str(error) or type(error).__name__
        if loop.time() >= deadline:
            raise ConfigError(
                "no member of the cluster answers: "
                + "; ".join(f"{where}: {what}" for where, what in trouble.items())
                + ". Check the peer URLs in --initial-cluster"
            )
        await asyncio.sleep(ASK_PAUSE_SECONDS)


async def _ask(host: str, port: int) -> Answer:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(frame(FrameKind.ASK, encode_question()))
        parser = FrameParser(ANSWER_BYTES_MAX)
        while True:
            data = await reader.read(1 << 16)
            if not data:
                raise PeerError("hung up without an answer")
            for kind, payload in parser.feed(data):
                if kind == FrameKind.REFUSED:
                    raise PeerError(payload.decode(errors="replace"))
                if kind != FrameKind.MEMBERS:
                    raise PeerError(f"answered with a frame of kind {kind}")
                return decode_members(payload)
            if parser.error is not None:
                raise parser.error
    finally:
        writer.close()
