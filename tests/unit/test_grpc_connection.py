"""RFC 9113, rule by rule, against the server's connection."""

from __future__ import annotations

import pytest

from raftkv import limits
from raftkv.api.grpc import frames
from raftkv.api.grpc.frames import PREFACE, ErrorCode, Setting
from raftkv.api.grpc.header_blocks import Fields, HeaderDecoder
from raftkv.api.grpc.messages import framed
from tests.fuzz.grpc_peer import (
    END_HEADERS,
    END_STREAM,
    Log,
    Peer,
    data,
    echo_server,
    fields,
    goaway_of,
    resets_of,
    setting,
)

E = ErrorCode


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    return frames.frame(kind, flags, stream_id, payload)


def open_hold(peer: Peer, stream_id: int = 1) -> None:
    assert peer.send(peer.request(stream_id, b"x", "/t.T/Hold")) == []
    assert stream_id in peer.connection.streams


# ---- section 3.4: preface


def test_greeting_is_settings_then_a_wider_window() -> None:
    first, second = Peer(greet=False).greeting
    assert (first.kind, first.stream_id) == (frames.SETTINGS, 0)
    assert dict(frames.parse_settings(first.payload))[3] == limits.HTTP2_STREAMS_MAX
    assert second.kind == frames.WINDOW_UPDATE


def test_preface_byte_by_byte() -> None:
    peer = Peer(greet=False)
    conversation = PREFACE + frames.settings({}) + peer.request(1, b"slow")
    found = [f for byte in conversation for f in peer.send(bytes([byte]))]
    assert peer.answer(found, 1) == ([b"slow"], {"grpc-status": "0"})


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\n", PREFACE[:-1] + b"x", b"\x16\x03\x01"])
def test_a_wrong_preface_ends_the_connection(start: bytes) -> None:
    peer = Peer(greet=False)
    assert goaway_of(peer.send(start)) is E.PROTOCOL_ERROR
    assert peer.connection.closed
    assert peer.send(PREFACE) == []


@pytest.mark.parametrize(
    "first", [frame(frames.PING, 0, 0, bytes(8)), frame(frames.SETTINGS, frames.ACK)]
)
def test_settings_come_first(first: bytes) -> None:
    peer = Peer(greet=False)
    assert goaway_of(peer.send(PREFACE + first)) is E.PROTOCOL_ERROR


# ---- sections 4 and 6: frames that end the connection

