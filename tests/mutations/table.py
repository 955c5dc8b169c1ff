"""How many seeds it takes to notice each defect, as a table.

    python -m tests.mutations.table --seeds 200
    python -m tests.mutations.table --names read-without-quorum --benches group --jobs 2

Each defect is hunted from several starting points. A seed that finds something is run once more
without the defect, and counts only if it passes then: so every catch is the defect's.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.mutations.benches import RUNS, first_violation, violation
from tests.mutations.catalogue import MUTATIONS, Bench, applied

RANGE_DISTANCE = 1_000_000
COLUMNS = ("defect", "trap", "bench", "caught", "median", "max", "seconds", "first noticed as")


@dataclass(frozen=True)
class Hunt:
    """One defect in one bench from one starting point."""

    name: str
    bench: str
    first_seed: int
    seeds: int | None
    """How many it took; None: not caught."""
    seconds: float
    story: str = ""
    doubtful: tuple[str, ...] = ()
    """Seeds that fail without any defect, and how; they prove nothing."""


@dataclass(frozen=True)
class Row:
    """All hunts of one defect in one bench."""

    name: str
    trap: int
    bench: str
    hunts: tuple[Hunt, ...]

    def cells(self) -> tuple[str, ...]:
        """In the order of COLUMNS."""
        caught = [hunt.seeds for hunt in self.hunts if hunt.seeds is not None]
        every = len(caught) == len(self.hunts)
        stories = [hunt.story for hunt in self.hunts if hunt.story]
        return (
            self.name,
            str(self.trap),
            self.bench,
            f"{len(caught)} of {len(self.hunts)}",
            f"{statistics.median(caught):g}" if caught else "-",
            str(max(caught)) if every else "-",
            f"{sum(hunt.seconds for hunt in self.hunts):.0f}",
            stories[0] if stories else "",
        )


def hunt(name: str, bench_name: str, first_seed: int, seeds: int) -> Hunt:
    """Run seeds until the defect is noticed. Seeds that fail without it are passed over."""
    logging.disable(logging.CRITICAL)
    bench = Bench(bench_name)
    began = perf_counter()
    doubtful: list[str] = []
    seed, end = first_seed, first_seed + seeds
    while True:
        with applied(name):
            caught = first_violation(bench, range(seed, end))
        if caught is None:
            found, taken = "", None
            break
        seed, found, taken = caught[0], _tell(caught[1]), caught[0] - first_seed + 1
        clean = violation(bench, seed)
        if clean is None:
            break
        doubtful.append(f"{bench_name}: seed {seed} fails without any defect: {_tell(clean)}")
        seed += 1
    seconds = perf_counter() - began
    return Hunt(name, bench_name, first_seed, taken, seconds, found, tuple(doubtful))


def _tell(error: BaseException) -> str:
    """One short line."""
    lines = str(error).strip().splitlines()
    text = lines[0].split(" [")[0] if lines else type(error).__name__
    return text if len(text) <= 70 else text[:67] + "..."


def _wanted(names: Sequence[str], benches: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        for bench in MUTATIONS[name].benches:
            if bench in RUNS and bench.value in benches:
                yield name, bench.value


def hunt_all(
    names: Sequence[str], benches: Sequence[str], ranges: int, seeds: int, jobs: int
) -> Iterator[Hunt]:
    """Every defect in every bench from every starting point; in order, as they are done."""
    tasks = [
        (name, bench, number * RANGE_DISTANCE, seeds)
        for name, bench in _wanted(names, benches)
        for number in range(1, ranges + 1)
    ]
    with (
        ProcessPoolExecutor(jobs) as pool,
        Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress,
    ):
        bar = progress.add_task("hunting", total=len(tasks))
        for done in pool.map(hunt, *zip(*tasks, strict=True)) if tasks else ():
            progress.advance(bar)
            took = f"{done.seeds} seeds: {done.story}" if done.seeds else "not caught"
            progress.console.print(f"{done.name} ({done.bench}, from {done.first_seed}): {took}")
            yield done


def rows(hunts: Sequence[Hunt]) -> list[Row]:
    """Gathered by defect and bench."""
    gathered: dict[tuple[str, str], list[Hunt]] = {}
    for each in hunts:
        gathered.setdefault((each.name, each.bench), []).append(each)
    return [
        Row(name, MUTATIONS[name].trap, bench, tuple(each))
        for (name, bench), each in gathered.items()
    ]


def markdown(found: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(row.cells() for row in found)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> int:
    """Hunt, and show what came of it; 1 when a seed fails without any defect."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=200, help="give up after so many")
    parser.add_argument("--ranges", type=int, default=5, help="starting points")
    parser.add_argument("--names", nargs="+", choices=MUTATIONS, default=list(MUTATIONS))
    every = [bench.value for bench in RUNS]
    parser.add_argument("--benches", nargs="+", choices=every, default=every)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--markdown", type=Path, help="write the table there as well")
    parser.add_argument("--json", type=Path, help="write every hunt there")
    options = parser.parse_args()
    hunts = list(
        hunt_all(options.names, options.benches, options.ranges, options.seeds, options.jobs)
    )
    found = rows(hunts)
    table = Table(*COLUMNS)
    for row in found:
        table.add_row(*row.cells())
    Console().print(table)
    if options.markdown:
        options.markdown.write_text(markdown(found), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in hunts], indent=1) + "\n")
    doubtful = sorted({text for each in hunts for text in each.doubtful})
    for text in doubtful:
        print(text)
    return 1 if doubtful else 0


if __name__ == "__main__":
    sys.exit(main())
