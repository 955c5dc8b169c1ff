"""Commands: what a door asks of the machine, and the batch that carries them through the log.

A command is packed once, here, by the door that took the request; a batch joins packed commands.
Everything that can be judged without looking at the state is judged here and refused at once, so
that the log never carries a request that is wrong in itself.

Intervals, everywhere in the machine: `end` None is the single key `start`; `end` b"" goes to the
end of the keyspace; any other `end` is exclusive.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from raftkv import limits
from raftkv.checks import check
from raftkv.errors import CorruptionError, FormatError, InvalidRequest, TooLarge, TtlOutOfRange
from raftkv.machine.records import KEYSPACES_MAX, USER_KEYS
from raftkv.machine.txnrules import check_operations
from raftkv.packing import unpack

Command: TypeAlias = bytes
"""One packed command; `len` is what it adds to a batch."""

Operation: TypeAlias = list[Any]
"""One operation of a transaction, made by `put_op`, `delete_op`, `range_op` or `txn_op`."""

Compare: TypeAlias = list[Any]
"""One condition of a transaction, made by `compare`."""

COMMAND_BYTES_MAX: Final = limits.REQUEST_BYTES_MAX + limits.KEY_BYTES_MAX + limits.KIB
check(COMMAND_BYTES_MAX + limits.KIB <= limits.BATCH_BYTES_MAX, "a command must fit into a batch")


class Op(IntEnum):
    """Numbers of commands and operations; part of the log's format, never reused."""

    PUT = 1
    DELETE = 2
    RANGE = 3
    TXN = 4
    COMPACT = 5
    LEASE_GRANT = 6
    LEASE_REVOKE = 7
    LEASE_EXPIRE = 8
    SERVICE_REGISTER = 9
    SERVICE_DEREGISTER = 10
    SERVICE_DRAIN = 11
    MEMBER_UPDATE = 12
    ALARM = 13
    GUARDED = 14
    AUTH_ENABLE = 15
    AUTH_DISABLE = 16
    USER_ADD = 17
    USER_DELETE = 18
    USER_PASSWORD = 19
    USER_GRANT = 20
    USER_REVOKE = 21
    ROLE_ADD = 22
    ROLE_DELETE = 23
    ROLE_GRANT = 24
    ROLE_REVOKE = 25
    TOKEN_ADD = 26
    TOKEN_RENEW = 27
    TOKEN_DROP = 28
    QUOTA_SET = 29
    CLUSTER_LEVEL = 30
    MEMBER_PROMOTION = 31


OP_MAX: Final = max(Op)
_GUARDED: Final = int(Op.GUARDED)


class CompareTarget(IntEnum):
    """What of a key is compared; numbered as in etcdserverpb."""

    VERSION = 0
    CREATE = 1
    MOD = 2
    VALUE = 3
    LEASE = 4


class Relation(IntEnum):
    """How it is compared; numbered as in etcdserverpb."""

    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


class SortTarget(IntEnum):
    """What a range is sorted by; numbered as in etcdserverpb."""

    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


class SortOrder(IntEnum):
    """In which direction; NONE means ascending unless the target is KEY, which is so anyway."""

    NONE = 0
    ASCEND = 1
    DESCEND = 2


class AlarmKind(IntEnum):
    """Numbered as in etcdserverpb."""

    NOSPACE = 1
    CORRUPT = 2


WANT_PREVIOUS: Final = 1
IGNORE_VALUE: Final = 2
IGNORE_LEASE: Final = 4
"""Flags of a put."""

KEYS_ONLY: Final = 1
COUNT_ONLY: Final = 2
"""Flags of a range."""

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_GUARD: Final = b"\x95" + bytes((Op.GUARDED,)) + b"\xc0"
_STAMP: Final = struct.Struct(">Q")
_HEAD_BYTES_MAX: Final = 1 + 3 * 9
"""The head of an array and three integers, as msgpack packs the greatest."""
_TARGETS: Final = len(CompareTarget)
_RELATIONS: Final = len(Relation)
_VALUE: Final = int(CompareTarget.VALUE)
_INT64_MAX: Final = 2**63 - 1
_INT64_MIN: Final = -(2**63)


# ---- operations ------------------------------------------------------------------------------


