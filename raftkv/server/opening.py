"""From a data directory to a member's parts: founding, joining, and recovery after any end.

Write-ahead log and snapshots are the truth; the tables are a cache of them. So recovery asks one
question: can the tables be trusted, and do they reach up to where the log begins? If not they are
made anew from the newest snapshot that the log continues.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from raftkv.consensus.codec import decode_conf, encode_conf
from raftkv.consensus.types import ConfState, HardState, SnapshotMeta
from raftkv.errors import ConfigError, CorruptionError
from raftkv.machine.machine import Machine
from raftkv.server.bootstrap import Founding, found
from raftkv.server.config import ServerConfig
from raftkv.server.introduction import ask_introduction
from raftkv.server.levels import check_known
from raftkv.server.tls.settings import peer_tls
from raftkv.storage.backend import Backend, LmdbBackend
from raftkv.storage.datadir import DataDir, format_of
from raftkv.storage.disk import Disk, RealDisk
from raftkv.storage.snapshots import SnapshotInfo, SnapshotStore
from raftkv.storage.wal import Recovered, Spawn, Wal, WalIdentity, in_thread
from raftkv.storage.wallog import WalLog

log = logging.getLogger(__name__)

SNAPSHOTS_KEPT = 2
"""The newest, and the one before, which a slow follower may still be fetching."""

OpenTables = Callable[[str, Disk], Backend]
"""Opens the tables in a folder; images of them are written and read through the disk."""


def lmdb_tables(path: str, disk: Disk) -> Backend:
    """The tables of a real member."""
    return LmdbBackend(path, disk=disk)


@dataclass(slots=True)
class Opened:
    """The files and tables of one member, open and in agreement with each other."""

    data: DataDir
    snapshots: SnapshotStore
    wal: Wal
    log: WalLog
    backend: Backend
    machine: Machine
    identity: WalIdentity
    introduced: dict[int, tuple[str, ...]]
    """Peer URLs of the members that a newcomer was told of: whom to answer while its own tables
    say nothing about members."""

    def begin_snapshot(self) -> Callable[[], SnapshotInfo]:
        """Pin the state of this moment; the result makes the snapshot file, in a thread."""
        machine = self.machine
        meta = SnapshotMeta(machine.applied_index, machine.applied_term, conf_of(machine))
        latest = self.snapshots.latest()
        if latest is not None and latest.meta == meta:
            return lambda: latest
        self.snapshots.format = format_of(machine.level)
        image = self.backend.pin()

        def make() -> SnapshotInfo:
            writer = self.snapshots.begin(meta)
            try:
                image.copy_to(writer.path, writer.offset)
                info = writer.finish()
            except BaseException:
                writer.abandon()
                raise
            self.snapshots.remove_older(meta.index, keep=SNAPSHOTS_KEPT)
            return info

        return make

    def stage_snapshot(self, meta: SnapshotMeta) -> None:
        """Verify a received snapshot and make it ready for `backend.install`; in a thread."""
        info = next((one for one in self.snapshots.all() if one.meta.index == meta.index), None)
        if info is None:
            raise CorruptionError(f"the snapshot at index {meta.index} is gone")
        self.snapshots.verify(info)
        self.backend.stage(self.snapshots.path(info), info.image_offset, info.image_bytes)

    def close(self, *, clean: bool) -> None:
        """Close all but the log, whose thread has closed it. `clean`: the state can be trusted."""
        if clean:
            self.data.end_run(self.backend.sync)
        self.backend.close()
        self.log.close()
        self.snapshots.close()
        self.data.close()


def conf_of(machine: Machine) -> ConfState:
    """The membership as of the machine's applied index."""
    return decode_conf(machine.conf) if machine.conf else ConfState()