CONNECTION_FAULTS = {
    "4.2 frame too large": (frame(frames.DATA, 0, 1, bytes(16_385)), E.FRAME_SIZE_ERROR),
    "5.1 DATA on idle": (data(1, b""), E.PROTOCOL_ERROR),
    "6.1 DATA on stream 0": (data(0, b""), E.PROTOCOL_ERROR),
    "5.1.1 DATA on an even stream": (data(2, b""), E.PROTOCOL_ERROR),
    "6.1 padding too long": (frame(0, frames.PADDED, 1, b"\x05abcd"), E.PROTOCOL_ERROR),
    "6.1 padded, empty": (frame(0, frames.PADDED, 1), E.FRAME_SIZE_ERROR),
    "6.2 HEADERS on stream 0": (frame(1, END_HEADERS, 0, b"\x82"), E.PROTOCOL_ERROR),
    "6.2 unfinished HEADERS on stream 0": (frame(1, 0, 0, b"\x82"), E.PROTOCOL_ERROR),
    "5.1.1 HEADERS on an even stream": (frame(1, END_HEADERS, 2, b"\x82"), E.PROTOCOL_ERROR),
    "6.2 priority cut short": (frame(1, 0x24, 1, b"abcd"), E.FRAME_SIZE_ERROR),
    "4.3 bad block": (
        frame(1, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
        E.COMPRESSION_ERROR,
    ),
    "4.3 index 0": (frame(1, END_HEADERS, 1, b"\x80"), E.COMPRESSION_ERROR),
    "6.3 PRIORITY on stream 0": (frame(2, 0, 0, bytes(5)), E.PROTOCOL_ERROR),
    "6.3 PRIORITY of 4": (frame(2, 0, 1, bytes(4)), E.FRAME_SIZE_ERROR),
    "6.4 RST_STREAM of 3": (frame(3, 0, 1, bytes(3)), E.FRAME_SIZE_ERROR),
    "6.4 RST_STREAM on idle": (frame(3, 0, 1, bytes(4)), E.PROTOCOL_ERROR),
    "6.4 RST_STREAM on 0": (frame(3, 0, 0, bytes(4)), E.PROTOCOL_ERROR),
    "6.5 SETTINGS on a stream": (frame(4, 0, 1), E.PROTOCOL_ERROR),
    "6.5 SETTINGS of 5": (frame(4, 0, 0, bytes(5)), E.FRAME_SIZE_ERROR),
    "6.5 SETTINGS ACK with content": (frame(4, 1, 0, bytes(6)), E.FRAME_SIZE_ERROR),
    "6.5.2 ENABLE_PUSH 2": (setting(Setting.ENABLE_PUSH, 2), E.PROTOCOL_ERROR),
    "6.5.2 window": (setting(Setting.INITIAL_WINDOW_SIZE, 2**31), E.FLOW_CONTROL_ERROR),
    "6.5.2 small frames": (setting(Setting.MAX_FRAME_SIZE, 16_383), E.PROTOCOL_ERROR),
    "6.5.2 large frames": (setting(Setting.MAX_FRAME_SIZE, 2**24), E.PROTOCOL_ERROR),
    "8.4 PUSH_PROMISE": (frame(5, END_HEADERS, 1, bytes(4)), E.PROTOCOL_ERROR),
    "6.7 PING on a stream": (frame(6, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
    "6.7 PING of 7": (frame(6, 0, 0, bytes(7)), E.FRAME_SIZE_ERROR),
    "6.8 GOAWAY on a stream": (frame(7, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
    "6.8 GOAWAY of 7": (frame(7, 0, 0, bytes(7)), E.FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of 3": (frame(8, 0, 0, bytes(3)), E.FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of 0": (frame(8, 0, 0, bytes(4)), E.PROTOCOL_ERROR),
    "6.9 WINDOW_UPDATE on idle": (frames.window_update(1, 1), E.PROTOCOL_ERROR),
    "6.9.1 window overflow": (frames.window_update(0, 2**31 - 1), E.FLOW_CONTROL_ERROR),
    "6.10 CONTINUATION alone": (frame(9, END_HEADERS, 1), E.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_connection_faults(name: str) -> None:
    sent, code = CONNECTION_FAULTS[name]
    peer = Peer()
    found = peer.send(sent)
    assert goaway_of(found) is code
    assert peer.connection.closed
    assert peer.send(peer.request(1)) == []


@pytest.mark.parametrize(
    "between",
    [
        frame(frames.PING, 0, 0, bytes(8)),
        frame(frames.CONTINUATION, END_HEADERS, 3),
        data(1, b""),
        frame(0xEE, 0, 1),
    ],
)
def test_nothing_between_headers_and_continuation(between: bytes) -> None:
    """Section 6.10."""
    peer = Peer()
    assert goaway_of(peer.send(peer.headers(1, flags=0) + between)) is E.PROTOCOL_ERROR


# ---- sections 5.1 and 8.1: faults of one stream; the others go on

MALFORMED = {
    "no method": [f for f in fields() if f[0] != ":method"],
    "no scheme": [f for f in fields() if f[0] != ":scheme"],
    "no path": [f for f in fields() if f[0] != ":path"],
    "empty path": fields(""),
    "relative path": fields("t.T/Echo"),
    "path twice": [(":path", "/b"), *fields()],
    "unknown pseudo": [(":what", "x"), *fields()],
    "response pseudo": [(":status", "200"), *fields()],
    "late pseudo": [*fields()[1:], (":method", "POST")],
    "upper case": [*fields(), ("Upper", "x")],
    "space in a name": [*fields(), ("a b", "x")],
    "empty name": [*fields(), ("", "x")],
    "newline in a value": [*fields(), ("a", "x\ny")],
    "nul in a value": [*fields(), ("a", "x\0y")],
    "leading space": [*fields(), ("a", " x")],
    "trailing tab": [*fields(), ("a", "x\t")],
    "connection": [*fields(), ("connection", "close")],
    "transfer-encoding": [*fields(), ("transfer-encoding", "chunked")],
    "te gzip": [*fields()[:-1], ("te", "gzip")],
    "host differs": [*fields(), ("host", "b")],
    "content-length not a number": [*fields(), ("content-length", "+7")],
    "content-length twice": [*fields(), ("content-length", "7"), ("content-length", "8")],
    "CONNECT with a path": [(":method", "CONNECT"), *fields()[1:]],
    "asterisk": [(":method", "POST"), (":scheme", "http"), (":path", "*")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_fail_alone(name: str) -> None:
    """Section 8.1.1: a stream error of type PROTOCOL_ERROR, also when remembered."""
    log = Log()
    peer = Peer(echo_server(log))
    for stream_id in (1, 3, 5):
        found = peer.send(peer.headers(stream_id, MALFORMED[name]) + data(stream_id, b"", 1))
        assert resets_of(found) == {stream_id: E.PROTOCOL_ERROR}
        assert goaway_of(found) is None
    assert peer.answer(peer.send(peer.request(7)), 7)[0] == [b"hi"]


def test_trailers_end_a_request() -> None:
    peer = Peer()
    message = data(1, framed(b"m"))
    start = peer.headers(1)
    trailers = peer.headers(1, [("some-trailer", "v")], END_HEADERS | END_STREAM)
    found = peer.send(start + message + trailers)
    assert peer.answer(found, 1) == ([b"m"], {"grpc-status": "0"})


@pytest.mark.parametrize(
    ("trailers", "flags"),
    [
        ([("a", "b")], END_HEADERS),
        ([(":path", "/")], END_HEADERS | END_STREAM),
        ([("Bad", "b")], END_HEADERS | END_STREAM),
        ([("a", "b\n")], END_HEADERS | END_STREAM),
        ([("connection", "close")], END_HEADERS | END_STREAM),
    ],
)
def test_bad_trailers(trailers: list[tuple[str, str]], flags: int) -> None:
    """Section 8.1."""
    peer = Peer()
    found = peer.send(peer.headers(1) + peer.headers(1, trailers, flags))
    assert resets_of(found) == {1: E.PROTOCOL_ERROR}
    assert peer.answer(peer.send(peer.request(3)), 3)[0] == [b"hi"]


@pytest.mark.parametrize(
    ("announced", "parts", "trailers"),
    [
        ("8", [7], False),
        ("6", [7], False),
        ("7", [5, 1], False),
        ("7", [5], True),
        ("1", [], False),
    ],
)
def test_content_length_must_agree(announced: str, parts: list[int], trailers: bool) -> None:
    """Section 8.1.1."""
    peer = Peer()
    sent = peer.headers(
        1,
        fields("/t.T/Echo", ("content-length", announced)),
        4 if parts else END_HEADERS | END_STREAM,
    )
    for number, size in enumerate(parts):
        last = number == len(parts) - 1 and not trailers
        sent += data(1, framed(b"hi")[:size], END_STREAM if last else 0)
    if trailers:
        sent += peer.headers(1, [("a", "b")], END_HEADERS | END_STREAM)
    assert resets_of(peer.send(sent)) == {1: E.PROTOCOL_ERROR}


def test_content_length_that_agrees() -> None:
    peer = Peer()
    head = peer.headers(1, fields("/t.T/Echo", ("content-length", "7")))
    found = peer.send(head + data(1, framed(b"hi")[:3]) + data(1, framed(b"hi")[3:], END_STREAM))
    assert peer.answer(found, 1)[0] == [b"hi"]


def test_frames_after_the_peer_has_ended_its_side() -> None:
    """Section 5.1, half-closed (remote): STREAM_CLOSED on the stream."""
    for late in (data(1, b"x"), None):
        log = Log()
        peer = Peer(echo_server(log))
        open_hold(peer)
        found = peer.send(late or peer.headers(1))
        assert resets_of(found) == {1: E.STREAM_CLOSED}
        assert log.seen == ["cancel"]
    peer = Peer()
    open_hold(peer)
    assert peer.send(frames.window_update(1, 5) + frame(2, 0, 1, bytes(5))) == []


def test_frames_on_closed_streams() -> None:
    """Sections 5.1 and 5.1.1."""
    peer = Peer()
    peer.send(peer.request(5))
    assert peer.send(frames.window_update(5, 1)) == []
    assert peer.send(frames.rst_stream(5, E.CANCEL)) == []
    assert resets_of(peer.send(data(5, b"x"))) == {5: E.STREAM_CLOSED}
    assert peer.send(data(5, b"x")) == []  # we have said it once
    assert goaway_of(peer.send(peer.headers(3))) is E.PROTOCOL_ERROR  # skipped, so closed
    peer = Peer()
    peer.send(peer.request(1))
    assert goaway_of(peer.send(peer.headers(1))) is E.STREAM_CLOSED
    peer = Peer()
    open_hold(peer)
    peer.send(frames.rst_stream(1, E.CANCEL))
    assert resets_of(peer.send(peer.headers(1))) == {1: E.STREAM_CLOSED}


def test_late_frames_for_a_stream_we_reset_keep_the_compression_state() -> None:
    peer = Peer()
    found = peer.send(peer.headers(1, [*fields(), ("Bad", "x")]))
    assert resets_of(found) == {1: E.PROTOCOL_ERROR}
    late = peer.headers(1, [("new-name", "new-value")], END_HEADERS | END_STREAM)
    assert peer.send(late) == []
    request = peer.request(3, b"m", "/t.T/Echo", ("new-name", "new-value"))
    assert peer.answer(peer.send(request), 3)[0] == [b"m"]


def test_reset_by_the_client_cancels_the_call() -> None:
    for code in (E.CANCEL, 0xDEAD):
        log = Log()
        peer = Peer(echo_server(log))
        open_hold(peer)
        assert peer.send(frame(3, 0, 1, int(code).to_bytes(4, "big"))) == []
        assert log.seen == ["cancel"]
        log.unary[0].reply(b"too late")
        log.unary[0].fail(5)
        assert peer.read() == []
        assert not peer.connection.streams


# ---- padding, priority, continuation, unknown frames


def test_padding_priority_and_continuations_are_understood() -> None:
    peer = Peer()
    block = peer.encoder.encode(fields())
    payload = b"\x03" + bytes(4) + b"\x10" + block[:4] + bytes(3)
    sent = frame(1, frames.PADDED | frames.PRIORITY_FLAG, 1, payload)
    sent += frame(9, 0, 1, block[4:9]) + frame(9, END_HEADERS, 1, block[9:])
    sent += frame(0, frames.PADDED | END_STREAM, 1, b"\x02" + framed(b"hi") + bytes(2))
    assert peer.answer(peer.send(sent), 1)[0] == [b"hi"]
    whole = frame(
        1, frames.PADDED | END_HEADERS, 3, b"\x01" + peer.encoder.encode(fields()) + b"\0"
    )
    assert peer.answer(peer.send(whole + data(3, framed(b"b"), 1)), 3)[0] == [b"b"]


def test_unknown_frames_settings_and_reserved_bits_are_ignored() -> None:
    """Sections 4.1, 5.5 and 6.5.2."""
    peer = Peer()
    found = peer.send(frame(0xEE, 0xFF, 77, b"x") + frame(4, 0, 0, b"\x00\xaa" + bytes(4)))
    assert [(f.kind, f.flags) for f in found] == [(frames.SETTINGS, frames.ACK)]
    request = bytearray(peer.request(1))
    request[5] |= 0x80
    assert peer.answer(peer.send(bytes(request)), 1)[0] == [b"hi"]


def test_a_goaway_from_the_client_leaves_open_calls_alone() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    open_hold(peer)
    assert peer.send(frames.goaway(0, E.NO_ERROR)) == []
    log.unary[0].reply(b"done")
    assert peer.answer(peer.read(), 1)[0] == [b"done"]


def test_ping_is_echoed() -> None:
    peer = Peer()
    (pong,) = peer.send(frame(6, 0, 0, b"12345678"))
    assert pong == (frames.PING, frames.ACK, 0, b"12345678")


# ---- flow control, sending (sections 5.2, 6.9)


def test_answers_keep_to_the_stream_window() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 10))
    open_hold(peer)
    log.unary[0].reply(b"x" * 20)
    found = peer.read()
    assert [len(f.payload) for f in found if f.kind == 0] == [10]
    assert peer.connection.held_bytes == 15
    found = peer.send(frames.window_update(1, 14))
    assert [(f.kind, len(f.payload)) for f in found] == [(0, 14)]
    found = peer.send(frames.window_update(1, 1))
    assert [(f.kind, f.flags) for f in found] == [(0, 0), (1, END_HEADERS | END_STREAM)]
    assert peer.connection.held_bytes == 0
    assert not peer.connection.streams


def test_a_window_may_turn_negative_and_come_back() -> None:
    """Section 6.9.2."""
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    call = log.streams[0]
    assert call.send(b"x" * 1000)
    peer.read()
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 100))
    assert call.window == 100 - 1005
    call.send(b"y" * 95)
    assert [f for f in peer.read() if f.kind == 0] == []
    assert [f for f in peer.send(frames.window_update(1, 905)) if f.kind == 0] == []
    found = peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 160))
    assert [len(f.payload) for f in found if f.kind == 0] == [60]
    found = peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 2**31 - 1))
    assert [len(f.payload) for f in found if f.kind == 0] == [40]
    assert resets_of(peer.send(frames.window_update(1, 200))) == {}
    assert resets_of(peer.send(frames.window_update(1, 1))) == {1: E.FLOW_CONTROL_ERROR}


def test_a_settings_change_that_overflows_a_window() -> None:
    """Section 6.9.2."""
    peer = Peer()
    open_hold(peer)
    peer.send(frames.window_update(1, 2**31 - 1 - 65_535))
    found = peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 65_536))
    assert goaway_of(found) is E.FLOW_CONTROL_ERROR


