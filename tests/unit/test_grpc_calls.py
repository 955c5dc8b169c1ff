"""gRPC over a connection: messages, statuses, metadata, deadlines, and the small grammars."""

from __future__ import annotations

import asyncio
import gzip

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv import limits
from raftkv.api.grpc import frames, status
from raftkv.api.grpc.budget import Budget
from raftkv.api.grpc.calls import StreamCall, UnaryCall
from raftkv.api.grpc.frames import ErrorCode, Setting
from raftkv.api.grpc.header_blocks import Field, HeaderBlockError, HeaderDecoder, encode
from raftkv.api.grpc.messages import GZIP, CallFault, MessageReader, framed
from raftkv.api.grpc.requests import RequestHead
from raftkv.api.grpc.server import GrpcServer
from raftkv.api.grpc.status import Status
from raftkv.errors import InvariantViolation
from tests.fuzz.grpc_peer import (
    END_HEADERS,
    END_STREAM,
    Frame,
    Log,
    Peer,
    data,
    echo_server,
    fields,
    resets_of,
    setting,
)


def refusal(peer: Peer, stream_id: int, sent: bytes) -> dict[str, str]:
    """The fields of a trailers-only answer."""
    found = [f for f in peer.send(sent) if f.stream_id == stream_id and f.kind == frames.HEADERS]
    assert len(found) == 1
    assert found[0].flags == END_HEADERS | END_STREAM
    return peer.fields_of(found[0])


# ---- what is refused from the header section


