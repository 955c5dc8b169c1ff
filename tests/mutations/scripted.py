"""Runs each defect's scripted test, without the defect and with it, in one process.

    python -m tests.mutations.scripted [NAME ...]

Prints a line for each test that passes with its defect or fails without; 1 if there is any.
"""

from __future__ import annotations

import contextlib
import io
import sys

import pytest

from tests.mutations.catalogue import MUTATIONS, Mutation, applied

_QUIET = ["-q", "-x", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]


def passes(test: str) -> tuple[bool, str]:
    """Whether a test passes, and what pytest said. Raises LookupError when there is none."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*_QUIET, test])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise LookupError(f"{test} cannot be run: {said.getvalue()}")
    return code == pytest.ExitCode.OK, said.getvalue()


def judge(mutation: Mutation) -> str:
    """What is wrong with the scripted test of a defect; nothing, if it is as it should be."""
    clean, said = passes(mutation.test)
    if not clean:
        return f"{mutation.test} fails without any defect:\n{said}"
    with applied(mutation.name):
        unnoticed, _ = passes(mutation.test)
    return f"{mutation.test} passes in spite of {mutation.name}" if unnoticed else ""


def main(names: list[str]) -> int:
    """Judge all defects, or those named."""
    complaints = [judge(MUTATIONS[name]) for name in names or MUTATIONS]
    for complaint in filter(None, complaints):
        print(complaint)
    return 1 if any(complaints) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
