"""Virtual time: a heap of events, one source of randomness, and the story of what happened."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from raftkv import buggify
from raftkv.checks import check

SECOND_US = 1_000_000
STORY_LINES_MAX = 20_000


class World:
    """Time, chance and the story of one simulation. Times are microseconds since its beginning.

    Everything that is random is drawn from `random`, in the order of events, so a seed is a whole
    run. With `story` each event worth a line is kept (the newest STORY_LINES_MAX of them) and goes
    into `digest`; without it a run is faster.
    """

    def __init__(self, seed: int, *, story: bool = False) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now_us = 0
        self.steps = 0
        self.faults: Counter[str] = Counter()
        """How often each kind of fault was injected."""
        self.story: deque[str] | None = deque(maxlen=STORY_LINES_MAX) if story else None
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0
        self._digest = hashlib.sha256()

    def at(self, time_us: int, callback: Callable[..., None], *arguments: Any) -> None:
        """Call at `time_us`, or now if that has passed; events of one moment keep their order."""
        self._scheduled += 1
        moment = time_us if time_us > self.now_us else self.now_us
        heappush(self._events, (moment, self._scheduled, callback, arguments))

    def after(self, delay_us: int, callback: Callable[..., None], *arguments: Any) -> None:
        """Call `delay_us` from now."""
        self._scheduled += 1
        heappush(self._events, (self.now_us + delay_us, self._scheduled, callback, arguments))

    def run(self, seconds: float) -> None:
        """Let `seconds` of virtual time pass."""
        self.run_until(self.now_us + int(seconds * SECOND_US))

    def run_until(self, time_us: int) -> None:
        """Let time pass up to `time_us`."""
        check(time_us >= self.now_us, "time does not go back", now_us=self.now_us)
        events = self._events
        while events and events[0][0] <= time_us:
            self.now_us, _, callback, arguments = heappop(events)
            self.steps += 1
            callback(*arguments)
        self.now_us = time_us

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    def below(self, bound: int) -> int:
        """A random integer of [0, bound); faster than `random.randrange`."""
        return int(self.random.random() * bound)

    def fault(self, kind: str, who: str, text: str) -> None:
        """A fault was injected: count it and tell it."""
        self.faults[kind] += 1
        if self.story is not None:
            self.note(who, text)

    def note(self, who: str, text: str) -> None:
        """Add a line to the story."""
        if self.story is None:
            return
        line = f"{self.now_us / SECOND_US:12.6f} {who:<8} {text}"
        self._digest.update(line.encode())
        self.story.append(line)

    def digest(self) -> str:
        """Stands for the whole story, and for the state of chance at its end."""
        digest = self._digest.copy()
        digest.update(repr((self.now_us, self.steps, self.random.random())).encode())
        return digest.hexdigest()


class Buggify:
    """Throws the switches of `raftkv.buggify` by a world's chance, while it is entered."""

    def __init__(self, world: World, probabilities: dict[str, float]) -> None:
        unknown = probabilities.keys() - buggify.POINTS.keys()
        check(not unknown, "only known points can be switched", unknown=sorted(unknown))
        self._world = world
        self._probabilities = probabilities

    def __enter__(self) -> None:
        buggify.switch(self._ask if self._probabilities else None)

    def __exit__(self, *_: object) -> None:
        buggify.switch(None)

    def _ask(self, point: str) -> bool:
        probability = self._probabilities.get(point)
        if probability is None or self._world.random.random() >= probability:
            return False
        self._world.faults[f"buggify {point}"] += 1
        return True
