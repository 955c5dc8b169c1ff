"""The view of one key, without revisions: what WGL judges.

A state is the key's value, or None. Everything is split by key; what an operation says of several
keys at once is lost in that, so this view is weaker than the witness check, but owes nothing to
revisions:

    put, delete, read           of one key: as they are
    delete, read of intervals   one operation for each key that the history knows in the interval;
                                of a deletion only whether nothing, or which records, went
    transactions                split by key. Compares count where they speak of this key; that one
                                of several compares failed counts only if all are of this key.
                                Numbers (version, create, mod, lease) count as far as they tell
                                whether the key was there
    serializable and old reads  dropped: they promise no place in real time
    refused, failed reads       dropped
    leases                      each may end at any time, once for each grant, and takes the key
                                with it if the value was put on it
    unknown writes              may happen at any time up to forever, or never. If their value was
                                seen, and nobody else writes it, they happened before that returned
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.linearizability.answers import operations_of, ran
from tests.linearizability.history import (
    Compare,
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
    TxnAnswer,
)
from tests.linearizability.model import DataAnswer, interval_slice
from tests.linearizability.tenures import Tenures

NEVER_US: Final = 1 << 62
HIDDEN: Final = b"(a value that nobody looked at)"

State = bytes | None
Guard = Callable[[State], bool]


class Keep:
    """The effect of leaving a key as it is."""


KEEP: Final = Keep()
Effect = State | Keep


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that an operation may have done: if all guards hold, the effect."""

    guards: tuple[Guard, ...]
    effect: Effect

    def apply(self, state: State) -> Effect:
        """The state after it, or KEEP if it cannot have happened in this state."""
        for guard in self.guards:
            if not guard(state):
                return KEEP
        return state if isinstance(self.effect, Keep) else self.effect


@dataclass(slots=True, eq=False)
class KeyOperation:
    """What one operation of a history says of one key.

    `index`: the operation in the history; -1 for the end of a lease. `required`: it happened, by
    `returned_us`; otherwise it may have, at any time after `invoked_us`, or not at all. `kind`:
    equal for those optional operations that may stand in for each other.
    """

    index: int
    invoked_us: int
    returned_us: int
    required: bool
    steps: tuple[Step, ...]
    kind: object = None


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """The kind of an operation that is the end of a lease."""

    lease: int


# ---- guards -------------------------------------------------------------------------------------


def present(state: State) -> bool:
    """The key is there."""
    return state is not None


def is_value(value: State) -> Guard:
    """The key has this value; None: it is not there."""
    return lambda state: state == value


def may_hold(compare: Compare, wanted: bool) -> Guard:
    """Whether a compare may have come out as wanted, by what a value alone tells."""
    operand, relation = compare.value, _RELATIONS[compare.operator]
    if compare.target == "value":
        return lambda state: (state is not None and relation(state, operand)) is wanted
    assert isinstance(operand, int)
    absent = relation(0, operand) is wanted
    least = 0 if compare.target == "lease" else 1
    # Of a key that is there the number may be anything from `least` up.
    samples = {least, max(least, operand - 1), max(least, operand), max(least, operand + 1)}
    there = any(relation(number, operand) is wanted for number in samples)
    return lambda state: absent if state is None else there


_RELATIONS: Final[dict[str, Callable[..., bool]]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}


# ---- splitting ----------------------------------------------------------------------------------


def split(operations: Sequence[Operation]) -> dict[bytes, list[KeyOperation]]:
    """A history by key. Keys that nobody names alone, puts or is shown do not count."""
    return _Split(operations).run()


