"""The gate that every request of every door passes before it is given to a handler.

It says who the caller is and what they may do, and keeps foreign web pages from writing through a
visitor's browser.

Every call of every door declares a `Guard`: what it needs, computed from the request. One without
is refused: deny by default. What a handler then does it does through the `Caller` that the gate
gave it, which judges the whole effect of each command (`raftkv.machine.access.effects`).

A page of any site can make a browser send a form or a plain-text POST to a loopback address
without asking (CVE-2018-1098). Two things stop that: a JSON body needs a JSON content type, which
a browser sends across sites only after a preflight that is not granted, and a write that carries
an `Origin` must come from the host that it is sent to. `raftkv.api.http.pages` has the exceptions.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.callers import TOKEN_NEEDED, Caller, CertifiedCaller, KnownCaller, review
from raftkv.api.http.pages import ANY, Pages
from raftkv.api.http.refusals import ForeignOrigin, UnsupportedMediaType
from raftkv.api.login import LoginDesk
from raftkv.api.observe import open_observer
from raftkv.api.pace import Pace
from raftkv.api.tokens import RandomTokens, Tokens, bearer, invalid, make_tokens, wall_ms
from raftkv.errors import InvalidAuthToken, PermissionDenied
from raftkv.limits import CALLERS_MAX, TOKEN_TTL_SECONDS_DEFAULT
from raftkv.machine.access import ADMIN, Accesses
from raftkv.server.passwords import Passwords
from raftkv.server.token_spec import parse_token_spec

if TYPE_CHECKING:
    from raftkv.api.observe import Observer
    from raftkv.server.config import ServerConfig
    from raftkv.server.store import Done, Store
    from raftkv.server.watch import Watch

READS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))

Guard = Callable[[Any], Accesses]
"""What a request needs beyond its commands, which are judged when they are proposed."""


def public(request: Any) -> Accesses:
    """A guard: for everybody, known or not. Only for what `PUBLIC` names."""
    return ()


def known(request: Any) -> Accesses:
    """A guard: for every user. What is shown depends on the user, or is no secret among them."""
    return ()


def by_command(request: Any) -> Accesses:
    """A guard: for every user whose grants cover all effects of the command it proposes."""
    return ()


def admin(request: Any) -> Accesses:
    """A guard: for who has the role root."""
    return (ADMIN,)


PUBLIC: Final = frozenset(
    (
        "getHealth",
        "getLivez",
        "getLivezCheck",
        "getReadyz",
        "getReadyzCheck",
        "getVersion",
        "logIn",
        "getOpenapi",
        "getDocs",
    )
)
"""All operations of the HTTP door that need no token. Nothing here tells of data or of users."""


class Gate:
    """Decides for one member. Shared by its doors; lives on the running loop."""

    def __init__(
        self,
        store: Store,
        *,
        tokens: Tokens | None = None,
        passwords: Passwords | None = None,
        pages: Pages | None = None,
        clock_ms: Callable[[], int] = wall_ms,
        observer: Observer | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._machine = store.machine
        self._store = store
        self._clock_ms = clock_ms
        self.observer = observer
        """Who follows requests for the audit log and for traces, if anybody does."""
        self.pace = pace
        """How many requests a client may send; None: any number."""
        self.pages = pages
        """What pages of other sites may do; None: nothing that writes."""
        self.tokens = tokens or RandomTokens(store, TOKEN_TTL_SECONDS_DEFAULT)
        self.passwords = passwords or Passwords()
        self.logins = LoginDesk(store, self.passwords, self.tokens, asyncio.get_running_loop().time)
        self._watches: dict[Watch, Caller] = {}
        self.anyone = Caller(store, self._watches)
        self._callers: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._certified: OrderedDict[str, CertifiedCaller] = OrderedDict()
        store.machine.on_auth_change.append(self._rules_changed)

    # -- who, and what ---------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether access control is on, as far as this member has applied."""
        return self._machine.auth.enabled

    def judge(
        self,
        guard: Guard | None,
        authorization: bytes | None,
        request: Any,
        certified: str | None = None,
    ) -> tuple[Caller, Accesses]:
        """The caller to serve a request as, and what its guard found it to need.

        `certified` is the user that the connection's certificate stands for; a token goes first.

        For a handler that reads, the latter goes into `Caller.read_index`. Raises InvalidAuthToken,
        PermissionDenied, or what the guard raises for a malformed request.
        """
        if guard is None:
            raise PermissionDenied("permission denied: nothing says who may call this")
        if guard is public or not self._machine.auth.enabled:
            return self.anyone, ()
        caller = self.enter(authorization, certified)
        if self.pace is not None and caller.user is not None:
            self.pace.of_user(caller.user)
        needs = guard(request)
        caller.check(needs)
        return caller, needs

    def enter(self, authorization: bytes | None, certified: str | None = None) -> Caller:
        """Who shows this `Authorization` header, or token, or else a certificate.

        Raises InvalidAuthToken.
        """
        if not self._machine.auth.enabled:
            return self.anyone
        if authorization is None:
            if certified is not None:
                return self._by_certificate(certified)
            raise InvalidAuthToken(TOKEN_NEEDED)
        token = bearer(authorization)
        digest = sha256(token).digest()
        remembered = self._callers.get(digest)
        now_ms = self._now_ms()
        removals = self._machine.token_removals
        if remembered is None or remembered.expires_ms <= now_ms or remembered.removals != removals:
            remembered = self._recognise(token, digest, remembered, now_ms)
        else:
            self._callers.move_to_end(digest)
        if self.tokens.renews and not remembered.renewing:
            remembered.renewing = remembered.expires_ms - now_ms < self.tokens.ttl_ms // 2
            if remembered.renewing:
                self.tokens.renew(digest)
        return remembered.caller

    def _by_certificate(self, user: str) -> Caller:
        caller = self._certified.get(user)
        if caller is None:
            self._certified[user] = caller = CertifiedCaller(self._store, self._watches, user)
            if len(self._certified) > CALLERS_MAX:
                self._certified.popitem(last=False)
        return caller

    def leave(self, authorization: bytes | None, done: Done) -> None:
        """End the token that was shown, if such tokens can be ended: `done` with True or False."""
        token = bearer(authorization or b"")
        digest = sha256(token).digest()
        self._callers.pop(digest, None)
        self.tokens.drop(digest, done)

    def _recognise(
        self, token: bytes, digest: bytes, old: _Remembered | None, now_ms: int
    ) -> _Remembered:
        self._callers.pop(digest, None)
        proof = self.tokens.recognise(token, digest)
        if proof.expires_ms <= now_ms:
            raise invalid()
        caller = (
            KnownCaller(self._store, self._watches, proof.user, proof.auth_revision)
            if old is None
            else old.caller
        )
        found = _Remembered(caller, proof.expires_ms, self._machine.token_removals)
        self._callers[digest] = found
        if len(self._callers) > CALLERS_MAX:
            self._callers.popitem(last=False)
        return found

    def _now_ms(self) -> int:
        # The leader's clock ends tokens; ours stands in while nothing is written.
        return max(self._clock_ms(), self._machine.clock_ms)

    def _rules_changed(self) -> None:
        review(self._watches)

    def close(self) -> None:
        """The member stops."""
        self.passwords.close()
        if self.observer is not None:
            self.observer.close()

    # -- web pages -------------------------------------------------------------------------------

    @staticmethod
    def admit(method: bytes, headers: dict[bytes, bytes]) -> None:
        """Raise a `Refused` unless the request may go on. Headers have lower-case names."""
        origin = headers.get(b"origin")
        if origin is not None and method not in READS:
            check_origin(origin, headers.get(b"host", b""))

    @staticmethod
    def admit_json(headers: dict[bytes, bytes]) -> None:
        """Raise unless the body is declared as JSON, or declared as nothing.

        No declaration passes: a browser always declares a body that it was made to send. So does
        no body at all, which some clients declare as bytes.
        """
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            return
        declared = headers.get(b"content-type")
        if declared is None:
            return
        kind = declared.split(b";", 1)[0].strip().lower()
        if kind == b"application/json" or kind.endswith(b"+json"):
            return
        raise UnsupportedMediaType(
            f"This call reads JSON, not {kind.decode('latin-1')!r}: "
            "send `Content-Type: application/json`",
            expected="application/json",
        )


