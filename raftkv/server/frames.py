"""What members say to each other, as bytes: frames, and the handshake that opens a connection.

    frame  = length u32, crc32c u32, kind u8, payload        (big-endian)
    length   counts kind and payload
    crc32c   covers kind and payload (RFC 3720, appendix B.4)

The dialler says HELLO; the answer is WELCOME, with the version to speak, or REFUSED, with a reason
for the operator, and the end of the connection. No other frame may come earlier.

Pure: bytes in, frames or one `PeerError` out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import google_crc32c

from raftkv.checks import check
from raftkv.errors import PeerError
from raftkv.limits import PEER_FRAME_BYTES_MAX, PEER_HELLO_BYTES_MAX

MAGIC: Final = b"RAFTKV"
VERSION: Final = 1
VERSION_OLDEST: Final = 1
"""Versions of this protocol that are spoken here; two members use the newest they share."""

SHELL_KINDS: Final = 128
"""Frames for other rooms have kinds of their own, 0 up to this."""

_HEADER: Final = struct.Struct(">IIB")
_PREFIX_BYTES: Final = 8
_HELLO: Final = struct.Struct(">6sHHQQQB")
_WELCOME: Final = struct.Struct(">6sHQQ")
_KIND_CRC: Final = tuple(google_crc32c.value(bytes((kind,))) for kind in range(256))


class FrameKind(IntEnum):
    """What a payload is. Kinds from SHELL on are SHELL + the kind of another room's frame."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    """UTF-8 text: why."""
    PING = 4
    """Any 8 bytes, which come back in a PONG."""
    PONG = 5
    MESSAGES = 6
    """Consensus messages, see `raftkv.consensus.codec`."""
    INTRODUCE = 7
    """In place of a HELLO, empty: who is there? See `raftkv.server.introduction`."""
    INTRODUCTION = 8
    OFFER = 16
    """See `raftkv.server.snapshot_stream` for this and the following."""
    WANT = 17
    CHUNK = 18
    HAVE = 19
    ACCEPTED = 20
    DECLINED = 21
    SHELL = 128


class Purpose(IntEnum):
    """What a connection is for."""

    MESSAGES = 0
    SNAPSHOT = 1


Frame = tuple[int, bytes]


def frame_header(kind: int, payload: bytes) -> bytes:
    """What precedes `payload` on the wire."""
    crc = google_crc32c.extend(_KIND_CRC[kind], payload)
    return _HEADER.pack(len(payload) + 1, crc, kind)


def frame(kind: int, payload: bytes) -> bytes:
    """A whole frame. For large payloads write `frame_header` and payload side by side instead."""
    return frame_header(kind, payload) + payload


class FrameParser:
    """Frames out of a stream of bytes, cut anywhere.

    Holds at most one unfinished frame of up to `bytes_max`, and allocates for bytes received, never
    for bytes announced.
    """

    __slots__ = ("_held", "_wanted", "bytes_max", "error")

    def __init__(self, bytes_max: int = PEER_HELLO_BYTES_MAX) -> None:
        check(0 < bytes_max <= PEER_FRAME_BYTES_MAX, "a frame bound out of range", bytes=bytes_max)
        self.bytes_max = bytes_max
        """Of kind and payload. May be raised between two calls of `feed`."""
        self.error: PeerError | None = None
        """Set by the first damage; nothing comes after it."""
        self._held = bytearray()
        self._wanted = 0

    @property
    def held_bytes(self) -> int:
        """Bytes received of a frame that is not complete."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Look at `error` afterwards."""
        if self.error is not None:
            return []
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return []
            data = bytes(self._held)
            self._held.clear()
        frames: list[Frame] = []
        at, end = 0, len(data)
        while True:
            self._wanted = _HEADER.size
            if end - at < _HEADER.size:
                break
            length, crc, kind = _HEADER.unpack_from(data, at)
            if not 1 <= length <= self.bytes_max:
                self.error = PeerError(
                    f"a frame of {length} bytes, allowed are 1 to {self.bytes_max}", bytes=length
                )
                return frames
            stop = at + _PREFIX_BYTES + length
            if stop > end:
                self._wanted = stop - at
                break
            payload = data[at + _HEADER.size : stop]
            if google_crc32c.extend(_KIND_CRC[kind], payload) != crc:
                self.error = PeerError("a frame was damaged on its way", kind=kind)
                return frames
            frames.append((kind, payload))
            at = stop
        if at < end:
            self._held += data[at:]
        return frames


