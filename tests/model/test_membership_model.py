"""Membership changes: any two neighbouring configurations share a member in every two majorities.

First the arithmetic alone, by brute force over every set of members. Then a whole group, whose
members crash and lose messages in the midst of changes, with the same check of what they apply.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any

import pytest
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
from tests.support.quorums import agrees, check_overlap
from tests.unit.test_consensus_random import Walk

IDS = range(1, 8)


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
        self.elect(0, 12)
        assert self.group.leaders()

    def pick(self, number: int, *, up: bool = True) -> int | None:
        able = [i for i, member in self.group.members.items() if (member.node is not None) is up]
        return able[number % len(able)] if able else None

    @rule(number=st.integers(0, 9), rounds=st.integers(0, 12))
    def elect(self, number: int, rounds: int) -> None:
        """Somebody stands, and perhaps enough happens for an answer."""
        chosen = self.pick(number)
        if chosen is not None:
            self.group[chosen].campaign()
            self.group.observe(chosen)
            self.settle(rounds)

    @rule(change=changes, at=st.integers(0, 9), rounds=st.integers(0, 12))
    def change(self, change: ConfigChange, at: int, rounds: int) -> None:
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
        self.settle(rounds)

    @precondition(lambda self: not self.group.leaders())
    @rule()
    def calm(self) -> None:
        """Nobody leads: everybody comes back, and somebody does."""
        self.group.heal()
        for member_id, member in self.group.members.items():
            if member.node is None:
                self.group.start(member_id)
        for _ in range(50):
            self.tick(2)
            self.settle(3)
            if self.group.leaders():
                return

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


@pytest.mark.parametrize("seed", range(25))
def test_long_walks(seed: int) -> None:
    """The same rules, with changes frequent and histories deep."""
    pick = random.Random(seed)
    group = Membership()
    group.start(pick.randint(1, 5), seed, pick.random() < 0.5)
    calm = pick.choice([0.3, 0.6, 0.9])
    for _ in range(90):
        rounds = pick.choice([0, 1, 3, 12])
        roll = pick.random()
        if not group.group.leaders():
            group.calm()
        elif roll < 0.35:
            count = pick.choice([0, 1, 1, 2, 3, 4])
            steps = [(pick.choice(list(ChangeKind)), at) for at in pick.sample(IDS, count)]
            group.change(ConfigChange(tuple(steps)), pick.randrange(9), rounds)
        elif roll < 0.5:
            group.write(pick.randrange(9))
        elif roll < 0.6:
            group.tick(pick.randint(1, 10))
        elif pick.random() < calm:
            group.settle(rounds)
        elif roll < 0.7:
            group.crash(pick.randrange(9), pick.random() < 0.3)
        elif roll < 0.8 and group.pick(0, up=False) is not None:
            group.restart(pick.randrange(9))
        elif roll < 0.88:
            group.elect(pick.randrange(9), rounds)
        elif roll < 0.94:
            group.isolate(pick.randrange(9))
        else:
            group.lose(pick.randrange(99))
        group.neighbours_overlap()
    group.teardown()
    assert len(group.chain) > 2, f"seed {seed} proves little"