def open_gate(store: Store, config: ServerConfig) -> Gate:
    """The gate of a member, as configured. Raises ConfigError."""
    spec = parse_token_spec(config.auth_token)
    pace = None
    if config.rate_limit_address or config.rate_limit_user:
        clock = asyncio.get_running_loop().time
        pace = Pace(config.rate_limit_address, config.rate_limit_user, clock)
    pages = None
    if config.cors or config.host_whitelist != (ANY,):
        pages = Pages(config.cors, config.host_whitelist)
    tokens = make_tokens(store, spec, config.auth_token_ttl)
    observer = open_observer(store, config)
    return Gate(store, tokens=tokens, pages=pages, pace=pace, observer=observer)


class _Remembered:
    """A token seen before, so that the next request with it costs a look-up."""

    __slots__ = ("caller", "expires_ms", "removals", "renewing")

    def __init__(self, caller: Caller, expires_ms: int, removals: int) -> None:
        self.caller = caller
        self.expires_ms = expires_ms
        self.removals = removals
        self.renewing = False


def check_origin(origin: bytes, host: bytes) -> None:
    """Raise `ForeignOrigin` unless `origin` (RFC 6454) names the `host` it was sent to."""
    scheme, _, rest = origin.partition(b"://")
    if rest and _authority(rest.lower(), scheme.lower()) == _authority(
        host.lower(), scheme.lower()
    ):
        return
    raise ForeignOrigin(
        f"The page {origin.decode('latin-1')!r} is of another site than this member; "
        "its writes are not taken"
    )


def _authority(host: bytes, scheme: bytes) -> bytes:
    default = b":443" if scheme == b"https" else b":80"
    return host.removesuffix(default)
