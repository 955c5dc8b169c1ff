"""What clients asked, what they were told and when: the history that the checkers judge.

Plain values, made by whoever drives a store: the simulator with its virtual clock, or tests of real
processes with a monotonic one. All times are microseconds of one clock. A history is kept as
NDJSON, one operation a line, so that a failure can be stored, cut down and judged again:

    history = History()
    token = history.begin(client=3, request=Put(b"k", b"v"), now_us=clock())
    ...
    history.end(token, clock(), Outcome.OK, PutAnswer(revision=17))
    history.write(path)

Values should be unique (who wrote what is then never in doubt). A client may have several
operations under way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal


class Outcome(Enum):
    """What a client knows of its operation. Refused and unknown are never confused."""

    OK = "ok"
    REFUSED = "refused"
    """Definite: it did not happen and will not."""
    UNKNOWN = "unknown"
    """It may have happened, and may still happen at any time."""


# ---- requests -----------------------------------------------------------------------------------
#
# `end` None is a single key, b"\0" is everything from `start` on, else it is exclusive.

TO_THE_END: Final = b"\0"
Target = Literal["version", "create", "mod", "value", "lease"]
Operator = Literal["=", "!=", "<", ">"]


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key. `lease` 0: none."""

    key: bytes
    value: bytes
    lease: int = 0
    want_previous: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key or an interval."""

    start: bytes
    end: bytes | None = None
    want_previous: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """Read, in key order. `limit` 0: all. `revision` 0: now."""

    start: bytes
    end: bytes | None = None
    limit: int = 0
    serializable: bool = False
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """`target` of the key stands in relation `operator` to `value`.

    A missing key has 0 in every number, and no value: comparing its value is false.
    """

    key: bytes
    target: Target
    operator: Operator
    value: int | bytes


@dataclass(frozen=True, slots=True)
class Txn:
    """If all compares hold, then `success`, else `failure`; all at one revision."""

    compares: tuple[Compare, ...]
    success: tuple[Put | Delete | Range | Txn, ...]
    failure: tuple[Put | Delete | Range | Txn, ...] = ()


@dataclass(frozen=True, slots=True)
class Compact:
    """Forget history before `revision`."""

    revision: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A new lease. `lease` 0: the store picks the id, and the answer tells it."""

    lease: int
    ttl_seconds: int


@dataclass(frozen=True, slots=True)
class Revoke:
    """End a lease and delete its keys, at one revision if there are any."""

    lease: int


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Renew a lease."""

    lease: int


Request = Put | Delete | Range | Txn | Compact | Grant | Revoke | KeepAlive

# ---- answers; `revision` is that of the header --------------------------------------------------
#
# Of a write that changed something it is the write's own revision; otherwise the store's revision
# at the moment of the operation.


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key. Of a deletion: key and mod_revision only."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class PutAnswer:
    """`previous`: the record before, if it was asked for and there was one."""

    revision: int
    previous: KeyRecord | None = None


@dataclass(frozen=True, slots=True)
class DeleteAnswer:
    """`previous`: the deleted records in key order, if asked for."""

    revision: int
    deleted: int
    previous: tuple[KeyRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class RangeAnswer:
    """`count`: keys in the interval, whatever the limit; -1 if the door did not tell.

    Of a read at an older revision, `revision` is the store's, or if the door does not tell that,
    the revision that was asked for.
    """

    revision: int
    records: tuple[KeyRecord, ...]
    count: int = -1
    more: bool = False


@dataclass(frozen=True, slots=True)
class TxnAnswer:
    """`answers`: one for each operation of the branch that ran; revision 0 in them: not told."""

    revision: int
    succeeded: bool
    answers: tuple[PutAnswer | DeleteAnswer | RangeAnswer | TxnAnswer, ...]


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """Of a grant, a keep-alive (TTL as granted) or a revoke (TTL 0).

    A keep-alive of a lease that is not there is REFUSED. `revision` 0: not told.
    """

    lease: int
    ttl_seconds: int
    revision: int = 0


@dataclass(frozen=True, slots=True)
class CompactAnswer:
    """History is compacted."""

    revision: int


Answer = PutAnswer | DeleteAnswer | RangeAnswer | TxnAnswer | LeaseAnswer | CompactAnswer


@dataclass(slots=True)
class Operation:
    """One request and what its client learned.

    `returned_us` None and outcome UNKNOWN: nothing came back while the recording went on.
    """

    client: int
    request: Request
    invoked_us: int
    returned_us: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    answer: Answer | None = None
    error: str = ""


# ---- watches ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`previous` only where the watch asked for it and there was one."""

    kind: Literal["put", "delete"]
    record: KeyRecord
    previous: KeyRecord | None = None


