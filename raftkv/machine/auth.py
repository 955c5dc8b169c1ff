"""Access control as replicated state: whether it is on, who there is, and who may do what.

Where a command is judged. The gate of the member that took it decides, by the rules that it has
applied, and the command carries the number of those rules, the auth revision. Every member compares
that with its own when it applies: equal, and the gate's decision stands; another, and the command
is refused on every member alike (etcd#14571 is what comes of judging twice). See docs/adr/0008.

The rules are small and read on every request, so they are also held in memory, as one value that
is replaced and never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgpack

from raftkv import limits
from raftkv.errors import (
    AuthRevisionOld,
    InvalidAuthManagement,
    PermissionDenied,
    PermissionNotGranted,
    RoleExists,
    RoleNotFound,
    RoleNotGranted,
    RootRoleMissing,
    RootUserMissing,
    TooLarge,
    UserExists,
    UserNotFound,
)
from raftkv.machine.access import ROOT, Grants, Kind, Permission, PermissionKind
from raftkv.machine.catalog import read_instance
from raftkv.machine.commands import BY_MEMBER, Op
from raftkv.machine.draft import KEYSPACE, Draft
from raftkv.machine.records import KEYSPACES_MAX, U64
from raftkv.machine.results import AuthResult
from raftkv.machine.tables import AUTH, LEASE_KEYS, TableReader

_HEAD: Final = b"auth"
_USER: Final = b"u"
_ROLE: Final = b"r"


class User(NamedTuple):
    """One user as recorded."""

    name: str
    password_hash: str | None
    """argon2id, in its own text form; None: this user never logs in by password."""
    roles: tuple[str, ...]
    """Sorted."""
    since: int
    """Auth revision of its creation, or of its newest password: tokens before that do not count."""


class Role(NamedTuple):
    """One role as recorded."""

    name: str
    permissions: tuple[Permission, ...]
    """Sorted by keyspace and interval."""


class AuthState:
    """All rules at one auth revision. Replaced, never changed."""

    __slots__ = ("_grants", "enabled", "revision", "roles", "since", "users")

    def __init__(
        self,
        enabled: bool = False,
        revision: int = 1,
        since: int = 0,
        users: dict[str, User] | None = None,
        roles: dict[str, Role] | None = None,
    ) -> None:
        self.enabled = enabled
        self.revision = revision
        """Counts the changes of rules; 1 for a new store, as in etcd."""
        self.since = since
        """Auth revision at which access control was switched on."""
        self.users = {} if users is None else users
        self.roles = {} if roles is None else roles
        self._grants: dict[str, Grants] = {}

    def user(self, name: str) -> User:
        """A user by name. Raises UserNotFound."""
        found = self.users.get(name)
        if found is None:
            raise UserNotFound("user name not found", user=name)
        return found

    def role(self, name: str) -> Role:
        """A role by name. Raises RoleNotFound."""
        found = self.roles.get(name)
        if found is None:
            raise RoleNotFound("role name not found", role=name)
        return found

    def counts(self, name: str, auth_revision: int) -> bool:
        """Whether somebody who proved to be this user at `auth_revision` still is so to us."""
        found = self.users.get(name)
        return found is not None and max(found.since, self.since) <= auth_revision <= self.revision

    def grants(self, name: str) -> Grants:
        """What a user may do; a user that is not there may do nothing."""
        found = self._grants.get(name)
        if found is None:
            user = self.users.get(name)
            roles = () if user is None else user.roles
            found = Grants(name, roles, _permissions(self.roles, roles))
            if user is not None:
                self._grants[name] = found
        return found

    def changed(
        self,
        *,
        enabled: bool | None = None,
        users: dict[str, User] | None = None,
        roles: dict[str, Role] | None = None,
    ) -> AuthState:
        """The next rules."""
        revision = self.revision + 1
        return AuthState(
            self.enabled if enabled is None else enabled,
            revision,
            revision if enabled else self.since,
            self.users if users is None else users,
            self.roles if roles is None else roles,
        )


def _permissions(roles: dict[str, Role], names: Iterable[str]) -> Iterator[Permission]:
    for name in names:
        role = roles.get(name)  # the role root may be had without being there
        if role is not None:
            yield from role.permissions


# ---- the guard of a command ----------------------------------------------------------------------


def check_guard(draft: Draft, command: list[Any]) -> list[Any]:
    """The command inside a GUARDED one. Raises AuthRevisionOld, or PermissionDenied for the keys
    of leases."""
    _, _, auth_revision, name, inner = command
    if auth_revision == BY_MEMBER:
        return inner  # type: ignore[no-any-return]
    auth = draft.auth
    if auth_revision != auth.revision:
        raise old_revision(auth)
    if name is not None and auth.enabled:
        grants = auth.grants(name)
        if not grants.admin:
            for lease in _leases_of(draft, inner):
                check_lease(draft.writer, grants, lease)
    return inner  # type: ignore[no-any-return]


def old_revision(auth: AuthState) -> AuthRevisionOld:
    """What refuses a command that was judged by other rules than those in force."""
    return AuthRevisionOld(
        "revision of auth store is old: access rules changed meanwhile, nothing was done",
        auth_revision=auth.revision,
    )


def _leases_of(draft: Draft, command: list[Any]) -> Iterable[int]:
    """Leases whose end, or whose keeping, a command decides about."""
    op = command[0]
    if op == Op.LEASE_REVOKE:
        return (command[2],)
    if op == Op.PUT:
        return (command[5],) if command[5] else ()
    if op == Op.TXN:
        return sorted(set(_attached((*command[4], *command[5]))))
    if op in (Op.SERVICE_REGISTER, Op.SERVICE_DEREGISTER):
        # Both may end the lease that the instance has, and with it whatever else hangs there.
        found = read_instance(draft.writer, command[2], command[3])
        return () if found is None else (found.fields["lease"],)
    return ()


def _attached(operations: Iterable[list[Any]]) -> Iterator[int]:
    for operation in operations:
        if operation[0] == Op.PUT and operation[3]:
            yield operation[3]
        elif operation[0] == Op.TXN:
            yield from _attached((*operation[2], *operation[3]))


def check_lease(reader: TableReader, grants: Grants, lease: int) -> None:
    """Raise PermissionDenied unless every key of a lease may be written: its end deletes them.

    Looks only where the user may not write, so the cost is in the number of permissions and not
    in that of keys.
    """
    if not 0 < lease < 2**63:
        return
    for keyspace in range(KEYSPACES_MAX):
        for start, end in grants.intervals(Kind.WRITE, keyspace).gaps():
            if has_key(reader, lease, keyspace, start, end):
                raise PermissionDenied(
                    "permission denied: keys hang on this lease that you may not write", lease=lease
                )


def may_renew(reader: TableReader, grants: Grants, lease: int) -> bool:
    """Whether somebody may keep a lease alive: nothing hangs on it, or something that they may
    write. Not everything, or anyone could end another's lease by hanging a key on it."""
    if grants.admin or not 0 < lease < 2**63:
        return True
    return _any_key(reader, grants, Kind.WRITE, lease)


