"""What locks and elections stand on: keys under a name, each on a lease, the oldest the owner.

A contender writes ``name/lease`` in hexadecimal and waits until every key under the name that was
created before its own is gone. Sources: etcd's packages concurrency, v3lock and v3election.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.etcd import answers
from raftkv.api.etcd.rpc import Rpcs
from raftkv.api.grpc.messages import CallFault
from raftkv.api.grpc.status import Status
from raftkv.api.http.handling import prefix_end
from raftkv.api.http.leases import fresh_lease
from raftkv.errors import Compacted, OutcomeUnknown, RaftkvError, Refused
from raftkv.machine.commands import (
    CompareTarget,
    Operation,
    Relation,
    SortOrder,
    SortTarget,
    compare,
    delete,
    lease_grant,
    range_op,
    txn,
)
from raftkv.machine.records import USER_KEYS
from raftkv.server.watch import WatchSpec

if TYPE_CHECKING:
    from raftkv.api.etcd.rpc import AnyCall
    from raftkv.machine.events import Event
    from raftkv.machine.records import Record
    from raftkv.machine.results import Result
    from raftkv.server.store import Store

SESSION_TTL_SECONDS: Final = 60
"""Of the lease that a contender without one is given; nobody renews it."""
EVENTS_WAITING_MAX: Final = 256


class Ownership:
    """The keys under one name."""

    def __init__(self, rpcs: Rpcs, caller: Store, name: bytes) -> None:
        self._rpcs = rpcs
        self._caller = caller
        self.prefix = name + b"/"
        self._end = prefix_end(self.prefix)

    def key(self, lease: int) -> bytes:
        """The key of the contender with this lease."""
        return self.prefix + b"%x" % lease

    def oldest(self) -> Operation:
        """Reads the owner's key."""
        return range_op(
            self.prefix,
            self._end,
            limit=1,
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.ASCEND,
        )

    async def session(self, lease: int) -> int:
        """The contender's lease; 0: one is granted."""
        if lease:
            return lease
        lease = fresh_lease()
        await self._rpcs.outcome(
            self._caller.propose, lease_grant(lease, SESSION_TTL_SECONDS, chosen=True)
        )
        return lease

    async def contend(self, key: bytes, then: list[Operation], otherwise: list[Operation]) -> Any:
        """The TxnResult of `then` if the key does not exist, else `otherwise`."""
        absent = compare(CompareTarget.CREATE, Relation.EQUAL, key, 0)
        return await self.transact(txn([absent], then, otherwise))

    async def transact(self, command: bytes) -> Any:
        """Propose and await."""
        return await self._rpcs.outcome(self._caller.propose, command)

    async def confirmed(self) -> None:
        """Wait until local reads are as new as any acknowledged write."""
        await self._rpcs.outcome(self._caller.read_index)

    async def owner(self) -> Record | None:
        """The key that was created first, or None."""
        await self.confirmed()
        found = self._rpcs.store.machine.range(
            self.prefix,
            self._end,
            limit=1,
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.ASCEND,
        )
        return found.records[0] if found.records else None

    async def wait_for_turn(self, call: AnyCall, key: bytes, created: int) -> None:
        """Return once every key created before revision `created` is gone.

        If the caller gives up meanwhile, `key` is deleted.
        """
        machine = self._rpcs.store.machine
        try:
            await self.confirmed()
            while True:
                before = machine.range(
                    self.prefix,
                    self._end,
                    limit=1,
                    max_create=created - 1,
                    sort_target=SortTarget.CREATE,
                    sort_order=SortOrder.DESCEND,
                )
                if not before.records:
                    return
                await self._deleted(before.records[0].key, machine.revision + 1)
        except asyncio.CancelledError:
            self._caller.propose(delete(key), _ignore)
            raise

    async def _deleted(self, key: bytes, from_revision: int) -> None:
        events = Events(self._caller, key, None, from_revision, puts=False)
        try:
            await events.next()
        except Compacted:
            return  # too late to see it: look again
        finally:
            events.cancel()

    def changes(self, key: bytes | None, from_revision: int) -> Events:
        """Events of one key, or puts of any."""
        if key is None:
            return Events(self._caller, self.prefix, self._end, from_revision, deletes=False)
        return Events(self._caller, key, None, from_revision)


async def plainly(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; what the store refuses keeps its text but not its code.

    In etcd these services stand on its own client, whose errors lose their code on the way out.
    """
    try:
        await work
    except (Refused, OutcomeUnknown) as error:
        raise CallFault(Status.UNKNOWN, answers.row_of(error).text) from error


class Events:
    """A watch to be awaited. Holds a bounded number of events; the hub keeps the rest."""

    def __init__(
        self,
        caller: Store,
        start: bytes,
        end: bytes | None,
        from_revision: int,
        *,
        puts: bool = True,
        deletes: bool = True,
    ) -> None:
        self._arrived = asyncio.Event()
        self._events: deque[Event] = deque()
        self._error: RaftkvError | None = None
        spec = WatchSpec(
            USER_KEYS, start, end, from_revision, puts=puts, deletes=deletes, progress=False
        )
        self._watch = caller.watch(spec, self)

    async def next(self) -> Event:
        """The next event. Raises what ended the watch."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if not self._events:
            self._watch.resume()
        return event

    def cancel(self) -> None:
        """End the watch."""
        self._watch.cancel()

    def events(self, revision: int, events: list[Event]) -> bool:
        """See `WatchSink`."""
        self._events.extend(events)
        self._arrived.set()
        return len(self._events) < EVENTS_WAITING_MAX

    def progress(self, revision: int) -> None:
        """See `WatchSink`; not asked for."""

    def closed(self, error: RaftkvError) -> None:
        """See `WatchSink`."""
        self._error = error
        self._arrived.set()


def _ignore(result: Result | RaftkvError) -> None:
    """Nobody is left to tell; the lease takes the key along if this fails."""
