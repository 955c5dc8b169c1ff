"""Transactions: `POST /api/txn`."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from raftkv.api.gate import by_command
from raftkv.api.http.codec import (
    INT64_MAX,
    decode_text,
    key_json,
    load_json,
    parse_lease,
    record_json,
)
from raftkv.api.http.exchange import Exchange
from raftkv.api.http.fields import only_known
from raftkv.api.http.handling import answering, once_key, prefix_end
from raftkv.api.http.router import Answer, Route
from raftkv.errors import InvalidRequest, TooLarge
from raftkv.limits import REQUEST_BYTES_MAX, TXN_NESTING_MAX, TXN_OPERATIONS_MAX
from raftkv.machine.commands import (
    Compare,
    CompareTarget,
    Operation,
    Relation,
    compare,
    delete_op,
    put_op,
    range_op,
    txn,
    txn_op,
)
from raftkv.machine.results import DeleteResult, PutResult, RangeResult, TxnResult

TARGETS: Final = {
    "value": CompareTarget.VALUE,
    "version": CompareTarget.VERSION,
    "create_revision": CompareTarget.CREATE,
    "mod_revision": CompareTarget.MOD,
    "lease": CompareTarget.LEASE,
    "exists": CompareTarget.CREATE,
}
RELATIONS: Final = {
    "=": Relation.EQUAL,
    "!=": Relation.NOT_EQUAL,
    "<": Relation.LESS,
    ">": Relation.GREATER,
}
COMPARE_FIELDS: Final = (
    "key", "prefix", "range_end", "key_encoding", "target", "op", "operand", "encoding",
)  # fmt: skip
OPERATION_FIELDS: Final = {
    "put": ("op", "key", "key_encoding", "value", "encoding", "lease", "prev"),
    "delete": ("op", "key", "prefix", "start", "end", "key_encoding", "prev"),
    "get": ("op", "key", "key_encoding"),
    "range": (
        "op", "prefix", "start", "end", "key_encoding", "limit", "keys_only", "count_only",
    ),
    "txn": ("op", "if", "then", "else"),
}  # fmt: skip
TXN_FIELDS: Final = ("if", "then", "else")

Parsed = tuple[Operation, dict[str, Any]]
"""An operation for the machine beside the JSON that asked for it, which shapes its answer."""


class Branches:
    """A parsed transaction: what the machine runs, and how each branch is to be answered."""

    __slots__ = ("compares", "else_", "then")

    def __init__(self, document: dict[str, Any], where: str, depth: int, budget: Budget) -> None:
        if depth > TXN_NESTING_MAX:
            raise InvalidRequest(f"Transactions are nested at most {TXN_NESTING_MAX} deep")
        self.compares = [
            parse_compare(item, f"{where}if[{at}]")
            for at, item in enumerate(_objects(document, "if", where))
        ]
        budget.take(len(self.compares))
        self.then = self._branch(document, "then", where, depth, budget)
        self.else_ = self._branch(document, "else", where, depth, budget)

    @staticmethod
    def _branch(
        document: dict[str, Any], name: str, where: str, depth: int, budget: Budget
    ) -> list[Parsed]:
        items = _objects(document, name, where)
        budget.take(len(items))
        return [
            parse_operation(item, f"{where}{name}[{at}]", depth, budget)
            for at, item in enumerate(items)
        ]

    def operations(self) -> tuple[list[Compare], list[Operation], list[Operation]]:
        """The arguments of `commands.txn` and `commands.txn_op`."""
        return self.compares, [op for op, _ in self.then], [op for op, _ in self.else_]


class Budget:
    """Counts conditions and operations while parsing, so that no work is done for too many."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = 2 * TXN_OPERATIONS_MAX

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise TooLarge(
                f"A transaction has at most {TXN_OPERATIONS_MAX} operations",
                limit=TXN_OPERATIONS_MAX,
            )


