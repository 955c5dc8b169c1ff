"""One node of PySyncObj with a replicated dictionary, driven line by line.

    python -m benchmarks.peers.pysyncobj_node JOURNAL OWN_ADDRESS OTHER_ADDRESS...

`leader` prints whether it leads; a `Spec` as JSON makes it write, and prints an `Outcome`. Its
journal goes to a file, which PySyncObj writes and never syncs.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.batteries import ReplDict

from benchmarks.load.calls import key_of, value_of
from benchmarks.load.spec import Outcome, Spec, Tally


class Writer:
    """A closed loop of writes, in callbacks of the node's own thread."""

    def __init__(self, store: Any, spec: Spec) -> None:
        self._store, self._spec = store, spec
        self._chance = random.Random(spec.seed)
        self._tally = Tally(spec, time.perf_counter())
        self._under_way = spec.connections * spec.streams
        self._over = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> Outcome:
        """Write until time is up, and wait for what is under way."""
        cpu = time.process_time()
        for _ in range(self._under_way):
            self._next()
        self._over.wait()
        return self._tally.outcome(time.perf_counter(), time.process_time() - cpu)

    def _next(self) -> None:
        began = time.perf_counter()
        if began >= self._tally.counts_until:
            with self._lock:
                self._under_way -= 1
                if not self._under_way:
                    self._over.set()
            return
        number = self._chance.randrange(self._spec.keys)

        def answered(_: Any, error: Any) -> None:
            if error:
                self._tally.wrong(f"failed with reason {error}")
            else:
                self._tally.right(began, time.perf_counter())
            self._next()

        value = value_of(number, self._spec.value_bytes)
        self._store.set(key_of(number), value, callback=answered)


def main() -> None:
    """Run a node until standard input ends."""
    journal, own, *others = sys.argv[1:]
    store = ReplDict()
    node = SyncObj(own, others, SyncObjConf(journalFile=journal), consumers=[store])
    node.waitReady()
    for line in sys.stdin:
        if line.strip() == "leader":
            print(json.dumps(str(node.getStatus()["leader"]) == own), flush=True)
        else:
            outcome = Writer(store, Spec.from_dict(json.loads(line))).run()
            print(json.dumps(outcome.as_dict()), flush=True)


if __name__ == "__main__":
    main()
