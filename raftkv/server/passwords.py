"""Passwords: hashed and verified with argon2id, in a thread of its own and never on the loop.

The work waits in a bounded queue: a flood of logins ends in refusals, not in a member that has no
time left for its heartbeats. Nothing here keeps or logs a password.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import argon2

from raftkv.errors import InvalidRequest, RaftkvError, Refused, TooManyRequests
from raftkv.limits import PASSWORD_BYTES_MAX, PASSWORD_QUEUE_MAX, PASSWORD_THREADS

MEMORY_KIB: Final = 19 * 1024
PASSES: Final = 2
LANES: Final = 1
"""What OWASP's password storage cheat sheet asks for at least."""

Hashed = Callable[[str | Refused], None]
Verified = Callable[[bool | Refused], None]


class Passwords:
    """Hashes and verifies. Lives on the running loop; answers come on it."""

    def __init__(
        self, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES, queue_max: int | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._hasher = argon2.PasswordHasher(passes, memory_kib, LANES)
        self._queue_max = PASSWORD_QUEUE_MAX if queue_max is None else queue_max
        self._waiting = 0
        self._threads: ThreadPoolExecutor | None = None
        self._stand_in = ""

    def hash(self, password: str, done: Hashed) -> None:
        """`done` with the hash of a new password, or with what refuses it."""
        try:
            check_password(password)
        except Refused as refused:
            self._loop.call_soon(done, refused)
            return
        self._run(lambda: self._hasher.hash(password), done)

    def verify(self, password_hash: str | None, password: str, done: Verified) -> None:
        """`done` with whether `password` has this hash; None: no password has.

        All that fail take equally long, so that nobody learns by time which users there are.
        """
        self._run(lambda: self._verify(password_hash, password), done)

    def close(self) -> None:
        """Let the thread go once it is through."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _verify(self, password_hash: str | None, password: str) -> bool:
        if password_hash is None:
            self._stand_in = self._stand_in or self._hasher.hash("nobody's")
        try:
            self._hasher.verify(password_hash or self._stand_in, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
        return password_hash is not None

    def _run(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        if self._waiting >= self._queue_max:
            busy = TooManyRequests(
                "too many logins are waiting; try again shortly", limit=self._queue_max
            )
            self._loop.call_soon(done, busy)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(PASSWORD_THREADS, "raftkv-passwords")
        self._waiting += 1
        future = self._threads.submit(work)
        future.add_done_callback(lambda future: self._hand_back(future, done))

    def _hand_back(self, future: Future[Any], done: Callable[[Any], None]) -> None:
        """In the thread, or wherever the work was cancelled."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who asked
            self._loop.call_soon_threadsafe(self._finished, future, done)

    def _finished(self, future: Future[Any], done: Callable[[Any], None]) -> None:
        self._waiting -= 1
        if not future.cancelled():
            error = future.exception()
            done(future.result() if error is None else RaftkvError("a password was not hashed"))


def check_password(password: str) -> None:
    """Raise InvalidRequest unless `password` may be one."""
    if not password:
        raise InvalidRequest("the password is empty")
    if len(password.encode("utf-8", "surrogatepass")) > PASSWORD_BYTES_MAX:
        raise InvalidRequest(f"a password has at most {PASSWORD_BYTES_MAX} bytes")
