"""Access control as replicated state: etcd's rules and refusals, guards, leases, tokens."""

from __future__ import annotations

import random
from hashlib import sha256
from typing import Any

import pytest

from raftkv import limits
from raftkv.errors import (
    AuthNotEnabled,
    AuthRevisionOld,
    InvalidAuthManagement,
    InvalidAuthToken,
    InvalidRequest,
    LeaseNotFound,
    PermissionDenied,
    PermissionNotGranted,
    Refused,
    RoleExists,
    RoleNotFound,
    RoleNotGranted,
    RootRoleMissing,
    RootUserMissing,
    TooLarge,
    UserExists,
    UserNotFound,
)
from raftkv.machine import Machine
from raftkv.machine import auth_commands as ac
from raftkv.machine import commands as c
from raftkv.machine.access import Access, Kind, PermissionKind
from raftkv.machine.auth import Role, User
from tests.unit.machine_support import Driver

HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g"
READ, WRITE, READWRITE = PermissionKind.READ, PermissionKind.WRITE, PermissionKind.READWRITE


class Ruled(Driver):
    """A driver whose commands carry the guard that a gate would give them."""

    def root(self, command: c.Command) -> Any:
        return self.do(c.guarded(command, self.machine.auth.revision))

    def ok_root(self, command: c.Command) -> Any:
        outcome = self.root(command)
        assert not isinstance(outcome, Refused), outcome
        return outcome

    def by(self, user: str, command: c.Command) -> Any:
        return self.do(c.guarded(command, self.machine.auth.revision, user))


def enabled() -> Ruled:
    """Access control on: root, and alice who reads and writes keys that begin with a."""
    driver = Ruled()
    for command in (
        ac.user_add("root", HASH),
        ac.user_grant("root", "root"),
        ac.role_add("a"),
        ac.role_grant("a", READWRITE, b"a", b"b"),
        ac.user_add("alice", HASH),
        ac.user_grant("alice", "a"),
        ac.auth_enable(),
    ):
        driver.ok_root(command)
    assert driver.machine.auth.enabled
    return driver


# ---- etcd's rules ----------------------------------------------------------------------------


def test_the_end_of_a_role_hashes_alike_however_its_users_became_known() -> None:
    driver = Driver()
    driver.do(ac.role_add("r"))
    for user in ("u1", "u0"):
        driver.do(ac.user_add(user, HASH))
        driver.do(ac.user_grant(user, "r"))
    restarted = Driver()
    restarted.machine.apply(driver.log)
    restarted.machine.reload()
    entry = driver.entry(ac.role_delete("r"))
    for machine in (driver.machine, restarted.machine):
        machine.apply([entry])
    assert driver.machine.state_hash == restarted.machine.state_hash


def test_enabling_needs_root_with_its_role() -> None:
    driver = Ruled()
    assert driver.machine.auth.revision == 1 and not driver.machine.auth.enabled
    assert isinstance(driver.do(ac.auth_enable()), RootUserMissing)
    driver.ok(ac.user_add("root", HASH))
    assert isinstance(driver.do(ac.auth_enable()), RootRoleMissing)
    driver.ok(ac.user_grant("root", "root"))
    done = driver.ok(ac.auth_enable())
    assert done.changed and done.auth_revision == driver.machine.auth.revision == 4
    assert not driver.ok_root(ac.auth_enable()).changed
    assert driver.ok_root(ac.auth_disable()).changed
    assert not driver.ok(ac.auth_disable()).changed
    assert driver.machine.auth.revision == 5


def test_access_control_is_no_revision_of_the_store() -> None:
    driver = enabled()
    assert driver.machine.revision == 1
    assert driver.applied is not None and driver.applied.events == []


REFUSALS: list[tuple[c.Command, type[Refused]]] = [
    (ac.user_add("alice", HASH), UserExists),
    (ac.user_delete("bob"), UserNotFound),
    (ac.user_delete("root"), InvalidAuthManagement),
    (ac.user_password("bob", HASH), UserNotFound),
    (ac.user_grant("bob", "a"), UserNotFound),
    (ac.user_grant("alice", "b"), RoleNotFound),
    (ac.user_revoke("bob", "a"), UserNotFound),
    (ac.user_revoke("alice", "b"), RoleNotGranted),
    (ac.user_revoke("root", "root"), InvalidAuthManagement),
    (ac.role_add("a"), RoleExists),
    (ac.role_delete("b"), RoleNotFound),
    (ac.role_delete("root"), InvalidAuthManagement),
    (ac.role_grant("b", READ, b"k"), RoleNotFound),
    (ac.role_revoke("b", b"k"), RoleNotFound),
    (ac.role_revoke("a", b"a"), PermissionNotGranted),
    (ac.role_revoke("a", b"a", b""), PermissionNotGranted),
]


