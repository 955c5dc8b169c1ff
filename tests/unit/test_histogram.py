"""Buckets are cumulative and include their upper bound, as Prometheus has it."""

from __future__ import annotations

from raftkv.histogram import DISK_SECONDS, NETWORK_SECONDS, Histogram


def test_each_observation_is_in_every_bucket_from_its_own_on() -> None:
    times = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        times.observe(seconds)
    assert [*times.buckets()] == [("0.1", 2), ("1.0", 3), ("+Inf", 4)]
    assert times.sum_seconds == 7.65


def test_the_bounds_are_those_of_etcd() -> None:
    assert (DISK_SECONDS[0], DISK_SECONDS[-1]) == (0.001, 8.192)
    assert NETWORK_SECONDS[0] == 0.0001 and round(NETWORK_SECONDS[-1], 4) == 3.2768