async def open_member(config: ServerConfig, disk: Disk | None = None) -> Opened:
    """Open or make the member that `config` describes.

    Raises ConfigError, LockedError, FormatError, CorruptionError or StorageError, each with what
    to do. A joining member asks the others who it is, so this may take seconds.
    """
    disk = disk or RealDisk()
    data = DataDir.open(disk, str(config.data_directory))
    try:
        for note in data.notes:
            log.warning(note)
        check_known(data.level, config.feature_level, data.path)
        if data.identity is None:
            data.found(await _identity(config))
        opened = _files(config, disk, data)
        check_known(opened.machine.level, config.feature_level, data.path)
        _check_owner(config, opened.machine, opened.identity, data.path)
        if not opened.machine.members():
            _, members = await ask_introduction(_others(config), tls=peer_tls(config))
            opened.introduced = {member_id: tuple(urls) for member_id, _, urls, _ in members}
        return opened
    except BaseException:
        data.close()
        raise


def _files(config: ServerConfig, disk: Disk, data: DataDir) -> Opened:
    return open_files(
        disk,
        data,
        founding=found(config),
        found_new=config.initial_cluster_state == "new",
        segment_bytes=config.wal_segment_bytes,
    )


async def _identity(config: ServerConfig) -> WalIdentity:
    """Who a member without data is."""
    founding = found(config)
    if config.initial_cluster_state == "new":
        await _refuse_second_founding(config, founding)
        return WalIdentity(founding.cluster_id, founding.member_id)
    cluster_id, members = await ask_introduction(_others(config), tls=peer_tls(config))
    own_urls = set(config.advertised_peer_urls)
    for member_id, _, peer_urls, _ in members:
        if own_urls & set(peer_urls):
            return WalIdentity(cluster_id, member_id)
    raise ConfigError(
        f"the cluster has no member with the peer URL {', '.join(sorted(own_urls))}; add it first: "
        f"raftkv member add {' '.join(sorted(own_urls))} --name {config.name}"
    )


async def _refuse_second_founding(config: ServerConfig, founding: Founding) -> None:
    """A member that lost its data must not come back as if it had never voted.

    Its votes and its share of acknowledged writes are forgotten, so it would count twice. Members
    that do not answer are founding, too, or down; then there is nobody to know better.
    """
    if len(founding.members) == 1:
        return
    try:
        cluster_id, members = await ask_introduction(
            _others(config), seconds=0, tls=peer_tls(config)
        )
    except ConfigError:
        return
    for member_id, _, _, started in members:
        if cluster_id == founding.cluster_id and member_id == founding.member_id and started:
            raise ConfigError(
                f"member {config.name!r} of this running cluster has lost its data directory and "
                "must not vote again as if it were new; remove it with `raftkv member remove "
                f"{member_id:016x}`, add it again, and start it with "
                "--initial-cluster-state existing"
            )


def _others(config: ServerConfig) -> list[tuple[str, int]]:
    """Peer addresses of the other members, as configured."""
    others = [
        address
        for name, urls in config.founding_members.items()
        if name != config.name
        for address in config.addresses_of(urls)
    ]
    if not others:
        raise ConfigError(
            "a member that joins a cluster needs the peer URLs of its members in --initial-cluster"
        )
    return others


def open_files(
    disk: Disk,
    data: DataDir,
    *,
    founding: Founding,
    found_new: bool,
    segment_bytes: int,
    tables: OpenTables = lmdb_tables,
    spawn: Spawn | None = in_thread,
) -> Opened:
    """Open, found or recover the files of the member whose directory `data` is; nobody is asked.

    `data` has its identity already. A member without any data founds the cluster of `founding` if
    it is one of its first members and `found_new` is set; otherwise it waits to be told. All that
    the result holds is durable. `spawn` prepares segments of the log ahead of need; None: they are
    made on the spot.

    Raises FormatError, CorruptionError or StorageError, each with what to do.
    """
    identity = data.identity
    if identity is None:
        raise CorruptionError(f"{data.path}: no identity was written")
    trusted = data.tables_trusted()
    data.begin_run()
    snapshots = SnapshotStore.open(disk, data.snapshots_path, cluster_id=identity.cluster_id)
    backend = tables(data.tables_path, disk)

    def log_of(*, create: bool) -> tuple[Wal, Recovered]:
        return Wal.open(
            disk,
            data.wal_path,
            identity=identity,
            segment_bytes=segment_bytes,
            spawn=spawn,
            create=create,
        )

    wal, recovered = log_of(create=snapshots.latest() is None)
    blank = recovered.snapshot.index == 0 and len(recovered.index) == 0
    founder = WalIdentity(founding.cluster_id, founding.member_id) == identity
    if blank and founder and found_new:
        _found_cluster(founding, backend, snapshots, wal, data.path)
        wal.close()
        wal, recovered = log_of(create=False)
    for note in (*snapshots.notes, *recovered.notes):
        log.warning(note)
    machine = _machine(backend, snapshots, recovered, data.path, trusted=trusted)
    wal_log = WalLog(disk, data.wal_path, recovered, conf=conf_of(machine))
    latest = snapshots.latest()
    if latest is not None and latest.meta.index <= wal_log.last_index():
        wal_log.snapshot_ready(latest.meta)
    log.info(
        "recovered",
        extra={
            "applied": machine.applied_index,
            "log": f"{wal_log.first_index()}..{wal_log.last_index()}",
            "revision": machine.revision,
        },
    )
    return Opened(data, snapshots, wal, wal_log, backend, machine, identity, {})


