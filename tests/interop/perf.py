"""`etcdctl check perf` against raftkv, and its largest load by a client that costs little.

    python -m tests.interop.perf [--small | --beside]

The loads `s` and `m` must pass, a minute each, the latter on a machine that does nothing else;
`--small` runs `s` alone. Load `l` wants 8,000 puts a second of 500 clients,
of which etcdctl itself takes more than a core, so on a small machine it fails whatever it asks.
What it asks for is held against its criteria another way: 500 connections with one put of 1 KiB
under way on each, from `benchmarks.load`. `--beside` runs etcdctl's own `l` on raftkv and on etcd
instead, and shows what each came to.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.load.spec import Spec
from benchmarks.peers.tools import run_load
from tests.interop.peers import etcd_programs, real_etcd
from tests.support.processes import running

CLIENTS: Final = 500
RATE_MIN: Final = 0.9 * 8000
SLOWEST_SECONDS: Final = 0.5
USUAL_SECONDS: Final = 0.1
"""etcdctl judges the standard deviation; that 99 in 100 are within it says as much."""
SECONDS: Final = 30.0


def check_perf(endpoint: str, load: str) -> list[str]:
    """What `check perf` says of each criterion, and in the end."""
    done = subprocess.run(
        [etcd_programs() / "etcdctl", f"--endpoints={endpoint}", "check", "perf", f"--load={load}"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return re.findall(r"(?:PASS|FAIL)[^\r\n]*", done.stdout + done.stderr)


def passes(endpoint: str, load: str) -> bool:
    """Whether a load of etcdctl's own passes."""
    verdicts = check_perf(endpoint, load)
    print(f"check perf --load={load}: {'; '.join(verdicts)}", flush=True)
    return bool(verdicts) and all(verdict.startswith("PASS") for verdict in verdicts)


def holds(endpoint: str) -> bool:
    """Whether 500 clients that cost little are served as load `l` wants it."""
    address = endpoint.removeprefix("http://")
    outcome = run_load(Spec((address,), "put", CLIENTS, 1, SECONDS, 1.0, value_bytes=1024))
    slowest, usual = (outcome.latency_ms[name] / 1000 for name in ("max", "p99"))
    print(
        f"the load of --load=l: {outcome.rate:.0f} writes/s of at least {RATE_MIN:.0f}; "
        f"slowest {slowest:.3f} s of at most {SLOWEST_SECONDS}; "
        f"99 in 100 within {usual:.3f} s of at most {USUAL_SECONDS}"
    )
    return outcome.rate >= RATE_MIN and slowest <= SLOWEST_SECONDS and usual <= USUAL_SECONDS


async def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--small", action="store_true")
    way.add_argument("--beside", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        async with running(Path(name), 1) as cluster:
            ours = cluster.urls[0]
            if not options.beside:
                good = [await asyncio.to_thread(passes, ours, "s")]
                if not options.small:
                    good.append(await asyncio.to_thread(passes, ours, "m"))
                    good.append(await asyncio.to_thread(holds, ours))
                if not all(good):
                    sys.exit("not what check perf asks for")
                return
            with real_etcd(Path(name)) as port:
                for who, url in (("raftkv", ours), ("etcd", f"http://127.0.0.1:{port}")):
                    said = await asyncio.to_thread(check_perf, url, "l")
                    print(f"{who}: check perf --load=l: {'; '.join(said)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
