"""Feature levels between simulated members: who talks to whom, and what an old program may meet.

The handshake of the real transport is repeated here in little: the first message from a process
that was not heard before is where both sides tell their level, and either may refuse. What is left
out is who dials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from raftkv.checks import violated
from raftkv.errors import FormatError
from raftkv.machine.commands import Op, decode_batch
from raftkv.server.levels import AUTO_PROMOTION, QUOTAS, PeerLevels

if TYPE_CHECKING:
    from raftkv.simulation.member import SimMember

_SINCE: Final = {int(Op.MEMBER_PROMOTION): AUTO_PROMOTION, int(Op.QUOTA_SET): QUOTAS}
"""First level whose programs know a command; those of level 0 knew all others."""


class SimLevels:
    """The level of one process of `member`, and those that its peers have told it."""

    def __init__(self, member: SimMember) -> None:
        self._member = member
        self.own = member.settings.feature_level
        self.told = PeerLevels(self.own, lambda: member.machine.level)
        self._met: dict[int, int] = {}
        """Which process of each peer was met, by the count of its lives."""

    def admits(self, peer: SimMember) -> bool:
        """Whether this process and that of `peer` talk; as both find in a handshake."""
        if not peer.up:
            # What an earlier process has sent is still on its way.
            return peer.member_id in self._met
        if self._met.get(peer.member_id) == peer.life:
            return True
        other = peer.levels
        refused = self.told.refusal(peer.member_id, other.own) or other.told.refusal(
            self._member.member_id, self.own
        )
        if refused is not None:
            self._met.pop(peer.member_id, None)
            self._member.cluster.promises.seen["old program refused by a peer"] += 1
            return False
        self._met[peer.member_id] = peer.life
        return True

    def check_known(self, entries: Sequence[tuple[int, int, bytes]]) -> None:
        """Before entries are applied: all commands in them are known at this level.

        Raises FormatError, as an old program does at a command that it does not know, if this
        member was of a newer level before. One that was not must never come to that.
        """
        for index, _, data in entries:
            for command in decode_batch(data).commands if data else ():
                needed = _needed(command)
                if needed <= self.own:
                    continue
                if needed > self._member.newest_level:
                    violated(
                        "a command came to a member whose program never knew it",
                        member=self._member.name,
                        index=index,
                        level=self.own,
                        needed=needed,
                    )
                raise FormatError(f"entry {index} of the log needs feature level {needed}")


def _needed(command: list[Any]) -> int:
    op = command[0]
    if op == Op.GUARDED:
        return _needed(command[4])
    if op == Op.CLUSTER_LEVEL:
        level: int = command[2]
        return level
    return _SINCE.get(op, 0)
