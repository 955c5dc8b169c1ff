"""What systemd is told, against a socket of our own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.server.sd_notify import Notifier


@pytest.fixture
def service_manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(10)
        yield listening, path


def read(listening: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in listening.recv(65536).decode().splitlines())


async def test_ready_signs_of_life_and_stopping(
    service_manager: tuple[socket.socket, str],
) -> None:
    listening, path = service_manager
    notifier = Notifier(
        {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid())}
    )
    assert notifier.watchdog_seconds == 0.03
    notifier.ready(asyncio.get_running_loop(), lambda: "leader, term 3")
    assert read(listening) == {
        "READY": "1", "MAINPID": str(os.getpid()), "STATUS": "leader, term 3",
    }  # fmt: skip
    for _ in range(3):
        beat = await asyncio.to_thread(read, listening)
        assert beat["WATCHDOG"] == "1" and beat["STATUS"] == "leader, term 3"
    notifier.stopping()
    while (last := await asyncio.to_thread(read, listening)).get("WATCHDOG"):
        pass
    assert last["STOPPING"] == "1"
    await asyncio.sleep(0.05)
    listening.setblocking(False)
    with pytest.raises(BlockingIOError):
        read(listening)
    notifier.close()


async def test_a_loop_that_stands_still_gives_no_sign_of_life(
    service_manager: tuple[socket.socket, str],
) -> None:
    listening, path = service_manager
    notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000"})
    notifier.ready(asyncio.get_running_loop(), lambda: "")
    read(listening), read(listening)
    listening.settimeout(0.1)
    with pytest.raises(TimeoutError):  # waited for on the loop itself, which is what stands still
        read(listening)
    notifier.stopping()
    notifier.close()


def test_the_abstract_namespace() -> None:
    name = f"raftkv-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": "@" + name})
        notifier.send(STATUS="here")
        assert read(listening) == {"STATUS": "here"}
        notifier.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "soon"},
    ],
)
async def test_nobody_who_listens_harms_nobody(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    assert notifier.watchdog_seconds is None
    notifier.ready(asyncio.get_running_loop(), lambda: "")
    notifier.stopping()
    notifier.close()
    notifier.send(STATUS="after the end")


def test_a_socket_that_nobody_reads_blocks_nobody(
    service_manager: tuple[socket.socket, str],
) -> None:
    _, path = service_manager
    notifier = Notifier({"NOTIFY_SOCKET": path})
    for _ in range(10_000):
        notifier.send(STATUS="x" * 1000)
    notifier.close()
