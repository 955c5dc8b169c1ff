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

from raftkv.consensus.codec import decode_change, encode_conf
from raftkv.consensus.types import (
    NO_MEMBER,
    ChangeKind,
    ConfigChange,
    ConfState,
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
    DiskFullError,
    LeaseNotFound,
    MemberExists,
    MemberNotFound,
    NoLeader,
    OutcomeUnknown,
    PeerError,
    RaftkvError,
    Refused,
    Stopping,
    TooLarge,
    TooManyRequests,
    check,
)
from raftkv.limits import (
    BATCH_BYTES_MAX,
    BATCH_COMMANDS_MAX,
    LEARNERS_MAX,
    LEASE_REVOKES_PER_BATCH,
    PENDING_COMMANDS_MAX,
    PENDING_READS_MAX,
    VOTERS_MAX,
)
from raftkv.machine import commands
from raftkv.machine.cluster import MemberChange, MemberInfo
from raftkv.machine.results import Applied
from raftkv.server.hash_checks import HashChecks
from raftkv.server.lessor import Lessor
from raftkv.server.pending import Pending
from raftkv.server.read_queue import ReadQueue, read_timed_out
from raftkv.server.shell_frames import ShellFrame
from raftkv.server.store import Done, KeepAliveResult, LeaseTime, StoreStats
from raftkv.server.watch import Watch, WatchHub, WatchSink, WatchSpec

if TYPE_CHECKING:
    from raftkv.consensus.node import RaftNode
    from raftkv.machine.machine import Machine
    from raftkv.storage.wal import WriteReceipt
    from raftkv.storage.wallog import WalLog

