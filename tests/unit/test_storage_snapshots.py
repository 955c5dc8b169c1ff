"""Snapshot files: made, found again, verified, streamed, resumed, refused."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import google_crc32c
import pytest

from raftkv.consensus.types import ConfState, SnapshotMeta
from raftkv.errors import (
    CorruptionError,
    FormatError,
    InvariantViolation,
    PeerError,
    StorageError,
)
from raftkv.limits import SNAPSHOT_CHUNK_BYTES
from raftkv.storage.disk import RealDisk
from raftkv.storage.metadata import META_BYTES_MAX, decode_meta, encode_meta
from raftkv.storage.snapshots import HEADER_BYTES, SnapshotInfo, SnapshotStore

CLUSTER = 0xC1
CONF = ConfState((1, 2, 3), (4,), (1, 2, 5), (5,), auto_leave=True)
IMAGE = random.Random(1).randbytes(700_001)


def open_store(path: Path, cluster_id: int = CLUSTER) -> SnapshotStore:
    return SnapshotStore.open(RealDisk(), str(path), cluster_id=cluster_id)


def make(store: SnapshotStore, index: int, term: int = 1, image: bytes = IMAGE) -> SnapshotInfo:
    writer = store.begin(SnapshotMeta(index, term, CONF))
    with open(writer.path, "r+b") as file:
        file.seek(writer.offset)
        file.write(image)
    return writer.finish()


def transfer(
    source: SnapshotStore, target: SnapshotStore, info: SnapshotInfo, stop_at: int = 1 << 60
) -> None:
    receiver = target.receive(info)
    while receiver.offset < min(info.size, stop_at):
        data, crc = source.read_chunk(info, receiver.offset)
        receiver.write_chunk(receiver.offset, data, crc)


def test_a_snapshot_is_made_and_found_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.latest() is None
    info = make(store, 10, 2)
    assert info.meta == SnapshotMeta(10, 2, CONF)
    assert info.image_bytes == len(IMAGE)
    store.verify(info)
    again = open_store(tmp_path)
    assert again.latest() == info
    data = Path(again.path(info)).read_bytes()
    assert data[info.image_offset : info.image_offset + info.image_bytes] == IMAGE
    assert [file.name for file in tmp_path.iterdir()] == [info.name]


def test_the_newest_is_the_latest_and_old_ones_go(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    infos = [make(store, index, image=b"x" * index) for index in (30, 10, 200)]
    assert store.latest() == infos[2]
    assert [info.meta.index for info in open_store(tmp_path).all()] == [10, 30, 200]
    assert store.remove_older(30) == 1
    assert store.remove_older(1000, keep=2) == 0
    assert store.remove_older(1000) == 1
    assert store.all() == (infos[2],)
    assert open_store(tmp_path).all() == (infos[2],)
    store.discard(infos[2])
    assert store.latest() is None


def test_making_the_same_one_again_replaces_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    make(store, 10, image=b"one")
    info = make(store, 10, image=b"other")
    assert store.all() == (info,)
    store.verify(info)


def test_an_abandoned_or_interrupted_one_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = store.begin(SnapshotMeta(5, 1))
    writer.abandon()
    writer.abandon()
    store.begin(SnapshotMeta(6, 1))
    assert len(list(tmp_path.iterdir())) == 1
    assert open_store(tmp_path).latest() is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvariantViolation, match="image comes before"):
        store.begin(SnapshotMeta(7, 1)).finish()


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    info = make(store, 10, image=random.Random(2).randbytes(3000))
    path = Path(store.path(info))
    good = path.read_bytes()
    for offset in [*range(0, 200), *range(200, len(good), 61), len(good) - 1]:
        damaged = bytearray(good)
        damaged[offset] ^= 16
        path.write_bytes(bytes(damaged))
        with pytest.raises(CorruptionError, match="fails its check"):
            store.verify(info)
        # Opened anew it is passed over, refused, or fails the check before it is used.
        try:
            again = open_store(tmp_path)
        except FormatError:
            continue
        latest = again.latest()
        if latest is None:
            assert "passed over" in again.notes[0]
        else:
            with pytest.raises(CorruptionError):
                again.verify(latest)


@pytest.mark.parametrize("size", [0, 100, HEADER_BYTES, HEADER_BYTES + 40, -1])
def test_a_file_cut_short_is_passed_over(tmp_path: Path, size: int) -> None:
    store = open_store(tmp_path)
    older = make(store, 10)
    newer = make(store, 20)
    path = Path(store.path(newer))
    path.write_bytes(path.read_bytes()[:size])
    again = open_store(tmp_path)
    assert again.latest() == older
    assert str(path) in again.notes[0]
    with pytest.raises(CorruptionError):
        store.verify(newer)


def test_a_file_shorter_than_its_header_is_passed_over_though_its_check_holds(
    tmp_path: Path,
) -> None:
    page = b"RKVSNAP\n" + (1).to_bytes(4, "little")
    check = google_crc32c.value(page + bytes(4)).to_bytes(4, "little")
    (tmp_path / f"{1:016x}-{1:016x}.snapshot").write_bytes(page + check)
    store = open_store(tmp_path)
    assert store.latest() is None
    assert "shorter than its header" in store.notes[0]


def test_foreign_and_newer_files_are_refused_in_words(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    info = make(store, 10)
    with pytest.raises(FormatError, match="of cluster 00000000000000c1"):
        open_store(tmp_path, cluster_id=2)
    path = Path(store.path(info))
    good = path.read_bytes()
    path.write_bytes(good[:8] + (7).to_bytes(4, "little") + good[12:])
    with pytest.raises(FormatError, match="format 7"):
        open_store(tmp_path)
    path.write_bytes(good)
    path.rename(tmp_path / "0000000000000063-0000000000000001.snapshot")
    assert "name" in open_store(tmp_path).notes[0]


def test_a_snapshot_travels_in_chunks(tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    info = SnapshotInfo.unpack(make(source, 10, 3).pack())
    transfer(source, target, info)
    receiver = target.receive(info)
    assert receiver.complete
    assert receiver.finish() == info
    target.verify(info)
    assert open_store(tmp_path / "b").latest() == info
    with pytest.raises(InvariantViolation):
        receiver.write_chunk(0, b"", 0)


def test_a_broken_transfer_is_resumed(tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    info = make(source, 10)
    transfer(source, target, info, stop_at=300_000)
    receiver = target.receive(info)
    assert receiver.offset == 2 * SNAPSHOT_CHUNK_BYTES
    data, crc = source.read_chunk(info, 0)
    receiver.write_chunk(0, data, crc)
    assert receiver.offset == 2 * SNAPSHOT_CHUNK_BYTES, "a repeated chunk changes nothing"
    transfer(source, target, info)
    assert receiver.finish() == info


def test_another_snapshot_ends_an_unfinished_transfer(tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    one, two = make(source, 10), make(source, 20)
    transfer(source, target, one, stop_at=1)
    transfer(source, target, two)
    assert target.receive(two).finish() == two
    assert target.all() == (two,)
    assert target.receive(one).offset == 0
    target.close()
    assert len(list((tmp_path / "b").iterdir())) == 1


def test_bad_chunks_are_refused_and_change_nothing(tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    info = make(source, 10)
    receiver = target.receive(info)
    data, crc = source.read_chunk(info, 0)
    with pytest.raises(CorruptionError, match="fails its check"):
        receiver.write_chunk(0, data[:-1] + b"!", crc)
    with pytest.raises(PeerError, match="expected 0"):
        receiver.write_chunk(100, data, crc)
    big = bytes(SNAPSHOT_CHUNK_BYTES + 1)
    with pytest.raises(PeerError, match="too long"):
        receiver.write_chunk(0, big, google_crc32c.value(big))
    with pytest.raises(PeerError, match="too long"):
        receiver.write_chunk(info.size, b"x", google_crc32c.value(b"x"))
    assert receiver.offset == 0
    with pytest.raises(InvariantViolation):
        receiver.finish()
    transfer(source, target, info)
    assert receiver.finish() == info


def test_a_whole_that_is_not_what_was_announced_is_refused(tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    info = make(source, 10)
    for lie in (
        SnapshotInfo(info.meta, info.cluster_id, info.size, bytes(32)),
        SnapshotInfo(SnapshotMeta(11, 1, CONF), info.cluster_id, info.size, info.digest),
    ):
        receiver = target.receive(lie)
        while not receiver.complete:
            data, crc = source.read_chunk(info, receiver.offset)
            receiver.write_chunk(receiver.offset, data, crc)
        with pytest.raises(CorruptionError):
            receiver.finish()
        assert list((tmp_path / "b").iterdir()) == []
    with pytest.raises(PeerError, match="snapshot of cluster"):
        target.receive(SnapshotInfo(info.meta, 5, info.size, info.digest))


def test_reading_stops_at_the_end_and_fails_cleanly_when_the_file_is_gone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    info = make(store, 10, image=b"small")
    data, _ = store.read_chunk(info, 0, 1 << 30)
    assert len(data) == info.size
    assert store.read_chunk(info, info.size)[0] == b""
    assert store.read_chunk(info, info.size + 5)[0] == b""
    store.discard(info)
    with pytest.raises(StorageError):
        store.read_chunk(info, 0)


def test_announcements_give_named_errors_only() -> None:
    info = SnapshotInfo(SnapshotMeta(1, 1, CONF), 7, 10_000, bytes(32))
    good = info.pack()
    assert SnapshotInfo.unpack(good) == info
    chance = random.Random(3)
    for cut in range(len(good)):
        with pytest.raises(CorruptionError):
            SnapshotInfo.unpack(good[:cut])
    for _ in range(2000):
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        with contextlib.suppress(CorruptionError):
            SnapshotInfo.unpack(bytes(data))
    for bad in (
        SnapshotInfo(info.meta, 7, 100, bytes(32)),
        SnapshotInfo(info.meta, 7, 1 << 60, bytes(32)),
        SnapshotInfo(info.meta, 7, 10_000, bytes(31)),
    ):
        with pytest.raises(CorruptionError, match="makes no sense"):
            SnapshotInfo.unpack(bad.pack())


def test_descriptions_give_named_errors_only() -> None:
    meta = SnapshotMeta(2**64 - 1, 2**63, CONF)
    good = encode_meta(meta)
    assert decode_meta(good) == meta
    chance = random.Random(4)
    for _ in range(3000):
        data = bytearray(good)
        data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(CorruptionError):
            decode_meta(bytes(data[: chance.randrange(len(data) + 1)]))
    with pytest.raises(CorruptionError, match="too long"):
        decode_meta(bytes(META_BYTES_MAX + 1))
    for bad in (
        b"\x97\x01\x01\x90\x90\x90\x90\x01",
        b"\x97\xff\x01\x90\x90\x90\x90\xc2",
        b"\x97\x01\x01\x01\x90\x90\x90\xc2",
        b"\x97\x01\x01\x91\xa1a\x90\x90\x90\xc2",
    ):
        with pytest.raises(CorruptionError):
            decode_meta(bad)
