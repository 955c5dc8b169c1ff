"""Watches: what the applier publishes reaches every sink whose range holds it, whole and in order.

A watch is in one of these places:

    waiting     its first revision is yet to come
    live        it has everything published so far, and gets what comes in `publish`
    behind      it is fed from the machine's history by `pump`, until it is live
    paused      behind, and its sink asked not to be fed until `Watch.resume`
    closed      it gets nothing any more

For every watch the hub knows the first revision that it has not dealt with (`next`); everything
below has been delivered. That one number carries every promise: a delivery takes whole revisions
from `next` on and moves it past them, so nothing is repeated, torn or left out, and a progress
mark of next - 1 can never run ahead of the events.

Watches with equal range and filters form a group. A group is matched and filtered once for each
publication, and its sinks are given the very same list, which they must not change.

Pure of sockets, clocks and tasks. Everything is called on the loop that owns the member.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final, Protocol

from sortedcontainers import SortedDict

from raftkv.checks import check
from raftkv.errors import (
    Compacted,
    InvalidRequest,
    InvariantViolation,
    RaftkvError,
    Refused,
    TooManyRequests,
)
from raftkv.limits import (
    WATCH_HISTORY_BATCH_BYTES,
    WATCH_HISTORY_BATCH_EVENTS,
    WATCH_SLICE_WATCHERS_MAX,
    WATCHERS_MAX,
)
from raftkv.machine.events import Event
from raftkv.machine.records import DELETE, Record
from raftkv.server.watch_index import TO_THE_END, RangeIndex

log = logging.getLogger(__name__)

_REVISION: Final = attrgetter("revision")
_EVENT_OVERHEAD_BYTES: Final = 128


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """What to watch. Frozen: equal specifications share the work."""

    keyspace: int
    start: bytes
    end: bytes | None = None
    """Exclusive; None: the single key `start`; b"": to the end of the keyspace."""
    from_revision: int = 0
    """The first revision wanted, kept or future; 0: the one after the machine's newest."""
    puts: bool = True
    deletes: bool = True
    prev: bool = False
    """The sink will ask `Watch.previous` for the record that each event replaced."""
    progress: bool = True


class WatchSink(Protocol):
    """Where a watch delivers. Calls come on the loop and must not block."""

    def events(self, revision: int, events: list[Event]) -> bool:
        """Take all wanted events of one or several whole revisions, in order; never empty.

        With this call everything up to `revision` has been delivered. The list is shared with
        other sinks. The events are taken whatever is returned; False says that the sink is full:
        nothing more comes until `Watch.resume`.
        """

    def progress(self, revision: int) -> None:
        """Everything up to `revision` has been delivered; resume from revision + 1."""

    def closed(self, error: RaftkvError) -> None:
        """Nothing comes any more. Called at most once, and never after `Watch.cancel`.

        `Compacted` (facts: oldest_revision) when history that the watch still needs is gone.
        """


class WatchMachine(Protocol):
    """The part of the machine that watches read."""

    @property
    def revision(self) -> int:
        """The newest revision."""

    @property
    def compact_revision(self) -> int:
        """Events of this revision and later ones are kept."""

    def history(self, from_revision: int, to_revision: int, events_max: int) -> Sequence[Event]:
        """Events of whole revisions in [from_revision, to_revision], in order, from the first.

        Stops at about `events_max`, but never before the first revision that has any. Empty:
        there are none. Raises Compacted.
        """

    def previous(self, event: Event) -> Record | None:
        """The record that `event` replaced; None: there was none, or it is compacted."""


class Place(IntEnum):
    """Where a watch stands; see the head of this module."""

    WAITING = 0
    LIVE = 1
    BEHIND = 2
    PAUSED = 3
    CLOSED = 4


