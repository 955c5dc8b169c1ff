"""The narrow seam between the doors and a member: propose, read, watch, and ask about the cluster.

Doors (`raftkv.api`) know a store only through `Store`. A `Member` is one; so is `LocalStore`, a
store without consensus or disk for tests. Calls that take a `done` never block and never raise
for reasons of the cluster: `done` is called exactly once, on the loop, after the call returned.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from raftkv.errors import RaftkvError
from raftkv.histogram import Histogram

if TYPE_CHECKING:
    from raftkv.machine.commands import Command
    from raftkv.machine.machine import Machine
    from raftkv.server.shrink import Shrunk
    from raftkv.server.transport import TransportStats
    from raftkv.server.watch import Watch, WatchSink, WatchSpec

Done = Callable[[Any], None]
"""Receives a result of `raftkv.machine.results`, or a `Refused` or `OutcomeUnknown` instance."""


class KeepAliveResult(NamedTuple):
    """A lease was renewed: it will not expire before `ttl_seconds` from the request's arrival."""

    lease: int
    ttl_seconds: int


@dataclass(frozen=True, slots=True)
class LeaseTime:
    """What the leader's lease clock says."""

    lease: int
    ttl_seconds: int
    remaining_ms: int


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One member of the cluster as recorded in the replicated state."""

    member_id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    learner: bool
    leader: bool
    match_index: int | None = None
    """Known at the leader only: how far the member's log agrees with the leader's."""


@dataclass(frozen=True, slots=True)
class SnapshotStream:
    """A consistent image of the whole store, to be sent to a client."""

    index: int
    revision: int
    size_bytes: int
    chunks: AsyncIterator[bytes]


@dataclass(slots=True)
class StoreStats:
    """Plain counters that the doors' metrics page reads; the hot path only adds to them."""

    proposals_committed: int = 0
    proposals_applied: int = 0
    proposals_failed: int = 0
    leader_changes: int = 0
    reads_confirmed: int = 0
    keep_alives: int = 0
    leases_expired: int = 0
    wal_fsyncs: int = 0
    wal_fsync_seconds: float = 0.0
    wal_bytes_written: int = 0
    snapshots_taken: int = 0
    snapshots_installed: int = 0
    snapshots_sent: int = 0
    hash_checks: int = 0
    stalls: int = 0
    disk_stalls: int = 0
    disk_stall_handovers: int = 0
    batches_held_back: int = 0
    applies_aside: int = 0
    auto_compactions: int = 0
    backups_made: int = 0
    backup_failures: int = 0
    archive_bytes_written: int = 0
    archive_failures: int = 0
    archive_gaps: int = 0
    archive_files_dropped: int = 0
    wal_fsync_times: Histogram = field(default_factory=Histogram)
    table_commit_times: Histogram = field(default_factory=Histogram)
    peers: TransportStats | None = None
    """What goes between members, where there are others."""

    def counters(self) -> Iterator[tuple[str, float]]:
        """Name and value of every plain counter."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float):
                yield item.name, value


class Store(Protocol):
    """What a door may ask of a member."""

    member_id: int
    cluster_id: int
    machine: Machine
    stats: StoreStats

    @property
    def level(self) -> int:
        """The feature level that all members know; see `raftkv.server.levels`."""

    def stamp(self) -> tuple[int, int, int]:
        """(revision, term, member id), for the headers of an answer."""

    def propose(self, command: Command, done: Done) -> None:
        """Replicate `command`; it joins the batch of this turn of the loop."""

    def read_index(self, done: Callable[[RaftkvError | None], None]) -> None:
        """done(None) once local reads see every write acknowledged before this call."""

    def keep_alive(self, lease: int, done: Done) -> None:
        """Renew a lease: `KeepAliveResult`, or LeaseNotFound among the refusals."""

    def keep_alives(self, leases: list[int], done: Done) -> None:
        """Renew leases together: the TTL of each in seconds, None for one that there is not; or
        one error for all of them."""

    def lease_time(self, lease: int, done: Done) -> None:
        """`LeaseTime` from the leader's clock, or LeaseNotFound among the refusals."""

    def watch(self, spec: WatchSpec, sink: WatchSink) -> Watch:
        """Start a watch; raises Refused when there are too many."""

    def status(self) -> dict[str, Any]:
        """The body of GET /api/status, without the door's own figures."""

    def health(self) -> dict[str, str]:
        """Reasons why this member is not healthy, by check; empty when all is well.

        Names: "no_leader", "corrupt", "no_space", "disk_stalled", "learner", "stopping".
        """

    def members(self) -> list[MemberInfo]:
        """Members, ordered by id."""

    async def add_member(
        self,
        name: str,
        peer_urls: tuple[str, ...],
        learner: bool,
        *,
        promote: bool = False,
        instead_of: int | None = None,
    ) -> MemberInfo:
        """Add a member and wait until the change is applied here.

        `promote`: have the leader make the learner a voter once it has caught up; ChangeRefused
        while not every member knows how. `instead_of`: remove that member in the same step.
        """

    async def remove_member(self, member_id: int) -> None:
        """Remove a member and wait until the change is applied here."""

    async def promote_member(self, member_id: int) -> None:
        """Make a learner a voter; refused while it lags."""

    async def transfer_leader(self, to: int | None) -> int:
        """Hand leadership over; to None: to the most advanced follower. The new leader's id."""

    async def shrink(self) -> Shrunk:
        """Give free space inside this member's tables back to the disk; joins one under way."""

    async def snapshot(self) -> SnapshotStream:
        """A consistent image made beside the traffic."""
