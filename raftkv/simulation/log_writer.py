"""What writes a simulated member's log: the steps of the real thread, as events in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from raftkv.checks import check
from raftkv.consensus.types import StorageWrite
from raftkv.server.append_thread import FULL_DISK_RETRY_SECONDS, Job, Pause, append_steps
from raftkv.simulation.world import SECOND_US
from raftkv.storage.wal import Wal

if TYPE_CHECKING:
    from raftkv.simulation.member import SimMember


class LogWriter:
    """That of one process of `member`. `written` is told what has become durable, in order."""

    def __init__(self, member: SimMember, wal: Wal, written: Callable[[Any], None]) -> None:
        self._member = member
        self._wal = wal
        self._written = written
        self._queue: list[StorageWrite | Job] = []
        self._steps: Iterator[Any] | None = None
        self.syncing_since_ms: int | None = None
        """When the sync began that is under way."""

    def add(self, item: StorageWrite | Job) -> None:
        """Write this, or run this, after all that was given before."""
        self._queue.append(item)
        self._begin()

    def finish(self) -> None:
        """Write what is queued, now and without telling anybody; as far as the disk has space."""
        if self._steps is None:
            self._steps = append_steps(self._wal, self._queue)
        for step in self._steps:
            if step is Pause.FULL:
                break

    def _begin(self) -> None:
        if self._steps is None and self._queue:
            self._steps = iter(())
            self._member.later(self._a_turn_us(), self._take)

    def _take(self) -> None:
        items, self._queue = self._queue, []
        self._steps = append_steps(self._wal, items)
        self._step()

    def _step(self) -> None:
        member, steps = self._member, self._steps
        check(steps is not None, "a log that is written has steps left")
        step = next(steps, None)  # type: ignore[arg-type]
        if step is None:
            self._steps = self.syncing_since_ms = None
            self._begin()
            return
        member.upkeep.log_disk_full = step is Pause.FULL
        self.syncing_since_ms = member.now_ms() if step is Pause.SYNC else None
        if step is Pause.SYNC:
            member.later(self._sync_us(), self._step)
        elif step is Pause.FULL:
            member.later(int(FULL_DISK_RETRY_SECONDS * SECOND_US), self._step)
        else:
            delay_us = self._a_turn_us()
            member.later(delay_us, self._written, step)
            member.later(delay_us, self._step)

    def _a_turn_us(self) -> int:
        return self._member.world.below(self._member.settings.turn_us_max)

    def _sync_us(self) -> int:
        settings, world = self._member.settings, self._member.world
        if settings.slow_sync and world.random.random() < settings.slow_sync:
            world.faults["slow sync"] += 1
            return world.below(settings.slow_sync_us_max)
        return settings.sync_us_min + world.below(settings.sync_us_max - settings.sync_us_min + 1)
