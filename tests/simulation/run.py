"""Run seeds: `python -m tests.simulation.run --seeds 500`; one: `--seed 17 --story`.

A seed first runs its faults under load (safety), then everything is healed and has to work
(liveness), then the history is judged. The first breach ends the seed with its story and the line
that repeats it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

from raftkv.errors import RaftkvError
from raftkv.machine import commands
from raftkv.machine.records import USER_KEYS
from raftkv.machine.results import PutResult
from raftkv.server.membership import everybody
from raftkv.simulation import Nemesis, SimCluster, SimMember, World
from raftkv.simulation.world import SECOND_US, Buggify
from tests.linearizability.history import WatchEvent, WatchLog, WatchResponse
from tests.linearizability.witness import check_witness
from tests.simulation.doors import key_record
from tests.simulation.profile import Profile, draw
from tests.simulation.workload import ALL_KEYS, Workload

LIVENESS_SECONDS = 120
"""Simulated time within which a healed cluster must agree and serve. Leases, time-outs of five
seconds and snapshot transfers that are given up after three take their part of it."""


class SimulationFailure(AssertionError):
    """A seed has shown that a promise is not kept."""

    def __init__(self, seed: int, reason: str, story: list[str]) -> None:
        super().__init__(reason)
        self.seed = seed
        self.reason = reason
        self.story = story


@dataclass(slots=True)
class Result:
    """What one seed did, or several together."""

    seeds: int = 1
    simulated_us: int = 0
    steps: int = 0
    checks: int = 0
    operations: int = 0
    answered: int = 0
    watch_events: int = 0
    entries: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    digest: str = ""

    def add(self, other: Result) -> None:
        """Count `other` in."""
        for name in (
            "seeds", "simulated_us", "steps", "checks", "operations", "answered", "watch_events",
            "entries",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults.update(other.faults)


def run_seed(seed: int, *, story: bool = False, profile: Profile | None = None) -> Result:
    """Run one seed to its end. Raises SimulationFailure."""
    return _Run(seed, profile or draw(seed), story=story).run()


class _Run:
    def __init__(self, seed: int, profile: Profile, *, story: bool) -> None:
        self.seed = seed
        self.profile = profile
        self.world = World(seed, story=story)
        self.cluster = SimCluster(self.world, profile.size, settings=profile.settings_of)
        self.cluster.network.settings = profile.links
        self.workload = Workload(self.cluster, profile.mix)
        self.nemesis = Nemesis(self.cluster, profile.faults, profile.fault_interval_us)

    def run(self) -> Result:
        try:
            with Buggify(self.world, self.profile.buggify):
                self._safety()
            self._liveness()
            self._judge()
        except SimulationFailure:
            raise
        except (RaftkvError, AssertionError, ArithmeticError, LookupError, TypeError) as error:
            self._fail(f"{type(error).__name__}: {error}", error)
        return self._result()

    def _safety(self) -> None:
        self.world.note("world", f"seed {self.seed}: {self.profile}")
        self.cluster.start()
        self.workload.start()
        self.nemesis.start()
        self.world.run(self.profile.fault_seconds)

    def _liveness(self) -> None:
        self.nemesis.heal()
        self.world.run(3)
        self.workload.stop()
        self._until("every request has an outcome", lambda: self.workload.open == 0)
        self._until("one leader, and equal logs and states", self._agreed)
        for member in self._living():
            self._fresh_write(member)
        self._until("one leader, and equal logs and states", self._agreed)
        self.world.run(2)
        self._until("one leader, and equal logs and states", self._agreed)

    def _living(self) -> list[SimMember]:
        """Members of the configuration in force."""
        leader = self.cluster.leader()
        if leader is None:
            return []
        return [self.cluster.members[one] for one in sorted(everybody(leader.node.conf))]

    def _agreed(self) -> bool:
        leader, living = self.cluster.leader(), self._living()
        if leader is None or leader not in living or not all(one.up for one in living):
            return False
        index = leader.node.last_index
        return all(
            one.node.term == leader.node.term
            and one.node.leader == leader.member_id
            and one.node.commit_index == index
            and one.machine.applied_index == index
            and one.machine.state_hash == leader.machine.state_hash
            for one in living
        )

    def _fresh_write(self, member: SimMember) -> None:
        """A write through this member is served."""
        answers: list[Any] = []

        def attempt() -> bool:
            if answers and isinstance(answers[-1], PutResult):
                return True
            if not answers or answers[-1] is not None:
                answers.append(None)
                place = len(answers) - 1

                def done(answer: Any) -> None:
                    answers[place] = answer

                member.propose(commands.put(b"fresh", b"%d" % member.member_id), done)
            return False

        self._until(f"a write through {member.name} is served", attempt)

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        until_us = self.world.now_us + LIVENESS_SECONDS * SECOND_US
        while not holds():
            if self.world.now_us >= until_us:
                self._fail(f"liveness: not within {LIVENESS_SECONDS} s of healing: {what}")
            self.world.run(0.1)

    def _judge(self) -> None:
        leader = self.cluster.leader()
        assert leader is not None
        final = [key_record(record) for record in leader.machine.range(*ALL_KEYS).records]
        truth = self._truth()
        everything = WatchLog(*ALL_KEYS, 1, False, frozenset(), truth)
        # What was applied bounds what unknown operations can have done, and is itself judged.
        check_witness(
            self.workload.history.operations,
            final=final,
            watches=[everything, *self.workload.watch_logs],
        ).check()

    def _truth(self) -> list[WatchResponse]:
        """Every event of the workload's keys, as the members applied them."""
        first, last = ALL_KEYS
        responses: list[WatchResponse] = []
        for revision, events in groupby(self.cluster.events, attrgetter("revision")):
            told = tuple(
                WatchEvent("delete" if event.deleted else "put", key_record(event.record))
                for event in events
                if event.keyspace == USER_KEYS and first <= event.key < last
            )
            if told:
                responses.append(WatchResponse(0, revision, told))
        return responses

    def _fail(self, reason: str, cause: BaseException | None = None) -> None:
        told = list(self.world.story or ())
        raise SimulationFailure(self.seed, reason, told) from cause

    def _result(self) -> Result:
        workload, world = self.workload, self.world
        faults = Counter(world.faults)
        for member in self.cluster.members.values():
            for kind, count in member.disk.injected.items():
                faults[f"disk: {kind}"] += count
        operations = workload.history.operations
        return Result(
            simulated_us=world.now_us,
            steps=world.steps,
            checks=self.cluster.invariants.checks,
            operations=len(operations),
            answered=sum(operation.answer is not None for operation in operations),
            watch_events=sum(
                len(response.events) for log in workload.watch_logs for response in log.responses
            ),
            entries=self.cluster.invariants.committed_index,
            faults=+faults,
            digest=world.digest(),
        )
