"""Rare but legal behaviour that a simulation may ask production code for; otherwise inert.

After FoundationDB: at each point the code may take a path that is correct and seldom taken (a tiny
batch, an early snapshot, a slow apply), and a simulation throws the switch by its seed. Outside a
simulation `buggify` is False, always. A point never changes what is promised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

POINTS: Final = {
    "tiny-batch": "a batch takes one command only",
    "slow-apply": "a turn applies nothing although it could",
    "tiny-apply": "a turn applies one entry only",
    "apply-aside": "what deletes a single key is applied beside the loop",
    "early-snapshot": "a snapshot is taken long before it is due",
    "no-log-kept": "a snapshot leaves no log for followers that are a little behind",
    "one-row-compaction": "a slice of compaction visits one row",
    "abandon-read-round": "a ReadIndex round begins again at once, under a new id",
    "tiny-append": "an APPEND carries one entry only",
    "cold-cache": "the log keeps nothing in memory and reads from the disk",
    "early-segment": "the log goes on in a new segment although the old one has room",
}
"""Each point, and what it does when it is switched on."""

_ask: Callable[[str], bool] | None = None


def buggify(point: str) -> bool:
    """Whether to behave in the rare way just now."""
    return _ask is not None and _ask(point)


def switch(ask: Callable[[str], bool] | None) -> None:
    """For simulations: let `ask` decide at each point; None: inert again."""
    global _ask
    _ask = ask