class _Split:
    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations
        self.names = sorted(_names(operations))
        self.by_key: dict[bytes, list[KeyOperation]] = {name: [] for name in self.names}
        self.seen_us: dict[tuple[bytes, bytes], int] = {}
        """(key, value) -> the earliest return of an operation that was shown it."""
        self.looked_at: set[tuple[bytes, bytes]] = set()
        """Values that some guard asks for, so that they cannot be hidden."""
        self.ordered: set[bytes] = set()
        """Keys whose values are compared by order."""
        self.reads: dict[State, tuple[Step, ...]] = {}
        """The step of every read that was shown a value."""

    def run(self) -> dict[bytes, list[KeyOperation]]:
        for operation in self.operations:
            self._look(operation)
        self._look_at_leases()
        happened = self._happened()
        for index, operation in enumerate(self.operations):
            if operation.outcome is Outcome.OK:
                self._add_answered(index, operation)
            elif operation.outcome is Outcome.UNKNOWN:
                self._add_unknown(index, operation, happened.get(index, NEVER_US))
        self._add_lease_ends()
        return self.by_key

    # -- what was looked at -----------------------------------------------------------------------

    def _look(self, operation: Operation) -> None:
        request, answer = operation.request, operation.answer
        for compare in _compares(request) if isinstance(request, Txn) else ():
            if isinstance(compare.value, bytes):
                self.looked_at.add((compare.key, compare.value))
                if compare.operator in "<>":
                    self.ordered.add(compare.key)
        if operation.outcome is not Outcome.OK or operation.returned_us is None:
            return
        if isinstance(request, Put | Delete | Range | Txn):
            for _, each in ran(request, answer):  # type: ignore[arg-type]
                for record in _records(each):
                    at = (record.key, record.value)
                    before_us = self.seen_us.get(at, NEVER_US)
                    self.seen_us[at] = min(before_us, operation.returned_us)
                    self.looked_at.add(at)

    def _look_at_leases(self) -> None:
        for operation in self.operations:
            for put in _puts(operation):
                if put.lease:
                    self.looked_at.add((put.key, put.value))

    def _happened(self) -> dict[int, int]:
        """Unknown operation -> when somebody had seen its value, which only it can have written."""
        writers: dict[tuple[bytes, bytes], set[int]] = {}
        for index, operation in enumerate(self.operations):
            if operation.outcome is not Outcome.REFUSED:
                for put in _puts(operation):
                    writers.setdefault((put.key, put.value), set()).add(index)
        happened: dict[int, int] = {}
        for at, seen_us in self.seen_us.items():
            who = writers.get(at, set())
            if len(who) == 1:
                [index] = who
                happened[index] = min(seen_us, happened.get(index, NEVER_US))
        return happened

    def _effect(self, key: bytes, value: bytes) -> bytes:
        hidden = (key, value) not in self.looked_at and key not in self.ordered
        return HIDDEN if hidden else value

    # -- answered operations ----------------------------------------------------------------------

    def _add_answered(self, index: int, operation: Operation) -> None:
        request, answer = operation.request, operation.answer
        if isinstance(request, Range) and (request.serializable or request.revision):
            return
        if not isinstance(request, Put | Delete | Range | Txn) or operation.returned_us is None:
            return
        if isinstance(request, Range) and isinstance(answer, RangeAnswer):
            self._add_read(index, operation, request, answer)
            return
        guards: dict[bytes, list[Guard]] = {}
        effects: dict[bytes, State] = {}
        if isinstance(request, Txn) and isinstance(answer, TxnAnswer):
            _guard_compares(request, answer, guards)
        for each, its_answer in ran(request, answer):  # type: ignore[arg-type]
            if isinstance(each, Put):
                self._see_put(each, its_answer, guards, effects)
            elif isinstance(each, Delete):
                self._see_delete(each, its_answer, guards, effects)
            elif isinstance(each, Range) and not each.revision:
                self._see_range(each, its_answer, guards, effects)
        for key in guards.keys() | effects.keys():
            step = Step(tuple(guards.get(key, ())), effects.get(key, KEEP))
            self.by_key[key].append(
                KeyOperation(index, operation.invoked_us, operation.returned_us, True, (step,))
            )

    def _add_read(
        self, index: int, operation: Operation, request: Range, answer: RangeAnswer
    ) -> None:
        """By far the most of what there is to split, so its steps are shared."""
        invoked_us, returned_us = operation.invoked_us, operation.returned_us or NEVER_US
        for name, value in self._shown(request, answer):
            steps = self.reads.get(value)
            if steps is None:
                steps = self.reads[value] = (Step((is_value(value),), KEEP),)
            self.by_key[name].append(KeyOperation(index, invoked_us, returned_us, True, steps))

    def _shown(self, request: Range, answer: RangeAnswer) -> Iterator[tuple[bytes, State]]:
        """What a read tells of each key of its interval."""
        values = {record.key: record.value for record in answer.records}
        last = max(values, default=b"") if answer.more else None
        for name in interval_slice(self.names, request.start, request.end):
            if last is None or name <= last:
                yield name, values.get(name)

    def _see_put(
        self,
        put: Put,
        answer: DataAnswer,
        guards: dict[bytes, list[Guard]],
        effects: dict[bytes, State],
    ) -> None:
        if put.want_previous and isinstance(answer, PutAnswer):
            before = None if answer.previous is None else answer.previous.value
            guards.setdefault(put.key, []).append(is_value(before))
        effects[put.key] = self._effect(put.key, put.value)

    def _see_delete(
        self,
        delete: Delete,
        answer: DataAnswer,
        guards: dict[bytes, list[Guard]],
        effects: dict[bytes, State],
    ) -> None:
        assert isinstance(answer, DeleteAnswer)
        before = {record.key: record.value for record in answer.previous}
        for name in interval_slice(self.names, delete.start, delete.end):
            if name not in effects:
                guard: list[Guard] = guards.setdefault(name, [])
                if delete.want_previous or not answer.deleted:
                    guard.append(is_value(before.get(name)))
                elif delete.end is None:
                    guard.append(present)
            effects[name] = None

    def _see_range(
        self,
        request: Range,
        answer: DataAnswer,
        guards: dict[bytes, list[Guard]],
        effects: dict[bytes, State],
    ) -> None:
        assert isinstance(answer, RangeAnswer)
        for name, value in self._shown(request, answer):
            # What the transaction itself wrote before says nothing of the state before it.
            if name not in effects:
                guards.setdefault(name, []).append(is_value(value))

    # -- unknown operations -----------------------------------------------------------------------

    def _add_unknown(self, index: int, operation: Operation, seen_us: int) -> None:
        request = operation.request
        if not isinstance(request, Put | Delete | Txn):
            return
        required = seen_us != NEVER_US
        for key in _touched(request, self.names):
            steps = tuple(self._steps(request, key, required))
            kind: object = index
            if isinstance(request, Delete):
                kind = "delete"
            elif isinstance(request, Put) and steps[0].effect == HIDDEN:
                kind = "hidden"
            self.by_key[key].append(
                KeyOperation(index, operation.invoked_us, seen_us, required, steps, kind)
            )

    def _steps(self, request: Put | Delete | Txn, key: bytes, required: bool) -> Iterator[Step]:
        if isinstance(request, Put):
            yield Step((), self._effect(key, request.value))
        elif isinstance(request, Delete):
            # Of a key that is not there it does nothing.
            yield Step((present,), None)
        else:
            for guards, branch in _branches(request, key):
                effect = self._branch_effect(branch, key)
                if required or not isinstance(effect, Keep):
                    yield Step(guards, effect)

    def _branch_effect(self, branch: Sequence[Put | Delete], key: bytes) -> Effect:
        effect: Effect = KEEP
        for each in branch:
            if isinstance(each, Put) and each.key == key:
                effect = self._effect(key, each.value)
            elif isinstance(each, Delete) and interval_slice([key], each.start, each.end):
                effect = None
        return effect

    # -- leases -----------------------------------------------------------------------------------

    def _add_lease_ends(self) -> None:
        values: dict[tuple[int, bytes], set[bytes]] = {}
        begun_us: dict[tuple[int, bytes], int] = {}
        for operation in self.operations:
            for put in _puts(operation):
                if put.lease and operation.outcome is not Outcome.REFUSED:
                    at = (put.lease, put.key)
                    values.setdefault(at, set()).add(put.value)
                    before_us = begun_us.get(at, NEVER_US)
                    begun_us[at] = min(before_us, operation.invoked_us)
        lives = Tenures(self.operations).by_lease
        for (lease, key), mine in values.items():
            step = Step((mine.__contains__,), None)
            end = KeyOperation(-1, begun_us[lease, key], NEVER_US, False, (step,), LeaseEnd(lease))
            self.by_key[key] += [end] * max(1, len(lives.get(lease, ())))


