"""The page on security: each fault of others that it lists names tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
TABLE = PAGE.partition("## What went wrong elsewhere\n")[2].partition("\n## ")[0]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and "::" in line]


def test_every_row_has_its_tests() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(rows) - 1 >= 11, "all but the head"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_the_tests_of_a_row_exist(row: str) -> None:
    for path, name in re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", row):
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, functions)}, name
