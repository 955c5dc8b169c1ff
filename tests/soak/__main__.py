"""`python -m tests.soak --minutes 60`: see the package. Exits with 1 if anything does not hold."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak.report import plot, table, write
from tests.soak.run import Plan, Soak
from tests.support.progress import Progress

PIPE_SECONDS = 60.0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--out", type=Path, default=None, help="where to write JSON, table, plot")
    parser.add_argument(
        "--plot", type=Path, default=None, help="only draw what an earlier run wrote there"
    )
    given = parser.parse_args()
    if given.plot is not None:
        plot(given.plot)
        return 0
    seed = secrets.randbits(32) if given.seed is None else given.seed
    print(f"python -m tests.soak --minutes {given.minutes:g} --seed {seed}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="raftkv-soak-"))
    progress = Progress("soak", given.minutes * 60, quiet_seconds=PIPE_SECONDS)
    soak = Soak(folder, Plan(given.minutes, seed), progress)
    try:
        asyncio.run(soak.run())
    except BaseException:
        print(f"\nthe soak itself ended; data and logs are in {folder}", file=sys.stderr)
        raise
    finally:
        progress.end()
    if given.out is not None:
        write(soak, given.out)
    print(table(soak))
    if soak.faults.count:
        print(f"FAILED in {soak.faults.count} ways; data and logs are in {folder}", file=sys.stderr)
        for sentence in soak.faults.said:
            print(f"- {sentence}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
