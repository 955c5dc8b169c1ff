"""The load generator: its HTTP/2 against our server's, its checks, and other loaders' reports."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.load import calls
from benchmarks.load.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RESET,
    RST_STREAM,
    SETTINGS,
    ClientConnection,
    LoadError,
    frame,
    prefixed,
)
from benchmarks.load.spec import Outcome, Spec, Tally, percentile
from benchmarks.load.unary import ClosedLoop, jobs_of
from benchmarks.peers import tools
from benchmarks.peers.servers import Missing
from benchmarks.peers.tools import (
    BadRun,
    believed,
    combined,
    parse_check_perf,
    parse_h2load,
    parse_wrk,
)
from raftkv.api.etcd.messages import rpc_message
from tests.fuzz.grpc_peer import echo_server


class Told:
    """Keeps what a connection tells."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes]] = []
        self.ends: list[tuple[int, int]] = []

    def message(self, connection: ClientConnection, stream: int, message: bytes) -> None:
        self.messages.append((stream, message))

    def ended(self, connection: ClientConnection, stream: int, status: int) -> None:
        self.ends.append((stream, status))


def echoing() -> Any:
    """One connection to our own server."""
    return echo_server().connect(now=1.0, wake=lambda: None)


def exchange(client: ClientConnection, server: Any) -> None:
    """Carry bytes until neither has any, in small pieces."""
    while data := client.take():
        server.receive(data, 1.0)
        answer = b""
        while turn := server.take_output():
            answer += turn
            server.flushed()
        for at in range(0, len(answer), 1000):
            client.receive(answer[at : at + 1000], 1.0)


def test_calls_are_answered_one_block_for_all() -> None:
    told = Told()
    client, server = ClientConnection("x:1", told), echoing()
    sizes = []
    for number in range(6):
        client.open("/t.T/Echo", prefixed(b"hello %d" % number))
        sizes.append(sum(map(len, client.out)))
        exchange(client, server)
    assert told.messages == [(1 + 2 * n, b"hello %d" % n) for n in range(6)]
    assert told.ends == [(1 + 2 * n, 0) for n in range(6)]
    assert sizes[0] > 2 * sizes[2] and len(set(sizes[2:])) == 1  # settled: indexes only


def test_large_messages_wait_for_windows() -> None:
    told = Told()
    client, server = ClientConnection("x:1", told), echoing()
    message = bytes(range(256)) * 4000
    client.open("/t.T/Echo", prefixed(message))
    client.open("/t.T/Echo", prefixed(b"small"))
    assert sum(map(len, client.out)) < 70_000  # the default window, until the server says more
    exchange(client, server)
    assert sorted(told.messages) == [(1, message), (3, b"small")]


def test_a_refusal_is_told_with_its_status_and_text() -> None:
    told = Told()
    client, server = ClientConnection("x:1", told), echoing()
    client.open("/t.T/NoSuchMethod", prefixed(b""))
    exchange(client, server)
    assert told.ends == [(1, 12)]
    assert client.last_error.startswith("12 ")


def answered(*frames: bytes) -> tuple[Told, ClientConnection]:
    told = Told()
    client = ClientConnection("x:1", told)
    client.open("/a/b", prefixed(b""))
    client.take()
    client.receive(b"".join(frames), 1.0)
    return told, client


def test_messages_are_put_together_from_frames() -> None:
    body = prefixed(b"one") + prefixed(b"") + prefixed(b"three")
    told, _ = answered(*(frame(DATA, 0, 1, body[at : at + 3]) for at in range(0, len(body), 3)))
    assert [message for _, message in told.messages] == [b"one", b"", b"three"]


def test_pings_and_settings_are_acknowledged_and_resets_told() -> None:
    told, client = answered(
        frame(SETTINGS, 0, 0), frame(PING, 0, 0, b"12345678"), frame(RST_STREAM, 0, 1, b"\0\0\0\7")
    )
    assert client.take() == frame(SETTINGS, ACK, 0) + frame(PING, ACK, 0, b"12345678")
    assert told.ends == [(1, RESET + 7)]


