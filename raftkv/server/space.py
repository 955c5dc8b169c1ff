"""How near a member is to its byte quota, and how much it therefore takes on at a time.

The quota is only known to be crossed once what crossed it is applied; by then more is on its way.
So a member counts what it has taken on and not applied yet, and assumes that the others take on
as much: what is left of the quota belongs to all. Close to the end it has one batch on its way at
a time, and none that costs more than a quarter of its share of what is left. Writes become slower
and slower there, instead of being taken at full speed until they are refused; what is over the
quota in the end is one request a member.

Commands that free space are held back by nothing but their place in the queue, and by nothing at
all once the alarm is on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from raftkv.limits import (
    BATCH_BYTES_MAX,
    BATCH_COMMANDS_MAX,
    SPACE_LOW_AT,
    SPACE_LOW_UNTIL,
    SPACE_SLOW_SHARE,
)
from raftkv.machine.commands import AlarmKind

if TYPE_CHECKING:
    from raftkv.storage.backend import Backend

COST_PER_BYTE: Final = 3
COST_PER_COMMAND: Final = 512
"""What a byte and a command of the log take at most in the tables, roughly: records have a head,
and pages are not full. Measured at 2.5 times the log for large values at feature level 0, where a
record is kept twice; an error shows at the next measurement."""
BATCH_COST: Final = BATCH_BYTES_MAX * COST_PER_BYTE + BATCH_COMMANDS_MAX * COST_PER_COMMAND


def cost(size: int, commands: int) -> int:
    """Bytes of tables that commands of this size together may take."""
    return size * COST_PER_BYTE + commands * COST_PER_COMMAND


class Space:
    """One member's view of its quota. Pure but for asking the tables for their size."""

    def __init__(self, backend: Backend, quota_bytes: int) -> None:
        self._backend = backend
        self.quota_bytes = quota_bytes
        self.used_bytes = 0
        """As last measured."""
        self.low = False
        """Nearly full: from SPACE_LOW_AT of the quota on, until below SPACE_LOW_UNTIL."""
        self.on_measure: Callable[[], None] | None = None
        """Called after each measurement, for whoever raises the alarm."""
        self._since = 0
        self.measure()

    def measure(self) -> None:
        """Ask the tables: some microseconds."""
        self.used_bytes = self._backend.used_bytes()
        self._since = 0
        self.low = self.used_bytes > self.quota_bytes * (
            SPACE_LOW_UNTIL if self.low else SPACE_LOW_AT
        )
        if self.on_measure is not None:
            self.on_measure()

    def applied(self, size: int, commands: int) -> None:
        """So much of the log was applied."""
        self._since += cost(size, commands)

    def fitting(
        self,
        commands: Sequence[bytes],
        size: int,
        *,
        under_way: tuple[int, int],
        members: int,
        alarms: Iterable[tuple[int, int]],
    ) -> int:
        """How many of `commands`, `size` bytes together, may go into the next batch.

        `under_way` is (bytes, commands) that this member proposed and has not seen the end of. 0
        means to wait until there is none; without any it is at least 1, since only the machine
        refuses a command for want of space.
        """
        close = min(BATCH_COST * members, self.quota_bytes // 8)
        ahead = (
            under_way[0] + min(size, BATCH_BYTES_MAX),
            under_way[1] + min(len(commands), BATCH_COMMANDS_MAX),
        )
        if self._left(ahead, members) >= close:
            return len(commands)
        self.measure()
        if self._left(ahead, members) >= close:
            return len(commands)
        if any(kind == AlarmKind.NOSPACE for kind, _ in alarms):
            return len(commands)
        if under_way[1]:
            return 0
        left = self._left(under_way, members)
        return self._fitting(commands, left // (members * SPACE_SLOW_SHARE))

    def _left(self, under_way: tuple[int, int], members: int) -> int:
        return self.quota_bytes - self.used_bytes - self._since - members * cost(*under_way)

    def _fitting(self, commands: Sequence[bytes], room: int) -> int:
        for count, command in enumerate(commands):
            room -= cost(len(command), 1)
            if room < 0:
                return max(count, 1)
        return len(commands)
