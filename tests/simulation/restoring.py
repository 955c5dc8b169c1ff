"""What was archived during a seed is restored to some of its revisions, and compared with it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from raftkv.checks import violated
from raftkv.errors import ConfigError, CorruptionError
from raftkv.machine.machine import Machine
from raftkv.machine.records import USER_KEYS
from raftkv.server.offline import machine_of
from raftkv.server.point_in_time import Holdings, Moment, Passed, Replay, look_into
from raftkv.simulation import SimCluster, SimDisk
from raftkv.storage.disk import join, read_file
from raftkv.storage.memory_backend import MemoryBackend
from raftkv.storage.snapshots import inspect_snapshot, verify_backup
from tests.linearizability.history import KeyRecord
from tests.linearizability.translation import key_record

RESTORES: Final = 3
_FOLDER: Final = "/all"
_FILE_BYTES_MAX: Final = 1 << 30


def check_restores(cluster: SimCluster, seed: int) -> None:
    """Restore to a few revisions. Raises InvariantViolation when a state is not what it was."""
    claimed = sorted(span for member in cluster.members.values() for span in member.claimed)
    index_of = cluster.promises.index_of
    if not claimed or not index_of:
        return
    cluster_id, disk, holdings = _gathered(cluster)
    chance = random.Random(f"restore {seed}")
    revisions = chance.sample(sorted(index_of), min(RESTORES, len(index_of)))
    revisions += cluster.promises.telling[-RESTORES:]
    for revision in revisions:
        due = _reaches(holdings, claimed, index_of[revision])
        try:
            machine = _restored(disk, cluster_id, holdings, revision)
        except (ConfigError, CorruptionError) as error:
            if due:
                violated(
                    "what was archived cannot be restored", revision=revision, error=str(error)
                )
            cluster.promises.seen["restore refused"] += 1
            continue
        _compare(cluster, machine, revision)
        cluster.promises.seen["restore"] += 1


def _gathered(cluster: SimCluster) -> tuple[int, SimDisk, Holdings]:
    """All archives in one folder, as an operator brings them together."""
    disk = SimDisk(random.Random(0))
    cluster_id = 0
    folder = ""
    for member in cluster.members.values():
        if not member.claimed:
            continue
        source = member.backups.folder
        cluster_id = member.opened.identity.cluster_id
        folder = join(_FOLDER, f"{cluster_id:016x}")
        disk.make_directory(folder)
        for name in member.disk.list(source):
            data = read_file(member.disk, join(source, name), _FILE_BYTES_MAX)
            file = disk.open(join(folder, name), write=True, create=True)
            file.write(0, data)
            file.close()
    found: dict[int, Holdings] = {}
    look_into(disk, folder, found)
    holdings = found.get(cluster_id, Holdings())
    holdings.bases.sort()
    return cluster_id, disk, holdings


def _reaches(holdings: Holdings, claimed: Iterable[tuple[int, int]], index: int) -> bool:
    """Whether what the members took for archived goes from some base up to an entry."""
    bases = [base for base, _ in holdings.bases if base < index]
    if not bases:
        return False
    reach = max(bases)
    for first, last in claimed:
        if first <= reach + 1:
            reach = max(reach, last)
    return reach >= index


def _restored(disk: SimDisk, cluster_id: int, holdings: Holdings, revision: int) -> Machine:
    for _, path in reversed(holdings.bases):
        info = inspect_snapshot(disk, path)
        verify_backup(disk, path, info, lambda done, total: None)
        machine = machine_of(path, info, MemoryBackend(disk=disk))
        try:
            Replay(disk, cluster_id, holdings, Moment(revision=revision)).advance(machine)
        except Passed:
            continue
        return machine
    raise ConfigError("every base is later")


def _compare(cluster: SimCluster, machine: Machine, revision: int) -> None:
    expected: dict[bytes, KeyRecord] = {}
    for _, event in cluster.events:
        if event.revision > revision:
            break
        if event.keyspace != USER_KEYS:
            continue
        if event.deleted:
            expected.pop(event.key, None)
        else:
            expected[event.key] = key_record(event.record)
    found = {record.key: key_record(record) for record in machine.range(b"", b"").records}
    if machine.revision != revision or found != expected:
        violated(
            "a restored state is not what it was at its revision",
            revision=revision,
            restored_revision=machine.revision,
            wrong=sorted(
                key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
            ),
        )
