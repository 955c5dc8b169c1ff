"""Replicas under virtual time: proposals, reads, leases, forwarding, hash checks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from raftkv.consensus.types import NO_MEMBER, ChangeKind, ConfigChange
from raftkv.errors import (
    ChangeRefused,
    Corrupt,
    LeadershipLost,
    LeaseNotFound,
    MemberExists,
    MemberNotFound,
    NoLeader,
    OutcomeUnknown,
    PeerError,
    Stopping,
    TooLarge,
    TooManyRequests,
)
from raftkv.limits import BATCH_BYTES_MAX
from raftkv.machine import commands
from raftkv.machine.results import LeaseResult, MemberResult, PutResult
from raftkv.server.shell_frames import ShellFrame
from raftkv.server.store import KeepAliveResult, LeaseTime
from raftkv.storage.backend import MapGrownError
from tests.support.rig import TICK_MS, Rig, Site

MakeRig = Callable[[int], Rig]


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(size: int) -> Rig:
        rigs.append(Rig(tmp_path / f"rig{len(rigs)}", size))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def follower_of(rig: Rig) -> Site:
    leader = rig.leader()
    return next(site for site in rig.sites.values() if site is not leader and not site.down)


def value(site: Site, key: bytes) -> bytes | None:
    record = site.replica.machine.get(key)
    return None if record is None else record.value


def test_one_member_answers_a_put_with_its_own_result(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    site = rig.leader()
    first = rig.propose(site, commands.put(b"a", b"1"))
    second = rig.propose(site, commands.put(b"b", b"2"))
    rig.settle()
    assert isinstance(first[0], PutResult) and isinstance(second[0], PutResult)
    assert second[0].revision == first[0].revision + 1
    assert value(site, b"a") == b"1"


@pytest.mark.parametrize("first", ["put", "read", "keep-alive", "refused"])
@pytest.mark.parametrize("then", ["put", "read", "keep-alive", "lease time"])
def test_what_an_answer_leads_to_waits_for_no_tick(
    make_rig: MakeRig, first: str, then: str
) -> None:
    """Whoever is told something may ask for more from within: it must not lie until the clock
    wakes the member."""
    rig = make_rig(1)
    site = rig.leader()
    replica = site.replica
    rig.settle()
    heard: list[Any] = []
    asks: dict[str, Callable[[Callable[[Any], None]], None]] = {
        "put": lambda done: replica.propose(commands.put(b"a", b"1"), done),
        "read": lambda done: replica.read_index(done),
        "keep-alive": lambda done: replica.keep_alive(7, done),
        "lease time": lambda done: replica.lease_time(7, done),
        "refused": lambda done: replica.propose(bytes(BATCH_BYTES_MAX), done),
    }
    asks[first](lambda _: asks[then](heard.append))
    rig.settle()
    assert len(heard) == 1


def test_what_finds_the_map_full_is_applied_in_the_next_turn(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(1)
    site = rig.leader()
    refused = []

    class FullOnce:
        def working_out(self, entries: Any) -> None:
            if not refused:
                refused.append(entries)
                raise MapGrownError("was full, has grown")

        def adopted(self, applied: Any) -> None:
            pass

    site.replica.machine.listener = FullOnce()
    answers = rig.propose(site, commands.put(b"k", b"v"))
    rig.settle()
    assert refused and isinstance(answers[0], PutResult) and value(site, b"k") == b"v"


def test_nothing_is_answered_before_the_log_is_durable(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    site = rig.leader()
    rig.settle()
    site.hold_writes = True
    answer = rig.propose(site, commands.put(b"a", b"1"))
    for _ in range(20):
        rig.step()
    assert answer == [] and value(site, b"a") is None
    site.hold_writes = False
    rig.settle()
    assert isinstance(answer[0], PutResult)


def test_writes_and_reads_through_every_member(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    rig.leader()
    rig.settle()
    for number, site in enumerate(rig.sites.values()):
        answer = rig.propose(site, commands.put(b"k", b"%d" % number))
        rig.settle()
        assert isinstance(answer[0], PutResult)
        for reader in rig.sites.values():
            seen: list[Any] = []
            reader.replica.read_index(
                lambda error, reader=reader, seen=seen: seen.append((error, value(reader, b"k")))
            )
            rig.settle()
            assert seen == [(None, b"%d" % number)]
    assert len({site.replica.machine.state_hash for site in rig.sites.values()}) == 1


def test_a_leader_cut_off_loses_its_writes_definitely_once_it_learns(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    old = rig.leader()
    rig.settle()
    rig.isolated = {old.member_id}
    lost = rig.propose(old, commands.put(b"k", b"old"))
    rig.step()
    new = rig.leader()
    assert new is not old
    kept = rig.propose(new, commands.put(b"k", b"new"))
    rig.settle()
    assert isinstance(kept[0], PutResult) and lost == []
    rig.isolated = set()
    rig.pass_time(500)
    assert isinstance(lost[0], LeadershipLost)
    assert value(old, b"k") == b"new"


def test_a_write_that_nobody_confirms_is_unknown(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    old = rig.leader()
    rig.settle()
    for site in rig.sites.values():
        if site is not old:
            site.crash()
    answer = rig.propose(old, commands.put(b"k", b"?"))
    rig.pass_time(6_000)
    assert isinstance(answer[0], OutcomeUnknown)


def test_a_write_forwarded_to_a_dead_leader_is_refused_once_another_leads(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    site = follower_of(rig)
    answer = rig.propose(site, commands.put(b"k", b"lost"))
    leader.crash()
    rig.settle()
    assert answer == []
    rig.leader()
    rig.settle()
    assert isinstance(answer[0], LeadershipLost)
    assert value(site, b"k") is None


def test_without_a_leader_writes_are_refused_and_reads_time_out(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    lonely = follower_of(rig)
    for site in rig.sites.values():
        if site is not lonely:
            site.crash()
    rig.pass_time(4_000)
    assert lonely.replica.node.leader == NO_MEMBER and leader.down
    answer = rig.propose(lonely, commands.put(b"k", b"1"))
    renewed: list[Any] = []
    lonely.replica.keep_alive(1, renewed.append)
    rig.settle()
    assert isinstance(answer[0], NoLeader) and isinstance(renewed[0], NoLeader)


def test_a_restart_keeps_what_was_acknowledged(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    site = rig.leader()
    answer = rig.propose(site, commands.put(b"k", b"1"))
    rig.settle()
    assert isinstance(answer[0], PutResult)
    for each in rig.sites.values():
        each.crash()
    for each in rig.sites.values():
        each.boot()
    rig.leader()
    rig.pass_time(300)
    assert [value(each, b"k") for each in rig.sites.values()] == [b"1"] * 3


def test_leases_are_renewed_through_any_member_and_expire_in_time(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    other = follower_of(rig)
    granted = rig.propose(other, commands.lease_grant(77, 2))
    rig.settle()
    assert isinstance(granted[0], LeaseResult)
    rig.propose(other, commands.put(b"k", b"1", lease=77))
    rig.settle()
    for site in (other, leader, other, leader):
        rig.pass_time(1_500)
        told: list[Any] = []
        site.replica.keep_alive(77, told.append)
        rig.settle()
        assert told == [KeepAliveResult(77, 2)]
    asked: list[Any] = []
    other.replica.lease_time(77, asked.append)
    leader.replica.lease_time(78, asked.append)
    rig.settle()
    assert asked[1] == LeaseTime(77, 2, 2_000) or asked[0] == LeaseTime(77, 2, 2_000)
    assert any(isinstance(answer, LeaseNotFound) for answer in asked)
    rig.pass_time(1_900)
    assert value(leader, b"k") == b"1"
    rig.pass_time(300)
    assert value(leader, b"k") is None
    told = []
    other.replica.keep_alive(77, told.append)
    rig.settle()
    assert isinstance(told[0], LeaseNotFound)


def test_a_leader_change_gives_every_lease_its_full_ttl(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.propose(leader, commands.lease_grant(5, 3))
    rig.propose(leader, commands.put(b"k", b"1", lease=5))
    rig.settle()
    rig.pass_time(2_800)
    leader.crash()
    new = rig.leader()
    rig.settle()
    elected_ms = rig.now_ms
    rig.pass_time(2_800)
    assert value(new, b"k") == b"1"
    rig.pass_time(600)
    assert value(new, b"k") is None and rig.now_ms - elected_ms <= 4_000


def test_a_renewal_waits_for_an_expiry_that_may_yet_fail(make_rig: MakeRig) -> None:
    """It was told that there was no such lease, and the lease lived on under the next leader."""
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    rig.propose(leader, commands.lease_grant(5, 1))
    rig.settle()
    for site in rig.sites.values():
        site.hold_writes = True
    rig.pass_time(1_200)
    told: list[Any] = []
    leader.replica.keep_alive(5, told.append)
    rig.settle()
    assert told == []
    for site in rig.sites.values():
        site.hold_writes = False
    rig.settle()
    assert [type(one) for one in told] == [LeaseNotFound]
    assert leader.replica.machine.lease(5) is None


def test_a_lease_that_ends_before_leadership_is_confirmed_is_not_renewed(make_rig: MakeRig) -> None:
    """A new leader's log may hold an expiry of the one before: applied after it has renewed."""
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    rig.propose(leader, commands.lease_grant(5, 10))
    rig.settle()
    told: list[Any] = []
    leader.replica.keep_alive(5, told.append)
    leader.replica.turn()
    leader.replica.lessor.gone(5)
    rig.settle()
    assert [type(one) for one in told] == [LeaseNotFound]


