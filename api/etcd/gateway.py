"""etcd's JSON gateway: the same RPCs as POST requests with JSON bodies, under `/v3/`.

Each path leads to the very handler that gRPC calls; only the call is another. Streams take all
their requests from the body, one JSON object after another, and answer one object a line.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import orjson

from raftkv.api.etcd import answers
from raftkv.api.etcd.jsonform import fill, plain
from raftkv.api.etcd.messages import ETCD, METHODS
from raftkv.api.grpc.status import Status
from raftkv.api.http.codec import dump_json
from raftkv.api.http.exchange import JSON
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

HTTP_STATUS: Final[dict[int, int]] = {
    Status.CANCELLED: 499,
    Status.UNKNOWN: 500,
    Status.INVALID_ARGUMENT: 400,
    Status.DEADLINE_EXCEEDED: 504,
    Status.NOT_FOUND: 404,
    Status.ALREADY_EXISTS: 409,
    Status.PERMISSION_DENIED: 403,
    Status.RESOURCE_EXHAUSTED: 429,
    Status.FAILED_PRECONDITION: 400,
    Status.ABORTED: 409,
    Status.OUT_OF_RANGE: 400,
    Status.UNIMPLEMENTED: 501,
    Status.INTERNAL: 500,
    Status.UNAVAILABLE: 503,
    Status.DATA_LOSS: 500,
    Status.UNAUTHENTICATED: 401,
}
"""As the gateway of etcd 3.6 and later."""

_decoder: Final = json.JSONDecoder()


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
        self.route = Route("POST", name, _never, f"etcd {name}", "", "etcd")


def _never(x: Exchange) -> None:
    """The gateway's routes are there to be counted by; the router does not know them."""


class Gateway:
    """Finds what a path under `/v3/` means. Made once its `Rpcs` has every service."""

    def __init__(self, rpcs: Rpcs) -> None:
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
            _fail(x, Status.NOT_FOUND, "Not Found")
        elif x.request.method != b"POST":
            x.route = target.route
            _fail(x, Status.UNIMPLEMENTED, "Method Not Allowed", 405)
        else:
            x.route = target.route
            try:
                self._begin(x, target)
            except RaftkvError as error:
                _fail(x, *answers.row_of(error))
        return True

    @staticmethod
    def _begin(x: Exchange, target: _Target) -> None:
        if target.streaming:
            messages = deque(_messages(x.request.body, target.request))
            stream = JsonStream(x, target.response, messages)
            target.handler(stream)
            stream.resume()
            return
        body = x.request.body
        request = target.request()
        if body.strip():
            try:
                values = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                raise InvalidRequest(f"the body is not JSON: {error}") from None
            fill(request, values)
        target.handler(JsonUnary(x, target.response), request.SerializeToString())


def _messages(body: bytes, request: Any) -> Iterator[bytes]:
    """The requests of a stream: one JSON object after another."""
    try:
        text = body.decode().strip()
        while text:
            values, end = _decoder.raw_decode(text)
            yield fill(request(), values).SerializeToString()
            text = text[end:].lstrip()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def _fail(x: Exchange, code: int, text: str, status: int = 0) -> None:
    # `error` is for clients of etcd before 3.6.
    body = {"error": text, "code": int(code), "message": text, "details": []}
    x.json(body, status or HTTP_STATUS.get(code, 500))


class _JsonCall:
    """What both kinds of calls share."""

    __slots__ = ("_response", "_x")

    def __init__(self, x: Exchange, response: Any) -> None:
        self._x = x
        self._response = response

    @property
    def ended(self) -> bool:
        """See `AnyCall`."""
        return self._x.ended

    @property
    def on_cancel(self) -> Callable[[], None] | None:
        """See `AnyCall`."""
        return self._x.on_lost

    @on_cancel.setter
    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        self._x.on_lost = callback

    def meta(self, name: str) -> str | None:
        """A metadata value, from the header that the gateway makes it of."""
        header = b"authorization" if name == "token" else b"grpc-metadata-" + name.encode()
        value = self._x.request.headers.get(header)
        return None if value is None else value.decode("latin-1")

    def _json(self, message: bytes) -> bytes:
        return dump_json(plain(self._response.FromString(message)))


class JsonUnary(_JsonCall):
    """A unary RPC as one HTTP request. See `rpc.Unary`."""

    __slots__ = ()

    def reply(self, message: bytes) -> None:
        """See `Unary`."""
        if not self._x.ended:
            self._x.send(self._json(message), JSON)

    def fail(self, code: int, text: str = "") -> None:
        """See `AnyCall`."""
        _fail(self._x, code, text)


class JsonStream(_JsonCall):
    """A streaming RPC as one HTTP request with an answer of many lines. See `rpc.Streaming`."""

    __slots__ = ("_inbox", "_reading", "on_end", "on_message")

    def __init__(self, x: Exchange, response: Any, messages: deque[bytes]) -> None:
        super().__init__(x, response)
        self._inbox = messages
        self._reading = False
        self.on_message: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        x.on_stopping = self._stopping

    @property
    def on_drain(self) -> Callable[[], None] | None:
        """See `Streaming`."""
        return self._x.on_writable

    @on_drain.setter
    def on_drain(self, callback: Callable[[], None] | None) -> None:
        self._x.on_writable = callback

    @property
    def writable(self) -> bool:
        """See `Streaming`."""
        return self._x.push(b"")

    def send(self, message: bytes) -> bool:
        """See `Streaming`."""
        x = self._x
        if x.ended:
            return False
        if not x.streaming:
            x.begin_stream(JSON)
        return x.push(b'{"result":%b}\n' % self._json(message))

    def finish(self) -> None:
        """See `Streaming`."""
        if not self._x.ended:
            if not self._x.streaming:
                self._x.begin_stream(JSON)
            self._x.end_stream()

    def fail(self, code: int, text: str = "") -> None:
        """See `AnyCall`."""
        x = self._x
        if x.ended:
            return
        status = HTTP_STATUS.get(code, 500)
        # The longer names are for clients of etcd before 3.6.
        error = {
            "code": int(code), "message": text, "details": [],
            "grpc_code": int(code), "http_code": status,
        }  # fmt: skip
        if x.streaming:
            x.push(dump_json({"error": error}) + b"\n")
            x.end_stream()
        else:
            x.json({"error": error}, status)

    def _stopping(self, error: RaftkvError) -> None:
        cancel, self.on_cancel = self.on_cancel, None
        self.fail(*answers.row_of(error))
        if cancel is not None:
            cancel()

    def pause(self) -> None:
        """See `Streaming`."""
        self._reading = False

    def resume(self) -> None:
        """Give out the requests of the body, then its end."""
        if self._reading:
            return
        self._reading = True
        while self._inbox and self._reading and not self._x.ended:
            message = self._inbox.popleft()
            if self.on_message is not None:
                self.on_message(message)
        if self._reading and not self._x.ended and self.on_end is not None:
            end, self.on_end = self.on_end, None
            end()
