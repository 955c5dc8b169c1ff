"""Protocol Buffers encoding of `mvccpb.KeyValue` and `mvccpb.Event`, by hand.

Stored records carry the encoded KeyValue, so that every door that speaks this form only joins
bytes. Encoding rules: https://protobuf.dev/programming-guides/encoding/ (proto3: zero fields are
left out, numbers are base-128 varints).
"""

from __future__ import annotations

from typing import Final

SHORT: Final = tuple(bytes((n,)) for n in range(128))
"""The one-byte varints."""


def varint(n: int) -> bytes:
    """`n` (0 <= n < 2**64) as a base-128 varint."""
    if n < 128:
        return SHORT[n]
    if n < 16_384:
        return bytes((n & 127 | 128, n >> 7))
    if n < 2_097_152:
        return bytes((n & 127 | 128, n >> 7 & 127 | 128, n >> 14))
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def varint_size(n: int) -> int:
    """The number of bytes of `varint(n)`."""
    return 1 if n < 128 else (n.bit_length() + 6) // 7


def event_wire(deleted: bool, key_value: bytes) -> bytes:
    """An encoded `mvccpb.Event` (type = 1, kv = 2) around an encoded KeyValue."""
    head = b"\x08\x01\x12" if deleted else b"\x12"
    return b"".join((head, varint(len(key_value)), key_value))
