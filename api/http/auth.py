"""Access control: `/api/auth`. Logging in, and who may do what."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.gate import admin, known, public
from raftkv.api.http.exchange import Exchange
from raftkv.api.http.fields import Field, read_fields
from raftkv.api.http.handling import answering, once_key
from raftkv.api.http.permissions import (
    GRANT,
    RANGE,
    access_kind,
    granted_range,
    permission_json,
    read_range,
)
from raftkv.api.http.router import Answer, Route
from raftkv.api.tokens import Issued
from raftkv.errors import InvalidRequest, RaftkvError
from raftkv.machine import auth_commands as commands
from raftkv.machine.access import Access, Accesses, Kind
from raftkv.machine.results import AuthResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftkv.machine.auth import Role, User
    from raftkv.machine.commands import Command

LOGIN: Final = (
    Field("user", "text", "The user's name.", required=True),
    Field("password", "text", "The user's password.", required=True),
)
PASSWORD: Final = (
    Field("password", "text", "The password."),
    Field(
        "no_password", "boolean", "Such a user never logs in by password.", default=False
    ),
)  # fmt: skip
NEW_USER: Final = (Field("user", "text", "The user's name.", required=True), *PASSWORD)
NEW_ROLE: Final = (Field("role", "text", "The role's name.", required=True),)


def read_secret(x: Exchange, fields: tuple[Field, ...]) -> dict[str, Any]:
    """The body's fields. The request keeps nothing of the body from then on, so that what is made
    of the request later, a log line or an audit, cannot show a password."""
    body, x.request.body = x.request.body, b""
    return read_fields(body, fields)


def names_of(x: Exchange) -> list[str]:
    """The names of users and roles in the path."""
    try:
        return [place.decode() for place in x.places]
    except UnicodeDecodeError:
        raise InvalidRequest("Names of users and roles are UTF-8 text") from None


# ---- logging in ------------------------------------------------------------------------------


def post_login(x: Exchange) -> None:
    body = read_secret(x, LOGIN)
    x.door.gate.logins.log_in(
        body["user"], body.pop("password"), x.source, partial(_logged_in, x), x.trail
    )


@answering
def _logged_in(x: Exchange, issued: Issued) -> None:
    x.json(
        {"token": issued.token, "user": issued.user, "ttl": issued.ttl_seconds},
        headers=b"Cache-Control: no-store\r\n",
    )


def post_logout(x: Exchange) -> None:
    read_fields(x.request.body, (), required=False)
    if x.caller.user is None:
        x.json({"ended": False})
    else:
        x.door.gate.leave(x.header(b"authorization"), partial(_logged_out, x))


@answering
def _logged_out(x: Exchange, ended: bool | RaftkvError) -> None:
    x.json({"ended": ended})


def get_auth(x: Exchange) -> None:
    x.read_index(partial(_auth_ready, x))


@answering
def _auth_ready(x: Exchange, error: RaftkvError | None) -> None:
    auth = x.machine.auth
    grants = x.caller.grants
    x.json(
        {
            "enabled": auth.enabled,
            "auth_revision": auth.revision,
            "user": None if grants is None else grants.user,
            "roles": [] if grants is None else sorted(grants.roles),
        }
    )


# ---- changing --------------------------------------------------------------------------------


def changing(make: Callable[[Exchange], Command], status: int = 200) -> Callable[[Exchange], None]:
    """A handler that proposes what `make` makes of the request."""

    def handle(x: Exchange) -> None:
        x.caller.propose(make(x), partial(_changed, x, status))

    return handle


@answering
def _changed(x: Exchange, status: int, result: AuthResult) -> None:
    x.json(
        {
            "auth_revision": result.auth_revision,
            "changed": result.changed,
            "revision": result.revision,
        },
        status,
    )


def set_enabled(make: Callable[..., Command]) -> Callable[[Exchange], None]:
    """A handler that switches access control on or off."""

    def command(x: Exchange) -> Command:
        read_fields(x.request.body, (), required=False)
        return make(once=once_key(x))

    return changing(command)


def post_user(x: Exchange) -> None:
    body = read_secret(x, NEW_USER)
    _with_hash(x, body, partial(commands.user_add, body["user"]), 201)


def put_password(x: Exchange) -> None:
    body = read_secret(x, PASSWORD)
    _with_hash(x, body, partial(commands.user_password, names_of(x)[0]), 200)


def _with_hash(
    x: Exchange, body: dict[str, Any], make: Callable[[str | None], Command], status: int
) -> None:
    """Hash the password off the loop, then propose what `make` makes of the hash."""
    password = body.pop("password")
    if (password is None) is not body["no_password"]:
        raise InvalidRequest("Give either password, or no_password: true", field="password")
    make(None)  # refuse a name that cannot be before any work is done
    if password is None:
        _hashed(x, make, status, None)
    else:
        x.door.gate.passwords.hash(password, partial(_hashed, x, make, status))


@answering
def _hashed(
    x: Exchange, make: Callable[[str | None], Command], status: int, password_hash: str | None
) -> None:
    x.caller.propose(make(password_hash), partial(_changed, x, status))


def _delete_user(x: Exchange) -> Command:
    return commands.user_delete(names_of(x)[0], once=once_key(x))


def _grant_role(x: Exchange) -> Command:
    return commands.user_grant(*names_of(x), once=once_key(x))


def _revoke_role(x: Exchange) -> Command:
    return commands.user_revoke(*names_of(x), once=once_key(x))


def _add_role(x: Exchange) -> Command:
    return commands.role_add(read_fields(x.request.body, NEW_ROLE)["role"], once=once_key(x))


def _delete_role(x: Exchange) -> Command:
    return commands.role_delete(names_of(x)[0], once=once_key(x))


def _grant(x: Exchange) -> Command:
    body = read_fields(x.request.body, GRANT)
    keyspace, start, end = granted_range(body)
    return commands.role_grant(
        names_of(x)[0], access_kind(body["access"]), start, end,
        keyspace=keyspace, once=once_key(x),
    )  # fmt: skip


def _revoke(x: Exchange) -> Command:
    keyspace, start, end = read_range(x.query)
    return commands.role_revoke(
        names_of(x)[0], start, end, keyspace=keyspace, once=once_key(x)
    )  # fmt: skip


# ---- reading ---------------------------------------------------------------------------------


def is_user(x: Exchange) -> Accesses:
    """The guard of what a user may know of itself."""
    return (Access(Kind.USER, 0, names_of(x)[0].encode()),)


def has_role(x: Exchange) -> Accesses:
    """The guard of what a user may know of a role it has."""
    return (Access(Kind.ROLE, 0, names_of(x)[0].encode()),)


def user_json(user: User) -> dict[str, Any]:
    """The API's `User` object."""
    return {
        "user": user.name,
        "roles": list(user.roles),
        "no_password": user.password_hash is None,
    }


