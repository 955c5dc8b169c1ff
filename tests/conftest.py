"""Settings that all tests share.

Property tests draw the same examples at every run, so that a failure is one that anybody can
repeat. `RAFTKV_RANDOM=1` draws new ones, to look for what the fixed ones miss; a failure prints
the example.

Tests marked `privileged` make namespaces and mounts, or inject faults into system calls. Where that
is not possible they are left out, which the report says; with CI=true that is an error.
"""

import os
import shutil

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("random" if os.environ.get("RAFTKV_RANDOM") else "fixed")

PRIVILEGED_TOOLS = ("ip", "nft", "mount", "fiu-run")


def _missing() -> str:
    """What privileged tests need and is not here; empty: nothing."""
    if os.geteuid() != 0:
        return "root"
    return ", ".join(tool for tool in PRIVILEGED_TOOLS if shutil.which(tool) is None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave privileged tests out where they cannot run, except in CI."""
    privileged = [item for item in items if item.get_closest_marker("privileged")]
    missing = _missing() if privileged else ""
    if not missing:
        return
    if os.environ.get("CI") == "true":
        raise pytest.UsageError(f"{len(privileged)} tests need what is not here: {missing}")
    config.hook.pytest_deselected(items=privileged)
    items[:] = [item for item in items if item not in privileged]
    config.stash[_LEFT_OUT] = (
        f"{len(privileged)} privileged tests are left out, for want of {missing}"
    )


_LEFT_OUT = pytest.StashKey[str]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was left out."""
    if _LEFT_OUT in config.stash:
        terminalreporter.write_line(config.stash[_LEFT_OUT])
