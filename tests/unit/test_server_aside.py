"""An apply that deletes very many keys: aside from the loop, and one change all the same."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from raftkv.machine import commands
from raftkv.machine.draft import TooManyRemovals
from raftkv.machine.machine import Machine, Worked
from raftkv.machine.results import DeleteResult, RevokeResult
from raftkv.server import replica
from raftkv.server.aside import Aside
from raftkv.storage.lmdb_backend import LmdbBackend
from tests.support.rig import Rig, Site

MANY = 40
DELETE_ALL = commands.delete(b"", b"")


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "REMOVALS_PER_TURN_MAX", MANY - 1)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, 3)


def filled(rig: Rig, lease: int = 0) -> Site:
    leader = rig.leader()
    if lease:
        rig.propose(leader, commands.lease_grant(lease, 1000))
    for number in range(MANY):
        rig.propose(leader, commands.put(b"k%03d" % number, b"v", lease=lease))
    rig.settle()
    assert leader.replica.machine.keys == MANY
    return leader


@pytest.mark.parametrize("way", ["range", "lease", "transaction"])
def test_many_deletes_are_done_aside_while_time_goes_on(rig: Rig, way: str) -> None:
    leader = filled(rig, 7 if way == "lease" else 0)
    command = {
        "range": DELETE_ALL,
        "lease": commands.lease_revoke(7),
        "transaction": commands.txn([], [commands.delete_op(b"", b"")], []),
    }[way]
    answers = rig.propose(leader, command)
    later = rig.propose(leader, commands.put(b"after", b"v"))
    read: list[Any] = []
    leader.replica.read_index(read.append)
    term, revision = leader.replica.node.term, leader.replica.machine.revision
    # Far longer than an election timeout: nobody asks for votes, and nothing is half visible.
    rig.pass_time(4_000)
    assert all(len(site.asides) == 1 for site in rig.sites.values())
    assert (answers, later) == ([], [])
    machine = leader.replica.machine
    assert (machine.revision, len(machine.range(b"", b"").records)) == (revision, MANY)
    for site in rig.sites.values():
        site.work_out_aside()
    rig.settle()
    assert leader.replica.node.term == term
    assert answers[0].revision == revision + 1
    assert later[0].revision == revision + 2
    assert read == [None]
    assert {site.replica.machine.keys for site in rig.sites.values()} == {1}
    assert len({site.replica.machine.state_hash for site in rig.sites.values()}) == 1


def test_a_member_that_did_it_on_its_loop_has_the_same_state(rig: Rig) -> None:
    leader = filled(rig)
    other = next(site for site in rig.sites.values() if site is not leader)
    other.replica._removals_max = MANY
    rig.propose(leader, DELETE_ALL)
    rig.settle()
    assert not other.asides and leader.asides
    leader.work_out_aside()
    assert leader.replica.machine.state_hash == other.replica.machine.state_hash


def test_what_could_not_be_done_aside_is_done_on_the_loop(rig: Rig) -> None:
    leader = filled(rig)
    answers = rig.propose(leader, DELETE_ALL)
    rig.settle()
    leader.asides.clear()
    leader.replica.worked_out(None)
    rig.settle()
    assert isinstance(answers[0], DeleteResult) and answers[0].deleted == MANY
    assert not leader.asides
    # And the next one goes aside again.
    for number in range(MANY):
        rig.propose(leader, commands.put(b"k%03d" % number, b"v"))
    rig.propose(leader, DELETE_ALL)
    rig.settle()
    assert len(leader.asides) == 1


class Tables:
    """A machine on LMDB with MANY keys on lease 7, and the loop's way to apply aside."""

    def __init__(self, folder: Path) -> None:
        self.backend = LmdbBackend(str(folder))
        self.machine = Machine(self.backend)
        self.machine.bootstrap(1, 1, b"", [])
        puts = [commands.put(b"k%03d" % n, b"v", lease=7) for n in range(MANY)]
        self.machine.apply([self.entry([commands.lease_grant(7, 9), *puts])])
        self.aside = Aside(asyncio.get_running_loop(), self.machine, self.backend)

    def entry(self, batch: list[commands.Command]) -> tuple[int, int, bytes]:
        data = commands.stamp_batch(commands.encode_batch(1, 1, 1, batch), 1)
        return self.machine.applied_index + 1, 1, data


@pytest.fixture
async def tables(tmp_path: Path) -> Any:
    made = Tables(tmp_path / "tables")
    yield made
    await asyncio.to_thread(made.aside.close)
    made.backend.close()


async def test_reads_go_on_and_see_all_of_it_or_nothing(tables: Tables) -> None:
    machine = tables.machine
    entry = tables.entry([commands.lease_revoke(7)])
    with pytest.raises(TooManyRemovals):
        machine.work_out([entry], removals_max=MANY - 1)
    revision = machine.revision
    done: asyncio.Future[Worked | None] = asyncio.get_running_loop().create_future()
    tables.aside.start([entry], done.set_result)
    while not done.done():
        assert tables.aside.busy
        assert (machine.revision, len(machine.range(b"", b"").records)) == (revision, MANY)
        await asyncio.sleep(0)
    worked = done.result()
    assert worked is not None and not tables.aside.busy
    [applied] = machine.adopt(worked)
    [result] = applied.results
    assert isinstance(result, RevokeResult) and result.deleted == MANY
    assert (machine.revision, machine.range(b"", b"").records) == (revision + 1, [])
    assert len(machine.history(revision + 1, revision + 1, MANY)) == MANY


async def test_a_failure_changes_nothing_and_is_told(tables: Tables) -> None:
    before = tables.machine.state_hash
    done: asyncio.Future[Worked | None] = asyncio.get_running_loop().create_future()
    tables.aside.start([(99, 1, b"")], done.set_result)
    assert await done is None
    entry = tables.entry([DELETE_ALL])
    assert tables.machine.state_hash == before
    assert tables.machine.apply([entry])[0].results[0] is not None
    assert tables.machine.range(b"", b"").records == []


async def test_an_end_of_the_member_leaves_the_work_undone(tables: Tables) -> None:
    told: list[Worked | None] = []
    tables.aside.start([tables.entry([DELETE_ALL])], told.append)
    # The loop does not turn: the thread cannot have committed when it is told to stop.
    closing = threading.Thread(target=tables.aside.close)
    closing.start()
    closing.join()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == []
    assert len(Machine(tables.backend).range(b"", b"").records) == MANY
