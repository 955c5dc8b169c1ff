"""Transactions: compares and operations as values, and the builder that sends them.

result = await (
    client.txn()
    .when(compare("account/a", "value", "=", "100"))
    .then(put("account/a", "40"), put("account/b", "60"))
    .otherwise(get("account/a"))
    .commit()
)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NewType

from raftkv.client.results import Record, TxnResult
from raftkv.client.wire import Text, key_fields, to_bytes, value_fields
from raftkv.errors import InvalidRequest

Target = Literal["value", "version", "create_revision", "mod_revision", "lease"]
Operator = Literal["=", "!=", "<", ">"]

Compare = NewType("Compare", dict[str, Any])
"""One condition, in the API's form."""
Operation = NewType("Operation", dict[str, Any])
"""One operation, in the API's form."""


def compare(key: Text, target: Target, operator: Operator, operand: Text | int) -> Compare:
    """`key`'s `target` stands in the relation `operator` to `operand`.

    A value is compared as bytes; a lease is its 16 digits; the others are whole numbers, all of
    which are 0 for a key that does not exist.
    """
    condition = {**key_fields(key=key), "target": target, "op": operator}
    if target == "value":
        if isinstance(operand, int):
            raise InvalidRequest("a value is compared with text or bytes, not with a number")
        return Compare(condition | value_fields(operand, "operand"))
    if target != "lease" and not isinstance(operand, int):
        raise InvalidRequest(f"{target} is compared with a whole number")
    return Compare(condition | {"operand": operand})


def exists(key: Text) -> Compare:
    """`key` exists."""
    return compare(key, "create_revision", ">", 0)


def missing(key: Text) -> Compare:
    """`key` does not exist."""
    return compare(key, "create_revision", "=", 0)


def unchanged(record: Record) -> Compare:
    """The record's key has not been written, deleted or created again since."""
    return compare(record.key, "mod_revision", "=", record.mod_revision)


def put(key: Text, value: Text, *, lease: str | None = None, previous: bool = False) -> Operation:
    """Write `key`."""
    fields = {"op": "put", **key_fields(key=key), **value_fields(value)}
    return _operation(fields, lease=lease, prev=previous)


def delete(
    key: Text | None = None,
    *,
    prefix: Text | None = None,
    start: Text | None = None,
    end: Text | None = None,
    previous: bool = False,
) -> Operation:
    """Delete `key`, or every key with `prefix` or in [`start`, `end`)."""
    keys = key_fields(key=key, prefix=prefix, start=start, end=end)
    return _operation({"op": "delete", **keys}, prev=previous)


def get(key: Text) -> Operation:
    """Read `key`."""
    return _operation({"op": "get", **key_fields(key=key)})


def range_(
    *,
    prefix: Text | None = None,
    start: Text | None = None,
    end: Text | None = None,
    limit: int | None = None,
    keys_only: bool = False,
    count_only: bool = False,
) -> Operation:
    """Read every key with `prefix` or in [`start`, `end`)."""
    keys = key_fields(prefix=prefix, start=start, end=end)
    return _operation(
        {"op": "range", **keys}, limit=limit, keys_only=keys_only, count_only=count_only
    )


def nested(
    when: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
) -> Operation:
    """A transaction as one operation of another."""
    return _operation({"op": "txn", "if": [*when], "then": [*then], "else": [*otherwise]})


def _operation(fields: dict[str, Any], **options: Any) -> Operation:
    return Operation(
        fields
        | {
            name: value
            for name, value in options.items()
            if value is not None and value is not False
        }
    )


class TxnBuilder:
    """Collects a transaction. Every method but `commit` answers the builder itself."""

    __slots__ = ("_body", "_send")

    def __init__(self, send: Callable[[dict[str, Any]], Awaitable[TxnResult]]) -> None:
        self._send = send
        self._body: dict[str, list[Any]] = {"if": [], "then": [], "else": []}

    def when(self, *compares: Compare) -> TxnBuilder:
        """All of these must hold for `then` to run; with none, `then` runs."""
        self._body["if"] += compares
        return self

    def then(self, *operations: Operation) -> TxnBuilder:
        """What to do when every compare holds."""
        self._body["then"] += operations
        return self

    def otherwise(self, *operations: Operation) -> TxnBuilder:
        """What to do when one does not."""
        self._body["else"] += operations
        return self

    async def commit(self) -> TxnResult:
        """Send it: atomic, at one revision, with one answer for each operation of the branch."""
        return await self._send(dict(self._body))


def prefix_end(prefix: Text) -> bytes:
    """The first key after all keys with `prefix`; empty when there is none."""
    raw = to_bytes(prefix).rstrip(b"\xff")
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else b""
