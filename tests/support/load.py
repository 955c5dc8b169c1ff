"""A steady load of writes through any member, which remembers what was acknowledged."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time

import aiohttp

from tests.support.processes import Cluster


class Writers:
    """`count` writers, each putting a new value under its own keys over and over.

    A write counts as acknowledged only with status 200. Refused and unknown ones are repeated at
    another member under the same idempotency key, as our client does.
    """

    def __init__(self, cluster: Cluster, count: int = 8, keys: int = 50) -> None:
        self._cluster = cluster
        self._count = count
        self._keys = keys
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._run = secrets.token_hex(4)
        self.acknowledged: dict[str, tuple[str, int]] = {}
        self.times: list[float] = []
        """When each acknowledgement came, `time.monotonic`."""
        self._begun: list[float] = []
        """When each of these writes began."""

    async def __aenter__(self) -> Writers:
        self._tasks = [asyncio.create_task(self._write(n)) for n in range(self._count)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopping = True
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _write(self, number: int) -> None:
        for serial in itertools.count():
            if self._stopping:
                return
            key = f"load/{number}/{serial % self._keys}"
            await self._put(key, f"{self._run}-{number}-{serial}", attempt=number)

    async def _put(self, key: str, value: str, attempt: int) -> None:
        began = time.monotonic()
        deadline = began + 30
        for turn in itertools.count(attempt):
            members = [
                member
                for member in self._cluster.members
                if member.process is not None and member.process.poll() is None
            ]
            member = members[turn % len(members)]
            try:
                code, body, _ = await self._cluster.call(
                    member,
                    "PUT",
                    f"/api/kv/{key}",
                    data=value.encode(),
                    headers={"Idempotency-Key": value},
                    timeout=aiohttp.ClientTimeout(total=2),
                )
            except (aiohttp.ClientError, OSError, TimeoutError):
                code, body = 0, None
            if code == 200:
                self.acknowledged[key] = (value, body["mod_revision"])
                self.times.append(time.monotonic())
                self._begun.append(began)
                return
            assert code in (0, 429, 503, 504), (code, body)
            assert time.monotonic() < deadline, f"no write of {key} in 30 s: {code} {body}"
            await asyncio.sleep(0.01)

    async def resumed(self, after: float, seconds: float = 10.0) -> float:
        """Seconds from `after` to the first acknowledgement of a write begun later on."""
        at = len(self.times)
        while True:
            for began, ended in zip(self._begun[at:], self.times[at:], strict=True):
                # One that began before may have been agreed on before, and only told later.
                if began > after:
                    return ended - after
            at = len(self.times)
            assert time.monotonic() - after < seconds, "writes do not go on"
            await asyncio.sleep(0.005)

    async def check(self) -> None:
        """Every acknowledged write is there on every member, by a local read."""
        for member in self._cluster.members:
            for key, (value, revision) in self.acknowledged.items():
                code, body, _ = await self._cluster.call(
                    member, "GET", f"/api/kv/{key}", params={"consistency": "serializable"}
                )
                assert code == 200, (member.name, key, body)
                assert (body["value"], body["mod_revision"]) == (value, revision), member.name
