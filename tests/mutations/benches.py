"""The seeded benches, and how many seeds each needs to notice a defect."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from raftkv.limits import FEATURE_LEVEL, MIB
from tests.model.test_watch_model import test_watch_properties as watch_properties
from tests.mutations.catalogue import Bench
from tests.simulation.profile import draw, in_operation
from tests.simulation.rights import Rights
from tests.simulation.run import run_seed
from tests.simulation.shrinking import run_shrinking
from tests.simulation.workload import Mix
from tests.unit.test_consensus_random import Walk

CPU_SECONDS_MAX = 120
"""A seed that computes for this long hangs, and so is caught, too."""


class Hang(BaseException):
    """A run does not come to an end. No code under test may take it for one of its own errors."""


def _group(seed: int) -> None:
    Walk(seed).run()


def _reads(seed: int) -> None:
    profile = replace(
        draw(seed),
        faults=("clog", "leader isolated", "one-way cut", "partition", "pause", "transfer"),
        fault_interval_us=700_000,
        fault_seconds=40,
        mix=Mix(clients=6, keys=1, think_us=30_000, watchers=0),
    )
    run_seed(seed, profile=profile)


def _rights(seed: int) -> None:
    mix = Mix(clients=3, keys=4, think_us=40_000, watchers=3, lockers=0)
    mix.weights.update({"transaction": 30, "compare-and-swap": 30, "compact": 1})
    profile = draw(seed)
    settings = {
        member_id: replace(one, quota_bytes=64 * MIB, feature_level=FEATURE_LEVEL)
        for member_id, one in profile.settings.items()
    }
    profile = replace(
        profile,
        settings=settings,
        faults=("clog", "kill", "leader isolated", "partition", "pause", "transfer"),
        fault_interval_us=1_000_000,
        mix=mix,
        fault_seconds=40,
        rights=Rights(
            certified=(seed % 2 == 0, seed % 3 == 0, False), change_us=200_000, switched=True
        ),
    )
    run_seed(seed, profile=profile)


def _operation(seed: int) -> None:
    profile = draw(seed)
    clients = replace(profile.mix, clients=6, think_us=50_000, lockers=0, watchers=1)
    run_seed(seed, profile=replace(in_operation(seed, profile), mix=clients, fault_seconds=40))


RUNS: dict[Bench, Callable[[int], object]] = {
    Bench.GROUP: _group,
    Bench.WATCHES: watch_properties,
    Bench.SIMULATION: run_seed,
    Bench.READS: _reads,
    Bench.SHRINKING: run_shrinking,
    Bench.RIGHTS: _rights,
    Bench.OPERATION: _operation,
}
"""Each takes a seed and raises when anything is not as promised."""


@contextmanager
def _patience() -> Iterator[None]:
    def hangs(signum: int, frame: FrameType | None) -> None:
        raise Hang(f"no end after {CPU_SECONDS_MAX} seconds of computing")

    before = signal.signal(signal.SIGVTALRM, hangs)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def violation(bench: Bench, seed: int) -> BaseException | None:
    """What `bench` says to production code, as it is just now, with this seed."""
    try:
        with _patience():
            RUNS[bench](seed)
    except (Exception, Hang) as error:
        return error
    return None


def first_violation(bench: Bench, seeds: Iterable[int]) -> tuple[int, BaseException] | None:
    """The first of `seeds` that finds anything, and what; None: they all pass."""
    for seed in seeds:
        found = violation(bench, seed)
        if found is not None:
            return seed, found
    return None
