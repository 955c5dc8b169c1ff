"""Whether a run's ratios have become worse than those of a baseline.

    python -m benchmarks.guard [RUN.json]           compare; 1 if something is worse
    python -m benchmarks.guard [RUN.json] --write   make the run the baseline

Only ratios are compared, never times: a slower machine slows both sides. A cell is worse when its
median is worse by more than the tolerance, and even its best pair does not reach the baseline.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.facts import OUT
from benchmarks.ratios import RATIO, compare
from benchmarks.report import Run

BASELINES: Final = Path(__file__).parent / "baselines"
RUN: Final = OUT / "run.json"
TOLERANCE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Kept:
    """A ratio as it is compared: with its spread, and which way is better."""

    value: float
    low: float
    high: float
    better: Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Worse:
    """One regression."""

    key: str
    was: float
    now: float

    def __str__(self) -> str:
        return f"{self.key}: {self.was:.2f}x before, {self.now:.2f}x now"


def kept(run: Run) -> dict[str, Kept]:
    """The ratios of a run, by the key of their cell."""
    return {
        cell.key: Kept(found.value, found.low, found.high, cell.better)
        for cell in run.cells
        if cell.kind == RATIO and (found := compare(cell))
    }


def regressions(
    before: Mapping[str, Kept], now: Mapping[str, Kept], tolerance: float = TOLERANCE
) -> list[Worse]:
    """What has become worse, of the cells that both have."""
    found = []
    for key, old in before.items():
        new = now.get(key)
        if new is None:
            continue
        if old.better == "higher":
            worse = new.value < old.value * (1 - tolerance) and new.high < old.value
        else:
            worse = new.value > old.value / (1 - tolerance) and new.low > old.value
        if worse:
            found.append(Worse(key, old.value, new.value))
    return found


def read_baseline(path: Path) -> dict[str, Kept]:
    """Raises OSError, ValueError or TypeError."""
    return {key: Kept(**told) for key, told in json.loads(path.read_text())["ratios"].items()}


def write_baseline(run: Run, path: Path) -> None:
    """Keep a run's ratios, and where they came from."""
    told = {
        "facts": run.facts,
        "ratios": {key: asdict(ratio) for key, ratio in kept(run).items()},
    }
    path.write_text(json.dumps(told, indent=1) + "\n")


def main() -> int:
    """0: nothing is worse; 1: something is; 2: there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=RUN)
    parser.add_argument("--baseline", type=Path, help="by default the one of the run's length")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--write", action="store_true", help="make the run the baseline")
    options = parser.parse_args()
    run = Run.read(options.run)
    name = "quick.json" if run.settings["quick"] else "full.json"
    baseline = options.baseline or BASELINES / name
    if options.write:
        write_baseline(run, baseline)
        return 0
    if not baseline.exists():
        print(f"no {baseline}: a run that --write is given becomes it", file=sys.stderr)
        return 2
    before, now = read_baseline(baseline), kept(run)
    common = before.keys() & now.keys()
    if not common:
        print(f"{options.run} and {baseline} have no cell in common", file=sys.stderr)
        return 2
    worse = regressions(before, now, options.tolerance)
    for each in worse:
        print(each)
    print(f"{len(common)} ratios compared, {len(worse)} worse")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
