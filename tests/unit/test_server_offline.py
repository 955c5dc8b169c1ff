"""Snapshot files without a running member: looked into, and restored into new clusters."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from raftkv.cli.main import cli
from raftkv.consensus.types import ConfState, SnapshotMeta
from raftkv.errors import ConfigError, CorruptionError, FormatError, StorageError
from raftkv.machine import commands
from raftkv.machine.commands import AlarmKind
from raftkv.server.bootstrap import found
from raftkv.server.config import ServerConfig
from raftkv.server.offline import snapshot_restore, snapshot_status
from raftkv.server.opening import Opened, open_member

NAMES = ("a", "b", "c")
CLUSTER = ",".join(f"{name}=http://127.0.0.1:{7000 + n}" for n, name in enumerate(NAMES))
OLD = "x=http://127.0.0.1:7100,y=http://127.0.0.1:7101"


def config(folder: Path, name: str, cluster: str) -> ServerConfig:
    return ServerConfig(name=name, data_dir=str(folder / name), initial_cluster=cluster)


def close(opened: Opened) -> None:
    opened.wal.close()
    opened.close(clean=True)


def quiet(done: int, total: int | None) -> None:
    pass


@pytest.fixture
async def saved(tmp_path: Path) -> Path:
    """A backup of a cluster with keys, a lease, a service and an alarm; entries 1 to 5."""
    opened = await open_member(config(tmp_path, "x", OLD))
    member = opened.identity.member_id
    register = commands.service_register(
        "web", "w1", "10.0.0.1", 80, tags=["v1"], meta={}, weight=1, ttl_seconds=30,
        owner="o", lease=78, takeover=False,
    )  # fmt: skip
    made = [
        [commands.lease_grant(77, 60), commands.put(b"k", b"v1", lease=77)],
        [commands.put(b"k2", b"\0\xff"), commands.put(b"k", b"v2", lease=77)],
        [register],
        [commands.alarm(AlarmKind.NOSPACE, member, True)],
    ]
    for index, batch in enumerate(made, start=2):
        data = commands.encode_batch(member, 1, index, batch)
        opened.machine.apply([(index, 3, commands.stamp_batch(data, 1000 + index))])
    info = opened.begin_snapshot()()
    path = tmp_path / "backup.snapshot"
    path.write_bytes(Path(opened.snapshots.path(info)).read_bytes())
    close(opened)
    return path


async def test_status_tells_what_is_in_a_file(saved: Path) -> None:
    status = snapshot_status(saved)
    old = found(config(saved.parent, "x", OLD))
    assert (status["index"], status["term"], status["keys"]) == (5, 3, 2)
    assert status["revision"] == 5 and status["digest_verified"] is True
    assert status["size_bytes"] == saved.stat().st_size
    assert status["cluster_id"] == f"{old.cluster_id:016x}"
    assert sorted(status["members"]) == sorted(OLD.split(","))
    assert not [each for each in saved.parent.iterdir() if "status" in each.name]


async def test_all_members_restored_from_a_file_are_one_cluster_with_equal_state(
    saved: Path, tmp_path: Path
) -> None:
    seen = []
    for name in NAMES:
        mine = config(tmp_path / "new", name, CLUSTER)
        told: list[tuple[int, int | None]] = []

        def progress(done: int, total: int | None, to: list[tuple[int, int | None]] = told) -> None:
            to.append((done, total))

        snapshot_restore(saved, mine, progress=progress)
        assert told and told[-1][0] == told[-1][1]
        opened = await open_member(mine)
        machine = opened.machine
        seen.append((opened.identity.cluster_id, machine.state_hash, machine.members()))
        assert opened.identity.member_id in opened.log.initial_state()[1].voters
        assert (opened.log.first_index(), opened.log.last_index()) == (6, 5)
        assert (machine.applied_index, machine.applied_term, machine.revision) == (5, 3, 5)
        record = machine.get(b"k")
        assert record is not None and (record.value, record.lease, record.version) == (b"v2", 77, 2)
        assert [event.revision for event in machine.history(2, 5, 100)] == [2, 3, 4, 5]
        assert [lease.lease for lease in machine.leases()] == [77, 78]
        assert [each.instance for each in machine.instances("web")] == ["w1"]
        assert machine.alarms == frozenset()
        close(opened)
    assert seen[0] == seen[1] == seen[2]
    assert {member.name for member in seen[0][2]} == set(NAMES)


async def test_a_cluster_restored_under_the_old_settings_is_another_one(
    saved: Path, tmp_path: Path
) -> None:
    mine = config(tmp_path / "new", "x", OLD)
    snapshot_restore(saved, mine, progress=quiet)
    opened = await open_member(mine)
    old = found(mine)
    assert opened.identity.cluster_id != old.cluster_id
    assert opened.identity.member_id not in {member.member_id for member in old.members}
    close(opened)


@pytest.mark.parametrize("advertise", [False, True])
async def test_a_cluster_whose_members_speak_tls_is_restored(
    saved: Path, tmp_path: Path, advertise: bool
) -> None:
    url = "https://127.0.0.1:7000"
    mine = config(tmp_path / "new", "a", "")
    command = [
        "snapshot", "restore", str(saved), "--data-dir", mine.data_dir, "--name", "a",
        "--initial-cluster", f"a={url}",
        *(["--initial-advertise-peer-urls", url] if advertise else []),
    ]  # fmt: skip
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    opened = await open_member(mine)
    (member,) = opened.machine.members()
    assert member.peer_urls == (url,)
    close(opened)


async def test_a_restored_directory_starts_without_its_tables(saved: Path, tmp_path: Path) -> None:
    mine = config(tmp_path / "new", "a", CLUSTER)
    snapshot_restore(saved, mine, progress=quiet)
    for file in (tmp_path / "new" / "a" / "tables").iterdir():
        file.unlink()
    opened = await open_member(mine)
    assert (opened.machine.applied_index, opened.machine.keys) == (5, 2)
    assert {member.name for member in opened.machine.members()} == set(NAMES)
    close(opened)


async def test_files_that_cannot_be_trusted_make_no_directory(saved: Path, tmp_path: Path) -> None:
    good = saved.read_bytes()
    bad = tmp_path / "bad"
    mine = config(tmp_path / "new", "a", CLUSTER)
    newer = good[:8] + (99).to_bytes(4, "little") + good[12:]
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for content, kind, text in (
        (b"", CorruptionError, "not a raftkv snapshot"),
        (b"something else entirely" * 1000, CorruptionError, "not a raftkv snapshot"),
        (good[:-100], CorruptionError, "but its header says"),
        (bytes(flipped), CorruptionError, "damaged; use another copy"),
        (newer, FormatError, "snapshot format 99"),
    ):
        bad.write_bytes(content)
        for call in (
            lambda: snapshot_status(bad),
            lambda: snapshot_restore(bad, mine, progress=quiet),
        ):
            with pytest.raises(kind, match=text) as raised:
                call()
            assert str(bad) in str(raised.value)
    with pytest.raises(StorageError, match="No such file"):
        snapshot_status(tmp_path / "missing")
    assert not mine.data_directory.exists()


async def test_a_file_whose_tables_are_not_what_it_says_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    opened = await open_member(config(tmp_path, "x", OLD))
    writer = opened.snapshots.begin(SnapshotMeta(9, 3, ConfState(voters=(1,))))
    opened.backend.pin().copy_to(writer.path, writer.offset)
    path = opened.snapshots.path(writer.finish())
    mine = config(tmp_path / "new", "a", CLUSTER)
    with pytest.raises(CorruptionError, match="stand at index 1, but its header says 9"):
        snapshot_restore(path, mine, progress=quiet)
    assert [*mine.data_directory.iterdir()] == []
    close(opened)


async def test_a_directory_in_use_is_refused_and_left_alone(saved: Path, tmp_path: Path) -> None:
    mine = config(tmp_path / "new", "a", CLUSTER)
    mine.data_directory.mkdir(parents=True)
    (mine.data_directory / "precious").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        snapshot_restore(saved, mine, progress=quiet)
    assert [each.name for each in mine.data_directory.iterdir()] == ["precious"]
