"""dev: a whole cluster in one terminal."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from raftkv.cli.exits import FAILED
from raftkv.cli.output import Failure, Output, note
from raftkv.cli.session import guarded
from raftkv.server.config import ServerConfig

BASE_PORT = 2379
READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0
POLL_SECONDS = 0.25
RESTART_SECONDS = 0.3
EARLY_EXIT_SECONDS = 3.0
EARLY_EXITS_MAX = 3
LOG_LINES_SHOWN = 15
MEMBERS_MAX = 9
PR_SET_PDEATHSIG = 1
"""prctl(2): a signal for this process when the thread that made it ends."""
_HUES = ("cyan", "magenta", "yellow", "blue", "green", "red")


@click.command()
@click.option(
    "--members",
    type=click.IntRange(1, MEMBERS_MAX),
    default=3,
    show_default=True,
    metavar="N",
    help="How many members.",
)
@click.option(
    "--base-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help=f"First of two ports for each member.  [default: {BASE_PORT}, or free ones]",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="PATH",
    help="Keep the data here.  [default: a temporary directory, removed at the end]",
)
@click.option("--log-level", default="info", show_default=True, metavar="LEVEL")
@click.option("--restart/--no-restart", default=True, help="Start a member again when it dies.")
@click.option("--tls", is_flag=True, help="Certificates for everybody, and https everywhere.")
@click.option(
    "-s",
    "--set",
    "extra",
    multiple=True,
    metavar="SETTING=VALUE",
    help="A setting of `raftkv serve` for every member, for example max-watchers=64.",
)
def dev(
    members: int,
    base_port: int | None,
    data_dir: Path | None,
    log_level: str,
    restart: bool,
    tls: bool,
    extra: tuple[str, ...],
) -> None:
    """Run a whole local cluster in this terminal.

    Prints what happens to it. Kill a member with `kill -9` to see the others go on and the killed
    one come back. Ctrl-C stops all members.
    """
    settings = {"log_level": log_level, **_extra(extra)}
    temporary = data_dir is None
    directory = data_dir or Path(tempfile.mkdtemp(prefix="raftkv-dev-"))
    try:
        guarded(lambda: directory.mkdir(parents=True, exist_ok=True))
        certificates = guarded(lambda: make_certificates(directory, members)) if tls else None
        configs = guarded(lambda: plan(members, base_port, directory, settings, certificates))
        cluster = DevCluster(configs, directory, restart=restart, certificates=certificates)
        code = guarded(lambda: asyncio.run(cluster.run()))
    finally:
        if temporary:
            shutil.rmtree(directory, ignore_errors=True)
    click.get_current_context().exit(code)


def _extra(pairs: tuple[str, ...]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes SETTING=VALUE, not {pair!r}")
        settings[name.removeprefix("--").replace("-", "_")] = value
    return settings


def make_certificates(directory: Path, members: int) -> Path:
    """The directory of a CA, certificates of the members, and one of a client called dev; those
    that are there already are kept."""
    from raftkv.server.tls.authority import Authority, write_pair

    folder = directory / "certs"
    folder.mkdir(exist_ok=True, mode=0o700)

    def files(name: str) -> tuple[Path, Path]:
        return folder / f"{name}.crt", folder / f"{name}.key"

    if not files("ca")[1].exists():
        write_pair(*files("ca"), Authority.make("raftkv dev CA").pem(), force=True)
    authority = Authority.load(*files("ca"))
    hosts = ("127.0.0.1", "localhost")
    for name in (f"m{number}" for number in range(1, members + 1)):
        if not files(name)[0].exists():
            write_pair(*files(name), authority.member(name, hosts), force=True)
    if not files("dev")[0].exists():
        write_pair(*files("dev"), authority.client("dev"), force=True)
    return folder


def tls_settings(folder: Path, name: str) -> dict[str, str]:
    """What makes member `name` speak TLS only, and only with whom the CA vouches for."""
    cert, key, ca = (str(folder / file) for file in (f"{name}.crt", f"{name}.key", "ca.crt"))
    return {
        "cert_file": cert,
        "key_file": key,
        "trusted_ca_file": ca,
        "client_cert_auth": "true",
        "peer_cert_file": cert,
        "peer_key_file": key,
        "peer_trusted_ca_file": ca,
        "peer_client_cert_auth": "true",
    }


def plan(
    members: int,
    base_port: int | None,
    directory: Path,
    settings: dict[str, str],
    certificates: Path | None = None,
) -> list[ServerConfig]:
    """The configuration of every member. Ports come in pairs: one for clients, one for peers."""
    from raftkv.errors import ConfigError
    from raftkv.server.config import SETTINGS_BY_NAME, load_config

    taken = {"name", "data_dir", "initial_cluster"} | {n for n in SETTINGS_BY_NAME if "url" in n}
    for name in settings:
        if name not in SETTINGS_BY_NAME or name in taken:
            raise ConfigError(f"--set {name.replace('_', '-')} cannot be set for a dev cluster")
    ports = choose_ports(members, base_port)
    names = [f"m{number}" for number in range(1, members + 1)]
    scheme = "http" if certificates is None else "https"
    peers = [f"{scheme}://127.0.0.1:{peer}" for _, peer in ports]
    cluster = ",".join(f"{name}={url}" for name, url in zip(names, peers, strict=True))
    return [
        load_config(
            {
                **({} if certificates is None else tls_settings(certificates, name)),
                **settings,
                "name": name,
                "data_dir": str(directory / name),
                "listen_client_urls": f"{scheme}://127.0.0.1:{client}",
                "listen_peer_urls": f"{scheme}://127.0.0.1:{peer}",
                "initial_cluster": cluster,
                "initial_cluster_token": "raftkv-dev",
            }
        )
        for name, (client, peer) in zip(names, ports, strict=True)
    ]


def choose_ports(members: int, base_port: int | None) -> list[tuple[int, int]]:
    """A client and a peer port for each member, none of them in use.

    Those asked for must be free, or `Failure`; without a wish the usual ones, or any.
    """
    base = base_port or BASE_PORT
    ports = list(range(base, base + 2 * members))
    busy = [port for port in ports if port > 65535 or not _is_free(port)]
    if busy and base_port is not None:
        raise Failure(f"port {busy[0]} is in use", FAILED, "Choose another --base-port.")
    if busy:
        with contextlib.ExitStack() as held:
            ports = [_hold_free(held) for _ in ports]
    return list(zip(ports[::2], ports[1::2], strict=True))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _hold_free(held: contextlib.ExitStack) -> int:
    probe = held.enter_context(socket.socket())
    probe.bind(("127.0.0.1", 0))
    return int(probe.getsockname()[1])


@dataclass(slots=True)
class DevMember:
    """One member process."""

    config: ServerConfig
    log: Path
    hue: str
    process: asyncio.subprocess.Process | None = None
    role: str = "starting"
    early_exits: int = 0
    watching: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The member's name."""
        return self.config.name

    @property
    def url(self) -> str:
        """Where its clients go."""
        return self.config.listen_client_urls[0]


