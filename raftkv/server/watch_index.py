"""Which watched ranges hold a key: dictionaries for single keys and prefixes, a tree for the rest.

A writer asks once for every event, so the common answers ("nobody", "this one key", "this one
prefix") take a dictionary look-up each, however many ranges are watched.

Pure: no clock, no I/O.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

TO_THE_END: Final = b""
"""As the end of a range: up to the last key of the keyspace."""


PREFIX_LENGTHS_MAX: Final = 32
"""A writer tries each prefix length in use, so past this many the tree takes the newcomers."""

_MASK: Final = (1 << 64) - 1


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`; may be `TO_THE_END`."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return TO_THE_END
    return stripped[:-1] + bytes((stripped[-1] + 1,))


class RangeIndex(Generic[T]):
    """Values by watched range of one keyspace. One value a range; see `add`.

    A range is (start, None) for the single key `start`, (start, TO_THE_END), or the half-open
    interval (start, end) with start < end.
    """

    __slots__ = ("_keys", "_lengths", "_prefixes", "_size", "_tree")

    def __init__(self) -> None:
        self._keys: dict[bytes, T] = {}
        self._prefixes: dict[int, dict[bytes, T]] = {}
        self._lengths: list[tuple[int, dict[bytes, T]]] = []
        self._tree: IntervalTree[T] = IntervalTree()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, start: bytes, end: bytes | None, value: T) -> None:
        """Hold `value` under a range that is not in the index yet."""
        self._size += 1
        if end is None:
            self._keys[start] = value
            return
        if end == prefix_end(start):
            known = self._prefixes.get(len(start))
            if known is None and len(self._prefixes) < PREFIX_LENGTHS_MAX:
                known = self._prefixes[len(start)] = {}
                self._lengths = sorted(self._prefixes.items())
            if known is not None:
                known[start] = value
                return
        self._tree.add(start, end, value)

    def discard(self, start: bytes, end: bytes | None) -> None:
        """Forget a range that is in the index."""
        self._size -= 1
        if end is None:
            del self._keys[start]
            return
        known = self._prefixes.get(len(start))
        if known is None or start not in known or end != prefix_end(start):
            self._tree.discard(start, end)
            return
        del known[start]
        if not known:
            del self._prefixes[len(start)]
            self._lengths = sorted(self._prefixes.items())

    def find(self, key: bytes) -> list[T]:
        """The values of all ranges that hold `key`, in no promised order."""
        found: list[T] = []
        value = self._keys.get(key)
        if value is not None:
            found.append(value)
        for length, prefixes in self._lengths:
            if length > len(key):
                break
            value = prefixes.get(key[:length])
            if value is not None:
                found.append(value)
        if self._tree.root is not None:
            self._tree.find(key, found)
        return found


class _Node(Generic[T]):
    __slots__ = ("end", "end_max", "left", "priority", "right", "start", "value")

    def __init__(self, start: bytes, end: bytes, value: T, priority: int) -> None:
        self.start = start
        self.end = end
        self.value = value
        self.priority = priority
        self.end_max = end
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None


def _mixed(number: int) -> int:
    """The finishing step of SplitMix64, a bijection of 64-bit integers that looks random."""
    mixed = number * 0x9E3779B97F4A7C15 & _MASK
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK
    return mixed ^ (mixed >> 31)


def _later(left: bytes, right: bytes) -> bytes:
    if left == TO_THE_END or right == TO_THE_END:
        return TO_THE_END
    return max(left, right)


def _refresh(node: _Node[T]) -> None:
    end_max = node.end
    if node.left is not None:
        end_max = _later(end_max, node.left.end_max)
    if node.right is not None:
        end_max = _later(end_max, node.right.end_max)
    node.end_max = end_max


class IntervalTree(Generic[T]):
    """Half-open intervals of keys, each with a value, found by a key they hold.

    A treap (Seidel and Aragon 1996) ordered by (start, end), in which each node knows the latest
    end beneath it: `add` and `discard` take O(log n), `find` O((1 + found) log n). Priorities come
    from a mixed counter (Steele, Lea and Flood 2014), so that equal histories give equal trees.
    """

    __slots__ = ("_sequence", "root")

    def __init__(self) -> None:
        self.root: _Node[T] | None = None
        self._sequence = 0

    def add(self, start: bytes, end: bytes, value: T) -> None:
        """Hold `value` under an interval that is not in the tree yet."""
        self._sequence += 1
        self.root = self._insert(self.root, _Node(start, end, value, _mixed(self._sequence)))

    def discard(self, start: bytes, end: bytes) -> None:
        """Forget an interval that is in the tree."""
        self.root = self._remove(self.root, (start, end))

    def find(self, key: bytes, found: list[T]) -> None:
        """Append the values of all intervals that hold `key` to `found`."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node is None or (node.end_max != TO_THE_END and node.end_max <= key):
                continue
            stack.append(node.left)
            if node.start <= key:
                if node.end == TO_THE_END or key < node.end:
                    found.append(node.value)
                stack.append(node.right)

    def _insert(self, root: _Node[T] | None, node: _Node[T]) -> _Node[T]:
        if root is None:
            return node
        if node.priority > root.priority:
            node.left, node.right = self._split(root, (node.start, node.end))
            _refresh(node)
            return node
        if (node.start, node.end) < (root.start, root.end):
            root.left = self._insert(root.left, node)
        else:
            root.right = self._insert(root.right, node)
        _refresh(root)
        return root

    def _split(
        self, root: _Node[T] | None, at: tuple[bytes, bytes]
    ) -> tuple[_Node[T] | None, _Node[T] | None]:
        if root is None:
            return None, None
        if (root.start, root.end) < at:
            root.right, after = self._split(root.right, at)
            _refresh(root)
            return root, after
        before, root.left = self._split(root.left, at)
        _refresh(root)
        return before, root

    def _remove(self, root: _Node[T] | None, at: tuple[bytes, bytes]) -> _Node[T] | None:
        if root is None:
            raise KeyError(at)
        here = (root.start, root.end)
        if here == at:
            return self._join(root.left, root.right)
        if at < here:
            root.left = self._remove(root.left, at)
        else:
            root.right = self._remove(root.right, at)
        _refresh(root)
        return root

    def _join(self, before: _Node[T] | None, after: _Node[T] | None) -> _Node[T] | None:
        if before is None:
            return after
        if after is None:
            return before
        if before.priority > after.priority:
            before.right = self._join(before.right, after)
            _refresh(before)
            return before
        after.left = self._join(before, after.left)
        _refresh(after)
        return after
