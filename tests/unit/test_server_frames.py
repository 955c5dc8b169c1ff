"""Peer frames: what is cut anywhere comes out whole; what is damaged gives one named error."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.errors import InvariantViolation, PeerError
from raftkv.limits import PEER_FRAME_BYTES_MAX, PEER_HELLO_BYTES_MAX
from raftkv.server.frames import (
    VERSION,
    Frame,
    FrameParser,
    Hello,
    Purpose,
    check_welcome,
    decode_hello,
    encode_welcome,
    frame,
    refusal,
)

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=8)


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    pieces = []
    while data:
        size = rng.randint(1, 40)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@given(FRAMES, st.integers(0, 1000))
def test_frames_survive_any_cut(frames: list[Frame], seed: int) -> None:
    wire = b"".join(frame(kind, payload) for kind, payload in frames)
    parser = FrameParser()
    got = [item for piece in cut(wire, random.Random(seed)) for item in parser.feed(piece)]
    assert got == frames and parser.error is None and parser.held_bytes == 0
    assert FrameParser().feed(wire) == frames


def test_a_byte_at_a_time() -> None:
    wire = frame(6, b"x" * 100) + frame(7, b"")
    parser = FrameParser()
    got = [item for at in range(len(wire)) for item in parser.feed(wire[at : at + 1])]
    assert got == [(6, b"x" * 100), (7, b"")]


@given(FRAMES.filter(bool), st.data())
def test_any_flipped_bit_is_noticed(frames: list[Frame], data: st.DataObject) -> None:
    wire = bytearray(b"".join(frame(kind, payload) for kind, payload in frames))
    bit = data.draw(st.integers(0, len(wire) * 8 - 1))
    wire[bit // 8] ^= 1 << bit % 8
    parser = FrameParser()
    got = parser.feed(bytes(wire))
    assert got == frames[: len(got)] and len(got) < len(frames)
    if parser.error is None:
        assert parser.held_bytes > 0, "it waits for bytes that a wrong length promises"


@given(st.lists(st.binary(min_size=1, max_size=2000), max_size=20))
def test_garbage_is_refused_in_bounded_memory(pieces: list[bytes]) -> None:
    parser = FrameParser()
    for piece in pieces:
        parser.feed(piece)
        assert parser.held_bytes <= PEER_HELLO_BYTES_MAX + 8 + len(piece)
    if parser.error is not None:
        assert type(parser.error) is PeerError
        assert parser.feed(frame(1, b"")) == [], "nothing comes after damage"


def test_lengths_out_of_range_are_refused_before_anything_is_held() -> None:
    for length in (0, PEER_HELLO_BYTES_MAX + 1, 0xFFFFFFFF):
        parser = FrameParser()
        assert parser.feed(length.to_bytes(4, "big") + bytes(5)) == []
        assert parser.error is not None and parser.held_bytes == 0


def test_a_raised_bound_takes_large_frames() -> None:
    parser = FrameParser()
    parser.bytes_max = PEER_FRAME_BYTES_MAX
    payload = random.Random(1).randbytes(5_000_000)
    wire = frame(6, payload)
    got = [f for at in range(0, len(wire), 65536) for f in parser.feed(wire[at : at + 65536])]
    assert got == [(6, payload)]
    with pytest.raises(InvariantViolation):
        FrameParser(PEER_FRAME_BYTES_MAX + 1)


HELLO = Hello(7, 1, 2, Purpose.SNAPSHOT)


def test_hello_round_trip_and_longer_ones_of_later_versions() -> None:
    assert decode_hello(HELLO.encode()) == HELLO
    assert decode_hello(HELLO.encode() + b"\1more") == replace(HELLO, level=1)


@pytest.mark.parametrize(
    "payload", [b"", b"GET / HTTP/1.1\r\n" * 4, HELLO.encode()[:-1], HELLO.encode()[:-1] + b"\x09"]
)
def test_what_is_no_hello_is_refused(payload: bytes) -> None:
    with pytest.raises(PeerError):
        decode_hello(payload)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_hello_or_a_peer_error(payload: bytes) -> None:
    for data in (payload, b"RAFTKV" + payload):
        try:
            decode_hello(data)
        except PeerError:
            continue
        assert data.startswith(b"RAFTKV")


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(8, 1, 2), "cluster"),
        (Hello(7, 1, 3), "looks for"),
        (Hello(7, 2, 2), "cannot be"),
        (Hello(7, 0, 2), "cannot be"),
        (Hello(7, 1, 2, version=0, version_oldest=0), "protocol"),
        (Hello(7, 1, 2, version=9, version_oldest=VERSION + 1), "protocol"),
    ],
)
def test_diallers_that_must_not_be_talked_to(hello: Hello, reason: str) -> None:
    told = refusal(hello, cluster_id=7, member_id=2)
    assert told is not None and reason in told


def test_a_newer_dialler_that_still_speaks_our_version_is_welcome() -> None:
    hello = Hello(7, 1, 2, version=VERSION + 5)
    assert refusal(hello, cluster_id=7, member_id=2) is None
    welcome = encode_welcome(hello, cluster_id=7, member_id=2)
    assert check_welcome(welcome, hello) == VERSION


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"x" * 24,
        encode_welcome(HELLO, cluster_id=7, member_id=3),
        encode_welcome(HELLO, cluster_id=8, member_id=2),
    ],
)
def test_a_welcome_from_somebody_else_is_refused(payload: bytes) -> None:
    with pytest.raises(PeerError):
        check_welcome(payload, HELLO)
