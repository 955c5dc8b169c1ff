"""Access control in simulated clusters: users with partial rights, and rights that change.

Clients act as users, by certificate or by token, through the gate that real doors use. An
administrator grants and takes back, changes passwords, deletes users and makes them anew, and
switches access control off and on, all while faults go on. Some clients try to change the rules
themselves. `tests.simulation.rights_oracle` judges.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import msgpack

from raftkv.api.gate import Gate
from raftkv.errors import InvalidAuthToken, PermissionDenied, RaftkvError
from raftkv.machine import auth_commands
from raftkv.machine.access import Access, Accesses, Kind
from raftkv.machine.auth_commands import token_add
from raftkv.machine.commands import Command
from raftkv.machine.events import Event
from raftkv.machine.records import USER_KEYS
from raftkv.machine.results import Applied, TokenResult
from raftkv.server.replica import Batch
from raftkv.server.store import Done
from raftkv.server.watch import WatchSink, WatchSpec
from raftkv.simulation import SimCluster, SimMember
from tests.linearizability.history import KeepAlive, Range, Request
from tests.linearizability.translation import command, end_of
from tests.simulation import doors
from tests.simulation.rights_oracle import READ, READWRITE, ROOT, WRITE, Asker, RightsOracle

USERS: Final = ("u0", "u1", "u2")
ROLES: Final = ("r0", "r1", "r2")
PLACES: Final = ((b"k", b"l"), (b"k0", b"k3"), (b"k2", b"k6"), (b"k0", None), (b"k1", None))
"""Where permissions are granted."""
TOKEN_TTL_MS: Final = 300_000
HASH: Final = "$argon2id$simulated"


@dataclass(frozen=True, slots=True)
class Rights:
    """How access control is used in one seed."""

    certified: tuple[bool, ...]
    """For each of USERS: by certificate, else by token."""
    change_us: int
    """Mean pause between two changes of the rules."""
    switched: bool
    """Whether access control goes off and on."""


def draw_rights(seed: int) -> Rights | None:
    """Those of a seed; None: access control stays off."""
    chance = random.Random(f"rights {seed}")
    if chance.random() < 0.6:
        return None
    return Rights(
        certified=tuple(chance.random() < 0.5 for _ in USERS),
        change_us=chance.choice((300_000, 1_000_000, 4_000_000)),
        switched=chance.random() < 0.3,
    )


class _Somebody:
    """A user, and what they show."""

    def __init__(self, user: str, certified: bool) -> None:
        self.user = user
        self.certified = certified
        self.token: bytes | None = None
        self.proof = -1
        self.entering = False

    @property
    def asker(self) -> Asker:
        return Asker(self.user, None if self.certified else self.proof)


class GuardedDoor:
    """The way of simulated clients into members that know users."""

    def __init__(self, cluster: SimCluster, rights: Rights, clients: int) -> None:
        """The first `clients` clients are users, as far as there are any; all others are root."""
        self.cluster = cluster
        self.world = cluster.world
        self.oracle = RightsOracle()
        self.stopped = False
        self._rights = rights
        self._root = _Somebody(ROOT, certified=True)
        self._users = [
            _Somebody(user, certified)
            for user, certified in zip(USERS, rights.certified, strict=True)
        ]
        self._clients = self._users[:clients]
        self._gates: dict[int, tuple[int, Gate]] = {}
        self._tokens = 0
        self._trials = 0
        cluster.on_applied.append(self._applied)

    def _applied(
        self, member: SimMember, batches: Sequence[Batch], entries: Sequence[Applied]
    ) -> None:
        before = len(self.oracle.periods)
        for (index, _, data), entry in zip(batches, entries, strict=True):
            self.oracle.applied(self.world.now_us, index, data, entry)
        self.world.faults["rules changed"] += len(self.oracle.periods) - before

    # -- clients -----------------------------------------------------------------------------------

    def ask(
        self, client: int, member: SimMember, request: Request, done: Done, once: bytes | None
    ) -> None:
        """As `doors.ask`, for a client's user: root for those that hold locks."""
        who = self._clients[client] if 0 <= client < len(self._clients) else self._root
        packed = None
        if not isinstance(request, Range | KeepAlive):
            packed = command(request, once)
        self._submit(who, member, request, packed, done)
        if who is not self._root and self.world.random.random() < 0.05:
            self._trespass(who, member)

    def _trespass(self, who: _Somebody, member: SimMember) -> None:
        """Try what only root may do."""
        self._trials += 1
        mallory = f"mallory-{self._trials}"
        self._submit(who, member, None, auth_commands.user_add(mallory, None), lambda result: None)

    def watch(self, member: SimMember, spec: WatchSpec, sink: WatchSink) -> None:
        """Watch as somebody."""
        who = self.world.random.choice([self._root, *self._users])
        asker, token = who.asker, _header(who)
        certified = who.user if who.certified else None

        def begin(spec: WatchSpec, sink: WatchSink) -> Any:
            caller, _ = self._gate(member).judge(lambda request: (), token, None, certified)
            return caller.watch(spec, _Told(self.oracle, asker, member, sink))

        member.watch(spec, sink, begin)

    def _submit(
        self,
        who: _Somebody,
        member: SimMember,
        request: Request | None,
        packed: Command | None,
        done: Done,
    ) -> None:
        asker, begun_us = who.asker, self.world.now_us
        attempt = _Attempt(who, request, packed)
        if packed is not None:
            self.oracle.asks(msgpack.unpackb(packed), asker, request)

        def answered(result: Any) -> None:
            self.world.faults["right denied"] += isinstance(result, PermissionDenied)
            self.oracle.answered(asker, request, begun_us, self.world.now_us, result)
            if isinstance(result, InvalidAuthToken) and attempt.token == _header(who):
                self._log_in(who, member)
            done(result)

        member.ask(answered, lambda tracked: attempt.go(self._gate(member), member, tracked))

    def _gate(self, member: SimMember) -> Gate:
        """The gate of the process that runs now."""
        life, gate = self._gates.get(member.member_id, (-1, None))
        if gate is None or life != member.life:
            with asyncio.Runner() as runner:
                gate = runner.run(_open_gate(member))
            self._gates[member.member_id] = (member.life, gate)
        return gate

    # -- logging in --------------------------------------------------------------------------------

    def _log_in(self, who: _Somebody, member: SimMember) -> None:
        """Prove who one is, by a password that is always the newest; it takes time to verify."""
        if who.certified or who.entering:
            return
        who.entering, who.token, who.proof = True, None, -1

        def begin(tracked: Done) -> None:
            def fresh(error: RaftkvError | None) -> None:
                auth = member.machine.auth
                known = error is None and auth.enabled and who.user in auth.users
                tracked(auth.revision if known else error)

            member.replica.read_index(fresh)

        def verified(revision: Any) -> None:
            if not isinstance(revision, int):
                who.entering = False
                return
            self._tokens += 1
            token = b"token-%d" % self._tokens
            added = token_add(sha256(token).digest(), who.user, TOKEN_TTL_MS, revision)

            def entered(result: Any) -> None:
                who.entering = False
                if isinstance(result, TokenResult):
                    who.token, who.proof = token, revision

            self.world.after(self.world.random.randrange(200_000), member.propose, added, entered)

        member.ask(verified, begin)

    # -- the administrator -------------------------------------------------------------------------

    def start(self) -> None:
        """Set up users, switch access control on, and go on changing the rules."""
        self._set_up(list(_foundation()))

    def stop(self) -> None:
        """Leave the rules as they are."""
        self.stopped = True

    def _set_up(self, left: list[Command]) -> None:
        if not left:
            self._later()
            return

        def heard(result: Any) -> None:
            # What is refused because it is so already was done by an attempt of unknown outcome.
            again = isinstance(result, RaftkvError) and not _settled(result)
            self.world.after(100_000, self._set_up, left if again else left[1:])

        self._administer(left[0], heard)

    def _administer(self, packed: Command, heard: Done) -> None:
        members = [one for one in self.cluster.members.values() if not one.gone]
        self._submit(self._root, self.world.random.choice(members), None, packed, heard)

    def _later(self) -> None:
        pause_us = int(self.world.random.expovariate(1 / self._rights.change_us))
        self.world.after(pause_us, self._change)

    def _change(self) -> None:
        if not self.stopped:
            self._administer(self._draw(), lambda result: self._later())

    def _draw(self) -> Command:
        chance = self.world.random
        user, role = chance.choice(USERS), chance.choice(ROLES)
        start, end = chance.choice(PLACES)
        kinds: list[tuple[int, Callable[[], Command]]] = [
            (30, lambda: auth_commands.role_grant(role, chance.choice(_KINDS), start, end)),
            (20, lambda: auth_commands.role_revoke(role, start, end)),
            (15, lambda: auth_commands.user_grant(user, role)),
            (8, lambda: auth_commands.user_revoke(user, role)),
            (10, lambda: auth_commands.user_password(user, HASH)),
            (2, lambda: auth_commands.user_delete(user)),
            (6, lambda: auth_commands.user_add(user, HASH)),
            (1, lambda: auth_commands.role_delete(role)),
            (4, lambda: auth_commands.role_add(role)),
            (3 * self._rights.switched, auth_commands.auth_disable),
            (12 * self._rights.switched, auth_commands.auth_enable),
        ]
        [make] = chance.choices([one for _, one in kinds], [weight for weight, _ in kinds])
        return make()


