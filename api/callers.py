"""Who asks, and the store as they may use it.

A `Caller` has the calls of `raftkv.server.store.Store` that touch data, with the same promises:
what takes a `done` never raises, and a refusal comes through `done` as any other. Doors hold a
caller and not the store, so what is not allowed cannot be asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from raftkv.errors import AuthRevisionOld, InvalidAuthToken, PermissionDenied, RaftkvError, Refused
from raftkv.limits import LEASES_PER_SLICE
from raftkv.machine.access import Access, Accesses, Grants, Kind, effects
from raftkv.machine.commands import Command, guarded
from raftkv.server.watch import Watch, WatchSink, WatchSpec

if TYPE_CHECKING:
    from raftkv.machine.auth import AuthState
    from raftkv.machine.leases import Lease
    from raftkv.server.store import Done, Store

TOKEN_NEEDED = "a token is needed: log in, and send it as `Authorization: Bearer TOKEN`"  # noqa: S105


class Caller:
    """Nobody in particular, who may do everything while access control is off."""

    user: str | None = None
    """Who it is; None: nobody knows."""
    needs: Accesses = ()
    """What the request at hand needs, see `asking`."""

    def __init__(self, store: Store, watches: dict[Watch, Caller]) -> None:
        self._store = store
        self._machine = store.machine
        self._watches = watches

    @property
    def grants(self) -> Grants | None:
        """What they may do by the rules in force; None: everything. Raises InvalidAuthToken."""
        if self._machine.auth.enabled:
            raise InvalidAuthToken(TOKEN_NEEDED)
        return None

    def check(self, needs: Iterable[Access]) -> None:
        """Raise unless they may do all of this: PermissionDenied, or InvalidAuthToken."""
        grants = self.grants
        if grants is not None:
            for access in needs:
                if not grants.allows(access):
                    raise denied(grants.user, access)

    def allows(self, access: Access) -> bool:
        """Whether they may do this."""
        grants = self.grants
        return grants is None or grants.allows(access)

    def asking(self, needs: Accesses) -> Caller:
        """The same caller with one request, for which it was found to need this."""
        if not needs:
            return self
        other = self._again()
        other.needs = needs
        return other

    def _again(self) -> Caller:
        return Caller(self._store, self._watches)

    def propose(self, command: Command, done: Done) -> None:
        """See `Store.propose`. Refused with what `check` raises for the command's effects."""
        self._store.propose(command, done)

    def read_index(
        self, done: Callable[[RaftkvError | None], None], needs: Accesses | None = None
    ) -> None:
        """See `Store.read_index`. `needs` (None: those of the request), checked before in this
        turn, are checked again if the rules are others once local reads are fresh."""
        if needs is None:
            needs = self.needs
        self._store.read_index(partial(self._confirmed, self._machine.auth, needs, done))

    def _confirmed(
        self,
        auth: AuthState,
        needs: Accesses,
        done: Callable[[RaftkvError | None], None],
        error: RaftkvError | None,
    ) -> None:
        if error is None and self._machine.auth is not auth:
            try:
                self.check(needs)
            except Refused as refused:
                error = refused
        done(error)

    def keep_alive(self, lease: int, done: Done) -> None:
        """See `Store.keep_alive`. Refused with PermissionDenied, see `raftkv.machine.auth`."""
        self._store.keep_alive(lease, done)

    def keep_alives(self, leases: list[int], done: Done) -> None:
        """See `Store.keep_alives`. For those of whom nothing is asked."""
        self._store.keep_alives(leases, done)

    def lease_time(self, lease: int, done: Done) -> None:
        """See `Store.lease_time`. The keys of the lease are another matter, see `readable`."""
        self._store.lease_time(lease, done)

    async def leases(self) -> list[Lease]:
        """The leases that they may know of, ordered by id. Raises InvalidAuthToken.

        Read over several turns: one that is granted or ends meanwhile may be there or not.
        """
        found: list[Lease] = []
        after: int | None = 0
        while after is not None:
            grants = self.grants
            limited = None if grants is None or grants.admin else grants
            part, after = self._machine.lease_slice(after, LEASES_PER_SLICE, limited)
            found += part
            await asyncio.sleep(0)
        return found

    def readable(self, keys: list[bytes], keyspace: int = 0) -> list[bytes]:
        """Those of `keys` that they may read. Raises InvalidAuthToken."""
        grants = self.grants
        if grants is None:
            return keys
        return [key for key in keys if grants.allows(Access(Kind.READ, keyspace, key, None))]

    def watch(self, spec: WatchSpec, sink: WatchSink) -> Watch:
        """See `Store.watch`. Raises what `check` raises; the watch is closed with the same before
        the first event that it may no longer show."""
        self.check(_watched(spec))
        watch = self._store.watch(spec, sink)
        if not watch.closed:
            self._watches[watch] = self
            watch.on_end = self._watches.pop
        return watch


