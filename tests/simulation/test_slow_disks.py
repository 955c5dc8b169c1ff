"""Disks that do not answer: a leader with such a disk gives leadership up, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raftkv.errors import OutcomeUnknown, RaftkvError
from raftkv.machine import commands
from raftkv.simulation import MemberSettings, SimCluster, SimMember, World

SETTINGS = MemberSettings(disk_stall_ms=2_000)


def cluster_of(seed: int, size: int) -> tuple[World, SimCluster, SimMember]:
    world = World(seed)
    cluster = SimCluster(world, size, settings=lambda member_id: SETTINGS)
    cluster.start()
    leader = cluster.wait_for_leader()
    world.run(1)
    return world, cluster, leader


def stall(member: SimMember, seconds: int) -> None:
    """Every sync from now on takes this long."""
    microseconds = seconds * 1_000_000
    member.settings = replace(member.settings, sync_us_min=microseconds, sync_us_max=microseconds)


def put(member: SimMember, key: bytes) -> list[Any]:
    answers: list[Any] = []
    member.propose(commands.put(key, b"v"), answers.append)
    return answers


def leaders(cluster: SimCluster) -> list[SimMember]:
    return [one for one in cluster.members.values() if one.leads]


@pytest.mark.parametrize("seed", range(12))
def test_a_leader_whose_disk_stalls_gives_leadership_up(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "raftkv")
    world, cluster, leader = cluster_of(seed, 3)
    put(leader, b"before")
    world.run(1)
    stall(leader, 60)
    term = leader.node.term
    first = put(leader, b"first")  # the sync that hangs
    world.run(1)
    assert leader.leads, "a short stall is no reason"
    world.run(4)
    assert not leader.leads and leader.node.term > term
    [other] = leaders(cluster)
    stats = leader.replica.stats
    assert stats.disk_stalls == 1 and stats.disk_stall_handovers >= 1
    assert "giving leadership up, because the disk of the log does not answer" in caplog.text
    answers = put(other, b"after")
    world.run(2)
    assert answers and not isinstance(answers[0], RaftkvError)
    # Its client was not told of a success that is not on this disk, nor of a refusal.
    assert [type(answer) for answer in first] == [OutcomeUnknown]
    leader.settings = SETTINGS
    world.run(120)
    assert "the disk of the log answers again" in caplog.text
    assert leader.machine.state_hash == other.machine.state_hash
    assert leader.replica.stats.disk_stalls == 1


@pytest.mark.parametrize("seed", range(4))
def test_when_the_first_choice_is_no_better_another_is_asked(seed: int) -> None:
    world, cluster, leader = cluster_of(seed, 5)
    others = [one for one in cluster.members.values() if one is not leader]
    stall(leader, 300)
    stall(others[0], 300)
    put(leader, b"x")
    world.run(60)
    [now] = leaders(cluster)
    assert now in others[1:], "only a disk that answers can be elected"
    answers = put(now, b"y")
    world.run(2)
    assert answers and not isinstance(answers[0], RaftkvError)


def test_a_member_alone_says_so_and_goes_on() -> None:
    world, _, member = cluster_of(1, 1)
    stall(member, 4)
    answers = put(member, b"x")
    world.run(3)
    assert member.leads and not answers
    assert member.replica.stats.disk_stalls == 1
    assert member.replica.stats.disk_stall_handovers == 0
    world.run(20)
    assert answers and not isinstance(answers[0], RaftkvError)


def test_a_follower_with_a_stalled_disk_holds_nobody_up() -> None:
    world, cluster, leader = cluster_of(2, 3)
    follower = next(one for one in cluster.members.values() if one is not leader)
    stall(follower, 60)
    put(leader, b"x")
    world.run(5)
    answers = put(leader, b"y")
    world.run(1)
    assert leader.leads and answers and not isinstance(answers[0], RaftkvError)
    assert follower.replica.stats.disk_stalls == 1
    assert follower.replica.stats.disk_stall_handovers == 0
