"""Which code is under test, for reports."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache
def commit() -> str:
    """The commit, with a + when files differ from it; "unknown" outside of a checkout."""
    folder = Path(__file__).parent
    try:
        name = _git(folder, "rev-parse", "--short=10", "HEAD")
        return name + ("+" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True)
    return done.stdout.decode().strip()
