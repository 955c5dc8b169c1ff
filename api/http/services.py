"""Services that register with a TTL: `/api/services` and `/api/watch/services`."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson

from raftkv.api.gate import by_command
from raftkv.api.http.codec import decode_cursor, dump_json, encode_cursor, hex_id
from raftkv.api.http.exchange import Exchange
from raftkv.api.http.fields import Field, read_fields
from raftkv.api.http.handling import (
    CONSISTENCY,
    answering,
    once_key,
    prefix_end,
    read_then,
    reading,
    settled,
)
from raftkv.api.http.leases import fresh_lease
from raftkv.api.http.router import Answer, Param, Route
from raftkv.api.http.watch import EventStream, start_revision
from raftkv.errors import (
    InstanceClaimed,
    InstanceNotFound,
    InvalidRequest,
    LeaseNotFound,
    RaftkvError,
)
from raftkv.limits import (
    HTTP_STREAM_SLICE_KEYS,
    LEASE_TTL_SECONDS_MAX,
    LEASE_TTL_SECONDS_MIN,
    PAGE_KEYS_DEFAULT,
    PAGE_KEYS_MAX,
    SERVICE_META_MAX,
    SERVICE_TAGS_MAX,
)
from raftkv.machine.access import Access, Kind, service_interval
from raftkv.machine.catalog import catalog_key
from raftkv.machine.commands import service_deregister, service_drain, service_register
from raftkv.machine.records import CATALOG, CAUSE_EXPIRED, Record
from raftkv.machine.results import DeregisterResult, ServiceResult
from raftkv.server.store import KeepAliveResult
from raftkv.server.watch import Watch, WatchSpec

if TYPE_CHECKING:
    from raftkv.machine.access import Accesses
    from raftkv.machine.events import Event

TTL_SECONDS_DEFAULT: Final = 10

REGISTRATION: Final = (
    Field("address", "text", "Where it is reached: a host name or an IP address.", required=True),
    Field("port", "integer", "Its port; 0 for none.", required=True, maximum=65_535),
    Field("tags", "texts", f"Words to select by, at most {SERVICE_TAGS_MAX}.", default=[]),
    Field("meta", "text_map", f"Any further facts, at most {SERVICE_META_MAX}.", default={}),
    Field("weight", "integer", "Share of the traffic, relative to the others.", default=1),
    Field(
        "ttl", "integer", "Seconds without a heartbeat after which it is gone.",
        default=TTL_SECONDS_DEFAULT, minimum=LEASE_TTL_SECONDS_MIN, maximum=LEASE_TTL_SECONDS_MAX,
    ),
    Field(
        "owner", "text", "Names the process that registers: it alone may change the instance. "
        "Without one, address and port tell.", default="",
    ),
    Field("takeover", "boolean", "Take the instance id over from a live holder.", default=False),
)  # fmt: skip
HEARTBEAT: Final = (Field("owner", "text", "As registered; another's is refused.", default=""),)
DRAIN: Final = (
    Field("draining", "boolean", "true: no longer offered; false: offered again.", default=True),
)


def names_of(x: Exchange) -> list[str]:
    """The names in the path: a service, or a service and an instance."""
    try:
        return [place.decode() for place in x.places]
    except UnicodeDecodeError:
        raise InvalidRequest("Names of services and instances are UTF-8 text") from None


def reads_services(x: Exchange) -> Accesses:
    """The guard of a call on all services whose names have a prefix."""
    start = x.query["prefix"].encode()
    return reading(start, prefix_end(start), CATALOG)


def reads_service(x: Exchange) -> Accesses:
    """The guard of a call on the instances of one service, or of all."""
    return reading(*(service_interval(names_of(x)[0]) if x.places else (b"", b"")), CATALOG)


def reads_instance(x: Exchange) -> Accesses:
    """The guard of a call that reads one instance."""
    return reading(catalog_key(*names_of(x)), None, CATALOG)


def writes_instance(x: Exchange) -> Accesses:
    """The guard of a call that keeps one instance alive."""
    return (Access(Kind.WRITE, CATALOG, catalog_key(*names_of(x)), None),)


def instance_json(fields: dict[str, Any], record: Record | None) -> dict[str, Any]:
    """The API's `Instance` object."""
    shown = {
        name: fields[name]
        for name in ("service", "instance", "address", "port", "tags", "meta", "weight")
    }
    shown["ttl"] = fields["ttl_seconds"]
    shown["status"] = fields["status"]
    shown["owner"] = fields["owner"]
    shown["lease"] = hex_id(fields["lease"])
    if record is not None:
        shown["create_revision"] = record.create_revision
        shown["mod_revision"] = record.mod_revision
    return shown


