"""The sans-I/O half of HTTP/1.1: whatever comes, a request, a refusal, or nothing yet."""

from __future__ import annotations

import random

import pytest

from raftkv.api.http import parser as parser_module
from raftkv.api.http.parser import Request, RequestParser
from raftkv.api.http.refusals import RequestTimedOut
from raftkv.api.outcomes import http_outcome
from raftkv.limits import (
    HTTP_BODY_BYTES_MAX,
    HTTP_HEADER_BYTES_MAX,
    HTTP_HEADERS_MAX,
    HTTP_TARGET_BYTES_MAX,
)


def feed(*chunks: bytes) -> tuple[list[Request], RequestParser]:
    got: list[Request] = []
    parser = RequestParser(got.append)
    for chunk in chunks:
        parser.feed(chunk)
    return got, parser


def status_of(request: Request) -> int:
    assert request.refusal is not None
    return http_outcome(request.refusal).status


PUT = (
    b"PUT /api/kv/a%20b?x=1&y HTTP/1.1\r\nHost: h\r\nX-One: 1\r\nX-One: 2\r\n"
    b"Content-Length: 5\r\n\r\nhello"
)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 1000])
def test_a_request_is_the_same_however_it_is_cut(step: int) -> None:
    stream = PUT + PUT
    got, parser = feed(*(stream[at : at + step] for at in range(0, len(stream), step)))
    assert len(got) == 2
    for request in got:
        assert (request.method, request.path, request.query) == (b"PUT", b"/api/kv/a%20b", b"x=1&y")
        assert request.body == b"hello"
        assert request.headers[b"x-one"] == b"1, 2"
        assert request.keep_alive and request.refusal is None
    assert not parser.mid_message


