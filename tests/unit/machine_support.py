"""For the machine's tests: tables in memory, a driver that writes the log, a protobuf reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sortedcontainers import SortedDict

from raftkv.limits import FEATURE_LEVEL
from raftkv.machine.cluster import LEVEL_ROW
from raftkv.machine.commands import Command, encode_batch, stamp_batch
from raftkv.machine.machine import Machine
from raftkv.machine.records import U64
from raftkv.machine.results import Applied, Outcome
from raftkv.machine.tables import META, Table


class MemoryTables:
    """Ordered tables whose write is all or nothing, by an undo log."""

    def __init__(self) -> None:
        self.tables: list[Any] = [SortedDict() for _ in Table]
        self.fail_after: int | None = None
        """Raise OSError at this many writes from now."""

    @contextmanager
    def read(self) -> Iterator[_View]:
        yield _View(self)

    @contextmanager
    def write(self) -> Iterator[_View]:
        view = _View(self)
        try:
            yield view
        except BaseException:
            for table, key, value in reversed(view.undo):
                if value is None:
                    self.tables[table].pop(key, None)
                else:
                    self.tables[table][key] = value
            raise

    def dump(self) -> list[dict[bytes, bytes]]:
        return [dict(table) for table in self.tables]


class _View:
    def __init__(self, owner: MemoryTables) -> None:
        self.owner = owner
        self.undo: list[tuple[int, bytes, bytes | None]] = []

    def get(self, table: int, key: bytes) -> bytes | None:
        found: bytes | None = self.owner.tables[table].get(key)
        return found

    def scan(self, table: int, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        rows = self.owner.tables[table]
        for key in rows.irange(start, end, (True, False)):
            yield key, rows[key]

    def scan_reverse(
        self, table: int, start: bytes, end: bytes | None
    ) -> Iterator[tuple[bytes, bytes]]:
        rows = self.owner.tables[table]
        for key in rows.irange(start, end, (True, False), reverse=True):
            yield key, rows[key]

    def put(self, table: int, key: bytes, value: bytes) -> None:
        self._note(table, key)
        self.owner.tables[table][key] = value

    def append(self, table: int, key: bytes, value: bytes) -> None:
        rows = self.owner.tables[table]
        assert not rows or rows.peekitem()[0] < key
        self.put(table, key, value)

    def put_many(self, table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.put(table, key, value)

    def delete(self, table: int, key: bytes) -> bool:
        self._note(table, key)
        return self.owner.tables[table].pop(key, None) is not None

    def _note(self, table: int, key: bytes) -> None:
        if self.owner.fail_after is not None:
            self.owner.fail_after -= 1
            if self.owner.fail_after < 0:
                raise OSError("the disk is gone")
        self.undo.append((table, key, self.owner.tables[table].get(key)))


class Driver:
    """A machine and the log that leads to its state; its cluster had agreed on `level` before."""

    def __init__(self, tables: Any = None, *, level: int = FEATURE_LEVEL) -> None:
        self.tables = MemoryTables() if tables is None else tables
        with self.tables.write() as writer:
            writer.put(META, LEVEL_ROW, U64.pack(level))
        self.machine = self.opened()
        self.log: list[tuple[int, int, bytes]] = []
        self.term = 1
        self.now_ms = 1_000
        self.applied: Applied | None = None

    def opened(self) -> Machine:
        """A machine over the tables as they are; of few keys it makes many blocks."""
        return Machine(self.tables, block_rows=1)

    def entry(self, *commands: Command) -> tuple[int, int, bytes]:
        index = self.machine.applied_index + 1
        data = stamp_batch(encode_batch(1, 2, index, commands), self.now_ms)
        return index, self.term, data

    def batch(self, *commands: Command) -> Applied:
        """One entry with all commands."""
        entry = self.entry(*commands)
        (self.applied,) = self.machine.apply([entry])
        self.log.append(entry)
        return self.applied

    def do(self, command: Command) -> Any:
        """One entry with one command; its outcome."""
        return self.batch(command).results[0]

    def ok(self, command: Command) -> Any:
        """As `do`; the outcome must not be a refusal."""
        outcome: Outcome = self.do(command)
        assert not isinstance(outcome, Exception), outcome
        return outcome

    def compact_all(self, rows_max: int = 7) -> int:
        steps = 0
        while self.machine.compact_step(rows_max):
            steps += 1
        return steps


def parse(message: bytes) -> dict[int, Any]:
    """The fields of a protobuf message, each at most once: varints and byte strings only."""
    found: dict[int, Any] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                assert byte or shift == 7, "not the shortest form"
                return number

    last = 0
    while at < len(message):
        tag = varint()
        field, kind = tag >> 3, tag & 7
        assert field > last, "fields in order, each once"
        last = field
        if kind == 0:
            found[field] = varint()
            assert found[field], "zero is left out"
        else:
            assert kind == 2
            size = varint()
            found[field] = message[at : at + size]
            assert len(found[field]) == size
            at += size
    return found
