"""Run seeds: `python -m tests.simulation.run --seeds 500`; one: `--seed 17 --story`.

A seed first runs its faults under load (safety), then everything is healed and has to work
(liveness), then the history is judged. The first breach ends the seed with its story and the line
that repeats it.
"""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from raftkv.errors import RaftkvError
from raftkv.machine.records import CAUSE_EXPIRED, USER_KEYS
from raftkv.server.membership import everybody
from raftkv.simulation import Nemesis, SimCluster, SimMember, World
from raftkv.simulation.world import SECOND_US, Buggify
from tests.linearizability.check import check_history
from tests.linearizability.history import (
    TO_THE_END,
    Outcome,
    Put,
    WatchEvent,
    WatchLog,
    WatchResponse,
)
from tests.linearizability.lease_oracle import LeaseEnd, check_leases
from tests.linearizability.lock_oracle import check_locks
from tests.linearizability.translation import key_record
from tests.linearizability.watch_oracle import check_watches
from tests.simulation.operations import enlarge, free_space, short_of_space
from tests.simulation.profile import Profile, draw
from tests.simulation.restoring import check_restores
from tests.simulation.rights import GuardedDoor
from tests.simulation.workload import Workload
from tests.support.commit import commit

SEEDS_THAT_SEE_ALL: Final = 20
SEEDS_THAT_SEE_OPERATION: Final = 150
SEEN_OF_OPERATION: Final = (
    "NOSPACE alarm", "NOSPACE alarm cleared", "write refused for want of space",
    "delete while out of space", "quota set", "write refused by a quota", "level agreed",
    "old program refused by a peer", "old program refused by its files", "shrunk", "base",
    "learner promoted", "learner promoted by the leader", "piece of the archive", "restore",
)  # fmt: skip
"""See `raftkv.simulation.promises`."""
LIVENESS_SECONDS: Final = 120
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
    seen: Counter[str] = field(default_factory=Counter)
    """What operations brought, see `raftkv.simulation.promises`."""
    digest: str = ""

    def add(self, other: Result) -> None:
        """Count `other` in."""
        for name in (
            "seeds", "simulated_us", "steps", "checks", "operations", "answered", "watch_events",
            "entries",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults.update(other.faults)
        self.seen.update(other.seen)


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
        rights = profile.rights
        self.guarded = (
            None if rights is None else GuardedDoor(self.cluster, rights, profile.mix.clients)
        )
        self.workload = Workload(self.cluster, profile.mix, self.guarded)
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
        if self.guarded is not None:
            self.guarded.start()
        self.nemesis.start()
        self.world.run(self.profile.fault_seconds)

    def _liveness(self) -> None:
        self.nemesis.heal()
        self.world.run(3)
        self.workload.stop()
        if self.guarded is not None:
            self.guarded.stop()
        self._until("every request has an outcome", lambda: self.workload.open == 0)
        self._until("one leader, and equal logs and states", self._agreed)
        if short_of_space(self._living()):
            self._make_space()
        for member in self._living():
            self._fresh_write(member)
        self._until("one leader, and equal logs and states", self._agreed)
        self.world.run(2)
        self._until("one leader, and equal logs and states", self._agreed)

    def _make_space(self) -> None:
        """Alarms end by themselves once there is space again."""
        for _ in range(3):
            free_space(self.workload)
            self.world.run(3)
        if short_of_space(self._living()):
            enlarge(self._living())
        self._until("there is space", lambda: not short_of_space(self._living()))
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
        outcomes: list[Outcome] = [Outcome.REFUSED]

        def served() -> bool:
            if outcomes[-1] is not Outcome.OK and self.workload.open == 0:
                self.workload.send(
                    -1,
                    Put(b"fresh", self.workload.value()),
                    lambda outcome, result: outcomes.append(outcome),
                    member=member,
                )
            return outcomes[-1] is Outcome.OK

        self._until(f"a write through {member.name} is served", served)

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        until_us = self.world.now_us + LIVENESS_SECONDS * SECOND_US
        while not holds():
            if self.world.now_us >= until_us:
                self._fail(f"liveness: not within {LIVENESS_SECONDS} s of healing: {what}")
            self.world.run(0.1)

    def _judge(self) -> None:
        leader = self.cluster.leader()
        assert leader is not None
        workload, machine = self.workload, leader.machine
        operations = workload.history.operations
        everything = self._truth()
        # What was applied bounds what unknown operations can have done, and is itself judged.
        report = check_history(
            operations,
            final=tuple(key_record(record) for record in machine.range(b"", b"").records),
            final_revision=machine.revision,
            watches=[everything, *workload.watch_logs],
        ).check()
        violations = check_watches(
            workload.watch_logs, report.truth, compacted=machine.compact_revision
        )
        violations += check_leases(operations, self._lease_ends())
        violations += check_locks(workload.holdings, workload.effects)
        wrong = [str(one) for one in violations]
        if self.guarded is not None:
            self.guarded.oracle.compare(machine)
            wrong += self.guarded.oracle.violations
        if wrong:
            self._fail("\n\n".join(wrong[:3]))
        check_restores(self.cluster, self.seed)

    def _lease_ends(self) -> list[LeaseEnd]:
        """The leases that ran out, and when, from the events that the members applied."""
        ends: dict[int, LeaseEnd] = {}
        leases: dict[bytes, int] = {}
        for now_us, event in self.cluster.events:
            if event.keyspace != USER_KEYS:
                continue
            lease = leases.pop(event.key, 0)
            if not event.deleted:
                leases[event.key] = event.lease
            elif event.cause == CAUSE_EXPIRED:
                ends.setdefault(lease, LeaseEnd(lease, event.revision, now_us))
        return list(ends.values())

    def _truth(self) -> WatchLog:
        """Every event of user keys as the members applied them."""
        responses: list[WatchResponse] = []
        for revision, happened in groupby(self.cluster.events, lambda one: one[1].revision):
            events = list(happened)
            told = tuple(
                WatchEvent("delete" if event.deleted else "put", key_record(event.record))
                for _, event in events
                if event.keyspace == USER_KEYS
            )
            if told:
                responses.append(WatchResponse(events[0][0], revision, told))
        return WatchLog(b"", TO_THE_END, 1, False, frozenset(), responses)

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
            seen=+self.cluster.promises.seen,
            digest=world.digest(),
        )


