"""The values that consensus exchanges with the world. Plain, frozen, slotted; no behaviour.

Names follow the Raft paper (Ongaro and Ousterhout 2014) and Ongaro's thesis (2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, Protocol


class Value:
    """Equal, hashed and shown by its fields. Nobody may change one: they are shared."""

    __slots__ = ()

    def fields(self) -> tuple[object, ...]:
        """Everything it is, in the order of the constructor."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash(self.fields())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.fields()}"


NO_MEMBER = 0
"""Member ids are positive 64-bit integers; 0 means nobody (no vote cast, no leader known)."""


class EntryKind(IntEnum):
    """What an entry's data means."""

    BATCH = 0
    """A batch of commands for the machine; empty data is a new leader's no-op."""
    CONFIG = 1
    """An encoded `ConfigChange`."""


class Entry(Value):
    """One position of the replicated log. `data` is opaque to consensus and never copied."""

    __slots__ = (
        "data",
        "index",
        "kind",
        "term",
    )

    def __init__(self, index: int, term: int, kind: EntryKind, data: bytes) -> None:
        self.index: Final = index
        self.term: Final = term
        self.kind: Final = kind
        self.data: Final = data

    def fields(self) -> tuple[object, ...]:
        return (self.index, self.term, self.kind, self.data)


class HardState(Value):
    """What must survive a crash (paper, figure 2, "persistent state"), plus the commit index.

    `commit_index` may lag behind on disk; it only saves work after a restart.
    """

    __slots__ = (
        "commit_index",
        "term",
        "vote",
    )

    def __init__(self, term: int = 0, vote: int = NO_MEMBER, commit_index: int = 0) -> None:
        self.term: Final = term
        self.vote: Final = vote
        self.commit_index: Final = commit_index

    def fields(self) -> tuple[object, ...]:
        return (self.term, self.vote, self.commit_index)


class ConfState(Value):
    """Membership as of some index. Sorted tuples of member ids, so that equal means identical.

    `voters_outgoing` is not empty only while a joint configuration is in force (thesis 4.3).
    `learners_next` are outgoing voters that become learners when the joint configuration ends.
    """

    __slots__ = (
        "auto_leave",
        "learners",
        "learners_next",
        "voters",
        "voters_outgoing",
    )

    def __init__(
        self,
        voters: tuple[int, ...] = (),
        learners: tuple[int, ...] = (),
        voters_outgoing: tuple[int, ...] = (),
        learners_next: tuple[int, ...] = (),
        auto_leave: bool = False,
    ) -> None:
        self.voters: Final = voters
        self.learners: Final = learners
        self.voters_outgoing: Final = voters_outgoing
        self.learners_next: Final = learners_next
        self.auto_leave: Final = auto_leave

    def fields(self) -> tuple[object, ...]:
        return (
            self.voters,
            self.learners,
            self.voters_outgoing,
            self.learners_next,
            self.auto_leave,
        )


NO_CONF: Final = ConfState()


class ChangeKind(IntEnum):
    """One step of a membership change."""

    ADD_VOTER = 0
    """Also promotes a learner."""
    ADD_LEARNER = 1
    """Also demotes a voter."""
    REMOVE = 2


class ConfigChange(Value):
    """A membership change. No changes at all means: leave the joint configuration.

    With `auto` one change of one voter is made in a single step, and anything else enters a joint
    configuration that the leader leaves by itself once it is committed.
    """

    __slots__ = (
        "changes",
        "context",
    )

    def __init__(
        self,
        changes: tuple[tuple[ChangeKind, int], ...] = (),
        context: bytes = b"",
    ) -> None:
        self.changes: Final = changes
        self.context: Final = context
        """Opaque; the shell keeps the member's name and addresses and its request id here."""

    def fields(self) -> tuple[object, ...]:
        return (self.changes, self.context)


class SnapshotMeta(Value):
    """A snapshot stands for the whole log up to and including `index`."""

    __slots__ = (
        "conf",
        "index",
        "term",
    )

    def __init__(self, index: int = 0, term: int = 0, conf: ConfState = NO_CONF) -> None:
        self.index: Final = index
        self.term: Final = term
        self.conf: Final = conf

    def fields(self) -> tuple[object, ...]:
        return (self.index, self.term, self.conf)


