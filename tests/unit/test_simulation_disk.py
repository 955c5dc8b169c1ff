"""The simulated disk: equal to the real one until something ends, and exact about what is left."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from raftkv.errors import CorruptionError, DiskFullError, StorageError
from raftkv.server.bootstrap import Founding, found
from raftkv.server.config import load_config
from raftkv.server.opening import Opened, open_files
from raftkv.simulation.disk import DiskFaults, SimDisk
from raftkv.simulation.inodes import SECTOR_BYTES, Outcome
from raftkv.storage.backend import MemoryBackend
from raftkv.storage.datadir import DataDir
from raftkv.storage.disk import Disk, File, RealDisk, join, read_file, replace_file
from raftkv.storage.wal import WalIdentity

S = SECTOR_BYTES


def machine(seed: int = 1) -> SimDisk:
    disk = SimDisk(Random(seed))
    disk.make_directory("/d")
    disk.sync_directory("/")
    return disk


def content(disk: SimDisk, path: str) -> bytes | None:
    return read_file(disk, path, 1 << 20) if disk.exists(path) else None


def outcomes(
    prepare: Callable[[SimDisk], object], look: Callable[[SimDisk], object], seeds: int = 400
) -> set[object]:
    """Everything that is seen after power cuts of the same machine with different luck."""
    seen = set()
    for seed in range(seeds):
        disk = machine(seed)
        prepare(disk)
        disk.power_cut()
        seen.add(look(disk))
    return seen


def written(disk: SimDisk, path: str, data: bytes, *, sync: bool = True) -> File:
    """A file whose name is durable, and whose bytes are if `sync` says so."""
    file = disk.open(path, create=True)
    file.write(0, data)
    if sync:
        file.sync()
    disk.sync_directory("/d")
    return file


# Like the real one


def act(random: Random, disk: Disk, folder: str, files: dict[str, File]) -> object:
    """One random operation; what it returned or how it failed."""
    name = random.choice("abc")
    path = join(folder, name)
    offset, size = random.randrange(3_000), random.randrange(1, 2_000)
    data = random.randbytes(size)
    kind = random.randrange(10)
    try:
        if kind == 0 or name not in files:
            if name in files:
                files.pop(name).close()
            files[name] = disk.open(path, write=random.random() < 0.9, create=random.random() < 0.3)
        elif kind == 1:
            disk.remove(path)
        elif kind == 2:
            disk.rename(path, join(folder, random.choice("abc")))
        elif kind <= 4:
            return files[name].read(offset, size)
        elif kind == 5:
            files[name].truncate(offset)
        elif kind == 6:
            files[name].fill_zeros(offset, offset + size)
        elif kind == 7:
            files[name].sync_data()
        else:
            files[name].write(offset, data)
    except StorageError as error:
        return (type(error), error.message, error.fatal, error.facts["errno"])
    return (disk.list(folder), [files[name].size() for name in sorted(files)])


@pytest.mark.parametrize("seed", range(8))
def test_without_faults_it_answers_as_the_real_one(seed: int, tmp_path: Path) -> None:
    real, simulated = RealDisk(), SimDisk(Random(seed))
    simulated.make_directory(str(tmp_path))
    one, other = Random(seed), Random(seed)
    real_files: dict[str, File] = {}
    simulated_files: dict[str, File] = {}
    for step in range(400):
        expected = act(one, real, str(tmp_path), real_files)
        assert act(other, simulated, str(tmp_path), simulated_files) == expected, step
        if step % 60 == 59:
            # Nothing that is seen may depend on what is durable.
            simulated = simulated.fork(Random(seed))
            for name in sorted(simulated_files):
                for files in (real_files, simulated_files):
                    files.pop(name).close()
    for file in real_files.values():
        file.close()


def test_a_rename_stays_within_its_folder() -> None:
    disk = machine()
    disk.make_directory("/e")
    replace_file(disk, "/d/f", b"x")
    with pytest.raises(StorageError, match="Invalid cross-device link"):
        disk.rename("/d/f", "/e/f")
    assert content(disk, "/d/f") == b"x"


def test_what_is_removed_while_open_takes_no_room() -> None:
    disk = machine()
    disk.capacity_bytes = 1_000
    file = written(disk, "/d/f", bytes(900))
    disk.remove("/d/f")
    file.write(900, bytes(500))
    assert file.size() == 1_400
    assert disk.free_bytes("/d") == 1_000
    disk.settle(Outcome())
    assert disk.free_bytes("/d") == 100, "the removal was not durable"


# Ends of a process


def test_a_killed_process_leaves_what_it_wrote() -> None:
    disk = machine()
    file = disk.open("/d/f", create=True)
    file.write(0, b"unsynced")
    lock = disk.lock("/d/LOCK")
    disk.crash()
    for call in (
        lambda: file.read(0, 1),
        lambda: file.write(0, b"x"),
        file.size,
        lambda: file.fill_zeros(0, 1),
        lambda: file.truncate(0),
    ):
        with pytest.raises(StorageError, match="Bad file descriptor"):
            call()
    for sync in (file.sync, file.sync_data):
        with pytest.raises(StorageError, match="Bad file descriptor") as caught:
            sync()
        assert caught.value.fatal
    assert content(disk, "/d/f") == b"unsynced"
    boot = disk.boot_id()
    again = disk.lock("/d/LOCK")
    lock.release()
    with pytest.raises(StorageError, match="in use"):
        disk.lock("/d/LOCK")
    again.release()
    disk.power_cut()
    assert disk.boot_id() != boot


def test_what_a_killed_process_wrote_is_not_durable_yet() -> None:
    def prepare(disk: SimDisk) -> None:
        written(disk, "/d/f", b"old").write(0, b"new")
        disk.crash()

    assert outcomes(prepare, lambda disk: content(disk, "/d/f"))


# Ends of a machine


def test_synced_bytes_survive_and_unsynced_sectors_do_in_any_combination() -> None:
    old, new = b"o" * 3 * S, b"n" * 3 * S

    def prepare(disk: SimDisk) -> None:
        written(disk, "/d/f", old).write(0, new)

    def look(disk: SimDisk) -> tuple[bytes, ...] | None:
        data = content(disk, "/d/f") or b""
        sectors = tuple(data[at : at + S] for at in range(0, 3 * S, S))
        whole = all(sector in (old[:S], new[:S]) for sector in sectors)
        return sectors if whole else None

    seen = outcomes(prepare, look)
    assert seen - {None} == set(itertools.product((old[:S], new[:S]), repeat=3))
    assert None in seen, "and sometimes a sector is torn"


def test_a_torn_sector_holds_a_beginning_of_its_new_bytes() -> None:
    def prepare(disk: SimDisk) -> None:
        written(disk, "/d/f", b"o" * S).write(0, b"n" * S)

    seen = outcomes(prepare, lambda disk: content(disk, "/d/f"))
    assert len(seen) > 50
    for data in seen:
        assert isinstance(data, bytes)
        assert data == b"n" * data.count(b"n") + b"o" * data.count(b"o")
        assert len(data) == S


@pytest.mark.parametrize("sync", ["sync", "sync_data"])
def test_a_sync_covers_bytes_and_length_of_its_file_only(sync: str) -> None:
    def prepare(disk: SimDisk) -> None:
        one, two = (written(disk, path, b"", sync=True) for path in ("/d/1", "/d/2"))
        for file in (one, two):
            file.write(0, b"x" * 900)
            file.truncate(700)
        getattr(one, sync)()

    seen = outcomes(prepare, lambda disk: (content(disk, "/d/1"), content(disk, "/d/2")))
    assert {one for one, _ in seen} == {b"x" * 700}  # type: ignore[misc]
    assert {len(two) for _, two in seen} == {0, 900, 700}  # type: ignore[misc]


def test_an_unsynced_cut_may_be_undone() -> None:
    def prepare(disk: SimDisk) -> None:
        written(disk, "/d/f", b"x" * 900).truncate(3)

    seen = outcomes(prepare, lambda disk: content(disk, "/d/f"))
    assert {b"x" * 3, b"x" * 900} <= seen
    assert {len(data) for data in seen} == {3, 900}  # type: ignore[arg-type]


def test_names_are_durable_after_the_folder_was_synced_and_in_order_before() -> None:
    def prepare(disk: SimDisk) -> None:
        written(disk, "/d/kept", b"k")
        disk.open("/d/1", create=True).close()
        disk.rename("/d/1", "/d/2")
        disk.open("/d/3", create=True).close()
        disk.remove("/d/kept")

    seen = outcomes(prepare, lambda disk: tuple(disk.list("/d")))
    assert seen == {
        ("kept",),
        ("1", "kept"),
        ("2", "kept"),
        ("2", "3", "kept"),
        ("2", "3"),
    }


def test_a_rename_survives_without_the_bytes_that_were_not_synced() -> None:
    def prepare(disk: SimDisk) -> None:
        written(disk, "/d/f", b"old")
        file = disk.open("/d/f.tmp", create=True)
        file.write(0, b"new")
        disk.rename("/d/f.tmp", "/d/f")
        disk.sync_directory("/d")

    assert {b"", b"new"} <= outcomes(prepare, lambda disk: content(disk, "/d/f"))


def test_replacing_a_file_is_atomic_and_durable() -> None:
    def prepare(disk: SimDisk) -> None:
        replace_file(disk, "/d/f", b"one")
        replace_file(disk, "/d/f", b"two")

    assert outcomes(prepare, lambda disk: content(disk, "/d/f")) == {b"two"}


def test_syncing_a_file_does_not_make_its_name_durable() -> None:
    def prepare(disk: SimDisk) -> None:
        file = disk.open("/d/f", create=True)
        file.write(0, b"x")
        file.sync()

    assert outcomes(prepare, lambda disk: content(disk, "/d/f")) == {None, b"x"}


def test_a_folder_that_is_lost_takes_along_what_is_in_it() -> None:
    def prepare(disk: SimDisk) -> None:
        disk.make_directory("/d/a/b")
        disk.open("/d/a/b/f", create=True).sync()
        disk.sync_directory("/d/a/b")
        disk.sync_directory("/d/a")

    seen = outcomes(prepare, lambda disk: (disk.exists("/d/a"), disk.exists("/d/a/b/f")))
    assert seen == {(False, False), (True, True)}


def test_an_outcome_can_be_chosen() -> None:
    disk = machine()
    file = written(disk, "/d/f", b"o" * 3 * S)
    file.write(0, b"n" * 4 * S)
    disk.open("/d/g", create=True).close()
    disk.remove("/d/f")
    (node,) = disk.unsynced_files()
    (folder,) = disk.unsynced_folders()
    assert sorted(node.unsynced) == [0, 1, 2, 3]
    assert node.lengths == [3 * S, 4 * S]
    assert len(folder.changes) == 2
    disk.settle(
        Outcome(
            changes={folder.number: 1},
            sectors={node.number: frozenset({1, 3})},
            torn={node.number: (2, 10)},
        )
    )
    assert disk.list("/d") == ["f", "g"]
    assert content(disk, "/d/f") == b"o" * S + b"n" * S + b"n" * 10 + b"o" * (S - 10)
    assert not disk.unsynced_files()
    assert not disk.unsynced_folders()


# Faults


def test_a_failed_sync_is_fatal_and_what_it_left_behind_stays_lost() -> None:
    lost = kept = dropped = 0
    for seed in range(200):
        disk = machine(seed)
        file = written(disk, "/d/f", b"o" * S)
        file.write(0, b"n" * S)
        disk.faults = DiskFaults(sync_error=1.0)
        with pytest.raises(StorageError, match="Input/output error") as caught:
            file.sync_data()
        assert caught.value.fatal
        assert disk.injected["sync_error"] == 1
        disk.faults = None
        assert file.read(0, S) == b"n" * S, "the kernel still shows it"
        file.sync()
        if seed % 3 == 0:
            disk.crash()
            dropped += content(disk, "/d/f") == b"o" * S
        disk.power_cut()
        lost += content(disk, "/d/f") == b"o" * S
        kept += content(disk, "/d/f") == b"n" * S
    assert lost + kept == 200
    assert min(lost, kept, dropped) > 10


def test_a_lost_sector_that_is_written_again_is_safe_after_the_next_sync() -> None:
    for seed in range(30):
        disk = machine(seed)
        file = written(disk, "/d/f", b"o" * S)
        file.write(0, b"n" * S)
        disk.faults = DiskFaults(sync_error=1.0)
        with pytest.raises(StorageError):
            file.sync()
        disk.faults = None
        file.write(7, b"again")
        file.sync()
        disk.power_cut()
        assert content(disk, "/d/f") == b"n" * 7 + b"again" + b"n" * (S - 12)


def test_a_failed_sync_of_a_folder_is_fatal() -> None:
    disk = machine()
    disk.faults = DiskFaults(sync_error=1.0)
    with pytest.raises(StorageError) as caught:
        disk.sync_directory("/d")
    assert caught.value.fatal


def test_failing_reads_and_writes() -> None:
    disk = machine()
    file = written(disk, "/d/f", b"o" * 100)
    disk.faults = DiskFaults(read_error=1.0, write_error=1.0)
    with pytest.raises(StorageError, match="Input/output error") as caught:
        file.read(0, 1)
    assert not caught.value.fatal
    with pytest.raises(StorageError, match="Input/output error"):
        file.write(0, b"n" * 100)
    disk.faults = None
    data = file.read(0, 100)
    assert data == (b"n" * data.count(b"n")).ljust(100, b"o")
    assert (disk.injected["read_error"], disk.injected["write_error"]) == (1, 1)


def test_a_disk_becomes_full_and_has_room_again() -> None:
    disk = machine()
    disk.capacity_bytes = 1_000
    file = disk.open("/d/f", create=True)
    file.write(0, bytes(600))
    assert disk.free_bytes("/d") == 400
    file.write(100, bytes(500))
    assert disk.free_bytes("/d") == 400, "writing over takes no room"
    for call in (
        lambda: file.write(500, b"x" * 600),
        lambda: file.fill_zeros(500, 1_100),
        lambda: file.truncate(1_001),
    ):
        with pytest.raises(DiskFullError, match="free space") as caught:
            call()
        assert not caught.value.fatal
    assert file.size() == 1_000
    assert file.read(490, 20) == bytes(20)
    assert disk.injected["full"] == 3
    other = disk.open("/d/g", create=True)
    with pytest.raises(DiskFullError):
        other.write(0, b"x")
    disk.remove("/d/f")
    assert disk.free_bytes("/d") == 1_000
    other.write(0, b"x")
    disk.open("/d/g", create=True).close()
    assert disk.free_bytes("/d") == 1_000
    disk.sync_directory("/d")
    disk.power_cut()
    assert disk.free_bytes("/d") == 1_000 - len(content(disk, "/d/g") or b"")


def test_bits_rot_on_the_medium() -> None:
    disk = machine()
    file = written(disk, "/d/f", b"\0" * S + b"\x10" * S)
    disk.rot("/d/f", S + 3, 0x81)
    assert file.read(S, 5) == b"\x10\x10\x10\x91\x10"
    file.write(0, b"n" * S)
    disk.rot("/d/f", 0, 1)
    assert file.read(0, 2) == b"nn", "what is to be written yet covers it"
    disk.settle(Outcome())
    assert (content(disk, "/d/f") or b"")[:3] == b"\1\0\0"
    with pytest.raises(StorageError, match="Invalid argument"):
        disk.rot("/d/f", 2 * S)
    with pytest.raises(StorageError, match="No such file"):
        disk.rot("/d/none", 0)
    before = content(disk, "/d/f") or b""
    path, offset = disk.rot_somewhere("/d") or ("", 0)
    after = content(disk, path) or b""
    assert [at for at in range(2 * S) if before[at] != after[at]] == [offset]
    assert disk.injected["sector_rotten"] == 3
    assert machine().rot_somewhere("/d") is None


def test_misdirected_writes_land_elsewhere_and_are_not_told() -> None:
    elsewhere = 0
    for seed in range(50):
        disk = machine(seed)
        file = written(disk, "/d/f", b"o" * 4 * S)
        disk.faults = DiskFaults(write_misdirected=1.0)
        file.write(S, b"n" * S)
        file.sync()
        data = file.read(0, 9 * S)
        assert len(data) == 4 * S
        assert data.count(b"n") == S
        elsewhere += data[S : 2 * S] != b"n" * S
        assert disk.injected["write_misdirected"] == 1
    assert elsewhere > 20


# Copies, and repetition


def test_a_fork_goes_its_own_way() -> None:
    disk = machine()
    file = written(disk, "/d/f", b"o" * S)
    file.write(0, b"n" * S)
    disk.open("/d/g", create=True).close()
    lock = disk.lock("/d/LOCK")
    image = disk.fork(Random(2))
    image.lock("/d/LOCK")
    image.settle(Outcome())
    assert image.list("/d") == ["f"]
    assert content(image, "/d/f") == b"o" * S
    image.remove("/d/f")
    assert disk.list("/d") == ["LOCK", "f", "g"]
    assert file.read(0, S) == b"n" * S
    lock.release()


PROGRAM = """
from random import Random
from raftkv.simulation.disk import DiskFaults, SimDisk
from raftkv.errors import StorageError
import hashlib
digest = hashlib.sha256()
disk = SimDisk(Random(5), faults=DiskFaults(.02, .02, .02, .02))
disk.make_directory("/data/wal")
random = Random(6)
for step in range(3000):
    path = random.choice(["/data/wal/", "/data/"]) + random.choice("abcdef")
    try:
        file = disk.open(path, create=not disk.exists(path), write=True)
        file.write(random.randrange(9000), random.randbytes(random.randrange(1, 3000)))
        if random.random() < .5:
            file.sync()
        digest.update(file.read(0, 99999))
        if random.random() < .1:
            disk.remove(path)
        if random.random() < .1:
            disk.sync_directory("/data")
    except StorageError as error:
        digest.update(error.message.encode())
    if step % 50 == 0:
        disk.power_cut() if random.random() < .5 else disk.crash()
        disk.make_directory("/data/wal")
        disk.rot_somewhere("/data")
