"""One member's replica, whole but for its surroundings: no asyncio, no socket, no thread, no clock.

It joins consensus, log, machine, watches, leases and pending requests. The shell around it
(`raftkv.server.member`, or a simulator) brings messages, durable writes and time, and carries out
what the replica asks of `Surroundings`. Everything here runs on one thread, in turns:

    propose / read_index / receive / tick / written  ->  wake()  ->  turn()

A turn gathers what arrived into one batch, hands `Ready` on, applies what is committed and
answers. See performance.md in docs for why nothing here is made per request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgpack

from raftkv.buggify import buggify
from raftkv.checks import check
from raftkv.consensus.codec import decode_change, encode_conf
from raftkv.consensus.types import (
    NO_MEMBER,
    ChangeKind,
    ConfigChange,
    Entry,
    EntryKind,
    Message,
    MessageKind,
    ProposalDropped,
    Ready,
    Role,
    SnapshotMeta,
    StorageWrite,
)
from raftkv.errors import (
    ChangeRefused,
    Corrupt,
    CorruptionError,
    DiskFullError,
    FormatError,
    NoLeader,
    PeerError,
    RaftkvError,
    Refused,
    Stopping,
    TooLarge,
    TooManyRequests,
)
from raftkv.limits import (
    BATCH_BYTES_MAX,
    BATCH_COMMANDS_MAX,
    PENDING_COMMANDS_MAX,
    PENDING_READS_MAX,
)
from raftkv.machine import commands
from raftkv.machine.draft import UNLIMITED, TooManyRemovals
from raftkv.machine.results import Applied
from raftkv.server.hash_checks import HashChecks
from raftkv.server.lease_desk import LeaseDesk
from raftkv.server.membership import (
    change_context,
    check_change,
    everybody,
    member_change,
    read_context,
)
from raftkv.server.pending import Pending
from raftkv.server.read_queue import ReadQueue, read_timed_out
from raftkv.server.repeats import Repeats
from raftkv.server.shell_frames import ShellFrame, decode_shell
from raftkv.server.store import Done, StoreStats
from raftkv.server.watch import Watch, WatchHub, WatchSink, WatchSpec
from raftkv.storage.backend import MapGrownError

if TYPE_CHECKING:
    from raftkv.consensus.node import RaftNode
    from raftkv.machine.machine import Machine, Worked
    from raftkv.server.space import Space
    from raftkv.storage.wal import WriteReceipt
    from raftkv.storage.wallog import WalLog

BATCH_COMMAND_BYTES_MAX = BATCH_BYTES_MAX - 256
"""Bytes of commands in one batch; the rest is for its head."""
WRITES_IN_FLIGHT_MAX = 1
"""Batches of this member's own on their way to its disk; the next one gathers meanwhile."""
APPLY_ENTRIES_PER_TURN = 64
APPLY_BYTES_PER_TURN = 4 * 1024 * 1024
REMOVALS_PER_TURN_MAX = 5_000
"""Keys that may be deleted in one turn; more take an apply aside, in some 20 ms of lost work."""
ROUND_ABANDON_MS = 1_000
"""A ReadIndex round without an answer begins again under a new id after this long."""


Batch = tuple[int, int, bytes]
"""Index, term and data of an entry."""


class Surroundings(Protocol):
    """What a replica needs done for it. Calls return at once and never call back inside."""

    def wake(self) -> None:
        """Call `turn()` soon, once."""

    def now_ms(self) -> int:
        """A clock that never goes back."""

    def wall_ms(self) -> int:
        """The wall clock, for the stamps in batches."""

    def send(self, peer: int, messages: list[Message]) -> None:
        """Send to a peer, in order with earlier messages, or lose them."""

    def send_frame(self, peer: int, kind: int, payload: bytes) -> bool:
        """Send one of the replica's own frames; False: it is lost for certain."""

    def send_snapshot(self, message: Message) -> None:
        """Stream the snapshot that `message` announces; then `node.report_snapshot`."""

    def append(self, write: StorageWrite) -> None:
        """Make a write durable, in order; then `written()`."""

    def install(self, meta: SnapshotMeta) -> None:
        """Replace the machine's tables by the received image of `meta`, reload the machine, then
        call `installed(meta)`. Nothing is applied meanwhile."""

    def apply_aside(self, entries: list[Batch]) -> None:
        """Do `machine.work_out(entries)` without holding up the loop, then call `worked_out`.

        The tables are not written otherwise meanwhile, nor replaced.
        """

    def members_changed(self) -> None:
        """The members' ids or addresses changed; see `machine.members`."""

    def removed(self) -> None:
        """This member is no longer part of the cluster; called once.

        It serves nobody, but answers the others for REMOVED_LINGER_TIMEOUTS election timeouts more:
        it may be the only one to know that its removal is committed, and they need its vote or
        that news of it to elect a leader (`election._learn_commit`).
        """