class DevCluster:
    """Starts members, tells what happens to them, and stops them."""

    def __init__(
        self,
        configs: list[ServerConfig],
        directory: Path,
        *,
        restart: bool,
        command: Callable[[ServerConfig], list[str]] | None = None,
        certificates: Path | None = None,
    ) -> None:
        self.directory = directory
        files = {"cacert": "ca.crt", "cert": "dev.crt", "key": "dev.key"} if certificates else {}
        self._files = {name: f"{certificates}/{file}" for name, file in files.items()}
        self.restart = restart
        self.members = [
            DevMember(config, directory / f"{config.name}.log", _HUES[place % len(_HUES)])
            for place, config in enumerate(configs)
        ]
        self._command = command or serve_command
        self._stop = asyncio.Event()
        self._leader = ""
        self._code = 0

    async def run(self) -> int:
        """Run until a signal asks to stop; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        try:
            for member in self.members:
                await self._start(member)
            if await self._until_ready():
                self._introduce()
                await self._follow()
        finally:
            await self._stop_all()
        return self._code

    async def _start(self, member: DevMember) -> None:
        with member.log.open("ab") as log:
            member.process = await asyncio.create_subprocess_exec(
                *self._command(member.config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for this process, which then stops the members in order.
                start_new_session=True,
                preexec_fn=_end_with_parent(),
                env=_environment(),
            )
        member.watching = asyncio.create_task(self._mind(member, member.process))

    async def _mind(self, member: DevMember, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        code = await process.wait()
        if self._stop.is_set():
            return
        member.role = "stopped"
        self._tell(member, f"ended ({_reason(code)})", "red")
        early = loop.time() - started < EARLY_EXIT_SECONDS
        member.early_exits = member.early_exits + 1 if early else 0
        # A member that was killed starts again; one that keeps failing by itself does not.
        if self.restart and (code < 0 or member.early_exits < EARLY_EXITS_MAX):
            await asyncio.sleep(RESTART_SECONDS)
            if not self._stop.is_set():
                await self._start(member)
                self._tell(member, f"started again (pid {_pid(member)})", "green")
            return
        if early:
            self._show_log(member)
        if all(other.role == "stopped" for other in self.members):
            note("no member is left; stopping")
            self._code = FAILED
            self._stop.set()

    async def _until_ready(self) -> bool:
        """Wait until every member answers and agrees on a leader."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_SECONDS_MAX
        while not self._stop.is_set():
            await self._poll()
            if self._leader and all(m.role in ("leader", "follower") for m in self.members):
                return True
            if loop.time() > deadline:
                late = ", ".join(m.name for m in self.members if m.role in ("starting", "stopped"))
                note(f"not ready within {READY_SECONDS_MAX:.0f} s: {late or 'no leader'}")
                for member in self.members:
                    self._show_log(member)
                self._code = FAILED
                return False
            await self._pause()
        return False

    async def _follow(self) -> None:
        while not self._stop.is_set():
            before = self._leader
            await self._poll()
            if self._leader != before and self._leader:
                leader = next(m for m in self.members if m.name == self._leader)
                self._tell(leader, "leads now", "green")
            await self._pause()

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._stop.wait()

    async def _poll(self) -> None:
        from raftkv.client.client import AsyncClient
        from raftkv.errors import InvalidAuthToken, RaftkvError

        async def ask(client: AsyncClient, member: DevMember) -> int:
            try:
                status = await client.cluster.status(member.url, timeout=1.0)
            except InvalidAuthToken:
                member.role = "up"  # access control is on: roles are shown to users only
                return 0
            except RaftkvError:
                if member.role != "stopped":
                    member.role = "starting"
                return -1
            member.role = status.role
            return status.term if status.role == "leader" else -1

        urls = [member.url for member in self.members]
        files: dict[str, Any] = dict(self._files)
        async with AsyncClient(urls, timeout=1.0, patience=0, **files) as client:
            terms = await asyncio.gather(*(ask(client, member) for member in self.members))
        if max(terms) >= 0:
            self._leader = self.members[terms.index(max(terms))].name

    def _introduce(self) -> None:
        output = Output("table")
        output.table(
            ("NAME", "CLIENT URL", "PID", "ROLE"),
            [(m.name, m.url, _pid(m), m.role) for m in self.members],
        )
        urls = ",".join(member.url for member in self.members)
        victim = next(m for m in self.members if m.name == self._leader)
        lines = [
            "",
            f"Logs are in {self.directory}. In another terminal, try:",
            "",
            f"  export RAFTKV_ENDPOINTS={urls}",
            *(f"  export RAFTKV_{name.upper()}={path}" for name, path in self._files.items()),
            "  raftkv put greeting hello",
            "  raftkv get greeting",
            f"  kill -9 {_pid(victim)}        # the leader; the others go on",
            "  raftkv status",
            "",
            "Ctrl-C stops all members.",
            "",
        ]
        output.line("\n".join(lines))

    def _tell(self, member: DevMember, text: str, hue: str) -> None:
        name = click.style(f"{member.name:>4}", fg=member.hue, bold=True)
        note(f"{name}  {click.style(text, fg=hue)}")

    def _show_log(self, member: DevMember) -> None:
        with contextlib.suppress(OSError):
            text = member.log.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines()[-LOG_LINES_SHOWN:]:
                note(f"{click.style(f'{member.name:>4}', fg=member.hue)}  {line}")

    async def _stop_all(self) -> None:
        self._stop.set()
        running = [m.process for m in self.members if m.process and m.process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        waits = [asyncio.create_task(process.wait()) for process in running]
        if waits:
            _, late = await asyncio.wait(waits, timeout=STOP_SECONDS_MAX)
            if late:
                note(f"{len(late)} members did not stop in time and are killed")
                for process in running:
                    if process.returncode is None:
                        process.kill()
                await asyncio.wait(late)
        minders = [member.watching for member in self.members if member.watching]
        for task in minders:
            task.cancel()
        await asyncio.gather(*minders, return_exceptions=True)
        note("all members have stopped")


def _end_with_parent() -> Callable[[], None] | None:
    """What a member does between fork and exec to be stopped when this process dies somehow.

    Linux only; elsewhere the members of a supervisor that was killed stay.
    """
    # Looked up here, because between fork and exec next to nothing may be done.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return None
    parent = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def serve_command(config: ServerConfig) -> list[str]:
    """The command line of a member."""
    return [sys.executable, "-m", "raftkv.cli", "serve", *config.to_flags()]


def _environment() -> dict[str, str]:
    """This process's environment without settings, which would apply to every member alike."""
    from raftkv.server.config import SETTINGS

    names = {setting.variable for setting in SETTINGS} | {"RAFTKV_CONFIG_FILE"}
    return {name: value for name, value in os.environ.items() if name not in names}


def _pid(member: DevMember) -> int:
    return member.process.pid if member.process else 0


def _reason(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