def test_the_connection_window_is_shared_in_turn() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 2**20))
    for stream_id in (1, 3, 5):
        open_hold(peer, stream_id)
    log.unary[0].reply(b"a" * 65_530)
    assert sum(len(f.payload) for f in peer.read() if f.kind == 0) == 65_535
    log.unary[1].reply(b"b" * 100)
    log.unary[2].reply(b"c" * 100)
    assert [f for f in peer.read() if f.kind == 0] == []
    found = peer.send(frames.window_update(0, 150))
    assert [(f.stream_id, len(f.payload)) for f in found if f.kind == 0] == [(3, 105), (5, 45)]
    found = peer.send(frames.window_update(0, 1000))
    assert [(f.stream_id, len(f.payload)) for f in found if f.kind == 0] == [(5, 60)]
    assert peer.connection.held_bytes == 0


def test_frames_keep_to_the_peers_maximum() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 2**20) + frames.window_update(0, 2**20))
    open_hold(peer)
    log.unary[0].reply(b"a" * 40_000)
    assert [len(f.payload) for f in peer.read() if f.kind == 0] == [16_384, 16_384, 7_237]
    peer.send(setting(Setting.MAX_FRAME_SIZE, 2**20))
    open_hold(peer, 3)
    log.unary[1].reply(b"a" * 40_000)
    assert [len(f.payload) for f in peer.read() if f.kind == 0] == [40_005]


