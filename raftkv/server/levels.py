"""Which features a cluster may use: a level that all its members know, agreed in the log.

A program's level grows when something new goes into the log, the tables or the files. Members tell
theirs in the handshake; once every member of the cluster, learners too, has told one that is
higher than what is agreed, the leader proposes it. What came with a level is proposed only when
the level is agreed, so no member ever finds a command in its log that it does not know; nor is
anything written before into tables, which travel in snapshots, that it cannot read. A level
never goes down: from then on, an older program is refused, by the peers and by the files.

    0  what there was before levels: programs that tell none
    1  levels themselves; learners that are promoted by the leader once they have caught up; quotas
       of prefixes and users; tables that hold a record once (`raftkv.machine.records`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from raftkv.checks import check
from raftkv.errors import ChangeRefused, FormatError
from raftkv.limits import FEATURE_LEVEL
from raftkv.machine import commands
from raftkv.storage.datadir import FORMAT_VERSION, format_of

if TYPE_CHECKING:
    from raftkv.machine.machine import Machine

check(format_of(FEATURE_LEVEL) == FORMAT_VERSION, "a new level is a new format of the files")
AUTO_PROMOTION: Final = 1
"""First level at which learners are promoted by the leader."""
QUOTAS: Final = 1
"""First level at which prefixes and users have quotas."""


@dataclass(slots=True)
class PeerLevels:
    """What the transport knows of levels: it tells ours, and notes the others'."""

    own: int = 0
    required: Callable[[], int] = lambda: 0
    """The level that is agreed; who does not know it must not be talked to."""
    told: dict[int, int] = field(default_factory=dict)
    """By member, in its last handshake with this one."""

    def refusal(self, member_id: int, level: int) -> str | None:
        """Why a member of a level must not take part, for its operator; None: it may."""
        required = self.required()
        if level >= required:
            self.told[member_id] = level
            return None
        self.told.pop(member_id, None)
        return (
            f"the cluster has agreed on feature level {required}, which the program of member "
            f"{member_id:016x} (level {level}) does not know: a downgrade is not possible any "
            "more; run the version of raftkv that it ran before, or a newer one"
        )


def proposal(levels: PeerLevels, agreed: int, members: Iterable[int], own_id: int) -> int | None:
    """The level to agree on now, as the leader; None: nothing new, or not everybody is known."""
    lowest = levels.own
    for member_id in members:
        if member_id != own_id:
            told = levels.told.get(member_id)
            if told is None:
                return None
            lowest = min(lowest, told)
    return lowest if lowest > agreed else None


def check_known(agreed: int, own: int, path: str) -> None:
    """Raise FormatError when a directory is of a level that this member does not know."""
    if agreed > own:
        raise FormatError(
            f"{path}: its cluster has agreed on feature level {agreed}, and this member knows "
            f"level {own}: a downgrade is not possible any more; use the version of raftkv "
            "that was used before, or a newer one",
            path=path,
        )


class HasLevel(Protocol):
    """A machine, or the store around it."""

    @property
    def level(self) -> int:
        """The level that is agreed."""


def check_agreed(store: HasLevel, level: int, what: str) -> None:
    """Raise ChangeRefused unless every member is known to know `level`."""
    agreed = store.level
    if agreed < level:
        raise ChangeRefused(
            f"{what} needs feature level {level}, and the cluster has agreed on {agreed}: "
            "some member is of an older version or was not seen yet (`raftkv status --cluster`)"
        )


class Agreement:
    """The leader's part: proposes a level once all are known to know it."""

    def __init__(self, levels: PeerLevels, machine: Machine, member_id: int) -> None:
        self._levels = levels
        self._machine = machine
        self._member_id = member_id
        self._proposed = False

    def step(self, propose: Callable[[bytes, Callable[[Any], None]], None]) -> None:
        """To be called now and then while this member leads."""
        if self._proposed:
            return
        members = [info.member_id for info in self._machine.members()]
        level = proposal(self._levels, self._machine.level, members, self._member_id)
        if level is not None:
            self._proposed = True
            propose(commands.guarded(commands.cluster_level(level), commands.BY_MEMBER), self._done)

    def _done(self, result: Any) -> None:
        self._proposed = False
