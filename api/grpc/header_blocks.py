"""HPACK (RFC 7541): a decoder that says what a block depends on, and an encoder without a table.

Clients repeat header blocks byte for byte once their dynamic table is settled, so the connection
remembers what a block meant. That is right only if the decoder tells three things apart, which is
why it is written here, over the tables and the Huffman code of the `hpack` package:

- a block that read only literals and the static table means the same for ever;
- a block that read the dynamic table means the same until the table changes;
- a block that changed the table (an insertion, a size update) must be decoded every time.

Replies never use the dynamic table: their blocks are constants or literals, valid on every
connection.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

Field = tuple[bytes, bytes]
Fields = list[Field]

STATIC_TABLE: Final[tuple[Field, ...]] = tuple(HeaderTable.STATIC_TABLE)
STATIC_ENTRIES: Final = len(STATIC_TABLE)
ENTRY_OVERHEAD_BYTES: Final = 32
"""What an entry counts beyond its octets (RFC 7541 section 4.1)."""

_INTEGER_BYTES_MAX: Final = 5

FOREVER: Final = 0
UNTIL_CHANGE: Final = 1
NEVER: Final = 2


class HeaderBlockError(Exception):
    """A header block that cannot be decoded: the connection's compression state is lost."""


class HeaderDecoder:
    """The dynamic table of one direction of one connection.

    After `decode`, `keeps` says how long the result may be remembered (`FOREVER`, `UNTIL_CHANGE`,
    `NEVER`), and `oversized` that the list was larger than `list_bytes_max` by RFC 9113 section
    6.5.2's measure: its fields are then cut off, but the table is right and the connection lives.
    """

    __slots__ = (
        "_entries",
        "_limit",
        "_size",
        "_table_bytes",
        "keeps",
        "list_bytes_max",
        "oversized",
    )

    def __init__(self, table_bytes: int, list_bytes_max: int) -> None:
        self._entries: deque[Field] = deque()
        self._size = 0
        self._table_bytes = table_bytes
        self._limit = table_bytes
        self.list_bytes_max = list_bytes_max
        self.keeps = FOREVER
        self.oversized = False

    @property
    def table_bytes(self) -> int:
        """Octets of the dynamic table now, by the measure of RFC 7541 section 4.1."""
        return self._size

    def decode(self, block: bytes) -> Fields:
        """The fields of a whole block, in order. Raises `HeaderBlockError`."""
        self.keeps = FOREVER
        self.oversized = False
        try:
            return self._decode(block)
        except (IndexError, HPACKError) as error:
            raise HeaderBlockError(str(error) or "truncated header block") from error

    def _decode(self, block: bytes) -> Fields:
        fields: Fields = []
        at, end, list_bytes = 0, len(block), 0
        may_resize = True
        while at < end:
            first = block[at]
            if first & 0x80:
                if first == 0xFF:
                    index, at = _integer(block, at, 0x7F)
                else:
                    index, at = first & 0x7F, at + 1
                if 0 < index <= STATIC_ENTRIES:
                    field = STATIC_TABLE[index - 1]
                else:
                    field = self._dynamic(index)
            elif first & 0xE0 == 0x20:
                if not may_resize:
                    raise HeaderBlockError("table size update inside a block")
                size, at = _integer(block, at, 0x1F)
                self._resize(size)
                continue
            else:
                mask = 0x3F if first & 0x40 else 0x0F
                index, at = _integer(block, at, mask)
                if index == 0:
                    name, at = _string(block, at)
                elif index <= STATIC_ENTRIES:
                    name = STATIC_TABLE[index - 1][0]
                else:
                    name = self._dynamic(index)[0]
                value, at = _string(block, at)
                field = (name, value)
                if first & 0x40:
                    self._insert(field)
            may_resize = False
            list_bytes += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD_BYTES
            if list_bytes > self.list_bytes_max:
                self.oversized = True
            else:
                fields.append(field)
        return fields

    def _dynamic(self, index: int) -> Field:
        if self.keeps == FOREVER:
            self.keeps = UNTIL_CHANGE
        at = index - STATIC_ENTRIES - 1
        if not 0 <= at < len(self._entries):
            raise HeaderBlockError(f"no table entry {index}")
        return self._entries[at]

    def _insert(self, field: Field) -> None:
        self.keeps = NEVER
        self._size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD_BYTES
        self._entries.appendleft(field)
        self._evict()

    def _resize(self, size: int) -> None:
        self.keeps = NEVER
        if size > self._limit:
            raise HeaderBlockError(f"table size {size} above {self._limit}")
        self._table_bytes = size
        self._evict()

    def _evict(self) -> None:
        while self._size > self._table_bytes:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """RFC 7541 section 5.1: the number at `at`, and where it ends."""
    number = block[at] & mask
    at += 1
    if number < mask:
        return number, at
    shift = 0
    while shift < 7 * _INTEGER_BYTES_MAX:
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise HeaderBlockError("integer too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """RFC 7541 section 5.2: the string at `at`, and where it ends."""
    huffman = block[at] & 0x80
    size, at = _integer(block, at, 0x7F)
    stop = at + size
    if stop > len(block):
        raise HeaderBlockError("string beyond the block")
    text = block[at:stop]
    return (decode_huffman(text) if huffman else text), stop


_STATIC_NAMES: Final = {name: at + 1 for at, (name, _) in reversed(list(enumerate(STATIC_TABLE)))}
_STATIC_FIELDS: Final = {field: at + 1 for at, field in enumerate(STATIC_TABLE)}


def _encode_integer(number: int, mask: int, pattern: int) -> bytes:
    if number < mask:
        return bytes((pattern | number,))
    encoded = bytearray((pattern | mask,))
    number -= mask
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def encode(fields: Fields) -> bytes:
    """A block of static indexes and literals without indexing: the same on every connection."""
    parts: list[bytes] = []
    for field in fields:
        index = _STATIC_FIELDS.get(field)
        if index is not None:
            parts.append(_encode_integer(index, 0x7F, 0x80))
            continue
        name, value = field
        index = _STATIC_NAMES.get(name)
        if index is not None:
            parts.append(_encode_integer(index, 0x0F, 0))
        else:
            parts += (b"\x00", _encode_integer(len(name), 0x7F, 0), name)
        parts += (_encode_integer(len(value), 0x7F, 0), value)
    return b"".join(parts)


TABLE_EMPTIED: Final = b"\x20"
"""A table size update to zero: what an encoder says once after the peer lowered the table size
(RFC 7541 section 4.2)."""
