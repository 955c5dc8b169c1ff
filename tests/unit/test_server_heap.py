"""Memory that was freed goes back to the system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PEAK = """
import threading
from raftkv.server.heap import give_back_memory

def private_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def peak():
    # A large one first: after it, glibc as it comes takes blocks of its size from its heaps.
    large = b"x" * (30 << 20)
    del large
    blocks = [b"x" * (3 << 19) for _ in range(24)]
    blocks.append(bytes(600))
    del blocks[:-1]
    return blocks

if give_back_memory({given}):
    before = private_kib()
    kept = [peak()]
    threads = [threading.Thread(target=lambda: kept.append(peak())) for _ in range(4)]
    for thread in threads:
        thread.start()
        thread.join()
    print(private_kib() - before)
else:
    print("musl")
"""


def kept_kib(given: dict[str, str]) -> int:
    """What a process holds after peaks of 36 MiB in five threads, in turn."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-c", PEAK.replace("{given}", repr(given))],
        env=ours,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    if run.stdout == "musl\n":
        pytest.fail("these tests are for glibc")
    return int(run.stdout)


def test_a_peak_leaves_no_mark() -> None:
    assert kept_kib({}) < 8 * 1024


HOLES = """
import asyncio
from raftkv.server.heap import Trimmer

def private_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

async def main():
    kept = [bytes(6000 if number % 2 else 60_000) for number in range(2000)]
    before = private_kib()
    del kept[::2]
    left = private_kib()
    trimmer = Trimmer(0.01)
    async with asyncio.timeout(30):
        while private_kib() > before - 40_000:
            await asyncio.sleep(0.01)
    trimmer.close()
    print(before - left, before - private_kib())

asyncio.run(main())
"""


def test_holes_are_given_back_too() -> None:
    run = subprocess.run(
        [sys.executable, "-c", HOLES],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    by_freeing, with_trimming = map(int, run.stdout.split())
    assert by_freeing < 20_000 and with_trimming > 40_000


def test_what_an_operator_sets_prevails() -> None:
    names = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    assert kept_kib(dict.fromkeys(names, "0")) > 16 * 1024