def put_op(
    key: bytes,
    value: bytes,
    *,
    lease: int = 0,
    prev: bool = False,
    ignore_value: bool = False,
    ignore_lease: bool = False,
) -> Operation:
    """Write `key`. Ignoring the value or the lease keeps what the key has, and needs it to exist.

    Raises InvalidRequest or TooLarge.
    """
    if not key:
        raise InvalidRequest("key is not provided", reason="empty_key")
    if len(key) > limits.KEY_BYTES_MAX:
        raise _too_large("key", len(key), limits.KEY_BYTES_MAX)
    if len(value) > limits.VALUE_BYTES_MAX:
        raise _too_large("value", len(value), limits.VALUE_BYTES_MAX)
    _check_int64(lease)
    flags = 0
    if prev:
        flags = WANT_PREVIOUS
    if ignore_value:
        if value:
            raise InvalidRequest("value is provided", reason="value_provided")
        flags |= IGNORE_VALUE
    if ignore_lease:
        if lease:
            raise InvalidRequest("lease is provided", reason="lease_provided")
        flags |= IGNORE_LEASE
    return [1, key, value, lease, flags]


def delete_op(start: bytes, end: bytes | None = None, *, prev: bool = False) -> Operation:
    """Delete a key or an interval. Raises InvalidRequest or TooLarge."""
    _check_interval(start, end)
    return [2, start, end, prev]


def range_op(
    start: bytes,
    end: bytes | None = None,
    *,
    limit: int = 0,
    revision: int = 0,
    sort_target: int = SortTarget.KEY,
    sort_order: int = SortOrder.NONE,
    keys_only: bool = False,
    count_only: bool = False,
    min_mod: int = 0,
    max_mod: int = 0,
    min_create: int = 0,
    max_create: int = 0,
) -> Operation:
    """Read a key or an interval inside a transaction; see `Machine.range` for the meaning.

    A revision below 0 is refused as compacted, when its branch is taken.
    """
    _check_interval(start, end)
    if not (0 <= sort_target <= SortTarget.VALUE and 0 <= sort_order <= SortOrder.DESCEND):
        raise InvalidRequest("invalid sort option", reason="sort_option")
    for number in (limit, revision, min_mod, max_mod, min_create, max_create):
        _check_int64(number)
    flags = (KEYS_ONLY if keys_only else 0) | (COUNT_ONLY if count_only else 0)
    return [
        3, start, end, max(limit, 0), revision, int(sort_target), int(sort_order), flags,
        min_mod, max_mod, min_create, max_create,
    ]  # fmt: skip


def txn_op(
    compares: Sequence[Compare], then: Sequence[Operation], else_: Sequence[Operation] = ()
) -> Operation:
    """A transaction within a transaction. Its limits are judged with the outermost one."""
    return [4, list(compares), list(then), list(else_)]


def compare(
    target: int, relation: int, key: bytes, operand: int | bytes, end: bytes | None = None
) -> Compare:
    """A condition; over an interval it must hold for every key present. Raises InvalidRequest.

    A missing key, and an interval without keys, counts as version, revisions and lease 0; about
    the value of what is missing nothing holds.
    """
    _check_interval(key, end)
    if not (0 <= target < _TARGETS and 0 <= relation < _RELATIONS):
        raise InvalidRequest("unknown compare target or relation")
    if isinstance(operand, bytes) is not (target == _VALUE):
        raise InvalidRequest("a value is compared with bytes, everything else with a number")
    if isinstance(operand, int):
        _check_int64(operand)
    elif len(operand) > limits.VALUE_BYTES_MAX:
        raise _too_large("value", len(operand), limits.VALUE_BYTES_MAX)
    return [int(target), int(relation), key, end, operand]


# ---- commands --------------------------------------------------------------------------------


def put(
    key: bytes,
    value: bytes,
    *,
    lease: int = 0,
    prev: bool = False,
    ignore_value: bool = False,
    ignore_lease: bool = False,
    keyspace: int = USER_KEYS,
    once: bytes | None = None,
) -> Command:
    """As `put_op`. Answers PutResult; refused: KeyNotFound, LeaseNotFound, NoSpace."""
    operation = put_op(
        key, value, lease=lease, prev=prev, ignore_value=ignore_value, ignore_lease=ignore_lease
    )
    return _command(operation, keyspace, once)


def delete(
    start: bytes,
    end: bytes | None = None,
    *,
    prev: bool = False,
    keyspace: int = USER_KEYS,
    once: bytes | None = None,
) -> Command:
    """As `delete_op`. Answers DeleteResult."""
    return _command(delete_op(start, end, prev=prev), keyspace, once)


