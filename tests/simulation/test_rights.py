"""What the oracle of rights sees and says; that seeds notice defects is in `tests/mutations`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from raftkv.errors import PermissionDenied
from raftkv.machine import auth_commands as a
from raftkv.machine import commands as c
from raftkv.machine.machine import Machine
from raftkv.machine.results import RangeResult
from raftkv.storage.memory_backend import MemoryBackend
from tests.linearizability.history import Compare, Delete, Put, Range, Txn
from tests.linearizability.translation import command
from tests.simulation.profile import draw
from tests.simulation.rights import HASH, Rights
from tests.simulation.rights_oracle import READ, READWRITE, WRITE, Asker, Need, RightsOracle, Rules
from tests.simulation.run import run_seed

ALICE = Asker("alice", None)
ROOT = Asker("root", None)


class Told:
    """A machine whose every entry the oracle is told of, one microsecond after the other."""

    def __init__(self) -> None:
        self.machine = Machine(MemoryBackend())
        self.oracle = RightsOracle()
        self.now_us = 0

    def apply(self, asker: Asker, packed: bytes, request: Any = None, *, guard: bool = True) -> Any:
        self.now_us += 1
        self.oracle.asks(msgpack.unpackb(packed), asker, request)
        if guard:
            packed = c.guarded(packed, self.machine.auth.revision)
        data = c.stamp_batch(c.encode_batch(1, 1, self.now_us, [packed]), self.now_us)
        [entry] = self.machine.apply([(self.machine.applied_index + 1, 1, data)])
        self.oracle.applied(self.now_us, entry.index, data, entry)
        return entry.results[0]


@pytest.fixture
def told() -> Told:
    world = Told()
    for packed in (
        a.user_add("root", None), a.user_grant("root", "root"), a.user_add("alice", HASH),
        a.role_add("r"), a.user_grant("alice", "r"), a.role_grant("r", READWRITE, b"k", b"l"),
        a.auth_enable(),
    ):  # fmt: skip
        world.apply(ROOT, packed)
    world.oracle.compare(world.machine)
    assert not world.oracle.violations and world.oracle.rules.enabled
    return world


def test_what_is_allowed_may_take_effect(told: Told) -> None:
    put = Put(b"k1", b"v", want_previous=True)
    told.apply(ALICE, command(put), put)
    assert not told.oracle.violations


@pytest.mark.parametrize(
    "request_",
    [
        Put(b"a", b"v"),
        Delete(b"k", b"m"),
        Txn((Compare(b"a", "version", "=", 0),), ()),
        Txn((), (Txn((), (), (Range(b"a"),)),)),
    ],
)
def test_what_takes_effect_against_the_rules_is_seen(told: Told, request_: Any) -> None:
    told.apply(ALICE, command(request_), request_)
    [violation] = told.oracle.violations
    assert violation.startswith("right-violated")


def test_the_rules_of_the_place_in_the_log_count(told: Told) -> None:
    put = Put(b"k1", b"v")
    told.apply(ROOT, a.user_revoke("alice", "r"))
    told.apply(ALICE, command(put), put)
    assert [one[:14] for one in told.oracle.violations] == ["right-violated"]


def test_an_old_token_counts_no_more(told: Told) -> None:
    before = Asker("alice", told.machine.auth.revision)
    told.apply(ROOT, a.user_password("alice", HASH))
    after = Asker("alice", told.machine.auth.revision)
    for asker, count in ((after, 0), (before, 1)):
        put = Put(b"k1", b"by %d" % count)
        told.apply(asker, command(put), put)
        assert len(told.oracle.violations) == count


def test_a_read_is_judged_by_what_was_in_force_meanwhile(told: Told) -> None:
    read, answer = Range(b"k1"), RangeResult(told.machine.revision, [], 0, False)
    begun_us = told.now_us
    told.apply(ROOT, a.role_revoke("r", b"k", b"l"))
    told.oracle.answered(ALICE, read, begun_us, told.now_us, answer)
    assert not told.oracle.violations
    told.now_us += 1
    told.oracle.answered(ALICE, read, told.now_us, told.now_us, answer)
    assert [one[:12] for one in told.oracle.violations] == ["right-leaked"]


def test_a_refusal_needs_a_cause(told: Told) -> None:
    for key, count in ((b"a", 0), (b"k1", 1)):
        told.oracle.answered(ALICE, Put(key, b""), told.now_us, told.now_us, PermissionDenied(""))
        assert len(told.oracle.violations) == count


def test_an_interval_is_covered_by_neighbours_only() -> None:
    roles = {"r": {(b"a", b"c"): READ, (b"c", b"e"): READWRITE, (b"f", b""): READ}}
    rules = Rules(True, 5, 2, {"alice": (frozenset({"r"}), 1)}, roles)
    for start, end, allowed in (
        (b"a", b"e", True), (b"b", b"d", True), (b"a", b"f", False), (b"f", b"", True),
        (b"e", b"f", False), (b"c", b"", False),
    ):  # fmt: skip
        assert rules.allow(ALICE, [Need(READ, start, end)]) is allowed
    assert rules.allow(ALICE, [Need(WRITE, b"c", b"e")])
    assert not rules.allow(ALICE, [Need(WRITE, b"b", b"e")])
    assert not rules.allow(ALICE, None) and not rules.allow(Asker("bob", None), [])


def test_a_seed_with_rights_sees_them_change_and_be_denied() -> None:
    rights = Rights(certified=(True, False, True), change_us=200_000, switched=True)
    profile = replace(draw(7), rights=rights)
    first, second = (run_seed(7, profile=profile) for _ in range(2))
    assert first.digest == second.digest
    assert first.faults["rules changed"] > 20 and first.faults["right denied"] > 20
