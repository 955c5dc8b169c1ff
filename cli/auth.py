"""auth enable, disable, status; user …; role …"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from raftkv.cli import etcd_calls
from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import printable
from raftkv.cli.secrets import new_password
from raftkv.cli.session import Session, common_options

if TYPE_CHECKING:
    from raftkv.client.auth import Permission, User
    from raftkv.client.client import AsyncClient

AUTH_COMMANDS = {
    "enable": Lazy("raftkv.cli.auth:enable", "Switch access control on."),
    "disable": Lazy("raftkv.cli.auth:disable", "Switch access control off."),
    "status": Lazy(
        "raftkv.cli.auth:status", "Show whether access control is on, and as whom you are known."
    ),
}
USER_COMMANDS = {
    "add": Lazy("raftkv.cli.auth:user_add", "Add a user."),
    "delete": Lazy("raftkv.cli.auth:user_delete", "Delete a user."),
    "get": Lazy("raftkv.cli.auth:user_get", "Show a user and its roles."),
    "list": Lazy("raftkv.cli.auth:user_list", "List the users."),
    "passwd": Lazy("raftkv.cli.auth:user_passwd", "Set a user's password."),
    "grant-role": Lazy("raftkv.cli.auth:user_grant_role", "Give a user a role."),
    "revoke-role": Lazy("raftkv.cli.auth:user_revoke_role", "Take a role from a user."),
}
ROLE_COMMANDS = {
    "add": Lazy("raftkv.cli.auth:role_add", "Add a role, which may do nothing yet."),
    "delete": Lazy("raftkv.cli.auth:role_delete", "Delete a role; all who have it lose it."),
    "get": Lazy("raftkv.cli.auth:role_get", "Show what a role may do."),
    "list": Lazy("raftkv.cli.auth:role_list", "List the roles."),
    "grant-permission": Lazy("raftkv.cli.auth:role_grant", "Let a role read, write or both."),
    "revoke-permission": Lazy(
        "raftkv.cli.auth:role_revoke", "Take back the permission on exactly this range."
    ),
}
ACCESS = click.Choice(["read", "write", "readwrite"])


@click.group(cls=LazyGroup, lazy=AUTH_COMMANDS)
def auth() -> None:
    """Switch access control on or off."""


@click.group(cls=LazyGroup, lazy=USER_COMMANDS)
def user() -> None:
    """Users, and the roles they have."""


@click.group(cls=LazyGroup, lazy=ROLE_COMMANDS)
def role() -> None:
    """Roles, and what they may do."""


def change(session: Session, work: Callable[[AsyncClient], Any], text: str) -> None:
    """Do something that answers an auth revision, and say so."""

    async def and_then(client: AsyncClient) -> tuple[Any, dict[str, Any]]:
        revision = await work(client)
        return revision, await etcd_calls.after(client) if session.output.etcd else {}

    revision, answer = session.run(and_then)
    if session.output.etcd:
        etcd_calls.show(session, "header", answer)
    else:
        session.output.one({"auth_revision": revision}, lambda: text)


def switch(session: Session, work: Callable[[AsyncClient], Any], text: str, etcd: str) -> None:
    """Switch access control; `etcd` is all that etcdctl says then, in whatever form."""
    revision = session.run(work)
    if session.output.etcd:
        session.output.line(etcd)
    else:
        session.output.one({"auth_revision": revision}, lambda: text)


@click.command()
@common_options
def enable(session: Session) -> None:
    """Switch access control on.

    Needs a user root that has the role root. From then on every command needs --user or --token.
    """
    text = "access control is on"
    switch(session, lambda client: client.auth.enable(), text, "Authentication Enabled")


@click.command()
@common_options
def disable(session: Session) -> None:
    """Switch access control off.

    Users and roles stay; everybody may do everything, and all tokens end.
    """
    text = "access control is off"
    switch(session, lambda client: client.auth.disable(), text, "Authentication Disabled")


@click.command()
@common_options
def status(session: Session) -> None:
    """Show whether access control is on, and as whom you are known."""
    if session.output.etcd:
        etcd_calls.run(session, "auth status", "auth/status", {})
        return
    found = session.run(lambda client: client.auth.status())

    def text() -> str:
        if not found.enabled:
            return f"access control is off (auth revision {found.auth_revision})"
        roles = f" with the roles {', '.join(found.roles)}" if found.roles else " without a role"
        return f"access control is on (auth revision {found.auth_revision}); {found.user}{roles}"

    session.output.one(found, text)


# ---- users -----------------------------------------------------------------------------------


@click.command("add")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read it from the first line of the input.")
@click.option("--no-password", is_flag=True, help="A user that never logs in by password.")
@common_options
def user_add(session: Session, name: str, password_stdin: bool, no_password: bool) -> None:
    """Add a user.

    Asks for the password. It is sent to the store, which keeps an argon2id hash of it.
    """
    password = _password(name, password_stdin, no_password)
    change(session, lambda client: client.auth.add_user(name, password), f"user {name} added")


@click.command("passwd")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read it from the first line of the input.")
@click.option("--no-password", is_flag=True, help="From now on no password is right.")
@common_options
def user_passwd(session: Session, name: str, password_stdin: bool, no_password: bool) -> None:
    """Set a user's password.

    Whoever is logged in as this user has to log in again.
    """
    password = _password(name, password_stdin, no_password)
    change(
        session,
        lambda client: client.auth.set_password(name, password),
        f"the password of {name} is set",
    )


def _password(name: str, from_stdin: bool, none: bool) -> str | None:
    if from_stdin and none:
        raise click.UsageError("give --password-stdin or --no-password, not both")
    return None if none else new_password(name, from_stdin)


@click.command("delete")
@click.argument("name")
@common_options
def user_delete(session: Session, name: str) -> None:
    """Delete a user."""
    change(session, lambda client: client.auth.delete_user(name), f"user {name} deleted")


@click.command("get")
@click.argument("name")
@common_options
def user_get(session: Session, name: str) -> None:
    """Show a user and its roles."""
    if session.output.etcd:
        etcd_calls.run(session, "user", "auth/user/get", {"name": name})
        return
    found: User = session.run(lambda client: client.auth.user(name))
    session.output.one(
        found,
        lambda: (
            f"{found.user}: {', '.join(found.roles) or 'no role'}"
            + (" (no password)" if found.no_password else "")
        ),
    )


@click.command("list")
@common_options
def user_list(session: Session) -> None:
    """List the users."""
    if session.output.etcd:
        etcd_calls.run(session, "users", "auth/user/list", {})
        return
    found = session.run(lambda client: client.auth.users())
    session.output.rows(
        found, ("USER",), lambda name: (name,), name="users", empty="there are no users"
    )


@click.command("grant-role")
@click.argument("name")
@click.argument("role_name", metavar="ROLE")
@common_options
def user_grant_role(session: Session, name: str, role_name: str) -> None:
    """Give a user a role.

    The role root may do everything; it need not be added.
    """
    change(
        session,
        lambda client: client.auth.grant_role(name, role_name),
        f"user {name} has the role {role_name}",
    )


@click.command("revoke-role")
@click.argument("name")
@click.argument("role_name", metavar="ROLE")
@common_options
def user_revoke_role(session: Session, name: str, role_name: str) -> None:
    """Take a role from a user."""
    change(
        session,
        lambda client: client.auth.revoke_role(name, role_name),
        f"user {name} no longer has the role {role_name}",
    )


# ---- roles -----------------------------------------------------------------------------------


@click.command("add")
@click.argument("name")
@common_options
def role_add(session: Session, name: str) -> None:
    """Add a role, which may do nothing yet."""
    change(session, lambda client: client.auth.add_role(name), f"role {name} added")


@click.command("delete")
@click.argument("name")
@common_options
def role_delete(session: Session, name: str) -> None:
    """Delete a role; all who have it lose it."""
    change(session, lambda client: client.auth.delete_role(name), f"role {name} deleted")


@click.command("get")
@click.argument("name")
@common_options
def role_get(session: Session, name: str) -> None:
    """Show what a role may do."""
    if session.output.etcd:
        etcd_calls.run(session, "role", "auth/role/get", {"role": name})
        return
    found = session.run(lambda client: client.auth.role(name))
    if session.output.format == "json":
        session.output.json({"role": found.role, "permissions": _permissions(found.permissions)})
        return
    session.output.rows(
        found.permissions if session.output.format == "table" else _permissions(found.permissions),
        ("ACCESS", "ON"),
        lambda one: (one.access, _range_text(one)),
        name="permissions",
        empty=f"the role {name} may do nothing",
    )


@click.command("list")
@common_options
def role_list(session: Session) -> None:
    """List the roles."""
    if session.output.etcd:
        etcd_calls.run(session, "roles", "auth/role/list", {})
        return
    found = session.run(lambda client: client.auth.roles())
    session.output.rows(
        found, ("ROLE",), lambda name: (name,), name="roles", empty="there are no roles"
    )


def range_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """KEY, --end, --prefix, --service and --service-prefix, which say what a permission is on."""
    for option in (
        click.option("--service-prefix", metavar="TEXT", help='Services by name; "" for all.'),
        click.option("--service", metavar="NAME", help="The instances of one service."),
        click.option("--prefix", metavar="TEXT", help='Keys that begin with TEXT; "" for all.'),
        click.option("--end", metavar="KEY", help='Up to, not including, this; "" for no end.'),
        click.argument("key", required=False),
    ):
        command = option(command)
    return command


@click.command("grant-permission")
@click.argument("name", metavar="ROLE")
@click.argument("access", type=ACCESS)
@range_options
@common_options
def role_grant(session: Session, name: str, access: Any, **place: str | None) -> None:
    """Let a role read, write or both.

    On one KEY, on the keys from KEY to --end, on a --prefix, or on services. A permission on the
    same range is replaced.
    """
    chosen = range_of(place)
    change(
        session,
        lambda client: client.auth.grant_permission(name, access, **chosen),
        f"role {name} may {access.replace('readwrite', 'read and write')}",
    )


@click.command("revoke-permission")
@click.argument("name", metavar="ROLE")
@range_options
@common_options
def role_revoke(session: Session, name: str, **place: str | None) -> None:
    """Take back the permission on exactly this range."""
    chosen = range_of(place)
    change(
        session,
        lambda client: client.auth.revoke_permission(name, **chosen),
        f"the permission of role {name} is taken back",
    )


def range_of(place: dict[str, str | None]) -> dict[str, Any]:
    """The range that the options give, as the client takes it."""
    key, end = place.pop("key"), place.pop("end")
    given: dict[str, Any] = {name: value for name, value in place.items() if value is not None}
    if key is not None:
        given["key" if end is None else "start"] = key
    if len(given) != 1 or (end is not None and key is None):
        raise click.UsageError(
            "give a KEY, or KEY and --end, or --prefix, --service or --service-prefix"
        )
    if end is not None:
        given["end"] = end
    return given


def _permissions(permissions: tuple[Permission, ...]) -> list[dict[str, str]]:
    from dataclasses import asdict

    from raftkv.cli.output import key_json

    found = []
    for permission in permissions:
        fields = {name: text for name, text in asdict(permission).items() if text is not None}
        for name in ("key", "prefix", "start", "end"):
            if name in fields:
                shown = key_json(fields[name])
                fields[name] = shown["key"]
                if "key_encoding" in shown:
                    fields["key_encoding"] = shown["key_encoding"]
        found.append(fields)
    return found


def _range_text(permission: Permission) -> str:
    if permission.service is not None:
        return f"service {printable(permission.service)}"
    if permission.service_prefix is not None:
        named = printable(permission.service_prefix)
        return f"services {named}*" if named else "every service"
    if permission.key is not None:
        return f"key {printable(permission.key)}"
    if permission.prefix is not None:
        return f"keys {printable(permission.prefix)}*" if permission.prefix else "every key"
    end = f"to {printable(permission.end)}" if permission.end else "on"
    return f"keys from {printable(permission.start or '')} {end}"
