"""Clients of a simulated cluster: what they ask comes from the seed, what they hear is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raftkv.errors import (
    Compacted,
    InvalidAuthToken,
    InvariantViolation,
    OutcomeUnknown,
    PermissionDenied,
    RaftkvError,
)
from raftkv.machine.events import Event
from raftkv.machine.records import USER_KEYS
from raftkv.server.store import Done
from raftkv.server.watch import WatchSpec
from raftkv.simulation import SimCluster, SimMember
from raftkv.simulation.world import SECOND_US
from tests.linearizability.history import (
    Compact,
    Compare,
    Delete,
    Grant,
    History,
    KeepAlive,
    Outcome,
    Put,
    Range,
    Request,
    Revoke,
    Txn,
    WatchEvent,
    WatchLog,
    WatchResponse,
)
from tests.linearizability.lock_oracle import Effect, Holding
from tests.linearizability.translation import key_record
from tests.simulation import doors
from tests.simulation.rights import GuardedDoor

LOCK, GUARD = b"a-lock", b"a-guard"
"""The key that is the lock, and the key that only its holder may write."""
CLIENT_PATIENCE_US = 8 * SECOND_US
"""After this long without an answer a client counts the outcome as unknown and goes on."""
ALL_KEYS = (b"k", b"l")
"""The interval that holds every key of the workload."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How a workload is composed; weights are relative."""

    clients: int = 4
    keys: int = 5
    think_us: int = 150_000
    """Mean pause between an answer and the next request."""
    watchers: int = 2
    lockers: int = 2
    weights: dict[str, int] = field(
        default_factory=lambda: {
            "put": 30,
            "delete": 6,
            "read": 25,
            "range": 10,
            "serializable": 8,
            "compare-and-swap": 15,
            "transaction": 6,
            "lease": 5,
            "compact": 2,
            "old revision": 4,
        }
    )


class Workload:
    """Clients and watchers on a cluster. `history` and `watch_logs` are what the checkers get."""

    def __init__(self, cluster: SimCluster, mix: Mix, guarded: GuardedDoor | None = None) -> None:
        self.cluster = cluster
        self.guarded = guarded
        self.world = cluster.world
        self.mix = mix
        self.history = History()
        self.watch_logs: list[WatchLog] = []
        self.open = 0
        """Requests without an answer yet."""
        self.stopped = False
        self._values = 0
        self._leases = 0
        self._kinds = list(mix.weights)
        self._weights = list(mix.weights.values())
        self.newest_revision = 1
        self._clients = [_Client(self, number) for number in range(mix.clients)]
        self._watchers = [_Watcher(self) for _ in range(mix.watchers)]
        self._lockers = [_Locker(self, mix.clients + number) for number in range(mix.lockers)]
        self.holdings: list[Holding] = []
        self.effects: list[Effect] = []

    def start(self) -> None:
        """Begin to ask."""
        for client in self._clients:
            client.think()
        for watcher in self._watchers:
            watcher.begin(0)
        for locker in self._lockers:
            locker.begin()

    def stop(self) -> None:
        """Ask nothing more; what is under way goes on. Watchers stay."""
        self.stopped = True

    def value(self) -> bytes:
        """One that nobody writes again."""
        self._values += 1
        return b"v%d" % self._values

    def lease(self) -> int:
        """A new lease id."""
        self._leases += 1
        return self._leases

    def key(self) -> bytes:
        """One of the keys."""
        return b"k%d" % self.world.random.randrange(self.mix.keys)

    def member(self) -> SimMember:
        """Some member to ask; not one that left the cluster."""
        members = [one for one in self.cluster.members.values() if not one.gone]
        return self.world.random.choice(members)

    def send(
        self,
        client: int,
        request: Request,
        heard: Callable[[Outcome, Any], None],
        *,
        once: bytes | None = None,
        member: SimMember | None = None,
    ) -> None:
        """Send a request, to `member` or to any, and record it; `heard(outcome, result)` once."""
        call = _Call(self, client, request, heard, once, member)
        call.send()
        self.world.after(CLIENT_PATIENCE_US, call.give_up)

    def ask(
        self, client: int, member: SimMember, request: Request, done: Done, once: bytes | None
    ) -> None:
        """Put a request to a member, as whoever the client is."""
        if self.guarded is None:
            doors.ask(member, request, done, once)
        else:
            self.guarded.ask(client, member, request, done, once)

    def watch(self, member: SimMember, spec: WatchSpec, sink: _Sink) -> None:
        """Begin a watch at a member, as somebody."""
        if self.guarded is None:
            member.watch(spec, sink)
        else:
            self.guarded.watch(member, spec, sink)

    def saw(self, result: Any) -> None:
        """Remember how far the store is, for reads at older revisions and for compaction."""
        revision = getattr(result, "revision", 0)
        self.newest_revision = max(self.newest_revision, revision)

    def draw(self) -> Request:
        """The next request of some client, other than those about leases."""
        chance = self.world.random
        kind = chance.choices(self._kinds, self._weights)[0]
        match kind:
            case "put":
                return Put(self.key(), self.value(), want_previous=chance.random() < 0.3)
            case "delete":
                if chance.random() < 0.2:
                    return Delete(*ALL_KEYS, want_previous=chance.random() < 0.5)
                return Delete(self.key(), want_previous=chance.random() < 0.5)
            case "read":
                return Range(self.key())
            case "range":
                return Range(*ALL_KEYS, limit=chance.choice((0, 0, 2)))
            case "serializable":
                return Range(*ALL_KEYS, serializable=True)
            case "compare-and-swap":
                return self._compare_and_swap()
            case "transaction":
                return self._transaction()
            case "compact":
                return Compact(max(1, self.newest_revision - chance.randrange(30)))
            case "old revision":
                revision = max(1, self.newest_revision - chance.randrange(40))
                return Range(*ALL_KEYS, revision=revision)
        return Grant(self.lease(), chance.choice((1, 2, 3, 8)))

    def _compare_and_swap(self) -> Txn:
        chance, key = self.world.random, self.key()
        swap = (Put(key, self.value(), want_previous=True),)
        if chance.random() < 0.5:
            mod = chance.choice((0, self.newest_revision, self.newest_revision - 1))
            return Txn((Compare(key, "mod", "=", mod),), swap, (Range(key),))
        version = chance.randrange(4)
        operator: Any = chance.choice(("=", ">", "<", "!="))
        return Txn((Compare(key, "version", operator, version),), swap, (Range(key),))

    def _transaction(self) -> Txn:
        first, second = self.key(), self.key()
        inner = Txn((Compare(first, "create", ">", 0),), (Put(first, self.value()),))
        more = (Put(second, self.value()),) if second != first else ()
        return Txn((Compare(second, "lease", "=", 0),), (inner, *more), (Delete(second),))


