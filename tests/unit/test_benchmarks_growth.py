"""What is made of growth and disturbance: sizes, curves, and what was left of the throughput."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.growth import two_alike
from benchmarks.peers.servers import Kind, raftkv_kind
from benchmarks.scenarios.bench import Bench
from benchmarks.scenarios.curve import Curve, settings_of, sizes
from benchmarks.scenarios.disturbance import Disturbed


@pytest.mark.parametrize(
    ("first", "last", "scale", "found"),
    [
        (1000, 1_000_000, 1.0, [1000, 10_000, 100_000, 1_000_000]),
        (1000, 1_000_000, 0.1, [1000, 10_000, 100_000]),
        (1000, 1_000_000, 0.001, [1000, 10_000, 100_000]),
        (1, 10_000, 0.1, [1, 10, 100, 1000]),
        (1, 10, 1.0, [1, 10]),
    ],
)
def test_sizes_grow_up_to_the_scale(first: int, last: int, scale: float, found: list[int]) -> None:
    assert sizes(first, last, scale) == found


def test_value_sizes_end_at_a_mebibyte() -> None:
    assert sizes(16, 1 << 20, 1.0, factor=16) == [16, 256, 4096, 65_536, 1 << 20]


def test_a_small_scale_still_measures_for_half_a_second() -> None:
    assert settings_of(0.001).seconds == 0.5
    assert settings_of(1.0).seconds == 3.0
    assert settings_of(1.0).big_keys == 1_000_000


def test_a_curve_is_told_point_by_point() -> None:
    curve = Curve("put, calls a second")
    curve.add("raftkv", 1000, 20_000)
    curve.add("raftkv", 10_000, 19_000)
    assert curve.told() == ["- put, calls a second, raftkv: 20,000 at 1,000, 19,000 at 10,000"]


def test_a_disturbance_is_held_against_what_was_usual_before() -> None:
    points = [(n / 10, 1000.0, 5.0) for n in range(40)]
    points += [(n / 10, 600.0, 80.0) for n in range(40, 50)]
    points += [(n / 10, 1000.0, 5.0) for n in range(50, 60)]
    disturbed = Disturbed(points, [("snapshot", 4.05, 4.85)])
    assert disturbed.told("raftkv") == [
        "- raftkv, undisturbed: 1,000 puts a second, slowest answer 5 ms",
        "- raftkv, snapshot (0.8 s): 60% of that, slowest answer 80 ms",
    ]


def test_growth_is_shown_beside_one_that_waits_for_its_disk(tmp_path: Path) -> None:
    ours, hasty, careful = raftkv_kind(), Kind("etcd", "3.5.1", ()), Kind("etcd", "3.4.23", ())
    bench = Bench(settings_of(0.1), [ours, hasty, careful], tmp_path)
    assert two_alike(bench) == [ours, hasty]
    bench.ahead_of_disk = {"etcd 3.5.1"}
    assert two_alike(bench) == [ours, careful]
    bench.ahead_of_disk = {"etcd 3.5.1", "etcd 3.4.23"}
    assert two_alike(bench) == [ours, hasty]
