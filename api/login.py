"""Logging in: a password is verified off the loop, slowly, and guessing is made slower still.

Failures are counted for each user and for each address. Both counts leak away with time; past a
few, the next attempt has to wait, longer with every failure. An address from which a user logged in
before is not made to wait for what others tried in that user's name, so that a stranger cannot lock
anybody out.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.tokens import Issued, Recipient, Tokens
from raftkv.errors import (
    AuthenticationFailed,
    AuthNotEnabled,
    Refused,
    TooManyRequests,
)
from raftkv.limits import (
    AUTH_NAME_BYTES_MAX,
    LOGIN_FAILURE_FORGOTTEN_SECONDS,
    LOGIN_FAILURES_FREE,
    LOGIN_SOURCES_MAX,
    LOGIN_WAIT_SECONDS_MAX,
    PASSWORD_BYTES_MAX,
)

if TYPE_CHECKING:
    from raftkv.api.observe import Trail
    from raftkv.errors import RaftkvError
    from raftkv.server.passwords import Passwords
    from raftkv.server.store import Store

log = logging.getLogger(__name__)

FAILED: Final = "authentication failed, invalid user ID or password"


class Throttle:
    """Attempts by name, the least recent forgotten first. Times are seconds of any steady clock.

    An attempt is charged before it is made, so that many at once do not all come first.
    """

    def __init__(self, names_max: int = LOGIN_SOURCES_MAX) -> None:
        self._names_max = names_max
        self._charged: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Name -> attempts when last counted, when that was."""

    def wait(self, name: str, now: float) -> float:
        """Seconds until `name` may try again; 0: now."""
        count, since = self._charged.get(name, (0.0, now))
        if self._left(name, now) < LOGIN_FAILURES_FREE:
            return 0.0
        doubled: float = 2.0 ** min(32.0, count - LOGIN_FAILURES_FREE)
        return max(0.0, since + min(LOGIN_WAIT_SECONDS_MAX, doubled) - now)

    def charge(self, name: str, now: float) -> None:
        """Count an attempt."""
        left = self._left(name, now)
        self._charged[name] = (left + 1.0, now)
        self._charged.move_to_end(name)
        if len(self._charged) > self._names_max:
            self._charged.popitem(last=False)

    def refund(self, name: str) -> None:
        """It was no failure. What failed before stays counted: one right password does not excuse
        the guesses around it."""
        if name in self._charged:
            count, since = self._charged[name]
            self._charged[name] = (max(0.0, count - 1.0), since)

    def __len__(self) -> int:
        return len(self._charged)

    def _left(self, name: str, now: float) -> float:
        count, since = self._charged.get(name, (0.0, now))
        return max(0.0, count - (now - since) / LOGIN_FAILURE_FORGOTTEN_SECONDS)


class LoginDesk:
    """Turns a name and a password into a token. One a member, shared by its doors."""

    def __init__(
        self,
        store: Store,
        passwords: Passwords,
        tokens: Tokens,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._passwords = passwords
        self._tokens = tokens
        self._clock = clock
        self._by_user = Throttle()
        self._by_source = Throttle()
        self._good: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Users and the addresses they logged in from."""

    def log_in(
        self, user: str, password: str, source: str, done: Recipient, trail: Trail | None = None
    ) -> None:
        """Calls `done` with a token, or with AuthenticationFailed, AuthNotEnabled, TooManyRequests
        or what else refused it. `source` is the caller's address. `trail` hears of the user, if
        there is such a one."""
        _Login(self, user, password, source, done, trail).begin()

    def admit(self, user: str, source: str) -> float:
        """Charge an attempt; or the seconds that it has to wait, if any."""
        now = self._clock()
        wait = self._by_source.wait(source, now)
        if (user, source) not in self._good:
            wait = max(wait, self._by_user.wait(user, now))
        if wait <= 0:
            self._by_user.charge(user, now)
            self._by_source.charge(source, now)
        return wait

    def withdraw(self, user: str, source: str) -> None:
        """The attempt was no guess, or came to nothing for reasons of our own."""
        self._by_user.refund(user)
        self._by_source.refund(source)

    def succeeded(self, user: str, source: str) -> None:
        """The password was right."""
        self.withdraw(user, source)
        self._good[user, source] = None
        self._good.move_to_end((user, source))
        if len(self._good) > LOGIN_SOURCES_MAX:
            self._good.popitem(last=False)


def network_of(source: str) -> str:
    """What attempts from an address are counted under: an IPv4 address, or the 64 bits of an IPv6
    address that its holder cannot choose."""
    if ":" not in source:
        return source
    try:
        address = ipaddress.IPv6Address(source.partition("%")[0])
    except ValueError:
        return source[:64]
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))


class _Login:
    """One attempt, from callback to callback."""

    __slots__ = (
        "_auth_revision", "_desk", "_done", "_known", "_password", "_source", "_trail", "_user",
    )  # fmt: skip

    def __init__(
        self,
        desk: LoginDesk,
        user: str,
        password: str,
        source: str,
        done: Recipient,
        trail: Trail | None,
    ) -> None:
        self._desk = desk
        # Cut where nothing longer exists, because names of attempts are remembered.
        self._user = user[: AUTH_NAME_BYTES_MAX + 1]
        self._password = password[: PASSWORD_BYTES_MAX + 1]
        self._source = network_of(source)
        self._done = done
        self._trail = trail
        self._known = False
        self._auth_revision = 0

    def begin(self) -> None:
        """Refuse who has to wait; else look the user up in fresh state."""
        wait = self._desk.admit(self._user, self._source)
        if wait > 0:
            log.warning("a login has to wait", extra={"source": self._source})
            self._finish(
                TooManyRequests(
                    f"too many failed logins: wait {wait:.0f} s", retry_after=max(1, round(wait))
                )
            )
        else:
            self._desk._store.read_index(self._fresh)

    def _fresh(self, error: RaftkvError | None) -> None:
        auth = self._desk._store.machine.auth
        if error is not None or not auth.enabled:
            self._desk.withdraw(self._user, self._source)
            self._finish(error or AuthNotEnabled("authentication is not enabled"))
        else:
            found = auth.users.get(self._user)
            self._known = found is not None
            if self._trail is not None and self._known:
                self._trail.user = self._user
            self._auth_revision = auth.revision
            password, self._password = self._password, ""
            self._desk._passwords.verify(
                None if found is None else found.password_hash, password, self._verified
            )

    def _verified(self, right: bool | Refused | Any) -> None:
        if right is True:
            self._desk.succeeded(self._user, self._source)
            self._desk._tokens.issue(self._user, self._auth_revision, self._done)
        elif right is False:
            # A name that nobody has may be a password in the wrong field: it is not written down.
            user = self._user if self._known else "(unknown)"
            log.warning("a login failed", extra={"user": user, "source": self._source})
            self._finish(AuthenticationFailed(FAILED))
        else:
            self._desk.withdraw(self._user, self._source)
            self._finish(right)

    def _finish(self, answer: Issued | RaftkvError) -> None:
        self._password = ""
        self._done(answer)
