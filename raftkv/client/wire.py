"""Text and bytes on their way to and from the HTTP API; pure.

Keys are `str` in results. A key that is not UTF-8 comes out as file names do in Python: bytes
that are no text become lone surrogates (PEP 383), so every key survives the way in and out.
Values are always `bytes`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, quote_from_bytes

import orjson

from raftkv.client.errors import BadAnswer
from raftkv.errors import InvalidRequest

Text = str | bytes
"""A key or value as the caller may give it; `str` stands for its UTF-8 bytes."""


def to_bytes(text: Text) -> bytes:
    """The bytes of a key or value, undoing the surrogates of `key_text`."""
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)


def key_text(key: bytes) -> str:
    """A key as `str`; bytes that are not UTF-8 become lone surrogates."""
    return key.decode("utf-8", "surrogateescape")


def key_path(key: Text) -> str:
    """The path of a key, each byte that is special in a URL percent-encoded."""
    raw = to_bytes(key)
    if not raw:
        raise InvalidRequest("a key must have at least one byte")
    quoted = quote_from_bytes(raw, safe="/")
    # Dot segments would be folded away by URL parsers on the way (RFC 3986, 5.2.4).
    if "." in quoted:
        quoted = "/".join(
            part.replace(".", "%2E") if part in (".", "..") else part for part in quoted.split("/")
        )
    return f"/api/kv/{quoted}"


def segment(text: str) -> str:
    """One path segment, ``/`` included in what is encoded."""
    if not text:
        raise InvalidRequest("a name in the path must not be empty")
    return text.replace(".", "%2E") if text in (".", "..") else quote(text, safe="")


def query(parameters: Mapping[str, object]) -> str:
    """A query string with its ``?``; None and False are left out and True becomes 1."""
    parts = [
        f"{name}={quote('1' if value is True else str(value), safe='')}"
        for name, value in parameters.items()
        if value is not None and value is not False
    ]
    return "?" + "&".join(parts) if parts else ""


def key_parameters(**keys: Text | None) -> dict[str, object]:
    """Query parameters for keys, in base64 as soon as one of them is not text."""
    given = {name: to_bytes(key) for name, key in keys.items() if key is not None}
    try:
        return {name: key.decode() for name, key in given.items()}
    except UnicodeDecodeError:
        encoded: dict[str, object] = {
            name: base64.b64encode(key).decode() for name, key in given.items()
        }
        return {**encoded, "key_encoding": "base64"}


def key_fields(**keys: Text | None) -> dict[str, Any]:
    """The same for JSON bodies."""
    return key_parameters(**keys)


def value_fields(value: Text, name: str = "value") -> dict[str, Any]:
    """A value in a JSON body: as text when it is text, else in base64."""
    raw = to_bytes(value)
    try:
        return {name: raw.decode()}
    except UnicodeDecodeError:
        return {name: base64.b64encode(raw).decode(), "encoding": "base64"}


def decode(text: Any, encoding: Any) -> bytes:
    """The bytes of a key or value in an answer."""
    if not isinstance(text, str):
        raise BadAnswer(f"the answer holds {text!r} where text belongs")
    if encoding == "base64":
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise BadAnswer(f"the answer holds broken base64: {error}") from error
    return text.encode()


@contextmanager
def understood() -> Iterator[None]:
    """Turn what values of unexpected types or shapes raise into `BadAnswer`.

    To be put around code that only picks an answer apart.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadAnswer(f"the answer holds something unexpected: {error!r}") from error


def dumps(value: Any) -> bytes:
    """JSON as UTF-8."""
    return orjson.dumps(value)


def loads(data: bytes) -> dict[str, Any]:
    """A JSON object; raises `BadAnswer` for anything else."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadAnswer(f"the answer is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadAnswer("the answer is not a JSON object")
    return value