@pytest.mark.parametrize(
    "bad",
    [
        frame(GOAWAY, 0, 0, b"\0" * 8 + b"enough"),
        frame(HEADERS, END_STREAM, 1, b"\x88"),  # goes on in a CONTINUATION
        frame(DATA, 8, 1, b"\1x\0"),  # padded
        frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x8d"),  # :status 404
    ],
)
def test_what_makes_a_measurement_worthless(bad: bytes) -> None:
    with pytest.raises(LoadError):
        answered(bad)


def header() -> Any:
    return rpc_message("ResponseHeader")(cluster_id=7, member_id=8, revision=300, raft_term=2)


def pair(number: int, size: int = 256) -> Any:
    return rpc_message("RangeResponse")().kvs.add(
        key=calls.key_of(number), value=calls.value_of(number, size), create_revision=2,
        mod_revision=300, version=4,
    )  # fmt: skip


def answer(name: str, **fields: Any) -> bytes:
    return bytes(rpc_message(name)(header=header(), **fields).SerializeToString())


def test_right_answers_are_accepted_and_wrong_ones_are_not() -> None:
    put, get, txn = calls.put(5, 256), calls.get(5, 256), calls.txn(5, 256)
    assert put.check(answer("PutResponse"))
    assert not put.check(answer("PutResponse", prev_kv=pair(5))) and not put.check(b"")
    assert get.check(answer("RangeResponse", kvs=[pair(5)], count=1))
    assert not get.check(answer("RangeResponse", kvs=[pair(6)], count=1))
    assert not get.check(answer("RangeResponse", kvs=[pair(5, 255)], count=1))
    assert not get.check(answer("RangeResponse"))
    assert txn.check(answer("TxnResponse", succeeded=True))
    assert not txn.check(answer("TxnResponse", succeeded=False))


def test_a_page_must_be_whole() -> None:
    page = calls.page(10, 256, 3)
    pairs = [pair(number) for number in (10, 11, 12)]
    assert page.check(answer("RangeResponse", kvs=pairs, count=9, more=True))
    assert not page.check(answer("RangeResponse", kvs=pairs[:2], count=9))
    assert not page.check(answer("RangeResponse", kvs=[*pairs[:2], pair(13)], count=9))


def test_a_lease_that_is_gone_is_not_renewed() -> None:
    lease = calls.LEASE_ID_FIRST + 3
    check = calls.keep_alive(3).check
    assert check(answer("LeaseKeepAliveResponse", ID=lease, TTL=60))
    assert not check(answer("LeaseKeepAliveResponse", ID=lease, TTL=0))
    assert not check(answer("LeaseKeepAliveResponse", ID=lease + 1, TTL=60))


def test_values_have_the_size_that_was_asked_for() -> None:
    assert [len(calls.value_of(7, size)) for size in (1, 16, 17, 256)] == [1, 16, 17, 256]


def test_keys_are_drawn_from_the_whole_space_or_taken_in_order() -> None:
    drawn = jobs_of(Spec((), "get", keys=50, value_bytes=16))
    assert len({next(drawn).body for _ in range(50)}) == 50
    in_order = [job.body for job in jobs_of(Spec((), "put", keys=3, count=5, value_bytes=16))]
    assert len(in_order) == 5 and in_order[:2] == in_order[3:]


def test_only_right_answers_within_the_time_count() -> None:
    tally = Tally(Spec((), "put", seconds=2.0, warmup_seconds=1.0, series_seconds=1.0), 10.0)
    for began, now in ((10.2, 10.5), (11.0, 11.5), (11.5, 12.5), (12.9, 13.1)):
        tally.right(began, now)
    tally.wrong("no")
    outcome = tally.outcome(13.5, cpu_seconds=1.75)
    assert (outcome.done, outcome.measured, outcome.seconds, outcome.rate) == (4, 2, 2.0, 1.0)
    assert outcome.latency_ms["p50"] == pytest.approx(500)
    assert outcome.latency_ms["max"] == pytest.approx(1000)
    assert outcome.gap_ms == pytest.approx(1000)
    assert outcome.cpu_share == pytest.approx(0.5)
    assert [point[:2] for point in outcome.series] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    with pytest.raises(BadRun, match="no"):
        believed(outcome)