class KnownCaller(Caller):
    """A user who proved to be so."""

    def __init__(
        self,
        store: Store,
        watches: dict[Watch, Caller],
        user: str,
        auth_revision: int,
    ) -> None:
        super().__init__(store, watches)
        self.user = self._user = user  # the same, where it is never None
        self._proved = auth_revision
        self._auth: AuthState | None = None
        self._grants = Grants(user, (), ())

    @property
    def grants(self) -> Grants | None:
        auth = self._machine.auth
        if auth is not self._auth:
            if not auth.enabled:
                return None
            self._recognise(auth)
            self._grants = auth.grants(self._user)
            self._auth = auth
        return self._grants

    def _again(self) -> Caller:
        return self._known(KnownCaller(self._store, self._watches, self._user, self._proved))

    def _known(self, other: KnownCaller) -> KnownCaller:
        """`other` need not be recognised again by the rules that this one was recognised by."""
        other._auth, other._grants = self._auth, self._grants
        return other

    def _recognise(self, auth: AuthState) -> None:
        if not auth.counts(self._user, self._proved):
            raise InvalidAuthToken("the user or its password is another since: log in again")

    def propose(self, command: Command, done: Done) -> None:
        self._attempt(partial(self._propose, command, partial(self._proposed, command, done)), done)

    def _propose(self, command: Command, done: Done) -> None:
        self.check(effects(command))
        grants = self.grants
        name = None if grants is None or grants.admin else self._user
        self._store.propose(guarded(command, self._machine.auth.revision, name), done)

    def _proposed(self, command: Command, done: Done, outcome: Any) -> None:
        if isinstance(outcome, AuthRevisionOld):
            # Refused where it was applied, which was here: the rules here are the newer ones now.
            self._attempt(partial(self._propose, command, done), done)
        else:
            done(outcome)

    def keep_alive(self, lease: int, done: Done) -> None:
        self._attempt(partial(self._keep_alive, lease, done), done)

    def _keep_alive(self, lease: int, done: Done) -> None:
        grants = self.grants
        if grants is not None and not self._machine.may_renew_lease(grants, lease):
            raise PermissionDenied("permission denied: you may write no key of this lease")
        self._store.keep_alive(lease, done)

    def _attempt(self, attempt: Callable[[], None], refuse: Done) -> None:
        """Do what may be refused; before it is, make sure that the rules here are fresh."""
        try:
            attempt()
        except Refused:
            self._store.read_index(partial(self._attempt_again, attempt, refuse))

    @staticmethod
    def _attempt_again(
        attempt: Callable[[], None], refuse: Done, error: RaftkvError | None
    ) -> None:
        if error is None:
            try:
                attempt()
                return
            except Refused as refused:
                error = refused
        refuse(error)


class CertifiedCaller(KnownCaller):
    """A user by the certificate of the connection, which no change of a password ends."""

    def __init__(self, store: Store, watches: dict[Watch, Caller], user: str) -> None:
        super().__init__(store, watches, user, 0)

    def _again(self) -> Caller:
        return self._known(CertifiedCaller(self._store, self._watches, self._user))

    def _recognise(self, auth: AuthState) -> None:
        if self._user not in auth.users:
            raise PermissionDenied(
                f"permission denied: there is no user {self._user!r}, as the certificate names"
            )


def _watched(spec: WatchSpec) -> Accesses:
    return (Access(Kind.READ, spec.keyspace, spec.start, spec.end),)


def review(watches: dict[Watch, Caller]) -> None:
    """Close every watch that the rules in force no longer allow."""
    for watch, caller in list(watches.items()):
        try:
            caller.check(_watched(watch.spec))
        except Refused as refused:
            watch.close(refused)


def denied(user: str, access: Access) -> PermissionDenied:
    """The refusal of one access, in words."""
    if access.kind <= Kind.WRITE:
        verb = "read" if access.kind == Kind.READ else "write"
        what = f"{user!r} may not {verb} {_shown(access)}"
    else:
        what = f"{user!r} would need the role root"
    return PermissionDenied(f"permission denied: {what}")


def _shown(access: Access) -> str:
    _, keyspace, start, end = access
    place = "of the service catalog " if keyspace == 1 else ""
    if end is None:
        return f"the key {place}{_text(start)}"
    if not end:
        return f"the keys {place}from {_text(start)} on"
    return f"the keys {place}from {_text(start)} to {_text(end)}"


def _text(key: bytes) -> str:
    text = key.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 64 else text[:64] + "…")
