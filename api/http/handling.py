"""What handlers share: callbacks that cannot leak, intervals, idempotency keys, negotiation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec

from raftkv.api.http.exchange import NDJSON, Exchange
from raftkv.api.http.router import Param
from raftkv.errors import InvalidRequest, RaftkvError
from raftkv.limits import IDEMPOTENCY_KEY_BYTES_MAX
from raftkv.machine.access import Access, Accesses, Kind
from raftkv.machine.records import USER_KEYS

P = ParamSpec("P")


def answering(
    step: Callable[Concatenate[Exchange, P], None],
) -> Callable[Concatenate[Exchange, P], None]:
    """A step that runs in a callback of the store.

    Nothing is done for a client that has gone; an error given as the last argument, or raised by
    the step, becomes the answer.
    """

    def guarded(x: Exchange, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if x.ended:
            return
        if args and isinstance(args[-1], RaftkvError):
            x.fail(args[-1])
            return
        try:
            step(x, *args, **kwargs)
        except Exception as error:
            x.door.failed(x, error)

    return guarded


def once_key(x: Exchange) -> bytes | None:
    """The request's `Idempotency-Key`. Raises `InvalidRequest` if it is empty or too long."""
    key = x.header(b"idempotency-key")
    if key is not None and not 1 <= len(key) <= IDEMPOTENCY_KEY_BYTES_MAX:
        raise InvalidRequest(
            f"Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, not {len(key)}"
        )
    return key


def wants_ndjson(x: Exchange) -> bool:
    """Whether the client asked for one JSON value a line."""
    accept = x.header(b"accept")
    return accept is not None and NDJSON in accept.lower()


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`; b"" when there is none."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b""
    return stripped[:-1] + bytes((stripped[-1] + 1,))


KEY_ENCODING: Final = Param(
    "key_encoding",
    "choice",
    "How keys are given here: `utf-8` (as they are) or `base64`.",
    default="utf-8",
    choices=("utf-8", "base64"),
)
PREFIX: Final = Param("prefix", "key", "Keys that begin with this.")
START: Final = Param("start", "key", "First key, inclusive.")
END: Final = Param("end", "key", "Last key, exclusive. Absent or empty: to the end.")
CONSISTENCY: Final = Param(
    "consistency",
    "choice",
    "`linearizable` sees every write acknowledged before; `serializable` reads this member's "
    "copy at once, which may lag.",
    default="linearizable",
    choices=("linearizable", "serializable"),
)


def interval(query: dict[str, Any]) -> tuple[bytes, bytes] | None:
    """[start, end) from `prefix` or `start`/`end`; None when neither is given."""
    prefix, start, end = query["prefix"], query["start"], query["end"]
    if prefix is not None:
        if start is not None or end is not None:
            raise InvalidRequest("Give either prefix, or start and end, not both")
        return prefix, prefix_end(prefix)
    if start is None and end is None:
        return None
    start, end = start or b"", end or b""
    if end and start >= end:
        raise InvalidRequest("The range is empty: its end is not after its start")
    return start, end


def read_then(x: Exchange, step: Callable[[Exchange, RaftkvError | None], None]) -> None:
    """Call `step` once local reads are as fresh as the request's `consistency` asks."""
    if x.query.get("consistency") == "serializable":
        step(x, None)
    else:
        x.read_index(functools.partial(step, x))


def settled(x: Exchange, begin: Callable[[Exchange], None]) -> None:
    """Begin a stream, for a user once it is sure that the rules that allow it still hold: it may
    tell of the past, and rules of the past do not count. Off, access control costs no round."""
    if x.caller.user is None:
        begin(x)
        return

    @answering
    def ready(x: Exchange, error: RaftkvError | None) -> None:
        begin(x)

    x.read_index(functools.partial(ready, x))


def confirmed(x: Exchange, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Go on in a task once it is sure that the rules by which the call was allowed still hold.

    For what consensus itself carries, and no guard of a command.
    """

    @answering
    def begin(x: Exchange, error: RaftkvError | None) -> None:
        x.run(work())

    x.read_index(functools.partial(begin, x))


def reading(start: bytes, end: bytes | None = None, keyspace: int = USER_KEYS) -> Accesses:
    """What reading a key or an interval needs."""
    return (Access(Kind.READ, keyspace, start, end),)


def reads_interval(x: Exchange) -> Accesses:
    """The guard of a call on the keys of its parameters, or on all of them."""
    return reading(*(interval(x.query) or (b"", b"")))
