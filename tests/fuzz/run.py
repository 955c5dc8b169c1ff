"""Runs the fuzz targets of `tests.fuzz.targets`.

    python -m tests.fuzz.run --list
    python -m tests.fuzz.run [--target NAME] --executions 1000000 [--seed N] [--jobs 1]
    python -m tests.fuzz.run --target NAME --input HEX      one input of your own

Inputs depend on target, seed and number only. A failure prints all three, the input, and the one
line that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

from tests.fuzz.engine import Failure, Judge, Totals
from tests.fuzz.targets import TARGETS, by_name

PROGRESS_SECONDS = 10.0


def run_target(name: str, seed: int, first: int, executions: int) -> tuple[str, Totals, str]:
    """One target; its totals, and the text of its failure, if any."""
    target = by_name(name)
    judge = Judge(target, seed)
    said = time.monotonic()

    def progress(totals: Totals) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said > PROGRESS_SECONDS:
            said = now
            rate = totals.executions / totals.seconds
            print(
                f"  {name}: {totals.executions:,} of {executions:,}, {rate:,.0f} a second",
                file=sys.stderr,
                flush=True,
            )

    try:
        with target.open() as read:
            judge.run(read, range(first, first + executions), progress)
    except Failure as failure:
        cause = failure.__cause__
        trace = "".join(traceback.format_exception(cause)) if cause is not None else ""
        return name, judge.totals, f"{trace}{failure}"
    return name, judge.totals, ""


def table(results: list[tuple[str, Totals, str]]) -> str:
    """What was done, for people."""
    head = ("target", "executions", "accepted", "refused", "a second", "worst ms", "peak KiB")
    rows = [head]
    for name, totals, failure in sorted(results):
        rate = totals.executions / totals.seconds if totals.seconds else 0
        rows.append(
            (
                name + (" FAILED" if failure else ""),
                f"{totals.executions:,}",
                f"{totals.accepted:,}",
                f"{totals.refused:,}",
                f"{rate:,.0f}",
                f"{totals.worst_seconds * 1000:.1f}",
                f"{totals.memory_bytes // 1024:,}",
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument("--executions", type=int, default=10_000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--input", help="run this input (hexadecimal) and nothing else")
    parser.add_argument("--list", action="store_true", help="name the targets")
    options = parser.parse_args()
    if options.list:
        for target in TARGETS:
            print(f"{target.name:18} {target.decoder}")
        return 0
    names = options.target or [target.name for target in TARGETS]
    if options.input is not None:
        target = by_name(names[0])
        with target.open() as read:
            accepted = Judge(target).execute(read, bytes.fromhex(options.input), 0)
        print("accepted" if accepted else "refused")
        return 0
    work = [(name, options.seed, options.first, options.executions) for name in names]
    if options.jobs == 1:
        results = [run_target(*item) for item in work]
    else:
        with ProcessPoolExecutor(options.jobs) as pool:
            results = list(pool.map(run_target, *zip(*work, strict=True)))
    print(table(results))
    failures = [failure for _, _, failure in results if failure]
    for failure in failures:
        print(f"\n{failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
