"""A recorded history survives its file, and recording refuses what makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.linearizability.history import (
    Answer,
    Compact,
    CompactAnswer,
    Compare,
    Delete,
    DeleteAnswer,
    Grant,
    History,
    KeepAlive,
    KeyRecord,
    LeaseAnswer,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Request,
    Revoke,
    Txn,
    TxnAnswer,
    WatchEvent,
    WatchLog,
    WatchResponse,
    from_json,
    to_json,
)

ANY = bytes(range(256))


def test_every_kind_of_operation_round_trips_through_a_file(tmp_path: Path) -> None:
    record = KeyRecord(ANY, b"", 2, 3, 2, 7)
    inner = Txn((Compare(b"k", "value", "!=", ANY),), (), (Put(b"k", ANY, 7),))
    txn = Txn((Compare(b"k", "mod", "<", 9),), (Delete(b"a", b"\0", True), inner, Range(ANY)))
    txn_answer = TxnAnswer(
        4,
        True,
        (
            DeleteAnswer(4, 1, (record,)),
            TxnAnswer(4, False, (PutAnswer(4),)),
            RangeAnswer(4, (), 0),
        ),
    )
    exchanges: list[tuple[Request, Answer]] = [
        (Put(ANY, ANY, 3, True), PutAnswer(2, record)),
        (Delete(b"a"), DeleteAnswer(3, 0)),
        (Range(b"", b"\0", 5, True, 3), RangeAnswer(3, (record,), 1, True)),
        (txn, txn_answer),
        (Compact(3), CompactAnswer(4)),
        (Grant(0, 10), LeaseAnswer(9, 10, 4)),
        (KeepAlive(9), LeaseAnswer(9, 10)),
        (Revoke(9), LeaseAnswer(9, 0, 5)),
    ]
    history = History()
    for number, (request, answer) in enumerate(exchanges):
        token = history.begin(number, request, number)
        history.end(token, number + 5, Outcome.OK, answer)
    history.end(history.begin(1, Put(b"r", b"1"), 20), 21, Outcome.REFUSED, error="no space")
    history.begin(1, Put(b"u", b"2"), 22)
    history.write(tmp_path / "history.ndjson")
    again = History.read(tmp_path / "history.ndjson")
    assert again.operations == history.operations
    assert again.operations[-1].outcome is Outcome.UNKNOWN
    assert again.operations[-1].returned_us is None


def test_a_watch_log_round_trips() -> None:
    event = WatchEvent("delete", KeyRecord(b"k", b"", 0, 5, 0), KeyRecord(b"k", b"v", 2, 4, 2))
    log = WatchLog(
        b"k", None, 3, True, frozenset({"put"}),
        [WatchResponse(7, 5, (event,)), WatchResponse(9, 6, progress=True)],
    )  # fmt: skip
    assert from_json(to_json(log)) == log


def test_an_operation_ends_once() -> None:
    history = History()
    token = history.begin(1, Put(b"k", b"v"), 0)
    history.end(token, 1, Outcome.UNKNOWN)
    with pytest.raises(ValueError, match="twice"):
        history.end(token, 2, Outcome.OK, PutAnswer(2))


def test_an_answer_goes_with_ok_only() -> None:
    history = History()
    token = history.begin(1, Put(b"k", b"v"), 0)
    with pytest.raises(ValueError, match="answer"):
        history.end(token, 1, Outcome.OK)
    with pytest.raises(ValueError, match="answer"):
        history.end(token, 1, Outcome.REFUSED, PutAnswer(2))
