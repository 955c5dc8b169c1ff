"""Permissions in JSON: whose keys or services, and what for."""

from __future__ import annotations

import base64
from typing import Any, Final

from raftkv.api.http.codec import decode_text, text_or_base64
from raftkv.api.http.fields import Field
from raftkv.api.http.handling import KEY_ENCODING, prefix_end
from raftkv.api.http.router import Param
from raftkv.errors import InvalidRequest
from raftkv.machine.access import FIRST_KEY, Permission, PermissionKind, service_interval
from raftkv.machine.records import CATALOG, USER_KEYS

ACCESS: Final = {
    "read": PermissionKind.READ,
    "write": PermissionKind.WRITE,
    "readwrite": PermissionKind.READWRITE,
}
WORDS: Final = {kind: word for word, kind in ACCESS.items()}
ENCODINGS: Final = ("utf-8", "base64")

_KEYS: Final = {
    "key": "One key.",
    "prefix": "Keys that begin with this; empty: all keys.",
    "start": "First key, inclusive.",
    "end": "Last key, exclusive. Absent or empty: to the end.",
}
_SERVICES: Final = {
    "service": "The instances of one service.",
    "service_prefix": "Services whose names begin with this; empty: all services.",
}

GRANT: Final = (
    Field("access", "text", "`read`, `write` or `readwrite`.", required=True),
    *(Field(name, "text", doc) for name, doc in (_KEYS | _SERVICES).items()),
    Field("key_encoding", "text", "How keys are given: `utf-8` or `base64`.", default="utf-8"),
)
"""Fields of a grant. Exactly one of `key`, `prefix`, `start`/`end`, `service`, `service_prefix`."""

RANGE: Final = (
    *(Param(name, "key", doc) for name, doc in _KEYS.items()),
    *(Param(name, "text", doc) for name, doc in _SERVICES.items()),
    KEY_ENCODING,
)
"""The same as query parameters."""

Range = tuple[int, bytes, bytes | None]
"""Keyspace and interval."""


def access_kind(word: str) -> PermissionKind:
    """The kind that a word stands for. Raises InvalidRequest."""
    if word not in ACCESS:
        raise InvalidRequest(
            f"access must be one of {', '.join(ACCESS)}, not {word[:64]!r}", field="access"
        )
    return ACCESS[word]


def granted_range(body: dict[str, Any]) -> Range:
    """The range in the fields of `GRANT`. Raises InvalidRequest."""
    encoding = body["key_encoding"]
    if encoding not in ENCODINGS:
        raise InvalidRequest(f"key_encoding must be one of {', '.join(ENCODINGS)}")
    given: dict[str, Any] = {name: body[name] for name in _SERVICES}
    for name in _KEYS:
        text = body[name]
        given[name] = None if text is None else decode_text(text, encoding, name)
    return read_range(given)


def read_range(given: dict[str, Any]) -> Range:
    """The one range that is given: keys as bytes, services as text. Raises InvalidRequest."""
    bounds = given["start"] is not None or given["end"] is not None
    named = [
        name for name in ("key", "prefix", "service", "service_prefix") if given[name] is not None
    ]
    if len(named) + bounds != 1:
        raise InvalidRequest(
            "Give exactly one of key, prefix, start and end, service, or service_prefix"
        )
    if bounds:
        return USER_KEYS, given["start"] or FIRST_KEY, given["end"] or b""
    name, value = named[0], given[named[0]]
    if name == "key":
        return USER_KEYS, value, None
    if name == "service":
        if not value:
            raise InvalidRequest("service is empty; for all of them give an empty service_prefix")
        return CATALOG, *service_interval(value)
    prefix = value.encode() if name == "service_prefix" else value
    return USER_KEYS if name == "prefix" else CATALOG, prefix or FIRST_KEY, prefix_end(prefix)


def permission_json(permission: Permission) -> dict[str, Any]:
    """The API's `Permission` object, in the words of a grant."""
    keyspace, kind, start, end = permission
    shown: dict[str, Any] = {"access": WORDS[kind]}
    whole = start == FIRST_KEY and end == b""
    if keyspace == CATALOG:
        return shown | _services_json(start, end, whole)
    texts: dict[str, bytes]
    if whole:
        texts = {"prefix": b""}
    elif end is None:
        texts = {"key": start}
    elif end and prefix_end(start) == end:
        texts = {"prefix": start}
    else:
        texts = {"start": start, "end": end}
    encoded = {name: text_or_base64(value) for name, value in texts.items()}
    if any(encoding != "utf-8" for _, encoding in encoded.values()):
        shown["key_encoding"] = "base64"
        encoded = {
            name: (base64.b64encode(value).decode(), "base64") for name, value in texts.items()
        }
    return shown | {name: text for name, (text, _) in encoded.items()}


def _services_json(start: bytes, end: bytes | None, whole: bool) -> dict[str, Any]:
    if whole:
        return {"service_prefix": ""}
    if start.endswith(b"\0") and end == start[:-1] + b"\1":
        return {"service": start[:-1].decode("utf-8", "backslashreplace")}
    return {"service_prefix": start.decode("utf-8", "backslashreplace")}
