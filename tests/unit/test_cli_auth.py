"""Users, roles and logging in on the command line, against the real door."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raftkv.cli import secrets
from raftkv.cli.main import cli
from tests.unit.client_door import Door, real_door

Run = Callable[..., Result]


@pytest.fixture
def door() -> Iterator[Door]:
    with real_door() as made:
        yield made


@pytest.fixture
def run(door: Door) -> Run:
    def invoke(
        *args: str, given: str | None = None, code: int = 0, env: dict[str, str] | None = None
    ) -> Result:
        result = CliRunner().invoke(
            cli, ["--endpoints", door.url, "--timeout", "5", *args], input=given, env=env
        )
        assert result.exit_code == code, (args, result.output, result.stderr, result.exception)
        return result

    return invoke


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input passes for a terminal, so that passwords are asked for."""

    class Terminal:
        def __getattr__(self, name: str) -> Any:
            import sys

            return (lambda: True) if name == "isatty" else getattr(sys.stdin, name)

    class Sys:
        stdin = Terminal()

    monkeypatch.setattr(secrets, "sys", Sys)


def enable(run: Run) -> None:
    run("user", "add", "root", "--password-stdin", given="root-pass\n")
    run("user", "grant-role", "root", "root")
    run("user", "add", "alice", "--password-stdin", given="alice-pass\n")
    run("role", "add", "app")
    run("role", "grant-permission", "app", "readwrite", "--prefix", "app/")
    run("user", "grant-role", "alice", "app")
    assert "access control is on" in run("auth", "enable", "-o", "table").stdout


ROOT = ("--user", "root:root-pass")
ALICE = ("--user", "alice:alice-pass")


def test_from_an_open_store_to_one_with_users(run: Run) -> None:
    assert "is off" in run("auth", "status", "-o", "table").stdout
    missing = run("auth", "enable", code=1)
    assert "root user does not exist" in missing.stderr
    assert "`raftkv user add root`" in missing.stderr
    enable(run)
    refused = run("get", "app/x", code=1)
    assert "a token is needed" in refused.stderr and "--user" in refused.stderr
    run("put", "app/x", "v", *ALICE)
    assert json.loads(run("get", "app/x", *ALICE).stdout)["value"] == "v"
    assert "may not write the key 'other'" in run("put", "other", "v", *ALICE, code=1).stderr
    assert "invalid user ID or password" in run("get", "x", "--user", "root:no", code=1).stderr
    shown = run("auth", "status", "-o", "table", *ALICE).stdout
    assert "alice with the roles app" in shown
    status = json.loads(run("auth", "status", *ROOT).stdout)
    assert status["user"] == "root" and status["enabled"] is True
    assert " ok" in run("status", "--cluster", "-o", "table", *ROOT).stdout
    run("health")
    assert "access control is off" in run("auth", "disable", "-o", "table", *ROOT).stdout
    run("put", "anything", "v")


def test_users(run: Run) -> None:
    enable(run)
    assert json.loads(run("user", "list", *ROOT).stdout) == {"users": ["alice", "root"]}
    assert run("user", "get", "alice", "-o", "table", *ALICE).stdout == "alice: app\n"
    run("user", "get", "root", *ALICE, code=1)
    run("user", "add", "cert", "--no-password", *ROOT)
    assert "no password" in run("user", "get", "cert", "-o", "table", *ROOT).stdout
    run("user", "revoke-role", "alice", "app", *ROOT)
    assert run("user", "get", "alice", "-o", "table", *ROOT).stdout == "alice: no role\n"
    assert "without a role" in run("auth", "status", "-o", "table", *ALICE).stdout
    run("user", "passwd", "alice", "--password-stdin", *ROOT, given="new pass: word\n")
    run("auth", "status", *ALICE, code=1)
    run("auth", "status", "--user", "alice:new pass: word")
    run("user", "delete", "alice", *ROOT)
    for args in (("get", "alice"), ("delete", "alice"), ("revoke-role", "root", "app")):
        assert run("user", *args, *ROOT, code=3).stderr
    assert "already exists" in run("user", "add", "root", "--no-password", *ROOT, code=1).stderr
    run("user", "add", "x", "--no-password", "--password-stdin", *ROOT, code=2)
    run("user", "add", "x", "--password-stdin", *ROOT, given="\n", code=2)
    assert "--password-stdin" in run("user", "add", "x", *ROOT, code=2).stderr


