"""Leader election: paper 5.2 and 5.4.1, pre-vote (thesis 9.6), leadership transfer (3.10)."""

from __future__ import annotations

from raftkv.consensus import confchange, replication
from raftkv.consensus.core import Core
from raftkv.consensus.quorum import VoteResult
from raftkv.consensus.types import NO_MEMBER, Message, MessageKind, Role

TRANSFER = b"transfer"
"""Context of vote requests that the leader itself has asked for."""


def campaign(core: Core, *, transfer: bool = False) -> None:
    """Start an election if this member may: a voter with no membership change left to apply."""
    if core.role is Role.LEADER:
        return
    log = core.log
    if not core.promotable:
        core.note("does not campaign reason=not-promotable")
        return
    if log.committed > log.applied and log.has_config(log.applied + 1, log.committed + 1):
        # It would count votes by a configuration that is out of date.
        core.note("does not campaign reason=change-not-applied")
        return
    if core.config.pre_vote and not transfer:
        core.become_pre_candidate()
        _ask(core, MessageKind.PRE_VOTE, core.term + 1, b"")
        _count(core, core.member_id, granted=True)
    else:
        _elect(core, TRANSFER if transfer else b"")


def _elect(core: Core, context: bytes) -> None:
    core.become_candidate()
    _ask(core, MessageKind.VOTE, core.term, context)
    # This member's own vote counts when it is durable, like anybody's.
    core.replies.append(
        Message(MessageKind.VOTE_REPLY, core.member_id, core.member_id, term=core.term)
    )


def _ask(core: Core, kind: MessageKind, term: int, context: bytes) -> None:
    log = core.log
    for peer in core.progress:
        if peer != core.member_id and confchange.is_voter(core.conf, peer):
            core.send(
                Message(
                    kind,
                    core.member_id,
                    peer,
                    term=term,
                    index=log.last_index,
                    log_term=log.last_term,
                    context=context,
                )
            )


def handle_request(core: Core, message: Message) -> None:
    """Grant or refuse a vote or a pre-vote. Learners answer too: they may have been promoted
    without knowing it yet (etcd#10998)."""
    pre = message.kind is MessageKind.PRE_VOTE
    free = core.vote == message.source or (core.vote == NO_MEMBER and core.leader == NO_MEMBER)
    if pre and message.term > core.term:
        free = True
    granted = free and core.log.is_up_to_date(message.index, message.log_term)
    if core.trace is not None:
        core.note(
            f"{'grants' if granted else 'refuses'} {message.kind.name} of {message.source} "
            f"term={message.term} last={message.index}/{message.log_term}"
        )
    # A granted pre-vote names the term asked for, because nobody has entered that term yet.
    reply = Message(
        MessageKind.PRE_VOTE_REPLY if pre else MessageKind.VOTE_REPLY,
        core.member_id,
        message.source,
        term=message.term if granted else core.term,
        reject=not granted,
        commit_index=0 if granted else core.log.committed,
        log_term=0 if granted else core.log.term(core.log.committed),
    )
    if pre:
        core.reply(reply)
        return
    if granted:
        core.election_elapsed = 0
        core.vote = message.source
    core.replies.append(reply)


def handle_reply(core: Core, message: Message) -> None:
    """Count a vote, if it belongs to the election under way."""
    if message.reject and core.role is not Role.LEADER:
        _learn_commit(core, message)
    expected = Role.PRE_CANDIDATE if message.kind is MessageKind.PRE_VOTE_REPLY else Role.CANDIDATE
    if core.role is not expected:
        return
    if not message.reject:
        wanted = core.term + 1 if expected is Role.PRE_CANDIDATE else core.term
        if message.term != wanted:
            return
    _count(core, message.source, granted=not message.reject)


def _learn_commit(core: Core, message: Message) -> None:
    """A refusal tells what its sender knows to be committed; what is in this log too is so here.

    Without it a group can be stuck: a leader that removed itself and stepped down may be the only
    one to know that the removal is committed, and refuse the votes that the others believe they
    need, because its log is longer.
    """
    log = core.log
    if message.commit_index <= log.committed or log.snapshot is not None:
        return
    if not log.matches(message.commit_index, message.log_term):
        return
    log.commit_to(message.commit_index)
    if core.role is not Role.FOLLOWER and log.has_config(log.applied + 1, log.committed + 1):
        core.become_follower(core.term, NO_MEMBER, "membership change to apply")


def _count(core: Core, voter: int, *, granted: bool) -> None:
    core.votes.setdefault(voter, granted)
    result = core.has_won(core.votes)
    if result is VoteResult.WON:
        if core.role is Role.PRE_CANDIDATE:
            _elect(core, b"")
        else:
            replication.become_leader(core)
    elif result is VoteResult.LOST:
        core.become_follower(core.term, NO_MEMBER, "election lost")


def handle_timeout_now(core: Core, message: Message) -> None:
    """The leader wants this member to take over: campaign at once, without pre-vote."""
    if message.source == core.leader and core.promotable:
        campaign(core, transfer=True)