print(digest.hexdigest(), disk.injected)
"""


def test_equal_seeds_give_equal_disks_under_any_hash_seed() -> None:
    told = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(told) == 1
    assert "'power_cut'" in told.pop()


# Under a member


def founding() -> Founding:
    return found(load_config({"name": "a", "data_dir": "/data"}, {}))


def opened(disk: SimDisk, tables: MemoryBackend | None = None) -> Opened:
    """A single member's files on `disk`."""
    backend = tables or MemoryBackend(disk=disk)
    first = founding()
    data = DataDir.open(disk, "/data")
    if data.identity is None:
        data.found(WalIdentity(first.cluster_id, first.member_id))
    return open_files(
        disk,
        data,
        founding=first,
        found_new=True,
        segment_bytes=64 << 10,
        tables=lambda path, disk: backend,
        spawn=None,
    )


def test_a_member_is_founded_and_recovered_on_it() -> None:
    disk = SimDisk(Random(1))
    member = opened(disk)
    assert member.machine.applied_index == 1
    assert [info.member_id for info in member.machine.members()] == [founding().member_id]
    assert (member.log.first_index(), member.log.last_index()) == (2, 1)
    identity = member.identity
    for end in (disk.crash, disk.power_cut):
        end()
        member = opened(disk)
        assert member.identity == identity
        assert member.machine.applied_index == 1
    member.wal.close()
    member.close(clean=True)
    assert opened(disk).machine.applied_index == 1


def test_a_rotten_log_is_refused() -> None:
    disk = SimDisk(Random(1))
    member = opened(disk)
    member.wal.close()
    member.close(clean=True)
    wal = join("/data/wal", disk.list("/data/wal")[0])
    disk.rot(wal, 40)
    with pytest.raises(CorruptionError, match="offset 0"):
        opened(disk)