class _Call:
    """One request under way. With `once` it is repeated elsewhere while its fate is unknown."""

    def __init__(
        self,
        workload: Workload,
        client: int,
        request: Request,
        heard: Callable[[Outcome, Any], None],
        once: bytes | None,
        member: SimMember | None,
    ) -> None:
        self.member = member
        self.workload = workload
        self.request = request
        self.heard = heard
        self.once = once
        self.over = False
        self.unsure = False
        """An earlier attempt may have happened."""
        self.client = client
        self.token = workload.history.begin(client, request, workload.world.now_us)
        workload.open += 1

    def send(self) -> None:
        workload = self.workload
        member = self.member or workload.member()
        delay_us = workload.world.random.randrange(2_000)
        workload.world.after(
            delay_us, workload.ask, self.client, member, self.request, self._answered, self.once
        )

    def _answered(self, result: Any) -> None:
        self.workload.world.after(self.workload.world.random.randrange(2_000), self._hear, result)

    def _hear(self, result: Any) -> None:
        if self.over:
            return
        outcome, answer, error = doors.outcome(result)
        if self.once is not None and outcome is not Outcome.OK:
            # A refusal of this attempt says nothing about the earlier ones.
            self.unsure = self.unsure or outcome is Outcome.UNKNOWN
            if self.unsure and isinstance(result, RaftkvError) and _transient(result):
                self.workload.world.after(200_000, self._again)
                return
            if self.unsure and isinstance(result, PermissionDenied | InvalidAuthToken):
                # The gate knows nothing of what went before.
                outcome = Outcome.UNKNOWN
        self._end(outcome, answer, error, result)

    def _again(self) -> None:
        if not self.over:
            self.send()

    def give_up(self) -> None:
        """The client's patience is over."""
        if not self.over:
            self._end(Outcome.UNKNOWN, None, "no answer", None)

    def _end(self, outcome: Outcome, answer: Any, error: str, result: Any) -> None:
        self.over = True
        self.workload.open -= 1
        self.workload.history.end(self.token, self.workload.world.now_us, outcome, answer, error)
        self.workload.saw(result)
        self.heard(outcome, result)


