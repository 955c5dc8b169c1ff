"""Loads on streams: watches that are delivered to, watches that are only there, keep-alives."""

from __future__ import annotations

import sys
import time
from collections import deque

from benchmarks.load.calls import (
    PREFIX,
    PREFIX_END,
    Check,
    Job,
    field,
    keep_alive,
    key_of,
    put,
    watch,
)
from benchmarks.load.http2 import ClientConnection
from benchmarks.load.spec import Outcome, Spec, Tally
from benchmarks.load.unary import ClosedLoop
from benchmarks.load.wires import Wires

_WATCH_CONNECTIONS_MAX = 50


class Watchers:
    """Streams with one watch each. Counts events, and demands them in order."""

    def __init__(self, tally: Tally) -> None:
        self.created = self.delivered = 0
        self._tally = tally
        self._mark = field(1, key_of(0))[:-10]
        self._key_bytes = len(key_of(0))

    def open(self, connection: ClientConnection, key: bytes, range_end: bytes) -> None:
        """Begin a watch."""
        job = watch(key, range_end)
        stream = connection.open(job.path, job.body, end=False)
        connection.pending[stream] = [job.check, 0]

    def message(self, connection: ClientConnection, stream: int, message: bytes) -> None:
        """The watch is there, or events came: keys are written in the order of their numbers."""
        told = connection.pending[stream]
        if told[0] is not None:
            if told[0](message):
                self.created += 1
            else:
                self._tally.wrong("a watch that was not created")
            told[0] = None
            return
        count = message.count(self._mark)
        told[1] += count
        self.delivered += count
        at = message.rfind(self._mark)
        if at >= 0:
            end = at + len(self._mark) + 10
            if int(message[end - 10 : end]) != told[1] - 1:
                self._tally.wrong("an event is missing, twice there, or out of its order")

    def ended(self, connection: ClientConnection, stream: int, status: int) -> None:
        """Nobody cancels these watches, so no end is right."""
        self._tally.wrong(f"a watch ended: {connection.last_error or status}")


def _open_watches(wires: Wires, spec: Spec, watchers: Watchers, tally: Tally) -> None:
    count = min(spec.watchers, _WATCH_CONNECTIONS_MAX)
    connections = [
        wires.add(spec.addresses[number % len(spec.addresses)], watchers) for number in range(count)
    ]
    for number in range(spec.watchers):
        key, end = (key_of(spec.first_key + number), b"") if spec.distinct else (PREFIX, PREFIX_END)
        watchers.open(connections[number % count], key, end)
    wires.flush()
    wires.run(lambda: watchers.created == spec.watchers or bool(tally.errors))


def watch_load(spec: Spec) -> Outcome:
    """One writer, many watchers on one prefix: until every watcher has every event.

    `measured` counts events delivered.
    """
    tally = Tally(spec, time.perf_counter())
    watchers, wires = Watchers(tally), Wires()
    try:
        _open_watches(wires, spec, watchers, tally)
        jobs = (put(number, spec.value_bytes) for number in range(spec.events))
        writer = ClosedLoop(jobs, tally)
        connection = wires.add(spec.addresses[0], writer)
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(spec.streams):
            writer.next(connection)
        wires.flush()
        wanted = spec.watchers * spec.events
        wires.run(lambda: bool(tally.errors) or watchers.delivered >= wanted)
        ended = time.perf_counter()
    finally:
        wires.close()
    outcome = tally.outcome(ended, 0)
    outcome.measured, outcome.seconds = watchers.delivered, ended - started
    outcome.cpu_share = (time.process_time() - cpu) / outcome.seconds
    return outcome


def hold_load(spec: Spec) -> Outcome:
    """Watches that stay until standard input ends; says `ready` once all are there."""
    tally = Tally(spec, time.perf_counter())
    watchers, wires = Watchers(tally), Wires()
    try:
        _open_watches(wires, spec, watchers, tally)
        print("ready", flush=True)
        wires.run_beside(sys.stdin.fileno())
    finally:
        wires.close()
    return tally.outcome(time.perf_counter(), 0)


class KeepAlives:
    """Streams that each renew leases in turn, `depth` requests under way on each."""

    def __init__(self, spec: Spec, tally: Tally) -> None:
        self._jobs = [keep_alive(number) for number in range(spec.keys)]
        self._tally = tally
        self._next = 0
        self.under_way = 0
        self.stopping = False

    def open(self, connection: ClientConnection, depth: int) -> None:
        """Begin a stream with its first requests."""
        job = self._take()
        stream = connection.open(job.path, job.body, end=False)
        asked: deque[tuple[Check, float]] = deque([(job.check, time.perf_counter())])
        connection.pending[stream] = asked
        for _ in range(depth - 1):
            self._ask(connection, stream)

    def message(self, connection: ClientConnection, stream: int, message: bytes) -> None:
        """Answers come in the order of the requests."""
        check, began = connection.pending[stream].popleft()
        self.under_way -= 1
        if check(message):
            self._tally.right(began, connection.now)
        else:
            self._tally.wrong("an answer that is not the right one")
        if not self.stopping:
            self._ask(connection, stream)

    def ended(self, connection: ClientConnection, stream: int, status: int) -> None:
        """Nobody ends these streams."""
        self._tally.wrong(f"a stream ended: {connection.last_error or status}")

    def _ask(self, connection: ClientConnection, stream: int) -> None:
        job = self._take()
        connection.pending[stream].append((job.check, connection.now or time.perf_counter()))
        connection.send(stream, job.body)

    def _take(self) -> Job:
        job = self._jobs[self._next % len(self._jobs)]
        self._next += 1
        self.under_way += 1
        return job


def keep_alive_load(spec: Spec) -> Outcome:
    """Renew `keys` leases, which are there already, as fast as goes."""
    tally = Tally(spec, time.perf_counter())
    loop, wires = KeepAlives(spec, tally), Wires()
    try:
        connections = [
            wires.add(spec.addresses[number % len(spec.addresses)], loop)
            for number in range(spec.connections)
        ]
        cpu = time.process_time()
        tally.begin(time.perf_counter())
        for connection in connections:
            for _ in range(spec.streams):
                loop.open(connection, spec.depth)
        wires.flush()

        def over() -> bool:
            loop.stopping = time.perf_counter() >= tally.counts_until
            return loop.under_way == 0 or bool(tally.errors)

        wires.run(over)
    finally:
        wires.close()
    return tally.outcome(time.perf_counter(), time.process_time() - cpu)
