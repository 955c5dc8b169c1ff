"""Logging in: passwords that are kept nowhere, guessing that is slow, tokens that end."""

from __future__ import annotations

import asyncio
import base64
import gc
import hmac
import logging
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from raftkv import limits
from raftkv.api.gate import Gate, open_gate
from raftkv.api.http.exchange import Exchange
from raftkv.api.login import Throttle, network_of
from raftkv.api.tokens import RandomTokens, SignedTokens, bearer
from raftkv.errors import (
    AuthRevisionOld,
    ConfigError,
    InvalidAuthToken,
    InvalidRequest,
    NoLeader,
    RaftkvError,
)
from raftkv.machine import auth_commands as ac
from raftkv.server.config import ServerConfig
from raftkv.server.local import LocalStore
from raftkv.server.passwords import Passwords
from raftkv.server.token_spec import METHODS, parse_token_spec
from tests.unit.auth_support import PASSWORDS, Guarded, Ruled, guarded, quick_passwords
from tests.unit.http_support import until

# ---- what is kept of a password ----------------------------------------------------------------


async def test_ghsa_528j_9r78_wffx_no_secret_goes_into_the_log_or_the_state() -> None:
    async with guarded() as world:
        await world.ok("root", "PUT", "/api/auth/users/alice/password", {"password": "fresh-pass"})
        await world.ok("root", "POST", "/api/auth/users", {"user": "bob", "password": "bobs-pass"})
        assert (await world.log_in("alice", "fresh-pass")).status == 200
        secrets = [*PASSWORDS.values(), "fresh-pass", "bobs-pass", *world.tokens.values()]
        with world.store.tables.read() as reader:
            rows = [row for table in range(12) for row in reader.scan(table, b"", None)]
        for secret in secrets:
            assert not any(secret.encode() in command for command in world.store.proposed)
            assert not any(secret.encode() in b"".join(row) for row in rows)
        assert any(b"$argon2id$" in b"".join(row) for row in rows)


@pytest.mark.interpreted
async def test_cve_2021_28235_a_request_keeps_no_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with guarded() as world:
        door = world.served.door
        seen: list[Exchange] = []
        plain = door.handle

        def handle(x: Exchange) -> None:
            seen.append(x)
            plain(x)

        door.handle = handle  # type: ignore[method-assign]
        answers = [
            await world.log_in("alice", "wrong-pass"),
            await world.log_in("alice"),
            await world.log_in("no-such-user", "other-pass"),
            await world.by("root", "POST", "/api/auth/users", {"user": "b", "password": "b-pass"}),
            await world.by("root", "POST", "/api/auth/users", {"user": "b", "password": "b-pass"}),
            await world.by("root", "PUT", "/api/auth/users/b/password", {"password": "c-pass"}),
            await world.by("root", "PUT", "/api/auth/users/b/password", {"password": 7}),
            await world.by("root", "PUT", "/api/auth/users/b/password", {"pass-word": "c-pass"}),
        ]
        assert [answer.status for answer in answers] == [401, 200, 401, 201, 409, 200, 400, 400]
        for secret in ("wrong-pass", "alice-pass", "other-pass", "b-pass", "c-pass"):
            assert all(secret.encode() not in x.request.body for x in seen)
            assert all(secret.encode() not in answer.body for answer in answers)
            assert secret not in caplog.text
        held = [thing for thing in gc.get_objects() if type(thing).__name__ == "_Login"]
        assert all(not login._password for login in held)
    lines = [record for record in caplog.records if record.message == "a login failed"]
    named = [(getattr(line, "user", None), getattr(line, "source", None)) for line in lines]
    assert named == [("alice", "127.0.0.1"), ("(unknown)", "127.0.0.1")]


async def test_wrong_passwords_and_unknown_users_look_alike() -> None:
    async with guarded() as world:
        await world.ok("root", "POST", "/api/auth/users", {"user": "cert", "no_password": True})
        answers = [
            await world.log_in("alice", "wrong"),
            await world.log_in("nobody", "wrong"),
            await world.log_in("cert", "nobody's"),
            await world.log_in("alice", "p" * 5000),
            await world.log_in("", "x"),
        ]
        assert {(answer.status, answer.body) for answer in answers} == {(401, answers[0].body)}
        assert answers[0].json["detail"] == "authentication failed, invalid user ID or password"


