"""Examples in the documentation, run against a real member.

An example is a fenced block under a line `<!-- run -->`:

    ```console          commands after `$ `, continued by `> `, each followed by what it prints
    ```python           top-level `await` is allowed; a ```text block right behind it is its output

The examples of one page run in order against one new store, in one new folder. Pages speak of
127.0.0.1:2379; the member listens elsewhere, and the runner translates both ways. Ids, times and
hashes differ from run to run and are masked; a line `...` in the page stands for any lines.

`python -m tests.support.doc_examples README.md` writes into the page what its examples print now.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from tests.support.processes import Member, free_ports

ROOT = Path(__file__).resolve().parents[2]
MARK = "<!-- run -->"
ADDRESS = "127.0.0.1:2379"
SECONDS = 20

MASKS = (
    (re.compile(r"\b[0-9a-f]{32}\b"), "HASH"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)"), "TIME"),
    (re.compile(r"^Date: .*$", re.M), "Date: TIME"),
    (re.compile(r"^Content-Length: \d+$", re.M), "Content-Length: N"),
    (re.compile(r"\b\d\d:\d\d:\d\d(\.\d+)?\b"), "TIME"),
    (re.compile(r"\b\d+\.\d+(?=[,}\s]|$)"), "X.Y"),
    (re.compile(r'("(?:remaining|remaining_ms|[a-z_]*bytes)":)\d+'), r"\1N"),
    (re.compile(r"0\.\d+\.\d+(\.dev\d+)?"), "VERSION"),
)


@dataclass(slots=True)
class Step:
    """One command or program, and what the page says that it prints."""

    line: int
    source: str
    expected: list[str] = field(default_factory=list)
    at: range = range(0)
    """Where in the page's lines the output stands."""


def steps_of(text: str) -> list[Step]:
    """The steps of a page, in order."""
    lines = text.split("\n")
    steps: list[Step] = []
    number = 0
    while number < len(lines):
        if lines[number].strip() != MARK:
            number += 1
            continue
        fence, number = lines[number + 1], number + 2
        end = lines.index("```", number)
        if fence == "```console":
            steps.extend(_console(lines, number, end))
        elif fence == "```python":
            step = Step(number + 1, "\n".join(lines[number:end]), at=range(end, end))
            if lines[end + 1 : end + 3] == ["", "```text"]:
                step.at = range(end + 3, lines.index("```", end + 3))
                step.expected = [lines[each] for each in step.at]
            step.source = "#python\n" + step.source
            steps.append(step)
        else:
            raise ValueError(f"line {number - 1}: {MARK} stands above {fence!r}")
        number = end
    return steps


def _console(lines: list[str], start: int, end: int) -> Iterator[Step]:
    number = start
    while number < end:
        if not lines[number].startswith("$ "):
            raise ValueError(f"line {number + 1}: a command begins with '$ '")
        step = Step(number + 1, lines[number][2:])
        number += 1
        while number < end and lines[number].startswith("> "):
            step.source += "\n" + lines[number][2:]
            number += 1
        first = number
        while number < end and not lines[number].startswith("$ "):
            number += 1
        step.at = range(first, number)
        step.expected = [lines[each] for each in step.at]
        yield step


class Shell:
    """Runs steps in a folder of their own, against a member."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._address = address
        programs = folder / ".bin"
        programs.mkdir()
        command = programs / "raftkv"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m raftkv "$@"\n')
        command.chmod(0o755)
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("RAFTKV_")
        } | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "RAFTKV_ENDPOINTS": f"http://{address}",
            "RAFTKV_OUTPUT": "table",
            "NO_COLOR": "1",
        }
        if shutil.which("curl") is None:
            curl = programs / "curl"
            curl.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.support.curl "$@"\n')
            curl.chmod(0o755)

    def run(self, step: Step) -> list[str]:
        """The lines that a step prints, in the page's terms."""
        source = step.source.replace(ADDRESS, self._address)
        if source.startswith("#python\n"):
            arguments = [sys.executable, "-m", "tests.support.doc_program", source]
        else:
            arguments = ["/bin/sh", "-c", source]
        done = subprocess.run(
            arguments, cwd=self._folder, env=self._environment, timeout=SECONDS, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode and arguments[0] == sys.executable:
            raise AssertionError(f"line {step.line}: it failed:\n{done.stdout.decode()}")
        text = done.stdout.decode().replace("\r\n", "\n").replace(self._address, ADDRESS)
        return text.rstrip("\n").split("\n") if text.strip() else []


@contextmanager
def shell() -> Iterator[Shell]:
    """A new store, and a shell that knows it."""
    with TemporaryDirectory(prefix="raftkv-docs-") as name:
        folder = Path(name)
        client, peer = free_ports(2)
        member = Member("default", folder, client, peer)
        member.start()
        try:
            _wait_ready(member)
            here = folder / "here"
            here.mkdir()
            yield Shell(here, f"127.0.0.1:{client}")
        finally:
            member.kill()


def _wait_ready(member: Member) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            with urlopen(f"{member.client_url}/readyz", timeout=1):  # noqa: S310
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"no store to try the examples on:\n{member.output()}")


def masked(lines: list[str]) -> list[str]:
    """Lines without what differs from run to run."""
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    for pattern, word in MASKS:
        text = pattern.sub(word, text)
    # Columns of a table are as wide as what is in them.
    return [re.sub(r" {2,}", "  ", line) for line in text.split("\n")]


def matches(expected: list[str], printed: list[str]) -> bool:
    """Whether a step printed what the page says."""
    parts = [
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in masked(expected)
    ]
    return re.fullmatch("".join(parts), "\n".join(masked(printed)) + "\n") is not None


def rewrite(page: Path) -> None:
    """Put what the examples print now into `page`; outputs with a `...` stay as they are."""
    text = page.read_text()
    lines = text.split("\n")
    with shell() as where:
        printed = [(step, where.run(step)) for step in steps_of(text)]
    for step, output in reversed(printed):
        if "..." not in step.expected and not matches(step.expected, output):
            lines[step.at.start : step.at.stop] = output
    page.write_text("\n".join(lines))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        rewrite(Path(argument))