def _guard_compares(txn: Txn, answer: TxnAnswer, guards: dict[bytes, list[Guard]]) -> None:
    """What the branches taken tell of the state before, nested transactions included."""
    if answer.succeeded:
        for compare in txn.compares:
            guards.setdefault(compare.key, []).append(may_hold(compare, True))
    else:
        keys = {compare.key for compare in txn.compares}
        if len(keys) == 1:
            guards.setdefault(min(keys), []).append(_fails(txn.compares))
    branch = txn.success if answer.succeeded else txn.failure
    for each, its_answer in zip(branch, answer.answers, strict=False):
        if isinstance(each, Txn) and isinstance(its_answer, TxnAnswer):
            _guard_compares(each, its_answer, guards)


def _fails(compares: Sequence[Compare]) -> Guard:
    some = [may_hold(compare, False) for compare in compares]
    return lambda state: any(guard(state) for guard in some)


def _branches(txn: Txn, key: bytes) -> Iterator[tuple[tuple[Guard, ...], list[Put | Delete]]]:
    """Each way through a transaction: what it asks of one key, and the writes it makes."""
    mine = [compare for compare in txn.compares if compare.key == key]
    others = len(mine) < len(txn.compares)
    holds = tuple(may_hold(compare, True) for compare in mine)
    for rest, writes in _ways(txn.success, key):
        yield (*holds, *rest), writes
    if txn.compares:
        fails = () if others else (_fails(mine),)
        for rest, writes in _ways(txn.failure, key):
            yield (*fails, *rest), writes


