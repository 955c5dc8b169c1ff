"""What a member does on its leader's word: take entries, commit, install a snapshot."""

from __future__ import annotations

from raftkv.consensus.core import QUIET, Core
from raftkv.consensus.types import Message, MessageKind, SnapshotMeta


def handle_append(core: Core, message: Message) -> None:
    """Take entries if they join this log; say up to where it surely agrees with the leader's."""
    log = core.log
    if message.index < log.committed:
        # Everything committed agrees already; nothing in there may be touched again.
        core.acknowledge(log.committed)
        return
    if not log.matches(message.index, message.log_term):
        _reject(core, message)
        return
    last_new = message.index
    if message.entries:
        log.merge(message.entries)
        last_new = message.entries[-1].index
    # Not the end of this log: what follows `last_new` may be from a former leader.
    log.commit_to(min(message.commit_index, last_new))
    if message.context != QUIET:
        core.acknowledge(last_new)


def _reject(core: Core, message: Message) -> None:
    hint_index, hint_term = core.log.agree_at_most(message.index, message.log_term)
    if core.trace is not None:
        core.note(f"rejects append at {message.index}/{message.log_term}")
    core.reply(
        Message(
            MessageKind.APPEND_REPLY,
            core.member_id,
            message.source,
            term=core.term,
            index=message.index,
            reject=True,
            hint_index=hint_index,
            hint_term=hint_term,
        )
    )


def handle_heartbeat(core: Core, message: Message) -> None:
    """The leader lives. It names no commit index beyond what it knows this log to hold."""
    log = core.log
    if message.commit_index <= log.last_index:
        log.commit_to(message.commit_index)
    # Otherwise this disk lost entries that it had acknowledged; `index` lets the leader see it.
    core.reply(
        Message(
            MessageKind.HEARTBEAT_REPLY,
            core.member_id,
            message.source,
            term=core.term,
            index=log.last_index,
            context=message.context,
        )
    )


def handle_snapshot(core: Core, message: Message) -> None:
    """A verified snapshot has arrived: install it, unless the log has all of it already."""
    meta = message.snapshot
    if meta is None:
        return
    if not _install(core, meta):
        core.acknowledge(core.log.committed)
        return
    core.acknowledge(meta.index)


def _install(core: Core, meta: SnapshotMeta) -> bool:
    log = core.log
    if meta.index <= log.committed:
        core.note(f"ignores snapshot index={meta.index} committed={log.committed}")
        return False
    if log.matches(meta.index, meta.term):
        core.note(f"fast-forwards to snapshot index={meta.index}")
        log.commit_to(meta.index)
        return False
    core.note(f"installs snapshot index={meta.index} term={meta.term}")
    log.install(meta)
    if meta.index > log.applied:
        core.use_conf(meta.conf)
    return True
