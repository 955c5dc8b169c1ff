"""Archived pieces of the log: every byte counts, and pieces of several members make one chain."""

import random
from pathlib import Path

import pytest

from raftkv.consensus.types import Entry, EntryKind
from raftkv.errors import CorruptionError, FormatError, RaftkvError
from raftkv.storage.archive import (
    DIGEST_BYTES,
    Segment,
    SegmentName,
    chain,
    decode_segment,
    encode_segment,
    list_segments,
    read_segment,
    write_segment,
)
from raftkv.storage.disk import RealDisk

ENTRIES = [
    Entry(7, 2, EntryKind.BATCH, b""),
    Entry(8, 2, EntryKind.BATCH, b"some commands"),
    Entry(9, 3, EntryKind.CONFIG, b"a change"),
]
SEGMENT = Segment(0xC1, 0xA, 2, ENTRIES, 41, 1_700_000_000_000, bytes(range(16)))


def test_what_is_encoded_is_decoded() -> None:
    assert decode_segment(encode_segment(SEGMENT), "f") == SEGMENT


def test_a_flip_of_any_bit_of_any_byte_is_told() -> None:
    data = encode_segment(SEGMENT)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises((CorruptionError, FormatError), match=r"^f: "):
                decode_segment(bytes(damaged), "f")


def test_a_file_cut_short_or_grown_anywhere_is_told() -> None:
    data = encode_segment(SEGMENT)
    for length in range(len(data)):
        with pytest.raises(CorruptionError, match=r"^f: offset "):
            decode_segment(data[:length], "f")
    for more in (b"\0", bytes(DIGEST_BYTES), data):
        with pytest.raises(CorruptionError):
            decode_segment(data + more, "f")


def test_a_newer_format_is_told_from_damage() -> None:
    data = bytearray(encode_segment(SEGMENT))
    data[8] = 9
    with pytest.raises(FormatError, match="archive format 9, but this program reads format 1"):
        decode_segment(bytes(data), "f")


def test_a_file_is_what_its_name_and_folder_say(tmp_path: Path) -> None:
    disk = RealDisk()
    write_segment(disk, str(tmp_path), SEGMENT)
    (tmp_path / "notes.txt").write_text("not ours")
    assert list_segments(disk, str(tmp_path)) == [SegmentName(7, 9, 0xA)]
    assert read_segment(disk, str(tmp_path), SEGMENT.name, 0xC1) == SEGMENT
    with pytest.raises(FormatError, match="of cluster 00000000000000c1"):
        read_segment(disk, str(tmp_path), SEGMENT.name, 0xC2)
    other = SegmentName(6, 9, 0xA)
    (tmp_path / SEGMENT.name.text).rename(tmp_path / other.text)
    with pytest.raises(CorruptionError, match="not what its name says"):
        read_segment(disk, str(tmp_path), other, 0xC1)


def test_a_name_has_one_form() -> None:
    assert SegmentName.parse(SEGMENT.name.text) == SEGMENT.name
    for name in ("log-1-2-3.archive", SEGMENT.name.text + ".tmp", "x" + SEGMENT.name.text):
        assert SegmentName.parse(name) is None


def test_a_chain_reaches_as_far_as_any_without_a_gap() -> None:
    """Against brute force: the set of indexes that follow without a hole."""
    chance = random.Random(3)
    for _ in range(300):
        names = []
        for _ in range(chance.randrange(8)):
            first = chance.randrange(1, 30)
            names.append(SegmentName(first, first + chance.randrange(8), chance.randrange(3)))
        after = chance.randrange(12)
        held = {index for name in names for index in range(name.first_index, name.last_index + 1)}
        reach = after
        while reach + 1 in held:
            reach += 1
        taken = chain(names, after)
        assert (taken[-1].last_index if taken else after) == reach
        at = after
        for name in taken:
            assert name.first_index <= at + 1 < name.last_index + 1
            at = name.last_index


def test_nothing_but_our_errors_comes_of_noise() -> None:
    chance = random.Random(5)
    data = encode_segment(SEGMENT)
    for _ in range(2000):
        noisy = bytearray(data)
        for _ in range(chance.randrange(1, 6)):
            noisy[chance.randrange(len(noisy))] = chance.randrange(256)
        if bytes(noisy) == data:
            continue
        with pytest.raises(RaftkvError):
            decode_segment(bytes(noisy), "f")
