"""Instances of a service that are kept alive by heartbeats, and looked for."""

from __future__ import annotations

import asyncio
import time

from raftkv.errors import InstanceNotFound, RaftkvError
from tests.soak.clients import Clients
from tests.soak.judge import Faults, Leases

INSTANCES = 20
TTL_SECONDS = 15
HEARTBEAT_SECONDS = 4.0
"""The longest time that one may take."""
LOOK_SECONDS = 2.0
SERVICE = "soak"


class Catalog:
    """One service: who registered or sent a heartbeat less than a TTL ago must be found."""

    def __init__(self, clients: Clients, faults: Faults) -> None:
        self._clients = clients
        self.tenures = Leases(faults, late_seconds=0)
        self.lists = 0
        """How often all instances were asked for."""

    async def keep(self, number: int) -> None:
        """Register an instance, and renew it until cancelled; again, if it ran out."""
        name = f"instance-{number}"
        while True:
            client = self._clients.all[number % len(self._clients.all)]
            sent = time.monotonic()
            try:
                if name in self.tenures.held:
                    await client.services.heartbeat(SERVICE, name, timeout=HEARTBEAT_SECONDS)
                    self.tenures.renew(name, sent)
                else:
                    await client.services.register(
                        SERVICE, name, "127.0.0.1", 8000 + number, ttl=TTL_SECONDS
                    )
                    self.tenures.grant(name, TTL_SECONDS, sent)
            except InstanceNotFound:
                self._gone(name)
            except RaftkvError:
                await asyncio.sleep(0.2)
            else:
                await asyncio.sleep(TTL_SECONDS / 3)

    async def look(self) -> None:
        """Ask for all instances now and then, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            held = dict(self.tenures.held)
            try:
                found = await self._clients.all[0].services.instances(SERVICE)
            except RaftkvError:
                continue
            self.lists += 1
            there = {each.instance for each in found}
            for name, tenure in held.items():
                # One that ran out and was registered anew meanwhile may be missing from the list.
                if name not in there and self.tenures.held.get(name) is tenure:
                    self._gone(name)

    def _gone(self, name: str) -> None:
        """The store says that it is not there."""
        self.tenures.end(name, time.monotonic())
