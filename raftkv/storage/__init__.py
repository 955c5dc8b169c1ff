"""Bytes that survive: write-ahead log, snapshots and the ordered tables under the machine."""

from raftkv.storage.backend import Backend, LmdbBackend, MapGrownError, MemoryBackend
from raftkv.storage.datadir import DataDir
from raftkv.storage.disk import Disk, RealDisk
from raftkv.storage.snapshots import SnapshotInfo, SnapshotReceiver, SnapshotStore, SnapshotWriter
from raftkv.storage.wal import Recovered, Wal, WalIdentity, WriteReceipt, in_thread
from raftkv.storage.wallog import WalLog

__all__ = [
    "Backend",
    "DataDir",
    "Disk",
    "LmdbBackend",
    "MapGrownError",
    "MemoryBackend",
    "RealDisk",
    "Recovered",
    "SnapshotInfo",
    "SnapshotReceiver",
    "SnapshotStore",
    "SnapshotWriter",
    "Wal",
    "WalIdentity",
    "WalLog",
    "WriteReceipt",
    "in_thread",
]
