"""The client as a user: it logs in when it must, and tells refusals for what they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from raftkv.client import AsyncClient, Client
from raftkv.client.auth import Permission, User
from raftkv.client.transport import Credentials
from raftkv.errors import (
    AuthenticationFailed,
    ConfigError,
    InvalidAuthManagement,
    InvalidAuthToken,
    InvalidRequest,
    PermissionDenied,
    PermissionNotGranted,
    RoleExists,
    RoleNotFound,
    RoleNotGranted,
    RootRoleMissing,
    RootUserMissing,
    TooManyRequests,
    UserExists,
    UserNotFound,
)
from raftkv.machine import auth_commands as ac
from raftkv.machine.commands import guarded
from tests.unit.client_door import Door, real_door


@pytest.fixture
def door() -> Iterator[Door]:
    with real_door() as made:
        yield made


@pytest.fixture
def root(door: Door) -> Iterator[Client]:
    """Logged in as root, with access control on and a user alice who may use app/."""
    with Client(door.url, timeout=5) as client:
        client.auth.add_user("root", "root-pass")
        client.auth.grant_role("root", "root")
        client.auth.add_user("alice", "alice-pass")
        client.auth.add_role("app")
        client.auth.grant_permission("app", "readwrite", prefix="app/")
        client.auth.grant_role("alice", "app")
        client.auth.enable()
    with Client(door.url, timeout=5, user="root", password="root-pass") as client:
        yield client


def logins(door: Door) -> int:
    counters: Any = door._listener  # one door, one listener
    handler = next(iter(counters.connections))._door
    return sum(handler.counters.requests.get("logIn", {}).values())


def test_users_roles_and_permissions(root: Client) -> None:
    assert root.auth.users() == ("alice", "root") and root.auth.roles() == ("app",)
    assert root.auth.user("alice") == User("alice", ("app",), False)
    root.auth.grant_permission("app", "read", key=b"\xff/key")
    root.auth.grant_permission("app", "write", start="m", end="n")
    root.auth.grant_permission("app", "write", start="x")
    root.auth.grant_permission("app", "readwrite", service="web")
    root.auth.grant_permission("app", "read", service_prefix="we")
    root.auth.grant_permission("app", "read", service_prefix="")
    shown = root.auth.role("app").permissions
    assert set(shown) == {
        Permission("readwrite", prefix="app/"),
        Permission("read", key="\udcff/key"),
        Permission("write", prefix="m"),
        Permission("write", start="x", end=""),
        Permission("readwrite", service="web"),
        Permission("read", service_prefix="we"),
        Permission("read", service_prefix=""),
    }
    root.auth.revoke_permission("app", key=b"\xff/key")
    root.auth.revoke_permission("app", start="x")
    root.auth.revoke_permission("app", service="web")
    root.auth.revoke_permission("app", service_prefix="")
    root.auth.revoke_permission("app", prefix="m")
    assert root.auth.role("app").permissions == (
        Permission("readwrite", prefix="app/"), Permission("read", service_prefix="we"),
    )  # fmt: skip
    root.auth.grant_permission("app", "read", prefix="")
    assert Permission("read", prefix="") in root.auth.role("app").permissions
    root.auth.add_user("cert")
    assert root.auth.user("cert").no_password
    status = root.auth.status()
    assert (status.enabled, status.user, status.roles) == (True, "root", ("root",))


def test_refusals_have_their_own_classes(door: Door, root: Client) -> None:
    auth = root.auth
    refused: list[tuple[type[Exception], Any]] = [
        (UserExists, lambda: auth.add_user("alice", "x")),
        (UserNotFound, lambda: auth.user("nobody")),
        (UserNotFound, lambda: auth.set_password("nobody", "x")),
        (RoleExists, lambda: auth.add_role("app")),
        (RoleNotFound, lambda: auth.grant_role("alice", "none")),
        (RoleNotGranted, lambda: auth.revoke_role("alice", "root")),
        (PermissionNotGranted, lambda: auth.revoke_permission("app", key="k")),
        (InvalidAuthManagement, lambda: auth.delete_user("root")),
        (InvalidAuthManagement, lambda: auth.grant_permission("app", "read", start="b", end="a")),
        (InvalidRequest, lambda: auth.grant_permission("app", "all", key="k")),  # type: ignore[arg-type]
        (InvalidRequest, lambda: auth.grant_permission("app", "read")),
        (InvalidRequest, lambda: auth.grant_permission("app", "read", key="k", service="s")),
        (InvalidRequest, lambda: auth.add_user("x", "")),
        (InvalidRequest, lambda: auth.add_user("", "x")),
    ]
    for kind, act in refused:
        with pytest.raises(kind):
            act()
    with Client(door.url, user="alice", password="alice-pass") as alice:
        alice.put("app/x", "v")
        with pytest.raises(PermissionDenied, match="'alice' may not write the key 'other'"):
            alice.put("other", "v")
        with pytest.raises(PermissionDenied, match="role root"):
            alice.auth.users()
    with (
        Client(door.url, user="alice", password="wrong") as wrong,
        pytest.raises(AuthenticationFailed),
    ):
        wrong.get("app/x")
    with Client(door.url) as nobody, pytest.raises(InvalidAuthToken):
        nobody.get("app/x")
    with Client(door.url, token="made up") as forged, pytest.raises(InvalidAuthToken):
        forged.get("app/x")


def test_enabling_tells_what_is_missing(door: Door) -> None:
    with Client(door.url) as client:
        with pytest.raises(RootUserMissing):
            client.auth.enable()
        client.auth.add_user("root", "x")
        with pytest.raises(RootRoleMissing):
            client.auth.enable()


def test_one_login_serves_many_calls_and_a_lost_token_costs_one_more(
    door: Door, root: Client
) -> None:
    root.put("a", "1")
    root.get("a")
    before = logins(door)
    root.put("a", "2")
    assert logins(door) == before
    token = root.inner.transport._token
    assert token
    # The token ends behind the client's back: the next write is done once all the same.
    assert root.auth.logout()
    root.inner.transport._token = token
    assert root.put("a", "3").version == 3
    assert logins(door) == before + 1
    record = root.get("a")
    assert record is not None and record.value == b"3"
    root.auth.set_password("root", "new-pass")
    with pytest.raises(AuthenticationFailed):
        root.get("a")


async def test_calls_at_once_share_one_login(door: Door, root: Client) -> None:
    root.get("a")
    before = logins(door)
    async with AsyncClient(door.url, user="root", password="root-pass") as client:
        await asyncio.gather(*(client.put(f"k{number}", "v") for number in range(20)))
    assert logins(door) == before + 1


def test_a_token_from_elsewhere(door: Door, root: Client) -> None:
    root.get("a")
    token = root.inner.transport._token
    assert token
    with Client(door.url, token=token) as client:
        assert client.auth.status().user == "root"


def test_a_user_of_a_store_without_access_control_goes_without_a_token(door: Door) -> None:
    with Client(door.url, user="root", password="root-pass", timeout=5) as client:
        client.put("a", "1")
        assert client.auth.status().user is None
        with Client(door.url) as other:
            other.auth.add_user("root", "root-pass")
            other.auth.grant_role("root", "root")
            other.auth.enable()
        # Switched on meanwhile: refused, logged in, done.
        assert client.put("a", "2").version == 2
        assert client.auth.status().user == "root"


def test_a_watch_ends_when_the_right_to_it_does(door: Door, root: Client) -> None:
    with Client(door.url, user="alice", password="alice-pass") as alice:
        with pytest.raises(PermissionDenied):
            next(alice.watch(prefix="other/"))
        with alice.watch(prefix="app/", from_revision=1) as events:
            root.put("app/1", "v")
            event = events.next(5)
            assert event is not None and event.key == "app/1"
            root.auth.revoke_role("alice", "app")
            with pytest.raises(PermissionDenied):
                next(events)


def test_guessing_is_answered_with_a_pause(door: Door, root: Client) -> None:
    root.get("a")

    def exhaust() -> None:
        handler: Any = next(iter(door._listener.connections))._door  # type: ignore[attr-defined]
        while handler.gate.logins.admit("alice", "127.0.0.1") <= 0:
            pass

    door.call(exhaust)
    with Client(door.url, user="alice", password="alice-pass", timeout=0.5) as client:
        with pytest.raises(TooManyRequests) as caught:
            client.get("app/x")
        assert caught.value.facts["retry_after"] >= 1


def test_rules_that_change_on_the_way_are_no_error(door: Door, root: Client) -> None:
    store = door.store
    plain = store.propose
    changed: list[int] = []

    def propose(command: bytes, done: Any) -> None:
        plain(command, done)
        if len(changed) < 3:
            changed.append(1)
            role = ac.role_add(f"r{len(changed)}")
            store._apply([guarded(role, store.machine.auth.revision)])

    root.get("a")
    store.propose = propose  # type: ignore[method-assign]
    assert root.put("a", "1").version == 1
    assert len(changed) == 3, "twice at the member, and once more by the client"


@pytest.mark.parametrize(
    "given", [{"user": "u"}, {"password": "p"}, {"user": "u", "password": "p", "token": "t"}]
)
def test_credentials_that_cannot_be(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Client("127.0.0.1:1", **given)  # type: ignore[arg-type]


def test_credentials_are_not_shown() -> None:
    shown = repr(Credentials("u", "the-password")) + repr(Credentials(token="the-token"))
    assert "the-password" not in shown and "the-token" not in shown
