"""Every planted fault is caught, over seeds, under a name that tells what it is."""

from __future__ import annotations

import random

import pytest

from tests.linearizability.check import check_history
from tests.linearizability.faults import FAULTY_COPIES, MUTATIONS
from tests.linearizability.history import Operation
from tests.linearizability.simulated import Profile, Simulated, simulate

PROFILE = Profile(operations=150, unknown=0.02)
COPY_PROFILE = Profile(operations=400, unknown=0, compactions=False)
SEEDS = range(8)


def planted(name: str, seed: int) -> tuple[Simulated, list[Operation]]:
    """A run with the fault in it: of some that may have no place for it, the first that has."""
    mutation, _ = MUTATIONS[name]
    for attempt in range(10):
        run = simulate(seed * 100 + attempt, PROFILE)
        operations = mutation(random.Random(seed), run)
        if operations is not None:
            return run, operations
    raise AssertionError(f"no run has a place for {name}")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_fault_is_caught_by_name(name: str, seed: int) -> None:
    run, operations = planted(name, seed)
    report = check_history(operations, final=run.final, final_revision=run.final_revision)
    rules = [violation.rule for violation in report.violations]
    assert rules, f"{name} was not seen: {report}"
    assert any(rule.startswith(MUTATIONS[name][1]) for rule in rules), str(report)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTY_COPIES)
def test_a_faulty_copy_is_found_out(name: str, seed: int) -> None:
    for attempt in range(10):
        copy = FAULTY_COPIES[name](seed)
        run = simulate(seed * 100 + attempt, COPY_PROFILE, copy)
        if copy.faults:
            break
    assert copy.faults, "the copy was never wrong"
    report = check_history(
        run.history.operations, final=run.final, final_revision=run.final_revision
    )
    assert report.violations, f"{name}, {copy.faults} times, was not seen: {report}"


def test_there_are_enough_of_them() -> None:
    assert len(MUTATIONS) + len(FAULTY_COPIES) >= 25
