"""The one place that every RPC passes: decode the request, ask the gate, call the handler, and turn
what it raises into the answer that etcd would give.

A handler sees its call as `Unary` or `Streaming`, so that the same handler serves gRPC and JSON.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol

from google.protobuf.message import DecodeError

from raftkv.api.etcd import answers
from raftkv.api.etcd.guards import GUARDS
from raftkv.api.etcd.wire import Headers
from raftkv.api.gate import public
from raftkv.api.grpc.messages import CallFault
from raftkv.api.grpc.status import Status
from raftkv.errors import (
    InvalidAuthToken,
    InvalidRequest,
    OutcomeUnknown,
    PermissionDenied,
    RaftkvError,
    Refused,
)

if TYPE_CHECKING:
    from raftkv.api.callers import Caller
    from raftkv.api.gate import Gate
    from raftkv.api.observe import Observer, Trail
    from raftkv.server.store import Store

P = ParamSpec("P")


class AnyCall(Protocol):
    """What unary and streaming calls share."""

    on_cancel: Callable[[], None] | None

    @property
    def source(self) -> str:
        """The client's address, without the port; empty when it is not known."""

    @property
    def certified(self) -> str | None:
        """The user that the client's certificate stands for."""

    @property
    def ended(self) -> bool:
        """Nothing can be sent any more."""

    def meta(self, name: str) -> str | bytes | None:
        """The first value of a metadata name, or None."""

    def fail(self, code: int, text: str = "") -> None:
        """End the call with a status other than OK. Ignored once it has ended."""


class Unary(AnyCall, Protocol):
    """One request, one answer."""

    def reply(self, message: bytes) -> None:
        """Answer. Ignored once the call has ended."""


class Streaming(AnyCall, Protocol):
    """Any number of answers; see `raftkv.api.grpc.calls.StreamCall` for the promises."""

    on_message: Callable[[bytes], None] | None
    on_end: Callable[[], None] | None
    on_drain: Callable[[], None] | None

    @property
    def writable(self) -> bool:
        """Whether it is worth while to send more now."""

    def send(self, message: bytes) -> bool:
        """False: wait for `on_drain`, or the call has ended."""

    def finish(self) -> None:
        """End with status OK."""

    def pause(self) -> None:
        """Take no more messages for now."""

    def resume(self) -> None:
        """Take messages again."""


UnaryHandler = Callable[[Any, Any], None]
StreamHandler = Callable[[Any], None]

SERVED_BY_LEARNERS: Final = frozenset(
    ("/etcdserverpb.KV/Range", "/etcdserverpb.KV/RangeStream", "/etcdserverpb.Maintenance/Status")
)
"""Reads only if they are content with this member's copy."""
LEADERLESS_TICKS: Final = 3
"""Ticks without a leader after which streams with ``hasleader`` end."""


