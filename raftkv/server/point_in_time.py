"""Backup folders without a running member: what they hold, whether it is whole, and any moment.

A moment is a base, which is a snapshot, and what was archived of the log after it, replayed by the
machine that applied it the first time. Where the archive says which state that led to, the hash is
compared, so a restore proves itself.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from raftkv.consensus.codec import decode_change, decode_conf, encode_conf
from raftkv.consensus.confchange import ChangeRejected, changed
from raftkv.consensus.types import Entry, EntryKind
from raftkv.errors import ConfigError, CorruptionError, FormatError, StorageError
from raftkv.machine.commands import decode_batch
from raftkv.machine.machine import Machine
from raftkv.server.config import ServerConfig
from raftkv.server.membership import member_change
from raftkv.server.offline import refuse_used, restore_verified
from raftkv.storage.archive import (
    HASH_UNKNOWN,
    Segment,
    SegmentName,
    chain,
    list_segments,
    read_segment,
)
from raftkv.storage.bases import BaseName
from raftkv.storage.disk import Disk, RealDisk, join
from raftkv.storage.snapshots import SUFFIX, Progress, inspect_snapshot, verify_backup

_CLUSTER_FOLDER: Final = re.compile(r"[0-9a-f]{16}")
_SLICE_ENTRIES: Final = 256


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a restore ends; with neither, at the end of what is archived."""

    revision: int | None = None
    time_ms: int | None = None
    """Wall clock of the leaders that wrote, milliseconds since 1970; up to it and with it."""

    def __str__(self) -> str:
        if self.revision is not None:
            return f"revision {self.revision}"
        return time_text(self.time_ms) if self.time_ms is not None else "the end"

    def passed(self, machine: Machine) -> bool:
        """Whether a state is later than this."""
        if self.revision is not None:
            return machine.revision > self.revision
        return self.time_ms is not None and machine.clock_ms > self.time_ms

    def covers(self, segment: Segment) -> bool:
        """Whether all of a segment is certainly at or before this."""
        if self.revision is not None:
            return 0 < segment.revision <= self.revision
        return self.time_ms is None or 0 < segment.clock_ms <= self.time_ms


@dataclass(slots=True)
class Holdings:
    """What is there of one cluster."""

    bases: list[tuple[int, str]] = field(default_factory=list)
    """(index, path), the oldest state first."""
    segments: dict[SegmentName, str] = field(default_factory=dict)
    """Archived pieces of the log, and the folder of each."""


class Passed(Exception):
    """The base is later than the moment asked for."""


