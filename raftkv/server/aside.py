"""An apply that takes long, in a thread of its own: heartbeats, reads and the log go on beside it.

The thread does all of it but the commit, then waits for the loop, which lets it commit and takes
the result over before it does anything else. So nobody reads tables that are ahead of the machine.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkv.machine.machine import Machine, Worked
    from raftkv.storage.backend import Backend

log = logging.getLogger(__name__)


class _Abandoned(Exception):
    """The member ends before the work is committed."""


class Aside:
    """See the module. All but `close` is called on the loop that owns the member."""

    def __init__(self, loop: asyncio.AbstractEventLoop, machine: Machine, backend: Backend) -> None:
        self._loop = loop
        self._machine = machine
        self._backend = backend
        self._go = threading.Event()
        self._abandoned = False
        self._worked: Worked | None = None
        self._worker: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether the tables belong to an apply just now: others may read them, no more."""
        return self._worker is not None

    def start(
        self, entries: Sequence[tuple[int, int, bytes]], done: Callable[[Worked | None], None]
    ) -> None:
        """Work `entries` out; `done` gets what the machine is to adopt at once.

        None: nothing was applied, for lack of space perhaps; who tries again on the loop is told.
        """
        self._go.clear()
        self._worked = None
        self._backend.hold()
        self._worker = threading.Thread(
            target=self._run, args=(entries, done), name="raftkv-apply", daemon=True
        )
        self._worker.start()

    def close(self) -> None:
        """Nothing is committed any more. Waits for the thread, which may take as long as the work;
        not on the loop."""
        self._abandoned = True
        self._go.set()
        thread = self._worker
        if thread is not None:
            thread.join()

    def _run(
        self, entries: Sequence[tuple[int, int, bytes]], done: Callable[[Worked | None], None]
    ) -> None:
        def before_commit() -> None:
            self._loop.call_soon_threadsafe(self._finish, done)
            self._go.wait()
            if self._abandoned:
                raise _Abandoned

        try:
            self._worked = self._machine.work_out(entries, before_commit=before_commit)
        except _Abandoned:
            pass
        except Exception as error:
            log.info("an apply aside is done again on the loop", exc_info=error)
            if not self._go.is_set():
                self._loop.call_soon_threadsafe(self._finish, done)

    def _finish(self, done: Callable[[Worked | None], None]) -> None:
        self._go.set()
        thread, self._worker = self._worker, None
        if thread is not None:
            thread.join()
        self._backend.release()
        worked, self._worked = self._worked, None
        if not self._abandoned:
            done(worked)
