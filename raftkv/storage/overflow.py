"""Keys longer than LMDB allows (511 bytes), in exact byte order; shorter ones pay nothing.

A key of at most SLICE_BYTES (510) stands in its table as it is. Of a longer key the first 510 bytes
P stand there once, as the marker P + 00 (511 bytes, which no other key has), whose value names a
layer. The layer's rows live in one shared table, under layer id (8 bytes) + the rest of the key:
at most 502 bytes as they are, longer ones again through a marker. So a layer is a slice of every
key that shares the bytes before it, and the layers make a trie.

Order holds: P itself sorts before P + 00, everything behind the marker starts with P, and no key
of at most 510 bytes lies between P + 00 and the next key that does not start with P. A layer is
never empty: the last row that goes takes its marker along, upwards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import lmdb

SLICE_BYTES: Final = 510
MARKER_BYTES: Final = 511
ID_BYTES: Final = 8
LAYER_SLICE_BYTES: Final = SLICE_BYTES - ID_BYTES
FEW_ROWS: Final = 16
RUN_BYTES_MAX: Final = 256 * 1024
"""What a list of rows may take, if those to come are as the last one."""
_NAME: Final = itemgetter(0)

Row = tuple[bytes, bytes]
Database = Any
"""lmdb's handle of one table; its type has no public name."""


def get(txn: lmdb.Transaction[bytes], db: Database, layers: Database, key: bytes) -> bytes | None:
    """The value of a key longer than SLICE_BYTES."""
    layer = txn.get(key[:SLICE_BYTES] + b"\0", None, db)
    at = SLICE_BYTES
    while layer is not None and len(key) - at > LAYER_SLICE_BYTES:
        layer = txn.get(layer + key[at : at + LAYER_SLICE_BYTES] + b"\0", None, layers)
        at += LAYER_SLICE_BYTES
    return None if layer is None else txn.get(layer + key[at:], None, layers)


def put(
    txn: lmdb.Transaction[bytes], db: Database, layers: Database, key: bytes, value: bytes
) -> None:
    """Write a key longer than SLICE_BYTES."""
    fresh = 0
    marker, home, at = key[:SLICE_BYTES] + b"\0", db, SLICE_BYTES
    while True:
        layer = txn.get(marker, None, home)
        if layer is None:
            fresh = fresh + 1 if fresh else _unused_layer(txn, layers)
            layer = fresh.to_bytes(ID_BYTES, "big")
            txn.put(marker, layer, db=home)
        if len(key) - at <= LAYER_SLICE_BYTES:
            txn.put(layer + key[at:], value, db=layers)
            return
        marker, home = layer + key[at : at + LAYER_SLICE_BYTES] + b"\0", layers
        at += LAYER_SLICE_BYTES


def delete(txn: lmdb.Transaction[bytes], db: Database, layers: Database, key: bytes) -> bool:
    """Remove a key longer than SLICE_BYTES, and every layer that it leaves empty."""
    path: list[tuple[bytes, Database, bytes]] = []
    marker, home, at = key[:SLICE_BYTES] + b"\0", db, SLICE_BYTES
    while True:
        layer = txn.get(marker, None, home)
        if layer is None:
            return False
        path.append((marker, home, layer))
        if len(key) - at <= LAYER_SLICE_BYTES:
            break
        marker, home = layer + key[at : at + LAYER_SLICE_BYTES] + b"\0", layers
        at += LAYER_SLICE_BYTES
    if not txn.delete(layer + key[at:], b"", layers):
        return False
    for marker, home, layer in reversed(path):
        with txn.cursor(layers) as cursor:
            if cursor.set_range(layer) and cursor.key().startswith(layer):
                break
        txn.delete(marker, b"", home)
    return True


def _unused_layer(txn: lmdb.Transaction[bytes], layers: Database) -> int:
    with txn.cursor(layers) as cursor:
        return int.from_bytes(cursor.key()[:ID_BYTES], "big") + 1 if cursor.last() else 1


def scan(
    txn: lmdb.Transaction[bytes], db: Database, layers: Database, start: bytes, end: bytes | None
) -> Iterator[Row]:
    """Rows of [start, end), ascending."""
    cursor = txn.cursor(db)
    long = len(start) > SLICE_BYTES
    if not (cursor.set_range(start[:SLICE_BYTES] + b"\0" if long else start) if start else True):
        return iter(())
    return chain.from_iterable(_runs(txn, layers, cursor, start, end))


def _runs(
    txn: lmdb.Transaction[bytes],
    layers: Database,
    cursor: lmdb.Cursor[bytes],
    start: bytes,
    end: bytes | None,
) -> Iterator[Iterable[Row]]:
    """The rows from where the cursor stands: the first few one by one, and more of them in lists,
    which takes no step of ours for each.

    No more is read ahead than was read.
    """
    rows = cursor.iternext()
    yield _one_by_one(txn, layers, islice(rows, FEW_ROWS), start, end)
    if end is not None and cursor.key() >= end:
        return
    if txn.stat(layers)["entries"]:
        yield _one_by_one(txn, layers, rows, start, end)
        return
    size = FEW_ROWS
    while run := list(islice(rows, size)):
        if end is not None and run[-1][0] >= end:
            yield run[: bisect_left(run, end, key=_NAME)]
            return
        yield run
        size = _next_size(run)


