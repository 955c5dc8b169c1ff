"""The index of watched ranges against a plain list of them."""

from __future__ import annotations

import random

import pytest

from raftkv.server.watch_index import (
    PREFIX_LENGTHS_MAX,
    TO_THE_END,
    IntervalTree,
    RangeIndex,
    prefix_end,
)

Range = tuple[bytes, bytes | None]


def holds(watched: Range, key: bytes) -> bool:
    start, end = watched
    if end is None:
        return key == start
    return start <= key and (end == TO_THE_END or key < end)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"", TO_THE_END),
        (b"a", b"b"),
        (b"a\xff", b"b"),
        (b"\xff\xff", TO_THE_END),
        (b"a\x00", b"a\x01"),
    ],
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


def random_range(rng: random.Random) -> Range:
    start = bytes(rng.choices(b"\x00ab\xff", k=rng.randrange(4)))
    pick = rng.randrange(4)
    if pick == 0:
        return start, None
    if pick == 1:
        return start, prefix_end(start)
    if pick == 2:
        return start, TO_THE_END
    end = bytes(rng.choices(b"\x00ab\xff", k=rng.randrange(1, 4)))
    return (start, end) if start < end else (start, None)


@pytest.mark.parametrize("seed", range(20))
def test_finds_what_a_list_finds(seed: int) -> None:
    rng = random.Random(seed)
    index: RangeIndex[Range] = RangeIndex()
    known: set[Range] = set()
    for _ in range(400):
        watched = random_range(rng)
        if watched in known:
            index.discard(*watched)
            known.discard(watched)
        elif rng.random() < 0.7:
            index.add(*watched, watched)
            known.add(watched)
        key = bytes(rng.choices(b"\x00ab\xff", k=rng.randrange(5)))
        found = index.find(key)
        assert len(found) == len(set(found))
        assert set(found) == {watched for watched in known if holds(watched, key)}
    assert len(index) == len(known)
    for watched in sorted(known, key=repr):
        index.discard(*watched)
    assert len(index) == 0
    assert index.find(b"a") == []


def test_many_prefix_lengths_overflow_into_the_tree_and_are_found_alike() -> None:
    index: RangeIndex[int] = RangeIndex()
    lengths = range(1, PREFIX_LENGTHS_MAX * 2)
    for length in lengths:
        index.add(b"a" * length, prefix_end(b"a" * length), length)
    assert sorted(index.find(b"a" * 40)) == list(range(1, 41))
    assert index._tree.root is not None
    for length in lengths:
        index.discard(b"a" * length, prefix_end(b"a" * length))
    assert index.find(b"a" * 40) == []
    assert index._tree.root is None


def test_the_tree_stays_shallow_when_filled_in_order() -> None:
    tree: IntervalTree[int] = IntervalTree()
    for number in range(4096):
        key = number.to_bytes(4, "big")
        tree.add(key, key + b"x", number)

    def depth(node: object) -> int:
        return 0 if node is None else 1 + max(depth(node.left), depth(node.right))  # type: ignore[attr-defined]

    assert depth(tree.root) < 60
    found: list[int] = []
    tree.find((77).to_bytes(4, "big"), found)
    assert found == [77]


def test_forgetting_an_unknown_interval_is_an_error() -> None:
    tree: IntervalTree[int] = IntervalTree()
    tree.add(b"a", b"c", 1)
    with pytest.raises(KeyError):
        tree.discard(b"a", b"d")
