"""What only the LMDB backend has: files, room, kills."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raftkv.errors import CorruptionError, DiskFullError, StorageError
from raftkv.limits import MIB
from raftkv.storage.backend import LmdbBackend, MapGrownError

KILLED = """
import sys
from raftkv.storage.backend import LmdbBackend
backend = LmdbBackend(sys.argv[1])
stamp = backend.get(0, b"applied")
count = int(stamp) if stamp else 0
print(count, flush=True)
while True:
    count += 1
    with backend.write() as change:
        for item in range(40):
            key = b"%d" % (count * 7919 * (item + 1) % 3000)
            change.put(1, key * (item % 90 + 1), b"%d" % count * 30)
            change.append(2, count.to_bytes(8, "big") + bytes([item]), key)
        if count > 50:
            for item in range(40):
                change.delete(2, (count - 50).to_bytes(8, "big") + bytes([item]))
        change.put(0, b"applied", b"%d" % count)
    if count % 50 == 0:
        print(count, flush=True)
"""


def expected(count: int) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """The tables after `count` transactions of the program above."""
    current: dict[bytes, bytes] = {}
    history: dict[bytes, bytes] = {}
    for turn in range(1, count + 1):
        for item in range(40):
            key = b"%d" % (turn * 7919 * (item + 1) % 3000)
            current[key * (item % 90 + 1)] = b"%d" % turn * 30
            if turn > count - 50:
                history[turn.to_bytes(8, "big") + bytes([item])] = key
    return current, history


def test_writers_that_are_killed_leave_whole_transactions(tmp_path: Path) -> None:
    chance = random.Random(8)
    path = tmp_path / "tables"
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(chance.randrange(2, 5)):
            reported = int(child.stdout.readline())
        threading.Event().wait(chance.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        backend = LmdbBackend(str(path))
        stamp = backend.get(0, b"applied")
        assert stamp is not None
        assert int(stamp) >= reported, "a committed transaction survives the process"
        current, history = expected(int(stamp))
        with backend.read() as view:
            assert dict(view.scan(1, b"", None)) == current
            assert dict(view.scan(2, b"", None)) == history
        backend.close()


def test_a_view_stays_as_it_was_while_others_write(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path / "t"))
    with backend.write() as change:
        change.put(1, b"a", b"1")
    with backend.read() as view:
        with backend.write() as change:
            change.put(1, b"a", b"2")
        assert view.get(1, b"a") == b"1"
    assert backend.get(1, b"a") == b"2"
    backend.close()


def test_a_copy_is_consistent_beside_writes(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path / "t"))
    with backend.write() as change:
        for index in range(20_000):
            change.put(1, b"%06d" % index, b"0" * 200)
    image = tmp_path / "image"
    copier = threading.Thread(target=backend.pin().copy_to, args=(str(image), 0))
    copier.start()
    turn = 0
    while copier.is_alive() or turn < 3:
        turn += 1
        with backend.write() as change:
            for index in range(0, 20_000, 100):
                change.put(1, b"%06d" % index, b"%d" % (turn % 10) * 200)
    copier.join()
    other = LmdbBackend(str(tmp_path / "other"))
    other.stage(str(image), 0, image.stat().st_size)
    other.install()
    with other.read() as view:
        values = {value for key, value in view.scan(1, b"", None) if int(key) % 100 == 0}
        assert len(list(view.scan(1, b"", None))) == 20_000
    assert len(values) == 1, "all of one transaction or nothing of it"
    backend.close()
    other.close()


def test_a_full_map_grows_and_the_block_passes_when_run_again(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path / "t"), map_bytes=MIB, allocate_bytes=MIB)

    def block(size: int) -> None:
        with backend.write() as change:
            for index in range(size):
                change.put(1, b"%06d" % index, bytes(3000))

    block(10)
    with pytest.raises(MapGrownError, match="has grown"):
        block(20_000)
    with backend.read() as view:
        assert len(list(view.scan(1, b"", None))) == 10
    block(20_000)
    with backend.read() as view:
        assert len(list(view.scan(1, b"", None))) == 20_000
    backend.close()


def test_a_full_disk_is_known_early_and_refused_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = LmdbBackend(str(tmp_path / "t"), allocate_bytes=0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)
    count = 0
    with pytest.raises(DiskFullError, match="free space"):
        while True:
            with backend.write() as change:
                change.put(1, b"%06d" % count, bytes(MIB))
            count += 1
            assert backend.disk_full is not None or count < 3, "known at once"
    assert 25 < count < 50, "a reserve was left"
    backend.look_for_space()
    assert backend.disk_full is not None
    monkeypatch.setattr(os, "posix_fallocate", real)
    backend.look_for_space()
    assert backend.disk_full is None, "found without a write"
    with backend.write() as change:
        assert change.get(1, b"%06d" % (count - 1)) == bytes(MIB)
        change.put(1, b"more", b"room")
    assert backend.disk_full is None
    monkeypatch.setattr(os, "posix_fallocate", full)
    backend.close()
    again = LmdbBackend(str(tmp_path / "t"))
    assert again.get(1, b"more") == b"room", "a full disk does not keep anyone from starting"
    again.close()


def test_blocks_are_there_before_pages_are_touched(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path / "t"))
    assert os.stat(tmp_path / "t" / "data.mdb").st_blocks * 512 >= 48 * MIB
    backend.close()


def test_damaged_tables_are_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"not LMDB at all " * 1000)
    with pytest.raises(CorruptionError, match="remove this folder"):
        LmdbBackend(str(folder))


def test_a_second_environment_is_refused(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path / "t"))
    with pytest.raises(StorageError):
        LmdbBackend(str(tmp_path / "t"))
    backend.close()
    backend.close()


def test_an_interrupted_install_leaves_the_old_state(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path / "t"))
    with backend.write() as change:
        change.put(1, b"a", b"1")
    backend.close()
    (tmp_path / "t" / "install.tmp").write_bytes(b"half an image")
    backend = LmdbBackend(str(tmp_path / "t"))
    assert backend.get(1, b"a") == b"1"
    assert not (tmp_path / "t" / "install.tmp").exists()
    backend.close()


def test_bad_calls_are_storage_errors(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path / "t"))
    with pytest.raises(StorageError), backend.write() as change:
        change.put(1, b"", b"empty keys do not exist")
    with pytest.raises(StorageError):
        backend.pin().copy_to(str(tmp_path / "missing" / "image"))
    with backend.write() as change:
        change.put(1, b"a", b"1")
    backend.sync()
    backend.close()
    with pytest.raises(StorageError), backend.write():
        pass
    with pytest.raises(StorageError):
        backend.sync()
