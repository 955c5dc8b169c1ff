"""Backups of a real cluster: taken by itself and by hand, and any moment restored as another."""

import asyncio
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv.cli import exits
from raftkv.errors import CorruptionError, FormatError
from raftkv.server.config import ServerConfig
from raftkv.server.offline import snapshot_restore, snapshot_status
from tests.cluster.test_cli import RAFTKV, Command
from tests.support.processes import Cluster, Member, free_ports, running

SOON = [
    "--wal-segment-bytes", "32MiB", "--backup-interval", "1s", "--backup-keep", "3",
    "--archive-interval", "200ms",
]  # fmt: skip


async def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def put(cluster: Cluster, name: str, value: str) -> int:
    code, body, _ = await cluster.call(
        await cluster.leader(), "PUT", f"/api/kv/{name}", data=value.encode()
    )
    assert code == 200, body
    return int(body["revision"])


async def metric(cluster: Cluster, member: Member, name: str) -> float:
    _, text, _ = await cluster.call(member, "GET", "/metrics")
    return next(
        float(line.split()[1]) for line in text.decode().splitlines() if line.startswith(f"{name} ")
    )


async def test_a_moment_of_a_running_cluster_becomes_a_cluster_of_another_size(
    tmp_path: Path,
) -> None:
    saved = tmp_path / "saved"
    where = ["--backup-dir", str(saved), "--archive-dir", str(saved)]
    async with running(tmp_path, 3, [*SOON, *where]) as cluster:
        raftkv = Command(*cluster.urls)
        await put(cluster, "first", "1")
        leader = await cluster.leader()
        follower = next(member for member in cluster.members if member is not leader)
        made = await Command(follower.client_url)("backup", "base", str(saved), "-o", "json")
        assert Path(made["path"]).is_file() and made["index"] > 1
        early = await put(cluster, "first", "2")
        await put(cluster, "second", "2")
        # Wait for every write to be in every archive, and for a base on each.
        reached = max([(await cluster.status(m))["applied_index"] for m in cluster.members])
        for member in cluster.members:
            deadline = time.monotonic() + 20
            while (
                await metric(cluster, member, "raftkv_archived_index") < reached
                or await metric(cluster, member, "raftkv_backups_made_total") < 1
            ):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        assert await metric(cluster, member, "raftkv_backup_failures_total") == 0
        assert await metric(cluster, member, "raftkv_backup_last_bytes") > 4096
        assert "made a backup" in member.log_path.read_text()
        cluster_id = (await cluster.status(member))["cluster_id"]
        old = await put(cluster, "first", "3")

    listed = (await raftkv("backup", "list", str(saved), "-o", "json"))["backups"]
    assert {row["cluster_id"] for row in listed} == {cluster_id}
    assert {row["what"] for row in listed} == {"base", "log"}
    whole = await raftkv("backup", "verify", str(saved), "-o", "json")
    assert whole["faults"] == []

    new = Cluster(tmp_path / "new", 2, ["--wal-segment-bytes", "32MiB"], name="r")
    new.folder.mkdir()
    initial = new.members[0].arguments[1]
    for member in new.members:
        restored = await raftkv(
            "backup", "restore", str(saved), "--to-revision", str(early),
            "--data-dir", str(member.data_dir), "--name", member.name,
            "--initial-cluster", initial, "-o", "json",
        )  # fmt: skip
        assert restored["revision"] == early < old
    again = await raftkv(
        "backup", "restore", str(saved), "--data-dir", str(new.members[0].data_dir),
        "--name", new.members[0].name, "--initial-cluster", initial, code=exits.USAGE,
    )  # fmt: skip
    assert "is not empty; give a new directory" in again
    async with new:
        status = await new.equal_hashes()
        assert status["revision"] == early and status["cluster_id"] != cluster_id
        code, body, _ = await new.call(new.members[1], "GET", "/api/kv/first")
        assert (code, body["value"]) == (200, "2")
        assert (await new.call(new.members[1], "GET", "/api/kv/second"))[0] == 404
        assert await put(new, "after", "it") == early + 1


async def test_a_restore_that_is_killed_leaves_nothing_that_starts(tmp_path: Path) -> None:
    """The mark of a member's directory is written last, so half of one is refused in words."""
    async with running(tmp_path, 1, ["--wal-segment-bytes", "32MiB"]) as cluster:
        file = tmp_path / "one.snapshot"
        for number in range(40):
            await put(cluster, f"k{number}", "x" * 50_000)
        await Command(*cluster.urls)("snapshot", "save", str(file))
    target = tmp_path / "half"
    arguments = [*RAFTKV, "snapshot", "restore", str(file), "--data-dir", str(target)]
    started = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await until(lambda: (target / "tables").exists() and any((target / "tables").iterdir()))
    started.kill()
    started.wait()
    if (target / "FORMAT").exists():
        pytest.fail("the restore was through before it could be killed; give it more to do")
    (client, peer) = free_ports(2)
    member = Member("default", tmp_path, client, peer)
    member.arguments = ["--data-dir", str(target)]
    member.start()
    assert member.process is not None
    assert await asyncio.to_thread(member.process.wait, 20) == exits.FAILED
    assert f"{target} is not empty and is not a raftkv data directory" in member.output()


async def test_a_backup_damaged_anywhere_is_refused_in_words(tmp_path: Path) -> None:
    """A byte of every region: magic, version, crc, ids, lengths, membership, image, digest."""
    async with running(tmp_path, 1, ["--wal-segment-bytes", "32MiB"]) as cluster:
        file = tmp_path / "one.snapshot"
        await put(cluster, "k", "v")
        raftkv = Command(*cluster.urls)
        await raftkv("snapshot", "save", str(file))
    whole = file.read_bytes()
    config = ServerConfig(data_dir=str(tmp_path / "out"))
    places = [*range(64), 500, 4095, *range(4096, len(whole), 997), *range(-33, 0)]
    broken = tmp_path / "broken.snapshot"
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        broken.write_bytes(damaged)
        with pytest.raises((CorruptionError, FormatError), match=r"broken\.snapshot: "):
            snapshot_status(broken)
        with pytest.raises((CorruptionError, FormatError), match=r"broken\.snapshot: "):
            snapshot_restore(broken, config, progress=lambda done, total: None)
        assert not (tmp_path / "out").exists()
    for length in (0, 1, 8, 4095, 4096, 4097, 5000, len(whole) - 1, len(whole) + 1):
        broken.write_bytes((whole + b"\0")[:length])
        with pytest.raises((CorruptionError, FormatError), match=r"broken\.snapshot: "):
            snapshot_restore(broken, config, progress=lambda done, total: None)
        assert not (tmp_path / "out").exists()
    said = await raftkv(
        "snapshot", "restore", str(broken), "--data-dir", str(tmp_path / "out"), code=exits.FAILED
    )
    assert "broken.snapshot" in said and not (tmp_path / "out").exists()
