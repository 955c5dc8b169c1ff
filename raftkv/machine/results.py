"""What a command answers. A command that was refused answers a `raftkv.errors.Refused` instead."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from raftkv.errors import Refused
from raftkv.machine.events import Event
from raftkv.machine.records import Record


class Result:
    """Base of all answers. `revision`: the store's revision just after the command."""

    __slots__ = ("revision",)
    names: ClassVar[tuple[str, ...]] = ()
    """The fields, in the order of the constructor's parameters."""
    revision: int

    def __init_subclass__(cls) -> None:
        cls.names = tuple(inspect.signature(cls).parameters)

    def fields(self) -> list[Any]:
        """The values of `names`: what rebuilds an equal result."""
        return [getattr(self, name) for name in self.names]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((type(self), self.revision))

    def __repr__(self) -> str:
        inside = " ".join(f"{name}={getattr(self, name)!r}" for name in self.names)
        return f"{type(self).__name__}({inside})"


class PutResult(Result):
    """A key was written."""

    __slots__ = ("previous", "raw")

    def __init__(self, revision: int, previous: Record | None, raw: bytes) -> None:
        self.revision = revision
        self.previous = previous
        """The record before, when it was asked for and there was one."""
        self.raw = raw
        """The stored record, as written."""

    @property
    def record(self) -> Record:
        """The record as written."""
        return Record(self.raw)

    def __eq__(self, other: object) -> bool:
        """As records are equal: storage positions do not count."""
        if not isinstance(other, PutResult):
            return NotImplemented
        return (
            self.revision == other.revision
            and self.previous == other.previous
            and self.record == other.record
        )

    __hash__ = Result.__hash__

    def __repr__(self) -> str:
        return f"PutResult(revision={self.revision} {self.record!r} previous={self.previous!r})"


class DeleteResult(Result):
    """Keys were deleted; none is no refusal."""

    __slots__ = ("deleted", "previous")

    def __init__(self, revision: int, deleted: int, previous: list[Record]) -> None:
        self.revision = revision
        self.deleted = deleted
        self.previous = previous
        """The deleted records, in key order, when they were asked for."""


class RangeResult(Result):
    """An answer to a range. `revision` is the one read at, or the store's when 0 was asked."""

    __slots__ = ("count", "more", "raws", "resume")

    def __init__(
        self,
        revision: int,
        raws: list[bytes],
        count: int | None,
        more: bool,
        resume: bytes | None = None,
    ) -> None:
        self.revision = revision
        self.raws = raws
        """The stored records; a long answer takes them as they are."""
        self.count = count
        """Number of keys in the range, ignoring limit and filters; None when not asked for."""
        self.more = more
        """Whether the limit (or the bound on examined rows) left something out."""
        self.resume = resume
        """Where to go on, in key order only: the next `start`; in reverse, the next `end`."""

    def __eq__(self, other: object) -> bool:
        """Where a record is stored does not count."""
        if not isinstance(other, RangeResult):
            return NotImplemented
        return self._seen() == other._seen()

    def _seen(self) -> tuple[Any, ...]:
        return self.revision, self.records, self.count, self.more, self.resume

    @property
    def records(self) -> list[Record]:
        """Views of the records, made anew each time."""
        return [Record(raw) for raw in self.raws]


class TxnResult(Result):
    """A transaction ran one of its branches."""

    __slots__ = ("responses", "succeeded")

    def __init__(self, revision: int, succeeded: bool, responses: list[Result]) -> None:
        self.revision = revision
        self.succeeded = succeeded
        """True: every compare held, `then` ran; False: `else` ran."""
        self.responses = responses
        """One for each operation of the branch, in place."""


class CompactResult(Result):
    """History before `compact_revision` is gone."""

    __slots__ = ("compact_revision",)

    def __init__(self, revision: int, compact_revision: int) -> None:
        self.revision = revision
        self.compact_revision = compact_revision


class LeaseResult(Result):
    """A lease was granted."""

    __slots__ = ("lease", "ttl_seconds")

    def __init__(self, revision: int, lease: int, ttl_seconds: int) -> None:
        self.revision = revision
        self.lease = lease
        self.ttl_seconds = ttl_seconds