def txn(
    compares: Sequence[Compare],
    then: Sequence[Operation],
    else_: Sequence[Operation] = (),
    *,
    operations_max: int = limits.TXN_OPERATIONS_MAX,
    keyspace: int = USER_KEYS,
    once: bytes | None = None,
) -> Command:
    """A transaction: one branch, at most one revision. Answers TxnResult.

    Raises InvalidRequest (too many operations, nested too deeply) or DuplicateKey. Refused at
    apply: KeyNotFound, LeaseNotFound, Compacted, FutureRevision, NoSpace; then nothing was done.
    """
    operation = txn_op(compares, then, else_)
    check_operations(operation, operations_max)
    return _command(operation, keyspace, once)


def compact(revision: int, *, once: bytes | None = None) -> Command:
    """Forget history before `revision`. Answers CompactResult; refused: Compacted,
    FutureRevision."""
    _check_int64(revision)
    return finish([5, once, max(revision, 0)], once)


def lease_grant(
    lease: int, ttl_seconds: int, *, chosen: bool = False, once: bytes | None = None
) -> Command:
    """Grant a lease. `chosen`: the id was drawn by the door, not asked for by the caller, so a
    repeat under the same idempotency key may carry another. Answers LeaseResult; refused:
    LeaseExists, NoSpace. Raises InvalidRequest or TtlOutOfRange."""
    _check_lease(lease)
    _check_ttl(ttl_seconds)
    return finish([6, once, lease, ttl_seconds, chosen], once)


def lease_revoke(lease: int, *, once: bytes | None = None) -> Command:
    """End a lease and delete its keys. Answers RevokeResult; refused: LeaseNotFound."""
    _check_int64(lease)
    return finish([7, once, lease], once)


def lease_expire(leases: Sequence[int], term: int) -> Command:
    """The leader of `term` found these leases run out. Answers ExpireResult; refused: Corrupt only.

    Without effect when it is committed in a later term: the new leader judges anew (etcd#15247).
    """
    check(len(leases) <= limits.LEASE_REVOKES_PER_BATCH, "too many leases in one expiry")
    return finish([8, None, list(leases), term], None)


def service_register(
    service: str,
    instance: str,
    address: str,
    port: int,
    *,
    tags: Sequence[str] = (),
    meta: Mapping[str, str] | None = None,
    weight: int = 1,
    ttl_seconds: int,
    owner: str = "",
    lease: int,
    takeover: bool = False,
    once: bytes | None = None,
) -> Command:
    """Register an instance, or renew it with changes. `lease`: a fresh random id drawn by the
    door, used when a new lease is needed. Answers ServiceResult; refused: InstanceClaimed (facts
    hold the present instance), LeaseExists, NoSpace. Raises InvalidRequest, TooLarge or
    TtlOutOfRange."""
    _check_name("service", service)
    _check_name("instance", instance)
    check_text("address", address, limits.SERVICE_NAME_BYTES_MAX)
    check_text("owner", owner, limits.SERVICE_NAME_BYTES_MAX)
    if not address:
        raise InvalidRequest("address is not provided")
    if not 0 <= port <= 65_535:
        raise InvalidRequest("a port is between 0 and 65535", port=port)
    if not 0 <= weight <= limits.SERVICE_WEIGHT_MAX:
        raise InvalidRequest("weight out of range", weight=weight, max=limits.SERVICE_WEIGHT_MAX)
    meta = {} if meta is None else dict(meta)
    if len(tags) > limits.SERVICE_TAGS_MAX:
        raise _too_large("tags", len(tags), limits.SERVICE_TAGS_MAX)
    if len(meta) > limits.SERVICE_META_MAX:
        raise _too_large("meta", len(meta), limits.SERVICE_META_MAX)
    for text in (*tags, *meta, *meta.values()):
        check_text("tags and meta", text, limits.SERVICE_RECORD_BYTES_MAX)
    _check_ttl(ttl_seconds)
    _check_lease(lease)
    command = finish(
        [9, once, service, instance, address, port, list(tags), sorted(meta.items()), weight,
         ttl_seconds, owner, lease, takeover], once,
    )  # fmt: skip
    if len(command) > limits.SERVICE_RECORD_BYTES_MAX:
        raise _too_large("service record", len(command), limits.SERVICE_RECORD_BYTES_MAX)
    return command


