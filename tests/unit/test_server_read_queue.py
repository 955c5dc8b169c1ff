"""Linearizable reads: one round serves many, and no round's id is ever used twice."""

from raftkv.errors import NoLeader, RaftkvError, ReadTimedOut
from raftkv.server.read_queue import ReadQueue, read_timed_out


def test_one_round_serves_all_reads_that_came_before_it() -> None:
    queue = ReadQueue(boot=1)
    told: list[RaftkvError | None] = []
    for _ in range(3):
        queue.add(told.append, 1_000)
    context = queue.begin_round(0)
    assert context is not None and queue.begin_round(0) is None
    queue.confirmed(context, 10)
    queue.applied(9)
    assert told == []
    queue.applied(10)
    assert told == [None, None, None]
    assert queue.waiting == 0 and queue.confirmed_total == 3


def test_a_read_after_the_round_began_waits_for_the_next() -> None:
    queue = ReadQueue(boot=1)
    told: list[str] = []
    queue.add(lambda error: told.append("first"), 1_000)
    first = queue.begin_round(0)
    queue.add(lambda error: told.append("second"), 1_000)
    assert first is not None
    queue.confirmed(first, 5)
    queue.applied(5)
    assert told == ["first"]
    second = queue.begin_round(0)
    assert second is not None and second != first
    queue.confirmed(second, 5)
    queue.applied(5)
    assert told == ["first", "second"]


def test_rounds_under_way_are_bounded() -> None:
    queue = ReadQueue(boot=1, rounds_max=2)
    begun = []
    for _ in range(3):
        queue.add(lambda error: None, 1_000)
        begun.append(queue.begin_round(0))
    assert begun[0] and begun[1] and begun[2] is None
    queue.confirmed(begun[0], 1)
    assert queue.begin_round(0) is not None


def test_an_unanswered_round_begins_again_under_a_new_id() -> None:
    queue = ReadQueue(boot=1)
    told: list[RaftkvError | None] = []
    queue.add(told.append, 5_000)
    first = queue.begin_round(0)
    queue.expire(999, 1_000, read_timed_out())
    assert queue.begin_round(999) is None
    queue.expire(1_000, 1_000, read_timed_out())
    second = queue.begin_round(1_000)
    assert first is not None and second is not None and second != first
    queue.confirmed(first, 1)
    queue.applied(1)
    assert told == []
    queue.confirmed(second, 1)
    queue.applied(1)
    assert told == [None]


def test_a_read_past_its_deadline_is_told_so() -> None:
    queue = ReadQueue(boot=1)
    told: list[RaftkvError | None] = []
    queue.add(told.append, 1_500)
    queue.begin_round(0)
    queue.expire(1_200, 1_000, read_timed_out())
    assert told == []
    queue.expire(1_500, 1_000, read_timed_out())
    assert isinstance(told[0], ReadTimedOut)
    assert queue.waiting == 0


def test_refusals_and_closing_answer_everyone() -> None:
    queue = ReadQueue(boot=1)
    told: list[RaftkvError | None] = []
    queue.add(told.append, 1_000)
    context = queue.begin_round(0)
    assert context is not None
    queue.refused(context, NoLeader("none"))
    assert isinstance(told.pop(), NoLeader)
    for state in range(3):
        queue.add(told.append, 1_000)
        if state:
            context = queue.begin_round(0)
            assert context is not None
        if state == 1:
            queue.confirmed(context, 99)
    queue.fail_all(NoLeader("closing"))
    assert len(told) == 3 and queue.waiting == 0
