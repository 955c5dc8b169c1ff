"""Starts that cannot succeed: one sentence on standard error, the right exit code, no traceback."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raftkv.cli.exits import FAILED, USAGE
from tests.support.processes import Cluster, free_ports, running

SECONDS = 20.0
WAL_HEADER_BYTES = 4096


def serve(
    *arguments: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`raftkv serve`, expected to end by itself."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAFTKV_")}
    return subprocess.run(
        [sys.executable, "-m", "raftkv", "serve", "--log-level", "error", *arguments],
        env={**environment, **(variables or {})},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
    )


def member_flags(folder: Path, name: str = "n1", peer: int | None = None) -> list[str]:
    """Flags of a member of its own, on ports that are free."""
    client_port, peer_port = free_ports(2)
    return [
        "--name", name,
        "--data-dir", str(folder / name),
        "--listen-client-urls", f"http://127.0.0.1:{client_port}",
        "--listen-peer-urls", f"http://127.0.0.1:{peer or peer_port}",
    ]  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    """The process ended as it should, and said why in one line."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for text in texts:
        assert text in lines[0]
    assert done.stdout == ""


@contextmanager
def listening() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        yield busy.getsockname()[1]


async def stopped_member(folder: Path, *, kill: bool) -> Cluster:
    """A cluster of one that wrote something and then ended; its files are there."""
    folder.mkdir(exist_ok=True)
    async with running(folder, 1) as cluster:
        member = cluster.members[0]
        for number in range(20):
            code, _, _ = await cluster.call(member, "PUT", f"/api/kv/key{number}", data=b"v" * 500)
            assert code == 200
        if kill:
            member.kill()
        else:
            member.stop()
    return cluster


def flags_of(cluster: Cluster) -> list[str]:
    member = cluster.members[0]
    return [
        "--name", member.name,
        "--data-dir", str(member.data_dir),
        "--listen-client-urls", member.client_url,
        "--listen-peer-urls", member.peer_url,
        *member.arguments,
    ]  # fmt: skip


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with listening() as port:
        flags = member_flags(tmp_path)
        client = [*flags, "--listen-client-urls", f"http://127.0.0.1:{port}"]
        refused(serve(*client), USAGE, f"127.0.0.1:{port}", "stop it")
        peer = [*flags, "--listen-peer-urls", f"http://127.0.0.1:{port}"]
        refused(serve(*peer), USAGE, f"127.0.0.1:{port}", "choose another")


async def test_a_second_process_on_a_data_directory(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as cluster:
        member = cluster.members[0]
        assert member.process is not None
        done = serve(*member_flags(tmp_path, member.name))
        refused(done, FAILED, str(member.data_dir), f"process {member.process.pid}")
        assert (await cluster.status(member))["healthy"]


async def test_the_data_directory_of_another_member(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster:
        first, second = cluster.members[:2]
        first.stop()
        second.stop()
        swapped = [
            "--name", second.name,
            "--data-dir", str(first.data_dir),
            "--listen-client-urls", second.client_url,
            "--listen-peer-urls", second.peer_url,
            *second.arguments,
        ]  # fmt: skip
        refused(serve(*swapped), USAGE, str(first.data_dir), "use the right data directory")
        first.start()
        second.start()
        await cluster.ready(first)
        await cluster.ready(second)


async def test_files_of_another_cluster(tmp_path: Path) -> None:
    one = await stopped_member(tmp_path / "x", kill=False)
    other = await stopped_member(tmp_path / "y", kill=False)
    data, foreign = one.members[0].data_dir, other.members[0].data_dir
    for folder in ("wal", "snapshots"):
        kept = data / f"../{folder}.kept"
        shutil.copytree(data / folder, kept)
        shutil.rmtree(data / folder)
        shutil.copytree(foreign / folder, data / folder)
        done = serve(*flags_of(one))
        refused(done, FAILED, str(data / folder), "use the right data directory")
        shutil.rmtree(data / folder)
        kept.rename(data / folder)
    async with one:
        pass


async def test_data_of_a_newer_or_foreign_program(tmp_path: Path) -> None:
    cluster = await stopped_member(tmp_path, kill=False)
    path = cluster.members[0].data_dir / "FORMAT"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 99}))
    refused(serve(*flags_of(cluster)), FAILED, str(path), "format 99", "newer raftkv")
    path.write_text(json.dumps({**content, "program": "other"}))
    refused(serve(*flags_of(cluster)), FAILED, str(path), "not written by raftkv")
    path.write_text("{")
    refused(serve(*flags_of(cluster)), FAILED, str(path), "unreadable")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "photo.jpg").write_text("x")
    refused(serve(*flags_of(cluster), "--data-dir", str(foreign)), FAILED, "is not empty")
    assert [each.name for each in foreign.iterdir()] == ["photo.jpg"]


async def test_a_log_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    cluster = await stopped_member(tmp_path, kill=True)
    (path,) = sorted((cluster.members[0].data_dir / "wal").glob("*.wal"))
    data = bytearray(path.read_bytes())
    middle = (WAL_HEADER_BYTES + len(data.rstrip(b"\0"))) // 2
    data[middle] ^= 0x40
    path.write_bytes(data)
    done = serve(*flags_of(cluster))
    refused(done, FAILED, str(path), ": offset ")
    said = int(done.stderr.split(": offset ")[1].split(":")[0])
    assert WAL_HEADER_BYTES <= said <= middle < said + 2000
    assert path.read_bytes() == data, "the evidence stays as it is"


async def test_a_log_that_is_gone(tmp_path: Path) -> None:
    cluster = await stopped_member(tmp_path, kill=True)
    data = cluster.members[0].data_dir
    shutil.rmtree(data / "wal")
    refused(serve(*flags_of(cluster)), FAILED, str(data / "wal"), "log of this member is gone")
    shutil.rmtree(data / "wal", ignore_errors=True)
    shutil.rmtree(data / "snapshots")
    for _ in range(2):
        refused(serve(*flags_of(cluster)), FAILED, str(data), "its snapshots are gone")


async def test_a_snapshot_that_is_damaged_and_needed(tmp_path: Path) -> None:
    cluster = await stopped_member(tmp_path, kill=True)
    data = cluster.members[0].data_dir
    (path,) = (data / "snapshots").glob("*.snapshot")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    shutil.rmtree(data / "tables")
    done = serve(*flags_of(cluster))
    refused(done, FAILED, str(path), "the snapshot fails its check", "restore a backup")


@pytest.mark.parametrize("place", ["/proc/raftkv-cannot-be-here", "a-file/data"])
def test_a_directory_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").write_text("x")
    path = str(tmp_path / place)
    done = serve(*member_flags(tmp_path), "--data-dir", path)
    refused(done, FAILED, str(Path(path).parent))


def test_settings_that_nobody_knows(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text("data-dirr = 'x'\n")
    refused(serve("--config-file", str(path)), USAGE, str(path), "'data-dirr'", "serve --help")
    path.write_text("data-dir = [\n")
    refused(serve("--config-file", str(path)), USAGE, str(path), "is not TOML")
    refused(serve("--config-file", str(tmp_path / "none")), USAGE, "No such file")
    done = serve("--no-such-flag", "1")
    refused(done, USAGE, "No such option", "--no-such-flag")
    wrong = {"RAFTKV_ELECTION_TIMEOUT": "soon"}
    refused(serve(variables=wrong), USAGE, "RAFTKV_ELECTION_TIMEOUT", "'soon'")
    # A variable that no setting has may be somebody else's: told, not refused.
    done = serve("--show-config", variables={"RAFTKV_DATADIR": "x"})
    assert done.returncode == 0 and "RAFTKV_DATADIR" in done.stderr


async def test_joining_without_having_been_added(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as cluster:
        member = cluster.members[0]
        (port,) = free_ports(1)
        initial = f"{member.name}={member.peer_url},new=http://127.0.0.1:{port}"
        flags = [
            *member_flags(tmp_path, "new", port),
            "--initial-cluster", initial,
            "--initial-cluster-state", "existing",
        ]  # fmt: skip
        refused(serve(*flags), USAGE, f"http://127.0.0.1:{port}", "raftkv member add")
        refused(serve(*flags, "--initial-cluster", f"new=http://127.0.0.1:{port}"), USAGE, "joins")