@pytest.mark.parametrize(
    ("wanted", "http", "code", "text"),
    [
        (fields("/t.T/None"), "200", "12", "unknown method None for service t.T"),
        (fields("/x.Y/None"), "200", "12", "unknown service x.Y"),
        (fields("/"), "200", "12", "unknown service "),
        ([*fields()[:4], ("content-type", "text/html")], "415", "2", "'text/html'"),
        ([*fields()[:4]], "415", "2", "''"),
        ([*fields()[:4], ("content-type", "application/grpcx")], "415", "2", "application/grpcx"),
        ([(":method", "GET"), *fields()[1:]], "405", "13", "POST, not GET"),
        (fields("/t.T/Echo", ("grpc-encoding", "br")), "200", "12", "'br'"),
        (fields("/t.T/Echo", ("grpc-timeout", "5")), "200", "13", "malformed grpc-timeout"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_refusals(
    wanted: list[tuple[str, str]], http: str, code: str, text: str, whole: bool
) -> None:
    peer = Peer()
    for stream_id in (1, 3):
        sent = peer.headers(stream_id, wanted, END_HEADERS | (END_STREAM if whole else 0))
        found = peer.send(sent)
        answer = peer.fields_of(found[0])
        assert (answer[":status"], answer["grpc-status"]) == (http, code)
        assert text in answer["grpc-message"]
        # A request still coming in is told to stop, without blame (RFC 9113 section 8.1).
        assert resets_of(found) == ({} if whole else {stream_id: ErrorCode.NO_ERROR})
        if not whole:
            assert peer.send(data(stream_id, b"more", END_STREAM)) == []
    assert not peer.connection.streams


def test_an_unknown_encoding_is_told_the_known_ones() -> None:
    peer = Peer()
    sent = peer.headers(1, fields("/t.T/Echo", ("grpc-encoding", "br")), END_HEADERS | END_STREAM)
    assert refusal(peer, 1, sent)["grpc-accept-encoding"] == "identity,gzip"


@pytest.mark.parametrize("suffix", ["", "+proto", ";charset=utf-8"])
def test_content_types_of_grpc(suffix: str) -> None:
    peer = Peer()
    wanted = [*fields()[:4], ("content-type", "application/grpc" + suffix)]
    found = peer.send(peer.headers(1, wanted) + data(1, framed(b"m"), 1))
    assert peer.answer(found, 1)[0] == [b"m"]


def test_other_requests_may_have_an_application_of_their_own() -> None:
    class Http:
        def interpret(self, head: RequestHead) -> RequestHead:
            head.opens = StreamCall  # type: ignore[assignment]
            seen.append((head.method, head.path, head.authority, head.scheme))
            raise_if_oversized(head)
            return head

        def vary(self, head: RequestHead, field: Field) -> None:
            return None

    def raise_if_oversized(head: RequestHead) -> None:
        assert not head.oversized

    seen: list[object] = []
    server = GrpcServer(http=Http())
    found = server.interpret(
        RequestHead(
            [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/x"), (b"host", b"h")]
        )
    )
    assert seen == [(b"GET", b"/x", b"h", b"http")]
    assert found.malformed == ""


def test_registration_is_checked() -> None:
    server = echo_server()
    for path in ("/t.T/Echo", "no", "/a/b/c"):
        with pytest.raises(InvariantViolation):
            server.unary(path, lambda call, message: None)
    assert server.services == ["t.T"]
    assert "/t.T/Bidi" in server.paths


# ---- unary messages


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 6, 50])
def test_a_unary_message_in_pieces(cut: int) -> None:
    peer = Peer()
    body = framed(b"x" * 90)
    parts = [body[:cut], body[cut:60], body[60:], b""]
    sent = peer.headers(1) + b"".join(data(1, part) for part in parts)
    found = peer.send(sent)
    assert [f.kind for f in found] == []
    found = peer.send(data(1, b"", END_STREAM))
    assert peer.answer(found, 1) == ([b"x" * 90], {"grpc-status": "0"})
    assert peer.connection.input_bytes == 0


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([b""], "missing"),
        ([b"\0\0"], "cut short"),
        ([framed(b"abc")[:-1]], "cut short"),
        ([framed(b"a") + framed(b"b")], "more than one"),
        ([framed(b"a"), framed(b"b")], "more than one"),
        ([framed(b"a"), b"\0", b""], "more than one"),
        ([framed(b"a") + b"\0"], "more than one"),
        ([framed(b"a") + b"\0", b""], "more than one"),
        ([b"\1" + framed(b"a")[1:]], "without a grpc-encoding"),
        ([b"\2" + framed(b"a")[1:]], "flag 2"),
    ],
)
def test_unary_bodies_that_are_not_one_message(parts: list[bytes], text: str) -> None:
    peer = Peer()
    sent = peer.headers(1)
    for number, part in enumerate(parts):
        sent += data(1, part, END_STREAM if number == len(parts) - 1 else 0)
    found = peer.send(sent)
    answer = peer.fields_of(found[0])
    assert answer["grpc-status"] == "13"
    assert text in answer["grpc-message"]
    assert peer.connection.input_bytes == 0
    assert not peer.connection.streams


def test_a_body_that_ends_in_the_header_section() -> None:
    peer = Peer()
    answer = refusal(peer, 1, peer.headers(1, flags=END_HEADERS | END_STREAM))
    assert answer["grpc-status"] == "13"


@pytest.mark.parametrize("path", ["/t.T/Echo", "/t.T/Bidi"])
def test_too_large_is_said_before_it_is_taken_in(path: str) -> None:
    peer = Peer()
    limit = limits.GRPC_MESSAGE_BYTES_MAX
    start = peer.headers(1, fields(path)) + data(1, b"\0" + (limit + 1).to_bytes(4, "big") + b"x")
    found = peer.send(start)
    answer = peer.fields_of(found[0])
    assert answer["grpc-status"] == "8"
    assert f"{limit + 1} vs. {limit}" in answer["grpc-message"]
    assert resets_of(found) == {1: ErrorCode.NO_ERROR}
    assert peer.connection.input_bytes == 0


def test_too_large_for_a_server_with_a_smaller_limit() -> None:
    server = GrpcServer(message_bytes_max=10)
    server.unary("/t.T/Echo", lambda call, message: call.reply(message))
    peer = Peer(server)
    assert peer.answer(peer.send(peer.request(1, b"x" * 10)), 1)[0] == [b"x" * 10]
    assert peer.answer(peer.send(peer.request(3, b"x" * 11)), 3)[1]["grpc-status"] == "8"