class Replica:
    """See the module. `boot` is a random number that tells this run of the member from others."""

    def __init__(
        self,
        *,
        member_id: int,
        boot: int,
        node: RaftNode,
        log: WalLog,
        machine: Machine,
        surroundings: Surroundings,
        stats: StoreStats,
        request_timeout_ms: int,
        watches_max: int,
    ) -> None:
        self.member_id = member_id
        self.boot = boot
        self.node = node
        self.log = log
        self.machine = machine
        self.stats = stats
        self.hub = WatchHub(machine, wake=self._wake, watches_max=watches_max)
        self.pending = Pending()
        self.reads = ReadQueue(boot)
        self._repeats = Repeats()
        self._leases = LeaseDesk(
            boot, node, self.reads, surroundings, stats, self.propose, request_timeout_ms
        )
        self.lessor = self._leases.lessor
        self.hashes = HashChecks(member_id)
        self._around = surroundings
        self._request_timeout_ms = request_timeout_ms
        self._awake = False
        self._commands: list[commands.Command] = []
        self._dones: list[Done] = []
        self._gathered_bytes = 0
        self._answers: list[tuple[Done, Any]] = []
        self._committed: deque[Entry] = deque()
        self._writes_in_flight = 0
        self._installing = 0
        """Received snapshots on their way: being made durable, or waiting to be installed."""
        self._images: deque[SnapshotMeta] = deque()
        """Those that are durable; the first is being installed."""
        self._aside: list[Entry] = []
        """Entries under way in `Surroundings.apply_aside`: those right after the applied ones."""
        self._removals_max = REMOVALS_PER_TURN_MAX
        self._leader_seen = NO_MEMBER
        self._term_seen = 0
        self._refusing: Refused | None = None
        self._removed = False
        self._hash_sent = 0
        self._apply_blocked = False
        self.space: Space | None = None
        """Says how much may be proposed at a time; None: all that fits into a batch."""
        self.corrupt = False
        """This member's state was found to differ from the others'; it serves no more."""

    # -- what doors call ---------------------------------------------------------------------

    def propose(self, command: commands.Command, done: Done, *, ahead: bool = False) -> None:
        """See `Store.propose`. `ahead`: before everything that waits to be proposed."""
        if self._refusing is not None:
            self._answer(done, self._refusing)
        elif self.pending.commands + len(self._commands) >= PENDING_COMMANDS_MAX:
            self._answer(
                done,
                TooManyRequests(
                    f"{PENDING_COMMANDS_MAX} writes are waiting already; try again shortly",
                    limit=PENDING_COMMANDS_MAX,
                ),
            )
        elif len(command) > BATCH_COMMAND_BYTES_MAX:
            self._answer(
                done,
                TooLarge(
                    f"the request has {len(command)} bytes; at most {BATCH_COMMAND_BYTES_MAX} go",
                    limit=BATCH_COMMAND_BYTES_MAX,
                ),
            )
        else:
            place = 0 if ahead else len(self._commands)
            self._commands.insert(place, command)
            self._dones.insert(place, done)
            self._gathered_bytes += len(command)
            if not self._awake:
                self._wake()

    def read_index(self, done: Callable[[RaftkvError | None], None]) -> None:
        """See `Store.read_index`."""
        if self._refusing is not None:
            self._answer(done, self._refusing)
        elif self.reads.waiting >= PENDING_READS_MAX:
            self._answer(
                done,
                TooManyRequests(
                    f"{PENDING_READS_MAX} reads are waiting already; try again shortly",
                    limit=PENDING_READS_MAX,
                ),
            )
        else:
            self.reads.add(done, self._around.now_ms() + self._request_timeout_ms)
            if not self._awake:
                self._wake()

    def keep_alive(self, lease: int, done: Done) -> None:
        """See `Store.keep_alive`. Renewals of one turn share one ReadIndex round."""
        if self._refusing is not None:
            self._answer(done, self._refusing)
            return
        self._leases.keep_alive(lease, done)
        if not self._awake:
            self._wake()

    def keep_alives(self, leases: list[int], done: Done) -> None:
        """See `Store.keep_alives`."""
        if self._refusing is not None:
            self._answer(done, self._refusing)
            return
        self._leases.keep_alives(leases, done)
        if not self._awake:
            self._wake()

    def watch(self, spec: WatchSpec, sink: WatchSink) -> Watch:
        """See `Store.watch`."""
        if self._refusing is not None:
            raise self._refusing
        return self.hub.add(spec, sink)

    def lease_time(self, lease: int, done: Done) -> None:
        """See `Store.lease_time`."""
        if self._refusing is not None:
            self._answer(done, self._refusing)
        else:
            self._leases.time(lease, done)
            self._wake()

    def change_members(self, change: ConfigChange, attributes: list[Any], done: Done) -> None:
        """Propose a membership change; `done` gets a `MemberResult` once it is applied here.

        `attributes` is [member_id, name, peer_urls, client_urls, learner] of a new member, or
        [member_id]; they take effect in the same entry as the change.
        """
        if self._refusing is not None:
            self._answer(done, self._refusing)
            return
        sequence = self.pending.register([done], self._around.now_ms() + self._request_timeout_ms)
        context = change_context(self.member_id, self.boot, sequence, attributes)
        change = ConfigChange(change.changes, context)
        try:
            if self.node.role is Role.LEADER:
                self._check_change(change)
            placed = self.node.propose_change(change)
        except ProposalDropped as dropped:
            self.pending.refuse(sequence, _refusal(dropped.reason))
        except Refused as refused:
            self.pending.refuse(sequence, refused)
        else:
            if placed is not None:
                self.pending.placed(sequence, *placed)
            else:
                self.pending.forwarded(sequence, self.node.term)
        self._wake()

    # -- what the surroundings call ------------------------------------------------------------

    def tick(self, now_ms: int, stalled_ms: int = 0) -> None:
        """One tick of the clock passed; `stalled_ms`: how long this process stood still, if so."""
        if stalled_ms:
            self.stats.stalls += 1
            self.lessor.stalled(stalled_ms)
        self._apply_blocked = False
        self.node.tick()
        self.stats.proposals_failed += self.pending.expire(now_ms)
        abandon_ms = 0 if buggify("abandon-read-round") else ROUND_ABANDON_MS
        self.reads.expire(now_ms, abandon_ms, read_timed_out())
        self._leases.tick(now_ms)
        self._wake()

    def receive(self, peer: int, messages: Sequence[Message]) -> None:
        """Messages from a peer, already checked to be addressed to this member.

        Raises PeerError for a proposal that no member could apply: once committed it would stop
        them all. The messages before it are taken.
        """
        node = self.node
        try:
            for message in messages:
                if message.kind is MessageKind.PROPOSE:
                    self._take_forwarded(message)
                else:
                    node.step(message)
        finally:
            self._wake()

    def receive_frame(self, peer: int, kind: int, payload: bytes) -> None:
        """One of the replica's own frames. Raises PeerError when it is malformed."""
        fields = decode_shell(kind, payload)
        if kind == ShellFrame.PROPOSAL_REFUSED:
            boot, sequence, reason = fields
            if boot == self.boot:
                self.pending.refuse(sequence, _refusal(reason))
        elif kind == ShellFrame.HASH:
            index, claimed = fields
            self._compare_hash(peer, index, claimed)
        else:
            self._leases.take_frame(peer, kind, fields, self._refusing)
        self._wake()

    def written(self, written: Sequence[tuple[StorageWrite, WriteReceipt]]) -> None:
        """Writes given to `Surroundings.append` are durable, in order: release their replies."""
        outgoing: dict[int, list[Message]] = {}
        for write, receipt in written:
            self.log.persisted(receipt)
            if write.entries:
                self._writes_in_flight -= 1
            if write.snapshot is not None:
                self._install(write.snapshot)
            for reply in write.replies:
                if reply.target == self.member_id:
                    self.node.step(reply)
                else:
                    outgoing.setdefault(reply.target, []).append(reply)
        for peer, messages in outgoing.items():
            self._around.send(peer, messages)
        self._wake()

    def turn(self) -> None:
        """Do everything that is due now. Calls `wake` if something is left for another turn."""
        # Whoever hears an answer may ask for more at once: that is for another turn.
        self._awake = False
        around, node = self._around, self.node
        if self._commands and (
            self._writes_in_flight < WRITES_IN_FLIGHT_MAX or node.role is not Role.LEADER
        ):
            self._propose_gathered()
        self._leases.flush()
        context = self.reads.begin_round(around.now_ms())
        if context is not None:
            node.read_index(context)
        while node.has_ready():
            ready = node.ready()
            node.advance(ready)
            self._take(ready)
        if self._can_apply() and not buggify("slow-apply"):
            self._apply_committed()
        for done, answer in self._take_answers():
            done(answer)
        if self.hub.pump() or node.has_ready() or self._can_apply():
            self._wake()

    def stop_serving(self, reason: Refused) -> None:
        """Refuse everything from now on with `reason`; consensus goes on."""
        self._refusing = reason
        self.hub.close(reason)
        self.reads.fail_all(reason)
        gathered, self._dones, self._commands = self._dones, [], []
        self._gathered_bytes = 0
        for done in gathered:
            done(reason)
        self._leases.refuse_all(reason)

    def close(self) -> None:
        """The member ends: whoever still waits is told that the outcome is unknown."""
        if self._refusing is None:
            self.stop_serving(Stopping("the member is shutting down"))
        self.pending.close()
        for done, answer in self._take_answers():
            done(answer)

    # -- proposing -------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._around.wake()

    def _answer(self, done: Callable[[Any], None], answer: Any) -> None:
        self._answers.append((done, answer))
        self._wake()

    def _take_answers(self) -> list[tuple[Done, Any]]:
        answers, self._answers = self._answers, []
        return answers

    def _propose_gathered(self) -> None:
        count = self._spacious()
        if not count:
            return
        gathered, dones = self._commands, self._dones
        if count > BATCH_COMMANDS_MAX or self._gathered_bytes > BATCH_COMMAND_BYTES_MAX:
            count = min(count, self._fitting())
        if buggify("tiny-batch"):
            count = 1
        if count == len(gathered):
            size = self._gathered_bytes
            self._commands, self._dones, self._gathered_bytes = [], [], 0
        else:
            self._commands, self._dones = gathered[count:], dones[count:]
            gathered, dones = gathered[:count], dones[:count]
            size = sum(map(len, gathered))
            self._gathered_bytes -= size
        now_ms = self._around.now_ms()
        sequence = self.pending.register(dones, now_ms + self._request_timeout_ms, size)
        data = commands.encode_batch(self.member_id, self.boot, sequence, gathered)
        node = self.node
        if node.role is Role.LEADER:
            data = commands.stamp_batch(data, self._around.wall_ms())
        try:
            placed = node.propose([data])
        except ProposalDropped as dropped:
            self.stats.proposals_failed += count
            self.pending.refuse(sequence, _refusal(dropped.reason))
        else:
            if placed is not None:
                self.pending.placed(sequence, *placed)
            else:
                self.pending.forwarded(sequence, node.term)

    def _spacious(self) -> int:
        """How many of the gathered commands there is space for; 0: wait."""
        if self.space is None:
            return len(self._commands)
        count = self.space.fitting(
            self._commands,
            self._gathered_bytes,
            under_way=(self.pending.bytes, self.pending.commands),
            members=max(1, len(everybody(self.node.conf))),
            alarms=self.machine.alarms,
        )
        self.stats.batches_held_back += count < len(self._commands)
        return count

    def _fitting(self) -> int:
        """How many of the gathered commands go into one batch; at least one."""
        size = 0
        for count, command in enumerate(self._commands[:BATCH_COMMANDS_MAX]):
            size += len(command)
            if size > BATCH_COMMAND_BYTES_MAX:
                return count
        return min(len(self._commands), BATCH_COMMANDS_MAX)

    def _take_forwarded(self, message: Message) -> None:
        """Proposals of a follower, once each. The leader stamps them, as it does its own."""
        entries = []
        now_ms = self._around.wall_ms()
        leading = self.node.role is Role.LEADER and message.term == self.node.term
        if leading:
            self._repeats.begin(message.term)
        elif message.term != self._repeats.term:
            # An earlier run of this member may have taken a copy on, so it is not for this one to
            # say that it was refused. The log will tell.
            return
        for entry in message.entries:
            if not self._repeats.first(*_applicable(entry)):
                continue
            if entry.kind is EntryKind.BATCH:
                data = commands.stamp_batch(entry.data, now_ms) if leading else entry.data
                entries.append(Entry(0, 0, entry.kind, data))
                continue
            try:
                if leading:
                    self._check_change(decode_change(entry.data))
                entries.append(entry)
            except Refused as refused:
                self._tell_refused(entry, str(refused))
        if entries:
            self.node.step(
                Message(
                    MessageKind.PROPOSE,
                    message.source,
                    message.target,
                    message.term,
                    entries=tuple(entries),
                )
            )

    def _tell_refused(self, entry: Entry, reason: str) -> None:
        """Tell whoever proposed `entry` that it will not happen."""
        origin, boot, sequence = _identity(entry)
        if origin == self.member_id:
            if boot == self.boot:
                self.pending.refuse(sequence, _refusal(reason))
            return
        payload = msgpack.packb([boot, sequence, reason])
        self._around.send_frame(origin, ShellFrame.PROPOSAL_REFUSED, payload)

    # -- membership ------------------------------------------------------------------------------

    def _check_change(self, change: ConfigChange) -> None:
        """At the leader: refuse what would be wrong or unsafe."""
        if self._installing:
            # Consensus knows the members of the image, the tables still those before it.
            raise NoLeader(_TAKING_OVER)
        check_change(change, self.node.status(), self.machine.members())

    @property
    def members_known(self) -> bool:
        """Whether this leader's tables hold every membership change that is in its log."""
        return not self._installing and not self.node.change_pending

    def _apply_config(self, entry: Entry) -> None:
        change = decode_change(entry.data)
        belonged = self.member_id in everybody(self.node.conf)
        conf = self.node.apply_change(change)
        origin, boot, sequence, _ = read_context(change.context)
        applied = self.machine.apply_config(
            entry.index, entry.term, encode_conf(conf), member_change(change, conf)
        )
        self.pending.committed(entry.index, entry.term)
        if origin == self.member_id and boot == self.boot:
            self.pending.resolve(sequence, applied.results)
        self._around.members_changed()
        for kind, member_id in change.changes:
            if kind is ChangeKind.REMOVE:
                self.hashes.forget(member_id)
        # A newcomer that reads old entries is not a member yet; only a change that takes this
        # member out ends it.
        if belonged and self.member_id not in everybody(conf) and not self._removed:
            self._removed = True
            self.stop_serving(Stopping("this member was removed from its cluster: ask another one"))
            self._around.removed()

    # -- the hash --------------------------------------------------------------------------------

    def share_hash(self) -> None:
        """Tell the others this member's state hash; called about once a second."""
        index = self.machine.applied_index
        if index == self._hash_sent:
            return
        self._hash_sent = index
        payload = msgpack.packb([index, self.machine.state_hash])
        for info in self.machine.members():
            if info.member_id != self.member_id:
                self._around.send_frame(info.member_id, ShellFrame.HASH, payload)

    def _compare_hash(self, peer: int, index: int, claimed: bytes) -> None:
        if index < self.machine.applied_index:
            own = self.machine.hash_at(index)
            if own is None:
                return
        else:
            own = self.machine.state_hash if index == self.machine.applied_index else None
        self.stats.hash_checks += own is not None
        self.hashes.claim(peer, index, claimed, own)
        self._judge_hash()

    def _compare_kept_hashes(self) -> None:
        for peer, index, claimed in self.hashes.waiting(self.machine.applied_index):
            self._compare_hash(peer, index, claimed)

    def _judge_hash(self) -> None:
        if self.corrupt or not self.hashes.wrong(self.node.leader):
            return
        self.corrupt = True
        alarm = commands.alarm(commands.AlarmKind.CORRUPT, self.member_id, True)
        self.propose(commands.guarded(alarm, commands.BY_MEMBER), lambda result: None)
        self._propose_gathered()
        self.stop_serving(
            Corrupt(
                "this member's state differs from the other members' at the same log index; "
                "it no longer serves. Remove it, wipe its data directory and add it again"
            )
        )
        if self.node.role is Role.LEADER:
            others = [voter for voter in self.node.conf.voters if voter != self.member_id]
            if others:
                self.node.transfer_leader(others[0])

    def _can_apply(self) -> bool:
        queue = self._committed
        return (
            bool(queue)
            and not self._installing
            and not self._aside
            and not self._apply_blocked
            and queue[0].index <= self.log.last_index()
        )

    # -- carrying out Ready ------------------------------------------------------------------------

    def _take(self, ready: Ready) -> None:
        if ready.soft_state is not None:
            self._role_changed(ready.soft_state.role, ready.soft_state.leader)
        if ready.messages:
            outgoing: dict[int, list[Message]] = {}
            for message in ready.messages:
                if message.kind is MessageKind.SNAPSHOT:
                    self._around.send_snapshot(message)
                else:
                    outgoing.setdefault(message.target, []).append(message)
            for peer, messages in outgoing.items():
                self._around.send(peer, messages)
        write = ready.write
        if write is not None:
            if write.entries:
                self._writes_in_flight += 1
            if write.snapshot is not None:
                self._installing += 1
            self._around.append(write)
        if ready.committed:
            self._committed.extend(ready.committed)
            self.stats.proposals_committed += len(ready.committed)
        for state in ready.read_states:
            self.reads.confirmed(state.context, state.index)
        if ready.read_states:
            self.reads.applied(self.machine.applied_index)
        for refusal in ready.refused:
            if refusal.kind is MessageKind.READ_INDEX:
                self.reads.refused(
                    refusal.context, NoLeader("no leader is known; try again shortly")
                )
            else:
                entry = Entry(0, 0, refusal.entry_kind, refusal.context)
                self._tell_refused(entry, "no leader")

    def _role_changed(self, role: Role, leader: int) -> None:
        if leader not in (NO_MEMBER, self._leader_seen):
            self._leader_seen = leader
            self.stats.leader_changes += 1
        leads = role is Role.LEADER
        if leads is not self.lessor.leading or self._term_seen != self.node.term:
            self._term_seen = self.node.term
            self._leases.role_changed(leads, self._lease_ttls)

    def _lease_ttls(self) -> list[tuple[int, int]]:
        return [(lease.lease, lease.ttl_seconds) for lease in self.machine.leases()]

    def _apply_committed(self) -> None:
        queue = self._committed
        if queue[0].kind is EntryKind.CONFIG:
            self._apply_config(queue[0])
            self._applied_up_to(queue.popleft().index)
            return
        entries: list[Entry] = []
        size = 0
        # What is not durable here waits, though committed: a restart must not find the tables
        # ahead of the log.
        durable = self.log.last_index()
        for entry in queue:
            if entry.index > durable or entry.kind is EntryKind.CONFIG:
                break
            entries.append(entry)
            size += len(entry.data)
            if len(entries) >= APPLY_ENTRIES_PER_TURN or size >= APPLY_BYTES_PER_TURN:
                break
            if buggify("tiny-apply"):
                break
        batches = [(entry.index, entry.term, entry.data) for entry in entries]
        removals_max = self._removals_max
        if removals_max != UNLIMITED and buggify("apply-aside"):
            removals_max = 0
        try:
            worked = self.machine.work_out(batches, removals_max=removals_max)
        except DiskFullError:
            # Nothing was applied; the next tick tries again. The log keeps what is committed.
            self._apply_blocked = True
            return
        except MapGrownError:
            return  # Nothing was applied, and the next turn finds more room.
        except TooManyRemovals:
            self._aside = entries
            self._around.apply_aside(batches)
            worked = None
        for _ in entries:
            queue.popleft()
        if worked is not None:
            self._removals_max = REMOVALS_PER_TURN_MAX
            self._adopt(worked, size)

    def worked_out(self, worked: Worked | None) -> None:
        """`Surroundings.apply_aside` is done; None: nothing was applied."""
        entries, self._aside = self._aside, []
        self.stats.applies_aside += 1
        if worked is not None:
            self._adopt(worked, sum(len(entry.data) for entry in entries))
        elif not self._images:
            # Where it has always been possible to wait for space, or to grow, and to try again.
            self._committed.extendleft(reversed(entries))
            self._removals_max = UNLIMITED
        self._wake()

    def _adopt(self, worked: Worked, size: int) -> None:
        applied_entries = self.machine.adopt(worked)
        if self.space is not None:
            self.space.applied(size, sum(len(applied.results) for applied in applied_entries))
        events = []
        for applied in applied_entries:
            self._resolve(applied)
            events.extend(applied.events)
        if events:
            self.hub.publish(events)
        self._applied_up_to(applied_entries[-1].index)

    def _resolve(self, applied: Applied) -> None:
        self.pending.committed(applied.index, applied.term)
        if applied.origin == self.member_id and applied.boot == self.boot:
            self.pending.resolve(applied.sequence, applied.results)
        self.stats.proposals_applied += len(applied.results)
        if applied.leases:
            self._leases.applied(applied.leases)

    def _applied_up_to(self, index: int) -> None:
        self.node.applied(index)
        self.reads.applied(index)
        self._compare_kept_hashes()

    def _install(self, meta: SnapshotMeta) -> None:
        """A received snapshot is durable: the machine is to jump to it."""
        under_way = self._aside[-1].index if self._aside else 0
        if meta.index <= max(under_way, self.machine.applied_index):
            self._installing -= 1
            self._applied_up_to(self.machine.applied_index)
            return
        if self._installing > len(self._images) + 1:
            # A newer one is on its way to the disk, and consensus has forgotten this one.
            self._installing -= 1
            return
        self._committed.clear()
        self._images.append(meta)
        if len(self._images) == 1:
            self._around.install(meta)

    def installed(self, meta: SnapshotMeta) -> None:
        """What `Surroundings.install` was asked for is done; the machine stands at `meta`."""
        self._installing -= 1
        self._images.popleft()
        check(
            self.machine.applied_index == meta.index,
            "the installed image stands at the snapshot's index",
            machine=self.machine.applied_index,
            snapshot=meta.index,
        )
        self.stats.snapshots_installed += 1
        self.hashes.reset()
        self.pending.jumped(meta.index)
        if self.lessor.leading:
            self._leases.installed(self._lease_ttls())
        self.hub.reset_after_install()
        self._around.members_changed()
        self._applied_up_to(meta.index)
        if self._images:
            # It came meanwhile. The tables can hold one image that is about to be installed.
            self._around.install(self._images[0])
        self._wake()


