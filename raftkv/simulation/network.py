"""The network between simulated members: each direction of each link has a life of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from raftkv.simulation.world import World


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How messages travel where nothing is cut. Probabilities are of one message."""

    delay_us_min: int = 100
    delay_us_max: int = 2_000
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    """This message need not arrive after those sent before it."""
    straggling: float = 0.0
    """This message takes up to `straggling_us_max`; what follows waits behind it."""
    straggling_us_max: int = 1_000_000


@dataclass(slots=True)
class _Link:
    last_us: int = 0
    clogged_until_us: int = 0
    cuts: int = 0


@dataclass(slots=True)
class SimNetwork:
    """Carries calls from one member to another: late, twice, out of order, or not at all."""

    world: World
    settings: LinkSettings = field(default_factory=LinkSettings)
    sent: int = 0
    _links: dict[tuple[int, int], _Link] = field(default_factory=dict)

    def send(self, source: int, target: int, deliver: Callable[..., None], *items: Any) -> bool:
        """Have `deliver(*items)` called at the target, some time; False: it is lost for certain,
        and the sender's connection may notice."""
        world, settings = self.world, self.settings
        self.sent += 1
        link = self._link(source, target)
        if link.cuts:
            return False
        chance = world.random.random
        if settings.loss and chance() < settings.loss:
            world.faults["message lost"] += 1
            return False
        self._carry(link, deliver, items)
        if settings.duplication and chance() < settings.duplication:
            world.faults["message duplicated"] += 1
            self._carry(link, deliver, items)
        return True

    def is_cut(self, source: int, target: int) -> bool:
        """Whether nothing gets from `source` to `target` just now."""
        return self._link(source, target).cuts > 0

    def cut(self, source: int, target: int) -> None:
        """Lose everything in this direction, until `mend`. Cuts add up."""
        self._link(source, target).cuts += 1

    def mend(self, source: int, target: int) -> None:
        """Undo one cut."""
        link = self._link(source, target)
        link.cuts = max(0, link.cuts - 1)

    def clog(self, source: int, target: int, until_us: int) -> None:
        """Hold everything in this direction back until then; nothing is lost."""
        link = self._link(source, target)
        link.clogged_until_us = max(link.clogged_until_us, until_us)

    def partition(self, left: Iterable[int], right: Iterable[int]) -> list[tuple[int, int]]:
        """Cut both directions between the two sides; the cuts made, for `mend`."""
        rights = list(right)
        cuts = []
        for one in left:
            for other in rights:
                cuts += [(one, other), (other, one)]
        for source, target in cuts:
            self.cut(source, target)
        return cuts

    def heal(self, settings: LinkSettings | None = None) -> None:
        """End all cuts and clogs, and from now on travel by `settings`."""
        self._links.clear()
        self.settings = settings or LinkSettings()

    def _link(self, source: int, target: int) -> _Link:
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = _Link()
        return link

    def _carry(self, link: _Link, deliver: Callable[..., None], items: tuple[Any, ...]) -> None:
        world, settings = self.world, self.settings
        chance = world.random.random
        at_us = max(world.now_us, link.clogged_until_us) + settings.delay_us_min
        at_us += world.below(settings.delay_us_max - settings.delay_us_min + 1)
        if settings.straggling and chance() < settings.straggling:
            world.faults["message late"] += 1
            at_us += world.below(settings.straggling_us_max)
        if settings.reordering and chance() < settings.reordering:
            world.faults["message reordered"] += at_us < link.last_us
        else:
            at_us = link.last_us = max(at_us, link.last_us)
        world.at(at_us, deliver, *items)