def record_instance(record: Record) -> dict[str, Any]:
    """The `Instance` in a record of the catalog."""
    return instance_json(orjson.loads(record.value), record)


def expires_at(ttl_seconds: int) -> str | None:
    """When an instance renewed now is gone (RFC 3339), by this member's clock."""
    try:
        moment = datetime.fromtimestamp(time.time() + ttl_seconds, UTC)
    except (OverflowError, ValueError):
        return None  # beyond the year 9999
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _refuse(x: Exchange, error: RaftkvError) -> None:
    """Fail, showing the holder of a claimed instance the way instances are shown, to those who may
    read it."""
    holder = error.facts.get("holder")
    if isinstance(error, InstanceClaimed) and isinstance(holder, dict) and "ttl_seconds" in holder:
        key = catalog_key(holder["service"], holder["instance"])
        if not x.caller.allows(Access(Kind.READ, CATALOG, key, None)):
            x.fail(InstanceClaimed("another process holds this instance"))
            return
        found = x.machine.instance(holder["service"], holder["instance"])
        shown = instance_json(holder, None if found is None else found.record)
        error = InstanceClaimed(error.message, **{**error.facts, "holder": shown})
    x.fail(error)


# ---- writing ---------------------------------------------------------------------------------


def put_instance(x: Exchange) -> None:
    service, instance = names_of(x)
    body = read_fields(x.request.body, REGISTRATION)
    command = service_register(
        service,
        instance,
        body["address"],
        body["port"],
        tags=body["tags"],
        meta=body["meta"],
        weight=body["weight"],
        ttl_seconds=body["ttl"],
        owner=body["owner"],
        takeover=body["takeover"],
        lease=fresh_lease(),
        once=once_key(x),
    )
    x.caller.propose(command, partial(_registered, x))


def _registered(x: Exchange, result: ServiceResult | RaftkvError) -> None:
    if isinstance(result, RaftkvError):
        _refuse(x, result)
    elif result.created or result.changed:
        _show_registered(x, result)
    else:
        # Nothing was written, so nothing renewed the lease yet; registering renews all the same.
        x.caller.keep_alive(result.lease, partial(_show_renewed, x, result))


@answering
def _show_renewed(x: Exchange, result: ServiceResult, kept: KeepAliveResult) -> None:
    _show_registered(x, result)


@answering
def _show_registered(x: Exchange, result: ServiceResult) -> None:
    x.json(
        {
            "service": result.instance["service"],
            "instance": result.instance["instance"],
            "lease": hex_id(result.lease),
            "ttl": result.ttl_seconds,
            "expires_at": expires_at(result.ttl_seconds),
            "revision": result.revision,
            "changed": result.changed,
            "created": result.created,
        },
        201 if result.created else 200,
    )


def post_heartbeat(x: Exchange) -> None:
    service, instance = names_of(x)
    body = read_fields(x.request.body, HEARTBEAT, required=False)
    Heartbeat(x, service, instance, body["owner"]).beat()


class Heartbeat:
    """Renews the lease of an instance.

    The local copy tells which lease that is. Only when it knows no instance, or a lease that is
    gone, is it made sure that the copy is fresh; then its word is final.
    """

    __slots__ = ("_fresh", "_instance", "_owner", "_service", "_x")

    def __init__(self, x: Exchange, service: str, instance: str, owner: str) -> None:
        self._x = x
        self._service = service
        self._instance = instance
        self._owner = owner
        self._fresh = False

    def beat(self) -> None:
        """Renew, by what the local copy says."""
        found = self._x.machine.instance(self._service, self._instance)
        if found is None:
            self._gone()
            return
        holder = found.fields["owner"]
        if self._owner and holder and self._owner != holder:
            if not self._fresh:
                self._look_again()
                return
            _refuse(
                self._x,
                InstanceClaimed(
                    f"Instance {self._instance!r} of {self._service!r} belongs to another owner",
                    service=self._service,
                    instance=self._instance,
                    holder=found.fields,
                ),
            )
            return
        self._x.caller.keep_alive(found.fields["lease"], self._renewed)

    def _look_again(self) -> None:
        self._fresh = True
        self._x.read_index(self._looked)

    def _looked(self, error: RaftkvError | None) -> None:
        if error is not None:
            self._x.fail(error)
        else:
            self.beat()

    def _renewed(self, result: KeepAliveResult | RaftkvError) -> None:
        if isinstance(result, LeaseNotFound):
            self._gone()
        elif isinstance(result, RaftkvError):
            self._x.fail(result)
        else:
            self._x.json(
                {
                    "lease": hex_id(result.lease),
                    "ttl": result.ttl_seconds,
                    "expires_at": expires_at(result.ttl_seconds),
                }
            )

    def _gone(self) -> None:
        if not self._fresh:
            self._look_again()
            return
        self._x.fail(_no_instance(self._service, self._instance))


