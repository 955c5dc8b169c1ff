"""What goes wrong in a simulated cluster, when and for how long: all of it drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from raftkv.simulation.cluster import SimCluster
from raftkv.simulation.disk import DiskFaults
from raftkv.simulation.member import SimMember
from raftkv.simulation.operations import OPERATIONS, end_downgrade
from raftkv.simulation.world import SECOND_US

MEMBERS_MAX = 7
VOTERS_MIN = 2
WALL_CLOCK_MS_MAX = 150_000
"""Idempotency keys are kept for ten minutes of the leaders' wall clocks; they are promised to work
only while those agree better than that."""

Fault = Callable[["Nemesis"], None]


class Nemesis:
    """Breaks things at random moments until it is told to heal them.

    `kinds` are names of `FAULTS` and `OPERATIONS`; `interval_us` is the mean time between two of
    them. No fault takes more than Raft promises to survive: disks lose what was not synced, never
    what was.
    """

    def __init__(self, cluster: SimCluster, kinds: Sequence[str], interval_us: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        known = FAULTS | OPERATIONS
        self._kinds = [(kind, known[kind]) for kind in kinds]
        self._interval_us = interval_us
        self._epoch = 0
        self._asked_members = False

    def start(self) -> None:
        """Begin."""
        self._epoch += 1
        if self._kinds:
            self._schedule()

    def heal(self) -> None:
        """Stop, and repair everything: links, disks, clocks; whatever is down is started."""
        self._epoch += 1
        world, cluster = self.world, self.cluster
        world.note("nemesis", "heals everything")
        cluster.network.heal()
        for member in cluster.members.values():
            member.disk.faults = None
            member.disk.capacity_bytes = 1 << 40
            member.settings = replace(member.settings, slow_sync=0.0)
            if member.paused_until_us > world.now_us:
                member.resume()
            end_downgrade(member)
            cluster.restart(member)

    def _schedule(self) -> None:
        delay_us = int(self.world.random.expovariate(1 / self._interval_us))
        self.world.after(delay_us, self._strike, self._epoch)

    def _strike(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        kind, fault = self.world.random.choice(self._kinds)
        before = self.world.faults[kind]
        fault(self)
        if self.world.faults[kind] == before and self.world.story is not None:
            self.world.note("nemesis", f"finds nothing for {kind}")
        self._schedule()

    def later(self, delay_us: int, callback: Callable[..., None], *arguments: Any) -> None:
        """Call then, unless everything is healed before."""
        self.world.after(delay_us, self._if_still, self._epoch, callback, arguments)

    def _if_still(self, epoch: int, callback: Callable[..., None], arguments: Any) -> None:
        if epoch == self._epoch:
            callback(*arguments)

    def duration_us(self, least: float = 0.1, most: float = 6.0) -> int:
        """How long a fault lasts; seconds in, short ones more often."""
        share: float = self.world.random.random() ** 2
        return int((least + (most - least) * share) * SECOND_US)

    def some_member(self) -> SimMember | None:
        """A random member whose process runs."""
        up = self.cluster.up()
        return self.world.random.choice(up) if up else None

    def some_sides(self) -> tuple[list[int], list[int]]:
        """The members in two random groups, neither empty unless there is only one member."""
        ids = [one for one, member in self.cluster.members.items() if not member.gone]
        self.world.random.shuffle(ids)
        cut = self.world.random.randrange(1, len(ids)) if len(ids) > 1 else len(ids)
        return ids[:cut], ids[cut:]

    def mend_later(self, cuts: Sequence[tuple[int, int]]) -> None:
        """Undo cuts after a while."""

        def mend() -> None:
            self.world.note("network", f"mends {_arrows(cuts)}")
            for source, target in cuts:
                self.cluster.network.mend(source, target)

        self.later(self.duration_us(0.3), mend)

    def down_for_a_while(self, member: SimMember) -> None:
        """Start `member` again later; now and then at once, or only after a long time."""
        self.later(self.duration_us(0.0, 8.0), self.cluster.restart, member)

    def ask_members(self, ask: Callable[[Callable[[Any], None]], Any]) -> None:
        """Have one membership change under way at a time."""
        self._asked_members = True

        def done(answer: Any) -> None:
            self._asked_members = False
            self.world.note("operator", f"hears of the change: {answer!r}")

        ask(done)

    @property
    def members_settled(self) -> bool:
        """Whether no change of membership was asked for that has no answer yet."""
        return not self._asked_members


def _kill(nemesis: Nemesis) -> None:
    member = nemesis.some_member()
    if member is not None:
        nemesis.world.faults["kill"] += 1
        member.crash()
        nemesis.down_for_a_while(member)


def _kill_leader(nemesis: Nemesis) -> None:
    leader = nemesis.cluster.leader()
    if leader is not None:
        nemesis.world.faults["kill leader"] += 1
        leader.crash()
        nemesis.down_for_a_while(leader)


def _kill_at_tables(nemesis: Nemesis) -> None:
    member = nemesis.some_member()
    if member is not None:
        transactions = nemesis.world.random.randrange(4)
        nemesis.world.fault(
            "kill at the tables", member.name, f"is killed after {transactions} transactions"
        )
        member.tables.kill_after(transactions)


def _kill_all(nemesis: Nemesis) -> None:
    nemesis.world.faults["kill all"] += 1
    for member in nemesis.cluster.up():
        member.crash()
        nemesis.down_for_a_while(member)


def _power(nemesis: Nemesis) -> None:
    chance = nemesis.world.random
    member = chance.choice([one for one in nemesis.cluster.members.values() if not one.gone])
    nemesis.world.faults["power cut"] += 1
    member.crash(power=True)
    nemesis.down_for_a_while(member)


def _power_all(nemesis: Nemesis) -> None:
    nemesis.world.faults["power cut of all"] += 1
    for member in nemesis.cluster.members.values():
        if not member.gone:
            member.crash(power=True)
            nemesis.down_for_a_while(member)


def _stop(nemesis: Nemesis) -> None:
    member = nemesis.some_member()
    if member is not None:
        nemesis.world.faults["clean stop"] += 1
        member.stop()
        nemesis.down_for_a_while(member)


def _pause(nemesis: Nemesis) -> None:
    member = nemesis.some_member()
    if member is not None:
        duration_us = nemesis.duration_us()
        nemesis.world.fault("pause", member.name, f"stands still for {duration_us / 1e6:.3f} s")
        member.pause(duration_us)


def _partition(nemesis: Nemesis) -> None:
    left, right = nemesis.some_sides()
    nemesis.world.fault("partition", "network", f"parts {left} from {right}")
    nemesis.mend_later(nemesis.cluster.network.partition(left, right))


def _isolate_leader(nemesis: Nemesis) -> None:
    leader = nemesis.cluster.leader()
    if leader is not None:
        others = [one for one in nemesis.cluster.members if one != leader.member_id]
        nemesis.world.fault("leader isolated", "network", f"isolates the leader {leader.name}")
        nemesis.mend_later(nemesis.cluster.network.partition([leader.member_id], others))


def _one_way(nemesis: Nemesis) -> None:
    left, right = nemesis.some_sides()
    cuts = [(source, target) for source in left for target in right]
    if cuts:
        nemesis.world.fault("one-way cut", "network", f"loses {_arrows(cuts)}")
        for source, target in cuts:
            nemesis.cluster.network.cut(source, target)
        nemesis.mend_later(cuts)


def _clog(nemesis: Nemesis) -> None:
    left, right = nemesis.some_sides()
    if right:
        source, target = left[0], right[0]
        duration_us = nemesis.duration_us()
        nemesis.world.fault(
            "clog", "network", f"holds {source}->{target} back for {duration_us / 1e6:.3f} s"
        )
        nemesis.cluster.network.clog(source, target, nemesis.world.now_us + duration_us)


def _disk_errors(nemesis: Nemesis) -> None:
    member = nemesis.some_member()
    if member is None:
        return
    chance = nemesis.world.random
    kind = chance.choice(("read_error", "write_error", "sync_error"))
    nemesis.world.fault("disk errors", member.name, f"has a disk with {kind}s")
    member.disk.faults = DiskFaults(**{kind: chance.choice((0.01, 0.1, 0.5))})

    def repair() -> None:
        member.disk.faults = None

    nemesis.later(nemesis.duration_us(), repair)


def _disk_full(nemesis: Nemesis) -> None:
    member = nemesis.some_member()
    if member is None:
        return
    free = nemesis.world.random.choice((0, 3_000, 50_000))
    nemesis.world.fault("disk full", member.name, f"has {free} bytes of disk left")
    disk = member.disk
    disk.capacity_bytes -= disk.free_bytes("/") - free

    def repair() -> None:
        member.world.note(member.name, "has a larger disk")
        disk.capacity_bytes = 1 << 40

    nemesis.later(nemesis.duration_us(), repair)


def _slow_disk(nemesis: Nemesis) -> None:
    member = nemesis.some_member()
    if member is None:
        return
    nemesis.world.fault("slow disk", member.name, "has a slow disk")
    member.settings = replace(member.settings, slow_sync=nemesis.world.random.random())

    def repair() -> None:
        member.settings = replace(member.settings, slow_sync=0.0)

    nemesis.later(nemesis.duration_us(0.5, 10.0), repair)


def _wall_clock(nemesis: Nemesis) -> None:
    member = nemesis.some_member()
    if member is not None:
        wrong_ms = nemesis.world.random.randrange(-WALL_CLOCK_MS_MAX, WALL_CLOCK_MS_MAX)
        nemesis.world.fault("wall clock jump", member.name, f"has a wall clock {wrong_ms} ms off")
        member.wall_wrong_ms = wrong_ms


def _transfer(nemesis: Nemesis) -> None:
    leader, target = nemesis.cluster.leader(), nemesis.some_member()
    if leader is not None and target is not None:
        nemesis.world.fault("transfer", leader.name, f"is asked to hand over to {target.name}")
        leader.transfer_leader(target.member_id)


def _membership(nemesis: Nemesis) -> None:
    through = nemesis.some_member()
    if through is None or not nemesis.members_settled:
        return
    cluster, chance = nemesis.cluster, nemesis.world.random
    conf = through.node.conf
    voters, learners = list(conf.voters), list(conf.learners)
    living = [member for member in cluster.members.values() if not member.gone]
    choices: list[str] = []
    if len(living) < MEMBERS_MAX:
        choices += ["add learner", "add voter"]
    if learners:
        choices += ["promote", "remove learner"]
    if len(voters) > VOTERS_MIN:
        choices += ["remove voter"] * (1 + 2 * (len(voters) > 3))
    if not choices:
        return
    choice = chance.choice(choices)
    nemesis.world.faults["membership"] += 1
    if choice.startswith("add"):
        learner = choice == "add learner"
        nemesis.ask_members(lambda done: cluster.add_member(through, learner=learner, done=done))
    elif choice == "promote":
        target = chance.choice(learners)
        nemesis.ask_members(lambda done: cluster.promote(through, target, done))
    else:
        target = chance.choice(learners if choice == "remove learner" else voters)
        if target in cluster.members:
            nemesis.ask_members(lambda done: cluster.remove_member(through, target, done))


def _arrows(cuts: Sequence[tuple[int, int]]) -> str:
    return " ".join(f"{source}->{target}" for source, target in cuts)


FAULTS: dict[str, Fault] = {
    "kill": _kill,
    "kill leader": _kill_leader,
    "kill at the tables": _kill_at_tables,
    "kill all": _kill_all,
    "power cut": _power,
    "power cut of all": _power_all,
    "clean stop": _stop,
    "pause": _pause,
    "partition": _partition,
    "leader isolated": _isolate_leader,
    "one-way cut": _one_way,
    "clog": _clog,
    "disk errors": _disk_errors,
    "disk full": _disk_full,
    "slow disk": _slow_disk,
    "wall clock jump": _wall_clock,
    "transfer": _transfer,
    "membership": _membership,
}
"""Every kind of fault, by the name under which it is counted."""