@pytest.mark.parametrize(("command", "error"), REFUSALS)
def test_refused_as_etcd_refuses_and_nothing_changes(
    command: c.Command, error: type[Refused]
) -> None:
    driver = enabled()
    before, auth = driver.tables.dump(), driver.machine.auth
    assert type(driver.root(command)) is error
    after = driver.tables.dump()
    assert after[1:] == before[1:] and driver.machine.auth is auth


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda: ac.user_add("", HASH), InvalidRequest, "user_name_empty"),
        (lambda: ac.user_delete(""), InvalidRequest, "user_name_empty"),
        (lambda: ac.role_add(""), InvalidRequest, "role_name_empty"),
        (lambda: ac.user_grant("u", ""), InvalidRequest, "role_name_empty"),
        (lambda: ac.role_grant("r", 3, b"k"), InvalidRequest, "permission_not_given"),
        (lambda: ac.user_add("a\nb", HASH), InvalidRequest, None),
        (lambda: ac.user_add("\ud800", HASH), InvalidRequest, None),
        (lambda: ac.user_add("u" * 256, HASH), TooLarge, None),
        (lambda: ac.role_grant("r", READ, b""), InvalidAuthManagement, None),
        (lambda: ac.role_grant("r", READ, b"b", b"a"), InvalidAuthManagement, None),
        (lambda: ac.role_revoke("r", b"b", b"b"), InvalidAuthManagement, None),
        (lambda: ac.role_grant("r", READ, b"k", keyspace=8), InvalidRequest, None),
        (lambda: ac.role_grant("r", READ, b"k" * 70_000), InvalidRequest, None),
    ],
)
def test_refused_before_the_log(make: Any, error: type[Refused], reason: str | None) -> None:
    with pytest.raises(error) as caught:
        make()
    assert reason is None or caught.value.facts["reason"] == reason


@pytest.mark.parametrize("password", ["secret", "$2b$10$abcdefghijklmnopqrstuv", "$argon2id$" * 60])
def test_only_hashes_go_into_the_log(password: str) -> None:
    """GHSA-528j-9r78-wffx: a password was written to the log as it came."""
    for make in (ac.user_add, ac.user_password):
        with pytest.raises(InvalidRequest) as caught:
            make("u", password)
        assert password not in str(caught.value) and password not in str(caught.value.facts)


def test_what_is_so_already_changes_nothing() -> None:
    driver = enabled()
    revision = driver.machine.auth.revision
    assert not driver.ok_root(ac.user_grant("alice", "a")).changed
    assert driver.machine.auth.revision == revision


def test_a_permission_on_the_same_range_is_replaced() -> None:
    driver = enabled()
    driver.ok_root(ac.role_grant("a", READ, b"a", b"b"))
    driver.ok_root(ac.role_grant("a", WRITE, b"a"))
    driver.ok_root(ac.role_grant("a", WRITE, b"", b"a"))
    assert driver.machine.auth.roles["a"].permissions == (
        (0, WRITE, b"\0", b"a"),
        (0, READ, b"a", b"b"),
        (0, WRITE, b"a", None),
    )
    driver.ok_root(ac.role_revoke("a", b"a", b"b"))
    driver.ok_root(ac.role_revoke("a", b"\0", b"a"))
    assert driver.machine.auth.roles["a"].permissions == ((0, WRITE, b"a", None),)
    assert driver.machine.auth.grants("alice").allows(Access(Kind.WRITE, 0, b"a", None))
    assert not driver.machine.auth.grants("alice").allows(Access(Kind.READ, 0, b"a", None))


def test_a_role_that_ends_is_taken_from_everybody() -> None:
    driver = enabled()
    assert driver.machine.auth.grants("alice").allows(Access(Kind.READ, 0, b"a", None))
    driver.ok_root(ac.role_delete("a"))
    assert driver.machine.auth.users["alice"].roles == ()
    assert not driver.machine.auth.grants("alice").allows(Access(Kind.READ, 0, b"a", None))
    driver.ok_root(ac.role_add("a"))
    assert driver.machine.auth.users["alice"].roles == ()