def test_a_zero_increment_on_a_stream() -> None:
    """Section 6.9."""
    peer = Peer()
    open_hold(peer)
    assert resets_of(peer.send(frame(8, 0, 1, bytes(4)))) == {1: E.PROTOCOL_ERROR}


def test_a_smaller_header_table_is_acknowledged_in_the_next_block() -> None:
    """RFC 7541 section 4.2."""
    peer = Peer()
    peer.decoder.max_allowed_table_size = 100
    peer.send(setting(Setting.HEADER_TABLE_SIZE, 100))
    for stream_id in (1, 3):
        found = peer.send(peer.request(stream_id))
        assert peer.answer(found, stream_id) == ([b"hi"], {"grpc-status": "0"})
    assert peer.decoder.header_table_size == 0


def test_long_header_sections_are_continued() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    log.streams[0].initial = [("long", "v" * 40_000)]
    log.streams[0].send(b"m")
    found = peer.read()
    assert [(f.kind, f.flags) for f in found] == [(1, 0), (9, 0), (9, END_HEADERS), (0, 0)]
    block = b"".join(f.payload for f in found[:3])
    assert dict(peer.decoder.decode(block))["long"] == "v" * 40_000  # type: ignore[index]


# ---- flow control, receiving


def test_windows_are_given_back_as_content_is_taken() -> None:
    peer = Peer()
    message = framed(bytes(1_400_000))
    peer.send(peer.headers(1))
    credit = limits.HTTP2_STREAM_WINDOW_BYTES
    for at in range(0, len(message), 16_384):
        part = message[at : at + 16_384]
        last = at + 16_384 >= len(message)
        assert credit >= len(part)
        credit -= len(part)
        for each in peer.send(data(1, part, END_STREAM if last else 0)):
            if each.kind == frames.WINDOW_UPDATE and each.stream_id == 1:
                credit += frames.uint31(each.payload)
    assert peer.connection.input_bytes == 0
    assert peer.connection.streams[1].pending is not None  # the echo waits for our window