async def test_all_failures_take_an_argon2_each() -> None:
    """By time, too: without a hash to compare with, one is made up."""
    passwords = quick_passwords()
    made: list[str] = []
    plain = passwords._hasher.verify
    passwords._hasher = type(
        "Counting", (), {"hash": passwords._hasher.hash, "verify": staticmethod(
            lambda known, password: (made.append(known), plain(known, password))[1]
        )},
    )()  # fmt: skip
    outcomes: list[Any] = []
    passwords.verify(None, "nobody's", outcomes.append)
    passwords.verify("not a hash", "x", outcomes.append)
    await until(lambda: len(outcomes) == 2)
    assert outcomes == [False, False] and len(made) == 2 and made[0].startswith("$argon2id$")
    passwords.close()


async def test_passwords_are_bounded_and_their_queue_is() -> None:
    passwords = Passwords(memory_kib=8, passes=1, queue_max=2)
    outcomes: list[Any] = []
    for password in ("a", "b", "c"):
        passwords.hash(password, outcomes.append)
    await until(lambda: len(outcomes) == 3)
    kinds = [type(outcome) for outcome in outcomes]
    assert sorted(kind.__name__ for kind in kinds) == ["TooManyRequests", "str", "str"]
    for bad in ("", "p" * (limits.PASSWORD_BYTES_MAX + 1)):
        passwords.hash(bad, outcomes.append)
    await until(lambda: len(outcomes) == 5)
    assert all(isinstance(outcome, InvalidRequest) for outcome in outcomes[3:])
    known = next(outcome for outcome in outcomes if isinstance(outcome, str))
    passwords.verify(known, "a", outcomes.append)
    passwords.verify(known, "b", outcomes.append)
    await until(lambda: len(outcomes) == 7)
    assert set(outcomes[5:]) == {True, False}
    passwords.close()


async def test_the_real_cost_is_what_is_asked_for() -> None:
    passwords = Passwords()
    outcomes: list[Any] = []
    passwords.hash("secret", outcomes.append)
    await until(lambda: outcomes)
    assert outcomes[0].startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    passwords.close()


# ---- guessing ------------------------------------------------------------------------------------


def test_a_throttle_lets_a_few_go_and_then_slows_down() -> None:
    throttle = Throttle()
    now = 0.0
    for _ in range(limits.LOGIN_FAILURES_FREE):
        assert throttle.wait("u", now) == 0
        throttle.charge("u", now)
    waits = []
    for _ in range(12):
        wait = throttle.wait("u", now)
        waits.append(wait)
        now += wait
        throttle.charge("u", now)
    assert waits[0] == 1 and waits == sorted(waits) and waits[-1] <= limits.LOGIN_WAIT_SECONDS_MAX
    assert sum(waits) > 120
    assert throttle.wait("other", now) == 0
    assert throttle.wait("u", now + 3600) == 0, "forgotten in time"


def test_a_throttle_charges_before_it_knows_and_gives_back() -> None:
    throttle = Throttle()
    for _ in range(limits.LOGIN_FAILURES_FREE):
        throttle.charge("u", 0.0)
    assert throttle.wait("u", 0.0) > 0, "many at once do not all come first"
    throttle.refund("u")
    assert throttle.wait("u", 0.0) == 0
    throttle.refund("unknown")


def test_a_throttle_is_bounded() -> None:
    throttle = Throttle(names_max=3)
    for number in range(10):
        throttle.charge(f"name {number}", float(number))
    assert len(throttle) == 3


@pytest.mark.parametrize(
    ("source", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        (":" * 100, ":" * 64),
    ],
)
def test_what_attempts_are_counted_under(source: str, counted: str) -> None:
    assert network_of(source) == counted


