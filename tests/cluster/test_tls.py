"""Three members with mTLS everywhere and access control on, as real processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from raftkv.client import AsyncClient, Unreachable
from raftkv.errors import PermissionDenied
from raftkv.server.frames import FrameKind, Hello, Purpose
from raftkv.server.tls.files import TlsFiles
from tests.support.certificates import Pki
from tests.support.processes import Cluster, running
from tests.unit.test_tls_peers import knock

pytestmark = pytest.mark.slow


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def client(cluster: Cluster, files: TlsFiles, **more: Any) -> AsyncClient:
    return AsyncClient(cluster.urls, cacert=files.ca, cert=files.cert, key=files.key, **more)


async def enable(cluster: Cluster) -> None:
    """root may do everything, alice and bob may write app/; nobody logs in with a password."""
    first = cluster.members[0]
    for user in ("root", "alice", "bob"):
        body = {"user": user, "password": f"{user}-pass"}
        await cluster.insist(first, "POST", "/api/auth/users", json=body)
    await cluster.insist(first, "PUT", "/api/auth/users/root/roles/root")
    await cluster.insist(first, "POST", "/api/auth/roles", json={"role": "app"})
    grant = {"access": "readwrite", "prefix": "app/"}
    await cluster.insist(first, "POST", "/api/auth/roles/app/permissions", json=grant)
    for user in ("alice", "bob"):
        await cluster.insist(first, "PUT", f"/api/auth/users/{user}/roles/app")
    await cluster.insist(first, "POST", "/api/auth/enable")


class Traffic:
    """Writes one after another; what was acknowledged is remembered."""

    def __init__(self) -> None:
        self.written: list[int] = []

    async def go_on(self, client: AsyncClient) -> None:
        number = 0
        while True:
            await client.put(f"app/{number}", str(number))
            self.written.append(number)
            number += 1

    async def progress(self, writes: int = 20) -> None:
        goal = len(self.written) + writes
        async with asyncio.timeout(30):
            while len(self.written) < goal:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def traffic(client: AsyncClient) -> AsyncIterator[Traffic]:
    made = Traffic()
    task = asyncio.create_task(made.go_on(client))
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_it_serves_loses_its_leader_and_goes_on(tmp_path: Path, pki: Pki) -> None:
    alice = pki.client("alice")
    async with running(tmp_path, 3, certificates=pki) as cluster:
        await enable(cluster)
        async with client(cluster, alice, timeout=20) as writer, traffic(writer) as made:
            await made.progress()
            with pytest.raises(PermissionDenied):
                await writer.put("secret", "1")
            victim = await cluster.leader()
            victim.kill()
            await made.progress()
            await stranger_at_the_peer_port(cluster, pki, alice)
            victim.start()
            await cluster.ready(victim)
            await made.progress()
        async with client(cluster, alice) as reader:
            for number in made.written:
                record = await reader.get(f"app/{number}")
                assert record is not None and record.text == str(number)
        await cluster.equal_hashes()
        added = await cluster.add(learner=True)
        await cluster.ready_or_learner(added)
        await cluster.promote(added)
        await cluster.equal_hashes()


async def stranger_at_the_peer_port(cluster: Cluster, pki: Pki, files: TlsFiles) -> None:
    """alice's certificate is of the CA, and not a member's."""
    leader = await cluster.leader()
    port = urlsplit(leader.peer_url).port
    assert port is not None
    hello = Hello(1, 2, 3, Purpose.MESSAGES).encode()
    for kind, payload in ((FrameKind.HELLO, hello), (FrameKind.INTRODUCE, b"")):
        answer = await knock(port, pki.connecting(files), kind, payload)
        assert answer is not None and answer[0] == FrameKind.REFUSED
        assert "not a member's certificate" in answer[1], "it hears nothing of the cluster"
    async with asyncio.timeout(10):
        while "not a member's certificate" not in leader.log_path.read_text():
            await asyncio.sleep(0.05)


async def test_certificates_change_under_traffic_without_a_restart(
    tmp_path: Path, pki: Pki
) -> None:
    alice, bob = pki.client("alice"), pki.client("bob")
    async with running(tmp_path, 3, certificates=pki) as cluster:
        await enable(cluster)
        async with client(cluster, bob, timeout=20) as writer, traffic(writer) as made:
            async with client(cluster, alice) as connected:
                await connected.put("app/a", "1")
                for member in cluster.members:
                    pki.member(member.name)
                pki.revoke(alice)
                await made.progress()
                async with asyncio.timeout(20):
                    while not await refused(cluster, alice):
                        await asyncio.sleep(0.2)
                # A connection that stands is not looked at again, as in etcd.
                await made.progress()
            logs = [member.log_path.read_text() for member in cluster.members]
            assert all("TLS files loaded anew" in log for log in logs)
            assert all("stay in use" not in log for log in logs)
            victim = await cluster.leader()
            victim.kill()
            await made.progress()


async def refused(cluster: Cluster, files: TlsFiles) -> bool:
    """Whether no member takes a certificate on a new connection."""
    for url in cluster.urls:
        async with AsyncClient(
            url, cacert=files.ca, cert=files.cert, key=files.key, patience=0
        ) as fresh:
            try:
                await fresh.get("app/a")
            except Unreachable as error:
                assert "certificate revoked" in error.message
            else:
                return False
    return True
