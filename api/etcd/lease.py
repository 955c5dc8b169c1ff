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
from raftkv.api.http.leases import fresh_lease
from raftkv.errors import LeaseNotFound, PermissionDenied, RaftkvError
from raftkv.limits import (
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
        rpcs.add_stream(KEEP_ALIVE, rpc_message("LeaseKeepAliveRequest"), self.keep_alive)

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
        return _KeepAlives(self, call).take


class _KeepAlives:
    """One LeaseKeepAlive call. Answers wait for those before them."""

    __slots__ = ("_call", "_ending", "_service", "_waiting")

    def __init__(self, service: LeaseService, call: Streaming) -> None:
        self._service = service
        self._call = call
        self._waiting: deque[list[int]] = deque()
        """[lease, TTL in seconds, or -1 while it is not known]."""
        self._ending = False
        call.on_end = self._end
        call.on_drain = call.resume

    def take(self, request: Any) -> None:
        caller = self._service.rpcs.admit(self._call, KEEP_ALIVE, request)
        slot = [request.ID, -1]
        self._waiting.append(slot)
        if len(self._waiting) >= ETCD_KEEP_ALIVES_WAITING_MAX:
            self._call.pause()
        caller.keep_alive(request.ID, partial(self._done, slot))

    def _done(self, slot: list[int], result: KeepAliveResult | RaftkvError) -> None:
        call = self._call
        if call.ended:
            return
        if isinstance(result, KeepAliveResult):
            slot[1] = result.ttl_seconds
        elif isinstance(result, LeaseNotFound):
            slot[1] = 0
        else:
            self._service.rpcs.refuse(call, result)
            return
        waiting = self._waiting
        header = self._service.headers.now()
        room = True
        while waiting and waiting[0][1] >= 0:
            lease, ttl = waiting.popleft()
            room = call.send(header + number_field(2, lease) + number_field(3, ttl))
        if self._ending and not waiting:
            call.finish()
        elif room:
            call.resume()
        else:
            call.pause()

    def _end(self) -> None:
        self._ending = True
        if not self._waiting:
            self._call.finish()
