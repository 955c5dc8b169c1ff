"""What must hold of a real cluster after trouble, checked in full.

Two kinds of evidence are laid side by side: what clients were told (`Load`), and the history of
every key as the members keep it, which an auditor's watch follows and each member confirms.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from tests.linearizability.check import check_history
from tests.linearizability.history import (
    Delete,
    DeleteAnswer,
    Grant,
    History,
    KeyRecord,
    Operation,
    Outcome,
    Put,
    PutAnswer,
    Range,
    Txn,
    TxnAnswer,
    WatchEvent,
    WatchLog,
    WatchResponse,
)
from tests.linearizability.lease_oracle import check_leases, lease_ends
from tests.linearizability.lock_oracle import Effect, Holding, check_locks
from tests.linearizability.model import holds_key
from tests.linearizability.report import Report, Violation
from tests.linearizability.watch_oracle import check_watch
from tests.support.http_requests import encode, record
from tests.support.processes import Cluster, Member
from tests.support.rebase import Rebase, foreign_writes
from tests.support.recorder import Urls, WatchRecorder
from tests.support.workload import Load, Mix

LEASES_GONE_SECONDS = 5.0
"""The longest TTL of the load, 3 s, and the second within which a lease ends after it."""
Revisions = dict[int, tuple[WatchEvent, ...]]
"""All events, by revision."""


class Auditor:
    """Follows every change of the store, from the moment the block is entered."""

    def __init__(self, urls: Urls, chance: random.Random, from_revision: int) -> None:
        self._urls = urls
        self._chance = chance
        self._from = from_revision
        self._session: aiohttp.ClientSession | None = None
        self._watch: WatchRecorder | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Auditor:
        self._session = aiohttp.ClientSession()
        self._watch = WatchRecorder(
            self._session, self._urls, self._chance, b"", b"\0", prev_kv=True,
            from_revision=self._from, life_seconds=(2.0, 10.0),
        )  # fmt: skip
        self._task = asyncio.create_task(self._watch.run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None and self._session is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._session.close()

    @property
    def revision(self) -> int:
        """Everything up to this one was told."""
        assert self._watch is not None
        return self._watch.revision

    async def reach(self, revision: int, seconds: float = 30.0) -> None:
        """Wait until everything up to `revision` was told."""
        assert self._task is not None
        try:
            async with asyncio.timeout(seconds):
                while self.revision < revision:
                    if self._task.done():
                        self._task.result()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"the auditor stands at {self.revision} of {revision}") from None

    def take(self, revision: int) -> Revisions:
        """All events up to `revision`, and forget them."""
        assert self._watch is not None
        watch = self._watch
        logs = [*watch.logs, *watch.open_logs]
        kept: Revisions = {}
        for log in logs:
            late = []
            for response in log.responses:
                assert not response.compact_revision, "the auditor was overtaken by compaction"
                if not response.events:
                    continue
                if response.revision > revision:
                    late.append(response)
                    continue
                assert response.revision not in kept, f"revision {response.revision} came twice"
                assert not kept or response.revision > max(kept), "revisions out of order"
                kept[response.revision] = response.events
            log.responses[:] = late
        watch.logs[:] = [log for log in watch.logs if log.responses]
        return kept


@dataclass(slots=True)
class Evidence:
    """One batch of work, complete: the cluster was whole and quiet at its end."""

    prefix: bytes
    first_revision: int
    """The store's revision before the batch."""
    last_revision: int
    """Of the marks that ended it."""
    operations: list[Operation]
    watches: list[list[WatchLog]]
    """The logs of each watch, one after another."""
    holdings: list[Holding]
    events: Revisions
    compact_revision: int
    """At the end."""
    final: tuple[KeyRecord, ...]
    """What is under the prefix at `last_revision`, alike on all members."""


