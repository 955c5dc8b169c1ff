"""Membership changes: any two neighbouring configurations share a member in every two majorities.

First the arithmetic alone, by brute force over every set of members. Then a whole group, whose
members crash and lose messages in the midst of changes, with the same check of what they apply.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raftkv.consensus.confchange import ChangeRejected, changed, members
from raftkv.consensus.quorum import VoteResult, joint_vote
from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    ConfState,
    MessageKind,
    ProposalDropped,
)
from tests.interaction.group import Group
from tests.unit.test_consensus_random import Walk

IDS = range(1, 8)


def most(voters: tuple[int, ...], present: frozenset[int]) -> bool:
    """Whether more than half of `voters` are there; an empty half agrees."""
    return not voters or 2 * len(present.intersection(voters)) > len(voters)


def agrees(conf: ConfState, present: frozenset[int]) -> bool:
    """Whether these members can elect and commit, by the words of the thesis (4.3)."""
    return most(conf.voters, present) and most(conf.voters_outgoing, present)


def check_overlap(before: ConfState, after: ConfState) -> None:
    """No two sets without a common member can both decide, the one here and the other there."""
    everybody = sorted(members(before) | members(after))
    for size in range(len(everybody) + 1):
        for chosen in itertools.combinations(everybody, size):
            present = frozenset(chosen)
            if agrees(before, present):
                rest = frozenset(everybody) - present
                assert not agrees(after, rest), f"{before} {after}: {chosen} against the others"
                assert not agrees(before, rest)


changes = st.lists(st.tuples(st.sampled_from(ChangeKind), st.sampled_from(IDS)), max_size=4).map(
    lambda steps: ConfigChange(tuple(steps))
)


@given(st.integers(1, 5), st.lists(changes, max_size=8))
@settings(max_examples=150)
def test_neighbours_overlap(size: int, steps: list[ConfigChange]) -> None:
    conf = ConfState(voters=tuple(range(1, size + 1)))
    for change in steps:
        try:
            after = changed(conf, change)
        except ChangeRejected:
            continue
        check_overlap(conf, after)
        assert after.voters, "somebody votes"
        assert not set(after.learners) & {*after.voters, *after.voters_outgoing}
        assert set(after.learners_next) <= set(after.voters_outgoing) - set(after.voters)
        assert bool(after.voters_outgoing) == after.auto_leave
        for count in range(1 << len(IDS)):
            present = frozenset(i for i in IDS if count >> i - 1 & 1)
            won = joint_vote(
                after.voters, after.voters_outgoing, {i: i in present for i in members(after)}
            )
            assert (won is VoteResult.WON) == agrees(after, present), "learners do not vote"
        conf = after


class Membership(RuleBasedStateMachine):
    """A group in which changes meet crashes, cuts and lost messages, in any order."""

    @initialize(size=st.integers(1, 4), seed=st.integers(0, 1000), pre_vote=st.booleans())
    def start(self, size: int, seed: int, pre_vote: bool) -> None:
        self.group = Group(
            voters=range(1, size + 1), seed=seed, eager_writes=False, eager_apply=False,
            pre_vote=pre_vote, check_quorum=pre_vote,
        )  # fmt: skip
        self.chain: dict[int, ConfState] = {1: self.group.members[1].conf}
        """Every configuration by the index of the entry that made it."""
        self.writes = 0
        self.elect(0)

    def pick(self, number: int, *, up: bool = True) -> int | None:
        able = [i for i, member in self.group.members.items() if (member.node is not None) is up]
        return able[number % len(able)] if able else None

    @rule(number=st.integers(0, 9))
    def elect(self, number: int) -> None:
        """Somebody stands, and enough happens for an answer."""
        chosen = self.pick(number)
        if chosen is not None:
            self.group[chosen].campaign()
            self.group.observe(chosen)
            self.settle(6)

    @rule(change=changes, at=st.integers(0, 9))
    def change(self, change: ConfigChange, at: int) -> None:
        """At a leader, if there is one; new members start with nothing."""
        group = self.group
        leaders = group.leaders()
        if not leaders:
            return
        for _, member_id in change.changes:
            if member_id not in group.members:
                group.add(member_id)
        with contextlib.suppress(ProposalDropped):
            leaders[at % len(leaders)].propose_change(change)

    @rule(at=st.integers(0, 9))
    def write(self, at: int) -> None:
        leaders = self.group.leaders()
        if leaders:
            self.writes += 1
            with contextlib.suppress(ProposalDropped):
                leaders[at % len(leaders)].propose([b"=%d" % self.writes])

    @rule(rounds=st.integers(1, 8))
    def settle(self, rounds: int) -> None:
        """Everything that is under way goes on by as many steps."""
        group = self.group
        for _ in range(rounds):
            for member_id, member in list(group.members.items()):
                if member.node is None:
                    continue
                group.handle(member_id)
                while member.writes:
                    group.persist(member_id)
                while member.unapplied:
                    self.apply(member_id)
                group.handle(member_id)
            arriving, group.network = group.network, []
            for message in arriving:
                group.deliver(message)

    def apply(self, member_id: int) -> None:
        """One entry; a configuration is the one that others made of it, too."""
        member = self.group.members[member_id]
        before = member.conf
        self.group.apply(member_id)
        if member.conf != before:
            known = self.chain.setdefault(member.applied, member.conf)
            assert known == member.conf, "members made different things of one entry"
            check_overlap(before, member.conf)

    @rule(count=st.integers(1, 25))
    def tick(self, count: int) -> None:
        for _ in range(count):
            for member_id, member in self.group.members.items():
                if member.node is not None:
                    member.node.tick()
                    self.group.observe(member_id)

    @rule(number=st.integers(0, 9), power=st.booleans())
    def crash(self, number: int, power: bool) -> None:
        chosen = self.pick(number)
        if chosen is not None:
            self.group.crash(chosen, power=power)

    @precondition(lambda self: self.pick(0, up=False) is not None)
    @rule(number=st.integers(0, 9))
    def restart(self, number: int) -> None:
        chosen = self.pick(number, up=False)
        assert chosen is not None
        self.group.start(chosen)

    @rule(number=st.integers(0, 9))
    def isolate(self, number: int) -> None:
        chosen = self.pick(number)
        if chosen is not None:
            self.group.isolate(chosen)

    @rule()
    def heal(self) -> None:
        self.group.heal()

    @rule(number=st.integers(0, 99))
    def lose(self, number: int) -> None:
        """One message never arrives."""
        network = self.group.network
        if network:
            message = network.pop(number % len(network))
            self.group.dropped.append(message)
            source = self.group.members[message.source].node
            if message.kind is MessageKind.SNAPSHOT and source is not None:
                source.report_snapshot(message.target, False)

    @invariant()
    def neighbours_overlap(self) -> None:
        """Of all configurations that were ever applied, in their order."""
        if hasattr(self, "chain"):
            ordered = [conf for _, conf in sorted(self.chain.items())]
            for before, after in itertools.pairwise(ordered):
                assert before != after
                check_overlap(before, after)
            self.group.check()

    def teardown(self) -> None:
        """Healed, the group works and has left every joint configuration by itself."""
        if hasattr(self, "group"):
            recovering: Any = self
            Walk.recover(recovering)


def test_a_group_changes_its_members_safely() -> None:
    run_state_machine_as_test(
        Membership, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )
