"""What nobody may do must not take effect, nor be told; what somebody may do is not denied.

The oracle keeps its own rules, made from the commands that the members applied, in the order of the
log, and its own reading of what a request needs. It shares no code with the gate or the machine.
Every command that took effect must have been asked for by somebody whom the rules at its place in
the log allow it. Every read that was answered, and every event that a watch was told, must have
been allowed by rules that were in force where it was read. Every refusal of a right must have a
cause in rules that were in force while the request was under way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from raftkv.errors import PermissionDenied, RaftkvError
from raftkv.machine.commands import BY_MEMBER, Op, decode_batch
from raftkv.machine.machine import Machine
from raftkv.machine.records import USER_KEYS
from raftkv.machine.results import Applied
from tests.linearizability.history import (
    TO_THE_END,
    Compact,
    Compare,
    Delete,
    Put,
    Range,
    Revoke,
    Txn,
)

READ, WRITE, READWRITE = 0, 1, 2
ROOT: Final = "root"
_BY_MEMBERS: Final = frozenset(
    (
        Op.LEASE_EXPIRE, Op.MEMBER_UPDATE, Op.ALARM, Op.TOKEN_ADD, Op.TOKEN_RENEW, Op.TOKEN_DROP,
        Op.CLUSTER_LEVEL, Op.MEMBER_PROMOTION,
    )
)  # fmt: skip
_AT_TIMES_BY_MEMBERS: Final = frozenset((Op.COMPACT, Op.QUOTA_SET))
"""Of their own accord, if the guard says so: retention, and what the operator of a seed sets."""


class Asker(NamedTuple):
    """Somebody, as they showed themselves with one request."""

    user: str
    proof: int | None
    """Auth revision under which a token was given out; None: by certificate; -1: not at all."""


class Need(NamedTuple):
    """Reading or writing an interval: `end` exclusive, b"" is the end of all keys."""

    kind: int
    start: bytes
    end: bytes


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules at one auth revision."""

    enabled: bool = False
    revision: int = 1
    since: int = 0
    """Auth revision at which they were switched on."""
    users: dict[str, tuple[frozenset[str], int]] = field(default_factory=dict)
    """Name -> (roles, auth revision of the newest password)."""
    roles: dict[str, dict[tuple[bytes, bytes], int]] = field(default_factory=dict)
    """Name -> interval -> what for."""

    def allow(self, asker: Asker, needs: Iterable[Need] | None) -> bool:
        """Whether they let somebody do this; `needs` None: what only the role root may do."""
        if not self.enabled:
            return True
        roles, since = self.users.get(asker.user, (frozenset[str](), 0))
        if asker.user not in self.users:
            return False
        if asker.proof is not None and asker.proof < max(since, self.since):
            return False
        if ROOT in roles:
            return True
        held = [one for role in sorted(roles) for one in self.roles.get(role, {}).items()]
        return needs is not None and all(_covered(need, held) for need in needs)


def _covered(need: Need, held: list[tuple[tuple[bytes, bytes], int]]) -> bool:
    """Walk the interval: what holds its first key tells where to go on."""
    intervals = [interval for interval, kind in held if kind in (need.kind, READWRITE)]
    at = need.start
    while True:
        ends = [end for start, end in intervals if start <= at and (not end or at < end)]
        if not ends:
            return False
        if b"" in ends:
            return True
        at = max(ends)
        if need.end and at >= need.end:
            return True


def interval(start: bytes, end: bytes | None) -> tuple[bytes, bytes]:
    """Of a request or of a permission, half open."""
    if end is None:
        return start, start + b"\0"
    return start, b"" if end == TO_THE_END else end


def needs_of(request: Any) -> list[Need] | None:
    """What a request reads and writes, whichever way it goes; None: it is for root."""
    if request is None or isinstance(request, Compact):
        return None
    return list(_needs(request))


def _needs(request: Any) -> Iterator[Need]:
    if isinstance(request, Put):
        where = interval(request.key, None)
    elif isinstance(request, Delete | Range):
        where = interval(request.start, request.end)
    if isinstance(request, Put | Delete):
        yield Need(WRITE, *where)
        if request.want_previous:
            yield Need(READ, *where)
    elif isinstance(request, Range):
        yield Need(READ, *where)
    elif isinstance(request, Txn):
        for compare in request.compares:
            yield from _needs(compare)
        for operation in (*request.success, *request.failure):
            yield from _needs(operation)
    elif isinstance(request, Compare):
        yield Need(READ, *interval(request.key, None))


@dataclass(frozen=True, slots=True)
class Period:
    """Rules, and since when."""

    rules: Rules
    at_us: int
    """When a member first applied them."""
    revision: int
    """Of the store, then."""


class RightsOracle:
    """Fed with everything that is applied, asked and told; `violations` is what is wrong."""

    def __init__(self) -> None:
        self.periods = [Period(Rules(), 0, 0)]
        self.violations: list[str] = []
        self._asked: dict[str, list[tuple[Asker, Any]]] = {}
        self._index = 0
        self._leases: dict[bytes, int] = {}

    @property
    def rules(self) -> Rules:
        """The newest."""
        return self.periods[-1].rules

    # -- what took effect --------------------------------------------------------------------------

    def asks(self, command: list[Any], asker: Asker, request: Any) -> None:
        """Somebody is about to ask for `command`; `request` None: it is about the rules."""
        self._asked.setdefault(repr(command), []).append((asker, request))

    def applied(self, now_us: int, index: int, data: bytes, entry: Applied) -> None:
        """A member has applied an entry; only the first that does counts."""
        if index <= self._index:
            return
        self._index = index
        events = list(entry.events)
        commands = decode_batch(data).commands if data else []
        for command, result in zip(commands, entry.results, strict=True):
            if isinstance(result, RaftkvError):
                continue
            inner = command[4] if command[0] == Op.GUARDED else command
            own = command[0] == Op.GUARDED and command[2] == BY_MEMBER
            if inner[0] not in (_BY_MEMBERS | _AT_TIMES_BY_MEMBERS if own else _BY_MEMBERS):
                self._judge(index, inner)
            while events and events[0].revision <= result.revision:
                event = events.pop(0)
                if event.keyspace == USER_KEYS:
                    self._leases[event.key] = 0 if event.deleted else event.lease
            if Op.AUTH_ENABLE <= inner[0] <= Op.ROLE_REVOKE:
                self._change(now_us, inner, result)

    def _judge(self, index: int, command: list[Any]) -> None:
        rules = self.rules
        if not rules.enabled:
            return
        askers = self._asked.get(repr(command), [])
        if not any(rules.allow(asker, self._needs_now(request)) for asker, request in askers):
            names = ", ".join(sorted({str(asker) for asker, _ in askers})) or "nobody"
            self.violations.append(
                f"right-violated: entry {index} took effect under the rules {rules.revision}, "
                f"which do not allow it to who asked ({names}): {command}"
            )

    def _needs_now(self, request: Any) -> list[Need] | None:
        """With the keys that hang on the lease that is ended, or joined."""
        needs = needs_of(request)
        lease = request.lease if isinstance(request, Put | Revoke) else 0
        if needs is not None and lease:
            hanging = [key for key, held in self._leases.items() if held == lease]
            needs += [Need(WRITE, *interval(key, None)) for key in hanging]
        return needs

    def _change(self, now_us: int, command: list[Any], result: Any) -> None:
        rules = _changed(self.rules, command)
        if rules is not self.rules:
            rules = replace(rules, revision=rules.revision + 1)
            if command[0] == Op.AUTH_ENABLE:
                rules = replace(rules, since=rules.revision)
            self.periods.append(Period(rules, now_us, result.revision))
        if result.auth_revision != self.rules.revision:
            self.violations.append(
                f"rules-differ: {command} led to auth revision {result.auth_revision}, "
                f"not {self.rules.revision}"
            )

    # -- what was told -----------------------------------------------------------------------------

    def answered(self, asker: Asker, request: Any, begun_us: int, now_us: int, result: Any) -> None:
        """A request has come to its end."""
        stale = isinstance(request, Range) and request.serializable
        # Those in force while it was under way; a stale read may be of any time before.
        first = 0 if stale else self._last_at(begun_us)
        periods = [one for one in self.periods[first:] if one.at_us <= now_us]
        if isinstance(result, PermissionDenied):
            self._denied(asker, request, stale, periods)
        elif isinstance(request, Range) and not isinstance(result, RaftkvError):
            if not request.revision:
                periods = self._at_revision(periods, result.revision)
            there = [one.rules for one in periods]
            self._told(asker, needs_of(request), there, f"{request} was answered")

    def _at_revision(self, periods: list[Period], revision: int) -> list[Period]:
        """Those of `periods` that the store can have been at this revision in."""
        following = [*self.periods[1:], None]
        ends = {id(one): after for one, after in zip(self.periods, following, strict=True)}
        return [
            one
            for one in periods
            if one.revision <= revision
            and ((after := ends[id(one)]) is None or revision <= after.revision)
        ]

    def _denied(self, asker: Asker, request: Any, stale: bool, periods: list[Period]) -> None:
        hangs = getattr(request, "lease", 0)
        if stale or hangs:
            return
        if all(one.rules.allow(asker, needs_of(request)) for one in periods):
            self.violations.append(f"right-denied: {asker} may do {request}, and was refused")

    def event(self, asker: Asker, auth_revision: int, key: bytes, revision: int) -> None:
        """A watch was told of a key by a member whose rules have this number."""
        there = [one.rules for one in self.periods if one.rules.revision == auth_revision]
        need = Need(READ, *interval(key, None))
        self._told(asker, [need], there, f"a watch was told of {key!r} at {revision}")

    def _told(self, asker: Asker, needs: list[Need] | None, there: list[Rules], what: str) -> None:
        if not any(rules.allow(asker, needs) for rules in there):
            numbers = ", ".join(str(rules.revision) for rules in there)
            self.violations.append(f"right-leaked: {what} to {asker} under the rules {numbers}")

    def _last_at(self, now_us: int) -> int:
        return max(0, bisect_right(self.periods, now_us, key=lambda one: one.at_us) - 1)

    # -- the end -----------------------------------------------------------------------------------

    def compare(self, machine: Machine) -> None:
        """The rules of a member that has applied everything are these."""
        auth, rules = machine.auth, self.rules
        users = {name: (frozenset(one.roles), one.since) for name, one in auth.users.items()}
        roles = {
            name: {interval(one.start, one.end): int(one.kind) for one in role.permissions}
            for name, role in auth.roles.items()
        }
        theirs = Rules(auth.enabled, auth.revision, auth.since, users, roles)
        if theirs != rules:
            self.violations.append(f"rules-differ: a member has {theirs}, the log makes {rules}")