def role_json(role: Role) -> dict[str, Any]:
    """The API's `Role` object."""
    return {"role": role.name, "permissions": [permission_json(one) for one in role.permissions]}


def showing(show: Callable[[Exchange], dict[str, Any]]) -> Callable[[Exchange], None]:
    """A handler that answers with what `show` finds in fresh rules."""

    def ready(x: Exchange, error: RaftkvError | None) -> None:
        x.json({**show(x), "auth_revision": x.machine.auth.revision})

    answer = answering(ready)
    return lambda x: x.read_index(partial(answer, x))


def _users(x: Exchange) -> dict[str, Any]:
    return {"users": sorted(x.machine.auth.users)}


def _user(x: Exchange) -> dict[str, Any]:
    return user_json(x.machine.auth.user(names_of(x)[0]))


def _roles(x: Exchange) -> dict[str, Any]:
    return {"roles": sorted(x.machine.auth.roles)}


def _role(x: Exchange) -> dict[str, Any]:
    return role_json(x.machine.auth.role(names_of(x)[0]))


ACCESS: Final = "Access control"
CHANGED: Final = (Answer(200, "Done.", "AuthChanged"),)

ROUTES: Final = [
    Route(
        "POST", "/api/auth/login", post_login, "logIn", "Get a token", ACCESS,
        guard=public,
        doc="Send it with every request as `Authorization: Bearer TOKEN`. It ends when it is not "
        "used for `ttl` seconds, when the user or its password changes, or at `logout`. After "
        "failures the next attempt has to wait.",
        body=LOGIN,
        answers=(Answer(200, "Logged in.", "LoggedIn"),),
        problems=(409, 415), writes=True, once=False,
    ),
    Route(
        "POST", "/api/auth/logout", post_logout, "logOut", "End the token", ACCESS,
        guard=known,
        doc="`ended` is false for a signed token, which ends with its time only.",
        body=(), body_required=False,
        answers=(Answer(200, "Done.", "LoggedOut"),),
        problems=(415,), writes=True, once=False,
    ),
    Route(
        "GET", "/api/auth", get_auth, "getAuth", "Whether access control is on, and who asks",
        ACCESS,
        guard=known,
        answers=(Answer(200, "So it is.", "Auth"),),
    ),
    Route(
        "POST", "/api/auth/enable", set_enabled(commands.auth_enable), "enableAuth",
        "Switch access control on", ACCESS,
        guard=admin,
        doc="Needs a user `root` that has the role `root`. From then on every call needs a token.",
        body=(), body_required=False, answers=CHANGED, problems=(409, 415), writes=True,
    ),
    Route(
        "POST", "/api/auth/disable", set_enabled(commands.auth_disable), "disableAuth",
        "Switch access control off", ACCESS,
        guard=admin,
        doc="Users and roles stay; all tokens end.",
        body=(), body_required=False, answers=CHANGED, problems=(415,), writes=True,
    ),
    Route(
        "GET", "/api/auth/users", showing(_users), "listUsers", "List the users", ACCESS,
        guard=admin,
        answers=(Answer(200, "Their names.", "Users"),),
    ),
    Route(
        "POST", "/api/auth/users", post_user, "addUser", "Add a user", ACCESS,
        guard=admin,
        body=NEW_USER, answers=(Answer(201, "Added.", "AuthChanged"),),
        problems=(409, 415), writes=True, once=False,
    ),
    Route(
        "GET", "/api/auth/users/{user}", showing(_user), "getUser", "Show a user", ACCESS,
        guard=is_user,
        doc="Users may see themselves.",
        answers=(Answer(200, "The user.", "User"),), problems=(404,),
    ),
    Route(
        "DELETE", "/api/auth/users/{user}", changing(_delete_user), "deleteUser",
        "Delete a user", ACCESS,
        guard=admin,
        answers=CHANGED, problems=(404, 409), writes=True,
    ),
    Route(
        "PUT", "/api/auth/users/{user}/password", put_password, "setPassword",
        "Set a user's password", ACCESS,
        guard=admin,
        doc="Tokens that the user has end.",
        body=PASSWORD, answers=CHANGED, problems=(404, 415), writes=True, once=False,
    ),
    Route(
        "PUT", "/api/auth/users/{user}/roles/{role}", changing(_grant_role), "grantRole",
        "Give a user a role", ACCESS,
        guard=admin,
        answers=CHANGED, problems=(404,), writes=True,
    ),
    Route(
        "DELETE", "/api/auth/users/{user}/roles/{role}", changing(_revoke_role), "revokeRole",
        "Take a role from a user", ACCESS,
        guard=admin,
        answers=CHANGED, problems=(404, 409), writes=True,
    ),
    Route(
        "GET", "/api/auth/roles", showing(_roles), "listRoles", "List the roles", ACCESS,
        guard=admin,
        answers=(Answer(200, "Their names.", "Roles"),),
    ),
    Route(
        "POST", "/api/auth/roles", changing(_add_role, 201), "addRole", "Add a role", ACCESS,
        guard=admin,
        body=NEW_ROLE, answers=(Answer(201, "Added.", "AuthChanged"),),
        problems=(409, 415), writes=True,
    ),
    Route(
        "GET", "/api/auth/roles/{role}", showing(_role), "getRole", "Show a role", ACCESS,
        guard=has_role,
        doc="Users may see the roles they have.",
        answers=(Answer(200, "The role.", "Role"),), problems=(404,),
    ),
    Route(
        "DELETE", "/api/auth/roles/{role}", changing(_delete_role), "deleteRole",
        "Delete a role", ACCESS,
        guard=admin,
        doc="All who have it lose it.",
        answers=CHANGED, problems=(404, 409), writes=True,
    ),
    Route(
        "POST", "/api/auth/roles/{role}/permissions", changing(_grant), "grantPermission",
        "Let a role read or write", ACCESS,
        guard=admin,
        doc="Keys, or services. A permission on exactly this range is replaced.",
        body=GRANT, answers=CHANGED, problems=(404, 409, 415), writes=True,
    ),
    Route(
        "DELETE", "/api/auth/roles/{role}/permissions", changing(_revoke), "revokePermission",
        "Take a permission back", ACCESS,
        guard=admin,
        doc="The one on exactly this range.",
        query=RANGE, answers=CHANGED, problems=(404, 409), writes=True,
    ),
]  # fmt: skip