def test_gzip_is_bounded_by_what_it_becomes() -> None:
    peer = Peer()
    gz = ("grpc-encoding", "gzip")

    def ask(stream_id: int, content: bytes) -> tuple[list[bytes], dict[str, str]]:
        body = b"\1" + len(content).to_bytes(4, "big") + content
        sent = peer.headers(stream_id, fields("/t.T/Echo", gz)) + data(stream_id, body, 1)
        return peer.answer(peer.send(sent), stream_id)

    assert ask(1, gzip.compress(b"hello" * 100))[0] == [b"hello" * 100]
    bomb = gzip.compress(bytes(limits.GRPC_MESSAGE_BYTES_MAX + 1))
    assert len(bomb) < 16_000
    assert ask(3, bomb)[1]["grpc-status"] == "8"
    whole = gzip.compress(b"hello")
    for stream_id, broken in ((5, b"no gzip"), (7, whole[:-1]), (9, whole + b"x"), (11, b"")):
        assert ask(stream_id, broken)[1]["grpc-status"] == "13"
    exact = bytes(limits.GRPC_MESSAGE_BYTES_MAX)
    reader = MessageReader(GZIP, len(exact))
    content = gzip.compress(exact)
    assert reader.feed(b"\1" + len(content).to_bytes(4, "big") + content) == [exact]


@given(st.lists(st.binary(max_size=50)), st.lists(st.integers(1, 30)))
def test_messages_do_not_depend_on_how_bytes_arrive(messages: list[bytes], cuts: list[int]) -> None:
    body = b"".join(map(framed, messages))
    reader = MessageReader(0, 100)
    found: list[bytes] = []
    at = 0
    for cut in cuts:
        found += reader.feed(body[at : at + cut])
        at += cut
    found += reader.feed(body[at:])
    assert found == messages
    assert len(reader) == 0


# ---- statuses and metadata


@given(st.text())
def test_percent_encoding(text: str) -> None:
    from urllib.parse import unquote

    raw = status.percent_encode(text)
    assert all(0x20 <= byte <= 0x7E for byte in raw)
    assert unquote(raw.decode(), errors="strict") == text.encode("utf-8", "replace").decode()


def test_long_status_messages_are_cut_at_a_character() -> None:
    raw = status.percent_encode("\u00fc" * limits.GRPC_STATUS_MESSAGE_BYTES_MAX + "x")
    assert len(raw) == 3 * limits.GRPC_STATUS_MESSAGE_BYTES_MAX
    odd = status.percent_encode("x" + "\u00fc" * limits.GRPC_STATUS_MESSAGE_BYTES_MAX)
    assert odd.endswith(b"%C3%BC")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600),
        (b"2M", 120),
        (b"3S", 3),
        (b"4m", 0.004),
        (b"5u", 0.000005),
        (b"99999999n", 0.099999999),
        (b"0S", 0),
        (b"123456789S", None),
        (b"S", None),
        (b"-1S", None),
        (b"1.5S", None),
        (b"1s", None),
        (b"1S ", None),
        (b"", None),
    ],
)
def test_timeouts(value: bytes, seconds: float | None) -> None:
    assert status.parse_timeout(value) == (None if seconds is None else pytest.approx(seconds))


def test_metadata_of_a_request() -> None:
    found = status.request_metadata(
        [
            (b":path", b"/x"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"grpc-timeout", b"1S"),
            (b"a", b"1"),
            (b"b-bin", b"AAE, /w=="),
            (b"c-bin", b"!!"),
            (b"a", b"\xfc"),
        ]
    )
    assert found == [("a", "1"), ("b-bin", b"\0\1"), ("b-bin", b"\xff"), ("a", "\xfc")]


