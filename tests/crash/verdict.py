"""Starting a member from an image, ending it again and again, and holding it to its promises."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from raftkv.consensus.types import Entry, EntryKind
from raftkv.server.opening import Opened
from raftkv.simulation.inodes import Outcome
from raftkv.storage.disk import Disk
from tests.crash.lives import OUTCOMES_MAX, Image
from tests.crash.outcomes import PowerCuts
from tests.crash.recording import EndingDisk, PowerGone
from tests.crash.tables import digest
from tests.crash.workload import SINGLE, Promises, Violation, apply_to, find_state, open_on

ENDS_MAX = 3
"""How often in a row a recovery is cut short."""
OPERATIONS_MAX = 30
"""More than an ordinary recovery makes."""


class Examination:
    """One image on trial. `run` raises `Violation`; `boots` counts the starts it took."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._random = Random(image.name)
        self._disk, self._tables = image.make()
        self._promises = image.promises
        self._oldest = image.oldest
        self._recovered = False
        self.boots = 0

    def run(self) -> None:
        """Recover, perhaps with other ends in between, and again after another end."""
        if self._random.random() < 0.25:
            self._recover_with_ends()
        opened, place = self._recover(self._disk)
        self._check_state(opened)
        match self._random.randrange(4):
            case 0:
                self._found(place)
                self._end(self._random.random() < 0.5)
                self._check_state(self._recover(self._disk)[0])
            case 1:
                self._go_on(opened, place)

    def _recover_with_ends(self) -> None:
        for _ in range(self._random.randint(1, ENDS_MAX)):
            ending = EndingDisk(self._disk, self._random.randrange(OPERATIONS_MAX))
            try:
                _, place = self._recover(ending)
            except PowerGone:
                pass
            else:
                self._found(place)
            self._end(self._random.random() < 0.5)

    def _recover(self, disk: Disk) -> tuple[Opened, int]:
        """A start; what it opened, and which state of the log it found."""
        self.boots += 1
        image, promises = self._image, self._promises
        try:
            opened = open_on(disk, image.kind, self._tables, founded=promises.founded)
            place = find_state(opened, promises, self._oldest)
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"it did not start: {type(error).__name__}: {error}") from error
        if place is None:
            hard_state, log = opened.log.initial_state()[0], opened.log
            raise Violation(
                f"it found {hard_state} and entries {log.first_index()} to {log.last_index()}; "
                f"nothing like it was written since {promises.states[self._oldest].brief()}, "
                f"up to {promises.states[promises.submitted].brief()}"
            )
        return opened, place

    def _check_state(self, opened: Opened) -> None:
        """Apply what is committed, and compare with what the cluster has there."""
        log, machine = opened.log, opened.machine
        # What a single member has made durable is committed.
        commit = log.initial_state()[0].commit_index
        apply_to(opened, log.last_index() if self._image.kind is SINGLE else commit)
        if not machine.applied_index:
            return
        state_hash, rows = self._image.hashes[machine.applied_index]
        if machine.state_hash != state_hash:
            raise Violation(f"the state hash at index {machine.applied_index} is another one")
        if digest(self._tables.rows) != rows:
            raise Violation(f"the rows at index {machine.applied_index} are other ones")

    def _go_on(self, opened: Opened, place: int) -> None:
        """Write behind what was found, and look for it after a power cut that spares nothing."""
        state = self._promises.states[place]
        hard_state = opened.wal.hard_state
        entries = tuple(
            Entry(state.last_index + 1 + n, hard_state.term, EntryKind.BATCH, self._bytes())
            for n in range(self._random.randrange(1, 4))
        )
        opened.wal.write(entries, hard_state)
        opened.wal.sync()
        self._found(place)
        self._end(True, Outcome())
        written = replace(state, hard_state=hard_state, entries=state.entries + entries)
        states = [*self._promises.states[: place + 1], written]
        self._promises = Promises(states, founded=True, submitted=place + 1)
        self._oldest = place + 1
        self._recover(self._disk)

    def _bytes(self) -> bytes:
        return self._random.randbytes(self._random.choice((10, 600, 4_000)))

    def _found(self, place: int) -> None:
        """From now on exactly this has to be found: others may have been told of it."""
        self._promises = replace(
            self._promises, states=self._promises.states[: place + 1], submitted=place, founded=True
        )
        self._oldest = place
        self._recovered = True

    def _end(self, power: bool, outcome: Outcome | None = None) -> None:
        if not power:
            self._disk.crash()
            return
        if outcome is None:
            cuts = PowerCuts(self._disk, OUTCOMES_MAX)
            outcome = cuts.outcome(self._random.randrange(cuts.count), self._random)
        self._disk.settle(outcome)
        self._tables.power_cut()
        if not self._recovered:
            # What the kernel had was not durable yet.
            self._oldest = self._image.promises.acknowledged