@dataclass(slots=True)
class Tally:
    """What was looked at."""

    operations: int = 0
    ok: int = 0
    refused: int = 0
    unknown: int = 0
    acknowledged_writes: int = 0
    revisions: int = 0
    watch_connections: int = 0
    watch_events: int = 0
    leases: int = 0
    expired: int = 0
    holdings: int = 0
    guarded_writes: int = 0
    seconds: float = 0.0
    """Spent on judging."""

    def add(self, evidence: Evidence) -> None:
        """Count a batch."""
        outcomes = Counter(operation.outcome for operation in evidence.operations)
        self.operations += len(evidence.operations)
        self.ok += outcomes[Outcome.OK]
        self.refused += outcomes[Outcome.REFUSED]
        self.unknown += outcomes[Outcome.UNKNOWN]
        self.revisions += len(evidence.events)
        for logs in evidence.watches:
            self.watch_connections += len(logs)
            self.watch_events += sum(len(each.events) for log in logs for each in log.responses)
        self.holdings += len(evidence.holdings)

    def brief(self) -> str:
        """For a line of progress."""
        return f"{self.operations} operations checked"

    def __str__(self) -> str:
        return (
            f"{self.operations} operations recorded ({self.ok} done, {self.refused} refused, "
            f"{self.unknown} unknown), {self.acknowledged_writes} acknowledged writes all there; "
            f"{self.revisions} revisions alike on all members; "
            f"{self.watch_events} events over {self.watch_connections} watch connections; "
            f"{self.leases} leases, {self.expired} of which ran out with keys; "
            f"{self.holdings} holdings of locks with {self.guarded_writes} guarded writes; "
            f"judged in {self.seconds:.0f} s"
        )


async def settle(cluster: Cluster, load: Load, auditor: Auditor, first_revision: int) -> Evidence:
    """End the load and gather what is to be judged. The cluster must be whole."""
    await load.stop()
    await load.mark()
    status = await cluster.equal_hashes()
    marked = load.marked_revision
    await auditor.reach(marked)
    await load.close()
    events = auditor.take(marked)
    end = _after(load.prefix)
    finals = [
        await final_state(cluster, member, load.prefix, end, marked) for member in cluster.members
    ]
    assert all(final == finals[0] for final in finals), f"members differ at revision {marked}"
    oldest = max(int(status["compact_revision"]), first_revision + 1)
    for member in cluster.members:
        kept = _from(oldest, await kept_history(cluster, member, oldest, marked))
        told = _from(oldest, events)
        if kept != told:
            wrong = sorted(r for r in kept.keys() | told.keys() if kept.get(r) != told.get(r))
            raise AssertionError(
                f"{member.name} keeps another history than the auditor was told, first at "
                f"revision {wrong[0]}: {kept.get(wrong[0])} and {told.get(wrong[0])}"
            )
    return Evidence(
        prefix=load.prefix,
        first_revision=first_revision,
        last_revision=marked,
        operations=load.history.operations,
        watches=[watch.logs for watch in load.watches],
        holdings=load.holdings,
        events=events,
        compact_revision=int(status["compact_revision"]),
        final=finals[0],
    )


def _from(oldest: int, events: Revisions) -> Revisions:
    """The events from `oldest` on, without what was there before it: that may be compacted."""

    def known(event: WatchEvent) -> WatchEvent:
        compacted = event.previous is not None and event.previous.mod_revision < oldest
        return replace(event, previous=None) if compacted else event

    return {
        revision: tuple(map(known, each)) for revision, each in events.items() if revision >= oldest
    }


async def leases_end(cluster: Cluster) -> None:
    """Nobody renews any lease any more: all of them end, and so do their keys."""
    deadline = time.monotonic() + LEASES_GONE_SECONDS
    while True:
        member = await cluster.leader()
        code, body, _ = await cluster.call(member, "GET", "/api/leases")
        if code == 200 and not body["leases"]:
            break
        assert time.monotonic() < deadline, f"leases are left: {body}"
        await asyncio.sleep(0.1)
    _, body, _ = await cluster.call(member, "GET", "/api/kv")
    left = [item["key"] for item in body["items"] if item["lease"] is not None]
    assert not left, f"keys of leases that ended: {left}"