def service_deregister(
    service: str, instance: str, *, owner: str = "", once: bytes | None = None
) -> Command:
    """Take an instance out. Answers DeregisterResult; refused: InstanceNotFound, or
    InstanceClaimed when both owners are named and differ."""
    _check_name("service", service)
    _check_name("instance", instance)
    check_text("owner", owner, limits.SERVICE_NAME_BYTES_MAX)
    return finish([10, once, service, instance, owner], once)


def service_drain(
    service: str, instance: str, draining: bool, *, once: bytes | None = None
) -> Command:
    """Stop or resume offering an instance. Answers ServiceResult; refused: InstanceNotFound,
    NoSpace."""
    _check_name("service", service)
    _check_name("instance", instance)
    return finish([11, once, service, instance, draining], once)


def member_update(
    member_id: int,
    *,
    name: str | None = None,
    peer_urls: Sequence[str] | None = None,
    client_urls: Sequence[str] | None = None,
    once: bytes | None = None,
) -> Command:
    """Change a member's attributes; None keeps one. Answers MemberResult; refused:
    MemberNotFound, MemberExists (another member has one of the peer addresses)."""
    for text in (name or "", *(peer_urls or ()), *(client_urls or ())):
        check_text("member attribute", text, limits.KIB)
    return finish([12, once, member_id, name, _list(peer_urls), _list(client_urls)], once)


def cluster_level(level: int) -> Command:
    """Agree on a feature level; a lower one than is agreed changes nothing. Answers MemberResult.

    Proposed once every member is known to know the level: see `raftkv.server.levels`.
    """
    return finish([30, None, level], None)


def member_promotion(member_id: int) -> Command:
    """Have the leader promote a learner once it has caught up. Answers MemberResult; refused:
    MemberNotFound (it is no learner of this cluster). Of feature level 1."""
    return finish([31, None, member_id], None)


def alarm(kind: int, member_id: int, on: bool, *, once: bytes | None = None) -> Command:
    """Raise or clear an alarm of one member. Answers AlarmResult, never refused.

    NOSPACE refuses what writes; deletes and compaction pass. CORRUPT refuses every change of keys
    and leases on every member. An alarm of a member that is not (any more) in the cluster is not
    raised; one of member 0, which is none, is. Raises InvalidRequest.
    """
    if not AlarmKind.NOSPACE <= kind <= AlarmKind.CORRUPT:
        raise InvalidRequest("unknown kind of alarm", kind=kind)
    return finish([13, once, int(kind), member_id, on], once)


BY_MEMBER: Final = 0
"""Auth revision of what a member does of its own accord, on nobody's behalf."""


def guarded(command: Command, auth_revision: int, user: str | None = None) -> Command:
    """`command` as it was allowed by the access rules of `auth_revision`.

    Answers what `command` answers; refused with AuthRevisionOld when the rules are others by the
    time it is applied. What depends on the state itself, the keys that hang on a lease, is judged
    then, for `user`; None may do everything. While access control is on, nothing that a door
    proposes is applied without this.
    """
    return b"".join((_GUARD, _pack(auth_revision), _pack(user), command))


# ---- batches ---------------------------------------------------------------------------------


class Batch(NamedTuple):
    """The content of one log entry."""

    stamp_ms: int
    """Wall clock of the leader that proposed it, milliseconds; 0: never stamped."""
    origin: int
    """Member whose door took the commands."""
    boot: int
    """Distinguishes the runs of that member."""
    sequence: int
    """Distinguishes the batches of that run."""
    commands: list[list[Any]]


def encode_batch(origin: int, boot: int, sequence: int, commands: Sequence[Command]) -> bytes:
    """Join packed commands into the data of a log entry, not stamped yet."""
    count = len(commands)
    check(0 < count <= limits.BATCH_COMMANDS_MAX, "batch size", count=count)
    head = b"\xdc" + count.to_bytes(2, "big") if count > 15 else bytes((0x90 | count,))
    data = b"".join(
        (bytes(8), b"\x94", _pack(origin), _pack(boot), _pack(sequence), head, *commands)
    )
    check(len(data) <= limits.BATCH_BYTES_MAX, "batch over its bound", size=len(data))
    return data


def stamp_batch(data: bytes, now_ms: int) -> bytes:
    """The same batch with the leader's wall clock, which becomes the machine's."""
    return _STAMP.pack(now_ms) + data[8:]