class Rpcs:
    """What all handlers of one door share: the store, the gate, headers, tasks."""

    def __init__(
        self, store: Store, gate: Gate, report: Callable[[BaseException], None] | None = None
    ) -> None:
        self.store = store
        self.gate = gate
        self.headers = Headers(store)
        self.loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[None]] = set()
        self.learner = False
        """Whether this member is a learner; refreshed by `tick`."""
        self.unary: dict[str, tuple[Any, UnaryHandler]] = {}
        """Path -> class of the request, handler ``(call, message bytes)``."""
        self.streams: dict[str, tuple[Any, StreamHandler]] = {}
        """Path -> class of the request, handler ``(call)``."""
        self.needing_leader: set[Streaming] = set()
        """Streams to end when there is no leader for a while; may hold some that have ended."""
        self._without_leader = 0
        self._report = report
        self._message_trail: Trail | None = None
        """That of the message of a stream that is being taken."""

    # ---- registration

    def add(self, path: str, request: Any, handler: Callable[[Caller, Any, Any], None]) -> None:
        """Serve a unary RPC: `handler(caller, call, request)`, answered by `call.reply`.

        `caller` is the store as whoever calls may use it, see `admit`.
        """

        def start(call: Unary, message: bytes) -> None:
            try:
                decoded = request.FromString(message)
                try:
                    caller = self.admit(call, path, decoded)
                except (InvalidAuthToken, PermissionDenied):
                    # Nobody is refused for what this member has not heard of yet.
                    self.store.read_index(partial(again, call, decoded))
                    return
                handler(caller, call, decoded)
            except Exception as error:
                self.refuse(call, error)

        def again(call: Unary, decoded: Any, error: RaftkvError | None) -> None:
            if call.ended:
                return
            try:
                if error is not None:
                    raise error
                handler(self.admit(call, path, decoded), call, decoded)
            except Exception as failure:
                self.refuse(call, failure)

        observer = self.gate.observer
        self.unary[path] = (request, start if observer is None else observer.unary(path, start))

    def add_stream(
        self,
        path: str,
        request: Any,
        start: Callable[[Any], Callable[[Any], None]],
    ) -> None:
        """Serve a streaming RPC. `start(call)` makes the taker of its decoded messages.

        The taker asks `admit` for each of them: whether a refusal ends the stream is its affair.
        """

        observer = self.gate.observer

        def opened(call: Streaming) -> None:
            take = start(call)
            if call.meta("hasleader") == "true":
                self.needing_leader.add(call)

            def received(message: bytes) -> None:
                try:
                    take(request.FromString(message))
                except Exception as error:
                    self.break_off(call, error)

            def followed(observer: Observer, message: bytes) -> None:
                trail = self._message_trail = observer.begin_rpc(call, path)
                try:
                    received(message)
                finally:
                    self._message_trail = None
                    if trail is not None:
                        trail.taken()

            call.on_message = received if observer is None else partial(followed, observer)

        self.streams[path] = (request, opened)

    def add_server_stream(
        self, path: str, request: Any, handler: Callable[[Caller, Any, Any], None]
    ) -> None:
        """Serve an RPC of one request and many answers: `handler(caller, call, request)`."""

        def start(call: Streaming) -> Callable[[Any], None]:
            first = True

            def take(decoded: Any) -> None:
                nonlocal first
                if not first:
                    raise CallFault(Status.INTERNAL, "more than one request message")
                first = False
                handler(self.admit(call, path, decoded), call, decoded)

            return take

        self.add_stream(path, request, start)

    # ---- every request

    @property
    def alike(self) -> bool:
        """Whether all messages of a stream are judged alike: nobody is asked for a name, paced, or
        followed."""
        gate = self.gate
        return not gate.enabled and gate.pace is None and gate.observer is None

    def admit(self, call: AnyCall, path: str, request: Any) -> Caller:
        """The store as the caller may use it; raises unless the call may go on.

        Asked once for each request message. Handlers propose, read, renew and watch through what it
        answers, and never through `self.store`.
        """
        trail = self.trail(call)
        if trail is None:
            return self._admitted(call, path, request)
        trail.operation = path
        try:
            caller = self._admitted(call, path, request)
            needs = caller.needs if self.gate.enabled else GUARDS[path](request)
        except Exception as error:
            trail.failed(error)
            raise
        return trail.follow(caller, needs)

    def _admitted(self, call: AnyCall, path: str, request: Any) -> Caller:
        if self.learner and not (
            path in SERVED_BY_LEARNERS and getattr(request, "serializable", True)
        ):
            raise answers.NOT_FOR_LEARNER.fault()
        if call.meta("hasleader") == "true" and "no_leader" in self.store.health():
            raise answers.NO_LEADER.fault()
        gate = self.gate
        if gate.pace is not None:
            gate.pace.of_address(call.source)
        if not gate.enabled:
            return gate.anyone
        guard, token = GUARDS.get(path), _token(call)
        certified = call.certified if token is None else None
        if token is None and certified is None and guard is not public:
            # etcd's word for nobody. Some of its clients do not survive another one.
            raise InvalidRequest("user name is empty", reason="user_name_empty")
        caller, needs = gate.judge(guard, token, request, certified)
        return caller.asking(needs)

    async def confirmed(self, caller: Caller) -> None:
        """Wait until local reads are fresh, and the call is still allowed by the rules then."""
        await self.outcome(caller.read_index)

    def trail(self, call: AnyCall) -> Trail | None:
        """Where what a call does is noted down, if anybody follows it."""
        if self.gate.observer is None:
            return None
        if self._message_trail is not None:
            return self._message_trail
        trail: Trail | None = getattr(call, "trail", None)
        return trail

    def refuse(self, call: AnyCall, error: BaseException) -> None:
        """Answer with an error; anything but a refusal or an unknown outcome is a bug of ours."""
        trail = self.trail(call)
        if trail is not None:
            trail.failed(error)
        if isinstance(error, CallFault):
            call.fail(error.status, error.text)
        elif isinstance(error, DecodeError):
            call.fail(Status.INTERNAL, f"grpc: error unmarshalling request: {error}")
        elif isinstance(error, Refused | OutcomeUnknown):
            call.fail(*answers.row_of(error))
        else:
            if self._report is not None:
                self._report(error)
            call.fail(Status.INTERNAL, "internal error")

    def break_off(self, call: AnyCall, error: BaseException) -> None:
        """As `refuse`, for a stream: what serves it is told to let go."""
        self.refuse(call, error)
        cancel, call.on_cancel = call.on_cancel, None
        if cancel is not None:
            cancel()

    def tick(self) -> None:
        """About once a second: look at what this member is, and end streams that need a leader."""
        problems = self.store.health()
        self.learner = "learner" in problems
        self._without_leader = self._without_leader + 1 if "no_leader" in problems else 0
        for call in list(self.needing_leader):
            if call.ended:
                self.needing_leader.discard(call)
            elif self._without_leader >= LEADERLESS_TICKS:
                self.break_off(call, answers.NO_LEADER.fault())

    # ---- tasks, for RPCs that wait

    def run(self, call: AnyCall, work: Coroutine[Any, Any, None]) -> None:
        """Serve the rest of a call in a task, which is cancelled when the call is."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        call.on_cancel = task.cancel  # type: ignore[assignment]

        def ended(task: asyncio.Task[None]) -> None:
            self.tasks.discard(task)
            if task.cancelled():
                call.fail(*answers.STOPPED)
            elif (error := task.exception()) is not None:
                self.refuse(call, error)

        task.add_done_callback(ended)

    async def outcome(self, start: Callable[..., None], *arguments: Any) -> Any:
        """Await what `start(*arguments, done)` answers; raises what is a `RaftkvError`."""
        future: asyncio.Future[Any] = self.loop.create_future()

        def done(result: Any) -> None:
            if not future.done():
                future.set_result(result)

        start(*arguments, done)
        result = await future
        if isinstance(result, RaftkvError):
            raise result
        return result


def _token(call: AnyCall) -> bytes | None:
    token = call.meta("token")
    return token.encode("latin-1", "replace") if isinstance(token, str) else token


class Outlet:
    """Sends messages of a stream from a task, at the client's pace."""

    def __init__(self, call: Streaming) -> None:
        self._call = call
        self._drained = asyncio.Event()
        call.on_drain = self._drained.set

    async def send(self, message: bytes) -> None:
        """Send one message; wait while the client is slow."""
        self._drained.clear()
        if not self._call.send(message):
            if self._call.ended:
                raise asyncio.CancelledError("the call has ended")
            await self._drained.wait()


class Service:
    """Base of the services: what they reach the store by."""

    def __init__(self, rpcs: Rpcs) -> None:
        self.rpcs = rpcs
        self.store = rpcs.store
        self.headers = rpcs.headers


def answering(
    step: Callable[Concatenate[Any, Any, P], None],
) -> Callable[Concatenate[Any, Any, P], None]:
    """A method ``(service, call, ..., result)`` that the store calls back.

    Nothing is done for a caller that has gone; an error given as the last argument, or raised by
    the step, is the answer. Nothing is raised into the store.
    """

    @functools.wraps(step)
    def guarded(service: Any, call: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if call.ended:
            return
        try:
            if args and isinstance(args[-1], RaftkvError):
                raise args[-1]
            step(service, call, *args, **kwargs)
        except Exception as error:
            service.rpcs.refuse(call, error)

    return guarded