def _transient(error: RaftkvError) -> bool:
    return isinstance(error, OutcomeUnknown) or error.code in (
        "no_leader", "not_leader", "leadership_lost", "stopping", "too_many_requests",
        "auth_revision_old",
    )  # fmt: skip


class _Client:
    """Asks, waits for the answer, thinks, asks again. Keeps a lease alive while it has one."""

    def __init__(self, workload: Workload, number: int) -> None:
        self.workload = workload
        self.number = number
        self.lease = 0
        self.asked = 0

    def think(self, outcome: Outcome = Outcome.OK) -> None:
        """Ask again after a while; a longer one where nothing is served."""
        world = self.workload.world
        mean_us = self.workload.mix.think_us * (1 if outcome is Outcome.OK else 4)
        world.after(int(world.random.expovariate(1 / mean_us)), self.ask)

    def ask(self) -> None:
        workload = self.workload
        if workload.stopped:
            return
        request = self._lease_request() if self.lease else workload.draw()
        chance = workload.world.random
        once = None
        if not isinstance(request, Range | KeepAlive) and chance.random() < 0.3:
            self.asked += 1
            once = b"%d-%d" % (self.number, self.asked)

        def heard(outcome: Outcome, result: Any) -> None:
            if outcome is Outcome.OK and isinstance(request, Grant):
                self.lease = request.lease
            self.think(outcome)

        workload.send(self.number, request, heard, once=once)

    def _lease_request(self) -> Request:
        workload, chance = self.workload, self.workload.world.random
        draw = chance.random()
        lease = self.lease
        if draw < 0.5:
            return KeepAlive(lease)
        if draw < 0.75:
            return Put(workload.key(), workload.value(), lease=lease)
        if draw < 0.9:
            return workload.draw()
        self.lease = 0
        return Revoke(lease) if draw < 0.95 else workload.draw()


