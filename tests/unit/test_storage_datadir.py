"""The data directory: mode, lock, format, and whether the tables are trusted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from raftkv.errors import (
    CorruptionError,
    FormatError,
    InvariantViolation,
    LockedError,
    StorageError,
)
from raftkv.simulation.disk import SimDisk
from raftkv.simulation.inodes import Outcome
from raftkv.storage.datadir import DataDir
from raftkv.storage.disk import RealDisk, fail
from raftkv.storage.frames import WalIdentity
from tests.crash.recording import EndingDisk, PowerGone

IDENTITY = WalIdentity(0xC1, 0xA1)


class Machine(RealDisk):
    """A real disk in a machine whose boot id can change."""

    __slots__ = ("boot",)

    def __init__(self, boot: str = "first") -> None:
        self.boot = boot

    def boot_id(self) -> str:
        return self.boot


def founded(path: Path, disk: RealDisk | None = None) -> DataDir:
    directory = DataDir.open(disk or Machine(), str(path))
    directory.found(IDENTITY)
    return directory


def with_tables(path: Path) -> Path:
    table = path / "tables" / "data.mdb"
    table.write_bytes(b"rows")
    return table


def test_a_new_directory_is_private_and_remembers_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    directory = DataDir.open(RealDisk(), str(path))
    assert directory.identity is None
    assert path.stat().st_mode & 0o777 == 0o700
    directory.found(IDENTITY)
    assert all((path / name).is_dir() for name in ("wal", "snapshots", "tables"))
    with pytest.raises(InvariantViolation):
        directory.found(IDENTITY)
    directory.close()
    directory.close()
    again = DataDir.open(RealDisk(), str(path))
    assert again.identity == IDENTITY
    again.expect(IDENTITY)
    for other in (WalIdentity(0xC1, 2), WalIdentity(2, 0xA1)):
        with pytest.raises(FormatError, match="belongs to member 00000000000000a1 of cluster"):
            again.expect(other)
    again.close()


def test_an_open_mode_is_tightened_and_said(tmp_path: Path) -> None:
    founded(tmp_path / "d").close()
    (tmp_path / "d").chmod(0o755)
    directory = DataDir.open(Machine(), str(tmp_path / "d"))
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert "mode was 755" in directory.notes[0]
    directory.close()


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    directory = founded(tmp_path / "d", RealDisk())
    program = (
        "import sys\n"
        "from raftkv.storage.datadir import DataDir\n"
        "from raftkv.storage.disk import RealDisk\n"
        "from raftkv.errors import LockedError\n"
        "try:\n"
        "    DataDir.open(RealDisk(), sys.argv[1])\n"
        "except LockedError as error:\n"
        "    print(error)\n"
        "else:\n"
        "    print('opened', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "d")]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True, input="").stdout
    assert f"in use by process {os.getpid()};" in told
    directory.close()
    child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "opened\n"
    with pytest.raises(LockedError, match=f"in use by process {child.pid};"):
        DataDir.open(RealDisk(), str(tmp_path / "d"))
    child.kill()
    child.communicate()
    DataDir.open(RealDisk(), str(tmp_path / "d")).close()


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FormatError, match="not empty and is not a raftkv data directory"):
        DataDir.open(Machine(), str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_an_interrupted_first_start_can_be_repeated(tmp_path: Path) -> None:
    DataDir.open(Machine(), str(tmp_path / "d")).close()
    (tmp_path / "d" / "FORMAT.tmp").write_text("{")
    directory = founded(tmp_path / "d")
    assert not (tmp_path / "d" / "FORMAT.tmp").exists()
    directory.close()


def test_a_first_start_may_end_at_any_point() -> None:
    """What is founded behind that survives a power cut, with all folders above it."""
    ends_at = 0
    while True:
        machine = SimDisk(Random(1))
        machine.make_directory("/srv")
        machine.sync_directory("/")
        disk = EndingDisk(machine, ends_at)
        try:
            directory = DataDir.open(disk, "/srv/new/deep/data")
            directory.found(IDENTITY)
            directory.begin_run()
        except PowerGone:
            machine.crash()
            directory = DataDir.open(machine, "/srv/new/deep/data")
            if directory.identity is None:
                directory.found(IDENTITY)
            directory.begin_run()
            machine.settle(Outcome())
            assert DataDir.open(machine, "/srv/new/deep/data").identity == IDENTITY
        else:
            break
        ends_at += 1
    assert ends_at > 12


def test_folders_with_our_names_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    DataDir.open(RealDisk(), str(tmp_path)).close()
    (tmp_path / "wal" / "letter.txt").write_text("dear")
    with pytest.raises(FormatError, match="not empty and is not a raftkv data directory"):
        DataDir.open(RealDisk(), str(tmp_path))


def test_a_parent_that_may_not_be_read_is_no_obstacle() -> None:
    class Guarded(SimDisk):
        def sync_directory(self, path: str) -> None:
            if path == "/":
                fail(PermissionError(errno.EACCES, "Permission denied"), "open", path, fatal=True)
            super().sync_directory(path)

    machine = Guarded(Random(1))
    machine.make_directory("/home")
    DataDir.open(machine, "/home/data").found(IDENTITY)
    with pytest.raises(StorageError, match="Permission denied"):
        DataDir.open(machine, "/data")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 3}, "data format 3 of a newer raftkv"),
        ({"format": 0}, "data format 0 of a older raftkv"),
        ({"program": "other"}, "not written by raftkv"),
        ({"format": "1"}, "not written by raftkv"),
    ],
)
def test_other_formats_are_refused_in_words(
    tmp_path: Path, change: dict[str, object], text: str
) -> None:
    founded(tmp_path / "d").close()
    file = tmp_path / "d" / "FORMAT"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(FormatError, match=text):
        DataDir.open(Machine(), str(tmp_path / "d"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"program":"raftkv","format":1}',
     b'{"program":"raftkv","format":1,"cluster_id":"x","member_id":"1"}', b"[" * 4000,
     b'{"program":"raftkv","format":1,"cluster_id":"00000000000000c1","member_id":"-1"}',
     b'{"program":"raftkv","format":1,"cluster_id":"%b","member_id":"1"}' % (b"f" * 40)],
)  # fmt: skip
def test_a_damaged_format_file_is_refused(tmp_path: Path, content: bytes) -> None:
    founded(tmp_path / "d").close()
    (tmp_path / "d" / "FORMAT").write_bytes(content)
    with pytest.raises(CorruptionError, match="FORMAT"):
        DataDir.open(Machine(), str(tmp_path / "d"))
    with pytest.raises(CorruptionError):
        DataDir.open(Machine(), str(tmp_path / "d"))


# Trust


def test_fresh_tables_are_trusted(tmp_path: Path) -> None:
    directory = founded(tmp_path / "d")
    assert directory.tables_trusted()
    directory.begin_run()
    with pytest.raises(InvariantViolation):
        directory.begin_run()
    directory.close()


def test_a_killed_process_leaves_trusted_tables(tmp_path: Path) -> None:
    directory = founded(tmp_path / "d")
    directory.begin_run()
    table = with_tables(tmp_path / "d")
    directory.close()
    directory = DataDir.open(Machine(), str(tmp_path / "d"))
    assert directory.tables_trusted()
    directory.begin_run()
    assert table.exists()
    directory.close()


def test_a_restarted_machine_leaves_tables_that_are_rebuilt(tmp_path: Path) -> None:
    directory = founded(tmp_path / "d")
    directory.begin_run()
    table = with_tables(tmp_path / "d")
    directory.close()
    directory = DataDir.open(Machine("second"), str(tmp_path / "d"))
    assert not directory.tables_trusted()
    assert "rebuilt" in directory.notes[0]
    directory.close()
    directory = DataDir.open(Machine("second"), str(tmp_path / "d"))
    assert not directory.tables_trusted(), "looking at it does not make it better"
    directory.begin_run()
    assert not table.exists()
    directory.close()
    directory = DataDir.open(Machine("second"), str(tmp_path / "d"))
    assert directory.tables_trusted(), "what has been rebuilt since then is good"
    directory.close()


def test_after_a_clean_end_a_restarted_machine_trusts_its_tables_once(tmp_path: Path) -> None:
    directory = founded(tmp_path / "d")
    directory.begin_run()
    table = with_tables(tmp_path / "d")
    calls: list[bool] = []
    directory.end_run(lambda: calls.append("true" in (tmp_path / "d" / "RUN").read_text()))
    assert calls == [False], "synced before it is noted"
    with pytest.raises(InvariantViolation):
        directory.end_run(lambda: None)
    directory.close()
    directory = DataDir.open(Machine("second"), str(tmp_path / "d"))
    assert directory.tables_trusted()
    directory.begin_run()
    assert table.exists()
    directory.close()
    directory = DataDir.open(Machine("third"), str(tmp_path / "d"))
    assert not directory.tables_trusted()
    directory.close()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"])
def test_tables_without_a_readable_note_are_not_trusted(
    tmp_path: Path, content: bytes | None
) -> None:
    directory = founded(tmp_path / "d")
    directory.begin_run()
    with_tables(tmp_path / "d")
    directory.close()
    run = tmp_path / "d" / "RUN"
    run.unlink() if content is None else run.write_bytes(content)
    directory = DataDir.open(Machine(), str(tmp_path / "d"))
    assert not directory.tables_trusted()
    directory.close()