async def final_state(
    cluster: Cluster, member: Member, start: bytes, end: bytes, revision: int
) -> tuple[KeyRecord, ...]:
    """What one member itself has in an interval at a revision."""
    request = encode(Range(start, end, serializable=True, revision=revision))
    code, body, _ = await cluster.call(member, request.method, request.target)
    assert code == 200 and not body["more"], body
    return tuple(map(record, body["items"]))


async def kept_history(
    cluster: Cluster, member: Member, first: int, last: int, seconds: float = 30.0
) -> Revisions:
    """The events from `first` to `last`, of which `last` has some, as one member keeps them."""
    assert cluster.session is not None
    watch = WatchRecorder(
        cluster.session, lambda: [member.client_url], random.Random(0), b"", b"\0",
        prev_kv=True, from_revision=first, life_seconds=(seconds, seconds),
    )  # fmt: skip
    task = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(seconds):
            while watch.revision < last:
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return {
        response.revision: response.events
        for log in watch.logs
        for response in log.responses
        if response.events and response.revision <= last
    }


def nothing_lost(evidence: Evidence) -> int:
    """Each acknowledged write is in the history at its revision, each refused one nowhere, and
    none twice.

    Answers how many acknowledged writes there were. It knows no theory of what may be concurrent,
    so it holds whatever the checkers of histories overlook.
    """
    written = Counter(
        (event.record.key, event.record.value)
        for events in evidence.events.values()
        for event in events
        if event.kind == "put" and event.record.key.startswith(evidence.prefix)
    )
    twice = [pair for pair, count in written.items() if count > 1]
    assert not twice, f"done twice: {twice[:5]}"
    acknowledged = 0
    for operation in evidence.operations:
        if operation.outcome is Outcome.OK:
            revision, effects = _effects(operation.request, operation.answer)
            events = evidence.events.get(revision, ())
            for effect in effects:
                acknowledged += 1
                assert any(_shows(event, effect) for event in events), (
                    f"acknowledged and lost: {operation}; revision {revision} has {events}"
                )
        elif operation.outcome is Outcome.REFUSED:
            for put in _puts(operation.request):
                assert not written[put.key, put.value], f"refused and yet done: {operation}"
    return acknowledged


def _effects(request: object, answer: object) -> tuple[int, list[Put | Delete]]:
    """At which revision a request that was carried out changed something, and what."""
    if isinstance(request, Put) and isinstance(answer, PutAnswer):
        return answer.revision, [request]
    if isinstance(request, Delete) and isinstance(answer, DeleteAnswer):
        return answer.revision, [request] if answer.deleted else []
    if isinstance(request, Txn) and isinstance(answer, TxnAnswer):
        branch = request.success if answer.succeeded else request.failure
        pairs = zip(branch, answer.answers, strict=True)
        return answer.revision, [each for pair in pairs for each in _effects(*pair)[1]]
    return 0, []


def _shows(event: WatchEvent, effect: Put | Delete) -> bool:
    if isinstance(effect, Put):
        wanted = ("put", effect.key, effect.value)
        return (event.kind, event.record.key, event.record.value) == wanted
    return event.kind == "delete" and holds_key(effect.start, effect.end, event.record.key)


def _puts(request: object) -> Iterator[Put]:
    if isinstance(request, Put):
        yield request
    elif isinstance(request, Txn):
        for operation in (*request.success, *request.failure):
            yield from _puts(operation)


def judge(evidence: Evidence, tally: Tally, folder: Path | None = None) -> None:
    """Everything that can be checked of one batch. Raises AssertionError; what clients were told
    is then left in `folder`."""
    began = time.monotonic()
    tally.add(evidence)
    try:
        _judge(evidence, tally)
    except AssertionError:
        if folder is not None:
            History(evidence.operations).write(folder / "history.ndjson")
        raise
    finally:
        tally.seconds += time.monotonic() - began


