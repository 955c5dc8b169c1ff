"""Settings that all tests share.

Property tests draw the same examples at every run, so that a failure is one that anybody can
repeat. `RAFTKV_RANDOM=1` draws new ones, to look for what the fixed ones miss; a failure prints
the example.

Tests marked `privileged` make namespaces and mounts, or inject faults into system calls; those
marked `tools` run programs that PyPI does not have. Where that is not possible they are left out,
which the report says; with CI=true that is an error.

Tests marked `interpreted` put a part in place of another one, or look into one, in a way that a
compiled hot path does not notice. With it they are left out: the same text passes them interpreted.
"""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

import raftkv

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("random" if os.environ.get("RAFTKV_RANDOM") else "fixed")

PRIVILEGED_TOOLS = ("ip", "nft", "mount", "fiu-run")


def _missing(item: pytest.Item) -> set[str]:
    """What a test needs and is not here."""
    tools: list[str] = []
    root = item.get_closest_marker("privileged") is not None
    if root:
        tools += PRIVILEGED_TOOLS
    for marker in item.iter_markers("tools"):
        tools += marker.args
    missing = {tool for tool in tools if shutil.which(tool) is None}
    return missing | {"root"} if root and os.geteuid() != 0 else missing


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test what was compiled from another text."""
    if raftkv.form() == "interpreted":
        return
    root = Path(raftkv.__file__).parent.parent
    # Any source: constants are part of what is compiled elsewhere.
    newest = max((*root.glob("raftkv/**/*.py"), *root.glob("api/**/*.py")), key=_changed)
    stamp = root / ".compiled"
    if not stamp.exists() or _changed(newest) > _changed(stamp):
        raise pytest.UsageError(
            f"{newest.relative_to(root)} is newer than what is compiled: "
            "`make compiled`, or `make interpreted`"
        )


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests out whose tools are not here, except in CI, and what is for the other form."""
    if raftkv.form() == "compiled":
        items[:] = [item for item in items if item.get_closest_marker("interpreted") is None]
    lacking = {item: _missing(item) for item in items}
    left_out = [item for item in items if lacking[item]]
    if not left_out:
        return
    missing = ", ".join(sorted(set().union(*lacking.values())))
    if os.environ.get("CI") == "true":
        raise pytest.UsageError(f"{len(left_out)} tests need what is not here: {missing}")
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not lacking[item]]
    config.stash[_LEFT_OUT] = f"{len(left_out)} tests are left out, for want of {missing}"


_LEFT_OUT = pytest.StashKey[str]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was left out."""
    if _LEFT_OUT in config.stash:
        terminalreporter.write_line(config.stash[_LEFT_OUT])