def test_a_stream_beyond_its_window() -> None:
    """Section 6.9.1."""
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    log.streams[0].pause()
    found = []
    for _ in range(limits.HTTP2_STREAM_WINDOW_BYTES // 16_384):
        found += peer.send(data(1, framed(bytes(16_379))))
    assert resets_of(found) == {}
    assert resets_of(peer.send(data(1, b"x"))) == {1: E.FLOW_CONTROL_ERROR}
    assert peer.connection.input_bytes == 0


def test_the_connection_beyond_its_window() -> None:
    """A client that ignores the window altogether, in one read."""
    peer = Peer()
    sent = peer.headers(1, fields("/t.T/Sink"))
    peer.send(sent)
    peer.connection._credit = 100  # as if all but this had been used
    assert goaway_of(peer.send(data(1, bytes(101)))) is E.FLOW_CONTROL_ERROR


def test_unread_requests_of_a_connection_are_bounded() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    part = framed(bytes(16_000))
    stream_id, refused = -1, 0
    for _ in range(60):
        stream_id += 2
        peer.send(peer.headers(stream_id, fields("/t.T/Sink")))
        log.streams[-1].pause()
        for _ in range(60):
            for each in peer.send(data(stream_id, part)):
                if each.kind == frames.HEADERS:
                    assert peer.fields_of(each)["grpc-status"] == "8"
                    refused += 1
        assert peer.connection.input_bytes <= limits.HTTP2_CONNECTION_INPUT_BYTES_MAX + 20_000
    assert refused > 0
    assert not peer.connection.closed


# ---- limits and floods


def test_streams_over_the_limit_are_refused() -> None:
    """Section 5.1.2."""
    peer = Peer()
    for number in range(limits.HTTP2_STREAMS_MAX):
        peer.connection.receive(peer.request(2 * number + 1, b"", "/t.T/Hold"), peer.now)
    over = 2 * limits.HTTP2_STREAMS_MAX + 1
    assert resets_of(peer.send(peer.request(over))) == {over: E.REFUSED_STREAM}
    assert len(peer.connection.streams) == limits.HTTP2_STREAMS_MAX


def flood(peer: Peer, make: object, count: int) -> ErrorCode | None:
    for number in range(count):
        found = peer.send(make(number))  # type: ignore[operator]
        if (code := goaway_of(found)) is not None:
            return code
    return None


def test_rapid_reset() -> None:
    """CVE-2023-44487: opening and resetting is not free."""
    log = Log()
    peer = Peer(echo_server(log))

    def make(number: int) -> bytes:
        stream_id = 2 * number + 1
        return peer.request(stream_id, b"", "/t.T/Hold") + frames.rst_stream(stream_id, E.CANCEL)

    assert flood(peer, make, limits.HTTP2_RESETS_BURST) is None
    assert flood(peer, lambda n: make(n + limits.HTTP2_RESETS_BURST), 5) is E.ENHANCE_YOUR_CALM


def test_resets_flow_back_with_time() -> None:
    peer = Peer()
    sent = 0
    for _ in range(30):
        for _ in range(limits.HTTP2_RESETS_PER_SECOND):
            stream_id = 2 * sent + 1
            peer.send(peer.request(stream_id, b"", "/t.T/Hold"))
            peer.send(frames.rst_stream(stream_id, E.CANCEL))
            sent += 1
        peer.now += 1.0
    assert sent > limits.HTTP2_RESETS_BURST
    assert not peer.connection.closed


def test_provoked_resets() -> None:
    """Making the server reset (a zero WINDOW_UPDATE) is paid for as well."""
    peer = Peer()

    def make(number: int) -> bytes:
        stream_id = 2 * number + 1
        return peer.request(stream_id, b"", "/t.T/Hold") + frame(8, 0, stream_id, bytes(4))

    assert flood(peer, make, limits.HTTP2_RESETS_BURST + 5) is E.ENHANCE_YOUR_CALM


FLOODS = {
    "settings": frames.settings({}),
    "settings acks": frame(frames.SETTINGS, frames.ACK),
    "ping acks": frame(frames.PING, frames.ACK, 0, bytes(8)),
    "priority": frame(frames.PRIORITY, 0, 1, bytes(5)),
    "unknown": frame(0xEE),
    "goaway": frames.goaway(0, E.NO_ERROR),
    "empty data": data(1, b""),
    "padded data": frame(frames.DATA, frames.PADDED, 1, b"\x03\0\0\0"),
    "resets of the closed": frames.rst_stream(3, E.CANCEL),
}


@pytest.mark.parametrize("name", FLOODS)
def test_frames_to_no_purpose(name: str) -> None:
    """Section 10.5."""
    peer = Peer()
    peer.send(peer.headers(1) + peer.request(3))
    burst = limits.HTTP2_CHATTER_BURST
    assert flood(peer, lambda _: FLOODS[name], burst - 10) is None
    assert flood(peer, lambda _: FLOODS[name], 20) is E.ENHANCE_YOUR_CALM


def test_pings_to_keep_alive_are_limited() -> None:
    """gRPC's keepalive policy: three strikes."""
    peer = Peer()
    open_hold(peer)
    ping = frame(frames.PING, 0, 0, bytes(8))
    for _ in range(10):
        peer.now += limits.GRPC_PINGS_MIN_SECONDS
        assert len(peer.send(ping)) == 1
    for _ in range(limits.GRPC_PING_STRIKES_MAX):
        peer.now += 1
        assert goaway_of(peer.send(ping)) is None
    found = peer.send(ping)
    assert goaway_of(found) is E.ENHANCE_YOUR_CALM
    assert found[-1].payload[8:] == b"too_many_pings"


def test_a_ping_behind_every_answer_is_free() -> None:
    """As Go's client sends them, thousands a second."""
    peer = Peer()
    ping = frame(frames.PING, 0, 0, bytes(8))
    for number in range(2 * limits.HTTP2_CHATTER_BURST):
        assert goaway_of(peer.send(peer.request(2 * number + 1))) is None
        assert goaway_of(peer.send(ping)) is None
    for _ in range(limits.GRPC_PING_STRIKES_MAX):
        assert goaway_of(peer.send(ping)) is None
    assert goaway_of(peer.send(ping)) is E.ENHANCE_YOUR_CALM


def test_a_ping_behind_every_piece_of_an_answer_is_free() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 10))
    open_hold(peer)
    pieces = 2 * limits.HTTP2_CHATTER_BURST
    log.unary[0].reply(b"x" * 10 * pieces)
    peer.read()
    ping = frame(frames.PING, 0, 0, bytes(8))
    for _ in range(pieces - 1):
        found = peer.send(ping + frames.window_update(1, 10))
        assert [each.kind for each in found] == [frames.PING, frames.DATA]
    # Windows that bring nothing forgive nothing.
    for _ in range(limits.GRPC_PING_STRIKES_MAX + 1):
        assert goaway_of(peer.send(frames.window_update(0, 1) + ping)) is None
    assert goaway_of(peer.send(frames.window_update(0, 1) + ping)) is E.ENHANCE_YOUR_CALM