class RevokeResult(Result):
    """A lease was revoked, and its keys deleted in one revision."""

    __slots__ = ("deleted", "lease")

    def __init__(self, revision: int, deleted: int, lease: int) -> None:
        self.revision = revision
        self.deleted = deleted
        self.lease = lease


class ExpireResult(Result):
    """Leases ran out. Those unknown by then are left out; a former leader's order has no effect."""

    __slots__ = ("expired", "stale")

    def __init__(self, revision: int, expired: list[int], stale: bool) -> None:
        self.revision = revision
        self.expired = expired
        self.stale = stale
        """True: proposed in another term than the entry's, so ignored."""


class ServiceResult(Result):
    """A service instance was registered or changed."""

    __slots__ = ("changed", "created", "instance", "lease", "ttl_seconds")

    def __init__(
        self,
        revision: int,
        changed: bool,
        created: bool,
        instance: dict[str, Any],
        lease: int,
        ttl_seconds: int,
    ) -> None:
        self.revision = revision
        self.changed = changed
        """False: it was registered just so; nothing was written."""
        self.created = created
        self.instance = instance
        """The instance as registered, see `raftkv.machine.catalog.Instance`."""
        self.lease = lease
        self.ttl_seconds = ttl_seconds


class DeregisterResult(Result):
    """A service instance is gone; `instance` is what it was."""

    __slots__ = ("instance", "lease")

    def __init__(self, revision: int, instance: dict[str, Any], lease: int) -> None:
        self.revision = revision
        self.instance = instance
        self.lease = lease
        """The lease that ended with it, or 0."""


class MemberResult(Result):
    """Membership or a member's attributes changed; `members` as in `MemberInfo.to_list`."""

    __slots__ = ("members",)

    def __init__(self, revision: int, members: list[list[Any]]) -> None:
        self.revision = revision
        self.members = members


class AlarmResult(Result):
    """An alarm was raised or cleared."""

    __slots__ = ("alarms", "changed")

    def __init__(self, revision: int, alarms: list[list[int]], changed: bool) -> None:
        self.revision = revision
        self.alarms = alarms
        """All alarms that are on now: [kind, member id], sorted."""
        self.changed = changed


class AuthResult(Result):
    """Users, roles or their use changed."""

    __slots__ = ("auth_revision", "changed")

    def __init__(self, revision: int, auth_revision: int, changed: bool) -> None:
        self.revision = revision
        self.auth_revision = auth_revision
        self.changed = changed
        """False: it was so already."""


class TokenResult(Result):
    """A token was made, prolonged or ended."""

    __slots__ = ("expires_ms", "user")

    def __init__(self, revision: int, user: str, expires_ms: int) -> None:
        self.revision = revision
        self.user = user
        self.expires_ms = expires_ms
        """By the machine's clock; 0: it is gone."""


class QuotaResult(Result):
    """A quota was set or ended."""

    __slots__ = ("changed",)

    def __init__(self, revision: int, changed: bool) -> None:
        self.revision = revision
        self.changed = changed
        """False: it was so already."""


Outcome = Result | Refused
"""What became of one command. Both are definite."""


class Applied:
    """What one log entry did."""

    __slots__ = (
        "boot", "events", "index", "leases", "origin", "results", "sequence", "term",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        term: int,
        origin: int,
        boot: int,
        sequence: int,
        results: list[Outcome],
        events: list[Event],
        leases: list[tuple[int, int]],
    ) -> None:
        self.index = index
        self.term = term
        self.origin = origin
        """Member whose door took the batch; 0 for a leader's no-op and for membership entries."""
        self.boot = boot
        self.sequence = sequence
        self.results = results
        """One for each command of the batch, in order."""
        self.events = events
        """In order of revision and sub; a revision never spans two entries."""
        self.leases = leases
        """(lease id, TTL in seconds, or 0 when it is gone), in order: granted, changed, ended."""

    def __repr__(self) -> str:
        return (
            f"Applied(index={self.index} term={self.term} origin={self.origin} "
            f"results={self.results!r} events={self.events!r})"
        )