def _ways(
    operations: Sequence[Put | Delete | Range | Txn], key: bytes
) -> Iterator[tuple[tuple[Guard, ...], list[Put | Delete]]]:
    ways: list[tuple[tuple[Guard, ...], list[Put | Delete]]] = [((), [])]
    for each in operations:
        if isinstance(each, Put | Delete):
            ways = [(guards, [*writes, each]) for guards, writes in ways]
        elif isinstance(each, Txn):
            nested = list(_branches(each, key))
            ways = [
                ((*guards, *more), [*writes, *inside])
                for guards, writes in ways
                for more, inside in nested
            ]
    return iter(ways)


def _compares(txn: Txn) -> Iterator[Compare]:
    yield from txn.compares
    for each in (*txn.success, *txn.failure):
        if isinstance(each, Txn):
            yield from _compares(each)


def _puts(operation: Operation) -> Iterator[Put]:
    request = operation.request
    if isinstance(request, Put | Txn):
        for each in operations_of(request):
            if isinstance(each, Put):
                yield each


def _touched(request: Put | Delete | Txn, names: list[bytes]) -> list[bytes]:
    touched: set[bytes] = set()
    for each in operations_of(request):
        if isinstance(each, Put):
            touched.add(each.key)
        elif isinstance(each, Delete):
            touched.update(interval_slice(names, each.start, each.end))
    return sorted(touched)


def _records(answer: DataAnswer) -> tuple[KeyRecord, ...]:
    if isinstance(answer, RangeAnswer):
        return answer.records
    if isinstance(answer, DeleteAnswer):
        return answer.previous
    if isinstance(answer, PutAnswer) and answer.previous is not None:
        return (answer.previous,)
    return ()


def _names(operations: Sequence[Operation]) -> set[bytes]:
    names: set[bytes] = set()
    for operation in operations:
        request = operation.request
        if isinstance(request, Put | Delete | Range | Txn):
            for each in operations_of(request):
                if isinstance(each, Put):
                    names.add(each.key)
                elif each.end is None:
                    names.add(each.start)
            if operation.outcome is Outcome.OK:
                for _, answer in ran(request, operation.answer):  # type: ignore[arg-type]
                    names.update(record.key for record in _records(answer))
        if isinstance(request, Txn):
            names.update(compare.key for compare in _compares(request))
    return names
