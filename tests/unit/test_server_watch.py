"""The watch hub: placement, delivery, limits; the nine watch properties are in the oracle test."""

from __future__ import annotations

import pytest

from raftkv.errors import (
    Compacted,
    InvalidRequest,
    InvariantViolation,
    RaftkvError,
    Refused,
    Stopping,
    TooManyRequests,
)
from raftkv.limits import WATCH_HISTORY_BATCH_EVENTS, WATCH_SLICE_WATCHERS_MAX
from raftkv.machine.events import Event
from raftkv.machine.records import DELETE, PUT, Record
from raftkv.server.watch import Place, Watch, WatchHub, WatchSpec
from raftkv.server.watch_index import prefix_end


class History:
    """A machine as far as watches can tell: revisions, their events, and compaction."""

    def __init__(self) -> None:
        self.revision = 1
        self.compact_revision = 0
        self.events: list[Event] = []
        self.reads = 0
        self.lookups = 0

    def write(self, *keys: bytes, kind: int = PUT, keyspace: int = 0, size: int = 1) -> list[Event]:
        self.revision += 1
        events = [
            Event(kind, keyspace, key, self.revision, sub, b"r" * size)
            for sub, key in enumerate(keys)
        ]
        self.events += events
        return events

    def compact(self, revision: int) -> None:
        self.compact_revision = revision
        self.events = [event for event in self.events if event.revision >= revision]

    def history(self, from_revision: int, to_revision: int, limit_events: int) -> list[Event]:
        self.reads += 1
        if from_revision < self.compact_revision:
            raise Compacted("gone", oldest_revision=self.compact_revision)
        found: list[Event] = []
        for event in self.events:
            if from_revision <= event.revision <= to_revision:
                if len(found) >= limit_events and event.revision != found[-1].revision:
                    break
                found.append(event)
        return found

    def previous(self, event: Event) -> Record | None:
        self.lookups += 1
        return None


class Sink:
    def __init__(self, room: int = 1 << 60) -> None:
        self.got: list[Event] = []
        self.calls: list[tuple[int, list[Event]]] = []
        self.marks: list[int] = []
        self.error: RaftkvError | None = None
        self.room = room

    def events(self, revision: int, events: list[Event]) -> bool:
        assert events and self.error is None
        self.calls.append((revision, events))
        self.got += events
        self.room -= len(events)
        return self.room > 0

    def progress(self, revision: int) -> None:
        assert self.error is None
        assert not self.got or self.got[-1].revision <= revision
        self.marks.append(revision)

    def closed(self, error: RaftkvError) -> None:
        assert self.error is None
        self.error = error

    @property
    def revisions(self) -> list[int]:
        return [event.revision for event in self.got]


def setup(**options: int) -> tuple[History, WatchHub]:
    machine = History()
    return machine, WatchHub(machine, **options)


def drain(hub: WatchHub) -> int:
    turns = 1
    while hub.pump():
        turns += 1
        assert turns < 100_000
    return turns


def test_a_live_watch_gets_its_key_and_nothing_else() -> None:
    machine, hub = setup()
    sink = Sink()
    watch = hub.add(WatchSpec(0, b"a"), sink)
    assert watch.place is Place.LIVE and watch.delivered_revision == 1
    hub.publish(machine.write(b"a") + machine.write(b"b", b"a") + machine.write(b"c"))
    hub.publish(machine.write(b"a", keyspace=1))
    hub.publish([])
    assert sink.revisions == [2, 3]
    assert sink.calls[0][0] == 4, "all of the publication is delivered"
    assert watch.delivered_revision == 5


