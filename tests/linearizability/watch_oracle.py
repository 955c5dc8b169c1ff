"""What watches promise, held against the true list of all events.

etcd's nine properties, of which each violation names one:

    Ordered       events come in order of revision, and within one in the order of its writes
    Unique        no event comes twice
    Atomic        the events of one revision come in one response
    Reliable      no event of the range is left out between two that came, or up to a promise
    Resumable     a watch from revision R begins with the first event at or above R, whatever was
                  compacted below; one whose start is gone is told so, and ends
    Bookmarkable  after a progress mark at R nothing at or below R comes, and all of it has come
    PrevKV        the record before is told where it was asked for, and is the right one
    IsCreate      create and mod revision, version and value are those of the write
    Filter        nothing outside the range, and nothing that was filtered out, comes

A resumed watch is a log of its own, which starts at `resume_revision` of the one before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tests.linearizability.history import WatchEvent, WatchLog, WatchResponse
from tests.linearizability.model import holds_key
from tests.linearizability.report import Violation, tell_bytes, tell_interval, tell_record

_TOLD_MAX: Final = 5


def check_watch(
    log: WatchLog,
    truth: Sequence[WatchEvent],
    *,
    compacted: int = 0,
    complete_to: int = 0,
) -> list[Violation]:
    """Judge one watch; what is wrong, each kind once.

    `truth`: all events in order, each with its previous record. `compacted`: the highest revision
    that was ever compacted; at or below it a previous record may be missing. `complete_to`: the
    watch was given all the time it needs to deliver everything up to there.
    """
    judge = _Judge(log, truth, compacted)
    for violation in judge.run(complete_to):
        judge.found.setdefault(violation.rule, violation)
    return list(judge.found.values())


def check_watches(
    logs: Iterable[WatchLog], truth: Sequence[WatchEvent], *, compacted: int = 0
) -> list[Violation]:
    """As `check_watch`, for several."""
    return [each for log in logs for each in check_watch(log, truth, compacted=compacted)]


def resume_revision(log: WatchLog) -> int:
    """Where a new watch continues this one exactly; 0: it was told nothing, start it alike."""
    done = 0
    for response in log.responses:
        if response.progress:
            done = max(done, response.revision)
        if response.events:
            done = max(done, response.events[-1].record.mod_revision)
    return done + 1 if done else log.start_revision


class _Judge:
    def __init__(self, log: WatchLog, truth: Sequence[WatchEvent], compacted: int) -> None:
        self.log = log
        self.compacted = compacted
        self.revisions = [event.record.mod_revision for event in truth]
        self.truth = truth
        self.wanted = [event for event in truth if self._wants(event)]
        self.wanted_at = [event.record.mod_revision for event in self.wanted]
        self.found: dict[str, Violation] = {}
        self.delivered: list[tuple[int, WatchEvent]] = []
        """(number of the response, event), as they came."""
        self.seen: set[tuple[int, bytes]] = set()
        self.last = 0
        """Revision of the last event."""
        self.mark = 0
        """The highest progress mark."""

    def _wants(self, event: WatchEvent) -> bool:
        log = self.log
        return event.kind not in log.filters and holds_key(log.start, log.end, event.record.key)

    def run(self, complete_to: int) -> Iterator[Violation]:
        first = self.log.start_revision
        if first == 0 and self.log.responses and not _speaks(self.log.responses[0]):
            # It was opened "from now on", and this is when.
            first = self.log.responses[0].revision + 1
        self.first = first
        ended = False
        header = 0
        for number, response in enumerate(self.log.responses):
            if ended:
                yield self._violation("Resumable", "nothing after the end of the watch", response)
            if response.revision < header:
                expected = f"a header revision of at least {header}"
                yield self._violation("Ordered", expected, response)
            if _speaks(response):  # One that catches up may be below the store, where it opened.
                header = max(header, response.revision)
            yield from self._take(number, response)
            ended = ended or response.cancelled or response.compact_revision > 0
        if complete_to and not ended:
            yield from self._check_complete(complete_to, "by the end")

    def _take(self, number: int, response: WatchResponse) -> Iterator[Violation]:
        if response.compact_revision:
            yield from self._check_compacted(response)
        for event in response.events:
            yield from self._check_event(number, response, event)
        if response.events and response.revision < response.events[-1].record.mod_revision:
            yield self._violation("Ordered", "a header revision not below its events", response)
        if response.progress:
            yield from self._check_complete(response.revision, "by a progress mark")
            self.mark = max(self.mark, response.revision)

    def _check_compacted(self, response: WatchResponse) -> Iterator[Violation]:
        if not response.cancelled or response.events:
            yield self._violation("Resumable", "a watch that is compacted away ends", response)
        due = max(self.first, self.mark + 1, self.last + 1 if self.last else 0)
        if response.compact_revision <= due:
            expected = f"the watch goes on, since it needs nothing below revision {due}"
            yield self._violation("Resumable", expected, response)
        if response.compact_revision > self.compacted > 0:
            expected = f"a compact revision of at most {self.compacted}"
            yield self._violation("Resumable", expected, response)

    # -- events -----------------------------------------------------------------------------------

    def _check_event(
        self, number: int, response: WatchResponse, event: WatchEvent
    ) -> Iterator[Violation]:
        key, revision = event.record.key, event.record.mod_revision
        if not self._wants(event):
            yield self._violation("Filter", "only what the watch asked for", response, event)
            return
        true = self._true_event(event)
        if true is None:
            expected = self._tell_truth(revision)
            yield self._violation("Reliable", f"only true events: {expected}", response, event)
            return
        if (revision, key) in self.seen:
            yield self._violation("Unique", "each event once", response, event)
            return
        if self.first and revision < self.first:
            expected = f"nothing below revision {self.first}"
            yield self._violation("Resumable", expected, response, event)
        if revision <= self.mark:
            expected = f"nothing at or below the progress mark {self.mark}"
            yield self._violation("Bookmarkable", expected, response, event)
        yield from self._check_place(number, response, event)
        yield from self._check_content(response, event, true)
        self.seen.add((revision, key))
        self.delivered.append((number, event))
        self.last = max(self.last, revision)

    def _check_place(
        self, number: int, response: WatchResponse, event: WatchEvent
    ) -> Iterator[Violation]:
        if not self.delivered:
            if self.first:
                yield from self._check_between(self.first - 1, event, response, "Resumable")
            return
        before_number, before = self.delivered[-1]
        revision, old = event.record.mod_revision, before.record.mod_revision
        if revision < old:
            expected = f"events after revision {old}"
            yield self._violation("Ordered", expected, response, event)
        elif revision == old:
            if number != before_number:
                expected = f"all events of revision {revision} in one response"
                yield self._violation("Atomic", expected, response, event)
            if self._sub(event) < self._sub(before):
                expected = f"the order of revision {revision}: {self._tell_truth(revision)}"
                yield self._violation("Ordered", expected, response, event)
        else:
            yield from self._check_between(max(old - 1, self.mark), event, response, "Reliable")

    def _check_between(
        self, after: int, event: WatchEvent, response: WatchResponse, rule: str
    ) -> Iterator[Violation]:
        """Everything wanted above `after` and before the event has come."""
        until = event.record.mod_revision - 1
        missed = self._missed(after, until)
        if missed:
            yield self._violation(rule, f"first {_tell_events(missed)}", response, event)

    def _missed(self, after: int, until: int) -> list[WatchEvent]:
        low, high = bisect_right(self.wanted_at, after), bisect_right(self.wanted_at, until)
        return [
            event
            for event in self.wanted[low:high]
            if (event.record.mod_revision, event.record.key) not in self.seen
        ]

    def _check_complete(self, until: int, when: str) -> Iterator[Violation]:
        """Everything wanted up to a revision has come."""
        after = self.first - 1 if self.first else self.last and self._first_delivered() - 1
        if not self.first and not self.last:
            return  # Opened at a time nobody told: it may have begun just now.
        missed = self._missed(after, until)
        if missed:
            rule = "Bookmarkable" if "mark" in when else "Reliable"
            seen = f"events up to revision {self.last}"
            yield Violation(rule, f"{_tell_events(missed)} {when}", seen, (self._tell_log(),))

    def _first_delivered(self) -> int:
        return min(revision for revision, _ in self.seen)

    def _check_content(
        self, response: WatchResponse, event: WatchEvent, true: WatchEvent
    ) -> Iterator[Violation]:
        if event.kind != true.kind or event.record != true.record:
            expected = f"{true.kind} {tell_record(true.record)}"
            yield self._violation("IsCreate", expected, response, event)
        if not self.log.prev_kv:
            if event.previous is not None:
                yield self._violation("PrevKV", "no previous record", response, event)
        elif event.previous != true.previous:
            gone = event.previous is None and event.record.mod_revision <= self.compacted
            if not gone:
                expected = f"previous {tell_record(true.previous)}"
                yield self._violation("PrevKV", expected, response, event)

    # -- the truth --------------------------------------------------------------------------------

    def _at(self, revision: int) -> Sequence[WatchEvent]:
        low, high = bisect_left(self.revisions, revision), bisect_right(self.revisions, revision)
        return self.truth[low:high]

    def _true_event(self, event: WatchEvent) -> WatchEvent | None:
        found = self._at(event.record.mod_revision)
        return next((true for true in found if true.record.key == event.record.key), None)

    def _sub(self, event: WatchEvent) -> int:
        found = self._at(event.record.mod_revision)
        return [true.record.key for true in found].index(event.record.key)

    # -- telling ----------------------------------------------------------------------------------

    def _tell_truth(self, revision: int) -> str:
        return _tell_events(self._at(revision)) or f"nothing happened at revision {revision}"

    def _tell_log(self) -> str:
        log = self.log
        filters = f" without {sorted(log.filters)}" if log.filters else ""
        where = tell_interval(log.start, log.end)
        return f"watch of {where}{filters} from revision {log.start_revision}"

    def _violation(
        self, rule: str, expected: str, response: WatchResponse, event: WatchEvent | None = None
    ) -> Violation:
        told = [self._tell_log()]
        for number, before in self.delivered[-3:]:
            told.append(f"response {number}: {_tell_event(before)}")
        if self.mark:
            told.append(f"progress mark {self.mark}")
        told.append(f"at {response.at_us} us: {_tell_response(response)}")
        seen = _tell_response(response) if event is None else _tell_event(event)
        return Violation(rule, expected, seen, tuple(told))


def _speaks(response: WatchResponse) -> bool:
    """Whether a response is more than the confirmation that the watch is open."""
    told = response.events or response.progress or response.cancelled
    return bool(told or response.compact_revision)


def _tell_event(event: WatchEvent) -> str:
    before = "" if event.previous is None else f" before: {tell_record(event.previous)}"
    if event.kind == "delete":
        key, revision = tell_bytes(event.record.key), event.record.mod_revision
        return f"delete {key} at revision {revision}{before}"
    return f"put {tell_record(event.record)}{before}"


def _tell_events(events: Sequence[WatchEvent]) -> str:
    told = "; ".join(_tell_event(event) for event in events[:_TOLD_MAX])
    return told + ("; ..." if len(events) > _TOLD_MAX else "")


def _tell_response(response: WatchResponse) -> str:
    parts = [f"revision {response.revision}"]
    if response.progress:
        parts.append("progress")
    if response.compact_revision:
        parts.append(f"compacted at {response.compact_revision}")
    if response.cancelled:
        parts.append("cancelled")
    if response.events:
        parts.append(_tell_events(response.events))
    return ", ".join(parts)