class MessageKind(IntEnum):
    """Peer messages. Requests of a lower term are ignored or answered with the higher term."""

    PRE_VOTE = 1
    PRE_VOTE_REPLY = 2
    VOTE = 3
    VOTE_REPLY = 4
    APPEND = 5
    APPEND_REPLY = 6
    HEARTBEAT = 7
    HEARTBEAT_REPLY = 8
    SNAPSHOT = 9
    """Announces a snapshot; the shell streams its bytes and steps this message at the receiver
    only when the whole file is verified there."""
    PROPOSE = 10
    """Forwards proposals to the leader; `entries` carry kind and data only."""
    READ_INDEX = 11
    READ_INDEX_REPLY = 12
    TIMEOUT_NOW = 13
    TRANSFER_LEADER = 14
    """Asks the leader to hand over to `context` (a decimal member id)."""
    PERSISTED = 15
    """Local only: a `StorageWrite` is durable. Never on the wire."""


class Message(Value):
    """One message between members (or from storage to its own core, for PERSISTED)."""

    __slots__ = (
        "commit_index",
        "context",
        "entries",
        "hint_index",
        "hint_term",
        "index",
        "kind",
        "log_term",
        "reject",
        "snapshot",
        "source",
        "target",
        "term",
    )

    def __init__(
        self,
        kind: MessageKind,
        source: int,
        target: int,
        term: int = 0,
        index: int = 0,
        log_term: int = 0,
        entries: tuple[Entry, ...] = (),
        commit_index: int = 0,
        reject: bool = False,
        hint_index: int = 0,
        hint_term: int = 0,
        snapshot: SnapshotMeta | None = None,
        context: bytes = b"",
    ) -> None:
        self.kind: Final = kind
        self.source: Final = source
        self.target: Final = target
        self.term: Final = term
        self.index: Final = index
        """APPEND: index before the first entry. Replies: the matched or rejected index."""
        self.log_term: Final = log_term
        """Term of the entry at `index`."""
        self.entries: Final = entries
        self.commit_index: Final = commit_index
        self.reject: Final = reject
        self.hint_index: Final = hint_index
        """Rejected appends: where the logs may agree, at most (skips whole terms)."""
        self.hint_term: Final = hint_term
        self.snapshot: Final = snapshot
        self.context: Final = context
        """READ_INDEX and heartbeats: the round's id, returned unchanged. VOTE: b"transfer" when the
        election was asked for by the leader."""

    def fields(self) -> tuple[object, ...]:
        return (
            self.kind,
            self.source,
            self.target,
            self.term,
            self.index,
            self.log_term,
            self.entries,
            self.commit_index,
            self.reject,
            self.hint_index,
            self.hint_term,
            self.snapshot,
            self.context,
        )


class StorageWrite(Value):
    """One write to stable storage, and what may be said once it is durable.

    The shell makes `entries`, `hard_state` and `snapshot` durable in this order of writes, then
    delivers `replies`: those addressed to this member itself go to `RaftNode.step`, the others to
    their peers. A reply that leaves before its write is durable is a lost vote or a lost entry.
    """

    __slots__ = (
        "entries",
        "hard_state",
        "must_sync",
        "replies",
        "snapshot",
    )

    def __init__(
        self,
        entries: tuple[Entry, ...] = (),
        hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None,
        must_sync: bool = True,
        replies: tuple[Message, ...] = (),
    ) -> None:
        self.entries: Final = entries
        """To be made durable, in order. An entry at index i replaces every stored entry >= i."""
        self.hard_state: Final = hard_state
        """None: unchanged since the previous write."""
        self.snapshot: Final = snapshot
        """A verified snapshot, received from the leader, to install before `entries`."""
        self.must_sync: Final = must_sync
        """False: only the commit index moved, no need to wait for the disk."""
        self.replies: Final = replies

    def fields(self) -> tuple[object, ...]:
        return (self.entries, self.hard_state, self.snapshot, self.must_sync, self.replies)


