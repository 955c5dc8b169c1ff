"""Feature levels: when one is agreed, who is refused, and the files of the former version."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv.consensus.confchange import changed
from raftkv.consensus.node import PeerStatus, Status
from raftkv.consensus.progress import ProgressState
from raftkv.consensus.types import ConfState, Entry, EntryKind, HardState, Role
from raftkv.errors import ChangeRefused, ConfigError, FormatError, MemberNotFound
from raftkv.limits import FEATURE_LEVEL
from raftkv.machine import commands
from raftkv.machine.cluster import MemberChange, MemberInfo
from raftkv.machine.machine import Machine
from raftkv.server.config import ServerConfig
from raftkv.server.disaster import alone, force_new_cluster
from raftkv.server.discovery import described, service
from raftkv.server.frames import (
    Hello,
    check_welcome,
    decode_hello,
    encode_welcome,
    welcome_level,
)
from raftkv.server.levels import AUTO_PROMOTION, Agreement, PeerLevels, check_agreed, proposal
from raftkv.server.offline import snapshot_status
from raftkv.server.opening import Opened, open_member
from raftkv.server.promotions import Promotions
from raftkv.storage.memory_backend import MemoryBackend

FORMER = Path(__file__).parent / "fixtures" / "format-1.tar.xz"
"""A data directory, and a snapshot, of the last program that knew no levels: `greeting` twice, a
lease, `a/b` put and deleted, `a/c`; then the snapshot; then `after`. Without its tables."""


def levels(own: int, agreed: int = 0, **told: int) -> PeerLevels:
    return PeerLevels(own, lambda: agreed, {int(name[1:]): level for name, level in told.items()})


def test_a_level_is_agreed_once_every_member_has_told_one() -> None:
    assert proposal(levels(1, m2=1, m3=1), 0, [1, 2, 3], 1) == 1
    assert proposal(levels(1, m2=1), 0, [1, 2, 3], 1) is None, "one was not seen yet"
    assert proposal(levels(1, m2=1, m3=0), 0, [1, 2, 3], 1) is None, "one is old"
    assert proposal(levels(0, m2=1, m3=1), 0, [1, 2, 3], 1) is None, "the leader is old"
    assert proposal(levels(1, m2=1, m3=1), 1, [1, 2, 3], 1) is None, "nothing is new"
    assert proposal(levels(3, m2=2, m3=4), 1, [1, 2, 3], 1) == 2
    assert proposal(levels(1, m9=0), 0, [1], 1) == 1, "a stranger does not matter"


def test_who_does_not_know_what_is_agreed_is_refused_and_forgotten() -> None:
    seen = levels(2, 1, m5=1)
    assert seen.refusal(5, 2) is None and seen.told == {5: 2}
    said = seen.refusal(5, 0)
    assert said is not None and "feature level 1" in said and "level 0" in said
    assert seen.told == {}


def test_levels_follow_hello_and_welcome_and_level_0_is_the_former_bytes() -> None:
    former = Hello(1, 2, 3).encode()
    assert Hello(1, 2, 3, level=0).encode() == former and len(former) == 35
    told = Hello(1, 2, 3, level=7)
    assert told.encode() == former + b"\x07" and decode_hello(told.encode()) == told
    assert decode_hello(former).level == 0
    old = encode_welcome(told, cluster_id=1, member_id=3)
    new = encode_welcome(told, cluster_id=1, member_id=3, level=7)
    assert new == old + b"\x07" and (welcome_level(old), welcome_level(new)) == (0, 7)
    assert check_welcome(new, told) == check_welcome(old, told) == 1


def one_member() -> Machine:
    machine = Machine(MemoryBackend())
    members = [MemberInfo(1, "one", ("http://h:1",), (), False)]
    members.append(MemberInfo(2, "two", ("http://h:2",), (), True))
    machine.bootstrap(1, 1, b"conf", members)
    return machine


def do(machine: Machine, command: commands.Command) -> object:
    data = commands.encode_batch(1, 1, 1, [command])
    (applied,) = machine.apply([(machine.applied_index + 1, 2, data)])
    return applied.results[0]


def test_the_machine_keeps_the_greatest_level_and_who_waits_for_promotion() -> None:
    machine = one_member()
    with pytest.raises(ChangeRefused, match="needs feature level 1, and the cluster has agreed"):
        check_agreed(machine, AUTO_PROMOTION, "it")
    for level, expected in ((1, 1), (3, 3), (2, 3)):
        do(machine, commands.cluster_level(level))
        assert machine.level == expected
    check_agreed(machine, AUTO_PROMOTION, "it")
    for voter_or_nobody in (1, 9):
        assert isinstance(do(machine, commands.member_promotion(voter_or_nobody)), MemberNotFound)
    assert machine.promotions() == set()
    do(machine, commands.member_promotion(2))
    assert machine.promotions() == {2}
    machine.apply_config(machine.applied_index + 1, 2, b"conf", MemberChange(learners=()))
    assert machine.promotions() == set()


def test_the_leader_proposes_a_level_once_at_a_time() -> None:
    machine = one_member()
    asked: list[bytes] = []
    dones: list[Callable[[object], None]] = []

    def propose(command: bytes, done: Callable[[object], None]) -> None:
        asked.append(command)
        dones.append(done)

    agreement = Agreement(levels(1, m2=1), machine, 1)
    agreement.step(propose)
    agreement.step(propose)
    assert len(asked) == 1
    dones[0](None)
    agreement.step(propose)
    assert len(asked) == 2, "the first came to nothing"
    do(machine, commands.cluster_level(1))
    dones[1](None)
    agreement.step(propose)
    assert len(asked) == 2


def view(term: int, commit: int, match: int, *, active: bool = True) -> Status:
    peer = PeerStatus(match, match + 1, ProgressState.REPLICATE, False, 0, 0, active, 0)
    return Status(
        member_id=1, role=Role.LEADER, leader=1, term=term, vote=1, commit_index=commit,
        applied_index=commit, stable_index=commit, last_index=commit,
        conf=ConfState(voters=(1,), learners=(2,)), lead_transferee=0, uncommitted_bytes=0,
        pending_reads=0, peers={2: peer},
    )  # fmt: skip


def test_a_learner_has_caught_up_when_it_holds_what_was_committed_a_look_ago() -> None:
    look = Promotions()
    assert look.due(view(2, 100, 100), {2}) is None, "nothing to compare with yet"
    assert look.due(view(2, 200, 99), {2}) is None
    assert look.due(view(2, 300, 199), {2}) is None
    assert look.due(view(2, 400, 300), set()) is None, "nobody asked for it"
    assert look.due(view(2, 500, 400, active=False), {2}) is None
    assert look.due(view(3, 600, 600), {2}) is None, "another term, another view"
    assert look.due(view(3, 700, 600), {2}) == 2


def test_alone_is_reached_in_single_steps_from_any_membership() -> None:
    for conf in (
        ConfState(voters=(1, 2, 3)),
        ConfState(voters=(1, 2, 3), learners=(4, 5)),
        ConfState(voters=(2, 3), learners=(1, 4)),
        ConfState(voters=(1, 2), voters_outgoing=(1, 3), learners=(4,), auto_leave=True),
        ConfState(voters=(2, 3), voters_outgoing=(1, 2), learners_next=(1,), auto_leave=True),
    ):
        now = conf
        for change in alone(conf, 1):
            assert len(change.changes) <= 1
            now = changed(now, change)
        assert now == ConfState(voters=(1,))
    assert alone(ConfState(voters=(1,)), 1) == []


def srv(**settings: str) -> ServerConfig:
    return ServerConfig(
        name="mine",
        discovery_srv="example.test.",
        initial_advertise_peer_urls=("http://one.example.test:2380",),
        **settings,  # type: ignore[arg-type]
    )


def test_srv_records_found_one_cluster_whoever_reads_them() -> None:
    assert service(srv()) == "_etcd-server._tcp.example.test"
    assert service(srv(discovery_srv_name="x")) == "_etcd-server-x._tcp.example.test"
    urls = ("https://one.example.test:2380",)
    secure = ServerConfig(
        discovery_srv="example.test", discovery_srv_name="x", initial_advertise_peer_urls=urls,
        listen_peer_urls=urls, peer_auto_tls=True,
    )  # fmt: skip
    assert service(secure) == "_etcd-server-ssl-x._tcp.example.test"
    targets = [("one.example.test", 2380), ("two.example.test", 2380)]
    config = described(srv(), targets, lambda host: set())
    assert config.name == "one.example.test:2380"
    assert config.data_dir == "mine.raftkv", "the folder keeps the name that was given"
    assert config.founding_members == {
        "one.example.test:2380": ("http://one.example.test:2380",),
        "two.example.test:2380": ("http://two.example.test:2380",),
    }
    # By address, where the names differ.
    known = {"one.example.test": {"10.0.0.1"}, "a": {"10.0.0.1"}, "b": {"10.0.0.2"}}
    config = described(srv(), [("a", 2380), ("b", 2380)], lambda host: known[host])
    assert config.name == "a:2380"


def test_srv_records_that_found_nothing_are_told() -> None:
    for targets, words in (
        ([], "name no host"),
        ([("", 1)], "name no host"),
        ([("b", 2380)], "none of them is this member"),
        ([(f"h{number}", 1) for number in range(16)], "names 16 members"),
    ):
        with pytest.raises(ConfigError, match=words):
            described(srv(), targets, lambda host: {host})
    with pytest.raises(ConfigError, match="several of them is this member"):
        described(srv(), [("a", 2380), ("b", 2380)], lambda host: {"10.0.0.1"})
    with pytest.raises(ConfigError, match="both name the first members"):
        srv(initial_cluster="mine=http://one.example.test:2380")
    with pytest.raises(ConfigError, match="needs --discovery-srv"):
        ServerConfig(discovery_srv_name="x")


def former(folder: Path) -> ServerConfig:
    with tarfile.open(FORMER) as archive:
        archive.extractall(folder, filter="data")
    return ServerConfig(name="m1", data_dir=str(folder / "m1"))


def close(opened: Opened) -> None:
    opened.wal.close()
    opened.close(clean=True)


async def test_the_former_version_s_files_are_read_and_stay_its_own(tmp_path: Path) -> None:
    config = former(tmp_path)
    opened = await open_member(config)
    try:
        assert opened.machine.applied_index == 9 and opened.log.last_index() == 10
        (after,) = opened.log.entries(10, 11, 1 << 20)
        opened.machine.apply([(after.index, after.term, after.data)])
        machine = opened.machine
        assert machine.state_hash.hex() == "be63fddd96304c6a91224c38ccb801da"
        assert (machine.revision, machine.keys, machine.level) == (7, 3, 0)
        record = machine.get(b"greeting")
        assert record is not None and record.value == b"hello again"
        assert [lease.ttl_seconds for lease in machine.leases()] == [3600]
        assert opened.data.level == 0 and not opened.data.outdated(0)
        info = opened.begin_snapshot()()
        assert Path(opened.snapshots.path(info)).read_bytes()[8] == 1, "a former snapshot format"
    finally:
        close(opened)
    assert snapshot_status(tmp_path / "former.snapshot")["revision"] == 6


async def test_once_a_level_is_agreed_the_files_refuse_the_former_version(tmp_path: Path) -> None:
    config = former(tmp_path)
    opened = await open_member(config)
    (after,) = opened.log.entries(10, 11, 1 << 20)
    opened.machine.apply([(after.index, after.term, after.data)])
    do(opened.machine, commands.cluster_level(FEATURE_LEVEL))
    assert opened.data.outdated(opened.machine.level)
    opened.data.reformat(opened.machine.level)
    info = opened.begin_snapshot()()
    # The former program knows format 1 of either file, and says so of any other.
    assert Path(opened.snapshots.path(info)).read_bytes()[8] == 2
    assert '"format": 2' in (tmp_path / "m1" / "FORMAT").read_text()
    close(opened)
    with pytest.raises(FormatError, match="agreed on feature level 1, and this member knows level"):
        await open_member(ServerConfig(name="m1", data_dir=config.data_dir, feature_level=0))


async def test_alone_keeps_what_was_not_known_to_be_committed(tmp_path: Path) -> None:
    """The former version's directory has one entry that no commit index covers in its snapshot."""
    cluster = "a=http://127.0.0.1:7001,b=http://127.0.0.1:7002,c=http://127.0.0.1:7003"
    config = ServerConfig(name="a", data_dir=str(tmp_path / "a"), initial_cluster=cluster)
    opened = await open_member(config)
    data = commands.encode_batch(1, 1, 1, [commands.put(b"k", b"v")])
    opened.wal.write([Entry(2, 2, EntryKind.BATCH, data)], HardState(2, 0, 1), None)
    close(opened)
    for forced in (True, False):
        opened = await open_member(config)
        assert force_new_cluster(opened) is forced
        close(opened)
        opened = await open_member(config)
        hard, _ = opened.log.initial_state()
        assert (hard.commit_index, opened.log.last_index(), hard.term) == (4, 4, 3)
        close(opened)
