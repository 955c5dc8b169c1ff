"""The codec: what goes in comes out; what did not come from it gives PeerError and nothing else."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.consensus import codec
from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    ConfState,
    Entry,
    EntryKind,
    Message,
    MessageKind,
    SnapshotMeta,
)
from raftkv.errors import PeerError

uint64 = st.integers(0, 2**64 - 1)
ids = st.lists(st.integers(1, 2**64 - 1), max_size=5, unique=True).map(lambda x: tuple(sorted(x)))
confs = st.builds(ConfState, ids, ids, ids, ids, st.booleans())
kinds = st.sampled_from([kind for kind in MessageKind if kind is not MessageKind.PERSISTED])


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message that a core could send."""
    kind = draw(kinds)
    index, log_term, term = draw(st.integers(0, 2**40)), draw(st.integers(0, 9)), draw(uint64) | 9
    blobs = draw(st.lists(st.binary(max_size=40), max_size=3))
    entries = tuple(
        Entry(index + 1 + at, log_term, draw(st.sampled_from(EntryKind)), blob)
        for at, blob in enumerate(blobs)
    )
    snapshot = None
    if kind is MessageKind.SNAPSHOT:
        snapshot = SnapshotMeta(draw(uint64), draw(uint64), draw(confs))
    return Message(
        kind,
        draw(uint64) or 1,
        draw(uint64) or 1,
        term,
        index,
        log_term,
        entries,
        draw(uint64),
        draw(st.booleans()),
        draw(uint64),
        draw(uint64),
        snapshot,
        draw(st.binary(max_size=30)),
    )


@given(st.lists(messages(), max_size=4))
def test_messages_round_trip(batch: list[Message]) -> None:
    assert codec.decode_messages(codec.encode_messages(batch)) == batch


changes = st.builds(
    ConfigChange,
    st.lists(st.tuples(st.sampled_from(ChangeKind), uint64), max_size=5).map(tuple),
    st.binary(max_size=50),
)


@given(changes)
def test_changes_round_trip(change: ConfigChange) -> None:
    assert codec.decode_change(codec.encode_change(change)) == change


@given(confs)
def test_configurations_round_trip(conf: ConfState) -> None:
    assert codec.decode_conf(codec.encode_conf(conf)) == conf


SAMPLE = [
    Message(
        MessageKind.APPEND,
        1,
        2,
        3,
        10,
        2,
        (Entry(11, 2, EntryKind.BATCH, b"abc"), Entry(12, 3, EntryKind.CONFIG, b"x" * 40)),
        9,
        context=b"c",
    ),
    Message(
        MessageKind.SNAPSHOT,
        1,
        2,
        3,
        snapshot=SnapshotMeta(7, 2, ConfState((1, 2), (3,), (1, 4), (4,), True)),
    ),
]


def accepted_or_peer_error(data: bytes) -> None:
    try:
        decoded = codec.decode_messages(data)
    except PeerError:
        return
    assert codec.decode_messages(codec.encode_messages(decoded)) == decoded


def test_every_truncation_is_refused() -> None:
    data = codec.encode_messages(SAMPLE)
    for length in range(len(data)):
        with pytest.raises(PeerError):
            codec.decode_messages(data[:length])
    with pytest.raises(PeerError):
        codec.decode_messages(data + b"\x00")


def test_every_bit_flip_is_accepted_or_refused() -> None:
    data = codec.encode_messages(SAMPLE)
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        accepted_or_peer_error(bytes(flipped))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage_is_accepted_or_refused(data: bytes) -> None:
    accepted_or_peer_error(data)


def row(**changes: object) -> list[object]:
    """The fields of a sound heartbeat, some replaced by position name."""
    fields: dict[str, object] = {"kind": 7, "source": 1, "target": 1, "term": 1, "index": 1}
    fields |= {"log_term": 1, "entries": [], "commit": 1, "reject": False}
    fields |= {"hint": 1, "hint_term": 1, "snap": None, "context": b""}
    fields.update(changes)
    return list(fields.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 15},
        {"kind": 99},
        {"kind": "7"},
        {"kind": True},
        {"source": 0},
        {"target": 0},
        {"term": -1},
        {"term": 1.0},
        {"index": None},
        {"commit": b""},
        {"reject": 0},
        {"context": "text"},
        {"context": bytes(2000)},
        {"entries": {}},
        {"entries": [1]},
        {"entries": [[1, 1, 0]]},
        {"entries": [[1, 1, 9, b""]]},
        {"entries": [[-1, 1, 0, b""]]},
        {"entries": [[1, "1", 0, b""]]},
        {"entries": [[1, 1, 0, "text"]]},
        {"kind": 5, "entries": [[3, 1, 0, b""]]},
        {"kind": 5, "entries": [[2, 0, 0, b""]]},
        {"kind": 5, "entries": [[2, 2, 0, b""]]},
        {"kind": 9},
        {"snap": [1, 1, [[1], [], [], [], False]]},
        {"kind": 9, "snap": [1, 1]},
        {"kind": 9, "snap": [1, -1, [[1], [], [], [], False]]},
        {"kind": 9, "snap": [1, 1, [[1], [], [], [], 0]]},
        {"kind": 9, "snap": [1, 1, [[2, 1], [], [], [], False]]},
        {"kind": 9, "snap": [1, 1, [[0], [], [], [], False]]},
        {"kind": 9, "snap": [1, 1, [list(range(1, 40)), [], [], [], False]]},
    ],
)
def test_a_field_of_the_wrong_shape_is_refused(changes: dict[str, object]) -> None:
    assert codec.decode_messages(msgpack.packb([row()]))
    with pytest.raises(PeerError):
        codec.decode_messages(msgpack.packb([row(**changes)]))


@pytest.mark.parametrize("value", [1, [1], {}, [row()[:-1]]])
def test_other_shapes_are_refused(value: object) -> None:
    with pytest.raises(PeerError):
        codec.decode_messages(msgpack.packb(value))


@pytest.mark.parametrize(
    "value",
    [
        1,
        [[], b"", 1],
        [[1], b""],
        [[], "text"],
        [[[0]], b""],
        [[[9, 1]], b""],
        [[["0", 1]], b""],
        [[[0, -1]], b""],
        [[[0, 1]] * 99, b""],
    ],
)
def test_a_malformed_change_is_refused(value: object) -> None:
    with pytest.raises(PeerError):
        codec.decode_change(msgpack.packb(value))


def test_a_huge_change_is_refused_unread() -> None:
    with pytest.raises(PeerError, match="too large"):
        codec.decode_change(bytes(1 << 20))


def test_entry_data_is_carried_as_it_is() -> None:
    data = bytes(range(256)) * 1000
    entry = Entry(1, 1, EntryKind.BATCH, data)
    message = Message(MessageKind.APPEND, 1, 2, term=1, entries=(entry,))
    packed = codec.encode_messages([message])
    assert data in packed
    assert len(packed) < len(data) + 60
