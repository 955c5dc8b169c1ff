"""Request header sections (RFC 9113 section 8): validation, done once for each distinct block."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.grpc.header_blocks import Fields

if TYPE_CHECKING:
    from raftkv.api.grpc.connection import ServerConnection, Stream

_PSEUDO: Final = {b":method": 0, b":scheme": 1, b":path": 2, b":authority": 3}
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_BAD_NAME: Final = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9a-z]").search
_BAD_VALUE: Final = re.compile(rb"[\0\n\r]|\A[ \t]|[ \t]\Z").search


class RequestHead:
    """One request's header section, checked. Shared by every request that sent the same block.

    `malformed` is empty, or says which rule the section breaks; then only `fields` is meaningful.
    `opens` builds the stream that serves the request; the application sets it.
    """

    __slots__ = (
        "authority",
        "content_length",
        "fields",
        "malformed",
        "method",
        "opens",
        "oversized",
        "path",
        "prompt",
        "scheme",
    )

    opens: Callable[[ServerConnection, int, Any], Stream]

    def __init__(self, fields: Fields, *, oversized: bool = False) -> None:
        self.fields = fields
        self.prompt = False
        """Whether the stream is told (`opened`) before any content arrives."""
        self.oversized = oversized
        self.method = self.scheme = self.path = self.authority = b""
        self.content_length = -1
        """What the client announced, or -1."""
        self.malformed = self._check()

    @property
    def regular(self) -> Fields:
        """The fields that are not pseudo-header fields, in order."""
        return [field for field in self.fields if not field[0].startswith(b":")]

    def _check(self) -> str:
        pseudo: list[bytes | None] = [None, None, None, None]
        host: bytes | None = None
        regular = False
        for name, value in self.fields:
            if _BAD_VALUE(value):
                return "field value with a forbidden character"
            if name[:1] == b":":
                slot = _PSEUDO.get(name)
                if regular or slot is None or pseudo[slot] is not None:
                    return "unknown, repeated or late pseudo-header field"
                pseudo[slot] = value
                continue
            regular = True
            if not name or _BAD_NAME(name):
                return "field name with a forbidden character"
            if name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
                return "connection-specific field"
            if name == b"host":
                host = value
            elif name == b"content-length" and not self._content_length(value):
                return "bad content-length"
        if self.oversized:
            return ""
        method, scheme, path, authority = pseudo
        if authority is not None and host is not None and authority.lower() != host.lower():
            return "host differs from :authority"
        self.authority = authority or host or b""
        if method == b"CONNECT":
            self.method = method
            return "" if authority and scheme is None and path is None else "bad CONNECT"
        if not method or not scheme or not path:
            return "missing pseudo-header field"
        if path[:1] != b"/" and not (path == b"*" and method == b"OPTIONS"):
            return "path neither absolute nor *"
        self.method, self.scheme, self.path = method, scheme, path
        return ""

    def _content_length(self, value: bytes) -> bool:
        if not value.isdigit() or len(value) > 18:
            return False
        length = int(value)
        agrees = self.content_length in (-1, length)
        self.content_length = length
        return agrees


def trailers_fault(fields: Fields) -> str:
    """Empty, or why `fields` cannot be a trailer section (section 8.1)."""
    for name, value in fields:
        if not name or _BAD_NAME(name):  # a colon is forbidden too: no pseudo-header fields
            return "bad trailer field name"
        if _BAD_VALUE(value):
            return "bad trailer field value"
        if name in _CONNECTION_SPECIFIC:
            return "connection-specific trailer field"
    return ""
