"""In Maelstrom's place: starts nodes, carries their messages, breaks things, and checks clients.

    python -m tests.maelstrom.driver --seconds 20 --nodes 3

Messages between nodes are late, lost and cut off; nodes are killed and started again, if asked for.
Clients read, write and compare-and-set a few keys through all nodes. In the end what they saw must
be linearizable. `--seed` makes the choices; real processes make their own timing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.linearizability.history import (
    Answer,
    Compare,
    History,
    KeyRecord,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Request,
    Txn,
    TxnAnswer,
)
from tests.linearizability.perkey import split
from tests.linearizability.wgl import Verdict, search

LINE_BYTES_MAX = 64 << 20
CLIENT_TIMEOUT_SECONDS = 4.0
"""More than a node's own patience; what it does not answer in this time is unknown."""
NO_KEY, MISMATCH = 20, 22
INDEFINITE = frozenset((0, 13))

Body = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """One run."""

    seconds: float = 20.0
    nodes: int = 3
    clients: int = 6
    keys: int = 4
    seed: int = 1
    delay_ms: float = 3.0
    """Mean delay between nodes; each message has its own, so messages overtake each other."""
    loss: float = 0.01
    duplication: float = 0.02
    partition_seconds: float = 3.0
    """Mean time between changes of who reaches whom; 0: never."""
    kill_seconds: float = 0.0
    """Mean time between kills; 0: never."""
    pause_seconds: float = 0.01
    """Longest rest of a client between operations."""


class Process:
    """One node's process; it may be killed and started again with its data."""

    def __init__(self, network: Network, name: str, folder: Path) -> None:
        self.name = name
        self._network = network
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, and tell it who it is."""
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.maelstrom.node", "--data",
                str(self._folder / self.name),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                limit=LINE_BYTES_MAX,
            )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self._process))
        names = list(self._network.processes)
        await self._network.call(
            self.name, {"type": "init", "node_id": self.name, "node_ids": names}, 30.0
        )

    @property
    def gone(self) -> bool:
        """Whether it was killed and not started again."""
        return self._process is None

    def write(self, line: str) -> None:
        """Give it a line, if it is there to take it."""
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(line.encode() + b"\n")

    async def kill(self) -> None:
        """End it without a warning."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if not line.endswith(b"\n"):
                break  # The rest of a line that a kill cut off.
            self._network.route(json.loads(line))
        if process is self._process:
            self._network.died.append(self.name)


class Network:
    """All processes, and what lies between them."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        names = [f"n{number}" for number in range(settings.nodes)]
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.processes = {name: Process(self, name, folder) for name in names}
        self.sides: dict[str, int] = dict.fromkeys(names, 0)
        """Nodes with equal numbers reach each other."""
        self.calm = False
        """No more losses."""
        self.counts: Counter[str] = Counter()
        self.died: list[str] = []
        """Nodes whose process ended by itself."""
        self._calls: dict[int, asyncio.Future[Body]] = {}
        self._next_call = 1

    def route(self, envelope: Body) -> None:
        """Something that a node said."""
        source, target, body = envelope["src"], envelope["dest"], envelope["body"]
        if target not in self.processes:
            waiting = self._calls.pop(body["in_reply_to"], None)
            if waiting is not None and not waiting.done():
                waiting.set_result(body)
            return
        self.counts["messages"] += 1
        settings, chance = self.settings, self.random
        if self.sides[source] != self.sides[target]:
            self.counts["cut off"] += 1
            return
        if not self.calm and chance.random() < settings.loss:
            self.counts["lost"] += 1
            return
        line = json.dumps(envelope)
        self._carry(target, line)
        if not self.calm and chance.random() < settings.duplication:
            self.counts["duplicated"] += 1
            self._carry(target, line)

    def _carry(self, target: str, line: str) -> None:
        delay = self.random.expovariate(1000 / self.settings.delay_ms)
        asyncio.get_running_loop().call_later(delay, self.processes[target].write, line)

    async def call(self, target: str, body: Body, timeout_seconds: float) -> Body:
        """A client's request. Raises TimeoutError."""
        number = self._next_call
        self._next_call += 1
        answer: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        envelope = {"src": "c1", "dest": target, "body": body | {"msg_id": number}}
        self.processes[target].write(json.dumps(envelope))
        try:
            return await asyncio.wait_for(answer, timeout_seconds)
        finally:
            self._calls.pop(number, None)

    async def partitions(self) -> None:
        """Part the nodes and join them again, for ever."""
        chance, names = self.random, list(self.sides)
        while True:
            await asyncio.sleep(chance.expovariate(1 / self.settings.partition_seconds))
            if len(set(self.sides.values())) > 1:
                self.join()
                continue
            self.counts["partitions"] += 1
            alone = chance.sample(names, chance.randint(1, len(names) - 1))
            for name in alone:
                self.sides[name] = 1

    def join(self) -> None:
        """Everybody reaches everybody."""
        self.sides = dict.fromkeys(self.sides, 0)

    async def kills(self) -> None:
        """Kill a random node and start it again, for ever."""
        chance = self.random
        while True:
            await asyncio.sleep(chance.expovariate(1 / self.settings.kill_seconds))
            process = self.processes[chance.choice(list(self.processes))]
            self.counts["kills"] += 1
            await process.kill()
            await asyncio.sleep(chance.random())
            await process.start()


