"""What a leader does: append, send, count, commit (paper 5.3 and 5.4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from raftkv.buggify import buggify
from raftkv.consensus import codec, confchange, quorum, reads
from raftkv.consensus.core import QUIET, Core
from raftkv.consensus.progress import Progress, ProgressState
from raftkv.consensus.quorum import VoteResult
from raftkv.consensus.types import (
    NO_MEMBER,
    ConfigChange,
    Entry,
    EntryKind,
    LogCompacted,
    Message,
    MessageKind,
    ProposalDropped,
    Role,
)

_BATCH = EntryKind.BATCH
_CONFIG = EntryKind.CONFIG
_PROBE = ProgressState.PROBE
_REPLICATE = ProgressState.REPLICATE
_SNAPSHOT = ProgressState.SNAPSHOT
_APPEND = MessageKind.APPEND


def become_leader(core: Core) -> None:
    """Take office: know nothing about the others' logs, and append a no-op (thesis 6.4)."""
    core.reset(core.term)
    core.role = Role.LEADER
    core.leader = core.member_id
    last = core.log.last_index
    for member in core.progress:
        own = member == core.member_id
        fresh = Progress(last + 1, match=core.log.stable_index if own else 0)
        fresh.recent_active = own
        core.progress[member] = fresh
    # There may be an unapplied change anywhere in the log so far.
    core.pending_conf_index = last
    core.term_start = last + 1
    core.note(f"became leader term={core.term}")
    _append(core, [(_BATCH, b"")])


def _append(core: Core, payloads: Sequence[tuple[EntryKind, bytes]]) -> int:
    index = core.log.last_index + 1
    term = core.term
    size = 0
    entries = []
    at = index
    for kind, data in payloads:
        entries.append(Entry(at, term, kind, data))
        size += len(data)
        at += 1
    core.log.append(entries)
    if size:
        core.uncommitted.append((at - 1, size))
        core.uncommitted_bytes += size
    core.dirty = True
    return index


def propose(core: Core, data: Sequence[bytes]) -> int:
    """Append batches; the index of the first. Raises `ProposalDropped`, then none is appended."""
    _check_office(core)
    if core.uncommitted_bytes:
        size = sum(map(len, data))
        # A lone proposal passes whatever its size, so that no batch is refused for ever.
        if size and core.uncommitted_bytes + size > core.config.uncommitted_bytes_max:
            raise ProposalDropped("too much uncommitted")
    return _append(core, [(_BATCH, item) for item in data])


def _check_office(core: Core) -> None:
    if core.transferee != NO_MEMBER:
        raise ProposalDropped("transfer in progress")
    if core.member_id not in core.progress:
        raise ProposalDropped("removed")


def propose_change(core: Core, change: ConfigChange) -> int:
    """Append a membership change. Raises `ProposalDropped` when it is unsafe now or wrong.

    Safe means: the previous change is applied, and an entry of this term is committed
    (Ongaro's correction of single-server changes, raft-dev 2015).
    """
    _check_office(core)
    if not core.committed_in_term:
        raise ProposalDropped("no entry of this term is committed yet")
    if core.pending_conf_index > core.log.applied:
        raise ProposalDropped("a membership change is pending")
    try:
        confchange.changed(core.conf, change)
    except confchange.ChangeRejected as error:
        raise ProposalDropped(str(error)) from None
    index = _append(core, [(_CONFIG, codec.encode_change(change))])
    core.pending_conf_index = index
    return index


def maybe_leave_joint(core: Core) -> None:
    """Propose to leave a joint configuration once it is applied here."""
    if (
        core.role is Role.LEADER
        and core.conf.auto_leave
        and core.log.applied >= core.pending_conf_index
        and core.committed_in_term
    ):
        core.note("leaves joint configuration")
        core.pending_conf_index = _append(core, [(_CONFIG, codec.encode_change(ConfigChange()))])


# Sending


def flush(core: Core) -> None:
    """Send every member what it lacks, as far as its window allows."""
    core.dirty = False
    for peer, progress in core.progress.items():
        if peer != core.member_id:
            _send_appends(core, peer, progress)


