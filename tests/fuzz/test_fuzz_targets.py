"""A short run of every fuzz target, and the inputs that once broke something.

`python -m tests.fuzz.run` runs them as long as one likes.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from tests.fuzz.engine import Failure, Judge, Target, plain
from tests.fuzz.targets import TARGETS, by_name

CORPUS = Path(__file__).parent / "corpus"
REGRESSIONS = sorted(CORPUS.glob("*/*.hex"))


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_target(target: Target) -> None:
    """Every sample, some of the fixed inputs, and as many random ones."""
    judge = Judge(target)
    fixed, count = judge.inputs.fixed, target.pytest_executions
    numbers = chain(
        range(len(judge.inputs.samples)),
        range(0, fixed, max(1, 2 * fixed // count)),
        range(fixed, fixed + count // 2),
    )
    with target.open() as read:
        judge.run(read, numbers)
    # Inputs have to reach both sides of the oracle, or they prove nothing.
    assert judge.totals.accepted and judge.totals.refused


@pytest.mark.parametrize(
    "path", REGRESSIONS, ids=[f"{p.parent.name}-{p.stem}" for p in REGRESSIONS]
)
def test_regression(path: Path) -> None:
    """What once was neither accepted nor refused, or took too much."""
    judge = Judge(by_name(path.parent.name))
    data = bytes.fromhex(path.read_text())
    with judge.target.open() as read:
        judge.execute(read, data, 0)


def test_the_oracle_tells_a_refusal_from_an_accident() -> None:
    def read(data: bytes) -> bool:
        if data.startswith(b"\0"):
            raise KeyError("no")
        if data.startswith(b"\1"):
            raise LookupError("an accident")
        return len(bytes(100_000 * len(data))) > 0

    target = Target("made up", "", lambda: [b"abc"], plain(read), (KeyError,), memory_factor=1000)
    judge = Judge(target)
    assert not judge.execute(read, b"\0", 1)
    with pytest.raises(Failure, match="LookupError"):
        judge.execute(read, b"\1", 1)
    assert judge.execute(read, bytes((9,)), 16)
    with pytest.raises(Failure, match="memory"):
        judge.execute(read, bytes((9,)) * 100, 16)


def test_an_input_can_be_made_again_by_its_number() -> None:
    target = by_name("messages")
    once, again = Judge(target, 5).inputs, Judge(target, 5).inputs
    numbers = [0, len(once.samples), once.fixed - 1, once.fixed, once.fixed + 12_345]
    assert [once.make(n) for n in numbers] == [again.make(n) for n in reversed(numbers)][::-1]
    assert Judge(target, 6).inputs.make(once.fixed) != once.make(once.fixed)