async def test_a_name_of_megabytes_is_not_remembered() -> None:
    async with guarded() as world:
        assert (await world.log_in("u" * 2_000_000, "x")).status == 401
        desk = world.served.door.gate.logins
        assert max(map(len, desk._by_user._charged)) <= limits.AUTH_NAME_BYTES_MAX + 1


def test_thousands_of_failures_overflow_nothing() -> None:
    throttle = Throttle()
    for _ in range(5000):
        throttle.charge("u", 0.0)
    assert throttle.wait("u", 0.0) == limits.LOGIN_WAIT_SECONDS_MAX


async def test_guessing_is_slowed_and_says_how_long(caplog: pytest.LogCaptureFixture) -> None:
    async with guarded() as world:
        seen = [
            (await world.log_in("alice", f"guess {number}")).status
            for number in range(limits.LOGIN_FAILURES_FREE + 2)
        ]
        assert 401 in seen and seen[-1] == 429
        answer = await world.log_in("alice", "guess")
        assert answer.status == 429 and int(answer.headers["Retry-After"]) >= 1
        # Who is in already is not disturbed, and the right password has to wait like any guess.
        await world.ok("alice", "GET", "/api/kv?prefix=app/")
        assert (await world.log_in("alice")).status == 429
        assert "a login has to wait" in caplog.text


async def test_a_stranger_cannot_lock_a_user_out() -> None:
    async with guarded() as world:
        desk = world.served.door.gate.logins
        for _ in range(50):
            if desk.admit("alice", "192.0.2.1") > 0:
                break
        assert desk.admit("alice", "192.0.2.2") > 0, "slowed for this user, wherever from"
        assert desk.admit("alice", "127.0.0.1") == 0, "but not from where alice logged in before"
        assert desk.admit("root", "192.0.2.3") == 0


async def test_the_right_password_does_not_excuse_the_guesses_around_it() -> None:
    """Somebody with an account guesses at another's, and logs in properly in between."""
    async with guarded() as world:
        seen = []
        for number in range(3 * limits.LOGIN_FAILURES_FREE):
            seen.append((await world.log_in("root", f"guess {number}")).status)
            await world.log_in("stranger")
        assert seen.count(401) <= limits.LOGIN_FAILURES_FREE + 1 and seen[-1] == 429


async def test_failures_of_our_own_are_not_held_against_the_caller() -> None:
    class Headless(Ruled):
        down = False

        def read_index(self, done: Any) -> None:
            if self.down:
                done(NoLeader("no leader"))
            else:
                super().read_index(done)

    async with guarded(Headless()) as world:
        world.store.down = True  # type: ignore[attr-defined]
        for _ in range(3 * limits.LOGIN_FAILURES_FREE):
            assert (await world.log_in("alice")).status == 503
        world.store.down = False  # type: ignore[attr-defined]
        assert (await world.log_in("alice")).status == 200


async def test_a_login_is_judged_by_the_password_it_was_made_with() -> None:
    """The password changes between its verification and the token."""
    async with guarded() as world:
        world.store.before_propose = [ac.user_password("alice", None)]
        answer = await world.log_in("alice")
        assert answer.status == 409 and answer.json["code"] == AuthRevisionOld.code
        assert (await world.log_in("alice")).status == 401


async def test_there_is_nothing_to_log_in_to_while_access_control_is_off() -> None:
    async with guarded() as world:
        await world.ok("root", "POST", "/api/auth/disable")
        answer = await world.log_in("alice")
        assert answer.status == 409 and answer.json["code"] == "auth_not_enabled"
        # A token shown out of habit does no harm, and is worth nothing once it is on again.
        await world.ok("alice", "PUT", "/api/kv/anything", b"v")
        assert (await world.served.call("POST", "/api/auth/logout")).json == {"ended": False}
        await world.served.call("POST", "/api/auth/enable")
        assert (await world.by("alice", "GET", "/api/auth")).status == 401


# ---- tokens --------------------------------------------------------------------------------------


