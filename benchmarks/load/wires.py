"""Sockets under the load generator's connections: one epoll, no event loop."""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Callable

from benchmarks.load.http2 import ClientConnection, Listener, LoadError

_RECEIVE_BYTES = 1 << 18
STALLED_SECONDS = 30.0


class Wire:
    """A connection and its socket."""

    def __init__(self, address: str, listener: Listener) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.connection = ClientConnection(address, listener)
        self.waits_to_write = False
        self._unsent = b""

    def write(self) -> bool:
        """Send what there is; whether all of it went."""
        data = self._unsent + self.connection.take()
        try:
            sent = self.socket.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        self._unsent = data[sent:]
        return not self._unsent


class Wires:
    """All connections of one load."""

    def __init__(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}

    def add(self, address: str, listener: Listener) -> ClientConnection:
        """Connect. Raises OSError when nobody listens."""
        wire = Wire(address, listener)
        self._wires[wire.socket.fileno()] = wire
        self._epoll.register(wire.socket, select.EPOLLIN)
        wire.write()  # greetings are over before anything is measured
        return wire.connection

    def flush(self) -> None:
        """Send what was opened outside of `run`."""
        for number, wire in self._wires.items():
            self._write(number, wire)

    def run(self, until: Callable[[], bool]) -> None:
        """Carry bytes until `until` holds, which is asked once a turn.

        Raises LoadError when a server ends a connection, or says nothing for long.
        """
        heard = time.perf_counter()
        while not until():
            if self._turn():
                heard = time.perf_counter()
            elif time.perf_counter() - heard > STALLED_SECONDS:
                raise LoadError(f"no answer for {STALLED_SECONDS:.0f} s")

    def run_beside(self, number: int) -> None:
        """Carry bytes until the other end of a pipe is closed."""
        while not select.select([number], [], [], 0)[0]:
            self._turn()

    def _turn(self) -> bool:
        ready = self._epoll.poll(0.05)
        for number, _ in ready:
            wire = self._wires[number]
            self._read(wire)
            self._write(number, wire)
        return bool(ready)

    def close(self) -> None:
        """Hang up."""
        for wire in self._wires.values():
            wire.socket.close()
        self._epoll.close()

    def _read(self, wire: Wire) -> None:
        try:
            data = wire.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise LoadError("the server ended a connection")
        wire.connection.receive(data, time.perf_counter())

    def _write(self, number: int, wire: Wire) -> None:
        waits = not wire.write()
        if waits != wire.waits_to_write:
            wire.waits_to_write = waits
            self._epoll.modify(number, select.EPOLLIN | (select.EPOLLOUT if waits else 0))