def test_root_may_go_once_access_control_is_off() -> None:
    driver = enabled()
    driver.ok_root(ac.auth_disable())
    for command in (ac.user_revoke("root", "root"), ac.user_delete("root")):
        driver.ok(command)
    driver.ok(ac.role_add("root"))
    driver.ok(ac.role_delete("root"))
    assert isinstance(driver.do(ac.auth_enable()), RootUserMissing)


@pytest.mark.interpreted
def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = enabled()
    for name, value in (
        ("USERS_MAX", 2), ("ROLES_MAX", 1), ("USER_ROLES_MAX", 1), ("ROLE_PERMISSIONS_MAX", 1),
    ):  # fmt: skip
        monkeypatch.setattr(limits, name, value)
    for command in (
        ac.user_add("u", HASH),
        ac.role_add("r"),
        ac.user_grant("alice", "root"),
        ac.role_grant("a", READ, b"k"),
    ):
        assert isinstance(driver.root(command), TooLarge)
    driver.ok_root(ac.role_grant("a", READ, b"a", b"b"))
    monkeypatch.setattr(limits, "ROLE_BYTES_MAX", 100)
    monkeypatch.setattr(limits, "ROLE_PERMISSIONS_MAX", 9)
    assert isinstance(driver.root(ac.role_grant("a", READ, b"k" * 100)), TooLarge)


# ---- stored and read back ----------------------------------------------------------------------


def rules(machine: Machine) -> Any:
    auth = machine.auth
    return auth.enabled, auth.revision, auth.since, auth.users, auth.roles


def some_rules(rng: random.Random, count: int) -> list[c.Command]:
    def user() -> str:
        return rng.choice(["root", "u", "v", "ü\U0001f511"])

    def role() -> str:
        return rng.choice(["root", "r", "s"])

    def interval() -> tuple[bytes, bytes | None]:
        return rng.choice([(b"k", None), (b"a", b"m"), (b"k", b""), (b"\0", b"")])

    makers: list[Any] = [
        lambda: ac.user_add(user(), rng.choice([None, HASH])),
        lambda: ac.user_delete(user()),
        lambda: ac.user_password(user(), HASH),
        lambda: ac.user_grant(user(), role(), once=rng.choice([None, None, b"o1", b"o2"])),
        lambda: ac.user_revoke(user(), role()),
        lambda: ac.role_add(role()),
        lambda: ac.role_delete(role()),
        lambda: ac.role_grant(role(), rng.randrange(3), *interval(), keyspace=rng.randrange(2)),
        lambda: ac.role_revoke(role(), *interval(), keyspace=rng.randrange(2)),
        ac.auth_enable,
        ac.auth_disable,
        lambda: ac.token_add(rng.randbytes(32), user(), rng.randrange(1, 9), rng.randrange(1, 99)),
        lambda: c.put(b"k", b"v"),
    ]  # fmt: skip
    weights = [6, 1, 2, 6, 2, 4, 1, 6, 2, 2, 1, 4, 4]
    return [make() for make in rng.choices(makers, weights, k=count)]


def guard(rng: random.Random, revision: int, command: c.Command) -> c.Command:
    if rng.random() < 0.2:
        return command
    return c.guarded(command, rng.choice([revision, revision, revision, revision - 1]), "u")


@pytest.mark.parametrize("seed", range(8))
def test_grouping_and_restarts_do_not_matter(seed: int) -> None:
    """A member that has just loaded its tables judges as one that ran all along (etcd#14571)."""
    rng = random.Random(seed)
    one, other = Driver(), Driver()
    for batch in range(60):
        commands = [
            guard(rng, one.machine.auth.revision, command)
            for command in some_rules(rng, rng.randrange(1, 6))
        ]
        one.now_ms = other.now_ms = 1_000 + batch
        whole = one.batch(*commands).results
        if rng.random() < 0.4:
            other.machine = Machine(other.tables)
        again = other.batch(*commands).results
        assert list(map(describe, again)) == list(map(describe, whole))
        assert one.machine.state_hash == other.machine.state_hash
        assert rules(one.machine) == rules(other.machine)
    assert one.tables.dump() == other.tables.dump()
    assert one.machine.auth.revision > 20


def describe(outcome: Any) -> Any:
    if isinstance(outcome, Refused):
        return type(outcome), outcome.message, outcome.facts
    return outcome