def test_metadata_that_cannot_be_sent() -> None:
    for name, value in (
        ("Upper", "x"),
        ("grpc-status", "0"),
        ("", "x"),
        ("a", "line\nbreak"),
        ("a", b"bytes"),
    ):
        with pytest.raises(ValueError, match="metadata"):
            status.metadata_fields([(name, value)])
    assert status.metadata_fields([("a-bin", "\u00fc"), ("b", " x ")]) == [
        (b"a-bin", b"w7w"),
        (b"b", b"x"),
    ]


def test_every_way_to_end_a_call() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(b"".join(peer.request(n, b"", "/t.T/Hold") for n in (1, 3, 5)))
    one, three, five = log.unary
    one.fail(Status.ABORTED, "why", b"details")
    three.fail(Status.ABORTED, "why", trailing=[("extra", "1")])
    five.initial = [("first", "1")]
    five.reply(b"m", trailing=[("extra", "2")])
    found = peer.read()
    by_stream: dict[int, list[Frame]] = {}
    for each in found:
        by_stream.setdefault(each.stream_id, []).append(each)
    answers = {n: [peer.fields_of(f) for f in by_stream[n] if f.kind == 1] for n in (1, 3, 5)}
    assert [a["grpc-status-details-bin"] for a in answers[1]] == ["ZGV0YWlscw"]
    assert answers[3][0]["extra"] == "1"
    assert answers[5][0]["first"] == "1"
    assert answers[5][1] == {"grpc-status": "0", "extra": "2"}

    peer.send(b"".join(peer.headers(n, fields("/t.T/Sink")) for n in (7, 9, 11, 13)))
    a, b, c, d = log.streams
    a.fail(Status.ABORTED, "early", b"d")
    b.initial = [("first", "1")]
    b.fail(Status.ABORTED, "late", trailing=[("extra", "1")])
    c.send(b"m")
    c.send_headers()
    c.fail(Status.NOT_FOUND, "after")
    d.finish([("extra", "2")])
    for call in (a, b, c, d):
        assert not call.send(b"too late")
        call.finish()
        call.send_headers()
    found = peer.read()
    sections = {
        n: [peer.fields_of(f) for f in found if f.kind == 1 and f.stream_id == n]
        for n in (7, 9, 11, 13)
    }
    assert [len(sections[n]) for n in (7, 9, 11, 13)] == [1, 2, 2, 1]
    assert sections[7][0]["grpc-message"] == "early"
    assert sections[9][1] == {"grpc-status": "10", "grpc-message": "late", "extra": "1"}
    assert sections[11][1] == {"grpc-status": "5", "grpc-message": "after"}
    assert sections[13][0]["extra"] == "2"
    assert resets_of(found) == dict.fromkeys((7, 9, 11, 13), ErrorCode.NO_ERROR)
    assert not peer.connection.streams


def test_what_a_call_knows_of_its_client() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.request(1, b"", "/t.T/Hold", ("token", "abc")))
    (call,) = log.unary
    assert call.peer == ""
    for name, text in (
        (("1.2.3.4", 5), "1.2.3.4:5"),
        (("::1", 5, 0, 0), "::1:5"),
        ("/run/socket", "/run/socket"),
        (None, ""),
    ):
        peer.connection.info = {"peername": name}.get
        assert call.peer == text
    assert call.meta("token") == "abc"
    assert call.meta("none") is None
    assert call.path == "/t.T/Hold"
    assert call.deadline is None


# ---- deadlines and cancellation