def test_a_renewal_is_told_when_the_leader_falls_with_the_expiry_undone(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    rig.propose(leader, commands.lease_grant(5, 1))
    rig.settle()
    for site in rig.sites.values():
        site.hold_writes = True
    rig.pass_time(1_200)
    told: list[Any] = []
    leader.replica.keep_alive(5, told.append)
    rig.settle()
    rig.isolated.add(leader.member_id)
    rig.pass_time(3_000)
    assert [type(one) for one in told] == [NoLeader]
    assert leader.replica.machine.lease(5) is not None


def test_membership_changes_through_a_follower(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    rig.leader()
    rig.settle()
    site = follower_of(rig)
    told: list[Any] = []
    change = ConfigChange(((ChangeKind.ADD_LEARNER, 9),))
    site.replica.change_members(change, [9, "n9", ["http://m9:1"], [], True], told.append)
    rig.settle()
    assert isinstance(told[0], MemberResult)
    assert [info.learner for info in site.replica.machine.members()] == [False] * 3 + [True]
    for changes, attributes, refusal in (
        (((ChangeKind.ADD_LEARNER, 9),), [9, "n9", ["http://m9:2"], [], True], MemberExists),
        (((ChangeKind.ADD_VOTER, 10),), [10, "x", ["http://m9:1"], [], False], MemberExists),
        (((ChangeKind.ADD_VOTER, 9),), [9], ChangeRefused),
        (((ChangeKind.REMOVE, 11),), [11], MemberNotFound),
        (((ChangeKind.ADD_VOTER, 11),), [11], MemberNotFound),
    ):
        for at in (site, rig.leader()):
            told = []
            at.replica.change_members(ConfigChange(changes), attributes, told.append)
            rig.settle()
            expected = refusal if at is rig.leader() else ChangeRefused
            assert isinstance(told[0], expected), told
    removed = next(s for s in rig.sites.values() if s is not site and s is not rig.leader())
    told = []
    site.replica.change_members(
        ConfigChange(((ChangeKind.REMOVE, removed.member_id),)), [removed.member_id], told.append
    )
    rig.settle()
    rig.pass_time(200)
    assert isinstance(told[0], MemberResult) and removed.gone


def test_a_change_while_another_is_under_way_may_be_tried_again(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    told: list[Any] = []
    for member_id in (8, 9):
        change = ConfigChange(((ChangeKind.ADD_LEARNER, member_id),))
        attributes = [member_id, f"n{member_id}", [f"http://m{member_id}:1"], [], True]
        leader.replica.change_members(change, attributes, told.append)
    rig.settle()
    refusal, done = sorted(told, key=lambda each: isinstance(each, MemberResult))
    assert isinstance(refusal, TooManyRequests) and isinstance(done, MemberResult)


def test_a_live_member_counts_as_reachable_at_any_moment(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    dead = follower_of(rig)

    def reachable(member_id: int) -> bool:
        return leader.replica.node.status().peers[member_id].recent_active

    for _ in range(30):
        rig.now_ms += TICK_MS
        leader.replica.tick(rig.now_ms)
        # No answer to this tick's heartbeats is there yet.
        assert all(reachable(peer) for peer in rig.founders if peer != leader.member_id)
        rig.settle()
    rig.isolated.add(dead.member_id)
    rig.pass_time(30 * TICK_MS)
    assert leader is rig.leader() and not reachable(dead.member_id)


def test_a_member_whose_state_differs_stops_serving(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    wrong = follower_of(rig)
    wrong.replica.machine._state.hash = b"bad!" * 4
    rig.propose(leader, commands.put(b"k", b"1"))
    rig.settle()
    for site in rig.sites.values():
        site.replica.share_hash()
    rig.settle()
    assert wrong.replica.corrupt
    assert [s.replica.corrupt for s in rig.sites.values() if s is not wrong] == [False, False]
    refused = rig.propose(wrong, commands.put(b"k", b"2"))
    read: list[Any] = []
    wrong.replica.read_index(read.append)
    rig.settle()
    assert isinstance(refused[0], Corrupt) and isinstance(read[0], Corrupt)
    assert (commands.AlarmKind.CORRUPT, wrong.member_id) in leader.replica.machine.alarms


def test_more_than_a_batch_holds_goes_in_several(make_rig: MakeRig) -> None:
    rig = make_rig(1)
    site = rig.leader()
    big = b"x" * (1024 * 1024)
    answers = [rig.propose(site, commands.put(b"%d" % n, big)) for n in range(9)]
    rig.settle()
    assert all(isinstance(answer[0], PutResult) for answer in answers)
    refused = rig.propose(site, b"x" * BATCH_BYTES_MAX)
    rig.settle()
    assert isinstance(refused[0], TooLarge)


def test_closing_answers_everyone(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    leader.hold_writes = True
    waiting = rig.propose(leader, commands.put(b"k", b"1"))
    rig.step()
    gathered = rig.propose(leader, commands.put(b"k", b"2"))
    leader.replica.close()
    assert isinstance(waiting[0], OutcomeUnknown) and isinstance(gathered[0], Stopping)
    late = rig.propose(leader, commands.put(b"k", b"3"))
    rig.settle()
    assert isinstance(late[0], Stopping)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ShellFrame.LEASE_TIME, [1, [7]]),
        (ShellFrame.KEEP_ALIVE, [1, [[7]]]),
        (ShellFrame.KEEP_ALIVE, [1, 7]),
        (ShellFrame.HASH, ["1", b""]),
        (ShellFrame.PROPOSAL_REFUSED, [1, 2]),
        (99, [1, 2]),
    ],
)
def test_a_malformed_frame_costs_the_connection_and_nothing_else(
    make_rig: MakeRig, kind: int, fields: list[Any]
) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    with pytest.raises(PeerError):
        leader.replica.receive_frame(follower_of(rig).member_id, kind, msgpack.packb(fields))
    answer = rig.propose(leader, commands.put(b"k", b"v"))
    rig.settle()
    assert isinstance(answer[0], PutResult)


def test_a_question_nested_too_deeply_to_be_sent_back_is_not_taken(make_rig: MakeRig) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    payload = b"\x92" + b"\x91" * 600 + b"\x01" + b"\x07"
    with pytest.raises(PeerError):
        leader.replica.receive_frame(follower_of(rig).member_id, ShellFrame.LEASE_TIME, payload)
    rig.pass_time(300)


@pytest.mark.parametrize("answer", [[10], [10, 10, 10], [10, "x"], 5, None, {}])
def test_an_answer_of_a_wrong_shape_leaves_the_question_open(
    make_rig: MakeRig, answer: Any
) -> None:
    rig = make_rig(3)
    leader = rig.leader()
    rig.settle()
    site = follower_of(rig)
    heard: list[Any] = []
    site.replica.keep_alive(7, heard.append)
    site.replica.keep_alive(8, heard.append)
    site.replica.turn()
    ((_, _, _, payload),) = rig.frames
    rig.frames.clear()
    question = msgpack.unpackb(payload)[0]
    with pytest.raises(PeerError):
        site.replica.receive_frame(
            leader.member_id, ShellFrame.ANSWER, msgpack.packb([question, answer])
        )
    assert heard == []
    rig.pass_time(6_000)
    assert [type(one) for one in heard] == [OutcomeUnknown, OutcomeUnknown]