def test_two_pings_behind_every_answer_are_too_many_in_the_end() -> None:
    peer = Peer()
    ping = frame(frames.PING, 0, 0, bytes(8))
    for number in range(limits.HTTP2_CHATTER_BURST - 10):
        assert goaway_of(peer.send(ping + ping + peer.request(2 * number + 1))) is None
    found = []
    for number in range(limits.HTTP2_CHATTER_BURST, limits.HTTP2_CHATTER_BURST + 20):
        found += peer.send(ping + ping + peer.request(2 * number + 1))
    assert goaway_of(found) is E.ENHANCE_YOUR_CALM


def test_pings_without_calls_are_strikes_for_hours() -> None:
    peer = Peer()
    ping = frame(frames.PING, 0, 0, bytes(8))
    found = []
    for _ in range(4):
        peer.now += 60
        found += peer.send(ping)
    assert goaway_of(found) is E.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("size", [1, 16_000])
def test_continuation_flood(size: int) -> None:
    """CVE-2024-27316 and its kin."""
    peer = Peer()
    peer.send(peer.headers(1, flags=0))
    fill = frame(frames.CONTINUATION, 0, 1, b"\x00" * size)
    assert flood(peer, lambda _: fill, limits.HTTP2_CONTINUATIONS_MAX + 1) is E.ENHANCE_YOUR_CALM


def test_a_header_list_over_the_limit_fails_alone() -> None:
    """Section 10.5.1: 431, and the compression state stays right."""
    peer = Peer()
    # One literal of 4,000 octets enters the table, then is referred to by single octets.
    bomb = [*fields(), *[("bomb", "b" * 3900)] * 20]
    sent = peer.headers(1, bomb, END_HEADERS | END_STREAM)
    found = peer.send(sent)
    answer = peer.fields_of(found[0])
    assert answer[":status"] == "431"
    assert str(limits.HTTP2_HEADER_LIST_BYTES_MAX) in answer["grpc-message"]
    again = peer.request(3, b"m", "/t.T/Echo", ("bomb", "b" * 3900))
    assert peer.answer(peer.send(again), 3)[0] == [b"m"]


# ---- memo of header blocks


@pytest.mark.interpreted
def test_settled_clients_are_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = HeaderDecoder.decode

    def counted(decoder: HeaderDecoder, block: bytes) -> Fields:
        decoded.append(block)
        return decode(decoder, block)

    monkeypatch.setattr(HeaderDecoder, "decode", counted)
    peer = Peer()
    for number in range(100):
        peer.send(peer.request(2 * number + 1))
    # The first fills the client's table, the second is the settled form.
    assert len(decoded) == 2
    # A field that changes with every call (a deadline) misses, and unsettles nothing for long.
    peer.send(peer.request(1001, b"", "/t.T/Echo", ("grpc-timeout", "1S")))
    for number in range(100):
        peer.send(peer.request(2 * number + 1003))
    assert len(decoded) == 4


def test_a_memo_dies_with_the_table_it_read() -> None:
    """The same octets mean another path once the table has changed."""
    log = Log()
    peer = Peer(echo_server(log))

    def block(*parts: bytes) -> bytes:
        return b"".join(parts)

    def insert(path: bytes) -> bytes:
        return b"\x44" + bytes([len(path)]) + path  # :path, literal, indexed

    static = b"\x83\x86\x0f\x10\x10application/grpc"
    newest = b"\x83\x86\xbe\x0f\x10\x10application/grpc"  # index 62: the newest entry
    first = frame(1, END_HEADERS, 1, block(static[:2], insert(b"/t.T/Echo"), static[2:]))
    found = peer.send(first + data(1, framed(b"1"), 1))
    assert peer.answer(found, 1)[0] == [b"1"]
    for stream_id in (3, 5):
        sent = frame(1, END_HEADERS, stream_id, newest) + data(stream_id, framed(b"e"), 1)
        assert peer.answer(peer.send(sent), stream_id)[0] == [b"e"]
    moved = frame(1, END_HEADERS, 7, block(static[:2], insert(b"/t.T/Hold"), static[2:]))
    peer.send(moved + data(7, framed(b"h"), 1))
    sent = frame(1, END_HEADERS, 9, newest) + data(9, framed(b"h"), 1)
    assert peer.send(sent) == []
    assert [call.path for call in log.unary] == ["/t.T/Hold", "/t.T/Hold"]
    # A size update empties the table: the remembered block is now an error.
    assert goaway_of(peer.send(frame(1, END_HEADERS, 11, b"\x20" + newest))) is E.COMPRESSION_ERROR