def _changed(rules: Rules, command: list[Any]) -> Rules:
    """The rules after a command that was not refused; the very same if it changes nothing. The
    auth revision is still the old one."""
    op, _, *given = command
    users, roles, newer = dict(rules.users), dict(rules.roles), rules.revision + 1
    if op in (Op.AUTH_ENABLE, Op.AUTH_DISABLE):
        on = op == Op.AUTH_ENABLE
        return rules if rules.enabled == on else replace(rules, enabled=on)
    name = given[0]
    if op == Op.USER_ADD:
        users[name] = (frozenset(), newer)
    elif op == Op.USER_DELETE:
        del users[name]
    elif op == Op.USER_PASSWORD:
        users[name] = (users[name][0], newer)
    elif op == Op.USER_GRANT:
        if given[1] in users[name][0]:
            return rules
        users[name] = (users[name][0] | {given[1]}, users[name][1])
    elif op == Op.USER_REVOKE:
        users[name] = (users[name][0] - {given[1]}, users[name][1])
    elif op == Op.ROLE_ADD:
        roles[name] = {}
    elif op == Op.ROLE_DELETE:
        del roles[name]
        users = {user: (held - {name}, since) for user, (held, since) in users.items()}
    elif op == Op.ROLE_GRANT:
        _, kind, start, end = given[1:]
        roles[name] = {**roles[name], _granted(start, end): kind}
    elif op == Op.ROLE_REVOKE:
        _, start, end = given[1:]
        where = _granted(start, end)
        roles[name] = {place: kind for place, kind in roles[name].items() if place != where}
    return replace(rules, users=users, roles=roles)


def _granted(start: bytes, end: bytes | None) -> tuple[bytes, bytes]:
    return start, start + b"\0" if end is None else end
