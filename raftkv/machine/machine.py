"""The deterministic state machine: committed entries in, results and events out.

Equal entries lead to equal results, events, state and hash on every member, however they are
grouped into calls. Nothing here reads a clock, a random number or the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final, NamedTuple, Protocol

from raftkv.checks import check, violated
from raftkv.errors import Compacted
from raftkv.machine import mvcc
from raftkv.machine.access import Grants
from raftkv.machine.apply import ACCIDENTS, apply_command
from raftkv.machine.auth import AuthState, may_renew, may_see, read_auth
from raftkv.machine.catalog import (
    Instance,
    ServiceSummary,
    catalog_key,
    read_instance,
    read_instances,
    read_services,
)
from raftkv.machine.cluster import (
    MemberChange,
    MemberInfo,
    change_members,
    member_result,
    read_alarms,
    read_level,
    read_members,
    read_promotions,
    replace_members,
)
from raftkv.machine.commands import Compare, Operation, SortOrder, SortTarget, decode_batch
from raftkv.machine.counts import BLOCK_ROWS, LiveCounts
from raftkv.machine.draft import CONF_ROW, STATE_ROW, UNLIMITED, Draft, State
from raftkv.machine.events import Event
from raftkv.machine.leases import Lease, read_lease, read_lease_keys, read_leases
from raftkv.machine.quotas import NO_QUOTAS, Quota, Quotas, read_quotas
from raftkv.machine.records import U64, USER_KEYS, Record
from raftkv.machine.results import Applied, Outcome, RangeResult, TxnResult
from raftkv.machine.tables import META, TableReader, Tables, TableWriter
from raftkv.machine.tokens import Token, read_token
from raftkv.machine.txn import read_txn

HASHES_KEPT: Final = 1024
COMPACTION_ROW: Final = b"compacted"
"""Progress of compaction on this member alone: up to which revision it is through (8), and of one
under way the target (8) and the position to go on from. Not replicated."""
_FORMER_COMPACTION_ROW: Final = b"compaction"
"""The same of a program that visited what was replaced, not what replaced it: where it was on its
way means nothing here."""


class Worked(NamedTuple):
    """What `Machine.work_out` hands to `Machine.adopt`."""

    draft: Draft
    applied: list[Applied]
    hashes: list[bytes]


class ApplyListener(Protocol):
    """Who hears what a machine applies; a simulation, for example."""

    def working_out(self, entries: Sequence[tuple[int, int, bytes]]) -> None:
        """`work_out` begins, in whatever thread. What this raises, it raises."""

    def adopted(self, applied: list[Applied]) -> None:
        """`adopt` has done these, the entries of the last `working_out`."""

    def configured(self, applied: Applied) -> None:
        """`apply_config` has done this."""


class Machine:
    """The replicated state, over ordered tables. One owner; not thread-safe."""

    def __init__(self, tables: Tables, *, block_rows: int = BLOCK_ROWS) -> None:
        """`block_rows`: see `raftkv.machine.counts`."""
        self._tables = tables
        self._block_rows = block_rows
        self.auth = AuthState()
        """The access rules in force; replaced as a whole, never changed."""
        self.token_removals = 0
        """Grows whenever a token may have gone before its time; what is remembered of tokens from
        before is to be looked up again."""
        self.on_auth_change: list[Callable[[], None]] = []
        """Called when `auth` was replaced, before anybody hears what else the same call applied."""
        self.listener: ApplyListener | None = None
        """None: nobody hears. Kept over `reload`."""
        self.reload()

    def reload(self) -> None:
        """Read the counters again, for example after the tables were replaced by a snapshot."""
        with self._tables.read() as reader:
            self._state = State.unpack(reader.get(META, STATE_ROW))
            self._alarms = read_alarms(reader)
            auth = read_auth(reader)
            self._quotas = Quotas(read_quotas(reader))
            self._level = read_level(reader)
            self.conf: bytes = reader.get(META, CONF_ROW) or b""
            """The configuration in force, as given to `apply_config` or `bootstrap`."""
            progress = reader.get(META, COMPACTION_ROW)
            if progress is None:
                progress = (reader.get(META, _FORMER_COMPACTION_ROW) or bytes(8))[:8]
        self._counts = LiveCounts(self._state.keys, self._state.revision, self._block_rows)
        self._compacted: int = U64.unpack_from(progress)[0]
        self._cursor: bytes | None = progress[8:] or None
        self._hashes: list[tuple[int, bytes]] = [(0, b"")] * HASHES_KEPT
        self._remember_hash(self._state.applied_index, self._state.hash)
        self.token_removals += 1
        self._adopt_auth(auth)

    # -- where it stands ------------------------------------------------------------------------

    @property
    def applied_index(self) -> int:
        """Index of the last applied entry; 0 for none."""
        return self._state.applied_index

    @property
    def applied_term(self) -> int:
        """Its term."""
        return self._state.applied_term

    @property
    def revision(self) -> int:
        """The store's revision; 1 when nothing was ever written."""
        return self._state.revision

    @property
    def compact_revision(self) -> int:
        """The oldest revision that can be read, and whose events are kept; 0: all of them."""
        return self._state.compact_revision

    @property
    def clock_ms(self) -> int:
        """Greatest wall clock that a leader stamped so far, milliseconds."""
        return self._state.clock_ms

    @property
    def keys(self) -> int:
        """Number of live user keys."""
        return self._state.keys

    @property
    def state_hash(self) -> bytes:
        """Chained over every logical change; equal members at equal applied index are equal."""
        return self._state.hash

    def hash_at(self, index: int) -> bytes | None:
        """The hash just after `index`, for the last HASHES_KEPT entries applied by this object."""
        kept, digest = self._hashes[index % HASHES_KEPT]
        return digest if digest and kept == index else None

    @property
    def level(self) -> int:
        """The feature level that the members have agreed on; see `raftkv.server.levels`."""
        return self._level

    def promotions(self) -> set[int]:
        """Learners that the leader promotes once they have caught up."""
        with self._tables.read() as reader:
            return read_promotions(reader)

    @property
    def alarms(self) -> frozenset[tuple[int, int]]:
        """Alarms that are on, as (kind, member id)."""
        return self._alarms

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """Quotas on prefixes and users, with what is used of them."""
        return tuple(self._quotas.rules.values())

    # -- applying -------------------------------------------------------------------------------

    def bootstrap(self, index: int, term: int, conf: bytes, members: Iterable[MemberInfo]) -> None:
        """Record the first configuration of a new cluster, alike on all its members.

        Only before anything is applied. It stands for the log up to `index`, which no member
        ever has as entries: a cluster's log begins with this state as its snapshot.
        """
        check(self.applied_index == 0, "a store is bootstrapped once", index=self.applied_index)
        with self._tables.write() as writer:
            draft = self._draft(writer)
            draft.state.applied_index = index - 1
            draft.begin_entry(index, term)
            change_members(draft, conf, MemberChange(add=tuple(members)))
            draft.end_entry()
            draft.save()
        self._adopt(draft)
        self.conf = conf
        self._remember_hash(index, draft.state.hash)

    def rehome(self, conf: bytes, members: Iterable[MemberInfo]) -> None:
        """Give this state to another cluster, whose log begins behind the index applied here.

        Membership and alarms become the new cluster's; all else stays. Equal states given the same
        members stay equal, with equal hashes. Atomic.
        """
        check(self.applied_index > 0, "only a state that something was applied to has a home")
        with self._tables.write() as writer:
            draft = self._draft(writer)
            replace_members(draft, conf, tuple(members))
            draft.end_entry()
            draft.save()
        self._adopt(draft)
        self.conf = conf
        self._remember_hash(self.applied_index, draft.state.hash)

    def apply(self, entries: Sequence[tuple[int, int, bytes]]) -> list[Applied]:
        """Apply (index, term, data) in order, all in one write transaction.

        Data is an encoded batch, or empty for a leader's no-op. Raises InvariantViolation for
        entries out of order, CorruptionError or FormatError for data that no member encodes; then,
        as after any error of the tables, nothing has changed and the call may be repeated.
        """
        return self.adopt(self.work_out(entries))

    def work_out(
        self,
        entries: Sequence[tuple[int, int, bytes]],
        *,
        removals_max: int = UNLIMITED,
        before_commit: Callable[[], None] | None = None,
    ) -> Worked:
        """The first half of `apply`: the tables are changed, what is kept in memory is not.

        Nothing but reads may come between the commit and `adopt`. May run in a thread while the
        owner reads on: `before_commit` is called there when all is done but the commit, and what
        it raises undoes everything. Raises as `apply`, and TooManyRemovals, with nothing changed,
        for entries that together delete more than `removals_max` keys.
        """
        if self.listener is not None:
            self.listener.working_out(entries)
        batches = [
            (index, term, decode_batch(data) if data else None) for index, term, data in entries
        ]
        applied: list[Applied] = []
        hashes: list[bytes] = []
        with self._tables.write() as writer:
            draft = self._draft(writer)
            draft.removals_left = removals_max
            if before_commit is not None:
                # The owner's counts learn from its reads meanwhile.
                state = self._state
                draft.counts = LiveCounts(state.keys, state.revision, self._block_rows)
            state = draft.state
            for index, term, batch in batches:
                draft.begin_entry(index, term)
                results: list[Outcome] = []
                origin = boot = sequence = 0
                if batch is not None:
                    stamp_ms, origin, boot, sequence, commands = batch
                    if stamp_ms > state.clock_ms:
                        state.clock_ms = stamp_ms
                    for command in commands:
                        results.append(apply_command(draft, command))
                draft.end_entry()
                hashes.append(state.hash)
                applied.append(
                    Applied(
                        index, term, origin, boot, sequence, results, draft.events, draft.leases
                    )
                )
            try:
                draft.save()
            except ACCIDENTS as error:
                violated("a command has left a state that cannot be stored", reason=repr(error))
            if before_commit is not None:
                before_commit()
        return Worked(draft, applied, hashes)

    def adopt(self, worked: Worked) -> list[Applied]:
        """The second half of `apply`: stand where the tables stand."""
        draft = worked.draft
        self._adopt(draft)
        for entry, digest in zip(worked.applied, worked.hashes, strict=True):
            self._remember_hash(entry.index, digest)
        self.token_removals += draft.tokens_removed
        if draft.auth is not self.auth:
            self._adopt_auth(draft.auth)
        if self.listener is not None:
            self.listener.adopted(worked.applied)
        return worked.applied

    def apply_until(self, index: int, term: int, data: bytes, revision: int) -> None:
        """Apply of a batch what leads to `revision` and leave out the rest, as if never proposed.

        For a restore: the state is then of no index of the log's, though its applied index is
        `index`. Raises as `apply`. Atomic.
        """
        stamp_ms, _, _, _, commands = decode_batch(data)
        with self._tables.write() as writer:
            draft = self._draft(writer)
            draft.begin_entry(index, term)
            draft.state.clock_ms = max(draft.state.clock_ms, stamp_ms)
            for command in commands:
                if draft.state.revision >= revision:
                    break
                apply_command(draft, command)
            draft.end_entry()
            draft.save()
        self._adopt(draft)
        self._remember_hash(index, draft.state.hash)
        if draft.auth is not self.auth:
            self._adopt_auth(draft.auth)

    def apply_config(
        self, index: int, term: int, conf: bytes, change: MemberChange | None = None
    ) -> Applied:
        """Apply a membership entry: the configuration it leads to, and what it does to members.

        Its one result is a MemberResult. Atomic, and in order with `apply`.
        """
        with self._tables.write() as writer:
            draft = self._draft(writer)
            draft.begin_entry(index, term)
            change_members(draft, conf, change)
            result = member_result(draft)
            draft.end_entry()
            draft.save()
        self._adopt(draft)
        self.conf = conf
        self._remember_hash(index, draft.state.hash)
        applied = Applied(index, term, 0, 0, 0, [result], [], [])
        if self.listener is not None:
            self.listener.configured(applied)
        return applied

    def _draft(self, writer: TableWriter) -> Draft:
        return Draft(
            writer, self._state, self._alarms, self.auth, self._counts, self._quotas, self._level
        )

    def _adopt(self, draft: Draft) -> None:
        self._state = draft.state
        self._level = draft.level
        if draft.came_and_went:
            self._counts.note(draft.came_and_went, draft.state.revision)
        self._alarms = draft.alarms
        self._quotas = NO_QUOTAS if draft.quotas is None else draft.quotas.closed()

    def _adopt_auth(self, auth: AuthState) -> None:
        self.auth = auth
        for listener in self.on_auth_change:
            listener()

    def _remember_hash(self, index: int, digest: bytes) -> None:
        self._hashes[index % HASHES_KEPT] = (index, digest)

    # -- compaction -----------------------------------------------------------------------------

    @property
    def compaction_pending(self) -> bool:
        """Whether `compact_step` has work left."""
        return self._compacted < self.compact_revision

    def compact_step(self, rows_max: int = 1000) -> bool:
        """Remove some of what compaction made unreachable; whether more remains.

        Visits at most `rows_max` rows in a transaction of its own. Changes nothing that can be
        read and is not covered by the hash, so members may be at different points of it.
        """
        if not self.compaction_pending:
            return False
        # A newer compaction waits until the one begun is through, so that each one ends.
        target: int = self.compact_revision
        position = U64.pack(self._compacted)
        if self._cursor is not None:
            target, position = U64.unpack_from(self._cursor)[0], self._cursor[8:]
        done, cursor = self._compacted, None
        with self._tables.write() as writer:
            garbage, rest = mvcc.compaction_slice(writer, position, target, rows_max)
            for table, name in garbage:
                writer.delete(table, name)
            if rest is None:
                done = target
            else:
                cursor = U64.pack(target) + rest
            writer.put(META, COMPACTION_ROW, U64.pack(done) + (cursor or b""))
        self._compacted, self._cursor = done, cursor
        if rest is None:
            self._counts.tidy()
        return self.compaction_pending

    # -- reading --------------------------------------------------------------------------------

    @contextmanager
    def view(self) -> Iterator[View]:
        """A consistent view for several reads; must not be held across turns of the loop."""
        with self._tables.read() as reader:
            yield View(reader, self._state, self._counts)

    def get(self, key: bytes, *, keyspace: int = USER_KEYS, revision: int = 0) -> Record | None:
        """One key, now or at an older revision. Raises FutureRevision or Compacted."""
        with self._tables.read() as reader:
            if not revision:
                return mvcc.newest_record(reader, keyspace, key)
            mvcc.check_revision(revision, self.revision, self.compact_revision)
            return mvcc.get(reader, keyspace, key, revision)

    def range(
        self,
        start: bytes,
        end: bytes | None = None,
        *,
        keyspace: int = USER_KEYS,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        want_count: bool = False,
        reverse: bool = False,
        sort_target: int = SortTarget.KEY,
        sort_order: int = SortOrder.NONE,
        min_mod: int = 0,
        max_mod: int = 0,
        min_create: int = 0,
        max_create: int = 0,
        examine_max: int = 0,
    ) -> RangeResult:
        """Read an interval: `end` None is one key, b"" the rest of the keyspace, else exclusive.

        `revision` 0 is now. Filters (0: none, bounds inclusive) and sorting come before `limit`
        (0: none); `reverse` is descending key order. Sorting by anything but the key reads the
        whole interval; ties stay in key order. Without a sort order only the first `limit` + 1
        keys are sorted, as in etcd.

        `want_count` asks for the number of keys in the interval, ignoring limit and filters;
        `count_only` asks for nothing else, and has no order. `examine_max` ends the call after so
        many visited rows, deleted ones included: `more` is then True, `resume` says where to go
        on, and the count is that of this call.

        Raises FutureRevision, Compacted, or InvalidRequest (a sorted range in slices).
        """
        query = mvcc.RangeQuery(
            start, end, keyspace=keyspace, revision=revision, limit=limit, keys_only=keys_only,
            count_only=count_only, want_count=want_count, reverse=reverse,
            sort_target=sort_target, sort_order=sort_order, min_mod=min_mod, max_mod=max_mod,
            min_create=min_create, max_create=max_create, examine_max=examine_max,
        )  # fmt: skip
        with self._tables.read() as reader:
            return View(reader, self._state, self._counts).range(query)

    def read_txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation],
        else_: Sequence[Operation] = (),
        *,
        keyspace: int = USER_KEYS,
    ) -> TxnResult:
        """Carry out a transaction that only reads on the state as it is, without the log.

        Made of operations as `commands.txn` takes them; judge them by that first. Raises
        FutureRevision or Compacted.
        """
        with self._tables.read() as reader:
            return read_txn(
                reader, self._state, self._counts, keyspace,
                list(compares), list(then), list(else_),
            )  # fmt: skip

    def history(self, from_revision: int, to_revision: int, events_max: int) -> list[Event]:
        """Events of revisions [from_revision, to_revision], in order, whole revisions only.

        Ends after the revision that reaches `events_max`; the next call starts after the last
        event's revision. Raises Compacted when `from_revision` is before `compact_revision`.
        """
        oldest = self.compact_revision
        from_revision = max(from_revision, 0)
        if from_revision < oldest:
            raise Compacted(
                f"events before revision {oldest} have been compacted", oldest_revision=oldest
            )
        with self._tables.read() as reader:
            return mvcc.history(reader, from_revision, to_revision, events_max)

    def previous(self, event: Event) -> Record | None:
        """The record that `event` replaced or deleted; None: there was none, or it is compacted."""
        with self._tables.read() as reader:
            return mvcc.previous(reader, event, self.compact_revision)

    def lease(self, lease: int) -> Lease | None:
        """One lease, or None."""
        with self._tables.read() as reader:
            return read_lease(reader, lease)

    def leases(self) -> list[Lease]:
        """All leases, ordered by id."""
        with self._tables.read() as reader:
            return list(read_leases(reader))

    def lease_keys(self, lease: int, *, keyspace: int = USER_KEYS) -> list[bytes]:
        """The keys of a keyspace that hang on a lease, in order."""
        with self._tables.read() as reader:
            return read_lease_keys(reader, lease, keyspace)

    def may_renew_lease(self, grants: Grants, lease: int) -> bool:
        """See `raftkv.machine.auth.may_renew`."""
        with self._tables.read() as reader:
            return may_renew(reader, grants, lease)

    def lease_slice(
        self, after: int, examine_max: int, grants: Grants | None = None
    ) -> tuple[list[Lease], int | None]:
        """The next leases after an id, and after which to go on; None: there are no more.

        With grants, those that `raftkv.machine.auth.may_see` lets be seen.
        """
        with self._tables.read() as reader:
            found = list(islice(read_leases(reader, after), examine_max))
            rest = found[-1].lease if len(found) == examine_max else None
            if grants is not None:
                found = [held for held in found if may_see(reader, grants, held.lease)]
            return found, rest

    def token(self, token_hash: bytes) -> Token | None:
        """A token of somebody who logged in, over its time or not; or None."""
        with self._tables.read() as reader:
            return read_token(reader, token_hash)

    def instance(self, service: str, instance: str) -> Instance | None:
        """One service instance, or None."""
        with self._tables.read() as reader:
            return read_instance(reader, service, instance)

    def instances(self, service: str, *, limit: int = 0) -> list[Instance]:
        """Instances of a service, ordered by name; none when there is no such service."""
        start = catalog_key(service, "")
        with self._tables.read() as reader:
            found = read_instances(reader, start, start[:-1] + b"\1")
            return list(islice(found, limit) if limit else found)

    def services(
        self, *, prefix: str = "", after: str = "", limit: int = 0
    ) -> tuple[list[ServiceSummary], bool]:
        """Services by name, at most `limit` of those after `after`; whether there are more."""
        with self._tables.read() as reader:
            return read_services(reader, prefix, after, limit)

    def members(self) -> list[MemberInfo]:
        """Members of the cluster, ordered by id."""
        with self._tables.read() as reader:
            return list(read_members(reader))


class View:
    """Several reads of one state."""

    __slots__ = ("_counts", "_reader", "_state")

    def __init__(self, reader: TableReader, state: State, counts: LiveCounts) -> None:
        self._reader = reader
        self._state = state
        self._counts = counts

    def get(self, key: bytes, keyspace: int = USER_KEYS) -> Record | None:
        """One key as it is now."""
        return mvcc.newest_record(self._reader, keyspace, key)

    def range(self, query: mvcc.RangeQuery) -> RangeResult:
        """As `Machine.range`."""
        state = self._state
        counted = mvcc.Counted(state.keys, self._counts)
        return mvcc.read_range(self._reader, query, state.revision, state.compact_revision, counted)