class Watch:
    """One watch, as held by the door that asked for it."""

    __slots__ = (
        "_events",
        "_group",
        "_hub",
        "_next",
        "_place",
        "_queued",
        "_round",
        "on_end",
        "sink",
        "spec",
    )

    def __init__(self, hub: WatchHub, spec: WatchSpec, sink: WatchSink, group: _Group) -> None:
        self.spec = spec
        self.sink = sink
        self._events = sink.events
        self._hub = hub
        self._group = group
        self._place = Place.WAITING
        self._next = spec.from_revision
        self._queued = False
        self._round = 0
        self.on_end: Callable[[Watch], object] | None = None
        """Called once, with the watch, when it ends in whatever way."""

    @property
    def place(self) -> Place:
        """Where the watch stands."""
        return self._place

    @property
    def closed(self) -> bool:
        """Whether the watch has ended, by `cancel` or by the hub."""
        return self._place is Place.CLOSED

    @property
    def delivered_revision(self) -> int:
        """Everything up to here has been delivered. A watch to come: the revision before its first.

        Stays where it was once the watch is closed.
        """
        if self._place is Place.LIVE:
            return self._hub.revision
        return self._next - 1

    def previous(self, event: Event) -> Record | None:
        """The record that `event` replaced; None: there was none, or it is compacted.

        Ask within `WatchSink.events`: later a compaction may have taken it.
        """
        return self._hub.previous(event)

    def resume(self) -> None:
        """Say that a sink that answered False has room again. Otherwise without effect."""
        if self._place is Place.PAUSED:
            self._hub._resume(self)

    def close(self, error: RaftkvError) -> None:
        """End the watch and tell its sink why. Without effect on one that has ended."""
        if self._place is not Place.CLOSED:
            self._hub._close(self, error)

    def cancel(self) -> None:
        """End the watch; its sink is not called any more. Safe at any time, and twice."""
        if self._place is not Place.CLOSED:
            self._hub._remove(self)


class _Group:
    """All watches of one range and set of filters, and those of them that are live."""

    __slots__ = ("deletes", "live", "members", "puts", "slot", "watches")

    def __init__(self, slot: _Slot, puts: bool, deletes: bool) -> None:
        self.slot = slot
        self.puts = puts
        self.deletes = deletes
        self.watches = 0
        self.live: dict[Watch, None] = {}
        self.members: tuple[Watch, ...] | None = ()
        """The live ones, as they stood when last asked for; None: look again."""

    def snapshot(self) -> tuple[Watch, ...]:
        members = self.members
        if members is None:
            members = self.members = tuple(self.live)
        return members

    def filtered(self, events: list[Event]) -> list[Event]:
        """The events that pass the group's filters; the same list when all do."""
        if self.puts and self.deletes:
            return events
        kept = [event for event in events if (self.deletes if event.kind == DELETE else self.puts)]
        return events if len(kept) == len(events) else kept

    def matching(self, events: Sequence[Event]) -> list[Event]:
        """The events that are in the group's range and pass its filters."""
        slot = self.slot
        space, start, end = slot.keyspace, slot.start, slot.end
        if end is None:
            kept = [e for e in events if e.key == start and e.keyspace == space]
        elif end == TO_THE_END:
            kept = [e for e in events if e.keyspace == space and e.key >= start]
        else:
            kept = [e for e in events if e.keyspace == space and start <= e.key < end]
        return self.filtered(kept)


class _Slot:
    """One watched range, with a group for each set of filters in use."""

    __slots__ = ("end", "groups", "keyspace", "start")

    def __init__(self, keyspace: int, start: bytes, end: bytes | None) -> None:
        self.keyspace = keyspace
        self.start = start
        self.end = end
        self.groups: dict[tuple[bool, bool], _Group] = {}


