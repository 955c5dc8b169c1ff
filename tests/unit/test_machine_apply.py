"""Applying entries: order, atomicity, determinism, compaction, history and the hash."""

from __future__ import annotations

import gc
import random
import weakref
from hashlib import blake2b
from typing import Any

import msgpack
import pytest

from raftkv.errors import (
    Compacted,
    Corrupt,
    CorruptionError,
    FormatError,
    FutureRevision,
    InvariantViolation,
    LeaseNotFound,
    MemberExists,
    MemberNotFound,
    NoSpace,
    Refused,
)
from raftkv.machine import Machine, MemberChange, MemberInfo
from raftkv.machine import commands as c
from raftkv.machine.cluster import LEVEL_ROW
from raftkv.machine.draft import MARK
from raftkv.machine.machine import HASHES_KEPT
from raftkv.machine.records import CAUSE_REQUEST, DELETE, U64, USER_KEYS
from raftkv.machine.tables import META, Table
from tests.unit.machine_support import Driver, MemoryTables


def some_commands(seed: int, count: int) -> list[bytes]:
    """Commands of every kind, the refused among them."""
    rng = random.Random(seed)

    def key() -> bytes:
        return b"key%d" % rng.randrange(12)

    makers: list[Any] = [
        lambda: c.put(key(), b"v%d" % rng.randrange(99), lease=rng.choice([0, 0, 0, 1, 2])),
        lambda: c.put(key(), b"", ignore_value=True, prev=True),
        lambda: c.put(key(), b"once", once=b"o%d" % rng.randrange(5)),
        lambda: c.delete(key(), rng.choice([None, b"key4"]), prev=True),
        lambda: c.txn(
            [c.compare(2, 1, key(), rng.randrange(20))], [c.put_op(key(), b"t")],
            [c.delete_op(key()), c.range_op(b"", b"")], once=rng.choice([None, b"t"]),
        ),
        lambda: c.lease_grant(rng.randrange(1, 4), 10),
        lambda: c.lease_revoke(rng.randrange(1, 4)),
        lambda: c.lease_expire([1, 2], rng.choice([1, 1, 2])),
        lambda: c.service_register(
            "web", str(rng.randrange(3)), "h", rng.randrange(80, 82), ttl_seconds=9,
            lease=rng.randrange(10, 99), takeover=rng.random() < 0.5,
        ),
        lambda: c.service_drain("web", str(rng.randrange(3)), rng.random() < 0.5),
        lambda: c.service_deregister("web", str(rng.randrange(3))),
        lambda: c.member_update(1, name=f"m{rng.randrange(3)}"),
        lambda: c.alarm(1, 1, rng.random() < 0.3),
        lambda: c.compact(rng.randrange(60)),
    ]  # fmt: skip
    weights = [9, 2, 3, 3, 5, 2, 1, 1, 4, 1, 1, 1, 1, 1]
    return [make() for make in rng.choices(makers, weights, k=count)]


def describe(outcome: Any) -> Any:
    if isinstance(outcome, Refused):
        return type(outcome), outcome.message, outcome.facts
    return outcome


@pytest.mark.parametrize("seed", range(6))
def test_grouping_does_not_matter(seed: int) -> None:
    """One entry a call or many; equal results, events, hash and tables, byte for byte."""
    rng = random.Random(seed)
    one = Driver()
    one.machine.bootstrap(1, 1, b"conf", [MemberInfo(1, "m", (), (), False)])
    commands = some_commands(seed, 300)
    outcomes = []
    while commands:
        size = rng.randint(1, 8)
        outcomes.append(one.batch(*commands[:size]))
        one.now_ms += rng.randrange(100_000)
        del commands[:size]
    for most in (3, 50, 1_000):
        other = Driver()
        other.machine.bootstrap(1, 1, b"conf", [MemberInfo(1, "m", (), (), False)])
        at = 0
        seen = []
        while at < len(one.log):
            size = rng.randint(1, most)
            seen.extend(other.machine.apply(one.log[at : at + size]))
            at += size
        assert other.machine.state_hash == one.machine.state_hash
        assert other.tables.dump() == one.tables.dump()
        for mine, theirs in zip(outcomes, seen, strict=True):
            assert [describe(o) for o in mine.results] == [describe(o) for o in theirs.results]
            assert (mine.events, mine.leases, mine.index) == (
                theirs.events, theirs.leases, theirs.index,
            )  # fmt: skip
        for index in range(len(one.log) + 2):
            assert one.machine.hash_at(index) == other.machine.hash_at(index)


