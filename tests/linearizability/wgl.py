"""Linearizability of one key by search: Wing and Gong, with Lowe's memory of what failed.

G. Lowe, "Testing for linearizability" (2017). The search linearises operations one by one, in any
order that real time allows, and remembers each (set of operations, state) that it has been in: the
way there does not matter. Sets are bits of an int, counted from the first operation that is not
linearised yet, so they stay as narrow as the history is concurrent.

Operations that may never have happened are tried last, only the earliest of those that are alike,
and only just before one that needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from operator import itemgetter
from typing import Final, NamedTuple

from tests.linearizability.perkey import KEEP, Effect, Keep, KeyOperation, State

STEPS_MIN: Final = 200_000
STEPS_PER_OPERATION_MAX: Final = 50


class Verdict(Enum):
    """What the search came to. Not decided is never a pass."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    NOT_DECIDED = "not decided"


@dataclass(frozen=True, slots=True)
class Search:
    """The verdict on one key.

    `order`: a linearization, if there is one, else the longest that was found. `stuck`: the
    operation that had to come next and could not; None if there is none.
    """

    verdict: Verdict
    order: tuple[KeyOperation, ...]
    stuck: KeyOperation | None = None
    state: State = None
    """The state in which it was stuck."""


class _Choice(NamedTuple):
    operation: int
    """A number of the required ones, or -1."""
    optional: int
    """A number of the kinds, if it is none of the required ones."""
    state: State


@dataclass(slots=True)
class _Node:
    """One position of the search: how it was come to, and what is left to try."""

    choices: Iterator[_Choice]
    taken: KeyOperation | None
    state: State
    first: int
    ahead: int
    undo: _Choice | None = None
    counts: tuple[int, ...] = field(default=())
    without: Effect = KEEP
    """After an optional operation, the state before it."""


def search(operations: Sequence[KeyOperation], steps_max: int = 0) -> Search:
    """Look for a linearization. `steps_max` 0: in proportion to the number of operations."""
    steps = steps_max or STEPS_MIN + STEPS_PER_OPERATION_MAX * len(operations)
    return _Searcher(operations, steps).run()


def follow(operations: Sequence[KeyOperation], places: Sequence[int | None]) -> bool:
    """Whether an order, wherever it is from, is a linearization. Much cheaper than a search.

    `places`: for each operation its place in the order, the same for those that changed nothing in
    between; None: it did not happen. An optional operation may also be left out.
    """
    chosen = []
    for place, operation in zip(places, operations, strict=True):
        if place is not None:
            chosen.append((place, operation.invoked_us, operation))
        elif operation.required:
            return False
    chosen.sort(key=itemgetter(0, 1))
    # An operation may have had several ways to happen, and so lead to several states.
    states: set[State] = {None}
    latest_us = 0
    for _, invoked_us, operation in chosen:
        ways = (step.apply(state) for state in states for step in operation.steps)
        after: set[State] = {way for way in ways if not isinstance(way, Keep)}
        if not after and not operation.required:
            continue
        # Whoever comes after must not have returned before this one began.
        if not after or operation.returned_us < latest_us:
            return False
        states = after if operation.required else states | after
        latest_us = max(latest_us, invoked_us)
    return True


