"""Runs any tests on production code with one defect.

python -m pytest -p tests.mutations.plugin --mutation NAME tests/paper
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mutations.catalogue import MUTATIONS, applied


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutation", choices=sorted(MUTATIONS), help="the defect to put in")


@pytest.fixture(autouse=True, scope="session")
def _mutation(request: pytest.FixtureRequest) -> Iterator[None]:
    name = request.config.getoption("--mutation")
    if name is None:
        yield
        return
    with applied(name):
        yield
