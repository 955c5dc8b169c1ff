"""Membership arithmetic: what a configuration becomes by a change. Pure.

One change takes effect in a single step: old and new majorities overlap (thesis 4.1). Several at
once go through a joint configuration in which both majorities must agree (thesis 4.3).
"""

from __future__ import annotations

from raftkv import limits
from raftkv.consensus.types import NO_MEMBER, ChangeKind, ConfigChange, ConfState


class ChangeRejected(Exception):
    """The change cannot be made to this configuration; the text says why."""


def is_joint(conf: ConfState) -> bool:
    """Whether both an incoming and an outgoing configuration are in force."""
    return bool(conf.voters_outgoing)


def members(conf: ConfState) -> set[int]:
    """Everybody to whom the log is sent."""
    return {*conf.voters, *conf.voters_outgoing, *conf.learners}


def is_voter(conf: ConfState, member: int) -> bool:
    """Whether `member` counts in elections, in either half."""
    return member in conf.voters or member in conf.voters_outgoing


def changed(conf: ConfState, change: ConfigChange) -> ConfState:
    """The configuration after `change`. Raises `ChangeRejected`."""
    if not change.changes:
        return _left(conf)
    if is_joint(conf):
        raise ChangeRejected("a joint configuration is in force")
    named = [member for _, member in change.changes]
    if len(set(named)) != len(named):
        raise ChangeRejected("a member is named twice")
    voters, learners = set(conf.voters), set(conf.learners)
    learners_next: set[int] = set()
    joint = len(change.changes) > 1
    for kind, member in change.changes:
        if member == NO_MEMBER:
            raise ChangeRejected("0 is no member id")
        was_voter = member in voters
        voters.discard(member)
        learners.discard(member)
        if kind is ChangeKind.ADD_VOTER:
            voters.add(member)
        elif kind is ChangeKind.ADD_LEARNER:
            # While its vote still counts in the outgoing half it cannot be a learner as well.
            (learners_next if joint and was_voter else learners).add(member)
    if not voters:
        raise ChangeRejected("no voter would remain")
    if len(voters) > limits.VOTERS_MAX:
        raise ChangeRejected(f"more than {limits.VOTERS_MAX} voters")
    if len(learners) + len(learners_next) > limits.LEARNERS_MAX:
        raise ChangeRejected(f"more than {limits.LEARNERS_MAX} learners")
    return ConfState(
        voters=tuple(sorted(voters)),
        learners=tuple(sorted(learners)),
        voters_outgoing=conf.voters if joint else (),
        learners_next=tuple(sorted(learners_next)),
        auto_leave=joint,
    )


def _left(conf: ConfState) -> ConfState:
    if not is_joint(conf):
        raise ChangeRejected("no joint configuration to leave")
    return ConfState(
        voters=conf.voters, learners=tuple(sorted({*conf.learners, *conf.learners_next}))
    )