def may_see(reader: TableReader, grants: Grants, lease: int) -> bool:
    """Whether a lease is listed for somebody: nothing hangs on it, or something they may read."""
    return grants.admin or _any_key(reader, grants, Kind.READ, lease)


def _any_key(reader: TableReader, grants: Grants, kind: Kind, lease: int) -> bool:
    name = U64.pack(lease)
    empty = next(iter(reader.scan(LEASE_KEYS, name, U64.pack(lease + 1))), None) is None
    return empty or any(
        has_key(reader, lease, keyspace, start, end)
        for keyspace in range(KEYSPACES_MAX)
        for start, end in grants.intervals(kind, keyspace)
    )


def has_key(reader: TableReader, lease: int, keyspace: int, start: bytes, end: bytes) -> bool:
    """Whether a key of the interval hangs on the lease; `end` b"" is the end of the keyspace."""
    name = U64.pack(lease)
    last = name + KEYSPACE[keyspace] + end if end else name + KEYSPACE[keyspace + 1]
    rows = reader.scan(LEASE_KEYS, name + KEYSPACE[keyspace] + start, last)
    return next(iter(rows), None) is not None


# ---- commands ------------------------------------------------------------------------------------


def apply_enable(draft: Draft, command: list[Any]) -> AuthResult:
    """The AUTH_ENABLE command."""
    auth = draft.auth
    if auth.enabled:
        return _unchanged(draft)
    root = auth.users.get(ROOT)
    if root is None:
        raise RootUserMissing("root user does not exist: add a user named root first")
    if ROOT not in root.roles:
        raise RootRoleMissing("root user does not have root role: grant it first")
    return _adopt(draft, auth.changed(enabled=True))


