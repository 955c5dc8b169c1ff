"""Access control: users, roles, and what they may read and write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raftkv.client.wire import Text, decode, key_fields, key_parameters, key_text, query, segment
from raftkv.errors import InvalidRequest

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient

Access = Literal["read", "write", "readwrite"]


@dataclass(frozen=True, slots=True)
class AuthStatus:
    """Whether access control is on, and who asked."""

    enabled: bool
    auth_revision: int
    """Counts the changes of users, roles and permissions."""
    user: str | None
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class User:
    """A user."""

    user: str
    roles: tuple[str, ...]
    no_password: bool
    """Such a user never logs in by password."""


@dataclass(frozen=True, slots=True)
class Permission:
    """What a role may do with some keys, or with some services. One of the ranges is given."""

    access: str
    """``read``, ``write`` or ``readwrite``."""
    key: str | None = None
    prefix: str | None = None
    start: str | None = None
    end: str | None = None
    service: str | None = None
    service_prefix: str | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Permission:
        """From a permission of the API."""
        encoding = body.get("key_encoding")
        keys = {
            name: key_text(decode(body[name], encoding))
            for name in ("key", "prefix", "start", "end")
            if name in body
        }
        services = {name: body.get(name) for name in ("service", "service_prefix")}
        return cls(str(body["access"]), **keys, **services)


@dataclass(frozen=True, slots=True)
class Role:
    """A role."""

    role: str
    permissions: tuple[Permission, ...]


class Auth:
    """Calls about users and roles; reached as `AsyncClient.auth`.

    All but `status`, and what concerns oneself, need the role root while access control is on.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def status(self, *, timeout: float | None = None) -> AuthStatus:
        """Whether access control is on, and as whom this client is known."""
        body = (await self._client.read("/api/auth", timeout=timeout)).json()
        return AuthStatus(
            bool(body["enabled"]), int(body["auth_revision"]), body["user"], tuple(body["roles"])
        )

    async def enable(self, *, timeout: float | None = None) -> int:
        """Switch access control on; the auth revision. Raises RootUserMissing, RootRoleMissing."""
        return await self._change("POST", "/api/auth/enable", timeout=timeout)

    async def disable(self, *, timeout: float | None = None) -> int:
        """Switch it off."""
        return await self._change("POST", "/api/auth/disable", timeout=timeout)

    async def logout(self, *, timeout: float | None = None) -> bool:
        """End the token that this client uses; whether it could be ended."""
        answer = await self._client.write(
            "POST", "/api/auth/logout", repeatable=True, timeout=timeout
        )
        self._client.transport.forget_token()
        return bool(answer.json()["ended"])

    async def users(self, *, timeout: float | None = None) -> tuple[str, ...]:
        """Names of all users."""
        return tuple((await self._client.read("/api/auth/users", timeout=timeout)).json()["users"])

    async def user(self, name: str, *, timeout: float | None = None) -> User:
        """One user. Raises UserNotFound."""
        body = (await self._client.read(_user(name), timeout=timeout)).json()
        return User(str(body["user"]), tuple(body["roles"]), bool(body["no_password"]))

    async def add_user(
        self, name: str, password: str | None = None, *, timeout: float | None = None
    ) -> int:
        """A new user, who never logs in by password when there is none. Raises UserExists."""
        body = {"user": name, **_password(password)}
        return await self._change("POST", "/api/auth/users", body, once=True, timeout=timeout)

    async def delete_user(self, name: str, *, timeout: float | None = None) -> int:
        """Delete a user; its tokens end."""
        return await self._change("DELETE", _user(name), timeout=timeout)

    async def set_password(
        self, name: str, password: str | None, *, timeout: float | None = None
    ) -> int:
        """Another password, or none; the user's tokens end."""
        target = _user(name) + "/password"
        return await self._change("PUT", target, _password(password), timeout=timeout)

    async def grant_role(self, name: str, role: str, *, timeout: float | None = None) -> int:
        """Give a user a role. Raises UserNotFound, RoleNotFound."""
        return await self._change("PUT", f"{_user(name)}/roles/{segment(role)}", timeout=timeout)

    async def revoke_role(self, name: str, role: str, *, timeout: float | None = None) -> int:
        """Take a role from a user. Raises RoleNotGranted."""
        target = f"{_user(name)}/roles/{segment(role)}"
        return await self._change("DELETE", target, timeout=timeout)

    async def roles(self, *, timeout: float | None = None) -> tuple[str, ...]:
        """Names of all roles."""
        return tuple((await self._client.read("/api/auth/roles", timeout=timeout)).json()["roles"])

    async def role(self, name: str, *, timeout: float | None = None) -> Role:
        """One role. Raises RoleNotFound."""
        body = (await self._client.read(_role(name), timeout=timeout)).json()
        return Role(str(body["role"]), tuple(map(Permission.from_json, body["permissions"])))

    async def add_role(self, name: str, *, timeout: float | None = None) -> int:
        """A new role, without permissions. Raises RoleExists."""
        return await self._change("POST", "/api/auth/roles", {"role": name}, timeout=timeout)

    async def delete_role(self, name: str, *, timeout: float | None = None) -> int:
        """End a role, for all who have it."""
        return await self._change("DELETE", _role(name), timeout=timeout)

    async def grant_permission(
        self,
        role: str,
        access: Access,
        *,
        key: Text | None = None,
        prefix: Text | None = None,
        start: Text | None = None,
        end: Text | None = None,
        service: str | None = None,
        service_prefix: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Let a role read, write or both: one key, a prefix, [`start`, `end`), the instances of
        one service, or services by prefix. A permission on exactly this range is replaced."""
        body = {
            "access": access,
            **key_fields(key=key, prefix=prefix, start=start, end=end),
            **_services(service, service_prefix),
        }
        return await self._change("POST", _role(role) + "/permissions", body, timeout=timeout)

    async def revoke_permission(
        self,
        role: str,
        *,
        key: Text | None = None,
        prefix: Text | None = None,
        start: Text | None = None,
        end: Text | None = None,
        service: str | None = None,
        service_prefix: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Take back the permission on exactly this range. Raises PermissionNotGranted."""
        parameters = {
            **key_parameters(key=key, prefix=prefix, start=start, end=end),
            **_services(service, service_prefix),
        }
        target = _role(role) + "/permissions" + query(parameters)
        return await self._change("DELETE", target, timeout=timeout)

    async def _change(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        once: bool = False,
        timeout: float | None = None,
    ) -> int:
        answer = await self._client.write(method, target, json=body, once=once, timeout=timeout)
        return int(answer.json()["auth_revision"])


def _user(name: str) -> str:
    return f"/api/auth/users/{segment(name)}"


def _role(name: str) -> str:
    return f"/api/auth/roles/{segment(name)}"


def _password(password: str | None) -> dict[str, Any]:
    if password == "":
        raise InvalidRequest("the password is empty; give None for a user without one")
    return {"no_password": True} if password is None else {"password": password}


def _services(service: str | None, service_prefix: str | None) -> dict[str, str]:
    given = {"service": service, "service_prefix": service_prefix}
    return {name: text for name, text in given.items() if text is not None}
