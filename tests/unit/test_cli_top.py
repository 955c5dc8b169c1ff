"""`raftkv top`: what it draws, in a real terminal and without one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from raftkv.cli.standing import commit_index, health_text, once_each
from raftkv.cli.top import Picture, duration_text, sparkline
from raftkv.client.results import Status
from raftkv.errors import NoLeader, RaftkvError
from tests.unit.client_door import Door, real_door


def status(name: str, **changes: object) -> Status:
    body = {
        "name": name, "member_id": f"id-{name}", "cluster_id": "c1", "role": "follower", "term": 3,
        "revision": 10, "commit_index": 20, "applied_index": 20, "db_bytes": 4096, "healthy": True,
        "db_used_bytes": 2048, "quota_bytes": 4096, "wal_bytes": 1 << 26, "uptime_seconds": 3700,
    }  # fmt: skip
    return Status.from_json({**body, **changes})


def drawn(picture: Picture, width: int) -> str:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(picture.drawn(width))
    return captured.get()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_picture_tells_leader_lag_rate_space_and_trouble(width: int) -> None:
    picture = Picture(1.0)
    assert "asking the members" in drawn(picture, width)
    answering: list[tuple[str, Status | RaftkvError]] = [
        ("http://h:1", status("m1", role="leader")),
        ("http://h:2", status("m2", applied_index=13)),
        ("http://h:3", status("m3")),
    ]
    picture.take(answering, now=10.0)
    later: list[tuple[str, Status | RaftkvError]] = [
        ("http://h:1", status("m1", role="leader", revision=1010)),
        ("http://h:2", status("m2", applied_index=13, healthy=False, problems=["no leader"])),
        ("http://h:3", NoLeader("gone")),
    ]  # fmt: skip
    picture.take(later, now=12.0)
    text = drawn(picture, width)
    lines = text.splitlines()
    assert "leader m1" in lines[0] and "2 of 3 answer" in text
    [first] = [line for line in lines if line.startswith("m1 ")]
    assert "500" in first and "50%" in first
    [second] = [line for line in lines if line.startswith("m2 ")]
    assert " 7 " in second
    assert "m2: no leader" in text
    [third] = [line for line in lines if line.startswith("m3 ")]
    assert "down" in third and "no answer" in third
    assert all(len(line) <= width for line in lines)
    assert "writes/s       500" in text


def test_standings_are_one_a_member_and_lag_is_behind_the_most_advanced() -> None:
    twice: list[tuple[str, Status | RaftkvError]] = [
        ("http://b", status("b")),
        ("http://127.0.0.1", status("b")),
        ("http://dead", NoLeader("gone")),
        ("http://a", status("a", commit_index=30)),
    ]
    kept = once_each(twice)
    assert [endpoint for endpoint, _ in kept] == ["http://a", "http://b", "http://dead"]
    assert commit_index(kept) == 30 and commit_index([]) == 0
    alarm = {"alarm": "no_space", "member_id": "00aa"}
    assert health_text(status("a", healthy=False, alarms=[alarm])) == "no_space at 00aa"
    assert health_text(status("a")) == "ok"


def test_small_things() -> None:
    assert sparkline([]) == "" and sparkline([0, 0]) == "▁▁"
    assert sparkline([0, 5, 10]) == "▁▅█"
    assert [duration_text(s) for s in (5, 65, 3_700, 90_000)] == ["5s", "1m 5s", "1h 1m", "1d 1h"]


# ---- in a terminal -------------------------------------------------------------------------------


@pytest.fixture
def door() -> Iterator[Door]:
    with real_door() as made:
        yield made


class Terminal:
    """`raftkv top` in a pseudo-terminal."""

    def __init__(self, url: str) -> None:
        self.main, side = pty.openpty()
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.before = termios.tcgetattr(side)
        environment = {**os.environ, "TERM": "xterm-256color", "RAFTKV_ENDPOINTS": url}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raftkv.cli", "top", "--interval", "0.2"],
            stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True,
        )  # fmt: skip
        self.side = side
        self.output = b""

    def read_until(self, text: bytes, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < deadline, self.output[-2000:]
            if select.select([self.main], [], [], 0.1)[0]:
                self.output += os.read(self.main, 65_536)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.main)
        os.close(self.side)


@pytest.mark.parametrize("way", ["q", "ctrl-c", "term"])
def test_it_draws_and_leaves_the_terminal_as_it_was(door: Door, way: str) -> None:
    terminal = Terminal(door.url)
    try:
        terminal.read_until(b"WRITES/S")
        assert b"\x1b[?1049h" in terminal.output, "the screen is its own"
        if way == "term":
            terminal.process.send_signal(signal.SIGTERM)
        else:
            os.write(terminal.main, b"q" if way == "q" else b"\x03")
            if way == "ctrl-c":
                # The terminal is not the process' controlling one here, so the byte arrives as a
                # key or the signal does: both leave.
                terminal.process.send_signal(signal.SIGINT)
        terminal.read_until(b"\x1b[?1049l")
        assert terminal.process.wait(30) == 0
        assert termios.tcgetattr(terminal.side) == terminal.before
        assert b"Traceback" not in terminal.output
    finally:
        terminal.close()


def test_piped_it_shows_the_members_once(door: Door) -> None:
    environment = {**os.environ, "RAFTKV_ENDPOINTS": door.url}
    done = subprocess.run(
        [sys.executable, "-m", "raftkv.cli", "top"],
        capture_output=True, text=True, env=environment, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["members"][0]["role"] == "leader"
