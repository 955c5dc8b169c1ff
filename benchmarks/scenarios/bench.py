"""What all scenarios share: how much to do, the stores, and the book of what was measured."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.load.spec import Outcome, Spec
from benchmarks.peers.servers import Cluster, Kind
from benchmarks.peers.tools import BadRun, run_load
from benchmarks.ratios import OURS, RATIO, Cell

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to do."""

    rounds: int = 5
    seconds: float = 3.0
    warmup_seconds: float = 1.0
    keys: int = 100_000
    big_keys: int = 1_000_000
    leases: int = 10_000
    watchers: int = 1000
    distinct_watchers: int = 10_000
    events: int = 500
    kills: int = 5
    quick: bool = False
    value_bytes: int = 256


QUICK = Settings(
    rounds=2, seconds=0.4, warmup_seconds=0.15, keys=10_000, big_keys=50_000, events=40, kills=2,
    quick=True,
)  # fmt: skip
"""Within five minutes. Rows that name a million keys get 50,000; the table says so."""


@dataclass(slots=True)
class Bench:
    """One run."""

    settings: Settings
    kinds: Sequence[Kind]
    """Ours first."""
    folder: Path
    cells: dict[str, Cell] = field(default_factory=dict)
    only: str = ""
    """Part of the keys of the cells that are wanted; empty: all."""
    failures: list[str] = field(default_factory=list)
    ahead_of_disk: set[str] = field(default_factory=set)
    """Sides that answer writes of one member before they are synced."""
    ceiling: float = 0.0
    """Puts a second of our load generator against a server that does nothing."""

    def wants(self, key: str) -> bool:
        """Whether a cell is to be measured."""
        return self.only in key

    def side(self, kind: Kind) -> str:
        """The name of a store in the book."""
        return OURS if kind.ours else kind.label

    def note(
        self, key: str, side: str, value: float, unit: str, *, better: Better = "higher",
        kind: str = RATIO, outcome: Outcome | None = None, one_disk: bool = False,
        **details: float,
    ) -> None:  # fmt: skip
        """Write down one figure; `one_disk`: of writes that are safe once one member has synced."""
        cell = self.cells.setdefault(key, Cell(key, unit, better, kind))
        if one_disk and side in self.ahead_of_disk and side not in cell.ahead:
            cell.ahead.append(side)
        cell.values.setdefault(side, []).append(value)
        if outcome is not None:
            details |= outcome.latency_ms
        if outcome is not None and outcome.cpu_share:
            answers = max(outcome.done, outcome.measured)
            details |= {"loader_cpu": outcome.cpu_share, "answers": answers}
        cell.details.setdefault(side, []).append(details)

    def say(self, text: str) -> None:
        """Progress, for whoever waits."""
        print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def clusters(self, size: int, kinds: Sequence[Kind] = ()) -> Iterator[list[Cluster]]:
        """One cluster of each kind, all running; all idle but the one that is measured."""
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(Cluster(kind, size, self.folder))
                for kind in kinds or self.kinds
            ]

    def fill(self, cluster: Cluster, keys: int) -> Outcome:
        """Write every key once, through the leader."""
        return self.load(cluster, "put", (cluster.leader().address,), 16, 16, keys=keys, count=keys)

    def load(
        self, cluster: Cluster, call: str, addresses: tuple[str, ...], connections: int,
        streams: int, *, keys: int = 0, count: int = 0,
    ) -> Outcome:  # fmt: skip
        """Our load generator with the run's settings; writes are held against the revision."""
        settings = self.settings
        spec = Spec(
            addresses, call, connections, streams, settings.seconds,
            0.0 if count else settings.warmup_seconds, keys or settings.keys,
            value_bytes=settings.value_bytes, count=count,
        )  # fmt: skip
        if call in ("put", "txn"):
            return written(cluster, lambda: run_load(spec))
        return run_load(spec)

    def rounds(
        self, key: str, clusters: Sequence[Cluster], once: Callable[[Cluster], None],
        count: int = 0,
    ) -> None:  # fmt: skip
        """A B A B: each cluster in turn, `count` times, or as many as the run has rounds.

        What cannot be believed is written down as a failure and leaves its cell empty.
        """
        if not self.wants(key):
            return
        self.say(f"  {key}")
        for cluster in list(clusters) * (count or self.settings.rounds):
            before = cluster.cpu_seconds()
            try:
                once(cluster)
            except BadRun as error:
                self.failures.append(f"{key}, {cluster.kind.label}: {error}")
                self.cells.pop(key, None)
                self.say(f"    {cluster.kind.label}: {error}")
                return
            self._server_cpu(key, cluster, cluster.cpu_seconds() - before)
            time.sleep(0.05)

    def _server_cpu(self, key: str, cluster: Cluster, used_seconds: float) -> None:
        """Processor time of all members an answer: what a busy machine disturbs the least."""
        cell = self.cells[key]
        details = cell.details[self.side(cluster.kind)][-1]
        if cell.kind == RATIO and "answers" in details:
            details["server_us"] = used_seconds / details["answers"] * 1e6


def written(cluster: Cluster, load: Callable[[], Outcome], under_way: int = 0) -> Outcome:
    """A load of writes, held against the store: as many revisions as acknowledgements.

    `under_way`: how many the load generator may have left without waiting for their answers.
    """
    before = cluster.servers[0].revision()
    outcome = load()
    made = cluster.servers[0].revision() - before
    if not outcome.done <= made <= outcome.done + under_way:
        raise BadRun(f"{outcome.done} writes were acknowledged and {made} made")
    return outcome
