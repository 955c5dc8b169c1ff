"""A line that tells how far a long run is: redrawn on a terminal, now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 24
QUIET_SECONDS = 15.0


class Progress:
    """`total` in the unit of `update`."""

    def __init__(
        self,
        label: str,
        total: float,
        stream: TextIO = sys.stderr,
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        """`quiet_seconds`: between two lines where there is no terminal."""
        self._quiet_seconds = quiet_seconds
        self._label = label
        self._total = total
        self._stream = stream
        self._started = time.monotonic()
        self._said = 0.0
        self._wide = 0

    def update(self, done: float, note: str = "") -> None:
        """Say how far it is."""
        now = time.monotonic()
        terminal = self._stream.isatty()
        if now - self._said < (0.1 if terminal else self._quiet_seconds) and done < self._total:
            return
        self._said = now
        share = min(1.0, done / self._total)
        bar = "#" * round(share * WIDTH)
        spent = now - self._started
        line = f"{self._label} [{bar:.<{WIDTH}}] {share:4.0%} {spent:5.0f} s  {note}"
        self._wide = max(self._wide, len(line))
        self._stream.write(f"\r{line:<{self._wide}}" if terminal else line + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._stream.isatty():
            self._stream.write("\n")
