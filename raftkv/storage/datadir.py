"""The data directory: who owns it, what format it has, and whether its tables can be trusted.

    FORMAT       format version, cluster id, member id; written once
    LOCK         flock against a second process; holds the owner's process id
    RUN          boot id of the machine and whether the last run ended cleanly
    wal/         the write-ahead log: the truth
    snapshots/   the truth, too, for what the log no longer holds
    tables/      a cache of both (LMDB without syncs)

The tables survive the end of the process, because the kernel keeps what was written, but not the
end of the machine. So they are trusted when the machine has not been restarted since they were
last in use (same boot id), or when they had been synced at a clean end. Otherwise they are removed,
durably, before this run is noted, and rebuilt from snapshot and log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, TypeGuard

from raftkv.checks import check
from raftkv.errors import CorruptionError, FormatError
from raftkv.storage.disk import (
    DIRECTORY_MODE,
    Disk,
    Lock,
    join,
    make_durably,
    read_file,
    replace_file,
)
from raftkv.storage.frames import REPAIR, WalIdentity

FORMAT_OLDEST: Final = 1
FORMAT_VERSION: Final = 2
PROGRAM: Final = "raftkv"
FORMAT_NAME: Final = "FORMAT"
LOCK_NAME: Final = "LOCK"
RUN_NAME: Final = "RUN"
FOLDERS: Final = ("wal", "snapshots", "tables")
_FILE_BYTES_MAX: Final = 4096


def format_of(level: int) -> int:
    """Version of the files of a cluster that has agreed on a feature level: an older program, which
    knows no levels, refuses a version that it does not know."""
    return FORMAT_OLDEST + level


class DataDir:
    """An open, locked data directory."""

    def __init__(self, disk: Disk, path: str, lock: Lock) -> None:
        """Use `DataDir.open`."""
        self._disk = disk
        self._lock = lock
        self.path = path
        self.identity: WalIdentity | None = None
        """None: nothing has been founded here yet; call `found`."""
        self.notes: tuple[str, ...] = ()
        """Sentences for the operator's log."""
        self.wal_path, self.snapshots_path, self.tables_path = (
            join(path, name) for name in FOLDERS
        )
        self.format = FORMAT_OLDEST
        """The version in FORMAT. It grows with the feature level that the cluster agrees on."""
        self._trusted = False
        self._running = False

    @classmethod
    def open(cls, disk: Disk, path: str) -> DataDir:
        """Make or open the directory, lock it, and read what it says about itself.

        Raises LockedError (naming the process that has it), FormatError (a newer program's, a
        foreign one, or a folder full of something else), CorruptionError or StorageError.
        """
        fresh = not disk.exists(path)
        if not disk.exists(join(path, FORMAT_NAME)):
            make_durably(disk, path)
        names = set(disk.list(path))
        if FORMAT_NAME not in names and not _left_by_us(disk, path, names):
            raise FormatError(
                f"{path} is not empty and is not a raftkv data directory; choose another",
                path=path,
            )
        lock = disk.lock(join(path, LOCK_NAME))
        directory = cls(disk, path, lock)
        try:
            directory._protect(fresh)
            directory._read()
        except BaseException:
            lock.release()
            raise
        return directory

    def found(self, identity: WalIdentity) -> None:
        """Write down whose directory this is from now on; once, before anything else is stored."""
        check(self.identity is None, "a data directory is founded once")
        for folder in (self.wal_path, self.snapshots_path, self.tables_path):
            self._disk.make_directory(folder)
        self._write_format(identity, FORMAT_OLDEST)
        self.identity = identity

    @property
    def level(self) -> int:
        """The feature level that FORMAT tells of."""
        return self.format - FORMAT_OLDEST

    def outdated(self, level: int) -> bool:
        """Whether FORMAT still lets programs open this that do not know a feature level."""
        return self.format < format_of(level)

    def reformat(self, level: int) -> None:
        """Keep programs out that do not know a feature level, for good. Durable on return."""
        if self.identity is not None:
            self._write_format(self.identity, format_of(level))

    def expect(self, identity: WalIdentity) -> None:
        """Raise `FormatError` unless the directory belongs to `identity`."""
        mine = self.identity
        if mine is not None and mine != identity:
            raise FormatError(
                f"{self.path} belongs to member {mine.member_id:016x} of cluster "
                f"{mine.cluster_id:016x}, but this is member {identity.member_id:016x} of "
                f"cluster {identity.cluster_id:016x}; use the right data directory",
                path=self.path,
            )

    def tables_trusted(self) -> bool:
        """Whether the tables hold all that the last run committed to them."""
        return self._trusted

    def begin_run(self) -> None:
        """Note that the tables are in use from now on. Removes tables that cannot be trusted.

        Before the tables are opened. The removal is durable before the note is: a crash in
        between must not make the old tables look good.
        """
        check(not self._running, "a run begins once")
        if not self._trusted:
            self.discard_tables()
        self._write(RUN_NAME, {"boot": self._disk.boot_id(), "clean": False})
        self._running = True

    def discard_tables(self) -> None:
        """Remove the tables, durably; they must not be open."""
        if self._disk.exists(self.tables_path):
            for name in self._disk.list(self.tables_path):
                self._disk.remove(join(self.tables_path, name))
            self._disk.sync_directory(self.tables_path)

    def end_run(self, sync: Callable[[], None]) -> None:
        """Note a clean end, after `sync` made the tables durable. Nothing writes to them after."""
        check(self._running, "only a run that began can end")
        sync()
        self._write(RUN_NAME, {"boot": self._disk.boot_id(), "clean": True})
        self._running = False

    def close(self) -> None:
        """Unlock; repeated calls do nothing."""
        self._lock.release()

    def _protect(self, fresh: bool) -> None:
        mode = self._disk.directory_mode(self.path)
        if mode & 0o077:
            self._disk.set_directory_mode(self.path, DIRECTORY_MODE)
            if not fresh:
                self.notes += (f"{self.path}: mode was {mode:o}, now {DIRECTORY_MODE:o}",)

    def _read(self) -> None:
        for name in self._disk.list(self.path):
            if name.endswith(".tmp"):
                self._disk.remove(join(self.path, name))
        self.identity = self._read_format()
        run: dict[str, Any] = {}
        if self._disk.exists(join(self.path, RUN_NAME)):
            try:
                run = self._read_json(RUN_NAME)
            except CorruptionError as error:
                self.notes += (f"{error.message}; taken as an unclean end",)
        empty = not self._disk.exists(self.tables_path) or not self._disk.list(self.tables_path)
        same_boot = run.get("boot") == self._disk.boot_id()
        self._trusted = empty or same_boot or run.get("clean") is True
        if not self._trusted:
            self.notes += (
                "the machine was restarted without a clean end of this member; the tables are "
                "rebuilt from the last snapshot and the log",
            )

    def _read_format(self) -> WalIdentity | None:
        path = join(self.path, FORMAT_NAME)
        if not self._disk.exists(path):
            return None
        content = self._read_json(FORMAT_NAME)
        version = content.get("format")
        if content.get("program") != PROGRAM or type(version) is not int:
            raise FormatError(f"{path}: not written by raftkv; choose another directory", path=path)
        if not FORMAT_OLDEST <= version <= FORMAT_VERSION:
            relation = "newer" if version > FORMAT_VERSION else "older"
            raise FormatError(
                f"{path}: data format {version} of a {relation} raftkv, this one uses formats "
                f"{FORMAT_OLDEST} to {FORMAT_VERSION}; use the version of raftkv that wrote it",
                path=path,
                version=version,
            )
        self.format = version
        cluster_id, member_id = content.get("cluster_id"), content.get("member_id")
        if not _is_id(cluster_id) or not _is_id(member_id):
            raise CorruptionError(f"{path}: cluster or member id unreadable; {REPAIR}", path=path)
        return WalIdentity(int(cluster_id, 16), int(member_id, 16))

    def _read_json(self, name: str) -> dict[str, Any]:
        path = join(self.path, name)
        try:
            content = json.loads(read_file(self._disk, path, _FILE_BYTES_MAX))
        except (ValueError, RecursionError) as error:
            raise CorruptionError(
                f"{path}: unreadable; restore the file from a backup", path=path
            ) from error
        if not isinstance(content, dict):
            raise CorruptionError(f"{path}: unreadable; restore the file from a backup", path=path)
        return content

    def _write_format(self, identity: WalIdentity, version: int) -> None:
        content = {
            "program": PROGRAM,
            "format": version,
            "cluster_id": f"{identity.cluster_id:016x}",
            "member_id": f"{identity.member_id:016x}",
        }
        self._write(FORMAT_NAME, content)
        self.format = version

    def _write(self, name: str, content: dict[str, Any]) -> None:
        data = json.dumps(content, indent=1).encode() + b"\n"
        replace_file(self._disk, join(self.path, name), data)


def _is_id(text: object) -> TypeGuard[str]:
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{16}", text) is not None


def _left_by_us(disk: Disk, path: str, names: set[str]) -> bool:
    """Whether nothing is there but what a first start makes before FORMAT is written."""
    names = names - {LOCK_NAME, FORMAT_NAME + ".tmp", "lost+found"}
    return names <= set(FOLDERS) and not any(disk.list(join(path, name)) for name in names)