def _send_appends(core: Core, peer: int, progress: Progress) -> None:
    log = core.log
    committed = log.committed
    while progress.state is not _SNAPSHOT and not progress.paused:
        last = log.last_index
        streaming = progress.state is _REPLICATE
        pending = progress.next <= last
        if streaming:
            config = core.config
            if (
                len(progress.inflight) >= config.inflight_messages_max
                or progress.inflight_bytes >= config.inflight_bytes_max
            ):
                pending = False
            news = progress.sent_commit < committed and progress.sent_commit < progress.next - 1
            if not pending and not news and not progress.poke:
                return
        if not _send_append(core, peer, progress, pending) or not streaming:
            return


def _send_append(core: Core, peer: int, progress: Progress, with_entries: bool) -> bool:
    log = core.log
    previous = progress.next - 1
    try:
        previous_term = core.term if previous >= core.term_start else log.term(previous)
        bytes_max = 1 if buggify("tiny-append") else core.config.append_bytes_max
        entries = log.read(progress.next, bytes_max) if with_entries else ()
    except LogCompacted:
        _send_snapshot(core, peer, progress)
        return False
    quiet = not entries and not progress.poke and progress.state is _REPLICATE
    progress.poke = False
    core.messages.append(
        Message(
            _APPEND,
            core.member_id,
            peer,
            core.term,
            previous,
            previous_term,
            entries,
            log.committed,
            context=QUIET if quiet else b"",
        )
    )
    progress.sent_commit = log.committed
    if entries:
        size = 0
        for entry in entries:
            size += len(entry.data)
        progress.sent(entries[-1].index, size)
    elif progress.state is _PROBE:
        progress.paused = True
    return True


def _send_snapshot(core: Core, peer: int, progress: Progress) -> None:
    if not progress.recent_active:
        return  # Nobody is there to receive it; its first answer brings us back here.
    meta = core.log.storage.snapshot()
    if meta is None or meta.index < core.log.first_index() - 1:
        core.note(f"has no snapshot for {peer} yet")
        return
    progress.become_snapshot(meta.index)
    progress.poke = False
    if core.trace is not None:
        core.note(f"sends snapshot to {peer} index={meta.index} term={meta.term}")
    core.send(Message(MessageKind.SNAPSHOT, core.member_id, peer, term=core.term, snapshot=meta))


# Answers


def handle_append_reply(core: Core, message: Message) -> None:
    """A member has taken entries, or cannot place them."""
    progress = core.progress.get(message.source)
    if progress is None or (message.index > core.log.last_index and not message.reject):
        return
    progress.recent_active = True
    if message.reject:
        hint = message.hint_index
        if message.hint_term:
            hint = core.log.agree_at_most(hint, message.hint_term)[0]
        if progress.rejected(message.index, hint):
            core.dirty = True
        return
    index = message.index
    if not progress.acknowledged(index) and not (
        progress.state is _PROBE and progress.match == index
    ):
        return
    if progress.state is _PROBE:
        progress.become_replicate()
    elif progress.state is _SNAPSHOT and progress.match + 1 >= core.log.first_index():
        # It got there by other means, or by an older snapshot: entries can take over.
        progress.become_replicate()
    maybe_commit(core)
    if progress.next <= core.log.last_index or progress.sent_commit < core.log.committed:
        core.dirty = True
    if core.transferee == message.source:
        maybe_hand_over(core)


def handle_heartbeat_reply(core: Core, message: Message) -> None:
    """A member is alive. Its log's end tells whether it still is the one we knew."""
    progress = core.progress.get(message.source)
    if progress is None:
        return
    progress.recent_active = True
    if message.index < progress.match:
        core.note(f"finds the log of {message.source} shortened to {message.index}")
        progress.regressed(message.index)
        core.dirty = True
    elif progress.tick_match == progress.match:
        # Nothing was acknowledged for a whole heartbeat: an append may be lost. Ask once.
        progress.tick_match = -1
        progress.paused = False
        if progress.match < core.log.last_index or progress.state is not _REPLICATE:
            progress.poke = True
            core.dirty = True
    if message.context:
        reads.acknowledged(core, message.source, message.context)