def _no_instance(service: str, instance: str) -> InstanceNotFound:
    return InstanceNotFound(
        f"Service {service!r} has no instance {instance!r}: register it (again)",
        service=service,
        instance=instance,
    )


def post_drain(x: Exchange) -> None:
    service, instance = names_of(x)
    body = read_fields(x.request.body, DRAIN, required=False)
    command = service_drain(service, instance, body["draining"], once=once_key(x))
    x.caller.propose(command, partial(_drained, x))


@answering
def _drained(x: Exchange, result: ServiceResult) -> None:
    x.json(
        {
            "service": result.instance["service"],
            "instance": result.instance["instance"],
            "status": result.instance["status"],
            "changed": result.changed,
            "revision": result.revision,
        }
    )


def delete_instance(x: Exchange) -> None:
    service, instance = names_of(x)
    owner = x.query["owner"]
    command = service_deregister(service, instance, owner=owner, once=once_key(x))
    x.caller.propose(command, partial(_deregistered, x))


def _deregistered(x: Exchange, result: DeregisterResult | RaftkvError) -> None:
    if isinstance(result, RaftkvError):
        _refuse(x, result)
    else:
        x.json({"revision": result.revision, "deleted": 1})


# ---- reading ---------------------------------------------------------------------------------


class CatalogReader:
    """Instances of an interval of the catalog, at one revision, in short slices."""

    def __init__(self, x: Exchange, start: bytes, end: bytes, revision: int = 0) -> None:
        self._machine = x.machine
        self.start = start
        self._end = end
        self.revision = revision
        self.more = True

    def read(self) -> list[Record]:
        """The next slice, in order of service and instance."""
        result = self._machine.range(
            self.start,
            self._end,
            keyspace=CATALOG,
            revision=self.revision,
            limit=HTTP_STREAM_SLICE_KEYS,
            examine_max=4 * HTTP_STREAM_SLICE_KEYS,
        )
        self.revision = result.revision
        self.more = result.more
        if result.resume is not None:
            self.start = result.resume
        return result.records


def list_services(x: Exchange) -> None:
    prefix: str = x.query["prefix"]
    start = prefix.encode()
    pages = CatalogReader(x, start, prefix_end(start))
    if x.query["cursor"] is not None:
        pages.revision, position = decode_cursor(x.query["cursor"], start)
        if not position.startswith(start):
            raise InvalidRequest("cursor points outside of the prefix")
        pages.start = position
    read_then(x, partial(_services_ready, pages, start))


def _services_ready(
    pages: CatalogReader, identity: bytes, x: Exchange, error: RaftkvError | None
) -> None:
    _services_begin(x, pages, identity, error)


@answering
def _services_begin(
    x: Exchange, pages: CatalogReader, identity: bytes, error: RaftkvError | None
) -> None:
    x.run(_services(x, pages, identity))


async def _services(x: Exchange, pages: CatalogReader, identity: bytes) -> None:
    limit = x.query["limit"]
    found: list[dict[str, Any]] = []
    cursor = None
    while pages.more and cursor is None:
        for record in pages.read():
            fields = orjson.loads(record.value)
            name = fields["service"]
            if not found or found[-1]["service"] != name:
                if len(found) == limit:
                    cursor = encode_cursor(pages.revision, identity, name.encode() + b"\0")
                    break
                found.append({"service": name, "instances": 0, "passing": 0})
            found[-1]["instances"] += 1
            found[-1]["passing"] += fields["status"] == "passing"
        await asyncio.sleep(0)
    x.json(
        {
            "services": found,
            "more": cursor is not None,
            "cursor": cursor,
            "revision": pages.revision,
        }
    )


