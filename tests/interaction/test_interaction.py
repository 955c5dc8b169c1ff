"""Golden traces: each script in this folder must do exactly what it says it does.

`make golden` (or `pytest tests/interaction --rewrite-golden`) rewrites the traces. Commit the
change only if you understand what caused it and want it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interaction.script import rewrite

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_trace(path: Path, rewrite_golden: bool) -> None:
    expected = path.read_text()
    happened = rewrite(expected)
    if rewrite_golden:
        path.write_text(happened)
        return
    assert happened == expected


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 10