@pytest.mark.parametrize("seed", range(3))
def test_members_at_different_points_of_compaction_agree(seed: int) -> None:
    """How far compaction has come is never seen: not in results, reads or hashes."""
    rng = random.Random(seed)
    drivers = [Driver(), Driver()]
    for command in some_commands(seed, 600):
        first, second = (describe(driver.do(command)) for driver in drivers)
        assert first == second
        lazy, eager = (driver.machine for driver in drivers)
        eager.compact_step(rng.randint(1, 30))
        if rng.random() < 0.02:
            lazy.compact_step(3)
        assert lazy.state_hash == eager.state_hash
        low = max(lazy.compact_revision, 1)
        at = rng.randint(low, lazy.revision)
        for keyspace in (0, 1):
            assert lazy.range(b"", b"", revision=at, keyspace=keyspace) == (
                eager.range(b"", b"", revision=at, keyspace=keyspace)
            )
        history = lazy.history(low, lazy.revision, 10**6)
        assert history == eager.history(low, eager.revision, 10**6)
        for event in history:
            assert lazy.previous(event) == eager.previous(event)


def test_the_hash_covers_what_the_tables_say() -> None:
    """Two logs that differ in anything lasting differ in their hash."""
    variants = [
        [c.put(b"k", b"v")],
        [c.put(b"k", b"w")],
        [c.put(b"j", b"v")],
        [c.put(b"k", b"v", keyspace=2)],
        [c.put(b"k", b"v", once=b"o")],
        [c.put(b"k", b"v", once=b"p")],
        [c.put(b"k", b"v"), c.delete(b"k")],
        [c.put(b"k", b"v"), c.compact(2)],
        [c.lease_grant(1, 10)],
        [c.lease_grant(2, 10)],
        [c.lease_grant(1, 11)],
        [c.lease_grant(1, 10), c.lease_revoke(1)],
        [c.lease_grant(1, 10), c.put(b"k", b"v", lease=1)],
        # The same key goes, for another reason.
        [c.lease_grant(1, 10), c.put(b"k", b"v", lease=1), c.lease_revoke(1)],
        [c.lease_grant(1, 10), c.put(b"k", b"v", lease=1), c.lease_expire([1], 1)],
        [c.alarm(1, 1, True)],
        [c.alarm(2, 1, True)],
        [c.delete(b"nothing")],
    ]
    hashes = set()
    for commands in variants:
        driver = Driver()
        driver.machine.bootstrap(1, 1, b"", [member(1)])
        driver.batch(*commands)
        hashes.add(driver.machine.state_hash)
    assert len(hashes) == len(variants)
    for conf in (b"x", b"y"):
        machine = Machine(MemoryTables())
        machine.apply_config(1, 1, conf)
        hashes.add(machine.state_hash)
    machine = Machine(MemoryTables())
    machine.apply_config(1, 1, b"x", MemberChange(add=(MemberInfo(1, "n", (), (), False),)))
    hashes.add(machine.state_hash)
    for index in (5, 6):
        machine = Machine(MemoryTables())
        machine.bootstrap(index, 1, b"conf", [])
        hashes.add(machine.state_hash)
    assert len(hashes) == len(variants) + 5


def test_entries_are_applied_once_and_in_order() -> None:
    driver = Driver()
    for i in range(3):
        driver.ok(c.put(b"k", b"%d" % i))
    before = driver.tables.dump()
    for entry in (*driver.log, (5, 1, b""), (4, 0, b"")):
        with pytest.raises(InvariantViolation):
            driver.machine.apply([entry])
        with pytest.raises(InvariantViolation):
            driver.machine.apply([(4, 1, b""), (5, 1, b""), entry])
        with pytest.raises(InvariantViolation):
            driver.machine.apply_config(entry[0], entry[1], b"conf")
    assert driver.tables.dump() == before
    assert driver.machine.applied_index == 3


