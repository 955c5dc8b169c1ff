"""One raftkv member that speaks Maelstrom's protocol over stdin and stdout.

    maelstrom test -w lin-kv --bin raftkv-node --nemesis partition --node-count 3

where `raftkv-node` is a script that runs `python -m tests.maelstrom.node`. Without Maelstrom,
`python -m tests.maelstrom.driver` drives the same nodes.

Inside are the production replica, log, recovery and tables, on a real disk; around them is one
thread that reads lines, ticks, and writes and syncs the log where it stands. Log lines go to
stderr. With `--data DIR` a node that is killed comes back with what it had.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import random
import secrets
import select
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from raftkv.consensus.codec import decode_messages, encode_messages
from raftkv.consensus.config import RaftConfig
from raftkv.consensus.node import RaftNode
from raftkv.consensus.types import Message, SnapshotMeta, StorageWrite
from raftkv.errors import OutcomeUnknown, RaftkvError
from raftkv.machine import commands
from raftkv.machine.commands import CompareTarget, Relation
from raftkv.machine.results import TxnResult
from raftkv.server.append_thread import Pause, append_steps
from raftkv.server.bootstrap import Founding, FoundingMember
from raftkv.server.opening import open_files
from raftkv.server.replica import Replica
from raftkv.server.store import StoreStats
from raftkv.storage.datadir import DataDir
from raftkv.storage.disk import RealDisk
from raftkv.storage.frames import WalIdentity

log = logging.getLogger("raftkv.maelstrom")

TICK_MS = 50
ELECTION_TICKS = 10
REQUEST_TIMEOUT_MS = 3_000
"""Less than Maelstrom's own patience of five seconds, so that a client learns what is known."""
HASH_TICKS = 20
CLUSTER_ID = 0x11AE1
SEGMENT_BYTES = 4 << 20

TIMEOUT, NOT_SUPPORTED, UNAVAILABLE, MALFORMED, NO_KEY, MISMATCH = 0, 10, 11, 12, 20, 22
"""Maelstrom's error codes. Of these only TIMEOUT leaves open whether anything happened."""

Body = dict[str, Any]


