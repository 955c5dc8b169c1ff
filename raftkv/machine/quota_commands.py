"""The command that sets a quota, see `raftkv.machine.quotas`."""

from __future__ import annotations

from typing import Any, Final

from raftkv.errors import InvalidRequest, TooLarge
from raftkv.limits import (
    AUTH_NAME_BYTES_MAX,
    KEY_BYTES_MAX,
    QUOTA_COUNT_KEYS_MAX,
    QUOTAS_MAX,
)
from raftkv.machine.commands import Command, check_text, finish
from raftkv.machine.draft import Draft
from raftkv.machine.mvcc import live_rows
from raftkv.machine.quotas import Quota, QuotaKind, Quotas, packed, size_of
from raftkv.machine.records import USER_KEYS
from raftkv.machine.results import QuotaResult
from raftkv.machine.tables import QUOTAS

_NUMBER_MAX: Final = 2**63 - 1


def quota_set(
    kind: int, name: bytes, keys_max: int, bytes_max: int, *, once: bytes | None = None
) -> Command:
    """Limit a prefix or a user; 0 and 0 ends the quota. Answers QuotaResult; refused: TooLarge.

    Raises InvalidRequest or TooLarge.
    """
    if kind == QuotaKind.USER:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("the name of a user is UTF-8 text") from None
        if not text:
            raise InvalidRequest("user name is empty", reason="user_name_empty")
        check_text("name of a user", text, AUTH_NAME_BYTES_MAX)
    elif kind != QuotaKind.PREFIX:
        raise InvalidRequest("unknown kind of quota", kind=kind)
    elif len(name) > KEY_BYTES_MAX:
        raise TooLarge(f"a prefix has at most {KEY_BYTES_MAX} bytes", limit=KEY_BYTES_MAX)
    for number in (keys_max, bytes_max):
        if not 0 <= number <= _NUMBER_MAX:
            raise InvalidRequest("number out of range", number=number)
    return finish([29, once, int(kind), name, keys_max, bytes_max], once)


def apply_quota_set(draft: Draft, command: list[Any]) -> QuotaResult:
    """The QUOTA_SET command."""
    _, _, kind, name, keys_max, bytes_max = command
    row = bytes((kind,)) + name
    rules = {} if draft.quotas is None else draft.quotas.rules
    old = rules.get(row)
    if (keys_max, bytes_max) == ((0, 0) if old is None else (old.keys_max, old.bytes_max)):
        return QuotaResult(draft.state.revision, False)
    if draft.quotas is not None:
        # What the commands before have used goes into another book.
        draft.quotas.save()
    if not keys_max | bytes_max:
        draft.delete_row(QUOTAS, row)
        draft.set_quotas(Quotas(one for at, one in rules.items() if at != row))
    else:
        if old is None:
            old = _counted(draft, kind, name, len(rules))
        quota = old._replace(keys_max=keys_max, bytes_max=bytes_max)
        draft.set_quotas(Quotas([*(one for at, one in rules.items() if at != row), quota]))
        draft.put_row(QUOTAS, row, packed(quota))
    draft.mark("quota", kind, name, keys_max, bytes_max)
    return QuotaResult(draft.state.revision, True)


def _counted(draft: Draft, kind: int, name: bytes, others: int) -> Quota:
    """A new quota without limits, with what is there already."""
    if others >= QUOTAS_MAX:
        raise TooLarge(f"there are {QUOTAS_MAX} quotas already", limit=QUOTAS_MAX)
    keys = size = 0
    if kind == QuotaKind.PREFIX:
        for _, raw in live_rows(draft.writer, USER_KEYS, name, _prefix_end(name)):
            keys += 1
            size += size_of(raw)
            if keys > QUOTA_COUNT_KEYS_MAX:
                raise TooLarge(
                    f"the prefix has more than {QUOTA_COUNT_KEYS_MAX} keys; counting them would "
                    "hold up every member",
                    limit=QUOTA_COUNT_KEYS_MAX,
                )
    return Quota(kind, name, 0, 0, keys, size, draft.state.revision)


def _prefix_end(prefix: bytes) -> bytes:
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else b""
