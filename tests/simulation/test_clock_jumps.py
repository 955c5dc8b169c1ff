"""Wall clocks that jump: leases and leadership do not hear of it."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.errors import RaftkvError
from raftkv.machine import commands
from raftkv.simulation import MemberSettings, SimCluster, World

DAY_MS = 24 * 60 * 60 * 1000


@pytest.mark.parametrize("jump_ms", [DAY_MS, -DAY_MS])
@pytest.mark.parametrize("seed", range(4))
def test_a_jump_of_the_leaders_wall_clock_ends_no_lease_and_no_term(
    seed: int, jump_ms: int
) -> None:
    world = World(seed)
    cluster = SimCluster(world, 3, settings=lambda member_id: MemberSettings())
    cluster.start()
    leader = cluster.wait_for_leader()
    answers: list[Any] = []
    leader.propose(commands.lease_grant(7, 20), answers.append)
    leader.propose(commands.put(b"held", b"v", lease=7), answers.append)
    world.run(2)
    assert len(answers) == 2 and not any(isinstance(each, RaftkvError) for each in answers)
    term = leader.node.term
    leader.wall_wrong_ms += jump_ms
    # A write carries the leader's clock to all members.
    leader.propose(commands.put(b"after", b"v"), answers.append)
    world.run(10)
    assert leader.leads and leader.node.term == term
    assert not isinstance(answers[2], RaftkvError)
    assert all(one.machine.lease(7) is not None for one in cluster.members.values())
    world.run(15)
    assert all(one.machine.lease(7) is None for one in cluster.members.values()), (
        "it still ends when its time is over"
    )
