"""A recorded life of a member, and every image that an end of it may leave."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from raftkv.simulation.disk import SimDisk
from tests.crash.outcomes import PowerCuts
from tests.crash.recording import Operation, Replay
from tests.crash.tables import MachineTables
from tests.crash.workload import KINDS, Kind, Member, Plants, Promises

STEPS = 60
OUTCOMES_MAX = 6
"""Images of a power cut behind one operation: all if there are no more, else so many."""
KILLED, KILLED_WRITING, POWER_CUT = "killed", "killed in a write", "power cut"


@dataclass(frozen=True, slots=True)
class Image:
    """One machine as some end left it, and what it must still know."""

    name: str
    """LIFE:OPERATION:NUMBER, to make it again."""
    what: str
    kind: Kind
    promises: Promises
    oldest: int
    """Place of the oldest state of the log that may be found."""
    hashes: dict[int, tuple[bytes, bytes]]
    """As `Source.hashes`."""
    make: Callable[[], tuple[SimDisk, MachineTables]]
    """Builds it; only before the next image is asked for."""


class Life:
    """One recorded life. `number` and `seed` give all of it."""

    def __init__(self, number: int, seed: int, plants: Plants | None = None) -> None:
        self.number = number
        self.kind = KINDS[number % len(KINDS)]
        self._seed = f"{seed}/{number}"
        self.member = Member(self.kind, self._seed, plants)
        self.violation: Exception | None = None
        """Set when the life came to an early end: a start in it failed, or promises were broken."""
        try:
            self.member.live(STEPS)
        except Exception as error:
            self.violation = error

    def images(self) -> Iterator[Image]:
        """All of them, in the order of the operations that they stand behind."""
        replay = Replay(SimDisk(Random(0)))
        operations = self.member.disk.operations
        for place, operation in enumerate(operations):
            replay.apply(operation)
            following = operations[place + 1] if place + 1 < len(operations) else None
            yield from self._behind(place, replay, operation.moment, following)

    def _behind(
        self, place: int, replay: Replay, before: Promises, following: Operation | None
    ) -> Iterator[Image]:
        now: Promises = self.member.promises if following is None else following.moment
        number = itertools.count()
        disk = replay.disk

        def image(what: str, oldest: int, make: Callable[[Random], SimDisk]) -> Image:
            name = f"{self.number}:{place}:{next(number)}"

            def made() -> tuple[SimDisk, MachineTables]:
                random = Random(f"{self._seed}/{name}")
                history = self.member.tables_history
                rows, synced = history[random.randint(before.tables, now.tables)]
                tables = MachineTables(rows, synced=synced)
                if what is POWER_CUT:
                    tables.power_cut()
                return make(random), tables

            return Image(name, what, self.kind, now, oldest, self.member.source.hashes, made)

        yield image(KILLED, now.written, disk.fork)
        cuts = PowerCuts(disk, OUTCOMES_MAX)
        for which in range(cuts.count):

            def cut(random: Random, which: int = which) -> SimDisk:
                dead = disk.fork(random)
                dead.settle(cuts.outcome(which, random))
                return dead

            yield image(POWER_CUT, now.acknowledged, cut)
        if following is not None and following.name == "write" and len(following.args[1]) > 1:
            # The whole write follows and covers this beginning of it.
            offset, data = following.args
            part = Random(place).randrange(1, len(data))
            replay.file(following.handle).write(offset, data[:part])
            yield image(KILLED_WRITING, now.written, disk.fork)
