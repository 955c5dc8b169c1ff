"""What an operator does to a cluster under load. Each is a coroutine that says what it did."""

from __future__ import annotations

import asyncio
import random
import shutil
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from raftkv.client import AsyncClient
from raftkv.server.tls.authority import read_certificate
from raftkv.server.tls.files import TlsFiles
from tests.cluster.test_cli import Command
from tests.soak.judge import Faults, differences
from tests.soak.load import Load
from tests.support.certificates import Pki
from tests.support.processes import Cluster, Member

FILLER = "soakfill/"
FILLER_BYTES = 64 * 1024
FILLERS = 8
PATIENCE_SECONDS = 60.0
COMMAND_SECONDS = 300.0
PAGE = 500


class Operator:
    """Works on one cluster; `saved` is where its members put backups and the archived log."""

    def __init__(
        self, cluster: Cluster, pki: Pki, load: Load, faults: Faults, saved: Path, seed: int
    ) -> None:
        self._cluster = cluster
        self._pki = pki
        self._load = load
        self._faults = faults
        self._saved = saved
        self._chance = random.Random(seed)
        self._authorities = 1
        self._restored = 0
        self.keys_compared = 0

    # -- leadership and processes --------------------------------------------------------------

    async def transfer(self) -> str:
        """Hand leadership to another member."""
        leader = await self._cluster.leader()
        others = [each for each in self._cluster.members if each is not leader]
        target = self._chance.choice(others)
        await self._command()("leader", "transfer", target.name)
        return f"leadership handed from {leader.name} to {target.name}"

    async def kill_leader(self) -> str:
        """kill -9, and a start a moment later."""
        leader = await self._cluster.leader()
        leader.kill()
        await asyncio.sleep(self._chance.uniform(0.5, 2.0))
        leader.start()
        await self._cluster.ready(leader, PATIENCE_SECONDS)
        return f"kill -9 of the leader {leader.name}"

    async def rolling_restart(self) -> str:
        """Each member once, asked to end."""
        for member in list(self._cluster.members):
            await asyncio.to_thread(member.stop)
            member.start()
            await self._cluster.ready(member, PATIENCE_SECONDS)
        return "a restart of each member in turn"

    async def replace(self) -> str:
        """A member is lost with its disk; a new one takes its place with one command."""
        leader = await self._cluster.leader()
        lost = self._chance.choice([each for each in self._cluster.members if each is not leader])
        lost.kill()
        new = self._cluster._new_member()
        left = [each for each in self._cluster.members if each is not lost]
        await command_of(self._pki, [each.client_url for each in left])(
            "member", "replace", lost.name, new.peer_url, "--name", new.name
        )
        self._cluster.members = left
        await self._cluster.start_added(new)
        lost.wipe()
        self._load.clients.renew()
        # Ready once it votes: the leader promotes it when it has caught up.
        await self._cluster.ready(new, PATIENCE_SECONDS)
        return f"{lost.name} lost with its disk and replaced by {new.name}"

    # -- certificates ---------------------------------------------------------------------------

    async def rotate_certificates(self) -> str:
        """New certificates and keys of members and clients, in the place of the old ones."""
        for member in self._cluster.members:
            self._pki.member(member.name)
        await self._show_new_ones()
        await self._clients_follow()
        return "new certificates of all members and clients"

    async def rotate_authority(self) -> str:
        """A new CA: trusted beside the old one, then signing, then alone."""
        old = self._pki.client("old")
        self._authorities += 1
        self._pki.begin_new_authority(f"CA {self._authorities}")
        # Everybody trusts both before anybody shows a certificate of the new one.
        await asyncio.sleep(2)
        await self._clients_follow()
        for member in self._cluster.members:
            self._pki.member(member.name)
        await self._show_new_ones()
        await asyncio.sleep(2)
        self._pki.end_old_authority()
        await self._clients_follow()
        await self._until(self._refused_everywhere(old), "the old CA is taken still")
        return f"CA {self._authorities}: both trusted, then it alone"

    async def _clients_follow(self) -> None:
        self._load.clients.renew()
        await self._cluster.reconnect()

    async def _show_new_ones(self) -> None:
        """Each member shows the certificate of its file to whoever connects."""

        async def shown(member: Member) -> bool:
            parts = urlsplit(member.client_url)
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port, ssl=self._pki.connecting(self._pki.client("root"))
            )
            try:
                found = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
            finally:
                writer.transport.abort()
            wanted = read_certificate(self._pki.folder / f"{member.name}.crt").serial_number
            return int(found, 16) == wanted

        for member in self._cluster.members:
            await self._until(
                lambda member=member: shown(member), f"{member.name} shows an old certificate"
            )

    def _refused_everywhere(self, files: TlsFiles) -> Callable[[], Awaitable[bool]]:
        """No member takes these files on a new connection."""

        async def refused() -> bool:
            for url in self._cluster.urls:
                context = self._pki.connecting(files)
                connector = aiohttp.TCPConnector(ssl=context)
                async with aiohttp.ClientSession(connector=connector) as session:
                    try:
                        async with session.get(url + "/api/status"):
                            return False
                    except (aiohttp.ClientError, ssl.SSLError, OSError):
                        continue
            return True

        return refused

    # -- backups --------------------------------------------------------------------------------

    async def restore_snapshot(self) -> str:
        """A snapshot taken while serving becomes a cluster of one member, which is compared."""
        self._restored += 1
        file = self._cluster.folder / f"{self._restored}.snapshot"
        await self._command()("snapshot", "save", str(file))
        status = await Command(seconds=COMMAND_SECONDS)(
            "snapshot", "status", str(file), "-o", "json"
        )
        revision = int(status["revision"])
        count = await self._restore(1, revision, "snapshot", "restore", str(file))
        file.unlink()
        return f"a snapshot restored as 1 member, {count} keys alike at revision {revision}"

    async def restore_moment(self) -> str:
        """A moment after the last scheduled backup becomes a cluster of two members."""
        self._restored += 1
        status = await self._cluster.status(await self._cluster.leader())
        revision = int(status["revision"])
        await self._archived(int(status["applied_index"]))
        count = await self._restore(
            2, revision, "backup", "restore", str(self._saved), "--to-revision", str(revision)
        )
        return f"a moment restored as 2 members, {count} keys alike at revision {revision}"

    async def _archived(self, index: int) -> None:
        """Some member has archived the log up to there."""

        async def done() -> bool:
            for member in self._cluster.members:
                _, text, _ = await self._cluster.call(member, "GET", "/metrics")
                name = "raftkv_archived_index "
                rows = [each for each in text.decode().splitlines() if each.startswith(name)]
                if any(float(row.split()[1]) >= index for row in rows):
                    return True
            return False

        await self._until(done, f"the log is not archived up to {index}")

    async def _restore(self, size: int, revision: int, *command: str) -> int:
        folder = self._cluster.folder / f"restored-{self._restored}"
        folder.mkdir()
        other = Cluster(
            folder, size, ["--wal-segment-bytes", "32MiB"], name=f"r{self._restored}-",
            certificates=self._pki,
        )  # fmt: skip
        initial = other.members[0].arguments[1]
        for member in other.members:
            await Command(seconds=COMMAND_SECONDS)(
                *command, "--data-dir", str(member.data_dir), "--name", member.name,
                "--initial-cluster", initial,
            )  # fmt: skip
        async with other:
            ours = await self._cluster.status(self._cluster.members[0])
            theirs = await other.status(other.members[-1])
            if ours["cluster_id"] == theirs["cluster_id"]:
                self._faults.add("the restored cluster has the id of the old one")
            left = await self._contents(self._cluster.urls, revision)
            for member in other.members:
                right = await self._contents([member.client_url], revision)
                for line in differences(left, right, "the cluster", f"restored {member.name}"):
                    self._faults.add(f"at revision {revision} {line}")
            code, body, _ = await other.call(
                other.members[0], "PUT", "/api/kv/soak/after", data=b"1"
            )
            if code != 200:
                self._faults.add(f"the restored cluster takes no write: {code} {body}")
        shutil.rmtree(folder)
        self.keys_compared += len(left)
        return len(left)

    async def _contents(self, urls: Sequence[str], revision: int) -> dict[str, object]:
        """Every key at a revision, with all that is known of it."""
        async with client_of(self._pki, urls) as client:
            return {
                record.key: record
                async for record in client.scan(prefix="", revision=revision, page_size=PAGE)
            }

    # -- space ----------------------------------------------------------------------------------

    async def fill_the_quota(self) -> str:
        """Filler until writes are refused; deletes go on; then it is freed and all is well."""
        written, last = await self._fill()
        members = self._cluster.members
        first = await self._cluster.leader()
        code, body, _ = await self._cluster.call(
            first, "PUT", f"/api/kv/{FILLER}more", data=b"x" * FILLER_BYTES
        )
        if code != 507 or body.get("outcome") != "refused":
            self._faults.add(f"out of space a write was answered {code} {body}")
        code, body, _ = await self._cluster.call(first, "DELETE", f"/api/kv/{FILLER}{last}")
        if code != 200 or not body["deleted"]:
            self._faults.add(f"out of space a delete was answered {code} {body}")
        # For a while the load meets refusals.
        await asyncio.sleep(2)
        body = await self._cluster.insist(first, "DELETE", f"/api/kv?prefix={FILLER}")
        revision = int(body["revision"])
        await self._until(
            lambda: self._passed(revision), f"watches do not come past revision {revision}"
        )
        await self._cluster.insist(first, "POST", "/api/compact", json={"revision": revision})
        began = time.monotonic()
        for member in members:
            await self._until(
                lambda member=member: self._without_alarm(member),
                f"the alarm of {member.name} stays",
            )
        cleared = time.monotonic() - began
        await self._cluster.insist(first, "PUT", f"/api/kv/{FILLER}again", data=b"1")
        return f"{written} values of 64 KiB to NOSPACE; the alarm went {cleared:.1f} s after it"

    async def _fill(self) -> tuple[int, int]:
        """How many values fit, and which was one of the last."""
        done: list[int] = []
        full = asyncio.Event()
        numbers = iter(range(100_000))

        async def fill(at: int) -> None:
            for number in numbers:
                if full.is_set():
                    return
                member = self._cluster.members[at % len(self._cluster.members)]
                try:
                    code, _, _ = await self._cluster.call(
                        member, "PUT", f"/api/kv/{FILLER}{number}", data=b"x" * FILLER_BYTES
                    )
                except (aiohttp.ClientError, OSError, TimeoutError):
                    continue
                if code == 200:
                    done.append(number)
                elif code == 507:
                    full.set()

        await asyncio.gather(*(fill(at) for at in range(FILLERS)))
        assert done, "there was no space from the beginning"
        return len(done), done[-1]

    async def _passed(self, revision: int) -> bool:
        self._load.ledger.reconcile()
        return all(each.complete >= revision for each in self._load.ledger.followers)

    async def _without_alarm(self, member: Member) -> bool:
        return not (await self._cluster.status(member))["alarms"]

    # -- helpers --------------------------------------------------------------------------------

    def _command(self) -> Command:
        return command_of(self._pki, self._cluster.urls)

    async def _until(self, what: Callable[[], Awaitable[bool]], otherwise: str) -> None:
        """Wait until it is so; a fault, and an end of the operation, if it never is."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if await what():
                    return
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"after {PATIENCE_SECONDS:.0f} s {otherwise}")
            await asyncio.sleep(0.2)


def client_of(pki: Pki, urls: Sequence[str], **more: Any) -> AsyncClient:
    """A client with the rights of root."""
    files = pki.client("root")
    return AsyncClient(urls, cacert=files.ca, cert=files.cert, key=files.key, **more)


def command_of(pki: Pki, urls: Sequence[str]) -> Command:
    """The command line with the rights of root."""
    files = pki.client("root")
    command = Command(*urls, seconds=COMMAND_SECONDS)
    command.environment |= {
        "RAFTKV_CACERT": files.ca, "RAFTKV_CERT": files.cert, "RAFTKV_KEY": files.key,
        # A member that makes a snapshot on a busy machine does not answer before it has.
        "RAFTKV_TIMEOUT": f"{PATIENCE_SECONDS:g}",
    }  # fmt: skip
    return command
