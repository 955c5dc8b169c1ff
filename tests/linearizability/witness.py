"""The witness check: revisions are the order, so replay it and compare every answer.

Each write that changed something owns its revision. Writes are replayed in that order on a plain
model, and every answer must be what the model says at its revision: O(n log n), for histories of
any length and the whole API. `order.py` holds the order against real time.

What a client does not know leaves gaps, revisions that no answered write owns. Each must be the
work of an unknown write, or of a lease that was revoked or ran out. Usually a value or a version
seen later leaves one explanation. Where it does not, the check guesses, goes on, and when the
guess leads to a contradiction comes back to the newest gap that could have caused it. A guess that
holds to the end is a history of one copy, which is all that is asked; if none holds, there is
none. The number of steps is bounded; beyond it the history is "not decided", which never passes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import islice
from typing import Final, NamedTuple

from tests.linearizability.answers import (
    Difference,
    differ,
    differ_range,
    differ_record,
    ran,
)
from tests.linearizability.book import Book
from tests.linearizability.facts import Facts
from tests.linearizability.history import (
    Delete,
    KeyRecord,
    Operation,
    Put,
    Range,
    Revoke,
    Txn,
    WatchLog,
)
from tests.linearizability.model import Model, interval_slice
from tests.linearizability.naming import UNEXPLAINED, Namer, deletes, footprint, touches
from tests.linearizability.order import KnownBy, check_real_time
from tests.linearizability.report import Cause, Report, Violation
from tests.linearizability.tenures import Tenures, leased_keys

STEPS_PER_OPERATION_MAX: Final = 20
STEPS_MIN: Final = 50_000
REAL_TIME_REPORTED_MAX: Final = 3
TAIL_REVISIONS_MAX: Final = 8
WAITING_MAX: Final = 64
UNLIKELY: Final = 1000


def check_witness(
    operations: Sequence[Operation],
    *,
    final: Sequence[KeyRecord] | None = None,
    final_revision: int = 0,
    watches: Iterable[WatchLog] = (),
) -> Report:
    """Judge a history by its revisions. The store was empty at the beginning.

    `final`: all records after everything; `final_revision`: the store's revision then, 0 if not
    told, which costs time and may leave more undecided. `watches`: logs whose events tell what
    unknown operations did.
    """
    watches = tuple(watches)
    report = _judge(operations, final, final_revision, watches)
    if report.ok or final is None or final_revision:
        return report
    # Unknown operations may have gone on after the last revision that anything tells of.
    without = _judge(operations, None, 0, watches)
    if not without.ok:
        return without
    book = Book(operations, final, 0)
    decided = not report.undecided
    for more in range(1, min(book.spare, TAIL_REVISIONS_MAX) + 1):
        later = _judge(operations, final, book.last + more, watches)
        if later.ok:
            return later
        decided = decided and not later.undecided
    if decided and book.spare <= TAIL_REVISIONS_MAX:
        return report
    told = f"no more than {TAIL_REVISIONS_MAX} revisions at the end explain the final state"
    return Report(undecided=(f"{told}\n{report}",))


def _judge(
    operations: Sequence[Operation],
    final: Sequence[KeyRecord] | None,
    final_revision: int,
    watches: Sequence[WatchLog],
) -> Report:
    book = Book(operations, final, final_revision)
    violations = list(book.violations)
    if not violations:
        violations = list(islice(check_real_time(operations, book.writes), REAL_TIME_REPORTED_MAX))
    if violations:
        return Report(tuple(violations))
    return _Replay(book, watches).run()


class _Guess(NamedTuple):
    """What may have made a revision: an operation, or a lease that ran out."""

    operation: int
    lease: int = 0
    doubt: int = 0


@dataclass(slots=True)
class _Gap:
    """One revision to be guessed, and what is left to try."""

    revision: int
    guesses: Iterator[_Guess]
    waiting: list[tuple[int, int, _Guess]] = field(default_factory=list)
    """Guesses that would do, as a heap of (score, number, guess)."""
    tried: int = 0
    taken: _Guess | None = None
    keys: set[bytes] = field(default_factory=set)
    """Keys that had a part in what refused the guesses so far."""
    conflicts: set[int] = field(default_factory=set)
    """Earlier gaps that did."""


class _Conflict(NamedTuple):
    """The replay cannot go on: what is wrong, and the gaps that may be to blame."""

    difference: Difference
    revision: int
    operation: int | None
    blame: set[int]


class _OutOfSteps(Exception):
    """The bound is reached."""


class _Replay:
    """The model under way through the revisions, and the stack of gaps guessed so far."""

    def __init__(self, book: Book, watches: Sequence[WatchLog]) -> None:
        self.book = book
        self.operations = book.operations
        self.model = Model()
        self.namer = Namer(book.operations, book.writes)
        self.gaps: list[_Gap] = []
        self.steps_left = STEPS_MIN + STEPS_PER_OPERATION_MAX * len(book.operations)
        self.worst: _Conflict | None = None
        self.used: dict[int, int] = {}
        """Operation -> the gap that it fills."""
        self.missing = [r for r in range(2, book.last + 1) if r not in book.writes]
        self.guessing = bool(self.missing) or book.final is not None or bool(watches)
        if self.guessing:
            self._prepare(watches)

    def _prepare(self, watches: Sequence[WatchLog]) -> None:
        book = self.book
        self.facts = Facts(self.operations, book.final, book.last, watches)
        self.known_by = KnownBy(self.operations)
        self.tenures = Tenures(self.operations)
        self.leased_keys = leased_keys(self.operations)
        self.needed_at = self._needs_of_leases()
        self.began_us = [self.operations[index].invoked_us for index in book.open]
        # A value that only one operation writes names the operation that made its revision.
        self.pins: dict[int, int] = {}
        self.gaps_of: dict[bytes, list[int]] = {}
        self.footprints: dict[int, set[bytes]] = {}
        self.deletable: dict[bytes, bool] = {}
        for revision in self.missing:
            for key, record in self.facts.shown.get(revision, {}).items():
                writers = [] if record is None else self.namer.writers(key, record.value)
                if len(writers) == 1:
                    self.pins.setdefault(writers[0], revision)
        self.pinned = {revision: index for index, revision in self.pins.items()}
        self.pressing = self.facts.pressing(self._gaps_of)

    def _needs_of_leases(self) -> dict[int, int]:
        """Lease -> the last revision whose answered write put a key on it."""
        needed: dict[int, int] = {}
        for revision, index in self.book.writes.items():
            operation = self.operations[index]
            for request, _ in ran(operation.request, operation.answer):  # type: ignore[arg-type]
                if isinstance(request, Put) and request.lease:
                    needed[request.lease] = max(revision, needed.get(request.lease, 0))
        return {
            lease: revision
            for lease, revision in needed.items()
            if len(self.tenures.by_lease.get(lease, [])) < 2
        }

    def _gaps_of(self, key: bytes) -> Sequence[int]:
        """The gaps that may have written a key."""
        gaps = self.gaps_of.get(key)
        if gaps is None:
            pinned, operations = self.pinned, self.operations
            gaps = self.gaps_of[key] = [
                gap
                for gap in self.missing
                if gap not in pinned or touches(operations[pinned[gap]].request, key)
            ]
        return gaps

    # -- the loop ---------------------------------------------------------------------------------

    def run(self) -> Report:
        """Replay everything."""
        revision = 1
        try:
            while True:
                self.steps_left -= 1
                if self.steps_left < 0:
                    raise _OutOfSteps
                conflict = self._at(revision)
                if conflict is None and revision >= self.book.last:
                    conflict = self._at_end()
                    if conflict is None:
                        return self._accept()
                if conflict is None:
                    revision += 1
                    continue
                if self.worst is None or conflict.revision >= self.worst.revision:
                    self.worst = conflict
                resumed = self._go_back(conflict.blame)
                if resumed is None:
                    return self._reject()
                revision = resumed
        except _OutOfSteps:
            told = "there are too many ways to explain unknown operations"
            if self.worst is not None:
                told += f"; the contradiction furthest on was\n{self._name(self.worst)}"
            return Report(undecided=(told,))

    def _accept(self) -> Report:
        causes = {revision: Cause(index) for revision, index in self.book.writes.items()}
        for gap in self.gaps:
            if gap.taken is not None:
                guess = gap.taken
                operation = None if guess.lease else guess.operation
                causes[gap.revision] = Cause(operation, guess.lease)
        return Report(truth=tuple(self.model.events), causes=causes)

    def _reject(self) -> Report:
        assert self.worst is not None
        return Report((self._name(self.worst),))

    def _name(self, conflict: _Conflict) -> Violation:
        index, revision = conflict.operation, conflict.revision
        operation = None if index is None else self.operations[index]
        difference = conflict.difference
        if difference.rule == UNEXPLAINED:
            shown = self.facts.shown.get(revision, {})
            known_us = self.known_by.time_us(revision)
            difference = self.namer.unexplained(revision, shown, known_us)
            if difference.rule == UNEXPLAINED and self._is_elsewhere(difference):
                difference = replace(difference, rule="write-seen-twice")
        return self.namer.name(difference, revision, operation)

    def _is_elsewhere(self, difference: Difference) -> bool:
        """Whether the only operations that can have written what was seen made other revisions."""
        record = difference.record
        if record is None:
            return False
        writers = self.namer.writers(record.key, record.value)
        return all(
            self.pins.get(index, record.mod_revision) != record.mod_revision for index in writers
        )

    def _at(self, revision: int) -> _Conflict | None:
        """Make one revision, if the model does not stand there already, and judge its reads."""
        if self.model.revision < revision:
            index = self.book.writes.get(revision)
            conflict = self._fill(revision) if index is None else self._write(revision, index)
            if conflict is not None:
                return conflict
        for index in self.book.reads.get(revision, ()):
            conflict = self._read(revision, index)
            if conflict is not None:
                return conflict
        for index in self.book.revokes.get(revision, ()):
            conflict = self._revoke(revision, index)
            if conflict is not None:
                return conflict
        return None

    def _write(self, revision: int, index: int) -> _Conflict | None:
        operation = self.operations[index]
        request, answer = operation.request, operation.answer
        expected = self.model.run(request)  # type: ignore[arg-type]
        difference = differ(expected, answer)  # type: ignore[arg-type]
        if difference is None and self.model.revision == revision:
            return self._check_watched(revision) if self.guessing else None
        if difference is None:
            difference = Difference("wrong-revision", "no change, so no revision", str(revision))
        return self._conflict(difference, revision, index)

    def _read(self, revision: int, index: int) -> _Conflict | None:
        operation = self.operations[index]
        request, answer = operation.request, operation.answer
        if isinstance(request, Range):
            expected = self.model.read(request)
            difference = differ_range(expected, answer)  # type: ignore[arg-type]
        else:
            expected = self.model.run(request)  # type: ignore[arg-type, assignment]
            difference = differ(expected, answer)  # type: ignore[arg-type]
        if difference is None:
            return None
        return self._conflict(difference, revision, index)

    def _revoke(self, revision: int, index: int) -> _Conflict | None:
        if self.used.get(index) == revision:
            return None
        lease = self.operations[index].request.lease  # type: ignore[union-attr]
        keys = self.model.leased(lease)
        if not keys:
            return None
        difference = Difference("revoked-keys-remain", "no keys", f"{keys}", keys[0])
        return self._conflict(difference, revision, index)

    def _check_watched(self, revision: int) -> _Conflict | None:
        for key, record in self.facts.watched.get(revision, {}).items():
            difference = differ_record(key, self.model.records.get(key), record, "watched-record")
            if difference is not None:
                return self._conflict(difference, revision, None)
        return None

    def _at_end(self) -> _Conflict | None:
        """Compare with the final state."""
        if self.book.final is None:
            return None
        records, wanted = self.model.records, {record.key: record for record in self.book.final}
        for key in sorted(wanted.keys() | records.keys()):
            difference = differ_record(key, records.get(key), wanted.get(key), "final-record")
            if difference is not None:
                return self._conflict(difference, self.book.last + 1, None)
        return None

    # -- guessing ---------------------------------------------------------------------------------

    def _fill(self, revision: int) -> _Conflict | None:
        gap = _Gap(revision, self._guesses(revision))
        self.gaps.append(gap)
        if self._try_next(gap):
            return None
        blame = self._give_up(self.gaps.pop())
        return _Conflict(Difference(UNEXPLAINED, "", ""), revision, None, blame)

    def _go_back(self, blame: set[int]) -> int | None:
        """Take the next guess at the newest gap to blame; the revision to go on at, or None."""
        while blame:
            newest = max(blame)
            while self.gaps[-1].revision > newest:
                self._release(self.gaps.pop())
            gap = self.gaps[-1]
            self._release(gap)
            gap.conflicts |= blame - {newest}
            if self._try_next(gap):
                return newest
            blame = self._give_up(self.gaps.pop())
        return None

    def _give_up(self, gap: _Gap) -> set[int]:
        """The earlier gaps to blame for one that nothing fills."""
        keys = gap.keys
        if not self._needs_put(gap.revision):
            # With other keys on it, a lease might have ended here.
            keys = keys.union(*self.leased_keys.values())
        return gap.conflicts | self._blame(keys, gap.revision)

    def _release(self, gap: _Gap) -> None:
        if gap.taken is not None and not gap.taken.lease:
            del self.used[gap.taken.operation]
        gap.taken = None

    def _try_next(self, gap: _Gap) -> bool:
        """Take the best guess that is left.

        One that leads towards what was seen later is taken at once. The others wait until it is
        known that no such one is among the next ones.
        """
        while True:
            guess = None if len(gap.waiting) >= WAITING_MAX else next(gap.guesses, None)
            waited = guess is None
            if guess is None:
                if not gap.waiting:
                    self.model.undo_to(gap.revision - 1)
                    return False
                guess = heappop(gap.waiting)[2]
            self.steps_left -= 1
            if self.steps_left < 0:
                raise _OutOfSteps
            self.model.undo_to(gap.revision - 1)
            refused = self._try(gap.revision, guess)
            if refused is not None:
                gap.keys |= refused
                continue
            score = 0 if waited else self._score(gap.revision) + guess.doubt
            if waited or score < 0:
                gap.taken = guess
                if not guess.lease:
                    self.used[guess.operation] = gap.revision
                return True
            gap.tried += 1
            heappush(gap.waiting, (score, gap.tried, guess))

    def _score(self, revision: int) -> int:
        """Below 0 if the revision just made brings keys nearer to what was seen of them later."""
        score = 0
        for event in self.model.events_of(revision):
            key = event.record.key
            score += self.facts.distance(key, self.model.records.get(key), revision)
            score -= self.facts.distance(key, event.previous, revision)
        return score

    def _try(self, revision: int, guess: _Guess) -> set[bytes] | None:
        """Let a guess make a revision. If it cannot have, the keys that speak against it."""
        request = None if guess.lease else self.operations[guess.operation].request
        lease = request.lease if isinstance(request, Revoke) else guess.lease
        if lease:
            self.model.end_lease(lease)
        else:
            self.model.run(request)  # type: ignore[arg-type]
        against = self._against(revision)
        if against is None:
            return None
        keys = self.leased_keys.get(lease, set()) if lease else self._footprint(guess.operation)
        return keys.union(against)

    def _footprint(self, index: int) -> set[bytes]:
        """The keys that decide what an operation does."""
        keys = self.footprints.get(index)
        if keys is None:
            keys = self.footprints[index] = set()
            request = self.operations[index].request
            if isinstance(request, Put | Delete | Range | Txn):
                for each in footprint(request):
                    if isinstance(each, Put):
                        keys.add(each.key)
                    else:
                        keys.update(interval_slice(self.facts.names, each.start, each.end))
            elif isinstance(request, Revoke):
                keys |= self.leased_keys.get(request.lease, set())
        return keys

    def _against(self, revision: int) -> list[bytes] | None:
        """The keys by which the revision just made contradicts the facts; None: it does not."""
        model = self.model
        if model.revision != revision:
            return []
        touched = set()
        for event in model.events_of(revision):
            key = event.record.key
            touched.add(key)
            made = model.records.get(key)
            if not self._allows(key, made, revision):
                return [key]
        for key, record in self.facts.shown.get(revision, {}).items():
            if key not in touched or model.records.get(key) != record:
                return [key]
        for key in self.facts.created.get(revision, ()):
            if key not in touched:
                return [key]
        for key in self.pressing.get(revision, set()) - touched:
            if not self._allows(key, model.records.get(key), revision):
                return [key]
        return None

    def _allows(self, key: bytes, record: KeyRecord | None, revision: int) -> bool:
        deletable = self.deletable.get(key)
        if deletable is None:
            deletable = self.deletable[key] = self._is_deletable(key)
        return self.facts.allows(key, record, revision, self._gaps_of(key), deletable)

    def _is_deletable(self, key: bytes) -> bool:
        """Whether an unknown operation, or the end of a lease, may delete a key."""
        if any(key in keys for keys in self.leased_keys.values()):
            return True
        return any(deletes(self.operations[index].request, key) for index in self.book.open)

    def _guesses(self, revision: int) -> Iterator[_Guess]:
        """What may have made a revision, likeliest first."""
        book = self.book
        for index in book.revokes.get(revision, ()):
            yield _Guess(index)
        known_us = self.known_by.time_us(revision)
        leases: list[int] = []
        if not self._needs_put(revision):
            leases = [each for each in self.model.leases_in_use() if self._may_end(each, revision)]
        likely = [lease for lease in leases if self.tenures.may_have_ended(lease, known_us)]
        for lease in likely:
            yield _Guess(-1, lease)
        yield from self._operations(revision, known_us)
        # An expiry before its time is told as such by the lease oracle, not here.
        for lease in leases:
            if lease not in likely:
                yield _Guess(-1, lease, UNLIKELY)

    def _needs_put(self, revision: int) -> bool:
        """Whether somebody saw what the revision put."""
        put = any(record is not None for record in self.facts.shown.get(revision, {}).values())
        return put or revision in self.facts.created

    def _may_end(self, lease: int, revision: int) -> bool:
        """Whether no answered write needed the lease after a revision."""
        return self.needed_at.get(lease, 0) < revision

    def _operations(self, revision: int, known_us: int) -> Iterator[_Guess]:
        """The unknown operations that may have made a revision, the latest begun first."""
        shown = self._shown_writers(revision)
        newest = bisect_right(self.began_us, known_us)
        for index in reversed(self.book.open[:newest]) if shown is None else shown:
            pinned = self.pins.get(index, revision)
            if self.operations[index].invoked_us > known_us or pinned != revision:
                continue
            request = self.operations[index].request
            if isinstance(request, Revoke) and not self._may_end(request.lease, revision):
                continue
            if index in self.used:
                self.gaps[-1].conflicts.add(self.used[index])
            else:
                yield _Guess(index)

    def _shown_writers(self, revision: int) -> list[int] | None:
        """The unknown operations that may have written what was seen at a revision."""
        for key, record in self.facts.shown.get(revision, {}).items():
            if record is not None:
                return self.namer.writers(key, record.value)
        return None

    def _blame(self, keys: Iterable[bytes], revision: int) -> set[int]:
        """The gaps before `revision` that may have touched the keys since they were last proved."""
        if not self.gaps or self.gaps[0].revision >= revision:
            return set()
        proved = min((self.facts.proved_before(key, revision) for key in keys), default=0)
        blame: set[int] = set()
        for gap in reversed(self.gaps):
            if gap.revision <= proved:
                break
            if gap.revision < revision:
                blame.add(gap.revision)
        return blame

    def _conflict(self, difference: Difference, revision: int, index: int | None) -> _Conflict:
        if not self.gaps:
            return _Conflict(difference, revision, index, set())
        keys: Collection[bytes] = self.facts.names
        if difference.key is not None:
            keys = [difference.key]
        elif index is not None:
            keys = self._footprint(index)
        blame = self._blame(keys, revision)
        if self.gaps[-1].revision == revision:
            blame.add(revision)
        return _Conflict(difference, revision, index, blame)
