"""Transactions over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.limits import TXN_NESTING_MAX, TXN_OPERATIONS_MAX
from tests.unit.http_support import serving


async def test_both_branches_answer_in_place() -> None:
    async with serving() as served:
        await served.call("PUT", "/api/kv/a", b"1")
        txn = {
            "if": [
                {"key": "a", "target": "value", "op": "=", "operand": "1"},
                {"key": "a", "target": "version", "op": "<", "operand": 5},
                {"key": "a", "target": "mod_revision", "op": ">", "operand": 1},
                {"key": "a", "target": "create_revision", "op": "!=", "operand": 9},
                {"key": "a", "target": "lease", "operand": None},
                {"key": "a", "target": "exists"},
                {"key": "b", "target": "exists", "operand": False},
                {"prefix": "a", "target": "value", "operand": "MQ==", "encoding": "base64"},
                {"key": "a", "range_end": "b", "target": "version", "operand": 1},
            ],
            "then": [
                {"op": "put", "key": "b", "value": "AP8=", "encoding": "base64", "prev": True},
                {"op": "put", "key": "a", "value": "2", "prev": True},
                {"op": "get", "key": "b"},
                {"op": "get", "key": "none"},
                {"op": "range", "prefix": "", "limit": 1},
                {"op": "range", "start": "a", "end": "c", "keys_only": True},
                {"op": "range", "prefix": "a", "count_only": True},
                {"op": "delete", "prefix": "x", "prev": True},
                {
                    "op": "txn",
                    "if": [{"key": "a", "target": "value", "operand": "no"}],
                    "then": [{"op": "put", "key": "c", "value": ""}],
                    "else": [{"op": "delete", "key": "z"}, {"op": "get", "key": "a"}],
                },
            ],
            "else": [{"op": "get", "key": "a"}],
        }
        answer = (await served.call("POST", "/api/txn", txn)).json
        assert answer["succeeded"] is True and answer["revision"] == 3
        put, put_a, got, none, page, keys, count, gone, inner = answer["results"]
        assert put == {"op": "put", "previous": None}
        assert put_a["previous"]["value"] == "1"
        assert got["item"]["value"] == "AP8=" and got["item"]["encoding"] == "base64"
        assert none == {"op": "get", "item": None}
        assert len(page["items"]) == 1 and page["more"] is True
        assert [item["key"] for item in keys["items"]] == ["a", "b"] and keys["count"] == 2
        assert count == {"op": "range", "items": [], "count": 1, "more": False}
        assert gone == {"op": "delete", "deleted": 0, "previous": []}
        assert inner["succeeded"] is False and inner["results"][1]["item"]["value"] == "2"
        answer = (await served.call("POST", "/api/txn", txn)).json
        assert answer["succeeded"] is False
        assert answer["results"] == [{"op": "get", "item": put_a["previous"] | {
            "value": "2", "mod_revision": 3, "version": 2}}]  # fmt: skip
        assert (await served.call("POST", "/api/txn", {})).json["results"] == []


async def test_a_lease_in_a_transaction() -> None:
    async with serving() as served:
        lease = (await served.call("POST", "/api/leases", {"ttl": 60})).json["lease"]
        put = {"op": "put", "key": "k", "value": "v", "lease": lease}
        assert (await served.call("POST", "/api/txn", {"then": [put]})).status == 200
        held = {"if": [{"key": "k", "target": "lease", "operand": lease}]}
        assert (await served.call("POST", "/api/txn", held)).json["succeeded"] is True
        put["lease"] = "123"
        assert (await served.call("POST", "/api/txn", {"then": [put]})).status == 404


async def test_a_repeat_with_an_idempotency_key() -> None:
    async with serving() as served:
        txn = {"then": [{"op": "put", "key": "k", "value": "v"}]}
        key = {"Idempotency-Key": "t"}
        first = await served.call("POST", "/api/txn", txn, key)
        again = await served.call("POST", "/api/txn", txn, key)
        assert first.json == again.json and served.store.machine.revision == 2


GET: dict[str, Any] = {"op": "get", "key": "k"}


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"then": [GET]}
    for _ in range(depth):
        inner = {"then": [{"op": "txn", **inner}]}
    return inner


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"when": []},
        {"if": {}},
        {"then": [1]},
        {"then": [{"op": "fly"}]},
        {"then": [{"key": "k"}]},
        {"then": [{"op": "get", "key": 1}]},
        {"then": [{"op": "get"}]},
        {"then": [{"op": "get", "key": ""}]},
        {"then": [{**GET, "value": "x"}]},
        {"then": [{**GET, "key_encoding": "hex"}]},
        {"then": [{"op": "put", "key": "k"}]},
        {"then": [{"op": "put", "key": "k", "value": "!", "encoding": "base64"}]},
        {"then": [{"op": "put", "key": "k", "value": "v", "lease": "zz"}]},
        {"then": [{"op": "put", "key": "k", "value": "v", "prev": 1}]},
        {"then": [{"op": "delete"}]},
        {"then": [{"op": "delete", "key": "a", "prefix": "b"}]},
        {"then": [{"op": "delete", "start": "b", "end": "a"}]},
        {"then": [{"op": "range", "prefix": "a", "limit": -1}]},
        {"then": [{"op": "range", "prefix": "a", "limit": True}]},
        {
            "then": [
                {"op": "put", "key": "k", "value": "1"},
                {"op": "put", "key": "k", "value": "2"},
            ]
        },
        {"if": [{"key": "k", "target": "colour", "operand": "1"}]},
        {"if": [{"key": "k", "target": "value", "op": "~", "operand": "1"}]},
        {"if": [{"key": "k", "target": "value"}]},
        {"if": [{"key": "k", "target": "value", "operand": 1}]},
        {"if": [{"key": "k", "target": "version", "operand": "1"}]},
        {"if": [{"key": "k", "target": "version", "operand": True}]},
        {"if": [{"key": "k", "target": "version", "operand": -1}]},
        {"if": [{"key": "k", "target": "lease", "operand": 7}]},
        {"if": [{"key": "k", "target": "exists", "operand": 1}]},
        {"if": [{"key": "k", "target": "exists", "op": "<", "operand": True}]},
        {"if": [{"prefix": "k", "key": "k", "target": "exists"}]},
        {"if": [{"key": "k", "target": "exists", "extra": 1}]},
        nested(TXN_NESTING_MAX),
        {"then": [GET] * (TXN_OPERATIONS_MAX + 1)},
        {"then": [GET] * (2 * TXN_OPERATIONS_MAX + 1)},
    ],
)
async def test_what_is_wrong_is_refused_by_name(body: Any) -> None:
    async with serving() as served:
        refused = await served.call("POST", "/api/txn", body)
        assert refused.status in (400, 413), refused.body
        assert refused.json["outcome"] == "refused"
        assert served.store.machine.revision == 1


async def test_as_deep_as_allowed() -> None:
    async with serving() as served:
        assert (await served.call("POST", "/api/txn", nested(TXN_NESTING_MAX - 1))).status == 200


async def test_bodies_that_are_not_json() -> None:
    async with serving() as served:
        for body in (b"", b"{", b"\xff", b"[" * 100_000, b"nul"):
            refused = await served.call("POST", "/api/txn", body)
            assert refused.status == 400
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            refused = await served.call("POST", "/api/txn", b"{}", {"Content-Type": kind})
            assert refused.status == 415 and refused.json["expected"] == "application/json"
        for kind in ("application/json; charset=utf-8", "application/x+json"):
            assert (
                await served.call("POST", "/api/txn", b"{}", {"Content-Type": kind})
            ).status == 200
        too_much = {
            "then": [{"op": "put", "key": f"{at}", "value": "x" * 2**19} for at in range(4)]
        }
        assert (await served.call("POST", "/api/txn", too_much)).status == 413
