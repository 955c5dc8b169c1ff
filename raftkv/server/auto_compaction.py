"""Which revision to compact at, by age or by number of revisions: etcd's automatic compaction.

Every member notes the store's revision now and then, so that whoever leads, and for however short a
time, knows how old a revision is; only the leader acts on it, by a command in the log. A member
that was away, or lags, notes less than there was and therefore keeps more, never less. What was
noted ends with the process: once all members were restarted, at once or in turn, compaction by age
goes on when they have run for as long as history is kept.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum
from typing import Final, NamedTuple

from raftkv.errors import InvalidRequest
from raftkv.limits import (
    AUTO_COMPACTION_RETENTION_SECONDS_MAX,
    AUTO_COMPACTION_SAMPLE_SECONDS_MAX,
    AUTO_COMPACTION_SAMPLES,
    AUTO_COMPACTION_SECONDS,
)

_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h)")


class Mode(Enum):
    """What the retention counts; named as in etcd."""

    PERIODIC = "periodic"
    REVISION = "revision"


class Retention(NamedTuple):
    """How much history is kept."""

    mode: Mode
    amount: int
    """Milliseconds, or revisions; 0: all of it."""


KEEP_ALL: Final = Retention(Mode.PERIODIC, 0)


def parse_retention(mode: str, text: str) -> Retention:
    """As etcd reads its two flags. A bare number with `periodic` is hours; also 90m or 1h30m.

    Raises InvalidRequest.
    """
    try:
        kind = Mode(mode)
    except ValueError:
        raise InvalidRequest(f"must be periodic or revision, not {mode!r}") from None
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,18}", text):
        number = int(text)
        amount = number * 3_600_000 if kind is Mode.PERIODIC else number
    elif kind is Mode.PERIODIC and text and not _PART.sub("", text):
        amount = int(
            sum(float(one) * _UNIT_SECONDS[unit] for one, unit in _PART.findall(text)) * 1000
        )
    elif kind is Mode.PERIODIC:
        raise InvalidRequest(f"must be hours such as 1, or a time such as 30m, not {text!r}")
    else:
        raise InvalidRequest(f"must be a number of revisions, not {text!r}")
    if kind is Mode.PERIODIC and amount > AUTO_COMPACTION_RETENTION_SECONDS_MAX * 1000:
        raise InvalidRequest(f"must be at most {AUTO_COMPACTION_RETENTION_SECONDS_MAX // 3600} h")
    if kind is Mode.PERIODIC and 0 < amount < 1000:
        raise InvalidRequest("must be at least a second")
    return Retention(kind, amount)


class AutoCompaction:
    """One member's notes, and its judgement when it leads. Knows no clock."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        seconds = AUTO_COMPACTION_SECONDS
        if retention.mode is Mode.PERIODIC:
            seconds = min(
                max(1, retention.amount // 1000 // AUTO_COMPACTION_SAMPLES),
                AUTO_COMPACTION_SAMPLE_SECONDS_MAX,
            )
        self._interval_ms = seconds * 1000
        self._next_ms = 0
        self._noted: deque[tuple[int, int]] = deque()
        """(when, revision then), oldest first; none older than is needed."""

    def due(self, now_ms: int, revision: int, compact_revision: int, *, leads: bool) -> int:
        """The revision to compact at now; 0: none. To be called about once a second.

        `now_ms` never goes back. What was due and did not happen comes back after the interval.
        """
        if not self._retention.amount or now_ms < self._next_ms:
            return 0
        self._next_ms = now_ms + self._interval_ms
        target = self._by_age(now_ms, revision)
        if self._retention.mode is Mode.REVISION:
            target = revision - self._retention.amount
        return target if leads and target > max(1, compact_revision) else 0

    def _by_age(self, now_ms: int, revision: int) -> int:
        if self._retention.mode is not Mode.PERIODIC:
            return 0
        noted = self._noted
        noted.append((now_ms, revision))
        past = now_ms - self._retention.amount
        while len(noted) > 1 and noted[1][0] <= past:
            noted.popleft()
        return noted[0][1] if noted[0][0] <= past else 0