class _Searcher:
    def __init__(self, operations: Sequence[KeyOperation], steps_max: int) -> None:
        self.steps_left = steps_max
        self.required = sorted(
            (each for each in operations if each.required), key=lambda each: each.invoked_us
        )
        kinds: dict[object, list[KeyOperation]] = {}
        for each in operations:
            if not each.required:
                kinds.setdefault(each.kind, []).append(each)
        self.kinds = [sorted(each, key=lambda one: one.invoked_us) for each in kinds.values()]
        self.returns = _Returns(self.required)

    def run(self) -> Search:
        state: State = None
        root = _Node(iter(()), None, state, 0, 0, counts=(0,) * len(self.kinds))
        root.choices = self._choices(root)
        path = [root]
        seen = {(0, 0, root.counts, state)}
        best: list[KeyOperation] = []
        stuck: KeyOperation | None = None
        stuck_state: State = None
        while path:
            node = path[-1]
            if node.first == len(self.required):
                return Search(Verdict.LINEARIZABLE, self._order(path))
            if stuck is None or len(path) > len(best) + 1:
                best = list(self._order(path))
                stuck, stuck_state = self._next_due(), node.state
            choice = next(node.choices, None)
            if choice is None:
                path.pop()
                if node.undo is not None and node.undo.operation >= 0:
                    self.returns.restore(node.undo.operation)
                continue
            self.steps_left -= 1
            if self.steps_left < 0:
                return Search(Verdict.NOT_DECIDED, tuple(best), stuck, stuck_state)
            after = self._take(node, choice)
            at = (after.first, after.ahead, after.counts, after.state)
            if at in seen:
                continue
            seen.add(at)
            if choice.operation >= 0:
                self.returns.remove(choice.operation)
            after.choices = self._choices(after)
            path.append(after)
        return Search(Verdict.NOT_LINEARIZABLE, tuple(best), stuck, stuck_state)

    @staticmethod
    def _order(path: list[_Node]) -> tuple[KeyOperation, ...]:
        return tuple(node.taken for node in path if node.taken is not None)

    def _next_due(self) -> KeyOperation:
        return self.required[self.returns.first()]

    def _take(self, node: _Node, choice: _Choice) -> _Node:
        first, ahead, counts = node.first, node.ahead, node.counts
        if choice.operation >= 0:
            taken = self.required[choice.operation]
            ahead |= 1 << (choice.operation - first)
            while ahead & 1:
                ahead >>= 1
                first += 1
            return _Node(iter(()), taken, choice.state, first, ahead, choice, counts)
        kind = choice.optional
        taken = self.kinds[kind][counts[kind]]
        counts = (*counts[:kind], counts[kind] + 1, *counts[kind + 1 :])
        return _Node(iter(()), taken, choice.state, first, ahead, choice, counts, node.state)

    def _choices(self, node: _Node) -> Iterator[_Choice]:
        """What can come next: whatever began before the first return that is still due."""
        required = self.required
        due = self.returns.first()
        if due < 0:
            return
        until_us = required[due].returned_us
        yield from self._ways(node, required[due], due, -1)
        number, ahead = node.first, node.ahead
        while number < len(required) and required[number].invoked_us <= until_us:
            if not ahead & 1 and number != due:
                yield from self._ways(node, required[number], number, -1)
            ahead >>= 1
            number += 1
        for kind, (alike, count) in enumerate(zip(self.kinds, node.counts, strict=True)):
            if count < len(alike) and alike[count].invoked_us <= until_us:
                yield from self._ways(node, alike[count], -1, kind)

    @staticmethod
    def _ways(node: _Node, operation: KeyOperation, number: int, kind: int) -> Iterator[_Choice]:
        for step in operation.steps:
            after = step.apply(node.state)
            if isinstance(after, Keep):
                continue
            # Who is optional must change something, and something that the next one needs:
            # otherwise it might as well not have happened.
            if number < 0 and after in (node.state, node.without):
                continue
            if not isinstance(node.without, Keep) and any(
                each.apply(node.without) == after for each in operation.steps
            ):
                continue
            yield _Choice(number, kind, after)


class _Returns:
    """The required operations by their returns, with removal and its undoing in reverse order."""

    def __init__(self, required: Sequence[KeyOperation]) -> None:
        count = len(required)
        by_return = sorted(range(count), key=lambda number: required[number].returned_us)
        self._next = [count] * (count + 1)
        self._previous = [count] * (count + 1)
        chain = [count, *by_return, count]
        for before, after in pairwise(chain):
            self._next[before] = after
            self._previous[after] = before
        self._end = count

    def first(self) -> int:
        """The one that is due first; -1 if none is left."""
        first = self._next[self._end]
        return -1 if first == self._end else first

    def remove(self, number: int) -> None:
        """It is linearised."""
        before, after = self._previous[number], self._next[number]
        self._next[before] = after
        self._previous[after] = before

    def restore(self, number: int) -> None:
        """It is not, after all."""
        before, after = self._previous[number], self._next[number]
        self._next[before] = number
        self._previous[after] = number
