"""gRPC's message framing on the way in: length prefix, size limit, bounded decompression."""

from __future__ import annotations

import zlib
from typing import Final

from raftkv.api.grpc.status import Status

PREFIX_BYTES: Final = 5
IDENTITY: Final = 0
GZIP: Final = 1
_GZIP_WINDOW_BITS: Final = 16 + zlib.MAX_WBITS


class CallFault(Exception):
    """The call cannot go on: its status and what to say."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class MessageReader:
    """Cuts one direction of one call into messages. Holds at most one unfinished message."""

    __slots__ = ("_buffer", "_encoding", "_message_bytes_max")

    def __init__(self, encoding: int, message_bytes_max: int) -> None:
        self._buffer = bytearray()
        self._encoding = encoding
        self._message_bytes_max = message_bytes_max

    def __len__(self) -> int:
        """Octets of an unfinished message."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes. Raises `CallFault`.

        A message over the limit is refused when its length is read, before it is taken in.
        """
        buffer = self._buffer
        if not buffer and len(data) >= PREFIX_BYTES and not data[0]:
            size = int.from_bytes(data[1:PREFIX_BYTES], "big")
            if size == len(data) - PREFIX_BYTES and size <= self._message_bytes_max:
                return [data[PREFIX_BYTES:]]  # as nearly all do: one message, whole
        source: bytes | bytearray = data
        if buffer:
            buffer += data
            source = buffer
        messages: list[bytes] = []
        at, end = 0, len(source)
        while end - at >= PREFIX_BYTES:
            start = at + PREFIX_BYTES
            size = int.from_bytes(source[at + 1 : start], "big")
            if size > self._message_bytes_max:
                raise too_large(size, self._message_bytes_max)
            stop = start + size
            if stop > end:
                break
            content = bytes(source[start:stop])
            messages.append(self._content(source[at], content) if source[at] else content)
            at = stop
        if source is buffer:
            del buffer[:at]
        elif at < end:
            buffer += data[at:]
        return messages

    def _content(self, flag: int, content: bytes) -> bytes:
        if flag != 1:
            raise CallFault(Status.INTERNAL, f"message with compressed flag {flag}")
        if self._encoding != GZIP:
            raise CallFault(Status.INTERNAL, "compressed message without a grpc-encoding")
        return _gunzip(content, self._message_bytes_max)


def too_large(size: int, limit: int) -> CallFault:
    """The refusal of a message over the limit, which it names."""
    return CallFault(
        Status.RESOURCE_EXHAUSTED,
        f"grpc: received message larger than max ({size} vs. {limit})",
    )


def _gunzip(content: bytes, limit: int) -> bytes:
    """Decompress at most `limit` octets, however much `content` would expand to."""
    inflater = zlib.decompressobj(_GZIP_WINDOW_BITS)
    try:
        message = inflater.decompress(content, limit + 1)
    except zlib.error as error:
        raise CallFault(Status.INTERNAL, f"message is not gzip: {error}") from error
    if len(message) > limit:
        raise CallFault(
            Status.RESOURCE_EXHAUSTED,
            f"grpc: received message after decompression larger than max {limit}",
        )
    if not inflater.eof or inflater.unused_data:
        raise CallFault(Status.INTERNAL, "gzip message cut short or with a tail")
    return message


def framed(message: bytes) -> bytes:
    """A message with its length prefix, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def framed_all(messages: list[bytes]) -> bytes:
    """Messages in a row, each with its prefix."""
    heads = {size: b"\0" + size.to_bytes(4, "big") for size in set(map(len, messages))}
    return b"".join([heads[len(message)] + message for message in messages])
