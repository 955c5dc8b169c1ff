"""Quotas of prefixes and users: `/api/quotas`."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from raftkv.api.gate import admin
from raftkv.api.http.codec import decode_text, text_or_base64
from raftkv.api.http.exchange import Exchange
from raftkv.api.http.fields import Field, read_fields
from raftkv.api.http.handling import answering, once_key
from raftkv.api.http.permissions import ENCODINGS
from raftkv.api.http.router import Answer, Route
from raftkv.errors import InvalidRequest, RaftkvError
from raftkv.machine.quota_commands import quota_set
from raftkv.machine.quotas import Quota, QuotaKind
from raftkv.machine.results import QuotaResult

QUOTA: Final = (
    Field("prefix", "text", "Keys that begin with this; empty: all keys."),
    Field("user", "text", "What this user wrote last."),
    Field("key_encoding", "text", "How the prefix is given: `utf-8` or `base64`.", default="utf-8"),
    Field("keys", "integer", "Most keys; 0: any number.", default=0),
    Field("bytes", "integer", "Most bytes of keys and values; 0: any number.", default=0),
)


def quota_json(quota: Quota) -> dict[str, Any]:
    """The API's `Quota` object."""
    text, encoding = text_or_base64(quota.name)
    named = {"prefix": text, "key_encoding": encoding}
    return ({"user": text} if quota.kind == QuotaKind.USER else named) | {
        "keys": quota.keys_max,
        "bytes": quota.bytes_max,
        "used_keys": quota.keys,
        "used_bytes": quota.bytes,
    }


def list_quotas(x: Exchange) -> None:
    x.read_index(partial(_listed, x))


@answering
def _listed(x: Exchange, error: RaftkvError | None) -> None:
    machine = x.machine
    quotas = sorted(machine.quotas, key=lambda one: (one.kind, one.name))
    x.json({"quotas": [quota_json(one) for one in quotas], "revision": machine.revision})


def post_quota(x: Exchange) -> None:
    body = read_fields(x.request.body, QUOTA)
    prefix, user = body["prefix"], body["user"]
    if (prefix is None) == (user is None):
        raise InvalidRequest("Give either prefix or user")
    if body["key_encoding"] not in ENCODINGS:
        raise InvalidRequest(f"key_encoding must be one of {', '.join(ENCODINGS)}")
    kind = QuotaKind.USER if prefix is None else QuotaKind.PREFIX
    name = user.encode() if prefix is None else decode_text(prefix, body["key_encoding"], "prefix")
    command = quota_set(kind, name, body["keys"], body["bytes"], once=once_key(x))
    x.caller.propose(command, partial(_set, x))


@answering
def _set(x: Exchange, result: QuotaResult) -> None:
    x.json({"changed": result.changed, "revision": result.revision})


QUOTAS: Final = "Quotas"

ROUTES: Final = [
    Route(
        "GET", "/api/quotas", list_quotas, "listQuotas", "List quotas and what is used", QUOTAS,
        guard=admin,
        answers=(Answer(200, "All quotas.", "Quotas"),),
    ),
    Route(
        "POST", "/api/quotas", post_quota, "setQuota", "Limit a prefix or a user", QUOTAS,
        guard=admin,
        doc="Exactly one of `prefix` and `user`. Without a limit, or with both 0, the quota ends. "
        "A prefix counts what it has already.",
        body=QUOTA,
        answers=(Answer(200, "Set.", "QuotaSet"),),
        problems=(413, 415), writes=True,
    ),
]  # fmt: skip
