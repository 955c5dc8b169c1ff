"""Tokens: how a caller who logged in shows it with every request.

Random ones are kept, as hashes, in the replicated state: any member knows them, they can be
revoked, and use prolongs them. Signed ones (JWT) are kept nowhere: members need a key instead.
Both say who it is and under which rules that was proved; what they may do is looked up each time.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from raftkv.errors import AuthNotEnabled, ConfigError, InvalidAuthToken, RaftkvError
from raftkv.limits import TOKEN_BYTES_MAX
from raftkv.machine.auth_commands import token_add, token_drop, token_renew
from raftkv.machine.results import TokenResult

if TYPE_CHECKING:
    from raftkv.server.store import Done, Store
    from raftkv.server.token_spec import TokenSpec

TOKEN_RANDOM_BYTES: Final = 32


class Proof(NamedTuple):
    """What a token proves."""

    user: str
    auth_revision: int
    expires_ms: int
    """Wall clock, milliseconds."""


class Issued(NamedTuple):
    """A token given out."""

    token: str
    user: str
    ttl_seconds: int


Recipient = Callable[[Issued | RaftkvError], None]


def wall_ms() -> int:
    """The wall clock, milliseconds."""
    return time.time_ns() // 1_000_000


class Tokens(Protocol):
    """Gives tokens out and recognises them."""

    ttl_ms: int
    renews: bool
    """Use prolongs a token."""

    def issue(self, user: str, auth_revision: int, done: Recipient) -> None:
        """A token for somebody who proved to be `user` under the rules of `auth_revision`."""

    def recognise(self, token: bytes, digest: bytes) -> Proof:
        """What the token proves; `digest` is its SHA-256. Raises InvalidAuthToken. Whether it is
        over its time is for the caller to see."""

    def renew(self, digest: bytes) -> None:
        """The token was used: prolong it."""

    def drop(self, digest: bytes, done: Done) -> None:
        """End the token, if that can be: True or False, or what refused it."""


class RandomTokens:
    """Implements `Tokens` on the replicated state."""

    renews = True

    def __init__(self, store: Store, ttl_seconds: int) -> None:
        self._store = store
        self.ttl_ms = ttl_seconds * 1000

    def issue(self, user: str, auth_revision: int, done: Recipient) -> None:
        """See `Tokens.issue`."""
        token = secrets.token_urlsafe(TOKEN_RANDOM_BYTES)

        def added(result: Any) -> None:
            known = isinstance(result, TokenResult)
            done(Issued(token, user, self.ttl_ms // 1000) if known else result)

        digest = sha256(token.encode()).digest()
        self._store.propose(token_add(digest, user, self.ttl_ms, auth_revision), added)

    def recognise(self, token: bytes, digest: bytes) -> Proof:
        """See `Tokens.recognise`. By the hash alone, so no comparison tells by its time how much
        of a guess was right."""
        found = self._store.machine.token(digest)
        if found is None:
            raise invalid()
        return Proof(found.user, found.auth_revision, found.expires_ms)

    def renew(self, digest: bytes) -> None:
        """See `Tokens.renew`."""
        self._store.propose(token_renew(digest, self.ttl_ms), lambda result: None)

    def drop(self, digest: bytes, done: Done) -> None:
        """See `Tokens.drop`."""
        self._store.propose(
            token_drop(digest),
            lambda result: done(result if isinstance(result, RaftkvError) else True),
        )


class SignedTokens:
    """Implements `Tokens` with JSON Web Tokens (RFC 7519), as etcd writes them.

    The method is the one configured, whatever a token says of itself (RFC 8725, section 3.1).
    """

    renews = False

    def __init__(
        self,
        method: str,
        *,
        public_key: str,
        private_key: str | None,
        ttl_seconds: int,
        clock_ms: Callable[[], int] = wall_ms,
    ) -> None:
        try:
            import jwt
        except ImportError:
            raise ConfigError(
                "--auth-token=jwt needs more packages: pip install 'raftkv[jwt]'"
            ) from None
        self._jwt = jwt
        self._method = method
        self._clock_ms = clock_ms
        self.ttl_ms = ttl_seconds * 1000
        algorithm = jwt.get_algorithm_by_name(method)
        try:
            self._public = algorithm.prepare_key(public_key)
            self._private = None if private_key is None else algorithm.prepare_key(private_key)
            if self._private is not None:
                probe = jwt.encode({"exp": 1}, self._private, method)
                jwt.decode(probe, self._public, [method], options={"verify_exp": False})
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
            # Not the error's own text, which may hold what was read.
            raise ConfigError(
                f"the keys of --auth-token do not fit each other or {method}: "
                f"{type(error).__name__}"
            ) from None

    def issue(self, user: str, auth_revision: int, done: Recipient) -> None:
        """See `Tokens.issue`."""
        if self._private is None:
            done(AuthNotEnabled("this member gives no tokens out: it has no priv-key"))
            return
        claims = {
            "username": user,
            "revision": auth_revision,
            "exp": (self._clock_ms() + self.ttl_ms) // 1000,
        }
        token = self._jwt.encode(claims, self._private, self._method)
        done(Issued(token, user, self.ttl_ms // 1000))

    def recognise(self, token: bytes, digest: bytes) -> Proof:
        """See `Tokens.recognise`."""
        options: Any = {"require": ["exp", "username", "revision"], "verify_exp": False}
        try:
            claims = self._jwt.decode(token, self._public, [self._method], options=options)
        except self._jwt.PyJWTError:
            raise invalid() from None
        user, revision, expires = claims["username"], claims["revision"], claims["exp"]
        whole = type(revision) is int and type(expires) in (int, float)
        if not whole or not isinstance(user, str) or not abs(expires) < 2**53:
            raise invalid()
        return Proof(user, revision, int(expires * 1000))

    def renew(self, digest: bytes) -> None:
        """A signed token ends when it says."""

    def drop(self, digest: bytes, done: Done) -> None:
        """A signed token cannot be taken back."""
        done(False)


def invalid() -> InvalidAuthToken:
    """What refuses a token. It says no more: the text may be somebody's secret."""
    return InvalidAuthToken("invalid auth token: log in again")


def bearer(authorization: bytes) -> bytes:
    """The token in an `Authorization` header: after ``Bearer``, or alone, as etcd's gateway has it.

    Raises InvalidAuthToken.
    """
    scheme, _, token = authorization.strip().partition(b" ")
    if not token:
        token = scheme
    elif scheme.lower() != b"bearer":
        raise InvalidAuthToken("only `Authorization: Bearer TOKEN` is understood")
    token = token.strip()
    if not token or len(token) > TOKEN_BYTES_MAX:
        raise invalid()
    return token


def make_tokens(store: Store, spec: TokenSpec, ttl_seconds: int) -> Tokens:
    """The kind of tokens that a member's configuration asks for. Raises ConfigError."""
    if spec.kind == "simple":
        return RandomTokens(store, ttl_seconds)
    try:
        public_key, private_key = spec.read_keys()
    except ValueError as error:
        raise ConfigError(f"--auth-token {error}", setting="auth-token") from None
    return SignedTokens(
        spec.sign_method,
        public_key=public_key,
        private_key=private_key,
        ttl_seconds=spec.ttl_seconds or ttl_seconds,
    )
