"""The option that rewrites the expected traces."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write what the scripts in tests/interaction do into their files; read the diff",
    )


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    """Whether to rewrite; also switched on by RAFTKV_REWRITE_GOLDEN=1."""
    option = request.config.getoption("--rewrite-golden", default=False)
    return bool(option) or os.environ.get("RAFTKV_REWRITE_GOLDEN") == "1"
