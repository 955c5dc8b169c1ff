"""A plain model of the store: a whole copy for every revision, every rule restated the slow way."""

from __future__ import annotations

import operator
import random
from typing import Any, NamedTuple

from raftkv.errors import Compacted, FutureRevision, KeyNotFound, LeaseNotFound, Refused
from raftkv.machine import commands as c

KEYS = [b"a", b"aa", b"ab", b"b", b"b\0", b"c" * 200, b"\xff", b"\xff\xff"]
ENDS = [None, b"", b"aa", b"b", b"b\0", b"c", b"\xff", b"\xff\xff\0", b"a"]
VALUES = [b"", b"1", b"2", b"v" * 300]
LEASES = [1, 2, 2**63 - 1]
RELATIONS = [operator.eq, operator.gt, operator.lt, operator.ne]


class Row(NamedTuple):
    value: bytes
    create: int
    mod: int
    version: int
    lease: int


class Model:
    """States by revision, changes by revision; every rule restated the slow way."""

    def __init__(self) -> None:
        self.revision = 1
        self.compact = 0
        self.states: dict[int, dict[bytes, Row]] = {1: {}}
        self.changes: dict[int, list[tuple[bytes, Row | None]]] = {}
        self.leases: dict[int, int] = {}

    @property
    def now(self) -> dict[bytes, Row]:
        return self.states[self.revision]

    def inside(self, state: dict[bytes, Row], start: bytes, end: bytes | None) -> list[bytes]:
        if end is None:
            return [start] if start in state else []
        return sorted(key for key in state if key >= start and (end == b"" or key < end))

    def run(self, operations: list[Any]) -> list[Any]:
        """All operations in one revision; answers in place."""
        state = dict(self.now)
        changes: list[tuple[bytes, Row | None]] = []
        answers = self._run(operations, state, changes)
        if changes:
            self.revision += 1
            self.states[self.revision] = state
            self.changes[self.revision] = changes
        return answers

    def _run(self, operations: list[Any], state: dict[bytes, Row], changes: list[Any]) -> list[Any]:
        answers: list[Any] = []
        main = self.revision + 1
        for operation in operations:
            kind = operation[0]
            if kind == "put":
                _, key, value, lease, same_value, same_lease = operation
                old = state.get(key)
                if old is not None:
                    value = old.value if same_value else value
                    lease = old.lease if same_lease else lease
                create, version = (old.create, old.version + 1) if old else (main, 1)
                state[key] = Row(value, create, main, version, lease)
                changes.append((key, state[key]))
                answers.append(("put", old))
            elif kind == "delete":
                doomed = self.inside(state, *operation[1:])
                rows = [(key, state.pop(key)) for key in doomed]
                changes.extend((key, None) for key in doomed)
                answers.append(("delete", rows))
            elif kind == "range":
                _, start, end, limit, revision = operation
                # At a revision it sees nothing of what its own transaction has written.
                seen = self.states[revision] if revision > 0 else state
                keys = self.inside(seen, start, end)
                shown = keys[:limit] if limit else keys
                rows = [(key, seen[key]) for key in shown]
                answers.append(("range", rows, len(keys), len(shown) < len(keys)))
            else:
                chosen, succeeded = self.choose(operation)
                answers.append(("txn", succeeded, self._run(chosen, state, changes)))
        return answers

    def choose(self, txn: Any) -> tuple[list[Any], bool]:
        """The branch, by the state before the whole command."""
        _, compares, then, else_ = txn
        succeeded = all(self.holds(*compare) for compare in compares)
        return (then if succeeded else else_), succeeded

    def holds(self, target: int, relation: int, key: bytes, end: bytes | None, to: Any) -> bool:
        rows = [self.now[k] for k in self.inside(self.now, key, end)]
        if not rows:
            if target == 3:
                return False
            rows = [Row(b"", 0, 0, 0, 0)]
        which = {0: "version", 1: "create", 2: "mod", 3: "value", 4: "lease"}[target]
        return all(RELATIONS[relation](getattr(row, which), to) for row in rows)

    def refusal(self, operations: list[Any]) -> type[Refused] | None:
        """What refuses the chosen operations: the first thing that is wrong."""
        return next(iter(self.refusals(operations)), None)

    def refusals(self, operations: list[Any]) -> list[type[Refused]]:
        """Everything that is wrong with the chosen operations: what is put is looked at first."""
        found: list[type[Refused]] = []
        for operation in operations:
            if operation[0] == "put":
                _, key, _, lease, same_value, same_lease = operation
                if lease and lease not in self.leases:
                    found.append(LeaseNotFound)
                if (same_value or same_lease) and key not in self.now:
                    found.append(KeyNotFound)
            elif operation[0] == "range":
                if operation[4] > self.revision:
                    found.append(FutureRevision)
                if 0 < operation[4] < self.compact:
                    found.append(Compacted)
            elif operation[0] == "txn":
                found += self.refusals(self.choose(operation)[0])
        return sorted(found, key=lambda refusal: refusal in (FutureRevision, Compacted))

    def end_lease(self, lease: int) -> int:
        del self.leases[lease]
        doomed = sorted(key for key, row in self.now.items() if row.lease == lease)
        self.run([("delete", key, None) for key in doomed])
        return len(doomed)


