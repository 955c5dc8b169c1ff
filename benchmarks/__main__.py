"""The whole comparison: `python -m benchmarks [--quick] [--only TEXT] [--docs]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks import facts, plots, report
from benchmarks.facts import DOCS, OUT
from benchmarks.peers.servers import (
    CallFailed,
    Missing,
    etcd_kinds,
    raftkv_kind,
    stop_cleanly,
)
from benchmarks.peers.tools import BadRun, check_installed
from benchmarks.scenarios import doors, durable, others, recovery, watching
from benchmarks.scenarios.bench import QUICK, Bench, Settings

SCENARIOS: Final[tuple[Callable[[Bench], None], ...]] = (
    durable.answers_and_the_disk,
    doors.one_member,
    doors.three_members,
    watching.watches_and_leases,
    recovery.full_store,
    recovery.leader_killed,
    others.replicated_python,
    others.real_clients,
    others.loader_ceiling,
)


def main() -> int:
    """0: measured; 1: something of it could not be believed; 2: something is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="within five minutes")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="how often each cell is measured: fewer, less sure"
    )
    parser.add_argument("--only", default="", help="cells whose key has this in it")
    parser.add_argument("--out", type=Path, default=OUT, help="where files go (%(default)s)")
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write it into docs/performance.md, unless something failed",
    )
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds is at least 1")
    if options.docs and options.only:
        parser.error("the page is written as a whole: --docs goes without --only")
    try:
        check_installed()
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    stop_cleanly()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = QUICK if options.quick else Settings()
    if options.rounds is not None:
        settings = replace(settings, rounds=options.rounds)
    run = measure(settings, options.only, options.out)
    write(run, options.out, docs=options.docs and not run.failures)
    report.show(run, Console())
    return 1 if run.failures else 0


def measure(settings: Settings, only: str, out: Path) -> report.Run:
    """Run all scenarios. The data of the servers goes into a folder below `out`, then away."""
    kinds = [raftkv_kind(), *etcd_kinds()]
    with tempfile.TemporaryDirectory(dir=out, prefix="data-") as folder:
        bench = Bench(settings, kinds, Path(folder), only=only)
        told = facts.gather(kinds, bench.folder)
        if told["file system"] == "tmpfs":
            bench.failures.append(f"{out} is in memory, where a sync costs nothing; give --out")
        for scenario in SCENARIOS:
            began = time.monotonic()
            name = scenario.__name__.replace("_", " ")
            bench.say(name)
            try:
                scenario(bench)
            except (BadRun, CallFailed) as error:
                bench.failures.append(f"{name}: {error}")
                bench.say(f"  {error}")
            except KeyboardInterrupt:
                bench.failures.append(f"stopped during {name}")
                break
            bench.say(f"  {time.monotonic() - began:.0f} s")
    return report.Run(
        told, asdict(settings), list(bench.cells.values()), bench.ceiling, bench.failures
    )


def write(run: report.Run, out: Path, docs: bool) -> None:
    """`run.json`, `table.md` and `ratios.svg`; with `docs`, the page and its plot."""
    (out / "run.json").write_text(run.as_json())
    (out / "table.md").write_text(report.markdown(run))
    plots.ratios(run.cells, out / "ratios.svg")
    if docs:
        plots.ratios(run.cells, DOCS / "performance" / "ratios.svg")
        page = DOCS / "performance.md"
        page.write_text(report.put_between(page.read_text(), "table", report.markdown(run)))


if __name__ == "__main__":
    sys.exit(main())
