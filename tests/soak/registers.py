"""A few registers that recorded clients share; each round is searched for a linearization."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

from tests.linearizability.history import Compare, Delete, History, Outcome, Put, Range, Txn
from tests.linearizability.perkey import split
from tests.linearizability.wgl import Verdict, search
from tests.soak.judge import Faults
from tests.support.certificates import Pki
from tests.support.recorder import PlainClient, Urls

PREFIX = "soak/reg/"
REGISTERS = 3
CLIENTS = 4
PER_SECOND = 20.0
ROUND_SECONDS = 20.0


class Registers:
    """Runs until cancelled, a round after another with new keys."""

    def __init__(self, urls: Urls, pki: Pki, faults: Faults, chance: random.Random) -> None:
        self._urls = urls
        self._pki = pki
        self._faults = faults
        self._chance = chance
        self._serial = itertools.count(1)
        self.rounds = 0
        self.operations = 0
        self.unknown = 0

    async def run(self, round_seconds: float = ROUND_SECONDS) -> None:
        """See the class."""
        while True:
            await self.round(round_seconds)

    async def round(self, seconds: float) -> None:
        """Record for so long, and judge."""
        prefix = f"{PREFIX}{self.rounds}/".encode()
        history = History()
        context = self._pki.connecting(self._pki.client("soak"))
        clients = [
            PlainClient(history, number, self._urls, self._own(), context=context)
            for number in range(CLIENTS)
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(self._ask(client, prefix, seconds))
            await clients[0].ask(Delete(prefix, prefix[:-1] + b"0"))
        finally:
            for client in clients:
                await client.close()
        self.rounds += 1
        self.operations += len(history.operations)
        self.unknown += sum(each.outcome is Outcome.UNKNOWN for each in history.operations)
        await asyncio.to_thread(judge_registers, history, self._faults, self.rounds)

    def _own(self) -> random.Random:
        return random.Random(self._chance.getrandbits(64))

    async def _ask(self, client: PlainClient, prefix: bytes, seconds: float) -> None:
        chance = self._own()
        clock: Callable[[], float] = asyncio.get_running_loop().time
        until = clock() + seconds
        while clock() < until:
            await asyncio.sleep(chance.expovariate(PER_SECOND / CLIENTS))
            key = b"%b%d" % (prefix, chance.randrange(REGISTERS))
            value = b"%d" % next(self._serial)
            draw = chance.random()
            if draw < 0.4:
                await client.ask(Range(key))
            elif draw < 0.75:
                await client.ask(Put(key, value))
            elif draw < 0.85:
                await client.ask(Delete(key))
            else:
                there = Compare(key, "version", ">", 0)
                await client.ask(Txn((there,), (Put(key, value),), (Range(key),)))


def judge_registers(history: History, faults: Faults, round_number: int) -> None:
    """Each register of a round has a linearization."""
    for key, mine in split(history.operations).items():
        found = search(mine)
        if found.verdict is not Verdict.LINEARIZABLE:
            faults.add(
                f"round {round_number}: register {key.decode()} is {found.verdict.value}; what "
                f"cannot come next is {None if found.stuck is None else found.stuck.index}"
            )