def apply_disable(draft: Draft, command: list[Any]) -> AuthResult:
    """The AUTH_DISABLE command."""
    if not draft.auth.enabled:
        return _unchanged(draft)
    return _adopt(draft, draft.auth.changed(enabled=False))


def apply_user_add(draft: Draft, command: list[Any]) -> AuthResult:
    """The USER_ADD command."""
    _, _, name, password_hash = command
    auth = draft.auth
    if name in auth.users:
        raise UserExists("user name already exists", user=name)
    if len(auth.users) >= limits.USERS_MAX:
        raise TooLarge(f"there are {limits.USERS_MAX} users already", limit=limits.USERS_MAX)
    return _set_users(draft, User(name, password_hash, (), auth.revision + 1))


def apply_user_delete(draft: Draft, command: list[Any]) -> AuthResult:
    """The USER_DELETE command."""
    _, _, name = command
    auth = draft.auth
    auth.user(name)
    if auth.enabled and name == ROOT:
        raise InvalidAuthManagement("root cannot be deleted while access control is on")
    _delete(draft, _USER, name)
    users = {other: user for other, user in auth.users.items() if other != name}
    return _adopt(draft, auth.changed(users=users))


def apply_user_password(draft: Draft, command: list[Any]) -> AuthResult:
    """The USER_PASSWORD command."""
    _, _, name, password_hash = command
    auth = draft.auth
    user = auth.user(name)
    return _set_users(draft, user._replace(password_hash=password_hash, since=auth.revision + 1))


def apply_user_grant(draft: Draft, command: list[Any]) -> AuthResult:
    """The USER_GRANT command."""
    _, _, name, role = command
    auth = draft.auth
    user = auth.user(name)
    if role != ROOT:
        auth.role(role)
    if role in user.roles:
        return _unchanged(draft)
    if len(user.roles) >= limits.USER_ROLES_MAX:
        raise TooLarge(
            f"a user has at most {limits.USER_ROLES_MAX} roles", limit=limits.USER_ROLES_MAX
        )
    return _set_users(draft, user._replace(roles=tuple(sorted((*user.roles, role)))))


def apply_user_revoke(draft: Draft, command: list[Any]) -> AuthResult:
    """The USER_REVOKE command."""
    _, _, name, role = command
    auth = draft.auth
    if auth.enabled and name == role == ROOT:
        raise InvalidAuthManagement("root keeps the role root while access control is on")
    user = auth.user(name)
    if role not in user.roles:
        raise RoleNotGranted("role is not granted to the user", user=name, role=role)
    return _set_users(draft, _without(user, role))


def apply_role_add(draft: Draft, command: list[Any]) -> AuthResult:
    """The ROLE_ADD command."""
    _, _, name = command
    auth = draft.auth
    if name in auth.roles:
        raise RoleExists("role name already exists", role=name)
    if len(auth.roles) >= limits.ROLES_MAX:
        raise TooLarge(f"there are {limits.ROLES_MAX} roles already", limit=limits.ROLES_MAX)
    return _set_role(draft, Role(name, ()))


def apply_role_delete(draft: Draft, command: list[Any]) -> AuthResult:
    """The ROLE_DELETE command."""
    _, _, name = command
    auth = draft.auth
    if auth.enabled and name == ROOT:
        raise InvalidAuthManagement("the role root cannot be deleted while access control is on")
    auth.role(name)
    _delete(draft, _ROLE, name)
    roles = {other: role for other, role in auth.roles.items() if other != name}
    users = dict(auth.users)
    # The hash covers the order, which must not be that in which this member came to know them.
    for user in sorted(auth.users):
        if name in users[user].roles:
            users[user] = _without(users[user], name)
            _write_user(draft, users[user])
    return _adopt(draft, auth.changed(users=users, roles=roles))


