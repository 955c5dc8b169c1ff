"""Counting by blocks: as right as counting rows, and of far fewer of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from raftkv.errors import InvariantViolation
from raftkv.machine import commands as c
from raftkv.machine.counts import BEHIND_ROWS, FIRST_ROW, LiveCounts
from raftkv.machine.machine import Machine
from raftkv.machine.tables import CURRENT
from tests.unit.machine_support import Driver, MemoryTables

BLOCK = 8


class CountedTables(MemoryTables):
    """Tables that count the rows of CURRENT that were visited."""

    visited = 0

    @contextmanager
    def read(self) -> Iterator[Any]:
        with super().read() as view:
            scan = view.scan

            def counting(table: int, *bounds: bytes) -> Iterator[tuple[bytes, bytes]]:
                for row in scan(table, *bounds):
                    self.visited += table == CURRENT
                    yield row

            view.scan = counting  # type: ignore[method-assign]
            yield view


class Store(Driver):
    """A machine with blocks of BLOCK rows, and every state that it ever had."""

    def __init__(self) -> None:
        self.counted = CountedTables()
        super().__init__(self.counted)
        self.now: set[bytes] = set()
        self.states: dict[int, set[bytes]] = {1: set()}

    def opened(self) -> Machine:
        return Machine(self.tables, block_rows=BLOCK)

    def write(self, *commands: c.Command) -> Any:
        applied = self.batch(*commands)
        by_revision: dict[int, list[Any]] = {}
        for event in applied.events:
            by_revision.setdefault(event.revision, []).append(event)
        for revision, events in by_revision.items():
            for event in events:
                (self.now.discard if event.deleted else self.now.add)(event.key)
            self.states[revision] = set(self.now)
        return applied.results[-1]

    def fill(self, numbers: range) -> None:
        for number in numbers:
            self.write(c.put(key(number), b"v"))

    def count(self, start: bytes, end: bytes, **options: Any) -> int:
        found: int = self.machine.range(start, end, count_only=True, **options).count or 0
        return found

    def expected(self, start: bytes, end: bytes, revision: int = 0) -> int:
        keys = self.states[revision or self.machine.revision]
        return sum(start <= key and (not end or key < end) for key in keys)

    def visits(self, start: bytes, end: bytes, **options: Any) -> int:
        before = self.counted.visited
        assert self.count(start, end, **options) == self.expected(
            start, end, options.get("revision", 0)
        )
        return self.counted.visited - before


def key(number: int) -> bytes:
    return b"%05d" % number


def test_the_second_count_visits_two_blocks_at_most() -> None:
    store = Store()
    store.fill(range(1000))
    assert store.visits(key(100), key(900)) == 800
    assert store.visits(key(100), key(900)) == 0
    assert store.visits(key(133), key(877)) <= 4 * BLOCK
    assert store.visits(key(500), b"") <= 2 * BLOCK + 100


def test_an_update_changes_nothing_and_a_new_key_costs_one_block_at_old_revisions() -> None:
    store = Store()
    store.fill(range(0, 1000, 2))
    store.visits(key(1), b"")
    store.visits(key(1), b"")
    before = store.machine.revision
    for number in range(0, 1000, 2):
        store.write(c.put(key(number), b"w"))
    assert store.visits(key(10), b"") <= 2 * BLOCK
    assert store.visits(key(10), b"", revision=before) <= 2 * BLOCK
    store.write(c.put(key(501), b"new"))
    store.write(c.delete(key(600)))
    assert store.visits(key(10), b"") <= 2 * BLOCK
    assert store.visits(key(10), b"", revision=before) <= 6 * BLOCK


def test_a_page_counts_what_is_behind_it_by_blocks() -> None:
    store = Store()
    store.fill(range(1000))
    store.visits(key(1), b"")
    for reverse in (False, True):
        before = store.counted.visited
        found = store.machine.range(key(1), b"", limit=5, want_count=True, reverse=reverse)
        assert found.count == 999
        assert store.counted.visited - before <= 6 + 2 * BLOCK


def test_deleted_rows_do_not_make_a_block_slow() -> None:
    store = Store()
    store.fill(range(1000))
    store.write(c.delete(key(0), key(990)))
    assert store.visits(key(1), b"") == 999
    assert store.visits(key(1), b"") <= 2 * BLOCK


def test_compaction_joins_blocks_whose_rows_are_gone() -> None:
    store = Store()
    store.fill(range(1000))
    store.visits(key(1), b"")
    blocks = store.machine._counts.blocks
    assert 1000 // (2 * BLOCK) <= blocks <= 1000 // BLOCK + 2
    store.write(c.delete(key(0), key(990)))
    store.write(c.put(key(0), b"v"))
    store.write(c.compact(store.machine.revision))
    while store.machine.compact_step(100):
        pass
    assert store.machine._counts.blocks <= 4
    assert store.visits(key(1), b"") <= 2 * BLOCK


def test_slices_skip_what_is_known() -> None:
    store = Store()
    store.fill(range(1000))
    start, steps, total = key(1), 0, 0
    while start is not None:
        found = store.machine.range(start, b"", count_only=True, examine_max=100)
        total += found.count or 0
        start = found.resume
        steps += 1
    assert (total, steps) == (999, 10)
    found = store.machine.range(key(1), b"", count_only=True, examine_max=100)
    assert (found.count, found.more) == (999, False)


def test_what_a_failed_write_would_have_changed_is_not_remembered() -> None:
    store = Store()
    store.fill(range(100))
    store.visits(key(1), b"")
    store.tables.fail_after = 20
    with pytest.raises(OSError):
        store.batch(*(c.put(key(number), b"v") for number in range(200, 230)))
    store.tables.fail_after = None
    assert store.visits(key(1), b"") <= 2 * BLOCK


def test_transactions_count_what_their_own_batch_wrote() -> None:
    store = Store()
    store.fill(range(0, 200, 2))
    store.visits(key(1), b"")
    store.visits(key(1), b"")
    count = c.range_op(key(1), b"", count_only=True)
    revision = store.machine.revision
    old = c.range_op(key(1), b"", count_only=True, revision=revision)
    result = store.write(
        c.put(key(101), b"v"),
        c.delete(key(50), key(60)),
        c.txn([], [c.put_op(key(3), b"v"), count, old]),
    )
    assert [response.count for response in result.responses[1:]] == [99 + 1 - 5 + 1, 99]
    store.visits(key(1), b"")


@pytest.mark.parametrize("seed", range(8))
def test_counts_agree_with_the_states_in_random_walks(seed: int) -> None:
    r = random.Random(seed)
    store = Store()
    compacted, blocks = 1, 0
    for _ in range(600):
        roll = r.random()
        if roll < 0.5:
            first = r.randrange(1000)
            store.write(*(c.put(key(n), b"v") for n in range(first, first + r.randint(1, 12))))
        elif roll < 0.62:
            first = r.randrange(1000)
            store.write(c.delete(key(first), key(first + r.choice((1, 5, 100)))))
        elif roll < 0.64:
            lease = r.randint(1, 1 << 40)
            store.write(c.lease_grant(lease, 60))
            store.write(*(c.put(key(r.randrange(1000)), b"v", lease=lease) for _ in range(5)))
            if r.random() < 0.8:
                store.write(c.lease_revoke(lease))
        elif roll < 0.66:
            compacted = r.randint(compacted, store.machine.revision)
            store.write(c.compact(compacted))
            while store.machine.compact_step(r.randint(1, 50)) and r.random() < 0.9:
                pass
        elif roll < 0.67:
            store.machine = store.opened()
        else:
            start, end = sorted(key(r.randrange(1020)) for _ in range(2))
            revision = r.choice((0, r.randint(compacted, store.machine.revision)))
            end = r.choice((end, b""))
            if start != end:
                expected = store.expected(start, end, revision)
                assert store.count(start, end, revision=revision) == expected
                found = store.machine.range(
                    start, end, revision=revision, limit=r.randint(1, 40), want_count=True,
                    reverse=r.random() < 0.5,
                )  # fmt: skip
                assert found.count == expected
                blocks = max(blocks, store.machine._counts.blocks)
    assert store.machine.revision > 300
    assert blocks > 10


def test_a_visit_that_contradicts_a_count_is_a_bug() -> None:
    counts = LiveCounts(3, 1)
    with pytest.raises(InvariantViolation):
        counts.learn(FIRST_ROW, BEHIND_ROWS, [(FIRST_ROW, 4)], 4)
    with pytest.raises(InvariantViolation):
        counts.learn(FIRST_ROW, BEHIND_ROWS, [(FIRST_ROW, 2)], 2)
