"""Archived pieces of the log: what was committed, with its time, for a restore to a point of it.

    header   magic (8), format u32, crc u32, cluster id u64, member id u64, first index u64,
             last index u64, term before the first entry u64, revision u64, clock ms u64,
             state hash (16), little-endian; the crc32c covers the header with crc as 0
    entry    length u32, crc32c u32, term u64, kind u8, data; the crc covers all that follows it
    digest   SHA-256 over all before it (32)

Revision, clock and hash are those of the member that archived, just after the last entry; a hash
of zeros means that they are not known. Indexes of entries are consecutive. Each part says how long
it is before it begins, and nothing may follow the digest, so no file is the beginning of another.

The name repeats the bounds and the member (`log-FIRST-LAST-MEMBER.archive`), so that a folder can
be listed without opening anything; what it says is compared with the header when a file is read.
Pure but for `read_segment` and `write_segment`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

import google_crc32c

from raftkv.checks import check
from raftkv.consensus.types import Entry, EntryKind
from raftkv.errors import CorruptionError, FormatError
from raftkv.limits import ARCHIVE_FILE_BYTES_MAX, WAL_RECORD_BYTES_MAX
from raftkv.storage.disk import Disk, join, read_file, replace_file

FORMAT_VERSION: Final = 1
MAGIC: Final = b"RKVALOG\n"
DIGEST_BYTES: Final = 32
HASH_UNKNOWN: Final = bytes(16)
_HEADER: Final = Struct("<8sIIQQQQQQQ16s")
_ENTRY: Final = Struct("<IIQB")
_ENTRY_CHECKED_FROM: Final = 8
_NAME: Final = re.compile(r"log-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})\.archive")


@dataclass(frozen=True, slots=True)
class SegmentName:
    """What a file in an archive says by its name."""

    first_index: int
    last_index: int
    member_id: int

    @property
    def text(self) -> str:
        """The file's name; sorts by first index."""
        return f"log-{self.first_index:016x}-{self.last_index:016x}-{self.member_id:016x}.archive"

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """None for the name of something else."""
        found = _NAME.fullmatch(name)
        return cls(*(int(part, 16) for part in found.groups())) if found else None


@dataclass(frozen=True, slots=True)
class Segment:
    """One archived piece of the log, in memory."""

    cluster_id: int
    member_id: int
    previous_term: int
    entries: Sequence[Entry]
    revision: int = 0
    clock_ms: int = 0
    state_hash: bytes = HASH_UNKNOWN

    @property
    def name(self) -> SegmentName:
        """As its file is called."""
        return SegmentName(self.entries[0].index, self.entries[-1].index, self.member_id)


def encode_segment(segment: Segment) -> bytes:
    """The bytes of the file; `decode_segment` is the inverse."""
    name = segment.name
    check(len(segment.state_hash) == len(HASH_UNKNOWN), "a state hash has 16 bytes")
    head = _HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        0,
        segment.cluster_id,
        segment.member_id,
        name.first_index,
        name.last_index,
        segment.previous_term,
        segment.revision,
        segment.clock_ms,
        segment.state_hash,
    )
    parts = [head[:12], google_crc32c.value(head).to_bytes(4, "little"), head[16:]]
    for place, entry in enumerate(segment.entries):
        check(entry.index == name.first_index + place, "archived entries are consecutive")
        row = _ENTRY.pack(len(entry.data), 0, entry.term, entry.kind)[_ENTRY_CHECKED_FROM:]
        crc = google_crc32c.extend(google_crc32c.value(row), entry.data)
        parts += [_ENTRY.pack(len(entry.data), crc, entry.term, entry.kind), entry.data]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return b"".join((*parts, digest.digest()))


