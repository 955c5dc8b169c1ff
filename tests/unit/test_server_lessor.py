"""The leader's lease clock: never early, soon after, and fresh for a new leader."""

import random

from raftkv.server.lessor import Lessor


def leading(*leases: tuple[int, int], now_ms: int = 0) -> Lessor:
    lessor = Lessor()
    lessor.promote(leases, now_ms)
    return lessor


def test_a_lease_runs_out_at_its_ttl_and_is_told_once() -> None:
    lessor = leading((1, 10), (2, 20))
    assert lessor.take_expired(9_999, 10) == []
    assert lessor.take_expired(10_000, 10) == [1]
    assert lessor.take_expired(10_001, 10) == []
    assert lessor.take_expired(20_000, 10) == [2]


def test_renewing_starts_the_ttl_again() -> None:
    lessor = leading((1, 10))
    assert lessor.renew(1, 9_000) == 10
    assert lessor.take_expired(18_999, 10) == []
    assert lessor.time(1, 18_000) == (10, 1_000)
    assert lessor.take_expired(19_000, 10) == [1]


def test_unknown_and_expiring_leases_are_not_renewed() -> None:
    lessor = leading((1, 10))
    assert lessor.renew(9, 0) is None
    assert lessor.time(9, 0) is None
    assert lessor.take_expired(10_000, 10) == [1]
    assert lessor.renew(1, 10_000) is None


def test_what_could_not_be_expired_is_offered_again() -> None:
    lessor = leading((1, 10))
    assert lessor.take_expired(10_000, 10) == [1]
    lessor.put_back([1, 77], 10_100)
    assert lessor.take_expired(10_100, 10) == [1]
    lessor.gone(1)
    lessor.put_back([1], 10_200)
    assert lessor.take_expired(99_000, 10) == []
    assert len(lessor) == 0


def test_a_shorter_ttl_counts_from_now() -> None:
    lessor = leading((1, 1_000))
    lessor.granted(1, 5, 1_000)
    assert lessor.take_expired(5_999, 10) == []
    assert lessor.take_expired(6_000, 10) == [1]


def test_a_new_leader_gives_the_full_ttl() -> None:
    lessor = leading((1, 10))
    lessor.demote()
    assert not lessor.leading and len(lessor) == 0
    lessor.granted(1, 10, 5_000)
    assert len(lessor) == 0
    lessor.promote([(1, 10)], 9_000)
    assert lessor.take_expired(18_999, 10) == []
    assert lessor.take_expired(19_000, 10) == [1]


def test_time_in_which_the_process_stood_still_did_not_pass() -> None:
    lessor = leading((1, 10))
    lessor.stalled(4_000)
    assert lessor.take_expired(13_999, 10) == []
    assert lessor.take_expired(14_000, 10) == [1]


def test_a_state_that_jumps_brings_its_leases_and_keeps_what_is_ending() -> None:
    lessor = leading((1, 1), (2, 1), (3, 9))
    assert lessor.take_expired(1_000, 10) == [1, 2]
    lessor.replaced([(1, 1), (3, 9), (4, 5)], 2_000)
    assert lessor.renew(1, 2_000) is None and lessor.expiring(1), "its end may be in the log"
    assert 2 not in lessor and not lessor.expiring(2)
    assert lessor.renew(4, 3_000) == 5
    assert lessor.take_expired(10_999, 10) == [4]
    assert lessor.take_expired(11_000, 10) == [3]
    lessor.put_back([1], 11_000)
    assert lessor.take_expired(11_000, 10) == [1]


def test_the_number_told_at_once_is_bounded() -> None:
    lessor = leading(*((lease, 10) for lease in range(1, 101)))
    taken = [lessor.take_expired(10_000, 30) for _ in range(5)]
    assert [len(part) for part in taken] == [30, 30, 30, 10, 0]
    assert sorted(lease for part in taken for lease in part) == list(range(1, 101))


def test_random_histories_never_expire_early_nor_forget() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        lessor = leading()
        deadlines: dict[int, int] = {}
        now_ms = 0
        for _ in range(400):
            now_ms += rng.randrange(0, 800)
            lease = rng.randrange(1, 20)
            action = rng.randrange(4)
            if action == 0:
                ttl = rng.randrange(1, 8)
                lessor.granted(lease, ttl, now_ms)
                deadlines[lease] = now_ms + ttl * 1000
            elif action == 1:
                ttl_seconds = lessor.renew(lease, now_ms)
                assert (ttl_seconds is not None) == (lease in deadlines), seed
                if ttl_seconds is not None:
                    deadlines[lease] = now_ms + ttl_seconds * 1000
            elif action == 2:
                lessor.gone(lease)
                deadlines.pop(lease, None)
            expired = lessor.take_expired(now_ms, 100)
            due = {lease for lease, deadline in deadlines.items() if deadline <= now_ms}
            assert set(expired) == due, seed
            for lease in expired:
                lessor.gone(lease)
                del deadlines[lease]