def test_filters_prefixes_ranges_and_the_whole_keyspace() -> None:
    machine, hub = setup()
    puts, deletes, prefix, between, rest, every = (Sink() for _ in range(6))
    hub.add(WatchSpec(0, b"", b"", deletes=False), puts)
    hub.add(WatchSpec(0, b"", b"", puts=False), deletes)
    hub.add(WatchSpec(0, b"ab", prefix_end(b"ab")), prefix)
    hub.add(WatchSpec(0, b"aa", b"b"), between)
    hub.add(WatchSpec(0, b"b", b""), rest)
    hub.add(WatchSpec(0, b"", b""), every)
    for key in (b"a", b"ab", b"abc", b"b", b"c"):
        hub.publish(machine.write(key))
    hub.publish(machine.write(b"abc", kind=DELETE))
    assert puts.revisions == [2, 3, 4, 5, 6]
    assert deletes.revisions == [7]
    assert [event.key for event in prefix.got] == [b"ab", b"abc", b"abc"]
    assert [event.key for event in between.got] == [b"ab", b"abc", b"abc"]
    assert [event.key for event in rest.got] == [b"b", b"c"]
    assert len(every.got) == 6
    assert len(deletes.calls) == 1, "publications without a wanted event are not handed over"


@pytest.mark.parametrize(
    "spec",
    [WatchSpec(0, b"b", b"b"), WatchSpec(0, b"b", b"a"), WatchSpec(0, b"a", from_revision=-1)],
)
def test_impossible_watches_are_refused(spec: WatchSpec) -> None:
    _, hub = setup()
    with pytest.raises(InvalidRequest):
        hub.add(spec, Sink())
    assert len(hub) == 0


def test_more_watches_than_the_limit_are_refused_until_one_ends() -> None:
    machine, hub = setup(watches_max=2)
    first = hub.add(WatchSpec(0, b"a"), Sink())
    hub.add(WatchSpec(0, b"b"), Sink())
    with pytest.raises(TooManyRequests):
        hub.add(WatchSpec(0, b"c"), Sink())
    first.cancel()
    first.cancel()
    sink = Sink()
    hub.add(WatchSpec(0, b"c"), sink)
    hub.publish(machine.write(b"c"))
    assert sink.revisions == [2]


def test_a_start_in_the_past_is_fed_and_then_goes_live_without_loss_or_repeat() -> None:
    machine, hub = setup()
    for _ in range(300):
        hub.publish(machine.write(b"a", b"b"))
    sink = Sink()
    watch = hub.add(WatchSpec(0, b"a", from_revision=10), sink)
    assert watch.place is Place.BEHIND and watch.delivered_revision == 9
    assert hub.pump()
    hub.publish(machine.write(b"a"))
    assert watch.place is Place.BEHIND, "new events wait until the older ones are delivered"
    drain(hub)
    assert watch.place is Place.LIVE
    hub.publish(machine.write(b"a"))
    assert sink.revisions == list(range(10, machine.revision + 1))


def test_a_start_at_the_next_revision_is_live_at_once() -> None:
    machine, hub = setup()
    sink = Sink()
    assert hub.add(WatchSpec(0, b"a", from_revision=2), sink).place is Place.LIVE
    hub.publish(machine.write(b"a"))
    assert sink.revisions == [2]


@pytest.mark.parametrize("start", range(2, 9))
def test_a_start_in_the_future_gets_only_what_is_wanted(start: int) -> None:
    """etcd#20221: a watch of a future revision was given older events."""
    machine, hub = setup()
    sink = Sink()
    watch = hub.add(WatchSpec(0, b"a", from_revision=start), sink)
    for _ in range(2):
        hub.publish([event for _ in range(3) for event in machine.write(b"a", b"a")])
        hub.mark_progress()
    drain(hub)
    hub.publish(machine.write(b"a", b"a"))
    assert sink.revisions == [r for r in range(start, 9) for _ in range(2)]
    assert all(mark >= start - 1 for mark in sink.marks)
    assert watch.place is Place.LIVE


def test_a_watch_of_the_future_may_be_cancelled() -> None:
    machine, hub = setup()
    sink = Sink()
    hub.add(WatchSpec(0, b"a", from_revision=3), sink).cancel()
    hub.add(WatchSpec(0, b"a", from_revision=4), sink).cancel()
    for _ in range(4):
        hub.publish(machine.write(b"a"))
    assert sink.got == [] and len(hub) == 0