class Refusal(Exception):
    """An answer of type "error"."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Member:
    """The replica of one node; implements `raftkv.server.replica.Surroundings`."""

    def __init__(
        self, name: str, names: Sequence[str], folder: str, tell: Callable[[str, Body], None]
    ) -> None:
        """`tell` sends a body to the node of that name."""
        self._tell = tell
        self._names = dict(enumerate(sorted(names), 1))
        self._ids = {each: number for number, each in self._names.items()}
        self._awake = True
        self._writes: list[StorageWrite] = []
        member_id = self._ids[name]
        members = tuple(
            FoundingMember(number, each, (f"maelstrom://{each}",))
            for number, each in self._names.items()
        )
        data = DataDir.open(RealDisk(), folder)
        if data.identity is None:
            data.found(WalIdentity(CLUSTER_ID, member_id))
        opened = open_files(
            RealDisk(),
            data,
            founding=Founding(CLUSTER_ID, member_id, members),
            found_new=True,
            segment_bytes=SEGMENT_BYTES,
            spawn=None,
        )
        self._wal = opened.wal
        self._machine = opened.machine
        node = RaftNode(
            RaftConfig(member_id, election_timeout_ticks=ELECTION_TICKS),
            opened.log,
            random.Random(),
            applied=opened.machine.applied_index,
            trace=log.info,
        )
        self._replica = Replica(
            member_id=member_id,
            boot=secrets.randbits(48) or 1,
            node=node,
            log=opened.log,
            machine=opened.machine,
            surroundings=self,
            stats=StoreStats(),
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            watches_max=1,
        )
        if len(names) == 1:
            node.campaign()

    # What the node calls

    def tick(self, late_ms: int) -> None:
        """A tick has passed; it comes `late_ms` too late."""
        self._replica.tick(self.now_ms(), late_ms if late_ms >= 10 * TICK_MS else 0)

    def share_hash(self) -> None:
        """Let the others compare states."""
        self._replica.share_hash()

    def turn(self) -> None:
        """Everything that is due, until nothing is."""
        while self._awake or self._writes:
            if self._awake:
                self._awake = False
                self._replica.turn()
            writes, self._writes = self._writes, []
            for step in append_steps(self._wal, writes):
                if not isinstance(step, Pause):
                    self._replica.written(step)

    def receive(self, source: str, body: Body) -> None:
        """A body that another node's `tell` made."""
        peer, payload = self._ids[source], base64.b64decode(body["payload"])
        if body["type"] == "raft":
            self._replica.receive(peer, decode_messages(payload))
        else:
            self._replica.receive_frame(peer, body["kind"], payload)

    def read(self, key: bytes, done: Callable[[bytes | RaftkvError | None], None]) -> None:
        """The value of a key, linearizably; None: there is none."""

        def current(error: RaftkvError | None) -> None:
            record = None if error else self._machine.get(key)
            done(error or (record and record.value))

        self._replica.read_index(current)

    def propose(self, command: commands.Command, done: Callable[[Any], None]) -> None:
        """See `Replica.propose`."""
        self._replica.propose(command, done)

    # Surroundings

    def wake(self) -> None:
        self._awake = True

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def send(self, peer: int, messages: list[Message]) -> None:
        self._send(peer, {"type": "raft"}, encode_messages(messages))

    def send_frame(self, peer: int, kind: int, payload: bytes) -> bool:
        self._send(peer, {"type": "raft_frame", "kind": kind}, payload)
        return True

    def _send(self, peer: int, body: Body, payload: bytes) -> None:
        self._tell(self._names[peer], body | {"payload": base64.b64encode(payload).decode()})

    def append(self, write: StorageWrite) -> None:
        self._writes.append(write)

    def send_snapshot(self, message: Message) -> None:
        raise NotImplementedError("logs of this workload are never compacted")

    def install(self, meta: SnapshotMeta) -> None:
        raise NotImplementedError("logs of this workload are never compacted")

    def members_changed(self) -> None:
        pass

    def removed(self) -> None:
        pass


