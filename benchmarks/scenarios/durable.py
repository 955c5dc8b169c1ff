"""Who answers a write before it is safe: puts while every sync takes longer than it should.

A store of one member that answers ahead of its disk may lose what it has acknowledged when the
power fails, and is quicker for it. That is another service, so its figures for such writes stand
beside the comparison and not in it. etcd before 3.5.5 is known for it (etcd-io/etcd issue 14370).
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.peers.servers import Server
from benchmarks.peers.tools import program
from benchmarks.ratios import TOLD
from benchmarks.scenarios.bench import Bench

DELAY_SECONDS: Final = 0.05
PUTS: Final = 5
SYNCS = "fsync,fdatasync"
"""The system calls that begin late."""


class Untraced(Exception):
    """This process may not be traced here."""


def answers_and_the_disk(bench: Bench) -> None:
    """Before all else: fills `bench.ahead_of_disk`."""
    key = "durable/put"
    with bench.clusters(1) as clusters:
        for cluster in clusters:
            side = bench.side(cluster.kind)
            try:
                took = _put_with_slow_syncs(cluster.servers[0])
            except Untraced as error:
                # Nothing is left out of any comparison then.
                bench.say(f"  {side}: {error}")
                continue
            bench.note(key, side, took * 1000, "ms", better="lower", kind=TOLD)
            if took < DELAY_SECONDS:
                bench.ahead_of_disk.add(side)
                bench.say(f"  {side} answers before its log is synced: {took * 1000:.1f} ms")


def _put_with_slow_syncs(server: Server) -> float:
    """Seconds of the quickest put, one at a time, while each sync begins DELAY_SECONDS late.

    The quickest tells: who waits never answers sooner than that, who does not may be held up.
    Raises Untraced.
    """
    times: list[float] = []
    with _slow_syncs(server):
        for number in range(PUTS):
            began = time.monotonic()
            server.put(b"durable/%d" % number, b"x")
            times.append(time.monotonic() - began)
            # What was answered early is synced by now, and not in the way of the next.
            time.sleep(3 * DELAY_SECONDS)
    return min(times)


@contextlib.contextmanager
def _slow_syncs(server: Server) -> Iterator[None]:
    """Raises Untraced."""
    late = f"inject={SYNCS}:delay_enter={int(DELAY_SECONDS * 1e6)}"
    tracer = subprocess.Popen(
        [
            program("strace"), "-f", "-e", f"trace={SYNCS}", "-e", late, "-o", "/dev/null",
            "-p", str(server.pid),
        ],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert tracer.stderr is not None
        if "attached" not in (said := tracer.stderr.readline()):
            raise Untraced(f"cannot be traced ({said.strip()}); root may")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()
