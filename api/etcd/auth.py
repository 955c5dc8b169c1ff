"""Auth: logging in, users, roles and permissions, as etcd has them.

Permissions on services are not told here: etcd's clients have no words for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import rpc_message
from raftkv.api.etcd.ranges import FROM_KEY
from raftkv.api.etcd.rpc import Rpcs, Service, Unary, answering
from raftkv.api.etcd.wire import field, number_field
from raftkv.errors import InvalidRequest, RaftkvError
from raftkv.machine import auth_commands as commands
from raftkv.machine.access import etcd_interval
from raftkv.machine.records import USER_KEYS

if TYPE_CHECKING:
    from raftkv.api.callers import Caller
    from raftkv.api.tokens import Issued
    from raftkv.machine.access import Permission
    from raftkv.machine.auth import AuthState
    from raftkv.machine.commands import Command
    from raftkv.machine.results import AuthResult

Made = Callable[[Any], "Command"]
"""A command out of a request."""
Shown = Callable[["AuthState", Any], bytes]
"""The fields of an answer, without its header."""

CHANGES: dict[str, Made] = {
    "AuthEnable": lambda request: commands.auth_enable(),
    "AuthDisable": lambda request: commands.auth_disable(),
    "UserDelete": lambda request: commands.user_delete(request.name),
    "UserGrantRole": lambda request: commands.user_grant(request.user, request.role),
    "UserRevokeRole": lambda request: commands.user_revoke(request.name, request.role),
    "RoleAdd": lambda request: commands.role_add(request.name),
    "RoleDelete": lambda request: commands.role_delete(request.role),
    "RoleGrantPermission": lambda request: _granted(request),
    "RoleRevokePermission": lambda request: commands.role_revoke(
        request.role, *etcd_interval(request.key, request.range_end)
    ),
}
READS: dict[str, Shown] = {
    "AuthStatus": lambda auth, request: (
        number_field(2, auth.enabled) + number_field(3, auth.revision)
    ),
    "UserList": lambda auth, request: _names(sorted(auth.users)),
    "UserGet": lambda auth, request: _names(auth.user(request.name).roles),
    "RoleList": lambda auth, request: _names(sorted(auth.roles)),
    "RoleGet": lambda auth, request: b"".join(
        field(2, _permission(one))
        for one in auth.role(request.role).permissions
        if one.keyspace == USER_KEYS
    ),
}


class AuthService(Service):
    """Service etcdserverpb.Auth."""

    def __init__(self, rpcs: Rpcs) -> None:
        super().__init__(rpcs)
        for name, make in CHANGES.items():
            self._add(name, partial(self._change, make))
        for name, show in READS.items():
            self._add(name, partial(self._read, show))
        self._add("Authenticate", self.authenticate)
        self._add("UserAdd", self.user_add)
        self._add("UserChangePassword", self.user_password)

    def _add(self, name: str, handler: Callable[[Caller, Any, Any], None]) -> None:
        message = name if name.startswith("Auth") else f"Auth{name}"
        self.rpcs.add(f"/etcdserverpb.Auth/{name}", rpc_message(f"{message}Request"), handler)

    # ---- logging in

    def authenticate(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer AuthenticateResponse with a token."""
        trail = self.rpcs.trail(call)
        self.rpcs.gate.logins.log_in(
            request.name, _taken(request), call.source, partial(self._issued, call), trail
        )

    @answering
    def _issued(self, call: Unary, issued: Issued) -> None:
        call.reply(self.headers.now() + field(2, issued.token.encode()))

    # ---- changing

    def _change(self, make: Made, caller: Caller, call: Unary, request: Any) -> None:
        caller.propose(make(request), partial(self._changed, call))

    @answering
    def _changed(self, call: Unary, result: AuthResult) -> None:
        call.reply(self.headers.now())

    def user_add(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer AuthUserAddResponse."""
        no_password = request.options.no_password
        self._with_hash(
            caller, call, request, partial(commands.user_add, request.name), no_password
        )

    def user_password(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer AuthUserChangePasswordResponse."""
        self._with_hash(caller, call, request, partial(commands.user_password, request.name), False)

    def _with_hash(
        self,
        caller: Caller,
        call: Unary,
        request: Any,
        make: Callable[[str | None], Command],
        no_password: bool,
    ) -> None:
        if request.hashedPassword:
            raise InvalidRequest("hashes of passwords are made here: send the password")
        make(None)  # refuse a name that cannot be before any work is done
        if no_password:
            self._hashed(call, caller, make, None)
        else:
            self.rpcs.gate.passwords.hash(
                _taken(request), partial(self._hashed, call, caller, make)
            )

    @answering
    def _hashed(
        self,
        call: Unary,
        caller: Caller,
        make: Callable[[str | None], Command],
        password_hash: str | None,
    ) -> None:
        caller.propose(make(password_hash), partial(self._changed, call))

    # ---- reading

    def _read(self, show: Shown, caller: Caller, call: Unary, request: Any) -> None:
        caller.read_index(partial(self._fresh, call, show, request))

    @answering
    def _fresh(self, call: Unary, show: Shown, request: Any, error: RaftkvError | None) -> None:
        call.reply(self.headers.now() + show(self.store.machine.auth, request))


def _taken(request: Any) -> str:
    """The password of a request, which keeps nothing of it."""
    password: str = request.password
    request.ClearField("password")
    return password


def _granted(request: Any) -> Command:
    if not request.HasField("perm"):
        raise answers.PERMISSION_NOT_GIVEN.fault()
    permission = request.perm
    start, end = etcd_interval(permission.key, permission.range_end)
    return commands.role_grant(request.name, permission.permType, start, end)


def _names(names: Any) -> bytes:
    return b"".join(field(2, name.encode()) for name in names)


def _permission(permission: Permission) -> bytes:
    """An authpb.Permission."""
    _, kind, start, end = permission
    range_end = b"" if end is None else end or FROM_KEY
    parts = [number_field(1, kind), field(2, start)]
    if range_end:
        parts.append(field(3, range_end))
    return b"".join(parts)