class Node:
    """The protocol: envelopes in, envelopes out."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._name = ""
        self._member: Member | None = None
        self._output: list[str] = []
        self._requests: dict[str, Callable[[Member, Body, Callable[[Any], None]], None]] = {
            "read": _read,
            "write": _write,
            "cas": _cas,
        }

    def take(self, line: str) -> None:
        """One line of input."""
        envelope = json.loads(line)
        source, body = envelope["src"], envelope["body"]
        kind = body.get("type")
        if kind == "init":
            if self._member is None:
                self._name = body["node_id"]
                self._member = Member(self._name, body["node_ids"], self._folder, self._tell)
            self._answer(source, body, {"type": "init_ok"})
        elif self._member is None:
            log.warning("not initialised yet: %s", line)
        elif kind in ("raft", "raft_frame"):
            self._member.receive(source, body)
        elif kind in self._requests:
            self._request(self._member, source, body)
        elif "in_reply_to" not in body:
            self._refuse(source, body, Refusal(NOT_SUPPORTED, f"no such request: {kind}"))

    def _request(self, member: Member, source: str, body: Body) -> None:
        def done(result: Any) -> None:
            if isinstance(result, OutcomeUnknown):
                result = Refusal(TIMEOUT, str(result))
            elif isinstance(result, RaftkvError):
                result = Refusal(UNAVAILABLE, str(result))
            if isinstance(result, Refusal):
                self._refuse(source, body, result)
            else:
                self._answer(source, body, {"type": f"{body['type']}_ok"} | result)

        try:
            self._requests[body["type"]](member, body, done)
        except KeyError as error:
            self._refuse(source, body, Refusal(MALFORMED, f"{error} is missing"))
        except RaftkvError as error:
            self._refuse(source, body, Refusal(MALFORMED, str(error)))

    def tick(self, late_ms: int, *, share_hash: bool) -> None:
        """See `Member.tick`."""
        if self._member is not None:
            self._member.tick(late_ms)
            if share_hash:
                self._member.share_hash()

    def turn(self) -> str:
        """Do what is due; the lines to write."""
        if self._member is not None:
            self._member.turn()
        output, self._output = self._output, []
        return "".join(output)

    def _tell(self, target: str, body: Body) -> None:
        self._output.append(json.dumps({"src": self._name, "dest": target, "body": body}) + "\n")

    def _answer(self, target: str, request: Body, body: Body) -> None:
        self._tell(target, body | {"in_reply_to": request.get("msg_id")})

    def _refuse(self, target: str, request: Body, refusal: Refusal) -> None:
        body = {"type": "error", "code": refusal.code, "text": str(refusal)}
        self._answer(target, request, body)


def _packed(value: Any) -> bytes:
    """A key or value of the workload, which may be any JSON."""
    return json.dumps(value, sort_keys=True).encode()


def _read(member: Member, body: Body, done: Callable[[Any], None]) -> None:
    def told(value: bytes | RaftkvError | None) -> None:
        if value is None:
            done(Refusal(NO_KEY, "no such key"))
        else:
            done({"value": json.loads(value)} if isinstance(value, bytes) else value)

    member.read(_packed(body["key"]), told)


def _write(member: Member, body: Body, done: Callable[[Any], None]) -> None:
    command = commands.put(_packed(body["key"]), _packed(body["value"]))
    member.propose(command, lambda result: done({} if _done(result) else result))


def _cas(member: Member, body: Body, done: Callable[[Any], None]) -> None:
    key, before, after = (_packed(body[name]) for name in ("key", "from", "to"))

    def told(result: Any) -> None:
        if not isinstance(result, TxnResult):
            done(result)
        elif result.succeeded:
            done({})
        elif result.responses[0].records:  # type: ignore[attr-defined]
            done(Refusal(MISMATCH, f"the value is not {body['from']}"))
        else:
            done(Refusal(NO_KEY, "no such key"))

    condition = commands.compare(CompareTarget.VALUE, Relation.EQUAL, key, before)
    then, otherwise = [commands.put_op(key, after)], [commands.range_op(key)]
    member.propose(commands.txn([condition], then, otherwise), told)


def _done(result: Any) -> bool:
    return not isinstance(result, RaftkvError)


def serve(node: Node) -> None:
    """Until the end of input."""
    lines, rest = [], b""
    tick_seconds = TICK_MS / 1000
    next_tick = time.monotonic() + tick_seconds
    ticks = 0
    while True:
        wait = max(0.0, next_tick - time.monotonic())
        if select.select([sys.stdin.fileno()], [], [], wait)[0]:
            data = os.read(sys.stdin.fileno(), 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    node.take(line.decode())
        late = time.monotonic() - next_tick
        if late >= 0:
            ticks += 1
            node.tick(int(late * 1000), share_hash=ticks % HASH_TICKS == 0)
            next_tick = max(next_tick + tick_seconds, time.monotonic())
        output = node.turn().encode()
        while output:
            output = output[os.write(sys.stdout.fileno(), output) :]


def main() -> None:
    """Run one node."""
    parser = argparse.ArgumentParser(description="A raftkv node for Maelstrom's lin-kv workload.")
    parser.add_argument("--data", help="where to keep its data; else a folder that ends with it")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    if options.data:
        serve(Node(options.data))
        return
    with tempfile.TemporaryDirectory(prefix="raftkv-maelstrom-") as folder:
        serve(Node(os.path.join(folder, "data")))


if __name__ == "__main__":
    main()
