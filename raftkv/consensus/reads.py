"""Linearizable reads without log entries: ReadIndex (thesis 6.4), in rounds.

Requests that wait together share a round. On the leader a round is a heartbeat with the round's
id to every voter; once a quorum has answered it, the commit index of the round's start is at
least as new as every write acknowledged before its requests came. On other members a round is one
READ_INDEX message to the leader.

An id names one frozen set of requests and is never given to another, so a late answer cannot
vouch for a request that came after the question (etcd#20418). An answer to a round also serves
every earlier one. While a round is under way the next gathers; when answers are lost, the next
heartbeat tick asks again under a new id, and answers to the old one still count.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING

from raftkv.consensus.quorum import VoteResult
from raftkv.consensus.types import (
    NO_MEMBER,
    Message,
    MessageKind,
    ReadState,
    Refusal,
    Role,
)

if TYPE_CHECKING:
    from raftkv.consensus.core import Core

_ROUNDS_MAX = 64
"""Unanswered rounds kept apart; beyond, the oldest is joined to the next."""

_Request = tuple[int, bytes]
"""(member that asks, its context)."""


class _Round:
    __slots__ = ("acks", "index", "number", "requests")

    def __init__(self, number: int, index: int, requests: list[_Request]) -> None:
        self.number = number
        self.index = index
        self.requests = requests
        self.acks: dict[int, bool] = {}


class ReadRounds:
    """Requests that gather, and rounds under way, oldest first."""

    __slots__ = ("count", "gathering", "last_number", "nonce", "retry", "rounds")

    def __init__(self, nonce: int) -> None:
        self.nonce = nonce
        """Tells this run of the member from its earlier ones, whose answers may still come."""
        self.gathering: list[_Request] = []
        self.rounds: deque[_Round] = deque()
        self.count = 0
        """All waiting requests."""
        self.last_number = 0
        self.retry = False
        """A heartbeat tick has passed with a round under way: ask again."""

    def refuse_all(self, core: Core) -> None:
        """Refuse every waiting request: leadership has changed or is in doubt."""
        if not self.count:
            self.rounds.clear()
            return
        for round_ in self.rounds:
            for source, context in round_.requests:
                refuse(core, source, context)
        for source, context in self.gathering:
            refuse(core, source, context)
        self.gathering = []
        self.rounds.clear()
        self.count = 0
        self.retry = False


def refuse(core: Core, source: int, context: bytes) -> None:
    """Tell the asker that its request was dropped."""
    if source == core.member_id:
        core.refused.append(Refusal(MessageKind.READ_INDEX, context))
    else:
        core.reply(
            Message(
                MessageKind.READ_INDEX_REPLY,
                core.member_id,
                source,
                term=core.term,
                reject=True,
                context=context,
            )
        )


def request(core: Core, source: int, context: bytes) -> None:
    """Take on a request of this member's shell or, on a leader, of another member."""
    reads = core.reads
    if core.leader == NO_MEMBER or reads.count >= core.config.pending_reads_max:
        refuse(core, source, context)
        return
    if source != core.member_id and core.role is not Role.LEADER:
        refuse(core, source, context)
        return
    reads.gathering.append((source, context))
    reads.count += 1


def tick(core: Core) -> None:
    """A heartbeat interval has passed."""
    if core.reads.rounds:
        core.reads.retry = True


def flush(core: Core) -> None:
    """Start a round if one is due. Called when the shell asks for output."""
    reads = core.reads
    if not reads.gathering and not reads.retry:
        return
    if reads.rounds and not reads.retry:
        return
    if core.role is Role.LEADER:
        if not core.committed_in_term:
            return  # Only now does the leader know what is committed (paper 8; thesis 6.4).
        round_ = _begin(core)
        round_.acks[core.member_id] = True
        if not _release(core):
            context = _context(core, round_.number)
            for peer in core.progress:
                if peer != core.member_id and peer not in core.conf.learners:
                    send_heartbeat(core, peer, context)
    elif core.leader != NO_MEMBER:
        round_ = _begin(core)
        core.reply(
            Message(
                MessageKind.READ_INDEX,
                core.member_id,
                core.leader,
                context=_context(core, round_.number),
            )
        )


def send_heartbeat(core: Core, peer: int, context: bytes = b"") -> None:
    """Assert leadership to `peer`, and tell it what is committed as far as its log surely goes."""
    core.messages.append(
        Message(
            MessageKind.HEARTBEAT,
            core.member_id,
            peer,
            term=core.term,
            commit_index=min(core.progress[peer].match, core.log.committed),
            context=context,
        )
    )


def _begin(core: Core) -> _Round:
    reads = core.reads
    reads.last_number += 1
    reads.retry = False
    round_ = _Round(reads.last_number, core.log.committed, reads.gathering)
    reads.gathering = []
    if len(reads.rounds) >= _ROUNDS_MAX:
        reads.rounds[1].requests[:0] = reads.rounds[0].requests
        reads.rounds.popleft()
    reads.rounds.append(round_)
    return round_


_CONTEXT = Struct(">QQQ")


def _context(core: Core, number: int) -> bytes:
    return _CONTEXT.pack(core.term, core.reads.nonce, number)


def _number(core: Core, context: bytes) -> int:
    """The number of the round that `context` names, or 0 when it is of another term or run."""
    if len(context) != _CONTEXT.size:
        return 0
    term, nonce, number = _CONTEXT.unpack(context)
    return int(number) if term == core.term and nonce == core.reads.nonce else 0


def acknowledged(core: Core, peer: int, context: bytes) -> None:
    """Leader: `peer` has answered the heartbeat of a round."""
    rounds = core.reads.rounds
    number = _number(core, context) if rounds else 0
    if not number:
        return
    for round_ in rounds:
        if round_.number > number:
            break
        round_.acks[peer] = True
    _release(core)


def recount(core: Core) -> None:
    """Leader: the quorum may have become smaller."""
    if core.role is Role.LEADER and core.reads.rounds:
        _release(core)


def _release(core: Core) -> bool:
    """Answer the newest round that a quorum has confirmed, and all before it."""
    reads = core.reads
    confirmed = 0
    for round_ in reads.rounds:
        if core.has_won(round_.acks) is VoteResult.WON:
            confirmed = round_.number
    return _answer(core, confirmed, None)


def _answer(core: Core, number: int, index: int | None) -> bool:
    reads = core.reads
    answered = False
    while reads.rounds and reads.rounds[0].number <= number:
        answered = True
        round_ = reads.rounds.popleft()
        reads.count -= len(round_.requests)
        at = round_.index if index is None else index
        for source, context in round_.requests:
            if source == core.member_id:
                core.read_states.append(ReadState(at, context))
            else:
                core.send(
                    Message(
                        MessageKind.READ_INDEX_REPLY,
                        core.member_id,
                        source,
                        term=core.term,
                        index=at,
                        context=context,
                    )
                )
    if reads.count == len(reads.gathering):
        # What is left only repeated the question.
        reads.rounds.clear()
        reads.retry = False
    return answered


def handle_reply(core: Core, message: Message) -> None:
    """The leader has answered a round of this member."""
    if core.role is Role.LEADER or message.source != core.leader:
        return
    number = _number(core, message.context)
    if not number:
        return
    if message.reject:
        core.reads.refuse_all(core)
    else:
        _answer(core, number, message.index)
