"""The façade: one member of a Raft group as a pure machine.

    shell                                   RaftNode
    tick, step, propose, read_index ...  -> (changes state, gathers output)
    has_ready / ready                    <- everything wanted from the world, in one value
    advance(ready)                       -> the shell has taken it over
    step(PERSISTED ...)                  -> a write is durable
    applied(index)                       -> the machine has come this far

No call blocks, and none reads a clock. Nothing becomes durable or applied by `advance`: that is
reported apart, when it is true. Between `ready` and its `advance` no input may be given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raftkv.checks import check
from raftkv.consensus import codec, confchange, election, follower, reads, replication
from raftkv.consensus.config import RaftConfig, RandomSource
from raftkv.consensus.core import Core
from raftkv.consensus.invariants import check_core
from raftkv.consensus.progress import ProgressState
from raftkv.consensus.types import (
    NO_MEMBER,
    ConfigChange,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    LogStorage,
    Message,
    MessageKind,
    ProposalDropped,
    Ready,
    Refusal,
    Role,
    SoftState,
    StorageWrite,
)
from raftkv.errors import PeerError

_APPEND = MessageKind.APPEND
_APPEND_REPLY = MessageKind.APPEND_REPLY
_HEARTBEAT = MessageKind.HEARTBEAT
_HEARTBEAT_REPLY = MessageKind.HEARTBEAT_REPLY
_PERSISTED = MessageKind.PERSISTED
_PRE_VOTE = MessageKind.PRE_VOTE
_PRE_VOTE_REPLY = MessageKind.PRE_VOTE_REPLY
_SNAPSHOT = MessageKind.SNAPSHOT
_VOTE = MessageKind.VOTE
_VOTE_REPLY = MessageKind.VOTE_REPLY

_OF_LEADER = frozenset({_APPEND, _HEARTBEAT, _SNAPSHOT})
_TERMLESS = frozenset({MessageKind.PROPOSE, MessageKind.READ_INDEX, MessageKind.TRANSFER_LEADER})


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A leader's view of one member."""

    match: int
    next: int
    state: ProgressState
    paused: bool
    inflight_messages: int
    inflight_bytes: int
    recent_active: bool
    """Heard from within the last election time-out, or the one before: right after a quorum check
    nobody has answered yet, and yet nobody is gone."""
    pending_snapshot: int


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot of a member's state for metrics and people."""

    member_id: int
    role: Role
    leader: int
    term: int
    vote: int
    commit_index: int
    applied_index: int
    stable_index: int
    last_index: int
    conf: ConfState
    lead_transferee: int
    uncommitted_bytes: int
    pending_reads: int
    peers: dict[int, PeerStatus]
    """Empty except on the leader; holds the leader too."""


