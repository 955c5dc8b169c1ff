"""A sample of crash images, and the proof that they find what they are for."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from raftkv.consensus.types import Entry, HardState, SnapshotMeta
from raftkv.simulation.disk import SimDisk
from raftkv.storage import recovery
from raftkv.storage.datadir import DataDir
from raftkv.storage.disk import Disk, File
from raftkv.storage.logindex import LogIndex
from raftkv.storage.wal import Wal, WriteReceipt
from tests.crash.images import only, run
from tests.crash.lives import KILLED, KILLED_WRITING, POWER_CUT, Life
from tests.crash.outcomes import PowerCuts
from tests.crash.recording import RecordingDisk, Replay
from tests.crash.workload import Plants

ENOUGH = 600
"""Images that show any bug below; most show after a few dozen."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Every recovery from a crash has something to tell."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_a_sample_of_images_holds() -> None:
    report = run(400, seed=1)
    assert not report.violations, report.text(1)
    assert set(report.images) == {KILLED, KILLED_WRITING, POWER_CUT}
    assert set(report.lives) == {"single", "follower", "joiner"}
    assert report.boots > report.images.total() == 400


def test_the_command_tells_what_it_did() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.images", "--images", "40", "--seed", "5"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 images, ")
    assert "violations: 0" in done.stdout


# Planted bugs

UNLIKE = "nothing like it was written"


class DroppingDisk:
    """Passes on everything but some syncs."""

    def __init__(self, disk: Disk, method: str, suffix: str) -> None:
        self._disk = disk
        self._method = method
        self._suffix = suffix

    def __getattr__(self, name: str) -> object:
        return getattr(self._disk, name)

    def open(self, path: str, *, write: bool = False, create: bool = False) -> File:
        file = self._disk.open(path, write=write, create=create)
        if (write or create) and path.endswith(self._suffix):
            setattr(file, self._method, lambda: None)
        return file

    def sync_directory(self, path: str) -> None:
        if self._method != "sync_directory" or not path.endswith(self._suffix):
            self._disk.sync_directory(path)


def dropping(method: str, suffix: str) -> Plants:
    def wrap(disk: Disk) -> Disk:
        return DroppingDisk(disk, method, suffix)  # type: ignore[return-value]

    return Plants(wrap=wrap)


@pytest.mark.parametrize(
    ("plants", "found"),
    [
        pytest.param(Plants(acknowledges_early=True), UNLIKE, id="acknowledged-before-the-sync"),
        pytest.param(dropping("sync_data", ""), "frames that the next", id="log"),
        pytest.param(dropping("sync", "next.tmp"), "not a raftkv log segment", id="segments"),
        pytest.param(dropping("sync_directory", "/wal"), "log of this member is gone", id="names"),
        pytest.param(dropping("sync_directory", "/snapshots"), "no snapshot", id="snapshot-names"),
        pytest.param(dropping("sync", "FORMAT.tmp"), "FORMAT: unreadable", id="small-files"),
        pytest.param(dropping("sync_directory", "/raftkv"), "not a raftkv data", id="founding"),
    ],
)
def test_a_member_that_does_not_sync_is_found_out(plants: Plants, found: str) -> None:
    report = run(ENOUGH, seed=1, plants=plants, violations_max=5)
    assert any(text.startswith(POWER_CUT) and found in text for _, text in report.violations)


def trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DataDir, "tables_trusted", lambda self: True)
    monkeypatch.setattr(DataDir, "discard_tables", lambda self: None)


