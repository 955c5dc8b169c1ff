"""PySyncObj, real clients, and the load generator held against a server that does nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.load.spec import Spec
from benchmarks.peers import pysyncobj
from benchmarks.peers.servers import Cluster
from benchmarks.peers.tools import believed, check_perf, run_load, run_real_client
from benchmarks.ratios import OURS
from benchmarks.scenarios.bench import Bench
from benchmarks.scenarios.doors import through_leader
from tests.support.processes import free_ports

CHECK_PERF_LOAD: Final = "l"
"""8,000 writes a second from 500 clients. The largest, xl, ends with a delete of half a million
keys in one request, which may time out."""
CHECK_PERF_ROUNDS: Final = 2
"""A minute each."""


def replicated_python(bench: Bench) -> None:
    """The row `pysyncobj`: 64 writes under way on three members."""
    key, settings = "pysyncobj/put 64", bench.settings
    if not bench.wants(key):
        return
    bench.say(f"  {key}")
    spec = Spec(
        (), "put", 8, 8, settings.seconds, settings.warmup_seconds, settings.keys,
        value_bytes=settings.value_bytes,
    )  # fmt: skip
    ours = [kind for kind in bench.kinds if kind.ours]
    with (
        tempfile.TemporaryDirectory(dir=bench.folder) as folder,
        pysyncobj.nodes(Path(folder)) as nodes,
        bench.clusters(3, ours) as [cluster],
    ):
        for _ in range(settings.rounds):
            outcome = bench.load(cluster, "put", through_leader(cluster), 8, 8)
            bench.note(key, OURS, outcome.rate, "1/s", outcome=outcome)
            theirs = believed(nodes.load(spec))
            side = f"PySyncObj {pysyncobj.version()}"
            bench.note(key, side, theirs.rate, "1/s", outcome=theirs)


def real_clients(bench: Bench) -> None:
    """The row `clients`: what a program sees that uses an ordinary client."""
    settings = bench.settings
    calls = ("put", "get", "txn")
    keys = [f"clients/grpcio {call} 64" for call in calls]
    perf = f"clients/check perf {CHECK_PERF_LOAD}"
    if not any(map(bench.wants, [*keys, perf])):
        return
    with bench.clusters(1) as clusters:
        for cluster in clusters:
            bench.fill(cluster, settings.keys)
        for call, key in zip(calls, keys, strict=True):

            def once(cluster: Cluster, call: str = call, key: str = key) -> None:
                outcome = run_real_client(Spec(
                    cluster.addresses, call, 8, 8, settings.seconds,
                    settings.warmup_seconds, settings.keys, value_bytes=settings.value_bytes,
                ))  # fmt: skip
                bench.note(
                    key, bench.side(cluster.kind), outcome.rate, "1/s", outcome=outcome,
                    one_disk=call != "get",
                )  # fmt: skip

            bench.rounds(key, clusters, once)
        if not settings.quick:  # it takes a minute each time
            bench.rounds(
                perf, clusters, lambda cluster: _check_perf(bench, cluster, perf), CHECK_PERF_ROUNDS
            )


def _check_perf(bench: Bench, cluster: Cluster, key: str) -> None:
    outcome = check_perf(cluster.addresses[0], CHECK_PERF_LOAD)
    side = bench.side(cluster.kind)
    bench.note(key, side, outcome.rate, "1/s", outcome=outcome, one_disk=True)


def loader_ceiling(bench: Bench) -> None:
    """What our load generator can do: puts to a server that does nothing."""
    [port] = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.trivial", str(port)], stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        spec = Spec(
            (f"127.0.0.1:{port}",), "put", 8, 8, bench.settings.seconds, value_bytes=256,
            warmup_seconds=bench.settings.warmup_seconds,
        )  # fmt: skip
        bench.ceiling = median(run_load(spec).rate for _ in range(bench.settings.rounds))
    finally:
        process.kill()
        process.communicate()