class RaftNode:
    """One member of a Raft group.

    `storage` is read, never written: writes go through `Ready.write`. `applied` is the index up
    to which the machine has applied already, and `storage.initial_state()` gives the membership
    as of that index. `trace` receives a line for each change of state worth reading.
    """

    __slots__ = ("_core", "_cuts")

    def __init__(
        self,
        config: RaftConfig,
        storage: LogStorage,
        random: RandomSource,
        *,
        applied: int = 0,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self._core = Core(config, storage, random, applied, trace)
        self._cuts = 0

    # What it is

    @property
    def member_id(self) -> int:
        """This member's id."""
        return self._core.member_id

    @property
    def role(self) -> Role:
        """What this member is just now."""
        return self._core.role

    @property
    def leader(self) -> int:
        """The leader of the current term as far as known, or NO_MEMBER."""
        return self._core.leader

    @property
    def term(self) -> int:
        """The current term; perhaps not durable yet."""
        return self._core.term

    @property
    def vote(self) -> int:
        """Whom this member voted for in its term; NO_MEMBER: nobody."""
        return self._core.vote

    @property
    def commit_index(self) -> int:
        """Greatest index known to be committed."""
        return self._core.log.committed

    @property
    def applied_index(self) -> int:
        """Greatest index reported as applied."""
        return self._core.log.applied

    @property
    def last_index(self) -> int:
        """Index of the newest entry, durable or not."""
        return self._core.log.last_index

    @property
    def first_index(self) -> int:
        """Index of the oldest entry that can be read."""
        return self._core.log.first_index()

    @property
    def stable_index(self) -> int:
        """Everything up to here is durable on this member."""
        return self._core.log.stable_index

    @property
    def conf(self) -> ConfState:
        """The membership in force."""
        return self._core.conf

    @property
    def change_pending(self) -> bool:
        """Whether this leader's log may hold a membership change that is not applied here."""
        return self._core.pending_conf_index > self._core.log.applied

    @property
    def is_learner(self) -> bool:
        """Whether this member receives the log without a vote."""
        return self._core.member_id in self._core.conf.learners

    @property
    def lead_transferee(self) -> int:
        """To whom leadership is being handed over, or NO_MEMBER."""
        return self._core.transferee

    def entry_term(self, index: int) -> int:
        """Term of the entry at `index`. Raises LogCompacted or LogUnavailable."""
        return self._core.log.term(index)

    def entries(self, low: int, high: int, bytes_max: int = 1 << 62) -> tuple[Entry, ...]:
        """Entries in [low, high), durable or not. Raises LogCompacted or LogUnavailable."""
        return self._core.log.read(low, bytes_max, min(high, self.last_index + 1))

    def status(self) -> Status:
        """Everything worth showing; not for hot paths."""
        core = self._core
        log = core.log
        peers = {}
        if core.role is Role.LEADER:
            peers = {
                member: PeerStatus(
                    match=progress.match,
                    next=progress.next,
                    state=progress.state,
                    paused=progress.paused,
                    inflight_messages=len(progress.inflight),
                    inflight_bytes=progress.inflight_bytes,
                    recent_active=progress.recent_active or progress.active_before,
                    pending_snapshot=progress.pending_snapshot,
                )
                for member, progress in core.progress.items()
            }
        return Status(
            member_id=core.member_id,
            role=core.role,
            leader=core.leader,
            term=core.term,
            vote=core.vote,
            commit_index=log.committed,
            applied_index=log.applied,
            stable_index=log.stable_index,
            last_index=log.last_index,
            conf=core.conf,
            lead_transferee=core.transferee,
            uncommitted_bytes=core.uncommitted_bytes,
            pending_reads=core.reads.count,
            peers=peers,
        )

    # Inputs

    def tick(self) -> None:
        """A tick of time has passed."""
        core = self._core
        if core.role is Role.LEADER:
            replication.tick(core)
            return
        core.election_elapsed += 1
        core.heartbeat_elapsed += 1
        if core.heartbeat_elapsed >= core.config.heartbeat_ticks:
            core.heartbeat_elapsed = 0
            reads.tick(core)
        if core.election_elapsed >= core.election_timeout:
            if not core.promotable:
                # Nothing to win, but a leader not heard of for so long is no leader to send to.
                if core.leader != NO_MEMBER and core.election_elapsed >= 2 * core.election_timeout:
                    core.become_follower(core.term, NO_MEMBER, "leader silent")
                return
            core.election_elapsed = 0
            core.draw_election_timeout()
            election.campaign(core)

    def campaign(self) -> None:
        """Start an election now; nothing happens on a leader or a member that may not."""
        self._core.election_elapsed = 0
        election.campaign(self._core)

    def step(self, message: Message) -> None:
        """Take a message of a peer, or a reply that this member addressed to itself.

        Messages may be lost, repeated and reordered, except that the shell hands each PROPOSE
        over once: a second copy would be another proposal.
        """
        core = self._core
        kind = message.kind
        if kind is _PERSISTED:
            self._persisted(message)
            return
        if message.target != core.member_id:
            core.note(f"ignores {kind.name} for {message.target}")
            return
        term = message.term
        if term != core.term and kind not in _TERMLESS and not self._admit(message):
            return
        if kind is _APPEND_REPLY:
            if core.role is Role.LEADER:
                replication.handle_append_reply(core, message)
        elif kind is _APPEND:
            core.follow(message.source)
            follower.handle_append(core, message)
        elif kind is _HEARTBEAT:
            core.follow(message.source)
            follower.handle_heartbeat(core, message)
        elif kind is _HEARTBEAT_REPLY:
            if core.role is Role.LEADER:
                replication.handle_heartbeat_reply(core, message)
        else:
            self._step_rare(message)

    def _step_rare(self, message: Message) -> None:
        core = self._core
        kind = message.kind
        if kind is _VOTE or kind is _PRE_VOTE:
            election.handle_request(core, message)
        elif kind is _VOTE_REPLY or kind is _PRE_VOTE_REPLY:
            election.handle_reply(core, message)
        elif kind is _SNAPSHOT:
            core.follow(message.source)
            follower.handle_snapshot(core, message)
        elif kind is MessageKind.PROPOSE:
            self._proposed(message)
        elif kind is MessageKind.READ_INDEX:
            reads.request(core, message.source, message.context)
        elif kind is MessageKind.READ_INDEX_REPLY:
            reads.handle_reply(core, message)
        elif kind is MessageKind.TIMEOUT_NOW:
            election.handle_timeout_now(core, message)
        elif kind is MessageKind.TRANSFER_LEADER and core.role is Role.LEADER:
            try:
                replication.transfer(core, int(message.context))
            except (ValueError, ProposalDropped) as error:
                core.note(f"refuses transfer asked by {message.source}: {error}")

    def _admit(self, message: Message) -> bool:
        """Apply the rules about other terms (paper 5.1); whether to go on with the message."""
        core = self._core
        kind = message.kind
        if message.term > core.term:
            asks = kind is _VOTE or kind is _PRE_VOTE
            if (
                asks
                and core.config.check_quorum
                and core.leader != NO_MEMBER
                and core.election_elapsed < core.config.election_timeout_ticks
                and message.context != election.TRANSFER
            ):
                # A leader lives: whoever asks is cut off or removed (thesis 4.2.3).
                core.note(f"ignores {kind.name} of {message.source} reason=leader-alive")
                return False
            if kind is _PRE_VOTE or (kind is _PRE_VOTE_REPLY and not message.reject):
                return True  # Nobody has entered that term yet.
            core.become_follower(
                message.term,
                message.source if kind in _OF_LEADER else NO_MEMBER,
                f"{kind.name} of {message.source}",
            )
            return True
        if kind is _HEARTBEAT or kind is _APPEND:
            # Its sender may not know of this term, or this member may be stuck in it because
            # everybody else ignores its vote requests: the answer makes that leader step down.
            core.reply(Message(_APPEND_REPLY, core.member_id, message.source, term=core.term))
        elif kind is _PRE_VOTE:
            core.reply(
                Message(
                    _PRE_VOTE_REPLY, core.member_id, message.source, term=core.term, reject=True
                )
            )
        return False

    def _persisted(self, message: Message) -> None:
        core = self._core
        log = core.log
        if message.term > core.durable_term:
            core.durable_term = message.term
        if message.snapshot is not None:
            # Holds in any term: a snapshot is committed state.
            log.snapshot_persisted(message.snapshot)
        if message.term != core.term:
            # The entry named may have been replaced since, and even be back by another write that
            # is not durable. The write that carried the new term answers for what is left.
            return
        if message.index:
            log.persisted(message.index, message.log_term)
        if core.role is Role.LEADER:
            replication.persisted_to(core, log.stable_index)

    def _proposed(self, message: Message) -> None:
        core = self._core
        for entry in message.entries:
            try:
                if core.role is not Role.LEADER or message.term != core.term:
                    # Whoever forwarded it counts on this: only a leader of the term that it was
                    # forwarded in appends it.
                    raise ProposalDropped("no leader")
                if entry.kind is EntryKind.CONFIG:
                    replication.propose_change(core, codec.decode_change(entry.data))
                else:
                    replication.propose(core, (entry.data,))
            except (ProposalDropped, PeerError) as error:
                core.note(f"refuses proposal of {message.source}: {error}")
                core.refused.append(Refusal(MessageKind.PROPOSE, entry.data, entry.kind))

    def propose(self, data: Sequence[bytes]) -> tuple[int, int] | None:
        """Propose batches, all or none.

        On the leader: (index of the first entry, term); entry i is committed if and only if an
        entry of that term is applied at that index. Elsewhere they are forwarded, and None is
        returned: they are appended by a leader of the present term or by nobody, so once an entry
        of a later term is applied and they were not, they never will be. Raises
        `ProposalDropped`.
        """
        core = self._core
        if core.role is Role.LEADER:
            return replication.propose(core, data), core.term
        self._forward(EntryKind.BATCH, data)
        return None

    def propose_change(self, change: ConfigChange) -> tuple[int, int] | None:
        """Propose a membership change; otherwise like `propose`."""
        core = self._core
        if core.role is Role.LEADER:
            return replication.propose_change(core, change), core.term
        self._forward(EntryKind.CONFIG, (codec.encode_change(change),))
        return None

    def _forward(self, kind: EntryKind, data: Sequence[bytes]) -> None:
        core = self._core
        if core.leader == NO_MEMBER:
            raise ProposalDropped("no leader")
        core.send(
            Message(
                MessageKind.PROPOSE,
                core.member_id,
                core.leader,
                term=core.term,
                entries=tuple([Entry(0, 0, kind, item) for item in data]),
            )
        )

    def read_index(self, context: bytes) -> None:
        """Ask for an index at which a read is linearizable.

        Answered by `Ready.read_states` or `Ready.refused` with the same context; requests that
        wait together share one round of messages. After a lost message the question is repeated
        at the next heartbeat, so the shell needs no retry, only a limit to its patience.
        """
        reads.request(self._core, self._core.member_id, context)

    def transfer_leader(self, target: int) -> None:
        """Hand leadership over to `target`, or ask the leader to. Shows in `leader` when done.

        Raises `ProposalDropped` when no leader is known or, on the leader, when the target is
        not a voter.
        """
        core = self._core
        if core.role is Role.LEADER:
            replication.transfer(core, target)
        elif core.leader == NO_MEMBER:
            raise ProposalDropped("no leader")
        else:
            core.send(
                Message(
                    MessageKind.TRANSFER_LEADER,
                    core.member_id,
                    core.leader,
                    context=str(target).encode(),
                )
            )

    def applied(self, index: int) -> None:
        """The machine has applied everything up to `index`."""
        core = self._core
        core.log.applied_to(index)
        if core.conf.auto_leave:
            replication.maybe_leave_joint(core)

    def apply_change(self, change: ConfigChange) -> ConfState:
        """Put a committed membership change in force. Call it in log order, before `applied`.

        Returns the membership from now on. A leader that is no voter any more steps down. A
        change that does not fit changes nothing; it does so on every member alike.
        """
        core = self._core
        try:
            conf = confchange.changed(core.conf, change)
        except confchange.ChangeRejected as error:
            core.note(f"finds a change without effect: {error}")
            return core.conf
        core.use_conf(conf)
        core.note(f"uses configuration {describe_conf(conf)}")
        if core.role is not Role.LEADER:
            return conf
        if core.transferee != NO_MEMBER and not confchange.is_voter(conf, core.transferee):
            core.note(f"gives up transfer to {core.transferee}")
            core.transferee = NO_MEMBER
        core.dirty = True
        if not core.is_voter:
            # The others learn first that the change is committed, then look for a leader.
            replication.flush(core)
            core.become_follower(core.term, NO_MEMBER, "removed")
            return conf
        replication.maybe_commit(core)
        reads.recount(core)
        return conf

    def report_unreachable(self, peer: int) -> None:
        """Messages to `peer` could not be delivered."""
        if self._core.role is Role.LEADER:
            replication.report_unreachable(self._core, peer)

    def report_snapshot(self, peer: int, delivered: bool) -> None:
        """The transfer that a SNAPSHOT message asked for has ended. Must come once for each."""
        if self._core.role is Role.LEADER:
            replication.report_snapshot(self._core, peer, delivered)

    # Outputs

    def has_ready(self) -> bool:
        """Whether `ready` has anything to say."""
        core = self._core
        if core.dirty or core.reads.count:
            self._settle()
        log = core.log
        return bool(
            core.messages
            or core.replies
            or log.handed <= log.last_index
            or (log.committed > log.applying and log.applicable_index > log.applying)
            or core.read_states
            or core.refused
            or core.term != core.handed_term
            or core.vote != core.handed_vote
            or core.role is not core.handed_role
            or core.leader != core.handed_leader
            or (log.snapshot is not None and not log.snapshot_handed)
        )

    def ready(self) -> Ready:
        """Everything wanted from the world. Looking again gives an equal value."""
        core = self._core
        if core.dirty or core.reads.count:
            self._settle()
        log = core.log
        self._cuts = log.truncations
        soft_state = None
        if (
            core.role is not core.handed_role
            or core.leader != core.handed_leader
            or core.term != core.handed_term
        ):
            soft_state = SoftState(core.role, core.leader, core.term)
        return Ready(
            tuple(core.messages),
            self._write(),
            log.next_committed(core.config.committed_bytes_max),
            tuple(core.read_states),
            soft_state,
            tuple(core.refused),
        )

    def _settle(self) -> None:
        core = self._core
        if core.dirty:
            replication.flush(core)
        reads.flush(core)

    def _write(self) -> StorageWrite | None:
        core = self._core
        log = core.log
        entries = log.unhanded()
        snapshot = None if log.snapshot_handed else log.snapshot
        urgent = core.term != core.handed_term or core.vote != core.handed_vote
        if not (entries or urgent or core.replies or snapshot):
            return None
        hard_state = None
        if urgent or log.committed != core.handed_commit:
            # The commit index alone is no reason to write; it travels with what is.
            hard_state = HardState(core.term, core.vote, log.committed)
        # Writes become durable in order, so this one answers for all that is on its way.
        tail = log.entries[-1] if log.entries else None
        persisted = Message(
            _PERSISTED,
            core.member_id,
            core.member_id,
            core.term,
            0 if tail is None else tail.index,
            0 if tail is None else tail.term,
            snapshot=log.snapshot,
        )
        return StorageWrite(entries, hard_state, snapshot, True, (persisted, *core.replies))

    def advance(self, ready: Ready) -> None:
        """The shell has taken `ready` over: messages sent, write queued, committed queued.

        Nothing is durable or applied because of this call.
        """
        core = self._core
        log = core.log
        check(log.truncations == self._cuts, "input between ready and advance")
        if ready.messages:
            del core.messages[: len(ready.messages)]
        write = ready.write
        if write is not None:
            del core.replies[: len(write.replies) - 1]
            if write.entries:
                log.handed = write.entries[-1].index + 1
            if write.hard_state is not None:
                core.handed_term = write.hard_state.term
                core.handed_vote = write.hard_state.vote
                core.handed_commit = write.hard_state.commit_index
            if write.snapshot is not None:
                log.snapshot_handed = True
        if ready.committed:
            log.applying = ready.committed[-1].index
        if ready.read_states:
            del core.read_states[: len(ready.read_states)]
        if ready.refused:
            del core.refused[: len(ready.refused)]
        if ready.soft_state is not None:
            core.handed_role = ready.soft_state.role
            core.handed_leader = ready.soft_state.leader
        check_core(core)


def describe_conf(conf: ConfState) -> str:
    """A configuration in one short line."""
    text = f"voters={list(conf.voters)}"
    if conf.voters_outgoing:
        text += f" outgoing={list(conf.voters_outgoing)}"
    if conf.learners:
        text += f" learners={list(conf.learners)}"
    if conf.learners_next:
        text += f" learners_next={list(conf.learners_next)}"
    return text + (" auto-leave" if conf.auto_leave else "")