def test_between_apply_and_publication_now_means_after_the_apply() -> None:
    machine, hub = setup()
    events = machine.write(b"a")
    sink = Sink()
    watch = hub.add(WatchSpec(0, b"a"), sink)
    assert watch.delivered_revision == 2
    hub.publish(events)
    assert sink.got == [] and watch.place is Place.LIVE
    hub.publish(machine.write(b"a"))
    assert sink.revisions == [3]


def test_a_compacted_start_is_closed_with_the_oldest_revision() -> None:
    machine, hub = setup()
    for _ in range(10):
        hub.publish(machine.write(b"a"))
    machine.compact(7)
    sink, edge = Sink(), Sink()
    watch = hub.add(WatchSpec(0, b"a", from_revision=6), sink)
    hub.add(WatchSpec(0, b"a", from_revision=7), edge)
    assert watch.closed and isinstance(sink.error, Compacted)
    assert sink.error.facts["oldest_revision"] == 7
    drain(hub)
    assert edge.revisions == [7, 8, 9, 10, 11], "the events of the compaction revision are kept"
    assert len(hub) == 1 and hub.closed_compacted == 1


def test_a_watch_that_is_overtaken_by_compaction_is_closed() -> None:
    machine, hub = setup()
    behind, paused, ahead = Sink(), Sink(room=1), Sink()
    hub.add(WatchSpec(0, b"a"), paused)
    for _ in range(20):
        hub.publish(machine.write(b"a"))
    hub.add(WatchSpec(0, b"a", from_revision=3), behind)
    hub.add(WatchSpec(0, b"a", from_revision=15), ahead)
    machine.compact(12)
    hub.mark_progress()
    assert isinstance(behind.error, Compacted) and behind.got == []
    assert isinstance(paused.error, Compacted) and paused.revisions == [2]
    drain(hub)
    assert ahead.error is None and ahead.revisions == list(range(15, 22))


def test_history_that_turns_out_to_be_gone_closes_the_watch() -> None:
    machine, hub = setup()
    for _ in range(5):
        hub.publish(machine.write(b"a"))
    sink = Sink()
    hub.add(WatchSpec(0, b"a", from_revision=2), sink)

    def gone(*_: int) -> list[Event]:
        raise Compacted("gone", oldest_revision=4)

    machine.history = gone  # type: ignore[method-assign]
    drain(hub)
    assert isinstance(sink.error, Compacted) and sink.error.facts["oldest_revision"] == 4


def test_a_full_sink_is_left_alone_until_it_resumes() -> None:
    machine, hub = setup()
    sink = Sink(room=2)
    watch = hub.add(WatchSpec(0, b"a"), sink)
    for _ in range(10):
        hub.publish(machine.write(b"a"))
    assert sink.revisions == [2, 3] and watch.place is Place.PAUSED
    assert watch.delivered_revision == 3 and hub.behind == 1
    hub.mark_progress()
    assert not hub.pump() and sink.marks == []
    sink.room = 3
    watch.resume()
    watch.resume()
    drain(hub)
    assert watch.place is Place.PAUSED, "fed until it was full again"
    sink.room = 100
    watch.resume()
    drain(hub)
    hub.publish(machine.write(b"a"))
    assert watch.place is Place.LIVE and hub.behind == 0
    assert sink.revisions == list(range(2, 13))
    watch.resume()
    assert hub.idle, "resuming a live watch is without effect"


def test_a_sink_that_resumes_before_anything_new_was_written_is_live_at_once() -> None:
    machine, hub = setup()
    sink = Sink(room=1)
    watch = hub.add(WatchSpec(0, b"a"), sink)
    hub.publish(machine.write(b"a"))
    assert watch.place is Place.PAUSED
    sink.room = 9
    watch.resume()
    assert watch.place is Place.LIVE and hub.idle
    hub.publish(machine.write(b"a"))
    assert sink.revisions == [2, 3]


def test_a_paused_watch_may_be_cancelled_and_is_forgotten() -> None:
    machine, hub = setup()
    sink = Sink(room=1)
    watch = hub.add(WatchSpec(0, b"a"), sink)
    hub.publish(machine.write(b"a") + machine.write(b"a"))
    hub.publish(machine.write(b"a"))
    watch.resume()
    watch.cancel()
    watch.resume()
    drain(hub)
    assert sink.revisions == [2, 3] and hub.behind == 0 and watch.delivered_revision == 3