def test_nothing_is_adopted_when_the_tables_fail() -> None:
    driver = enabled()
    before = rules(driver.machine)
    driver.tables.fail_after = 1
    with pytest.raises(OSError, match="the disk is gone"):
        driver.root(ac.role_add("new"))
    driver.tables.fail_after = None
    assert rules(driver.machine) == before
    driver.machine.reload()
    assert rules(driver.machine) == before


def test_rehoming_keeps_users_and_roles() -> None:
    driver = enabled()
    before = rules(driver.machine)
    driver.machine.rehome(b"conf", [])
    assert rules(driver.machine) == before


def test_the_rules_are_as_stored() -> None:
    driver = enabled()
    assert driver.machine.auth.users["alice"] == User("alice", HASH, ("a",), 6)
    assert driver.machine.auth.roles["a"] == Role("a", ((0, READWRITE, b"a", b"b"),))


# ---- guards ------------------------------------------------------------------------------------


def test_the_log_takes_no_unguarded_command_while_access_control_is_on() -> None:
    """A member that lags would let anybody in; what it proposes is refused by all alike."""
    driver = enabled()
    for command in (
        c.put(b"k", b"v"),
        c.delete(b"", b""),
        c.txn([], [c.put_op(b"k", b"v")]),
        c.compact(1),
        c.lease_grant(1, 9),
        c.lease_revoke(1),
        c.service_register("web", "1", "h", 80, ttl_seconds=9, lease=1),
        c.service_deregister("web", "1"),
        c.service_drain("web", "1", True),
        c.member_update(1, name="n"),
        c.alarm(1, 1, False),
        *(command for command, _ in REFUSALS),
        ac.auth_disable(),
    ):
        assert isinstance(driver.do(command), AuthRevisionOld)
    assert driver.machine.revision == 1 and driver.machine.auth.enabled


def test_members_go_on_by_themselves() -> None:
    driver = enabled()
    driver.ok(c.guarded(c.alarm(1, 1, True), c.BY_MEMBER))
    driver.ok(c.guarded(c.alarm(1, 1, False), c.BY_MEMBER))
    driver.ok_root(c.lease_grant(5, 1))
    assert driver.ok(c.lease_expire([5], 1)).expired == [5]


def test_a_decision_counts_only_under_the_rules_it_was_made_by() -> None:
    driver = enabled()
    old = c.guarded(c.put(b"a", b"v"), driver.machine.auth.revision, "alice")
    driver.ok(old)
    driver.ok_root(ac.user_revoke("alice", "a"))
    refused = driver.do(old)
    assert isinstance(refused, AuthRevisionOld)
    assert refused.facts == {"auth_revision": driver.machine.auth.revision}
    assert "revision of auth store is old" in refused.message
    driver.ok_root(ac.auth_disable())
    assert isinstance(driver.do(old), AuthRevisionOld)


def test_both_orders_in_one_batch() -> None:
    driver = enabled()
    revision = driver.machine.auth.revision
    put = c.guarded(c.put(b"a", b"v"), revision, "alice")
    revoke = c.guarded(ac.user_revoke("alice", "a"), revision)
    first, _, second = driver.batch(put, revoke, put).results
    assert not isinstance(first, Refused) and isinstance(second, AuthRevisionOld)


def test_a_refused_guard_leaves_the_idempotency_key_free() -> None:
    driver = enabled()
    command = c.put(b"a", b"v", once=b"id")
    assert isinstance(driver.do(c.guarded(command, 1, "alice")), AuthRevisionOld)
    first = driver.by("alice", command)
    assert driver.by("alice", command) == first and driver.machine.revision == 2


@pytest.mark.parametrize("command", [c.put(b"k", b"v", once=b"x"), ac.role_add("r", once=b"x")])
def test_a_guarded_command_answers_as_it_would_alone(command: c.Command) -> None:
    plain, guarded = Ruled(), Ruled()
    assert plain.ok(command) == guarded.ok(c.guarded(command, 1))
    assert plain.machine.state_hash == guarded.machine.state_hash


# ---- leases ------------------------------------------------------------------------------------


def with_leases() -> Ruled:
    driver = enabled()
    for lease in (1, 2, 3):
        driver.ok_root(c.lease_grant(lease, 60))
    driver.ok_root(c.put(b"a1", b"v", lease=1))
    driver.ok_root(c.put(b"a1", b"v", lease=1))
    driver.ok_root(c.put(b"a2", b"v", lease=2))
    driver.ok_root(c.put(b"secret", b"v", lease=2))
    return driver


