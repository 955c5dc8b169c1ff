"""What the leader looks after now and then: a new feature level, learners to promote."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from raftkv.consensus.types import ChangeKind, ConfigChange, Role
from raftkv.server.levels import Agreement, PeerLevels
from raftkv.server.promotions import Promotions

if TYPE_CHECKING:
    from raftkv.server.replica import Replica

log = logging.getLogger(__name__)


class Leading:
    """One member's part in it, while it leads. No clock, thread or socket."""

    def __init__(self, levels: PeerLevels, replica: Replica) -> None:
        self._replica = replica
        self._agreement = Agreement(levels, replica.machine, replica.member_id)
        self._promotions = Promotions()

    def step(self) -> None:
        """To be called about once a second; does nothing unless this member leads."""
        replica = self._replica
        if replica.node.role is not Role.LEADER:
            return
        if replica.members_known:
            # A newcomer that is in the log only must be asked, too.
            self._agreement.step(replica.propose)
        # Looked at also when nobody waits: what was committed at the last look must be news.
        member_id = self._promotions.due(replica.node.status(), replica.machine.promotions())
        if member_id is not None:
            log.info("promoting a learner that has caught up", extra={"peer": f"{member_id:016x}"})
            change = ConfigChange(((ChangeKind.ADD_VOTER, member_id),))
            replica.change_members(change, [member_id], _ignore)


def _ignore(result: Any) -> None:
    """What was refused now is tried again at the next look."""