def test_the_hub_says_when_there_is_something_to_pump() -> None:
    machine = History()
    woken: list[int] = []
    hub = WatchHub(machine, wake=lambda: woken.append(machine.revision))
    hub.publish(machine.write(b"a"))
    hub.add(WatchSpec(0, b"a"), Sink())
    assert woken == []
    hub.add(WatchSpec(0, b"a", from_revision=2), Sink())
    hub.add(WatchSpec(0, b"b", from_revision=2), Sink())
    assert woken == [2], "once, not once a watch"
    drain(hub)
    hub.add(WatchSpec(0, b"a", from_revision=1), Sink())
    assert woken == [2, 2]


def test_one_revision_larger_than_a_slice_arrives_whole() -> None:
    machine, hub = setup()
    keys = [b"%06d" % number for number in range(WATCH_HISTORY_BATCH_EVENTS + 500)]
    hub.publish(machine.write(b"0"))
    hub.publish(machine.write(*keys))
    sink = Sink()
    hub.add(WatchSpec(0, b"", b"", from_revision=1), sink)
    drain(hub)
    assert [len(events) for _, events in sink.calls] in ([len(keys) + 1], [1, len(keys)])


def test_slices_shrink_when_values_are_large() -> None:
    machine, hub = setup()
    for _ in range(40):
        hub.publish(machine.write(b"a", size=1 << 20))
    first, second = Sink(), Sink()
    hub.add(WatchSpec(0, b"a", from_revision=2), first)
    drain(hub)
    hub.add(WatchSpec(0, b"a", from_revision=2), second)
    drain(hub)
    assert second.revisions == list(range(2, 42))
    assert max(len(events) for _, events in second.calls) <= 4


def test_turns_go_round_so_that_a_long_history_keeps_nobody_waiting() -> None:
    """etcd#17529: watches starved while others caught up."""
    machine, hub = setup()
    for _ in range(5000):
        hub.publish(machine.write(b"a"))
    far, near = Sink(), Sink()
    hub.add(WatchSpec(0, b"a", from_revision=2), far)
    hub.add(WatchSpec(0, b"a", from_revision=4990), near)
    hub.pump()
    hub.pump()
    assert near.revisions == list(range(4990, 5002))
    assert len(far.got) < 5000
    drain(hub)
    assert far.revisions == list(range(2, 5002))


def test_watches_behind_share_one_reading_of_history() -> None:
    machine, hub = setup()
    for _ in range(500):
        hub.publish(machine.write(b"a", b"b"))
    sinks = [Sink() for _ in range(200)]
    for number, sink in enumerate(sinks):
        key = b"a" if number % 2 else b"b"
        hub.add(WatchSpec(0, key, from_revision=2 + number), sink)
    drain(hub)
    for number, sink in enumerate(sinks):
        assert sink.revisions == list(range(2 + number, 502))
    assert machine.reads < 60


def test_more_riders_than_a_slice_takes_are_all_served() -> None:
    machine, hub = setup()
    for _ in range(3):
        hub.publish(machine.write(b"a"))
    sinks = [Sink() for _ in range(WATCH_SLICE_WATCHERS_MAX * 2 + 10)]
    for sink in sinks:
        hub.add(WatchSpec(0, b"a", from_revision=2), sink)
    assert drain(hub) >= 3
    assert all(sink.revisions == [2, 3, 4] for sink in sinks)


def test_progress_marks_never_run_ahead() -> None:
    machine, hub = setup()
    for _ in range(200):
        hub.publish(machine.write(b"a"))
    live, behind, silent, future = Sink(), Sink(), Sink(), Sink()
    hub.add(WatchSpec(0, b"x"), live)
    hub.add(WatchSpec(0, b"a", from_revision=2), behind)
    hub.add(WatchSpec(0, b"a", progress=False), silent)
    hub.add(WatchSpec(0, b"a", from_revision=500), future)
    hub.mark_progress()
    assert live.marks == [201] and behind.marks == [1]
    assert silent.marks == [] and future.marks == []
    hub.pump()
    hub.mark_progress()
    assert behind.marks[-1] == behind.revisions[-1]
    drain(hub)
    hub.mark_progress()
    assert behind.marks[-1] == 201


