"""What clients were told against what watches and reads show. Pure: times and events are given.

Every value is written once only, so an event says which write it is of.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

FAULTS_KEPT: Final = 50
REFUSED_KEPT: Final = 200_000
SLOPE_POINTS_MAX: Final = 400


@dataclass(slots=True)
class Faults:
    """Sentences about what does not hold; the run fails with any."""

    said: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, sentence: str) -> None:
        """One more."""
        self.count += 1
        if len(self.said) < FAULTS_KEPT:
            self.said.append(sentence)


@dataclass(slots=True, eq=False)
class Write:
    """One write of one key; `value` None deletes it."""

    key: str
    value: str | None


@dataclass(slots=True)
class Standing:
    """What a key holds as far as its writers know."""

    value: str | None = None
    revision: int = 0
    """Of the last acknowledged write, or of a later one that a watch showed."""
    unknown: set[str | None] = field(default_factory=set)
    """Writes whose outcome nobody told, and no watch has shown."""


class Follower:
    """One watch of the whole prefix, over all its connections."""

    def __init__(self, name: str, faults: Faults) -> None:
        self.name = name
        self._faults = faults
        self.last = 0
        """Revision of the last event."""
        self.complete = 0
        """Every event up to this revision was given."""
        self.seen: dict[tuple[int, str], str | None] = {}
        """Events that were not held against the ledger yet."""
        self._again: set[tuple[int, str]] = set()
        self.state: dict[str, tuple[str, int]] = {}
        """Every key with its value and revision, by the events alone."""
        self.events = 0

    def resumed(self) -> None:
        """The watch was opened anew after `complete`: what came of a later revision may come
        once more."""
        self._again = {at for at in self.seen if at[0] > self.complete}

    def event(self, revision: int, key: str, value: str | None) -> None:
        """A put, or with None a delete."""
        at = (revision, key)
        if at in self._again:
            self._again.discard(at)
            return
        if at in self.seen or revision <= self.complete:
            self._faults.add(f"{self.name} was told of {key} at revision {revision} twice")
            return
        if revision < self.last:
            self._faults.add(
                f"{self.name} was told of revision {revision} after revision {self.last}"
            )
        self.events += 1
        self.last = max(self.last, revision)
        self.seen[at] = value
        before = self.state.pop(key, None)
        if value is not None:
            self.state[key] = (value, revision)
            self._count(key, before, value, revision)

    def _count(self, key: str, before: tuple[str, int] | None, value: str, revision: int) -> None:
        """Counters are read and written back only if unchanged: they go up by one each time."""
        if not is_counter(key):
            return
        was = count_of(before[0]) if before else 0
        if count_of(value) != was + 1:
            self._faults.add(
                f"the counter {key} went from {was} to {count_of(value)} at revision {revision}: "
                "an increment was lost or done twice"
            )


def is_counter(key: str) -> bool:
    """Whether a key counts; see `count_of`."""
    return "/c/" in key


def count_of(value: str) -> int:
    """The number in a counter's value, NUMBER:UNIQUE."""
    return int(value.partition(":")[0])


