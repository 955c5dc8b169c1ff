"""What a load generator is told, and what it tells: plain values that pass through JSON."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Spec:
    """One load."""

    addresses: tuple[str, ...]
    """host:port of the servers; connections are dealt out in turn."""
    call: str
    """A name in `calls.MAKERS`, or `watch`, `hold` or `keep_alive`."""
    connections: int = 8
    streams: int = 8
    """Calls under way on each connection."""
    seconds: float = 1.0
    warmup_seconds: float = 0.3
    keys: int = 10_000
    first_key: int = 0
    value_bytes: int = 256
    count: int = 0
    """If not 0: so many calls, key after key, in place of a time with keys drawn at random."""
    depth: int = 16
    """Requests under way on each stream of `keep_alive`."""
    watchers: int = 1000
    distinct: bool = False
    """Each watcher its own key, in place of all on one prefix."""
    events: int = 200
    series_seconds: float = 0.0
    """If not 0: how finely to tell what happened over time."""
    seed: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(told: Mapping[str, Any]) -> Spec:
        """Back from JSON. Raises TypeError for a field that there is not."""
        return Spec(**{**told, "addresses": tuple(told["addresses"])})


@dataclass(slots=True)
class Outcome:
    """What one load came to."""

    done: int = 0
    """Answers that were right, from the first to the last, warm-up included."""
    measured: int = 0
    """Those of them that count."""
    seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    cpu_share: float = 0.0
    """The part of one core that the load generator used."""
    gap_ms: float = 0.0
    """The longest time without any answer."""
    series: list[tuple[float, int, float]] = field(default_factory=list)
    """Seconds since the start, answers, slowest of them in milliseconds."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.measured / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(told: Mapping[str, Any]) -> Outcome:
        """Back from JSON."""
        return Outcome(**{**told, "series": [tuple(point) for point in told["series"]]})


def percentile(ordered: list[float] | array[float], share: float) -> float:
    """The smallest value that at least `share` of an ordered list does not pass; 0 if empty."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latencies(seconds: array[float]) -> dict[str, float]:
    """The usual figures, in milliseconds."""
    ordered = sorted(seconds)
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    told = {name: percentile(ordered, share) * 1000 for name, share in shares.items()}
    return told | {"mean": sum(ordered) / len(ordered) * 1000 if ordered else 0.0}


class Tally:
    """Counts while a load runs."""

    def __init__(self, spec: Spec, started: float) -> None:
        self._spec = spec
        self.begin(started)
        self.done = 0
        self.taken: array[float] = array("d")
        self.errors: Counter[str] = Counter()
        self._step = spec.series_seconds
        self._series: dict[int, list[float]] = {}
        self._gap = 0.0

    def begin(self, started: float) -> None:
        """Set the clock, once everything is ready."""
        self.started = self._last = started
        self.counts_from = started + self._spec.warmup_seconds
        self.counts_until = math.inf if self._spec.count else self.counts_from + self._spec.seconds

    def right(self, began: float, now: float) -> None:
        """A right answer came."""
        self.done += 1
        if self.counts_from <= now < self.counts_until:
            self.taken.append(now - began)
            if now - self._last > self._gap:
                self._gap = now - self._last
        self._last = now
        if self._step:
            bucket = self._series.setdefault(int((now - self.started) / self._step), [0, 0.0])
            bucket[0] += 1
            bucket[1] = max(bucket[1], now - began)

    def wrong(self, what: str) -> None:
        """An answer that does not count."""
        self.errors[what[:200]] += 1

    def outcome(self, ended: float, cpu_seconds: float) -> Outcome:
        """All of it, at the end."""
        return Outcome(
            done=self.done,
            measured=len(self.taken),
            seconds=min(ended, self.counts_until) - self.counts_from,
            errors=dict(self.errors),
            latency_ms=latencies(self.taken),
            cpu_share=cpu_seconds / (ended - self.started),
            gap_ms=self._gap * 1000,
            series=[
                (number * self._step, int(count), slowest * 1000)
                for number in range(max(self._series, default=-1) + 1)
                for count, slowest in [self._series.get(number, (0, 0.0))]
            ],
        )
