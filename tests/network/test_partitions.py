"""Members that cannot hear each other: both ways, one way, and the nastier kinds.

Each kind of trouble is a step on a running cluster, mended at its end. A recorded load runs all
the while, and everything that clients were told is judged at the end.
"""

import asyncio
import time
from pathlib import Path

import pytest

from tests.support.networks import NamespacedCluster, ProxiedCluster, isolate
from tests.support.processes import Cluster, Member
from tests.support.proof import under_load
from tests.support.workload import Mix

MIX = Mix(plain=6, library=2, lease_holders=1, lock_holders=1, watchers=3, per_second=150)
TAKEOVER_SECONDS = 6.0
"""Within this the rest of a cluster must serve again: twice the longest election, an election
that is split, and a slow machine."""
Spoilt = ProxiedCluster | NamespacedCluster


async def served(cluster: Cluster, members: list[Member]) -> None:
    """Wait until one of `members` carries out a write."""
    deadline = time.monotonic() + TAKEOVER_SECONDS
    while time.monotonic() < deadline:
        for member in members:
            code, _, _ = await cluster.call(member, "PUT", "/api/kv/probe", data=b"x")
            if code == 200:
                return
        await asyncio.sleep(0.05)
    raise AssertionError(f"no write in {TAKEOVER_SECONDS} s:\n{members[0].output()}")


def others(cluster: Cluster, member: Member) -> list[Member]:
    return [other for other in cluster.members if other is not member]


async def leader_alone(cluster: Spoilt) -> None:
    """It is replaced, admits that it knows nothing, and comes back."""
    leader = await cluster.leader()
    rest = others(cluster, leader)
    await served(cluster, [leader])
    isolate(cluster, leader)
    await served(cluster, rest)
    code, body, _ = await cluster.call(leader, "GET", "/api/kv/probe")
    assert code == 503 and body["outcome"] == "refused", body
    code, _, _ = await cluster.call(leader, "GET", "/api/kv/probe?consistency=serializable")
    assert code == 200
    cluster.heal()
    await served(cluster, [leader])


async def leader_deaf(cluster: Spoilt) -> None:
    """Its heartbeats would hold the others back for ever, did it not count who answers."""
    leader = await cluster.leader()
    rest = others(cluster, leader)
    for other in rest:
        cluster.cut(other, leader)
    await served(cluster, rest)
    cluster.heal()
    await served(cluster, [leader])


async def leader_mute(cluster: Spoilt) -> None:
    """It hears that others vote, and must not disturb them."""
    leader = await cluster.leader()
    rest = others(cluster, leader)
    for other in rest:
        cluster.cut(leader, other)
    await served(cluster, rest)
    cluster.heal()
    await served(cluster, [leader])


async def follower_deaf(cluster: Spoilt) -> None:
    """It hears no leader and can be heard: its calls for an election cost nobody the leader."""
    leader = await cluster.leader()
    follower = others(cluster, leader)[0]
    before = await cluster.status(leader)
    for other in others(cluster, follower):
        cluster.cut(other, follower)
    # Two election time-outs at least: it must have tried for this to mean anything.
    await asyncio.sleep(2.4)
    cluster.heal()
    await served(cluster, [follower])
    after = await cluster.status(leader)
    assert (after["role"], after["term"]) == ("leader", before["term"]), after


async def followers_apart(cluster: Spoilt) -> None:
    """Two followers that cannot talk to each other still follow; without a leader none wins."""
    leader = await cluster.leader()
    one, two = others(cluster, leader)
    cluster.cut(one, two)
    cluster.cut(two, one)
    await served(cluster, [one])
    leader.kill()
    await asyncio.sleep(1.5)
    for member in (one, two):
        assert (await cluster.status(member))["role"] != "leader"
    leader.start()
    await served(cluster, [one, two])
    cluster.heal()


async def connections_dead(cluster: ProxiedCluster) -> None:
    """What is sent vanishes, and no side is told that the connection is dead."""
    leader = await cluster.leader()
    rest = others(cluster, leader)
    for other in rest:
        cluster.cut(leader, other, swallow=True)
        cluster.cut(other, leader, swallow=True)
    await served(cluster, rest)
    cluster.heal()
    await served(cluster, [leader])


async def everything_late(cluster: ProxiedCluster) -> None:
    """Messages take 150 ms each way, and are served all the same."""
    for one in cluster.members:
        for two in others(cluster, one):
            cluster.slow(one, two, delay_seconds=0.15)
    await served(cluster, cluster.members)
    await asyncio.sleep(0.5)
    cluster.heal()


async def packets_lost(cluster: NamespacedCluster) -> None:
    """One packet of ten is dropped, in every direction."""
    for one in cluster.members:
        for two in others(cluster, one):
            cluster.lose(one, two, percent=10)
    await served(cluster, cluster.members)
    await asyncio.sleep(0.5)
    cluster.heal()


async def test_partitions_through_proxies(tmp_path: Path) -> None:
    async with ProxiedCluster(tmp_path, 3) as cluster, under_load(cluster, 1, MIX):
        await leader_deaf(cluster)
        await leader_mute(cluster)
        await follower_deaf(cluster)
        await followers_apart(cluster)
        await connections_dead(cluster)
        await everything_late(cluster)


@pytest.mark.privileged
async def test_partitions_of_network_namespaces(tmp_path: Path) -> None:
    async with NamespacedCluster(tmp_path, 3) as cluster, under_load(cluster, 2, MIX):
        await leader_alone(cluster)
        await leader_deaf(cluster)
        await leader_mute(cluster)
        await packets_lost(cluster)