def test_the_hash_of_a_large_delete_is_that_of_its_events_together() -> None:
    """It is made piece by piece; where the pieces end is never seen."""
    driver = Driver()
    keys = [b"%05d" % number for number in range(10_000)]
    for key in keys:
        driver.ok(c.put(key, b""))
    machine = driver.machine
    before = machine.state_hash
    driver.ok(c.delete(b"0", b"1"))
    events = machine.history(machine.revision, machine.revision, 10**6)
    assert [(event.key, event.sub) for event in events] == [(k, n) for n, k in enumerate(keys)]
    digest = blake2b(before, digest_size=len(before))
    digest.update(U64.pack(machine.applied_index))
    for event in events:
        wire = event.record.wire
        digest.update(MARK.pack(DELETE, USER_KEYS, CAUSE_REQUEST, len(wire)) + wire)
    assert machine.state_hash == digest.digest()
    assert machine.keys == 0


def test_a_no_op_moves_the_index_and_the_hash() -> None:
    machine = Machine(MemoryTables())
    empty = machine.state_hash
    (applied,) = machine.apply([(1, 1, b"")])
    assert (applied.origin, applied.results, applied.events) == (0, [], [])
    assert (machine.applied_index, machine.applied_term, machine.revision) == (1, 1, 1)
    assert machine.state_hash != empty
    assert machine.apply([]) == []


def test_a_batch_carries_its_origin() -> None:
    machine = Machine(MemoryTables())
    data = c.stamp_batch(c.encode_batch(5, 2**63, 7, [c.put(b"k", b"v")]), 1_234)
    (applied,) = machine.apply([(1, 3, data)])
    assert (applied.index, applied.term) == (1, 3)
    assert (applied.origin, applied.boot, applied.sequence) == (5, 2**63, 7)
    assert machine.clock_ms == 1_234
    assert "PutResult" in repr(applied)


def test_one_bad_command_does_not_disturb_the_others() -> None:
    driver = Driver()
    applied = driver.batch(
        c.put(b"a", b"1"), c.put(b"b", b"2", lease=9), c.compact(99), c.put(b"c", b"3")
    )
    assert [type(o) for o in applied.results[1:3]] == [LeaseNotFound, FutureRevision]
    assert [e.revision for e in applied.events] == [2, 3]
    assert driver.machine.revision == 3


def test_a_refusal_keeps_nothing_alive() -> None:
    driver = Driver()
    refusal = driver.do(c.put(b"b", b"2", lease=9))
    assert refusal.__traceback__ is None
    assert refusal.__context__ is None
    first = driver.do(c.put(b"b", b"", ignore_value=True, once=b"o"))
    assert first.__traceback__ is None
    gone = weakref.ref(refusal)
    del refusal, first
    driver.applied = None
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("writes", range(0, 30, 3))
def test_a_failure_in_the_middle_leaves_nothing(writes: int) -> None:
    driver = Driver()
    driver.batch(c.lease_grant(1, 10), c.put(b"a", b"1", lease=1), c.put(b"b", b"2"))
    before, state_hash = driver.tables.dump(), driver.machine.state_hash
    entries = [
        driver.entry(
            c.put(b"a", b"2"), c.lease_revoke(1), c.alarm(1, 1, True), c.delete(b"b"),
            c.lease_grant(5, 5, once=b"o"),
            c.service_register("s", "i", "h", 1, ttl_seconds=5, lease=6),
        )
    ]  # fmt: skip
    driver.tables.fail_after = writes
    try:
        driver.machine.apply(entries)
    except OSError:
        driver.tables.fail_after = None
        assert driver.tables.dump() == before
        assert (driver.machine.applied_index, driver.machine.state_hash) == (1, state_hash)
        assert driver.machine.alarms == frozenset()
        driver.machine.apply(entries)
    driver.tables.fail_after = None
    plain = Driver()
    plain.machine.apply(driver.log)
    plain.machine.apply(entries)
    assert plain.tables.dump() == driver.tables.dump()
    assert plain.machine.state_hash == driver.machine.state_hash


