"""What a power cut may leave of a simulated disk: everything possible if it is little."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod
from random import Random

from raftkv.simulation.disk import SimDisk
from raftkv.simulation.inodes import SECTOR_BYTES, FileNode, Outcome

SECTORS_MAX = 6
"""Files with more unsynced sectors than this have too many subsets to try all."""


class PowerCuts:
    """At most `outcomes_max` outcomes of a power cut, as long as the disk stays as it is.

    All that there are, then some with torn sectors; or, of too many, nothing of what is unsynced,
    all of it, and a random choice. `count` says how many.
    """

    def __init__(self, disk: SimDisk, outcomes_max: int) -> None:
        self._files = disk.unsynced_files()
        self._folders = disk.unsynced_folders()
        possible = prod(
            [len(folder.changes) + 1 for folder in self._folders]
            + [len(_lengths(node)) << min(len(node.unsynced), SECTORS_MAX) for node in self._files]
        )
        few = all(len(node.unsynced) <= SECTORS_MAX for node in self._files)
        if few and possible <= outcomes_max:
            self._fixed = list(self._all())
        else:
            self._fixed = [Outcome(), self._everything()]
        may_tear = any(node.unsynced for node in self._files)
        self.count = outcomes_max if may_tear else len(self._fixed)

    def outcome(self, number: int, random: Random) -> Outcome:
        """The one of that number, counted from 0. `random` decides about the random ones."""
        return self._fixed[number] if number < len(self._fixed) else self._drawn(random)

    def _everything(self) -> Outcome:
        return Outcome(
            {folder.number: len(folder.changes) for folder in self._folders},
            {node.number: frozenset(node.unsynced) for node in self._files},
            {node.number: _lengths(node)[-1] for node in self._files},
        )

    def _all(self) -> Iterator[Outcome]:
        folders, files = self._folders, self._files
        sectors = [sorted(node.unsynced) for node in files]
        for changes, kept, lengths in itertools.product(
            itertools.product(*[range(len(folder.changes) + 1) for folder in folders]),
            itertools.product(
                *[itertools.product((False, True), repeat=len(some)) for some in sectors]
            ),
            itertools.product(*[_lengths(node) for node in files]),
        ):
            yield Outcome(
                dict(zip([folder.number for folder in folders], changes, strict=True)),
                {
                    node.number: frozenset(itertools.compress(some, choice))
                    for node, some, choice in zip(files, sectors, kept, strict=True)
                },
                dict(zip([node.number for node in files], lengths, strict=True)),
            )

    def _drawn(self, random: Random) -> Outcome:
        """More often than by chance all sectors but one, only one, or a torn one."""
        outcome = Outcome()
        for folder in self._folders:
            outcome.changes[folder.number] = random.randint(0, len(folder.changes))
        for node in self._files:
            sectors = sorted(node.unsynced)
            outcome.lengths[node.number] = random.choice(_lengths(node))
            if not sectors:
                continue
            one = random.choice(sectors)
            match random.randrange(4):
                case 0:
                    kept = {one}
                case 1:
                    kept = set(sectors) - {one}
                case _:
                    share = random.random()
                    kept = {sector for sector in sectors if random.random() < share}
            outcome.sectors[node.number] = frozenset(kept)
            dropped = [sector for sector in sectors if sector not in kept]
            if dropped and random.random() < 0.7:
                torn = (random.choice(dropped), random.randrange(SECTOR_BYTES))
                outcome.torn[node.number] = torn
        return outcome


def _lengths(node: FileNode) -> list[int]:
    return list(dict.fromkeys(node.lengths)) or [node.length]
