"""Clusters whose members can be cut off from each other, in one direction or both.

`ProxiedCluster` needs nothing but loopback: members advertise proxies. `NamespacedCluster` gives
each member a network namespace of its own on one bridge, and drops packets with nftables; it
needs root, iproute2 and nftables, and removes what it made. Clients reach every member all the
time in both.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tests.support.processes import Cluster, Member, free_ports
from tests.support.proxy import ProxyNetwork


class Cuttable(Protocol):
    """A cluster that can be partitioned."""

    members: list[Member]

    def cut(self, source: Member, target: Member) -> None:
        """Let nothing of what `source` sends arrive at `target`."""
        ...

    def heal(self) -> None:
        """Undo every cut."""
        ...


def isolate(cluster: Cuttable, member: Member) -> None:
    """Cut `member` off from all others, in both directions."""
    for other in cluster.members:
        if other is not member:
            cluster.cut(member, other)
            cluster.cut(other, member)


class ProxiedCluster(Cluster):
    """Members on loopback whose messages pass through proxies of this process."""

    def __init__(self, folder: Path, size: int, extra: list[str] | None = None) -> None:
        self.network = ProxyNetwork()
        self._proxies: dict[str, int] = {}
        self._ids: dict[str, int] = {}
        super().__init__(folder, size, extra)

    def _new_member(self) -> Member:
        member = super()._new_member()
        [port] = free_ports(1)
        self._proxies[member.name] = port
        member.advertised_peer_url = f"http://127.0.0.1:{port}"
        return member

    async def __aenter__(self) -> ProxiedCluster:
        for member in self.members:
            await self._open(member)
        try:
            await super().__aenter__()
            for member in self.members:
                await self.learn(member)
        except BaseException:
            await self.network.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.network.mend_all()
        await super().__aexit__(*exc)
        await self.network.close()

    async def start_added(self, member: Member) -> None:
        """See `Cluster.start_added`; `learn` it once it answers."""
        await self._open(member)
        await super().start_added(member)

    async def learn(self, member: Member) -> None:
        """Find out the member's id, by which its connections are known."""
        self._ids[member.name] = int((await self.status(member))["member_id"], 16)

    async def _open(self, member: Member) -> None:
        await self.network.open(self._proxies[member.name], int(member.peer_url.rpartition(":")[2]))

    def flow(self, source: Member, target: Member) -> tuple[int, int]:
        """The two ends as `ProxyNetwork` knows them."""
        return self._ids[source.name], self._ids[target.name]

    def cut(self, source: Member, target: Member, swallow: bool = False) -> None:
        """See `Cuttable`. `swallow`: what is sent meanwhile is lost instead of late."""
        self.network.cut(*self.flow(source, target), swallow)

    def slow(self, source: Member, target: Member, delay_seconds: float) -> None:
        """Delay what `source` sends to `target`."""
        self.network.slow(*self.flow(source, target), delay_seconds)

    def heal(self) -> None:
        """See `Cuttable`."""
        self.network.mend_all()


_NETWORKS = itertools.count()


class NamespacedCluster(Cluster):
    """Members in network namespaces of their own, on a bridge that this process is on, too."""

    def __init__(self, folder: Path, size: int, extra: list[str] | None = None) -> None:
        # Unique among runs at the same time: names by process, addresses likewise.
        self._name = f"rkv{os.getpid() % 100_000}x{next(_NETWORKS)}"
        self._network = f"10.{200 + os.getpid() // 256 % 50}.{os.getpid() % 256}"
        self._hosts: Iterator[int] = iter(range(2, 250))
        self._addresses: dict[str, str] = {}
        super().__init__(folder, size, extra)

    def _new_member(self) -> Member:
        name = next(self._names)
        host = f"{self._network}.{next(self._hosts)}"
        member = Member(name, self.folder, 2379, 2380, host)
        self._addresses[name] = host
        member.command = ["ip", "netns", "exec", self._space(member)]
        return member

    def _space(self, member: Member) -> str:
        return f"{self._name}-{member.name}"

    async def __aenter__(self) -> NamespacedCluster:
        try:
            run("ip", "link", "add", self._name, "type", "bridge")
            run("ip", "addr", "add", f"{self._network}.1/24", "dev", self._name)
            run("ip", "link", "set", self._name, "up")
            for number, member in enumerate(self.members):
                self._connect(member, f"{self._name}p{number}")
            await super().__aenter__()
        except BaseException:
            self._remove()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await super().__aexit__(*exc)
        finally:
            self._remove()

    def _connect(self, member: Member, port: str) -> None:
        space = self._space(member)
        inside = ("ip", "netns", "exec", space)
        run("ip", "netns", "add", space)
        # The far end must not be called eth0 before it is in its namespace.
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", port, "master", self._name, "up")
        run(*inside, "ip", "addr", "add", f"{self._addresses[member.name]}/24", "dev", "eth0")
        run(*inside, "ip", "link", "set", "eth0", "up")
        run(*inside, "ip", "link", "set", "lo", "up")
        rules = "add table inet cut; add chain inet cut in { type filter hook input priority 0; }"
        run(*inside, "nft", rules)

    def _remove(self) -> None:
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.kill()
        spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
        for line in spaces.stdout.splitlines():
            if line.startswith(f"{self._name}-"):
                run("ip", "netns", "delete", line.split()[0])
        if Path(f"/sys/class/net/{self._name}").exists():
            run("ip", "link", "delete", self._name)

    def cut(self, source: Member, target: Member) -> None:
        """See `Cuttable`: packets are dropped where they arrive."""
        rule = f"add rule inet cut in ip saddr {self._addresses[source.name]} drop"
        run("ip", "netns", "exec", self._space(target), "nft", rule)

    def lose(self, source: Member, target: Member, percent: int) -> None:
        """Drop that share of the packets from `source` to `target`, at random."""
        rule = (
            f"add rule inet cut in ip saddr {self._addresses[source.name]} "
            f"numgen random mod 100 < {percent} drop"
        )
        run("ip", "netns", "exec", self._space(target), "nft", rule)

    def heal(self) -> None:
        """See `Cuttable`."""
        for member in self.members:
            run("ip", "netns", "exec", self._space(member), "nft", "flush chain inet cut in")


def run(*command: str) -> None:
    """Run a command of the system; AssertionError with what it said if it fails."""
    assert os.geteuid() == 0, "this test makes network namespaces or mounts: it needs root"
    assert shutil.which(command[0]), f"this test needs {command[0]}; see CONTRIBUTING.md"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