def test_deadlines() -> None:
    log = Log()
    armed: list[int] = []
    server = echo_server(log)
    server.on_timed = lambda: armed.append(1)
    peer = Peer(server)
    for stream_id, seconds in ((1, "1S"), (3, "3S")):
        peer.send(peer.request(stream_id, b"", "/t.T/Hold", ("grpc-timeout", seconds)))
    assert armed == [1]
    assert log.unary[0].deadline == peer.now + 1
    assert server.expire(peer.now + 0.9)
    assert peer.read() == []
    assert server.expire(peer.now + 1.0)
    assert peer.answer(peer.read(), 1)[1] == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "4",
        "grpc-message": "context deadline exceeded",
    }
    assert log.seen == ["cancel"]
    log.unary[1].reply(b"in time")
    assert not peer.connection.deadlines
    assert not server.expire(peer.now + 9)
    assert not server.timed
    peer.read()
    peer.send(peer.request(5, b"", "/t.T/Hold", ("grpc-timeout", "1S")))
    assert armed == [1, 1]
    server.disconnect(peer.connection)
    assert not server.expire(peer.now + 9)


def test_deadlines_that_change_with_every_call_share_the_rest() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    for number in range(50):
        extra = (("grpc-timeout", f"{number + 1}S"), ("token", "abc"))
        peer.send(peer.request(2 * number + 1, b"", "/t.T/Hold", *extra))
    assert [call.deadline for call in log.unary] == [peer.now + n + 1 for n in range(50)]
    assert len(peer.connection._by_fields) == 1
    assert {call.meta("token") for call in log.unary} == {"abc"}
    # What only the field itself breaks is still broken.
    late = [("grpc-timeout", "1S"), *fields()]
    assert resets_of(peer.send(peer.headers(201, late))) == {201: ErrorCode.PROTOCOL_ERROR}
    bad = peer.headers(203, fields("/t.T/Echo", ("grpc-timeout", "1 S")))
    assert peer.fields_of(peer.send(bad)[0])["grpc-status"] == "13"
    both = peer.headers(205, fields("/t.T/Echo", ("grpc-timeout", "1S"), ("Bad", "x")))
    assert resets_of(peer.send(both)) == {205: ErrorCode.PROTOCOL_ERROR}
    none = peer.headers(207, fields("/t.T/None", ("grpc-timeout", "1S")))
    assert peer.fields_of(peer.send(none)[0])["grpc-status"] == "12"
    long = peer.request(209, b"m", "/t.T/Echo", ("grpc-timeout", "1S"), ("token", "t" * 3000))
    assert peer.answer(peer.send(long), 209)[0] == [b"m"]
    assert len(peer.connection._by_fields) == 3
    for number in range(2 * limits.HTTP2_MEMO_BLOCKS_MAX):
        extra = (("grpc-timeout", "1S"), ("token", f"{number}"))
        peer.send(peer.request(211 + 2 * number, b"", "/t.T/Echo", *extra))
    assert len(peer.connection._by_fields) <= limits.HTTP2_MEMO_BLOCKS_MAX


@pytest.mark.parametrize("complete", [True, False])
def test_a_deadline_cuts_off_an_answer_that_is_stuck(complete: bool) -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 10))
    peer.send(peer.headers(1, fields("/t.T/Sink", ("grpc-timeout", "1S"))))
    log.streams[0].send(bytes(100))
    if complete:
        log.streams[0].finish()
    peer.read()
    peer.server.expire(peer.now + 2)
    assert resets_of(peer.read()) == {1: ErrorCode.CANCEL}
    assert log.seen == ([] if complete else ["cancel"])
    assert peer.connection.held_bytes == 0


