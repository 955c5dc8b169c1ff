"""The one thread that writes and fsyncs the log.

Writes are taken in order, all that wait at once, and share one fdatasync (group commit). What may
be said once they are durable is in the writes themselves (`StorageWrite.replies`), so nothing can
be acknowledged ahead of the disk. After a failed write or fsync nothing is known about the file's
state any more (the kernel may have dropped the pages and called them clean), so the thread stops
for good and the member must end.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from raftkv.consensus.types import StorageWrite
from raftkv.server.store import StoreStats
from raftkv.storage.wal import Wal, WriteReceipt

Written = list[tuple[StorageWrite, WriteReceipt]]


class AppendThread:
    """Owns the write side of the log. `submit` and `close` are called on the loop."""

    def __init__(
        self,
        wal: Wal,
        loop: asyncio.AbstractEventLoop,
        stats: StoreStats,
        *,
        on_written: Callable[[Written], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._wal = wal
        self._loop = loop
        self._stats = stats
        self._on_written = on_written
        self._on_failed = on_failed
        self._queue: SimpleQueue[StorageWrite | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="raftkv-append", daemon=True)

    def start(self) -> None:
        """Start taking writes."""
        self._thread.start()

    def submit(self, write: StorageWrite) -> None:
        """Queue a write. `on_written` is called on the loop once it is durable, in this order."""
        self._queue.put(write)

    def close(self) -> None:
        """Finish what is queued, then end the thread. Blocks for one fsync at most."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        queue = self._queue
        stopping = False
        while not stopping:
            waiting = [queue.get()]
            while not queue.empty():
                waiting.append(queue.get())
            if waiting[-1] is None:
                stopping = True
            writes = [write for write in waiting if write is not None]
            if not writes:
                continue
            try:
                written = self._write(writes)
            except BaseException as error:
                self._tell(self._on_failed, error)
                return
            self._tell(self._on_written, written)

    def _write(self, writes: list[StorageWrite]) -> Written:
        wal, stats = self._wal, self._stats
        written: Written = []
        must_sync = False
        for write in writes:
            receipt = wal.write(write.entries, write.hard_state, write.snapshot)
            written.append((write, receipt))
            must_sync = must_sync or write.must_sync
        if must_sync:
            started = time.perf_counter()
            wal.sync()
            stats.wal_fsync_seconds += time.perf_counter() - started
            stats.wal_fsyncs += 1
        return written

    def _tell(self, callback: Callable[..., None], argument: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            # The loop is closed: nobody is left to be told, and nothing was acknowledged.
            return
