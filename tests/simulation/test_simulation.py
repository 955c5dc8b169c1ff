"""A sample of seeds, and that a seed is a run: `python -m tests.simulation.run` for more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from raftkv.buggify import POINTS, buggify
from raftkv.simulation.nemesis import FAULTS
from raftkv.simulation.operations import OPERATIONS
from tests.simulation.profile import draw
from tests.simulation.run import (
    SEEDS_THAT_SEE_OPERATION,
    SEEN_OF_OPERATION,
    Result,
    SimulationFailure,
    blind_spots,
    run_seed,
)
from tests.simulation.shrinking import run_shrinking


@pytest.mark.parametrize("seed", range(40))
def test_a_seed_keeps_every_promise(seed: int) -> None:
    result = run_seed(seed)
    assert result.answered > 0


def test_a_watch_that_cannot_be_recorded_fails_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member closes a watch whose sink fails, and an oracle without events is content."""
    assert run_seed(7).watch_events > 0

    def defect(record: object) -> None:
        raise AttributeError("a defect of the bench")

    monkeypatch.setattr("tests.simulation.workload.key_record", defect)
    with pytest.raises(SimulationFailure, match="recorder of a watch"):
        run_seed(7)


_FAULTS = Counter({"kill": 1, "rules changed": 1, "right denied": 1})


def test_a_bench_that_saw_nothing_is_not_content() -> None:
    all_seen = Result(
        seeds=50, answered=1, watch_events=1, entries=1, checks=1,
        faults=_FAULTS,
    )  # fmt: skip
    assert blind_spots(all_seen) == []
    assert blind_spots(replace(all_seen, watch_events=0)) == ["watch events"]
    assert blind_spots(replace(all_seen, seeds=1, watch_events=0)) == []


def test_a_bench_that_saw_no_operation_is_not_content() -> None:
    seen = Counter(dict.fromkeys(SEEN_OF_OPERATION, 1))
    all_seen = Result(
        seeds=SEEDS_THAT_SEE_OPERATION, answered=1, watch_events=1, entries=1, checks=1,
        faults=_FAULTS, seen=seen,
    )  # fmt: skip
    assert blind_spots(all_seen) == []
    for name in SEEN_OF_OPERATION:
        without = Counter({other: 1 for other in seen if other != name})
        assert blind_spots(replace(all_seen, seen=without)) == [name]
        assert blind_spots(replace(all_seen, seeds=50, seen=without)) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_shrinking_cluster_decides_once(seed: int) -> None:
    run_shrinking(seed)


@pytest.mark.parametrize("seed", [3, 21])
def test_a_seed_is_one_run_whatever_the_hash_seed(seed: int) -> None:
    program = (
        "from tests.simulation.run import run_seed;"
        f"print(run_seed({seed}, story=True).digest, end='')"
    )
    digests = set()
    for hash_seed in ("0", "1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_every_kind_of_fault_and_every_point_is_drawn() -> None:
    faults, points = Counter[str](), Counter[str]()
    for seed in range(300):
        profile = draw(seed)
        faults.update(profile.faults)
        points.update(profile.buggify)
    assert faults.keys() == FAULTS.keys() | OPERATIONS.keys() and points.keys() == POINTS.keys()


def test_outside_a_simulation_nothing_rare_happens() -> None:
    assert not any(buggify(point) for point in POINTS)