def test_a_failure_in_a_configuration_or_a_compaction_leaves_nothing() -> None:
    driver = Driver()
    for i in range(20):
        driver.ok(c.put(b"k", b"%d" % i))
    driver.ok(c.compact(20))
    before = driver.tables.dump()
    change = MemberChange(add=(MemberInfo(1, "n", (), (), False),))
    for act in (
        lambda: driver.machine.apply_config(22, 1, b"conf", change),
        lambda: driver.machine.compact_step(10),
    ):
        driver.tables.fail_after = 2
        with pytest.raises(OSError, match="gone"):
            act()
        driver.tables.fail_after = None
        assert driver.tables.dump() == before
    assert driver.machine.conf == b""
    assert driver.compact_all() > 1
    driver.machine.apply_config(22, 1, b"conf", change)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ([1, None], InvariantViolation),
        ([1, None, 0, b"k", b"v", 0, 0, 0], InvariantViolation),
        ([1, None, 0, "text", b"v", 0, 0], InvariantViolation),
        ([1, None, 9, b"k", b"v", 0, 0], InvariantViolation),
        ([1, None, 0, b"k", b"v", "9", 0], InvariantViolation),
        ([3, None], InvariantViolation),
        ([4, None, 0, [[9, 9, b"k", None, 0]], [], []], InvariantViolation),
        ([4, None, 0, [], [[1, b"k", b"1", 0, 0], [1, b"k", b"2", 0, 0]], []], InvariantViolation),
        ([5, None, float("nan")], InvariantViolation),
        ([9, b"once", "s"], InvariantViolation),
        ([13, None, 300, 1, True], InvariantViolation),
        ([99, None], FormatError),
        ([1], CorruptionError),
    ],
)
def test_what_no_builder_makes_stops_the_member_before_it_shows(
    command: list[Any], error: type[Exception]
) -> None:
    driver = Driver()
    driver.machine.bootstrap(1, 1, b"", [member(1)])
    driver.ok(c.put(b"k", b"old"))
    before = driver.tables.dump()
    good = driver.entry(c.put(b"x", b"1"))
    if len(command) > 3 and command[0] == 4 and command[3]:
        driver.ok(c.put(b"z", b""))
        good = driver.entry(c.put(b"x", b"1"))
        before = driver.tables.dump()
    bad = bytes(8) + msgpack.packb([1, 2, 3, [[1, None, 0, b"y", b"", 0, 0], command]])
    with pytest.raises(error):
        driver.machine.apply([good, (good[0] + 1, 1, bad)])
    assert driver.tables.dump() == before
    assert driver.machine.get(b"x") is None


def test_the_clock_never_goes_back() -> None:
    driver = Driver()
    for now_ms, expected in ((5_000, 5_000), (4_000, 5_000), (0, 5_000), (6_000, 6_000)):
        driver.now_ms = now_ms
        driver.ok(c.put(b"k", b"v"))
        assert driver.machine.clock_ms == expected


def test_hashes_are_kept_for_a_while() -> None:
    driver = Driver()
    kept = {0: driver.machine.state_hash}
    for _ in range(HASHES_KEPT + 10):
        driver.ok(c.put(b"k", b"v"))
        kept[driver.machine.applied_index] = driver.machine.state_hash
    assert len(set(kept.values())) == len(kept)
    newest = driver.machine.applied_index
    for index, digest in kept.items():
        expected = digest if index > newest - HASHES_KEPT else None
        assert driver.machine.hash_at(index) == expected
    assert driver.machine.hash_at(newest + 1) is None
    driver.machine.reload()
    assert driver.machine.hash_at(newest) == kept[newest]
    assert driver.machine.hash_at(newest - 1) is None


def test_tables_replaced_by_a_snapshot_are_read_again() -> None:
    driver = Driver()
    driver.machine.bootstrap(1, 1, b"conf", [member(7)])
    driver.batch(c.put(b"k", b"v"), c.alarm(1, 7, True))
    machine = Machine(MemoryTables())
    machine._tables.tables = driver.tables.tables  # type: ignore[attr-defined]
    machine.reload()
    assert (machine.applied_index, machine.revision, machine.conf) == (2, 2, b"conf")
    assert machine.state_hash == driver.machine.state_hash
    assert machine.alarms == {(1, 7)}


# ---- compaction and history --------------------------------------------------------------------


def churned() -> Driver:
    driver = Driver()
    driver.ok(c.lease_grant(1, 10))
    for i in range(300):
        key = b"k%d" % (i * 7 % 13)
        driver.ok(c.delete(key) if i % 5 == 4 else c.put(key, b"%d" % i))
    return driver


