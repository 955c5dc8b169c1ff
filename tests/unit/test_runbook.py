"""The runbook of docs/operations.md: what it quotes is what the program says, and each of its
sections is rehearsed by tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
RUNBOOK = PAGE.partition("## The runbook\n")[2].partition("\n## ")[0]
SECTIONS = dict(
    (part.partition("\n")[0], part.partition("\n")[2]) for part in RUNBOOK.split("\n### ")[1:]
)


@cache
def said() -> str:
    """Every text in the program, adjacent ones joined as the compiler joins them."""
    texts = []
    for folder in ("raftkv", "api", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [
                        part.value if isinstance(part, ast.Constant) else "\0"
                        for part in node.values
                    ]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_there_are_ten_of_them() -> None:
    assert len(SECTIONS) == 10


@pytest.mark.parametrize("title", SECTIONS)
def test_what_is_quoted_is_what_the_program_says(title: str) -> None:
    quotes = re.findall(r"^> (.+)$", SECTIONS[title], re.MULTILINE)
    metrics = re.findall(r"`((?:raftkv|etcd)_[a-z_]+)`", SECTIONS[title])
    assert quotes or metrics
    for quote in quotes:
        for part in filter(None, (part.strip() for part in quote.split("…"))):
            assert part in said(), part


@pytest.mark.parametrize("title", SECTIONS)
def test_each_is_rehearsed_by_tests_that_exist(title: str) -> None:
    tests = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", SECTIONS[title])
    assert tests, title
    for path, name in tests:
        tree = ast.parse((ROOT / path).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        found = {node.name for node in tree.body if isinstance(node, functions)}
        assert name in found, (path, name)


def test_links_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    for anchor in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert anchor in anchors, anchor
