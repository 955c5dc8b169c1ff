"""A mixed load of recorded clients: everything that the API promises, under one prefix of keys.

Plain writers and readers work on a few hot keys; transactions move pairs of keys together; lease
holders renew, revoke and abandon; lock holders do guarded writes; watchers look on. Every value
is written once only.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from raftkv.client.client import AsyncClient
from raftkv.client.errors import LeaseLost
from raftkv.client.txn import put
from raftkv.errors import RaftkvError
from tests.linearizability.history import (
    Compare,
    Delete,
    DeleteAnswer,
    Grant,
    History,
    KeepAlive,
    LeaseAnswer,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Request,
    Revoke,
    Txn,
)
from tests.linearizability.lock_oracle import Holding
from tests.support.recorder import (
    Asks,
    LibraryClient,
    PlainClient,
    Urls,
    WatchRecorder,
    answer_of,
    now_us,
)

HOT_KEYS = 8
PAIRS = 4


@dataclass(frozen=True, slots=True)
class Mix:
    """How many clients of each kind, and how hard they work together."""

    plain: int = 8
    library: int = 2
    lease_holders: int = 2
    lock_holders: int = 2
    watchers: int = 3
    per_second: float = 200.0
    """Requests of plain and library clients together; they wait between two of their own."""


class Load:
    """Runs while the block runs; what was recorded is complete after it."""

    def __init__(
        self,
        urls: Urls,
        prefix: str,
        chance: random.Random,
        mix: Mix | None = None,
        from_revision: int = 0,
    ) -> None:
        """`prefix` of every key but the locks'; `from_revision`: where watchers begin, 0: now."""
        self.prefix = prefix.encode()
        self.history = History()
        self.holdings: list[Holding] = []
        """Of the one lock that all lock holders contend for."""
        self.watches: list[WatchRecorder] = []
        self._urls = urls
        self._chance = chance
        self._mix = mix or Mix()
        self._from_revision = from_revision
        self._serial = itertools.count(1)
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self._marks: list[int] = []

    async def __aenter__(self) -> Load:
        mix = self._mix
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        numbers = itertools.count(1)
        work: list[Coroutine[Any, Any, None]] = []
        for kind, count, doing in (
            (PlainClient, mix.plain, self._read_and_write),
            (LibraryClient, mix.library, self._read_and_write),
            (PlainClient, mix.lease_holders, self._hold_lease),
        ):
            for _ in range(count):
                number = next(numbers)
                chance = self._own_chance(number)
                client: Asks = kind(self.history, number, self._urls, chance)
                work.append(self._with(client, doing(client, chance)))
        for _ in range(mix.lock_holders):
            number = next(numbers)
            work.append(self._hold_locks(number, self._own_chance(number)))
        self._tasks = [asyncio.create_task(each) for each in work]
        for number in range(mix.watchers):
            self._watch(number, self._own_chance(1000 + number))
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.stop()
        finally:
            await self._hang_up()

    async def stop(self) -> None:
        """Let every client finish what it has under way, then hang up. Watches go on."""
        self._stopping.set()
        tasks, self._tasks = self._tasks, []
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def mark(self) -> None:
        """Write a last put and a last delete, of a key that every watch sees.

        Call it after `stop`, with the cluster whole.
        """
        client = PlainClient(self.history, 999, self._urls, self._own_chance(999), seconds=10.0)
        key = self.prefix + b"k/1"
        try:
            last_put = await _insist(client, lambda: Put(key, self._value(999)))
            self._marks = [last_put, await _insist(client, lambda: Delete(key))]
        finally:
            await client.close()

    @property
    def marked_revision(self) -> int:
        """Of the last mark: nothing under the prefix is written later, but for ends of leases."""
        return self._marks[-1]

    async def close(self, seconds: float = 20.0) -> None:
        """End the watches once they have been told of the marks."""
        revision = self._marks[0]
        try:
            async with asyncio.timeout(seconds):
                while any(watch.revision < revision for watch in self.watches):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            stand = [watch.revision for watch in self.watches]
            raise AssertionError(f"watches stand at {stand}, not at {revision}") from None
        finally:
            await self._hang_up()

    async def _hang_up(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        assert self._session is not None
        await self._session.close()

    def _own_chance(self, number: int) -> random.Random:
        return random.Random(self._chance.getrandbits(64) ^ number)

    async def _with(self, client: Asks, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            await client.close()

    async def _pause(self, seconds: float) -> bool:
        """Wait; True: the load is to end."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _value(self, client: int) -> bytes:
        return b"%d-%d" % (client, next(self._serial))

    # -- keys ------------------------------------------------------------------------------------

    async def _read_and_write(self, client: Asks, chance: random.Random) -> None:
        workers = self._mix.plain + self._mix.library
        pause = workers / self._mix.per_second
        number = chance.getrandbits(30)
        first = seen = 0
        while not await self._pause(chance.expovariate(1 / pause)):
            draw = chance.random()
            if draw < 0.15:
                await self._compare_and_swap(client, chance, number)
                continue
            if draw < 0.19 and seen:
                request: Request = self._old_read(chance, first, seen)
            else:
                request = self._any_request(chance, number)
            answer = answer_of(await client.ask(request))
            if isinstance(answer, PutAnswer):
                first, seen = first or answer.revision, answer.revision

    def _hot(self, chance: random.Random) -> bytes:
        return b"%bk/%d" % (self.prefix, chance.randrange(HOT_KEYS))

    def _any_request(self, chance: random.Random, number: int) -> Request:
        draw = chance.random()
        key = self._hot(chance)
        whole = (self.prefix + b"k/", self.prefix + b"k0")
        if draw < 0.34:
            return Put(key, self._value(number), want_previous=chance.random() < 0.2)
        if draw < 0.42:
            return Delete(key, want_previous=chance.random() < 0.2)
        if draw < 0.43:
            return Delete(key, whole[1])
        if draw < 0.65:
            return Range(key)
        if draw < 0.74:
            return Range(key, serializable=True)
        if draw < 0.82:
            return Range(*whole, limit=chance.choice((0, 0, 3)))
        if draw < 0.85:
            return Range(*whole, serializable=True)
        return self._pair_request(chance, number)

    def _old_read(self, chance: random.Random, first: int, last: int) -> Range:
        """What was there at a revision that this client has seen, or a little before."""
        revision = max(first, last - chance.randrange(30))
        if chance.random() < 0.5:
            return Range(self._hot(chance), revision=revision)
        serializable = chance.random() < 0.3
        whole = (self.prefix + b"k/", self.prefix + b"k0")
        return Range(*whole, serializable=serializable, revision=revision)

    def _pair_request(self, chance: random.Random, number: int) -> Request:
        """Two keys that are only ever written together, with one value."""
        pair = b"%bp/%d" % (self.prefix, chance.randrange(PAIRS))
        left, right = pair + b"/l", pair + b"/r"
        draw = chance.random()
        if draw < 0.5:
            value = self._value(number)
            return Txn((), (Put(left, value), Put(right, value), Range(left, pair + b"0")))
        if draw < 0.7:
            return Range(left, pair + b"0")
        if draw < 0.8:
            return Txn((Compare(left, "create", "!=", 0),), (Delete(left, pair + b"0"),))
        return Txn((), (Range(left), Range(right)))

    async def _compare_and_swap(self, client: Asks, chance: random.Random, number: int) -> None:
        key = self._hot(chance)
        found = answer_of(await client.ask(Range(key, serializable=chance.random() < 0.5)))
        if not isinstance(found, RangeAnswer):
            return
        if not found.records:
            compare = Compare(key, "create", "=", 0)
        elif chance.random() < 0.5:
            compare = Compare(key, "mod", "=", found.records[0].mod_revision)
        else:
            compare = Compare(key, "value", "=", found.records[0].value)
        await client.ask(Txn((compare,), (Put(key, self._value(number)),), (Range(key),)))

    # -- leases ----------------------------------------------------------------------------------

    async def _hold_lease(self, client: Asks, chance: random.Random) -> None:
        number = chance.getrandbits(30)
        while not await self._pause(chance.uniform(0.05, 0.3)):
            chosen = chance.getrandbits(62) | 1 if chance.random() < 0.5 else 0
            granted = answer_of(await client.ask(Grant(chosen, chance.choice((1, 2, 3)))))
            if not isinstance(granted, LeaseAnswer):
                continue
            lease, ttl = granted.lease, granted.ttl_seconds
            for at in range(chance.randrange(1, 4)):
                key = b"%bl/%016x/%d" % (self.prefix, lease, at)
                await client.ask(Put(key, self._value(number), lease))
            for _ in range(chance.randrange(0, 5)):
                if await self._pause(ttl * chance.uniform(0.1, 0.4)):
                    break
                if (await client.ask(KeepAlive(lease))).outcome is Outcome.REFUSED:
                    break
            if chance.random() < 0.5:
                await client.ask(Revoke(lease))

    # -- locks -----------------------------------------------------------------------------------

    async def _hold_locks(self, number: int, chance: random.Random) -> None:
        client = AsyncClient(self._urls())
        name = f"{self.prefix.decode()}lock"
        try:
            while not await self._pause(chance.uniform(0.02, 0.2)):
                if set(client.endpoints) != set(self._urls()):
                    await client.close()
                    client = AsyncClient(self._urls())
                try:
                    await self._hold_once(client, name, number, chance)
                except (RaftkvError, TimeoutError):
                    await asyncio.sleep(0.1)
        finally:
            await client.close()

    async def _hold_once(
        self, client: AsyncClient, name: str, number: int, chance: random.Random
    ) -> None:
        asked_us = now_us()
        try:
            async with client.locks.hold(name, str(number), ttl=2, wait=2.0) as lock:
                at = len(self.holdings)
                self.holdings.append(Holding(number, lock.token, asked_us, now_us()))
                try:
                    await asyncio.sleep(chance.uniform(0.0, 0.1))
                    fenced = put(f"fenced/{name}", f"{lock.token}")
                    await client.txn().when(lock.guard()).then(fenced).commit()
                    await asyncio.sleep(chance.uniform(0.0, 0.3))
                finally:
                    until_us = min(now_us(), int(lock._valid_until * 1_000_000))
                    self.holdings[at] = replace(self.holdings[at], until_us=until_us)
        except LeaseLost:
            pass

    # -- watches ---------------------------------------------------------------------------------

    def _watch(self, number: int, chance: random.Random) -> None:
        assert self._session is not None
        bounds: list[tuple[bytes, bytes | None]] = [
            (self.prefix, self.prefix[:-1] + b"0"),
            (self.prefix + b"k/1", None),
            (self.prefix + b"k/", self.prefix + b"l"),
        ]
        start, end = bounds[number % len(bounds)]
        watch = WatchRecorder(
            self._session,
            self._urls,
            chance,
            start,
            end,
            prev_kv=number % 2 == 0,
            without=("", "", "put", "delete")[number % 4],
            from_revision=self._from_revision,
        )
        self.watches.append(watch)
        self._watching.append(asyncio.create_task(watch.run()))


async def _insist(client: Asks, request: Callable[[], Put | Delete]) -> int:
    """Ask until one is done; the revision at which it was."""
    for _ in range(100):
        answer = answer_of(await client.ask(request()))
        if isinstance(answer, PutAnswer | DeleteAnswer):
            return answer.revision
        await asyncio.sleep(0.05)
    raise AssertionError(f"a whole cluster does not carry out {request()}")
