"""Give the space inside a member's tables back to its disk, beside the traffic.

Freed pages are used again, so tables never need this to go on; it is for a disk that they should
not occupy any more, after much was deleted. Nothing of it is replicated.

1. The state of one moment is copied without its free space, in a thread.
2. What was committed since is applied to the copy as well, a slice at a time, until it is level.
3. In one turn of the loop the copy takes the tables' place, by one rename.

Until the rename the tables are as if nothing happened, after it they hold the same state at the
same index; what a killed member leaves of a copy is removed at its start. The log is kept from the
copied moment on while this goes on, so no snapshot is taken meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from raftkv.consensus.types import EntryKind
from raftkv.errors import CorruptionError, TooManyRequests
from raftkv.machine.machine import Machine

if TYPE_CHECKING:
    from raftkv.server.opening import Opened
    from raftkv.storage.backend import Twin

SLICE_BYTES: Final = 256 * 1024
SLICE_ENTRIES: Final = 64
PAUSE_SECONDS: Final = 0.001
"""Between two slices, for everything else."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What came of it: bytes of the tables' file that hold or once held something."""

    before_bytes: int
    after_bytes: int


class Shrink:
    """One run of it. Everything but `copy` is called on the loop that owns the member."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._before = opened.backend.file_bytes()
        self._expected = opened.backend.used_bytes()
        self._image = opened.backend.pin()
        self._twin: Twin | None = None
        self._machine: Machine | None = None

    def copy(self) -> None:
        """Step 1, in a thread. Raises StorageError."""
        self._twin = self._image.twin()

    @property
    def behind(self) -> int:
        """Entries that the copy has not seen yet."""
        machine = self._machine
        return self._opened.machine.applied_index - machine.applied_index if machine else 0

    def progress(self) -> dict[str, int | str]:
        """For the member's status."""
        if self._machine is None:
            copied = min(self._image.twin_bytes(), self._expected)
            return {"phase": "copy", "done_bytes": copied, "total_bytes": self._expected}
        return {"phase": "catch_up", "entries_left": self.behind}

    def catch_up(self) -> Shrunk | None:
        """Steps 2 and 3: apply a slice; the result once the copy has become the tables.

        Raises TooManyRequests when something came between: nothing was changed, try again.
        """
        machine = self._machine
        if machine is None:
            twin = self._twin
            if twin is None:
                raise CorruptionError("the tables were not copied")
            machine = self._machine = Machine(twin.tables)
        if self.behind < 0 or machine.applied_index + 1 < self._opened.log.first_index():
            raise TooManyRequests("the log moved on while the tables were copied; try again")
        if self.behind:
            self._apply_slice(machine)
        return None if self.behind else self._swap(machine)

    def _apply_slice(self, machine: Machine) -> None:
        low = machine.applied_index + 1
        high = low + min(self.behind, SLICE_ENTRIES)
        entries = self._opened.log.entries(low, high, SLICE_BYTES)
        if any(entry.kind is EntryKind.CONFIG for entry in entries):
            raise TooManyRequests("the members changed while the tables were copied; try again")
        machine.apply([(entry.index, entry.term, entry.data) for entry in entries])

    def _swap(self, machine: Machine) -> Shrunk:
        opened = self._opened
        if machine.state_hash != opened.machine.state_hash:
            raise CorruptionError(
                "a copy of the tables, given the same entries, differs from them; it is discarded"
            )
        twin, self._twin = self._twin, None
        if twin is not None:
            twin.adopt()
        opened.machine.reload()
        return Shrunk(self._before, opened.backend.file_bytes())

    def close(self) -> None:
        """Remove what is left of it, whatever happened."""
        twin, self._twin = self._twin, None
        if twin is not None:
            twin.discard()
