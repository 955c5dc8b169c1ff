"""A busy cluster of three, disturbed: a compaction, a snapshot, a follower that catches up."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any, Final

from benchmarks.load.spec import Spec
from benchmarks.peers.servers import CallFailed, Cluster, Server
from benchmarks.peers.tools import Background, BadRun, believed, program
from benchmarks.scenarios.bench import Bench

STEP_SECONDS: Final = 0.1
QUIET_SECONDS: Final = 3.0
"""Before the first disturbance, and after each."""
ABSENT_SECONDS: Final = 3.0
CATCH_UP_SECONDS: Final = 60.0


@dataclass(slots=True)
class Disturbed:
    """What happened over time on one side."""

    points: list[tuple[float, float, float]]
    """Seconds, answers a second, slowest answer in milliseconds."""
    spans: list[tuple[str, float, float]]
    """What was done, from when to when."""

    def told(self, side: str) -> list[str]:
        """A line for each disturbance: what was left of the throughput, and the slowest answer."""
        quiet = [p for p in self.points if 1 <= p[0] <= self.spans[0][1] - STEP_SECONDS]
        usual = median(rate for _, rate, _ in quiet)
        lines = [
            f"- {side}, undisturbed: {usual:,.0f} puts a second, slowest answer "
            f"{max(slowest for _, _, slowest in quiet):.0f} ms"
        ]
        for what, begin, end in self.spans:
            during = [p for p in self.points if begin - STEP_SECONDS < p[0] <= end]
            rate = mean(rate for _, rate, _ in during)
            slowest = max(slowest for _, _, slowest in during)
            lines.append(
                f"- {side}, {what} ({end - begin:.1f} s): {rate / usual:.0%} of that, "
                f"slowest answer {slowest:.0f} ms"
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def over_time(bench: Bench) -> dict[str, Disturbed]:
    """Each side in turn."""
    found = {}
    for kind in bench.kinds:
        bench.say(f"  {kind.label}")
        with bench.clusters(3, [kind]) as [cluster]:
            found[bench.side(kind)] = _disturbed(bench, cluster)
    return found


def _disturbed(bench: Bench, cluster: Cluster) -> Disturbed:
    leader = cluster.leader()
    follower = next(server for server in cluster.servers if server is not leader)
    bench.fill(cluster, bench.settings.big_keys)
    seconds = 5 * QUIET_SECONDS + ABSENT_SECONDS + 20 * bench.settings.seconds
    spec = Spec(
        (leader.address,), "put", 8, 8, seconds, 0.0, keys=bench.settings.big_keys,
        series_seconds=STEP_SECONDS,
    )  # fmt: skip
    began = time.monotonic()
    load = Background(spec)
    spans: list[tuple[str, float, float]] = []

    def span(what: str, act: Callable[[], object]) -> None:
        begin = time.monotonic() - began
        act()
        spans.append((what, begin, time.monotonic() - began))
        time.sleep(QUIET_SECONDS)

    time.sleep(QUIET_SECONDS + 1)
    span("compaction", lambda: _compact(leader))
    span("snapshot", lambda: _snapshot(bench, leader))
    follower.kill()
    time.sleep(ABSENT_SECONDS)
    span("follower catches up", lambda: _catch_up(cluster, leader, follower))
    outcome = believed(load.finish())
    ended = spans[-1][2]
    if ended > seconds:
        raise BadRun(f"the load ended before the disturbances did, {ended:.0f} s in; more seconds")
    points = [(at, count / STEP_SECONDS, slowest) for at, count, slowest in outcome.series]
    return Disturbed(points, spans)


def _compact(server: Server) -> None:
    told = {"revision": str(server.revision()), "physical": True}
    server.call("/v3/kv/compaction", told, CATCH_UP_SECONDS)


def _snapshot(bench: Bench, server: Server) -> None:
    path = bench.folder / "snapshot"
    done = subprocess.run(
        [program("etcdctl"), "--endpoints", server.address, "snapshot", "save", path],
        capture_output=True, text=True, env=os.environ | {"ETCDCTL_API": "3"},
    )  # fmt: skip
    if done.returncode:
        raise BadRun(f"snapshot save: {done.stderr.strip()[-300:]}")
    path.unlink()


def _catch_up(cluster: Cluster, leader: Server, follower: Server) -> None:
    """Start it; done when what it has applied is as new as the leader was a moment before."""
    follower.start()
    deadline = time.monotonic() + CATCH_UP_SECONDS
    local = {"key": "YQ==", "serializable": True, "count_only": True}
    while time.monotonic() < deadline:
        try:
            wanted = leader.revision()
            if int(follower.call("/v3/kv/range", local)["header"]["revision"]) >= wanted:
                return
        except CallFailed:
            pass  # not there yet
        time.sleep(0.02)
    raise BadRun(f"{cluster.kind.label}: a follower has not caught up")