class Client:
    """One client: an operation after the other, all of them recorded."""

    def __init__(
        self, number: int, network: Network, history: History, values: Callable[[], int]
    ) -> None:
        self._number = number
        self._network = network
        self._history = history
        self._values = values
        self._random = random.Random(f"{network.settings.seed}/{number}")
        self._seen: dict[int, int] = {}

    async def run(self, until: float) -> None:
        """Until that moment of the loop's clock."""
        loop, chance = asyncio.get_running_loop(), self._random
        targets = list(self._network.processes)
        while loop.time() < until:
            key = chance.randrange(self._network.settings.keys)
            await self.operate(self._body(key), chance.choice(targets))
            await asyncio.sleep(chance.random() * self._network.settings.pause_seconds)

    def _body(self, key: int) -> Body:
        kind = self._random.choice(("read", "write", "cas"))
        if kind == "read":
            return {"type": kind, "key": key}
        if kind == "cas" and key in self._seen:
            return {"type": kind, "key": key, "from": self._seen[key], "to": self._values()}
        return {"type": "write", "key": key, "value": self._values()}

    async def operate(self, body: Body, target: str) -> bool:
        """One operation; whether it was answered."""
        token = self._history.begin(self._number, _request(body), _now_us())
        try:
            told = await self._network.call(target, body, CLIENT_TIMEOUT_SECONDS)
        except TimeoutError:
            return False
        if body["type"] == "read" and "value" in told:
            self._seen[body["key"]] = told["value"]
        answer = _answer(body, told)
        if answer is not None:
            self._history.end(token, _now_us(), Outcome.OK, answer)
        elif told["code"] in INDEFINITE:
            self._history.end(token, _now_us(), Outcome.UNKNOWN, error=told["text"])
        else:
            self._history.end(token, _now_us(), Outcome.REFUSED, error=told["text"])
        return answer is not None


def _now_us() -> int:
    return time.monotonic_ns() // 1000


def _bytes(value: int) -> bytes:
    return b"%d" % value


def _request(body: Body) -> Request:
    key = _bytes(body["key"])
    if body["type"] == "read":
        return Range(key)
    if body["type"] == "write":
        return Put(key, _bytes(body["value"]))
    compare = Compare(key, "value", "=", _bytes(body["from"]))
    return Txn((compare,), (Put(key, _bytes(body["to"])),))


def _answer(body: Body, told: Body) -> Answer | None:
    """What a history records of an answer; None for errors that say nothing of the key.

    The protocol tells no revisions, so they are 0.
    """
    kind, code = body["type"], told.get("code")
    key = _bytes(body["key"])
    if kind == "read" and code is None:
        return RangeAnswer(0, (KeyRecord(key, _bytes(told["value"]), 0, 0, 0),), 1)
    if kind == "read" and code == NO_KEY:
        return RangeAnswer(0, (), 0)
    if kind == "write" and code is None:
        return PutAnswer(0)
    if kind == "cas" and code is None:
        return TxnAnswer(0, True, (PutAnswer(0),))
    if kind == "cas" and code in (NO_KEY, MISMATCH):
        return TxnAnswer(0, False, ())
    return None


@dataclass(frozen=True)
class Run:
    """What came of it."""

    history: History
    counts: Counter[str]
    died: list[str]


async def drive(settings: Settings, folder: Path) -> Run:
    """Run nodes and clients for a while, then heal everything and read every key once more."""
    network = Network(settings, folder)
    history = History()
    numbers = iter(range(1, 1 << 40))
    clients = [
        Client(number, network, history, lambda: next(numbers))
        for number in range(settings.clients)
    ]
    nemeses: list[asyncio.Task[None]] = []
    try:
        await asyncio.gather(*(process.start() for process in network.processes.values()))
        if settings.partition_seconds and settings.nodes > 1:
            nemeses.append(asyncio.create_task(network.partitions()))
        if settings.kill_seconds:
            nemeses.append(asyncio.create_task(network.kills()))
        until = asyncio.get_running_loop().time() + settings.seconds
        await asyncio.gather(*(client.run(until) for client in clients))
        await _stop(nemeses)
        network.join()
        network.calm = True
        await _read_everything(clients[0], settings, network)
    finally:
        await _stop(nemeses)
        for process in network.processes.values():
            await process.kill()
    for operation in history.operations:
        network.counts[operation.outcome.value] += 1
    return Run(history, network.counts, network.died)


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _read_everything(client: Client, settings: Settings, network: Network) -> None:
    """A healed cluster must answer, and its answers bound what became of unknown writes."""
    for process in network.processes.values():
        if process.gone:
            await process.start()
    for name in network.processes:
        for key in range(settings.keys):
            for _ in range(20):
                if await client.operate({"type": "read", "key": key}, name):
                    break
                await asyncio.sleep(0.2)
            else:
                raise AssertionError(f"{name} answers nothing although everything is healed")


def judge(run: Run) -> None:
    """Raises AssertionError when a node died or clients saw what no single copy would show."""
    assert not run.died, f"nodes ended by themselves: {run.died}"
    for key, operations in split(run.history.operations).items():
        found = search(operations)
        assert found.verdict is Verdict.LINEARIZABLE, (
            f"key {key.decode()} is {found.verdict.value}: after {len(found.order)} of "
            f"{len(operations)} operations nothing fits {found.state!r}; stuck at {found.stuck}"
        )


def main() -> None:
    """Run once and judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    defaults = Settings()
    for name, default in vars(defaults).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"default {default}")
    parser.add_argument("--history", type=Path, help="keep what clients saw, as NDJSON")
    options = vars(parser.parse_args())
    kept = options.pop("history")
    with tempfile.TemporaryDirectory(prefix="raftkv-driver-") as folder:
        run = asyncio.run(drive(Settings(**options), Path(folder)))
    if kept:
        run.history.write(kept)
    print(", ".join(f"{count} {what}" for what, count in sorted(run.counts.items())))
    judge(run)
    print("linearizable")


if __name__ == "__main__":
    main()
