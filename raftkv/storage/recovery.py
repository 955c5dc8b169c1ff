"""Reading a write-ahead log back: what is kept, what is cut off, what is refused.

The rules (Alagappan et al., "Protocol-Aware Recovery", FAST 2018, draw the same line):

- Frames are replayed in the order written. An entry at index i replaces every entry >= i, so
  entries that a newer leader overwrote never come back (etcd#22442).
- The first frame that fails a check in the LAST segment is a torn tail unless a later frame proves
  that it had been durable. A torn tail was never acknowledged; it is cut off, whole frames at a
  time, and reported.
- Every other failure is damage: the log is refused with the file, the offset and what to do.

Segments are read whole, one at a time, rather than mapped: a bad sector then gives an error that
names the file instead of a SIGBUS. 500 MB in entries of 64 KiB take about 0.2 s.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NoReturn

from raftkv.consensus.types import EntryKind, HardState, SnapshotMeta
from raftkv.errors import CorruptionError, FormatError
from raftkv.storage.disk import Disk, join
from raftkv.storage.frames import (
    CRC_COVERS_FROM,
    FRAME,
    FRAME_MAGIC,
    HEADER_BYTES,
    INSTALL,
    MARK,
    REPAIR,
    ROW,
    SegmentHeader,
    WalIdentity,
    crc_extend,
    find_proof,
    header_check,
    unpack_segment_header,
)
from raftkv.storage.logindex import UNKNOWN_TERM, LogIndex
from raftkv.storage.metadata import decode_meta

SEGMENT_SUFFIX: Final = ".wal"
_COMPARE_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(_COMPARE_BYTES)
_KIND_MAX: Final = max(EntryKind)
_POSITION_MAX: Final = 1 << 62


def segment_name(number: int) -> str:
    """File name of a segment; sorts by number."""
    return f"{number:016x}{SEGMENT_SUFFIX}"


@dataclass(slots=True)
class Segment:
    """One file of the log."""

    number: int
    path: str
    base_position: int
    live_last: int = 0
    """No entry above this one is live in this segment; 0: none at all."""


@dataclass(slots=True)
class Recovered:
    """What a log held when it was opened."""

    hard_state: HardState = field(default_factory=HardState)
    """With a commit index that the log or the snapshot covers."""
    snapshot: SnapshotMeta = field(default_factory=SnapshotMeta)
    """The newest snapshot marker; index 0 means that there is none."""
    index: LogIndex = field(default_factory=LogIndex)
    segments: list[Segment] = field(default_factory=list)
    truncated_bytes: int = 0
    """Length of the torn tail that was cut off; 0 after a clean end."""
    notes: tuple[str, ...] = ()
    """Sentences for the operator's log."""


@dataclass(slots=True)
class ScanState:
    """Where the scan stands, and at its end where the next frame goes."""

    recovered: Recovered
    chain: int = 0
    sequence: int = 0
    offset: int = 0
    salt: bytes = b""
    term: int = 0
    vote: int = 0
    commit_index: int = 0
    torn: bool = False
    """Bytes that are not zero follow `offset` and have to be cleared."""
    unproven: deque[tuple[int, int]] = field(default_factory=deque)
    """(sequence, offset) of the last segment's frames that no later one knows to be durable."""


def recover(disk: Disk, directory: str, names: list[str], identity: WalIdentity) -> ScanState:
    """Replay the segments `names` (sorted, not empty). Reads only."""
    state = ScanState(Recovered(index=LogIndex(0, UNKNOWN_TERM)))
    for place, name in enumerate(names):
        path = join(directory, name)
        file = disk.open(path)
        try:
            data = file.read(0, file.size())
        finally:
            file.close()
        header = unpack_segment_header(data[:HEADER_BYTES], path)
        _check_header(state, header, path, name, identity, first=place == 0)
        segment = Segment(header.number, path, header.base_position)
        state.recovered.segments.append(segment)
        state.chain = int.from_bytes(data[12:16], "little")
        state.salt = header.salt
        _scan_segment(state, segment, data, last=place == len(names) - 1)
    _settle(state)
    return state