def test_the_memo_is_bounded() -> None:
    peer = Peer()
    static = b"\x83\x86\x04\x09/t.T/Echo\x0f\x10\x10application/grpc\x00\x01a"
    for number in range(3 * limits.HTTP2_MEMO_BLOCKS_MAX):
        value = b"%d" % number
        block = static + bytes([len(value)]) + value
        stream_id = 2 * number + 1
        peer.send(frame(1, END_HEADERS, stream_id, block) + data(stream_id, framed(b""), 1))
    assert 0 < len(peer.connection._fixed) <= limits.HTTP2_MEMO_BLOCKS_MAX
    large = static + b"\x7f" + b"\x81\x0f" + b"v" * 2048
    peer.send(frame(1, END_HEADERS, 9999, large) + data(9999, framed(b""), 1))
    assert large not in peer.connection._fixed


# ---- back-pressure


def test_a_full_socket_holds_output_back() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    call = log.streams[0]
    assert call.send(b"1")
    peer.read()
    peer.connection.pause(peer.now)
    assert not call.send(b"2")
    found = peer.send(peer.request(3, b"echo"))
    assert [f for f in [*found, *peer.read()] if f.kind == 0] == []
    assert log.seen == []
    peer.connection.resume()
    found = peer.read()
    assert peer.answer(found, 3)[0] == [b"echo"]
    assert peer.answer(found, 1)[0] == [b"2"]
    assert log.seen == ["drain"]
    assert peer.connection.held_bytes == 0


def test_one_turn_takes_only_so_much_output() -> None:
    """A sender in a loop cannot fill memory before the socket has had a say."""
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 2**30) + frames.window_update(0, 2**30))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    (call,) = log.streams
    sent = 1
    while call.send(bytes(10_000)):
        sent += 1
    assert sent * 10_000 < 2 * limits.HTTP2_TURN_OUTPUT_BYTES
    assert call.send(bytes(10_000)) is False  # a sender that does not listen is held, in order
    turn = peer.connection.take_output()
    assert len(turn) < 2 * limits.HTTP2_TURN_OUTPUT_BYTES
    assert peer.connection.held_bytes > 0
    wakes = peer.wakes
    peer.connection.flushed()
    assert peer.wakes == wakes + 1
    assert log.seen == ["drain"]
    assert peer.connection.held_bytes == 0
    assert call.writable


@pytest.mark.parametrize("frame_max", [frames.FRAME_BYTES_DEFAULT, frames.FRAME_BYTES_LIMIT])
def test_a_sender_is_told_though_its_output_used_up_the_turn(frame_max: int) -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.MAX_FRAME_SIZE, frame_max) + setting(Setting.INITIAL_WINDOW_SIZE, 0))
    peer.send(frames.window_update(0, 2**30) + peer.headers(1, fields("/t.T/Sink")))
    (call,) = log.streams
    assert call.send(bytes(limits.HTTP2_TURN_OUTPUT_BYTES - 5)) is False
    peer.connection.receive(frames.window_update(1, 2**30), peer.now)
    assert peer.connection.held_bytes == 0  # nothing is left that a window could set free
    assert log.seen == []
    peer.read()
    assert log.seen == ["drain"]


def test_a_window_opened_in_steps_does_not_lose_the_sender() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.MAX_FRAME_SIZE, frames.FRAME_BYTES_LIMIT))
    peer.send(frames.window_update(0, 2**30) + peer.headers(1, fields("/t.T/Sink")))
    (call,) = log.streams
    left = 1000

    def more() -> None:
        nonlocal left
        while left:
            left -= 1
            if not call.send(bytes(10_000)):
                return
        call.finish()

    call.on_drain = more
    more()
    found = peer.read()
    # The first step makes the sender fill up again, the second uses up the turn.
    step = limits.HTTP2_STREAM_OUTPUT_BYTES_HIGH + 80_000
    found += peer.send(frames.window_update(1, step) + frames.window_update(1, 2**30))
    assert left == 0
    assert resets_of(found) == {1: ErrorCode.NO_ERROR}


def test_a_sender_emptied_while_others_fill_the_connection_is_told_later() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 0) + frames.window_update(0, 2**30))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    assert log.streams[0].send(bytes(limits.HTTP2_STREAM_OUTPUT_BYTES_HIGH)) is False
    peer.read()
    for stream_id in range(3, 13, 2):
        open_hold(peer, stream_id)
        log.unary[-1].reply(bytes(8_000_000))
        peer.read()
    peer.send(frames.window_update(1, 2**20))
    assert peer.connection.held_bytes == 5 * 8_000_005 > limits.CONNECTION_OUTPUT_BYTES_MAX
    assert log.seen == []
    peer.send(frames.rst_stream(3, ErrorCode.CANCEL))
    peer.connection.tick(peer.now)
    assert log.seen == ["drain"]


def test_output_held_for_a_deaf_client_is_bounded() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 0))
    for stream_id in range(1, 101, 2):
        open_hold(peer, stream_id)
    most = 0
    for call in log.unary:
        call.reply(bytes(1_000_000))
        most = max(most, peer.connection.held_bytes)
    assert most <= limits.CONNECTION_OUTPUT_BYTES_MAX + 1_000_005
    dropped = [f for f in peer.read() if f.kind == 1 and f.flags & END_STREAM]
    assert dropped
    assert peer.fields_of(dropped[0])["grpc-status"] == "2"
    # Streams are cut off at the same bound, and told to wait long before it.
    peer.send(peer.headers(201, fields("/t.T/Sink")))
    assert not log.streams[0].send(b"x" * 1000)
    assert resets_of(peer.read()) == {201: E.ENHANCE_YOUR_CALM}
    assert log.seen == ["cancel"]