async def test_what_ends_a_token_ends_it_at_once() -> None:
    async with guarded() as world:
        for end in (
            lambda: world.ok(
                "root", "PUT", "/api/auth/users/alice/password", {"password": "alice-pass"}
            ),
            lambda: world.ok("alice", "POST", "/api/auth/logout"),
        ):
            other = (await world.log_in("alice")).json["token"]
            await world.ok("alice", "GET", "/api/auth")
            await end()
            answer = await world.by("alice", "GET", "/api/auth")
            assert answer.status == 401 and answer.json["code"] == "invalid_auth_token"
            world.tokens["alice"] = other
            if (await world.by("alice", "GET", "/api/auth")).status == 401:
                world.tokens["alice"] = (await world.log_in("alice")).json["token"]
        await world.ok("root", "DELETE", "/api/auth/users/alice")
        assert (await world.by("alice", "GET", "/api/auth")).status == 401
        await world.ok(
            "root", "POST", "/api/auth/users", {"user": "alice", "password": "alice-pass"}
        )
        assert (await world.by("alice", "GET", "/api/auth")).status == 401, "another alice"


async def test_a_token_that_another_member_ended_is_not_remembered_here() -> None:
    async with guarded() as world:
        await world.ok("alice", "GET", "/api/auth")
        world.store._apply([ac.token_drop(sha256(world.tokens["alice"].encode()).digest())])
        assert (await world.by("alice", "GET", "/api/auth")).status == 401


async def test_use_prolongs_a_token_and_idleness_ends_it() -> None:
    async with guarded() as world:
        issued = (await world.log_in("alice")).json
        assert issued["ttl"] == limits.TOKEN_TTL_SECONDS_DEFAULT
        gate = world.served.door.gate
        renewed: list[bytes] = []
        gate.tokens.renew = renewed.append  # type: ignore[method-assign]
        await world.ok("alice", "GET", "/api/auth")
        assert not renewed, "not in the first half of its time"
        world.store.now_ms += 149_000
        await world.ok("alice", "GET", "/api/auth")
        assert not renewed, "nor now"
        world.store.now_ms += 2_000
        await world.ok("alice", "GET", "/api/auth")
        await world.ok("alice", "GET", "/api/auth")
        assert len(renewed) == 1, "once"
        world.store.now_ms += 149_000
        assert (await world.by("alice", "GET", "/api/auth")).status == 401
        assert (await world.by("root", "GET", "/api/auth")).status == 401


async def test_a_renewal_is_applied() -> None:
    async with guarded() as world:
        digest = sha256(world.tokens["alice"].encode()).digest()
        before = world.machine.token(digest)
        assert before is not None and before.expires_ms == 1_300_000
        world.store.now_ms += 200_000
        await world.ok("alice", "GET", "/api/auth")
        after = world.machine.token(digest)
        assert after is not None and after.expires_ms == 1_500_000
        world.store.now_ms += 250_000
        await world.ok("alice", "GET", "/api/auth")
        assert (await world.by("root", "GET", "/api/auth")).status == 401


def test_the_authorization_header() -> None:
    assert bearer(b"Bearer abc") == b"abc" == bearer(b"bearer  abc ") == bearer(b"abc")
    for bad in (b"", b"Basic abc", b"x" * (limits.TOKEN_BYTES_MAX + 1)):
        with pytest.raises(InvalidAuthToken):
            bearer(bad)


@pytest.mark.interpreted
async def test_callers_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.api.gate.CALLERS_MAX", 2)
    async with guarded() as world:
        for user in (*PASSWORDS, *PASSWORDS):
            await world.ok(user, "GET", "/api/auth")
        assert len(world.served.door.gate._callers) == 2


# ---- signed tokens -------------------------------------------------------------------------------


def pem(key: Any) -> tuple[str, str]:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private.decode(), public.decode()


RSA = pem(rsa.generate_private_key(65537, 2048))
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
KEYS = {
    **{method: RSA for method in METHODS if method[:2] in ("RS", "PS")},
    **{method: pem(ec.generate_private_key(curve)) for method, curve in CURVES.items()},
    "EdDSA": pem(ed25519.Ed25519PrivateKey.generate()),
}