def _check_header(
    state: ScanState,
    header: SegmentHeader,
    path: str,
    name: str,
    identity: WalIdentity,
    *,
    first: bool,
) -> None:
    if header.identity != identity:
        raise FormatError(
            f"{path}: belongs to member {header.identity.member_id:016x} of cluster "
            f"{header.identity.cluster_id:016x}, but this is member {identity.member_id:016x} "
            f"of cluster {identity.cluster_id:016x}; use the right data directory",
            path=path,
        )
    if segment_name(header.number) != name:
        raise CorruptionError(
            f"{path}: holds segment {header.number:x}, its name says otherwise; {REPAIR}",
            path=path,
            offset=0,
        )
    if first:
        state.recovered.snapshot = header.snapshot
        if header.base_position > _POSITION_MAX:
            _damaged(path, 0, "the segment header makes no sense")
        state.sequence = header.sequence
        hard = header.hard_state
        state.term, state.vote, state.commit_index = hard.term, hard.vote, hard.commit_index
        return
    before = state.recovered.segments[-1]
    if header.number != before.number + 1:
        raise CorruptionError(
            f"{path}: segment {before.number + 1:x} between this one and {before.path} is "
            f"missing; {REPAIR}",
            path=path,
            offset=0,
        )
    end = before.base_position + state.offset
    if (header.chain, header.sequence, header.base_position) != (state.chain, state.sequence, end):
        raise CorruptionError(
            f"{before.path}: offset {state.offset}: frames that the next segment continues from "
            f"are missing; {REPAIR}",
            path=before.path,
            offset=state.offset,
        )


def _scan_segment(state: ScanState, segment: Segment, data: bytes, *, last: bool) -> None:
    """Replay the frames of one segment; leaves `state.offset` behind the last good one."""
    unpack = FRAME.unpack_from
    offset, chain, sequence, size = HEADER_BYTES, state.chain, state.sequence, len(data)
    index = state.recovered.index
    # A segment is synced before the next one begins.
    unproven: deque[tuple[int, int]] = deque()
    state.unproven = unproven
    reason = "frame cut short"
    while offset + FRAME.size <= size:
        (
            magic, header_crc, crc, length, flags, number, synced, count, meta_length,
            first_index, term, vote, commit,
        ) = unpack(data, offset)  # fmt: skip
        if magic != FRAME_MAGIC:
            reason = "no frame where one should start"
            break
        rows_at = offset + FRAME.size
        meta_at = rows_at + count * ROW.size
        if length > size - offset or meta_at + meta_length > offset + length:
            reason = "frame longer than what is left"
            break
        if crc_extend(chain, data[offset + CRC_COVERS_FROM : offset + length]) != crc:
            reason = "frame fails its check"
            break
        head = data[offset + CRC_COVERS_FROM : rows_at]
        if number != sequence + 1 or header_check(state.salt, crc, head) != header_crc:
            reason = "frame header fails its check"
            break
        if flags & (INSTALL | MARK):
            _replay_snapshot(state, segment, data[meta_at : meta_at + meta_length], flags)
        if count:
            if first_index != index.last_index + 1:
                _make_room(state, segment, first_index, offset)
            position = segment.base_position + meta_at + meta_length
            for row_term, row_length, kind, row_crc in ROW.iter_unpack(data[rows_at:meta_at]):
                if kind > _KIND_MAX:
                    _damaged(segment.path, offset, f"an entry of the unknown kind {kind}")
                index.add(position, row_length, row_crc, row_term, kind)
                position += row_length
            if position > segment.base_position + offset + length:
                _damaged(segment.path, offset, "entries longer than their frame")
            segment.live_last = index.last_index
        state.term, state.vote, state.commit_index = term, vote, commit
        while unproven and unproven[0][0] <= synced:
            unproven.popleft()
        unproven.append((number, offset))
        chain, sequence = crc, number
        offset += length
    state.offset, state.chain, state.sequence = offset, chain, sequence
    rest = _used_after(data, offset)
    if not last or not rest:
        # A segment that is not the last is judged by the header of the next one.
        return
    proof = find_proof(data, offset, state.salt, sequence + 1)
    if proof is not None:
        _damaged(segment.path, offset, f"{reason}, although the frame at {proof} vouches for it")
    state.torn = True
    state.recovered.truncated_bytes = rest
    state.recovered.notes += (
        f"{segment.path}: cut off {rest} bytes at offset {offset}, the unfinished end of the log "
        f"({reason}); what was written there had not been acknowledged unless the disk lied",
    )


