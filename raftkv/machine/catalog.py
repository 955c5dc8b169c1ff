"""The service catalog: instances in a keyspace of their own, each on a lease of its own.

Who may change an instance while its lease lives: the same claimant. Two claims are the same when
both name an owner and it is equal; when either names none, address and port tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from raftkv.checks import check
from raftkv.errors import InstanceClaimed, InstanceNotFound, LeaseExists, NoSpace
from raftkv.machine.draft import KEYSPACE, Draft
from raftkv.machine.leases import Lease, end_lease, read_lease, write_lease
from raftkv.machine.mvcc import live_rows, newest_record, whole
from raftkv.machine.records import CATALOG, CAUSE_REQUEST, U64, Record
from raftkv.machine.removal import remove
from raftkv.machine.results import DeregisterResult, ServiceResult
from raftkv.machine.tables import CURRENT, LEASES, TableReader

PASSING: Final = "passing"
DRAINING: Final = "draining"


class Instance:
    """One registered service instance: its attributes, and the record that holds them."""

    __slots__ = ("fields", "record")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.fields: dict[str, Any] = json.loads(record.value)
        """service, instance, address, port, tags, meta, weight, ttl_seconds, status ("passing" or
        "draining"), owner, lease, registered_ms."""

    @property
    def service(self) -> str:
        """Name of the service."""
        return str(self.fields["service"])

    @property
    def instance(self) -> str:
        """Name of the instance within it."""
        return str(self.fields["instance"])

    @property
    def passing(self) -> bool:
        """Whether it is offered: registered and not draining."""
        return bool(self.fields["status"] == PASSING)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instance) and self.record == other.record

    def __hash__(self) -> int:
        return hash(self.record)

    def __repr__(self) -> str:
        return f"Instance({self.fields!r})"


class ServiceSummary:
    """A service's name, and how many instances it has."""

    __slots__ = ("instances", "passing", "service")

    def __init__(self, service: str) -> None:
        self.service = service
        self.instances = 0
        self.passing = 0

    def __repr__(self) -> str:
        return f"ServiceSummary({self.service!r} {self.passing}/{self.instances})"


def catalog_key(service: str, instance: str) -> bytes:
    """The instance's key in the catalog's keyspace."""
    return b"%b\0%b" % (service.encode(), instance.encode())


def apply_register(draft: Draft, command: list[Any]) -> ServiceResult:
    """The SERVICE_REGISTER command, at most one revision."""
    (_, _, service, instance, address, port, tags, meta, weight,
     ttl_seconds, owner, lease, takeover) = command  # fmt: skip
    claim = {
        "service": service, "instance": instance, "address": address, "port": port, "tags": tags,
        "meta": dict(meta), "weight": weight, "ttl_seconds": ttl_seconds, "status": PASSING,
        "owner": owner, "lease": lease, "registered_ms": draft.state.clock_ms,
    }  # fmt: skip
    holder = _holder(draft, service, instance)
    if holder is None:
        return _write_new(draft, claim, None)
    if _same_claimant(holder, claim):
        return _renew(draft, holder, claim)
    if not takeover:
        raise InstanceClaimed(
            f"instance {instance!r} of {service!r} is held by another process at "
            f"{holder['address']}:{holder['port']}",
            service=service, instance=instance, lease=holder["lease"], holder=holder,
        )  # fmt: skip
    return _write_new(draft, claim, holder)


def apply_deregister(draft: Draft, command: list[Any]) -> DeregisterResult:
    """The SERVICE_DEREGISTER command."""
    _, _, service, instance, owner = command
    holder = _require(draft, service, instance)
    if owner and holder["owner"] and owner != holder["owner"]:
        raise InstanceClaimed(
            f"instance {instance!r} of {service!r} belongs to another owner",
            service=service, instance=instance, lease=holder["lease"], holder=holder,
        )  # fmt: skip
    row = KEYSPACE[CATALOG] + catalog_key(service, instance)
    remove(draft, [row], [draft.get(CURRENT, row) or b""], CAUSE_REQUEST)
    own = _own_lease(draft, holder)
    if own:
        end_lease(draft, own, CAUSE_REQUEST)
    return DeregisterResult(draft.end_command(), holder, own)


def apply_drain(draft: Draft, command: list[Any]) -> ServiceResult:
    """The SERVICE_DRAIN command."""
    _, _, service, instance, draining = command
    holder = _require(draft, service, instance)
    status = DRAINING if draining else PASSING
    changed = holder["status"] != status
    if changed:
        holder["status"] = status
        _write(draft, holder)
    return _result(draft, holder, changed=changed, created=False)


