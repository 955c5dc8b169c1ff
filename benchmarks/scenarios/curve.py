"""A quantity against a size, on each side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.scenarios.bench import Settings


@dataclass(slots=True)
class Curve:
    """One panel of a plot."""

    quantity: str
    sides: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Side -> size and value."""

    def add(self, side: str, size: float, value: float) -> None:
        """One more point."""
        self.sides.setdefault(side, []).append((size, value))

    def told(self) -> list[str]:
        """A line of text for each side."""
        return [
            f"- {self.quantity}, {side}: "
            + ", ".join(f"{_readable(value)} at {size:,.0f}" for size, value in points)
            for side, points in self.sides.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _readable(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def settings_of(scale: float) -> Settings:
    """How long to measure each point: half a second at the least, three at the most."""
    seconds = min(3.0, max(0.5, 3.0 * scale))
    return Settings(
        rounds=1, seconds=seconds, warmup_seconds=seconds / 3, keys=10_000,
        big_keys=max(10_000, int(1_000_000 * scale)),
    )  # fmt: skip


def sizes(first: int, last: int, scale: float, factor: int = 10) -> list[int]:
    """Sizes from `first` by `factor` up to `last` times `scale`, at least three of them."""
    found = [first]
    while found[-1] * factor <= last * max(scale, 1e-9) or len(found) < 3:
        if found[-1] * factor > last:
            break
        found.append(found[-1] * factor)
    return found