class _Locker:
    """Takes the lock under a lease, works under it guarded by its token, and lets go or forgets."""

    def __init__(self, workload: Workload, number: int) -> None:
        self.workload = workload
        self.number = number

    def begin(self) -> None:
        self.workload.world.after(self.workload.world.random.randrange(2 * SECOND_US), self._grant)

    def _grant(self) -> None:
        if self.workload.stopped:
            return
        self.lease = self.workload.lease()
        self.ttl_us = self.workload.world.random.choice((1, 2, 4)) * SECOND_US
        asked_us = self._now_us
        grant = Grant(self.lease, self.ttl_us // SECOND_US)

        def heard(outcome: Outcome, result: Any) -> None:
            self.alive_until_us = asked_us + self.ttl_us
            if outcome is Outcome.OK:
                self._acquire()
            else:
                self.begin()

        self.workload.send(self.number, grant, heard)

    def _acquire(self) -> None:
        asked_us = self._now_us
        take = Txn(
            (Compare(LOCK, "create", "=", 0),),
            (Put(LOCK, self.workload.value(), lease=self.lease),),
        )

        def heard(outcome: Outcome, result: Any) -> None:
            # A holder must look at its lease again after the wait, however long that took.
            if outcome is Outcome.OK and result.succeeded and self._now_us < self.alive_until_us:
                self.token = result.revision
                self.asked_us, self.acquired_us = asked_us, self._now_us
                self._work()
            else:
                self._end()

        self.workload.send(self.number, take, heard)

    def _work(self) -> None:
        """Renew, write under the guard, or end, while the lease lasts by the holder's own clock."""
        workload, draw = self.workload, self.workload.world.random.random()
        if self._now_us >= self.alive_until_us or draw < 0.25 or workload.stopped:
            holding = Holding(
                self.number,
                self.token,
                self.asked_us,
                self.acquired_us,
                min(self._now_us, self.alive_until_us),
            )
            workload.holdings.append(holding)
            self._end()
        elif draw < 0.6:
            asked_us = self._now_us

            def renewed(outcome: Outcome, result: Any) -> None:
                if outcome is Outcome.OK:
                    self.alive_until_us = asked_us + self.ttl_us
                self._later()

            workload.send(self.number, KeepAlive(self.lease), renewed)
        else:
            guarded = Txn(
                (Compare(LOCK, "create", "=", self.token),), (Put(GUARD, workload.value()),)
            )

            def written(outcome: Outcome, result: Any) -> None:
                if outcome is Outcome.OK and result.succeeded:
                    workload.effects.append(Effect(self.token, result.revision))
                self._later()

            workload.send(self.number, guarded, written)

    def _later(self) -> None:
        self.workload.world.after(self.workload.world.random.randrange(SECOND_US), self._work)

    def _end(self) -> None:
        """Give the lease back, or leave it to run out."""
        if self.workload.world.random.random() < 0.5:
            self.workload.send(self.number, Revoke(self.lease), lambda outcome, result: None)
        self.begin()

    @property
    def _now_us(self) -> int:
        return self.workload.world.now_us


class _Watcher:
    """Watches all keys, and resumes elsewhere where it left off whenever its watch ends."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.sink: _Sink | None = None

    def begin(self, from_revision: int) -> None:
        workload, chance = self.workload, self.workload.world.random
        member = workload.member()
        filters = frozenset({chance.choice(("put", "delete"))} if chance.random() < 0.2 else ())
        start, end = ALL_KEYS if chance.random() < 0.7 else (workload.key(), None)
        log = WatchLog(start, end, from_revision, chance.random() < 0.5, filters, [])
        workload.watch_logs.append(log)
        self.sink = _Sink(self, member, log, slow=chance.random() < 0.3)
        spec = WatchSpec(
            USER_KEYS,
            start,
            end,
            from_revision=from_revision,
            puts="put" not in filters,
            deletes="delete" not in filters,
            prev=log.prev_kv,
        )
        workload.watch(member, spec, self.sink)
        if chance.random() < 0.5:
            workload.world.after(chance.randrange(10 * SECOND_US), self.sink.leave)

    def ended(self, sink: _Sink, next_revision: int) -> None:
        if sink is self.sink:
            delay_us = self.workload.world.random.randrange(SECOND_US)
            self.workload.world.after(delay_us, self.begin, next_revision)


class _Sink:
    """Writes down what a watch delivers. A slow one refuses to be fed now and then."""

    def __init__(self, watcher: _Watcher, member: SimMember, log: WatchLog, *, slow: bool) -> None:
        self.watcher = watcher
        self.member = member
        self.log = log
        self.slow = slow
        self.next_revision = log.start_revision
        self.over = False

    def events(self, revision: int, events: list[Event]) -> bool:
        try:
            return self._events(revision, events)
        except Exception as error:
            # Anything else would only close the watch, and the oracle would have nothing to judge.
            raise InvariantViolation("the recorder of a watch failed") from error

    def _events(self, revision: int, events: list[Event]) -> bool:
        told = []
        watch = self.member.watch_of(self)
        for event in events:
            previous = watch.previous(event) if self.log.prev_kv and watch is not None else None
            told.append(
                WatchEvent(
                    "delete" if event.deleted else "put",
                    key_record(event.record),
                    key_record(previous) if previous is not None else None,
                )
            )
        self._tell(WatchResponse(self._now_us, revision, tuple(told)))
        world = self.watcher.workload.world
        if self.slow and world.random.random() < 0.5:
            world.after(world.random.randrange(SECOND_US), self._resume)
            return False
        return True

    def progress(self, revision: int) -> None:
        self._tell(WatchResponse(self._now_us, revision, progress=True))

    def closed(self, error: RaftkvError) -> None:
        if self.over:
            return
        self.over = True
        if isinstance(error, Compacted):
            oldest = error.facts["oldest_revision"]
            self.log.responses.append(
                WatchResponse(
                    self._now_us,
                    self.member.machine.revision,
                    compact_revision=oldest,
                    cancelled=True,
                )
            )
            self.next_revision = oldest
        self.watcher.ended(self, self.next_revision)

    def leave(self) -> None:
        """The client goes away, to resume elsewhere."""
        if not self.over:
            self.over = True
            self.member.unwatch(self)
            self.watcher.ended(self, self.next_revision)

    def _resume(self) -> None:
        watch = self.member.watch_of(self)
        if watch is not None:
            watch.resume()

    def _tell(self, response: WatchResponse) -> None:
        if not self.over:
            self.log.responses.append(response)
            self.next_revision = response.revision + 1

    @property
    def _now_us(self) -> int:
        return self.watcher.workload.world.now_us
