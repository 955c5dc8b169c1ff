"""Telling systemd how the member is: sd_notify(3), a datagram to a unix socket.

For a unit with `Type=notify` and `WatchdogSec=`: ready once clients can connect, a sign of life
from the loop in a third of the watchdog's time, stopping. Without NOTIFY_SOCKET nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping


class Notifier:
    """Sends to the socket that systemd named. Nothing here blocks or raises: a member does not
    depend on who watches it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # An address in the abstract namespace is written with an @ in front (unix(7)).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = _watchdog_seconds(environment) if address else None
        """How long systemd waits for a sign of life; None: it does not."""
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def send(self, **facts: str | int) -> None:
        """One datagram of assignments, one a line."""
        if self._socket is not None:
            text = "\n".join(f"{name}={value}" for name, value in facts.items())
            with contextlib.suppress(OSError):
                self._socket.sendto(text.encode(), self._address)

    def ready(self, loop: asyncio.AbstractEventLoop, status: Callable[[], str]) -> None:
        """Clients are served; from now on the loop gives signs of life, if these are wished for."""
        self.send(READY=1, MAINPID=os.getpid(), STATUS=status())
        if self._socket is not None and self.watchdog_seconds is not None:
            self._beat(loop, status)

    def _beat(self, loop: asyncio.AbstractEventLoop, status: Callable[[], str]) -> None:
        self.send(WATCHDOG=1, STATUS=status())
        seconds = (self.watchdog_seconds or 0) / 3
        self._timer = loop.call_later(seconds, self._beat, loop, status)

    def stopping(self) -> None:
        """The member ends of its own accord or was told to."""
        if self._timer is not None:
            self._timer.cancel()
        self.send(STOPPING=1, STATUS="stopping")

    def close(self) -> None:
        """Nothing more is sent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """The watchdog's time, if it is meant for this process (sd_watchdog_enabled(3))."""
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", "0"))
        process = int(environment.get("WATCHDOG_PID", "0"))
    except ValueError:
        return None
    if microseconds <= 0 or process not in (0, os.getpid()):
        return None
    return microseconds / 1_000_000
