"""The build without a compiler: it says so, and what comes out is the interpreted form."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)  # mypyc reads all of it first
def test_without_a_compiler_the_build_goes_on_interpreted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    left_out = shutil.ignore_patterns("*.so", "__pycache__", ".*", "build", "data")
    for name in ("raftkv", "api", "cli"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    built = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(tmp_path / "lib")],
        cwd=tree,
        env={**os.environ, "RAFTKV_COMPILE": "1", "CC": "/bin/false"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "raftkv stays interpreted: " in built.stderr
    assert not list((tmp_path / "lib").rglob("*.so"))
    said = subprocess.run(
        [sys.executable, "-m", "raftkv", "version", "--output", "api"],
        cwd=tmp_path / "lib",
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"form": "interpreted"' in said.stdout or '"form":"interpreted"' in said.stdout
