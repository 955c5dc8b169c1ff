"""A door with access control on: root, alice who has some rights, and a stranger who has none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from raftkv.api.gate import Gate
from raftkv.machine import Machine
from raftkv.machine import commands as c
from raftkv.server.local import LocalStore
from raftkv.server.passwords import Passwords
from tests.unit.http_support import Answer, Served, serving

PASSWORDS = {"root": "root-pass", "alice": "alice-pass", "stranger": "stranger-pass"}


def quick_passwords() -> Passwords:
    """The same algorithm, at a cost that tests can pay hundreds of times."""
    return Passwords(memory_kib=8, passes=1)


class Ruled(LocalStore):
    """A store whose rules can be made to change at the worst moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_000_000
        """The wall clock of the store and of its gate, moved by hand."""
        self.before_propose: list[c.Command] = []
        self.before_read: list[c.Command] = []
        self.proposed: list[c.Command] = []
        """Every command, as it would go into the log."""

    def wall_ms(self) -> int:
        return self.now_ms

    def apply_now(self, *commands: c.Command) -> None:
        """Apply, as root would have it, whatever waits."""
        for command in commands:
            self._apply([c.guarded(command, self.machine.auth.revision)])

    def propose(self, command: c.Command, done: Any) -> None:
        self.proposed.append(command)
        super().propose(command, done)
        moving, self.before_propose = self.before_propose, []
        self.apply_now(*moving)

    def read_index(self, done: Any) -> None:
        super().read_index(done)
        moving, self.before_read = self.before_read, []
        self.apply_now(*moving)


class Guarded:
    """A served store, and calls as one user or another."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.store: Ruled = served.store  # type: ignore[assignment]
        self.tokens: dict[str, str] = {}

    @property
    def machine(self) -> Machine:
        return self.store.machine

    async def log_in(self, user: str, password: str | None = None) -> Answer:
        body = {"user": user, "password": password or PASSWORDS[user]}
        return await self.served.call("POST", "/api/auth/login", body)

    def header(self, user: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[user]}"}

    async def by(self, user: str, method: str, target: str, body: Any = None) -> Answer:
        """A call with the user's token."""
        return await self.served.call(method, target, body, self.header(user))

    async def ok(self, user: str, method: str, target: str, body: Any = None) -> Any:
        answer = await self.by(user, method, target, body)
        assert answer.status < 300, (method, target, answer.status, answer.body)
        return answer.json

    async def grant(self, role: str, **permission: str) -> None:
        await self.ok("root", "POST", f"/api/auth/roles/{role}/permissions", permission)


@asynccontextmanager
async def guarded(store: Ruled | None = None, **gate: Any) -> AsyncIterator[Guarded]:
    """alice: reads and writes app/, reads shared/, writes drop/, and may all with service web."""

    def make(store: Any) -> Gate:
        return Gate(store, passwords=quick_passwords(), clock_ms=store.wall_ms, **gate)

    async with serving(store or Ruled(), gate=make) as served:
        world = Guarded(served)
        call = served.call
        for user, password in PASSWORDS.items():
            await call("POST", "/api/auth/users", {"user": user, "password": password})
        await call("PUT", "/api/auth/users/root/roles/root")
        await call("POST", "/api/auth/roles", {"role": "app"})
        for permission in (
            {"access": "readwrite", "prefix": "app/"},
            {"access": "read", "prefix": "shared/"},
            {"access": "write", "prefix": "drop/"},
            {"access": "readwrite", "service": "web"},
        ):
            await call("POST", "/api/auth/roles/app/permissions", permission)
        await call("PUT", "/api/auth/users/alice/roles/app")
        assert (await call("POST", "/api/auth/enable")).status == 200
        for user in PASSWORDS:
            world.tokens[user] = (await world.log_in(user)).json["token"]
        yield world
