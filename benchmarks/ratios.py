"""What was measured, and the arithmetic of ratios: pair by pair, the median, and the spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final, Literal

from benchmarks.targets import ROW

OURS: Final = "raftkv"
RATIO, COST, EXCESS = "ratio", "cost", "excess"


@dataclass(slots=True)
class Cell:
    """One thing that was measured, on every side, once a round."""

    key: str
    """Row, and what within it: `three/put/64/leader`."""
    unit: str
    better: Literal["higher", "lower"] = "higher"
    kind: str = RATIO
    """`ratio`; `cost`: percent lost between two figures of ours; `excess`: seconds over ours."""
    values: dict[str, list[float]] = field(default_factory=dict)
    """Side -> a figure a round. Of a cost: percent. Of an excess: seconds."""
    details: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @property
    def row(self) -> str:
        """The key of the row that it belongs to."""
        return self.key.partition("/")[0]

    @property
    def label(self) -> str:
        """What it is within its row."""
        return self.key.partition("/")[2].replace("/", " ")

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with what follows from it."""
        compared = compare(self)
        return asdict(self) | {"result": asdict(compared) if compared else None}

    @staticmethod
    def from_dict(told: Mapping[str, Any]) -> Cell:
        """Back from JSON."""
        return Cell(**{name: value for name, value in told.items() if name != "result"})


@dataclass(frozen=True, slots=True)
class Compared:
    """Ours against the better of the others."""

    value: float
    """Median of the ratios of each pair; for a cost or an excess, of ours."""
    low: float
    high: float
    against: str
    """The side that it was held against: the one that leaves us the worse."""


def pairwise(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round; rounds that only one side has are left out.

    Raises ValueError for a figure of theirs that is not above zero.
    """
    pairs = list(zip(ours, theirs, strict=False))
    if any(b <= 0 for _, b in pairs):
        raise ValueError(f"not to be divided by: {list(theirs)}")
    return [a / b for a, b in pairs]


def compare(cell: Cell) -> Compared | None:
    """What a cell says; None while one side is missing."""
    ours = cell.values.get(OURS)
    if not ours:
        return None
    if cell.kind != RATIO:
        return Compared(median(ours), min(ours), max(ours), "")
    found = []
    for side, theirs in cell.values.items():
        if side != OURS and (ratios := pairwise(ours, theirs)):
            found.append(Compared(median(ratios), min(ratios), max(ratios), side))
    if not found:
        return None
    worst = min if cell.better == "higher" else max
    return worst(found, key=lambda compared: compared.value)


def row_values(cells: Iterable[Cell], row: str) -> list[float]:
    """The values of a row's cells, those that there are."""
    compared = [compare(cell) for cell in cells if cell.row == row]
    return [each.value for each in compared if each]


def row_value(cells: Iterable[Cell], row: str) -> float | None:
    """The value that decides a row."""
    return ROW[row].worst(row_values(cells, row))