def _objects(document: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    items = document.get(name, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidRequest(f"{where}{name} must be a list of objects", field=f"{where}{name}")
    return items


def _text(item: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = item.get(name, default)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name} must be a string", field=f"{where}.{name}")
    return value


def _flag(item: dict[str, Any], name: str, where: str) -> bool:
    value = item.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{where}.{name} must be true or false", field=f"{where}.{name}")
    return value


def _encoding(item: dict[str, Any], name: str, where: str) -> str:
    value = _text(item, name, where, "utf-8")
    if value not in ("utf-8", "base64"):
        raise InvalidRequest(
            f"{where}.{name} must be utf-8 or base64, not {value[:64]!r}", field=f"{where}.{name}"
        )
    return value


def _key(item: dict[str, Any], name: str, where: str) -> bytes:
    encoding = _encoding(item, "key_encoding", where)
    return decode_text(_text(item, name, where), encoding, f"{where}.{name}")


def _interval(item: dict[str, Any], where: str) -> tuple[bytes, bytes | None]:
    """A key, a prefix, or start/end, exactly one of them."""
    given: list[str] = [name for name in ("key", "prefix") if name in item]
    if "start" in item or "end" in item:
        given.append("start/end")
    if len(given) != 1:
        raise InvalidRequest(f"{where} needs exactly one of key, prefix, or start and end")
    if given == ["key"]:
        return _key(item, "key", where), None
    if given == ["prefix"]:
        prefix = _key(item, "prefix", where)
        return prefix, prefix_end(prefix)
    start = _key(item, "start", where) if "start" in item else b""
    end = _key(item, "end", where) if "end" in item else b""
    if end and start >= end:
        raise InvalidRequest(f"{where}: the range is empty, its end is not after its start")
    return start, end


def parse_compare(item: dict[str, Any], where: str) -> Compare:
    """One condition. Raises `InvalidRequest` naming the place."""
    only_known(item, COMPARE_FIELDS, where)
    target_name = _text(item, "target", where)
    relation_name = _text(item, "op", where, "=")
    if target_name not in TARGETS:
        raise InvalidRequest(
            f"{where}.target must be one of {', '.join(TARGETS)}, not {target_name[:64]!r}"
        )
    if relation_name not in RELATIONS:
        raise InvalidRequest(
            f"{where}.op must be one of {' '.join(RELATIONS)}, not {relation_name[:64]!r}"
        )
    relation = RELATIONS[relation_name]
    if "prefix" in item:
        if "key" in item or "range_end" in item:
            raise InvalidRequest(f"{where}: prefix goes without key and range_end")
        key = _key(item, "prefix", where)
        end: bytes | None = prefix_end(key)
    else:
        key = _key(item, "key", where)
        end = _key(item, "range_end", where) if "range_end" in item else None
    if "operand" not in item and target_name != "exists":
        raise InvalidRequest(f"{where}.operand is missing", field=f"{where}.operand")
    if target_name == "exists":
        return compare(TARGETS["exists"], _existence(item, relation, where), key, 0, end)
    return compare(TARGETS[target_name], relation, key, _operand(item, target_name, where), end)


def _existence(item: dict[str, Any], relation: Relation, where: str) -> Relation:
    operand = item.get("operand", True)
    if not isinstance(operand, bool) or relation not in (Relation.EQUAL, Relation.NOT_EQUAL):
        raise InvalidRequest(f"{where}: exists is compared by = or != with true or false")
    wanted = operand is (relation is Relation.EQUAL)
    return Relation.NOT_EQUAL if wanted else Relation.EQUAL


def _operand(item: dict[str, Any], target: str, where: str) -> int | bytes:
    operand = item["operand"]
    if target == "value":
        text = _text(item, "operand", where)
        return decode_text(text, _encoding(item, "encoding", where), f"{where}.operand")
    if target == "lease" and isinstance(operand, str):
        return parse_lease(operand, f"{where}.operand")
    if target == "lease" and operand is None:
        return 0
    if target == "lease" or isinstance(operand, bool) or not isinstance(operand, int):
        wanted = "a lease id, or null for none" if target == "lease" else "a whole number"
        raise InvalidRequest(f"{where}.operand must be {wanted}", field=f"{where}.operand")
    if not 0 <= operand <= INT64_MAX:
        raise InvalidRequest(f"{where}.operand is out of range", field=f"{where}.operand")
    return operand


def parse_operation(item: dict[str, Any], where: str, depth: int, budget: Budget) -> Parsed:
    """One operation. Raises `InvalidRequest` naming the place."""
    kind = _text(item, "op", where)
    if kind not in OPERATION_FIELDS:
        raise InvalidRequest(
            f"{where}.op must be one of {', '.join(OPERATION_FIELDS)}, not {kind[:64]!r}"
        )
    only_known(item, OPERATION_FIELDS[kind], where)
    if kind == "txn":
        inner = Branches(item, f"{where}.", depth + 1, budget)
        return txn_op(*inner.operations()), {"op": "txn", "branches": inner}
    if kind == "put":
        value = decode_text(
            _text(item, "value", where), _encoding(item, "encoding", where), f"{where}.value"
        )
        lease = parse_lease(_text(item, "lease", where)) if item.get("lease") is not None else 0
        prev = _flag(item, "prev", where)
        return put_op(_key(item, "key", where), value, lease=lease, prev=prev), item
    if kind == "get":
        return range_op(_key(item, "key", where)), item
    start, end = _interval(item, where)
    if kind == "delete":
        return delete_op(start, end, prev=_flag(item, "prev", where)), item
    limit = item.get("limit", 0)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= INT64_MAX:
        raise InvalidRequest(f"{where}.limit must be a whole number", field=f"{where}.limit")
    keys_only, count_only = _flag(item, "keys_only", where), _flag(item, "count_only", where)
    return range_op(start, end, limit=limit, keys_only=keys_only, count_only=count_only), item


def post_txn(x: Exchange) -> None:
    document = load_json(x.request.body)
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object")
    only_known(document, TXN_FIELDS, "the body")
    branches = Branches(document, "", 1, Budget())
    command = txn(*branches.operations(), once=once_key(x))
    if len(command) > REQUEST_BYTES_MAX:
        raise TooLarge(
            f"A transaction has at most {REQUEST_BYTES_MAX} bytes", limit_bytes=REQUEST_BYTES_MAX
        )
    x.caller.propose(command, partial(_txn_done, x, branches))


@answering
def _txn_done(x: Exchange, branches: Branches, result: TxnResult) -> None:
    answer: dict[str, Any] = {"revision": result.revision, "succeeded": result.succeeded}
    answer["results"] = show_responses(branches, result)
    x.json(answer)


def show_responses(branches: Branches, result: TxnResult) -> list[dict[str, Any]]:
    """The answers of the branch that ran, each in the place of its operation."""
    asked = branches.then if result.succeeded else branches.else_
    return [
        show_response(item, response)
        for (_, item), response in zip(asked, result.responses, strict=True)
    ]


def show_response(item: dict[str, Any], response: Any) -> dict[str, Any]:
    """One operation's answer."""
    answer: dict[str, Any] = {"op": item["op"]}
    if isinstance(response, PutResult):
        if item.get("prev"):
            previous = response.previous
            answer["previous"] = None if previous is None else record_json(previous)
    elif isinstance(response, DeleteResult):
        answer["deleted"] = response.deleted
        if item.get("prev"):
            answer["previous"] = [record_json(record) for record in response.previous]
    elif isinstance(response, TxnResult):
        answer["succeeded"] = response.succeeded
        answer["results"] = show_responses(item["branches"], response)
    elif isinstance(response, RangeResult):
        if item["op"] == "get":
            answer["item"] = record_json(response.records[0]) if response.records else None
        else:
            show = key_json if item.get("keys_only") else record_json
            answer["items"] = [show(record) for record in response.records]
            answer["count"] = response.count if item.get("count_only") else len(response.records)
            answer["more"] = response.more
    return answer


ROUTES: Final = [
    Route(
        "POST", "/api/txn", post_txn, "transact", "Run a transaction", "Transactions",
        guard=by_command,
        doc="When every condition of `if` holds, `then` runs, else `else`: atomically, at one "
        "revision. Each operation answers in place; an operation may be a transaction itself.",
        body="Txn",
        answers=(Answer(200, "One branch ran.", "TxnAnswer"),),
        problems=(404, 415, 507),
        writes=True,
    ),
]  # fmt: skip