_TAKING_OVER = "the leader is just taking over; nothing was done, try again shortly"


def _identity(entry: Entry) -> tuple[int, int, int]:
    """(origin, boot, sequence) of a proposal."""
    if entry.kind is EntryKind.BATCH:
        return commands.batch_head(entry.data)
    return read_context(decode_change(entry.data).context)[:3]


def _applicable(entry: Entry) -> tuple[int, int, int]:
    """The identity of a forwarded proposal, all of which is decoded. Raises PeerError."""
    if entry.kind is not EntryKind.BATCH:
        return _identity(entry)
    if len(entry.data) > BATCH_BYTES_MAX:
        raise PeerError("a proposal is larger than a batch may be", size=len(entry.data))
    try:
        return commands.decode_batch(entry.data)[1:4]
    except (CorruptionError, FormatError) as error:
        raise PeerError(f"a proposal that cannot be applied: {error}") from None


def _refusal(reason: str) -> Refused:
    if reason == "too much uncommitted":
        return TooManyRequests(
            "the log's uncommitted part is at its limit; try again once followers catch up"
        )
    if reason == "no leader":
        return NoLeader("no leader is known; nothing was done, try again shortly")
    if reason == "transfer in progress":
        return NoLeader("leadership is being handed over; nothing was done, try again shortly")
    if reason == "removed":
        return NoLeader("the leader is leaving the cluster; nothing was done, try again shortly")
    if reason in ("no entry of this term is committed yet", _TAKING_OVER):
        return NoLeader(_TAKING_OVER)
    if reason == "a membership change is pending":
        return TooManyRequests(
            "another membership change is under way; nothing was done, try again shortly"
        )
    return ChangeRefused(reason)