def _renew(draft: Draft, holder: dict[str, Any], claim: dict[str, Any]) -> ServiceResult:
    # What registration does not say anew stays: a drain outlives re-registration.
    for name in ("status", "lease", "registered_ms"):
        claim[name] = holder[name]
    claim["owner"] = claim["owner"] or holder["owner"]
    changed = claim != holder
    if changed:
        _write(draft, claim)
        if claim["ttl_seconds"] != holder["ttl_seconds"]:
            old = read_lease(draft.writer, claim["lease"])
            check(old is not None, "an instance's lease is there", lease=claim["lease"])
            if old is not None:
                write_lease(draft, old._replace(ttl_seconds=claim["ttl_seconds"]))
    return _result(draft, claim, changed=changed, created=False)


def _write_new(draft: Draft, claim: dict[str, Any], holder: dict[str, Any] | None) -> ServiceResult:
    lease = claim["lease"]
    if draft.get(LEASES, U64.pack(lease)) is not None:
        raise LeaseExists("lease already exists", lease=lease)
    _check_space(draft)
    write_lease(draft, Lease(lease, claim["ttl_seconds"], draft.state.clock_ms, True))
    _write(draft, claim)
    if holder is not None:
        # The record hangs on the new lease by now; the former holder's heartbeats must fail.
        own = _own_lease(draft, holder)
        if own:
            end_lease(draft, own, CAUSE_REQUEST)
    return _result(draft, claim, changed=True, created=holder is None)


def _write(draft: Draft, fields: dict[str, Any]) -> None:
    _check_space(draft)
    value = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    key = catalog_key(fields["service"], fields["instance"])
    draft.put(CATALOG, key, value.encode(), fields["lease"])


def _check_space(draft: Draft) -> None:
    if draft.no_space:
        raise NoSpace("the store is full: delete or compact; writes go on once there is space")


def _result(draft: Draft, fields: dict[str, Any], *, changed: bool, created: bool) -> ServiceResult:
    revision = draft.end_command()
    return ServiceResult(revision, changed, created, fields, fields["lease"], fields["ttl_seconds"])


def _same_claimant(holder: dict[str, Any], claim: dict[str, Any]) -> bool:
    if holder["owner"] and claim["owner"]:
        return bool(holder["owner"] == claim["owner"])
    return (holder["address"], holder["port"]) == (claim["address"], claim["port"])


def _own_lease(draft: Draft, holder: dict[str, Any]) -> int:
    lease = read_lease(draft.writer, holder["lease"])
    return lease.lease if lease is not None and lease.service else 0


def _holder(draft: Draft, service: str, instance: str) -> dict[str, Any] | None:
    found = read_instance(draft.writer, service, instance)
    return None if found is None else found.fields


def _require(draft: Draft, service: str, instance: str) -> dict[str, Any]:
    holder = _holder(draft, service, instance)
    if holder is None:
        raise InstanceNotFound(
            f"service {service!r} has no instance {instance!r}", service=service, instance=instance
        )
    return holder


# ---- reading -----------------------------------------------------------------------------------


def read_instance(reader: TableReader, service: str, instance: str) -> Instance | None:
    """One instance, or None."""
    record = newest_record(reader, CATALOG, catalog_key(service, instance))
    return None if record is None else Instance(record)


def read_instances(reader: TableReader, start: bytes, end: bytes) -> Iterator[Instance]:
    """Instances whose catalog keys lie in [start, end), ordered by service, then instance."""
    for _, raw in live_rows(reader, CATALOG, start, end):
        yield Instance(Record(whole(reader, raw)))


def read_services(
    reader: TableReader, prefix: str, after: str, limit: int
) -> tuple[list[ServiceSummary], bool]:
    """Services whose names start with `prefix` and come after `after`; whether there are more."""
    start = max(prefix.encode(), after.encode() + b"\1" if after else b"")
    services: list[ServiceSummary] = []
    for instance in read_instances(reader, start, b""):
        name = instance.service
        if not name.startswith(prefix):
            break
        if not services or services[-1].service != name:
            if limit and len(services) == limit:
                return services, True
            services.append(ServiceSummary(name))
        summary = services[-1]
        summary.instances += 1
        summary.passing += instance.passing
    return services, False