def test_a_lease_is_ended_by_those_who_may_delete_all_its_keys() -> None:
    driver = with_leases()
    assert isinstance(driver.by("alice", c.lease_revoke(2)), PermissionDenied)
    assert driver.machine.get(b"a2") is not None
    assert driver.by("alice", c.lease_revoke(1)).deleted == 1
    assert driver.by("alice", c.lease_revoke(3)).deleted == 0
    assert isinstance(driver.by("alice", c.lease_revoke(9)), LeaseNotFound)
    assert isinstance(driver.by("alice", c.lease_revoke(-9)), LeaseNotFound)


@pytest.mark.parametrize(
    "make",
    [
        lambda lease: c.put(b"a", b"v", lease=lease),
        lambda lease: c.txn([], [c.put_op(b"a", b"v", lease=lease)]),
        lambda lease: c.txn([], [], [c.put_op(b"a", b"v", lease=lease)]),
        lambda lease: c.txn([], [c.txn_op([], [], [c.put_op(b"a", b"v", lease=lease)])]),
    ],
)
def test_hanging_a_key_on_a_lease_is_judged_by_all_its_keys(make: Any) -> None:
    """CVE-2026-44283: a put inside a transaction got onto leases that a plain put did not."""
    driver = with_leases()
    assert isinstance(driver.by("alice", make(2)), PermissionDenied)
    assert driver.machine.lease_keys(2) == [b"a2", b"secret"]
    for lease in (1, 3):
        assert not isinstance(driver.by("alice", make(lease)), Refused)


def test_the_keys_of_a_lease_are_judged_when_the_command_is_applied() -> None:
    """The gate saw an empty lease; a key came to hang on it before the command's turn."""
    driver = with_leases()
    revision = driver.machine.auth.revision
    late = c.guarded(c.put(b"secret3", b"v", lease=3), revision)
    results = driver.batch(late, c.guarded(c.lease_revoke(3), revision, "alice")).results
    assert isinstance(results[1], PermissionDenied) and driver.machine.get(b"secret3") is not None


def test_taking_an_instance_out_does_not_delete_what_others_hung_on_its_lease() -> None:
    driver = enabled()
    driver.ok_root(ac.role_grant("a", READWRITE, b"web\0", b"web\1", keyspace=1))

    def register(owner: str, lease: int, **more: Any) -> c.Command:
        return c.service_register(
            "web", "1", "h", 80, ttl_seconds=9, lease=lease, owner=owner, **more
        )

    assert driver.by("alice", register("one", 7)).created
    driver.ok_root(c.put(b"secret", b"v", lease=7))
    assert isinstance(driver.by("alice", c.service_deregister("web", "1")), PermissionDenied)
    assert isinstance(driver.by("alice", register("two", 8, takeover=True)), PermissionDenied)
    driver.ok_root(c.delete(b"secret"))
    assert not isinstance(driver.by("alice", register("two", 8, takeover=True)), Refused)
    assert driver.by("alice", c.service_deregister("web", "1")).lease == 8


@pytest.mark.parametrize("seed", range(20))
def test_leases_against_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    driver = enabled()
    space = [bytes([letter]) for letter in range(97, 110)]
    for _ in range(rng.randrange(5)):
        start = rng.choice(space)
        end = rng.choice([None, b"", bytes([start[0] + rng.randrange(1, 5)])])
        driver.ok_root(ac.role_grant("a", rng.randrange(3), start, end))
    grants = driver.machine.auth.grants("alice")

    def may(kind: Kind, key: bytes) -> bool:
        return grants.allows(Access(kind, 0, key, None))

    for lease in range(1, 9):
        driver.ok_root(c.lease_grant(lease, 60))
        keys = rng.sample(space, rng.randrange(4))
        for key in keys:
            driver.ok_root(c.put(key, b"v", lease=lease))
    seen = {held.lease for held in driver.machine.lease_slice(0, 100, grants)[0]}
    for lease in range(1, 9):
        keys = driver.machine.lease_keys(lease)
        assert (lease in seen) == (not keys or any(may(Kind.READ, key) for key in keys))
        renewable = not keys or any(may(Kind.WRITE, key) for key in keys)
        assert driver.machine.may_renew_lease(grants, lease) == renewable
        outcome = driver.by("alice", c.lease_revoke(lease))
        assert isinstance(outcome, PermissionDenied) != all(may(Kind.WRITE, key) for key in keys)


