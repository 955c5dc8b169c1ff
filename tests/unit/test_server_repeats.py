"""Messages of other members that come twice, late, or in another order."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from raftkv.consensus.types import ChangeKind, ConfigChange, Entry, Message, MessageKind, Role
from raftkv.errors import CorruptionError, LeaseNotFound, NoLeader, PeerError
from raftkv.limits import REPEAT_RUNS_MAX, REPEAT_WINDOW
from raftkv.machine import commands
from raftkv.machine.results import MemberResult, PutResult
from raftkv.server.repeats import Repeats
from raftkv.server.shell_frames import ShellFrame
from raftkv.server.store import KeepAliveResult
from tests.support.rig import Rig, Site

# ---- the window ------------------------------------------------------------------------------


def test_every_number_is_new_once_in_any_order() -> None:
    rng = random.Random(5)
    seen = Repeats()
    numbers = list(range(1, 5 * REPEAT_WINDOW))
    numbers.sort(key=lambda number: number + rng.randrange(REPEAT_WINDOW))
    told: set[int] = set()
    for number in numbers:
        assert seen.first(1, 2, number), number
        told.add(number)
        for old in rng.sample(sorted(told), min(3, len(told))):
            assert not seen.first(1, 2, old)


def test_what_comes_too_late_passes_for_a_repeat() -> None:
    seen = Repeats()
    assert seen.first(1, 1, REPEAT_WINDOW + 1)
    assert seen.first(1, 1, 2) and not seen.first(1, 1, 1)
    assert seen.first(1, 1, 10 * REPEAT_WINDOW)
    assert not seen.first(1, 1, 9 * REPEAT_WINDOW) and seen.first(1, 1, 9 * REPEAT_WINDOW + 1)


def test_members_and_their_runs_count_apart_and_an_old_run_is_known_for_long() -> None:
    seen = Repeats()
    assert seen.first(1, 7, 1) and seen.first(1, 8, 1) and seen.first(2, 7, 1)
    for boot in range(100, 100 + REPEAT_RUNS_MAX - 1):
        assert not seen.first(1, 7, 1)
        assert seen.first(3, boot, 1)
    assert seen.first(2, 7, 2), "pushed out by the others"


def test_a_term_begins_with_nothing_seen() -> None:
    seen = Repeats()
    seen.begin(4)
    assert seen.first(1, 1, 1)
    seen.begin(4)
    assert not seen.first(1, 1, 1)
    seen.begin(5)
    assert seen.first(1, 1, 1)


def test_the_head_of_a_batch_is_read_without_the_rest() -> None:
    for origin, boot, sequence in (
        (1, 2, 3),
        (2**64 - 1, 2**48 - 1, 2**64 - 1),
        (300, 128, 70_000),
    ):
        data = commands.encode_batch(origin, boot, sequence, [commands.put(b"k", bytes(9_999))])
        assert commands.batch_head(data) == (origin, boot, sequence)
        assert commands.batch_head(commands.stamp_batch(data, 12)) == (origin, boot, sequence)
    for bad in (b"", bytes(8), bytes(8) + b"\x94", bytes(8) + msgpack.packb(["a", 1, 2, []])):
        with pytest.raises(CorruptionError):
            commands.batch_head(bad)


# ---- in a group ------------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, 3)
    yield made
    made.close()


def followers(rig: Rig) -> list[Site]:
    leader = rig.leader()
    return [site for site in rig.sites.values() if site is not leader and not site.down]


def forwarded(rig: Rig, site: Site, command: bytes) -> tuple[list[Any], Message]:
    """Forward a command; what was sent to the leader is taken out of the mail."""
    answer = rig.propose(site, command)
    return answer, take_proposal(rig, site)


def take_proposal(rig: Rig, site: Site) -> Message:
    site.replica.turn()
    for place, (source, _, messages) in enumerate(rig.mail):
        for message in messages:
            if source == site.member_id and message.kind is MessageKind.PROPOSE:
                del rig.mail[place]
                return message
    raise AssertionError("nothing was forwarded")


def versions(rig: Rig, key: bytes) -> set[int]:
    records = [site.replica.machine.get(key) for site in rig.sites.values() if not site.down]
    return {0 if record is None else record.version for record in records}


@pytest.mark.parametrize(
    "data",
    [
        bytes(8) + msgpack.packb([2, 1, 9, [[200, None, 0, b"k"]]]),
        bytes(8) + msgpack.packb([2, 1, 9, 5]),
        bytes(8) + msgpack.packb([2, 1, 9]),
        b"no batch",
    ],
)
def test_a_forwarded_batch_that_nobody_could_apply_is_not_taken_on(rig: Rig, data: bytes) -> None:
    """Once in the log, it would stop every member, and again after each start."""
    leader = rig.leader()
    rig.settle()
    index = leader.replica.node.last_index
    good, message = forwarded(rig, followers(rig)[0], commands.put(b"k", b"1"))
    entry = message.entries[0]
    entries = (Entry(entry.index, entry.term, entry.kind, data),)
    bad = Message(message.kind, message.source, message.target, message.term, entries=entries)
    with pytest.raises(PeerError, match="cannot be applied"):
        leader.replica.receive(message.source, [message, bad])
    rig.settle()
    assert isinstance(good[0], PutResult), "what came before it is taken"
    assert leader.replica.node.last_index == index + 1
    assert versions(rig, b"k") == {1} and hashes_agree(rig)


def hashes_agree(rig: Rig) -> bool:
    return len({site.replica.machine.state_hash for site in rig.sites.values()}) == 1


def deliver(site: Site, message: Message) -> None:
    site.replica.receive(message.source, [message])


def test_copies_of_a_forwarded_batch_are_applied_once(rig: Rig) -> None:
    leader = rig.leader()
    rig.settle()
    site = followers(rig)[0]
    answer, message = forwarded(rig, site, commands.put(b"k", b"1"))
    deliver(leader, message)
    deliver(leader, message)
    rig.settle()
    assert isinstance(answer[0], PutResult)
    revision = leader.replica.machine.revision
    index = leader.replica.node.last_index
    deliver(leader, message)
    rig.settle()
    rig.pass_time(200)
    assert len(answer) == 1 and versions(rig, b"k") == {1}
    assert leader.replica.machine.revision == revision
    assert leader.replica.node.last_index == index, "a copy costs no entry"
    assert hashes_agree(rig)


def test_batches_that_overtake_each_other_are_all_applied_once(rig: Rig) -> None:
    leader = rig.leader()
    rig.settle()
    site = followers(rig)[0]
    sent = [forwarded(rig, site, commands.put(b"k%d" % n, b"")) for n in range(30)]
    copies = [message for _, message in sent] * 3
    random.Random(3).shuffle(copies)
    for message in copies:
        deliver(leader, message)
        rig.step()
    rig.settle()
    rig.pass_time(200)
    assert all(isinstance(answer[0], PutResult) for answer, _ in sent)
    assert leader.replica.machine.revision == 31
    assert all(versions(rig, b"k%d" % n) == {1} for n in range(30))


def test_a_copy_from_before_a_restart_is_known_in_the_same_term(rig: Rig) -> None:
    leader = rig.leader()
    rig.settle()
    site = followers(rig)[0]
    _, message = forwarded(rig, site, commands.put(b"k", b"1"))
    deliver(leader, message)
    rig.settle()
    site.crash()
    site.boot()
    rig.pass_time(300)
    assert rig.leader() is leader
    # The first batch of the new run has the number that the old run's first had.
    answer, fresh = forwarded(rig, site, commands.put(b"k", b"2"))
    deliver(leader, fresh)
    deliver(leader, message)
    rig.settle()
    rig.pass_time(200)
    assert isinstance(answer[0], PutResult) and versions(rig, b"k") == {2}


def test_no_copy_is_taken_on_in_another_term(rig: Rig) -> None:
    leader = rig.leader()
    rig.settle()
    site = followers(rig)[0]
    _, message = forwarded(rig, site, commands.put(b"k", b"1"))
    deliver(leader, message)
    rig.settle()
    rig.isolated = {leader.member_id}
    rig.leader()
    rig.isolated = set()
    leader.replica.node.campaign()
    rig.pass_time(3_000)
    for each in rig.sites.values():
        deliver(each, Message(message.kind, message.source, each.member_id, message.term,
                              entries=message.entries))  # fmt: skip
    rig.settle()
    assert versions(rig, b"k") == {1}


def test_what_a_copy_of_was_taken_on_is_not_called_refused(rig: Rig) -> None:
    """The leader took a batch on and lost its office; a second copy comes while it has none."""
    leader = rig.leader()
    rig.settle()
    site, other = followers(rig)
    answer, message = forwarded(rig, site, commands.put(b"k", b"1"))
    deliver(leader, message)
    rig.step()
    # The entry is in its log and on its way; now it steps down for want of a quorum.
    sent, rig.mail = rig.mail, []
    rig.isolated = {site.member_id, other.member_id}
    for _ in range(60):
        rig.pass_time(100)
        if leader.replica.node.role is not Role.LEADER:
            break
    assert leader.replica.node.role is not Role.LEADER and leader.replica.node.term == message.term
    rig.isolated = set()
    rig.mail += sent
    deliver(leader, message)
    while rig.frames:
        rig.step()
    assert not any(isinstance(told, NoLeader) for told in answer)
    rig.settle()
    rig.leader()
    rig.settle()
    assert versions(rig, b"k") == {1}
    assert not answer or isinstance(answer[0], PutResult)


def test_a_leader_that_restarted_does_not_refuse_what_it_may_have_taken_on(rig: Rig) -> None:
    leader = rig.leader()
    rig.settle()
    site = followers(rig)[0]
    answer, message = forwarded(rig, site, commands.put(b"k", b"1"))
    deliver(leader, message)
    for _ in range(3):
        rig.step()  # all have the entry; the leader has not heard so
    rig.mail = []
    leader.crash()
    leader.boot()
    deliver(leader, message)
    for _ in range(3):
        rig.step()
    assert answer == []
    rig.leader()
    rig.settle()
    assert isinstance(answer[0], PutResult) and versions(rig, b"k") == {1}


def test_what_was_refused_is_not_taken_on_by_a_copy(rig: Rig) -> None:
    leader = rig.leader()
    rig.settle()
    site, other = followers(rig)
    answer, message = forwarded(rig, site, commands.put(b"k", b"1"))
    other.hold_writes = True
    leader.hold_writes = True
    leader.replica.node._core.transferee = other.member_id
    deliver(leader, message)
    leader.hold_writes = other.hold_writes = False
    for _ in range(10):
        rig.step()
    assert isinstance(answer[0], NoLeader)
    leader.replica.node._core.transferee = 0
    deliver(leader, message)
    rig.settle()
    rig.pass_time(300)
    assert versions(rig, b"k") == {0}


def test_a_membership_change_that_comes_twice_is_one_change(rig: Rig) -> None:
    leader = rig.leader()
    rig.settle()
    site, other = followers(rig)
    told: list[Any] = []
    change = ConfigChange(((ChangeKind.ADD_LEARNER, 9),))
    site.replica.change_members(change, [9, "n9", ["http://m9:1"], [], True], told.append)
    added = take_proposal(rig, site)
    deliver(leader, added)
    deliver(leader, added)
    rig.settle()
    assert isinstance(told[0], MemberResult)
    told = []
    site.replica.change_members(ConfigChange(((ChangeKind.REMOVE, 9),)), [9], told.append)
    removed = take_proposal(rig, site)
    deliver(leader, removed)
    rig.settle()
    index = leader.replica.node.last_index
    # A late copy of the addition would bring the removed member back.
    for message in (added, removed, added):
        deliver(leader, message)
    rig.settle()
    rig.pass_time(300)
    assert isinstance(told[0], MemberResult) and len(told) == 1
    assert leader.replica.node.last_index == index
    assert leader.replica.node.conf.learners == ()
    assert other.replica.machine.state_hash == leader.replica.machine.state_hash


def test_a_late_copy_of_a_renewal_does_not_renew(rig: Rig) -> None:
    leader = rig.leader()
    rig.settle()
    site = followers(rig)[0]
    rig.propose(site, commands.lease_grant(5, 2))
    rig.propose(site, commands.put(b"k", b"1", lease=5))
    rig.settle()
    told: list[Any] = []
    site.replica.keep_alive(5, told.append)
    site.replica.turn()
    (frame,) = [frame for frame in rig.frames if frame[2] == ShellFrame.KEEP_ALIVE]
    rig.settle()
    assert told == [KeepAliveResult(5, 2)]
    rig.pass_time(1_500)
    leader.replica.receive_frame(frame[0], frame[2], frame[3])
    rig.pass_time(1_000)
    assert versions(rig, b"k") == {0} and len(told) == 1


def test_an_answer_to_an_earlier_run_is_no_answer_to_this_one(rig: Rig) -> None:
    leader = rig.leader()
    rig.settle()
    site = followers(rig)[0]
    rig.propose(site, commands.lease_grant(5, 9))
    rig.settle()
    site.replica.keep_alive(5, lambda answer: None)
    site.replica.turn()
    late: list[tuple[int, int, int, bytes]] = []
    while not late:
        rig.step()
        late = [frame for frame in rig.frames if frame[2] == ShellFrame.ANSWER]
    rig.frames = []
    site.crash()
    site.boot()
    rig.pass_time(300)
    told: list[Any] = []
    site.replica.keep_alive(404, told.append)
    site.replica.turn()
    source, _, kind, payload = late[0]
    site.replica.receive_frame(source, kind, payload)
    assert told == [], "this run has no answer yet"
    rig.settle()
    assert isinstance(told[0], LeaseNotFound) and source == leader.member_id


def test_copies_of_read_questions_and_answers_give_no_stale_read(rig: Rig) -> None:
    """Every message about reads comes again much later, while newer reads wait (etcd#20418)."""
    leader = rig.leader()
    rig.settle()
    site = followers(rig)[0]
    about_reads = (MessageKind.READ_INDEX, MessageKind.READ_INDEX_REPLY,
                   MessageKind.HEARTBEAT, MessageKind.HEARTBEAT_REPLY)  # fmt: skip
    kept: list[tuple[int, int, Message]] = []

    def read() -> list[Any]:
        seen: list[Any] = []

        def done(error: Any) -> None:
            record = site.replica.machine.get(b"k")
            seen.append((error, None if record is None else record.value))

        site.replica.read_index(done)
        return seen

    for number in range(8):
        rig.propose(leader, commands.put(b"k", b"%d" % number))
        rig.settle()
        seen = read()
        for _ in range(12):
            kept += [
                (source, target, message)
                for source, target, messages in rig.mail
                for message in messages
                if message.kind in about_reads and message.context
            ]
            rig.step()
            for source, target, message in kept:
                if (source, target) != (leader.member_id, leader.member_id):
                    rig.sites[target].replica.receive(source, [message])
        rig.settle()
        assert seen == [(None, b"%d" % number)]
    # A leader that is cut off cannot be talked into confirming by answers of the past.
    rig.isolated = {leader.member_id}
    seen = []
    leader.replica.read_index(lambda error: seen.append(error))
    leader.replica.turn()
    for source, target, message in kept:
        if target == leader.member_id:
            leader.replica.receive(source, [message])
    leader.replica.turn()
    assert seen == []
