"""Boot a member from every image that a crash in its life may leave, and hold it to its promises.

    python -m tests.crash.images --images 50000 [--seed N]

A life is recorded first (workload.py). Then, behind every operation on its disk, images are made
(lives.py): of a killed process, sometimes in the middle of a write, and of power cuts. From each
the production recovery starts, sometimes with other ends in its middle (verdict.py). It has to

- start: no image is a reason to refuse;
- find a log, term, vote and commit index that were written at one and the same moment, not before
  the last sync that returned, or, after the end of a process, not before the last write. So no
  acknowledged entry is missing or altered, and nothing that was overwritten comes back;
- arrive, after applying what is committed, at the state hash and at the rows that the cluster has
  at that index;
- find the same after another end, and go on from there.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from tests.crash.lives import Image, Life
from tests.crash.verdict import Examination
from tests.crash.workload import Plants, Violation

SPREAD_IMAGES = 20_000
"""Fewer images than this are spread over the lives that so many would come from."""
SHOWN_MAX = 10


@dataclass(slots=True)
class Report:
    """What came of some images."""

    images: Counter[str] = field(default_factory=Counter)
    """By what ended the member."""
    lives: Counter[str] = field(default_factory=Counter)
    boots: int = 0
    seconds: float = 0.0
    violations: list[tuple[str, str]] = field(default_factory=list)
    """Name of the image, and what was broken."""

    def text(self, seed: int) -> str:
        """For people."""
        total = self.images.total()
        lines = [
            f"{total:,} images, {self.boots:,} starts, {self.seconds:.0f} s: "
            f"{total / max(self.seconds, 1e-9):,.0f} images a second",
            "images: " + ", ".join(f"{n:,} {what}" for what, n in sorted(self.images.items())),
            "lives:  " + ", ".join(f"{n} {what}" for what, n in sorted(self.lives.items())),
            f"violations: {len(self.violations)}",
        ]
        for name, text in self.violations[:SHOWN_MAX]:
            lines += [
                f"  {text}",
                f"  reproduce: python -m tests.crash.images --seed {seed} --only {name}",
            ]
        return "\n".join(lines)


def lives(seed: int, report: Report, plants: Plants | None = None) -> Iterator[Life]:
    """One after the other, without end. A life that broke by itself is noted."""
    number = 0
    while True:
        life = Life(number, seed, plants)
        report.lives[life.kind.name] += 1
        if life.violation is not None:
            report.violations.append((f"{number}:*", f"in the life itself: {life.violation!r}"))
        yield life
        number += 1


def examine(image: Image, report: Report) -> None:
    """Judge one image."""
    examination = Examination(image)
    try:
        examination.run()
    except Exception as error:
        told = str(error) if isinstance(error, Violation) else repr(error)
        report.violations.append((image.name, f"{image.what}, {image.kind.name}: {told}"))
    report.images[image.what] += 1
    report.boots += examination.boots


def run(
    count: int,
    seed: int,
    *,
    plants: Plants | None = None,
    violations_max: int = SHOWN_MAX,
    tick: Callable[[], object] = lambda: None,
) -> Report:
    """Judge `count` images; ends early after `violations_max` violations."""
    report = Report()
    started = time.perf_counter()
    stride = max(1, SPREAD_IMAGES // count)
    seen = 0
    for life in lives(seed, report, plants):
        for image in life.images():
            seen += 1
            if seen % stride:
                continue
            examine(image, report)
            tick()
            enough = report.images.total() >= count
            if enough or len(report.violations) >= violations_max:
                report.seconds = time.perf_counter() - started
                return report
    raise AssertionError("lives have no end")


def only(name: str, seed: int) -> Report:
    """Judge the image of that name, or all of a life ("3:*")."""
    report = Report()
    started = time.perf_counter()
    number, _, rest = name.partition(":")
    life = Life(int(number), seed)
    report.lives[life.kind.name] += 1
    if life.violation is not None:
        report.violations.append((name, f"in the life itself: {life.violation!r}"))
    for image in life.images():
        if rest in ("*", image.name.partition(":")[2]):
            examine(image, report)
    report.seconds = time.perf_counter() - started
    return report


def main() -> int:
    """The command; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.images", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=int, default=5_000, help="how many (default 5000)")
    parser.add_argument("--seed", type=int, default=1, help="of lives and images (default 1)")
    parser.add_argument("--only", metavar="LIFE:OPERATION:IMAGE", help="repeat one image")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.only:
        report = only(options.only, options.seed)
    else:
        console = Console(stderr=True)
        columns = (
            *Progress.get_default_columns()[:2],
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("crash images", total=options.images)
            report = run(options.images, options.seed, tick=lambda: progress.advance(task))
    print(report.text(options.seed))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
