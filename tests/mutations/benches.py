"""The seeded benches, and how many seeds each needs to notice a defect."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from tests.mutations.catalogue import Bench
from tests.simulation.run import run_seed
from tests.unit.test_consensus_random import Walk
from tests.unit.test_server_watch_oracle import test_watch_properties as watch_properties

SECONDS_MAX = 60
"""A seed that takes this long hangs, and so is caught, too."""


class Hang(Exception):
    """A run does not come to an end."""


def _group(seed: int) -> None:
    Walk(seed).run()


RUNS: dict[Bench, Callable[[int], object]] = {
    Bench.GROUP: _group,
    Bench.WATCHES: watch_properties,
    Bench.SIMULATION: run_seed,
}
"""Each takes a seed and raises when anything is not as promised."""


@contextmanager
def _patience() -> Iterator[None]:
    def hangs(signum: int, frame: FrameType | None) -> None:
        raise Hang(f"nothing after {SECONDS_MAX} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def violation(bench: Bench, seed: int) -> BaseException | None:
    """What `bench` says to production code, as it is just now, with this seed."""
    try:
        with _patience():
            RUNS[bench](seed)
    except Exception as error:
        return error
    return None


def first_violation(bench: Bench, seeds: Iterable[int]) -> tuple[int, BaseException] | None:
    """The first of `seeds` that finds anything, and what; None: they all pass."""
    for seed in seeds:
        found = violation(bench, seed)
        if found is not None:
            return seed, found
    return None