class WatchHub:
    """All watches of one member."""

    __slots__ = (
        "_ahead",
        "_behind",
        "_busy",
        "_compacted",
        "_future",
        "_indexes",
        "_machine",
        "_marks",
        "_previous",
        "_queue",
        "_round",
        "_slice_events",
        "_slots",
        "_wake",
        "_watches",
        "closed_compacted",
        "delivered_events",
        "history_events",
        "pauses",
        "revision",
        "slices",
        "watches_max",
    )

    def __init__(
        self,
        machine: WatchMachine,
        *,
        wake: Callable[[], None] | None = None,
        watches_max: int = WATCHERS_MAX,
    ) -> None:
        """`wake` is called when there is something to `pump` and there was nothing before."""
        self._machine = machine
        self._wake = wake
        self.watches_max = watches_max
        self.revision = machine.revision
        """Everything up to here has been published."""
        self._compacted = machine.compact_revision
        self._watches: dict[Watch, None] = {}
        self._slots: dict[tuple[int, bytes, bytes | None], _Slot] = {}
        self._indexes: dict[int, RangeIndex[_Slot]] = {}
        self._future: list[tuple[int, int, Watch]] = []
        self._ahead = 0
        self._behind: SortedDict[int, dict[Watch, None]] = SortedDict()
        """By `next`: every watch that is behind or paused."""
        self._queue: deque[Watch] = deque()
        """The turns of `pump`. May hold watches that have left; `_queued` keeps them unique."""
        self._marks: deque[Watch] = deque()
        """Those that the progress sweep under way has not come to yet."""
        self._round = 1
        """Numbers the slices; 0 in a watch: none since its last turn."""
        self._slice_events = 64
        self._busy = False
        self._previous: dict[tuple[int, int], Record | None] = {}
        self.delivered_events = 0
        self.history_events = 0
        self.slices = 0
        self.pauses = 0
        self.closed_compacted = 0

    def __len__(self) -> int:
        return len(self._watches)

    @property
    def behind(self) -> int:
        """How many watches are behind, paused ones included."""
        return sum(map(len, self._behind.values()))

    @property
    def idle(self) -> bool:
        """Whether `pump` has nothing to do."""
        return not self._queue and not self._marks

    # What doors call.

    def add(self, spec: WatchSpec, sink: WatchSink) -> Watch:
        """Start a watch; `Watch.delivered_revision` tells where it starts.

        A start below the kept history calls sink.closed(Compacted) before this returns, with a
        closed watch. Raises InvalidRequest for a range that holds no key or a negative revision,
        TooManyRequests at the limit of watches.
        """
        if spec.end is not None and spec.end != TO_THE_END and spec.end <= spec.start:
            raise InvalidRequest("the watched range holds no key: its end is not after its start")
        if spec.from_revision < 0:
            raise InvalidRequest(
                f"a watch cannot start at revision {spec.from_revision}",
                revision=spec.from_revision,
            )
        if len(self._watches) >= self.watches_max:
            raise TooManyRequests(
                f"this member serves at most {self.watches_max} watches", limit=self.watches_max
            )
        group = self._group(spec)
        watch = Watch(self, spec, sink, group)
        group.watches += 1
        self._watches[watch] = None
        oldest = self._machine.compact_revision
        if spec.from_revision == 0:
            # The machine may be ahead of what is published: the applier is between the two.
            watch._next = self._machine.revision + 1
        elif spec.from_revision < oldest:
            self._close(watch, compacted(oldest))
            return watch
        self._settle(watch)
        return watch

    def previous(self, event: Event) -> Record | None:
        """See `Watch.previous`; the answer is shared by all sinks of one delivery."""
        if not self._busy:
            return self._machine.previous(event)
        at = (event.revision, event.sub)
        if at not in self._previous:
            self._previous[at] = self._machine.previous(event)
        return self._previous[at]

    # What the member calls.

    def publish(self, events: Sequence[Event]) -> None:
        """Deliver what the machine has just applied: whole new revisions, in order.

        Called once after each apply, before anything else is applied. No events: no effect.
        """
        if not events:
            return
        first, last = events[0].revision, events[-1].revision
        check(self.revision < first <= last, "published out of order", at=self.revision, got=first)
        while self._future and self._future[0][0] <= first:
            watch = heappop(self._future)[2]
            if watch._place is Place.WAITING:
                self._go_live(watch)
        self.revision = last
        # Matched in full before the first call, for a sink may add, resume and cancel watches.
        plan = self._plan(events)
        with _Delivery(self):
            for members, wanted in plan:
                for watch in members:
                    if watch._place is Place.LIVE and not self._deliver(watch, last, wanted):
                        self._fall_behind(watch, Place.PAUSED)
        # Those whose first revision lies within this publication are fed from history.
        self._arrive()

    def pump(self) -> bool:
        """Feed one slice of history to the watch whose turn it is, and to all that it suits.

        Bounded by WATCH_HISTORY_BATCH_EVENTS and WATCH_SLICE_WATCHERS_MAX; turns go round, so no
        watch waits for another's whole history. Returns whether there is more to do.
        """
        check(not self._busy, "a sink called pump")
        self._expire()
        self._mark_slice()
        while self._queue:
            watch = self._queue[0]
            if watch._place is not Place.BEHIND:
                self._queue.popleft()
                watch._queued = False
                continue
            if watch._round == self._round:
                # It rode along in another's slice since its last turn: to the end of the line.
                watch._round = 0
                self._queue.rotate(-1)
                continue
            self._queue.rotate(-1)
            self._slice(watch)
            watch._round = 0
            break
        return not self.idle

    def mark_progress(self) -> None:
        """Give every watch that wants it a progress mark; a long list is finished by `pump`."""
        self._expire()
        if not self._marks:
            was_idle = self.idle
            self._marks.extend(watch for watch in self._watches if watch.spec.progress)
            self._mark_slice()
            self._awaken(was_idle)

    def reset_after_install(self) -> None:
        """The machine's tables were replaced by a snapshot: revisions went by unpublished.

        Every watch that missed any is behind now, and is fed from the installed history, or is
        closed by `pump` where that no longer reaches back.
        """
        check(self._machine.revision >= self.revision, "an install may not take revisions back")
        if self._machine.revision > self.revision:
            for watch in list(self._watches):
                if watch._place is Place.LIVE:
                    self._fall_behind(watch, Place.BEHIND)
            self.revision = self._machine.revision
            self._arrive()
        self._expire()

    def close(self, error: RaftkvError) -> None:
        """End every watch with `error`, for example Stopping."""
        for watch in list(self._watches):
            if watch._place is not Place.CLOSED:
                self._close(watch, error)

    # Delivery.

    def _plan(self, events: Sequence[Event]) -> list[tuple[tuple[Watch, ...], list[Event]]]:
        matched: dict[_Slot, list[Event]] = {}
        for event in events:
            index = self._indexes.get(event.keyspace)
            if index is None:
                continue
            for slot in index.find(event.key):
                wanted = matched.get(slot)
                if wanted is None:
                    matched[slot] = [event]
                else:
                    wanted.append(event)
        plan = []
        for slot, wanted in matched.items():
            for group in slot.groups.values():
                passed = group.filtered(wanted)
                if passed and group.live:
                    plan.append((group.snapshot(), passed))
        return plan

    def _deliver(self, watch: Watch, revision: int, events: list[Event]) -> bool:
        """Hand over; returns whether the sink takes more. A sink that fails loses its watch."""
        self.delivered_events += len(events)
        try:
            return watch._events(revision, events)
        except Exception as error:
            self._failed(watch, error)
            return True

    def _failed(self, watch: Watch, error: Exception) -> None:
        """One door's defect must not keep the events from everyone else's watches."""
        if isinstance(error, InvariantViolation):
            raise error
        log.error("a watch was closed because its sink failed", exc_info=error)
        if watch._place is not Place.CLOSED:
            self._close(watch, Refused("the watch failed inside the member"))

    def _slice(self, head: Watch) -> None:
        """Read history once from where `head` is and give it to all watches that it suits."""
        start = head._next
        try:
            events = self._machine.history(start, self.revision, self._slice_events)
        except Compacted as refusal:
            oldest = refusal.facts.get("oldest_revision", self._machine.compact_revision)
            self._expire_below(max(oldest, start + 1), oldest)
            return
        self.slices += 1
        self.history_events += len(events)
        self._resize_slice(events)
        end = events[-1].revision if events else self.revision
        check(start <= end <= self.revision, "history answered outside of what was asked", end=end)
        riders = self._riders(head, start, end)
        by_group: dict[_Group, list[Event]] = {}
        with _Delivery(self):
            for watch in riders:
                if watch._place is not Place.BEHIND:
                    continue
                wanted = by_group.get(watch._group)
                if wanted is None:
                    wanted = by_group[watch._group] = watch._group.matching(events)
                if wanted and wanted[0].revision < watch._next:
                    wanted = wanted[bisect_left(wanted, watch._next, key=_REVISION) :]
                watch._round = self._round
                self._leave_behind(watch)
                watch._next = end + 1
                self._join_behind(watch)
                if wanted and not self._deliver(watch, end, wanted):
                    self._pause(watch)
                elif watch._place is Place.BEHIND and watch._next > self.revision:
                    self._leave_behind(watch)
                    self._settle(watch)

    def _riders(self, head: Watch, start: int, end: int) -> list[Watch]:
        """`head`, and other watches behind that the history from `start` to `end` moves on."""
        self._round += 1
        riders: dict[Watch, None] = {head: None}
        for at in self._behind.irange(start, end):
            for watch in self._behind[at]:
                if len(riders) >= WATCH_SLICE_WATCHERS_MAX:
                    return list(riders)
                if watch._place is Place.BEHIND:
                    riders[watch] = None
        return list(riders)

    def _resize_slice(self, events: Sequence[Event]) -> None:
        """Aim the next slice at the byte bound: values may be of a byte or of a megabyte."""
        if not events:
            return
        size = sum(len(event.raw) for event in events) + _EVENT_OVERHEAD_BYTES * len(events)
        fitting = WATCH_HISTORY_BATCH_BYTES * len(events) // size
        grown = min(fitting, self._slice_events * 2, WATCH_HISTORY_BATCH_EVENTS)
        self._slice_events = max(1, grown)

    def _mark_slice(self) -> None:
        for _ in range(min(len(self._marks), WATCH_SLICE_WATCHERS_MAX)):
            watch = self._marks.popleft()
            if watch._place is Place.LIVE:
                revision = self.revision
            elif watch._place is Place.BEHIND:
                revision = watch._next - 1
            else:
                continue
            if revision + 1 < watch.spec.from_revision:
                continue
            try:
                watch.sink.progress(revision)
            except Exception as error:
                self._failed(watch, error)

    # Places.

    def _group(self, spec: WatchSpec) -> _Group:
        at = (spec.keyspace, spec.start, spec.end)
        slot = self._slots.get(at)
        if slot is None:
            slot = self._slots[at] = _Slot(*at)
            index = self._indexes.get(spec.keyspace)
            if index is None:
                index = self._indexes[spec.keyspace] = RangeIndex()
            index.add(spec.start, spec.end, slot)
        group = slot.groups.get((spec.puts, spec.deletes))
        if group is None:
            group = slot.groups[spec.puts, spec.deletes] = _Group(slot, spec.puts, spec.deletes)
        return group

    def _settle(self, watch: Watch) -> None:
        """Put a watch that is in no place where its `next` belongs."""
        if watch._next <= self.revision:
            self._enter_behind(watch, Place.BEHIND)
        elif watch._next == self.revision + 1:
            self._go_live(watch)
        else:
            watch._place = Place.WAITING
            self._ahead += 1
            heappush(self._future, (watch._next, self._ahead, watch))

    def _go_live(self, watch: Watch) -> None:
        watch._place = Place.LIVE
        watch._group.live[watch] = None
        watch._group.members = None

    def _arrive(self) -> None:
        """Settle the waiting watches whose first revision has come, or is next."""
        while self._future and self._future[0][0] <= self.revision + 1:
            watch = heappop(self._future)[2]
            if watch._place is Place.WAITING:
                self._settle(watch)

    def _fall_behind(self, watch: Watch, place: Place) -> None:
        """Take a live watch out of the way of publications; `revision` is delivered to it."""
        if watch._place is not Place.LIVE:
            return
        del watch._group.live[watch]
        watch._group.members = None
        watch._next = self.revision + 1
        self._enter_behind(watch, place)

    def _enter_behind(self, watch: Watch, place: Place) -> None:
        self._join_behind(watch)
        watch._place = place
        if place is Place.PAUSED:
            self.pauses += 1
        else:
            self._enqueue(watch)

    def _pause(self, watch: Watch) -> None:
        if watch._place is Place.BEHIND:
            watch._place = Place.PAUSED
            self.pauses += 1

    def _resume(self, watch: Watch) -> None:
        if watch._next > self.revision:
            self._leave_behind(watch)
            self._settle(watch)
        else:
            watch._place = Place.BEHIND
            self._enqueue(watch)

    def _enqueue(self, watch: Watch) -> None:
        if not watch._queued:
            was_idle = self.idle
            watch._queued = True
            self._queue.append(watch)
            self._awaken(was_idle)

    def _awaken(self, was_idle: bool) -> None:
        if was_idle and not self.idle and self._wake is not None:
            self._wake()

    def _join_behind(self, watch: Watch) -> None:
        peers = self._behind.get(watch._next)
        if peers is None:
            peers = self._behind[watch._next] = {}
        peers[watch] = None

    def _leave_behind(self, watch: Watch) -> None:
        peers = self._behind[watch._next]
        del peers[watch]
        if not peers:
            del self._behind[watch._next]

    def _remove(self, watch: Watch) -> None:
        if watch._place is Place.LIVE:
            del watch._group.live[watch]
            watch._group.members = None
            watch._next = self.revision + 1
        elif watch._place in (Place.BEHIND, Place.PAUSED):
            self._leave_behind(watch)
        # A waiting watch stays in the heap until its revision comes: see _arrive.
        watch._place = Place.CLOSED
        del self._watches[watch]
        if watch.on_end is not None:
            watch.on_end(watch)
            watch.on_end = None
        group = watch._group
        group.watches -= 1
        if group.watches:
            return
        slot = group.slot
        del slot.groups[group.puts, group.deletes]
        if not slot.groups:
            del self._slots[slot.keyspace, slot.start, slot.end]
            index = self._indexes[slot.keyspace]
            index.discard(slot.start, slot.end)
            if not len(index):
                del self._indexes[slot.keyspace]

    def _close(self, watch: Watch, error: RaftkvError) -> None:
        self._remove(watch)
        if isinstance(error, Compacted):
            self.closed_compacted += 1
        try:
            watch.sink.closed(error)
        except Exception as failure:
            self._failed(watch, failure)

    def _expire(self) -> None:
        """Close the watches behind whose history a compaction has taken."""
        oldest = self._machine.compact_revision
        if oldest != self._compacted:
            self._compacted = oldest
            self._expire_below(oldest, oldest)

    def _expire_below(self, limit: int, oldest: int) -> None:
        late = list(self._behind.irange(None, limit, (True, False)))
        for watch in [watch for at in late for watch in self._behind[at]]:
            if watch._place is not Place.CLOSED:
                self._close(watch, compacted(oldest))


class _Delivery:
    """Marks that sinks are being called, and shares what they look up meanwhile."""

    __slots__ = ("_hub",)

    def __init__(self, hub: WatchHub) -> None:
        self._hub = hub

    def __enter__(self) -> None:
        check(not self._hub._busy, "a sink called back into a delivery")
        self._hub._busy = True

    def __exit__(self, *_: object) -> None:
        self._hub._busy = False
        self._hub._previous.clear()


def compacted(oldest: int) -> Compacted:
    """The error of a watch whose history is gone."""
    return Compacted(
        f"history before revision {oldest} is compacted; read the present state, then watch on",
        oldest_revision=oldest,
    )
