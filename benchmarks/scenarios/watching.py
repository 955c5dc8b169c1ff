"""Watches and leases: events delivered, what idle watches cost a writer, keep-alives."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from benchmarks.load.spec import Outcome, Spec
from benchmarks.peers.servers import Cluster
from benchmarks.peers.tools import held_watches, run_load
from benchmarks.ratios import COST
from benchmarks.scenarios.bench import Bench, written


def watches_and_leases(bench: Bench) -> None:
    """The rows `watch`, `watch_cost` and `lease`."""
    settings = bench.settings
    delivery, cost, lease = (
        f"watch/{settings.watchers} watchers",
        f"watch_cost/{settings.distinct_watchers} watchers",
        f"lease/{settings.leases} leases",
    )
    if not any(bench.wants(key) for key in (delivery, cost, lease)):
        return
    with bench.clusters(1) as clusters:
        bench.rounds(delivery, clusters, lambda cluster: _delivery(bench, cluster, delivery))
        bench.rounds(cost, clusters, lambda cluster: _cost(bench, cluster, cost))
        if bench.wants(lease):
            for cluster in clusters:
                bench.load(
                    cluster, "grant", cluster.addresses, 8, 8,
                    keys=settings.leases, count=settings.leases,
                )  # fmt: skip
        bench.rounds(lease, clusters, lambda cluster: _keep_alive(bench, cluster, lease))


def _delivery(bench: Bench, cluster: Cluster, key: str) -> None:
    settings = bench.settings
    spec = Spec(
        cluster.addresses, "watch", streams=1, watchers=settings.watchers, events=settings.events,
        value_bytes=settings.value_bytes, warmup_seconds=0,
    )  # fmt: skip
    outcome = run_load(spec)
    bench.note(key, bench.side(cluster.kind), outcome.rate, "events/s", outcome=outcome)


def _cost(bench: Bench, cluster: Cluster, key: str) -> None:
    """A lone writer of other keys, without the watches, with them, and without them again."""
    settings = bench.settings
    spec = Spec(
        cluster.addresses, "put", 1, 1, settings.seconds, settings.warmup_seconds, keys=10_000,
        first_key=1_000_000, value_bytes=settings.value_bytes,
    )  # fmt: skip
    watched = replace(spec, watchers=settings.distinct_watchers, distinct=True, first_key=0)

    def rate(watches: contextlib.AbstractContextManager[None]) -> Outcome:
        with watches:
            return written(cluster, lambda: run_load(spec))

    before = rate(contextlib.nullcontext())
    beside = rate(held_watches(watched))
    after = rate(contextlib.nullcontext())
    lost = lost_percent(beside.rate, before.rate, after.rate)
    bench.note(
        key, bench.side(cluster.kind), lost, "%", better="lower", kind=COST, outcome=beside,
        without=(before.rate + after.rate) / 2, beside=beside.rate,
    )  # fmt: skip


def lost_percent(beside: float, before: float, after: float) -> float:
    """How much of the rate went, in percent of what there is without; not below zero."""
    without = (before + after) / 2
    return max(0.0, 100 * (1 - beside / without))


def _keep_alive(bench: Bench, cluster: Cluster, key: str) -> None:
    settings = bench.settings
    spec = Spec(
        cluster.addresses, "keep_alive", 8, 8, settings.seconds, settings.warmup_seconds,
        keys=settings.leases,
    )  # fmt: skip
    outcome = run_load(spec)
    bench.note(key, bench.side(cluster.kind), outcome.rate, "1/s", outcome=outcome)