class Ledger:
    """All writes under one prefix, and the watches that look on."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.keys: dict[str, Standing] = {}
        self.followers: list[Follower] = []
        self.acknowledged_writes = 0
        self.confirmed_writes = 0
        """Acknowledged, and shown by every watch."""
        self.reads_checked = 0
        self._under_way: dict[tuple[str, str | None], int] = {}
        self._unknown: dict[tuple[str, str | None], int] = {}
        self._refused: dict[tuple[str, str], None] = {}
        self._acknowledged: dict[tuple[int, str], str | None] = {}

    def begin(self, key: str, value: str | None) -> Write:
        """A write is about to be sent."""
        at = (key, value)
        self._under_way[at] = self._under_way.get(at, 0) + 1
        return Write(key, value)

    def acknowledge(self, write: Write, revision: int) -> None:
        """It was done at `revision`."""
        self._end(write)
        self.acknowledged_writes += 1
        self._acknowledged[revision, write.key] = write.value
        self._stands(write.key, write.value, revision)

    def nothing(self, write: Write) -> None:
        """It was answered that nothing had to be done: the key to delete was not there."""
        self._end(write)

    def refuse(self, write: Write) -> None:
        """It was definitely not done."""
        self._end(write)
        if write.value is not None:
            self._refused[write.key, write.value] = None
            if len(self._refused) > REFUSED_KEPT:
                del self._refused[next(iter(self._refused))]

    def lose_sight(self, write: Write) -> None:
        """Its outcome is unknown."""
        self._end(write)
        at = (write.key, write.value)
        self._unknown[at] = self._unknown.get(at, 0) + 1
        self.keys.setdefault(write.key, Standing()).unknown.add(write.value)

    def read(self, key: str, value: str | None, revision: int) -> None:
        """A linearizable read while nobody wrote the key; `revision` of its last write."""
        self.reads_checked += 1
        standing = self.keys.get(key, Standing())
        if value in standing.unknown:
            return
        expected = (standing.value, standing.revision if standing.value is not None else 0)
        if (value, revision if value is not None else 0) != expected:
            self.faults.add(
                f"a read of {key} showed {value!r} of revision {revision}; acknowledged before "
                f"was {standing.value!r} at revision {standing.revision}"
            )

    def reconcile(self) -> int:
        """Hold all that every watch has come past against the writes; up to which revision."""
        horizon = min((each.complete for each in self.followers), default=0)
        for at in [at for at in self._acknowledged if at[0] <= horizon]:
            value = self._acknowledged.pop(at)
            whole = True
            for follower in self.followers:
                if follower.seen.get(at, "absent") != value:
                    whole = False
                    self.faults.add(
                        f"acknowledged and lost: {_told(at[1], value)} at revision {at[0]}; "
                        f"{follower.name} was never told of it"
                    )
            self.confirmed_writes += whole
            for follower in self.followers:
                follower.seen.pop(at, None)
        self._unmatched(horizon)
        return horizon

    def _unmatched(self, horizon: int) -> None:
        """Events that no acknowledged write explains."""
        found = {at for each in self.followers for at in each.seen if at[0] <= horizon}
        for at in sorted(found):
            revision, key = at
            values = {each.name: each.seen.get(at, "absent") for each in self.followers}
            if len(set(values.values())) > 1:
                self.faults.add(f"watches differ about {key} at revision {revision}: {values}")
            value = next(each.seen[at] for each in self.followers if at in each.seen)
            if (key, value) in self._under_way:
                # The watch was quicker than the answer.
                continue
            if self._unknown.get((key, value), 0):
                self._forget(key, value)
                self._stands(key, value, revision)
            elif value is not None and (key, value) in self._refused:
                self.faults.add(f"refused and yet done: {_told(key, value)}, revision {revision}")
            else:
                self.faults.add(f"nobody asked for {_told(key, value)}, revision {revision}")
            for follower in self.followers:
                follower.seen.pop(at, None)

    def settle(self, contents: Mapping[str, Mapping[str, tuple[str, int]]]) -> None:
        """The end: nothing is under way, and each member (by name) holds these keys with value
        and revision. All of it must be what the watches told and the writers know."""
        self.reconcile()
        for at, value in self._acknowledged.items():
            self.faults.add(f"no watch came to revision {at[0]}: {_told(at[1], value)}")
        for name, held in contents.items():
            for follower in self.followers:
                for line in differences(held, follower.state, name, follower.name):
                    self.faults.add(line)
        known = {
            key: (each.value, each.revision)
            for key, each in self.keys.items()
            if each.value is not None
        }
        for name, held in contents.items():
            for line in differences(held, known, name, "what was acknowledged"):
                self.faults.add(line)

    def _end(self, write: Write) -> None:
        _less(self._under_way, (write.key, write.value))

    def _forget(self, key: str, value: str | None) -> None:
        _less(self._unknown, (key, value))
        if (key, value) not in self._unknown:
            self.keys[key].unknown.discard(value)

    def _stands(self, key: str, value: str | None, revision: int) -> None:
        standing = self.keys.setdefault(key, Standing())
        if revision > standing.revision:
            standing.value, standing.revision = value, revision


def _less(counts: dict[tuple[str, str | None], int], at: tuple[str, str | None]) -> None:
    counts[at] -= 1
    if not counts[at]:
        del counts[at]


def _told(key: str, value: str | None) -> str:
    return f"delete of {key}" if value is None else f"put of {key} = {value[:40]!r}"


def differences(
    left: Mapping[str, object], right: Mapping[str, object], left_name: str, right_name: str
) -> list[str]:
    """Where two contents differ, key by key; a sentence for each, ten at most."""
    keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    lines = [
        f"{key}: {left_name} has {str(left.get(key))[:80]}, "
        f"{right_name} has {str(right.get(key))[:80]}"
        for key in keys[:10]
    ]
    if len(keys) > 10:
        lines.append(f"and {len(keys) - 10} more keys differ between {left_name} and {right_name}")
    return lines


@dataclass(slots=True)
class Tenure:
    """A lease with one key on it, or an instance, as its holder knows it."""

    key: str
    ttl_seconds: float
    until: float
    """It cannot end before: the last acknowledged renewal was sent a TTL ago."""
    asked: float
    """When the last renewal or grant was sent, whatever became of it."""


class Leases:
    """When leases ended, against when they could at the earliest. Times are monotonic seconds."""

    def __init__(self, faults: Faults, late_seconds: float) -> None:
        self._faults = faults
        self._late = late_seconds
        self.held: dict[str, Tenure] = {}
        self.ended = 0
        self.renewed = 0

    def grant(self, key: str, ttl_seconds: float, sent: float) -> None:
        """The lease under `key` was granted by a request sent at `sent`."""
        self.held[key] = Tenure(key, ttl_seconds, sent + ttl_seconds, sent)

    def ask(self, key: str, sent: float) -> None:
        """A renewal is sent; it may count whether or not it is answered."""
        if key in self.held:
            self.held[key].asked = sent

    def renew(self, key: str, sent: float) -> None:
        """A renewal that was sent at `sent` was acknowledged."""
        self.renewed += 1
        if key in self.held:
            tenure = self.held[key]
            tenure.until = max(tenure.until, sent + tenure.ttl_seconds)

    def end(self, key: str, seen: float) -> None:
        """A watch or an answer of the store showed at `seen` that it is gone."""
        tenure = self.held.pop(key, None)
        if tenure is None:
            return
        self.ended += 1
        if seen < tenure.until:
            self._faults.add(f"{key} ended {tenure.until - seen:.2f} s before its TTL was over")

    def overdue(self, now: float) -> None:
        """Name and forget those that should have ended long ago."""
        for tenure in list(self.held.values()):
            past = now - tenure.asked - tenure.ttl_seconds
            if past > self._late:
                self._faults.add(f"{tenure.key} should have ended {past:.0f} s ago")
                del self.held[tenure.key]


# -- memory ------------------------------------------------------------------------------------

Points = Sequence[tuple[float, float]]
"""Seconds and bytes."""


def slope(points: Points) -> float:
    """The median of the slopes between any two points (Theil 1950, Sen 1968), in bytes a second:
    a snapshot or a burst now and then does not move it."""
    step = max(1, len(points) // SLOPE_POINTS_MAX)
    rates = [
        (y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points[::step], 2) if x2 > x1
    ]
    return statistics.median(rates) if rates else 0.0


@dataclass(frozen=True, slots=True)
class Life:
    """The memory of one process over the time that counts."""

    member: str
    seconds: float
    first_bytes: float
    last_bytes: float
    """Medians of the first and the last fifth."""
    bytes_per_hour: float


def lives(
    samples: Iterable[tuple[str, int, float, float]],
    begin: float,
    end: float,
    warm_seconds: float,
    least_seconds: float,
) -> list[Life]:
    """Of samples (member, pid, seconds, bytes): each process between `begin` and `end`, without
    its first `warm_seconds`, if that leaves `least_seconds`."""
    born: dict[tuple[str, int], float] = {}
    kept: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for member, pid, at, size in samples:
        first = born.setdefault((member, pid), at)
        if begin <= at <= end and at - first >= warm_seconds:
            kept.setdefault((member, pid), []).append((at, size))
    found = []
    for (member, _), points in kept.items():
        seconds = points[-1][0] - points[0][0]
        if seconds < least_seconds:
            continue
        fifth = max(1, len(points) // 5)
        first_bytes = statistics.median(size for _, size in points[:fifth])
        last_bytes = statistics.median(size for _, size in points[-fifth:])
        found.append(Life(member, seconds, first_bytes, last_bytes, slope(points) * 3600))
    return found


def check_memory(found: Sequence[Life], bound_bytes_per_hour: float, faults: Faults) -> None:
    """No process grows faster than the bound."""
    for life in found:
        if life.bytes_per_hour > bound_bytes_per_hour:
            faults.add(
                f"the memory of {life.member} grew by {life.bytes_per_hour / 2**20:.1f} MiB an "
                f"hour over {life.seconds / 60:.0f} minutes, from {life.first_bytes / 2**20:.1f} "
                f"to {life.last_bytes / 2**20:.1f} MiB; "
                f"{bound_bytes_per_hour / 2**20:.0f} are allowed"
            )