def ghosts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ghosts(LogIndex):
        """Replays an entry over an older one, and leaves what followed that (etcd#22442)."""

        __slots__ = ("at",)

        def cut_from(self, index: int) -> None:
            self.at = index - self.base_index - 1

        def add(self, position: int, length: int, crc: int, term: int, kind: int) -> None:
            at = getattr(self, "at", len(self))
            row = (position, length, crc, term, kind)
            if at >= len(self):
                super().add(*row)
            else:
                for column, item in zip(self.columns(), row, strict=True):
                    column[at] = item
            self.at = at + 1

        def reset(self, base_index: int, base_term: int) -> None:
            super().reset(base_index, base_term)
            self.at = 0

        @property
        def last_index(self) -> int:
            """Where the next entry is expected."""
            return self.base_index + min(getattr(self, "at", len(self)), len(self))

    def settle(state: recovery.ScanState) -> None:
        index = state.recovered.index
        if isinstance(index, Ghosts):
            whole = LogIndex(index.base_index, index.base_term)
            for old, new in zip(index.columns(), whole.columns(), strict=True):
                new.extend(old)
            state.recovered.index = whole
        real_settle(state)

    real_settle = recovery._settle
    monkeypatch.setattr(recovery, "LogIndex", Ghosts)
    monkeypatch.setattr(recovery, "_settle", settle)


def forget_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Wal.write

    def write(
        self: Wal,
        entries: Sequence[Entry],
        hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None,
    ) -> WriteReceipt:
        return real(self, entries, hard_state if entries or snapshot else None, snapshot)

    monkeypatch.setattr(Wal, "write", write)


def skip_the_torn_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_proof(*args: object) -> int:
        return 0

    monkeypatch.setattr(recovery, "find_proof", find_proof)


def forget_to_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def __ne__(self, other: object) -> bool:
            return False

    monkeypatch.setattr(recovery, "crc_extend", lambda chain, data: Same())


def release_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Wal.release

    def release(self: Wal, index: int) -> int:
        for segment in self._segments[:-1]:
            segment.live_last = 0
        return real(self, index)

    monkeypatch.setattr(Wal, "release", release)


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (trust, "the rows at index"),
        (ghosts, UNLIKE),
        (forget_votes, UNLIKE),
        (skip_the_torn_end, "vouches for it"),
        (forget_to_verify, "reads back differently"),
        (release_too_much, "older segments are missing"),
    ],
)
def test_a_bug_is_found_and_found_again_by_its_name(
    plant: Callable[[pytest.MonkeyPatch], None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    report = run(ENOUGH, seed=1, violations_max=5)
    name, text = next(one for one in report.violations if found in one[1] and "*" not in one[0])
    assert f"--seed 1 --only {name}" in report.text(1)
    assert (name, text) in only(name, 1).violations


# The machinery


def test_a_replay_makes_the_same_disk() -> None:
    names = set()
    for number in range(3):
        life = Life(number, seed=9)
        replay = Replay(SimDisk(Random(0)))
        for operation in life.member.disk.operations:
            replay.apply(operation)
            names.add(operation.name)
        assert contents(replay.disk) == contents(life.member.disk.inner)
        assert replay.disk.boot_id() == life.member.disk.inner.boot_id()
    assert names >= {
        "open", "write", "fill_zeros", "sync", "sync_data", "rename", "remove", "sync_directory",
        "make_directory", "lock", "crash", "settle",
    }  # fmt: skip


def contents(disk: SimDisk) -> dict[str, bytes]:
    found = {}
    for path, node in disk._files():
        found[path] = node.read(0, node.length)
    return found


def test_few_outcomes_are_all_tried() -> None:
    disk = RecordingDisk(SimDisk(Random(1)))
    disk.make_directory("/d")
    disk.sync_directory("/")
    file = disk.open("/d/f", create=True)
    file.write(0, bytes(1_024))
    file.sync()
    disk.sync_directory("/d")
    cuts = PowerCuts(disk.inner, 8)
    assert cuts.count == 1
    file.write(0, b"n" * 1_024)
    cuts = PowerCuts(disk.inner, 8)
    assert cuts.count == 8
    seen = set()
    for number in range(cuts.count):
        image = disk.inner.fork(Random(1))
        image.settle(cuts.outcome(number, Random(number)))
        data = image.open("/d/f").read(0, 1_024)
        seen.add((data[0], data[1_023]))
    assert seen >= {(0, 0), (0, 110), (110, 0), (110, 110)}
    file.truncate(9_000)
    file.write(1_024, b"n" * 7_000)
    assert PowerCuts(disk.inner, 8).count == 8
