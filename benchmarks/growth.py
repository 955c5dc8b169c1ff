"""Cost against size, and what disturbs a store that is busy; plots and a table in the docs.

    python -m benchmarks.growth [--scale 0.1] [--only keys] [--docs]

`--scale` shortens the largest sizes and the time of each measurement: 0.1, which some minutes are
enough for, is the default; 1 goes to a million keys.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import facts, plots
from benchmarks.facts import DOCS, OUT
from benchmarks.peers.servers import (
    CallFailed,
    Kind,
    Missing,
    etcd_kinds,
    raftkv_kind,
    stop_cleanly,
)
from benchmarks.peers.tools import BadRun, check_installed
from benchmarks.report import put_between
from benchmarks.scenarios import disturbance, durable, growing
from benchmarks.scenarios.bench import Bench
from benchmarks.scenarios.curve import Curve, settings_of

CURVES: Final[dict[str, Callable[[Bench, float], list[Curve]]]] = {
    "keys": growing.keys,
    "value bytes": growing.value_bytes,
    "watchers": growing.watchers,
    "leases": growing.leases,
    "connections": growing.connections,
    "members": growing.members,
}


def main() -> int:
    """0: measured; 1: something of it could not be believed; 2: something is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    parser.add_argument("--out", type=Path, default=OUT, help="where files go (%(default)s)")
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write into docs/performance.md, unless something failed",
    )
    options = parser.parse_args()
    if options.docs and options.only:
        parser.error("the page is written as a whole: --docs goes without --only")
    try:
        check_installed()
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    stop_cleanly()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out, prefix="data-") as folder:
        kinds = [raftkv_kind(), *etcd_kinds()]
        bench = Bench(settings_of(options.scale), kinds, Path(folder), only=options.only)
        durable.answers_and_the_disk(bench)
        bench.kinds = two_alike(bench)
        told = facts.gather(bench.kinds, bench.folder) | {"scale": f"{options.scale:g}"}
        text = measure(bench, options.scale, options.out / "growth")
    lines = [*(f"- {name}: {value}" for name, value in told.items()), "", *text]
    lines += [f"- failed: {failure}" for failure in bench.failures]
    (options.out / "growth.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    if options.docs and not bench.failures:
        (DOCS / "performance").mkdir(exist_ok=True)
        for plot in (options.out / "growth").glob("*.svg"):
            shutil.copy(plot, DOCS / "performance")
        page = DOCS / "performance.md"
        page.write_text(put_between(page.read_text(), "growth", "\n".join(lines)))
    return 1 if bench.failures else 0


def two_alike(bench: Bench) -> list[Kind]:
    """raftkv, and the first etcd that waits for its disk; if none does, the first."""
    ours, *etcds = bench.kinds
    waiting = [kind for kind in etcds if bench.side(kind) not in bench.ahead_of_disk]
    return [ours, (waiting or etcds)[0]]


def measure(bench: Bench, scale: float, place: Path) -> list[str]:
    """Run what is wanted and draw it into `place`; the text that goes with the plots."""
    text: list[str] = []
    for name, scenario in CURVES.items():
        if not bench.wants(name):
            continue
        bench.say(name)
        try:
            curves = scenario(bench, scale)
        except (BadRun, CallFailed) as error:
            bench.failures.append(f"{name}: {error}")
            continue
        file = f"{name.replace(' ', '-')}.svg"
        plots.curves(
            f"against {name}", name, {c.quantity: c.sides for c in curves}, place / file
        )  # fmt: skip
        _keep(place / f"{name.replace(' ', '-')}.json", [c.as_dict() for c in curves])
        text += [f"![Against {name}](performance/{file})", ""]
        text += [line for curve in curves for line in curve.told()] + [""]
    if bench.wants("disturbance"):
        text += _disturbance(bench, place)
    return text


def _disturbance(bench: Bench, place: Path) -> list[str]:
    bench.say("disturbance")
    try:
        found = disturbance.over_time(bench)
    except (BadRun, CallFailed) as error:
        bench.failures.append(f"disturbance: {error}")
        return []
    plots.over_time(
        "64 puts under way on three members", {side: d.points for side, d in found.items()},
        {side: d.spans for side, d in found.items()}, place / "disturbance.svg",
    )  # fmt: skip
    _keep(place / "disturbance.json", {side: d.as_dict() for side, d in found.items()})
    return [
        "![Disturbance over time](performance/disturbance.svg)", "",
        *(line for side, d in found.items() for line in d.told(side)), "",
    ]  # fmt: skip


def _keep(path: Path, told: object) -> None:
    path.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
