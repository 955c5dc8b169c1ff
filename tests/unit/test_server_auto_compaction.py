"""Automatic compaction: how its flags are read, what it judges due, and what a cluster does."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.errors import Compacted, ConfigError, InvalidRequest
from raftkv.machine import commands
from raftkv.server.auto_compaction import AutoCompaction, Mode, Retention, parse_retention
from raftkv.server.config import ServerConfig
from raftkv.simulation import MemberSettings, SimCluster, SimMember, World

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("mode", "text", "amount"),
    [
        ("periodic", "0", 0),
        ("periodic", "2", 2 * HOUR_MS),
        ("periodic", "90m", 90 * 60_000),
        ("periodic", "1h30m", 90 * 60_000),
        ("periodic", "0.5h", HOUR_MS // 2),
        ("periodic", "10s", 10_000),
        ("revision", "1000", 1000),
        ("revision", "0", 0),
    ],
)
def test_the_flags_are_read_as_etcd_reads_them(mode: str, text: str, amount: int) -> None:
    assert parse_retention(mode, text) == Retention(Mode(mode), amount)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("periodic", "yesterday"),
        ("periodic", ""),
        ("periodic", "-1"),
        ("periodic", "10ms"),
        ("periodic", "999999999999"),
        ("revision", "5m"),
        ("age", "5"),
    ],
)
def test_what_is_no_retention_is_refused_by_name(mode: str, text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_retention(mode, text)
    with pytest.raises(ConfigError, match="--auto-compaction"):
        ServerConfig(auto_compaction_mode=mode, auto_compaction_retention=text)


def test_by_revisions_it_is_looked_at_every_five_minutes() -> None:
    auto = AutoCompaction(Retention(Mode.REVISION, 100))
    assert auto.due(0, 50, 0, leads=True) == 0
    assert auto.due(299_999, 5_000, 0, leads=True) == 0
    assert auto.due(300_000, 5_000, 0, leads=True) == 4_900
    assert auto.due(600_000, 5_000, 4_900, leads=True) == 0


def test_by_age_a_revision_is_compacted_once_it_is_older_than_the_retention() -> None:
    retention_ms = 100_000
    auto = AutoCompaction(Retention(Mode.PERIODIC, retention_ms))
    revision_at: dict[int, int] = {}
    compacted = 0
    for now_ms in range(0, 1_000_000, 1000):
        revision_at[now_ms] = revision = 10 + now_ms // 100
        target = auto.due(now_ms, revision, compacted, leads=True)
        if target:
            # Nothing younger goes, and what stays too long stays for two samples at most.
            assert target <= revision_at[now_ms - retention_ms]
            assert target >= revision_at[max(0, now_ms - retention_ms - 20_000)]
            compacted = target
    assert compacted


def test_who_did_not_lead_knows_how_old_revisions_are() -> None:
    auto = AutoCompaction(Retention(Mode.PERIODIC, 100_000))
    for now_ms in range(0, 200_000, 1000):
        assert auto.due(now_ms, 10 + now_ms // 1000, 0, leads=False) == 0
    assert auto.due(200_000, 500, 0, leads=True) == 10 + 100


def cluster_of(
    size: int, retention: Retention, seed: int = 1
) -> tuple[World, SimCluster, SimMember]:
    world = World(seed=seed)
    settings = MemberSettings(retention=retention)
    cluster = SimCluster(world, size, settings=lambda member_id: settings)
    cluster.start()
    return world, cluster, cluster.wait_for_leader()


def put(member: SimMember, key: bytes) -> None:
    member.propose(commands.put(key, b"x"), lambda answer: None)


def test_a_cluster_forgets_what_is_older_than_the_retention_on_every_member() -> None:
    world, cluster, leader = cluster_of(3, Retention(Mode.PERIODIC, 20_000))
    revision_at: list[tuple[float, int]] = []
    for number in range(240):
        put(leader, b"k%d" % (number % 5))
        world.run(0.25)
        revision_at.append((world.now_us / 1e6, leader.machine.revision))
    world.run(5)
    now = world.now_us / 1e6
    young = next(revision for when, revision in revision_at if when >= now - 15)
    old = next(revision for when, revision in revision_at if when >= now - 28)
    for member in cluster.members.values():
        assert old <= member.machine.compact_revision < young
        assert not member.machine.compaction_pending
        with pytest.raises(Compacted):
            member.machine.get(b"k0", revision=3)
    assert len({member.machine.state_hash for member in cluster.members.values()}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_compaction_goes_on_under_each_new_leader(seed: int) -> None:
    world, cluster, leader = cluster_of(3, Retention(Mode.PERIODIC, 20_000), seed)
    compacted_under: set[int] = set()
    compactions: list[int] = []
    for _ in range(6):
        for number in range(60):
            put(leader, b"k%d" % (number % 5))
            world.run(0.25)
        if not compactions or leader.machine.compact_revision > compactions[-1]:
            compactions.append(leader.machine.compact_revision)
            compacted_under.add(leader.member_id)
        leader.crash()
        leader.start()
        leader = cluster.wait_for_leader()
        world.run(1)
    assert len(compactions) >= 3 and len(compacted_under) >= 2
    assert compactions == sorted(compactions)


def test_by_revisions_a_cluster_keeps_the_newest() -> None:
    world, cluster, leader = cluster_of(3, Retention(Mode.REVISION, 20))
    for number in range(100):
        put(leader, b"k%d" % (number % 5))
        world.run(0.01)
    world.run(310)
    for member in cluster.members.values():
        assert member.machine.compact_revision == member.machine.revision - 20


def test_without_a_retention_nothing_is_forgotten() -> None:
    world, _, leader = cluster_of(1, Retention(Mode.REVISION, 0))
    put(leader, b"k")
    world.run(700)
    assert leader.machine.compact_revision == 0
    history: list[Any] = leader.machine.history(2, leader.machine.revision, 10)
    assert history
