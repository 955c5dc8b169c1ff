"""The load generators as they are called, and what they print: ours, wrk, h2load, `check perf`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.load.calls import put
from benchmarks.load.spec import Outcome, Spec
from benchmarks.peers.servers import Missing, etcd_kinds

DEBIAN: Final = {
    "wrk": "wrk", "h2load": "nghttp2-client", "etcdctl": "etcd-client", "strace": "strace",
}  # fmt: skip
"""Programs, and the Debian packages that they are in."""
EXTRA: Final = ("grpc", "matplotlib", "pysyncobj")
"""Modules of the extra `bench`."""
_LUA: Final = Path(__file__).parents[1] / "load" / "http1.lua"


class BadRun(Exception):
    """A measurement that must not be believed: there were errors, or wrong answers."""


def program(name: str) -> str:
    """Where a program is. Raises Missing."""
    found = shutil.which(name)
    if found is None:
        raise Missing(f"no {name}: as root, apt-get install {DEBIAN[name]}")
    return found


def check_installed() -> None:
    """Raises Missing, with a line for each thing that has to be installed."""
    gone = []
    for name, package in DEBIAN.items():
        if shutil.which(name) is None:
            gone.append(f"no {name}: as root, apt-get install {package}")
    for module in EXTRA:
        if importlib.util.find_spec(module) is None:
            gone.append(f"no {module}: pip install 'raftkv[bench]', which make bench does")
    try:
        etcd_kinds()
    except Missing as error:
        gone.append(str(error))
    if gone:
        raise Missing("\n".join(gone))


def run_load(spec: Spec) -> Outcome:
    """Our own load generator, in a process of its own. Raises BadRun for any error."""
    return believed(_finished(spec, _start_load(spec)))


def run_real_client(spec: Spec) -> Outcome:
    """The same load through grpcio. Raises BadRun for any error."""
    return believed(_finished(spec, _start_load(spec, "benchmarks.load.real_client")))


def believed(outcome: Outcome) -> Outcome:
    """The outcome, if nothing in it was wrong. Raises BadRun."""
    if outcome.errors or not outcome.measured:
        raise BadRun(
            f"{outcome.measured} answers, errors: {outcome.errors}, "
            f"longest time without an answer: {outcome.gap_ms:.0f} ms"
        )
    return outcome


def _start_load(spec: Spec, module: str = "benchmarks.load") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(spec.as_dict()) + "\n")
    process.stdin.flush()
    return process


def _finished(spec: Spec, process: subprocess.Popen[str]) -> Outcome:
    said, complaint = process.communicate()
    if process.returncode:
        raise BadRun(f"{spec.call} against {', '.join(spec.addresses)}: {complaint.strip()}")
    return Outcome.from_dict(json.loads(said.splitlines()[-1]))


class Background:
    """A load that runs while something else happens."""

    def __init__(self, spec: Spec) -> None:
        self._spec, self._process = spec, _start_load(spec)

    def finish(self) -> Outcome:
        """Wait for its end; the caller judges its errors. Raises BadRun when it failed."""
        return _finished(self._spec, self._process)


@contextlib.contextmanager
def held_watches(spec: Spec) -> Iterator[None]:
    """Watches that are there for the length of the block. Raises BadRun if they did not last."""
    held = replace(spec, call="hold")
    process = _start_load(held)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        _finished(held, process)
        raise BadRun("watches were not created")
    try:
        yield
    finally:
        outcome = _finished(held, process)
    if outcome.errors:
        raise BadRun(f"watches: {outcome.errors}")


def run_wrk(
    addresses: Sequence[str], call: str, *, connections: int, seconds: float, keys: int,
    value_bytes: int,
) -> Outcome:  # fmt: skip
    """HTTP/1.1 through wrk, one process a server. Raises BadRun for any error."""
    share = max(1, connections // len(addresses))
    processes = [
        subprocess.Popen(
            [program("wrk"), "-t", "1", "-c", str(share), "-d", f"{max(1, round(seconds))}s",
             "--timeout", "10s", "-s", str(_LUA), f"http://{address}",
             "--", call, str(keys), str(value_bytes)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for address in addresses
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcomes = [parse_wrk(process.communicate()[0]) for process in processes]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome = combined(outcomes)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    outcome.cpu_share = used / len(processes) / outcome.seconds
    return believed(outcome)


def parse_wrk(said: str) -> Outcome:
    """The line that our script makes wrk print at its end. Raises BadRun if it is not there."""
    found = re.search(r"^bench (\{.*\})$", said, re.MULTILINE)
    if found is None:
        raise BadRun(f"wrk: {said.strip()[-500:]}")
    told: dict[str, Any] = json.loads(found[1])
    errors = {name: int(count) for name, count in told["errors"].items() if count}
    return Outcome(
        done=told["requests"], measured=told["requests"], seconds=told["duration_us"] / 1e6,
        errors=errors,
        latency_ms={name: us / 1000 for name, us in told["latency_us"].items()},
    )  # fmt: skip


def combined(outcomes: Sequence[Outcome]) -> Outcome:
    """Loads that ran side by side, as one: counts add up, of latencies the worst is told."""
    errors: dict[str, int] = {}
    for outcome in outcomes:
        for name, count in outcome.errors.items():
            errors[name] = errors.get(name, 0) + count
    return Outcome(
        done=sum(outcome.done for outcome in outcomes),
        measured=sum(outcome.measured for outcome in outcomes),
        seconds=max(outcome.seconds for outcome in outcomes),
        errors=errors,
        latency_ms={
            name: max(outcome.latency_ms[name] for outcome in outcomes)
            for name in outcomes[0].latency_ms
        },
    )


def run_h2load(
    address: str, *, connections: int, streams: int, seconds: float, value_bytes: int
) -> Outcome:
    """Puts of one key through h2load, the cheapest client that there is. Raises BadRun."""
    job = put(0, value_bytes)
    with tempfile.NamedTemporaryFile() as body:
        body.write(job.body)
        body.flush()
        said = subprocess.run(
            [program("h2load"), "-t", "1", "-c", str(connections), "-m", str(streams),
             "-D", str(max(1, round(seconds))), "--warm-up-time", "1", "-d", body.name,
             "-H", "content-type: application/grpc", "-H", "te: trailers",
             f"http://{address}{job.path}"],
            capture_output=True, text=True,
        ).stdout  # fmt: skip
    return believed(parse_h2load(said))


def parse_h2load(said: str) -> Outcome:
    """h2load's report. Raises BadRun if there is none."""
    finished = re.search(r"finished in ([\d.]+)(ms|s), ([\d.]+) req/s", said)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said)
    mean = re.search(r"^time for request:\s+\S+\s+(\S+)\s+([\d.]+)(us|ms|s)", said, re.MULTILINE)
    if finished is None or counts is None or mean is None:
        raise BadRun(f"h2load: {said.strip()[-500:]}")
    seconds = float(finished[1]) / (1000 if finished[2] == "ms" else 1)
    names = ("failed", "errored", "timeout")
    errors = {
        name: int(number) for name, number in zip(names, counts.groups()[1:], strict=True)
        if int(number)
    }  # fmt: skip
    in_ms = {"us": 0.001, "ms": 1.0, "s": 1000.0}[mean[3]]
    return Outcome(
        done=int(counts[1]), measured=int(counts[1]), seconds=seconds, errors=errors,
        latency_ms={"mean": float(mean[2]) * in_ms},
    )  # fmt: skip


def check_perf(address: str, load: str) -> Outcome:
    """etcdctl's `check perf`, a minute; it asks for no more than its load. Raises BadRun."""
    said = subprocess.run(
        [program("etcdctl"), "--endpoints", address, "check", "perf", "--load", load],
        capture_output=True, text=True, env={"ETCDCTL_API": "3"},
    )  # fmt: skip
    return parse_check_perf(said.stdout + said.stderr)


def parse_check_perf(said: str) -> Outcome:
    """What `check perf` says of throughput and of the slowest request, passed or not."""
    rate = re.search(r"Throughput (?:is|too low:) (\d+) writes/s", said)
    slowest = re.search(r"Slowest request took (?:too long: )?([\d.]+)s", said)
    if rate is None or slowest is None:
        # Before its last line come a progress bar, a line a second, and what it tries again.
        *_, last = said.strip().splitlines() or ["it said nothing"]
        raise BadRun(f"check perf: {last[-500:]}")
    return Outcome(
        measured=int(rate[1]), done=int(rate[1]), seconds=1.0,
        latency_ms={"max": float(slowest[1]) * 1000},
    )  # fmt: skip
