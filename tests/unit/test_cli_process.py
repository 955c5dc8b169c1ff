"""The command as a process: start-up, signals, children, and the local cluster's supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from raftkv.cli import dev, exits
from raftkv.cli.lazy import LazyGroup
from raftkv.cli.main import cli
from raftkv.client import Client
from raftkv.errors import ConfigError, OutcomeUnknown, RaftkvError
from raftkv.server.config import SETTINGS, ServerConfig, load_config
from tests.unit.client_door import Door, real_door

RAFTKV = [sys.executable, "-m", "raftkv.cli"]


@pytest.fixture
def door() -> Iterator[Door]:
    with real_door() as made:
        yield made


def environment(door: Door | None = None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAFTKV_")}
    return {**clean, "RAFTKV_ENDPOINTS": door.url} if door else clean


def test_help_loads_no_client() -> None:
    code = (
        "import sys; sys.argv = ['raftkv', '--help']\n"
        "from raftkv.cli.main import cli\n"
        "cli(standalone_mode=False)\n"
        "heavy = {'aiohttp', 'asyncio', 'rich', 'raftkv.client'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert "service" in done.stdout and "Run a store" in done.stdout


def test_no_arguments_show_a_friendly_overview() -> None:
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 0 and "raftkv put greeting hello" in result.stdout


def walk(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str, str]]:
    if isinstance(group, LazyGroup):
        for name, entry in group.lazy.items():
            command = group.get_command(click.Context(group), name)
            assert command is not None
            yield " ".join((*path, name)), entry.help, command.help or ""
            yield from walk(command, (*path, name))


def test_every_command_loads_and_its_line_in_the_list_is_its_own_first_line() -> None:
    found = list(walk(cli))
    assert len(found) > 30
    for name, line, text in found:
        assert text.splitlines()[0] == line, name
        assert CliRunner().invoke(cli, [*name.split(), "--help"]).exit_code == 0


def test_serve_options_are_the_settings() -> None:
    text = CliRunner().invoke(cli, ["serve", "--help"], terminal_width=200).stdout
    for setting in SETTINGS:
        assert f"{setting.flag} " in text


def test_serve_shows_the_configuration_in_effect_and_refuses_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('name = "filed"\n')
    args = ["serve", "--config-file", str(path), "--show-config", "--no-such"]
    assert CliRunner().invoke(cli, args).exit_code == 2
    variables = {"RAFTKV_MAX_WATCHERS": "9", "RAFTKV_DATADIR": "x"}
    shown = CliRunner(env=variables).invoke(cli, [*args[:-1], "--log-level", "debug"])
    assert shown.exit_code == 0
    config = load_config(
        {key.replace("-", "_"): value for key, value in tomllib.loads(shown.stdout).items()}
    )
    assert (config.name, config.max_watchers, config.log_level) == ("filed", 9, "debug")
    assert "RAFTKV_DATADIR is set" in shown.stderr
    bad = CliRunner().invoke(cli, ["serve", "--election-timeout", "soon"])
    assert bad.exit_code == 2 and "--election-timeout" in bad.stderr


def test_completion_and_version() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_RAFTKV_COMPLETE" in CliRunner().invoke(cli, ["completion", shell]).stdout
    assert "raftkv 0" in CliRunner().invoke(cli, ["version", "-o", "table"]).stdout


def test_exit_codes_are_documented_and_follow_the_families() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for code, meaning in exits.MEANINGS.items():
        assert f"| {code} | {meaning} |" in text
    assert exits.exit_code(OutcomeUnknown("x")) == exits.UNKNOWN
    assert exits.exit_code(ConfigError("x")) == exits.USAGE
    assert exits.exit_code(RaftkvError("x")) == exits.FAILED


def test_a_watch_ends_with_ctrl_c(door: Door) -> None:
    watch = subprocess.Popen(
        [*RAFTKV, "watch", "--prefix", ""],
        env=environment(door),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with Client(door.url) as client:
        deadline = time.monotonic() + 10
        os.set_blocking(watch.stdout.fileno(), False)  # type: ignore[union-attr]
        line = ""
        while not line and time.monotonic() < deadline:
            client.put("a", "1")
            time.sleep(0.05)
            line = watch.stdout.readline()  # type: ignore[union-attr]
    assert '"type": "put"' in line
    watch.send_signal(signal.SIGINT)
    _, errors = watch.communicate(timeout=10)
    assert watch.returncode == exits.INTERRUPTED
    assert "Traceback" not in errors


CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.environ["RAFTKV_SERVICE"], os.environ["RAFTKV_INSTANCE"], os.environ["PORT"], flush=True)
time.sleep(60)
"""


