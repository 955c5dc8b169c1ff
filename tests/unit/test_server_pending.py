"""What becomes of proposed batches is told once, and never confuses "no" with "unknown"."""

from typing import Any

from raftkv.errors import LeadershipLost, NoLeader, OutcomeUnknown, Refused
from raftkv.server.pending import Pending


def waiters(count: int) -> tuple[list[Any], list[Any]]:
    told: list[Any] = []
    return told, [told.append] * count


def test_results_reach_their_waiters_in_order() -> None:
    pending = Pending()
    told, dones = waiters(3)
    sequence = pending.register(dones, 100)
    pending.resolve(sequence, ["a", "b", "c"])
    assert told == ["a", "b", "c"]
    assert len(pending) == 0 and pending.commands == 0
    pending.resolve(sequence, ["a", "b", "c"])
    pending.refuse(sequence, NoLeader("late"))
    assert len(told) == 3


def test_another_leaders_entry_at_the_place_is_a_definite_refusal() -> None:
    pending = Pending()
    told, dones = waiters(2)
    sequence = pending.register(dones, 100)
    pending.placed(sequence, index=7, term=3)
    pending.committed(7, term=4)
    assert [type(error) for error in told] == [LeadershipLost, LeadershipLost]
    assert all(isinstance(error, Refused) for error in told)


def test_the_same_term_at_the_place_refuses_nothing() -> None:
    pending = Pending()
    told, dones = waiters(1)
    sequence = pending.register(dones, 100)
    pending.placed(sequence, index=7, term=3)
    pending.committed(7, term=3)
    assert told == []
    pending.resolve(sequence, ["done"])
    assert told == ["done"]


def test_a_place_taken_by_our_own_later_batch_refuses_the_earlier() -> None:
    pending = Pending()
    told_first, first = waiters(1)
    told_second, second = waiters(1)
    earlier, later = pending.register(first, 100), pending.register(second, 100)
    pending.placed(earlier, index=7, term=3)
    pending.placed(later, index=7, term=5)
    assert isinstance(told_first[0], LeadershipLost)
    pending.committed(7, term=5)
    pending.resolve(later, ["done"])
    assert told_second == ["done"]


def test_a_batch_that_waits_too_long_is_unknown_and_never_refused() -> None:
    pending = Pending()
    told, dones = waiters(2)
    pending.register(dones, 100)
    late, late_dones = waiters(1)
    pending.register(late_dones, 200)
    assert pending.expire(99) == 0
    assert pending.expire(100) == 2
    assert all(isinstance(error, OutcomeUnknown) for error in told)
    assert not any(isinstance(error, Refused) for error in told)
    assert late == [] and pending.commands == 1


def test_a_jump_by_snapshot_makes_covered_batches_unknown() -> None:
    pending = Pending()
    told_covered, covered = waiters(1)
    told_beyond, beyond = waiters(1)
    pending.placed(pending.register(covered, 100), index=5, term=1)
    sequence = pending.register(beyond, 100)
    pending.placed(sequence, index=6, term=1)
    pending.jumped(5)
    assert isinstance(told_covered[0], OutcomeUnknown)
    assert told_beyond == []


def test_after_a_jump_by_snapshot_a_later_term_refuses_nothing_forwarded_before() -> None:
    """The snapshot may hold what it did; only its time-out ends the wait."""
    pending = Pending()
    told, dones = waiters(1)
    pending.forwarded(pending.register(dones, 100), term=3)
    pending.jumped(50)
    pending.committed(51, term=4)
    assert told == []
    pending.expire(100)
    assert type(told[0]) is OutcomeUnknown


def test_closing_leaves_nobody_waiting() -> None:
    pending = Pending()
    told, dones = waiters(4)
    pending.register(dones, 100)
    pending.close()
    assert len(told) == 4 and all(isinstance(error, OutcomeUnknown) for error in told)
    assert len(pending) == 0


def test_a_batch_forwarded_to_a_leader_that_was_replaced_is_definitely_refused() -> None:
    pending = Pending()
    told_old, old = waiters(1)
    told_new, new = waiters(1)
    pending.forwarded(pending.register(old, 100), term=3)
    sequence = pending.register(new, 100)
    pending.forwarded(sequence, term=4)
    pending.committed(9, term=3)
    assert told_old == []
    pending.committed(10, term=4)
    assert isinstance(told_old[0], LeadershipLost) and told_new == []
    pending.committed(11, term=4)
    pending.resolve(sequence, ["done"])
    assert told_new == ["done"]