def conflicts(operations: list[Any]) -> bool:
    """Whether two operations that may run together touch one key, the quadratic way."""

    def footprint(operation: Any) -> tuple[list[bytes], list[tuple[bytes, bytes | None]]]:
        if operation[0] == "put":
            return [operation[1]], []
        if operation[0] == "delete":
            return [], [(operation[1], operation[2])]
        if operation[0] == "txn":
            sides = [footprint(inner) for branch in operation[2:] for inner in branch]
            return [k for puts, _ in sides for k in puts], [d for _, ds in sides for d in ds]
        return [], []

    prints = [footprint(operation) for operation in operations]
    for i, (puts, _) in enumerate(prints):
        for j, (other_puts, other_deletes) in enumerate(prints):
            if i == j:
                continue
            for key in puts:
                if key in other_puts:
                    return True
                for start, end in other_deletes:
                    if key == start if end is None else start <= key and (not end or key < end):
                        return True
    return any(
        conflicts(branch) for operation in operations if operation[0] == "txn"
        for branch in operation[2:]
    )  # fmt: skip


def to_op(operation: Any) -> c.Operation:
    kind = operation[0]
    if kind == "put":
        _, key, value, lease, same_value, same_lease = operation
        return c.put_op(
            key, value, lease=lease, prev=True, ignore_value=same_value, ignore_lease=same_lease
        )
    if kind == "delete":
        return c.delete_op(operation[1], operation[2], prev=True)
    if kind == "range":
        _, start, end, limit, revision = operation
        return c.range_op(start, end, limit=limit, revision=revision)
    return c.txn_op(
        [c.compare(target, how, key, to, end) for target, how, key, end, to in operation[1]],
        [to_op(inner) for inner in operation[2]],
        [to_op(inner) for inner in operation[3]],
    )


def as_row(record: Any) -> tuple[bytes, Row]:
    return record.key, Row(
        record.value, record.create_revision, record.mod_revision, record.version, record.lease
    )


def as_answer(response: Any) -> Any:
    name = type(response).__name__
    if name == "PutResult":
        return ("put", as_row(response.previous)[1] if response.previous else None)
    if name == "DeleteResult":
        assert response.deleted == len(response.previous)
        return ("delete", [as_row(record) for record in response.previous])
    if name == "RangeResult":
        rows = [as_row(record) for record in response.records]
        return ("range", rows, response.count, response.more)
    return ("txn", response.succeeded, [as_answer(inner) for inner in response.responses])


class Generator:
    """Random commands over few keys, so that they meet."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.revision = 1
        """The newest revision, for numbers near it."""

    def put(self) -> Any:
        r = self.random
        if r.random() < 0.8:
            lease = r.choice(LEASES) if r.random() < 0.2 else 0
            return ("put", r.choice(KEYS), r.choice(VALUES), lease, False, False)
        return ("put", r.choice(KEYS), b"", 0, r.random() < 0.5, r.random() < 0.5)

    def interval(self) -> tuple[bytes, bytes | None]:
        return self.random.choice(KEYS), self.random.choice(ENDS)

    def operation(self, depth: int) -> Any:
        roll = self.random.random()
        if roll < 0.5:
            return self.put()
        if roll < 0.7:
            return ("delete", *self.interval())
        if roll < 0.85 or not depth:
            revision = max(self.number(), 0) if self.random.random() < 0.3 else 0
            return ("range", *self.interval(), self.random.randint(0, 3), revision)
        return self.transaction(depth - 1)

    def transaction(self, depth: int = 2) -> Any:
        r = self.random
        compares = []
        for _ in range(r.randint(0, 2)):
            target = r.randint(0, 4)
            operand: Any = r.choice(VALUES) if target == 3 else self.number()
            compares.append((target, r.randint(0, 3), *self.interval(), operand))
        branches = [[self.operation(depth) for _ in range(r.randint(0, 3))] for _ in range(2)]
        return ("txn", compares, *branches)

    def number(self) -> int:
        newest = self.revision
        return self.random.choice([0, 1, 2, newest, newest - 1, newest - self.random.randint(0, 9)])
