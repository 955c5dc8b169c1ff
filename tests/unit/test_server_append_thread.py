"""Whoever writes the log, the loop or its thread: in order, told once durable, nothing at the end
of a run or of a disk gets lost."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from raftkv.consensus.types import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    SnapshotMeta,
    StorageWrite,
)
from raftkv.errors import StorageError
from raftkv.server.append_thread import AppendThread, Written
from raftkv.server.store import StoreStats
from raftkv.server.sync_pace import SYNC_QUICK_SECONDS, SyncPace
from raftkv.storage.disk import RealDisk, RealFile, fail
from raftkv.storage.frames import WalIdentity
from raftkv.storage.wal import Wal

FOUNDING = SnapshotMeta(1, 1, ConfState(voters=(1,)))
LOOP = threading.main_thread().ident


class WatchedFile(RealFile):
    """Notes who syncs it; full or broken when told so."""

    syncs: list[int | None]
    full: list[bool]
    broken: list[bool]

    def write(self, offset: int, data: bytes) -> None:
        if self.full and self.full.pop():
            fail(OSError(errno.ENOSPC, "full"), "write", self.path)
        super().write(offset, data)

    def sync_data(self) -> None:
        if self.broken:
            fail(OSError(errno.EIO, "broken"), "fdatasync", self.path, fatal=True)
        self.syncs.append(threading.current_thread().ident)
        super().sync_data()


class WatchedDisk(RealDisk):
    def __init__(self) -> None:
        self.syncs: list[int | None] = []
        self.full: list[bool] = []
        self.broken: list[bool] = []

    def open(self, path: str, *, write: bool = False, create: bool = False) -> RealFile:
        opened = super().open(path, write=write, create=create)
        file = WatchedFile(path, opened._descriptor)
        file.syncs, file.full, file.broken = self.syncs, self.full, self.broken
        return file


class QuickDisk(SyncPace):
    """A disk whose syncs take a tenth of the bound, however busy the real one is just now."""

    def __init__(self) -> None:
        super().__init__()
        for _ in range(500):
            super().took(SYNC_QUICK_SECONDS / 10)

    def took(self, seconds: float) -> None:
        pass


def write(index: int, data: bytes = b"data") -> StorageWrite:
    entry = Entry(index, 1, EntryKind.BATCH, data)
    return StorageWrite((entry,), HardState(1, 1, 1), None, True, ())


class Log:
    """An append thread on a real disk, and what it told."""

    def __init__(self, folder: Path, pace: SyncPace) -> None:
        self.folder = str(folder / "wal")
        self.disk = WatchedDisk()
        wal, _ = self.open()
        wal.write((), None, FOUNDING)
        wal.sync()
        self.disk.syncs.clear()
        self.wal = wal
        self.stats = StoreStats()
        self.told: list[Any] = []
        self.may_wait = True
        self.news = asyncio.Event()
        self.thread = AppendThread(
            wal, asyncio.get_running_loop(), self.stats, pace,
            may_wait=lambda: self.may_wait,
            on_written=self._written, on_failed=self._tell, on_full=self._tell,
        )  # fmt: skip
        self.thread.start()

    def open(self) -> tuple[Wal, Any]:
        return Wal.open(
            self.disk, self.folder, identity=WalIdentity(7, 1), segment_bytes=1 << 20, spawn=None
        )

    def _written(self, written: Written) -> None:
        for one, _ in written:
            self._tell(one.entries[0].index)

    def _tell(self, what: Any) -> None:
        self.told.append(what)
        self.news.set()

    async def until(self, count: int) -> list[Any]:
        while len(self.told) < count:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 30)
        return self.told

    async def end(self) -> None:
        self.thread.end()
        await asyncio.to_thread(self.thread.join)


async def test_a_disk_that_nothing_is_known_of_is_waited_for_by_the_thread(tmp_path: Path) -> None:
    log = Log(tmp_path, SyncPace())
    log.thread.submit(write(2))
    assert await log.until(1) == [2]
    assert LOOP not in log.disk.syncs
    await log.end()


async def test_a_quick_disk_is_waited_for_by_the_loop_after_the_turn(tmp_path: Path) -> None:
    log = Log(tmp_path, QuickDisk())
    for index in range(2, 6):
        log.thread.submit(write(index))
        assert len(log.told) == index - 2, "never from within the call"
        await log.until(index - 1)
    assert log.told == [2, 3, 4, 5]
    assert log.disk.syncs == [LOOP] * 4
    assert log.stats.wal_fsyncs == 4
    await log.end()


async def test_order_is_kept_between_both(tmp_path: Path) -> None:
    log = Log(tmp_path, QuickDisk())
    log.thread.submit(write(2))
    log.thread.run(lambda wal: log.told.append(f"job after {wal._last_index}"))
    log.thread.submit(write(3))
    log.thread.submit(write(4))
    await log.until(4)
    assert [one for one in log.told if isinstance(one, int)] == [2, 3, 4]
    assert "job after 2" in log.told
    assert LOOP not in log.disk.syncs, "what has something behind it goes to the thread"
    await log.end()


async def test_after_a_long_sync_the_thread_takes_over(tmp_path: Path) -> None:
    pace = QuickDisk()
    log = Log(tmp_path, pace)
    SyncPace.took(pace, 1.0)
    log.thread.submit(write(2))
    await log.until(1)
    assert LOOP not in log.disk.syncs
    await log.end()


async def test_the_loop_waits_only_if_it_may(tmp_path: Path) -> None:
    log = Log(tmp_path, QuickDisk())
    log.may_wait = False
    log.thread.submit(write(2))
    await log.until(1)
    assert LOOP not in log.disk.syncs
    await log.end()


async def test_large_writes_and_new_segments_are_for_the_thread(tmp_path: Path) -> None:
    log = Log(tmp_path, QuickDisk())
    for index in range(2, 5):
        log.thread.submit(write(index, bytes(300 * 1024)))
        await log.until(index - 1)
    assert LOOP not in log.disk.syncs
    log.thread.submit(write(5, bytes(200 * 1024)))
    await log.until(4)
    assert LOOP not in log.disk.syncs, "there is not so much left of the segment"
    while log.thread._finished < log.thread._given:
        await asyncio.sleep(0)  # the thread tells of its work before it counts it as finished
    log.thread.submit(write(6, bytes(200 * 1024)))
    await log.until(5)
    assert log.disk.syncs[-1] == LOOP
    await log.end()


async def test_what_is_due_at_the_end_is_written(tmp_path: Path) -> None:
    log = Log(tmp_path, QuickDisk())
    log.thread.submit(write(2))
    await log.end()
    _, recovered = log.open()
    assert recovered.index.last_index == 2
    assert await log.until(1) == [2]


async def test_a_full_disk_is_waited_for_by_the_thread(tmp_path: Path) -> None:
    log = Log(tmp_path, QuickDisk())
    log.disk.full += [True, True]
    log.thread.submit(write(2))
    assert await log.until(3) == [True, False, 2]
    await log.end()


async def test_a_failed_sync_is_told_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    log = Log(tmp_path, QuickDisk())
    log.disk.broken.append(True)
    log.thread.submit(write(2))
    (error,) = await log.until(1)
    assert isinstance(error, StorageError) and error.fatal
    log.thread.submit(write(3))
    assert all(isinstance(one, StorageError) for one in await log.until(2))
    log.disk.broken.clear()
    await log.end()


@pytest.mark.parametrize(
    ("syncs", "quick"),
    [
        ([], False),
        ([0.0001] * 100, False),
        ([0.0001] * 200, True),
        ([0.0001] * 200 + [0.02], True),
        ([0.0001] * 200 + [1.0], False),
        ([0.0001] * 200 + [1.0] + [0.0001] * 150, False),
        ([0.0001] * 200 + [1.0] + [0.0001] * 200, True),
        ([0.002] * 1000, False),
    ],
)
def test_pace(syncs: list[float], quick: bool) -> None:
    pace = SyncPace()
    for seconds in syncs:
        pace.took(seconds)
    assert pace.quick is quick