def time_text(time_ms: int) -> str:
    """A wall clock as text, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")


def look(folders: Sequence[str | Path], disk: Disk | None = None) -> dict[int, Holdings]:
    """What the folders, and those in them that are named as a cluster, hold of each cluster.

    Raises ConfigError for a folder that is not there, StorageError, or what a file's header is
    found guilty of.
    """
    disk = disk or RealDisk()
    found: dict[int, Holdings] = {}
    for given in [os.fspath(folder) for folder in folders]:
        if not os.path.isdir(given):
            raise ConfigError(f"{given} is not a folder", path=given)
        inside = [name for name in disk.list(given) if _CLUSTER_FOLDER.fullmatch(name)]
        for folder in (given, *(join(given, name) for name in inside)):
            look_into(disk, folder, found)
    for holdings in found.values():
        holdings.bases.sort()
    return found


def look_into(disk: Disk, folder: str, found: dict[int, Holdings]) -> None:
    """Add what one folder holds to what was found. Raises as `look`."""
    named = os.path.basename(os.path.abspath(folder))
    cluster = int(named, 16) if _CLUSTER_FOLDER.fullmatch(named) else None
    for name in disk.list(folder):
        path = join(folder, name)
        if name.endswith(SUFFIX):
            known = BaseName.parse(name)
            if known is None or cluster is None:
                info = inspect_snapshot(disk, path)
                found.setdefault(info.cluster_id, Holdings()).bases.append((info.meta.index, path))
            else:
                found.setdefault(cluster, Holdings()).bases.append((known.index, path))
    for segment in list_segments(disk, folder):
        if cluster is None:
            raise ConfigError(
                f"{folder} holds archived log, but is not named as its cluster; give the folder "
                "that --archive-dir named",
                path=folder,
            )
        found.setdefault(cluster, Holdings()).segments[segment] = folder


def choose(found: dict[int, Holdings], cluster_id: int | None) -> tuple[int, Holdings]:
    """The one cluster of which there is anything, or the one named. Raises ConfigError."""
    if cluster_id is None:
        restorable = [one for one in found if found[one].bases] or list(found)
        if len(restorable) > 1:
            names = ", ".join(f"{one:016x}" for one in sorted(restorable))
            raise ConfigError(f"there are backups of several clusters; give --cluster: {names}")
        if not restorable:
            raise ConfigError("there is no backup in these folders")
        cluster_id = restorable[0]
    if cluster_id not in found:
        raise ConfigError(f"there is no backup of cluster {cluster_id:016x} in these folders")
    return cluster_id, found[cluster_id]


def stretches(names: Iterable[SegmentName]) -> list[tuple[int, int, int]]:
    """What is archived without a gap, as (first, last, number of files)."""
    found: list[tuple[int, int, int]] = []
    for name in sorted(names, key=lambda one: one.first_index):
        if found and name.first_index <= found[-1][1] + 1:
            first, last, files = found[-1]
            found[-1] = (first, max(last, name.last_index), files + 1)
        else:
            found.append((name.first_index, name.last_index, 1))
    return found


def gaps(names: Iterable[SegmentName]) -> list[tuple[int, int]]:
    """Entries that are missing between archived pieces, as (first, last)."""
    found = stretches(names)
    return [(one[1] + 1, two[0] - 1) for one, two in pairwise(found)]


def verify(
    cluster_id: int,
    holdings: Holdings,
    *,
    progress: Callable[[str], None] = lambda path: None,
    disk: Disk | None = None,
) -> list[str]:
    """Read all that is there; what is wrong with it, one sentence for each fault."""
    disk = disk or RealDisk()
    faults: list[str] = []
    for index, path in holdings.bases:
        progress(path)
        try:
            info = inspect_snapshot(disk, path)
            verify_backup(disk, path, info, lambda done, total: None)
            if (info.cluster_id, info.meta.index) != (cluster_id, index):
                raise CorruptionError(f"{path}: not what its name and folder say", path=path)
        except (StorageError, CorruptionError, FormatError) as error:
            faults.append(str(error))
    for name, folder in sorted(holdings.segments.items(), key=lambda one: one[0].first_index):
        progress(join(folder, name.text))
        try:
            read_segment(disk, folder, name, cluster_id)
        except (StorageError, CorruptionError, FormatError) as error:
            faults.append(str(error))
    for first, last in gaps(holdings.segments):
        faults.append(
            f"entries {first} to {last} are in no archived file: a restore to a moment after them "
            "needs a base that was made after them"
        )
    if not holdings.bases:
        faults.append("there is no base: what is archived cannot be restored without one")
    return faults


def restore(
    cluster_id: int,
    holdings: Holdings,
    config: ServerConfig,
    moment: Moment,
    *,
    progress: Progress,
    disk: Disk | None = None,
) -> dict[str, Any]:
    """Make the data directory of `config` out of the state at `moment`, for a new cluster.

    As `raftkv.server.offline.snapshot_restore` in all else: every member of the new cluster does
    it with the same files and the same moment. Answers what was restored.

    Raises ConfigError (also when the moment is not covered), LockedError, StorageError,
    CorruptionError or FormatError; then the directory is as empty as it was.
    """
    disk = disk or RealDisk()
    refuse_used(disk, config)
    if not holdings.bases:
        raise ConfigError("there is no base among these backups to begin with")
    for index, path in reversed(holdings.bases):
        info = inspect_snapshot(disk, path)
        if info.cluster_id != cluster_id or info.meta.index != index:
            raise CorruptionError(f"{path}: not what its name and folder say", path=path)
        verify_backup(disk, path, info, progress)
        replay = Replay(disk, cluster_id, holdings, moment)
        try:
            restore_verified(
                disk, path, info, config, f"{info.digest.hex()} {moment}", replay.advance
            )
        except Passed:
            continue
        return {"base": path, **replay.reached}
    raise ConfigError(
        f"every base is later than {moment}; the oldest is {holdings.bases[0][1]}",
        path=holdings.bases[0][1],
    )


class Replay:
    """Brings a base's state to a moment."""

    def __init__(self, disk: Disk, cluster_id: int, holdings: Holdings, moment: Moment) -> None:
        self._disk = disk
        self._cluster_id = cluster_id
        self._holdings = holdings
        self._moment = moment
        self.reached: dict[str, Any] = {}

    def advance(self, machine: Machine) -> None:
        """Apply what is archived up to the moment. Raises Passed, ConfigError when what is there
        does not reach it, or what its files are found guilty of."""
        moment = self._moment
        if moment.passed(machine):
            raise Passed
        done = moment.revision is not None and machine.revision == moment.revision
        names = [] if done else chain(self._holdings.segments, machine.applied_index)
        for name in names:
            folder = self._holdings.segments[name]
            segment = read_segment(self._disk, folder, name, self._cluster_id)
            done = self._apply(machine, segment, join(folder, name.text))
            if done:
                break
        if not done and machine.revision != moment.revision:
            self._refuse_short(machine)
        self.reached = {
            "index": machine.applied_index,
            "revision": machine.revision,
            "time": time_text(machine.clock_ms),
            "keys": machine.keys,
        }

    def _refuse_short(self, machine: Machine) -> None:
        """The archive has ended before the moment asked for was seen to pass."""
        moment = self._moment
        later = [
            name.first_index
            for name in self._holdings.segments
            if name.first_index > machine.applied_index + 1
        ]
        if later:
            raise ConfigError(
                f"entries {machine.applied_index + 1} to {min(later) - 1} are missing from the "
                f"archive, so {moment} cannot be reached; the state before them is revision "
                f"{machine.revision}, {time_text(machine.clock_ms)}"
            )
        if moment.revision is not None or (
            moment.time_ms is not None and not self._holdings.segments
        ):
            raise ConfigError(
                f"the backups end at revision {machine.revision}, {time_text(machine.clock_ms)}; "
                f"{moment} is later"
            )

    def _apply(self, machine: Machine, segment: Segment, path: str) -> bool:
        """Apply a segment up to the moment; whether that was reached."""
        left = [entry for entry in segment.entries if entry.index > machine.applied_index]
        before = segment.previous_term
        if len(left) < len(segment.entries):
            before = segment.entries[len(segment.entries) - len(left) - 1].term
        if before != machine.applied_term:
            raise CorruptionError(
                f"{path}: follows an entry of term {before}, but the state before it is of term "
                f"{machine.applied_term}: these are not backups of one history",
                path=path,
            )
        if not self._moment.covers(segment):
            for entry in left:
                if self._apply_watchfully(machine, entry):
                    return True
        else:
            _apply_all(machine, left)
        claimed = segment.state_hash
        if claimed not in (HASH_UNKNOWN, machine.state_hash):
            raise CorruptionError(
                f"{path}: replaying it leads to another state than the one that was archived; "
                "please keep the files and report it",
                path=path,
            )
        return False

    def _apply_watchfully(self, machine: Machine, entry: Entry) -> bool:
        """Apply one entry, unless it is past the moment; whether nothing more is to be applied."""
        moment = self._moment
        if entry.kind is not EntryKind.BATCH or not entry.data:
            _apply_all(machine, [entry])
            return False
        batch = decode_batch(entry.data)
        if moment.time_ms is not None and batch.stamp_ms > moment.time_ms:
            return True
        # No command makes more than one revision.
        most = machine.revision + len(batch.commands)
        if moment.revision is not None and most >= moment.revision:
            machine.apply_until(entry.index, entry.term, entry.data, moment.revision)
            return machine.revision == moment.revision
        _apply_all(machine, [entry])
        return False


def _apply_all(machine: Machine, entries: Sequence[Entry]) -> None:
    batch: list[tuple[int, int, bytes]] = []
    for entry in entries:
        if entry.kind is EntryKind.BATCH:
            batch.append((entry.index, entry.term, entry.data))
            if len(batch) < _SLICE_ENTRIES:
                continue
        if batch:
            machine.apply(batch)
            batch = []
        if entry.kind is EntryKind.CONFIG:
            _apply_config(machine, entry)
    if batch:
        machine.apply(batch)


def _apply_config(machine: Machine, entry: Entry) -> None:
    change = decode_change(entry.data)
    conf = decode_conf(machine.conf)
    with contextlib.suppress(ChangeRejected):  # without effect, as on every member
        conf = changed(conf, change)
    machine.apply_config(entry.index, entry.term, encode_conf(conf), member_change(change, conf))
