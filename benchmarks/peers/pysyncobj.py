"""Three nodes of PySyncObj as processes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.load.spec import Outcome, Spec
from benchmarks.peers.servers import START_SECONDS, CallFailed, Missing
from tests.support.processes import free_ports


class Nodes:
    """The processes, and how to ask them."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def leader(self) -> subprocess.Popen[str]:
        """The node that leads. Raises CallFailed."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for process in self._processes:
                if self._ask(process, "leader"):
                    return process
            time.sleep(0.1)
        raise CallFailed("PySyncObj: no leader")

    def load(self, spec: Spec) -> Outcome:
        """Writes from within the leader's own process."""
        return Outcome.from_dict(self._ask(self.leader(), json.dumps(spec.as_dict())))

    def _ask(self, process: subprocess.Popen[str], line: str) -> Any:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise CallFailed("PySyncObj: a node ended")
        return json.loads(answer)


def version() -> str:
    """What is installed. Raises Missing."""
    try:
        return importlib.metadata.version("pysyncobj")
    except importlib.metadata.PackageNotFoundError:
        raise Missing("no pysyncobj: pip install 'raftkv[bench]'") from None


@contextlib.contextmanager
def nodes(folder: Path, count: int = 3) -> Iterator[Nodes]:
    """Nodes that run for the length of the block."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    processes: list[subprocess.Popen[str]] = []
    try:
        for number, own in enumerate(addresses):
            others = [address for address in addresses if address != own]
            processes.append(subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.pysyncobj_node",
                 str(folder / f"journal{number}"), own, *others],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                cwd=Path(__file__).parents[2],
            ))  # fmt: skip
        yield Nodes(processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
