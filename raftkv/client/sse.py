"""A parser of server-sent events (WHATWG HTML, section 9.2), without I/O.

Feed bytes as they come, take whole events out. Lines may be cut anywhere, inside a UTF-8
character too; an event that was not ended by a blank line is never given out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raftkv.client.errors import BadAnswer

EVENT_BYTES_MAX = 64 * 1024 * 1024
"""Largest event accepted; a bound against an endpoint that never ends a line."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event; `id` is None when the event has none of its own."""

    name: str
    data: bytes
    id: str | None


class EventParser:
    """Bytes in, events out. Raises `BadAnswer` for an event over `EVENT_BYTES_MAX`."""

    __slots__ = ("_buffer", "_data", "_id", "_name", "_size")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._name = ""
        self._id: str | None = None
        self._size = 0

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """Add bytes and yield every event that they complete. Exhaust it before feeding more."""
        # What was kept has no line end in it; to look again would cost the square of a long line.
        start, look = 0, len(self._buffer)
        self._buffer += data
        while (end := self._buffer.find(b"\n", look)) >= 0:
            line = bytes(self._buffer[start:end]).removesuffix(b"\r")
            start = look = end + 1
            if (event := self._line(line)) is not None:
                yield event
        del self._buffer[:start]
        if len(self._buffer) + self._size > EVENT_BYTES_MAX:
            raise BadAnswer("an event of the stream is larger than any member sends")

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            event = None
            if self._data:
                event = ServerEvent(self._name or "message", b"\n".join(self._data), self._id)
            self._data, self._name, self._id, self._size = [], "", None, 0
            return event
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        self._size += len(line)
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        return None
