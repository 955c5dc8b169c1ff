"""Who writes and fsyncs the log: one thread, or the loop itself while the disk is quick.

Writes are taken in order, all that wait at once, and share one fdatasync (group commit). What may
be said once they are durable is in the writes themselves (`StorageWrite.replies`), so nothing can
be acknowledged ahead of the disk. After a failed write or fsync nothing is known about the file's
state any more (the kernel may have dropped the pages and called them clean), so nothing is written
again and the member must end. A full disk is different: nothing was written, and the same writes
are tried again until there is space.

Handing a write to a thread and its end back costs more than a quick disk takes to sync it. So the
loop writes by itself while the thread has nothing to do, recent syncs were quick (`SyncPace`) and
the owner allows it (`may_wait`); see docs/adr/0009-quick-syncs-on-the-loop.md.

The work itself is `append_steps`, which has no thread and no clock, so that a simulation can put
time, and crashes, between its steps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from queue import SimpleQueue

from raftkv.consensus.types import StorageWrite
from raftkv.errors import DiskFullError
from raftkv.server.store import StoreStats
from raftkv.server.sync_pace import SyncPace
from raftkv.storage.wal import Wal, WriteReceipt

Written = list[tuple[StorageWrite, WriteReceipt]]
Job = Callable[[Wal], None]

FULL_DISK_RETRY_SECONDS = 0.25


class Pause(Enum):
    """Where `append_steps` stops on its way."""

    SYNC = "sync"
    """Everything is written, nothing of it is durable; going on syncs."""
    FULL = "full"
    """The disk is full; going on tries the same write again."""


def append_steps(wal: Wal, items: Sequence[StorageWrite | Job]) -> Iterator[Pause | Written]:
    """Carry out writes and jobs in order. Yields writes, with their receipts, once all of them
    that came before the next job are durable, and the pauses between.

    Raises what the log raises; it can not be used any more then.
    """
    written: Written = []
    for item in items:
        if not isinstance(item, StorageWrite):
            yield from _made_durable(wal, written)
            written = []
        while not _done(wal, item, written):
            yield Pause.FULL
    yield from _made_durable(wal, written)


def _made_durable(wal: Wal, written: Written) -> Iterator[Pause | Written]:
    if any(write.must_sync for write, _ in written):
        yield Pause.SYNC
        wal.sync()
    if written:
        yield written


def _done(wal: Wal, item: StorageWrite | Job, written: Written) -> bool:
    """Whether there was space for it."""
    try:
        if isinstance(item, StorageWrite):
            receipt = wal.write(item.entries, item.hard_state, item.snapshot)
            written.append((item, receipt))
        else:
            item(wal)
    except DiskFullError:
        return False
    return True


def monotonic_ms() -> int:
    """Monotonic milliseconds."""
    return time.monotonic_ns() // 1_000_000


class AppendThread:
    """Owns the write side of the log. All but `join` is called on the loop."""

    def __init__(
        self,
        wal: Wal,
        loop: asyncio.AbstractEventLoop,
        stats: StoreStats,
        pace: SyncPace,
        *,
        may_wait: Callable[[], bool],
        on_written: Callable[[Written], None],
        on_failed: Callable[[BaseException], None],
        on_full: Callable[[bool], None],
    ) -> None:
        self._wal = wal
        self._loop = loop
        self._stats = stats
        self._may_wait = may_wait
        self._on_written = on_written
        self._on_failed = on_failed
        self._on_full = on_full
        self._full = False
        self.busy_since_ms: int | None = None
        """Since when it is at one write or sync, in monotonic milliseconds. Read on the loop."""
        self._pace = pace
        self._due: StorageWrite | None = None
        """What the loop is about to write by itself."""
        self._given = 0
        self._finished = 0
        """Items that the thread was given; those that it has finished, which it counts itself."""
        self._closing = threading.Event()
        self._queue: SimpleQueue[StorageWrite | Job | None] = SimpleQueue()
        self._worker = threading.Thread(target=self._run, name="raftkv-append", daemon=True)

    def start(self) -> None:
        """Start taking writes."""
        self._worker.start()

    def submit(self, write: StorageWrite) -> None:
        """Queue a write. `on_written` is called on the loop once it is durable, in this order."""
        if self._due is None and self._finished == self._given and self._quick(write):
            # In a later turn: what this one has for peers and clients leaves before the sync.
            self._due = write
            self._loop.call_soon(self._write_due)
        else:
            self._give_due()
            self._give(write)

    def run(self, job: Job) -> None:
        """Queue work on the log itself, such as releasing old segments, behind all writes."""
        self._give_due()
        self._give(job)

    def end(self) -> None:
        """Take nothing more. What is queued is finished, then the log is closed: see `join`."""
        self._closing.set()
        self._give_due()
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the end: one fsync at most."""
        if self._worker.is_alive():
            self._worker.join()

    # -- on the loop -------------------------------------------------------------------------------

    def _quick(self, write: StorageWrite) -> bool:
        """Whether this takes one small write and one sync, the disk is quick at that, and nobody
        else is hurt if it is not."""
        return (
            self._pace.quick
            and self._may_wait()
            and write.snapshot is None
            and self._wal.is_short(write.entries)
        )

    def _write_due(self) -> None:
        write, self._due = self._due, None
        if write is None:
            return  # The thread was given it, with something behind it.
        try:
            written = next(self._carry_out([write]))
        except BaseException as error:
            self._on_failed(error)
            return
        if written is None:
            self._give(write)
        else:
            # What the thread told of earlier writes is in the loop's queue before this call.
            self._on_written(written)

    def _give_due(self) -> None:
        write, self._due = self._due, None
        if write is not None:
            self._give(write)

    def _give(self, item: StorageWrite | Job) -> None:
        self._given += 1
        self._queue.put(item)

    # -- on either ---------------------------------------------------------------------------------

    def _carry_out(self, items: Sequence[StorageWrite | Job]) -> Iterator[Written | None]:
        """As `append_steps`, with the syncs timed; None: the disk is full."""
        began: float | None = None
        self.busy_since_ms = monotonic_ms()
        try:
            for step in append_steps(self._wal, items):
                self.busy_since_ms = monotonic_ms()
                if step is Pause.SYNC:
                    began = time.perf_counter()
                elif step is Pause.FULL:
                    self.busy_since_ms = None
                    yield None
                    self.busy_since_ms = monotonic_ms()
                else:
                    if began is not None:
                        seconds = time.perf_counter() - began
                        self._pace.took(seconds)
                        self._stats.wal_fsync_seconds += seconds
                        self._stats.wal_fsyncs += 1
                        self._stats.wal_fsync_times.observe(seconds)
                        began = None
                    yield step
        finally:
            self.busy_since_ms = None

    # -- on the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        queue = self._queue
        while True:
            taken = [queue.get()]
            while not queue.empty():
                taken.append(queue.get())
            try:
                done = self._work([item for item in taken if item is not None])
                if not done or None in taken:
                    self._wal.close()
                    return
            except BaseException as error:
                self._tell(self._on_failed, error)
                return
            self._finished += len(taken)

    def _work(self, items: list[StorageWrite | Job]) -> bool:
        """Whether all was done; False: closing, so nobody waits for the rest."""
        for written in self._carry_out(items):
            if written is None:
                self._tell_full(True)
                if self._closing.wait(FULL_DISK_RETRY_SECONDS):
                    return False
            else:
                self._tell_full(False)
                self._tell(self._on_written, written)
        return True

    def _tell_full(self, full: bool) -> None:
        if full is not self._full:
            self._full = full
            self._tell(self._on_full, full)

    def _tell(self, callback: Callable[..., None], argument: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            # The loop is closed: nobody is left to be told, and nothing was acknowledged.
            return