def get_service(x: Exchange) -> None:
    (service,) = names_of(x)
    read_then(x, partial(_service_ready, service))


def _service_ready(service: str, x: Exchange, error: RaftkvError | None) -> None:
    _service_begin(x, service, error)


@answering
def _service_begin(x: Exchange, service: str, error: RaftkvError | None) -> None:
    x.run(_service(x, service))


async def _service(x: Exchange, service: str) -> None:
    pages = CatalogReader(x, *service_interval(service))
    tag, passing = x.query["tag"], x.query["passing"]
    shown = []
    while pages.more:
        for record in pages.read():
            instance = record_instance(record)
            if tag is not None and tag not in instance["tags"]:
                continue
            if passing and instance["status"] != "passing":
                continue
            shown.append(instance)
        if pages.more:
            await asyncio.sleep(0)
    x.json({"service": service, "instances": shown, "revision": pages.revision})


def get_instance(x: Exchange) -> None:
    service, instance = names_of(x)
    read_then(x, partial(_instance_ready, service, instance))


def _instance_ready(service: str, instance: str, x: Exchange, error: RaftkvError | None) -> None:
    _show_instance(x, service, instance, error)


@answering
def _show_instance(x: Exchange, service: str, instance: str, error: RaftkvError | None) -> None:
    machine = x.machine
    found = machine.instance(service, instance)
    if found is None:
        raise _no_instance(service, instance)
    x.json({**instance_json(found.fields, found.record), "revision": machine.revision})


# ---- watching --------------------------------------------------------------------------------


def watch_services(x: Exchange) -> None:
    settled(x, _begin_watch)


def _begin_watch(x: Exchange) -> None:
    if x.places:
        start, end = service_interval(names_of(x)[0])
    else:
        start, end = b"", b""
    from_revision = start_revision(x)
    if from_revision:
        CatalogWatch(x, EventStream(x), start, end, from_revision)
    else:
        x.run(_present_then_changes(x, start, end))


async def _present_then_changes(x: Exchange, start: bytes, end: bytes) -> None:
    pages = CatalogReader(x, start, end)
    stream = EventStream(x)
    while pages.more:
        records = pages.read()
        if not x.streaming:
            stream.begin()
        pieces = [
            stream.frame(
                b"instance",
                dump_json(
                    {"type": "instance", "revision": pages.revision, **record_instance(record)}
                ),
            )
            for record in records
        ]
        if not x.push(b"".join(pieces)) and not await x.writable():
            return
        await asyncio.sleep(0)
    if not x.ended:
        CatalogWatch(x, stream, start, end, pages.revision + 1)


class CatalogWatch:
    """The sink of one client's watch of services."""

    __slots__ = ("_stream", "_watch")

    def __init__(
        self, x: Exchange, stream: EventStream, start: bytes, end: bytes, from_revision: int
    ) -> None:
        self._stream = stream
        spec = WatchSpec(CATALOG, start, end, from_revision, prev=True)
        self._watch: Watch | None = None
        watch = self._watch = x.caller.watch(spec, self)
        if x.ended:
            return  # closed at once: history went while the present set was sent
        x.on_lost = watch.cancel
        x.on_writable = watch.resume
        x.on_stopping = self.closed
        if not x.streaming:
            stream.begin()
        x.push(stream.mark("ready", watch.delivered_revision))

    def events(self, revision: int, events: list[Event]) -> bool:
        last = len(events) - 1
        pieces = []
        for at, event in enumerate(events):
            ends = at == last or events[at + 1].revision != event.revision
            shown = self._show(event)
            pieces.append(
                self._stream.frame(
                    shown["type"].encode(), dump_json(shown), event.revision if ends else 0
                )
            )
        return self._stream.x.push(b"".join(pieces))

    def _show(self, event: Event) -> dict[str, Any]:
        shown: dict[str, Any] = {"type": "deregistered", "revision": event.revision}
        if not event.deleted:
            record = event.record
            shown["type"] = "registered" if record.version == 1 else "changed"
            return shown | record_instance(record)
        shown["reason"] = "expired" if event.cause == CAUSE_EXPIRED else "deregistered"
        previous = self._watch.previous(event) if self._watch is not None else None
        if previous is not None:
            return shown | record_instance(previous)
        service, _, instance = event.key.partition(b"\0")
        return shown | {"service": service.decode(), "instance": instance.decode()}

    def progress(self, revision: int) -> None:
        self._stream.x.push(self._stream.mark("progress", revision))

    def closed(self, error: RaftkvError) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._stream.fail(error)


