"""A load generator in a process of its own: a `Spec` as JSON on standard input, an `Outcome` out.

A spec of one line; `hold` goes on until the rest of standard input has ended, too.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable

from benchmarks.load.calls import MAKERS
from benchmarks.load.http2 import LoadError
from benchmarks.load.spec import Outcome, Spec
from benchmarks.load.streams import hold_load, keep_alive_load, watch_load
from benchmarks.load.unary import unary_load

LOADS: dict[str, Callable[[Spec], Outcome]] = {
    "watch": watch_load,
    "hold": hold_load,
    "keep_alive": keep_alive_load,
    **dict.fromkeys(MAKERS, unary_load),
}


def main() -> None:
    """Run the load that standard input tells."""
    spec = Spec.from_dict(json.loads(sys.stdin.readline()))
    gc.disable()  # nothing here makes cycles, and a pause would be laid at the server's door
    try:
        outcome = LOADS[spec.call](spec)
    except (LoadError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(outcome.as_dict()))


if __name__ == "__main__":
    main()
