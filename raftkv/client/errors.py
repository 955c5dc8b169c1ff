"""What a client adds to the error tree, and the way from an error on the wire to its class.

    Refused
    ├── PreconditionFailed   a compare-and-set found another revision
    └── Unreachable          no endpoint took the request: nothing was done
    OperatingError
    ├── BadAnswer            something answered that is no raftkv member
    ├── LeaseLost            a lease could not be kept; what hangs on it is gone or soon will be
    └── TransferBroken       a snapshot download that ended early

Everything else comes from `raftkv.errors`, found by the `code` of the problem document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from raftkv.errors import InvariantViolation, OperatingError, OutcomeUnknown, RaftkvError, Refused

_FORM: Final = frozenset({"type", "title", "status", "detail", "code", "outcome"})


class PreconditionFailed(Refused):
    """The key is not as the caller expected; facts: current (the record as JSON, or None)."""

    code = "precondition_failed"


class Unreachable(Refused):
    """No endpoint accepted the connection, so nothing was sent; facts: tried."""

    code = "unreachable"


class BadAnswer(OperatingError):
    """The answer is not one a raftkv member gives; most likely the endpoint is something else."""

    code = "bad_answer"


class LeaseLost(OperatingError):
    """A lease was not renewed in time or was revoked; facts: lease."""

    code = "lease_lost"


class TransferBroken(OperatingError):
    """A snapshot ended before all of it had arrived; repeat the download."""

    code = "transfer_broken"


def _walk(base: type[RaftkvError]) -> Iterator[type[RaftkvError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _walk(kind)


def classes_by_code() -> dict[str, type[RaftkvError]]:
    """Every error class that clients know, by its code.

    Classes of other parts of raftkv, which may be loaded in the same process, are left out: a
    caller catches what `raftkv.errors` and this module define.
    """
    classes: dict[str, type[RaftkvError]] = {}
    for kind in _walk(RaftkvError):
        if "code" in vars(kind) and kind.__module__ in (RaftkvError.__module__, __name__):
            classes.setdefault(kind.code, kind)
    return classes


def error_from_problem(problem: Mapping[str, Any], *, writes: bool) -> RaftkvError:
    """The error that a problem document (RFC 9457) stands for.

    A code that this version does not know falls back to its family by ``outcome``; the code stays
    in the facts. A member's own failure leaves the fate of a write open, so when `writes` it
    becomes `OutcomeUnknown`.
    """
    code = str(problem.get("code", ""))
    facts = {
        name: value
        for name, value in problem.items()
        if name not in _FORM
        and re.fullmatch(r"[A-Za-z_]\w*", name)
        and name not in ("self", "message")
    }
    facts["code"] = code
    message = str(problem.get("detail") or problem.get("title") or code or "no reason was given")
    outcome = problem.get("outcome")
    family: type[RaftkvError]
    if outcome == "refused":
        family = Refused
    elif outcome == "unknown" or writes:
        family = OutcomeUnknown
    else:
        family = OperatingError
    kind = classes_by_code().get(code, family)
    if not issubclass(kind, family) or issubclass(kind, InvariantViolation):
        kind = family
    return kind(message, **facts)
