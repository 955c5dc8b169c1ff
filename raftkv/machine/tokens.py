"""Tokens of those who logged in, as replicated state, so that every member knows them.

Only hashes are kept. A token ends with its time, which use prolongs; when its user's password
changes or the user goes; when access control is switched off. Of one user's tokens the oldest give
way to new ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgpack

from raftkv import limits
from raftkv.checks import check
from raftkv.errors import AuthNotEnabled, InvalidAuthToken, TooManyRequests
from raftkv.machine.auth import old_revision
from raftkv.machine.draft import Draft
from raftkv.machine.records import U64
from raftkv.machine.results import TokenResult
from raftkv.machine.tables import TOKENS, TableReader

_TOKEN: Final = b"t"
"""+ hash -> user, when it ends, auth revision."""
_AGE: Final = b"a"
"""+ when it ends + hash -> nothing."""
_USER: Final = b"u"
"""+ user, with its length before + when it ends + hash -> nothing."""
_COUNT: Final = b"n"
_INVALID: Final = "invalid auth token: log in again"


class Token(NamedTuple):
    """One token as recorded."""

    token_hash: bytes
    user: str
    expires_ms: int
    """By the machine's clock: stamps of leaders, milliseconds."""
    auth_revision: int
    """The rules under which the user proved to be so; see `AuthState.counts`."""


def apply_token_add(draft: Draft, command: list[Any]) -> TokenResult:
    """The TOKEN_ADD command."""
    _, _, token_hash, user, ttl_ms, auth_revision = command
    auth = draft.auth
    if not auth.enabled:
        raise AuthNotEnabled("authentication is not enabled")
    if not auth.counts(user, auth_revision):
        raise old_revision(auth)
    doomed = list(_expired(draft))
    own = _USER + _owner(user)
    held = [name[-_HASH_BYTES:] for name, _ in draft.writer.scan(TOKENS, own, _last(own))]
    doomed += held[: max(0, len(held) - limits.TOKENS_PER_USER_MAX + 1)]
    left = _count(draft.writer) - len(set(doomed))
    if left >= limits.TOKENS_MAX:
        raise TooManyRequests(
            f"{limits.TOKENS_MAX} tokens are valid already", limit=limits.TOKENS_MAX
        )
    for old in dict.fromkeys(doomed):
        _drop(draft, old)
    token = Token(token_hash, user, draft.state.clock_ms + ttl_ms, auth_revision)
    check(draft.get(TOKENS, _TOKEN + token_hash) is None, "a token is random")
    _write(draft, token)
    draft.put_row(TOKENS, _COUNT, U64.pack(left + 1))
    return TokenResult(draft.state.revision, user, token.expires_ms)


def apply_token_renew(draft: Draft, command: list[Any]) -> TokenResult:
    """The TOKEN_RENEW command."""
    _, _, token_hash, ttl_ms = command
    token = read_token(draft.writer, token_hash)
    now_ms = draft.state.clock_ms
    if token is None or token.expires_ms <= now_ms:
        raise InvalidAuthToken(_INVALID)
    if now_ms + ttl_ms > token.expires_ms:
        _remove(draft, token)
        token = token._replace(expires_ms=now_ms + ttl_ms)
        _write(draft, token)
    return TokenResult(draft.state.revision, token.user, token.expires_ms)


def apply_token_drop(draft: Draft, command: list[Any]) -> TokenResult:
    """The TOKEN_DROP command."""
    _, _, token_hash = command
    user = _drop(draft, token_hash)
    return TokenResult(draft.state.revision, user, 0)


def read_token(reader: TableReader, token_hash: bytes) -> Token | None:
    """A token by its hash, over its time or not; or None."""
    row = reader.get(TOKENS, _TOKEN + token_hash)
    return None if row is None else Token(token_hash, *msgpack.unpackb(row))


_HASH_BYTES: Final = 32


def _expired(draft: Draft) -> Iterator[bytes]:
    end = _AGE + U64.pack(draft.state.clock_ms + 1)
    for at, (name, _) in enumerate(draft.writer.scan(TOKENS, _AGE, end)):
        if at == limits.TOKENS_FORGOTTEN_PER_LOGIN:
            return
        yield name[-_HASH_BYTES:]


def _drop(draft: Draft, token_hash: bytes) -> str:
    token = read_token(draft.writer, token_hash)
    if token is None:
        return ""
    _remove(draft, token)
    draft.tokens_removed += 1
    draft.put_row(TOKENS, _COUNT, U64.pack(_count(draft.writer) - 1))
    draft.mark("token", token_hash, None)
    return token.user


def _write(draft: Draft, token: Token) -> None:
    row: bytes = msgpack.packb(list(token[1:]))
    draft.put_row(TOKENS, _TOKEN + token.token_hash, row)
    for name in _index(token):
        draft.put_row(TOKENS, name, b"")
    draft.mark("token", token.token_hash, row)


def _remove(draft: Draft, token: Token) -> None:
    draft.delete_row(TOKENS, _TOKEN + token.token_hash)
    for name in _index(token):
        draft.delete_row(TOKENS, name)


def _index(token: Token) -> tuple[bytes, bytes]:
    age = U64.pack(token.expires_ms) + token.token_hash
    return _AGE + age, _USER + _owner(token.user) + age


def _owner(user: str) -> bytes:
    name = user.encode()
    return bytes((len(name),)) + name


def _last(own: bytes) -> bytes:
    # Behind every row of this user: times are far below the greatest 64-bit number.
    return own + b"\xff" * 8


def _count(reader: TableReader) -> int:
    row = reader.get(TOKENS, _COUNT)
    return 0 if row is None else int(U64.unpack(row)[0])
