"""A simulated cluster: members, the network between them, and what must hold over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raftkv.checks import check
from raftkv.consensus.types import ChangeKind, ConfigChange
from raftkv.errors import RaftkvError, Refused
from raftkv.machine import commands
from raftkv.machine.events import Event
from raftkv.machine.results import Applied
from raftkv.server.bootstrap import Founding, FoundingMember
from raftkv.server.replica import Batch
from raftkv.simulation.invariants import Invariants
from raftkv.simulation.member import MemberSettings, SimMember
from raftkv.simulation.network import SimNetwork
from raftkv.simulation.promises import Promises
from raftkv.simulation.world import SECOND_US, World

OnApplied = Callable[[SimMember, Sequence[Batch], Sequence[Applied]], None]

CLUSTER_ID = 0xC1
RESTART_US_MAX = 2 * SECOND_US


class SimCluster:
    """`size` founding members, with ids 1 to `size`; later ones are made by `add_member`.

    A member whose process ends by itself is started again after a while, as a service manager
    does. `settings` makes the settings of each member, by its id.
    """

    def __init__(
        self,
        world: World,
        size: int,
        *,
        settings: Callable[[int], MemberSettings] = lambda member_id: MemberSettings(),
    ) -> None:
        self.world = world
        self.network = SimNetwork(world)
        self.invariants = Invariants(self)
        self.promises = Promises()
        self.members: dict[int, SimMember] = {}
        self.events: list[tuple[int, Event]] = []
        """(moment, event): all that any member has applied, in order of revisions."""
        self.on_applied: list[OnApplied] = [self.promises.applied]
        """Called with what a member applies at a time: itself, the entries, what each did."""
        self.restarting = True
        """Whether processes that ended by themselves are started again."""
        self._settings = settings
        founders = tuple(
            FoundingMember(number, f"n{number}", (f"sim://n{number}",))
            for number in range(1, size + 1)
        )
        self._founding = Founding(CLUSTER_ID, 1, founders)
        for founder in founders:
            self._make(founder.member_id, founder=True)

    @property
    def level(self) -> int:
        """The feature level that is agreed, as far as any member that runs knows."""
        return max((member.machine.level for member in self.up()), default=0)

    def _make(self, member_id: int, *, founder: bool) -> SimMember:
        member = self.members[member_id] = SimMember(
            self,
            member_id,
            f"n{member_id}",
            self._founding,
            founder=founder,
            settings=self._settings(member_id),
        )
        return member

    def start(self) -> None:
        """Start every member that is down."""
        for member in self.members.values():
            if not member.up and not member.gone:
                member.start()

    def up(self) -> list[SimMember]:
        """Members whose process runs."""
        return [member for member in self.members.values() if member.up]

    def leader(self) -> SimMember | None:
        """Of the members that believe that they lead, the one of the newest term."""
        leading = [member for member in self.members.values() if member.leads]
        return max(leading, key=lambda member: member.node.term) if leading else None

    def wait_for_leader(self, seconds: float = 60) -> SimMember:
        """Let time pass until somebody leads."""
        until_us = self.world.now_us + int(seconds * SECOND_US)
        while self.world.now_us < until_us:
            leader = self.leader()
            if leader is not None:
                return leader
            self.world.run(0.1)
        raise RaftkvError(f"no leader within {seconds} s of simulated time")

    def happened(self, events: Sequence[Event]) -> None:
        """A member has applied these; those that none had applied before are new."""
        newest = self.events[-1][1].revision if self.events else 0
        now_us = self.world.now_us
        self.events += [(now_us, event) for event in events if event.revision > newest]

    def died(self, member: SimMember) -> None:
        """The process of `member` ended by itself."""
        if self.restarting:
            delay_us = self.world.random.randrange(RESTART_US_MAX)
            self.world.after(delay_us, self.restart, member)

    def restart(self, member: SimMember) -> None:
        """Start `member` unless it runs; try again later if it cannot."""
        if not member.up and not member.gone and not member.start():
            self.died(member)

    # -- membership --------------------------------------------------------------------------------

    def add_member(
        self,
        through: SimMember,
        *,
        learner: bool,
        done: Callable[[Any], None],
        promote: bool = False,
        instead_of: int | None = None,
    ) -> int:
        """Ask for a new member, and start it once it belongs to the cluster; its id.

        `promote` and `instead_of`: as `Store.add_member`.
        """
        member_id = max(self.members) + 1
        kind = ChangeKind.ADD_LEARNER if learner else ChangeKind.ADD_VOTER
        changes = [(kind, member_id)]
        if instead_of is not None:
            changes.insert(0, (ChangeKind.REMOVE, instead_of))
        name = f"n{member_id}"
        self._make(member_id, founder=False)
        self.world.note(through.name, f"is asked to add {name}{' as a learner' if learner else ''}")

        def answered(answer: Any) -> None:
            if isinstance(answer, Refused):
                self.members[member_id].gone = True
            else:
                # Also after an unknown outcome: the newcomer waits to be told, or for nothing.
                self.restart(self.members[member_id])
            if promote and not isinstance(answer, RaftkvError):
                wish = commands.guarded(commands.member_promotion(member_id), commands.BY_MEMBER)
                through.propose(wish, lambda result: None)
            done(answer)

        through.change_members(
            ConfigChange(tuple(changes)),
            [member_id, name, [f"sim://{name}"], [], learner],
            answered,
        )
        return member_id

    def promote(self, through: SimMember, member_id: int, done: Callable[[Any], None]) -> None:
        """Ask for a learner to become a voter."""
        self.world.note(through.name, f"is asked to promote n{member_id}")
        through.change_members(
            ConfigChange(((ChangeKind.ADD_VOTER, member_id),)), [member_id], done
        )

    def remove_member(
        self, through: SimMember, member_id: int, done: Callable[[Any], None]
    ) -> None:
        """Ask for a member to be removed."""
        check(member_id in self.members, "only members are removed", member_id=member_id)
        self.world.note(through.name, f"is asked to remove n{member_id}")
        through.change_members(ConfigChange(((ChangeKind.REMOVE, member_id),)), [member_id], done)