def _check_owner(config: ServerConfig, machine: Machine, identity: WalIdentity, path: str) -> None:
    """Refuse settings that describe another member of the cluster than the one whose data it is.

    A name or an address of nobody is a change of one's own; only those of another are a mistake.
    """
    mine = set(config.advertised_peer_urls)
    for info in machine.members():
        others = info.member_id != identity.member_id
        if others and (info.name == config.name or mine.intersection(info.peer_urls)):
            raise ConfigError(
                f"{path} belongs to member {identity.member_id:016x}, but the settings (--name "
                f"{config.name}, peer URL {', '.join(sorted(mine))}) are those of member "
                f"{info.member_id:016x} of its cluster; use the right data directory",
                path=path,
            )


def _found_cluster(
    founding: Founding, backend: Backend, snapshots: SnapshotStore, wal: Wal, path: str
) -> None:
    """Write the state that a new cluster's log begins with. May be repeated after a crash."""
    machine = Machine(backend)
    meta = founding.meta
    if machine.applied_index > meta.index:
        raise CorruptionError(
            f"{path}: this member took part up to index {machine.applied_index}, but its log and "
            "its snapshots are gone; restore a backup, or remove this member, wipe its data "
            "directory and add it again",
            path=path,
        )
    if machine.applied_index == 0:
        machine.bootstrap(
            meta.index,
            meta.term,
            encode_conf(meta.conf),
            founding.member_infos,
        )
    begin_log(meta, backend, snapshots, wal)


def begin_log(meta: SnapshotMeta, backend: Backend, snapshots: SnapshotStore, wal: Wal) -> None:
    """Make what the tables hold, which is the state as of `meta`, the beginning of an empty log.

    Durable when it returns. The log is to be opened again before it is used.
    """
    writer = snapshots.begin(meta)
    backend.pin().copy_to(writer.path, writer.offset)
    writer.finish()
    wal.write((), HardState(meta.term, 0, meta.index), meta)
    wal.sync()


def _machine(
    backend: Backend,
    snapshots: SnapshotStore,
    recovered: Recovered,
    path: str,
    *,
    trusted: bool,
) -> Machine:
    """The machine at some index that the log covers, from the tables or from a snapshot."""
    machine = Machine(backend)
    base, last = recovered.index.base_index, recovered.index.last_index
    damage = ""
    if trusted and base <= machine.applied_index <= last:
        return machine
    for info in reversed(snapshots.all()):
        if not base <= info.meta.index <= last:
            continue
        try:
            snapshots.verify(info)
        except CorruptionError as error:
            log.warning("%s", error)
            damage = f" ({error})"
            continue
        log.info("rebuilding the tables from a snapshot", extra={"index": info.meta.index})
        backend.stage(snapshots.path(info), info.image_offset, info.image_bytes)
        backend.install()
        machine.reload()
        return machine
    if base == 0 and machine.applied_index == 0:
        return machine
    raise CorruptionError(
        f"{path}: the log begins after index {base}, and no snapshot that reaches it is readable"
        f"{damage}; restore a backup, or remove this member, wipe its data directory and add it "
        "again",
        path=path,
    )