# -- many seeds ------------------------------------------------------------------------------------


def run_many(
    seeds: Iterable[int], *, jobs: int, told: Callable[[int, Result | str], None]
) -> tuple[Result, dict[int, str]]:
    """Run seeds in `jobs` processes; the sum of what they did, and why which seed failed."""
    total, failed = Result(seeds=0), dict[int, str]()
    context = multiprocessing.get_context("fork")
    with context.Pool(jobs, _begin_worker, maxtasksperchild=200) as pool:
        for seed, outcome in pool.imap_unordered(_attempt, seeds):
            if isinstance(outcome, Result):
                total.add(outcome)
            else:
                failed[seed] = outcome
            told(seed, outcome)
    return total, failed


def _begin_worker() -> None:
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()


def _attempt(seed: int) -> tuple[int, Result | str]:
    try:
        return seed, run_seed(seed)
    except SimulationFailure as failure:
        return seed, failure.reason
    except Exception as error:
        return seed, f"the simulation itself failed: {error!r}"
    finally:
        # Between two seeds all of it is garbage; within one hardly anything is.
        gc.collect()


def summary(total: Result, seconds: float) -> dict[str, Any]:
    """The figures that are published."""
    return {
        "commit": commit(),
        "seeds": total.seeds,
        "simulated_hours": round(total.simulated_us / SECOND_US / 3600, 1),
        "events": total.steps,
        "invariant_checks": total.checks,
        "operations": total.operations,
        "operations_answered": total.answered,
        "watch_events": total.watch_events,
        "log_entries": total.entries,
        "faults": dict(sorted(total.faults.items())),
        "seen": dict(sorted(total.seen.items())),
        "seconds": round(seconds),
    }


