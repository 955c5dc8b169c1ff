"""What an operator does to a cluster at bad moments; drawn like faults, see `Nemesis`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from raftkv.errors import ChangeRefused
from raftkv.limits import FEATURE_LEVEL
from raftkv.machine import commands
from raftkv.machine.quota_commands import quota_set
from raftkv.machine.quotas import QuotaKind
from raftkv.server.levels import AUTO_PROMOTION, QUOTAS, check_agreed

if TYPE_CHECKING:
    from raftkv.simulation.member import SimMember
    from raftkv.simulation.nemesis import Nemesis

MEMBERS_MAX = 6
REPLACED_AMONG_MIN = 3
"""Of two voters one that leads and is replaced ends after some seconds. The other may lose power
again and again meanwhile, and each time what it had heard of the commit index."""
QUOTA_PREFIXES = (b"k", b"k1", b"k2")
"""Prefixes of the keys of clients that are limited; what has other keys goes on."""


def _upgrade(nemesis: Nemesis) -> None:
    """One member is stopped and comes back with a newer program."""
    old = [
        member
        for member in nemesis.cluster.members.values()
        if not member.gone and member.settings.feature_level < FEATURE_LEVEL
    ]
    if not old:
        return
    member = nemesis.world.random.choice(old)
    level = member.settings.feature_level + 1
    nemesis.world.fault("upgrade", member.name, f"is upgraded to level {level}")
    _stop_somehow(nemesis, member)
    member.settings = replace(member.settings, feature_level=level)
    nemesis.down_for_a_while(member)


def _downgrade(nemesis: Nemesis) -> None:
    """Somebody starts a program that is too old for what the cluster has agreed on."""
    agreed, member = nemesis.cluster.level, nemesis.some_member()
    if not agreed or member is None or member.levels.own < agreed:
        return
    nemesis.world.fault("downgrade", member.name, f"is started at level {agreed - 1}")
    _stop_somehow(nemesis, member)
    member.settings = replace(member.settings, feature_level=agreed - 1)
    nemesis.down_for_a_while(member)
    nemesis.later(nemesis.duration_us(3.0, 15.0), _back_again, nemesis, member)


def _back_again(nemesis: Nemesis, member: SimMember) -> None:
    end_downgrade(member)
    nemesis.cluster.restart(member)


def end_downgrade(member: SimMember) -> None:
    """Let a program that is new enough be the next at `member`; end one that is not.

    That goes for a downgrade as for a newcomer that was added with a program too old.
    """
    needed = max(member.newest_level, member.cluster.level)
    if member.settings.feature_level < needed:
        member.settings = replace(member.settings, feature_level=needed)
        member.stop()


def _stop_somehow(nemesis: Nemesis, member: SimMember) -> None:
    if nemesis.world.chance(0.5):
        member.stop()
    else:
        member.crash()


def _shrink(nemesis: Nemesis) -> None:
    member = nemesis.some_member()
    if member is not None and member.shrinking is None:
        nemesis.world.fault("shrink", member.name, "is asked to shrink its tables")
        member.shrink()


def _promoted_learner(nemesis: Nemesis) -> None:
    """A learner is added that the leader is to promote by itself."""
    through = nemesis.some_member()
    living = [member for member in nemesis.cluster.members.values() if not member.gone]
    if (
        through is None
        or not nemesis.members_settled
        or len(living) >= MEMBERS_MAX
        or not _agreed(through, AUTO_PROMOTION)
    ):
        return
    nemesis.world.faults["learner to promote"] += 1
    nemesis.ask_members(
        lambda done: nemesis.cluster.add_member(through, learner=True, promote=True, done=done)
    )


def _agreed(through: SimMember, level: int) -> bool:
    """Whether the doors of a member take what came with a level."""
    try:
        check_agreed(through.machine, level, "this")
    except ChangeRefused:
        return False
    return True


def _replacement(nemesis: Nemesis) -> None:
    """A member is replaced by a new one, in one change."""
    through = nemesis.some_member()
    if through is None or not nemesis.members_settled:
        return
    conf = through.node.conf
    learner = bool(conf.learners) and nemesis.world.chance(0.5)
    candidates = conf.learners if learner else conf.voters
    if not candidates or (not learner and len(conf.voters) < REPLACED_AMONG_MIN):
        return
    target = nemesis.world.random.choice(candidates)
    nemesis.world.faults["replacement"] += 1
    nemesis.ask_members(
        lambda done: nemesis.cluster.add_member(
            through, learner=learner, instead_of=target, done=done
        )
    )


def _quota(nemesis: Nemesis) -> None:
    """A prefix gets another quota, or none any more."""
    through, chance = nemesis.some_member(), nemesis.world.random
    if through is None or not _agreed(through, QUOTAS):
        return
    prefix = chance.choice(QUOTA_PREFIXES)
    keys_max, bytes_max = chance.choice(((0, 0), (1, 0), (2, 0), (5, 0), (0, 8), (0, 30), (3, 20)))
    nemesis.world.fault("quota", through.name, f"is asked for {prefix!r} {keys_max} {bytes_max}")
    command = quota_set(QuotaKind.PREFIX, prefix, keys_max, bytes_max)
    through.propose(commands.guarded(command, commands.BY_MEMBER), lambda result: None)


OPERATIONS: dict[str, Callable[[Nemesis], None]] = {
    "upgrade": _upgrade,
    "downgrade": _downgrade,
    "shrink": _shrink,
    "learner to promote": _promoted_learner,
    "replacement": _replacement,
    "quota": _quota,
}
"""Every kind, by the name under which it is counted."""
