"""Backup folders: snapshot files under names that sort by age, the oldest of which go.

A base is the very file that `raftkv snapshot save` downloads (see `raftkv.storage.snapshots`),
called `base-INDEX-TIME-MEMBER.snapshot`: the log index that it stands for, the wall clock in
milliseconds when it was made, and the member that made it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from raftkv.errors import CorruptionError
from raftkv.limits import MIB
from raftkv.storage.disk import Disk, join
from raftkv.storage.snapshots import DIGEST_BYTES, TEMPORARY, SnapshotInfo

_NAME: Final = re.compile(r"base-([0-9a-f]{16})-([0-9]{13})-([0-9a-f]{16})\.snapshot")
_BLOCK_BYTES: Final = 4 * MIB


@dataclass(frozen=True, slots=True)
class BaseName:
    """What a backup says by its name."""

    index: int
    made_ms: int
    """Wall clock, milliseconds since 1970."""
    member_id: int

    @property
    def text(self) -> str:
        """The file's name."""
        return f"base-{self.index:016x}-{self.made_ms:013d}-{self.member_id:016x}.snapshot"

    @classmethod
    def parse(cls, name: str) -> BaseName | None:
        """None for the name of something else."""
        found = _NAME.fullmatch(name)
        return cls(int(found[1], 16), int(found[2]), int(found[3], 16)) if found else None


def list_bases(disk: Disk, directory: str) -> list[BaseName]:
    """The backups in a folder, the oldest state first."""
    names = disk.list(directory) if disk.exists(directory) else []
    found = [base for name in names if (base := BaseName.parse(name)) is not None]
    return sorted(found, key=lambda base: (base.index, base.made_ms, base.member_id))


def copy_base(disk: Disk, path: str, info: SnapshotInfo, directory: str, name: BaseName) -> None:
    """Copy a snapshot file into a backup folder, verified on its way.

    The file gets its name when all of it is there, is what it should be, and is durable. Takes
    long: for a thread. Raises StorageError, or CorruptionError when the source is damaged.
    """
    final = join(directory, name.text)
    source = disk.open(path)
    try:
        temporary = final + TEMPORARY
        target = disk.open(temporary, create=True)
        try:
            digest, offset, body = hashlib.sha256(), 0, info.size - DIGEST_BYTES
            while offset < body and (
                block := source.read(offset, min(_BLOCK_BYTES, body - offset))
            ):
                target.write(offset, block)
                digest.update(block)
                offset += len(block)
            if (offset, digest.digest()) != (body, info.digest):
                raise CorruptionError(f"{path}: the snapshot fails its check", path=path)
            target.write(body, info.digest)
            target.sync()
        except BaseException:
            target.close()
            disk.remove(temporary)
            raise
        target.close()
        disk.rename(temporary, final)
        disk.sync_directory(directory)
    finally:
        source.close()
