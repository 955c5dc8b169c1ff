"""What a member saves by itself, and any moment of it made into a new cluster again."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from raftkv.consensus.codec import encode_change
from raftkv.consensus.types import ChangeKind, ConfigChange, Entry, EntryKind, HardState
from raftkv.errors import ConfigError, CorruptionError
from raftkv.machine import commands
from raftkv.machine.machine import Machine
from raftkv.server import point_in_time
from raftkv.server.backups import Backups, BackupSettings
from raftkv.server.config import ServerConfig
from raftkv.server.membership import change_context
from raftkv.server.opening import Opened, open_member
from raftkv.server.point_in_time import Moment, choose, look
from raftkv.server.store import StoreStats
from raftkv.simulation import SimDisk
from raftkv.storage.archive import SegmentName, decode_segment, encode_segment, list_segments
from raftkv.storage.backend import LmdbBackend
from raftkv.storage.bases import BaseName, list_bases
from raftkv.storage.disk import RealDisk
from raftkv.storage.snapshots import SnapshotInfo

FIRST_MS = 1_700_000_000_000
LATER = "a=http://127.0.0.1:7001,b=http://127.0.0.1:7002"


def quiet(done: int, total: int | None) -> None:
    pass


class Bench:
    """A member without consensus: entries go into its log and its machine at once."""

    def __init__(self, opened: Opened, folder: Path, **settings: int) -> None:
        self.opened = opened
        self.folder = folder
        self.cluster = folder / f"{opened.identity.cluster_id:016x}"
        self.stats = StoreStats()
        self.now = FIRST_MS / 1000
        self.backups = self.restarted(**settings)
        self.keys: dict[int, int] = {}
        """Number of keys by revision."""

    def restarted(
        self, *, keep: int = 2, bytes_max: int = 1 << 30, interval_ms: int = 60_000
    ) -> Backups:
        settings = BackupSettings(
            str(self.folder), interval_ms, keep, str(self.folder), 10_000, bytes_max
        )
        return Backups(settings, self.opened, self.stats, self.take_snapshot, wall=lambda: self.now)

    async def take_snapshot(self) -> SnapshotInfo:
        await self.backups.before_release()
        return self.opened.begin_snapshot()()

    def append(self, kind: EntryKind, data: bytes, term: int = 3) -> int:
        index = self.opened.machine.applied_index + 1
        entry = Entry(index, term, kind, data)
        receipt = self.opened.wal.write([entry], HardState(term, 0, index), None)
        self.opened.wal.sync()
        self.opened.log.persisted(receipt)
        return index

    def batch(self, *made: commands.Command, term: int = 3) -> None:
        data = commands.encode_batch(1, 1, 1, made)
        data = commands.stamp_batch(data, int(self.now * 1000))
        index = self.append(EntryKind.BATCH, data, term)
        self.opened.machine.apply([(index, term, data)])

    def put(self, *names: str) -> None:
        """One key each, in one batch, at the present time."""
        machine = self.opened.machine
        for number, _ in enumerate(names):
            self.keys[machine.revision + number + 1] = machine.keys + number + 1
        self.batch(*(commands.put(name.encode(), name.encode()) for name in names))

    def add_learner(self, member_id: int) -> None:
        machine = self.opened.machine
        attributes = [member_id, "new", ["http://127.0.0.1:7999"], [], True]
        change = ConfigChange(
            ((ChangeKind.ADD_LEARNER, member_id),), change_context(1, 1, 9, attributes)
        )
        data = encode_change(change)
        index = self.append(EntryKind.CONFIG, data)
        entry = Entry(index, 3, EntryKind.CONFIG, data)
        point_in_time._apply_config(machine, entry)

    def restore(self, to: Path, moment: Moment, name: str = "a") -> Machine:
        cluster_id, holdings = choose(look([self.folder]), None)
        config = ServerConfig(name=name, data_dir=str(to), initial_cluster=LATER)
        point_in_time.restore(cluster_id, holdings, config, moment, progress=quiet)
        return to_be_read(config)


def to_be_read(config: ServerConfig) -> Machine:
    """The machine of a directory that nobody uses."""
    return Machine(LmdbBackend(str(config.data_directory / "tables"), disk=RealDisk()))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    opened = await open_member(ServerConfig(data_dir=str(tmp_path / "member")))
    made = Bench(opened, tmp_path / "saved")
    yield made
    await made.backups.close()
    opened.wal.close()
    opened.close(clean=True)


async def history(bench: Bench) -> None:
    """A base at revision 3, then revisions 4 to 11 and a membership change, all archived."""
    bench.put("a", "b")
    await bench.backups.step()
    for number in range(2):
        bench.now += 10
        bench.put(f"c{number}", f"d{number}", f"e{number}")
        bench.batch(commands.put(b"no", b"no", lease=99), commands.put(b"a", b"%d" % number))
        bench.keys[bench.opened.machine.revision] = bench.opened.machine.keys
        if not number:
            bench.add_learner(77)
        await bench.backups.step()


async def test_every_revision_can_be_had_again(bench: Bench, tmp_path: Path) -> None:
    await history(bench)
    last = bench.opened.machine.revision
    assert last == 11 and bench.stats.backups_made == 1
    for revision in range(3, last + 1):
        machine = bench.restore(tmp_path / f"at-{revision}", Moment(revision=revision))
        assert (machine.revision, machine.keys) == (revision, bench.keys[revision])
        assert {member.name for member in machine.members()} == {"a", "b"}
    with pytest.raises(ConfigError, match=r"end at revision 11, 2023-11-14T22:13:40.*12 is later"):
        bench.restore(tmp_path / "late", Moment(revision=12))
    with pytest.raises(ConfigError, match="every base is later than revision 2"):
        bench.restore(tmp_path / "early", Moment(revision=2))
    assert not list((tmp_path / "late").iterdir()) and not list((tmp_path / "early").iterdir())


async def test_every_time_can_be_had_again_and_members_agree(bench: Bench, tmp_path: Path) -> None:
    await history(bench)
    for seconds, revision in ((0, 3), (9, 3), (10, 7), (19, 7), (20, 11), (3600, 11)):
        moment = Moment(time_ms=FIRST_MS + seconds * 1000)
        machines = [
            bench.restore(tmp_path / f"{name}-{seconds}", moment, name) for name in ("a", "b")
        ]
        assert [machine.revision for machine in machines] == [revision, revision]
        assert machines[0].state_hash == machines[1].state_hash
    whole = bench.restore(tmp_path / "whole", Moment())
    assert (whole.revision, whole.keys) == (11, bench.opened.machine.keys)


async def test_a_restored_moment_is_a_member_that_opens(bench: Bench, tmp_path: Path) -> None:
    await history(bench)
    bench.restore(tmp_path / "new", Moment(revision=5))
    config = ServerConfig(name="a", data_dir=str(tmp_path / "new"), initial_cluster=LATER)
    opened = await open_member(config)
    try:
        assert opened.machine.revision == 5
        assert opened.identity.cluster_id != bench.opened.identity.cluster_id
    finally:
        opened.wal.close()
        opened.close(clean=True)
    cluster_id, holdings = choose(look([bench.folder]), None)
    with pytest.raises(ConfigError, match="is not empty; give a new directory"):
        point_in_time.restore(cluster_id, holdings, config, Moment(), progress=quiet)


async def test_a_damaged_archive_is_told_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    await history(bench)
    victim = sorted(bench.cluster.glob("log-*"))[-1]
    whole = victim.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        victim.write_bytes(damaged)
        with pytest.raises(CorruptionError if place != 8 else Exception, match=victim.name):
            bench.restore(tmp_path / "out", Moment())
        assert not list((tmp_path / "out").iterdir())
    cluster_id, holdings = choose(look([bench.folder]), None)
    assert [victim.name in fault for fault in point_in_time.verify(cluster_id, holdings)] == [True]
    victim.write_bytes(whole)
    assert point_in_time.verify(cluster_id, holdings) == []


async def test_a_hole_in_the_archive_is_named(bench: Bench, tmp_path: Path) -> None:
    await history(bench)
    bench.now += 10
    bench.put("z")
    await bench.backups.step()
    pieces = [SegmentName.parse(path.name) for path in sorted(bench.cluster.glob("log-*"))]
    assert len(pieces) == 3 and pieces[1] is not None
    (bench.cluster / pieces[1].text).unlink()
    first, last = pieces[1].first_index, pieces[1].last_index
    with pytest.raises(ConfigError, match=f"entries {first} to {last} are missing"):
        bench.restore(tmp_path / "out", Moment())
    assert not list((tmp_path / "out").iterdir())
    cluster_id, holdings = choose(look([bench.folder]), None)
    (fault,) = point_in_time.verify(cluster_id, holdings)
    assert f"entries {first} to {last} are in no archived file" in fault


async def test_a_state_that_comes_out_differently_is_told(bench: Bench, tmp_path: Path) -> None:
    """What no checksum of a file can find: a base of one history under the log of another."""
    await history(bench)
    piece = sorted(bench.cluster.glob("log-*"))[-1]
    segment = decode_segment(piece.read_bytes(), "f")
    piece.write_bytes(encode_segment(replace(segment, state_hash=b"x" * 16)))
    with pytest.raises(CorruptionError, match="another state than the one that was archived"):
        bench.restore(tmp_path / "out", Moment())
    piece.write_bytes(encode_segment(replace(segment, previous_term=2)))
    with pytest.raises(CorruptionError, match="not backups of one history"):
        bench.restore(tmp_path / "out", Moment())
    assert not list((tmp_path / "out").iterdir())


async def test_backups_come_at_their_time_and_the_oldest_go(bench: Bench) -> None:
    disk = RealDisk()
    for number in range(4):
        bench.put(f"k{number}")
        await bench.backups.step()
        await bench.backups.step()
        bench.now += 60
    assert bench.stats.backups_made == 4
    kept = list_bases(disk, str(bench.cluster))
    assert [base.made_ms - FIRST_MS for base in kept] == [120_000, 180_000]
    # What was archived before the oldest base has gone with the base before it.
    (first, *_) = [SegmentName.parse(path.name) for path in sorted(bench.cluster.glob("log-*"))]
    assert first is not None and first.first_index == kept[0].index + 1
    assert (
        bench.backups.status()["backup_last_bytes"] == (bench.cluster / kept[1].text).stat().st_size
    )
    assert bench.backups.status()["backup_last_success_seconds"] == FIRST_MS // 1000 + 180


async def test_after_a_restart_neither_is_done_again(bench: Bench) -> None:
    await history(bench)
    half = bench.cluster / (BaseName(9, FIRST_MS, bench.opened.identity.member_id).text + ".tmp")
    half.write_bytes(b"half")
    before = sorted(path.name for path in bench.cluster.iterdir() if path != half)
    again = bench.restarted()
    await again.step()
    assert sorted(path.name for path in bench.cluster.iterdir()) == before
    bench.now += 60
    bench.put("z")
    await again.step()
    assert bench.stats.backups_made == 2
    await again.close()


async def test_a_backup_that_cannot_be_made_is_counted_and_tried_again(bench: Bench) -> None:
    bench.folder.write_text("a file where the folder should be")
    bench.put("a")
    await bench.backups.step()
    await bench.backups.step()
    assert (bench.stats.backup_failures, bench.stats.archive_failures) == (1, 1)
    bench.folder.unlink()
    await bench.backups.step()
    assert bench.stats.backups_made == 0
    bench.now += 60
    await bench.backups.step()
    assert (bench.stats.backups_made, bench.backups.status()["archived_index"]) == (1, 2)


async def test_a_gap_is_counted_and_answered_with_a_base(bench: Bench) -> None:
    bench.put("a")
    await bench.backups.step()
    bench.put("b")
    bench.put("c")
    bench.opened.log.compact(3)
    bench.now += 10
    await bench.backups.step()
    assert (bench.stats.archive_gaps, bench.stats.backups_made) == (1, 2)
    assert bench.backups.status()["archived_index"] == 4


async def test_the_archive_keeps_its_bound(bench: Bench, tmp_path: Path) -> None:
    await bench.backups.close()
    backups = bench.backups = bench.restarted(bytes_max=1_500)
    for _ in range(8):
        bench.put("k" * 200)
        bench.now += 10
        await backups.step()
    sizes = [path.stat().st_size for path in bench.cluster.glob("log-*")]
    # One of the eight went with the base that made it needless.
    assert len(sizes) == 2 and bench.stats.archive_files_dropped == 5


@pytest.mark.parametrize("keep", [1, 3])
async def test_whatever_is_pruned_the_newest_state_and_the_oldest_base_can_be_had(
    bench: Bench, tmp_path: Path, keep: int
) -> None:
    """By the number of bases and, with an hour between them, by the bytes of the archive."""
    await bench.backups.close()
    bench.backups = bench.restarted(keep=keep, bytes_max=6_000, interval_ms=3_600_000)
    for number in range(60):
        bench.put("k" * 200, f"k{number}")
        bench.now += 10
        await bench.backups.step()
        if number % 10 == 9:
            machine = bench.restore(tmp_path / f"new-{number}", Moment())
            assert machine.revision == bench.opened.machine.revision
            assert machine.range(b"", b"").records == bench.opened.machine.range(b"", b"").records
    bases = list_bases(RealDisk(), str(bench.cluster))
    assert len(bases) == keep and bench.stats.backups_made > 3
    if keep == 1:
        # Then a base frees the archive before it is full.
        assert bench.stats.archive_files_dropped == 0
    assert sum(path.stat().st_size for path in bench.cluster.glob("log-*")) <= 6_000


async def test_what_is_archived_outlives_a_power_cut(bench: Bench) -> None:
    """The files were durable in a folder that was not."""
    bench.put("a")
    for seed in range(20):
        disk = SimDisk(Random(seed))
        settings = BackupSettings("", 0, 0, "/far/away", 10_000, 1 << 30)
        backups = Backups(settings, bench.opened, bench.stats, bench.take_snapshot, disk=disk)
        await backups.step()
        await backups.close()
        disk.power_cut()
        assert list_segments(disk, f"/far/away/{bench.cluster.name}")
