"""What a run is told as: a table for people, Markdown, JSON, a plot."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.ratios import OURS, RATIO, Cell, beside, compare, row_value
from benchmarks.targets import ROWS, VERDICT_WORDS, Row

BESIDE = (
    "Left out above: these answered writes of one member before they were on the disk (see the row "
    "of slow syncs), and may lose them when the power fails."
)
SHOWN_EACH = 3
"""A row with more cells than this is told by its worst and its median."""


@dataclass(slots=True)
class Run:
    """All that is known of one run."""

    facts: dict[str, str]
    settings: dict[str, Any]
    cells: list[Cell]
    ceiling: float = 0.0
    """Puts a second of our load generator against a server that does nothing; 0: not measured."""
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """For a file."""
        told = asdict(self) | {
            "cells": [cell.as_dict() for cell in self.cells],
            "rows": [
                asdict(row) | {"value": value, "verdict": row.verdict(value)}
                for row in ROWS
                for value in [row_value(self.cells, row.key)]
            ],
        }
        return json.dumps(told, indent=1) + "\n"

    @staticmethod
    def read(path: Path) -> Run:
        """From a file. Raises OSError, ValueError or KeyError."""
        told = json.loads(path.read_text())
        return Run(
            told["facts"], told["settings"], [Cell.from_dict(cell) for cell in told["cells"]],
            told["ceiling"], told["failures"],
        )  # fmt: skip


HEADINGS = ("Workload", "Aim", "Not below", "Measured", "Spread", "Verdict")
CELL_HEADINGS = (
    "Measured", "raftkv", "The better of the others", "Ratio", "Spread", "Server us an answer",
    "Loader share",
)  # fmt: skip
BESIDE_HEADINGS = ("Measured", "Answered before it was safe", "Ratio", "Spread")


def row_lines(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """The table of targets: a line for each row."""
    return [_row_line(row, [cell for cell in cells if cell.row == row.key]) for row in ROWS]


def _row_line(row: Row, cells: Sequence[Cell]) -> tuple[str, ...]:
    compared = [found for cell in cells if (found := compare(cell))]
    value = row.worst([each.value for each in compared])
    if len(compared) <= SHOWN_EACH:
        shown = " / ".join(row.shown(each.value) for each in compared) or "-"
    else:
        middle = median(each.value for each in compared)
        shown = f"{row.shown(value)}, median {row.shown(middle)} of {len(compared)}"
    spread = "-"
    if compared:
        low, high = min(each.low for each in compared), max(each.high for each in compared)
        spread = f"{row.shown(low)} to {row.shown(high)}"
    aim = "-" if row.aim is None else row.shown(row.aim)
    floor = "-" if row.floor is None else row.shown(row.floor)
    return row.title, aim, floor, shown, spread, VERDICT_WORDS[row.verdict(value)]


def cell_lines(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """All that was measured: a line for each cell."""
    lines: list[tuple[str, ...]] = []
    for cell in cells:
        compared = compare(cell)
        if compared is None:
            continue
        ours = _figure(median(cell.values[OURS]), cell.unit)
        others = {side: median(v) for side, v in cell.values.items() if side != OURS}
        against = compared.against
        theirs = f"{against}: {_figure(others[against], cell.unit)}" if against else "; ".join(
            f"{side}: {_figure(value, cell.unit)}" for side, value in others.items()
        )  # fmt: skip
        ratio = cell.kind == RATIO
        loader = [share for side in cell.details for share in _detail(cell, side, "loader_cpu")]
        server = [_detail(cell, side, "server_us") for side in (OURS, against)]
        lines.append((
            f"{cell.row}: {cell.label}", ours, theirs or "-",
            f"{compared.value:.2f}x" if ratio else "-",
            f"{compared.low:.2f} to {compared.high:.2f}",
            " / ".join(f"{median(values):,.0f}" for values in server if values) or "-",
            f"{max(loader):.0%}" if loader else "-",
        ))  # fmt: skip
    return lines


def beside_lines(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """What was left out of the comparison: a line for each cell and side."""
    return [
        (
            f"{cell.row}: {cell.label}",
            f"{each.against}: {_figure(median(cell.values[each.against]), cell.unit)}",
            f"{each.value:.2f}x", f"{each.low:.2f} to {each.high:.2f}",
        )
        for cell in cells
        for each in beside(cell)
    ]  # fmt: skip


def _detail(cell: Cell, side: str, name: str) -> list[float]:
    return [rounds[name] for rounds in cell.details.get(side, []) if name in rounds]


def _figure(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.2f} {unit}"


def markdown(run: Run) -> str:
    """Both tables and the facts."""
    parts = [
        _markdown_table(HEADINGS, row_lines(run.cells)),
        "",
        *(f"- {name}: {value}" for name, value in _notes(run)),
        "",
        _markdown_table(CELL_HEADINGS, cell_lines(run.cells)),
        "",
    ]
    if left_out := beside_lines(run.cells):
        parts += [BESIDE, "", _markdown_table(BESIDE_HEADINGS, left_out), ""]
    return "\n".join(parts)


def _notes(run: Run) -> list[tuple[str, str]]:
    notes = list(run.facts.items())
    rounds, seconds = run.settings["rounds"], run.settings["seconds"]
    notes.append(("method", f"{rounds} rounds of {seconds:g} s in turns, median of pairs"))
    if run.settings["quick"]:
        keys = run.settings["big_keys"]
        notes.append(("quick", f"a part of the cells; {keys:,} keys where a row says 1M"))
    if run.ceiling:
        told = f"{run.ceiling:,.0f} puts a second of a server that does nothing"
        notes.append(("our loader's ceiling", told))
    notes += [("failed, so not counted", failure) for failure in run.failures]
    return notes


def _markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def show(run: Run, console: Console) -> None:
    """The tables on a terminal; as Markdown into a pipe or a file."""
    if not console.is_terminal:
        console.file.write(markdown(run))
        return
    colours = {"at its aim": "green", "above the floor": "yellow", "BELOW THE FLOOR": "bold red"}
    targets = Table(*HEADINGS, title="raftkv divided by the better of its peers")
    for line in row_lines(run.cells):
        targets.add_row(*line, style=colours.get(line[-1]))
    console.print(targets)
    cells = Table(*CELL_HEADINGS, title="All that was measured (medians)")
    for line in cell_lines(run.cells):
        cells.add_row(*line)
    console.print(cells)
    if left_out := beside_lines(run.cells):
        aside = Table(*BESIDE_HEADINGS, title=BESIDE)
        for line in left_out:
            aside.add_row(*line)
        console.print(aside)
    for name, value in _notes(run):
        console.print(f"[bold]{name}[/]: {value}", highlight=False)


def put_between(text: str, mark: str, content: str) -> str:
    """`text` with what stands between its two marks replaced. Raises ValueError without marks."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no marks around {mark}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)
