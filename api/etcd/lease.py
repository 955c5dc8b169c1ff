"""Lease: grant, revoke, keep alive, time to live, list."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import rpc_message
from raftkv.api.etcd.rpc import Rpcs, Service, Streaming, Unary, answering
from raftkv.api.etcd.wire import field, number_field
from raftkv.api.grpc.calls import StreamCall
from raftkv.api.http.leases import fresh_lease
from raftkv.errors import LeaseNotFound, PermissionDenied, RaftkvError
from raftkv.limits import (
    ETCD_KEEP_ALIVES_KEPT_MAX,
    ETCD_KEEP_ALIVES_WAITING_MAX,
    ETCD_LEASE_TTL_SECONDS_MIN,
    LEASE_TTL_SECONDS_MAX,
)
from raftkv.machine.commands import lease_grant, lease_revoke
from raftkv.server.store import KeepAliveResult

if TYPE_CHECKING:
    from raftkv.api.callers import Caller
    from raftkv.machine.results import LeaseResult, RevokeResult
    from raftkv.server.store import LeaseTime
KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
_KEEP_ALIVE_REQUEST: Final = rpc_message("LeaseKeepAliveRequest")
_MESSAGE_BYTES: Final = 11
"""A lease id alone takes no more."""


def granted_ttl(asked_seconds: int) -> int:
    """The TTL that a lease gets: short ones are raised. Raises for one that is too long."""
    if asked_seconds > LEASE_TTL_SECONDS_MAX:
        raise answers.LEASE_TTL_TOO_LARGE.fault()
    return max(asked_seconds, ETCD_LEASE_TTL_SECONDS_MIN)


class LeaseService(Service):
    """Service etcdserverpb.Lease."""

    def __init__(self, rpcs: Rpcs) -> None:
        super().__init__(rpcs)
        path = "/etcdserverpb.Lease/"
        rpcs.add(path + "LeaseGrant", rpc_message("LeaseGrantRequest"), self.grant)
        rpcs.add(path + "LeaseRevoke", rpc_message("LeaseRevokeRequest"), self.revoke)
        rpcs.add(path + "LeaseTimeToLive", rpc_message("LeaseTimeToLiveRequest"), self.time)
        rpcs.add(path + "LeaseLeases", rpc_message("LeaseLeasesRequest"), self.leases)
        self._asked: dict[bytes, tuple[int, bytes]] = {}
        rpcs.add_stream(KEEP_ALIVE, _KEEP_ALIVE_REQUEST, self.keep_alive)

    def grant(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer LeaseGrantResponse. Id 0: one is drawn."""
        ttl = granted_ttl(request.TTL)
        command = lease_grant(request.ID or fresh_lease(), ttl, chosen=not request.ID)
        caller.propose(command, partial(self._granted, call))

    @answering
    def _granted(self, call: Unary, result: LeaseResult) -> None:
        granted = number_field(2, result.lease) + number_field(3, result.ttl_seconds)
        call.reply(self.headers.now() + granted)

    def revoke(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer LeaseRevokeResponse."""
        caller.propose(lease_revoke(request.ID), partial(self._revoked, call))

    @answering
    def _revoked(self, call: Unary, result: RevokeResult) -> None:
        call.reply(self.headers.at(result.revision))

    def time(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer LeaseTimeToLiveResponse; of an unknown lease, with TTL -1."""
        caller.read_index(partial(self._time, call, caller, request))

    @answering
    def _time(self, call: Unary, caller: Caller, request: Any, error: RaftkvError | None) -> None:
        if self.store.machine.lease(request.ID) is None:
            self._unknown(call, request)
        else:
            caller.lease_time(request.ID, partial(self._timed, call, caller, request))

    def _timed(self, call: Unary, caller: Caller, request: Any, result: Any) -> None:
        if isinstance(result, LeaseNotFound):
            self._unknown(call, request)
        else:
            self._told(call, caller, request, result)

    def _unknown(self, call: Unary, request: Any) -> None:
        call.reply(self.headers.now() + number_field(2, request.ID) + number_field(3, -1))

    @answering
    def _told(self, call: Unary, caller: Caller, request: Any, time: LeaseTime) -> None:
        keys = self.store.machine.lease_keys(time.lease) if request.keys else []
        if len(caller.readable(keys)) < len(keys):
            # As in etcd: all of them or none.
            raise PermissionDenied("keys hang on this lease that you may not read")
        parts = [
            self.headers.now(),
            number_field(2, time.lease),
            number_field(3, time.remaining_ms // 1000),
            number_field(4, time.ttl_seconds),
        ]
        parts += [field(5, key) for key in keys]
        call.reply(b"".join(parts))

    def leases(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer LeaseLeasesResponse."""
        caller.read_index(partial(self._leases, call, caller))

    @answering
    def _leases(self, call: Unary, caller: Caller, error: RaftkvError | None) -> None:
        self.rpcs.run(call, self._list(call, caller))

    async def _list(self, call: Unary, caller: Caller) -> None:
        held = [field(2, number_field(1, each.lease)) for each in await caller.leases()]
        call.reply(b"".join((self.headers.now(), *held)))

    def keep_alive(self, call: Streaming) -> Callable[[Any], None]:
        """Answer one LeaseKeepAliveResponse a request, in order."""
        alive = _KeepAlives(self, call)
        if isinstance(call, StreamCall):
            call.on_run = partial(alive.take_run, call)
        return alive.take

    def asked(self, message: bytes) -> tuple[int, bytes]:
        """The lease that an encoded request is about, and the lease as a field of the answer.

        Holders renew again and again, so both are remembered."""
        found = self._asked.get(message)
        if found is None:
            lease: int = _KEEP_ALIVE_REQUEST.FromString(message).ID
            found = lease, number_field(2, lease)
            if len(message) <= _MESSAGE_BYTES:
                if len(self._asked) >= ETCD_KEEP_ALIVES_KEPT_MAX:
                    self._asked.clear()
                self._asked[message] = found
        return found


class _Run:
    """Requests that came together."""

    __slots__ = ("fields", "ttls")

    def __init__(self, fields: list[bytes]) -> None:
        self.fields = fields
        """The lease of each, as a field of its answer."""
        self.ttls: list[int | None] | None = None
        """Seconds, None for no such lease; until then it is not known."""


class _KeepAlives:
    """One LeaseKeepAlive call. Answers wait for those before them."""

    __slots__ = ("_call", "_ending", "_service", "_waiting", "_waiting_count")

    def __init__(self, service: LeaseService, call: Streaming) -> None:
        self._service = service
        self._call = call
        self._waiting: deque[_Run] = deque()
        self._waiting_count = 0
        self._ending = False
        call.on_end = self._end
        call.on_drain = call.resume

    def take(self, request: Any) -> None:
        """One request."""
        caller = self._service.rpcs.admit(self._call, KEEP_ALIVE, request)
        run = self._wait([number_field(2, request.ID)])
        caller.keep_alive(request.ID, partial(self._one_done, run))

    def take_run(self, call: StreamCall, messages: list[bytes]) -> None:
        """Requests that came together, encoded."""
        rpcs = self._service.rpcs
        if not rpcs.alike:
            for message in messages:
                if call.on_message is not None and not call.ended:
                    call.on_message(message)
            return
        try:
            caller = rpcs.admit(self._call, KEEP_ALIVE, None)
            asked = list(map(self._service.asked, messages))
            run = self._wait([lease_field for _, lease_field in asked])
            caller.keep_alives([lease for lease, _ in asked], partial(self._done, run))
        except Exception as error:
            rpcs.break_off(self._call, error)

    def _wait(self, fields: list[bytes]) -> _Run:
        run = _Run(fields)
        self._waiting.append(run)
        self._waiting_count += len(fields)
        if self._waiting_count >= ETCD_KEEP_ALIVES_WAITING_MAX:
            self._call.pause()
        return run

    def _one_done(self, run: _Run, result: KeepAliveResult | RaftkvError) -> None:
        if isinstance(result, KeepAliveResult):
            self._done(run, [result.ttl_seconds])
        elif isinstance(result, LeaseNotFound):
            self._done(run, [None])
        else:
            self._done(run, result)

    def _done(self, run: _Run, result: list[int | None] | RaftkvError) -> None:
        call = self._call
        if call.ended:
            return
        if isinstance(result, RaftkvError):
            self._service.rpcs.refuse(call, result)
            return
        run.ttls = result
        waiting = self._waiting
        header = self._service.headers.now()
        room = True
        while waiting and waiting[0].ttls is not None:
            run = waiting.popleft()
            self._waiting_count -= len(run.fields)
            room = self._answer(header, run.fields, run.ttls or [])
        if self._ending and not waiting:
            call.finish()
        elif room:
            call.resume()
        else:
            call.pause()

    def _answer(self, header: bytes, fields: list[bytes], ttls: list[int | None]) -> bool:
        # Few TTLs differ among the leases of a holder.
        ends = {ttl: number_field(3, ttl or 0) for ttl in set(ttls)}
        messages = [header + lease + ends[ttl] for lease, ttl in zip(fields, ttls, strict=True)]
        call = self._call
        if len(messages) > 1 and isinstance(call, StreamCall):
            return call.send_all(messages)
        return call.send(messages[0])

    def _end(self) -> None:
        self._ending = True
        if not self._waiting:
            self._call.finish()
