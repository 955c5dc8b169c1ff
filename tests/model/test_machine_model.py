"""The machine against a plain model that keeps a whole copy of the store for every revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raftkv.errors import Compacted, DuplicateKey, FutureRevision, LeaseExists, LeaseNotFound
from raftkv.machine import commands as c
from raftkv.machine.machine import Machine
from raftkv.storage.backend import Backend
from raftkv.storage.lmdb_backend import LmdbBackend
from raftkv.storage.memory_backend import MemoryBackend
from tests.model.store_model import (
    ENDS,
    KEYS,
    LEASES,
    VALUES,
    Generator,
    Model,
    as_answer,
    as_row,
    conflicts,
    to_op,
)
from tests.unit.machine_support import Driver, MemoryTables

keys = st.sampled_from(KEYS)
intervals = st.tuples(keys, st.sampled_from(ENDS))
leases = st.sampled_from([0, 0, 0, *LEASES])
puts = st.one_of(
    st.tuples(
        st.just("put"), keys, st.sampled_from(VALUES), leases, st.just(False), st.just(False)
    ),
    st.tuples(st.just("put"), keys, st.just(b""), st.just(0), st.booleans(), st.booleans()),
)
deletes = intervals.map(lambda pair: ("delete", *pair))
revisions = st.one_of(st.just(0), st.just(0), st.integers(0, 6))
ranges = st.tuples(intervals, st.integers(0, 3), revisions).map(
    lambda t: ("range", *t[0], t[1], t[2])
)
numbers = st.integers(0, 6)
compares = st.one_of(
    st.tuples(
        st.sampled_from([0, 1, 2, 4]), st.integers(0, 3), keys, st.sampled_from(ENDS), numbers
    ),
    st.tuples(st.just(3), st.integers(0, 3), keys, st.sampled_from(ENDS), st.sampled_from(VALUES)),
)


def txns(inner: Any) -> Any:
    branch = st.lists(inner, max_size=4)
    return st.tuples(st.just("txn"), st.lists(compares, max_size=2), branch, branch)


operations = st.recursive(st.one_of(puts, deletes, ranges), txns, max_leaves=8)


class MachineAgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self, tables: Any = None) -> None:
        self.driver = Driver(tables)
        self.model = Model()
        self.twin = Machine(MemoryTables())

    @property
    def machine(self) -> Machine:
        return self.driver.machine

    def revision_ok(self, revision: int) -> bool:
        return max(self.model.compact, 1) <= revision <= self.model.revision

    @rule(operation=st.one_of(puts, deletes))
    def write(self, operation: Any) -> None:
        if operation[0] == "put":
            _, key, value, lease, same_value, same_lease = operation
            command = c.put(
                key, value, lease=lease, prev=True,
                ignore_value=same_value, ignore_lease=same_lease,
            )  # fmt: skip
        else:
            command = c.delete(operation[1], operation[2], prev=True)
        refusal = self.model.refusal([operation])
        outcome = self.driver.do(command)
        if refusal:
            assert type(outcome) is refusal
            return
        assert as_answer(outcome) == self.model.run([operation])[0]
        assert outcome.revision == self.model.revision

    @rule(txn=txns(operations))
    def txn(self, txn: Any) -> None:
        _, _, then, else_ = txn
        inner = to_op(txn)
        if conflicts(then) or conflicts(else_):
            try:
                c.txn(*inner[1:])
            except DuplicateKey:
                return
            raise AssertionError("a transaction that writes a key twice was taken")
        command = c.txn(*inner[1:])
        refusal = self.model.refusal([txn])
        outcome = self.driver.do(command)
        if refusal:
            assert type(outcome) is refusal
            return
        assert as_answer(outcome) == self.model.run([txn])[0]
        assert outcome.revision == self.model.revision

    @rule(lease=st.sampled_from(LEASES), ttl=st.integers(1, 100))
    def grant(self, lease: int, ttl: int) -> None:
        outcome = self.driver.do(c.lease_grant(lease, ttl))
        if lease in self.model.leases:
            assert isinstance(outcome, LeaseExists)
        else:
            self.model.leases[lease] = ttl
            assert (outcome.lease, outcome.ttl_seconds) == (lease, ttl)

    @rule(lease=st.sampled_from(LEASES))
    def revoke(self, lease: int) -> None:
        outcome = self.driver.do(c.lease_revoke(lease))
        if lease not in self.model.leases:
            assert isinstance(outcome, LeaseNotFound)
        else:
            assert outcome.deleted == self.model.end_lease(lease)
            assert outcome.revision == self.model.revision

    @rule(ids=st.lists(st.sampled_from(LEASES), max_size=3), late=st.booleans())
    def expire(self, ids: list[int], late: bool) -> None:
        outcome = self.driver.do(c.lease_expire(ids, self.driver.term - late))
        assert outcome.stale is late
        expected = []
        for lease in [] if late else ids:
            if lease in self.model.leases:
                self.model.end_lease(lease)
                expected.append(lease)
        assert outcome.expired == expected

    @rule(back=st.integers(-1, 6))
    def compact(self, back: int) -> None:
        revision = self.model.revision - back
        outcome = self.driver.do(c.compact(max(revision, 0)))
        if revision <= self.model.compact:
            assert isinstance(outcome, Compacted)
        elif revision > self.model.revision:
            assert isinstance(outcome, FutureRevision)
        else:
            assert outcome.compact_revision == revision
            self.model.compact = revision

    @rule(rows=st.integers(1, 5))
    def compact_step(self, rows: int) -> None:
        assert self.machine.compact_step(rows) is self.machine.compaction_pending

    @rule()
    def restart(self) -> None:
        state_hash = self.machine.state_hash
        self.driver.machine = self.driver.opened()
        assert self.machine.state_hash == state_hash

    @rule(
        interval=intervals,
        back=st.integers(-1, 8),
        limit=st.integers(0, 4),
        by=st.integers(0, 4),
        order=st.integers(0, 2),
        filters=st.tuples(*[st.integers(0, 6)] * 4),
        keys_only=st.booleans(),
        count_only=st.booleans(),
    )
    def range(
        self, interval: Any, back: int, limit: int, by: int, order: int, filters: Any,
        keys_only: bool, count_only: bool,
    ) -> None:  # fmt: skip
        revision = max(self.model.revision - back, 0)
        min_mod, max_mod, min_create, max_create = filters

        def ask() -> Any:
            return self.machine.range(
                *interval, revision=revision, limit=limit, want_count=True, keys_only=keys_only,
                count_only=count_only, sort_target=by, sort_order=order,
                min_mod=min_mod, max_mod=max_mod, min_create=min_create, max_create=max_create,
            )  # fmt: skip

        if revision and not self.revision_ok(revision):
            kind = FutureRevision if revision > self.model.revision else Compacted
            try:
                ask()
            except kind:
                return
            raise AssertionError("read at a revision that is not there")
        state = self.model.states[revision or self.model.revision]
        inside = self.model.inside(state, *interval)
        rows = [(key, state[key]) for key in inside]
        rows = [
            (key, row) for key, row in rows
            if row.mod >= min_mod and (not max_mod or row.mod <= max_mod)
            and row.create >= min_create and (not max_create or row.create <= max_create)
        ]  # fmt: skip
        if by and not order and limit and not any((min_mod, max_mod, min_create, max_create)):
            rows = rows[: limit + 1]  # as in etcd: without an order, only these are sorted
        if by or order == 2:
            field = {1: "version", 2: "create", 3: "mod", 4: "value"}.get(by)
            rows.sort(
                key=lambda item: getattr(item[1], field) if field else item[0], reverse=order == 2
            )
        more = bool(limit) and len(rows) > limit
        rows = rows[:limit] if limit else rows
        if keys_only:
            rows = [(key, row._replace(value=b"")) for key, row in rows]
        result = ask()
        assert result.count == len(inside)
        assert result.revision == (revision or self.model.revision)
        assert [as_row(record) for record in result.records] == ([] if count_only else rows)
        assert result.more == (more and not count_only)

    @rule(
        back=st.integers(0, 8),
        limit=st.integers(0, 3),
        examine=st.integers(1, 5),
        reverse=st.booleans(),
        interval=intervals,
    )
    def pages(self, back: int, limit: int, examine: int, reverse: bool, interval: Any) -> None:
        """Slices of any size, put together, are the whole."""
        revision = self.model.revision - back
        start, end = interval
        if not self.revision_ok(revision) or end is None:
            return
        seen: list[Any] = []
        for _ in range(100):
            result = self.machine.range(
                start, end, revision=revision, limit=limit, examine_max=examine, reverse=reverse
            )
            seen.extend(as_row(record) for record in result.records)
            assert result.more is (result.resume is not None)
            if not result.more:
                break
            if reverse:
                end = result.resume
            else:
                start = result.resume
        else:
            raise AssertionError("pages never end")
        state = self.model.states[revision]
        expected = [(key, state[key]) for key in self.model.inside(state, *interval)]
        assert seen == (expected[::-1] if reverse else expected)

    @rule(back=st.integers(0, 8), examine=st.integers(1, 5), interval=intervals)
    def count(self, back: int, examine: int, interval: Any) -> None:
        """Numbers of slices add up, at any revision, whatever is remembered of blocks."""
        revision = self.model.revision - back
        start, end = interval
        if not self.revision_ok(revision) or end is None:
            return
        total = 0
        for _ in range(100):
            result = self.machine.range(
                start, end, revision=revision, count_only=True, examine_max=examine
            )
            total += result.count or 0
            if not result.more:
                break
            assert result.resume is not None and result.resume > start
            start = result.resume
        else:
            raise AssertionError("a count never ends")
        assert total == len(self.model.inside(self.model.states[revision], *interval))

    @rule(back=st.integers(0, 8), events_max=st.integers(1, 5))
    def history(self, back: int, events_max: int) -> None:
        start = max(self.model.revision - back, 1)
        if start < self.model.compact:
            try:
                self.machine.history(start, self.model.revision, events_max)
            except Compacted as error:
                assert error.facts["oldest_revision"] == self.model.compact
                return
            raise AssertionError("history before compaction was answered")
        seen = []
        at = start
        while events := self.machine.history(at, self.model.revision, events_max):
            seen.extend(events)
            at = events[-1].revision + 1
        expected = [
            (revision, sub, key, row)
            for revision in sorted(self.model.changes)
            if revision >= start
            for sub, (key, row) in enumerate(self.model.changes[revision])
        ]
        got = [(e.revision, e.sub, e.key, None if e.deleted else as_row(e.record)[1]) for e in seen]
        assert got == expected
        for event in seen:
            before = self.model.states[event.revision - 1].get(event.key)
            if event.revision <= self.model.compact:
                before = None
            found = self.machine.previous(event)
            assert (as_row(found)[1] if found else None) == before

    @precondition(lambda self: self.driver.log[self.twin.applied_index :])
    @rule(count=st.integers(1, 9))
    def twin_follows(self, count: int) -> None:
        """Another member applies the same entries in other groups, and never compacts."""
        at = self.twin.applied_index
        self.twin.apply(self.driver.log[at : at + count])
        at = self.twin.applied_index
        kept = self.machine.hash_at(at)
        assert kept is None or kept == self.twin.state_hash
        assert at < self.machine.applied_index or kept == self.twin.state_hash

    @invariant()
    def agrees(self) -> None:
        assert self.machine.revision == self.model.revision
        assert self.machine.compact_revision == self.model.compact
        assert self.machine.keys == len(self.model.now)
        for key in KEYS:
            record = self.machine.get(key)
            assert (as_row(record)[1] if record else None) == self.model.now.get(key)
        assert {lease.lease: lease.ttl_seconds for lease in self.machine.leases()} == (
            self.model.leases
        )
        for lease in LEASES:
            hanging = sorted(key for key, row in self.model.now.items() if row.lease == lease)
            assert self.machine.lease_keys(lease) == hanging


def test_machine_agrees_with_the_model() -> None:
    run_state_machine_as_test(
        MachineAgainstModel,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None),
    )


class Walk(Generator):
    """The same rules in long random walks, where writes are frequent and histories deep."""

    def __init__(self, seed: int, tables: Any = None) -> None:
        super().__init__(seed)
        self.system = MachineAgainstModel()
        self.system.start(tables)

    def step(self) -> None:
        r, system = self.random, self.system
        self.revision = system.model.revision
        roll = r.random()
        if roll < 0.45:
            system.write(self.put() if r.random() < 0.8 else ("delete", *self.interval()))
        elif roll < 0.6:
            system.txn(self.transaction())
        elif roll < 0.66:
            system.grant(r.choice(LEASES), r.randint(1, 100))
        elif roll < 0.68:
            system.revoke(r.choice(LEASES))
        elif roll < 0.7:
            system.expire(r.choices(LEASES, k=2), r.random() < 0.3)
        elif roll < 0.73:
            system.compact(r.randint(-1, 15))
        elif roll < 0.83:
            system.compact_step(r.randint(1, 9))
        elif roll < 0.84:
            system.restart()
        elif roll < 0.9:
            filters = tuple(self.number() if r.random() < 0.3 else 0 for _ in range(4))
            system.range(
                self.interval(), r.randint(-1, 15), r.randint(0, 4), r.randint(0, 4),
                r.randint(0, 2), filters, r.random() < 0.2, r.random() < 0.2,
            )  # fmt: skip
        elif roll < 0.95:
            system.pages(
                r.randint(0, 15), r.randint(0, 3), r.randint(1, 5), r.random() < 0.5,
                self.interval(),
            )  # fmt: skip
        elif roll < 0.965:
            system.count(r.randint(0, 15), r.randint(1, 5), self.interval())
        elif roll < 0.985:
            system.history(r.randint(0, 15), r.randint(1, 5))
        elif system.driver.log[system.twin.applied_index :]:
            system.twin_follows(r.randint(1, 90))
        system.agrees()


@pytest.mark.parametrize("seed", range(25))
def test_long_walks(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(400):
        walk.step()
    assert walk.system.model.revision > 100


@pytest.mark.parametrize("seed", range(100, 103))
@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_walks_over_the_tables_of_a_member(kind: str, seed: int, tmp_path: Path) -> None:
    tables: Backend = MemoryBackend() if kind == "memory" else LmdbBackend(str(tmp_path / "db"))
    try:
        walk = Walk(seed, tables)
        for _ in range(250):
            walk.step()
    finally:
        tables.close()