def decode_segment(data: bytes, path: str) -> Segment:
    """The segment in a file's bytes, every one of which is checked.

    Raises CorruptionError with the offset, or FormatError for a newer format.
    """
    cluster_id, member_id, first, last, previous, revision, clock, state_hash = _header(data, path)
    entries: list[Entry] = []
    offset, end = _HEADER.size, len(data) - DIGEST_BYTES
    term = previous
    while offset < end:
        at = offset
        if offset + _ENTRY.size > end:
            raise _damaged(path, at, "an entry is cut short")
        length, crc, term_here, kind = _ENTRY.unpack_from(data, offset)
        offset += _ENTRY.size
        if length > WAL_RECORD_BYTES_MAX or offset + length > end:
            raise _damaged(path, at, "an entry is longer than what is left")
        body = data[offset : offset + length]
        row = data[at + _ENTRY_CHECKED_FROM : at + _ENTRY.size]
        if google_crc32c.extend(google_crc32c.value(row), body) != crc:
            raise _damaged(path, at, "an entry fails its check")
        if term_here < term or kind > max(EntryKind):
            raise _damaged(path, at, "an entry makes no sense")
        term = term_here
        entries.append(Entry(first + len(entries), term, EntryKind(kind), body))
        offset += length
    if len(entries) != last - first + 1:
        raise _damaged(path, offset, f"{len(entries)} entries, its header says {last - first + 1}")
    if hashlib.sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise _damaged(path, end, "the whole fails its check")
    return Segment(cluster_id, member_id, previous, entries, revision, clock, state_hash)


def _header(data: bytes, path: str) -> tuple[int, int, int, int, int, int, int, bytes]:
    if data[:8] != MAGIC:
        raise _damaged(path, 0, "not an archived piece of a log")
    if len(data) < _HEADER.size + DIGEST_BYTES:
        raise _damaged(path, 0, f"only {len(data)} bytes long, shorter than its header")
    _, version, crc, *rest = _HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path}: archive format {version}, but this program reads format {FORMAT_VERSION}; "
            "use the version of raftkv that wrote it, or newer",
            path=path,
            version=version,
        )
    head = data[:12] + bytes(4) + data[16 : _HEADER.size]
    if google_crc32c.value(head) != crc:
        raise _damaged(path, 0, "the header fails its check")
    cluster_id, member_id, first, last, previous, revision, clock, state_hash = rest
    if not 0 < first <= last:
        raise _damaged(path, 0, "the header makes no sense")
    return cluster_id, member_id, first, last, previous, revision, clock, state_hash


def _damaged(path: str, offset: int, what: str) -> CorruptionError:
    return CorruptionError(
        f"{path}: offset {offset}: {what}; use another copy of the file, or another member's",
        path=path,
        offset=offset,
    )


def list_segments(disk: Disk, directory: str) -> list[SegmentName]:
    """What an archive holds, by first index; files of other names are not ours."""
    names = disk.list(directory) if disk.exists(directory) else []
    return [found for name in sorted(names) if (found := SegmentName.parse(name)) is not None]


def write_segment(disk: Disk, directory: str, segment: Segment) -> int:
    """Store a segment, atomically and durably; its size in bytes. Raises StorageError."""
    data = encode_segment(segment)
    replace_file(disk, join(directory, segment.name.text), data)
    return len(data)


def read_segment(disk: Disk, directory: str, name: SegmentName, cluster_id: int) -> Segment:
    """One file of an archive. Raises StorageError, CorruptionError or FormatError."""
    path = join(directory, name.text)
    segment = decode_segment(read_file(disk, path, ARCHIVE_FILE_BYTES_MAX), path)
    if segment.name != name:
        raise _damaged(path, 0, "not what its name says")
    if segment.cluster_id != cluster_id:
        raise FormatError(
            f"{path}: of cluster {segment.cluster_id:016x}, not of {cluster_id:016x}", path=path
        )
    return segment


def chain(names: Iterable[SegmentName], after: int) -> list[SegmentName]:
    """The fewest segments that go on without a gap from the entry after `after`, as far as any do.

    Segments of several members may overlap: they hold the same committed entries.
    """
    left = sorted(names, key=lambda name: name.first_index)
    taken: list[SegmentName] = []
    reach, place = after, 0
    while True:
        best: SegmentName | None = None
        while place < len(left) and left[place].first_index <= reach + 1:
            if best is None or left[place].last_index > best.last_index:
                best = left[place]
            place += 1
        if best is None or best.last_index <= reach:
            return taken
        taken.append(best)
        reach = best.last_index
