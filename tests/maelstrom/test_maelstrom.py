"""The Maelstrom node answers by the protocol, and a broken network does not make it lie."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.linearizability.history import History, KeyRecord, Outcome, Put, PutAnswer, RangeAnswer
from tests.maelstrom.driver import Run, Settings, _request, drive, judge
from tests.maelstrom.node import Node


class Desk:
    """One node in this process, with a client that waits for its answer."""

    def __init__(self, folder: Path) -> None:
        self.node = Node(str(folder))
        self.number = 0

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.number += 1
        body = {"type": kind, "msg_id": self.number, **fields}
        self.node.take(json.dumps({"src": "c7", "dest": "n3", "body": body}))
        lines = self.node.turn().splitlines()
        [envelope] = [json.loads(line) for line in lines]
        assert (envelope["src"], envelope["dest"]) == ("n3", "c7")
        answer = envelope["body"]
        assert answer.pop("in_reply_to") == self.number
        return answer


def test_a_node_speaks_the_protocol_of_lin_kv(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "data")
    desk.node.take('{"src": "c1", "dest": "n3", "body": {"type": "read", "msg_id": 1, "key": 0}}')
    assert desk.node.turn() == "", "nothing is known before init"
    assert desk.ask("init", node_id="n3", node_ids=["n3"]) == {"type": "init_ok"}
    assert desk.ask("read", key=1)["code"] == 20
    assert desk.ask("cas", key=1, **{"from": 1, "to": 2})["code"] == 20
    assert desk.ask("write", key=1, value=5) == {"type": "write_ok"}
    assert desk.ask("read", key=1) == {"type": "read_ok", "value": 5}
    assert desk.ask("cas", key=1, **{"from": 4, "to": 6})["code"] == 22
    assert desk.ask("cas", key=1, **{"from": 5, "to": 6}) == {"type": "cas_ok"}
    assert desk.ask("read", key=1) == {"type": "read_ok", "value": 6}
    assert desk.ask("write", key=[1, {"a": None}], value={"b": [2.5]}) == {"type": "write_ok"}
    assert desk.ask("read", key=[1, {"a": None}]) == {"type": "read_ok", "value": {"b": [2.5]}}
    assert desk.ask("cas", key=1)["code"] == 12
    assert desk.ask("write", key="k" * 100_000, value=1)["code"] == 12
    assert desk.ask("broadcast", message=1)["code"] == 10


def test_without_a_majority_a_node_refuses_or_says_that_it_does_not_know(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "data")
    assert desk.ask("init", node_id="n3", node_ids=["n1", "n2", "n3"]) == {"type": "init_ok"}
    refused = desk.ask("write", key=1, value=5)
    assert (refused["type"], refused["code"]) == ("error", 11)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(seconds=2.0, seed=1, partition_seconds=0.5),
        Settings(seconds=2.0, seed=2, partition_seconds=0, kill_seconds=0.5),
    ],
    ids=["partitions", "kills"],
)
def test_clients_of_a_broken_cluster_see_one_copy(settings: Settings, tmp_path: Path) -> None:
    run = asyncio.run(drive(settings, tmp_path))
    judge(run)
    assert run.counts["ok"] >= 20 and run.counts["partitions"] + run.counts["kills"] > 0


def test_a_history_of_two_copies_is_not_accepted() -> None:
    history = History()
    seen: list[tuple[Any, Any]] = [
        (Put(b"1", b"1"), PutAnswer(0)),
        (Put(b"1", b"2"), PutAnswer(0)),
        (
            _request({"type": "read", "key": 1}),
            RangeAnswer(0, (KeyRecord(b"1", b"1", 0, 0, 0),), 1),
        ),
    ]
    for moment, (request, answer) in enumerate(seen):
        token = history.begin(1, request, 10 * moment)
        history.end(token, 10 * moment + 5, Outcome.OK, answer)
    with pytest.raises(AssertionError, match="not linearizable"):
        judge(Run(history, Counter(), []))
    with pytest.raises(AssertionError, match="ended by themselves"):
        judge(Run(History(), Counter(), ["n1"]))