BATCH_COMMAND_BYTES_MAX = BATCH_BYTES_MAX - 256
"""Bytes of commands in one batch; the rest is for its head."""
WRITES_IN_FLIGHT_MAX = 1
"""Batches of this member's own on their way to its disk; the next one gathers meanwhile."""
APPLY_ENTRIES_PER_TURN = 64
APPLY_BYTES_PER_TURN = 4 * 1024 * 1024
EXPIRE_COMMANDS_PER_TICK = 16
ROUND_ABANDON_MS = 1_000
"""A ReadIndex round without an answer begins again under a new id after this long."""


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

    def members_changed(self) -> None:
        """The members' ids or addresses changed; see `machine.members`."""

    def removed(self) -> None:
        """This member is no longer part of the cluster; called once."""


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
        self.lessor = Lessor()
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
        self._keep_alives: list[tuple[int, Done]] = []
        self._asked: dict[int, tuple[int, Callable[[Any], None]]] = {}
        self._next_question = 1
        self._leader_seen = NO_MEMBER
        self._term_led = 0
        self._refusing: Refused | None = None
        self._removed = False
        self._hash_sent = 0
        self._apply_blocked = False
        self.corrupt = False
        """This member's state was found to differ from the others'; it serves no more."""

    # -- what doors call ---------------------------------------------------------------------

    def propose(self, command: commands.Command, done: Done) -> None:
        """See `Store.propose`."""
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
            self._commands.append(command)
            self._dones.append(done)
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
        self._keep_alives.append((lease, done))
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
        elif self.node.role is Role.LEADER:
            self._time_as_leader(lease, done)
        else:
            self._ask_leader(
                ShellFrame.LEASE_TIME,
                lease,
                lambda answer: done(_lease_time(lease, answer)),
            )

    def change_members(self, change: ConfigChange, attributes: list[Any], done: Done) -> None:
        """Propose a membership change; `done` gets a `MemberResult` once it is applied here.

        `attributes` is [member_id, name, peer_urls, client_urls, learner] of a new member, or
        [member_id]; they take effect in the same entry as the change.
        """
        if self._refusing is not None:
            self._answer(done, self._refusing)
            return
        sequence = self.pending.register([done], self._around.now_ms() + self._request_timeout_ms)
        context = msgpack.packb([self.member_id, self.boot, sequence, attributes])
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
        self.reads.expire(now_ms, ROUND_ABANDON_MS, read_timed_out())
        self._expire_questions(now_ms)
        if self.lessor.leading:
            self._expire_leases(now_ms)
        self._wake()

    def receive(self, peer: int, messages: Sequence[Message]) -> None:
        """Messages from a peer, already checked to be addressed to this member."""
        node = self.node
        for message in messages:
            if message.kind is MessageKind.PROPOSE:
                self._take_forwarded(message)
            else:
                node.step(message)
        self._wake()

    def receive_frame(self, peer: int, kind: int, payload: bytes) -> None:
        """One of the replica's own frames. Raises PeerError when it is malformed."""
        try:
            fields = msgpack.unpackb(payload)
            if kind == ShellFrame.PROPOSAL_REFUSED:
                boot, sequence, reason = fields
                if boot == self.boot:
                    self.pending.refuse(sequence, _refusal(reason))
            elif kind == ShellFrame.KEEP_ALIVE:
                self._keep_alive_for_peer(peer, *fields)
            elif kind == ShellFrame.LEASE_TIME:
                question, lease = fields
                self._time_as_leader(
                    lease, lambda result: self._reply(peer, question, _time_fields(result))
                )
            elif kind == ShellFrame.ANSWER:
                question, answer = fields
                asked = self._asked.pop(question, None)
                if asked is not None:
                    asked[1](answer)
            elif kind == ShellFrame.HASH:
                index, claimed = fields
                self._compare_hash(peer, index, claimed)
            else:
                raise PeerError(f"unknown frame kind {kind}", peer=peer, kind=kind)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise PeerError(f"malformed frame of kind {kind}: {error}", peer=peer) from error
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
        self._awake = True
        around, node = self._around, self.node
        if self._commands and (
            self._writes_in_flight < WRITES_IN_FLIGHT_MAX or node.role is not Role.LEADER
        ):
            self._propose_gathered()
        if self._keep_alives:
            self._renew_gathered()
        context = self.reads.begin_round(around.now_ms())
        if context is not None:
            node.read_index(context)
        while node.has_ready():
            ready = node.ready()
            node.advance(ready)
            self._take(ready)
        if self._can_apply():
            self._apply_committed()
        for done, answer in self._take_answers():
            done(answer)
        self._awake = False
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
        for _, done in self._keep_alives:
            done(reason)
        self._keep_alives = []

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
        gathered, dones = self._commands, self._dones
        count = len(gathered)
        if count > BATCH_COMMANDS_MAX or self._gathered_bytes > BATCH_COMMAND_BYTES_MAX:
            count = self._fitting()
        if count == len(gathered):
            self._commands, self._dones, self._gathered_bytes = [], [], 0
        else:
            self._commands, self._dones = gathered[count:], dones[count:]
            gathered, dones = gathered[:count], dones[:count]
            self._gathered_bytes -= sum(map(len, gathered))
        now_ms = self._around.now_ms()
        sequence = self.pending.register(dones, now_ms + self._request_timeout_ms)
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

    def _fitting(self) -> int:
        """How many of the gathered commands go into one batch; at least one."""
        size = 0
        for count, command in enumerate(self._commands[:BATCH_COMMANDS_MAX]):
            size += len(command)
            if size > BATCH_COMMAND_BYTES_MAX:
                return count
        return min(len(self._commands), BATCH_COMMANDS_MAX)

    def _take_forwarded(self, message: Message) -> None:
        """Proposals of a follower. The leader stamps them, as it does its own."""
        entries = []
        now_ms = self._around.wall_ms()
        leading = self.node.role is Role.LEADER and message.term == self.node.term
        for entry in message.entries:
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
        if entry.kind is EntryKind.CONFIG:
            context = decode_change(entry.data).context
            if not context:
                return
            origin, boot, sequence, _ = msgpack.unpackb(context)
        else:
            _, origin, boot, sequence, _ = commands.decode_batch(entry.data)
        if origin == self.member_id:
            if boot == self.boot:
                self.pending.refuse(sequence, _refusal(reason))
            return
        payload = msgpack.packb([boot, sequence, reason])
        self._around.send_frame(origin, ShellFrame.PROPOSAL_REFUSED, payload)

    # -- membership ------------------------------------------------------------------------------

    def _check_change(self, change: ConfigChange) -> None:
        """At the leader: refuse what would be wrong or unsafe. Consensus itself refuses a change
        while another is under way."""
        status = self.node.status()
        conf = self.node.conf
        known = {info.member_id: info for info in self.machine.members()}
        voters, learners = set(conf.voters), set(conf.learners)
        attributes = msgpack.unpackb(change.context)[3] if change.context else []
        for kind, member_id in change.changes:
            if kind is ChangeKind.REMOVE:
                if member_id not in voters and member_id not in learners:
                    raise MemberNotFound(
                        f"no member {member_id:016x} in this cluster", member_id=member_id
                    )
                voters.discard(member_id)
                learners.discard(member_id)
                continue
            if member_id in learners and kind is ChangeKind.ADD_VOTER:
                match = status.peers[member_id].match
                if match * 10 < self.node.commit_index * 9:
                    raise ChangeRefused(
                        f"member {member_id:016x} has {match} of {self.node.commit_index} "
                        "entries; promote it once it has caught up",
                        member_id=member_id,
                    )
            elif member_id in voters or member_id in learners:
                raise MemberExists(f"member {member_id:016x} exists already", member_id=member_id)
            elif len(attributes) > 1:
                wanted = set(attributes[2])
                for other in known.values():
                    if wanted & set(other.peer_urls):
                        raise MemberExists(
                            f"member {other.member_id:016x} has that peer address already",
                            member_id=other.member_id,
                        )
            voters.discard(member_id)
            learners.discard(member_id)
            (voters if kind is ChangeKind.ADD_VOTER else learners).add(member_id)
        self._check_survives(voters, learners)

    def _check_survives(self, voters: set[int], learners: set[int]) -> None:
        if not voters:
            raise ChangeRefused("the last voter cannot be removed")
        if len(voters) > VOTERS_MAX:
            raise ChangeRefused(f"a cluster has at most {VOTERS_MAX} voters", limit=VOTERS_MAX)
        if len(learners) > LEARNERS_MAX:
            raise ChangeRefused(
                f"a cluster has at most {LEARNERS_MAX} learners", limit=LEARNERS_MAX
            )
        peers = self.node.status().peers
        before = set(self.node.conf.voters)
        reachable = sum(
            1
            for voter in voters
            if voter == self.member_id or (voter in peers and peers[voter].recent_active)
        )
        if len(voters) < len(before) and reachable * 2 <= len(voters):
            raise ChangeRefused(
                f"only {reachable} of the {len(voters)} voters left would be reachable; "
                "start or repair members first"
            )

    def _apply_config(self, entry: Entry) -> None:
        change = decode_change(entry.data)
        belonged = self.member_id in _everybody(self.node.conf)
        conf = self.node.apply_change(change)
        attributes: list[Any] = []
        origin = boot = sequence = 0
        if change.context:
            origin, boot, sequence, attributes = msgpack.unpackb(change.context)
        applied = self.machine.apply_config(
            entry.index, entry.term, encode_conf(conf), _member_change(change, conf, attributes)
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
        if belonged and self.member_id not in _everybody(conf) and not self._removed:
            self._removed = True
            self._around.removed()

    # -- leases ----------------------------------------------------------------------------------

    def _renew_gathered(self) -> None:
        gathered, self._keep_alives = self._keep_alives, []
        self.stats.keep_alives += len(gathered)
        if self.node.role is Role.LEADER:
            self._renew(
                [lease for lease, _ in gathered],
                lambda answers: _answer_keep_alives(gathered, answers),
            )
        else:
            self._ask_leader(
                ShellFrame.KEEP_ALIVE,
                [lease for lease, _ in gathered],
                lambda answers: _answer_keep_alives(gathered, answers),
            )

    def _renew(self, leases: list[int], done: Callable[[Any], None]) -> None:
        """As leader: renew now, answer once leadership is confirmed from now on.

        A leader elected later than `now` starts every TTL again, so the promise holds either way.
        """
        now_ms = self._around.now_ms()
        term = self.node.term
        renewed = [self.lessor.renew(lease, now_ms) for lease in leases]

        def confirmed(error: RaftkvError | None) -> None:
            if error is not None:
                done(error)
                return
            if self.node.term != term or not self.lessor.leading:
                done(_leader_moved())
                return
            later_ms = self._around.now_ms()
            done(
                [
                    ttl if ttl is not None else self.lessor.renew(lease, later_ms)
                    for lease, ttl in zip(leases, renewed, strict=True)
                ]
            )

        self.reads.add(confirmed, now_ms + self._request_timeout_ms)

    def _keep_alive_for_peer(self, peer: int, question: int, leases: list[int]) -> None:
        if self.node.role is not Role.LEADER or self._refusing is not None:
            self._reply(peer, question, "not leader")
            return

        def done(answer: Any) -> None:
            failed = isinstance(answer, RaftkvError)
            self._reply(peer, question, str(answer) if failed else answer)

        self._renew(leases, done)

    def _time_as_leader(self, lease: int, done: Done) -> None:
        def confirmed(error: RaftkvError | None) -> None:
            if error is not None:
                done(error)
                return
            if not self.lessor.leading:
                done(_leader_moved())
                return
            time = self.lessor.time(lease, self._around.now_ms())
            done(_lease_time(lease, list(time) if time is not None else None))

        self.reads.add(confirmed, self._around.now_ms() + self._request_timeout_ms)
        self._wake()

    def _expire_leases(self, now_ms: int) -> None:
        for _ in range(EXPIRE_COMMANDS_PER_TICK):
            expired = self.lessor.take_expired(now_ms, LEASE_REVOKES_PER_BATCH)
            if not expired:
                return

            def done(result: Any, expired: list[int] = expired) -> None:
                if isinstance(result, RaftkvError):
                    self.lessor.put_back(expired, self._around.now_ms())
                else:
                    self.stats.leases_expired += len(result.expired)

            self.propose(commands.lease_expire(expired, self.node.term), done)

    # -- questions to the leader -----------------------------------------------------------------

    def _ask_leader(self, kind: int, body: Any, done: Callable[[Any], None]) -> None:
        """Send a question to the leader; `done` gets its answer, or a RaftkvError."""
        leader = self.node.leader
        question = self._next_question
        self._next_question += 1
        payload = msgpack.packb([question, body])
        if leader == NO_MEMBER or not self._around.send_frame(leader, kind, payload):
            self._answer(done, NoLeader("no leader is known or reachable; try again shortly"))
            return
        self._asked[question] = (self._around.now_ms() + self._request_timeout_ms, done)

    def _reply(self, peer: int, question: int, answer: Any) -> None:
        self._around.send_frame(peer, ShellFrame.ANSWER, msgpack.packb([question, answer]))

    def _expire_questions(self, now_ms: int) -> None:
        while self._asked:
            question, (deadline_ms, done) = next(iter(self._asked.items()))
            if deadline_ms > now_ms:
                return
            del self._asked[question]
            done(OutcomeUnknown("the leader did not answer in time"))

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
        self.propose(
            commands.alarm(commands.AlarmKind.CORRUPT, self.member_id, True), lambda result: None
        )
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
        if role is Role.LEADER:
            if not self.lessor.leading or self._term_led != self.node.term:
                self._term_led = self.node.term
                leases = [(lease.lease, lease.ttl_seconds) for lease in self.machine.leases()]
                self.lessor.promote(leases, self._around.now_ms())
        elif self.lessor.leading:
            self.lessor.demote()

    def _apply_committed(self) -> None:
        queue = self._committed
        if queue[0].kind is EntryKind.CONFIG:
            self._apply_config(queue[0])
            self._applied_up_to(queue.popleft().index)
            return
        batch: list[tuple[int, int, bytes]] = []
        size = 0
        # What is not durable here waits, though committed: a restart must not find the tables
        # ahead of the log.
        durable = self.log.last_index()
        for entry in queue:
            if entry.index > durable or entry.kind is EntryKind.CONFIG:
                break
            batch.append((entry.index, entry.term, entry.data))
            size += len(entry.data)
            if len(batch) >= APPLY_ENTRIES_PER_TURN or size >= APPLY_BYTES_PER_TURN:
                break
        try:
            applied_entries = self.machine.apply(batch)
        except DiskFullError:
            # Nothing was applied; the next tick tries again. The log keeps what is committed.
            self._apply_blocked = True
            return
        for _ in batch:
            queue.popleft()
        events = []
        for applied in applied_entries:
            self._resolve(applied)
            events.extend(applied.events)
        if events:
            self.hub.publish(events)
        self._applied_up_to(batch[-1][0])

    def _resolve(self, applied: Applied) -> None:
        self.pending.committed(applied.index, applied.term)
        if applied.origin == self.member_id and applied.boot == self.boot:
            self.pending.resolve(applied.sequence, applied.results)
        self.stats.proposals_applied += len(applied.results)
        if self.lessor.leading and applied.leases:
            now_ms = self._around.now_ms()
            for lease, ttl_seconds in applied.leases:
                if ttl_seconds:
                    self.lessor.granted(lease, ttl_seconds, now_ms)
                else:
                    self.lessor.gone(lease)

    def _applied_up_to(self, index: int) -> None:
        self.node.applied(index)
        self.reads.applied(index)
        self._compare_kept_hashes()

    def _install(self, meta: SnapshotMeta) -> None:
        """A received snapshot is durable: the machine is to jump to it."""
        if meta.index > self.machine.applied_index:
            self._committed.clear()
            self._around.install(meta)
        else:
            self._installing -= 1
            self._applied_up_to(self.machine.applied_index)

    def installed(self, meta: SnapshotMeta) -> None:
        """What `Surroundings.install` was asked for is done; the machine stands at `meta`."""
        self._installing -= 1
        check(
            self.machine.applied_index == meta.index,
            "the installed image stands at the snapshot's index",
            machine=self.machine.applied_index,
            snapshot=meta.index,
        )
        self.stats.snapshots_installed += 1
        self.hashes.reset()
        self.pending.jumped(meta.index)
        self.hub.reset_after_install()
        self._around.members_changed()
        self._applied_up_to(meta.index)
        self._wake()


def _everybody(conf: ConfState) -> set[int]:
    return {*conf.voters, *conf.learners, *conf.voters_outgoing}


def _member_change(change: ConfigChange, conf: ConfState, attributes: list[Any]) -> MemberChange:
    """What a membership entry does to the table of members."""
    removed = tuple(member for kind, member in change.changes if kind is ChangeKind.REMOVE)
    added: tuple[MemberInfo, ...] = ()
    if len(attributes) > 1:
        member_id, name, peer_urls, client_urls, learner = attributes
        added = (MemberInfo(member_id, name, tuple(peer_urls), tuple(client_urls), learner),)
    return MemberChange(added, removed, conf.learners)


def _refusal(reason: str) -> Refused:
    if reason == "too much uncommitted":
        return TooManyRequests(
            "the log's uncommitted part is at its limit; try again once followers catch up"
        )
    if reason == "no leader":
        return NoLeader("no leader is known; nothing was done, try again shortly")
    if reason == "transfer in progress":
        return NoLeader("leadership is being handed over; nothing was done, try again shortly")
    return ChangeRefused(reason)


def _leader_moved() -> NoLeader:
    return NoLeader("leadership moved while this was asked; try again")


def _lease_time(lease: int, answer: Any) -> LeaseTime | RaftkvError:
    if isinstance(answer, RaftkvError):
        return answer
    if isinstance(answer, str):
        return NoLeader(answer)
    if answer is None:
        return LeaseNotFound(f"no lease {lease:016x}", lease=lease)
    return LeaseTime(lease, answer[0], answer[1])


def _time_fields(result: Any) -> Any:
    if isinstance(result, LeaseTime):
        return [result.ttl_seconds, result.remaining_ms]
    return None if isinstance(result, LeaseNotFound) else str(result)


def _answer_keep_alives(asked: list[tuple[int, Done]], answers: Any) -> None:
    """Tell each holder its own answer; one error or one text is everybody's."""
    if isinstance(answers, str):
        answers = NoLeader(answers)
    if isinstance(answers, RaftkvError):
        for _, done in asked:
            done(answers)
        return
    for (lease, done), ttl_seconds in zip(asked, answers, strict=True):
        if ttl_seconds is None:
            done(LeaseNotFound(f"no lease {lease:016x}", lease=lease))
        else:
            done(KeepAliveResult(lease, ttl_seconds))
