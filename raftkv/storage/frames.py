"""The bytes of the write-ahead log: segment headers and frames. Pure; no file is touched here.

A segment starts with a header of HEADER_BYTES. After it come frames, each made by one write of
consensus (a large write is split), each aligned to 8 bytes; then zeros to the end of the file.

    frame   = magic, header crc, frame crc, length, flags, sequence, synced, entry count,
              snapshot length, first index, term, vote, commit index
              + an (term, data length, kind, data crc) row for every entry
              + the snapshot description, if any + the entries' data, verbatim + padding

- The frame crc is CRC32C over everything after it, continued from the previous frame's crc, and a
  segment's first frame continues from the header's crc, which covers the last crc of the segment
  before. So no frame can be lost, moved or repeated unseen.
- `sequence` counts frames since the log was made. `synced` is the last sequence known to be durable
  when this frame was written: a later frame is proof of what may not be missing.
- The header crc is seeded with the segment's random salt. It is what a search for later frames
  relies on, and bytes inside somebody's value cannot imitate it.
- An entry's own crc lets one entry be read back alone.

All numbers are little-endian. Torn or damaged input gives a `CorruptionError` or None, never
another exception, and nothing is allocated before its length has been checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

import google_crc32c

from raftkv.checks import check
from raftkv.consensus.types import Entry, HardState, SnapshotMeta
from raftkv.errors import CorruptionError, FormatError
from raftkv.limits import WAL_RECORD_BYTES_MAX
from raftkv.storage.metadata import META_BYTES_MAX, decode_meta, encode_meta

crc_extend = google_crc32c.extend

FORMAT_VERSION: Final = 1
SEGMENT_MAGIC: Final = b"RKVWAL\r\n"
FRAME_MAGIC: Final = b"\xf7RKf"
HEADER_BYTES: Final = 4096
"""Of a segment header: one page, so that frames start on a block of their own."""

PREFIX: Final = Struct("<4sII")
HEAD: Final = Struct("<IIQQIIQQQQ4x")
FRAME: Final = Struct("<4sIIIIQQIIQQQQ4x")
"""PREFIX and HEAD in one: magic, header crc, frame crc, then the fields of HEAD."""
ROW: Final = Struct("<QIII")
FRAME_BYTES_MIN: Final = FRAME.size
CRC_COVERS_FROM: Final = PREFIX.size

INSTALL: Final = 1
"""Flag: the snapshot described replaces the whole log."""
MARK: Final = 2
"""Flag: a local snapshot is durable; the log goes on."""
CLOSE: Final = 4
"""Flag: nothing but proof that everything before was durable; written at a clean end."""

_SEGMENT: Final = Struct("<8sIIQQQQQI8sQQQI")

check(FRAME.size % 8 == 0, "frames must stay aligned")
check(PREFIX.size + HEAD.size == FRAME.size, "both views of a frame header must agree")
check(_SEGMENT.size + META_BYTES_MAX <= HEADER_BYTES, "a segment header must fit into its page")


@dataclass(frozen=True, slots=True)
class WalIdentity:
    """Whose log it is; a log of another cluster or member is never read."""

    cluster_id: int
    member_id: int


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says about itself and about everything before it."""

    identity: WalIdentity
    number: int
    base_position: int
    """Bytes of frames and headers in all segments before this one."""
    sequence: int
    """Of the last frame before this segment."""
    chain: int
    """Crc of the last frame before this segment."""
    salt: bytes
    hard_state: HardState
    snapshot: SnapshotMeta
    """The newest snapshot marker before this segment; index 0: none."""

    def pack(self) -> bytes:
        """HEADER_BYTES bytes."""
        meta = encode_meta(self.snapshot)
        check(len(meta) <= META_BYTES_MAX, "a membership must fit", bytes=len(meta))
        state = self.hard_state
        head = _SEGMENT.pack(
            SEGMENT_MAGIC,
            FORMAT_VERSION,
            0,
            self.identity.cluster_id,
            self.identity.member_id,
            self.number,
            self.base_position,
            self.sequence,
            self.chain,
            self.salt,
            state.term,
            state.vote,
            state.commit_index,
            len(meta),
        )
        page = bytearray((head + meta).ljust(HEADER_BYTES, b"\0"))
        page[12:16] = google_crc32c.value(bytes(page)).to_bytes(4, "little")
        return bytes(page)


