"""Unary calls in a closed loop: as soon as one is answered, the next one goes."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

from benchmarks.load.calls import MAKERS, Job
from benchmarks.load.http2 import RESET, ClientConnection
from benchmarks.load.spec import Outcome, Spec, Tally
from benchmarks.load.wires import Wires

JOBS_MADE = 20_000
"""Requests that are built ahead; with more keys than that, a random part of them is used."""


def jobs_of(spec: Spec) -> Iterator[Job]:
    """Requests without end, or `count` of them in the order of their keys."""
    make = MAKERS[spec.call]
    if spec.count:
        for turn in range(spec.count):
            yield make(spec.first_key + turn % spec.keys, spec.value_bytes)
        return
    chance = random.Random(spec.seed)
    made_bytes_max = 64 << 20
    count = min(spec.keys, JOBS_MADE, max(16, made_bytes_max // max(spec.value_bytes, 1)))
    numbers = chance.sample(range(spec.first_key, spec.first_key + spec.keys), count)
    made = [make(number, spec.value_bytes) for number in numbers]
    while True:
        chance.shuffle(made)
        yield from made


class ClosedLoop:
    """Keeps each place on each connection busy until it is told to stop."""

    def __init__(self, jobs: Iterator[Job], tally: Tally) -> None:
        self._jobs, self._tally = jobs, tally
        self.under_way = 0
        self.stopping = False

    def next(self, connection: ClientConnection) -> None:
        """Send one more."""
        job = None if self.stopping else next(self._jobs, None)
        if job is None:
            return
        self.under_way += 1
        stream = connection.open(job.path, job.body)
        connection.pending[stream] = [job.check, connection.now or time.perf_counter(), False]

    def message(self, connection: ClientConnection, stream: int, message: bytes) -> None:
        """An answer came; it counts once its status has come."""
        asked = connection.pending[stream]
        asked[2] = not asked[2] and asked[0](message)

    def ended(self, connection: ClientConnection, stream: int, status: int) -> None:
        """A call is over."""
        _, began, right = connection.pending.pop(stream)
        self.under_way -= 1
        if status == 0 and right:
            self._tally.right(began, connection.now)
        elif status == 0:
            self._tally.wrong("an answer that is not the right one")
        elif status >= RESET:
            self._tally.wrong(f"stream reset, code {status - RESET}")
        else:
            self._tally.wrong(f"gRPC status {connection.last_error or status}")
        self.next(connection)


def unary_load(spec: Spec) -> Outcome:
    """Run a load of unary calls."""
    jobs = jobs_of(spec)
    first = [job for _ in range(spec.connections * spec.streams) if (job := next(jobs, None))]
    tally = Tally(spec, time.perf_counter())
    loop, wires = ClosedLoop(itertools.chain(first, jobs), tally), Wires()
    try:
        connections = [
            wires.add(spec.addresses[number % len(spec.addresses)], loop)
            for number in range(spec.connections)
        ]
        cpu = time.process_time()
        tally.begin(time.perf_counter())
        for connection in connections:
            for _ in range(spec.streams):
                loop.next(connection)
        wires.flush()

        def over() -> bool:
            loop.stopping = time.perf_counter() >= tally.counts_until
            return loop.under_way == 0

        wires.run(over)
    finally:
        wires.close()
    return tally.outcome(time.perf_counter(), time.process_time() - cpu)
