"""Requests of a recorded history as the native HTTP API takes them, and its answers back. Pure.

What an answer proves is read off its own word, `outcome`: see docs/http.md, "Errors". Anything
that a member does not say in that form proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, assert_never
from urllib.parse import quote, urlencode

import orjson

from tests.linearizability.history import (
    Answer,
    Compact,
    CompactAnswer,
    Compare,
    Delete,
    DeleteAnswer,
    Grant,
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
)

JSON: Final = {"Content-Type": "application/json"}
TARGETS: Final = {"create": "create_revision", "mod": "mod_revision"}
Verdict: TypeAlias = tuple[Outcome, Answer | None, str]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, complete but for the member and the connection's own headers."""

    method: str
    target: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return self.method == "GET"


def encode(request: Request) -> HttpRequest:
    """`request` for the wire. Keys and values must be UTF-8."""
    if isinstance(request, Put):
        lease = f"{request.lease:016x}" if request.lease else None
        target = _key(request.key) + _query(lease=lease, prev=request.want_previous)
        return HttpRequest("PUT", target, request.value)
    if isinstance(request, Delete):
        if request.end is None:
            return HttpRequest("DELETE", _key(request.start) + _query(prev=request.want_previous))
        interval = _interval(request.start, request.end)
        return HttpRequest("DELETE", "/api/kv" + _query(prev=request.want_previous, **interval))
    if isinstance(request, Range):
        return HttpRequest("GET", _range_target(request))
    if isinstance(request, Txn):
        return HttpRequest("POST", "/api/txn", orjson.dumps(_txn(request)), JSON)
    if isinstance(request, Compact):
        return HttpRequest("POST", "/api/compact", b'{"revision":%d}' % request.revision, JSON)
    if isinstance(request, Grant):
        wanted: dict[str, Any] = {"ttl": request.ttl_seconds}
        if request.lease:
            wanted["id"] = f"{request.lease:016x}"
        return HttpRequest("POST", "/api/leases", orjson.dumps(wanted), JSON)
    if isinstance(request, Revoke):
        return HttpRequest("DELETE", f"/api/leases/{request.lease:016x}")
    if isinstance(request, KeepAlive):
        return HttpRequest("POST", f"/api/leases/{request.lease:016x}/keepalive")
    assert_never(request)


def decode(request: Request, status: int, body: Any) -> Verdict:
    """What an answer with this status and JSON body (None: not JSON) tells about `request`."""
    if not isinstance(body, dict):
        return Outcome.UNKNOWN, None, f"status {status} without a JSON body"
    if status in (200, 201):
        return Outcome.OK, _answer(request, body), ""
    code = str(body.get("code", f"status {status}"))
    if code == "key_not_found" and isinstance(request, Range):
        return Outcome.OK, RangeAnswer(body["revision"], (), 0), ""
    refused = body.get("outcome") == "refused"
    return (Outcome.REFUSED if refused else Outcome.UNKNOWN), None, code


def record(shown: Mapping[str, Any]) -> KeyRecord:
    """The API's `Record` object."""
    lease = shown["lease"]
    return KeyRecord(
        shown["key"].encode(),
        shown["value"].encode(),
        shown["create_revision"],
        shown["mod_revision"],
        shown["version"],
        int(lease, 16) if lease else 0,
    )


def _key(key: bytes) -> str:
    return "/api/kv/" + quote(key)


def _query(**parameters: Any) -> str:
    given = {
        name: "1" if value is True else value.decode() if isinstance(value, bytes) else str(value)
        for name, value in parameters.items()
        if value not in (None, False, 0)
    }
    return "?" + urlencode(given) if given else ""


def _interval(start: bytes, end: bytes) -> dict[str, str]:
    interval = {"start": start.decode()}
    if end != b"\0":
        interval["end"] = end.decode()
    return interval


def _range_target(request: Range) -> str:
    common = {
        "revision": request.revision,
        "consistency": "serializable" if request.serializable else None,
    }
    if request.end is None:
        return _key(request.start) + _query(**common)
    return "/api/kv" + _query(
        limit=request.limit, **common, **_interval(request.start, request.end)
    )


def _txn(request: Txn) -> dict[str, Any]:
    return {
        "if": [_compare(each) for each in request.compares],
        "then": [_operation(each) for each in request.success],
        "else": [_operation(each) for each in request.failure],
    }


def _compare(each: Compare) -> dict[str, Any]:
    operand: Any = each.value.decode() if isinstance(each.value, bytes) else each.value
    if each.target == "lease":
        operand = f"{each.value:016x}" if each.value else None
    return {
        "key": each.key.decode(),
        "target": TARGETS.get(each.target, each.target),
        "op": each.operator,
        "operand": operand,
    }


def _operation(each: Put | Delete | Range | Txn) -> dict[str, Any]:
    if isinstance(each, Put):
        lease = f"{each.lease:016x}" if each.lease else None
        return {
            "op": "put", "key": each.key.decode(), "value": each.value.decode(),
            "lease": lease, "prev": each.want_previous,
        }  # fmt: skip
    if isinstance(each, Txn):
        return {"op": "txn", **_txn(each)}
    if isinstance(each, Delete):
        place = {"key": each.start.decode()} if each.end is None else {}
        place |= _interval(each.start, each.end) if each.end is not None else {}
        return {"op": "delete", "prev": each.want_previous, **place}
    if each.end is None:
        return {"op": "get", "key": each.start.decode()}
    return {"op": "range", "limit": each.limit, **_interval(each.start, each.end)}


def _answer(request: Request, body: dict[str, Any]) -> Answer:
    if isinstance(request, Put):
        return PutAnswer(body["revision"], _previous(body))
    if isinstance(request, Delete):
        previous = tuple(map(record, body.get("previous", ())))
        return DeleteAnswer(body["revision"], body["deleted"], previous)
    if isinstance(request, Range):
        if request.end is None:
            return RangeAnswer(body["revision"], (record(body),), 1)
        return RangeAnswer(body["revision"], tuple(map(record, body["items"])), more=body["more"])
    if isinstance(request, Txn):
        return _txn_answer(request, body, body["revision"])
    if isinstance(request, Compact):
        return CompactAnswer(body["revision"])
    ttl = 0 if isinstance(request, Revoke) else body["ttl"]
    return LeaseAnswer(int(body["lease"], 16), ttl, body.get("revision", 0))


def _previous(body: Mapping[str, Any]) -> KeyRecord | None:
    return record(body["previous"]) if body.get("previous") else None


def _txn_answer(request: Txn, body: Mapping[str, Any], revision: int) -> TxnAnswer:
    branch = request.success if body["succeeded"] else request.failure
    answers = zip(branch, body["results"], strict=True)
    return TxnAnswer(
        revision, body["succeeded"], tuple(_inner(asked, shown) for asked, shown in answers)
    )


def _inner(
    asked: Put | Delete | Range | Txn, shown: Mapping[str, Any]
) -> PutAnswer | DeleteAnswer | RangeAnswer | TxnAnswer:
    """One answer within a transaction; the transaction alone tells the revision."""
    if isinstance(asked, Put):
        return PutAnswer(0, _previous(shown))
    if isinstance(asked, Delete):
        return DeleteAnswer(0, shown["deleted"], tuple(map(record, shown.get("previous", ()))))
    if isinstance(asked, Txn):
        return _txn_answer(asked, shown, 0)
    if asked.end is None:
        found = (record(shown["item"]),) if shown["item"] else ()
        return RangeAnswer(0, found, len(found))
    return RangeAnswer(0, tuple(map(record, shown["items"])), more=shown["more"])
