"""The judge of the soak: what holds passes, and each thing lost is said."""

from __future__ import annotations

import io

import pytest

from tests.linearizability.history import (
    History,
    KeyRecord,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
)
from tests.soak.judge import (
    Faults,
    Follower,
    Leases,
    Ledger,
    check_memory,
    differences,
    lives,
    slope,
)
from tests.soak.registers import judge_registers
from tests.support.progress import Progress

MIB = 2**20


class Scene:
    """A ledger with two watches."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.ledger = Ledger(self.faults)
        self.watches = [Follower(f"watch {number}", self.faults) for number in (1, 2)]
        self.ledger.followers += self.watches

    def put(self, key: str, value: str | None, revision: int) -> None:
        """An acknowledged write."""
        self.ledger.acknowledge(self.ledger.begin(key, value), revision)

    def show(self, revision: int, key: str, value: str | None, *watches: Follower) -> None:
        """An event, to all watches or to some."""
        for watch in watches or self.watches:
            watch.event(revision, key, value)

    def come_to(self, revision: int) -> None:
        """All watches are past a revision, and everything is held against everything."""
        for watch in self.watches:
            watch.complete = revision
        self.ledger.reconcile()

    def said(self) -> str:
        """The one sentence."""
        assert self.faults.count == 1, self.faults.said
        return self.faults.said[0]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_what_holds_passes(scene: Scene) -> None:
    scene.put("a", "1", 2)
    scene.show(2, "a", "1")
    write = scene.ledger.begin("a", "2")
    scene.show(3, "a", "2")
    scene.come_to(3)  # the watch is quicker than the answer
    scene.ledger.acknowledge(write, 3)
    lost_from_sight = scene.ledger.begin("b", "3")
    scene.ledger.lose_sight(lost_from_sight)
    scene.ledger.read("b", None, 0)
    scene.ledger.read("b", "3", 4)
    scene.show(4, "b", "3")
    scene.ledger.refuse(scene.ledger.begin("b", "4"))
    scene.put("a", None, 5)
    scene.show(5, "a", None)
    scene.come_to(5)
    scene.ledger.read("a", None, 0)
    scene.ledger.read("b", "3", 4)
    scene.ledger.settle({"n1": {"b": ("3", 4)}, "n2": {"b": ("3", 4)}})
    assert not scene.faults.count, scene.faults.said
    assert scene.ledger.confirmed_writes == scene.ledger.acknowledged_writes == 3


def test_an_acknowledged_write_that_one_watch_misses(scene: Scene) -> None:
    scene.put("a", "1", 2)
    scene.show(2, "a", "1", scene.watches[0])
    scene.come_to(2)
    assert "acknowledged and lost: put of a = '1' at revision 2; watch 2" in scene.said()


def test_an_acknowledged_delete_that_nobody_saw(scene: Scene) -> None:
    scene.put("a", None, 2)
    scene.come_to(2)
    assert all("lost: delete of a at revision 2" in each for each in scene.faults.said)
    assert scene.faults.count == 2


def test_a_refused_write_that_was_done(scene: Scene) -> None:
    scene.ledger.refuse(scene.ledger.begin("a", "1"))
    scene.show(2, "a", "1")
    scene.come_to(2)
    assert "refused and yet done: put of a = '1'" in scene.said()


def test_a_write_of_nobody(scene: Scene) -> None:
    scene.show(2, "a", "1")
    scene.come_to(2)
    assert "nobody asked for put of a" in scene.said()


def test_an_unknown_write_that_only_one_watch_shows(scene: Scene) -> None:
    scene.ledger.lose_sight(scene.ledger.begin("a", "1"))
    scene.show(2, "a", "1", scene.watches[1])
    scene.come_to(2)
    assert "watches differ about a at revision 2" in scene.said()


def test_events_twice_and_out_of_order(scene: Scene) -> None:
    watch = scene.watches[0]
    scene.put("a", "1", 3)
    scene.show(3, "a", "1")
    watch.event(3, "a", "1")
    assert "was told of a at revision 3 twice" in scene.said()
    watch.event(2, "b", "2")
    assert "told of revision 2 after revision 3" in scene.faults.said[1]
    scene.watches[1].complete = 3
    scene.watches[1].event(3, "c", "3")
    assert "twice" in scene.faults.said[2]


def test_a_watch_opened_anew_may_repeat_an_unfinished_revision_once(scene: Scene) -> None:
    watch = scene.watches[0]
    watch.event(3, "a", "1")
    watch.resumed()
    watch.event(3, "a", "1")
    watch.event(3, "b", "1")
    assert not scene.faults.count
    watch.event(3, "a", "1")
    assert "twice" in scene.said()


def test_a_stale_read(scene: Scene) -> None:
    scene.put("a", "1", 2)
    scene.put("a", "2", 3)
    scene.ledger.read("a", "2", 3)
    scene.ledger.read("a", "1", 2)
    assert "a read of a showed '1' of revision 2" in scene.said()


def test_a_counter_that_loses_an_increment(scene: Scene) -> None:
    watch = scene.watches[0]
    watch.event(2, "x/c/1", "1:u")
    watch.event(3, "x/c/1", "2:v")
    assert not scene.faults.count
    watch.event(4, "x/c/1", "2:w")
    assert "an increment was lost" in scene.said()


def test_contents_at_the_end_that_differ(scene: Scene) -> None:
    scene.put("a", "1", 2)
    scene.show(2, "a", "1")
    scene.come_to(2)
    scene.ledger.settle({"n1": {"a": ("1", 2)}, "n2": {}})
    assert any("a: n2 has None, watch 1 has ('1', 2)" in each for each in scene.faults.said)
    assert all("n1" not in each for each in scene.faults.said)


def test_differences_name_each_key_and_stop_at_some() -> None:
    assert differences({"a": 1}, {"a": 1}, "l", "r") == []
    many = differences({str(n): n for n in range(30)}, {}, "l", "r")
    assert len(many) == 11 and many[-1] == "and 20 more keys differ between l and r"


def test_leases_early_late_and_in_time() -> None:
    faults = Faults()
    leases = Leases(faults, late_seconds=5)
    leases.grant("a", 4, sent=10)
    leases.renew("a", sent=12)
    leases.end("a", seen=16.1)
    leases.grant("b", 4, sent=10)
    leases.overdue(now=18)
    assert not faults.count and leases.ended == 1
    leases.grant("c", 4, sent=20)
    leases.renew("c", sent=23)
    leases.end("c", seen=26.5)
    assert faults.said == ["c ended 0.50 s before its TTL was over"]
    leases.overdue(now=20)
    assert faults.said[1:] == ["b should have ended 6 s ago"]


def grown(bytes_per_hour: float, restart_at: float = 0.0) -> list[tuple[str, int, float, float]]:
    """Samples of an hour with a burst now and then."""
    return [
        (
            "n1",
            1 + (second >= restart_at > 0),
            float(second),
            50 * MIB + bytes_per_hour * second / 3600 + (20 * MIB if second % 200 == 0 else 0),
        )
        for second in range(0, 3600, 5)
    ]


def test_memory_that_is_flat_and_memory_that_grows() -> None:
    for rate, count in ((0.0, 0), (10 * MIB, 0), (40 * MIB, 1)):
        faults = Faults()
        found = lives(grown(rate), 1800, 3600, warm_seconds=180, least_seconds=600)
        assert [round(life.bytes_per_hour / MIB) for life in found] == [round(rate / MIB)]
        check_memory(found, 24 * MIB, faults)
        assert faults.count == count
    assert "the memory of n1 grew by 40.0 MiB an hour over 30 minutes" in faults.said[0]


def test_each_process_counts_for_itself_without_its_warm_up() -> None:
    found = lives(grown(0, restart_at=2000), 1800, 3600, warm_seconds=180, least_seconds=600)
    assert [life.seconds for life in found] == [3595 - 2180]
    assert lives(grown(0, restart_at=3000), 1800, 3600, 180, 600)[0].seconds == 2995 - 1800
    assert slope([(0, 1)]) == 0


@pytest.mark.parametrize("stale", [False, True])
def test_registers_that_have_a_linearization_and_one_that_has_none(stale: bool) -> None:
    history, faults = History(), Faults()
    for at, value in ((0, b"1"), (10, b"2")):
        token = history.begin(1, Put(b"k", value), at)
        history.end(token, at + 1, Outcome.OK, PutAnswer(2 + at, None), "")
    token = history.begin(2, Range(b"k"), 20)
    shown = KeyRecord(b"k", b"1" if stale else b"2", 2, 12, 1)
    history.end(token, 21, Outcome.OK, RangeAnswer(12, (shown,), 1), "")
    judge_registers(history, faults, 7)
    assert faults.count == stale
    if stale:
        assert "round 7: register k is not linearizable" in faults.said[0]


def test_a_pipe_gets_a_line_a_minute() -> None:
    stream = io.StringIO()
    progress = Progress("soak", 100, stream, quiet_seconds=60)
    for done in range(99):
        progress.update(done)
    assert stream.getvalue().count("\n") == 1
