"""JSON and text forms of what the store holds. Pure functions over bytes.

A key or a value that is UTF-8 is shown as text, any other as base64, and the answer says which.
Member, cluster and lease ids are 16 hexadecimal digits, because 64 bits do not fit a number of
every JSON reader.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

import orjson

from raftkv.errors import InvalidRequest

if TYPE_CHECKING:
    from raftkv.machine import Record

dump_json = orjson.dumps
"""Any JSON value to UTF-8 bytes, in one call of C."""

BROKEN_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
HEX_ID: Final = re.compile(r"[0-9A-Fa-f]{1,16}")
DECIMAL: Final = re.compile(r"[0-9]{1,19}")
INT64_MAX: Final = 2**63 - 1


def load_json(body: bytes) -> Any:
    """Parse a request body. Raises `InvalidRequest` with the place of the mistake."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None


def text_or_base64(data: bytes) -> tuple[str, str]:
    """`data` as a JSON string, and the name of the encoding: ``utf-8`` or ``base64``."""
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), "base64"


def decode_base64(text: str | bytes, what: str) -> bytes:
    """Standard or URL-safe alphabet, padded or not. Raises `InvalidRequest` naming `what`."""
    raw = text.encode() if isinstance(text, str) else text
    raw = raw.replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{what} is not valid base64") from None


def decode_text(text: str, encoding: str, what: str) -> bytes:
    """A JSON string with its declared encoding to bytes."""
    if encoding == "base64":
        return decode_base64(text, what)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} is not valid Unicode") from None


def unquote(data: bytes, what: str) -> bytes:
    """Undo percent-encoding. Raises `InvalidRequest` for a percent sign that encodes nothing."""
    if b"%" not in data:
        return data
    if BROKEN_PERCENT.search(data):
        raise InvalidRequest(f"{what} has a percent sign without two hexadecimal digits after it")
    return unquote_to_bytes(data)


def hex_id(number: int) -> str:
    """A member, cluster or lease id as the API shows it."""
    return f"{number:016x}"


def lease_name(lease: int) -> str | None:
    """A record's lease: its id, or null for none."""
    return f"{lease:016x}" if lease else None


def parse_hex_id(text: str, what: str) -> int:
    """An id as the API shows it, leading zeros optional; positive and within 63 bits for leases."""
    if not HEX_ID.fullmatch(text):
        raise InvalidRequest(f"{what} must be up to 16 hexadecimal digits, not {text[:64]!r}")
    return int(text, 16)


def parse_lease(text: str, what: str = "lease") -> int:
    """A lease id: 1 to 2^63-1."""
    lease = parse_hex_id(text, what)
    if not 1 <= lease <= INT64_MAX:
        raise InvalidRequest(f"{what} must be a lease id from 1 to 7fffffffffffffff")
    return lease


def record_json(record: Record) -> dict[str, Any]:
    """The API's `Record` object."""
    key, key_encoding = text_or_base64(record.key)
    value, encoding = text_or_base64(record.value)
    lease = record.lease
    shown: dict[str, Any] = {
        "key": key,
        "value": value,
        "encoding": encoding,
        "create_revision": record.create_revision,
        "mod_revision": record.mod_revision,
        "version": record.version,
        "lease": f"{lease:016x}" if lease else None,
    }
    if key_encoding != "utf-8":
        shown["key_encoding"] = key_encoding
    return shown


def key_json(record: Record) -> dict[str, Any]:
    """A `Record` without its value, for ``keys_only``."""
    key, key_encoding = text_or_base64(record.key)
    shown: dict[str, Any] = {
        "key": key,
        "create_revision": record.create_revision,
        "mod_revision": record.mod_revision,
        "version": record.version,
        "lease": lease_name(record.lease),
    }
    if key_encoding != "utf-8":
        shown["key_encoding"] = key_encoding
    return shown


CURSOR: Final = struct.Struct(">BQI")
CURSOR_VERSION: Final = 1


def encode_cursor(revision: int, query: bytes, position: bytes) -> str:
    """Where a page ended: the fixed revision, a check of the query, the next page's first key."""
    head = CURSOR.pack(CURSOR_VERSION, revision, zlib.crc32(query))
    return base64.urlsafe_b64encode(head + position).decode().rstrip("=")


def decode_cursor(cursor: str, query: bytes) -> tuple[int, bytes]:
    """The revision and the position in `cursor`. Raises `InvalidRequest` unless it came from an
    answer to the same `query`."""
    data = decode_base64(cursor, "cursor")
    if len(data) < CURSOR.size:
        raise InvalidRequest("cursor is not one that this store has given")
    version, revision, check = CURSOR.unpack_from(data)
    if version != CURSOR_VERSION or revision < 1 or revision > INT64_MAX:
        raise InvalidRequest("cursor is not one that this store has given")
    if check != zlib.crc32(query):
        raise InvalidRequest("cursor belongs to another query: repeat the one that gave it")
    return revision, data[CURSOR.size :]
