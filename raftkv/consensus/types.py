"""The values that consensus exchanges with the world. Plain, frozen, slotted; no behaviour.

Names follow the Raft paper (Ongaro and Ousterhout 2014) and Ongaro's thesis (2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[_T]) -> type[_T]:
    """A slotted dataclass that the type checker holds to be frozen.

    The interpreter does not enforce it: a frozen constructor takes four times as long, and these
    values are made on the hot path. Nobody may change one: they are shared, and hashed.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


NO_MEMBER = 0
"""Member ids are positive 64-bit integers; 0 means nobody (no vote cast, no leader known)."""


class EntryKind(IntEnum):
    """What an entry's data means."""

    BATCH = 0
    """A batch of commands for the machine; empty data is a new leader's no-op."""
    CONFIG = 1
    """An encoded `ConfigChange`."""


@value
class Entry:
    """One position of the replicated log. `data` is opaque to consensus and never copied."""

    index: int
    term: int
    kind: EntryKind
    data: bytes


@value
class HardState:
    """What must survive a crash (paper, figure 2, "persistent state"), plus the commit index.

    `commit_index` may lag behind on disk; it only saves work after a restart.
    """

    term: int = 0
    vote: int = NO_MEMBER
    commit_index: int = 0


@value
class ConfState:
    """Membership as of some index. Sorted tuples of member ids, so that equal means identical.

    `voters_outgoing` is not empty only while a joint configuration is in force (thesis 4.3).
    `learners_next` are outgoing voters that become learners when the joint configuration ends.
    """

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


class ChangeKind(IntEnum):
    """One step of a membership change."""

    ADD_VOTER = 0
    """Also promotes a learner."""
    ADD_LEARNER = 1
    """Also demotes a voter."""
    REMOVE = 2


@value
class ConfigChange:
    """A membership change. No changes at all means: leave the joint configuration.

    With `auto` one change of one voter is made in a single step, and anything else enters a joint
    configuration that the leader leaves by itself once it is committed.
    """

    changes: tuple[tuple[ChangeKind, int], ...] = ()
    context: bytes = b""
    """Opaque; the shell keeps the member's name and addresses and its request id here."""


@value
class SnapshotMeta:
    """A snapshot stands for the whole log up to and including `index`."""

    index: int = 0
    term: int = 0
    conf: ConfState = field(default_factory=ConfState)


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


@value
class Message:
    """One message between members (or from storage to its own core, for PERSISTED)."""

    kind: MessageKind
    source: int
    target: int
    term: int = 0
    index: int = 0
    """APPEND: index before the first entry. Replies: the matched or rejected index."""
    log_term: int = 0
    """Term of the entry at `index`."""
    entries: tuple[Entry, ...] = ()
    commit_index: int = 0
    reject: bool = False
    hint_index: int = 0
    """Rejected appends: where the logs may agree, at most (skips whole terms)."""
    hint_term: int = 0
    snapshot: SnapshotMeta | None = None
    context: bytes = b""
    """READ_INDEX and heartbeats: the round's id, returned unchanged. VOTE: b"transfer" when the
    election was asked for by the leader."""


@value
class StorageWrite:
    """One write to stable storage, and what may be said once it is durable.

    The shell makes `entries`, `hard_state` and `snapshot` durable in this order of writes, then
    delivers `replies`: those addressed to this member itself go to `RaftNode.step`, the others to
    their peers. A reply that leaves before its write is durable is a lost vote or a lost entry.
    """

    entries: tuple[Entry, ...] = ()
    """To be made durable, in order. An entry at index i replaces every stored entry >= i."""
    hard_state: HardState | None = None
    """None: unchanged since the previous write."""
    snapshot: SnapshotMeta | None = None
    """A verified snapshot, received from the leader, to install before `entries`."""
    must_sync: bool = True
    """False: only the commit index moved, no need to wait for the disk."""
    replies: tuple[Message, ...] = ()


@value
class ReadState:
    """Answers a `read_index(context)`: once the machine has applied `index`, reads are current."""

    index: int
    context: bytes


@value
class Refusal:
    """A request given to the core that it definitely dropped."""

    kind: MessageKind
    """PROPOSE or READ_INDEX."""
    context: bytes
    """READ_INDEX: its context. PROPOSE: the data of the refused entry."""
    entry_kind: EntryKind = EntryKind.BATCH
    """PROPOSE: what that data means."""


class Role(IntEnum):
    """What a member is just now."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


@value
class SoftState:
    """What need not survive a crash."""

    role: Role
    leader: int
    term: int


@value
class Ready:
    """Everything that the core wants from the world at one point, in one value."""

    messages: tuple[Message, ...] = ()
    """To send at once. None of them depends on a write that is not durable yet."""
    write: StorageWrite | None = None
    """To be queued for stable storage in this order; several may be under way."""
    committed: tuple[Entry, ...] = ()
    """To apply, in order. Committed, and durable on this member."""
    read_states: tuple[ReadState, ...] = ()
    soft_state: SoftState | None = None
    """None: unchanged."""
    refused: tuple[Refusal, ...] = ()


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
