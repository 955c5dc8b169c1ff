"""Which failures may be tried again, and when. Pure: no clock, no sockets, no chance of its own.

The rule behind it all is that a write must never be done twice. After a failure:

- *refused* by the cluster for a reason that passes (no leader, stopping, ...): nothing happened,
  so any call may be repeated;
- *unreachable*: nothing was sent, so any call may be repeated;
- *unknown* (time-out or reset after sending): reads may be repeated, writes only under an
  idempotency key, which makes the machine give the first answer again.

Once one attempt of a write is in doubt, a later refusal by some door proves nothing about it: only
an answer of the replicated machine settles the matter.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from raftkv.client.errors import Unreachable
from raftkv.errors import (
    AuthRevisionOld,
    Corrupt,
    LeadershipLost,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    RaftkvError,
    ReadTimedOut,
    Refused,
    Stopping,
    TooManyRequests,
)

BACKOFF_SECONDS_FIRST: Final = 0.02
BACKOFF_SECONDS_MAX: Final = 1.0
ATTEMPT_SECONDS_MIN = 0.02
"""With less time left no attempt is begun: it could only turn a refusal into the unknown."""
KEYED_RETRY_SECONDS_MAX: Final = 10.0
"""How long a write in doubt is repeated. Members remember keys for ten minutes, but only the last
100,000 of them, which a cluster under full load may use up in little more than this."""


class Kind(enum.Enum):
    """How a call may be repeated."""

    READ = "read"
    """Changes nothing, or nothing more when repeated."""
    KEYED = "keyed"
    """A write under an idempotency key."""
    BARE = "bare"
    """A write that must not be repeated while its outcome is unknown."""


_PASSING: Final = (
    NoLeader,
    NotLeader,
    LeadershipLost,
    Stopping,
    Corrupt,
    TooManyRequests,
    ReadTimedOut,
    AuthRevisionOld,
    Unreachable,
)

_DECIDED_BY_MACHINE: Final = frozenset(
    {
        "precondition_failed",
        "key_not_found",
        "compacted",
        "future_revision",
        "lease_not_found",
        "lease_exists",
        "instance_not_found",
        "instance_claimed",
        "idempotency_mismatch",
        "no_space",
    }
)


def may_repeat(error: RaftkvError, kind: Kind) -> bool:
    """Whether the call may be sent again after it failed with `error`."""
    if isinstance(error, OutcomeUnknown):
        return kind is not Kind.BARE
    return isinstance(error, _PASSING)


@dataclass(slots=True)
class Attempts:
    """The memory of one call: what failed so far and what to do next.

    `endpoints` is how many there are, `patience` the seconds for which a cluster that cannot be
    reached at all is tried again, `chance` a source of numbers in [0, 1) for the jitter.
    """

    kind: Kind
    endpoints: int
    started: float
    deadline: float
    patience: float
    chance: Callable[[], float]
    failures: int = 0
    unreachable: int = 0
    doubt: OutcomeUnknown | None = None
    last: RaftkvError | None = None
    logs_in_again: bool = True
    """The call may still be sent again after a fresh login."""

    def failed(self, error: RaftkvError, now: float) -> float | None:
        """Note a failure at `now`; the pause in seconds before the next attempt, None to give up.

        Giving up, raise what `verdict` answers.
        """
        self.failures += 1
        self.last = error
        self.unreachable = self.unreachable + 1 if isinstance(error, Unreachable) else 0
        if isinstance(error, OutcomeUnknown) and self.kind is not Kind.READ:
            self.doubt = self.doubt or error
        if not may_repeat(error, self.kind):
            return None
        if self.doubt is not None and now - self.started > KEYED_RETRY_SECONDS_MAX:
            return None
        if self.unreachable >= self.endpoints and now - self.started >= self.patience:
            return None
        pause = self._pause(error)
        return pause if now + pause + ATTEMPT_SECONDS_MIN < self.deadline else None

    def verdict(self) -> RaftkvError:
        """The error to raise: the last one, unless an earlier attempt of a write is in doubt."""
        last = self.last or ReadTimedOut("the deadline passed before the call was sent")
        if self.doubt is None or last is self.doubt:
            return last
        if isinstance(last, Refused) and last.code in _DECIDED_BY_MACHINE:
            return last
        return OutcomeUnknown(
            f"{self.doubt.message}; later attempts ended with: {last.message}",
            **self.doubt.facts,
        )

    def share(self, now: float) -> float:
        """Seconds that the next attempt may take: all that is left with one endpoint, else half.

        Half, so that a member which accepts connections and then says nothing cannot use up the
        whole deadline.
        """
        left = self.deadline - now
        return left if self.endpoints == 1 else max(left / 2, min(left, 1.0))

    def _pause(self, error: RaftkvError) -> float:
        asked = error.facts.get("retry_after") if isinstance(error, TooManyRequests) else None
        if isinstance(asked, int | float):
            return min(float(asked), BACKOFF_SECONDS_MAX) * (0.5 + self.chance() / 2)
        rounds, within_round = divmod(self.failures, self.endpoints)
        if within_round and not isinstance(error, TooManyRequests | NoLeader | LeadershipLost):
            return 0.0
        ceiling = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_FIRST * 2.0 ** min(rounds, 10))
        return ceiling * (0.5 + self.chance() / 2)