# ---- tokens ------------------------------------------------------------------------------------


def token(name: object) -> bytes:
    return sha256(str(name).encode()).digest()


def log_in(driver: Ruled, name: object, user: str = "alice", ttl_ms: int = 1_000) -> Any:
    return driver.do(ac.token_add(token(name), user, ttl_ms, driver.machine.auth.revision))


def test_a_token_ends_with_its_time_and_use_prolongs_it() -> None:
    driver = enabled()
    assert log_in(driver, 1).expires_ms == 2_000
    found = driver.machine.token(token(1))
    assert found is not None and (found.user, found.expires_ms) == ("alice", 2_000)
    driver.now_ms = 1_600
    assert driver.ok(ac.token_renew(token(1), 1_000)).expires_ms == 2_600
    assert driver.ok(ac.token_renew(token(1), 100)).expires_ms == 2_600, "never shortened"
    driver.now_ms = 2_600
    assert isinstance(driver.do(ac.token_renew(token(1), 1_000)), InvalidAuthToken)
    assert isinstance(driver.do(ac.token_renew(token(2), 1_000)), InvalidAuthToken)
    assert not isinstance(log_in(driver, 3), Refused)
    assert driver.machine.token(token(1)) is None, "forgotten at the next login"


def test_a_login_counts_only_for_the_user_it_was_proved_for() -> None:
    driver = enabled()
    before = driver.machine.auth.revision
    add = ac.token_add(token(1), "alice", 1_000, before)
    driver.ok_root(ac.user_password("alice", HASH))
    assert isinstance(driver.do(add), AuthRevisionOld)
    assert isinstance(log_in(driver, 1, user="bob"), AuthRevisionOld)
    ahead = ac.token_add(token(1), "alice", 1_000, driver.machine.auth.revision + 1)
    assert isinstance(driver.do(ahead), AuthRevisionOld)
    driver.ok_root(ac.auth_disable())
    assert isinstance(log_in(driver, 1), AuthNotEnabled)


def test_what_ends_a_token() -> None:
    driver = enabled()
    auth = driver.machine.auth
    issued = auth.revision
    assert auth.counts("alice", issued) and not auth.counts("bob", issued)
    driver.ok_root(ac.role_grant("a", READ, b"z"))
    assert driver.machine.auth.counts("alice", issued), "other rules, the same person"
    driver.ok_root(ac.user_password("alice", HASH))
    assert not driver.machine.auth.counts("alice", issued)
    issued = driver.machine.auth.revision
    assert driver.machine.auth.counts("alice", issued)
    driver.ok_root(ac.auth_disable())
    driver.ok(ac.auth_enable())
    assert not driver.machine.auth.counts("alice", issued)
    issued = driver.machine.auth.revision
    driver.ok_root(ac.user_delete("alice"))
    assert not driver.machine.auth.counts("alice", issued)
    driver.ok_root(ac.user_add("alice", HASH))
    assert not driver.machine.auth.counts("alice", issued), "another alice"


def test_a_token_is_dropped_when_its_holder_leaves() -> None:
    driver = enabled()
    log_in(driver, 1)
    assert driver.ok(ac.token_drop(token(1))).user == "alice"
    assert driver.ok(ac.token_drop(token(1))).user == ""
    assert driver.machine.token(token(1)) is None


def test_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOKENS_PER_USER_MAX", 3)
    monkeypatch.setattr(limits, "TOKENS_MAX", 5)
    driver = enabled()
    for name in range(6):
        driver.now_ms += 1
        assert not isinstance(log_in(driver, name), Refused)
    assert [driver.machine.token(token(name)) is not None for name in range(6)] == [False] * 3 + [
        True
    ] * 3
    for name in (10, 11):
        assert not isinstance(log_in(driver, name, "root"), Refused)
    assert isinstance(log_in(driver, 12, "root"), Refused)
    assert not isinstance(log_in(driver, 6), Refused), "one's own oldest gives way"
    driver.now_ms += 5_000
    for name in range(20, 23):
        assert not isinstance(log_in(driver, name, "root"), Refused)
    dumped = driver.tables.dump()[11]
    assert len(dumped) == 3 * 3 + 1, "three rows a token and the count; nothing is left behind"