def test_a_long_round_of_marks_is_finished_by_the_pump() -> None:
    machine, hub = setup()
    sinks = [Sink() for _ in range(WATCH_SLICE_WATCHERS_MAX + 5)]
    watches = [hub.add(WatchSpec(0, b"a"), sink) for sink in sinks]
    watches[-1].cancel()
    hub.mark_progress()
    assert sinks[0].marks == [1] and sinks[-2].marks == []
    hub.publish(machine.write(b"a"))
    hub.mark_progress()
    drain(hub)
    assert sinks[0].marks == [1] and sinks[-2].marks == [2] and sinks[-1].marks == []


def test_equal_watches_share_one_list() -> None:
    machine, hub = setup()
    sinks = [Sink() for _ in range(100)]
    for sink in sinks:
        hub.add(WatchSpec(0, b"p/", prefix_end(b"p/"), deletes=False), sink)
    hub.publish(machine.write(b"p/1", b"q", b"p/2"))
    shared = sinks[0].calls[0][1]
    assert len(shared) == 2
    assert all(sink.calls[0][1] is shared for sink in sinks)


def test_previous_records_are_looked_up_once_a_delivery() -> None:
    machine, hub = setup()

    class Asking(Sink):
        watch: Watch

        def events(self, revision: int, events: list[Event]) -> bool:
            for event in events:
                self.watch.previous(event)
            return super().events(revision, events)

    sinks = [Asking() for _ in range(50)]
    for sink in sinks:
        sink.watch = hub.add(WatchSpec(0, b"a", prev=True), sink)
    events = machine.write(b"a")
    hub.publish(events)
    assert machine.lookups == 1
    hub.previous(events[0])
    assert machine.lookups == 2, "nothing is remembered after the delivery"


def test_an_installed_snapshot_puts_watches_behind_or_closes_them() -> None:
    machine, hub = setup()
    kept, future, lost = Sink(), Sink(), Sink(room=1)
    hub.add(WatchSpec(0, b"a"), kept)
    hub.add(WatchSpec(0, b"a", from_revision=6), future)
    hub.add(WatchSpec(0, b"a"), lost)
    hub.publish(machine.write(b"a"))
    for _ in range(8):
        machine.write(b"a")
    hub.reset_after_install()
    assert hub.behind == 3
    drain(hub)
    assert kept.revisions == list(range(2, 11)) and future.revisions == list(range(6, 11))
    for _ in range(5):
        machine.write(b"a")
    machine.compact(14)
    hub.reset_after_install()
    assert isinstance(kept.error, Compacted) and isinstance(lost.error, Compacted)
    fresh = Sink()
    hub.add(WatchSpec(0, b"a", from_revision=14), fresh)
    drain(hub)
    assert fresh.revisions == [14, 15]
    hub.reset_after_install()
    assert fresh.error is None and hub.behind == 0, "nothing went by: nothing changes"


def test_an_install_that_takes_revisions_back_is_a_bug() -> None:
    machine, hub = setup()
    hub.publish(machine.write(b"a"))
    machine.revision = 1
    with pytest.raises(InvariantViolation):
        hub.reset_after_install()


def test_publishing_a_revision_twice_is_a_bug() -> None:
    machine, hub = setup()
    events = machine.write(b"a")
    hub.publish(events)
    with pytest.raises(InvariantViolation):
        hub.publish(events)


def test_closing_the_hub_tells_every_watch() -> None:
    machine, hub = setup()
    sinks = [Sink(), Sink(), Sink(room=1)]
    watches = [hub.add(WatchSpec(0, b"a"), sink) for sink in sinks[::2]]
    watches.append(hub.add(WatchSpec(0, b"b", from_revision=9), sinks[1]))
    hub.publish(machine.write(b"a"))

    def cancel_another(error: RaftkvError) -> None:
        watches[-1].cancel()

    sinks[0].closed = cancel_another  # type: ignore[method-assign]
    hub.close(Stopping("the member stops"))
    assert isinstance(sinks[2].error, Stopping) and sinks[1].error is None
    assert len(hub) == 0 and all(watch.closed for watch in watches)


