"""Nine watch properties against the real machine: random writes, compactions, sinks and resumes.

Ordered, unique, atomic, reliable, resumable, bookmarkable, filtered, with the right previous
record, and with the right "is new" (create revision equals mod revision). The oracle is a list of
everything that the machine ever reported, kept apart from it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raftkv.errors import Compacted, RaftkvError
from raftkv.machine import commands
from raftkv.machine.events import Event
from raftkv.machine.machine import Machine
from raftkv.machine.records import DELETE
from raftkv.server.watch import Watch, WatchHub, WatchSpec
from raftkv.server.watch_index import prefix_end
from raftkv.storage.memory_backend import MemoryBackend

KEYS = [b"a", b"a/1", b"a/2", b"a/2/x", b"b", b"b/1", b"c", b"\xff"]


@dataclass(frozen=True)
class Fact:
    """One change, as the oracle remembers it."""

    revision: int
    kind: int
    keyspace: int
    key: bytes
    value: bytes
    is_new: bool
    previous: bytes | None


def holds(spec: WatchSpec, fact: Fact) -> bool:
    if fact.keyspace != spec.keyspace or not (spec.deletes if fact.kind == DELETE else spec.puts):
        return False
    if spec.end is None:
        return fact.key == spec.start
    return spec.start <= fact.key and (spec.end == b"" or fact.key < spec.end)


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.machine = Machine(MemoryBackend())
        self.hub = WatchHub(self.machine)
        self.facts: list[Fact] = []
        self.values: dict[tuple[int, bytes], bytes] = {}
        self.index = 0
        self.clients: list[Client] = []

    def command(self) -> commands.Command:
        rng = self.rng
        if rng.random() < 0.3:
            operations = [
                commands.put_op(key, b"t%d" % rng.randrange(1 << 30))
                for key in rng.sample(KEYS, rng.randint(1, 4))
            ]
            return commands.txn([], operations)
        key = rng.choice(KEYS)
        keyspace = int(rng.random() < 0.15)
        if rng.random() < 0.7:
            return commands.put(key, b"v%d" % rng.randrange(1 << 30), keyspace=keyspace)
        end = rng.choice([None, prefix_end(key)])
        return commands.delete(key, end, keyspace=keyspace)

    def apply(self, entries: int) -> list[Event]:
        batches = []
        for _ in range(entries):
            self.index += 1
            made = [self.command() for _ in range(self.rng.randint(1, 4))]
            data = commands.stamp_batch(commands.encode_batch(1, 1, self.index, made), self.index)
            batches.append((self.index, 1, data))
        events = [event for applied in self.machine.apply(batches) for event in applied.events]
        for event in events:
            at = (event.keyspace, event.key)
            before = self.values.pop(at, None)
            record = event.record
            value = b"" if event.kind == DELETE else record.value
            if event.kind != DELETE:
                self.values[at] = value
            is_new = event.kind != DELETE and record.create_revision == record.mod_revision
            assert is_new == (event.kind != DELETE and before is None)
            self.facts.append(Fact(event.revision, event.kind, *at, value, is_new, before))
        return events

    def compact(self) -> None:
        low, high = self.machine.compact_revision + 1, self.machine.revision
        if low <= high:
            self.index += 1
            command = commands.compact(self.rng.randint(low, high))
            batch = commands.encode_batch(1, 1, self.index, [command])
            self.machine.apply([(self.index, 1, commands.stamp_batch(batch, self.index))])

    def client(self) -> None:
        rng = self.rng
        start = rng.choice(KEYS)
        end = rng.choice([None, prefix_end(start), b"", b"b/1"])
        if end not in (None, b"") and end <= start:
            end = None
        revision = self.machine.revision
        first = rng.choice([0, rng.randint(1, revision + 6)])
        filters = rng.choice([(True, True), (True, True), (True, False), (False, True)])
        spec = WatchSpec(int(rng.random() < 0.1), start, end, first, *filters, prev=True)
        self.clients.append(Client(self, spec))

    def pump(self) -> None:
        turns = 0
        while self.hub.pump():
            turns += 1
            assert turns < 10_000

    def end(self) -> int:
        """Everybody takes all there is; how many had to be told that history is gone."""
        for client in self.clients:
            client.slow = False
            client.watch.resume()
        self.pump()
        self.hub.publish(self.apply(3))
        self.pump()
        final = self.machine.revision
        lost = 0
        for client in self.clients:
            if client.lost is not None:
                lost += 1
                client.check(client.resume_at - 1)
            else:
                assert client.watch.delivered_revision == max(final, client.first - 1)
                client.check(final)
            client.watch.cancel()
        assert len(self.hub) == 0 and self.hub.behind == 0
        return lost


class Client:
    """A client that may be slow, may lose its connection, and resumes where it was told it can."""

    def __init__(self, world: World, spec: WatchSpec) -> None:
        self.world = world
        self.spec = spec
        self.got: list[Fact] = []
        self.resume_at = spec.from_revision or world.machine.revision + 1
        self.first = self.resume_at
        self.lost: RaftkvError | None = None
        self.slow = world.rng.random() < 0.4
        self.watch: Watch = world.hub.add(spec, self)

    def events(self, revision: int, events: list[Event]) -> bool:
        assert self.lost is None and events
        assert events[0].revision >= self.resume_at, "nothing below where it resumed"
        for event in events:
            record = event.record
            previous = self.watch.previous(event)
            facts = [f for f in self.world.facts if f.revision == event.revision]
            [fact] = [f for f in facts if (f.keyspace, f.key) == (event.keyspace, event.key)]
            assert event.kind == fact.kind
            if event.kind != DELETE:
                assert record.value == fact.value
                assert (record.create_revision == record.mod_revision) == fact.is_new
            if previous is not None:
                assert previous.value == fact.previous
            elif fact.previous is not None:
                assert event.revision <= self.world.machine.compact_revision
            self.got.append(fact)
        assert events[-1].revision <= revision
        self.resume_at = revision + 1
        return not (self.slow and self.world.rng.random() < 0.3)

    def progress(self, revision: int) -> None:
        assert self.lost is None and revision + 1 >= self.resume_at
        self.resume_at = revision + 1
        self.check(revision)

    def closed(self, error: RaftkvError) -> None:
        assert isinstance(error, Compacted)
        assert self.resume_at < error.facts["oldest_revision"] <= self.world.machine.revision
        self.lost = error

    def reconnect(self) -> None:
        self.watch.cancel()
        spec = self.spec
        resumed = WatchSpec(
            spec.keyspace, spec.start, spec.end, self.resume_at, spec.puts, spec.deletes, prev=True
        )
        self.watch = self.world.hub.add(resumed, self)

    def check(self, up_to: int) -> None:
        """Exactly the wanted facts from its first revision up to `up_to`, in order, once."""
        wanted = [
            fact
            for fact in self.world.facts
            if self.first <= fact.revision <= up_to and holds(self.spec, fact)
        ]
        assert self.got == wanted


class WatchesAgainstFacts(RuleBasedStateMachine):
    """The same world, with the order of events and the specifications drawn so as to shrink."""

    @initialize(seed=st.integers(0, 1000))
    def start(self, seed: int) -> None:
        self.world = World(seed)

    @rule(entries=st.integers(1, 3))
    def write(self, entries: int) -> None:
        self.world.hub.publish(self.world.apply(entries))

    @rule(
        keyspace=st.sampled_from([0, 0, 0, 1]),
        start=st.sampled_from(KEYS),
        end=st.sampled_from([None, None, b"", b"b/1", b"a0", b"\xff\xff"]),
        back=st.none() | st.integers(-4, 30),
        puts=st.booleans(),
        slow=st.booleans(),
        between=st.booleans(),
    )
    def watch(
        self, keyspace: int, start: bytes, end: bytes | None, back: int | None, puts: bool,
        slow: bool, between: bool,
    ) -> None:  # fmt: skip
        """Now or from a revision, kept or to come; perhaps between an entry and its publication."""
        world = self.world
        events = world.apply(1) if between else []
        first = 0 if back is None else max(1, world.machine.revision - back)
        if end and end <= start:
            end = None
        client = Client(world, WatchSpec(keyspace, start, end, first, puts, True, prev=True))
        client.slow = slow
        world.clients.append(client)
        world.hub.publish(events)

    @precondition(lambda self: self.world.clients)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        """A client comes back where it was told that it can, or takes more."""
        client = data.draw(st.sampled_from(self.world.clients))
        if client.lost is None:
            if data.draw(st.booleans()):
                client.reconnect()
            else:
                client.watch.resume()

    @rule(rows=st.integers(1, 20))
    def compact(self, rows: int) -> None:
        self.world.compact()
        self.world.machine.compact_step(rows)

    @rule()
    def progress(self) -> None:
        self.world.hub.mark_progress()

    @rule()
    def install(self) -> None:
        """The tables come by a snapshot: nothing of it is published."""
        self.world.apply(3)
        self.world.hub.reset_after_install()

    @rule()
    def pump(self) -> None:
        self.world.hub.pump()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()


def test_watches_agree_with_the_facts() -> None:
    run_state_machine_as_test(
        WatchesAgainstFacts,
        settings=settings(max_examples=100, stateful_step_count=30, deadline=None),
    )


@pytest.mark.parametrize("seed", range(40))
def test_watch_properties(seed: int) -> None:
    world = World(seed)
    rng = world.rng
    for _ in range(120):
        act = rng.random()
        if act < 0.5:
            events = world.apply(rng.randint(1, 4))
            if rng.random() < 0.1:
                world.client()  # between apply and publication
            world.hub.publish(events)
        elif act < 0.65:
            world.client()
        elif act < 0.75 and world.clients:
            client = rng.choice(world.clients)
            if client.lost is None:
                client.reconnect()
        elif act < 0.8:
            world.compact()
            world.machine.compact_step(10)
        elif act < 0.88:
            world.hub.mark_progress()
        elif act < 0.9:
            world.apply(3)  # as if the tables came by a snapshot
            world.hub.reset_after_install()
        else:
            world.hub.pump()
        for client in world.clients:
            if rng.random() < 0.1:
                client.watch.resume()
    lost = world.end()
    assert lost < len(world.clients), f"seed {seed} proves nothing"
