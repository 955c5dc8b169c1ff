"""A whole Raft group in one process: real nodes, real storage in memory, a network of lists.

Nothing happens by itself. Tests deliver messages, complete storage writes, apply entries, crash
and restart members, in any order; after every move the safety properties are checked.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from raftkv.consensus import codec, quorum
from raftkv.consensus.config import RaftConfig
from raftkv.consensus.invariants import GroupHistory, check_log_matching
from raftkv.consensus.memory import MemoryLogStorage
from raftkv.consensus.node import RaftNode
from raftkv.consensus.types import (
    ConfState,
    Entry,
    EntryKind,
    LogCompacted,
    LogUnavailable,
    Message,
    MessageKind,
    ReadState,
    Refusal,
    Role,
    SnapshotMeta,
    StorageWrite,
)
from tests.support.quorums import check_overlap


@dataclass
class Member:
    """One member: its core, its disk, the writes on their way to it, and its machine."""

    member_id: int
    storage: MemoryLogStorage
    settings: dict[str, object]
    node: RaftNode | None = None
    writes: deque[StorageWrite] = field(default_factory=deque)
    machine: list[tuple[int, bytes]] = field(default_factory=list)
    applied: int = 0
    conf: ConfState = field(default_factory=ConfState)
    unapplied: deque[Entry] = field(default_factory=deque)
    read_states: list[ReadState] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    starts: int = 0

    @property
    def up(self) -> RaftNode:
        """The running node."""
        assert self.node is not None, f"member {self.member_id} is down"
        return self.node


class Group:
    """Members 1..n and everything between them.

    `eager_writes` and `eager_apply` complete writes and apply entries as soon as they are handed
    out; otherwise `persist` and `apply` do it one by one.
    """

    def __init__(
        self,
        voters: Sequence[int] = (1, 2, 3),
        *,
        learners: Sequence[int] = (),
        seed: int = 1,
        eager_writes: bool = True,
        eager_apply: bool = True,
        trace: Callable[[str], None] | None = None,
        logs: dict[int, Sequence[int]] | None = None,
        **settings: object,
    ) -> None:
        """`logs` gives founding members the terms of the entries that they start with, from
        index 2 on; nothing of it is known to be committed."""
        self.random = random.Random(seed)
        self.eager_writes = eager_writes
        self.eager_apply = eager_apply
        self.trace = trace
        self.settings = settings
        self.members: dict[int, Member] = {}
        self.network: list[Message] = []
        self.cut: set[tuple[int, int]] = set()
        self.dropped: list[Message] = []
        self.images: dict[int, tuple[tuple[tuple[int, bytes], ...], ConfState]] = {}
        self.history = GroupHistory()
        self.committed_seen = 0
        self.reads: dict[tuple[int, bytes], int] = {}
        self.on_ready: Callable[[int, object], None] | None = None
        conf = ConfState(voters=tuple(sorted(voters)), learners=tuple(sorted(learners)))
        self.images[1] = ((), conf)
        for member_id in sorted({*voters, *learners}):
            self.add(member_id, conf, log=(logs or {}).get(member_id, ()))

    def __getitem__(self, member_id: int) -> RaftNode:
        return self.members[member_id].up

    def add(
        self,
        member_id: int,
        conf: ConfState | None = None,
        *,
        log: Sequence[int] = (),
        **settings: object,
    ) -> RaftNode:
        """A new member with an empty disk; without `conf` it waits to be told of everything."""
        storage = MemoryLogStorage(conf)
        for index, term in enumerate(log, 2):
            storage.log.append(Entry(index, term, EntryKind.BATCH, b"=%d/%d" % (index, term)))
        member = Member(member_id, storage, {**self.settings, **settings})
        member.conf, member.applied = storage.conf, storage.base.index
        self.members[member_id] = member
        return self.start(member_id)

    def start(self, member_id: int, **settings: object) -> RaftNode:
        """Start a member from what its disk and machine hold."""
        member = self.members[member_id]
        member.settings.update(settings)
        member.storage.conf = member.conf
        member.starts += 1
        member.node = RaftNode(
            RaftConfig(member_id, **member.settings),  # type: ignore[arg-type]
            member.storage,
            random.Random(f"{self.random.random()}"),
            applied=member.applied,
            trace=self.trace,
        )
        return member.node

    def crash(self, member_id: int, *, power: bool = False) -> None:
        """Lose what is not durable. With `power` the machine too falls back to its snapshot."""
        member = self.members[member_id]
        member.node = None
        member.writes.clear()
        member.unapplied.clear()
        member.read_states.clear()
        member.refused.clear()
        self.history.restarted(member_id)
        for key in [key for key in self.reads if key[0] == member_id]:
            del self.reads[key]
        if power:
            base = member.storage.sendable or SnapshotMeta()
            image, conf = self.images.get(base.index, ((), ConfState()))
            member.machine, member.applied, member.conf = list(image), base.index, conf
            assert member.applied >= member.storage.base.index

    def wipe(self, member_id: int) -> RaftNode:
        """Crash a member and give it an empty disk under the same id."""
        self.crash(member_id)
        settings = self.members[member_id].settings
        self.history.restarted(member_id)
        return self.add(member_id, None, **settings)

    # One thing at a time

    def handle(self, member_id: int) -> bool:
        """Take over what one member has to say; whether it had anything."""
        member = self.members[member_id]
        node = member.node
        if node is None or not node.has_ready():
            return False
        ready = node.ready()
        assert ready == node.ready(), "looking changed the answer"
        if self.on_ready is not None:
            self.on_ready(member_id, ready)
        self.network.extend(ready.messages)
        if ready.write is not None:
            member.writes.append(ready.write)
        member.unapplied.extend(ready.committed)
        member.read_states.extend(ready.read_states)
        member.refused.extend(ready.refused)
        for state in ready.read_states:
            floor = self.reads.pop((member_id, state.context), 0)
            assert state.index >= floor, f"stale read at {member_id}: {state.index} < {floor}"
        node.advance(ready)
        self.observe(member_id)
        if self.eager_apply:
            while member.unapplied:
                self.apply(member_id)
        if self.eager_writes:
            while member.writes:
                self.persist(member_id)
        return True

    def persist(self, member_id: int) -> None:
        """Make the oldest write of a member durable and release its replies."""
        member = self.members[member_id]
        write = member.writes.popleft()
        member.storage.write(write)
        if write.snapshot is not None:
            self._install(member, write.snapshot)
        for reply in write.replies:
            if reply.target == member_id:
                member.up.step(reply)
                self.observe(member_id)
            else:
                self.network.append(reply)

    def _install(self, member: Member, meta: SnapshotMeta) -> None:
        while member.unapplied and member.unapplied[0].index <= meta.index:
            member.unapplied.popleft()
        if meta.index > member.applied:
            image, conf = self.images[meta.index]
            assert conf == meta.conf
            member.machine, member.applied, member.conf = list(image), meta.index, conf

    def apply(self, member_id: int) -> None:
        """Apply the next committed entry of a member."""
        member = self.members[member_id]
        entry = member.unapplied.popleft()
        assert entry.index == member.applied + 1, f"{entry.index} after {member.applied}"
        member.machine.append((entry.index, entry.data))
        member.applied = entry.index
        if entry.kind is EntryKind.CONFIG:
            before = member.conf
            member.conf = member.up.apply_change(codec.decode_change(entry.data))
            if member.conf != before:
                check_overlap(before, member.conf)
            self.observe(member_id)
        member.up.applied(entry.index)
        self.observe(member_id)

    def deliver(self, message: Message) -> None:
        """Give one message to its target, through the codec as on a real wire."""
        member = self.members.get(message.target)
        snapshot = message.kind is MessageKind.SNAPSHOT
        source = self.members[message.source].node
        if member is None or member.node is None or (message.source, message.target) in self.cut:
            self.dropped.append(message)
            if snapshot and source is not None:
                source.report_snapshot(message.target, False)
            return
        (same,) = codec.decode_messages(codec.encode_messages([message]))
        assert same == message
        member.node.step(same)
        self.observe(message.target)
        if snapshot and source is not None:
            source.report_snapshot(message.target, True)

    def observe(self, member_id: int) -> None:
        """Check what one member shows after a move."""
        member = self.members[member_id]
        node = member.node
        if node is None:
            return
        self.history.observe([node])
        if node.commit_index > self.committed_seen:
            if node.role is Role.LEADER:
                self._check_durable(node)
            self.committed_seen = node.commit_index

    def _check_durable(self, node: RaftNode) -> None:
        """What a leader commits is on the disks of a quorum, crashed members' disks counted."""
        index = node.commit_index
        term = node.entry_term(index)
        holds = {}
        for other in self.members.values():
            try:
                durable = other.storage.term(index) == term
            except LogCompacted:
                durable = True
            except LogUnavailable:
                durable = False
            holds[other.member_id] = durable
        conf = node.conf
        result = quorum.joint_vote(conf.voters, conf.voters_outgoing, holds)
        assert result is quorum.VoteResult.WON, f"{index} committed without a quorum: {holds}"

    def check(self) -> None:
        """The checks that look at the whole group."""
        nodes = [member.node for member in self.members.values() if member.node is not None]
        check_log_matching(nodes)
        machines = [member.machine for member in self.members.values()]
        longest = max(machines, key=len, default=[])
        for machine in machines:
            assert machine == longest[: len(machine)], "machines differ"

    # Many things

    def take(self) -> list[Message]:
        """Handle everybody, then take all messages off the network."""
        while any([self.handle(member_id) for member_id in list(self.members)]):
            pass
        messages, self.network = self.network, []
        return messages

    def stabilize(self, limit: int = 10_000) -> None:
        """Handle and deliver until nothing moves."""
        for _ in range(limit):
            messages = self.take()
            if not messages:
                self.check()
                return
            for message in messages:
                self.deliver(message)
        raise AssertionError("the group does not come to rest")

    def tick(self, members: Iterable[int] | None = None, count: int = 1) -> None:
        """Let time pass for some or all members, everything settling after each tick."""
        for _ in range(count):
            for member_id in list(members if members is not None else self.members):
                node = self.members[member_id].node
                if node is not None:
                    node.tick()
            self.stabilize()

    def elect(self, member_id: int) -> RaftNode:
        """Make one member leader."""
        self[member_id].campaign()
        self.stabilize()
        node = self[member_id]
        assert node.role is Role.LEADER, f"{member_id} is {node.role.name}"
        return node

    def isolate(self, *member_ids: int) -> None:
        """Cut members off from everybody else."""
        for inside in member_ids:
            for outside in self.members:
                if outside not in member_ids:
                    self.cut |= {(inside, outside), (outside, inside)}

    def heal(self) -> None:
        """Mend the network."""
        self.cut.clear()

    def read(self, member_id: int, context: bytes) -> None:
        """Ask for a linearizable read index; its answer must be as new as what is committed."""
        self.reads[(member_id, context)] = self.committed_seen
        self[member_id].read_index(context)

    def snapshot(self, member_id: int, keep: int = 0) -> SnapshotMeta:
        """Snapshot a member's machine and compact its log but for `keep` entries."""
        member = self.members[member_id]
        meta = SnapshotMeta(member.applied, member.up.entry_term(member.applied), member.conf)
        self.images[meta.index] = (tuple(member.machine), member.conf)
        member.storage.sendable = meta
        durable = min(member.storage.last_index(), member.applied)
        member.storage.compact(min(durable, meta.index - keep))
        return meta

    def leaders(self) -> list[RaftNode]:
        """Everybody who thinks it leads."""
        nodes = [member.node for member in self.members.values()]
        return [node for node in nodes if node is not None and node.role is Role.LEADER]

    def terms(self, member_id: int) -> list[int]:
        """Terms of the entries in a member's log, from index 2 on."""
        node = self[member_id]
        return [entry.term for entry in node.entries(max(2, node.first_index), 1 << 40)]

    def send(self, kind: MessageKind, source: int, target: int, **fields: object) -> list[Message]:
        """Step one made-up message at `target`; what it answers, once that is durable."""
        node = self[target]
        fields.setdefault("term", node.term)
        node.step(Message(kind, source, target, **fields))  # type: ignore[arg-type]
        self.observe(target)
        return [message for message in self.take() if message.source == target]

    def data(self, member_id: int) -> list[bytes]:
        """What a member's machine was given, without no-ops and membership changes."""
        return [data for _, data in self.members[member_id].machine if data.startswith(b"=")]
