"""Throughput and latency against keys, value size, watchers, leases, connections and members."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from benchmarks.load.spec import Outcome, Spec
from benchmarks.peers.servers import Cluster
from benchmarks.peers.tools import held_watches, run_load
from benchmarks.scenarios.bench import Bench
from benchmarks.scenarios.curve import Curve, sizes
from benchmarks.scenarios.doors import through_leader


class Panels:
    """Rate and p99 of several calls, point by point."""

    def __init__(self, *calls: str) -> None:
        self.curves = {
            (call, what): Curve(f"{call}, {unit}")
            for call in calls
            for what, unit in (("rate", "calls a second"), ("p99", "p99 ms"))
        }

    def add(self, call: str, side: str, size: float, outcome: Outcome) -> None:
        """One load is one point in two panels."""
        self.curves[call, "rate"].add(side, size, outcome.rate)
        self.curves[call, "p99"].add(side, size, outcome.latency_ms["p99"])

    def all(self) -> list[Curve]:
        """In the order of the calls."""
        return list(self.curves.values())


def keys(bench: Bench, scale: float) -> list[Curve]:
    """From 1,000 to a million keys in the store: put, get, page; memory and restart, too."""
    panels = Panels("put", "get", "page")
    memory = Curve("resident memory, MB")
    with bench.clusters(1) as clusters:
        there = 0
        for size in sizes(1000, 1_000_000, scale):
            bench.say(f"  {size:,}")
            for cluster in clusters:
                side = bench.side(cluster.kind)
                run_load(Spec(
                    cluster.addresses, "put", 16, 16, warmup_seconds=0, keys=size - there,
                    first_key=there, count=size - there,
                ))  # fmt: skip
                for call in ("put", "get"):
                    panels.add(call, side, size, _load(bench, cluster, call, size))
                page = bench.load(cluster, "page", cluster.addresses, 2, 1, keys=size - 999)
                panels.add("page", side, size, page)
                held = cluster.servers[0].memory_bytes()
                memory.add(side, size, held["resident"] / 1e6)
            there = size
    return [*panels.all(), memory]


def value_bytes(bench: Bench, scale: float) -> list[Curve]:
    """From 16 bytes to a mebibyte in a value."""
    panels = Panels("put", "get")
    with bench.clusters(1) as clusters:
        for size in sizes(16, 1 << 20, max(scale, 0.1), factor=16):
            bench.say(f"  {size:,}")
            places = 8 if size < 1 << 16 else 1
            count = min(1000, max(8, (16 << 20) // size))
            for cluster in clusters:
                spec = Spec(
                    cluster.addresses, "put", 8, places, bench.settings.seconds,
                    bench.settings.warmup_seconds, keys=count, value_bytes=size,
                )  # fmt: skip
                run_load(replace(spec, count=count, warmup_seconds=0))
                for call in ("put", "get"):
                    outcome = run_load(replace(spec, call=call))
                    panels.add(call, bench.side(cluster.kind), size, outcome)
    return panels.all()


def watchers(bench: Bench, scale: float) -> list[Curve]:
    """From 1 to 10,000 watches: events delivered on one prefix; a writer of keys not watched."""
    delivered = Curve("delivered, events a second")
    panels = Panels("put")
    with bench.clusters(1) as clusters:
        for size in sizes(1, 10_000, max(scale, 0.1)):
            bench.say(f"  {size:,}")
            for cluster in clusters:
                side = bench.side(cluster.kind)
                watch = Spec(
                    cluster.addresses, "watch", streams=1, watchers=size, warmup_seconds=0,
                    events=max(10, min(500, 50_000 // size)),
                )  # fmt: skip
                delivered.add(side, size, run_load(watch).rate)
                spec = Spec(
                    cluster.addresses, "put", 8, 8, bench.settings.seconds,
                    bench.settings.warmup_seconds, first_key=1_000_000,
                )  # fmt: skip
                with held_watches(Spec(cluster.addresses, "hold", watchers=size, distinct=True)):
                    panels.add("put", side, size, run_load(spec))
    return [delivered, *panels.all()]


def leases(bench: Bench, scale: float) -> list[Curve]:
    """From 1 to 100,000 leases: keep-alives, and puts beside them."""
    panels = Panels("keep_alive", "put")
    with bench.clusters(1) as clusters:
        there = 0
        for size in sizes(1, 100_000, max(scale, 0.01)):
            bench.say(f"  {size:,}")
            for cluster in clusters:
                side = bench.side(cluster.kind)
                run_load(Spec(
                    cluster.addresses, "grant", 8, 8, warmup_seconds=0, keys=size - there,
                    first_key=there, count=size - there,
                ))  # fmt: skip
                panels.add("keep_alive", side, size, _load(bench, cluster, "keep_alive", size))
                panels.add("put", side, size, _load(bench, cluster, "put", 10_000))
            there = size
    return panels.all()


def connections(bench: Bench, scale: float) -> list[Curve]:
    """From 1 to 1,000 connections with one call under way on each."""
    panels = Panels("put", "get")
    with bench.clusters(1) as clusters:
        for cluster in clusters:
            bench.fill(cluster, bench.settings.keys)
        for size in sizes(1, 1000, 1.0):
            bench.say(f"  {size:,}")
            for cluster in clusters:
                for call in ("put", "get"):
                    spec = Spec(
                        cluster.addresses, call, size, 1, max(2.0, bench.settings.seconds), 1.0
                    )  # a thousand take a while to be served for the first time
                    panels.add(call, bench.side(cluster.kind), size, run_load(spec))
    return panels.all()


def members(bench: Bench, scale: float) -> list[Curve]:
    """1, 3 and 5 members on this one machine, asked through the leader."""
    panels = Panels("put", "get")
    for size in (1, 3, 5):
        bench.say(f"  {size}")
        for kind in bench.kinds:
            with contextlib.ExitStack() as stack:
                [cluster] = stack.enter_context(bench.clusters(size, [kind]))
                bench.fill(cluster, bench.settings.keys)
                for call in ("put", "get"):
                    outcome = bench.load(cluster, call, through_leader(cluster), 8, 8)
                    panels.add(call, bench.side(kind), size, outcome)
    return panels.all()


def _load(bench: Bench, cluster: Cluster, call: str, count: int) -> Outcome:
    return run_load(Spec(
        cluster.addresses, call, 8, 8, bench.settings.seconds, bench.settings.warmup_seconds,
        keys=count,
    ))  # fmt: skip
