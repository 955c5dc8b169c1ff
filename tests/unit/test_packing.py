"""Reading msgpack of others within bounds."""

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.consensus.codec import decode_messages
from raftkv.errors import CorruptionError, PeerError
from raftkv.machine.commands import decode_batch
from raftkv.packing import unpack
from raftkv.server.introduction import decode_introduction
from raftkv.server.shell_frames import decode_shell

BOMB = b"\xdd\x00\x00\x10\x00" * 600 + bytes(1100)
"""600 arrays in each other, each of which says that 4,096 items follow: 20 MB to make room for."""

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=60
)


@given(trees, st.binary(max_size=9))
def test_what_was_packed_comes_back(tree: object, before: bytes) -> None:
    assert unpack(before + msgpack.packb(tree), len(before)) == tree


@given(st.binary(max_size=2000))
def test_anything_else_is_a_value_error(data: bytes) -> None:
    try:
        unpack(data)
    except ValueError:
        return
    msgpack.unpackb(data)


@pytest.mark.parametrize(
    ("decode", "error"),
    [
        (unpack, ValueError),
        (decode_messages, PeerError),
        (decode_introduction, PeerError),
        (lambda data: decode_batch(bytes(8) + data), CorruptionError),
    ],
)
def test_arrays_that_are_only_announced_take_no_memory(decode: object, error: type) -> None:
    tracemalloc.start()
    with pytest.raises(error):
        decode(BOMB)  # type: ignore[operator]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * len(BOMB)


@pytest.mark.parametrize(
    "decode", [decode_messages, decode_introduction, lambda data: decode_shell(36, data)]
)
def test_maps_from_a_peer_are_refused_before_they_take_memory(decode: object) -> None:
    """An empty map is one byte on the wire and 64 in memory; a frame has room for 32 million."""
    count = 100_000
    crowd = b"\xdd" + count.to_bytes(4, "big") + b"\x80" * count
    tracemalloc.start()
    with pytest.raises(PeerError):
        decode(crowd)  # type: ignore[operator]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * count