def test_compaction_changes_no_read_at_or_after_it() -> None:
    driver = churned()
    machine = driver.machine
    at = machine.revision // 2

    def reads() -> Any:
        return [
            [machine.range(b"", b"", revision=r) for r in range(at, machine.revision + 1)],
            machine.history(at, machine.revision, 10**6),
            machine.state_hash,
        ]

    before = reads()
    driver.ok(c.compact(at))
    assert machine.compaction_pending
    before[2] = machine.state_hash
    steps = 0
    while machine.compact_step(11):
        steps += 1
        assert reads() == before
    assert steps > 5
    assert reads() == before
    assert not machine.compaction_pending
    assert machine.compact_step() is False
    with pytest.raises(Compacted):
        machine.history(at - 1, machine.revision, 10)
    with pytest.raises(Compacted):
        machine.range(b"", b"", revision=at - 1)


def test_compaction_leaves_only_what_is_needed() -> None:
    driver = churned()
    driver.ok(c.compact(driver.machine.revision))
    driver.compact_all()
    current, history, versions = (
        driver.tables.tables[table] for table in (Table.CURRENT, Table.HISTORY, Table.VERSIONS)
    )
    # The event at the compaction revision stays, a deletion too.
    assert len(history) <= driver.machine.keys + 1
    assert not versions
    assert len(current) <= driver.machine.keys + 1
    driver.ok(c.put(b"new", b""))
    driver.ok(c.compact(driver.machine.revision))
    driver.compact_all()
    keys = driver.machine.keys
    assert (len(current), len(history), len(versions)) == (keys, keys, 0)


def copies(driver: Driver, value: bytes) -> int:
    """How often the tables hold `value`."""
    return sum(row.count(value) for table in driver.tables.tables for row in table.values())


def test_a_record_is_stored_once_as_the_newest_and_as_history() -> None:
    driver = Driver()
    driver.ok(c.put(b"a", b"<first>"))
    assert copies(driver, b"<first>") == 1
    driver.ok(c.put(b"a", b"<second>"))
    assert (copies(driver, b"<first>"), copies(driver, b"<second>")) == (1, 1)
    driver.ok(c.compact(3))
    driver.compact_all()
    assert (copies(driver, b"<first>"), copies(driver, b"<second>")) == (0, 1)
    driver.ok(c.delete(b"a"))
    before = driver.machine.get(b"a", revision=3)
    assert before and before.value == b"<second>"
    assert copies(driver, b"<second>") == 1
    driver.ok(c.compact(4))
    driver.compact_all()
    assert copies(driver, b"<second>") == 0


def test_so_is_a_deletion() -> None:
    driver = Driver()
    driver.ok(c.put(b"<key>", b""))
    driver.ok(c.delete(b"<key>"))
    history = driver.tables.tables[Table.HISTORY]
    assert copies(driver, b"<key>") == len(history) == 2
    assert driver.machine.get(b"<key>") is None
    driver.ok(c.put(b"<key>", b"again"))
    driver.ok(c.delete(b"<key>"))
    driver.ok(c.compact(driver.machine.revision))
    driver.ok(c.put(b"other", b""))
    driver.ok(c.compact(driver.machine.revision))
    driver.compact_all()
    assert copies(driver, b"<key>") == 0
    assert list(driver.tables.tables[Table.CURRENT]) == [b"\x00other"]


def test_members_of_the_first_level_find_whole_records() -> None:
    driver = Driver(level=0)
    driver.ok(c.put(b"a", b"<first>"))
    assert copies(driver, b"<first>") == 2
    driver.ok(c.cluster_level(1))
    driver.ok(c.put(b"b", b"<second>"))
    assert copies(driver, b"<second>") == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_level_at_which_something_was_written_is_never_seen(seed: int) -> None:
    """Stores that came to a level at different times agree, whatever compaction has taken."""
    rng = random.Random(seed)
    drivers = [Driver(level=0), Driver(), Driver(level=0)]
    raised_at = rng.randrange(100, 500)
    for number, command in enumerate(some_commands(seed, 600)):
        if number == raised_at:
            with drivers[2].tables.write() as writer:
                writer.put(META, LEVEL_ROW, U64.pack(1))
            drivers[2].machine.reload()
        first, second, third = (describe(driver.do(command)) for driver in drivers)
        assert first == second == third
        machines = [driver.machine for driver in drivers]
        for machine in machines:
            machine.compact_step(rng.randint(1, 30))
        assert len({machine.state_hash for machine in machines}) == 1
        low = max(machines[0].compact_revision, 1)
        at = rng.randint(low, machines[0].revision)
        for machine in machines[1:]:
            assert machine.range(b"", b"", revision=at) == machines[0].range(b"", b"", revision=at)
            history = machine.history(low, machine.revision, 10**6)
            assert history == machines[0].history(low, machine.revision, 10**6)
            for event in history:
                assert machine.previous(event) == machines[0].previous(event)


