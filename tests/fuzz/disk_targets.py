"""Decoders of what a member, or an operator, once wrote to a disk."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Any

import google_crc32c

from raftkv.consensus.types import ConfState, Entry, EntryKind, HardState, SnapshotMeta
from raftkv.errors import (
    ConfigError,
    CorruptionError,
    FormatError,
    InvariantViolation,
    PeerError,
    StorageError,
)
from raftkv.machine import commands as c
from raftkv.machine.cluster import MemberInfo
from raftkv.machine.commands import decode_batch, encode_batch, stamp_batch
from raftkv.machine.machine import Machine
from raftkv.server.config import ServerConfig, load_config
from raftkv.server.offline import snapshot_status
from raftkv.storage import archive
from raftkv.storage.archive import decode_segment, encode_segment
from raftkv.storage.datadir import DataDir
from raftkv.storage.frames import (
    FRAME,
    FRAME_MAGIC,
    HEADER_BYTES,
    PREFIX,
    WalIdentity,
    header_check,
    unpack_segment_header,
)
from raftkv.storage.lmdb_backend import LmdbBackend
from raftkv.storage.memory_backend import IMAGE_MAGIC, MemoryBackend
from raftkv.storage.metadata import decode_meta, encode_meta
from raftkv.storage.recovery import segment_name
from raftkv.storage.snapshots import SnapshotInfo, SnapshotStore
from raftkv.storage.wal import Wal
from raftkv.storage.wallog import WalLog
from tests.fuzz.engine import Read, Target, plain
from tests.fuzz.memory_disk import MemoryDisk
from tests.fuzz.mutate import json_tree, lines, msgpack_tree, tokens

IDENTITY = WalIdentity(0xC1, 0xA1)
CONF = ConfState((1, 2, 3), (4,))
SEGMENT = 6 * 1024
"""Bytes of a segment in these tests: a header page and a few frames."""

# -- the log -------------------------------------------------------------------------------------


def _entries(low: int, high: int, term: int, size: int = 60) -> list[Entry]:
    return [
        Entry(at, term, EntryKind.CONFIG if at % 5 == 0 else EntryKind.BATCH, bytes((at,)) * size)
        for at in range(low, high + 1)
    ]


def _segments(disk: MemoryDisk) -> bytes:
    return b"".join(bytes(disk.files[path]) for path in sorted(disk.files) if ".wal" in path)


def _log_samples() -> list[bytes]:
    """Logs as their segments, one after the other: plain, overwritten, installed, released."""
    found = []

    def begun() -> tuple[MemoryDisk, Wal]:
        disk = MemoryDisk()
        wal, _ = Wal.open(disk, "/w", identity=IDENTITY, segment_bytes=SEGMENT)
        return disk, wal

    disk, wal = begun()
    wal.write(_entries(1, 3, 1), HardState(1, 2, 0))
    wal.sync()
    wal.write(_entries(4, 5, 1), HardState(1, 2, 3))
    found.append(_segments(disk))
    wal.close()
    found.append(_segments(disk))

    disk, wal = begun()
    for at in range(1, 60, 4):
        wal.write(_entries(at, at + 3, 1, 90), HardState(1, 2, at))
        wal.sync()
    wal.write(_entries(40, 44, 2), HardState(2, 1, 30))
    wal.sync()
    wal.mark_snapshot(SnapshotMeta(30, 1, CONF))
    found.append(_segments(disk))

    disk, wal = begun()
    wal.write(_entries(1, 20, 1), HardState(1, 2, 10))
    wal.sync()
    wal.write(_entries(101, 103, 3), HardState(3, 0, 100), SnapshotMeta(100, 3, CONF))
    wal.sync()
    wal.close()
    found.append(_segments(disk))
    return found


def _read_log(data: bytes) -> bool:
    """Open the log, read everything back, write on, and open it again."""
    files = {}
    for number, at in enumerate(range(0, len(data), SEGMENT), 1):
        files[f"/w/{segment_name(number)}"] = data[at : at + SEGMENT]
    disk = MemoryDisk(files)
    disk.folders.add("/w")
    wal, recovered = Wal.open(disk, "/w", identity=IDENTITY, segment_bytes=SEGMENT, create=False)
    log = WalLog(disk, "/w", recovered)
    last = log.last_index()
    kept: list[Entry] = []
    if log.first_index() <= last:
        kept = list(log.entries(log.first_index(), last + 1, 1 << 40))
        assert [entry.index for entry in kept] == list(range(log.first_index(), last + 1))
    hard = recovered.hard_state
    assert recovered.snapshot.index <= hard.commit_index <= last
    added = Entry(last + 1, hard.term, EntryKind.BATCH, b"more")
    if last + 1 < 1 << 64:
        log.persisted(wal.write([added], hard))
        wal.sync()
        assert list(log.entries(last + 1, last + 2, 100)) == [added]
        _, again = Wal.open(disk, "/w", identity=IDENTITY, segment_bytes=SEGMENT)
        kept_again = WalLog(disk, "/w", again)
        first = kept_again.first_index()
        assert kept_again.last_index() == last + 1
        wanted = [entry for entry in (*kept, added) if entry.index >= first]
        assert list(kept_again.entries(first, last + 2, 1 << 40)) == wanted
    return not recovered.truncated_bytes


def _mend_log(rng: random.Random, data: bytes) -> bytes:
    """Every checksum right again, and the chain between frames and segments unbroken."""
    out = bytearray(data)
    chain = 0
    for base in range(0, len(out), SEGMENT):
        page = bytes(out[base : base + HEADER_BYTES])
        if len(page) < HEADER_BYTES:
            break
        if base and rng.random() < 0.8:
            page = page[:56] + chain.to_bytes(4, "little") + page[60:]
        page = _mend_page(rng, page)
        out[base : base + HEADER_BYTES] = page
        chain = int.from_bytes(page[12:16], "little")
        salt = page[60:68]
        at, end = base + HEADER_BYTES, min(base + SEGMENT, len(out))
        while at + FRAME.size <= end and out[at : at + 4] == FRAME_MAGIC:
            length = int.from_bytes(out[at + PREFIX.size : at + PREFIX.size + 4], "little")
            if not FRAME.size <= length <= end - at:
                break
            chain = google_crc32c.extend(chain, bytes(out[at + PREFIX.size : at + length]))
            head = bytes(out[at + PREFIX.size : at + FRAME.size])
            out[at + 4 : at + 8] = header_check(salt, chain, head).to_bytes(4, "little")
            out[at + 8 : at + 12] = chain.to_bytes(4, "little")
            at += length
    return bytes(out)


def _mend_page(rng: random.Random, page: bytes) -> bytes:
    """The checksum of a header page, of a segment or a snapshot."""
    page = page.ljust(16, b"\0")
    whole = page[:12] + b"\0\0\0\0" + page[16:]
    return page[:12] + int(google_crc32c.value(whole)).to_bytes(4, "little") + page[16:]


def _read_segment_header(data: bytes) -> bool:
    header = unpack_segment_header(data, "here")
    assert unpack_segment_header(header.pack(), "here") == header
    return True


def _read_meta(data: bytes) -> bool:
    meta = decode_meta(data)
    assert decode_meta(encode_meta(meta)) == meta
    return True


# -- snapshots -----------------------------------------------------------------------------------

META = SnapshotMeta(9, 2, CONF)


def _filled(machine: Machine) -> Machine:
    members = [MemberInfo(1, "one", ("http://one:1",), ("http://one:2",), False)]
    machine.bootstrap(1, 1, b"conf", members)
    work = [
        c.put(b"k%d" % at, b"value" * at, once=b"key%d" % at if at % 3 == 0 else None)
        for at in range(7)
    ]
    for index, command in enumerate([*work, c.lease_grant(7, 60)], 2):
        machine.apply([(index, 2, encode_batch(1, 1, index, [command]))])
    return machine


def _snapshot(backend: Any, disk: Any, folder: str) -> str:
    """The path of a snapshot file of `backend`."""
    store = SnapshotStore.open(disk, folder, cluster_id=0xC1)
    writer = store.begin(META)
    backend.pin().copy_to(writer.path, writer.offset)
    return str(store.path(writer.finish()))


def _memory_snapshot() -> bytes:
    disk = MemoryDisk()
    backend = MemoryBackend(disk=disk)
    _filled(Machine(backend))
    return bytes(disk.files[_snapshot(backend, disk, "/s")])


def _lmdb_snapshot() -> bytes:
    from raftkv.storage.disk import RealDisk

    with tempfile.TemporaryDirectory() as folder:
        backend = LmdbBackend(os.path.join(folder, "tables"))
        _filled(Machine(backend))
        path = _snapshot(backend, RealDisk(), os.path.join(folder, "snapshots"))
        backend.close()
        with open(path, "rb") as file:
            return file.read()


def _read_announcement(data: bytes) -> bool:
    info = SnapshotInfo.unpack(data)
    assert SnapshotInfo.unpack(info.pack()) == info
    return True


def _read_snapshot(data: bytes) -> bool:
    """A file as a member finds it: looked at, verified, and only then let into the tables."""
    disk = MemoryDisk({"/s/0000000000000009-0000000000000002.snapshot": data})
    store = SnapshotStore.open(disk, "/s", cluster_id=0xC1)
    info = store.latest()
    if info is None:
        assert store.notes
        return False
    store.verify(info)
    assert data[:HEADER_BYTES] + data[HEADER_BYTES:-32] + info.digest == data
    backend = MemoryBackend(disk=disk)
    backend.stage(store.path(info), info.image_offset, info.image_bytes)
    backend.install()
    return True


def _read_chunks(data: bytes) -> bool:
    """A transfer: the announcement, then chunks of 64 bytes, each led by offset and crc."""
    size = len(_SNAPSHOT)
    info = SnapshotInfo(META, 0xC1, size, _SNAPSHOT[-32:])
    store = SnapshotStore.open(MemoryDisk(), "/s", cluster_id=0xC1)
    receiver = store.receive(info)
    for at in range(0, len(data), _CHUNK_BYTES):
        piece = data[at : at + _CHUNK_BYTES]
        if len(piece) < _CHUNK.size or receiver.complete:
            break
        offset, crc = _CHUNK.unpack_from(piece)
        receiver.write_chunk(offset, piece[_CHUNK.size :], crc)
    if not receiver.complete:
        return False
    assert receiver.finish() == info == store.latest()
    return True


_CHUNK = Struct(">QI")
_CHUNK_BYTES = 1024 + _CHUNK.size
_SNAPSHOT = _memory_snapshot()


def _chunk_samples() -> list[bytes]:
    pieces = [_SNAPSHOT[at : at + 1024] for at in range(0, len(_SNAPSHOT), 1024)]
    packed = [
        _CHUNK.pack(at * 1024, google_crc32c.value(piece)) + piece
        for at, piece in enumerate(pieces)
    ]
    return [b"".join(packed), b"".join((*packed[:2], *packed[1:]))]


def _mend_chunks(rng: random.Random, data: bytes) -> bytes:
    out = []
    for at in range(0, len(data), _CHUNK_BYTES):
        piece = data[at : at + _CHUNK_BYTES]
        if len(piece) > _CHUNK.size:
            offset = _CHUNK.unpack_from(piece)[0]
            body = piece[_CHUNK.size :]
            piece = _CHUNK.pack(offset, google_crc32c.value(body)) + body
        out.append(piece)
    return b"".join(out)


def _read_image(data: bytes) -> bool:
    """The memory tables' image, whose digest somebody has made right."""
    backend = MemoryBackend(disk=MemoryDisk({"/image": data}))
    backend.stage("/image", 0, len(data))
    backend.install()
    return True