def signed(method: str, clock: Callable[[], int], private: bool = True) -> SignedTokens:
    private_key, public_key = KEYS[method]
    return SignedTokens(
        method,
        public_key=public_key,
        private_key=private_key if private else None,
        ttl_seconds=60,
        clock_ms=clock,
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_signs_and_checks(method: str) -> None:
    tokens = signed(method, lambda: 1_000_000)
    issued: list[Any] = []
    tokens.issue("alice", 7, issued.append)
    assert issued[0].user == "alice" and issued[0].ttl_seconds == 60
    proof = signed(method, lambda: 0, private=False).recognise(issued[0].token.encode(), b"")
    assert proof == ("alice", 7, 1_060_000)


async def test_logging_in_with_signed_tokens() -> None:
    async with guarded() as world:
        gate = world.served.door.gate
        tokens = signed("ES256", world.store.wall_ms)
        gate.tokens = gate.logins._tokens = tokens
        token = (await world.log_in("alice")).json["token"]
        world.tokens["alice"] = token
        await world.ok("alice", "PUT", "/api/kv/app/x", b"v")
        assert await world.ok("alice", "POST", "/api/auth/logout") == {"ended": False}
        world.store.apply_now(ac.role_add("unrelated"))
        await world.ok("alice", "GET", "/api/kv/app/x")
        world.store.now_ms += 61_000
        assert (await world.by("alice", "GET", "/api/kv/app/x")).status == 401
        world.tokens["alice"] = (await world.log_in("alice")).json["token"]
        await world.ok("alice", "GET", "/api/kv/app/x")
        world.store.apply_now(ac.user_password("alice", None))
        assert (await world.by("alice", "GET", "/api/kv/app/x")).status == 401


def claims(**changes: Any) -> dict[str, Any]:
    found = {"username": "root", "revision": 4, "exp": 2_000_000_000, **changes}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("username", value) for value in (None, True, [], {"a": 1}, 7)),
        *(("revision", value) for value in (None, True, [], {"a": 1}, "4", 4.0)),
        *(("exp", value) for value in (None, True, [], {"a": 1}, "x", 1e400, 1e30, float("nan"))),
    ],
)
def test_claims_that_are_none(name: str, value: Any) -> None:
    tokens = signed("ES256", lambda: 0)
    token = jwt.encode(claims(**{name: value}), KEYS["ES256"][0], "ES256")
    with pytest.raises(InvalidAuthToken):
        tokens.recognise(token.encode(), b"")


def test_forged_tokens() -> None:
    tokens = signed("RS256", lambda: 0)
    private, public = KEYS["RS256"]
    good = jwt.encode(claims(), private, "RS256")
    head, body, signature = good.split(".")
    other = pem(rsa.generate_private_key(65537, 2048))[0]
    assert tokens.recognise(good.encode(), b"").user == "root"

    def part(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    # The public key taken as the secret of an HMAC: what a token says of its method counts nothing.
    confused = part('{"alg":"HS256","typ":"JWT"}') + "." + body
    mac = hmac.new(public.encode(), confused.encode(), sha256).digest()
    for forged in (
        part('{"alg":"none"}') + f".{body}.",
        confused + "." + base64.urlsafe_b64encode(mac).decode().rstrip("="),
        jwt.encode(claims(), private, "RS512"),
        jwt.encode(claims(), private, "PS256"),
        jwt.encode(claims(), other, "RS256"),
        f"{head}.{part('{}')}.{signature}",
        f"{head}.{body}.",
        f"{head}.{body}",
        "",
        "...",
        "\xff.\xff.\xff",
    ):
        with pytest.raises(InvalidAuthToken):
            tokens.recognise(forged.encode("latin-1"), b"")


PARTS = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(base64.urlsafe_b64encode),
    st.sampled_from([b'{"alg":"ES256"}', b'{"alg":1}', b"[]", b"{", b'{"exp":1}']).map(
        base64.urlsafe_b64encode
    ),
)


