"""etcd's JSON gateway: the same RPCs as POST requests with JSON bodies, under `/v3/`.

Each path leads to the very handler that gRPC calls; only the call is another. Streams take all
their requests from the body, one JSON object after another, and answer one object a line; over a
WebSocket (`raftkv.api.etcd.sockets`) requests may come at any time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import orjson

from raftkv.api.etcd import answers
from raftkv.api.etcd.jsoncalls import JsonStream, JsonUnary, decoded, fail
from raftkv.api.etcd.jsonform import fill
from raftkv.api.etcd.messages import ETCD, METHODS
from raftkv.api.etcd.sockets import SocketStream, wants_socket
from raftkv.api.gate import by_command
from raftkv.api.grpc.status import Status
from raftkv.api.http.router import Route
from raftkv.errors import InvalidRequest, RaftkvError

if TYPE_CHECKING:
    from raftkv.api.etcd.rpc import Rpcs
    from raftkv.api.http.exchange import Exchange

PREFIXES: Final = (b"/v3/", b"/v3beta/")

PATHS: Final[dict[str, tuple[str, ...]]] = {
    "/etcdserverpb.KV/Range": ("kv/range",),
    "/etcdserverpb.KV/Put": ("kv/put",),
    "/etcdserverpb.KV/DeleteRange": ("kv/deleterange",),
    "/etcdserverpb.KV/Txn": ("kv/txn",),
    "/etcdserverpb.KV/Compact": ("kv/compaction",),
    "/etcdserverpb.Watch/Watch": ("watch",),
    "/etcdserverpb.Lease/LeaseGrant": ("lease/grant",),
    "/etcdserverpb.Lease/LeaseRevoke": ("lease/revoke", "kv/lease/revoke"),
    "/etcdserverpb.Lease/LeaseKeepAlive": ("lease/keepalive",),
    "/etcdserverpb.Lease/LeaseTimeToLive": ("lease/timetolive", "kv/lease/timetolive"),
    "/etcdserverpb.Lease/LeaseLeases": ("lease/leases", "kv/lease/leases"),
    "/etcdserverpb.Cluster/MemberAdd": ("cluster/member/add",),
    "/etcdserverpb.Cluster/MemberRemove": ("cluster/member/remove",),
    "/etcdserverpb.Cluster/MemberUpdate": ("cluster/member/update",),
    "/etcdserverpb.Cluster/MemberList": ("cluster/member/list",),
    "/etcdserverpb.Cluster/MemberPromote": ("cluster/member/promote",),
    "/etcdserverpb.Maintenance/Alarm": ("maintenance/alarm",),
    "/etcdserverpb.Maintenance/Status": ("maintenance/status",),
    "/etcdserverpb.Maintenance/Defragment": ("maintenance/defragment",),
    "/etcdserverpb.Maintenance/Hash": ("maintenance/hash",),
    "/etcdserverpb.Maintenance/HashKV": ("maintenance/hashkv",),
    "/etcdserverpb.Maintenance/Snapshot": ("maintenance/snapshot",),
    "/etcdserverpb.Maintenance/MoveLeader": ("maintenance/transfer-leadership",),
    "/etcdserverpb.Maintenance/Downgrade": ("maintenance/downgrade",),
    "/etcdserverpb.Auth/AuthEnable": ("auth/enable",),
    "/etcdserverpb.Auth/AuthDisable": ("auth/disable",),
    "/etcdserverpb.Auth/AuthStatus": ("auth/status",),
    "/etcdserverpb.Auth/Authenticate": ("auth/authenticate",),
    "/etcdserverpb.Auth/UserAdd": ("auth/user/add",),
    "/etcdserverpb.Auth/UserGet": ("auth/user/get",),
    "/etcdserverpb.Auth/UserList": ("auth/user/list",),
    "/etcdserverpb.Auth/UserDelete": ("auth/user/delete",),
    "/etcdserverpb.Auth/UserChangePassword": ("auth/user/changepw",),
    "/etcdserverpb.Auth/UserGrantRole": ("auth/user/grant",),
    "/etcdserverpb.Auth/UserRevokeRole": ("auth/user/revoke",),
    "/etcdserverpb.Auth/RoleAdd": ("auth/role/add",),
    "/etcdserverpb.Auth/RoleGet": ("auth/role/get",),
    "/etcdserverpb.Auth/RoleList": ("auth/role/list",),
    "/etcdserverpb.Auth/RoleDelete": ("auth/role/delete",),
    "/etcdserverpb.Auth/RoleGrantPermission": ("auth/role/grant",),
    "/etcdserverpb.Auth/RoleRevokePermission": ("auth/role/revoke",),
    "/v3lockpb.Lock/Lock": ("lock/lock",),
    "/v3lockpb.Lock/Unlock": ("lock/unlock",),
    "/v3electionpb.Election/Campaign": ("election/campaign",),
    "/v3electionpb.Election/Proclaim": ("election/proclaim",),
    "/v3electionpb.Election/Leader": ("election/leader",),
    "/v3electionpb.Election/Observe": ("election/observe",),
    "/v3electionpb.Election/Resign": ("election/resign",),
}
"""RPC -> where it is found under `/v3/`. RangeStream has no path in etcd either."""


class _Target:
    """What one path leads to."""

    __slots__ = ("handler", "request", "response", "route", "streaming")

    def __init__(
        self, handler: Callable[..., None], request: Any, response: Any, streaming: bool, name: str
    ) -> None:
        self.handler = handler
        self.request = request
        self.response = response
        self.streaming = streaming
        self.route = Route("POST", name, _never, f"etcd {name}", "", "etcd", guard=by_command)


def _never(x: Exchange) -> None:
    """The gateway's routes are there to be counted by; the router does not know them, and who may
    call is said by `raftkv.api.etcd.guards`."""


class Gateway:
    """Finds what a path under `/v3/` means. Made once its `Rpcs` has every service."""

    def __init__(self, rpcs: Rpcs) -> None:
        self._gate = rpcs.gate
        self._targets: dict[bytes, _Target] = {}
        for path, places in PATHS.items():
            found = rpcs.unary.get(path) or rpcs.streams.get(path)
            if found is None:
                continue
            request, handler = found
            response = ETCD.message(METHODS[path].output_type.lstrip("."))
            for place in places:
                self._targets[place.encode()] = _Target(
                    handler, request, response, path in rpcs.streams, f"/v3/{place}"
                )

    def handle(self, x: Exchange, path: bytes) -> bool:
        """Answer a request under one of `PREFIXES`; False when `path` is under neither."""
        prefix = next((each for each in PREFIXES if path.startswith(each)), None)
        if prefix is None:
            return False
        target = self._targets.get(path[len(prefix) :])
        if target is None:
            fail(x, Status.NOT_FOUND, "Not Found")
            return True
        x.route = target.route
        if x.trail is not None:
            x.trail.operation = target.route.operation
        if target.streaming and wants_socket(x):
            # A page of any site may open a socket, and no preflight asks first.
            if not x.granted:
                self._gate.admit(b"POST", x.request.headers)
            target.handler(stream := SocketStream(x, target.response, target.request))
            stream.resume()
        elif x.request.method != b"POST":
            fail(x, Status.UNIMPLEMENTED, "Method Not Allowed", 405)
        else:
            try:
                self._begin(x, target)
            except RaftkvError as error:
                if x.trail is not None:
                    x.trail.failed(error)
                fail(x, *answers.row_of(error))
        return True

    @staticmethod
    def _begin(x: Exchange, target: _Target) -> None:
        if target.streaming:
            messages = deque(decoded(x.request.body, target.request))
            stream = JsonStream(x, target.response, messages)
            target.handler(stream)
            stream.resume()
            return
        # Nothing of it is kept: it may hold a password.
        body, x.request.body = x.request.body, b""
        request = target.request()
        if body.strip():
            try:
                values = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                raise InvalidRequest(f"the body is not JSON: {error}") from None
            fill(request, values)
        target.handler(JsonUnary(x, target.response), request.SerializeToString())