@dataclass(frozen=True, slots=True)
class WatchResponse:
    """One message of a watch. `revision` is that of the header.

    `progress`: a promise that nothing at or below `revision` comes later. `compact_revision` not 0:
    the start was compacted, and the watch has ended.
    """

    at_us: int
    revision: int
    events: tuple[WatchEvent, ...] = ()
    progress: bool = False
    compact_revision: int = 0
    cancelled: bool = False


@dataclass(slots=True)
class WatchLog:
    """All that one watch was told. `start_revision` 0: from now on. A resumed watch is another log.

    `filters`: of "put" and "delete", what is left out.
    """

    start: bytes
    end: bytes | None
    start_revision: int
    prev_kv: bool
    filters: frozenset[str]
    responses: list[WatchResponse]


# ---- recording ----------------------------------------------------------------------------------


class History:
    """Operations in the order of their beginning."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        self.operations: list[Operation] = list(operations)

    def begin(self, client: int, request: Request, now_us: int) -> int:
        """An operation is about to be sent; answers the token to end it with."""
        self.operations.append(Operation(client, request, now_us))
        return len(self.operations) - 1

    def end(
        self,
        token: int,
        now_us: int,
        outcome: Outcome,
        answer: Answer | None = None,
        error: str = "",
    ) -> None:
        """What became of it. An operation that never ends stays UNKNOWN."""
        operation = self.operations[token]
        if operation.returned_us is not None:
            raise ValueError(f"operation {token} ended twice")
        if (outcome is Outcome.OK) != (answer is not None):
            raise ValueError("an answer goes with OK, and with nothing else")
        operation.returned_us = now_us
        operation.outcome = outcome
        operation.answer = answer
        operation.error = error

    def to_ndjson(self) -> str:
        """One operation a line."""
        return "".join(json.dumps(to_json(each)) + "\n" for each in self.operations)

    @classmethod
    def from_ndjson(cls, text: str) -> History:
        """What `to_ndjson` made."""
        return cls(from_json(json.loads(line)) for line in text.splitlines() if line.strip())

    def write(self, path: Path) -> None:
        """Keep it in a file."""
        path.write_text(self.to_ndjson(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> History:
        """From a file."""
        return cls.from_ndjson(path.read_text(encoding="utf-8"))


_CLASSES: Final[dict[str, type]] = {
    cls.__name__: cls
    for cls in (
        Put, Delete, Range, Compare, Txn, Compact, Grant, Revoke, KeepAlive,
        KeyRecord, PutAnswer, DeleteAnswer, RangeAnswer, TxnAnswer, LeaseAnswer, CompactAnswer,
        Operation, WatchEvent, WatchResponse, WatchLog,
    )
}  # fmt: skip
_FIELDS: Final = {cls: tuple(field.name for field in fields(cls)) for cls in _CLASSES.values()}
_PLAIN: Final[dict[str, Callable[[Any], Any]]] = {
    "b": lambda text: text.encode("latin-1"),
    "outcome": Outcome,
    "set": frozenset,
}


def to_json(value: Any) -> Any:
    """Any value of this module as JSON: objects name their class under "is", bytes are latin-1.

    Bytes stand as {"b": "..."}, which keeps a compare of a value apart from any text.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes):
        return {"b": value.decode("latin-1")}
    if isinstance(value, Outcome):
        return {"outcome": value.value}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    names = _FIELDS[type(value)]
    return {"is": type(value).__name__} | {name: to_json(getattr(value, name)) for name in names}


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "is" not in value:
        [(kind, item)] = value.items()
        return _PLAIN[kind](item)
    cls = _CLASSES[value["is"]]
    given = {name: from_json(item) for name, item in value.items() if name != "is"}
    if cls is WatchLog:
        given["responses"] = list(given["responses"])
    return cls(**given)