def test_percentiles() -> None:
    hundred = [float(number) for number in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([], 0.5) == 0


def test_a_closed_loop_counts_an_answer_only_with_its_message_and_its_status() -> None:
    tally = Tally(Spec((), "put", seconds=10, warmup_seconds=0), 0.0)
    loop = ClosedLoop(iter([calls.put(1, 16)] * 4), tally)
    client = ClientConnection("x:1", loop)
    for _ in range(4):
        loop.next(client)
    right = answer("PutResponse")
    client.now = 1.0
    for stream, message, status in ((1, right, 0), (3, b"", 0), (5, right, 14)):
        loop.message(client, stream, message)
        loop.ended(client, stream, status)
    loop.ended(client, 7, 0)
    assert tally.done == 1
    assert tally.errors == {"an answer that is not the right one": 2, "gRPC status 14": 1}
    assert loop.under_way == 0


WRK = """Running 1s test @ http://127.0.0.1:1
  1 threads and 64 connections
bench {"requests":100,"duration_us":2000000,"errors":{"connect":0,"read":0,"write":0,"timeout":0,\
"status":0,"answer":%d},"latency_us":{"mean":1500.0,"p50":1000.0,"p90":1,"p99":1,"max":9000.0}}
"""
H2LOAD = """
finished in 1.02s, 8637.00 req/s, 1.07MB/s
requests: 8800 total, 8700 started, 8637 done, %d succeeded, %d failed, 0 errored, 0 timeout
                     min         max         mean         sd        +/- sd
time for request:      551us     56.52ms      3.59ms      2.38ms    89.34%%
"""


def test_what_wrk_says() -> None:
    outcome = parse_wrk(WRK % 0)
    assert (outcome.rate, outcome.latency_ms["mean"], outcome.errors) == (50, 1.5, {})
    assert parse_wrk(WRK % 3).errors == {"answer": 3}
    with pytest.raises(BadRun, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused")


def test_what_h2load_says() -> None:
    outcome = parse_h2load(H2LOAD % (8637, 0))
    assert outcome.measured == 8637 and outcome.latency_ms == {"mean": pytest.approx(3.59)}
    assert outcome.seconds == pytest.approx(1.02)
    assert parse_h2load(H2LOAD % (8630, 7)).errors == {"failed": 7}
    with pytest.raises(BadRun):
        parse_h2load("no")


@pytest.mark.parametrize(
    "said",
    [
        "PASS: Throughput is 150 writes/s\nPASS: Slowest request took 0.25s\nPASS\n",
        "FAIL: Throughput too low: 150 writes/s\nSlowest request took too long: 0.25s\nFAIL\n",
    ],
)
def test_what_check_perf_says(said: str) -> None:
    outcome = parse_check_perf(said)
    assert (outcome.rate, outcome.latency_ms["max"]) == (150, 250)
    with pytest.raises(BadRun, match=r"^check perf: Error: timed out$"):
        parse_check_perf(" 59 / 60   98.33%\r 60 / 60  100.00%\n{a warning}\nError: timed out\n")
    with pytest.raises(BadRun, match="it said nothing"):
        parse_check_perf("")


def test_what_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tools.DEBIAN, "no-such-loader", "no-such-package")
    monkeypatch.setattr(tools, "EXTRA", ("no_such_module",))
    with pytest.raises(Missing) as told:
        tools.check_installed()
    assert "no no-such-loader: as root, apt-get install no-such-package\n" in str(told.value) + "\n"
    assert "no no_such_module: pip install" in str(told.value)


def test_loads_side_by_side_add_up() -> None:
    one = Outcome(10, 10, 1.0, {"a": 1}, {"p50": 1.0})
    two = Outcome(20, 20, 2.0, {"a": 2}, {"p50": 3.0})
    both = combined([one, two])
    assert (both.measured, both.rate, both.errors) == (30, 15, {"a": 3})
    assert both.latency_ms == {"p50": 3.0}


def test_a_load_and_its_outcome_pass_through_json() -> None:
    spec = Spec(("a:1", "b:2"), "put", value_bytes=9)
    assert Spec.from_dict({**spec.as_dict(), "addresses": ["a:1", "b:2"]}) == spec
    with pytest.raises(TypeError):
        Spec.from_dict({"addresses": [], "call": "put", "conections": 1})
    outcome = Outcome(1, 1, 1.0, series=[(0.0, 1, 2.0)])
    assert Outcome.from_dict({**outcome.as_dict(), "series": [[0.0, 1, 2.0]]}) == outcome
