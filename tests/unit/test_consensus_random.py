"""Seeded random walks of a whole group: loss, reordering, duplication, crashes, changes.

A failure prints its seed; `RAFTKV_SEED=n pytest tests/unit/test_consensus_random.py` repeats it,
`RAFTKV_SEEDS=n` walks more seeds.
"""

from __future__ import annotations

import contextlib
import os
import random

import pytest

from raftkv.consensus.node import RaftNode
from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    MessageKind,
    ProposalDropped,
    Role,
)
from tests.interaction.group import Group

STEPS = 2500
SEEDS = int(os.environ.get("RAFTKV_SEEDS", "40"))
FIRST = int(os.environ.get("RAFTKV_SEED", "0"))


class Walk:
    """One random walk."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        pick = self.random
        size = pick.choice([1, 2, 3, 3, 3, 4, 5])
        self.group = Group(
            voters=range(1, size + 1),
            seed=seed,
            eager_writes=False,
            eager_apply=False,
            pre_vote=pick.random() < 0.7,
            check_quorum=pick.random() < 0.7,
            inflight_messages_max=pick.choice([1, 2, 256]),
            append_bytes_max=pick.choice([1, 20, 1000]),
            committed_bytes_max=pick.choice([1, 1000]),
            uncommitted_bytes_max=pick.choice([30, 10_000]),
        )
        self.loss = pick.choice([0.0, 0.02, 0.1, 0.3])
        self.duplication = pick.choice([0.0, 0.05, 0.2])
        self.reorder = pick.random() < 0.6
        self.crashes = pick.random() < 0.7
        self.changes = pick.random() < 0.6
        self.snapshots = pick.random() < 0.6
        self.slow_disk = pick.random() < 0.5
        self.upsets = pick.choice([0.1, 0.3, 1.0])
        self.unrest = pick.choice([0.0, 0.005, 0.02, 0.04])
        # Long enough, at times, for others to elect and commit while a leader is cut off.
        self.healing = pick.choice([0.01, 0.003, 0.001])
        self.count = 0
        self.next_id = size + 1

    def run(self) -> None:
        """Faults first; then everything is healed and the group must work."""
        for _ in range(STEPS):
            self.move()
        self.group.check()
        self.recover()

    def move(self) -> None:
        """One random move."""
        group, pick = self.group, self.random
        member_id = pick.choice(list(group.members))
        member = group.members[member_id]
        if member.node is None:
            if pick.random() < 0.2:
                group.start(member_id)
            return
        if group.cut and pick.random() < self.healing:
            group.heal()
        if pick.random() < self.unrest:
            if self.crashes and pick.random() < 0.5:
                group.crash(member_id)
                group.start(member_id)
            else:
                member.node.campaign()
                group.observe(member_id)
            return
        roll = pick.random()
        if roll < 0.40:
            for _ in range(pick.choice([1, 2, len(group.network)])):
                self.deliver()
        elif roll < 0.62:
            for other in group.members:
                group.handle(other)
        elif roll < (0.66 if self.slow_disk else 0.74):
            for other, owner in group.members.items():
                if owner.writes and pick.random() < 0.7:
                    group.persist(other)
        elif roll < 0.80:
            while member.unapplied and pick.random() < 0.8:
                group.apply(member_id)
        elif roll < 0.89:
            for other, owner in group.members.items():
                if owner.node is not None and pick.random() < 0.7:
                    owner.node.tick()
                    group.observe(other)
        elif roll < 0.94:
            self.propose(member_id)
        elif roll < 0.96:
            self.count += 1
            group.read(member_id, b"r%d" % self.count)
        elif pick.random() < self.upsets:
            self.upset(member_id)

    def deliver(self) -> None:
        network, pick = self.group.network, self.random
        if not network:
            return
        position = pick.randrange(len(network)) if self.reorder else 0
        message = network.pop(position)
        if pick.random() < self.loss:
            self.group.dropped.append(message)
            source = self.group.members[message.source].node
            if message.kind is MessageKind.SNAPSHOT and source is not None:
                source.report_snapshot(message.target, False)
            return
        if pick.random() < self.duplication:
            network.insert(pick.randrange(len(network) + 1), message)
        self.group.deliver(message)

    def propose(self, member_id: int) -> None:
        self.count += 1
        batch = [b"=%d.%d" % (self.count, part) for part in range(self.random.choice([1, 1, 3]))]
        with contextlib.suppress(ProposalDropped):
            self.group[member_id].propose(batch)

    def upset(self, member_id: int) -> None:
        group, pick = self.group, self.random
        node = group[member_id]
        roll = pick.random()
        try:
            if roll < 0.25 and self.crashes:
                group.crash(member_id, power=pick.random() < 0.5)
            elif roll < 0.40 and self.snapshots:
                member = group.members[member_id]
                if (
                    member.storage.last_index() >= member.applied > member.storage.base.index
                    and node.first_index <= member.applied + 1
                    and not any(write.snapshot for write in member.writes)
                ):
                    group.snapshot(member_id, keep=pick.choice([0, 0, 3]))
            elif roll < 0.60 and self.changes:
                node.propose_change(self.random_change())
            elif roll < 0.72:
                node.transfer_leader(pick.choice(list(group.members)))
            elif roll < 0.80:
                node.report_unreachable(pick.choice(list(group.members)))
            elif roll < 0.86:
                node.campaign()
                group.observe(member_id)
            elif roll < 0.94:
                group.isolate(member_id)
            else:
                group.heal()
        except ProposalDropped:
            pass

    def random_change(self) -> ConfigChange:
        group, pick = self.group, self.random
        if len(group.members) < 7 and pick.random() < 0.3:
            group.add(self.next_id)
            self.next_id += 1
        ids = pick.sample(list(group.members), pick.choice([1, 1, 2, 3]) % len(group.members) or 1)
        return ConfigChange(tuple((pick.choice(list(ChangeKind)), item) for item in ids))

    def recover(self) -> None:
        """Liveness: with everybody up and connected, a fresh write reaches the whole group."""
        group = self.group
        group.heal()
        for member_id, member in group.members.items():
            if member.node is None:
                group.start(member_id)
        group.eager_writes = group.eager_apply = True
        for member in group.members.values():
            while member.writes:
                group.persist(member.member_id)
            while member.unapplied:
                group.apply(member.member_id)
        group.stabilize()
        for attempt in range(30):
            group.tick(count=20)
            leaders = [node for node in group.leaders() if node.lead_transferee == 0]
            if not leaders:
                continue
            leader = max(leaders, key=lambda node: node.term)
            if not group.settings["check_quorum"]:
                stop_removed(group, leader)
            term = leader.term
            mark = b"=end%d" % attempt
            try:
                leader.propose([mark])
            except ProposalDropped:
                continue
            group.read(leader.member_id, mark)
            group.tick(count=25)
            conf = leader.conf
            everybody = {*conf.voters, *conf.learners}
            if (leader.role, leader.term) == (Role.LEADER, term) and all(
                mark in group.data(member_id) for member_id in everybody
            ):
                states = group.members[leader.member_id].read_states
                assert any(state.context == mark for state in states), "a read was not answered"
                group.history.check_leader_complete(leader)
                group.check()
                assert not conf.voters_outgoing, "still in a joint configuration"
                return
        raise AssertionError("the group did not recover")


def stop_removed(group: Group, leader: RaftNode) -> None:
    """What people would do: those that have not heard of their removal disturb for ever when
    nobody ignores them (thesis 4.2.3)."""
    everybody = {*leader.conf.voters, *leader.conf.voters_outgoing, *leader.conf.learners}
    for member_id, member in group.members.items():
        if member.node is not None and member_id not in everybody:
            group.crash(member_id)
        elif member.node is None and member_id in everybody:
            group.start(member_id)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_random_walk_keeps_every_promise(seed: int) -> None:
    try:
        Walk(seed).run()
    except Exception as error:
        error.add_note(f"seed {seed}: RAFTKV_SEED={seed} RAFTKV_SEEDS=1 pytest {__file__}")
        raise
