"""What each member needs, every few seconds: memory, files, threads, disk; and how it answers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.soak.load import Load
from tests.support.processes import Cluster, Member


@dataclass(frozen=True, slots=True)
class Sample:
    """One member at one moment."""

    at: float
    """Seconds since the begin."""
    member: str
    pid: int
    resident_bytes: int
    private_bytes: int
    files: int
    threads: int
    tables_bytes: int
    log_bytes: int


@dataclass(frozen=True, slots=True)
class Answers:
    """What clients got in one interval, from all members or from one slot of them."""

    at: float
    per_second: float
    p50_ms: tuple[float, ...]
    p99_ms: tuple[float, ...]
    """By the member asked first."""


class Sampler:
    """Takes samples until cancelled."""

    def __init__(self, cluster: Cluster, load: Load, began: float) -> None:
        self._cluster = cluster
        self._load = load
        self._began = began
        self.samples: list[Sample] = []
        self.answers: list[Answers] = []

    async def run(self, every_seconds: float) -> None:
        """See the class."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(every_seconds)
            now = time.monotonic()
            self.answers.append(self._answers(now, now - last))
            last = now
            for member in self._cluster.members:
                sample = sample_of(member, now - self._began)
                if sample is not None:
                    self.samples.append(sample)

    def _answers(self, now: float, seconds: float) -> Answers:
        taken = [sorted(each) for each in self._load.latencies]
        for each in self._load.latencies:
            each.clear()
        return Answers(
            round(now - self._began, 1),
            round(sum(map(len, taken)) / seconds, 1),
            tuple(round(quantile(each, 0.5), 2) for each in taken),
            tuple(round(quantile(each, 0.99), 2) for each in taken),
        )

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "samples": [asdict(each) for each in self.samples],
            "answers": [asdict(each) for each in self.answers],
        }


def quantile(ordered: list[float], share: float) -> float:
    """Of values in order; 0 of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def sample_of(member: Member, at: float) -> Sample | None:
    """A sample of a member's process; None while it does not run."""
    if member.process is None or member.process.poll() is not None:
        return None
    proc = Path(f"/proc/{member.process.pid}")
    try:
        fields = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        if "VmRSS" not in fields:
            return None
        return Sample(
            round(at, 1),
            member.name,
            member.process.pid,
            int(fields["VmRSS"].split()[0]) * 1024,
            int(fields["RssAnon"].split()[0]) * 1024,
            len(list((proc / "fd").iterdir())),
            int(fields["Threads"]),
            disk_bytes(member.data_dir / "tables"),
            disk_bytes(member.data_dir / "wal"),
        )
    except OSError:
        return None


def disk_bytes(folder: Path) -> int:
    """What the files in a folder take on disk."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_blocks * 512
        except OSError:
            continue
    return total
