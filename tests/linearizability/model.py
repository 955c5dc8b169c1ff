"""A plain multi-version store: what one single copy answers. Independent of the product.

Everything is in dicts and lists, and the last revisions can be taken back, since the witness check
may have to guess what an unknown operation did.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from tests.linearizability.history import (
    TO_THE_END,
    Compare,
    Delete,
    DeleteAnswer,
    KeyRecord,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Txn,
    TxnAnswer,
    WatchEvent,
)

DataRequest = Put | Delete | Range | Txn
DataAnswer = PutAnswer | DeleteAnswer | RangeAnswer | TxnAnswer


def holds_key(start: bytes, end: bytes | None, key: bytes) -> bool:
    """Whether a key is in an interval."""
    if end is None:
        return key == start
    return start <= key and (end == TO_THE_END or key < end)


def interval_slice(names: list[bytes], start: bytes, end: bytes | None) -> list[bytes]:
    """The names, of an ordered list, that are in an interval."""
    first = bisect_left(names, start)
    if end is None:
        return names[first : first + 1] if names[first : first + 1] == [start] else []
    last = len(names) if end == TO_THE_END else bisect_left(names, end)
    return names[first:last]


class Model:
    """The store at one revision, and how it came there."""

    def __init__(self) -> None:
        self.revision = 1
        self.records: dict[bytes, KeyRecord] = {}
        """Live keys."""
        self.events: list[WatchEvent] = []
        """All changes so far, in order."""
        self._names: list[bytes] = []
        self._leased: dict[int, set[bytes]] = {}
        self._wrote = False

    # -- reading ----------------------------------------------------------------------------------

    def leased(self, lease: int) -> list[bytes]:
        """The keys that hang on a lease, in order."""
        return sorted(self._leased.get(lease, ()))

    def leases_in_use(self) -> list[int]:
        """Leases with keys."""
        return sorted(self._leased)

    def events_of(self, revision: int) -> list[WatchEvent]:
        """What the newest revision changed; nothing, if `revision` is not the newest."""
        at = len(self.events)
        while at and self.events[at - 1].record.mod_revision == revision:
            at -= 1
        return self.events[at:]

    def read(self, request: Range) -> RangeAnswer:
        """A read of the present state, whatever revision it asks for."""
        revision = self.revision + self._wrote
        if request.end is None:
            record = self.records.get(request.start)
            return RangeAnswer(revision, () if record is None else (record,), record is not None)
        names = interval_slice(self._names, request.start, request.end)
        return self._answer(revision, request, [self.records[name] for name in names])

    def _read_old(self, request: Range) -> RangeAnswer:
        old = dict(self.records)
        for event in reversed(self.events):
            if event.record.mod_revision <= request.revision:
                break
            old.pop(event.record.key, None)
            if event.previous is not None:
                old[event.record.key] = event.previous
        names = interval_slice(sorted(old), request.start, request.end)
        return self._answer(request.revision, request, [old[name] for name in names])

    @staticmethod
    def _answer(revision: int, request: Range, records: list[KeyRecord]) -> RangeAnswer:
        count = len(records)
        more = 0 < request.limit < count
        return RangeAnswer(revision, tuple(records[: request.limit or None]), count, more)

    def compares(self, compare: Compare) -> bool:
        """Whether one compare holds now."""
        record = self.records.get(compare.key)
        if compare.target == "value":
            return record is not None and _related(record.value, compare)
        if record is None:
            return _related(0, compare)
        actual = {
            "version": record.version,
            "create": record.create_revision,
            "mod": record.mod_revision,
            "lease": record.lease,
        }[compare.target]
        return _related(actual, compare)

    # -- writing ----------------------------------------------------------------------------------

    def run(self, request: DataRequest) -> DataAnswer:
        """Carry out a request; the revision moves on if it changed anything."""
        if isinstance(request, Txn):
            succeeded, plan = self._choose(request)
            answers = self._run_plan(plan)
            self._end()
            return TxnAnswer(self.revision, succeeded, answers)
        answer = self._run_one(request)
        self._end()
        return answer

    def end_lease(self, lease: int) -> int:
        """Delete what hangs on a lease, at one revision; how many keys."""
        names = self.leased(lease)
        for name in names:
            self._delete(name)
        self._end()
        return len(names)

    def undo_to(self, revision: int) -> None:
        """Take back every later revision."""
        events = self.events
        while events and events[-1].record.mod_revision > revision:
            event = events.pop()
            self._set(event.record.key, event.previous)
        self.revision = min(self.revision, revision)

    def _end(self) -> None:
        if self._wrote:
            self.revision += 1
            self._wrote = False

    def _choose(self, txn: Txn) -> tuple[bool, list[DataRequest | tuple[bool, list]]]:  # type: ignore[type-arg]
        # All compares, nested ones too, judge the state before the transaction.
        succeeded = all(self.compares(compare) for compare in txn.compares)
        branch = txn.success if succeeded else txn.failure
        return succeeded, [self._choose(op) if isinstance(op, Txn) else op for op in branch]

    def _run_plan(self, plan: list) -> tuple[DataAnswer, ...]:  # type: ignore[type-arg]
        answers: list[DataAnswer] = []
        for step in plan:
            if isinstance(step, tuple):
                succeeded, nested = step
                inside = self._run_plan(nested)
                answers.append(TxnAnswer(self.revision + self._wrote, succeeded, inside))
            else:
                answers.append(self._run_one(step))
        return tuple(answers)

    def _run_one(self, request: Put | Delete | Range) -> DataAnswer:
        if isinstance(request, Put):
            replaced = self._put(request)
            return PutAnswer(self.revision + 1, replaced if request.want_previous else None)
        if isinstance(request, Delete):
            if request.end is None:
                names = [request.start] if request.start in self.records else []
            else:
                names = interval_slice(self._names, request.start, request.end)
            gone = tuple([self._delete(name) for name in names])
            seen = self.revision + self._wrote
            return DeleteAnswer(seen, len(names), gone if request.want_previous else ())
        return self._read_old(request) if request.revision else self.read(request)

    def _put(self, request: Put) -> KeyRecord | None:
        revision = self.revision + 1
        key = request.key
        before = self.records.get(key)
        if before is None:
            record = KeyRecord(key, request.value, revision, revision, 1, request.lease)
        else:
            create, version = before.create_revision, before.version + 1
            record = KeyRecord(key, request.value, create, revision, version, request.lease)
        self._set(key, record)
        self.events.append(WatchEvent("put", record, before))
        self._wrote = True
        return before

    def _delete(self, key: bytes) -> KeyRecord:
        before = self.records[key]
        self._set(key, None)
        gone = KeyRecord(key, b"", 0, self.revision + 1, 0)
        self.events.append(WatchEvent("delete", gone, before))
        self._wrote = True
        return before

    def _set(self, key: bytes, record: KeyRecord | None) -> None:
        before = self.records.get(key)
        if before is not None and before.lease:
            mine = self._leased[before.lease]
            mine.discard(key)
            if not mine:
                del self._leased[before.lease]
        if record is None:
            if before is not None:
                del self.records[key]
                del self._names[bisect_left(self._names, key)]
            return
        if before is None:
            insort(self._names, key)
        self.records[key] = record
        if record.lease:
            self._leased.setdefault(record.lease, set()).add(key)


def _related(actual: int | bytes, compare: Compare) -> bool:
    value = compare.value
    if compare.operator == "=":
        return actual == value
    if compare.operator == "!=":
        return actual != value
    if compare.operator == "<":
        return actual < value  # type: ignore[operator]
    return actual > value  # type: ignore[operator]