def test_senders_waiting_for_the_connection_hear_when_it_has_room() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 2**30))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    for stream_id in range(3, 101, 2):
        open_hold(peer, stream_id)
    peer.send(frames.window_update(0, 2**20))
    for call in log.unary:
        call.reply(bytes(1_000_000))
    assert not log.streams[0].writable
    peer.send(frames.window_update(0, 2**29))
    assert log.seen == ["drain"]
    assert log.streams[0].writable


def test_output_outside_receive_wakes_the_shell_once() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    for stream_id in (1, 3, 5):
        open_hold(peer, stream_id)
    assert peer.wakes == 0
    for call in log.unary:
        call.reply(b"x")
    assert peer.wakes == 1
    peer.read()
    peer.connection.drain(peer.now)
    assert peer.wakes == 2


# ---- time, drain, loss


def test_a_silent_client_is_not_waited_for() -> None:
    peer = Peer(greet=False)
    peer.connection.tick(peer.now + limits.HTTP2_HANDSHAKE_SECONDS - 1)
    assert not peer.connection.closed
    peer.connection.tick(peer.now + limits.HTTP2_HANDSHAKE_SECONDS + 1)
    assert goaway_of(peer.read()) is E.PROTOCOL_ERROR


def test_settings_must_be_acknowledged() -> None:
    peer = Peer(greet=False)
    peer.send(PREFACE + frames.settings({}))
    peer.connection.tick(peer.now + 3 * limits.HTTP2_HANDSHAKE_SECONDS + 1)
    assert goaway_of(peer.read()) is E.SETTINGS_TIMEOUT
    peer.connection.tick(peer.now + 99)
    assert peer.read() == []


def test_keepalive_of_the_server() -> None:
    peer = Peer()
    open_hold(peer)
    peer.connection.tick(peer.now + limits.GRPC_KEEPALIVE_SECONDS - 1)
    assert peer.read() == []
    peer.now += limits.GRPC_KEEPALIVE_SECONDS + 1
    peer.connection.tick(peer.now)
    (ping,) = peer.read()
    assert ping.kind == frames.PING
    peer.now += 5
    peer.send(frame(frames.PING, frames.ACK, 0, ping.payload))
    peer.now += limits.GRPC_KEEPALIVE_TIMEOUT_SECONDS + 1
    peer.connection.tick(peer.now)
    assert not peer.connection.closed
    peer.now += limits.GRPC_KEEPALIVE_SECONDS
    peer.connection.tick(peer.now)
    peer.read()
    peer.send(frames.window_update(0, 1))  # any sign of life will do
    peer.connection._keepalive_sent = peer.now - 1
    peer.connection.tick(peer.now)
    assert peer.connection._keepalive_sent is None
    peer.now += limits.GRPC_KEEPALIVE_SECONDS + 1
    peer.connection.tick(peer.now)
    peer.connection.tick(peer.now + limits.GRPC_KEEPALIVE_TIMEOUT_SECONDS + 1)
    assert goaway_of(peer.read()) is E.NO_ERROR


def test_a_client_that_stops_reading_is_dropped_in_the_end() -> None:
    peer = Peer()
    peer.connection.pause(peer.now)
    peer.connection.tick(peer.now + limits.HTTP2_STALL_SECONDS - 1)
    assert not peer.connection.closed
    peer.connection.tick(peer.now + limits.HTTP2_STALL_SECONDS + 1)
    assert peer.connection.closed


def test_draining_takes_nothing_new_and_finishes_the_rest() -> None:
    """Section 6.8."""
    log = Log()
    peer = Peer(echo_server(log))
    open_hold(peer)
    peer.connection.drain(peer.now)
    peer.connection.drain(peer.now)
    first, ping = peer.read()
    assert frames.uint32(first.payload) == 2**31 - 1
    found = peer.send(peer.request(3))  # was under way when GOAWAY was sent
    assert peer.answer(found, 3)[0] == [b"hi"]
    (second,) = peer.send(frame(frames.PING, frames.ACK, 0, ping.payload))
    assert frames.uint32(second.payload) == 3
    assert resets_of(peer.send(peer.request(5))) == {5: E.REFUSED_STREAM}
    assert not peer.connection.finish_drain()
    log.unary[0].reply(b"done")
    assert peer.answer(peer.read(), 1)[0] == [b"done"]
    assert peer.connection.closed
    assert log.seen == []


def test_draining_does_not_wait_for_a_ping_for_ever() -> None:
    peer = Peer()
    peer.connection.drain(peer.now)
    peer.connection.tick(peer.now + 2)
    assert peer.connection.closed
    late = Peer(peer.server)
    peer.server.drain(0)
    assert late.connection.draining
    assert Peer(peer.server).connection.draining


def test_a_drain_ends_with_a_reset_too() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    peer.connection.drain(peer.now)
    peer.connection.tick(peer.now + 2)
    assert not peer.connection.closed
    peer.connection.reset(log.streams[0], E.CANCEL)
    assert peer.connection.closed


def test_losing_the_socket_cancels_every_call() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    open_hold(peer, 1)
    open_hold(peer, 3)
    peer.server.disconnect(peer.connection)
    assert log.seen == ["cancel", "cancel"]
    assert peer.connection.closed
    assert peer.connection not in peer.server.connections
    peer.connection.lost()
    peer.connection.drain(0)
