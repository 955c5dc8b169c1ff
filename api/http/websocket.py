"""WebSocket frames for a server (RFC 6455), without I/O. No extensions."""

from __future__ import annotations

import base64
import hashlib
from struct import Struct
from typing import Final

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
_CONTINUATION: Final = 0
_FINAL: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_CONTROL_BYTES_MAX: Final = 125

NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
BAD_TEXT: Final = 1007
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
GOING_AWAY: Final = 1001

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_U16: Final = Struct(">H")
_U64: Final = Struct(">Q")


class WebSocketFault(Exception):
    """The client broke the protocol, or a bound: the code to close with, and why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def accept_key(key: bytes) -> bytes:
    """The answer to ``Sec-WebSocket-Key`` (section 4.2.2). Raises ValueError for a bad one."""
    if len(base64.b64decode(key, validate=True)) != 16:
        raise ValueError("not 16 bytes")
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def frame(opcode: int, content: bytes) -> bytes:
    """One whole, unmasked frame."""
    size = len(content)
    first = bytes((_FINAL | opcode,))
    if size <= _CONTROL_BYTES_MAX:
        return b"".join((first, bytes((size,)), content))
    if size < 1 << 16:
        return b"".join((first, b"\x7e", _U16.pack(size), content))
    return b"".join((first, b"\x7f", _U64.pack(size), content))


def close_frame(code: int) -> bytes:
    """A close frame with a status code."""
    return frame(CLOSE, _U16.pack(code))


class FrameReader:
    """Cuts a client's bytes into messages. Holds at most one unfinished message."""

    def __init__(self, message_bytes_max: int) -> None:
        self._buffer = bytearray()
        self._message = bytearray()
        self._opcode = _CONTINUATION
        """Of the message under way; continuation: none is."""
        self._message_bytes_max = message_bytes_max

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(opcode, content) of each message and control frame that `data` completes.

        Raises `WebSocketFault`; nothing may be fed after that.
        """
        self._buffer += data
        found: list[tuple[int, bytes]] = []
        while (one := self._frame()) is not None:
            found += self._joined(*one)
        return found

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """(whether it is the last of its message, opcode, content) of the next whole frame."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        opcode, size = first & 15, second & 127
        if first & _RESERVED or opcode not in (_CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise WebSocketFault(PROTOCOL_ERROR, "reserved bits or opcode")
        if not second & _MASKED:
            raise WebSocketFault(PROTOCOL_ERROR, "a client's frames are masked")
        if opcode >= CLOSE and (size > _CONTROL_BYTES_MAX or not first & _FINAL):
            raise WebSocketFault(PROTOCOL_ERROR, "a control frame is short and whole")
        at = 2
        if size > _CONTROL_BYTES_MAX:
            wide = _U16 if size == 126 else _U64
            if len(buffer) < at + wide.size:
                return None
            (size,) = wide.unpack_from(buffer, at)
            at += wide.size
        if size + len(self._message) > self._message_bytes_max:
            raise WebSocketFault(TOO_BIG, f"a message has at most {self._message_bytes_max} bytes")
        end = at + 4 + size
        if len(buffer) < end:
            return None
        content = _unmasked(bytes(buffer[at + 4 : end]), bytes(buffer[at : at + 4]))
        del buffer[:end]
        return bool(first & _FINAL), opcode, content

    def _joined(self, final: bool, opcode: int, content: bytes) -> list[tuple[int, bytes]]:
        if opcode >= CLOSE:
            return [(opcode, content)]
        if (opcode == _CONTINUATION) is (self._opcode == _CONTINUATION):
            raise WebSocketFault(PROTOCOL_ERROR, "a fragment out of place")
        if opcode != _CONTINUATION:
            self._opcode = opcode
        self._message += content
        if not final:
            return []
        whole = (self._opcode, bytes(self._message))
        self._message.clear()
        self._opcode = _CONTINUATION
        return [whole]


def _unmasked(content: bytes, mask: bytes) -> bytes:
    """The content, XORed with the mask over and over (section 5.3), as one long number."""
    size = len(content)
    if not size:
        return b""
    pattern = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(content, "big") ^ int.from_bytes(pattern, "big")).to_bytes(size, "big")
