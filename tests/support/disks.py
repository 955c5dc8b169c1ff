"""Disks that fill up: a small file system in memory under one member's data directory."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.networks import run

PIECE_BYTES = 64 * 1024


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[Path]:
    """A file system of its own at `folder` for the length of the block. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        # Lazy: a process that still ends must not keep it from going away.
        run("umount", "--lazy", str(folder))


def fill(folder: Path) -> Path:
    """Take all space that is left there; the file to remove to give it back."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (PIECE_BYTES, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
    return ballast
