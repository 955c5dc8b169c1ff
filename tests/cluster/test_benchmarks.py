"""A benchmark for real, as small as it goes: the load generator against a member."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load.spec import Spec
from benchmarks.peers.servers import Cluster, raftkv_kind
from benchmarks.peers.tools import BadRun, run_load
from benchmarks.ratios import OURS
from benchmarks.scenarios import durable
from benchmarks.scenarios.bench import QUICK, Bench
from benchmarks.scenarios.doors import grpc
from benchmarks.scenarios.durable import DELAY_SECONDS, answers_and_the_disk
from benchmarks.scenarios.recovery import restarted

TINY = replace(QUICK, rounds=1, seconds=0.1, warmup_seconds=0.05, keys=200)


def test_one_member_is_filled_loaded_and_restarted(tmp_path: Path) -> None:
    bench = Bench(TINY, [raftkv_kind()], tmp_path)
    with bench.clusters(1) as [cluster]:
        assert bench.fill(cluster, TINY.keys).done == TINY.keys

        def once(cluster: Cluster) -> None:
            for call in ("put", "get", "serializable", "txn"):
                outcome = grpc(call, 2, 4)(bench, cluster, cluster.addresses)
                bench.note(f"{call}/8", OURS, outcome.rate, "1/s", outcome=outcome)

        bench.rounds("put/8", [cluster], once)
        assert bench.failures == []
        assert all(bench.cells[f"{call}/8"].values[OURS][0] > 0 for call in ("put", "get", "txn"))

        watched = run_load(Spec(cluster.addresses, "watch", streams=1, watchers=20, events=10))
        assert watched.measured == 200
        revision = cluster.servers[0].revision()
        assert restarted(cluster, cluster.servers[0]) > 0
        assert cluster.servers[0].revision() == revision

        absent = Spec(cluster.addresses, "get", 1, 1, 0.1, 0.0, first_key=TINY.keys)
        with pytest.raises(BadRun, match="not the right one"):
            run_load(absent)


def test_a_member_is_seen_to_wait_for_its_disk(tmp_path: Path) -> None:
    bench = Bench(TINY, [raftkv_kind()], tmp_path)
    answers_and_the_disk(bench)
    (took_ms,) = bench.cells["durable/put"].values[OURS]
    assert took_ms > DELAY_SECONDS * 1000
    assert bench.ahead_of_disk == set()


def test_one_that_does_not_is_told_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "SYNCS", "fchmod")
    bench = Bench(TINY, [raftkv_kind()], tmp_path)
    answers_and_the_disk(bench)
    assert bench.ahead_of_disk == {OURS}
