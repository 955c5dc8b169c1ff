"""Disks: what they do, and what their failures are called, the real one and the simulated one."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from raftkv.errors import DiskFullError, LockedError, StorageError
from raftkv.simulation.disk import SimDisk
from raftkv.storage.disk import (
    Disk,
    RealDisk,
    copy_range,
    fail,
    join,
    parent,
    read_file,
    replace_file,
)


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    """A disk where the folder `tmp_path` is empty."""
    if request.param == "real":
        return RealDisk()
    disk = SimDisk(Random(1))
    disk.make_directory(str(tmp_path))
    return disk


def test_reading_and_writing(disk: Disk, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    file = disk.open(path, create=True)
    file.write(3, b"abc")
    file.sync_data()
    file.sync()
    assert file.read(0, 100) == b"\0\0\0abc"
    assert file.read(4, 1) == b"b"
    assert file.read(6, 5) == b""
    assert file.size() == 6
    file.fill_zeros(4, 9)
    assert file.read(0, 20) == b"\0\0\0a" + bytes(5)
    file.truncate(4)
    assert file.size() == 4
    file.close()
    file.close()
    file = disk.open(path, create=True)
    assert file.size() == 0, "create empties"
    file.truncate(3)
    assert file.read(0, 9) == bytes(3)
    file.close()
    with pytest.raises(StorageError, match="Is a directory"):
        disk.open(str(tmp_path), write=True)
    disk.sync_directory(str(tmp_path))


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    RealDisk().open(str(tmp_path / "f"), create=True).close()
    assert os.stat(tmp_path / "f").st_mode & 0o777 == 0o600


def test_an_open_file_stays_itself(disk: Disk, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    replace_file(disk, path, b"old")
    file = disk.open(path)
    replace_file(disk, path, b"new")
    assert file.read(0, 9) == b"old"
    assert read_file(disk, path, 9) == b"new"
    disk.remove(path)
    assert file.read(0, 9) == b"old"
    file.close()


def test_closed_files_refuse(disk: Disk, tmp_path: Path) -> None:
    file = disk.open(str(tmp_path / "f"), create=True)
    file.close()
    for call in (
        lambda: file.read(0, 1),
        lambda: file.write(0, b"x"),
        lambda: file.fill_zeros(0, 1),
        lambda: file.truncate(1),
        file.size,
    ):
        with pytest.raises(StorageError, match="Bad file descriptor"):
            call()


def test_one_owner_at_a_time(disk: Disk, tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    lock = disk.lock(path)
    with pytest.raises(LockedError, match=r"in use by process \d+; stop it"):
        disk.lock(path)
    lock.release()
    lock.release()
    disk.lock(path).release()


def test_files_opened_for_reading_cannot_be_written(disk: Disk, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    replace_file(disk, path, b"old")
    file = disk.open(path)
    with pytest.raises(StorageError, match="write"):
        file.write(0, b"new")
    with pytest.raises(StorageError, match="Invalid argument"):
        file.truncate(1)
    file.close()
    assert read_file(disk, path, 3) == b"old"


def test_short_reads_and_writes_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read, real_write = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real_read(fd, min(size, 7), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real_write(fd, bytes(data)[:5], at))
    file = RealDisk().open(str(tmp_path / "f"), create=True)
    data = bytes(range(100))
    file.write(11, data)
    assert file.read(11, 100) == data
    assert file.read(11, 500) == data
    file.close()


def test_folders(disk: Disk, tmp_path: Path) -> None:
    deep = join(str(tmp_path), "a", "b")
    disk.make_directory(deep)
    disk.make_directory(deep)
    assert disk.directory_mode(deep) == 0o700
    assert disk.directory_mode(parent(deep)) == 0o700
    disk.set_directory_mode(deep, 0o750)
    assert disk.directory_mode(deep) == 0o750
    for name in ("z", "m", "a"):
        disk.open(join(deep, name), create=True).close()
    disk.rename(join(deep, "z"), join(deep, "b"))
    assert disk.list(deep) == ["a", "b", "m"]
    disk.remove(join(deep, "a"))
    assert not disk.exists(join(deep, "a"))
    assert disk.exists(deep)
    assert disk.free_bytes(deep) > 0
    assert parent("name") == "."
    with pytest.raises(StorageError, match="Not a directory"):
        disk.make_directory(join(deep, "b"))
    with pytest.raises(StorageError):
        disk.make_directory(join(deep, "b", "c"))


def test_files_and_folders_are_not_each_other(disk: Disk, tmp_path: Path) -> None:
    file, folder = str(tmp_path / "file"), str(tmp_path / "folder")
    replace_file(disk, file, b"x")
    disk.make_directory(folder)
    for call in (
        lambda: disk.open(folder, write=True),
        lambda: disk.remove(folder),
        lambda: disk.rename(file, folder),
        lambda: disk.lock(folder),
        lambda: disk.lock("/"),
    ):
        with pytest.raises(StorageError, match="Is a directory"):
            call()
    for call in (
        lambda: disk.list(file),
        lambda: disk.rename(folder, file),
        lambda: disk.sync_directory(file),
        lambda: disk.open(join(file, "below"), create=True),
    ):
        with pytest.raises(StorageError, match="Not a directory"):
            call()
    disk.rename(file, file)
    disk.rename(folder, join(str(tmp_path), "other"))
    assert disk.list(str(tmp_path)) == ["file", "other"]
    assert not disk.exists(join(file, "below"))


def test_failures_name_the_path_and_the_operation(disk: Disk, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for call in (
        lambda: disk.open(missing),
        lambda: disk.list(missing),
        lambda: disk.remove(missing),
        lambda: disk.rename(missing, missing),
        lambda: disk.directory_mode(missing),
        lambda: disk.set_directory_mode(missing, 0o700),
        lambda: disk.free_bytes(missing),
        lambda: disk.lock(join(missing, "LOCK")),
        lambda: read_file(disk, missing, 10),
    ):
        with pytest.raises(StorageError, match="No such file") as caught:
            call()
        assert missing in caught.value.message
        assert caught.value.facts["errno"] == errno.ENOENT
        assert not caught.value.fatal
    with pytest.raises(StorageError) as caught:
        disk.sync_directory(missing)
    assert caught.value.fatal


def test_failed_syncs_are_fatal(tmp_path: Path) -> None:
    disk = RealDisk()
    # A pipe cannot be synced.
    os.mkfifo(tmp_path / "pipe")
    file = disk.open(str(tmp_path / "pipe"), write=True)
    for call in (file.sync, file.sync_data):
        with pytest.raises(StorageError, match="sync") as caught:
            call()
        assert caught.value.fatal
    for call in (lambda: file.read(0, 1), lambda: file.truncate(1)):
        with pytest.raises(StorageError):
            call()
    file.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_has_a_name_of_its_own(number: int) -> None:
    with pytest.raises(DiskFullError, match="free space") as caught:
        fail(OSError(number, os.strerror(number)), "write", "/some/file")
    assert not caught.value.fatal
    with pytest.raises(StorageError) as other:
        fail(OSError(number, os.strerror(number)), "fsync", "/some/file", fatal=True)
    assert other.value.fatal
    assert not isinstance(other.value, DiskFullError)
    with pytest.raises(StorageError, match="odd"):
        fail(OSError("odd"), "write", "/some/file")


def test_the_kernels_refusal_to_grow_a_file_is_a_full_disk(tmp_path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from raftkv.storage.disk import RealDisk\n"
        "from raftkv.errors import DiskFullError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "file = RealDisk().open(sys.argv[1], create=True)\n"
        "try:\n"
        "    file.write(0, bytes(9000))\n"
        "except DiskFullError as error:\n"
        "    print('full', file.size())\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "f")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told == "full 5000\n"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000


def test_small_files_are_replaced_whole(disk: Disk, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    replace_file(disk, path, b"one")
    replace_file(disk, path, b"two")
    assert read_file(disk, path, 100) == b"two"
    assert disk.list(str(tmp_path)) == ["f"]
    with pytest.raises(StorageError, match="larger than 2"):
        read_file(disk, path, 2)


def test_copying_a_range(disk: Disk, tmp_path: Path) -> None:
    replace_file(disk, str(tmp_path / "a"), bytes(range(250)) * 40)
    source = disk.open(str(tmp_path / "a"))
    target = disk.open(str(tmp_path / "b"), create=True)
    copy_range(source, 50, 200, target, 4)
    assert target.read(0, 1000) == bytes(4) + bytes(range(50, 250))
    with pytest.raises(StorageError, match="too early"):
        copy_range(source, 9_000, 2_000, target, 0)
    source.close()
    target.close()


def test_machine_facts(disk: Disk) -> None:
    assert disk.boot_id() == disk.boot_id() != ""
    assert len(disk.random_bytes(8)) == 8
    assert disk.random_bytes(8) != disk.random_bytes(8)