def test_a_pass_of_compaction_does_not_visit_what_the_one_before_has_left() -> None:
    driver = Driver()
    for number in range(200):
        driver.ok(c.put(b"%d" % number, b""))
    driver.ok(c.compact(driver.machine.revision))
    assert driver.compact_all(rows_max=10) > 15
    driver.ok(c.put(b"0", b""))
    driver.ok(c.compact(driver.machine.revision))
    assert driver.compact_all(rows_max=10) == 0
    assert len(driver.tables.tables[Table.HISTORY]) == 200


def test_a_stub_without_its_record_is_a_broken_invariant() -> None:
    driver = Driver()
    driver.ok(c.put(b"a", b"1"))
    driver.tables.tables[Table.HISTORY].clear()
    with pytest.raises(InvariantViolation, match="newest record"):
        driver.machine.get(b"a")


def test_events_at_the_compaction_revision_are_kept() -> None:
    """Deletions among them (etcd#18089)."""
    driver = Driver()
    driver.ok(c.put(b"a", b"1"))
    driver.ok(c.delete(b"a"))
    driver.ok(c.put(b"b", b"1"))
    driver.ok(c.compact(3))
    driver.compact_all()
    events = driver.machine.history(3, 9, 100)
    assert [(e.revision, e.key, e.deleted) for e in events] == [(3, b"a", True), (4, b"b", False)]
    # What they replaced is compacted.
    assert driver.machine.previous(events[0]) is None


def test_a_second_compaction_waits_for_the_first() -> None:
    driver = churned()
    driver.ok(c.compact(100))
    assert driver.machine.compact_step(5)
    driver.ok(c.compact(200))
    driver.machine = Machine(driver.tables)
    assert driver.machine.compact_step(10**6)
    assert not driver.machine.compact_step(10**6)
    assert driver.machine.history(200, 10**6, 1)[0].revision == 200
    assert min(driver.tables.tables[Table.VERSIONS].values())[4:] > (200).to_bytes(8, "big")


def test_compaction_is_refused_outside_of_history() -> None:
    driver = churned()
    newest = driver.machine.revision
    assert isinstance(driver.do(c.compact(0)), Compacted)
    assert isinstance(driver.do(c.compact(newest + 1)), FutureRevision)
    assert driver.ok(c.compact(newest)).compact_revision == newest
    refused = driver.do(c.compact(newest))
    assert isinstance(refused, Compacted)
    assert refused.facts == {"oldest_revision": newest}


def test_history_never_splits_a_revision() -> None:
    driver = Driver()
    for i in range(4):
        driver.ok(c.txn([], [c.put_op(b"k%d" % j, b"%d" % i) for j in range(3)]))
    machine = driver.machine
    assert [len(machine.history(2, 99, n)) for n in (1, 3, 4, 6, 7, 100)] == [3, 3, 6, 6, 9, 12]
    assert [e.revision for e in machine.history(3, 4, 100)] == [3] * 3 + [4] * 3
    assert machine.history(6, 99, 10) == []
    assert machine.history(5, 3, 10) == []
    assert len(machine.history(-5, 99, 100)) == 12


class CountingTables(MemoryTables):
    """Counts the rows that readers are given."""

    rows = 0

    def read(self) -> Any:
        owner = self
        context = super().read()

        class Counting:
            def __enter__(self) -> Any:
                view = context.__enter__()
                for name in ("scan", "scan_reverse"):
                    setattr(view, name, owner._counted(getattr(view, name)))
                return view

            def __exit__(self, *error: Any) -> Any:
                return context.__exit__(*error)

        return Counting()

    def _counted(self, scan: Any) -> Any:
        def counted(*args: Any) -> Any:
            for row in scan(*args):
                self.rows += 1
                yield row

        return counted


