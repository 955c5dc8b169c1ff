"""What was measured, and the arithmetic of ratios: pair by pair, the median, and the spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final, Literal

from benchmarks.targets import ROW

OURS: Final = "raftkv"
RATIO, COST, EXCESS, TOLD = "ratio", "cost", "excess", "told"


@dataclass(slots=True)
class Cell:
    """One thing that was measured, on every side, once a round."""

    key: str
    """Row, and what within it: `three/put/64/leader`."""
    unit: str
    better: Literal["higher", "lower"] = "higher"
    kind: str = RATIO
    """`ratio`; `cost`: percent lost between two figures of ours; `excess`: seconds over ours;
    `told`: figures that are not divided by each other."""
    values: dict[str, list[float]] = field(default_factory=dict)
    """Side -> a figure a round. Of a cost: percent. Of an excess: seconds."""
    details: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    ahead: list[str] = field(default_factory=list)
    """Sides that answered here before what they answered for was on the disk."""

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
    """The side that it was held against."""


def pairwise(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round; rounds that only one side has are left out.

    Raises ValueError for a figure of theirs that is not above zero.
    """
    pairs = list(zip(ours, theirs, strict=False))
    if any(b <= 0 for _, b in pairs):
        raise ValueError(f"not to be divided by: {list(theirs)}")
    return [a / b for a, b in pairs]


def compare(cell: Cell) -> Compared | None:
    """What a cell says, held against the side that leaves us the worse; None while one is missing.

    Of sides that answered ahead of the disk only when there is no other: see `beside`.
    """
    ours = cell.values.get(OURS)
    if not ours:
        return None
    if cell.kind != RATIO:
        return Compared(median(ours), min(ours), max(ours), "")
    found = _against_each(cell)
    equals = [each for each in found if each.against not in cell.ahead] or found
    if not equals:
        return None
    worst = min if cell.better == "higher" else max
    return worst(equals, key=lambda compared: compared.value)


def beside(cell: Cell) -> list[Compared]:
    """Ours against the sides that `compare` left out: those that answered ahead of the disk."""
    if not cell.ahead or cell.kind != RATIO:
        return []
    used = compare(cell)
    return [
        each for each in _against_each(cell)
        if each.against in cell.ahead and used is not None and used.against != each.against
    ]  # fmt: skip


def _against_each(cell: Cell) -> list[Compared]:
    return [
        Compared(median(ratios), min(ratios), max(ratios), side)
        for side, theirs in cell.values.items()
        if side != OURS and (ratios := pairwise(cell.values.get(OURS, []), theirs))
    ]


def row_values(cells: Iterable[Cell], row: str) -> list[float]:
    """The values of a row's cells, those that there are."""
    compared = [compare(cell) for cell in cells if cell.row == row]
    return [each.value for each in compared if each]


def row_value(cells: Iterable[Cell], row: str) -> float | None:
    """The value that decides a row."""
    return ROW[row].worst(row_values(cells, row))
