"""The door of a simulated member: recorded requests in, their outcomes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftkv.errors import OutcomeUnknown, RaftkvError
from raftkv.machine.machine import Machine
from raftkv.machine.results import RangeResult
from raftkv.server.store import Done
from raftkv.simulation import SimMember
from tests.linearizability.history import Answer, KeepAlive, Outcome, Range, Request
from tests.linearizability.translation import command, end_of, told


def ask(member: SimMember, request: Request, done: Done, once: bytes | None = None) -> None:
    """Send a request to a member; `done` gets the machine's result or an error."""
    if isinstance(request, Range):
        member.read(query(request), done, serializable=request.serializable)
    elif isinstance(request, KeepAlive):
        member.keep_alive(request.lease, done)
    else:
        member.propose(command(request, once), done)


def outcome(result: Any) -> tuple[Outcome, Answer | None, str]:
    """What a history keeps of a result."""
    if isinstance(result, OutcomeUnknown):
        return Outcome.UNKNOWN, None, str(result)
    if isinstance(result, RaftkvError):
        return Outcome.REFUSED, None, str(result)
    return Outcome.OK, told(result), ""


def query(request: Range) -> Callable[[Machine], RangeResult]:
    """What a read asks the machine."""
    return lambda machine: machine.range(
        request.start,
        end_of(request.end),
        limit=request.limit,
        revision=request.revision,
        want_count=True,
    )
