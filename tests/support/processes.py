"""Real members as real processes on loopback, for tests that kill, stop and restart them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from tests.support.certificates import Pki

READY_SECONDS = 30.0


_PORTS = iter(random.SystemRandom().sample(range(10_000, 32_000), 20_000))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the kernel hands to outgoing connections:
    one that it gave away while a member is down would be lost to it. Never the same twice."""
    found: list[int] = []
    while len(found) < count:
        port = next(_PORTS)
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


class Member:
    """One member process and its data directory, which outlives the process."""

    def __init__(
        self,
        name: str,
        folder: Path,
        client_port: int,
        peer_port: int,
        host: str = "127.0.0.1",
        certificates: Pki | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        scheme = "http" if certificates is None else "https"
        self.client_url = f"{scheme}://{host}:{client_port}"
        self.peer_url = f"{scheme}://{host}:{peer_port}"
        self.tls_arguments = [] if certificates is None else certificates.flags_of_member(name)
        self.advertised_peer_url = self.peer_url
        """Where the others reach it: a proxy, perhaps."""
        self.command: list[str] = []
        """What the process is started through, such as `ip netns exec NAME`."""
        self.environment: dict[str, str] = {}
        """Variables of the process, besides those of this one."""
        self.arguments: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """Where the process's output goes."""
        return self.folder / f"{self.name}.log"

    @property
    def data_dir(self) -> Path:
        """The member's data directory."""
        return self.folder / self.name

    def start(self) -> None:
        """Start the process; does not wait."""
        log = self.log_path.open("ab")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAFTKV_")}
        environment.update(self.environment)
        self.process = subprocess.Popen(
            [
                *self.command,
                sys.executable, "-m", "raftkv", "serve",
                "--name", self.name,
                "--data-dir", str(self.data_dir),
                "--listen-client-urls", self.client_url,
                "--listen-peer-urls", self.peer_url,
                "--initial-advertise-peer-urls", self.advertised_peer_url,
                # Networks that a test made of its own are trusted.
                *([] if "://127.0.0.1:" in self.client_url else ["--allow-insecure"]),
                *self.tls_arguments,
                *self.arguments,
            ],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        log.close()

    def kill(self) -> None:
        """End it at once, wherever it is."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Stop it without ending it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self, seconds: float = 20.0) -> int:
        """Ask it to end, as an operator would; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not stop:\n{self.output()}") from None

    def wipe(self) -> None:
        """Lose the data directory."""
        shutil.rmtree(self.data_dir)

    def output(self) -> str:
        """The last of what the process said."""
        return self.log_path.read_text(errors="replace")[-4000:]

    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def private_bytes(self) -> int:
        """Resident memory that is the process's own: without pages of mapped files."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")


class Cluster:
    """Members on loopback and one HTTP session to talk to them."""

    def __init__(
        self,
        folder: Path,
        size: int,
        extra: list[str] | None = None,
        *,
        name: str = "n",
        certificates: Pki | None = None,
    ) -> None:
        """With `certificates` everybody speaks mTLS, and the session is that of client root."""
        self.folder = folder
        self.certificates = certificates
        self.extra = extra or []
        self._names: Iterator[str] = (f"{name}{number}" for number in range(1, 1000))
        self.members = [self._new_member() for _ in range(size)]
        initial = ",".join(f"{member.name}={member.advertised_peer_url}" for member in self.members)
        for member in self.members:
            member.arguments = ["--initial-cluster", initial, *self.extra]
        self.session: aiohttp.ClientSession | None = None

    def _new_member(self) -> Member:
        client_port, peer_port = free_ports(2)
        return Member(
            next(self._names),
            self.folder,
            client_port,
            peer_port,
            certificates=self.certificates,
        )

    async def __aenter__(self) -> Cluster:
        self.session = self._open_session()
        try:
            for member in self.members:
                member.start()
            for member in self.members:
                await self.ready(member)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    def _open_session(self) -> aiohttp.ClientSession:
        pki = self.certificates
        context = True if pki is None else pki.connecting(pki.client("root"))
        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=10),
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
        )

    async def reconnect(self) -> None:
        """Go on over new connections, with a new certificate of client root."""
        assert self.session is not None
        await self.session.close()
        self.session = self._open_session()

    async def __aexit__(self, *exc: object) -> None:
        assert self.session is not None
        await self.session.close()
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.process.send_signal(signal.SIGCONT)
                member.stop()

    @property
    def urls(self) -> list[str]:
        """Client URLs of all members."""
        return [member.client_url for member in self.members]

    async def call(
        self, member: Member, method: str, path: str, **kwargs: Any
    ) -> tuple[int, Any, dict[str, str]]:
        """One request: status, decoded body, headers. Connection errors are raised."""
        assert self.session is not None
        async with self.session.request(method, member.client_url + path, **kwargs) as answer:
            body = await answer.read()
            kind = answer.headers.get("Content-Type", "")
            decoded = json.loads(body) if "json" in kind and body else body
            return answer.status, decoded, dict(answer.headers)

    async def insist(self, member: Member, method: str, path: str, **kwargs: Any) -> Any:
        """A request that is repeated while it is refused for a reason that passes."""
        deadline = time.monotonic() + 10
        while True:
            code, body, _ = await self.call(member, method, path, **kwargs)
            if code in (200, 201):
                return body
            assert code in (429, 503) and time.monotonic() < deadline, (code, body)
            await asyncio.sleep(0.05)

    async def ready(self, member: Member, seconds: float = READY_SECONDS) -> None:
        """Wait until a member says that it is ready to serve."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert member.process is not None
            if member.process.poll() is not None:
                raise AssertionError(f"{member.name} ended:\n{member.output()}")
            try:
                status, _, _ = await self.call(member, "GET", "/readyz")
            except (aiohttp.ClientError, OSError):
                status = 0
            if status == 200:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{member.name} is not ready:\n{member.output()}")

    async def ready_or_learner(self, member: Member, seconds: float = READY_SECONDS) -> None:
        """Wait until a member answers at all and knows a leader; a learner is never "ready"."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert member.process is not None
            if member.process.poll() is not None:
                raise AssertionError(f"{member.name} ended:\n{member.output()}")
            try:
                if (await self.status(member))["leader"]:
                    return
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.05)
        raise AssertionError(f"{member.name} finds no leader:\n{member.output()}")

    async def status(self, member: Member) -> dict[str, Any]:
        """GET /api/status of one member."""
        code, body, _ = await self.call(member, "GET", "/api/status")
        assert code == 200, body
        return dict(body)

    async def leader(self, seconds: float = 10.0) -> Member:
        """The member that leads, once one says so of itself and is not paused or dead."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            best: tuple[int, Member] | None = None
            for member in self.members:
                if member.process is None or member.process.poll() is not None:
                    continue
                try:
                    status = await self.status(member)
                except (aiohttp.ClientError, OSError, TimeoutError):
                    continue
                if status["role"] == "leader" and (best is None or status["term"] > best[0]):
                    best = (status["term"], member)
            if best is not None:
                return best[1]
            await asyncio.sleep(0.02)
        raise AssertionError("no leader")

    async def add(self, learner: bool = False) -> Member:
        """Add a member to the cluster and start its process."""
        member = self._new_member()
        await self.insist(
            await self.leader(),
            "POST",
            "/api/members",
            json={
                "name": member.name,
                "peer_urls": [member.advertised_peer_url],
                "learner": learner,
            },
        )
        await self.start_added(member)
        return member

    async def start_added(self, member: Member) -> None:
        """Start the process of a member that was added to the cluster before."""
        others = [other for other in self.members if other is not member]
        initial = ",".join(f"{each.name}={each.advertised_peer_url}" for each in [*others, member])
        member.arguments = [
            "--initial-cluster", initial, "--initial-cluster-state", "existing", *self.extra,
        ]  # fmt: skip
        if member not in self.members:
            self.members.append(member)
        member.start()

    async def promote(self, member: Member, seconds: float = 30.0) -> None:
        """Promote a learner as soon as the leader says that it has caught up."""
        member_id = (await self.status(member))["member_id"]
        deadline = time.monotonic() + seconds
        while True:
            code, body, _ = await self.call(
                await self.leader(), "POST", f"/api/members/{member_id}/promote"
            )
            if code == 200:
                return
            assert code in (429, 503) or body["code"] == "change_refused", body
            assert time.monotonic() < deadline, body
            await asyncio.sleep(0.1)

    async def remove(self, member: Member) -> None:
        """Take a member out of the cluster and end its process."""
        status = await self.status(member)
        others = [other for other in self.members if other is not member]
        await self.insist(others[0], "DELETE", f"/api/members/{status['member_id']}")
        self.members = others
        if member.process is not None and member.process.poll() is None:
            member.stop()

    async def equal_hashes(self, seconds: float = 20.0) -> dict[str, Any]:
        """Wait until all members stand at one applied index, and demand one state hash."""
        deadline = time.monotonic() + seconds
        statuses: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            statuses = [await self.status(member) for member in self.members]
            if len({status["applied_index"] for status in statuses}) == 1:
                assert len({status["state_hash"] for status in statuses}) == 1, statuses
                return statuses[0]
            await asyncio.sleep(0.1)
        raise AssertionError(f"members do not come together: {statuses}")


@asynccontextmanager
async def running(
    folder: Path,
    size: int,
    extra: list[str] | None = None,
    *,
    name: str = "n",
    certificates: Pki | None = None,
) -> AsyncIterator[Cluster]:
    """A cluster that runs for the length of the block; `name` begins its members' names."""
    async with Cluster(folder, size, extra, name=name, certificates=certificates) as cluster:
        yield cluster
