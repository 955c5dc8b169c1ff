"""The audit log: one JSON object a line, for each request that a member was asked to serve.

Lines are made on the loop and written by a thread, so that a slow disk never holds a request up.
What waits between the two is bounded; a line that finds no room is dropped, counted, and said in
the log itself by the next line that is written. Files are rotated by size, and so many are kept:
`FILE` is being written, `FILE.1` is the one before.

No line holds a value, a password or a token; `raftkv.api.observe` says what it holds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, Final

import orjson

from raftkv.errors import ConfigError
from raftkv.limits import AUDIT_LINES_WAITING_MAX

log = logging.getLogger(__name__)

PRIVATE: Final = 0o600
CLOSED: Final = -1
LINES_PER_WRITE: Final = 1_000


def rfc3339(seconds: float) -> str:
    """A moment in UTC to the millisecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


class AuditLog:
    """Takes lines on the loop and writes them in a thread of its own; end it with `close`."""

    def __init__(
        self,
        path: Path,
        *,
        file_bytes_max: int,
        files_max: int,
        waiting_max: int = AUDIT_LINES_WAITING_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ConfigError when the file cannot be opened for appending."""
        self._path = path
        self._bytes_max = file_bytes_max
        self._files_max = files_max
        self._clock = clock
        self._queue: Queue[dict[str, Any] | None] = Queue(waiting_max)
        self.lines = 0
        """Lines written since the start."""
        self.dropped = 0
        """Lines lost since the start, for want of room in the queue or on the disk."""
        self._told = 0
        self._failing = False
        self._file = CLOSED
        self._size = 0
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"--audit-log: cannot write {path}: {error.strerror or error}", file=str(path)
            ) from error
        self._thread = threading.Thread(target=self._run, name="raftkv-audit", daemon=True)
        self._thread.start()

    def put(self, line: dict[str, Any]) -> None:
        """Have a line written. Never blocks; called on the loop only."""
        try:
            self._queue.put_nowait(line)
        except Full:
            if self.dropped == self._told:
                log.warning("the audit log cannot keep up: lines are dropped")
            self.dropped += 1

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._queue.put(None)
        self._thread.join()

    # -- in the thread ---------------------------------------------------------------------------

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
        self._size = os.fstat(self._file).st_size

    def _shut(self) -> None:
        handle, self._file = self._file, CLOSED
        if handle != CLOSED:
            # A pipe cannot be synced, and of a broken disk the writes have told already.
            with contextlib.suppress(OSError):
                os.fsync(handle)
            os.close(handle)

    def _run(self) -> None:
        going = True
        while going:
            lines, going = self._take()
            if self.dropped > self._told:
                lost, self._told = self.dropped - self._told, self.dropped
                lines.append({"time": rfc3339(self._clock()), "dropped": lost})
            if lines:
                self._write(lines)
        self._shut()

    def _take(self) -> tuple[list[dict[str, Any]], bool]:
        """What waits, and whether more may come."""
        taken = self._queue.get()
        lines: list[dict[str, Any]] = []
        while taken is not None:
            lines.append(taken)
            if len(lines) == LINES_PER_WRITE:
                return lines, True
            try:
                taken = self._queue.get_nowait()
            except Empty:
                return lines, True
        return lines, False

    def _write(self, lines: list[dict[str, Any]]) -> None:
        data = b"".join(
            orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE, default=str) for line in lines
        )
        try:
            if self._file == CLOSED:
                self._open()
            if self._size and self._size + len(data) > self._bytes_max:
                self._rotate()
            _write_all(self._file, data)
        except OSError as error:
            self.dropped += len(lines)
            if not self._failing:
                log.error("the audit log cannot be written: %s", error.strerror or error)
            self._failing = True
            return
        if self._failing:
            log.info("the audit log is written again")
        self._failing = False
        self._size += len(data)
        self.lines += len(lines)

    def _rotate(self) -> None:
        """Move every file one place on; the last one goes."""
        self._shut()
        for number in range(self._files_max - 1, 0, -1):
            newer = self._numbered(number - 1)
            if newer.exists():
                newer.replace(self._numbered(number))
        if self._files_max == 1:
            self._path.unlink(missing_ok=True)
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path if number == 0 else self._path.with_name(f"{self._path.name}.{number}")


def _write_all(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
