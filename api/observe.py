"""What each request did, followed through every door for the audit log and for traces.

A door begins a `Trail` for a request. The caller that the gate gives out is wrapped so that what it
is asked for, ranges and outcomes, is noted down; the door tells the answer. With neither audit nor
traces a member has no `Observer`, and a request costs one look for it.

A trail holds names: of operations, users, keys. It never holds values, passwords or tokens.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack

import raftkv
from raftkv.api.audit import AuditLog, rfc3339
from raftkv.api.callers import Caller
from raftkv.api.grpc.messages import CallFault
from raftkv.api.grpc.status import Status
from raftkv.api.tracing import open_tracing
from raftkv.errors import OutcomeUnknown, RaftkvError, Refused
from raftkv.limits import AUDIT_KEY_BYTES_MAX, AUDIT_RANGES_MAX
from raftkv.machine.access import Access, Accesses, Kind, effects
from raftkv.machine.commands import Command, Op
from raftkv.machine.records import CATALOG
from raftkv.machine.results import Result
from raftkv.server.watch import Watch, WatchSink, WatchSpec

if TYPE_CHECKING:
    from raftkv.api.etcd.rpc import AnyCall
    from raftkv.api.http.exchange import Exchange
    from raftkv.api.tracing import Span, Tracing
    from raftkv.machine.access import Grants
    from raftkv.server.config import ServerConfig
    from raftkv.server.store import Done, Store

DONE: Final = "done"
BEGUN: Final = "begun"
REFUSED: Final = "refused"
UNKNOWN: Final = "unknown"
FAILED: Final = "failed"
ABANDONED: Final = "abandoned"
"""The client went before there was an outcome."""

KINDS: Final = {
    Kind.READ: "read",
    Kind.WRITE: "write",
    Kind.ADMIN: "admin",
    Kind.USER: "user",
    Kind.ROLE: "role",
    Kind.NOBODY: "nobody",
}
_SUBJECTS: Final[dict[int, tuple[str, ...]]] = {
    Op.COMPACT: ("to_revision",),
    Op.LEASE_GRANT: ("lease",),
    Op.LEASE_REVOKE: ("lease",),
    Op.USER_ADD: ("name",),
    Op.USER_DELETE: ("name",),
    Op.USER_PASSWORD: ("name",),
    Op.USER_GRANT: ("name", "role"),
    Op.USER_REVOKE: ("name", "role"),
    Op.ROLE_ADD: ("role",),
    Op.ROLE_DELETE: ("role",),
    Op.ROLE_GRANT: ("role",),
    Op.ROLE_REVOKE: ("role",),
}
"""What of a command, after its number and idempotency key, says whom or what it is about."""


class Observer:
    """Follows requests for one member. Lives on the loop, shared by its doors."""

    def __init__(
        self, store: Store, audit: AuditLog | None = None, tracing: Tracing | None = None
    ) -> None:
        self.audit = audit
        self._store = store
        self._tracing = tracing
        self._run = secrets.token_hex(4)
        self._number = 0

    def begin(
        self, source: str, operation: str = "", traceparent: str | None = None
    ) -> Trail | None:
        """Follow a request from the address `source`; None: this one need not be followed."""
        span = None if self._tracing is None else self._tracing.begin(operation, traceparent)
        if span is None and self.audit is None:
            return None
        self._number += 1
        return Trail(self, f"{self._run}-{self._number}", source, operation, span)

    def begin_http(self, x: Exchange) -> Trail | None:
        """As `begin`, for a request over HTTP/1.1."""
        traceparent = x.header(b"traceparent")
        return self.begin(
            x.source,
            x.request.method.decode("latin-1"),
            None if traceparent is None else traceparent.decode("latin-1"),
        )

    def begin_rpc(self, call: AnyCall, path: str) -> Trail | None:
        """As `begin`, for a unary RPC or a message of a stream."""
        traceparent = call.meta("traceparent")
        if isinstance(traceparent, bytes):
            traceparent = None
        return self.begin(call.source, path, traceparent)

    def unary(self, path: str, handler: Callable[[Any, bytes], None]) -> Callable[..., None]:
        """The handler of a unary RPC, followed. What came over HTTP is followed there."""

        def followed(call: Any, message: bytes) -> None:
            if not hasattr(call, "trail") and (trail := self.begin_rpc(call, path)) is not None:
                call = ObservedUnary(call, trail)
            handler(call, message)

        return followed

    def stream(self, path: str, handler: Callable[[Any], None]) -> Callable[[Any], None]:
        """The handler of a streaming RPC that tells of no data: its beginning is noted down."""

        def followed(call: Any) -> None:
            trail = self.begin_rpc(call, path)
            handler(call)
            if trail is not None:
                trail.taken()

        return followed

    def ended(self, trail: Trail, outcome: str) -> None:
        """A trail is complete."""
        revision, term, member = self._store.stamp()
        if trail.revision is not None:
            revision = trail.revision
        if trail.span is not None:
            trail.span.end(trail.operation, outcome, trail.code)
        if self.audit is None:
            return
        line: dict[str, Any] = {
            "time": rfc3339(time.time()),
            "request": trail.request,
            "member": f"{member:016x}",
            "term": term,
            "user": trail.user,
            "source": trail.source,
            "operation": trail.operation,
            "ranges": [_range(access) for access in trail.accesses[:AUDIT_RANGES_MAX]],
            **trail.subjects,
            "outcome": outcome,
            "revision": revision,
            "took_ms": round((time.monotonic() - trail.began) * 1000, 3),
        }
        if len(trail.accesses) > AUDIT_RANGES_MAX:
            line["more_ranges"] = len(trail.accesses) - AUDIT_RANGES_MAX
        if trail.code:
            line["code"] = trail.code
        self.audit.put(line)

    def close(self) -> None:
        """Write out what waits. Blocks for the disk."""
        if self.audit is not None:
            self.audit.close()
        if self._tracing is not None:
            self._tracing.close()


def open_observer(store: Store, config: ServerConfig) -> Observer | None:
    """What a member is configured to follow; None: nothing. Raises ConfigError."""
    audit = tracing = None
    if config.trace_endpoint:
        tracing = open_tracing(
            config.trace_endpoint, config.trace_one_in, config.name, raftkv.__version__
        )
    if config.audit_log:
        audit = AuditLog(
            Path(config.audit_log),
            file_bytes_max=config.audit_log_size,
            files_max=config.audit_log_files,
        )
    if audit is None and tracing is None:
        return None
    return Observer(store, audit, tracing)


class Trail:
    """One request. It ends once: with its answer, or with the last command of a client that went
    before."""

    __slots__ = (
        "_ended", "_leaving", "_observer", "_pending", "accesses", "began", "code", "operation",
        "outcome", "request", "revision", "source", "span", "subjects", "user",
    )  # fmt: skip

    def __init__(
        self, observer: Observer, request: str, source: str, operation: str, span: Span | None
    ) -> None:
        self._observer = observer
        self.request = request
        self.source = source
        self.operation = operation
        self.span = span
        self.began = time.monotonic()
        self.user: str | None = None
        self.accesses: list[Access] = []
        self.subjects: dict[str, Any] = {}
        self.outcome = ""
        """Set by what was refused or failed on the way."""
        self.code = ""
        self.revision: int | None = None
        self._pending = 0
        self._leaving = ""
        self._ended = False

    # -- what the doors tell ---------------------------------------------------------------------

    def follow(self, caller: Caller, needs: Accesses) -> Caller:
        """The caller to serve the request as, and what was found to be needed beforehand."""
        self.user = caller.user
        self.note(needs)
        return NotedCaller(caller, self)

    def failed(self, error: BaseException) -> None:
        """Why it is not done. Only the last reason counts."""
        if isinstance(error, RaftkvError):
            self.code = error.code
        elif isinstance(error, CallFault):
            self.code = Status(error.status).label
        else:
            self.code = "internal"
        self.outcome = (
            UNKNOWN
            if isinstance(error, OutcomeUnknown)
            else REFUSED
            if isinstance(error, Refused | CallFault)
            else FAILED
        )

    def answered(self, status: int, begun: bool = False) -> None:
        """The answer, with this HTTP status; `begun`: its first part."""
        if status < 400:
            self.end(BEGUN if begun else DONE)
        else:
            if not self.outcome:
                self.outcome, self.code = REFUSED if status < 500 else FAILED, str(status)
            self.end(self.outcome)

    def replied(self, code: int) -> None:
        """The answer, with this status of gRPC."""
        if code and not self.outcome:
            self.outcome, self.code = REFUSED, Status(code).label
        self.end(self.outcome if code else DONE)

    def taken(self) -> None:
        """A message of a stream was taken in: what it began goes on."""
        self.leave(self.outcome or BEGUN)

    def lost(self) -> None:
        """The client went before the answer."""
        self.leave(ABANDONED)

    def leave(self, outcome: str) -> None:
        """Nobody tells an answer: the outcome is that of what is under way, else this."""
        if self._pending:
            self._leaving = outcome
        else:
            self.end(outcome)

    def end(self, outcome: str) -> None:
        """The trail is complete. Ignored from the second time on."""
        if not self._ended:
            self._ended = True
            self._observer.ended(self, outcome)

    # -- what the caller tells -------------------------------------------------------------------

    def note(self, accesses: Iterable[Access]) -> None:
        """The request reads or writes this."""
        for access in accesses:
            if access not in self.accesses[-AUDIT_RANGES_MAX:]:
                self.accesses.append(access)

    def command(self, command: Command) -> None:
        """The request proposes this."""
        self.note(effects(command))
        body: list[Any] = msgpack.unpackb(command, raw=False, use_list=True)
        for name, value in zip(_SUBJECTS.get(body[0], ()), body[2:], strict=False):
            self.subjects[name] = f"{value:016x}" if name == "lease" else value

    def awaiting(self, name: str, done: Done) -> Done:
        """`done`, with its outcome noted down."""
        self._pending += 1
        span = None if self.span is None else self.span.child(name)
        return partial(self._settled, span, done)

    def _settled(self, span: Span | None, done: Done, result: Any) -> None:
        self._pending -= 1
        if span is not None:
            span.end(span.name, FAILED if isinstance(result, RaftkvError) else DONE, "")
        if isinstance(result, Result):
            self.revision = result.revision
        elif self._leaving and isinstance(result, RaftkvError):
            self.failed(result)
        done(result)
        if self._leaving and not self._pending:
            reached = BEGUN if self._leaving == BEGUN and result is None else DONE
            self.end(self.outcome or reached)


class NotedCaller(Caller):
    """Another caller, with whatever it is asked for noted down."""

    def __init__(self, caller: Caller, trail: Trail) -> None:
        super().__init__(caller._store, caller._watches)
        self._caller = caller
        self._trail = trail
        self.user = caller.user
        self.needs = caller.needs

    def _again(self) -> Caller:
        return NotedCaller(self._caller, self._trail)

    @property
    def grants(self) -> Grants | None:
        return self._caller.grants

    def propose(self, command: Command, done: Done) -> None:
        self._trail.command(command)
        self._caller.propose(command, self._trail.awaiting("propose", done))

    def read_index(
        self, done: Callable[[RaftkvError | None], None], needs: Accesses | None = None
    ) -> None:
        needs = self.needs if needs is None else needs
        self._trail.note(needs)
        self._caller.read_index(self._trail.awaiting("read_index", done), needs)

    def keep_alive(self, lease: int, done: Done) -> None:
        self._trail.subjects["lease"] = f"{lease:016x}"
        self._caller.keep_alive(lease, self._trail.awaiting("keep_alive", done))

    def lease_time(self, lease: int, done: Done) -> None:
        self._trail.subjects["lease"] = f"{lease:016x}"
        self._caller.lease_time(lease, self._trail.awaiting("lease_time", done))

    def watch(self, spec: WatchSpec, sink: WatchSink) -> Watch:
        self._trail.note((Access(Kind.READ, spec.keyspace, spec.start, spec.end),))
        try:
            return self._caller.watch(spec, sink)
        except RaftkvError as error:
            self._trail.failed(error)
            raise


class ObservedUnary:
    """A unary RPC whose answer is told to its trail. See `raftkv.api.etcd.rpc.Unary`."""

    __slots__ = ("_call", "on_cancel", "trail")

    def __init__(self, call: Any, trail: Trail) -> None:
        self._call = call
        self.trail = trail
        self.on_cancel: Callable[[], None] | None = None
        call.on_cancel = self._cancelled

    @property
    def source(self) -> str:
        """See `AnyCall`."""
        return self.trail.source

    @property
    def certified(self) -> str | None:
        """See `AnyCall`."""
        certified: str | None = self._call.certified
        return certified

    @property
    def ended(self) -> bool:
        """See `AnyCall`."""
        ended: bool = self._call.ended
        return ended

    def meta(self, name: str) -> str | bytes | None:
        """See `AnyCall`."""
        found: str | bytes | None = self._call.meta(name)
        return found

    def reply(self, message: bytes) -> None:
        """See `Unary`."""
        self._call.reply(message)
        self.trail.replied(0)

    def fail(self, code: int, text: str = "") -> None:
        """See `AnyCall`."""
        self._call.fail(code, text)
        self.trail.replied(code)

    def _cancelled(self) -> None:
        self.trail.lost()
        if self.on_cancel is not None:
            self.on_cancel()


def text_of(key: bytes) -> str:
    """A key, or the beginning of it, as text that shows every byte."""
    text = key[:AUDIT_KEY_BYTES_MAX].decode("utf-8", "backslashreplace")
    return text if len(key) <= AUDIT_KEY_BYTES_MAX else text + "…"


def _range(access: Access) -> dict[str, str]:
    kind, keyspace, start, end = access
    shown = {"access": KINDS[kind]}
    if kind == Kind.ADMIN or kind == Kind.NOBODY:
        return shown
    if keyspace == CATALOG:
        shown["keyspace"] = "services"
    if end is None or kind > Kind.WRITE:
        shown["key"] = text_of(start)
    else:
        shown["start"], shown["end"] = text_of(start), text_of(end)
    return shown
