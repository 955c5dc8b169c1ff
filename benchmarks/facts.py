"""Where and of what a run was made."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import raftkv
from benchmarks.peers import pysyncobj
from benchmarks.peers.servers import Kind
from benchmarks.peers.tools import program

ROOT: Final = Path(__file__).resolve().parents[1]
OUT: Final = ROOT / ".bench"
"""Where results go, and while it runs the data of the servers."""
DOCS: Final = ROOT / "docs"
SYNCS: Final = 200


def gather(kinds: Sequence[Kind], folder: Path) -> dict[str, str]:
    """Commit, machine and versions, by name."""
    return {
        "commit": f"{commit()}, {raftkv.form()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "file system": filesystem(folder),
        "disk": f"{syncs_a_second(folder):,.0f} synced writes of 4 KiB a second",
        "peers": ", ".join(
            [kind.label for kind in kinds if not kind.ours] + [f"PySyncObj {pysyncobj.version()}"]
        ),
        "loaders": ", ".join(["benchmarks.load", *map(tool_version, ("wrk", "h2load"))]),
    }  # fmt: skip


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return said.stdout.strip() or "not a checkout"


def processor() -> str:
    """The processor's name."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def filesystem(folder: Path) -> str:
    """The kind of file system under a folder; on `tmpfs` a sync costs nothing."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def syncs_a_second(folder: Path) -> float:
    """How often a second this disk can write 4 KiB and be sure of it."""
    path = folder / "syncs"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        os.posix_fallocate(descriptor, 0, SYNCS * 4096)
        os.fsync(descriptor)
        began = time.perf_counter()
        for number in range(SYNCS):
            os.pwrite(descriptor, b"x" * 4096, number * 4096)
            os.fdatasync(descriptor)
        return SYNCS / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
        path.unlink()


def tool_version(name: str) -> str:
    """Name and version of a loader, from what it prints."""
    said = subprocess.run([program(name), "--version"], capture_output=True, text=True)
    found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
    return f"{name} {found[0] if found else '(unknown version)'}"
