"""grpc.health.v1: what is being served, asked once (Check, List) or watched (Watch)."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.message import DecodeError

from raftkv.api.grpc.calls import StreamCall, UnaryCall
from raftkv.api.grpc.descriptors import STANDARD
from raftkv.api.grpc.messages import CallFault
from raftkv.api.grpc.server import GrpcServer
from raftkv.api.grpc.status import Status

SERVING: Final = 1
NOT_SERVING: Final = 2
SERVICE_UNKNOWN: Final = 3

_Request = STANDARD.message("grpc.health.v1.HealthCheckRequest")
_Response = STANDARD.message("grpc.health.v1.HealthCheckResponse")
_ListResponse = STANDARD.message("grpc.health.v1.HealthListResponse")
_ANSWERS: Final[dict[int, bytes]] = {
    status: _Response(status=status).SerializeToString() for status in range(4)
}


class Health:
    """The status of the server (service "") and of its services; starts as serving."""

    def __init__(self, server: GrpcServer, *services: str) -> None:
        self._statuses: dict[str, int] = dict.fromkeys(("", *services), SERVING)
        self._watchers: dict[str, set[_Watcher]] = {}
        server.unary("/grpc.health.v1.Health/Check", self._check)
        server.unary("/grpc.health.v1.Health/List", self._list)
        server.server_streaming("/grpc.health.v1.Health/Watch", self._watch)

    def set(self, serving: bool, *services: str) -> None:
        """Set the status of `services`, or of all of them; watchers hear of changes."""
        status = SERVING if serving else NOT_SERVING
        for service in services or tuple(self._statuses):
            if self._statuses.get(service) != status:
                self._statuses[service] = status
                for watcher in list(self._watchers.get(service, ())):
                    watcher.tell(status)

    def _check(self, call: UnaryCall, message: bytes) -> None:
        service = _service(message)
        status = self._statuses.get(service)
        if status is None:
            call.fail(Status.NOT_FOUND, f"unknown service {service}")
        else:
            call.reply(_ANSWERS[status])

    def _list(self, call: UnaryCall, message: bytes) -> None:
        answer = _ListResponse()
        for service, status in self._statuses.items():
            answer.statuses[service].status = status
        call.reply(answer.SerializeToString())

    def _watch(self, call: StreamCall, message: bytes) -> None:
        service = _service(message)
        watchers = self._watchers.setdefault(service, set())
        watcher = _Watcher(call)
        watchers.add(watcher)

        def leave() -> None:
            watchers.discard(watcher)
            if not watchers and self._watchers.get(service) is watchers:
                del self._watchers[service]

        call.on_cancel = leave
        watcher.tell(self._statuses.get(service, SERVICE_UNKNOWN))


class _Watcher:
    """One Watch call. A slow one skips to the newest status: only that is promised."""

    __slots__ = ("_behind", "_call", "_sent", "_status")

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        self._status = self._sent = -1
        self._behind = False
        call.on_drain = self._drained

    def tell(self, status: int) -> None:
        self._status = status
        if not self._behind and status != self._sent:
            self._sent = status
            self._behind = not self._call.send(_ANSWERS[status])

    def _drained(self) -> None:
        self._behind = False
        self.tell(self._status)


def _service(message: bytes) -> str:
    try:
        request: Any = _Request.FromString(message)
    except DecodeError as error:
        raise CallFault(Status.INTERNAL, f"request is not a HealthCheckRequest: {error}") from error
    service: str = request.service
    return service