def persisted_to(core: Core, index: int) -> None:
    """Leader: its own log is durable up to `index`; it counts like anybody's."""
    progress = core.progress.get(core.member_id)
    if progress is not None and progress.acknowledged(index):
        maybe_commit(core)


def maybe_commit(core: Core) -> bool:
    """Commit what a quorum has, if it is of this term (paper 5.4.2, figure 8)."""
    progress = core.progress
    conf = core.conf
    index = quorum.joint_index(
        [progress[voter].match for voter in conf.voters],
        [progress[voter].match for voter in conf.voters_outgoing],
    )
    # From its no-op on, and only there, a leader's log is of its own term.
    if index < core.term_start or not core.log.commit_to(index):
        return False
    uncommitted = core.uncommitted
    while uncommitted and uncommitted[0][0] <= index:
        core.uncommitted_bytes -= uncommitted.popleft()[1]
    core.dirty = True
    return True


# Time


def tick(core: Core) -> None:
    """One tick of a leader: heartbeats, the quorum check, patience with a transfer."""
    core.heartbeat_elapsed += 1
    core.election_elapsed += 1
    if core.election_elapsed >= core.config.election_timeout_ticks:
        core.election_elapsed = 0
        if core.config.check_quorum and not _quorum_active(core):
            core.become_follower(core.term, NO_MEMBER, "quorum-inactive")
            return
        if core.transferee != NO_MEMBER:
            core.note(f"gives up transfer to {core.transferee}")
            core.transferee = NO_MEMBER
    if core.heartbeat_elapsed >= core.config.heartbeat_ticks:
        core.heartbeat_elapsed = 0
        reads.tick(core)
        broadcast_heartbeat(core)


def broadcast_heartbeat(core: Core) -> None:
    """Assert leadership to everybody."""
    for peer, progress in core.progress.items():
        if peer != core.member_id:
            progress.tick_match = progress.match
            reads.send_heartbeat(core, peer)


def _quorum_active(core: Core) -> bool:
    active = {}
    for member, progress in core.progress.items():
        active[member] = progress.recent_active or member == core.member_id
        progress.active_before = progress.recent_active
        progress.recent_active = member == core.member_id
    return core.has_won(active) is VoteResult.WON


# Leadership transfer (thesis 3.10)


def transfer(core: Core, target: int) -> None:
    """Hand over to `target`: stop proposals, let it catch up, tell it to campaign at once.

    Raises `ProposalDropped` when the target is no voter. Given up after an election timeout.
    """
    if not confchange.is_voter(core.conf, target):
        raise ProposalDropped("the target is not a voter")
    if target == core.member_id or target == core.transferee:
        return
    core.note(f"transfers leadership to {target}")
    core.transferee = target
    core.election_elapsed = 0
    if not maybe_hand_over(core):
        progress = core.progress[target]
        progress.poke = True
        core.dirty = True


def maybe_hand_over(core: Core) -> bool:
    """Tell the transfer's target to campaign if it has the whole log."""
    target = core.transferee
    if core.progress[target].match != core.log.last_index:
        return False
    core.send(Message(MessageKind.TIMEOUT_NOW, core.member_id, target, term=core.term))
    return True


# Reports of the shell


def report_unreachable(core: Core, peer: int) -> None:
    """Messages to `peer` were lost: what was in flight must be looked for again."""
    progress = core.progress.get(peer)
    if progress is not None and progress.state is _REPLICATE:
        progress.become_probe()
        # The heartbeat's answer says when it is worth trying.
        progress.paused = True


def report_snapshot(core: Core, peer: int, delivered: bool) -> None:
    """The transfer of a snapshot to `peer` has ended: look again for the point of agreement."""
    progress = core.progress.get(peer)
    if progress is None or progress.state is not _SNAPSHOT:
        return
    if not delivered:
        progress.pending_snapshot = 0
    progress.become_probe()
    # Delivered: its answer is on the way. Not delivered: no sense in trying at once.
    progress.paused = True