def apply_role_grant(draft: Draft, command: list[Any]) -> AuthResult:
    """The ROLE_GRANT command."""
    _, _, name, keyspace, kind, start, end = command
    role = draft.auth.role(name)
    permission = Permission(keyspace, PermissionKind(kind), start, end)
    others = [held for held in role.permissions if not _same_range(held, permission)]
    if len(others) >= limits.ROLE_PERMISSIONS_MAX:
        raise TooLarge(
            f"a role has at most {limits.ROLE_PERMISSIONS_MAX} permissions",
            limit=limits.ROLE_PERMISSIONS_MAX,
        )
    permissions = tuple(sorted((*others, permission), key=_order))
    return _set_role(draft, Role(name, permissions))


def apply_role_revoke(draft: Draft, command: list[Any]) -> AuthResult:
    """The ROLE_REVOKE command."""
    _, _, name, keyspace, start, end = command
    role = draft.auth.role(name)
    wanted = Permission(keyspace, PermissionKind.READ, start, end)
    left = tuple(held for held in role.permissions if not _same_range(held, wanted))
    if len(left) == len(role.permissions):
        raise PermissionNotGranted("permission is not granted to the role", role=name)
    return _set_role(draft, Role(name, left))


def _same_range(one: Permission, other: Permission) -> bool:
    return (one.keyspace, one.start, one.end) == (other.keyspace, other.start, other.end)


def _order(permission: Permission) -> tuple[int, bytes, bool, bytes]:
    return permission.keyspace, permission.start, permission.end is None, permission.end or b""


def _without(user: User, role: str) -> User:
    return user._replace(roles=tuple(held for held in user.roles if held != role))


# ---- rows ----------------------------------------------------------------------------------------


def _set_users(draft: Draft, user: User) -> AuthResult:
    _write_user(draft, user)
    return _adopt(draft, draft.auth.changed(users={**draft.auth.users, user.name: user}))


def _set_role(draft: Draft, role: Role) -> AuthResult:
    row: bytes = msgpack.packb([list(permission) for permission in role.permissions])
    if len(row) > limits.ROLE_BYTES_MAX:
        raise TooLarge("the permissions of a role are too long", limit=limits.ROLE_BYTES_MAX)
    _write(draft, _ROLE, role.name, row)
    return _adopt(draft, draft.auth.changed(roles={**draft.auth.roles, role.name: role}))


def _write_user(draft: Draft, user: User) -> None:
    row: bytes = msgpack.packb([user.password_hash, list(user.roles), user.since])
    _write(draft, _USER, user.name, row)


def _write(draft: Draft, kind: bytes, name: str, row: bytes) -> None:
    draft.put_row(AUTH, kind + name.encode(), row)
    draft.mark("auth", kind, name, row)


def _delete(draft: Draft, kind: bytes, name: str) -> None:
    draft.delete_row(AUTH, kind + name.encode())
    draft.mark("auth", kind, name, None)


def _adopt(draft: Draft, auth: AuthState) -> AuthResult:
    head = [auth.enabled, auth.revision, auth.since]
    draft.put_row(AUTH, _HEAD, msgpack.packb(head))
    draft.mark("auth", *head)
    draft.set_auth(auth)
    return AuthResult(draft.state.revision, auth.revision, True)


def _unchanged(draft: Draft) -> AuthResult:
    return AuthResult(draft.state.revision, draft.auth.revision, False)


def read_auth(reader: TableReader) -> AuthState:
    """The rules as stored."""
    head = reader.get(AUTH, _HEAD)
    if head is None:
        return AuthState()
    users = {}
    for name, row in reader.scan(AUTH, _USER, _after(_USER)):
        label = name[1:].decode()
        password_hash, roles, since = msgpack.unpackb(row)
        users[label] = User(label, password_hash, tuple(roles), since)
    found = {}
    for name, row in reader.scan(AUTH, _ROLE, _after(_ROLE)):
        label = name[1:].decode()
        permissions = (
            Permission(keyspace, PermissionKind(kind), start, end)
            for keyspace, kind, start, end in msgpack.unpackb(row)
        )
        found[label] = Role(label, tuple(permissions))
    enabled, revision, since = msgpack.unpackb(head)
    return AuthState(enabled, revision, since, users, found)


def _after(kind: bytes) -> bytes:
    return bytes((kind[0] + 1,))
