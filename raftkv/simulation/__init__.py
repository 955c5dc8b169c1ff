"""Deterministic simulation of clusters: virtual time, one seed for everything, no asyncio.

A simulated member runs the production code of consensus, log, snapshots, recovery, machine, leases,
watches and pending requests. Only what surrounds it is made up: its disk (`SimDisk`), the network
(`SimNetwork`), its clocks and the moments at which things happen (`World`).

    world = World(seed=7)
    cluster = SimCluster(world, size=3)
    cluster.start()
    world.run(seconds=2)
    leader = cluster.leader()
    answers = []
    leader.propose(commands.put(b"key", b"value"), answers.append)
    world.run(seconds=1)

After every step `Invariants` checks what Raft promises. `Nemesis` breaks things, by the seed. The
same seed gives the same run, event by event, whatever PYTHONHASHSEED is.
"""

from raftkv.simulation.cluster import SimCluster
from raftkv.simulation.disk import SimDisk
from raftkv.simulation.invariants import Invariants
from raftkv.simulation.member import MemberSettings, SimMember
from raftkv.simulation.nemesis import Nemesis
from raftkv.simulation.network import LinkSettings, SimNetwork
from raftkv.simulation.world import World

__all__ = [
    "Invariants",
    "LinkSettings",
    "MemberSettings",
    "Nemesis",
    "SimCluster",
    "SimDisk",
    "SimMember",
    "SimNetwork",
    "World",
]
