"""Stored records and events, read back by an independent protobuf reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raftkv.machine.events import Event
from raftkv.machine.records import (
    CAUSE_EXPIRED,
    DELETE,
    HEADER,
    NO_POSITION,
    POSITION,
    PUT,
    Record,
    Tombstones,
    put_record,
    without_value,
)
from raftkv.machine.wire import varint, varint_size
from tests.unit.machine_support import parse

sizes = st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 70_000])
numbers = st.one_of(
    st.integers(1, 2**63 - 1),
    st.sampled_from([1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 2**63 - 1]),
)


@given(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**22)))
def test_varints_are_little_endian_groups_of_seven_bits(n: int) -> None:
    encoded = varint(n)
    assert sum((byte & 127) << 7 * i for i, byte in enumerate(encoded)) == n
    assert all(byte & 128 for byte in encoded[:-1])
    assert not encoded[-1] & 128
    assert len(encoded) == varint_size(n) == max(1, -(-n.bit_length() // 7))


@given(
    key=sizes.map(lambda n: b"k" * max(n, 1)),
    value=sizes.map(lambda n: b"v" * n),
    lease=st.one_of(st.just(0), numbers),
    create=numbers,
    mod=numbers,
    sub=st.integers(0, 2**32 - 1),
    version=numbers,
    keyspace=st.integers(0, 7),
)
def test_a_put_is_the_key_value_message(
    key: bytes, value: bytes, lease: int, create: int, mod: int, sub: int, version: int,
    keyspace: int,
) -> None:  # fmt: skip
    raw, wire = put_record(
        keyspace, key, value, lease, create, (mod, sub), version, bytes(12), NO_POSITION
    )
    expected = {1: key, 2: create, 3: mod, 4: version, 5: value, 6: lease}
    assert parse(wire) == {field: content for field, content in expected.items() if content}

    record = Record(raw)
    assert record.wire == wire
    assert (record.key, record.value, record.value_bytes) == (key, value, len(value))
    assert (record.create_revision, record.mod_revision, record.sub) == (create, mod, sub)
    assert (record.version, record.lease, record.keyspace) == (version, lease, keyspace)
    assert not record.deleted

    bare = Record(without_value(raw))
    assert Record(raw).wire_without_value == bare.wire
    del expected[5]
    assert parse(bare.wire) == {field: content for field, content in expected.items() if content}
    assert (bare.key, bare.value, bare.lease, bare.mod_revision) == (key, b"", lease, mod)

    event = Event.of(raw)
    assert (event.kind, event.key, event.revision, event.sub) == (PUT, key, mod, sub)
    assert (event.keyspace, event.lease, event.deleted) == (keyspace, lease, False)
    assert parse(event.wire) == {2: wire}
    assert event.wire is event.wire


def test_a_deletion_carries_key_and_revision_only() -> None:
    live, _ = put_record(1, b"gone", b"v", 9, 7, (8, 1), 2, b"i" * 12, NO_POSITION)
    raw = Tombstones(300, CAUSE_EXPIRED).make(b"\1gone", live, b"\0\0\0\2")
    wire = Record(raw).wire
    assert parse(wire) == {1: b"gone", 3: 300}
    event = Event.of(raw)
    assert (event.kind, event.cause, event.revision, event.sub) == (DELETE, CAUSE_EXPIRED, 300, 2)
    assert (event.keyspace, event.key, event.lease, event.deleted) == (1, b"gone", 0, True)
    assert parse(event.wire) == {1: 1, 2: wire}
    assert event.record.deleted
    fields = HEADER.unpack_from(raw)
    assert fields[3:9] == (0, 300, 2, 0, 0, b"i" * 12)
    assert fields[9:] == (POSITION.pack(8, 1), 4, len(raw), 0)
    assert event.record.cause == CAUSE_EXPIRED


def test_equality_is_about_what_a_caller_sees() -> None:
    first, _ = put_record(0, b"k", b"v", 0, 2, (2, 0), 1, b"a" * 12, NO_POSITION)
    moved, _ = put_record(0, b"k", b"v", 0, 2, (2, 0), 1, b"b" * 12, b"c" * 12)
    other, _ = put_record(0, b"k", b"w", 0, 2, (2, 0), 1, b"a" * 12, NO_POSITION)
    catalog, _ = put_record(1, b"k", b"v", 0, 2, (2, 0), 1, b"a" * 12, NO_POSITION)
    assert Record(first) == Record(moved)
    assert hash(Record(first)) == hash(Record(moved))
    assert Record(first) != Record(other)
    assert Record(first) != Record(catalog)
    assert Record(first) != first
    assert Event.of(first) == Event.of(moved)
    assert hash(Event.of(first)) == hash(Event.of(moved))
    assert Event.of(first) != Event.of(other)
    assert Event.of(first) != first
    assert "mod=2" in repr(Record(first))
    assert "PUT 2.0" in repr(Event.of(first))
    gone = Tombstones(3, 0).make(b"\0k", first, bytes(4))
    assert "deleted" in repr(Record(gone))
    assert "DELETE 3.0" in repr(Event.of(gone))