def test_roles(run: Run) -> None:
    for place in (
        ("one",), ("from", "--end", "to"), ("from", "--end", ""), ("--prefix", ""),
        ("--prefix", "p/"), ("--service", "web"), ("--service-prefix", "w"),
        ("--service-prefix", ""),
    ):  # fmt: skip
        enable(run) if place == ("one",) else None
        run("role", "grant-permission", "app", "read", *place, *ROOT)
    shown = run("role", "get", "app", "-o", "table", *ROOT).stdout
    for text in (
        "key one", "keys from from to to", "keys from from on", "every key", "keys p/*",
        "keys app/*", "service web", "services w*", "every service",
    ):  # fmt: skip
        assert text in shown
    permissions = json.loads(run("role", "get", "app", *ROOT).stdout)["permissions"]
    assert {"access": "read", "start": "from", "end": "to"} in permissions
    assert {"access": "readwrite", "prefix": "app/"} in permissions
    lines = run("role", "get", "app", "-o", "ndjson", *ROOT).stdout.splitlines()
    assert len(lines) == 9 and all(json.loads(line)["access"] for line in lines)
    run("role", "revoke-permission", "app", "one", *ROOT)
    run("role", "revoke-permission", "app", "--service", "web", *ROOT)
    run("role", "revoke-permission", "app", "one", *ROOT, code=3)
    for place in ((), ("k", "--prefix", "p"), ("--end", "e"), ("--service", "s", "--prefix", "p")):
        assert "give a KEY" in run("role", "grant-permission", "app", "read", *place, code=2).stderr
    run("role", "grant-permission", "app", "all", "k", code=2)
    assert json.loads(run("role", "list", *ROOT).stdout) == {"roles": ["app"]}
    run("role", "delete", "app", *ROOT)
    run("role", "get", "app", *ROOT, code=3)
    run("role", "add", "empty", *ROOT)
    assert "may do nothing" in run("role", "get", "empty", "-o", "table", *ROOT).stderr


def test_who_one_is_may_come_from_the_environment(run: Run) -> None:
    enable(run)
    for env in (
        {"RAFTKV_USER": "alice:alice-pass"},
        {"RAFTKV_USER": "alice", "RAFTKV_PASSWORD": "alice-pass"},
    ):
        assert json.loads(run("auth", "status", env=env).stdout)["user"] == "alice"
    refused = run("get", "x", "--user", "alice", code=2)
    assert "RAFTKV_PASSWORD" in refused.stderr
    run("get", "x", "--user", "alice:p", "--token", "t", code=2)
    assert "invalid auth token" in run("get", "x", code=1, env={"RAFTKV_TOKEN": "t"}).stderr


def test_passwords_are_asked_for_and_never_shown(run: Run, terminal: None) -> None:
    added = run("user", "add", "root", given="root-pass\nroot-pass\n")
    run("user", "add", "x", given="one\ntwo\nthree\nthree\n")
    run("user", "grant-role", "root", "root")
    run("auth", "enable")
    asked = run("auth", "status", "--user", "root", given="root-pass\n")
    assert json.loads(asked.stdout)["user"] == "root"
    wide = run("status", "--cluster", "--user", "root", given="root-pass\n")
    assert wide.stderr.count("Password of root") == 1
    for result in (added, asked, wide):
        assert "root-pass" not in result.output + result.stderr
        assert "assword of root" in result.stderr
