"""The byte quota: warned of early, approached slowly, crossed by little, and left by itself."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from raftkv.errors import NoSpace, QuotaExceeded, RaftkvError
from raftkv.limits import KIB, MIB, SPACE_FREE_AT
from raftkv.machine import commands
from raftkv.machine.commands import AlarmKind
from raftkv.machine.quota_commands import quota_set
from raftkv.machine.quotas import QuotaKind
from raftkv.machine.results import PutResult
from raftkv.server.space import BATCH_COST, Space, cost
from raftkv.simulation import MemberSettings, SimCluster, SimMember, World
from raftkv.storage.backend import MemoryBackend

QUOTA = 4 * MIB
VALUE = 8 * KIB
NOTHING_UNDER_WAY = (0, 0)


class Filler:
    """Clients of all members that put as fast as they may."""

    def __init__(self, world: World, cluster: SimCluster, *, at_once: int = 40) -> None:
        self.world = world
        self.answers: list[Any] = []
        self.put_at_s: list[float] = []
        self.on = True
        self._number = 0
        for member in cluster.members.values():
            for _ in range(at_once):
                self._put(member)

    def _put(self, member: SimMember) -> None:
        self._number += 1
        number = self._number

        def done(answer: Any) -> None:
            self.answers.append(answer)
            if isinstance(answer, PutResult):
                self.put_at_s.append(self.world.now_us / 1e6)
            if self.on and not isinstance(answer, NoSpace):
                self.world.after(1, self._put, member)

        member.propose(commands.put(b"k%d" % number, bytes(VALUE)), done)


def cluster_of(size: int, *, seed: int = 1, quota: int = QUOTA) -> tuple[World, SimCluster]:
    world = World(seed=seed)
    settings = MemberSettings(quota_bytes=quota, snapshot_log_bytes=1 << 30)
    cluster = SimCluster(world, size, settings=lambda member_id: settings)
    cluster.start()
    cluster.wait_for_leader()
    return world, cluster


def alarmed(cluster: SimCluster) -> bool:
    return all(
        any(kind == AlarmKind.NOSPACE for kind, _ in member.machine.alarms)
        for member in cluster.members.values()
    )


def fill(world: World, cluster: SimCluster) -> Filler:
    filler = Filler(world, cluster)
    for _ in range(4_000):
        world.run(0.01)
        if alarmed(cluster) and any(isinstance(answer, NoSpace) for answer in filler.answers):
            break
    else:
        raise AssertionError("the quota was never reached")
    filler.on = False
    world.run(1)
    return filler


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_what_goes_over_the_quota_is_a_request_a_member(size: int, seed: int) -> None:
    world, cluster = cluster_of(size, seed=seed)
    fill(world, cluster)
    for member in cluster.members.values():
        used = member.opened.backend.used_bytes()
        assert QUOTA < used <= QUOTA + size * cost(VALUE + KIB, 1)


def test_writes_become_slower_before_they_are_refused() -> None:
    world, cluster = cluster_of(3)
    filler = fill(world, cluster)
    at = filler.put_at_s
    assert not any(
        isinstance(answer, RaftkvError) and not isinstance(answer, NoSpace)
        for answer in filler.answers
    )
    first, last = at[len(at) // 4] - at[0], at[-1] - at[-len(at) // 50]
    # The last fiftieth takes longer than the first quarter did.
    assert last > first
    assert all(member.replica.stats.batches_held_back for member in cluster.members.values())


def test_far_from_the_quota_nothing_is_held_back() -> None:
    world, cluster = cluster_of(3, quota=1 << 30)
    filler = Filler(world, cluster)
    world.run(2)
    filler.on = False
    world.run(1)
    assert len(filler.put_at_s) > 1_000
    assert not any(member.replica.stats.batches_held_back for member in cluster.members.values())


def test_deletes_and_compaction_pass_and_the_alarm_goes_by_itself() -> None:
    world, cluster = cluster_of(3)
    fill(world, cluster)
    leader = cluster.wait_for_leader()
    answers: list[Any] = []
    leader.propose(commands.put(b"more", b"x"), answers.append)
    leader.propose(commands.delete(b"k", b"l"), answers.append)
    world.run(1)
    assert isinstance(answers[0], NoSpace) and answers[1].deleted > 100
    leader.propose(commands.compact(leader.machine.revision), answers.append)
    world.run(5)
    for member in cluster.members.values():
        assert member.opened.backend.used_bytes() < QUOTA * SPACE_FREE_AT
        assert not member.machine.alarms
    leader.propose(commands.put(b"more", b"x"), answers.append)
    world.run(1)
    assert isinstance(answers[-1], PutResult)


def test_it_is_said_early_and_once_that_space_runs_low(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="raftkv.server.upkeep")
    world, cluster = cluster_of(1)
    member = cluster.wait_for_leader()

    def put(number: int) -> None:
        member.propose(commands.put(b"k%d" % number, bytes(100 * KIB)), lambda answer: None)
        world.run(0.5)

    number = 0
    while member.upkeep.space.used_bytes < QUOTA * 0.75:
        put(number := number + 1)
    assert not member.upkeep.space.low and "runs low" not in caplog.text
    while member.upkeep.space.used_bytes < QUOTA * 0.85:
        put(number := number + 1)
    assert member.upkeep.space.low and not member.machine.alarms
    assert caplog.text.count("space runs low") == 1
    member.propose(commands.delete(b"k", b"l"), lambda answer: None)
    world.run(0.5)
    member.propose(commands.compact(member.machine.revision), lambda answer: None)
    world.run(2)
    assert not member.upkeep.space.low
    assert caplog.text.count("no longer low") == 1


def test_what_others_may_have_under_way_is_reckoned_with() -> None:
    space = Space(MemoryBackend(), 1 << 30)
    many = [bytes(MIB)] * 4
    room = (((1 << 30) - BATCH_COST * 5) // 5 - cost(4 * MIB, 5)) // 3

    def fitting(size: int, commands: int) -> int:
        return space.fitting(many, 4 * MIB, under_way=(size, commands), members=5, alarms=())

    assert fitting(room - KIB, 1) == 4
    assert fitting(room + KIB, 1) == 0
    assert fitting(*NOTHING_UNDER_WAY) == 4


def test_while_writes_are_refused_nothing_is_held_back() -> None:
    backend = MemoryBackend()
    with backend.write() as writer:
        writer.put(1, b"k", bytes(MIB))
    space = Space(backend, MIB)
    many = [bytes(KIB)] * 9
    full = space.fitting(many, 9 * KIB, under_way=NOTHING_UNDER_WAY, members=1, alarms=())
    assert full == 1
    alarms = [(AlarmKind.NOSPACE, 1)]
    assert space.fitting(many, 9 * KIB, under_way=(KIB, 1), members=1, alarms=alarms) == 9


@pytest.mark.parametrize("seed", range(3))
def test_quotas_of_prefixes_hold_on_every_member_through_crashes_and_snapshots(seed: int) -> None:
    world = World(seed)
    settings = MemberSettings(snapshot_log_bytes=2_000, snapshot_catchup_entries=0)
    cluster = SimCluster(world, 3, settings=lambda member_id: settings)
    cluster.start()
    leader = cluster.wait_for_leader()
    refused: list[Any] = []

    def note(answer: Any) -> None:
        if isinstance(answer, QuotaExceeded):
            refused.append(answer)

    leader.propose(quota_set(QuotaKind.PREFIX, b"k", 20, 1_000), note)
    leader.propose(quota_set(QuotaKind.USER, b"ann", 10, 0), note)
    for number in range(300):
        member = world.random.choice([one for one in cluster.members.values() if one.up])
        key = b"k%d" % world.random.randrange(40)
        command = commands.put(key, bytes(world.random.randrange(60)))
        if world.chance(0.3):
            command = commands.delete(key)
        elif world.chance(0.5):
            command = commands.guarded(command, 1, "ann")
        member.propose(command, note)
        world.run(0.05)
        if number % 60 == 30:
            victim = world.random.choice(list(cluster.members.values()))
            victim.crash(power=world.chance(0.5))
            world.run(1)
            victim.start()
    world.run(10)
    assert refused
    assert len({one.machine.state_hash for one in cluster.members.values()}) == 1
    for member in cluster.members.values():
        prefix, ann = sorted(member.machine.quotas)
        found = member.machine.range(b"k", b"l").records
        assert prefix.keys == len(found) <= 20
        assert prefix.bytes == sum(len(one.key) + len(one.value) for one in found) <= 1_000
        assert 0 < ann.keys <= 10
    assert len({tuple(sorted(one.machine.quotas)) for one in cluster.members.values()}) == 1