def test_a_handler_that_fails_in_any_callback_fails_its_call_only() -> None:
    log = Log()
    server = echo_server(log)

    def bad(call: StreamCall) -> None:
        call.on_message = lambda message: [][0]
        call.on_end = lambda: [][0]
        call.on_drain = lambda: [][0]
        call.on_cancel = lambda: [][0]
        log.streams.append(call)

    def refuses(call: UnaryCall, message: bytes) -> None:
        raise CallFault(Status.NOT_FOUND, "not here")

    def at_once(call: StreamCall) -> None:
        raise CallFault(Status.NOT_FOUND, "not there")

    server.streaming("/t.T/Bad", bad)
    server.unary("/t.T/Refuses", refuses)
    server.streaming("/t.T/AtOnce", at_once)
    peer = Peer(server)
    found = peer.send(peer.headers(1, fields("/t.T/Bad")) + data(1, framed(b"m")))
    assert peer.answer(found, 1)[1]["grpc-status"] == "13"
    found = peer.send(peer.headers(3, fields("/t.T/Bad"), END_HEADERS | END_STREAM))
    assert peer.answer(found, 3)[1]["grpc-status"] == "13"
    peer.send(peer.headers(5, fields("/t.T/Bad")))
    peer.connection.pause(peer.now)
    assert not log.streams[-1].send(b"x")
    peer.connection.resume()
    assert peer.answer(peer.read(), 5)[1]["grpc-status"] == "13"
    peer.send(peer.headers(7, fields("/t.T/Bad")) + frames.rst_stream(7, ErrorCode.CANCEL))
    assert [type(error) for error in log.seen] == [IndexError] * 4
    assert peer.answer(peer.send(peer.request(9, b"", "/t.T/Refuses")), 9)[1]["grpc-status"] == "5"
    found = peer.send(peer.headers(11, fields("/t.T/AtOnce")))
    assert peer.answer(found, 11)[1]["grpc-message"] == "not there"


# ---- streams


def test_messages_of_a_stream_in_order_and_its_end() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    body = framed(b"a") + framed(b"") + framed(b"c" * 300)
    peer.send(peer.headers(1, fields("/t.T/Sink")) + data(1, body[:9]))
    peer.send(data(1, body[9:200]) + data(1, body[200:]))
    assert log.seen == [b"a", b"", b"c" * 300]
    peer.send(data(1, framed(b"last"), END_STREAM))
    assert log.seen[3:] == [b"last", "end"]
    log.streams[0].finish()
    assert peer.answer(peer.read(), 1)[1]["grpc-status"] == "0"


def test_messages_that_come_together_are_taken_together() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.headers(1, fields("/t.T/Sink")) + peer.headers(3, fields("/t.T/Sink")))
    call, other = log.streams
    runs: list[list[bytes]] = []
    call.on_run = runs.append
    sent = [b"%04d" % n for n in range(50)]
    frames_of_one = [data(1, framed(m)) for m in sent]
    peer.send(b"".join(frames_of_one))
    assert runs == [sent]
    # Of other streams, flags and sizes nothing is mixed in, and what is cut waits for its rest.
    peer.send(
        b"".join(frames_of_one[:3]) + data(3, framed(b"else")) + data(1, framed(b"longer"))
        + b"".join(frames_of_one[3:5]) + frames_of_one[5][:-1]
    )  # fmt: skip
    peer.send(frames_of_one[5][-1:] + data(1, framed(b"last"), END_STREAM))
    assert [m for run in runs[1:] for m in run] == [*sent[:3], b"longer", *sent[3:6]]
    assert log.seen == [b"else", b"last", "end"]
    assert other.credit == call.credit - len(framed(b"else")) + len(
        b"".join([framed(m) for m in (*sent, *sent[:6], b"longer", b"last")])
    )


def test_messages_that_straddle_frames_alike_come_out_whole() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    (call,) = log.streams
    runs: list[list[bytes]] = []
    call.on_run = runs.append
    body = b"".join(framed(b"%03d" % n) for n in range(250))
    assert len(body) % 20 == 0
    peer.send(b"".join(data(1, body[at : at + 20]) for at in range(0, len(body), 20)))
    assert [m for run in runs for m in run] == [b"%03d" % n for n in range(250)]
    call.pause()
    peer.send(b"".join(data(1, framed(b"%d" % n)) for n in range(5)))
    assert len(runs) == 1
    call.resume()
    assert log.seen == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("too_many", [0, 1, 40])
def test_frames_alike_are_held_to_the_window(too_many: int) -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    (call,) = log.streams
    call.pause()
    part = data(1, framed(bytes(195)))
    whole = limits.HTTP2_STREAM_WINDOW_BYTES // 200
    found = peer.send(part * (whole + too_many))
    assert resets_of(found) == ({1: ErrorCode.FLOW_CONTROL_ERROR} if too_many else {})
    if not too_many:
        assert call.credit == limits.HTTP2_STREAM_WINDOW_BYTES - whole * 200