def batch_head(data: bytes) -> tuple[int, int, int]:
    """(origin, boot, sequence) of a batch, without decoding it. Raises CorruptionError."""
    unpacker = msgpack.Unpacker(max_buffer_size=_HEAD_BYTES_MAX)
    unpacker.feed(data[8 : 8 + _HEAD_BYTES_MAX])
    try:
        unpacker.read_array_header()
        head = unpacker.unpack(), unpacker.unpack(), unpacker.unpack()
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise CorruptionError(f"not a batch of commands: {error}") from error
    if any(type(number) is not int for number in head):
        raise CorruptionError("a batch does not name its origin")
    return head


def decode_batch(data: bytes) -> Batch:
    """Unpack a log entry's data. Raises CorruptionError, or FormatError for an unknown command."""
    try:
        (stamp,) = _STAMP.unpack_from(data)
        body = unpack(data, 8)
        origin, boot, sequence, commands = body
        for command in commands:
            if command[0] == _GUARDED:
                _, _, _, _, command = command
            if not 0 < command[0] <= OP_MAX or command[0] == _GUARDED:
                raise FormatError(
                    f"the log holds a command (number {command[0]}) that this version of raftkv "
                    "does not know; run a version at least as new as the one that wrote it"
                )
            if command[1] is not None and type(command[1]) is not bytes:
                raise ValueError("idempotency key is not bytes")
    except (struct.error, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise CorruptionError(f"a log entry does not hold a batch of commands: {error}") from error
    for number in (origin, boot, sequence):
        if type(number) is not int:
            raise CorruptionError("a log entry does not name its origin")
    return Batch(stamp, origin, boot, sequence, commands)


# ---- parts -----------------------------------------------------------------------------------


def _command(operation: Operation, keyspace: int, once: bytes | None) -> Command:
    if not 0 <= keyspace < KEYSPACES_MAX:
        raise InvalidRequest("no such keyspace", keyspace=keyspace)
    return finish([operation[0], once, keyspace, *operation[1:]], once)


def finish(body: list[Any], once: bytes | None) -> Command:
    """Pack a command's body. Raises InvalidRequest for its idempotency key, or TooLarge."""
    if once is not None and not 0 < len(once) <= limits.IDEMPOTENCY_KEY_BYTES_MAX:
        raise InvalidRequest(
            f"an idempotency key has 1 to {limits.IDEMPOTENCY_KEY_BYTES_MAX} bytes"
        )
    packed: bytes = _pack(body)
    if len(packed) > COMMAND_BYTES_MAX:
        raise _too_large("request", len(packed), COMMAND_BYTES_MAX)
    return packed


def _list(texts: Sequence[str] | None) -> list[str] | None:
    return None if texts is None else list(texts)


def _too_large(what: str, size: int, bound: int) -> TooLarge:
    return TooLarge(f"{what} of {size} is over the limit of {bound}", what=what, limit=bound)


def _check_interval(start: bytes, end: bytes | None) -> None:
    if not start and end is None:
        raise InvalidRequest("key is not provided", reason="empty_key")
    if len(start) > limits.KEY_BYTES_MAX:
        raise _too_large("key", len(start), limits.KEY_BYTES_MAX)
    # A prefix's end, or the key just after another, may be a byte longer than a key.
    if end is not None and len(end) > limits.KEY_BYTES_MAX + 1:
        raise _too_large("key", len(end), limits.KEY_BYTES_MAX)


def _check_int64(number: int) -> None:
    if not _INT64_MIN <= number <= _INT64_MAX:
        raise InvalidRequest("number out of range", number=number)


def _check_lease(lease: int) -> None:
    if not 0 < lease <= _INT64_MAX:
        raise InvalidRequest("a lease id is a positive 63-bit number", lease=lease)


def _check_ttl(ttl_seconds: int) -> None:
    low, high = limits.LEASE_TTL_SECONDS_MIN, limits.LEASE_TTL_SECONDS_MAX
    if not low <= ttl_seconds <= high:
        raise TtlOutOfRange(
            f"a TTL is between {low} and {high} seconds", min_seconds=low, max_seconds=high
        )


def _check_name(what: str, name: str) -> None:
    if not name or "\0" in name:
        raise InvalidRequest(f"the name of the {what} is empty or holds a NUL", what=what)
    check_text(what, name, limits.SERVICE_NAME_BYTES_MAX)


def check_text(what: str, text: str, bytes_max: int) -> None:
    """Raise unless `text` can be stored: InvalidRequest, or TooLarge."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} is not valid Unicode", what=what) from None
    if size > bytes_max:
        raise _too_large(what, size, bytes_max)
