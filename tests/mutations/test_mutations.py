"""Every defect still fits the code it was written for, and somebody notices it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from tests.mutations.benches import first_violation, violation
from tests.mutations.catalogue import MUTATIONS, Bench, applied
from tests.mutations.patching import Edit, ShapeChanged, find, patched

pytestmark = pytest.mark.interpreted

QUICK = {
    name: (mutation.benches[0], mutation.seeds_max)
    for name, mutation in MUTATIONS.items()
    if (0 < mutation.seeds_max <= 20 and mutation.benches[0] in (Bench.GROUP, Bench.WATCHES))
    or 0 < mutation.seeds_max <= 5
}
FIRST_SEED = 7_000_000


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_defect_fits_and_leaves_no_trace(name: str) -> None:
    functions = {find(edit.where) for edit in MUTATIONS[name].edits}
    before = {function: function.__code__ for function in functions}
    with applied(name):
        for function in functions:
            code = function.__code__
            assert code != before[function]
            assert code.co_name == before[function].co_name
            assert code.co_filename == before[function].co_filename
    assert {function: function.__code__ for function in functions} == before


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("raftkv.consensus.quorum:minority_index", "indexes.sort()", "pass"),
        ("raftkv.consensus.quorums:majority_index", "indexes.sort()", "pass"),
        ("raftkv.consensus.quorum:VoteResult", "WON", "LOST"),
        ("raftkv.consensus.quorum:majority_index", "indexes.shuffle()", "pass"),
        ("raftkv.consensus.quorum:majority_index", "indexes", "voters"),
        ("raftkv.consensus.quorum:majority_index", "indexes.sort()", "if"),
    ],
)
def test_a_defect_that_does_not_fit_any_more_says_so(where: str, old: str, new: str) -> None:
    with pytest.raises(ShapeChanged), patched([Edit(where, old, new)]):
        pass


def test_a_defect_that_fits_in_part_only_is_taken_out_again() -> None:
    function = find("raftkv.consensus.quorum:majority_index")
    before = function.__code__
    good = Edit("raftkv.consensus.quorum:majority_index", "indexes.sort()", "pass")
    bad = Edit("raftkv.consensus.quorum:joint_index", "no such text", "pass")
    with pytest.raises(ShapeChanged), patched([good, bad]):
        pass
    assert function.__code__ is before


def test_every_defect_fails_its_scripted_test() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutations.scripted"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", QUICK)
def test_seeds_notice_a_defect(name: str) -> None:
    logging.disable(logging.CRITICAL)
    bench, seeds_max = QUICK[name]
    try:
        with applied(name):
            caught = first_violation(bench, range(FIRST_SEED, FIRST_SEED + seeds_max))
        assert caught is not None, f"{seeds_max} seeds of {bench.value} notice nothing"
        assert violation(bench, caught[0]) is None, f"seed {caught[0]} fails without the defect"
    finally:
        logging.disable(logging.NOTSET)
