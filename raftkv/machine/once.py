"""Idempotency: a command that carries a key takes effect once, and answers alike ever after.

The first outcome, success or refusal, is kept under the key together with a fingerprint of the
command; kept for IDEMPOTENCY_KEEP_MS by the leaders' stamps, and fewer than IDEMPOTENCY_KEYS_MAX
keys and IDEMPOTENCY_BYTES_MAX bytes of them (the oldest go first). All of it is decided by the log
alone, so every member forgets alike.

Refusals that say nothing about the request (the store is full, the cluster is corrupt) are not
kept: the same request may succeed later.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

import msgpack

from raftkv import limits
from raftkv.checks import check
from raftkv.errors import Corrupt, IdempotencyMismatch, NoSpace, QuotaExceeded, Refused
from raftkv.machine import results
from raftkv.machine.draft import Draft
from raftkv.machine.records import Record, without_value
from raftkv.machine.results import (
    DeleteResult,
    Outcome,
    PutResult,
    RangeResult,
    Result,
    TxnResult,
)
from raftkv.machine.tables import ONCE, ONCE_AGE

_AGE: Final = struct.Struct(">QQ")
"""Name of a row in ONCE_AGE: stamp in milliseconds, serial number."""
_ENTRY: Final = struct.Struct(">16s16s")
"""Head of a row in ONCE: fingerprint, name in ONCE_AGE. The packed outcome follows."""
_FORGET_PER_COMMAND: Final = 16
_LEASE_GRANT, _SERVICE_REGISTER = 6, 9

_EXT_RECORD, _EXT_RESULT, _EXT_REFUSAL = 1, 2, 3
_RESULTS: Final[tuple[type[Result], ...]] = (
    results.PutResult, results.DeleteResult, results.RangeResult, results.TxnResult,
    results.CompactResult, results.LeaseResult, results.RevokeResult, results.ExpireResult,
    results.ServiceResult, results.DeregisterResult, results.MemberResult, results.AlarmResult,
    results.AuthResult, results.TokenResult, results.QuotaResult,
)  # fmt: skip
"""Their places are part of the stored format."""
_RESULT_NUMBER: Final = {kind: number for number, kind in enumerate(_RESULTS)}
_REFUSALS: Final[dict[str, type[Refused]]] = {
    Refused.code: Refused,
    **{kind.code: kind for kind in Refused.__subclasses__()},
}


def apply_once(
    draft: Draft, command: list[Any], handler: Callable[[Draft, list[Any]], Result]
) -> Outcome:
    """Run `command` through `handler`, unless its key has an outcome already."""
    key: bytes = command[1]
    fingerprint = _fingerprint(command)
    _forget(draft)
    row = draft.get(ONCE, key)
    if row is not None and _stamp(row) >= _oldest_ms(draft):
        if row[:16] != fingerprint:
            raise IdempotencyMismatch("this idempotency key was used before, for another request")
        return unpack_outcome(row[_ENTRY.size :])
    if row is not None:
        _remove(draft, key, row)
    outcome: Outcome
    try:
        outcome = handler(draft, command)
    except (NoSpace, Corrupt, QuotaExceeded):
        raise
    except Refused as refusal:
        check(draft.sub == 0, "a refused command has written nothing")
        outcome = refusal.with_traceback(None)
    _keep(draft, key, fingerprint, outcome)
    return outcome


def _fingerprint(command: list[Any]) -> bytes:
    """What makes a request the same: all of it, but for its key and what the door drew by lot."""
    body = list(command)
    body[1] = None
    if body[0] == _SERVICE_REGISTER:
        body[11] = 0
    elif body[0] == _LEASE_GRANT and body[4]:
        body[2] = 0
    return blake2b(msgpack.packb(body), digest_size=16).digest()


def _oldest_ms(draft: Draft) -> int:
    return max(draft.state.clock_ms - limits.IDEMPOTENCY_KEEP_MS, 0)


def _stamp(row: bytes) -> int:
    return int.from_bytes(row[16:24], "big")


def _keep(draft: Draft, key: bytes, fingerprint: bytes, outcome: Outcome) -> None:
    packed = pack_outcome(outcome)
    if len(packed) > limits.IDEMPOTENCY_RESULT_BYTES_MAX:
        packed = pack_outcome(without_records(outcome))
    state = draft.state
    age = _AGE.pack(state.clock_ms, state.once_serial)
    row = fingerprint + age + packed
    draft.put_row(ONCE, key, row)
    draft.append_row(ONCE_AGE, age, key)
    state.once_serial += 1
    state.once_count += 1
    state.once_bytes += len(key) + len(packed)
    # Not the outcome: it holds storage positions, which compaction makes members differ in.
    draft.mark("once", key, fingerprint, age)


def _forget(draft: Draft) -> None:
    """Let go of the oldest keys: those too old, and those too many."""
    state = draft.state
    oldest = _AGE.pack(_oldest_ms(draft), 0)
    doomed: list[tuple[bytes, bytes]] = []
    count, size = state.once_count, state.once_bytes
    for age, key in draft.writer.scan(ONCE_AGE, b"", None):
        full = (
            count >= limits.IDEMPOTENCY_KEYS_MAX
            or size + limits.IDEMPOTENCY_RESULT_BYTES_MAX > limits.IDEMPOTENCY_BYTES_MAX
        )
        if len(doomed) == _FORGET_PER_COMMAND or not (full or age < oldest):
            break
        row = draft.get(ONCE, key)
        check(row is not None, "an aged idempotency key is there", key=key)
        doomed.append((key, row or b""))
        count -= 1
        size -= len(key) + len(row or b"") - _ENTRY.size
    for key, row in doomed:
        _remove(draft, key, row)


def _remove(draft: Draft, key: bytes, row: bytes) -> None:
    draft.delete_row(ONCE, key)
    draft.delete_row(ONCE_AGE, row[16:32])
    draft.state.once_count -= 1
    draft.state.once_bytes -= len(key) + len(row) - _ENTRY.size
    draft.mark("forget", key)


# ---- outcomes as bytes -------------------------------------------------------------------------


def pack_outcome(outcome: Outcome) -> bytes:
    """An outcome in its stored form."""
    packed: bytes = msgpack.packb(outcome, default=_to_ext)
    return packed


def unpack_outcome(packed: bytes) -> Outcome:
    """The outcome again; records compare equal to those packed."""
    outcome: Outcome = msgpack.unpackb(packed, ext_hook=_from_ext, strict_map_key=False)
    return outcome


def without_records(outcome: Outcome) -> Outcome:
    """The same outcome without the records it read, for those too large to keep.

    Counts, revisions and which branch ran stay; `previous` and range records are left out.
    """
    if isinstance(outcome, PutResult):
        return PutResult(outcome.revision, None, without_value(outcome.raw))
    if isinstance(outcome, DeleteResult):
        return DeleteResult(outcome.revision, outcome.deleted, [])
    if isinstance(outcome, RangeResult):
        return RangeResult(outcome.revision, [], outcome.count, outcome.more, outcome.resume)
    if isinstance(outcome, TxnResult):
        responses = [without_records(response) for response in outcome.responses]
        return TxnResult(outcome.revision, outcome.succeeded, responses)  # type: ignore[arg-type]
    return outcome


def _to_ext(value: object) -> msgpack.ExtType:
    if isinstance(value, Record):
        return msgpack.ExtType(_EXT_RECORD, value.raw)
    if isinstance(value, Result):
        body = [_RESULT_NUMBER[type(value)], *value.fields()]
        return msgpack.ExtType(_EXT_RESULT, msgpack.packb(body, default=_to_ext))
    if isinstance(value, Refused):
        body = [value.code, value.message, value.facts]
        return msgpack.ExtType(_EXT_REFUSAL, msgpack.packb(body, default=_to_ext))
    raise TypeError(f"not part of an outcome: {type(value).__name__}")


def _from_ext(code: int, data: bytes) -> object:
    if code == _EXT_RECORD:
        return Record(data)
    body = msgpack.unpackb(data, ext_hook=_from_ext, strict_map_key=False)
    if code == _EXT_RESULT:
        return _RESULTS[body[0]](*body[1:])
    return _REFUSALS[body[0]](body[1], **body[2])
