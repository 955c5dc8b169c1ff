"""A mixed load at a steady rate, through clients of ours over all members.

Open loop: requests begin when their time has come, whether or not earlier ones were answered, and
their latency counts from then. A key has one writer at a time, but for counters.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Coroutine
from typing import Any

from raftkv.client import AsyncClient
from raftkv.client.errors import Unreachable
from raftkv.client.txn import compare, get, missing, put
from raftkv.errors import LeaseNotFound, OutcomeUnknown, RaftkvError, Refused
from tests.soak.catalog import INSTANCES, Catalog
from tests.soak.clients import Clients
from tests.soak.judge import Faults, Follower, Leases, Ledger, Write, count_of

KEYS = 2000
PAIRS = 100
COUNTERS = 40
VALUE_BYTES = 200
UNDER_WAY_MAX = 400
LEASE_HOLDERS = 8
LEASE_TTLS = (4, 6, 8)
LEASE_LATE_SECONDS = 30.0
PREFIX = "soak/kv/"
LEASED = "soak/l/"


class Load:
    """Runs until `stop`; what it learned is in `ledger`, `leases` and the counts."""

    def __init__(self, clients: Clients, faults: Faults, chance: random.Random) -> None:
        self.clients = clients
        self.faults = faults
        self.ledger = Ledger(faults)
        self.leases = Leases(faults, LEASE_LATE_SECONDS)
        self.catalog = Catalog(clients, faults)
        self.outcomes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.not_offered = 0
        """Requests left out because too many were under way."""
        self.latencies: list[list[float]] = [[], [], []]
        """Milliseconds, by the member asked first; whoever reads them clears them."""
        self._chance = chance
        self._serial = itertools.count(1)
        self._run = secrets.token_hex(3)
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: list[asyncio.Task[Any]] = []
        self._following: list[asyncio.Task[Any]] = []
        self._stopping = asyncio.Event()
        self._interrupted = 0

    # -- running -----------------------------------------------------------------------------

    async def follow(self, from_revision: int, count: int = 3) -> None:
        """Watches over all that is written, each first at another member."""
        for number in range(count):
            follower = Follower(f"watch {number + 1}", self.faults)
            follower.complete = from_revision - 1
            self.ledger.followers.append(follower)
            self._following.append(asyncio.create_task(self._follow(follower, number)))

    async def peak(self, seconds: float, workers: int = 48) -> float:
        """Operations a second, done by so many workers one after another."""
        until = time.monotonic() + seconds
        before = self.outcomes["done"]

        async def work() -> None:
            while time.monotonic() < until:
                await self._one(time.monotonic())

        await asyncio.gather(*(work() for _ in range(workers)))
        return (self.outcomes["done"] - before) / seconds

    def start(self, per_second: float) -> None:
        """Offer the load from now on."""
        work: list[Coroutine[Any, Any, None]] = [self._offer(per_second)]
        work += [self._hold_leases(number) for number in range(LEASE_HOLDERS)]
        work += [self._watch_leases(), self.catalog.look()]
        work += [self.catalog.keep(number) for number in range(INSTANCES)]
        self._running = [asyncio.create_task(each) for each in work]

    def check_alive(self) -> None:
        """Raise what ended a part of the load."""
        for task in [*self._running, *self._following]:
            if task.done() and not self._stopping.is_set():
                task.result()
                raise AssertionError(f"a part of the load ended by itself: {task}")

    async def stop(self) -> None:
        """End the load; the watches go on."""
        self._stopping.set()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """End the watches, and all connections."""
        self._stopping.set()
        for task in [*self._running, *self._following]:
            task.cancel()
        await asyncio.gather(*self._running, *self._following, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.clients.close()

    async def _offer(self, per_second: float) -> None:
        due = time.monotonic()
        while True:
            due += self._chance.expovariate(per_second)
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            elif self._chance.random() < 0.1:
                await asyncio.sleep(0)
            if len(self._tasks) >= UNDER_WAY_MAX:
                self.not_offered += 1
                continue
            task = asyncio.create_task(self._one(due))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.faults.add(f"the load met what it does not know: {error!r}")

    # -- one request -------------------------------------------------------------------------

    async def _one(self, due: float) -> None:
        member = self._chance.randrange(len(self.clients.all))
        client = self.clients.all[member]
        draw = self._chance.random()
        kind = self._list
        for share, chosen in (
            (0.36, self._put), (0.60, self._get), (0.68, self._delete), (0.76, self._increment),
            (0.84, self._put_pair), (0.92, self._get_pair), (1.0, self._list),
        ):  # fmt: skip
            if draw < share:
                kind = chosen
                break
        self.kinds[kind.__name__[1:]] += 1
        if await kind(client):
            self.latencies[member % 3].append((time.monotonic() - due) * 1000)

    def _value(self) -> str:
        text = f"{self._run}-{next(self._serial)}:"
        return text + "x" * (self._chance.randrange(VALUE_BYTES) + VALUE_BYTES // 2)

    def _claimed(self, what: str, count: int) -> str:
        """A key that nobody else is busy with; "" if none is found quickly."""
        for _ in range(20):
            key = f"{PREFIX}{what}/{self._chance.randrange(count)}"
            if key not in self._busy:
                self._busy.add(key)
                return key
        return ""

    async def _write(self, doing: Awaitable[Any], *writes: Write) -> Any:
        """The answer of a write, None if there is none; the ledger is told of failures."""
        try:
            answer = await doing
        except OutcomeUnknown:
            self.outcomes["unknown"] += 1
            for write in writes:
                self.ledger.lose_sight(write)
        except Refused as error:
            self._count(error)
            for write in writes:
                self.ledger.refuse(write)
        except BaseException:
            for write in writes:
                self.ledger.lose_sight(write)
            raise
        else:
            self.outcomes["done"] += 1
            return answer
        return None

    async def _read(self, doing: Awaitable[Any]) -> Any:
        """The answer of a read, or the error."""
        try:
            answer = await doing
        except RaftkvError as error:
            self._count(error)
            return error
        self.outcomes["done"] += 1
        return answer

    def _count(self, error: RaftkvError) -> None:
        self.outcomes[f"refused: {error.code}"] += 1

    async def _put(self, client: AsyncClient) -> bool:
        if not (key := self._claimed("r", KEYS)):
            return False
        try:
            write = self.ledger.begin(key, self._value())
            answer = await self._write(client.put(key, write.value or ""), write)
            if answer is not None:
                self.ledger.acknowledge(write, answer.revision)
            return answer is not None
        finally:
            self._busy.discard(key)

    async def _delete(self, client: AsyncClient) -> bool:
        if not (key := self._claimed("r", KEYS)):
            return False
        try:
            write = self.ledger.begin(key, None)
            answer = await self._write(client.delete(key), write)
            if answer is not None and answer.deleted:
                self.ledger.acknowledge(write, answer.revision)
            elif answer is not None:
                self.ledger.nothing(write)
                self.ledger.read(key, None, 0)
            return answer is not None
        finally:
            self._busy.discard(key)

    async def _get(self, client: AsyncClient) -> bool:
        if not (key := self._claimed("r", KEYS)):
            return False
        try:
            found = await self._read(client.get(key))
            if isinstance(found, RaftkvError):
                return False
            if found is None:
                self.ledger.read(key, None, 0)
            else:
                self.ledger.read(key, found.text, found.mod_revision)
            return True
        finally:
            self._busy.discard(key)

    async def _increment(self, client: AsyncClient) -> bool:
        """Read and write back if unchanged, against others that do the same."""
        key = f"{PREFIX}c/{self._chance.randrange(COUNTERS)}"
        found = await self._read(client.get(key, consistency="serializable"))
        if isinstance(found, RaftkvError):
            return False
        number = 0 if found is None else count_of(found.text)
        condition = missing(key) if found is None else compare(key, "value", "=", found.text)
        write = self.ledger.begin(key, f"{number + 1}:{self._value()}")
        doing = client.txn().when(condition).then(put(key, write.value or "")).commit()
        answer = await self._write(doing, write)
        if answer is not None and answer.succeeded:
            self.ledger.acknowledge(write, answer.revision)
        elif answer is not None:
            self.ledger.refuse(write)
        return answer is not None

    async def _put_pair(self, client: AsyncClient) -> bool:
        """Two keys that are only ever written together."""
        if not (key := self._claimed("p", PAIRS)):
            return False
        try:
            value = self._value()
            writes = [self.ledger.begin(f"{key}/{side}", value) for side in "lr"]
            doing = client.txn().then(*(put(each.key, value) for each in writes)).commit()
            answer = await self._write(doing, *writes)
            if answer is not None:
                for write in writes:
                    self.ledger.acknowledge(write, answer.revision)
            return answer is not None
        finally:
            self._busy.discard(key)

    async def _get_pair(self, client: AsyncClient) -> bool:
        pair = f"{PREFIX}p/{self._chance.randrange(PAIRS)}"
        doing = client.txn().then(get(f"{pair}/l"), get(f"{pair}/r")).commit()
        found = await self._read(doing)
        if isinstance(found, RaftkvError):
            return False
        left, right = (None if each is None else each.text for each in found.results)
        if left != right:
            self.faults.add(f"half a transaction: {pair} has {left!r} and {right!r}")
        return True

    async def _list(self, client: AsyncClient) -> bool:
        start = f"{PREFIX}r/{self._chance.randrange(KEYS)}"
        found = await self._read(client.range(start=start, end=f"{PREFIX}r0", limit=20))
        if isinstance(found, RaftkvError):
            return False
        keys = [each.key for each in found.records]
        if keys != sorted(keys) or any(
            each.mod_revision > found.revision for each in found.records
        ):
            self.faults.add(f"a list from {start} at revision {found.revision} is wrong: {keys}")
        return True

    # -- watches -----------------------------------------------------------------------------

    async def _follow(self, follower: Follower, number: int) -> None:
        while True:
            generation = self.clients.generation
            client = self.clients.all[number % len(self.clients.all)]
            reading = asyncio.create_task(self._events(client, follower))
            renewed = asyncio.create_task(generation.wait())
            try:
                await asyncio.wait((reading, renewed), return_when=asyncio.FIRST_COMPLETED)
                if reading.done() and not isinstance(reading.exception(), Unreachable):
                    reading.result()
            finally:
                for task in (reading, renewed):
                    task.cancel()
                await asyncio.gather(reading, renewed, return_exceptions=True)
            follower.resumed()

    async def _events(self, client: AsyncClient, follower: Follower) -> None:
        async with client.watch(prefix=PREFIX, from_revision=follower.complete + 1) as events:
            async for event in events:
                value = None if event.record is None else event.record.text
                follower.event(event.revision, event.key, value)
                follower.complete = max(follower.complete, events.revision or 0)

    # -- leases ------------------------------------------------------------------------------

    async def _watch_leases(self) -> None:
        following = 0
        while True:
            generation, client = self.clients.generation, self.clients.all[-1]
            try:
                async with client.watch(
                    prefix=LEASED, from_revision=following or None, only="delete"
                ) as events:
                    following = await events.opened() + 1
                    while not generation.is_set():
                        try:
                            async with asyncio.timeout(1):
                                event = await anext(events)
                        except TimeoutError:
                            pass
                        else:
                            self.leases.end(event.key, time.monotonic())
                        following = max(following, (events.revision or 0) + 1)
            except Refused as error:
                self._count(error)
                await asyncio.sleep(0.2)

    async def _hold_leases(self, number: int) -> None:
        chance = random.Random(self._chance.getrandbits(64))
        for serial in itertools.count():
            key = f"{LEASED}{number}/{serial}"
            ttl = chance.choice(LEASE_TTLS)
            try:
                await self._hold(key, ttl, chance)
            except RaftkvError as error:
                self._count(error)
            await asyncio.sleep(chance.uniform(0.1, 0.5))

    async def _hold(self, key: str, ttl: int, chance: random.Random) -> None:
        """A lease with a key, renewed a few times and then forgotten."""
        sent = time.monotonic()
        lease = await chance.choice(self.clients.all).leases.grant(ttl)
        # Known before the key is there: its end may be shown before the put is answered.
        self.leases.grant(key, lease.ttl, sent)
        try:
            await chance.choice(self.clients.all).put(key, "1", lease=lease.lease)
        except RaftkvError:
            del self.leases.held[key]
            raise
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(ttl * chance.uniform(0.2, 0.5))
            sent = time.monotonic()
            self.leases.ask(key, sent)
            try:
                await chance.choice(self.clients.all).leases.keep_alive(lease.lease, timeout=2)
            except LeaseNotFound:
                self.leases.end(key, time.monotonic())
                return
            self.leases.renew(key, sent)