@contextmanager
def _backup() -> Iterator[Read]:
    """A backup in the hands of `raftkv snapshot status`."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "backup")

        def read(data: bytes) -> bool:
            with open(path, "wb") as file:
                file.write(data)
            assert snapshot_status(path)["digest_verified"]
            return True

        yield read


# -- archived pieces of the log --------------------------------------------------------------------


def _archive_samples() -> list[bytes]:
    entries = [
        Entry(7, 2, EntryKind.BATCH, b""),
        Entry(8, 2, EntryKind.BATCH, encode_batch(1, 2, 3, [c.put(b"k", b"v")])),
        Entry(9, 4, EntryKind.BATCH, bytes(300)),
    ]
    pieces = [
        archive.Segment(0xC1, 0xA, 2, entries, 41, 1_700_000_000_000, bytes(range(16))),
        archive.Segment(0xC1, 0xA, 0, entries[:1]),
    ]
    return [encode_segment(piece) for piece in pieces]


def _read_archive(data: bytes) -> bool:
    piece = decode_segment(data, "a piece")
    assert encode_segment(piece) == data
    return True


def _mend_archive(rng: random.Random, data: bytes) -> bytes:
    """Checksums that are right, so that what they cover is read."""
    header, row = archive._HEADER.size, archive._ENTRY.size
    end = len(data) - archive.DIGEST_BYTES
    if end < header:
        return data
    signed = bytearray(data)
    head = data[:12] + bytes(4) + data[16:header]
    signed[12:16] = google_crc32c.value(head).to_bytes(4, "little")
    offset = header
    while offset + row <= end:
        length, _, term, kind = archive._ENTRY.unpack_from(signed, offset)
        body = bytes(signed[offset + row : offset + row + length])
        checked = signed[offset + archive._ENTRY_CHECKED_FROM : offset + row]
        crc = google_crc32c.extend(google_crc32c.value(bytes(checked)), body)
        archive._ENTRY.pack_into(signed, offset, length, crc, term, kind)
        offset += row + length
    signed[end:] = hashlib.sha256(signed[:end]).digest()
    return bytes(signed)


# -- the rest of the data directory --------------------------------------------------------------


def _datadir_samples() -> list[bytes]:
    disk = MemoryDisk()
    directory = DataDir.open(disk, "/d")
    directory.found(IDENTITY)
    directory.begin_run()
    directory.end_run(lambda: None)
    return [bytes(disk.files["/d/FORMAT"]), b"\0" + bytes(disk.files["/d/RUN"])]


_FORMAT, _RUN = (sample.removeprefix(b"\0") for sample in _datadir_samples())


def _read_datadir(data: bytes) -> bool:
    """FORMAT, or behind a zero byte RUN."""
    files = {"/d/FORMAT": _FORMAT, "/d/RUN": _RUN, "/d/tables/data.mdb": b"tables"}
    files |= {"/d/RUN": data[1:]} if data[:1] == b"\0" else {"/d/FORMAT": data}
    directory = DataDir.open(MemoryDisk(files), "/d")
    identity = directory.identity
    assert identity is not None
    assert 0 < identity.cluster_id < 1 << 64 and 0 < identity.member_id < 1 << 64
    return not directory.notes


# -- what the log carries ------------------------------------------------------------------------


def _batch_samples() -> list[bytes]:
    """Every command, alone and together."""
    operations = [c.put_op(b"k", b"v", prev=True), c.range_op(b"a", b"z"), c.delete_op(b"b", b"c")]
    compares = [c.compare(3, 0, b"k", b"v"), c.compare(0, 1, b"a", 0, b"z")]
    work = [
        c.put(b"key", b"value", lease=7, prev=True),
        c.put(b"key", b"", ignore_value=True),
        c.put(b"key", b"v", once=b"once"),
        c.delete(b"a", b"b", prev=True),
        c.txn(compares, [operations[1], c.txn_op(compares, operations)], [c.delete_op(b"x")]),
        c.compact(2),
        c.lease_grant(9, 60, chosen=True),
        c.lease_revoke(9),
        c.lease_expire([7, 8], 1),
        c.service_register(
            "web", "one", "10.0.0.1", 80, tags=["a"], meta={"k": "v"}, ttl_seconds=10, owner="me",
            lease=11,
        ),
        c.service_deregister("web", "one"),
        c.service_drain("web", "one", True),
        c.member_update(1, name="first", peer_urls=["http://one:1"]),
        c.alarm(c.AlarmKind.NOSPACE, 1, True),
    ]  # fmt: skip
    return [
        *(stamp_batch(encode_batch(1, 2, 3, [one]), 1_000) for one in work),
        stamp_batch(encode_batch(1, 2, 3, work), 1_000),
        stamp_batch(encode_batch(1, 2, 3, [work[0]] * 40), 1_000),
    ]


def _read_batch(data: bytes) -> bool:
    decode_batch(data)
    return True


def _apply_batch(data: bytes) -> bool:
    """A whole machine applies it; refused or not, the machine goes on."""
    machine = Machine(MemoryBackend())
    machine.bootstrap(1, 1, b"conf", [MemberInfo(1, "one", ("http://one:1",), (), False)])
    machine.apply([(2, 1, _BASE)])
    before = machine.state_hash
    try:
        machine.apply([(3, 1, data)])
    finally:
        if machine.applied_index == 2:
            assert machine.state_hash == before
        index = machine.applied_index + 1
        machine.apply([(index, 1, encode_batch(1, 2, index, [c.delete(b"", b"")]))])
    return True


_BASE = encode_batch(1, 2, 2, [c.put(b"k", b"v"), c.lease_grant(7, 60), c.put(b"b", b"w", lease=7)])


# -- the operator's file -------------------------------------------------------------------------

_CONFIG = b"""\
name = "one"
data-dir = "somewhere"
listen-client-urls = ["http://127.0.0.1:2379", "http://[::1]:2379"]
initial-cluster = "one=http://127.0.0.1:2380,two=http://10.0.0.2:2380"
initial-cluster-token = 'a token'
heartbeat_interval = "50ms"
election-timeout = 1_000
pre-vote = true
quota-backend-bytes = "2GiB"
log-level = "debug"
"""


@contextmanager
def _config() -> Iterator[Read]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "raftkv.toml")

        def read(data: bytes) -> bool:
            with open(path, "wb") as file:
                file.write(data)
            config = load_config(config_file=path)
            assert isinstance(config, ServerConfig)
            return bool(config.founding_members and config.advertised_client_urls)

        yield read


TARGETS = (
    Target(
        "wal",
        "storage/recovery.py, storage/wallog.py: a log of several segments, opened and read back",
        _log_samples,
        plain(_read_log),
        (CorruptionError, FormatError),
        mend=_mend_log,
        pytest_executions=1500,
    ),
    Target(
        "wal-header",
        "storage/frames.py: unpack_segment_header",
        lambda: [sample[:HEADER_BYTES] for sample in _log_samples()],
        plain(_read_segment_header),
        (CorruptionError, FormatError),
        mend=_mend_page,
    ),
    Target(
        "metadata",
        "storage/metadata.py: decode_meta",
        lambda: [encode_meta(META), encode_meta(SnapshotMeta())],
        plain(_read_meta),
        (CorruptionError,),
        spoils=(msgpack_tree(),),
    ),
    Target(
        "snapshot-info",
        "storage/snapshots.py: SnapshotInfo.unpack",
        lambda: [SnapshotInfo(META, 0xC1, 9999, bytes(32)).pack()],
        plain(_read_announcement),
        (CorruptionError,),
        spoils=(msgpack_tree(),),
    ),
    Target(
        "snapshot-file",
        "storage/snapshots.py: SnapshotStore.open, verify",
        lambda: [_SNAPSHOT],
        plain(_read_snapshot),
        (CorruptionError, FormatError),
        mend=lambda rng, data: _mend_page(rng, data[:HEADER_BYTES]) + data[HEADER_BYTES:],
    ),
    Target(
        "snapshot-chunks",
        "storage/snapshots.py: SnapshotReceiver",
        _chunk_samples,
        plain(_read_chunks),
        (CorruptionError, PeerError),
        mend=_mend_chunks,
    ),
    Target(
        "memory-image",
        "storage/memory_backend.py: stage",
        lambda: [_SNAPSHOT[HEADER_BYTES:-32], IMAGE_MAGIC],
        plain(_read_image),
        (CorruptionError, FormatError),
    ),
    Target(
        "backup",
        "server/offline.py: snapshot_status of a backup with LMDB tables",
        lambda: [_lmdb_snapshot()],
        _backup,
        (CorruptionError, FormatError),
        mend=lambda rng, data: _mend_page(rng, data[:HEADER_BYTES]) + data[HEADER_BYTES:],
        pytest_executions=300,
    ),
    Target(
        "archive",
        "storage/archive.py: decode_segment",
        _archive_samples,
        plain(_read_archive),
        (CorruptionError, FormatError),
        mend=_mend_archive,
    ),
    Target(
        "datadir",
        "storage/datadir.py: FORMAT and RUN",
        _datadir_samples,
        plain(_read_datadir),
        (CorruptionError, FormatError, StorageError),
        spoils=(json_tree, lambda rng, data: data[:1] + json_tree(rng, data[1:])),
    ),
    Target(
        "batch",
        "machine/commands.py: decode_batch",
        _batch_samples,
        plain(_read_batch),
        (CorruptionError, FormatError),
        spoils=(msgpack_tree(8),),
    ),
    Target(
        "apply",
        "machine/apply.py: commands that no door makes, in a whole machine",
        _batch_samples,
        plain(_apply_batch),
        (CorruptionError, FormatError, InvariantViolation),
        spoils=(msgpack_tree(8),),
        pytest_executions=1000,
    ),
    Target(
        "config-file",
        "server/config.py: load_config of a TOML file",
        lambda: [_CONFIG, b""],
        _config,
        (ConfigError,),
        spoils=(
            lines,
            tokens(
                [
                    b"[",
                    b"]",
                    b"{",
                    b"}",
                    b"'''",
                    b'"',
                    b"=",
                    b"\\u0000",
                    b"1e400",
                    b"-1",
                    b"nan",
                    b"1979-05-27",
                    b"http://",
                    b"[" * 500,
                    b"0x",
                    b"9" * 5000,
                    b",",
                    b"true",
                ]
            ),
        ),
        pytest_executions=1000,
    ),
)