def test_service_run_registers_forwards_signals_and_gives_the_exit_code(door: Door) -> None:
    args = ["service", "run", "web", "--port", "8123", "--id", "w1", "--ttl", "1"]
    process = subprocess.Popen(
        [*RAFTKV, *args, "--", sys.executable, "-c", CHILD],
        env=environment(door),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().split() == ["web", "w1", "8123"]
    with Client(door.url) as client:
        (instance,) = client.services.instances("web")
        assert (instance.address, instance.port) == ("127.0.0.1", 8123)
        time.sleep(1.6)
        assert client.services.instance("web", "w1") == instance, "kept alive past its TTL"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 7, errors
        assert client.services.instances("web") == ()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-program-here"], 127),
        (["/etc/hostname"], 126),
        (["true"], 0),
    ],
)
def test_service_run_ends_like_a_shell(door: Door, command: list[str], code: int) -> None:
    done = subprocess.run(
        [*RAFTKV, "service", "run", "web", "--port", "1", "--", *command],
        env=environment(door),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == code, done.stderr
    with Client(door.url) as client:
        assert client.services.instances("web") == ()


def test_a_claimed_instance_stops_service_run_before_the_program(
    door: Door, tmp_path: Path
) -> None:
    with Client(door.url) as client:
        client.services.register("web", "w1", "elsewhere", 1, ttl=30)
    trace = tmp_path / "ran"
    args = ["service", "run", "web", "--id", "w1", "--port", "1", "--", "touch", str(trace)]
    done = subprocess.run([*RAFTKV, *args], env=environment(door), capture_output=True, text=True)
    assert done.returncode == exits.FAILED and "--takeover" in done.stderr
    assert not trace.exists()


MEMBER = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
name, port, role = sys.argv[1], int(sys.argv[2]), sys.argv[3]
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"name": name, "member_id": name, "cluster_id": "c", "term": 1,
                           "role": role, "healthy": True}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
HTTPServer.allow_reuse_address = True
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def member_command(config: ServerConfig) -> list[str]:
    """A process that answers like a member, for tests of the supervisor alone."""
    role = "leader" if config.name == "m1" else "follower"
    port = str(config.client_addresses[0][1])
    return [sys.executable, "-c", MEMBER, config.name, port, role]


async def test_dev_starts_members_restarts_a_killed_one_and_stops_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configs = dev.plan(2, None, tmp_path, {})
    cluster = dev.DevCluster(configs, tmp_path, restart=True, command=member_command)
    running = asyncio.create_task(cluster.run())
    seen = ""

    async def until(text: str) -> None:
        nonlocal seen
        async with asyncio.timeout(15):
            while text not in seen:
                await asyncio.sleep(0.05)
                out, errors = capfd.readouterr()
                seen += out + errors

    await until("Ctrl-C stops all members")
    assert "export RAFTKV_ENDPOINTS=" in seen and "m2" in seen and "follower" in seen
    first = cluster.members[0].process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    await until("ended (SIGKILL)")
    await until("started again")
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(running, 15) == 0
    assert all(m.process and m.process.returncode is not None for m in cluster.members)
    await until("all members have stopped")


async def test_dev_gives_up_on_members_that_cannot_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configs = dev.plan(1, None, tmp_path, {})
    command = [sys.executable, "-c", "import sys; sys.exit('no luck today')"]
    cluster = dev.DevCluster(configs, tmp_path, restart=True, command=lambda config: command)
    assert await asyncio.wait_for(cluster.run(), 20) == exits.FAILED
    errors = capfd.readouterr().err
    assert "no luck today" in errors and "no member is left" in errors


def test_dev_plans_ports_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    configs = dev.plan(3, None, tmp_path, {"max_watchers": "5"})
    ports = [port for c in configs for _, port in (*c.client_addresses, *c.peer_addresses)]
    assert len(set(ports)) == 6 and {c.max_watchers for c in configs} == {5}
    assert list(configs[0].founding_members) == ["m1", "m2", "m3"]
    with pytest.raises(ConfigError, match="name"):
        dev.plan(1, None, tmp_path, {"name": "x"})
    import socket

    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(click.ClickException, match="in use"):
            dev.plan(1, busy.getsockname()[1], tmp_path, {})
    assert CliRunner().invoke(cli, ["dev", "--set", "nonsense"]).exit_code == 2