def _next_size(run: list[Row]) -> int:
    return max(1, min(2 * len(run), RUN_BYTES_MAX // (len(run[-1][1]) + 1)))


def _one_by_one(
    txn: lmdb.Transaction[bytes],
    layers: Database,
    rows: Iterator[Row],
    start: bytes,
    end: bytes | None,
) -> Iterator[Row]:
    for row in rows:
        key = row[0]
        if end is not None and key >= end:
            return
        if len(key) == MARKER_BYTES:
            piece = key[:SLICE_BYTES]
            low, high = _inner(piece, start, end)
            yield from _scan_layer(txn, layers, row[1], piece, low, high)
        else:
            yield row


def _scan_layer(
    txn: lmdb.Transaction[bytes],
    layers: Database,
    layer: bytes,
    prefix: bytes,
    start: bytes,
    end: bytes | None,
) -> Iterator[Row]:
    """Rows of one layer; `start` and `end` are what is left of the bounds behind `prefix`."""
    cursor = txn.cursor(layers)
    if not cursor.set_range(layer + _bound(start)):
        return
    for key, value in cursor.iternext():
        if not key.startswith(layer):
            return
        rest = key[ID_BYTES:]
        if end is not None and rest >= end:
            return
        if len(key) == MARKER_BYTES:
            piece = rest[:LAYER_SLICE_BYTES]
            low, high = _inner(piece, start, end)
            yield from _scan_layer(txn, layers, value, prefix + piece, low, high)
        else:
            yield prefix + rest, value


def scan_reverse(
    txn: lmdb.Transaction[bytes], db: Database, layers: Database, start: bytes, end: bytes | None
) -> Iterator[Row]:
    """Rows of [start, end), descending."""
    cursor = txn.cursor(db)
    if end is None:
        found = cursor.last()
    elif len(end) > SLICE_BYTES:
        found = _seek_last(cursor, end[:SLICE_BYTES] + b"\0", inclusive=True)
    else:
        found = _seek_last(cursor, end, inclusive=False) if end else False
    if not found:
        return iter(())
    return chain.from_iterable(_runs_reverse(txn, layers, cursor, start, end))


def _runs_reverse(
    txn: lmdb.Transaction[bytes],
    layers: Database,
    cursor: lmdb.Cursor[bytes],
    start: bytes,
    end: bytes | None,
) -> Iterator[Iterable[Row]]:
    """As `_runs`, downwards."""
    rows = cursor.iterprev()
    yield _one_by_one_reverse(txn, layers, islice(rows, FEW_ROWS), start, end)
    if cursor.key() < start:
        return
    if txn.stat(layers)["entries"]:
        yield _one_by_one_reverse(txn, layers, rows, start, end)
        return
    size = FEW_ROWS
    while run := list(islice(rows, size)):
        if run[-1][0] < start:
            run.reverse()
            yield run[bisect_left(run, start, key=_NAME) :][::-1]
            return
        yield run
        size = _next_size(run)


def _one_by_one_reverse(
    txn: lmdb.Transaction[bytes],
    layers: Database,
    rows: Iterator[Row],
    start: bytes,
    end: bytes | None,
) -> Iterator[Row]:
    for row in rows:
        key = row[0]
        if len(key) == MARKER_BYTES:
            piece = key[:SLICE_BYTES]
            if key < start and not start.startswith(piece):
                return
            low, high = _inner(piece, start, end)
            yield from _scan_layer_reverse(txn, layers, row[1], piece, low, high)
        elif key < start:
            return
        else:
            yield row


def _scan_layer_reverse(
    txn: lmdb.Transaction[bytes],
    layers: Database,
    layer: bytes,
    prefix: bytes,
    start: bytes,
    end: bytes | None,
) -> Iterator[Row]:
    cursor = txn.cursor(layers)
    if end is None:
        behind = (int.from_bytes(layer, "big") + 1).to_bytes(ID_BYTES, "big")
        found = _seek_last(cursor, behind, inclusive=False)
    else:
        found = _seek_last(cursor, layer + _bound(end), inclusive=len(end) > LAYER_SLICE_BYTES)
    if not found:
        return
    for key, value in cursor.iterprev():
        if not key.startswith(layer):
            return
        rest = key[ID_BYTES:]
        if len(key) == MARKER_BYTES:
            piece = rest[:LAYER_SLICE_BYTES]
            if rest < start and not start.startswith(piece):
                return
            low, high = _inner(piece, start, end)
            yield from _scan_layer_reverse(txn, layers, value, prefix + piece, low, high)
        elif rest < start:
            return
        else:
            yield prefix + rest, value


def _bound(key: bytes) -> bytes:
    """Where a bound stands inside a layer: itself, or the marker that it is behind."""
    return key if len(key) <= LAYER_SLICE_BYTES else key[:LAYER_SLICE_BYTES] + b"\0"


def _inner(piece: bytes, start: bytes, end: bytes | None) -> tuple[bytes, bytes | None]:
    """The bounds of [start, end) as they apply behind the marker of `piece`."""
    low = start[len(piece) :] if start.startswith(piece) else b""
    high = end[len(piece) :] if end is not None and end.startswith(piece) else None
    return low, high


def _seek_last(cursor: lmdb.Cursor[bytes], key: bytes, *, inclusive: bool) -> bool:
    """Place the cursor on the last row below `key`, or on `key` itself with `inclusive`."""
    if not cursor.set_range(key):
        return cursor.last()
    return True if inclusive and cursor.key() == key else cursor.prev()
