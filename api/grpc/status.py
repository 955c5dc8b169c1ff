"""gRPC over HTTP/2, its small grammars: status, messages, timeouts, metadata.

Source: the gRPC project's PROTOCOL-HTTP2 document.
"""

from __future__ import annotations

import base64
import binascii
import re
from enum import IntEnum
from functools import lru_cache
from typing import Final

from raftkv import limits
from raftkv.api.grpc.header_blocks import Fields, encode

Metadata = list[tuple[str, str | bytes]]
"""Custom metadata in order; values of names ending in ``-bin`` are bytes, all others text."""


class Status(IntEnum):
    """The canonical gRPC codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def label(self) -> str:
        """As Go calls it, and with it metrics and texts of errors: ``DeadlineExceeded``."""
        return _LABELS.get(self) or self.name.title().replace("_", "")


_LABELS: Final = {Status.OK: "OK", Status.CANCELLED: "Canceled"}
_OK_HEADERS: Final = [(b":status", b"200"), (b"content-type", b"application/grpc")]
HEADERS_BLOCK: Final = encode(_OK_HEADERS)
"""The header section of every answer without initial metadata of its own."""
OK_TRAILERS_BLOCK: Final = encode([(b"grpc-status", b"0")])

_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS: Final = {
    b"H": 3600.0,
    b"M": 60.0,
    b"S": 1.0,
    b"m": 1e-3,
    b"u": 1e-6,
    b"n": 1e-9,
}
_UNPRINTABLE: Final = re.compile(rb"[^ -$&-~]")
_METADATA_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_METADATA_VALUE: Final = re.compile(r"[ -~]*")
_TRANSPORT_NAMES: Final = frozenset((b"te", b"content-type", b"content-length", b"host"))


def parse_timeout(value: bytes) -> float | None:
    """Seconds of a ``grpc-timeout`` value; None when it breaks the grammar."""
    match = _TIMEOUT.fullmatch(value)
    return None if match is None else int(match[1]) * _UNIT_SECONDS[match[2]]


def percent_encode(text: str) -> bytes:
    """A status message as it goes on the wire: UTF-8, all but printable ASCII escaped, bounded."""
    raw = text.encode("utf-8", "replace")
    if len(raw) > limits.GRPC_STATUS_MESSAGE_BYTES_MAX:
        raw = raw[: limits.GRPC_STATUS_MESSAGE_BYTES_MAX].decode("utf-8", "ignore").encode()
    return _UNPRINTABLE.sub(lambda match: b"%%%02X" % match[0][0], raw)


def request_metadata(fields: Fields) -> Metadata:
    """The custom metadata of a request.

    Reserved ``grpc-`` names, pseudo-header fields and the transport's own are left out. A ``-bin``
    value may hold several, separated by commas; one that is not base64 is left out.
    """
    found: Metadata = []
    for name, value in fields:
        if name[:1] == b":" or name[:5] == b"grpc-" or name in _TRANSPORT_NAMES:
            continue
        key = name.decode("ascii", "replace")
        if not name.endswith(b"-bin"):
            found.append((key, value.decode("latin-1")))
            continue
        for part in value.split(b","):
            part = part.strip()
            try:
                raw = base64.b64decode(part + b"=" * (-len(part) % 4), validate=True)
            except binascii.Error:
                continue
            found.append((key, raw))
    return found


def metadata_fields(metadata: Metadata) -> Fields:
    """Custom metadata as header fields. Raises ValueError for what cannot be sent."""
    fields: Fields = []
    for name, value in metadata:
        if not _METADATA_NAME.fullmatch(name) or name.startswith("grpc-"):
            raise ValueError(f"bad metadata name {name!r}")
        if name.endswith("-bin"):
            raw = value.encode() if isinstance(value, str) else value
            fields.append((name.encode(), base64.b64encode(raw).rstrip(b"=")))
        elif isinstance(value, str) and _METADATA_VALUE.fullmatch(value):
            fields.append((name.encode(), value.strip(" ").encode()))
        else:
            raise ValueError(f"metadata {name!r} needs a printable ASCII value")
    return fields


def _status_fields(status: int, text: str, details: bytes) -> Fields:
    fields = [(b"grpc-status", b"%d" % status)]
    if text:
        fields.append((b"grpc-message", percent_encode(text)))
    if details:
        fields.append((b"grpc-status-details-bin", base64.b64encode(details).rstrip(b"=")))
    return fields


@lru_cache(maxsize=512)
def trailers_block(status: int, text: str = "", details: bytes = b"") -> bytes:
    """A trailer section after an answer's messages."""
    return encode(_status_fields(status, text, details))


@lru_cache(maxsize=512)
def trailers_only_block(status: int, text: str = "", details: bytes = b"") -> bytes:
    """A whole answer that has no message: headers and trailers in one section."""
    return encode(_OK_HEADERS + _status_fields(status, text, details))


def headers_block(metadata: Metadata) -> bytes:
    """A header section with initial metadata."""
    return encode(_OK_HEADERS + metadata_fields(metadata))


def trailers_block_with(status: int, text: str, metadata: Metadata, *, only: bool) -> bytes:
    """Trailers with custom metadata; `only` when nothing was sent before them."""
    head = _OK_HEADERS if only else []
    return encode(head + _status_fields(status, text, b"") + metadata_fields(metadata))


def http_refusal_block(http_status: int, status: int, text: str) -> bytes:
    """An answer to a request that is not gRPC, readable by gRPC clients too."""
    return encode(
        [
            (b":status", b"%d" % http_status),
            (b"content-type", b"application/grpc"),
            *_status_fields(status, text, b""),
        ]
    )
