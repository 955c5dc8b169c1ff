"""Plots, as SVG that stays the same while the figures do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.ratios import OURS, RATIO, Cell, compare
from benchmarks.targets import ROW

COLOURS: Final = ("#1f6feb", "#d1242f", "#8250df", "#9a6700")
PANELS_A_ROW: Final = 4


def _pyplot() -> Any:
    """matplotlib, which is there for `make bench` only."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("svg")
    settings: dict[Any, Any] = {
        "svg.hashsalt": "raftkv", "svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3,
        "font.size": 9,
    }  # fmt: skip
    matplotlib.rcParams.update(settings)
    return plt


def save(figure: Any, path: Path) -> None:
    """Write a figure, and be done with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    _pyplot().close(figure)


def ratios(cells: Sequence[Cell], path: Path) -> None:
    """A bar for each ratio, turned so that right of 1 is better; its aim and floor as marks."""
    shown = [
        (cell, found) for cell in cells if cell.kind == RATIO and (found := compare(cell))
    ][::-1]  # fmt: skip
    if not shown:
        return
    figure, axes = _pyplot().subplots(figsize=(8, 1 + 0.24 * len(shown)))
    for place, (cell, found) in enumerate(shown):
        row = ROW[cell.row]

        def gain(ratio: float, lower: bool = cell.better == "lower") -> float:
            return 1 / ratio if lower else ratio

        value = gain(found.value)
        colour = COLOURS[0] if value >= 1 else COLOURS[1]
        axes.barh(place, value - 1, left=1, color=colour, alpha=0.8)
        ends = sorted((gain(found.low), gain(found.high)))
        axes.plot(ends, [place, place], color="black", linewidth=1)
        for target, mark in ((row.aim, "*"), (row.floor, "|")):
            if target:
                axes.plot(gain(target), place, mark, color="black", markersize=7)
    axes.set_yticks(range(len(shown)), [f"{cell.row}: {cell.label}" for cell, _ in shown])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlabel("times as good as the better peer (star: aim, bar: not below, line: spread)")
    save(figure, path)


def curves(
    title: str, x_label: str, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: Path,
) -> None:  # fmt: skip
    """Cost against size: a panel a quantity, a curve a side, both axes logarithmic."""
    rows = -(-len(panels) // PANELS_A_ROW)
    figure, grid = _pyplot().subplots(
        rows, PANELS_A_ROW, figsize=(3.4 * PANELS_A_ROW, 2.7 * rows), squeeze=False
    )
    all_axes = list(grid.flat)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    for axes, (y_label, sides) in zip(all_axes, panels.items(), strict=False):
        for colour, (side, points) in zip(
            COLOURS, sorted(sides.items(), key=_ours_first), strict=False
        ):
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=side, markersize=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    all_axes[0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    save(figure, path)


def over_time(
    title: str, sides: Mapping[str, Sequence[tuple[float, float, float]]],
    spans: Mapping[str, Sequence[tuple[str, float, float]]], path: Path,
) -> None:  # fmt: skip
    """Throughput and slowest answer over time, a column a side, with what happened when."""
    figure, all_axes = _pyplot().subplots(
        2, len(sides), figsize=(5 * len(sides), 5), squeeze=False, sharey="row", sharex="col"
    )
    for place, (side, points) in enumerate(sorted(sides.items(), key=_ours_first)):
        times, rates, slowest = zip(*points, strict=True)
        above, below = all_axes[0][place], all_axes[1][place]
        above.plot(times, rates, color=COLOURS[0], linewidth=1)
        below.plot(times, slowest, color=COLOURS[1], linewidth=1)
        for what, begin, end in spans[side]:
            for axes in (above, below):
                axes.axvspan(begin, end, color="black", alpha=0.12, linewidth=0)
            above.annotate(what, (begin, 0), rotation=90, fontsize=8, va="bottom", ha="right")
        above.set_title(side)
        above.set_ylim(bottom=0)
        above.set_ylabel("answers a second")
        below.set_ylabel("slowest answer, ms")
        below.set_yscale("log")
        below.set_xlabel("seconds")
    figure.suptitle(title)
    figure.tight_layout()
    save(figure, path)


def timeline(
    title: str, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    events: Sequence[tuple[float, str]], path: Path, logarithmic: Sequence[str] = (),
) -> None:  # fmt: skip
    """A panel a quantity over minutes, one below the other, with what happened when on all."""
    figure, rows = _pyplot().subplots(
        len(panels), 1, figsize=(10, 1.7 * len(panels) + 1), squeeze=False, sharex=True
    )
    all_axes = [row[0] for row in rows]
    for axes, (y_label, curves_of) in zip(all_axes, panels.items(), strict=True):
        for colour, (side, points) in zip(itertools.cycle(COLOURS), curves_of.items()):
            axes.plot(*zip(*points, strict=True), color=colour, label=side, linewidth=0.9)
        if y_label in logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_ylabel(y_label, fontsize=7)
        axes.legend(fontsize=6, loc="upper right")
        for at, _ in events:
            axes.axvline(at, color="black", alpha=0.35, linewidth=0.7)
    for at, what in events:
        all_axes[0].annotate(
            what, (at, 1.02), xycoords=("data", "axes fraction"), rotation=60, fontsize=7
        )
    all_axes[-1].set_xlabel("minutes")
    figure.suptitle(title, y=0.98)
    save(figure, path)


def _ours_first(item: tuple[str, Any]) -> tuple[bool, str]:
    return item[0] != OURS, item[0]
