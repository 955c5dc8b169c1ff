"""What the answers of a history prove about each key, for judging guesses.

Where a revision belongs to no answered operation, the witness check guesses which unknown one made
it. Facts are what it can hold a guess against before going on: "at revision 40 this key was at
version 3, last modified at 37" leaves few ways to fill revision 38.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

from tests.linearizability.answers import changed, operations_of, ran
from tests.linearizability.history import (
    Delete,
    DeleteAnswer,
    KeyRecord,
    Operation,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Txn,
    WatchLog,
)
from tests.linearizability.model import DataAnswer, DataRequest, interval_slice

NEVER: Final = 1 << 62

_Fact = tuple[int, KeyRecord | None]


class Facts:
    """Everything that answers, watches and the final state prove, by key and by revision."""

    def __init__(
        self,
        operations: Sequence[Operation],
        final: Sequence[KeyRecord] | None,
        final_revision: int,
        watches: Iterable[WatchLog],
    ) -> None:
        self.shown: dict[int, dict[bytes, KeyRecord | None]] = {}
        """Revision -> what somebody saw it make of a key; None: deleted."""
        self.watched: dict[int, dict[bytes, KeyRecord | None]] = {}
        """The part of it that watches told."""
        self._proved: dict[bytes, list[int]] = {}
        self._facts: dict[bytes, list[_Fact]] = {}
        self._puts: dict[bytes, list[int]] = {}
        self._deletes: dict[bytes, list[int]] = {}
        self.names: list[bytes] = sorted(_all_names(operations, final or ()))
        for operation in operations:
            if operation.outcome is Outcome.OK:
                self._take(operation)
        for log in watches:
            self._take_watch(log)
        if final is not None:
            records = {record.key: record for record in final}
            for name in self.names:
                # It is compared last of all, so it proves nothing on the way.
                self._add(name, final_revision, records.get(name), NEVER)
        for facts in self._facts.values():
            facts.sort(key=lambda fact: fact[0])
        self.created: dict[int, set[bytes]] = {}
        """Revision -> keys that somebody saw were created by it."""
        for facts in self._facts.values():
            for _, record in facts:
                if record is not None:
                    self.created.setdefault(record.create_revision, set()).add(record.key)
        self._at = {key: [fact[0] for fact in facts] for key, facts in self._facts.items()}
        for revisions in (*self._puts.values(), *self._deletes.values(), *self._proved.values()):
            revisions.sort()

    # -- gathering --------------------------------------------------------------------------------

    def _add(self, key: bytes, revision: int, record: KeyRecord | None, judged_at: int = 0) -> None:
        """`judged_at`: the revision at which the replay holds the model against it."""
        self._facts.setdefault(key, []).append((revision, record))
        self._proved.setdefault(key, []).append(judged_at or revision)
        if record is not None:
            self.shown.setdefault(record.mod_revision, {}).setdefault(key, record)

    def _take(self, operation: Operation) -> None:
        request, answer = operation.request, operation.answer
        if not isinstance(request, Put | Delete | Range | Txn) or answer is None:
            return
        writes = changed(request, answer)  # type: ignore[arg-type]
        for step in ran(request, answer):  # type: ignore[arg-type]
            self._take_one(*step, answer.revision, writes)

    def _take_one(
        self, request: DataRequest, answer: DataAnswer, revision: int, writes: bool
    ) -> None:
        if isinstance(request, Put) and isinstance(answer, PutAnswer):
            self._puts.setdefault(request.key, []).append(revision)
            if request.want_previous:
                self._add(request.key, revision - 1, answer.previous, revision)
        elif isinstance(request, Delete) and isinstance(answer, DeleteAnswer):
            if answer.deleted:
                for name in interval_slice(self.names, request.start, request.end):
                    self._deletes.setdefault(name, []).append(revision)
            elif not writes:
                self._add_interval(request, revision, {})
            for record in answer.previous:
                self._add(record.key, revision - 1, record, revision)
        elif isinstance(request, Range) and isinstance(answer, RangeAnswer) and not writes:
            # A read among writes may see a key before or after its change: it proves less.
            records = {record.key: record for record in answer.records}
            self._add_interval(request, request.revision or revision, records, answer.more)

    def _add_interval(
        self,
        request: Range | Delete,
        revision: int,
        records: dict[bytes, KeyRecord],
        more: bool = False,
    ) -> None:
        last = max(records, default=b"") if more else None
        for name in interval_slice(self.names, request.start, request.end):
            if last is None or name <= last:
                self._add(name, revision, records.get(name))

    def _take_watch(self, log: WatchLog) -> None:
        for response in log.responses:
            for event in response.events:
                key, revision = event.record.key, event.record.mod_revision
                record = event.record if event.kind == "put" else None
                self._add(key, revision, record)
                self.shown.setdefault(revision, {})[key] = record
                self.watched.setdefault(revision, {})[key] = record

    # -- asking -----------------------------------------------------------------------------------

    def proved_before(self, key: bytes, revision: int) -> int:
        """The newest revision below `revision` at which the replay proved its model of the key."""
        at = self._proved.get(key, [])
        before = bisect_left(at, revision)
        return at[before - 1] if before else 0

    def _next(self, key: bytes, revision: int) -> _Fact | None:
        at = bisect_left(self._at.get(key, []), revision)
        facts = self._facts.get(key, [])
        return facts[at] if at < len(facts) else None

    def allows(
        self,
        key: bytes,
        record: KeyRecord | None,
        revision: int,
        gaps: Sequence[int],
        deletable: bool,
    ) -> bool:
        """Whether the next fact leaves room for the key to be `record` after `revision`.

        `gaps`: the revisions, in order, that may have written the key by what is not known;
        `deletable`: whether they may have deleted it.
        """
        fact = self._next(key, revision)
        if fact is None:
            return True
        seen_at, seen = fact
        if seen is not None and seen.mod_revision <= revision:
            return seen == record
        if seen is None or seen.create_revision > revision:
            until = seen_at if seen is None else seen.create_revision
            gone = record is None or _count(self._deletes.get(key, []), revision, until) > 0
            return gone or (deletable and _count(gaps, revision, until) > 0)
        if record is None or record.create_revision != seen.create_revision:
            return False
        # Each put since then raised the version by one; gaps may hide more of them.
        least = record.version + _count(self._puts.get(key, []), revision, seen.mod_revision)
        return least <= seen.version <= least + _count(gaps, revision, seen.mod_revision)

    def distance(self, key: bytes, record: KeyRecord | None, revision: int) -> int:
        """How many writes of gaps it takes from `record` after `revision` to the next fact."""
        fact = self._next(key, revision)
        return 0 if fact is None else self._distance(key, record, revision, *fact)

    def _distance(
        self,
        key: bytes,
        record: KeyRecord | None,
        revision: int,
        seen_at: int,
        seen: KeyRecord | None,
    ) -> int:
        if record == seen:
            return 0
        puts = self._puts.get(key, [])
        if seen and record and record.create_revision == seen.create_revision:
            known = _count(puts, revision, seen.mod_revision)
            return max(0, seen.version - record.version - known)
        until = seen_at if seen is None else seen.create_revision
        deleted = record is None or _count(self._deletes.get(key, []), revision, until) > 0
        if seen is None:
            return 0 if deleted else 1
        made = _count(puts, seen.create_revision - 1, seen.mod_revision)
        return max(0, seen.version - made) + (0 if deleted else 1)

    def pressing(self, gaps_of: Callable[[bytes], Sequence[int]]) -> dict[int, set[bytes]]:
        """Gap -> keys that some gap around it must have written, by the facts before and after.

        `gaps_of`: the gaps that may have written a key.
        """
        keys_at: dict[int, set[bytes]] = {}
        for key, facts in self._facts.items():
            gaps = gaps_of(key)
            for (after, before), (until, record) in pairwise([(1, None), *facts]):
                if self._distance(key, before, after, until, record):
                    for at in range(bisect_right(gaps, after), bisect_right(gaps, until)):
                        keys_at.setdefault(gaps[at], set()).add(key)
        return keys_at


def _count(revisions: Sequence[int], after: int, until: int) -> int:
    """How many are in (after, until]."""
    return bisect_right(revisions, until) - bisect_right(revisions, after)


def _all_names(operations: Iterable[Operation], final: Iterable[KeyRecord]) -> Iterator[bytes]:
    names: set[bytes] = {record.key for record in final}
    for operation in operations:
        request = operation.request
        if isinstance(request, Put | Txn):
            for each in operations_of(request):
                if isinstance(each, Put):
                    names.add(each.key)
        elif isinstance(request, Delete | Range) and request.end is None:
            names.add(request.start)
        if isinstance(operation.answer, RangeAnswer):
            names.update(record.key for record in operation.answer.records)
    return iter(names)