@given(st.one_of(st.binary(max_size=200), st.lists(PARTS, max_size=4).map(b".".join)))
def test_any_bytes_are_a_token_or_refused(shown: bytes) -> None:
    """Never another exception: it would end a connection, or a member."""
    tokens = signed("ES256", lambda: 0)
    for prefix in (b"", b"Bearer ", b"bearer\t"):
        try:
            tokens.recognise(bearer(prefix + shown), b"")
        except InvalidAuthToken:
            continue
        raise AssertionError("forged")


def test_a_member_without_the_private_key_gives_no_tokens_out() -> None:
    outcomes: list[Any] = []
    signed("ES256", lambda: 0, private=False).issue("u", 1, outcomes.append)
    assert isinstance(outcomes[0], RaftkvError)


# ---- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "jwt", "simple,ttl=1m", "other", "jwt,sign-method=HS256,pub-key=k",
        "jwt,sign-method=none,pub-key=k", "jwt,sign-method=ES256", "jwt,sign-method=ES256,pub-key=",
        "jwt,pub-key=k,sign-method=ES256,ttl=x", "jwt,pub-key=k,sign-method=ES256,ttl=0s",
        "jwt,pub-key=k,pub-key=k,sign-method=ES256", "jwt,unknown=1,pub-key=k,sign-method=ES256",
    ],
)  # fmt: skip
def test_specifications_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|takes|needs|has a ttl"):
        parse_token_spec(text)
    with pytest.raises(ConfigError, match="--auth-token"):
        ServerConfig(auth_token=text)


async def test_a_gate_as_configured(tmp_path: Path) -> None:
    private, public = KEYS["EdDSA"]
    (tmp_path / "key").write_text(private)
    (tmp_path / "pub").write_text(public)
    store = LocalStore()

    def opened(spec: str, ttl: int = 300) -> Gate:
        return open_gate(store, ServerConfig(auth_token=spec, auth_token_ttl=ttl))

    assert isinstance(opened("simple", 17).tokens, RandomTokens)
    assert opened("simple", 17).tokens.ttl_ms == 17_000
    both = f"jwt,sign-method=EdDSA,pub-key={tmp_path}/pub,priv-key={tmp_path}/key"
    assert opened(both).tokens.ttl_ms == 300_000
    assert opened(both + ",ttl=2m").tokens.ttl_ms == 120_000
    for spec, why in (
        (f"jwt,sign-method=EdDSA,pub-key={tmp_path}/none", "cannot be read"),
        (f"jwt,sign-method=EdDSA,pub-key={tmp_path}/key,priv-key={tmp_path}/pub", "do not fit"),
        (both.replace("EdDSA", "ES256"), "do not fit"),
    ):
        with pytest.raises(ConfigError, match=why) as caught:
            opened(spec)
        assert "PRIVATE" not in str(caught.value)
    (tmp_path / "pub").write_text(KEYS["ES256"][1])
    with pytest.raises(ConfigError, match="do not fit"):
        opened(both)
    (tmp_path / "pub").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match="PEM"):
        opened(both)
    (tmp_path / "pub").write_bytes(b"x" * 100_000)
    with pytest.raises(ConfigError, match="too large"):
        opened(both)
    store.close()


async def test_logins_at_once_are_bounded() -> None:
    """A flood of logins ends in refusals; other requests go on."""
    async with guarded() as world:
        gate = world.served.door.gate
        gate.passwords._queue_max = 1
        answers = await asyncio.gather(*(world.log_in("alice") for _ in range(8)))
        assert {answer.status for answer in answers} <= {200, 429}
        assert any(answer.status == 200 for answer in answers)
        await world.ok("root", "GET", "/api/auth")


async def logins(world: Guarded, count: int) -> list[int]:
    return [(await world.log_in("alice")).status for _ in range(count)]


async def test_many_right_logins_are_no_guessing() -> None:
    async with guarded() as world:
        assert set(await logins(world, 3 * limits.LOGIN_FAILURES_FREE)) == {200}