def test_a_hot_key_slows_no_range() -> None:
    """A page at an old revision visits two rows a key, however long histories are."""
    tables = CountingTables()
    driver = Driver(tables)
    for i in range(20):
        driver.ok(c.put(b"k%02d" % i, b"first"))
    at = driver.machine.revision
    for i in range(500):
        driver.ok(c.put(b"k%02d" % (3 if i % 2 else i % 20), b"%d" % i))
    for kwargs in ({}, {"reverse": True}):
        tables.rows = 0
        page = driver.machine.range(b"", b"", revision=at, limit=10, **kwargs)
        assert [r.value for r in page.records] == [b"first"] * 10
        assert tables.rows <= 2 * 11
    tables.rows = 0
    assert len(driver.machine.range(b"k05", b"", limit=5).records) == 5
    assert tables.rows <= 6
    tables.rows = 0
    assert driver.machine.range(b"", b"", count_only=True).count == 20
    assert tables.rows == 0


def test_deleted_keys_do_not_make_a_slice_long() -> None:
    tables = CountingTables()
    driver = Driver(tables)
    for i in range(100):
        driver.ok(c.put(b"k%03d" % i, b""))
    driver.ok(c.delete(b"", b"k099"))
    tables.rows = 0
    page = driver.machine.range(b"", b"", limit=1, examine_max=10)
    assert (page.records, page.more, page.resume) == ([], True, b"k010")
    assert tables.rows == 11


# ---- cluster -----------------------------------------------------------------------------------


def member(member_id: int, name: str = "", learner: bool = False, port: int = 0) -> MemberInfo:
    return MemberInfo(
        member_id, name, (f"http://h:{port or member_id}",), (f"http://c:{member_id}",), learner
    )


def test_members_follow_configuration_entries() -> None:
    driver = Driver()
    machine = driver.machine
    machine.bootstrap(1, 1, b"conf0", [member(1, "one"), member(2, "two")])
    assert machine.conf == b"conf0"
    assert machine.members() == [member(1, "one"), member(2, "two")]
    assert (machine.applied_index, machine.applied_term, machine.revision) == (1, 1, 1)
    assert machine.hash_at(1) == machine.state_hash
    assert Machine(driver.tables).state_hash == machine.state_hash
    with pytest.raises(InvariantViolation):
        machine.apply_config(1, 1, b"conf1", None)
    with pytest.raises(InvariantViolation):
        machine.bootstrap(1, 1, b"again", [])
    change = MemberChange(add=(member(3, "three"),), learners=(3,))
    applied = machine.apply_config(2, 1, b"conf2", change)
    (result,) = applied.results
    expected = [member(1, "one"), member(2, "two"), member(3, "three", learner=True)]
    assert machine.members() == expected
    assert result.members == [m.to_list() for m in expected]  # type: ignore[union-attr]
    machine.apply_config(3, 1, b"conf3", MemberChange(remove=(2,), learners=()))
    assert machine.members() == [member(1, "one"), member(3, "three")]
    assert (machine.conf, machine.applied_index) == (b"conf3", 3)
    again = Machine(driver.tables)
    assert (again.conf, again.members()) == (b"conf3", machine.members())


def test_a_member_changes_its_attributes() -> None:
    driver = Driver()
    driver.machine.bootstrap(1, 1, b"", [member(1), member(2)])
    result = driver.ok(c.member_update(2, name="two", client_urls=["http://new"]))
    assert driver.machine.members()[1] == MemberInfo(
        2, "two", ("http://h:2",), ("http://new",), False
    )
    assert result.members[1][1] == "two"
    same = driver.machine.state_hash
    driver.ok(c.member_update(2, peer_urls=["http://h:2"]))
    assert same != driver.machine.state_hash
    assert isinstance(driver.do(c.member_update(9, name="x")), MemberNotFound)
    assert isinstance(driver.do(c.member_update(2, peer_urls=["http://h:1"])), MemberExists)
    driver.ok(c.member_update(2, peer_urls=["http://h:3"]))
    assert driver.machine.members()[1].peer_urls == ("http://h:3",)


