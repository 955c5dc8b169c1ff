"""Snapshot files without a running member: what is in one, and a new cluster out of one.

Restoring is founding with a state: every first member of the new cluster does it for itself, from
the same file and the same settings, and all arrive at equal tables, hashes and ids. The ids depend
on the file's digest too, so that the new cluster is never taken for the one that was saved.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from raftkv.checks import check
from raftkv.consensus.codec import encode_conf
from raftkv.consensus.types import SnapshotMeta
from raftkv.errors import ConfigError, CorruptionError
from raftkv.machine.machine import Machine
from raftkv.server.bootstrap import Founding, found
from raftkv.server.config import ServerConfig
from raftkv.server.opening import begin_log
from raftkv.storage.backend import Backend, LmdbBackend
from raftkv.storage.datadir import DataDir, format_of
from raftkv.storage.disk import Disk, RealDisk
from raftkv.storage.snapshots import (
    Progress,
    SnapshotInfo,
    SnapshotStore,
    inspect_snapshot,
    verify_backup,
)
from raftkv.storage.wal import Wal, WalIdentity

_STATUS_ALLOCATE_BYTES: Final = 1


def snapshot_status(path: str | Path) -> dict[str, Any]:
    """What the snapshot file at `path` holds, after all of it was verified.

    Needs as much free space as the file, beside it or in the folder for temporary files. Raises
    StorageError, CorruptionError or FormatError.
    """
    disk = RealDisk()
    path = os.fspath(path)
    info = inspect_snapshot(disk, path)
    verify_backup(disk, path, info, lambda done, total: None)
    beside = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(
        prefix=".raftkv-status-", dir=beside if os.access(beside, os.W_OK) else None
    ) as folder:
        backend = LmdbBackend(folder, disk=disk, allocate_bytes=_STATUS_ALLOCATE_BYTES)
        try:
            machine = machine_of(path, info, backend)
            return {
                "path": path,
                "size_bytes": info.size,
                "cluster_id": f"{info.cluster_id:016x}",
                "index": info.meta.index,
                "term": info.meta.term,
                "revision": machine.revision,
                "compact_revision": machine.compact_revision,
                "keys": machine.keys,
                "members": [
                    f"{member.name or format(member.member_id, '016x')}="
                    f"{','.join(member.peer_urls)}"
                    for member in machine.members()
                ],
                "state_hash": machine.state_hash.hex(),
                "digest": info.digest.hex(),
                "digest_verified": True,
            }
        finally:
            backend.close()


def snapshot_restore(path: str | Path, config: ServerConfig, *, progress: Progress) -> None:
    """Make the data directory of `config` out of the snapshot file at `path`, for a new cluster.

    Its members are those of `config.founding_members`; keys, revisions, leases and services are
    those of the file. The directory has to be missing or empty, and is empty again when this
    fails. Everything is durable when this returns; a directory whose making was cut short by the
    end of the process is refused at start.

    Raises ConfigError, LockedError, StorageError, CorruptionError or FormatError.
    """
    disk = RealDisk()
    path = os.fspath(path)
    refuse_used(disk, config)
    info = inspect_snapshot(disk, path)
    verify_backup(disk, path, info, progress)
    restore_verified(disk, path, info, config, info.digest.hex())


def refuse_used(disk: Disk, config: ServerConfig) -> None:
    """Raise ConfigError unless the directory to restore into is missing or empty."""
    target = str(config.data_directory)
    if disk.exists(target) and set(disk.list(target)) - {"lost+found"}:
        raise ConfigError(f"{target} is not empty; give a new directory", path=target)


def restore_verified(
    disk: Disk,
    path: str,
    info: SnapshotInfo,
    config: ServerConfig,
    restored: str,
    advance: Callable[[Machine], None] = lambda machine: None,
) -> None:
    """See `snapshot_restore`, for a file that was verified and a directory that may be used.

    `restored` names the state; the new cluster's ids depend on it. `advance` brings the state
    further than the file goes; what it raises is raised, and the directory is empty again.
    """
    target = str(config.data_directory)
    founding = found(config, restored)
    data = DataDir.open(disk, target)
    try:
        _fill(disk, data, config, path, info, founding, advance)
        # Last, because a directory without it is not taken for a member's.
        data.found(WalIdentity(founding.cluster_id, founding.member_id))
    except BaseException:
        _empty(disk, target)
        raise
    finally:
        data.close()


def _empty(disk: Disk, target: str) -> None:
    """Clear away what a restore that failed has made, all of it in a folder that was empty."""
    for name in set(disk.list(target)) - {"lost+found"}:
        path = os.path.join(target, name)
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            disk.remove(path)


def _fill(
    disk: Disk,
    data: DataDir,
    config: ServerConfig,
    path: str,
    info: SnapshotInfo,
    founding: Founding,
    advance: Callable[[Machine], None],
) -> None:
    data.begin_run()
    identity = WalIdentity(founding.cluster_id, founding.member_id)
    backend = LmdbBackend(data.tables_path, disk=disk)
    try:
        machine = machine_of(path, info, backend)
        advance(machine)
        machine.rehome(encode_conf(founding.conf), founding.member_infos)
        meta = SnapshotMeta(machine.applied_index, machine.applied_term, founding.conf)
        snapshots = SnapshotStore.open(disk, data.snapshots_path, cluster_id=identity.cluster_id)
        snapshots.format = format_of(machine.level)
        wal, _ = Wal.open(
            disk, data.wal_path, identity=identity, segment_bytes=config.wal_segment_bytes
        )
        try:
            begin_log(meta, backend, snapshots, wal)
        finally:
            wal.close()
        data.end_run(backend.sync)
    finally:
        backend.close()


def machine_of(path: str, info: SnapshotInfo, backend: Backend) -> Machine:
    """The state that a verified file holds, in the tables of `backend`."""
    backend.stage(path, info.image_offset, info.image_bytes)
    backend.install()
    machine = Machine(backend)
    if (machine.applied_index, machine.applied_term) != (info.meta.index, info.meta.term):
        raise CorruptionError(
            f"{path}: its tables stand at index {machine.applied_index}, but its header says "
            f"{info.meta.index}",
            path=path,
        )
    check(machine.conf, "a state that was saved knows its members", path=path)
    return machine
