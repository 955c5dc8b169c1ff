"""Situations that seeds have found, made likely: each failed before what it found was mended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raftkv.consensus.types import ChangeKind, ConfigChange, Role
from raftkv.errors import MemberExists, NoLeader
from raftkv.machine import commands
from raftkv.simulation import MemberSettings, SimCluster, SimMember, World


def _late_member(world: World) -> tuple[SimCluster, SimMember, SimMember]:
    """A cluster whose log has let go of what one member is yet to hear of, and that member."""
    settings = MemberSettings(
        snapshot_log_bytes=500, snapshot_catchup_entries=0, install_us_max=800_000
    )
    cluster = SimCluster(world, 3, settings=lambda member_id: settings)
    cluster.start()
    leader = cluster.wait_for_leader()
    late = next(one for one in cluster.members.values() if one is not leader)
    cluster.network.cut(leader.member_id, late.member_id)
    return cluster, leader, late


def _lead_ahead_of_image(
    world: World, cluster: SimCluster, leader: SimMember, late: SimMember
) -> None:
    """Have the late member elected before the image that it was sent is installed."""
    for number in range(50):
        leader.propose(commands.put(b"k%d" % (number % 7), bytes(200)), lambda answer: None)
        world.run(0.02)
    cluster.network.heal()
    for _ in range(4_000):
        if leader.node.role is Role.LEADER:
            leader.transfer_leader(late.member_id)
        world.run(0.0005)
        if late.node.role is Role.LEADER:
            break
    assert late.node.role is Role.LEADER and late.installing, "elected before the image was there"


@pytest.mark.parametrize("seed", range(6))
def test_a_leader_elected_ahead_of_its_image_knows_the_leases_in_it(seed: int) -> None:
    """It kept time for those of its old state: it refused renewals, and let nothing expire."""
    world = World(seed)
    cluster, leader, late = _late_member(world)
    leader.propose(commands.lease_grant(7, 3), lambda answer: None)
    leader.propose(commands.put(b"held", b"", lease=7), lambda answer: None)
    _lead_ahead_of_image(world, cluster, leader, late)
    renewed: list[Any] = []
    late.keep_alive(7, renewed.append)
    world.run(1.5)
    assert [answer.ttl_seconds for answer in renewed] == [3]
    world.run(6)
    assert late.machine.get(b"held") is None, "and it ends when nobody renews it"


@pytest.mark.parametrize("seed", range(6))
def test_a_leader_elected_ahead_of_its_image_judges_no_change_by_its_old_members(seed: int) -> None:
    """It took a second member with the address of one that was in the image only."""
    world = World(seed)
    cluster, leader, late = _late_member(world)
    added: list[Any] = []
    fourth = cluster.add_member(leader, learner=True, done=added.append)
    _lead_ahead_of_image(world, cluster, leader, late)
    while not (late.node.commit_index >= late.node.last_index > 0):
        world.run(0.0005)
    assert late.installing and late.leads and fourth not in _ids(late)
    answers: list[Any] = []

    def add() -> None:
        late.change_members(
            ConfigChange(((ChangeKind.ADD_LEARNER, 99),)),
            [99, "other", [f"sim://n{fourth}"], [], True],
            answers.append,
        )

    add()
    world.run(3)
    add()
    world.run(3)
    assert [type(answer) for answer in answers] == [NoLeader, MemberExists]
    assert _ids(late) == {1, 2, 3, fourth}


def _voters(member: SimMember) -> tuple[int, ...]:
    return member.node.conf.voters + member.node.conf.voters_outgoing


def _ids(member: SimMember) -> set[int]:
    return {info.member_id for info in member.machine.members()}


@pytest.mark.parametrize("seed", range(8))
def test_snapshots_that_overtake_each_other_on_a_slow_disk(seed: int) -> None:
    """The second image was staged over the first, which was then found at the wrong index."""
    settings = MemberSettings(
        snapshot_log_bytes=500, snapshot_catchup_entries=0, snapshot_chunk_bytes=64 * 1024
    )
    world = World(seed)
    cluster = SimCluster(world, 3, settings=lambda member_id: settings)
    cluster.start()
    leader = cluster.wait_for_leader()
    slow = next(one for one in cluster.members.values() if one is not leader)
    slow.settings = replace(settings, slow_sync=0.5, slow_sync_us_max=500_000)
    for number in range(400):
        if number % 10 == 0:
            cluster.network.cut(leader.member_id, slow.member_id)
        if number % 10 == 3:
            cluster.network.mend(leader.member_id, slow.member_id)
        leader.propose(commands.put(b"k%d" % (number % 7), bytes(200)), lambda answer: None)
        world.run(0.03)
    cluster.network.heal()
    world.run(20)
    assert slow.machine.state_hash == leader.machine.state_hash
    assert slow.replica.stats.snapshots_installed


@pytest.mark.parametrize("replaced", (False, True))
@pytest.mark.parametrize("seed", range(4))
def test_of_two_voters_one_stays_when_the_leader_is_removed(seed: int, replaced: bool) -> None:
    """The leader ended at once, and if its last messages were lost the other asked for its vote for
    ever: only who is gone knew that the removal was committed."""
    world = World(seed)
    cluster = SimCluster(world, 2)
    cluster.start()
    leader = cluster.wait_for_leader()
    other = next(one for one in cluster.members.values() if one is not leader)
    answers: list[Any] = []
    if replaced:
        cluster.add_member(leader, learner=False, instead_of=leader.member_id, done=answers.append)
    else:
        cluster.remove_member(leader, leader.member_id, answers.append)
    while not leader.gone:
        world.run(0.0001)
        node = leader.node
        others = set(_voters(leader)) - {leader.member_id}
        leaving = node.change_pending and bool(node.conf.voters_outgoing) is replaced
        if leaving and all(
            cluster.members[one].node.last_index == node.last_index for one in others
        ):
            # Their answers arrive, and nobody hears what follows from them.
            for one in others:
                cluster.network.cut(leader.member_id, one)
    assert leader.member_id in _voters(other), "it has not heard"
    world.run(2)
    cluster.network.heal()
    world.run(8)
    assert not leader.up and leader.gone, "it ends all the same"
    assert cluster.leader() is not None
    assert leader.member_id not in _voters(other)
    assert len(other.node.conf.voters) == (2 if replaced else 1)
