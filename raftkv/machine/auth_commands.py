"""Commands of access control. Only hashes of passwords and tokens go into the log.

All but those of tokens answer AuthResult, and raise InvalidRequest or TooLarge for names that
cannot be. See `raftkv.machine.commands`.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from raftkv import limits
from raftkv.checks import check
from raftkv.errors import InvalidAuthManagement, InvalidRequest
from raftkv.machine.access import FIRST_KEY, PermissionKind
from raftkv.machine.commands import Command, check_text, finish
from raftkv.machine.records import KEYSPACES_MAX, USER_KEYS

HASH_PREFIX: Final = "$argon2id$"
TOKEN_HASH_BYTES: Final = 32


def auth_enable(*, once: bytes | None = None) -> Command:
    """Switch access control on. Refused: RootUserMissing, RootRoleMissing."""
    return finish([15, once], once)


def auth_disable(*, once: bytes | None = None) -> Command:
    """Switch it off: everybody may do everything, and no token counts any more."""
    return finish([16, once], once)


def user_add(name: str, password_hash: str | None) -> Command:
    """A new user; `password_hash` None: one that never logs in by password. Refused: UserExists.

    No idempotency key: two hashes of one password differ, so a repeat would not be known again.
    """
    _check_name("user", name)
    _check_hash(password_hash)
    return finish([17, None, name, password_hash], None)


def user_delete(name: str, *, once: bytes | None = None) -> Command:
    """Refused: UserNotFound, InvalidAuthManagement (root, while access control is on)."""
    return finish([18, once, _named("user", name)], once)


def user_password(name: str, password_hash: str | None) -> Command:
    """Another password; tokens given out before end. Refused: UserNotFound."""
    _check_name("user", name)
    _check_hash(password_hash)
    return finish([19, None, name, password_hash], None)


def user_grant(name: str, role: str, *, once: bytes | None = None) -> Command:
    """Give a user a role. Refused: UserNotFound, RoleNotFound (the role root need not exist)."""
    return finish([20, once, _named("user", name), _named("role", role)], once)


def user_revoke(name: str, role: str, *, once: bytes | None = None) -> Command:
    """Take a role from a user. Refused: UserNotFound, RoleNotGranted, InvalidAuthManagement (root
    from root, while access control is on)."""
    return finish([21, once, _named("user", name), _named("role", role)], once)


def role_add(role: str, *, once: bytes | None = None) -> Command:
    """A new role, without permissions. Refused: RoleExists."""
    return finish([22, once, _named("role", role)], once)


def role_delete(role: str, *, once: bytes | None = None) -> Command:
    """End a role, for all who have it. Refused: RoleNotFound, InvalidAuthManagement (root, while
    access control is on)."""
    return finish([23, once, _named("role", role)], once)


def role_grant(
    role: str,
    kind: int,
    start: bytes,
    end: bytes | None = None,
    *,
    keyspace: int = USER_KEYS,
    once: bytes | None = None,
) -> Command:
    """Let a role read, write or both (`PermissionKind`) in an interval. A permission on exactly
    this interval is replaced. Refused: RoleNotFound, TooLarge."""
    if not PermissionKind.READ <= kind <= PermissionKind.READWRITE:
        raise InvalidRequest("permission not given", reason="permission_not_given")
    start = _checked_interval(start, end, keyspace)
    return finish([24, once, _named("role", role), keyspace, int(kind), start, end], once)


def role_revoke(
    role: str,
    start: bytes,
    end: bytes | None = None,
    *,
    keyspace: int = USER_KEYS,
    once: bytes | None = None,
) -> Command:
    """Take back the permission on exactly this interval. Refused: RoleNotFound,
    PermissionNotGranted."""
    start = _checked_interval(start, end, keyspace)
    return finish([25, once, _named("role", role), keyspace, start, end], once)


def token_add(token_hash: bytes, user: str, ttl_ms: int, auth_revision: int) -> Command:
    """Somebody proved to be `user` under the rules of `auth_revision`. Answers TokenResult.
    Refused: AuthNotEnabled, AuthRevisionOld (the user is another since), TooManyRequests."""
    check(len(token_hash) == TOKEN_HASH_BYTES, "a token's hash is a SHA-256")
    return finish([26, None, token_hash, user, ttl_ms, auth_revision], None)


def token_renew(token_hash: bytes, ttl_ms: int) -> Command:
    """The token was used: it ends `ttl_ms` from now. Answers TokenResult; refused:
    InvalidAuthToken."""
    return finish([27, None, token_hash, ttl_ms], None)


def token_drop(token_hash: bytes) -> Command:
    """End a token. Answers TokenResult, known or not."""
    return finish([28, None, token_hash], None)


def _named(what: str, name: str) -> str:
    """A name as given: one that cannot exist is not found, one that is empty is refused here."""
    if not name:
        raise InvalidRequest(f"{what} name is empty", reason=f"{what}_name_empty")
    check_text(f"{what} name", name, limits.AUTH_NAME_BYTES_MAX)
    return name


def _check_name(what: str, name: str) -> None:
    _named(what, name)
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise InvalidRequest(f"the name of a {what} has no control characters", what=what)


def _check_hash(password_hash: str | None) -> None:
    if password_hash is None:
        return
    known = password_hash.startswith(HASH_PREFIX)
    if not known or len(password_hash) > limits.PASSWORD_HASH_BYTES_MAX:
        # The text is not shown: it may be the password itself.
        raise InvalidRequest("a password goes into the log as an argon2id hash only")


def _checked_interval(start: bytes, end: bytes | None, keyspace: int) -> bytes:
    if not 0 <= keyspace < KEYSPACES_MAX:
        raise InvalidRequest("no such keyspace", keyspace=keyspace)
    if end is not None:
        start = start or FIRST_KEY
    if not start or (end and end <= start):
        raise InvalidAuthManagement("a permission's range is empty, or has no key")
    if len(start) > limits.KEY_BYTES_MAX or len(end or b"") > limits.KEY_BYTES_MAX + 1:
        raise InvalidRequest("a permission's range is over the limit of keys")
    return start