def blind_spots(total: Result) -> list[str]:
    """What many seeds must have seen some of, and have not; a bench that judges nothing passes."""
    if total.seeds < SEEDS_THAT_SEE_ALL:
        return []
    seen = {
        "answered operations": total.answered,
        "watch events": total.watch_events,
        "log entries": total.entries,
        "checks of the invariants": total.checks,
        "faults": sum(total.faults.values()),
        "changes of rights": total.faults["rules changed"],
        "requests that were denied a right": total.faults["right denied"],
    }
    if total.seeds >= SEEDS_THAT_SEE_OPERATION:
        seen |= {name: total.seen[name] for name in SEEN_OF_OPERATION}
    return [name for name, count in seen.items() if not count]


def show(total: Result, seconds: float) -> None:
    """The figures as tables."""
    console = Console()
    table = Table(title="Simulation", show_header=False)
    for name, value in summary(total, seconds).items():
        if name not in ("faults", "seen"):
            table.add_row(name.replace("_", " "), f"{value:,}" if value != commit() else value)
    faults = Table("fault", "injected")
    for kind, count in sorted(total.faults.items()):
        faults.add_row(kind, f"{count:,}")
    seen = Table("of operations", "seen")
    for kind, count in sorted(total.seen.items()):
        seen.add_row(kind, f"{count:,}")
    console.print(table)
    console.print(faults)
    console.print(seen)


def tell_failure(seed: int) -> None:
    """Run a failed seed again with its story, and say how to repeat it."""
    try:
        run_seed(seed, story=True)
    except SimulationFailure as failure:
        for line in failure.story[-60:]:
            print(line)
        print(f"\n{failure.reason}\n")
    print(f"seed {seed}, commit {commit()}; repeat it with:")
    print(f"  python -m tests.simulation.run --seed {seed} --story")


@click.command()
@click.option("--seeds", default=500, help="How many seeds.")
@click.option("--first", default=0, help="The first of them.")
@click.option("--seed", type=int, help="Just this one.")
@click.option("--story", is_flag=True, help="With --seed: print all that happened.")
@click.option("--hours", type=float, help="Go on with new seeds for so long instead.")
@click.option("--jobs", default=os.cpu_count() or 1, help="Processes.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures there, as JSON.")
def main(
    seeds: int,
    first: int,
    seed: int | None,
    story: bool,
    hours: float | None,
    jobs: int,
    out: Path | None,
) -> None:
    """Simulate clusters by the seed."""
    logging.disable(logging.CRITICAL)
    started = time.monotonic()
    if seed is not None:
        _run_one(seed, story=story)
        return
    ended = started + hours * 3600 if hours is not None else None
    numbers = _until(first, ended) if ended is not None else iter(range(first, first + seeds))
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[failed]} failed"))
    with Progress(*columns) as bar:
        task = bar.add_task("seeds", total=None if hours else seeds, failed=0)
        failures = 0

        def told(number: int, outcome: Result | str) -> None:
            nonlocal failures
            if isinstance(outcome, str):
                failures += 1
                bar.console.print(f"seed {number}: {outcome.splitlines()[0]}")
            bar.update(task, advance=1, failed=failures)

        total, failed = run_many(numbers, jobs=jobs, told=told)
    seconds = time.monotonic() - started
    show(total, seconds)
    if out is not None:
        out.write_text(json.dumps(summary(total, seconds) | {"failed": failed}, indent=1) + "\n")
    if failed:
        tell_failure(min(failed))
        sys.exit(1)
    if blind := blind_spots(total):
        print(f"nothing was proven: {total.seeds} seeds saw no {', no '.join(blind)}")
        sys.exit(1)


def _until(first: int, ended: float) -> Iterator[int]:
    number = first
    while time.monotonic() < ended:
        yield number
        number += 1


def _run_one(seed: int, *, story: bool) -> None:
    try:
        result = run_seed(seed, story=story)
    except SimulationFailure as failure:
        print("\n".join(failure.story))
        print(f"\n{failure.reason}\n\nseed {seed}, commit {commit()}")
        sys.exit(1)
    show(result, 0)
    print(f"digest {result.digest}")


if __name__ == "__main__":
    main()
