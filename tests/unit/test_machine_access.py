"""Intervals, grants and effects against brute force over small key spaces."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.errors import InvalidAuthManagement, InvalidRequest
from raftkv.machine import auth_commands as ac
from raftkv.machine import commands as c
from raftkv.machine.access import (
    ADMIN,
    NOBODY,
    Access,
    Grants,
    Intervals,
    Kind,
    Permission,
    PermissionKind,
    effects,
    etcd_interval,
    service_interval,
)
from raftkv.machine.records import CATALOG

LETTERS = (b"\0", b"a", b"\xff")
KEYS = [
    b"".join(letters) for size in (1, 2, 3) for letters in itertools.product(LETTERS, repeat=size)
]
"""Every key of up to three letters, in a space where neighbours touch at all the edges."""
BEYOND = b"\xff\xff\xff\xff"

Interval = tuple[bytes, bytes | None]
KEY = st.sampled_from(KEYS)
ENDS = st.one_of(st.none(), st.just(b""), st.sampled_from([*KEYS, BEYOND]))
INTERVALS = st.tuples(st.one_of(KEY, KEY, KEY, st.just(b"")), ENDS).filter(
    lambda interval: interval[0] != b"" or interval[1] is not None
)


def members(interval: Interval) -> set[bytes]:
    """The keys of an interval that exist in the small space, and one beyond it for open ends."""
    start, end = interval
    if end is None:
        return {start}
    return {key for key in (*KEYS, BEYOND * 2) if key >= start and (end == b"" or key < end)}


@given(st.lists(INTERVALS, max_size=6), INTERVALS)
def test_covers_is_containment(granted: list[Interval], asked: Interval) -> None:
    allowed = set().union(*map(members, granted)) if granted else set()
    covered = Intervals(granted).covers(*asked)
    if covered:
        assert members(asked) <= allowed
    elif members(asked) <= allowed:
        # Not covered although every key of the small space is: some longer key lies between.
        start, end = asked
        between = [
            key + tail for key in members(asked) for tail in (b"\0\0\0\0", b"b", b"\xff" * 4)
        ]
        between += [start + b"\0"]
        holes = [
            key
            for key in between
            if key >= (start or b"\0")
            and (end == b"" or (end is not None and key < end))
            and not any(in_interval(key, one) for one in granted)
        ]
        assert holes or not members(asked)


def in_interval(key: bytes, interval: Interval) -> bool:
    start, end = interval
    return key == start if end is None else key >= start and (end == b"" or key < end)


@given(st.lists(KEY, min_size=1, max_size=8), KEY)
def test_a_grant_of_keys_never_covers_an_open_end(keys: list[bytes], start: bytes) -> None:
    """GHSA-xg4h-6gfc-h4m8: a watch from a key to the end passed for a watch of that key."""
    allowed = Intervals([(key, None) for key in keys])
    assert not allowed.covers(start, b"")
    assert not allowed.covers(b"", b"")
    assert allowed.covers(start, None) == (start in keys)


@given(st.lists(INTERVALS, max_size=6), KEY)
def test_a_key_is_in_the_set_or_in_a_gap_and_never_in_both(
    granted: list[Interval], key: bytes
) -> None:
    allowed = Intervals(granted)
    inside = any(in_interval(key, one) for one in granted)
    assert allowed.covers(key, None) == inside
    gaps = list(allowed.gaps())
    assert any(in_interval(key, gap) for gap in gaps) is not inside
    for (_, end), (start, _) in itertools.pairwise(list(allowed)):
        assert end and end < start, "merged intervals neither meet nor overlap"


def test_neighbours_are_one_interval() -> None:
    allowed = Intervals([(b"a", b"c"), (b"c", b"e"), (b"e", None)])
    assert list(allowed) == [(b"a", b"e\0")]
    assert allowed.covers(b"a", b"e\0") and not allowed.covers(b"a", b"e\0\0")
    assert Intervals([(b"x", b""), (b"z", None)]).covers(b"y", b"")
    assert Intervals([(b"", b"")]).covers(b"", b"") and Intervals([(b"\0", b"")]).covers(b"", b"")


@pytest.mark.parametrize(
    ("key", "range_end", "expected"),
    [
        (b"k", b"", (b"k", None)),
        (b"k", b"\0", (b"k", b"")),
        (b"\0", b"\0", (b"\0", b"")),
        (b"a", b"b", (b"a", b"b")),
    ],
)
def test_etcd_ranges_mean_what_they_mean_there(
    key: bytes, range_end: bytes, expected: Interval
) -> None:
    assert etcd_interval(key, range_end) == expected


@pytest.mark.parametrize(
    ("key", "range_end"), [(b"", b""), (b"", b"\0"), (b"b", b"a"), (b"b", b"b")]
)
def test_etcd_ranges_that_are_none(key: bytes, range_end: bytes) -> None:
    with pytest.raises(InvalidAuthManagement):
        etcd_interval(key, range_end)


def grants(
    *permissions: tuple[int, PermissionKind, bytes, bytes | None], user: str = "u"
) -> Grants:
    return Grants(user, ["some"], [Permission(*one) for one in permissions])


def test_kinds_and_keyspaces_are_apart() -> None:
    some = grants(
        (0, PermissionKind.READ, b"r", None),
        (0, PermissionKind.WRITE, b"w", None),
        (0, PermissionKind.READWRITE, b"x", b"z"),
        (CATALOG, PermissionKind.READ, *service_interval("web")),
    )
    allowed = {
        (kind, keyspace, key)
        for kind in (Kind.READ, Kind.WRITE)
        for keyspace in (0, CATALOG)
        for key in (b"r", b"w", b"y", b"web\x001", b"webs\x001")
        if some.allows(Access(kind, keyspace, key, None))
    }
    assert allowed == {
        (Kind.READ, 0, b"r"),
        (Kind.WRITE, 0, b"w"),
        (Kind.READ, 0, b"y"),
        (Kind.WRITE, 0, b"y"),
        (Kind.READ, CATALOG, b"web\x001"),
    }


def test_root_may_do_everything_but_what_nobody_may() -> None:
    root = Grants("admin", ["root"], [])
    assert root.admin and root.allows(ADMIN) and root.allows(Access(Kind.WRITE, 3, b"", b""))
    assert root.allows(Access(Kind.USER, 0, b"other")) and not root.allows(NOBODY)
    user = Grants("me", ["mine"], [])
    assert not user.allows(ADMIN) and not user.allows(NOBODY)
    assert user.allows(Access(Kind.USER, 0, b"me")) and not user.allows(Access(Kind.USER, 0, b"m"))
    assert user.allows(Access(Kind.ROLE, 0, b"mine"))
    assert not user.allows(Access(Kind.ROLE, 0, b"root"))


READ, WRITE = Kind.READ, Kind.WRITE


def reads(start: bytes, end: bytes | None = None, keyspace: int = 0) -> Access:
    return Access(READ, keyspace, start, end)


def writes(start: bytes, end: bytes | None = None, keyspace: int = 0) -> Access:
    return Access(WRITE, keyspace, start, end)


def test_effects_of_writes() -> None:
    assert effects(c.put(b"k", b"v")) == (writes(b"k"),)
    assert effects(c.put(b"k", b"v", lease=7)) == (writes(b"k"),)
    assert effects(c.put(b"k", b"", ignore_value=True)) == (writes(b"k"),)
    assert effects(c.put(b"k", b"v", keyspace=3)) == (writes(b"k", None, 3),)
    assert effects(c.delete(b"a", b"")) == (writes(b"a", b""),)


def test_previous_values_are_reads() -> None:
    """CVE-2026-33343: what was there before came back to those who may only write."""
    assert effects(c.put(b"k", b"v", prev=True)) == (writes(b"k"), reads(b"k"))
    assert effects(c.delete(b"a", b"c", prev=True)) == (writes(b"a", b"c"), reads(b"a", b"c"))
    inner = c.txn_op([], [c.delete_op(b"d", prev=True)], [c.put_op(b"p", b"", prev=True)])
    assert set(effects(c.txn([], [inner]))) == {
        writes(b"d"), reads(b"d"), writes(b"p"), reads(b"p"),
    }  # fmt: skip


def test_services_are_keys_of_the_catalog() -> None:
    key = b"web\x001"
    for command in (
        c.service_register("web", "1", "h", 80, ttl_seconds=9, lease=1),
        c.service_deregister("web", "1"),
        c.service_drain("web", "1", True),
    ):
        assert effects(command) == (writes(key, None, CATALOG),)


OPERATIONS = st.deferred(
    lambda: st.one_of(
        st.builds(lambda key, prev: ("put", key, prev), KEY, st.booleans()),
        st.builds(lambda at, prev: ("delete", at, prev), INTERVALS, st.booleans()),
        st.builds(lambda at: ("range", at), INTERVALS),
        st.builds(
            lambda compares, then, else_: ("txn", compares, then, else_),
            st.lists(INTERVALS, max_size=2),
            st.lists(OPERATIONS, max_size=2),
            st.lists(OPERATIONS, max_size=2),
        ),
    )
)


def build(operation: Any) -> c.Operation:
    kind = operation[0]
    if kind == "put":
        return c.put_op(operation[1], b"v", prev=operation[2])
    if kind == "delete":
        return c.delete_op(*operation[1], prev=operation[2])
    if kind == "range":
        return c.range_op(*operation[1])
    compares = [c.compare(0, 1, key, 0, end) for key, end in operation[1]]
    return c.txn_op(compares, list(map(build, operation[2])), list(map(build, operation[3])))


def touched(operation: Any) -> set[tuple[Kind, Interval]]:
    """What an operation can read and write, by the plain meaning of its words."""
    kind = operation[0]
    if kind == "put":
        return {(WRITE, (operation[1], None))} | (
            {(READ, (operation[1], None))} if operation[2] else set()
        )
    if kind == "delete":
        return {(WRITE, operation[1])} | ({(READ, operation[1])} if operation[2] else set())
    if kind == "range":
        return {(READ, operation[1])}
    below: Iterable[set[tuple[Kind, Interval]]] = map(touched, (*operation[2], *operation[3]))
    return {(READ, at) for at in operation[1]}.union(*below)


@given(st.lists(OPERATIONS, min_size=1, max_size=3), st.lists(OPERATIONS, max_size=2))
def test_the_whole_effect_tree_is_seen(then: list[Any], else_: list[Any]) -> None:
    """CVE-2026-44283: nested transactions are judged to their leaves, both branches of each."""
    whole = ("txn", [], then, else_)
    try:
        command = c.txn([], list(map(build, then)), list(map(build, else_)))
    except InvalidRequest:
        return  # nested too deeply
    except Exception as error:
        assert type(error).__name__ == "DuplicateKey"
        return
    seen = {(one.kind, (one.start, one.end)) for one in effects(command)}
    assert seen == touched(whole)


def test_every_command_has_a_rule_or_is_for_members_alone() -> None:
    """Deny by default: what is not thought of can be proposed by nobody, root included."""
    for_members = {
        c.Op.RANGE, c.Op.GUARDED, c.Op.LEASE_EXPIRE,
        c.Op.TOKEN_ADD, c.Op.TOKEN_RENEW, c.Op.TOKEN_DROP,
    }  # fmt: skip
    for command in (
        c.lease_expire([1], 1),
        ac.token_add(bytes(32), "u", 1, 1),
        ac.token_renew(bytes(32), 1),
        ac.token_drop(bytes(32)),
        c.guarded(c.put(b"k", b""), 1, "u"),
    ):
        assert effects(command) == (NOBODY,)
    from raftkv.machine.access import _RULES

    assert set(_RULES) | for_members == set(c.Op) and not set(_RULES) & for_members


def test_administration_needs_the_role_root() -> None:
    for command in (
        c.compact(1),
        c.member_update(1, name="n"),
        c.alarm(1, 1, False),
        ac.auth_enable(),
        ac.auth_disable(),
        ac.user_add("u", None),
        ac.user_delete("u"),
        ac.user_password("u", None),
        ac.user_grant("u", "r"),
        ac.user_revoke("u", "r"),
        ac.role_add("r"),
        ac.role_delete("r"),
        ac.role_grant("r", PermissionKind.READ, b"k"),
        ac.role_revoke("r", b"k"),
    ):
        assert effects(command) == (ADMIN,)
    assert effects(c.lease_grant(1, 9)) == () == effects(c.lease_revoke(1))
