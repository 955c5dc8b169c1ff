"""Leases: `/api/leases`."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any, Final

from raftkv.api.gate import by_command, known
from raftkv.api.http.codec import hex_id, parse_lease, text_or_base64
from raftkv.api.http.exchange import Exchange
from raftkv.api.http.fields import Field, read_fields
from raftkv.api.http.handling import answering, once_key
from raftkv.api.http.router import Answer, Route
from raftkv.errors import InvalidRequest, LeaseNotFound, RaftkvError
from raftkv.limits import LEASE_TTL_SECONDS_MAX
from raftkv.machine.commands import lease_grant, lease_revoke
from raftkv.machine.results import LeaseResult, RevokeResult
from raftkv.server.store import KeepAliveResult, LeaseTime

GRANT: Final = (
    Field("ttl", "integer", "Seconds without a keep-alive after which it ends.", required=True,
          maximum=LEASE_TTL_SECONDS_MAX),
    Field("id", "hex", "The id wanted; absent: a random one."),
)  # fmt: skip


def fresh_lease() -> int:
    """A random lease id; two members draw the same one with a chance of 2^-63."""
    return secrets.randbits(63) or 1


def lease_of(x: Exchange) -> int:
    """The lease id in the path."""
    try:
        text = x.places[0].decode()
    except UnicodeDecodeError:
        raise InvalidRequest("A lease id is hexadecimal") from None
    return parse_lease(text, "The lease id")


def post_lease(x: Exchange) -> None:
    body = read_fields(x.request.body, GRANT)
    chosen = body["id"] is None
    lease = fresh_lease() if chosen else parse_lease(body["id"], "id")
    command = lease_grant(lease, body["ttl"], chosen=chosen, once=once_key(x))
    x.caller.propose(command, partial(_granted, x))


@answering
def _granted(x: Exchange, result: LeaseResult) -> None:
    x.json(
        {"lease": hex_id(result.lease), "ttl": result.ttl_seconds, "revision": result.revision},
        201,
        b"Location: /api/leases/%016x\r\n" % result.lease,
    )


def get_lease(x: Exchange) -> None:
    lease = lease_of(x)
    x.read_index(partial(_lease_ready, x, lease))


@answering
def _lease_ready(x: Exchange, lease: int, error: RaftkvError | None) -> None:
    machine = x.machine
    if machine.lease(lease) is None:
        raise LeaseNotFound(f"There is no lease {hex_id(lease)}", lease=lease)
    x.caller.lease_time(lease, partial(_lease_told, x))


@answering
def _lease_told(x: Exchange, time: LeaseTime) -> None:
    machine = x.machine
    texts: list[str] = []
    binary: list[str] = []
    for key in x.caller.readable(machine.lease_keys(time.lease)):
        text, encoding = text_or_base64(key)
        (texts if encoding == "utf-8" else binary).append(text)
    answer: dict[str, Any] = {
        "lease": hex_id(time.lease),
        "ttl": time.ttl_seconds,
        "remaining": time.remaining_ms / 1000,
        "keys": texts,
        "revision": machine.revision,
    }
    if binary:
        answer["binary_keys"] = binary
    x.json(answer)


def post_keep_alive(x: Exchange) -> None:
    read_fields(x.request.body, (), required=False)
    x.caller.keep_alive(lease_of(x), partial(_kept_alive, x))


@answering
def _kept_alive(x: Exchange, result: KeepAliveResult) -> None:
    x.json({"lease": hex_id(result.lease), "ttl": result.ttl_seconds})


def delete_lease(x: Exchange) -> None:
    x.caller.propose(lease_revoke(lease_of(x), once=once_key(x)), partial(_revoked, x))


@answering
def _revoked(x: Exchange, result: RevokeResult) -> None:
    x.json({"lease": hex_id(result.lease), "revision": result.revision, "deleted": result.deleted})


def list_leases(x: Exchange) -> None:
    x.read_index(partial(_leases_ready, x))


@answering
def _leases_ready(x: Exchange, error: RaftkvError | None) -> None:
    x.run(_list(x))


async def _list(x: Exchange) -> None:
    leases = [
        {"lease": hex_id(held.lease), "ttl": held.ttl_seconds} for held in await x.caller.leases()
    ]
    x.json({"leases": leases, "revision": x.machine.revision})


LEASES: Final = "Leases"

ROUTES: Final = [
    Route(
        "POST", "/api/leases", post_lease, "grantLease", "Grant a lease", LEASES,
        guard=by_command,
        doc="Keys written with a lease are deleted when it ends.",
        body=GRANT,
        answers=(Answer(201, "Granted.", "Lease"),),
        problems=(409, 415, 507),
        writes=True,
    ),
    Route(
        "GET", "/api/leases", list_leases, "listLeases", "List the leases", LEASES,
        guard=known,
        answers=(Answer(200, "All leases.", "Leases"),),
    ),
    Route(
        "GET", "/api/leases/{lease}", get_lease, "getLease", "What is left of a lease", LEASES,
        guard=known,
        answers=(Answer(200, "The lease and its keys.", "LeaseDetail"),),
        problems=(404,),
    ),
    Route(
        "POST", "/api/leases/{lease}/keepalive", post_keep_alive, "keepLeaseAlive",
        "Keep a lease alive", LEASES,
        guard=known,
        doc="The lease will not end before its TTL from now.",
        body=(), body_required=False,
        answers=(Answer(200, "Renewed.", "KeptAlive"),),
        problems=(404, 415), writes=True, once=False,
    ),
    Route(
        "DELETE", "/api/leases/{lease}", delete_lease, "revokeLease", "End a lease", LEASES,
        guard=by_command,
        doc="Its keys are deleted at one revision.",
        answers=(Answer(200, "Ended.", "Revoked"),),
        problems=(404,), writes=True,
    ),
]  # fmt: skip