_KINDS: Final = (READ, WRITE, READWRITE, READWRITE)


def _foundation() -> Iterator[Command]:
    yield auth_commands.user_add(ROOT, None)
    yield auth_commands.user_grant(ROOT, ROOT)
    for user, role in zip(USERS, ROLES, strict=True):
        yield auth_commands.user_add(user, HASH)
        yield auth_commands.role_add(role)
        yield auth_commands.user_grant(user, role)
    yield auth_commands.role_grant(ROLES[0], READWRITE, b"k", b"l")
    yield auth_commands.role_grant(ROLES[1], WRITE, b"k", b"l")
    yield auth_commands.role_grant(ROLES[1], READ, b"k0", b"k3")
    yield auth_commands.role_grant(ROLES[2], READWRITE, b"k0", None)
    yield auth_commands.auth_enable()


def _settled(error: RaftkvError) -> bool:
    return error.code in ("user_exists", "role_exists")


async def _open_gate(member: SimMember) -> Gate:
    return Gate(member.replica, clock_ms=member.wall_ms)  # type: ignore[arg-type]


def _header(who: _Somebody) -> bytes | None:
    return None if who.token is None else b"Bearer " + who.token


class _Attempt:
    """One request at one member, as doors treat it: what refuses it is made sure of first."""

    def __init__(self, who: _Somebody, request: Request | None, packed: Command | None) -> None:
        self.token = _header(who)
        self._certified = who.user if who.certified else None
        self._request = request
        self._packed = packed
        self._needs: Accesses = ()
        if isinstance(request, Range):
            self._needs = (Access(Kind.READ, USER_KEYS, request.start, end_of(request.end)),)

    def go(self, gate: Gate, member: SimMember, done: Done, fresh: bool = False) -> None:
        """Ask the gate, then the member as the caller that it names."""
        try:
            caller, needs = gate.judge(
                lambda request: self._needs, self.token, None, self._certified
            )
        except (InvalidAuthToken, PermissionDenied) as refused:
            if fresh or (self.token is None and self._certified is None):
                done(refused)
                return

            def confirmed(error: RaftkvError | None) -> None:
                if error is None:
                    self.go(gate, member, done, fresh=True)
                else:
                    done(error)

            member.replica.read_index(confirmed)
            return
        request = self._request
        if isinstance(request, Range):
            self._read(caller, needs, request, member, done)
        elif isinstance(request, KeepAlive):
            caller.keep_alive(request.lease, done)
        else:
            assert self._packed is not None
            caller.propose(self._packed, done)

    @staticmethod
    def _read(caller: Any, needs: Accesses, request: Range, member: SimMember, done: Done) -> None:
        def confirmed(error: RaftkvError | None) -> None:
            if error is not None:
                done(error)
                return
            try:
                answer: Any = doors.query(request)(member.machine)
            except RaftkvError as refused:
                answer = refused
            done(answer)

        if request.serializable:
            confirmed(None)
        else:
            caller.read_index(confirmed, needs)


class _Told:
    """Passes a watch on, and shows the oracle what it is told."""

    def __init__(
        self, oracle: RightsOracle, asker: Asker, member: SimMember, sink: WatchSink
    ) -> None:
        self._oracle = oracle
        self._asker = asker
        self._member = member
        self._sink = sink
        self.progress = sink.progress
        self.closed = sink.closed

    def events(self, revision: int, events: Sequence[Event]) -> bool:
        """See `WatchSink.events`."""
        for event in events:
            rules = self._member.machine.auth.revision
            self._oracle.event(self._asker, rules, event.key, event.revision)
        return self._sink.events(revision, events)  # type: ignore[arg-type]