def test_a_stream_cut_inside_a_message() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    found = peer.send(peer.headers(1, fields("/t.T/Sink")) + data(1, framed(b"abc")[:-1], 1))
    assert peer.answer(found, 1)[1]["grpc-message"] == "request message cut short"
    assert log.seen == ["cancel"]


def test_a_paused_stream_keeps_messages_then_makes_the_client_wait() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.headers(1, fields("/t.T/Sink")))
    (call,) = log.streams
    call.pause()
    sent = [b"%07d" % n * 1000 for n in range(100)]
    granted = [f for m in sent for f in peer.send(data(1, framed(m))) if f.stream_id == 1]
    assert log.seen == []
    assert granted == []
    assert peer.connection.input_bytes == 700_000
    call.resume()
    assert log.seen == sent
    assert peer.connection.input_bytes == 0
    (update,) = peer.read()
    assert frames.uint31(update.payload) == sum(len(framed(m)) for m in sent)
    call.pause()
    peer.send(data(1, framed(b"x")) + data(1, b"", END_STREAM))
    assert log.seen[100:] == []
    call.on_message = lambda message: (log.seen.append(message), call.pause())  # type: ignore[assignment,func-returns-value]
    call.resume()
    assert log.seen[100:] == [b"x"]
    call.resume()
    assert log.seen[100:] == [b"x", "end"]


def test_server_streaming_takes_exactly_one_message() -> None:
    server = GrpcServer()

    def repeat(call: StreamCall, message: bytes) -> None:
        call.send(message)
        call.send(message)
        call.finish()

    server.server_streaming("/t.T/Repeat", repeat)
    peer = Peer(server)
    assert peer.answer(peer.send(peer.request(1, b"r", "/t.T/Repeat")), 1)[0] == [b"r", b"r"]
    sent = peer.headers(3, fields("/t.T/Repeat"), END_HEADERS | END_STREAM)
    assert peer.answer(peer.send(sent), 3)[1]["grpc-message"] == "request message missing"
    sent = peer.headers(5, fields("/t.T/Repeat")) + data(5, framed(b"1") + framed(b"2"), 1)
    assert peer.answer(peer.send(sent), 5)[1]["grpc-message"] == "more than one request message"


def test_stop_calls() -> None:
    log = Log()
    peer = Peer(echo_server(log))
    peer.send(peer.request(1, b"", "/t.T/Hold") + peer.headers(3, fields("/t.T/Sink")))
    peer.server.stop_calls()
    found = peer.read()
    assert peer.answer(found, 1)[1]["grpc-status"] == "14"
    assert peer.answer(found, 3)[1]["grpc-status"] == "14"
    assert log.seen == ["cancel", "cancel"]
    peer.server.tick(peer.now)


# ---- HPACK


@st.composite
def conversations(draw: st.DrawFn) -> list[list[tuple[bytes, bytes, bool]] | int]:
    names = st.sampled_from(
        [b":path", b":method", b"content-type", b"x-long", b"custom", b"n" * 60]
    )
    values = st.sampled_from([b"POST", b"/", b"application/grpc", b"", b"v" * 900, b"\xfc\x00"])
    field = st.tuples(names, values | st.binary(max_size=20), st.booleans())
    return draw(st.lists(st.lists(field, max_size=8) | st.integers(0, 4096), max_size=12))


