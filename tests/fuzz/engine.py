"""What all fuzz targets share: how inputs are made, and the oracle that judges an execution.

An input is named by target, seed and number. The first numbers are fixed: every sample as it is,
every prefix of it, every flip of one of its bits. From there on inputs are random, each from its
own seed, so any of them can be made again alone.

The oracle: an input is accepted, or refused by exactly the errors that the target names. Anything
else that is raised is a failure. So is taking more memory than a multiple of the input's length,
or more than a second of processor time.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from raftkv.limits import MIB
from tests.fuzz.mutate import BYTES_MAX, Spoil, blind, splice

Read = Callable[[bytes], bool | None]
"""Reads one input. False, or an error that the target names: refused."""

PREFIXES_MAX = 2000
FLIPS_MAX = 4000
"""Of one sample; spread evenly over longer ones."""
MEASURE_EVERY = 16
"""The memory of one execution in so many is measured, since measuring makes it slow."""
MEMORY_BYTES = 2 * MIB
SECONDS_MAX = 1.0


class Failure(AssertionError):
    """An execution that the oracle condemns."""


@dataclass(frozen=True)
class Target:
    """One decoder, or one chain of them, that takes bytes from a socket or a disk."""

    name: str
    decoder: str
    """What is under test, for the table that people read."""
    samples: Callable[[], Sequence[bytes]]
    """Valid inputs; each of them has to be accepted."""
    open: Callable[[], AbstractContextManager[Read]]
    """Sets up what reading needs, for any number of executions."""
    refusals: tuple[type[Exception], ...] = ()
    """The errors by which an input may be refused; subclasses do not count."""
    spoils: tuple[Spoil, ...] = ()
    """Ways to spoil that know the format."""
    mend: Spoil | None = None
    """Makes checksums right again, so that the code behind them is reached."""
    memory_factor: int = 100
    """Bytes of memory allowed for each byte of input, beside MEMORY_BYTES."""
    make: Callable[[random.Random], bytes] | None = None
    """Makes whole inputs, in place of spoiling samples."""
    pytest_executions: int = 2000


def plain(read: Read) -> Callable[[], AbstractContextManager[Read]]:
    """For a decoder that needs nothing around it."""

    @contextmanager
    def opened() -> Iterator[Read]:
        yield read

    return opened


@dataclass
class Inputs:
    """The numbered inputs of a target under one seed."""

    target: Target
    seed: int
    samples: Sequence[bytes] = ()
    plan: list[tuple[int, int, int]] = field(default_factory=list)
    """(number of the first input, sample, count) of the fixed ones: prefixes, then flips."""
    fixed: int = 0
    longest: int = 0

    def __post_init__(self) -> None:
        self.samples = self.target.samples()
        self.longest = max(map(len, self.samples), default=0)
        self.fixed = len(self.samples)
        if self.target.make is not None:
            return
        for which, sample in enumerate(self.samples):
            for count in (
                min(len(sample), PREFIXES_MAX),
                min(8 * len(sample), FLIPS_MAX),
            ):
                self.plan.append((self.fixed, which, count))
                self.fixed += count

    def random(self, number: int) -> random.Random:
        """The source of everything random about an input."""
        return random.Random(self.seed << 40 | number)

    def make(self, number: int) -> bytes:
        """Input `number`."""
        if number < len(self.samples):
            return self.samples[number]
        if number < self.fixed:
            return self._fixed(number)
        rng = self.random(number)
        target = self.target
        if target.make is not None:
            return target.make(rng)
        data = rng.choice(self.samples)
        roll = rng.random()
        if target.spoils and roll < 0.5:
            data = rng.choice(target.spoils)(rng, data)
        elif roll < 0.6:
            data = splice(rng, data, rng.choice(self.samples))
        else:
            data = blind(rng, data)
        if target.spoils and rng.random() < 0.2:
            data = rng.choice((blind, *target.spoils))(rng, data)
        data = data[: max(BYTES_MAX, self.longest)]
        if target.mend is not None and rng.random() < 0.6:
            data = target.mend(rng, data)
        return data

    def _fixed(self, number: int) -> bytes:
        place = max(at for at, part in enumerate(self.plan) if part[0] <= number)
        first, which, count = self.plan[place]
        sample = self.samples[which]
        step = number - first
        if place % 2 == 0:
            return sample[: step * len(sample) // count]
        bit = step * 8 * len(sample) // count
        data = bytearray(sample)
        data[bit // 8] ^= 1 << bit % 8
        return bytes(data)


@dataclass
class Totals:
    """What came of the executions so far."""

    executions: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    worst_seconds: float = 0.0
    worst_number: int = 0
    memory_bytes: int = 0
    """The largest peak that was measured."""


class Judge:
    """Executes inputs of one target and applies the oracle."""

    def __init__(self, target: Target, seed: int = 0) -> None:
        self.target = target
        self.inputs = Inputs(target, seed)
        self.totals = Totals()

    def run(
        self,
        read: Read,
        numbers: Iterable[int],
        progress: Callable[[Totals], None] | None = None,
    ) -> None:
        """Execute the inputs of these numbers. Raises Failure."""
        began = time.perf_counter()
        totals = self.totals
        for number in numbers:
            data = self.inputs.make(number)
            try:
                accepted = self.execute(read, data, number)
                if number < len(self.inputs.samples) and not accepted:
                    raise Failure(f"{self.target.name}: a valid sample is refused")
            except Failure as failure:
                failure.args = (f"{failure.args[0]}\n{self.reproduction(number, data)}",)
                raise
            finally:
                totals.seconds = time.perf_counter() - began
            if progress is not None and not totals.executions % 256:
                progress(totals)

    def execute(self, read: Read, data: bytes, number: int) -> bool:
        """One execution; whether the input was accepted."""
        totals = self.totals
        if number % MEASURE_EVERY == 0:
            accepted = self._measured(read, data)
        else:
            began = time.perf_counter()
            accepted = self._judged(read, data)
            seconds = time.perf_counter() - began
            if seconds > totals.worst_seconds:
                totals.worst_seconds, totals.worst_number = seconds, number
                if seconds > SECONDS_MAX:
                    self._time_again(read, data)
        totals.executions += 1
        totals.accepted += accepted
        totals.refused += not accepted
        return accepted

    def _judged(self, read: Read, data: bytes) -> bool:
        try:
            return read(data) is not False
        except Exception as error:
            if type(error) in self.target.refusals:
                return False
            raise Failure(
                f"{self.target.name}: {type(error).__name__}: {str(error)[:500]}"
            ) from error

    def _measured(self, read: Read, data: bytes) -> bool:
        tracemalloc.start()
        try:
            accepted = self._judged(read, data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.totals.memory_bytes = max(self.totals.memory_bytes, peak)
        allowed = MEMORY_BYTES + self.target.memory_factor * len(data)
        if peak > allowed:
            raise Failure(
                f"{self.target.name}: {peak:,} bytes of memory for an input of {len(data):,}; "
                f"allowed are {allowed:,}"
            )
        return accepted

    def _time_again(self, read: Read, data: bytes) -> None:
        """Others may have had the processor; what counts is the time spent on it."""
        began = time.process_time()
        self._judged(read, data)
        seconds = time.process_time() - began
        if seconds > SECONDS_MAX:
            raise Failure(f"{self.target.name}: {seconds:.1f} s of processor time")

    def reproduction(self, number: int, data: bytes) -> str:
        """How to see a failure again."""
        return (
            f"target {self.target.name}, seed {self.inputs.seed}, input {number}, "
            f"{len(data)} bytes: {data[:4096].hex()}\n"
            f"reproduce: python -m tests.fuzz.run --target {self.target.name} "
            f"--seed {self.inputs.seed} --first {number} --executions 1"
        )