def _judge(evidence: Evidence, tally: Tally) -> None:
    tally.acknowledged_writes += nothing_lost(evidence)
    rebase = Rebase(evidence.first_revision)
    operations = rebase.operations(evidence.operations)
    report = linearizable(evidence, operations, rebase)
    ends = lease_ends(operations, report)
    effects = _guarded_writes(evidence)
    found = [*check_leases(operations, ends), *check_locks(evidence.holdings, effects)]
    for logs in evidence.watches:
        found += _watched(list(map(rebase.log, logs)), report.truth, evidence, rebase)
    _none(found, evidence)
    tally.leases += sum(isinstance(each.request, Grant) for each in operations)
    tally.expired += len(ends)
    tally.guarded_writes += len(effects)


def linearizable(evidence: Evidence, operations: list[Operation], rebase: Rebase) -> Report:
    """One copy could have given every answer, by revisions, by the auditor's events, by values."""
    others, left_by_others = foreign_writes(evidence.events, evidence.prefix, rebase)
    told = _audited(evidence, rebase)
    log = WatchLog(evidence.prefix, _after(evidence.prefix), 2, True, frozenset(), told)
    report = check_history(
        [*operations, *others],
        final=(*map(rebase.record, evidence.final), *left_by_others),
        final_revision=rebase.revision(evidence.last_revision),
        watches=[log],
    )
    _none(report.violations, evidence)
    assert report.ok, f"{report}"
    truth = [event for event in report.truth if event.record.key.startswith(evidence.prefix)]
    events = [event for response in told for event in response.events]
    assert truth == events, "the auditor was told of other events than the answers prove"
    return report


def _watched(
    logs: list[WatchLog], truth: Sequence[WatchEvent], evidence: Evidence, rebase: Rebase
) -> Iterator[Violation]:
    """One watch over all its connections: each goes on where the one before was."""
    last = rebase.revision(evidence.last_revision)
    ends = [min(log.start_revision - 1, last) for log in logs[1:]]
    compacted = rebase.revision(evidence.compact_revision)
    for log, end in zip(logs, [*ends, 0], strict=True):
        # A lease may run out after the last mark, where the truth ends.
        log.responses[:] = [each for each in log.responses if each.revision <= last]
        yield from check_watch(log, truth, compacted=compacted, complete_to=end)


def _guarded_writes(evidence: Evidence) -> list[Effect]:
    fenced = b"fenced/" + evidence.prefix
    return [
        Effect(int(event.record.value), revision)
        for revision, events in evidence.events.items()
        for event in events
        if event.kind == "put" and event.record.key.startswith(fenced)
    ]


def _none(violations: Iterable[Violation], evidence: Evidence) -> None:
    found = "\n\n".join(map(str, violations))
    assert not found, f"revisions count from {evidence.first_revision - 1} here\n{found}"


def _audited(evidence: Evidence, rebase: Rebase) -> list[WatchResponse]:
    return [
        WatchResponse(0, rebase.revision(revision), tuple(map(rebase.event, events)))
        for revision, events in evidence.events.items()
        if events[0].record.key.startswith(evidence.prefix)
    ]


def _after(prefix: bytes) -> bytes:
    """The end of the interval of all keys with a prefix that ends in a slash."""
    return prefix[:-1] + b"0"


@asynccontextmanager
async def under_load(
    cluster: Cluster, seed: int, mix: Mix | None = None, tally: Tally | None = None
) -> AsyncIterator[Load]:
    """Spoil the cluster within the block and mend it by its end: then everything is judged.

    Raises AssertionError, with `seed`, as soon as something does not hold.
    """
    chance = random.Random(seed)
    revision = int((await cluster.equal_hashes())["revision"])
    urls = lambda: cluster.urls  # noqa: E731
    async with (
        Auditor(urls, chance, revision + 1) as auditor,
        Load(urls, f"s{seed}/", chance, mix, revision + 1) as load,
    ):
        yield load
        for member in cluster.members:
            await cluster.ready(member)
        evidence = await settle(cluster, load, auditor, revision)
    judge(evidence, tally or Tally(), cluster.folder)
