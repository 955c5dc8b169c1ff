"""From a command to its outcome. Refusals are outcomes; anything else that goes wrong is a bug."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from raftkv.checks import check
from raftkv.errors import Compacted, Corrupt, FutureRevision, InvariantViolation, Refused
from raftkv.machine import auth, catalog, cluster, leases, quota_commands, tokens
from raftkv.machine.commands import WANT_PREVIOUS, Op
from raftkv.machine.draft import Draft
from raftkv.machine.mvcc import whole
from raftkv.machine.once import apply_once
from raftkv.machine.records import Record
from raftkv.machine.results import CompactResult, DeleteResult, Outcome, PutResult, Result
from raftkv.machine.txn import apply_txn, check_put, do_delete, do_put

ACCIDENTS: Final = (
    ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, struct.error,
)  # fmt: skip
"""What Python raises when a command is not one that a builder makes."""

Handler = Callable[[Draft, list[Any]], Result]


def apply_command(draft: Draft, command: list[Any]) -> Outcome:
    """Carry out one decoded command. Deterministic; a refused command changes nothing.

    Raises InvariantViolation for a command that no builder makes.
    """
    try:
        draft.user = None
        if command[0] == _GUARDED:
            draft.user = command[3]
            command = auth.check_guard(draft, command)
        elif draft.guarded and command[0] not in _WITHOUT_GUARD:
            # Taken by a member that had not applied yet that access control is on.
            raise auth.old_revision(draft.auth)
        handler: Handler = _HANDLERS[command[0]]
        if draft.corrupt and command[0] not in _DESPITE_CORRUPTION:
            raise Corrupt("the members' states differ: writes are refused until it is resolved")
        if command[1] is None:
            return handler(draft, command)
        return apply_once(draft, command, handler)
    except Refused as refusal:
        check(draft.sub == 0, "a refused command has written nothing", refusal=refusal.code)
        # Without its traceback, which would keep the whole draft alive.
        return refusal.with_traceback(None)
    except ACCIDENTS as error:
        raise InvariantViolation(
            f"command {command[0]!r} failed in a way no command may: {error!r}"
        ) from error


def _put(draft: Draft, command: list[Any]) -> PutResult:
    _, _, keyspace, key, value, lease, flags = command
    if lease or flags or draft.no_space or draft.quotas is not None:
        check_put(draft, keyspace, key, value, lease, flags)
        if flags & ~WANT_PREVIOUS:
            result = do_put(draft, keyspace, key, value, lease, flags)
            draft.end_command()
            return result
    record, before = draft.put(keyspace, key, value, lease)
    state = draft.state
    state.revision = revision = state.revision + 1
    draft.sub = 0
    previous = Record(whole(draft.writer, before)) if flags and before is not None else None
    return PutResult(revision, previous, record)


def _delete(draft: Draft, command: list[Any]) -> DeleteResult:
    _, _, keyspace, start, end, prev = command
    result = do_delete(draft, keyspace, start, end, prev)
    draft.end_command()
    return result


def _compact(draft: Draft, command: list[Any]) -> CompactResult:
    _, _, revision = command
    state = draft.state
    if revision <= state.compact_revision:
        raise Compacted(
            f"revision {revision} has been compacted already",
            oldest_revision=state.compact_revision,
        )
    if revision > state.revision:
        raise FutureRevision(f"revision {revision} does not exist yet", revision=state.revision)
    state.compact_revision = revision
    draft.mark("compact", revision)
    return CompactResult(state.revision, revision)


def _unknown(draft: Draft, command: list[Any]) -> Result:
    raise InvariantViolation("not a command", op=command[0])


_HANDLERS: Final[tuple[Handler, ...]] = (
    _unknown, _put, _delete, _unknown, apply_txn, _compact,
    leases.apply_grant, leases.apply_revoke, leases.apply_expire,
    catalog.apply_register, catalog.apply_deregister, catalog.apply_drain,
    cluster.apply_member_update, cluster.apply_alarm, _unknown,
    auth.apply_enable, auth.apply_disable, auth.apply_user_add, auth.apply_user_delete,
    auth.apply_user_password, auth.apply_user_grant, auth.apply_user_revoke, auth.apply_role_add,
    auth.apply_role_delete, auth.apply_role_grant, auth.apply_role_revoke,
    tokens.apply_token_add, tokens.apply_token_renew, tokens.apply_token_drop,
    quota_commands.apply_quota_set,
    cluster.apply_level, cluster.apply_promotion,
)  # fmt: skip
"""By number, see `Op`."""
check(len(_HANDLERS) == max(Op) + 1, "every command has a handler")

_GUARDED: Final = int(Op.GUARDED)
_WITHOUT_GUARD: Final = frozenset(
    (int(Op.LEASE_EXPIRE), int(Op.TOKEN_ADD), int(Op.TOKEN_RENEW), int(Op.TOKEN_DROP))
)
"""Made by members only, never for a request as it came."""
_DESPITE_CORRUPTION: Final = frozenset(
    (int(Op.MEMBER_UPDATE), int(Op.ALARM), int(Op.CLUSTER_LEVEL), int(Op.MEMBER_PROMOTION))
)