def test_a_full_store_refuses_what_grows_it() -> None:
    driver = Driver()
    driver.machine.bootstrap(1, 1, b"", [member(3), member(7)])
    driver.ok(c.put(b"k", b"v"))
    driver.ok(c.lease_grant(1, 10))
    driver.ok(c.service_register("s", "i", "h", 1, ttl_seconds=5, lease=6))
    result = driver.ok(c.alarm(1, 7, True))
    assert (result.alarms, result.changed) == ([[1, 7]], True)
    assert not driver.ok(c.alarm(1, 7, True)).changed
    driver.ok(c.alarm(1, 3, True))
    driver.machine = Machine(driver.tables)
    put = c.put_op(b"k", b"v")
    for command in (
        c.put(b"k", b"v"),
        c.put(b"k", b"", ignore_value=True),
        c.lease_grant(2, 10),
        c.txn([], [put]),
        c.txn([], [], [put]),
        c.txn([], [c.txn_op([], [], [put])]),
        c.service_register("s", "j", "h", 1, ttl_seconds=5, lease=7),
        c.service_register("s", "i", "h", 1, ttl_seconds=9, lease=7),
        c.service_register("s", "i", "h2", 1, ttl_seconds=9, lease=7, takeover=True),
        c.service_drain("s", "i", True),
    ):
        assert isinstance(driver.do(command), NoSpace)
        assert driver.applied is not None
        assert driver.applied.leases == []
    assert driver.machine.revision == 3
    for command in (
        c.service_register("s", "i", "h", 1, ttl_seconds=5, lease=7),
        c.txn([], [c.range_op(b"k"), c.delete_op(b"none")]),
        c.delete(b"k"),
        c.compact(2),
        c.lease_revoke(1),
        c.service_deregister("s", "i"),
        c.alarm(1, 7, False),
    ):
        driver.ok(command)
    assert isinstance(driver.do(c.put(b"k", b"v")), NoSpace)
    assert driver.ok(c.alarm(1, 3, False)).alarms == []
    driver.ok(c.put(b"k", b"v"))


def test_a_corrupt_cluster_refuses_every_change() -> None:
    driver = Driver()
    driver.machine.bootstrap(1, 1, b"", [member(1)])
    driver.ok(c.put(b"k", b"v"))
    driver.ok(c.alarm(2, 1, True))
    for command in (
        c.put(b"k", b"v"),
        c.delete(b"k"),
        c.txn([], []),
        c.compact(2),
        c.lease_grant(1, 5),
        c.lease_revoke(1),
        c.lease_expire([1], 1),
        c.service_register("s", "i", "h", 1, ttl_seconds=5, lease=6),
        c.put(b"k", b"v", once=b"o"),
    ):
        assert isinstance(driver.do(command), Corrupt)
    driver.ok(c.member_update(1, name="still"))
    assert driver.machine.revision == 2
    driver.ok(c.alarm(2, 1, False))
    assert driver.ok(c.put(b"k", b"v", once=b"o")).revision == 3


def test_an_alarm_of_no_member_is_raised_and_taken_back_by_hand() -> None:
    driver = Driver()
    driver.machine.bootstrap(1, 1, b"", [member(1)])
    assert driver.ok(c.alarm(1, 0, True)).changed
    assert isinstance(driver.do(c.put(b"k", b"v")), NoSpace)
    driver.ok(c.alarm(1, 1, False))
    assert driver.machine.alarms == {(1, 0)}
    driver.ok(c.alarm(1, 0, False))
    driver.ok(c.put(b"k", b"v"))


def test_alarms_of_a_removed_member_go_with_it() -> None:
    driver = Driver()
    driver.machine.bootstrap(1, 1, b"", [member(1), member(2)])
    driver.ok(c.alarm(1, 1, True))
    driver.ok(c.alarm(2, 2, True))
    driver.machine.apply_config(4, 1, b"", MemberChange(remove=(2,)))
    assert driver.machine.alarms == {(1, 1)}
    assert Machine(driver.tables).alarms == {(1, 1)}
    # What it had asked for before it knew comes too late.
    assert not driver.ok(c.alarm(1, 2, True)).changed
