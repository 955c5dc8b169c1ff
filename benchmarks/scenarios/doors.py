"""Puts, gets, transactions and pages through every door, of one member and of three."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.load.spec import Outcome
from benchmarks.peers.servers import Cluster
from benchmarks.peers.tools import run_h2load, run_wrk
from benchmarks.scenarios.bench import Bench, written

WRK_CONNECTIONS = 64
WARM_UP_WRITES = 1_000_000
"""More than h2load makes before it begins to count."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One cell of these scenarios."""

    key: str
    run: Callable[[Bench, Cluster, tuple[str, ...]], Outcome]
    latency: str = ""
    """If not empty: which latency is the figure, in place of the rate."""
    one_disk: bool = False
    """Whether it is of writes to one member."""


def grpc(call: str, connections: int, streams: int) -> Callable[..., Outcome]:
    """A unary call through our load generator."""

    def run(bench: Bench, cluster: Cluster, addresses: tuple[str, ...]) -> Outcome:
        keys = bench.settings.keys - 1000 if call == "page" else 0
        return bench.load(cluster, call, addresses, connections, streams, keys=keys)

    return run


def http(ours: str, theirs: str) -> Callable[..., Outcome]:
    """A call through wrk, `ours` to raftkv and `theirs` to others."""

    def run(bench: Bench, cluster: Cluster, addresses: tuple[str, ...]) -> Outcome:
        call = ours if cluster.kind.ours else theirs

        def load() -> Outcome:
            return run_wrk(
                addresses, call, connections=WRK_CONNECTIONS, seconds=bench.settings.seconds,
                keys=bench.settings.keys, value_bytes=bench.settings.value_bytes,
            )  # fmt: skip

        return written(cluster, load, WRK_CONNECTIONS) if call.endswith("put") else load()

    return run


def one_key(bench: Bench, cluster: Cluster, addresses: tuple[str, ...]) -> Outcome:
    """Puts of one key with h2load: what a client costs that is written in C."""

    def load() -> Outcome:
        return run_h2load(
            addresses[0], connections=8, streams=8, seconds=bench.settings.seconds,
            value_bytes=bench.settings.value_bytes,
        )  # fmt: skip

    return written(cluster, load, WARM_UP_WRITES)


CALLS = (
    ("put", "64", grpc("put", 8, 8)),
    ("put", "256", grpc("put", 16, 16)),
    ("put", "1024", grpc("put", 64, 16)),
    ("get", "linearizable", grpc("get", 8, 8)),
    ("get", "serializable", grpc("serializable", 8, 8)),
    ("txn", "64", grpc("txn", 8, 8)),
    ("gateway", "put", http("gateway_put", "gateway_put")),
    ("gateway", "range", http("gateway_range", "gateway_range")),
    ("native", "put", http("native_put", "gateway_put")),
    ("native", "get", http("native_get", "gateway_range")),
)
"""Row, cell, and how to measure it."""

ONE = (
    *(
        Measure(f"{row}/{name}", run, one_disk=row in ("put", "txn") or name == "put")
        for row, name, run in CALLS
    ),
    Measure("page/1000 keys", grpc("page", 8, 1)),
    Measure("h2load/put 64", one_key, one_disk=True),
    Measure("alone/put/1 member", grpc("put", 1, 1), "p50", one_disk=True),
)
SPREAD_IN_QUICK = {"three/put/64/spread", "three/get/linearizable/spread"}
NOT_IN_QUICK = {"three/put/256/leader", "three/put/1024/leader"}


def one_member(bench: Bench) -> None:
    """The rows of one member."""
    if not any(bench.wants(measure.key) for measure in ONE):
        return
    with bench.clusters(1) as clusters:
        for cluster in clusters:
            bench.fill(cluster, bench.settings.keys)
        for measure in ONE:
            _measure(bench, clusters, measure, lambda cluster: cluster.addresses)
    for name in ("put/64", "get/linearizable"):
        _take_p99(bench, name)


def three_members(bench: Bench) -> None:
    """The same on three members, asked through the leader, and each in turn."""
    measures = [
        (Measure(f"three/{row}/{name}/{way}", run), way)
        for row, name, run in CALLS
        for way in ("leader", "spread")
    ]
    measures.append((Measure("alone/put/3 members", grpc("put", 1, 1), "p50"), "leader"))
    if bench.settings.quick:
        measures = [
            (measure, way) for measure, way in measures
            if measure.key not in NOT_IN_QUICK
            and (way == "leader" or measure.key in SPREAD_IN_QUICK)
        ]  # fmt: skip
    if not any(bench.wants(measure.key) for measure, _ in measures):
        return
    with bench.clusters(3) as clusters:
        for cluster in clusters:
            bench.fill(cluster, bench.settings.keys)
        for measure, way in measures:
            _measure(bench, clusters, measure, through_leader if way == "leader" else everywhere)


def through_leader(cluster: Cluster) -> tuple[str, ...]:
    """The leader alone, whoever that is now."""
    return (cluster.leader().address,)


def everywhere(cluster: Cluster) -> tuple[str, ...]:
    """Every member."""
    return cluster.addresses


def _measure(
    bench: Bench, clusters: list[Cluster], measure: Measure,
    where: Callable[[Cluster], tuple[str, ...]],
) -> None:  # fmt: skip
    def once(cluster: Cluster) -> None:
        addresses = where(cluster)
        outcome = measure.run(bench, cluster, addresses)
        value = outcome.latency_ms[measure.latency] if measure.latency else outcome.rate
        bench.note(
            measure.key, bench.side(cluster.kind), value, "ms" if measure.latency else "1/s",
            better="lower" if measure.latency else "higher", outcome=outcome,
            one_disk=measure.one_disk,
        )  # fmt: skip

    bench.rounds(measure.key, clusters, once)


def _take_p99(bench: Bench, name: str) -> None:
    """The slowest hundredth of a load that was measured for its rate."""
    if name not in bench.cells:
        return
    for side, rounds in bench.cells[name].details.items():
        for details in rounds:
            bench.note(
                f"p99/{name}", side, details["p99"], "ms", better="lower",
                one_disk=name.startswith("put"),
            )  # fmt: skip