@dataclass(frozen=True, slots=True)
class Hello:
    """How a dialler introduces itself."""

    cluster_id: int
    source: int
    target: int
    purpose: Purpose = Purpose.MESSAGES
    version: int = VERSION
    version_oldest: int = VERSION_OLDEST
    level: int = 0
    """Feature level of the dialler's program, see `raftkv.server.levels`; 0 is not told."""

    def encode(self) -> bytes:
        """The payload of a HELLO."""
        return _HELLO.pack(
            MAGIC,
            self.version,
            self.version_oldest,
            self.cluster_id,
            self.source,
            self.target,
            self.purpose,
        ) + level_byte(self.level)


def level_byte(level: int) -> bytes:
    """What follows a hello or a welcome. Programs of level 0 neither write nor read it."""
    return bytes((level,)) if level else b""


def level_after(payload: bytes, size: int) -> int:
    """The level that follows `size` bytes of a hello or a welcome."""
    return payload[size] if len(payload) > size else 0


def decode_hello(payload: bytes) -> Hello:
    """The HELLO in `payload`; longer ones of later versions are read as far as they are known.

    Raises PeerError.
    """
    if len(payload) < _HELLO.size or not payload.startswith(MAGIC):
        raise PeerError("not a raftkv member")
    _, version, oldest, cluster, source, target, purpose = _HELLO.unpack_from(payload)
    if purpose not in (Purpose.MESSAGES, Purpose.SNAPSHOT):
        raise PeerError(f"a connection for an unknown purpose {purpose}")
    level = level_after(payload, _HELLO.size)
    return Hello(cluster, source, target, Purpose(purpose), version, oldest, level)


def refusal(hello: Hello, *, cluster_id: int, member_id: int) -> str | None:
    """Why the dialler must not be talked to, for its operator; None: it may."""
    if hello.version < VERSION_OLDEST or hello.version_oldest > VERSION:
        return (
            f"this member speaks peer protocol {VERSION_OLDEST} to {VERSION}, "
            f"the dialler {hello.version_oldest} to {hello.version}"
        )
    if hello.cluster_id != cluster_id:
        return f"this is cluster {cluster_id:016x}, the dialler is of {hello.cluster_id:016x}"
    if hello.target != member_id:
        return f"this is member {member_id:016x}, the dialler looks for {hello.target:016x}"
    if hello.source in (0, member_id):
        return f"the dialler calls itself {hello.source:016x}, which cannot be"
    return None


def encode_welcome(hello: Hello, *, cluster_id: int, member_id: int, level: int = 0) -> bytes:
    """The payload of the WELCOME that answers `hello`."""
    head = _WELCOME.pack(MAGIC, min(VERSION, hello.version), cluster_id, member_id)
    return head + level_byte(level)


def welcome_level(payload: bytes) -> int:
    """The feature level of who says WELCOME, which `check_welcome` found right."""
    return level_after(payload, _WELCOME.size)


def check_welcome(payload: bytes, hello: Hello) -> int:
    """The version to speak. Raises PeerError unless the answer comes from who was asked for."""
    if len(payload) < _WELCOME.size:
        raise PeerError("a welcome is too short")
    magic, version, cluster, member = _WELCOME.unpack_from(payload)
    if magic != MAGIC or not VERSION_OLDEST <= version <= VERSION:
        raise PeerError("a welcome in an unknown version")
    if (cluster, member) != (hello.cluster_id, hello.target):
        raise PeerError(f"member {member:016x} answered for {hello.target:016x}")
    return int(version)
