"""What the state machine costs by itself: applying puts and transactions, reading, compacting.

    python benchmarks/micro_machine.py [lmdb|memory] [keys]

One process, no log, no network. Prints microseconds an operation: the median over batches, so that
a busy machine disturbs it little.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from raftkv.machine import Machine
from raftkv.machine import commands as c
from raftkv.storage.lmdb_backend import LmdbBackend
from raftkv.storage.memory_backend import MemoryBackend

T = TypeVar("T")

BATCH = 64
VALUE = b"x" * 256


def timed(call: Callable[[], Any]) -> float:
    """Microseconds that `call` takes."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def each(items: Iterable[T], call: Callable[[T], Any]) -> list[float]:
    """Microseconds of one call for each item."""
    return [timed(partial(call, item)) for item in items]


def show(name: str, micros: list[float], per: int = 1) -> None:
    """One line: median and the best tenth, an operation."""
    micros.sort()
    median, best = statistics.median(micros) / per, micros[len(micros) // 10] / per
    print(f"{name:<34} {median:9.2f} us   best tenth {best:9.2f} us")


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "lmdb"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        tables = LmdbBackend(folder + "/db") if kind == "lmdb" else MemoryBackend()
        run(Machine(tables), count)
        tables.close()


def run(machine: Machine, count: int) -> None:
    """All measurements, on a store that fills up as they go."""
    rng = random.Random(1)
    keys = [b"bench/%012d" % rng.randrange(10**9) for _ in range(count)]
    batches = [keys[i : i + BATCH] for i in range(0, count - BATCH + 1, BATCH)]
    gc.freeze()

    def apply(commands: list[bytes]) -> float:
        data = c.stamp_batch(c.encode_batch(1, 1, 1, commands), 1)
        return timed(lambda: machine.apply([(machine.applied_index + 1, 1, data)]))

    show("build a put command", each(batches, lambda b: [c.put(k, VALUE) for k in b]),
         BATCH)  # fmt: skip
    show("apply a put, new key", [apply([c.put(k, VALUE) for k in b]) for b in batches], BATCH)
    show("apply a put, known key", [apply([c.put(k, VALUE) for k in b]) for b in batches], BATCH)
    some = batches[:200]
    show("apply a put alone", [apply([c.put(b[0], VALUE)]) for b in some])
    cas = [
        [c.txn([c.compare(2, 1, k, 0)], [c.put_op(k, VALUE)], [c.range_op(k)]) for k in b]
        for b in some
    ]
    show("apply a compare-and-set", [apply(commands) for commands in cas], BATCH)
    show("get", each(some, lambda b: [machine.get(k) for k in b]), BATCH)
    starts = [b[0] for b in some]
    old = machine.revision // 2

    def page(start: bytes, revision: int) -> Callable[[], Any]:
        return lambda: machine.range(start, b"", limit=1000, revision=revision)

    show("page of 1000, newest", [timed(page(s, 0)) for s in starts])
    show("page of 1000, old revision", [timed(page(s, old)) for s in starts])
    hot = [c.put(b"bench/hot", VALUE)] * BATCH
    for half in range(2):
        for _ in range(count // BATCH // 2):
            apply(hot)
        if not half:
            old = machine.revision
    show(f"a key amid its {count} versions", [timed(page(b"bench/h", old)) for _ in some])
    show("count of a part", [timed(lambda: machine.range(b"b", b"c", count_only=True))])
    show("history, 1000 events", each(
        range(2, 200), lambda r: machine.history(r, machine.revision, 1000)
    ))  # fmt: skip
    apply([c.compact(machine.revision)])
    steps = []
    while machine.compaction_pending:
        steps.append(timed(lambda: machine.compact_step(1000)))
    print(
        f"{'compaction':<34} {sum(steps) / 1e6:9.2f} s    longest slice {max(steps) / 1e3:.1f} ms"
    )


if __name__ == "__main__":
    main()