class Meddler(Sink):
    """Runs a piece of code inside its first delivery."""

    def __init__(self, act: object) -> None:
        super().__init__()
        self.act = act

    def events(self, revision: int, events: list[Event]) -> bool:
        act, self.act = self.act, None
        more = super().events(revision, events)
        if callable(act):
            act()
        return more


def test_sinks_may_add_and_cancel_watches_inside_a_delivery() -> None:
    machine, hub = setup()
    now, past, victim = Sink(), Sink(), Sink()
    doomed: list[Watch] = []

    def meddle() -> None:
        hub.add(WatchSpec(0, b"a"), now)
        hub.add(WatchSpec(0, b"a", from_revision=2), past)
        doomed[0].cancel()

    hub.add(WatchSpec(0, b"a"), Meddler(meddle))
    doomed.append(hub.add(WatchSpec(0, b"a"), victim))
    hub.publish(machine.write(b"a"))
    assert victim.got == [] and now.got == [] and past.got == []
    drain(hub)
    hub.publish(machine.write(b"a"))
    assert now.revisions == [3] and past.revisions == [2, 3]


def test_sinks_may_cancel_watches_inside_a_slice() -> None:
    machine, hub = setup()
    hub.publish(machine.write(b"a"))
    victim = Sink()
    doomed: list[Watch] = []
    itself: list[Watch] = []

    def meddle() -> None:
        doomed[0].cancel()
        itself[0].cancel()

    itself.append(hub.add(WatchSpec(0, b"a", from_revision=2), Meddler(meddle)))
    doomed.append(hub.add(WatchSpec(0, b"a", from_revision=2), victim))
    drain(hub)
    assert victim.got == [] and len(hub) == 0


def test_calling_back_into_the_delivery_is_a_bug_that_is_not_swallowed() -> None:
    machine, hub = setup()
    hub.add(WatchSpec(0, b"a"), Meddler(lambda: hub.publish(machine.write(b"a"))))
    with pytest.raises(InvariantViolation):
        hub.publish(machine.write(b"a"))
    machine, hub = setup()
    hub.add(WatchSpec(0, b"a"), Meddler(hub.pump))
    with pytest.raises(InvariantViolation):
        hub.publish(machine.write(b"a"))


def test_a_sink_that_fails_loses_its_watch_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine, hub = setup()

    class Broken(Sink):
        def events(self, revision: int, events: list[Event]) -> bool:
            raise ZeroDivisionError

        def progress(self, revision: int) -> None:
            raise ZeroDivisionError

    class Hopeless(Broken):
        def closed(self, error: RaftkvError) -> None:
            raise ZeroDivisionError

    broken, hopeless, marked, sound = Broken(), Hopeless(), Broken(), Sink()
    hub.add(WatchSpec(0, b"a"), broken)
    hub.add(WatchSpec(0, b"a"), hopeless)
    hub.add(WatchSpec(0, b"b"), marked)
    hub.add(WatchSpec(0, b"a"), sound)
    hub.publish(machine.write(b"a"))
    hub.mark_progress()
    assert type(broken.error) is Refused and type(marked.error) is Refused
    assert sound.revisions == [2] and sound.marks == [2] and len(hub) == 1
    assert "sink failed" in caplog.text


def test_ten_thousand_watched_keys_cost_a_writer_one_look_up() -> None:
    machine, hub = setup()
    for number in range(10_000):
        hub.add(WatchSpec(0, b"watched/%d" % number), Sink())
    index = hub._indexes[0]
    assert index._lengths == [] and index._tree.root is None
    assert hub._plan(machine.write(b"other")) == []
    sink = Sink()
    hub.add(WatchSpec(0, b"other"), sink)
    hub.publish(machine.write(b"other"))
    assert len(sink.got) == 1 and hub.delivered_events == 1
