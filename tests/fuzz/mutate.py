"""Ways to spoil bytes: blind ones, and ones that know msgpack, JSON or lines of text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import orjson

Spoil = Callable[[random.Random, bytes], bytes]
"""Makes other bytes out of given ones; everything random comes from the generator."""

BYTES_MAX = 64 * 1024
"""No spoilt input is longer than this, or than what it was made of."""

NUMBERS = (
    0, 1, 2, 7, 8, 15, 16, 31, 32, 127, 128, 255, 256, 4095, 4096, 4097, 32_767, 32_768, 65_535,
    65_536, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**53, 2**62, 2**63 - 1, 2**63,
    2**64 - 1,
)  # fmt: skip


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_early(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(min(len(data), 64))] ^= 1 << rng.randrange(8)


def _byte(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(rng: random.Random, data: bytearray) -> None:
    """A length or an index becomes another, often a huge one."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return
    at = rng.randrange(len(data) - size + 1)
    order = rng.choice(("little", "big"))
    old = int.from_bytes(data[at : at + size], order)
    number = old + rng.choice((-8, -1, 1, 8)) if rng.random() < 0.4 else rng.choice(NUMBERS)
    data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, order)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _remove(rng: random.Random, data: bytearray) -> None:
    if data:
        at = rng.randrange(len(data))
        del data[at : at + rng.choice((1, 1, 2, 4, 8, 64, 4096))]


def _double(rng: random.Random, data: bytearray) -> None:
    if data:
        at = rng.randrange(len(data))
        piece = bytes(data[at : at + rng.choice((1, 2, 8, 64, 1024))])
        data[at:at] = piece * rng.choice((1, 1, 2, 50))


def _move(rng: random.Random, data: bytearray) -> None:
    if len(data) > 1:
        at, size = rng.randrange(len(data)), rng.choice((1, 4, 8, 64, 1024))
        piece = bytes(data[at : at + size])
        del data[at : at + size]
        to = rng.randrange(len(data) + 1)
        data[to:to] = piece


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 8, 40)))


def _zeros(rng: random.Random, data: bytearray) -> None:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 4, 8, 512, 4096))
    data[at : at + size] = bytes(size)


BLIND: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip, _flip, _flip_early, _byte, _number, _number, _cut, _remove, _double, _move, _insert,
    _zeros,
)  # fmt: skip


def blind(rng: random.Random, data: bytes) -> bytes:
    """Spoilt without knowing what it is."""
    work = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(BLIND)(rng, work)
    return bytes(work[: max(BYTES_MAX, len(data))])


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one and the end of another."""
    spliced = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    return spliced[: max(BYTES_MAX, len(data), len(other))]


# -- trees: msgpack and JSON ---------------------------------------------------------------------


def _scalar(rng: random.Random) -> Any:
    return rng.choice(
        (
            None, True, False, 0, 1, -1, 5, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
            1.5, float("nan"), float("inf"), "", "a", "\0", "x" * 300, "\u00e9",
            rng.randrange(2000),
        )
    )  # fmt: skip


def _any(rng: random.Random, text_only: bool) -> Any:
    roll = rng.random()
    if roll < 0.6:
        return _scalar(rng)
    if roll < 0.7 and not text_only:
        return rng.randbytes(rng.choice((0, 1, 12, 32, 300)))
    if roll < 0.73 and not text_only:
        return msgpack.ExtType(rng.randrange(128), rng.randbytes(rng.choice((0, 4, 8))))
    if roll < 0.85:
        return [_scalar(rng) for _ in range(rng.choice((0, 1, 2, 5, 100)))]
    if roll < 0.95:
        return {f"k{n}": _scalar(rng) for n in range(rng.choice((0, 1, 3)))}
    nested: Any = _scalar(rng)
    for _ in range(rng.choice((3, 30, 300, 500))):
        nested = [nested]
    return nested


def _change(rng: random.Random, node: Any, text_only: bool) -> Any:
    """Another tree, different in one place."""
    if isinstance(node, list | tuple) and node and rng.random() < 0.85:
        items = list(node)
        at = rng.randrange(len(items))
        roll = rng.random()
        if roll < 0.7:
            items[at] = _change(rng, items[at], text_only)
        elif roll < 0.8:
            del items[at]
        elif roll < 0.9:
            items.insert(at, rng.choice((items[at], _any(rng, text_only))))
        else:
            to = rng.randrange(len(items))
            items[at], items[to] = items[to], items[at]
        return items
    if isinstance(node, dict) and node and rng.random() < 0.85:
        entries = dict(node)
        name = rng.choice(sorted(entries, key=str))
        roll = rng.random()
        if roll < 0.75:
            entries[name] = _change(rng, entries[name], text_only)
        elif roll < 0.87:
            del entries[name]
        else:
            entries[f"{name}x"] = entries[name]
        return entries
    if isinstance(node, int) and not isinstance(node, bool) and rng.random() < 0.5:
        return rng.choice((node + 1, node - 1, -node, node * 2, rng.choice(NUMBERS)))
    if isinstance(node, bytes) and node and rng.random() < 0.5:
        return blind(rng, node)
    return _any(rng, text_only)


def _bomb(rng: random.Random) -> bytes:
    """Arrays in arrays, each of which says that it is long."""
    depth = rng.choice((3, 100, 1000))
    head = rng.choice((b"\xdc\xff\xff", b"\xdd\x00\x00\x10\x00", b"\xdd\x7f\xff\xff\xff"))
    return head * depth


def msgpack_tree(prefix: int = 0) -> Spoil:
    """Spoils one value inside msgpack that begins after `prefix` bytes."""

    def spoil(rng: random.Random, data: bytes) -> bytes:
        head, body = data[:prefix], data[prefix:]
        if rng.random() < 0.03:
            # Large enough in itself to be let through, yet announcing far more.
            bomb = _bomb(rng)
            return head + bomb + bytes(rng.choice((0, len(bomb), 5000)))
        try:
            tree = msgpack.unpackb(body, strict_map_key=False)
            for _ in range(rng.choice((1, 1, 2))):
                tree = _change(rng, tree, False)
            packed: bytes = msgpack.packb(tree)
        except (ValueError, TypeError, OverflowError):
            return blind(rng, data)
        return head + packed

    return spoil


def json_tree(rng: random.Random, data: bytes) -> bytes:
    """Spoils one value inside a JSON document."""
    try:
        tree = orjson.loads(data)
        for _ in range(rng.choice((1, 1, 2))):
            tree = _change(rng, tree, True)
        return orjson.dumps(tree)
    except (orjson.JSONDecodeError, TypeError):
        return blind(rng, data)


def tokens(words: Sequence[bytes]) -> Spoil:
    """Puts words that mean something where they may not belong."""

    def spoil(rng: random.Random, data: bytes) -> bytes:
        for _ in range(rng.choice((1, 1, 2, 4))):
            word = rng.choice(words)
            at = rng.randrange(len(data) + 1)
            behind = at + rng.choice((0, 0, 0, len(word), rng.randrange(30)))
            data = data[:at] + word + data[behind:]
        return data

    return spoil


def lines(rng: random.Random, data: bytes) -> bytes:
    """Doubles, drops or swaps whole lines."""
    parts = data.split(b"\n")
    at, to = rng.randrange(len(parts)), rng.randrange(len(parts))
    roll = rng.randrange(4)
    if roll == 0:
        parts.insert(at, parts[to])
    elif roll == 1:
        del parts[at]
    elif roll == 2:
        parts[at], parts[to] = parts[to], parts[at]
    else:
        parts[at] = parts[at] * rng.choice((2, 20, 500))
    return b"\n".join(parts)
