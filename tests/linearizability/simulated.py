"""Correct histories by the thousand: clients of one single copy, with delays, loss and leases.

The copy is the real state machine, so what the checkers accept is judged against it, while the
model they judge by is another. Everything is drawn from one seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Final, Literal

from raftkv.errors import LeaseNotFound, Refused
from tests.linearizability.history import (
    TO_THE_END,
    Answer,
    Compact,
    Compare,
    Delete,
    Grant,
    History,
    KeepAlive,
    KeyRecord,
    LeaseAnswer,
    Outcome,
    Put,
    Range,
    RangeAnswer,
    Request,
    Revoke,
    Txn,
    WatchEvent,
    WatchLog,
    WatchResponse,
)
from tests.linearizability.model import holds_key
from tests.linearizability.single_copy import SingleCopy

MS: Final = 1000
TIMEOUT_US: Final = 50 * MS
TTL_SECONDS: Final = 2
TTL_US: Final = TTL_SECONDS * 1_000_000
EXPIRY_LAG_US: Final = 300 * MS


@dataclass(frozen=True)
class Profile:
    """What kind of history."""

    clients: int = 5
    operations: int = 200
    keys: int = 5
    unknown: float = 0.05
    """Share of operations whose outcome stays unknown; half of them happen."""
    refused: float = 0.02
    leases: bool = True
    txns: bool = True
    intervals: bool = True
    serializable: bool = True
    compactions: bool = True
    think_us: int = 20 * MS
    final: bool = True


PLAIN: Final = Profile()
ONE_KEY: Final = Profile(
    keys=1, leases=False, intervals=False, serializable=False, compactions=False
)


@dataclass
class Simulated:
    """A history, and what truly happened."""

    history: History
    final: tuple[KeyRecord, ...]
    final_revision: int
    truth: list[WatchEvent]
    compacted: int
    end_us: int


def simulate(seed: int, profile: Profile = PLAIN, copy: SingleCopy | None = None) -> Simulated:
    """One run to its end, against the real machine or another copy."""
    return _World(seed, profile, SingleCopy() if copy is None else copy).run()


class _World:
    def __init__(self, seed: int, profile: Profile, copy: SingleCopy) -> None:
        self.rng = random.Random(seed)
        self.profile = profile
        self.copy = copy
        self.history = History()
        self.now_us = 0
        self.left = profile.operations
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.ticket = count()
        self.values = count(1)
        self.keys = [b"k%02d" % n for n in range(profile.keys)]
        self.known: dict[bytes, KeyRecord] = {}
        """What clients last heard of each key, for compares that may hold."""
        self.deadlines: dict[int, int] = {}
        self.leases: list[int] = []
        self.lease_ids = count(1)

    def at(self, delay_us: int, act: Callable[[], None]) -> None:
        heappush(self.events, (self.now_us + delay_us, next(self.ticket), act))

    def run(self) -> Simulated:
        for client in range(self.profile.clients):
            self.at(self.rng.randrange(10 * MS), lambda client=client: self.begin(client))  # type: ignore[misc]
        while self.events:
            self.now_us, _, act = heappop(self.events)
            act()
        machine = self.copy.machine
        return Simulated(
            self.history, self.copy.final(), machine.revision, self.copy.events,
            machine.compact_revision, self.now_us,
        )  # fmt: skip

    # -- one operation ----------------------------------------------------------------------------

    def begin(self, client: int) -> None:
        if self.left == 0:
            return
        self.left -= 1
        rng = self.rng
        request = self.request()
        token = self.history.begin(client, request, self.now_us)
        there, back = rng.randrange(1, 8 * MS), rng.randrange(1, 8 * MS)
        fate = rng.random()
        if fate < self.profile.unknown:
            self.lose(client, token, request, there)
        elif fate < self.profile.unknown + self.profile.refused:
            self.at(there, lambda: self.end(client, token, Outcome.REFUSED, None, "overloaded"))
        else:
            self.at(there, lambda: self.carry_out(client, token, request, back))

    def lose(self, client: int, token: int, request: Request, there: int) -> None:
        """The client gives up, or goes away; the request is lost, or happens, maybe much later."""
        rng = self.rng
        fate = rng.random()
        if fate < 0.25:
            self.at(there, lambda: self.apply_unheard(request))
        elif fate < 0.5:
            self.at(rng.randrange(there, 400 * MS), lambda: self.apply_unheard(request))
        if rng.random() < 0.5:
            self.at(TIMEOUT_US, lambda: self.end(client, token, Outcome.UNKNOWN, None, "timeout"))
        else:
            self.at(TIMEOUT_US, lambda: self.begin(client))

    def carry_out(self, client: int, token: int, request: Request, back: int) -> None:
        answer = self.try_apply(request)
        if isinstance(answer, Refused):
            code = answer.code
            self.at(back, lambda: self.end(client, token, Outcome.REFUSED, None, code))
        else:
            self.at(back, lambda: self.end(client, token, Outcome.OK, answer))

    def end(
        self, client: int, token: int, outcome: Outcome, answer: Answer | None, error: str = ""
    ) -> None:
        self.history.end(token, self.now_us, outcome, answer, error)
        if isinstance(answer, RangeAnswer):
            self.known.update((record.key, record) for record in answer.records)
        # Some go on at once, so that equal times occur.
        pause = self.rng.choice([0, self.rng.randrange(self.profile.think_us + 1)])
        self.at(pause, lambda: self.begin(client))

    # -- the copy ---------------------------------------------------------------------------------

    def try_apply(self, request: Request) -> Answer | Refused:
        try:
            return self.apply(request)
        except Refused as refused:
            return refused

    def apply_unheard(self, request: Request) -> None:
        self.try_apply(request)

    def apply(self, request: Request) -> Answer:
        if isinstance(request, Range) and request.serializable:
            machine = self.copy.machine
            oldest = max(machine.compact_revision, machine.revision - 10, 1)
            return self.copy.range(request, self.rng.randint(oldest, machine.revision))
        if isinstance(request, KeepAlive):
            return self.keep_alive(request.lease)
        answer = self.copy.apply(request)
        if isinstance(request, Grant) and isinstance(answer, LeaseAnswer):
            self.leases.append(answer.lease)
            self.renew(answer.lease)
        elif isinstance(request, Revoke):
            self.deadlines.pop(request.lease, None)
        return answer

    def keep_alive(self, lease: int) -> LeaseAnswer:
        if lease not in self.deadlines:
            raise LeaseNotFound("no such lease", lease=lease)
        self.renew(lease)
        return LeaseAnswer(lease, TTL_SECONDS, self.copy.machine.revision)

    def renew(self, lease: int) -> None:
        self.deadlines[lease] = deadline = self.now_us + TTL_US
        late = self.rng.randrange(EXPIRY_LAG_US)
        self.at(TTL_US + late, lambda: self.maybe_expire(lease, deadline))

    def maybe_expire(self, lease: int, deadline: int) -> None:
        if self.deadlines.get(lease) == deadline:
            del self.deadlines[lease]
            self.copy.expire(lease)

    # -- what clients ask -------------------------------------------------------------------------

    def request(self) -> Request:
        rng, profile = self.rng, self.profile
        dice = rng.random()
        if profile.leases and dice < 0.1:
            return self.lease_request()
        if profile.compactions and dice < 0.11:
            return Compact(max(1, self.copy.machine.revision - rng.randrange(20)))
        if profile.txns and dice < 0.28:
            return self.txn()
        if dice < 0.5:
            return self.read()
        if dice < 0.65:
            return self.delete()
        return self.put(rng.choice(self.keys))

    def put(self, key: bytes) -> Put:
        rng = self.rng
        lease = rng.choice(self.leases[-4:]) if self.leases and rng.random() < 0.3 else 0
        return Put(key, b"v%d" % next(self.values), lease, rng.random() < 0.2)

    def interval(self) -> tuple[bytes, bytes | None]:
        key = self.rng.choice(self.keys)
        if not self.profile.intervals or self.rng.random() < 0.6:
            return key, None
        return self.rng.choice([(key, TO_THE_END), (b"k", b"l"), (b"k", key)])

    def delete(self) -> Delete:
        return Delete(*self.interval(), want_previous=self.rng.random() < 0.3)

    def read(self) -> Range:
        rng = self.rng
        start, end = self.interval()
        serializable = self.profile.serializable and rng.random() < 0.2
        revision = 0
        if self.profile.compactions and not serializable and rng.random() < 0.1:
            revision = max(1, self.copy.machine.revision - rng.randrange(10))
        return Range(start, end, rng.choice([0, 0, 2]), serializable, revision)

    def lease_request(self) -> Request:
        rng = self.rng
        if not self.leases or rng.random() < 0.3:
            return Grant(next(self.lease_ids), TTL_SECONDS)
        lease = rng.choice(self.leases[-4:])
        return Revoke(lease) if rng.random() < 0.2 else KeepAlive(lease)

    def compare(self, key: bytes) -> Compare:
        rng = self.rng
        record = self.known.get(key)
        if record is None or rng.random() < 0.3:
            return Compare(key, "version", rng.choice(["=", ">"]), 0)
        target: Literal["value", "mod", "create", "version", "lease"] = rng.choice(
            ["value", "value", "mod", "create", "version", "lease"]
        )
        value = {
            "value": record.value,
            "mod": record.mod_revision,
            "create": record.create_revision,
            "version": record.version,
            "lease": record.lease,
        }[target]
        return Compare(key, target, rng.choice(["=", "=", "!=", "<", ">"]), value)  # type: ignore[arg-type]

    def txn(self, depth: int = 0) -> Txn:
        rng = self.rng
        keys = rng.sample(self.keys, min(len(self.keys), rng.randint(1, 2)))
        compares = tuple(self.compare(key) for key in keys)
        branches: list[tuple[Put | Delete | Range | Txn, ...]] = []
        for _ in range(2):
            operations: list[Put | Delete | Range | Txn] = []
            for key in rng.sample(self.keys, min(len(self.keys), rng.randint(0, 3))):
                put, delete = self.put(key), Delete(key, None, True)
                operations.append(rng.choice((put, put, delete, Range(key))))
            if self.profile.intervals and rng.random() < 0.2:
                operations.append(Range(b"k", b"l", rng.choice([0, 2])))
            if not operations and depth == 0 and rng.random() < 0.5:
                operations.append(self.txn(1))
            branches.append(tuple(operations))
        return Txn(compares, branches[0], branches[1])


# ---- watches ------------------------------------------------------------------------------------


def watch(seed: int, run: Simulated) -> tuple[WatchLog, int]:
    """A watch that was told the truth, and the revision up to which it was told everything."""
    rng = random.Random(seed)
    keys = sorted({event.record.key for event in run.truth}) or [b"k"]
    start = rng.choice(keys)
    end = rng.choice([None, TO_THE_END, TO_THE_END, b"l"])
    if rng.random() < 0.5:
        start, end = b"k", b"l"
    filters = rng.choice([frozenset(), frozenset(), frozenset({"put"}), frozenset({"delete"})])
    prev_kv = rng.random() < 0.5
    first = rng.choice([0, rng.randint(1, run.final_revision + 3)])
    log = WatchLog(start, end, first, prev_kv, filters, [])
    if 0 < first < run.compacted and rng.random() < 0.5:
        refused = WatchResponse(0, run.final_revision, (), False, run.compacted, True)
        log.responses.append(refused)
        return log, 0
    opened = rng.randint(1, run.final_revision)
    log.responses.append(WatchResponse(0, opened))
    mine = [
        event
        for event in run.truth
        if event.record.mod_revision >= (first or opened + 1)
        and holds_key(start, end, event.record.key)
        and event.kind not in filters
    ]
    _deliver(rng, run, log, mine, max(first - 1, opened if first == 0 else 0))
    return log, run.final_revision


def _deliver(
    rng: random.Random, run: Simulated, log: WatchLog, mine: list[WatchEvent], done: int
) -> None:
    while done < run.final_revision:
        done = min(run.final_revision, done + rng.choice([1, 1, 2, 5, 20]))
        due = [event for event in mine if event.record.mod_revision <= done]
        del mine[: len(due)]
        told = tuple(
            event if log.prev_kv else WatchEvent(event.kind, event.record) for event in due
        )
        if told:
            log.responses.append(WatchResponse(done, done, told))
        if rng.random() < 0.2:
            log.responses.append(WatchResponse(done, done, progress=True))