def test_a_chunked_body_is_joined_and_trailers_mean_nothing() -> None:
    got, _ = feed(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"3;ext=1\r\nabc\r\n",
        b"2\r\nde\r\n0\r\nX-Trailer: t\r\n\r\n",
    )
    assert got[0].body == b"abcde"
    assert b"x-trailer" not in got[0].headers


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"QUACK / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_refused_once(message: bytes) -> None:
    got, parser = feed(message, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert [status_of(request) for request in got] == [400]
    assert parser.finished and not got[0].keep_alive


def test_other_versions_are_refused() -> None:
    assert status_of(feed(b"GET / HTTP/2.0\r\nHost: h\r\n\r\n")[0][0]) == 505
    assert status_of(feed(b"GET /\r\n\r\n")[0][0]) == 505


def test_http_1_0_needs_no_host_and_closes() -> None:
    (request,), parser = feed(b"GET / HTTP/1.0\r\n\r\n")
    assert request.refusal is None and not request.keep_alive and parser.finished
    (request,), parser = feed(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert request.keep_alive and request.version == "1.0" and not parser.finished


def test_a_declared_body_over_the_limit_is_refused_before_it_comes() -> None:
    got, _ = feed(
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (HTTP_BODY_BYTES_MAX + 1)
    )
    assert status_of(got[0]) == 413
    got, parser = feed(
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % HTTP_BODY_BYTES_MAX
    )
    assert not got and parser.mid_message


def test_a_chunked_body_over_the_limit_is_refused() -> None:
    head = b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    got, _ = feed(head, *[chunk] * (HTTP_BODY_BYTES_MAX // 2**20 + 1))
    assert status_of(got[0]) == 413


def test_chunk_extensions_without_end_are_refused() -> None:
    head = b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;"
    rounds = 2 * HTTP_BODY_BYTES_MAX // 2**18 + 2
    got, _ = feed(head, *[b"e" * 2**18] * rounds)
    assert status_of(got[0]) == 413


def test_trailers_without_end_are_refused() -> None:
    head = b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    got, _ = feed(head, *[b"X-T: %s\r\n" % (b"t" * 1000)] * 100)
    assert status_of(got[0]) == 431


def test_headers_over_their_limits_are_refused() -> None:
    head = b"GET / HTTP/1.1\r\nHost: h\r\n"
    got, _ = feed(head + b"A: b\r\n" * HTTP_HEADERS_MAX + b"\r\n")
    assert status_of(got[0]) == 431
    got, _ = feed(head + b"A: " + b"b" * HTTP_HEADER_BYTES_MAX + b"\r\n\r\n")
    assert status_of(got[0]) == 431
    got, _ = feed(head + b"A: b\r\n" * (HTTP_HEADERS_MAX - 1) + b"\r\n")
    assert got[0].refusal is None


def test_a_head_that_never_ends_is_refused_in_bounded_memory() -> None:
    got, _ = feed(b"GET / HTTP/1.1\r\nHost: h\r\nA: ", *[b"b" * 2**16] * 8)
    assert status_of(got[0]) == 431
    got, _ = feed(b"GET /", *[b"b" * 2**16] * 8)
    assert status_of(got[0]) == 414


def test_a_target_has_its_limit() -> None:
    path = b"/" + b"a" * (HTTP_TARGET_BYTES_MAX - 1)
    assert feed(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)[0][0].refusal is None
    assert status_of(feed(b"GET %ba HTTP/1.1\r\nHost: h\r\n\r\n" % path)[0][0]) == 414


def test_expectations() -> None:
    asked = []
    got: list[Request] = []
    parser = RequestParser(got.append, lambda: asked.append(True))
    head = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: %b\r\n\r\n"
    parser.feed(head % b"100-Continue")
    assert asked == [True] and not got
    parser.feed(b"x")
    assert got[0].body == b"x"
    parser.feed(head % b"tea")
    assert status_of(got[1]) == 417


def test_an_upgrade_is_answered_as_it_stands() -> None:
    got, parser = feed(
        b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0"
    )
    assert [request.path for request in got] == [b"/x"] and got[0].refusal is None
    assert parser.finished and not got[0].keep_alive


def test_a_message_that_takes_too_long_is_given_up() -> None:
    got, parser = feed(b"GET /half HTTP/1.1\r\nHo")
    assert parser.mid_message and parser.begun == 1
    parser.timed_out(RequestTimedOut("late"))
    parser.timed_out(RequestTimedOut("late"))
    assert [status_of(request) for request in got] == [408]
    assert not parser.mid_message
    parser.close()
    parser.feed(b"x")
    assert len(got) == 1


def test_nothing_is_delivered_after_the_last_request() -> None:
    got, _ = feed(
        b"GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"
    )
    assert [request.path for request in got] == [b"/1"]


SEEDS = (
    PUT,
    b"GET /api/kv?prefix=a&limit=2 HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n",
    b"POST /api/txn HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b'DELETE /api/kv/x HTTP/1.0\r\nConnection: keep-alive\r\nIf-Match: "7"\r\n\r\n',
)


def mutated(rng: random.Random) -> bytes:
    """A stream of messages with a few bytes changed, lost, doubled or inserted."""
    data = bytearray(b"".join(rng.choices(SEEDS, k=rng.randint(1, 4))))
    for _ in range(rng.randint(0, 6)):
        at = rng.randrange(len(data) + 1)
        choice = rng.randrange(4)
        if choice == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif choice == 1:
            del data[at : at + rng.randint(1, 8)]
        elif choice == 2:
            data[at:at] = rng.choice(
                [
                    b"\r\n",
                    b"\n",
                    b"\0",
                    b":",
                    b" ",
                    b"%",
                    b"Content-Length: 1\r\n",
                    rng.randbytes(5),
                ]
            )
        else:
            data[at:at] = data[at : at + rng.randint(1, 30)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(40))
def test_fuzz_a_request_or_a_4xx_and_nothing_else(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any bytes, in any pieces. Reproduce with the seed in the test's name."""
    monkeypatch.setattr(parser_module, "HTTP_BODY_BYTES_MAX", 4096)
    rng = random.Random(seed)
    for _ in range(100):
        got: list[Request] = []
        parser = RequestParser(got.append, lambda: None)
        data = mutated(rng)
        at = 0
        while at < len(data):
            step = rng.choice([1, 3, 10, 100, 10_000])
            parser.feed(data[at : at + step])
            at += step
        for request in got[:-1]:
            assert request.refusal is None
        for request in got:
            if request.refusal is not None:
                assert status_of(request) in (400, 413, 414, 417, 431, 505)
                assert parser.finished
            assert len(request.body) <= 4096
