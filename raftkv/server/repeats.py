"""Which numbered messages of other members came already: a network may deliver one twice, or late.

A leader must take a forwarded batch on once, and must not call it refused when an earlier copy was
taken on. Every copy names the term it was forwarded in, goes to that term's leader, and is of use
in that term only; no process leads a term twice. So what one run of the leader remembers of one
term is enough, and nothing of it has to be replicated or stored. Pure.
"""

from __future__ import annotations

from collections import OrderedDict

from raftkv.limits import REPEAT_RUNS_MAX, REPEAT_WINDOW

_MASK = (1 << REPEAT_WINDOW) - 1


class Repeats:
    """Numbers seen in `term`, by the run of the member that counted them.

    A run is a member and its boot, for numbers begin anew with each. They may come in any order,
    but one that comes REPEAT_WINDOW behind the greatest passes for a repeat, so it has no effect
    and its sender finds out by time-out. A run that REPEAT_RUNS_MAX others have followed is
    forgotten.
    """

    __slots__ = ("_runs", "term")

    def __init__(self) -> None:
        self.term = 0
        self._runs: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()
        """Run -> (greatest number, bit n: whether the greatest minus n was seen)."""

    def begin(self, term: int) -> None:
        """Numbers seen from now on belong to `term`; those of earlier terms are forgotten."""
        if term != self.term:
            self.term = term
            self._runs.clear()

    def first(self, member: int, boot: int, number: int) -> bool:
        """Whether this is the first copy of a message; it is noted."""
        runs = self._runs
        run = (member, boot)
        known = runs.get(run)
        if known is None:
            runs[run] = number, 1
            if len(runs) > REPEAT_RUNS_MAX:
                runs.popitem(last=False)
            return True
        runs.move_to_end(run)
        greatest, seen = known
        if number > greatest:
            ahead = number - greatest
            seen = (seen << ahead | 1) & _MASK if ahead < REPEAT_WINDOW else 1
            runs[run] = number, seen
            return True
        behind = greatest - number
        if behind >= REPEAT_WINDOW or seen >> behind & 1:
            return False
        runs[run] = greatest, seen | 1 << behind
        return True