@given(conversations(), st.booleans())
def test_blocks_decode_as_the_reference_does(
    steps: list[list[tuple[bytes, bytes, bool]] | int], huffman: bool
) -> None:
    """Our decoder against the `hpack` package's, table and all, and memo rules against truth."""
    encoder, reference = hpack.Encoder(), hpack.Decoder()
    ours = HeaderDecoder(4096, 1 << 20)
    remembered: dict[bytes, list[tuple[bytes, bytes]]] = {}
    forever: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for step in steps:
        if isinstance(step, int):
            # Setting the size that is set already makes this encoder forget to announce it.
            if step != encoder.header_table_size:
                encoder.header_table_size = step
            continue
        block = encoder.encode(step, huffman=huffman)
        wanted = [(bytes(n), bytes(v)) for n, v in reference.decode(block, raw=True)]
        if block in forever:
            assert forever[block] == wanted
        if block in remembered:
            assert remembered[block] == wanted
        assert ours.decode(block) == wanted
        assert ours.table_bytes == reference.header_table._current_size
        if ours.keeps == 2:
            remembered.clear()
        elif ours.keeps == 1:
            remembered[block] = wanted
        else:
            forever[block] = wanted


@given(st.binary(max_size=60))
def test_any_octets_decode_or_are_refused_as_the_reference_does(block: bytes) -> None:
    ours, reference = HeaderDecoder(4096, 1 << 20), hpack.Decoder(1 << 20)
    try:
        wanted = [(bytes(n), bytes(v)) for n, v in reference.decode(block, raw=True)]
    except hpack.HPACKError:
        with pytest.raises(HeaderBlockError):
            ours.decode(block)
    else:
        assert ours.decode(block) == wanted


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.binary(max_size=300))))
def test_our_blocks_need_no_table(wanted: list[tuple[bytes, bytes]]) -> None:
    reference = hpack.Decoder(1 << 20)
    block = encode(wanted)
    for _ in range(2):
        assert [tuple(f) for f in reference.decode(block, raw=True)] == wanted
    assert reference.header_table._current_size == 0


def test_a_list_over_the_limit_is_cut_but_the_table_is_right() -> None:
    decoder = HeaderDecoder(4096, 100)
    block = hpack.Encoder().encode([("a", "1"), ("b", "v" * 60), ("c", "3")])
    assert decoder.decode(block) == [(b"a", b"1")]
    assert decoder.oversized
    assert decoder.table_bytes == 34 + 93 + 34
    assert decoder.decode(b"\xbe") == [(b"c", b"3")]
    assert not decoder.oversized


def test_budgets() -> None:
    budget = Budget(3, 2)
    assert [budget.spend(10.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.spend(10.6) for _ in range(2)] == [True, False]
    assert [budget.spend(99.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.spend(50.0)  # a clock that steps back gives nothing


async def test_async_calls_wait_for_slow_clients() -> None:
    from raftkv.api.grpc.streams import AsyncCall, serve_async

    seen: list[object] = []

    async def handler(call: AsyncCall) -> None:
        assert call.metadata == []
        seen.append(await call.receive())
        for number in range(3):
            await call.send(b"%d" % number * 5000)
            seen.append(number)
        async for message in call:
            seen.append(message)
        raise LookupError("bug")

    server = GrpcServer(on_error=seen.append)
    server.streaming("/t.T/S", serve_async(handler))
    peer = Peer(server)
    peer.send(peer.headers(1, fields("/t.T/S")))
    peer.connection.pause(peer.now)
    peer.send(b"".join(data(1, framed(b"%d" % n)) for n in range(40)))
    await asyncio.sleep(0.01)
    assert seen == [b"0"]
    peer.connection.resume()
    await asyncio.sleep(0.01)
    assert seen[:4] == [b"0", 0, 1, 2]
    peer.send(data(1, b"", END_STREAM))
    await asyncio.sleep(0.01)
    assert seen[4:-1] == [b"%d" % n for n in range(1, 40)]
    assert isinstance(seen[-1], LookupError)
    assert peer.answer(peer.read(), 1)[1]["grpc-status"] == "13"
    peer.send(peer.headers(3, fields("/t.T/S")))
    await asyncio.sleep(0)
    peer.send(data(3, framed(b"x")) + frames.rst_stream(3, ErrorCode.CANCEL))
    await asyncio.sleep(0.01)
    assert not peer.connection.streams