class ReadState(Value):
    """Answers a `read_index(context)`: once the machine has applied `index`, reads are current."""

    __slots__ = (
        "context",
        "index",
    )

    def __init__(self, index: int, context: bytes) -> None:
        self.index: Final = index
        self.context: Final = context

    def fields(self) -> tuple[object, ...]:
        return (self.index, self.context)


class Refusal(Value):
    """A request given to the core that it definitely dropped."""

    __slots__ = (
        "context",
        "entry_kind",
        "kind",
    )

    def __init__(
        self,
        kind: MessageKind,
        context: bytes,
        entry_kind: EntryKind = EntryKind.BATCH,
    ) -> None:
        self.kind: Final = kind
        """PROPOSE or READ_INDEX."""
        self.context: Final = context
        """READ_INDEX: its context. PROPOSE: the data of the refused entry."""
        self.entry_kind: Final = entry_kind
        """PROPOSE: what that data means."""

    def fields(self) -> tuple[object, ...]:
        return (self.kind, self.context, self.entry_kind)


class Role(IntEnum):
    """What a member is just now."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class SoftState(Value):
    """What need not survive a crash."""

    __slots__ = (
        "leader",
        "role",
        "term",
    )

    def __init__(self, role: Role, leader: int, term: int) -> None:
        self.role: Final = role
        self.leader: Final = leader
        self.term: Final = term

    def fields(self) -> tuple[object, ...]:
        return (self.role, self.leader, self.term)


class Ready(Value):
    """Everything that the core wants from the world at one point, in one value."""

    __slots__ = (
        "committed",
        "messages",
        "read_states",
        "refused",
        "soft_state",
        "write",
    )

    def __init__(
        self,
        messages: tuple[Message, ...] = (),
        write: StorageWrite | None = None,
        committed: tuple[Entry, ...] = (),
        read_states: tuple[ReadState, ...] = (),
        soft_state: SoftState | None = None,
        refused: tuple[Refusal, ...] = (),
    ) -> None:
        self.messages: Final = messages
        """To send at once. None of them depends on a write that is not durable yet."""
        self.write: Final = write
        """To be queued for stable storage in this order; several may be under way."""
        self.committed: Final = committed
        """To apply, in order. Committed, and durable on this member."""
        self.read_states: Final = read_states
        self.soft_state: Final = soft_state
        """None: unchanged."""
        self.refused: Final = refused

    def fields(self) -> tuple[object, ...]:
        return (
            self.messages,
            self.write,
            self.committed,
            self.read_states,
            self.soft_state,
            self.refused,
        )


class ProposalDropped(Exception):
    """The proposal was refused and will not take effect; the text says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """"no leader", "transfer in progress", "too much uncommitted", "removed"."""


class LogCompacted(Exception):
    """The entries asked for are gone: they are covered by a snapshot."""


class LogUnavailable(Exception):
    """The entries asked for are not in stable storage (yet)."""


class LogStorage(Protocol):
    """What the core reads back from stable storage. Reads only: writes go through `Ready`.

    Answers reflect writes that are durable; the core remembers what is still under way.
    """

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The state to start from; `ConfState` as of the applied or snapshot index."""

    def first_index(self) -> int:
        """Index of the oldest available entry, or last_index() + 1 when there is none."""

    def last_index(self) -> int:
        """Index of the newest durable entry, or of the snapshot when there is none."""

    def term(self, index: int) -> int:
        """Term of the entry at `index`; first_index() - 1 must be answerable too.

        Raises LogCompacted below that, LogUnavailable above last_index().
        """

    def entries(self, low: int, high: int, bytes_max: int) -> Sequence[Entry]:
        """Entries in [low, high), at least one, stopping before `bytes_max` is exceeded.

        Raises LogCompacted or LogUnavailable.
        """

    def snapshot(self) -> SnapshotMeta | None:
        """The newest durable snapshot that can be sent to a follower; None: none is ready yet."""