def unpack_segment_header(page: bytes, path: str) -> SegmentHeader:
    """Read a segment header. Raises `FormatError` (foreign, newer) or `CorruptionError`."""
    if len(page) < HEADER_BYTES:
        raise CorruptionError(
            f"{path}: only {len(page)} bytes long, shorter than its header; {REPAIR}",
            path=path,
            offset=len(page),
        )
    if page[:8] != SEGMENT_MAGIC:
        raise FormatError(f"{path}: not a raftkv log segment; {REPAIR}", path=path, offset=0)
    version = int.from_bytes(page[8:12], "little")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path}: log format {version}, but this program reads format {FORMAT_VERSION}; "
            "use the version of raftkv that wrote it, or newer",
            path=path,
            offset=8,
            version=version,
        )
    stored = int.from_bytes(page[12:16], "little")
    if google_crc32c.value(page[:12] + b"\0\0\0\0" + page[16:HEADER_BYTES]) != stored:
        raise CorruptionError(
            f"{path}: offset 0: the segment header fails its check; {REPAIR}", path=path, offset=0
        )
    fields = _SEGMENT.unpack_from(page)
    meta_end = _SEGMENT.size + fields[13]
    if meta_end > HEADER_BYTES:
        raise CorruptionError(
            f"{path}: offset 0: the segment header makes no sense; {REPAIR}", path=path, offset=0
        )
    return SegmentHeader(
        identity=WalIdentity(fields[3], fields[4]),
        number=fields[5],
        base_position=fields[6],
        sequence=fields[7],
        chain=fields[8],
        salt=fields[9],
        hard_state=HardState(fields[10], fields[11], fields[12]),
        snapshot=decode_meta(page[_SEGMENT.size : meta_end]),
    )


REPAIR: Final = (
    "restore this member's disk from before the damage, or remove the member from the cluster "
    "and add it again with an empty data directory"
)
"""What an operator can do about a damaged log; part of every refusal."""


@dataclass(slots=True)
class FrameWriter:
    """The running state that frames are chained by."""

    salt: bytes
    chain: int
    sequence: int

    def frame(
        self,
        entries: Sequence[Entry],
        rows: Sequence[bytes],
        hard_state: HardState,
        synced: int,
        flags: int = 0,
        meta: bytes = b"",
    ) -> bytes:
        """One frame, chained to the last; `rows` are what `entry_row` gave for each entry."""
        size = FRAME.size + len(rows) * ROW.size + len(meta)
        for entry in entries:
            size += len(entry.data)
        length = (size + 7) & ~7
        check(length <= WAL_RECORD_BYTES_MAX * 2, "a frame within its bound", length=length)
        sequence = self.sequence + 1
        head = HEAD.pack(
            length,
            flags,
            sequence,
            synced,
            len(entries),
            len(meta),
            entries[0].index if entries else 0,
            hard_state.term,
            hard_state.vote,
            hard_state.commit_index,
        )
        body = b"".join(
            (head, *rows, meta, *[entry.data for entry in entries], b"\0" * (length - size))
        )
        crc = crc_extend(self.chain, body)
        header_crc = header_check(self.salt, crc, head)
        self.chain = crc
        self.sequence = sequence
        return PREFIX.pack(FRAME_MAGIC, header_crc, crc) + body


def entry_row(entry: Entry, crc: int) -> bytes:
    """The row that describes one entry in its frame."""
    return ROW.pack(entry.term, len(entry.data), entry.kind, crc)


def header_check(salt: bytes, frame_crc: int, head: bytes) -> int:
    """The header crc of a frame whose HEAD part is `head`."""
    check_value: int = google_crc32c.value(salt + frame_crc.to_bytes(4, "little") + head)
    return check_value


def find_proof(data: bytes, start: int, salt: bytes, sequence: int) -> int | None:
    """Offset of a frame at or after `start` that proves frame `sequence` was durable, or None.

    Called where frame `sequence` should stand and does not. Whatever was being written when the
    machine died had not been synced, so no frame behind it can claim so; a frame that does shows
    that the damage is not a torn tail.
    """
    offset = data.find(FRAME_MAGIC, start)
    while offset >= 0:
        if offset % 8 == 0 and offset + FRAME.size <= len(data):
            fields = FRAME.unpack_from(data, offset)
            head = data[offset + PREFIX.size : offset + FRAME.size]
            if fields[6] >= sequence and header_check(salt, fields[2], head) == fields[1]:
                return offset
        offset = data.find(FRAME_MAGIC, offset + 1)
    return None