def _replay_snapshot(state: ScanState, segment: Segment, data: bytes, flags: int) -> None:
    recovered = state.recovered
    meta = decode_meta(data)
    recovered.snapshot = meta
    # A marker says nothing about where the log begins: frames before this segment may be gone,
    # and the entries that follow may be the oldest ones left. `_settle` weighs it at the end.
    if flags & INSTALL:
        recovered.index.reset(meta.index, meta.term)
        for older in recovered.segments:
            older.live_last = 0


def _make_room(state: ScanState, segment: Segment, first_index: int, offset: int) -> None:
    """Bring the index to the point where an entry at `first_index` is the next one."""
    recovered, index = state.recovered, state.recovered.index
    if index.base_term == UNKNOWN_TERM and (not len(index) or first_index <= index.base_index):
        index.reset(first_index - 1, UNKNOWN_TERM)
    elif index.base_index < first_index <= index.last_index:
        index.cut_from(first_index)
    elif first_index == recovered.snapshot.index + 1:
        index.reset(recovered.snapshot.index, recovered.snapshot.term)
    else:
        _damaged(
            segment.path, offset, f"entry {first_index} follows entry {index.last_index} of the log"
        )
    for older in recovered.segments:
        older.live_last = min(older.live_last, first_index - 1)


def _settle(state: ScanState) -> None:
    """Give the replayed log a base whose term is known, and check that nothing is missing."""
    recovered = state.recovered
    index, snapshot = recovered.index, recovered.snapshot
    if index.last_index < snapshot.index or not len(index):
        index.reset(snapshot.index, snapshot.term)
    elif index.base_index > snapshot.index:
        first = recovered.segments[0]
        raise CorruptionError(
            f"{first.path}: the log starts at entry {index.base_index + 1}, but the last snapshot "
            f"ends at {snapshot.index}; older segments are missing; {REPAIR}",
            path=first.path,
            offset=0,
        )
    elif index.base_index == snapshot.index:
        index.base_term = snapshot.term
    else:
        if index.base_index == 0:
            index.base_term = 0
        elif index.base_term == UNKNOWN_TERM:
            index.drop_to(index.base_index + 1)
        known = _term(index, snapshot.index)
        if known != snapshot.term:
            path = recovered.segments[-1].path
            raise CorruptionError(
                f"{path}: entry {snapshot.index} has term {known}, but the snapshot made of it "
                f"says {snapshot.term}; {REPAIR}",
                path=path,
            )
    commit = max(min(state.commit_index, index.last_index), snapshot.index)
    recovered.hard_state = HardState(state.term, state.vote, commit)


def _term(index: LogIndex, at: int) -> int:
    return index.base_term if at == index.base_index else index.terms[at - index.base_index - 1]


def _used_after(data: bytes, offset: int) -> int:
    """Length of `data[offset:]` without the zeros at its end."""
    end = len(data)
    while end > offset:
        start = max(offset, end - _COMPARE_BYTES)
        block = data[start:end]
        if block != _ZEROS[: end - start]:
            return start + len(block.rstrip(b"\0")) - offset
        end = start
    return 0


def _damaged(path: str, offset: int, what: str) -> NoReturn:
    raise CorruptionError(f"{path}: offset {offset}: {what}; {REPAIR}", path=path, offset=offset)