SERVICES: Final = "Services"
FROM: Final = Param(
    "from", "integer", "Skip the present set; changes from this revision on, inclusive.", minimum=1
)
WATCH_ANSWERS: Final = (
    Answer(200, "The stream.", "ServiceEvent", "text/event-stream"),
    Answer(200, "The stream, as lines.", "ServiceEvent", "application/x-ndjson"),
)
WATCH_DOC: Final = (
    "First one `instance` for each that is present, then `ready`, then `registered`, `changed` "
    "and `deregistered` (whose `reason` tells an expired one from one that left). "
    "`Last-Event-ID` resumes without the present set."
)

ROUTES: Final = [
    Route(
        "PUT", "/api/services/{service}/{instance}", put_instance, "registerInstance",
        "Register a service instance", SERVICES,
        guard=by_command,
        doc="It is gone, and watchers told, when no heartbeat comes for its TTL. Registering "
        "again renews it, and changes what is different.",
        body=REGISTRATION,
        answers=(
            Answer(200, "Known before.", "Registered"),
            Answer(201, "New.", "Registered"),
        ),
        problems=(409, 415, 507), writes=True,
    ),
    Route(
        "POST", "/api/services/{service}/{instance}/heartbeat", post_heartbeat, "heartbeat",
        "Keep an instance alive", SERVICES,
        guard=writes_instance,
        body=HEARTBEAT, body_required=False,
        answers=(Answer(200, "Renewed.", "Beaten"),),
        problems=(404, 409, 415), writes=True, once=False,
    ),
    Route(
        "POST", "/api/services/{service}/{instance}/drain", post_drain, "drainInstance",
        "Stop or resume offering an instance", SERVICES,
        guard=by_command,
        doc="A draining instance is still known and alive, but no longer `passing`.",
        body=DRAIN, body_required=False,
        answers=(Answer(200, "Done.", "Drained"),),
        problems=(404, 415, 507), writes=True,
    ),
    Route(
        "DELETE", "/api/services/{service}/{instance}", delete_instance, "deregisterInstance",
        "Take an instance out", SERVICES,
        guard=by_command,
        query=(Param("owner", "text", "As registered; another's is refused.", default=""),),
        answers=(Answer(200, "Gone.", "Deregistered"),),
        problems=(404, 409), writes=True,
    ),
    Route(
        "GET", "/api/services", list_services, "listServices", "List the services", SERVICES,
        guard=reads_services,
        query=(
            Param("prefix", "text", "Services whose names begin with this.", default=""),
            Param("limit", "integer", "Most services to answer.", default=PAGE_KEYS_DEFAULT,
                  minimum=1, maximum=PAGE_KEYS_MAX),
            Param("cursor", "text", "Where the page before ended, as it said."),
            CONSISTENCY,
        ),
        answers=(Answer(200, "Names and counts.", "Services"),),
        problems=(410,),
    ),
    Route(
        "GET", "/api/services/{service}", get_service, "getService",
        "Find the instances of a service", SERVICES,
        guard=reads_service,
        doc="An unknown service has no instances; that is no error.",
        query=(
            Param("tag", "text", "Only instances with this tag."),
            Param("passing", "flag", "Only instances that are offered.", default=False),
            CONSISTENCY,
        ),
        answers=(Answer(200, "The instances.", "Service"),),
    ),
    Route(
        "GET", "/api/services/{service}/{instance}", get_instance, "getInstance",
        "Look one instance up", SERVICES,
        guard=reads_instance,
        query=(CONSISTENCY,),
        answers=(Answer(200, "The instance.", "FoundInstance"),),
        problems=(404,),
    ),
    Route(
        "GET", "/api/watch/services", watch_services, "watchServices", "Watch all services",
        SERVICES,
        guard=reads_service, doc=WATCH_DOC, query=(FROM,), headers=("Last-Event-ID",),
        answers=WATCH_ANSWERS, problems=(410, 429),
    ),
    Route(
        "GET", "/api/watch/services/{service}", watch_services, "watchService",
        "Watch one service", SERVICES,
        guard=reads_service, doc=WATCH_DOC, query=(FROM,), headers=("Last-Event-ID",),
        answers=WATCH_ANSWERS, problems=(410, 429),
    ),
]  # fmt: skip
