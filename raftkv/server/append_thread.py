"""The one thread that writes and fsyncs the log.

Writes are taken in order, all that wait at once, and share one fdatasync (group commit). What may
be said once they are durable is in the writes themselves (`StorageWrite.replies`), so nothing can
be acknowledged ahead of the disk. After a failed write or fsync nothing is known about the file's
state any more (the kernel may have dropped the pages and called them clean), so the thread stops
for good and the member must end. A full disk is different: nothing was written, and the same
writes are tried again until there is space.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from raftkv.consensus.types import StorageWrite
from raftkv.errors import DiskFullError
from raftkv.server.store import StoreStats
from raftkv.storage.wal import Wal, WriteReceipt

Written = list[tuple[StorageWrite, WriteReceipt]]
Job = Callable[[Wal], None]

FULL_DISK_RETRY_SECONDS = 0.25


class AppendThread:
    """Owns the write side of the log. `submit`, `run` and `close` are called on the loop."""

    def __init__(
        self,
        wal: Wal,
        loop: asyncio.AbstractEventLoop,
        stats: StoreStats,
        *,
        on_written: Callable[[Written], None],
        on_failed: Callable[[BaseException], None],
        on_full: Callable[[bool], None],
    ) -> None:
        self._wal = wal
        self._loop = loop
        self._stats = stats
        self._on_written = on_written
        self._on_failed = on_failed
        self._on_full = on_full
        self._full = False
        self._closing = threading.Event()
        self._queue: SimpleQueue[StorageWrite | Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="raftkv-append", daemon=True)

    def start(self) -> None:
        """Start taking writes."""
        self._thread.start()

    def submit(self, write: StorageWrite) -> None:
        """Queue a write. `on_written` is called on the loop once it is durable, in this order."""
        self._queue.put(write)

    def run(self, job: Job) -> None:
        """Queue work on the log itself, such as releasing old segments, behind all writes."""
        self._queue.put(job)

    def close(self) -> None:
        """Finish what is queued, then close the log. Blocks for one fsync at most."""
        self._closing.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        queue = self._queue
        while True:
            taken = [queue.get()]
            while not queue.empty():
                taken.append(queue.get())
            try:
                self._work([item for item in taken if item is not None])
                if None in taken:
                    self._wal.close()
                    return
            except BaseException as error:
                self._tell(self._on_failed, error)
                return

    def _work(self, items: list[StorageWrite | Job]) -> None:
        writes: list[StorageWrite] = []
        for item in items:
            if isinstance(item, StorageWrite):
                writes.append(item)
            else:
                self._write(writes)
                writes = []
                item(self._wal)
        self._write(writes)

    def _write(self, writes: list[StorageWrite]) -> None:
        if not writes:
            return
        wal, stats = self._wal, self._stats
        written: Written = []
        must_sync = False
        for write in writes:
            receipt = self._write_when_space(write)
            if receipt is None:
                return
            written.append((write, receipt))
            must_sync = must_sync or write.must_sync
        if must_sync:
            started = time.perf_counter()
            wal.sync()
            stats.wal_fsync_seconds += time.perf_counter() - started
            stats.wal_fsyncs += 1
        self._tell(self._on_written, written)

    def _write_when_space(self, write: StorageWrite) -> WriteReceipt | None:
        """Put one write into the log, waiting for space; None: closing, so nobody waits for it."""
        while True:
            try:
                receipt = self._wal.write(write.entries, write.hard_state, write.snapshot)
            except DiskFullError:
                if self._closing.is_set():
                    return None
                self._tell_full(True)
                self._closing.wait(FULL_DISK_RETRY_SECONDS)
            else:
                self._tell_full(False)
                return receipt

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
