"""JSON Schemas (2020-12) of everything the door answers, and of the one body that nests."""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
WHOLE: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
FLAG: Final[Schema] = {"type": "boolean"}
TEXTS: Final[Schema] = {"type": "array", "items": TEXT}
ID: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{16}$"}
ID_OR_NULL: Final[Schema] = {"type": ["string", "null"], "pattern": "^[0-9a-f]{16}$"}
CURSOR: Final[Schema] = {"type": ["string", "null"], "description": "Null on the last page."}
ENCODING: Final[Schema] = {"type": "string", "enum": ["utf-8", "base64"]}
KEY_ENCODING: Final[Schema] = {
    "type": "string",
    "enum": ["base64"],
    "description": "Present when the key is not UTF-8.",
}
REVISION: Final[Schema] = {"type": "integer", "description": "The store's revision."}

AUTH_REVISION: Final[Schema] = {
    "type": "integer",
    "description": "Counts the changes of users, roles and permissions.",
}


def ref(name: str) -> Schema:
    """A schema by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(name: str) -> Schema:
    """A schema by name, or null."""
    return {"oneOf": [ref(name), {"type": "null"}]}


def closed(required: Schema, optional: Schema | None = None, **more: Any) -> Schema:
    """An object of exactly these members."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


def items(name: str) -> Schema:
    """A list of a schema by name."""
    return {"type": "array", "items": ref(name)}


META_OF_KEY: Final = {
    "key": TEXT,
    "create_revision": WHOLE,
    "mod_revision": WHOLE,
    "version": WHOLE,
    "lease": ID_OR_NULL,
}
RECORD: Final = {**META_OF_KEY, "value": TEXT, "encoding": ENCODING}
KEY_ONLY: Final = {"key_encoding": KEY_ENCODING}
INSTANCE: Final = {
    "service": TEXT,
    "instance": TEXT,
    "address": TEXT,
    "port": WHOLE,
    "tags": TEXTS,
    "meta": {"type": "object", "additionalProperties": TEXT},
    "weight": WHOLE,
    "ttl": WHOLE,
    "status": {"type": "string", "enum": ["passing", "draining"]},
    "owner": TEXT,
    "lease": ID,
    "create_revision": WHOLE,
    "mod_revision": WHOLE,
}
EXPIRES_AT: Final[Schema] = {
    "type": ["string", "null"],
    "format": "date-time",
    "description": "When it is gone unless renewed, by the answering member's clock.",
}
MEMBER: Final = {
    "member_id": ID,
    "name": TEXT,
    "peer_urls": TEXTS,
    "client_urls": TEXTS,
    "role": {"type": "string", "enum": ["voter", "learner"]},
    "leader": FLAG,
}
MATCH: Final = {"match_index": {"type": "integer", "description": "Known at the leader only."}}
KEY_IN: Final = {
    "key_encoding": {"type": "string", "enum": ["utf-8", "base64"], "default": "utf-8"}
}
BOUNDS_IN: Final = {"prefix": TEXT, "start": TEXT, "end": TEXT, **KEY_IN}
BRANCHES_IN: Final = {
    "if": items("Compare"),
    "then": items("Operation"),
    "else": items("Operation"),
}


def operation(kind: str, required: Schema, optional: Schema) -> Schema:
    """A transaction's operation of one kind."""
    return closed({"op": {"type": "string", "const": kind}, **required}, optional)


def marked(kind: str | list[str], required: Schema, optional: Schema | None = None) -> Schema:
    """A message of a stream, told by its type."""
    kinds = [kind] if isinstance(kind, str) else kind
    return closed({"type": {"type": "string", "enum": kinds}, **required}, optional)


PREVIOUS: Final = {"previous": or_null("Record")}
PREVIOUS_LIST: Final = {"previous": items("Record")}

MARKS: Final = [
    marked(["ready", "progress"], {"revision": WHOLE}),
    {
        "allOf": [
            {
                "type": "object",
                "properties": {"type": {"type": "string", "const": "error"}},
                "required": ["type", "title", "status", "detail", "code", "outcome"],
            }
        ]
    },
]

SCHEMAS: Final[dict[str, Schema]] = {
    "Problem": {
        "type": "object",
        "description": "An error (RFC 9457), with further facts by its code.",
        "properties": {
            "type": {"type": "string", "pattern": "^urn:raftkv:problem:[a-z_]+$"},
            "title": TEXT,
            "status": WHOLE,
            "detail": TEXT,
            "code": {"type": "string", "pattern": "^[a-z_]+$"},
            "outcome": {"type": "string", "enum": ["refused", "unknown", "failed"]},
            "current": or_null("Record"),
            "oldest_revision": WHOLE,
            "allow": TEXTS,
            "allowed": TEXTS,
            "near": TEXTS,
        },
        "required": ["type", "title", "status", "detail", "code", "outcome"],
        "additionalProperties": True,
    },
    "Record": closed(RECORD, KEY_ONLY),
    "KeyedRecord": closed({**RECORD, "revision": REVISION}, KEY_ONLY),
    "KeyRecord": closed(META_OF_KEY, KEY_ONLY, description="A record without its value."),
    "Put": closed({**META_OF_KEY, "revision": REVISION}, {**KEY_ONLY, **PREVIOUS}),
    "Deleted": closed({"revision": REVISION, "deleted": WHOLE}, PREVIOUS_LIST),
    "Page": closed(
        {
            "revision": {"type": "integer", "description": "What all its pages are read at."},
            "items": {"type": "array", "items": {"anyOf": [ref("Record"), ref("KeyRecord")]}},
            "count": {
                "type": "integer",
                "description": "Keys in this page; with count_only: in the whole range.",
            },
            "more": FLAG,
            "cursor": CURSOR,
        }
    ),
    "PageLine": {
        "anyOf": [
            ref("Record"),
            ref("KeyRecord"),
            closed({"end": {"const": True}, "revision": WHOLE, "count": WHOLE}),
            closed({"error": ref("Problem")}),
        ]
    },
    "Compare": closed(
        {
            "target": {
                "type": "string",
                "enum": [
                    "value", "version", "create_revision", "mod_revision", "lease", "exists",
                ],
            },
        },
        {
            "key": TEXT,
            "prefix": TEXT,
            "range_end": TEXT,
            "op": {"type": "string", "enum": ["=", "!=", "<", ">"], "default": "="},
            "operand": {
                "description": "Text for value; a number for version and revisions; a lease id "
                "or null for lease; true (the default) or false for exists.",
                "type": ["string", "integer", "boolean", "null"],
            },
            "encoding": {"type": "string", "enum": ["utf-8", "base64"], "default": "utf-8"},
            **KEY_IN,
        },
        description="Of a key; or of every key present in a range, with prefix or range_end.",
    ),
    "Operation": {
        "oneOf": [
            operation(
                "put",
                {"key": TEXT, "value": TEXT},
                {**KEY_IN, "encoding": ENCODING, "lease": {"type": ["string", "null"]},
                 "prev": FLAG},
            ),
            operation("delete", {}, {"key": TEXT, **BOUNDS_IN, "prev": FLAG}),
            operation("get", {"key": TEXT}, KEY_IN),
            operation(
                "range", {},
                {**BOUNDS_IN, "limit": {"type": "integer", "minimum": 0}, "keys_only": FLAG,
                 "count_only": FLAG},
            ),
            operation("txn", {}, BRANCHES_IN),
        ]
    },
    "Txn": closed({}, BRANCHES_IN),
    "Result": {
        "oneOf": [
            operation("put", {}, PREVIOUS),
            operation("delete", {"deleted": WHOLE}, PREVIOUS_LIST),
            operation("get", {"item": or_null("Record")}, {}),
            operation(
                "range",
                {
                    "items": {
                        "type": "array",
                        "items": {"anyOf": [ref("Record"), ref("KeyRecord")]},
                    },
                    "count": WHOLE,
                    "more": FLAG,
                },
                {},
            ),
            operation("txn", {"succeeded": FLAG, "results": items("Result")}, {}),
        ]
    },
    "TxnAnswer": closed(
        {"revision": REVISION, "succeeded": FLAG, "results": items("Result")}
    ),
    "Event": {
        "oneOf": [
            marked(
                "put",
                {"revision": WHOLE, "key": TEXT, "create_revision": WHOLE, "version": WHOLE,
                 "lease": ID_OR_NULL},
                {"value": TEXT, "encoding": ENCODING, **KEY_ONLY, **PREVIOUS},
            ),
            marked("delete", {"revision": WHOLE, "key": TEXT}, {**KEY_ONLY, **PREVIOUS}),
            *MARKS,
        ]
    },
    "Lease": closed({"lease": ID, "ttl": WHOLE, "revision": REVISION}),
    "Leases": closed(
        {
            "leases": {"type": "array", "items": closed({"lease": ID, "ttl": WHOLE})},
            "revision": REVISION,
        }
    ),
    "Quota": closed(
        {"keys": WHOLE, "bytes": WHOLE, "used_keys": WHOLE, "used_bytes": WHOLE},
        {"prefix": TEXT, "key_encoding": TEXT, "user": TEXT},
    ),
    "Quotas": closed({"quotas": items("Quota"), "revision": REVISION}),
    "QuotaSet": closed({"changed": FLAG, "revision": REVISION}),
    "LeaseDetail": closed(
        {
            "lease": ID,
            "ttl": WHOLE,
            "remaining": {"type": "number", "description": "Seconds, by the leader's clock."},
            "keys": TEXTS,
            "revision": REVISION,
        },
        {"binary_keys": {**TEXTS, "description": "Keys that are not UTF-8, as base64."}},
    ),
    "KeptAlive": closed({"lease": ID, "ttl": WHOLE}),
    "Revoked": closed({"lease": ID, "revision": REVISION, "deleted": WHOLE}),
    "Instance": closed(INSTANCE),
    "FoundInstance": closed({**INSTANCE, "revision": REVISION}),
    "Registered": closed(
        {
            "service": TEXT,
            "instance": TEXT,
            "lease": ID,
            "ttl": WHOLE,
            "expires_at": EXPIRES_AT,
            "revision": REVISION,
            "changed": FLAG,
            "created": FLAG,
        }
    ),
    "Beaten": closed({"lease": ID, "ttl": WHOLE, "expires_at": EXPIRES_AT}),
    "Drained": closed(
        {
            "service": TEXT,
            "instance": TEXT,
            "status": INSTANCE["status"],
            "changed": FLAG,
            "revision": REVISION,
        }
    ),
    "Deregistered": closed({"revision": REVISION, "deleted": WHOLE}),
    "Services": closed(
        {
            "services": {
                "type": "array",
                "items": closed({"service": TEXT, "instances": WHOLE, "passing": WHOLE}),
            },
            "more": FLAG,
            "cursor": CURSOR,
            "revision": REVISION,
        }
    ),
    "Service": closed({"service": TEXT, "instances": items("Instance"), "revision": REVISION}),
    "ServiceEvent": {
        "oneOf": [
            marked(["instance", "registered", "changed"], {"revision": WHOLE, **INSTANCE}),
            marked(
                "deregistered",
                {
                    "revision": WHOLE,
                    "reason": {"type": "string", "enum": ["expired", "deregistered"]},
                    "service": TEXT,
                    "instance": TEXT,
                },
                INSTANCE,
            ),
            *MARKS,
        ]
    },
    "Status": {
        "type": "object",
        "properties": {
            "name": TEXT,
            "member_id": ID,
            "cluster_id": ID,
            "version": TEXT,
            "role": TEXT,
            "leader": ID_OR_NULL,
            "level": WHOLE,
            "term": WHOLE,
            "revision": WHOLE,
            "compact_revision": WHOLE,
            "commit_index": WHOLE,
            "applied_index": WHOLE,
            "state_hash": TEXT,
            "hash_index": WHOLE,
            "db_bytes": WHOLE,
            "db_used_bytes": WHOLE,
            "quota_bytes": WHOLE,
            "space_low": FLAG,
            "shrink": {"type": ["object", "null"]},
            "wal_bytes": WHOLE,
            "backup_last_success_seconds": WHOLE,
            "backup_last_bytes": WHOLE,
            "archived_index": WHOLE,
            "keys": WHOLE,
            "leases": WHOLE,
            "watchers": WHOLE,
            "connections": WHOLE,
            "uptime_seconds": NUMBER,
            "alarms": {"type": "array"},
            "healthy": FLAG,
        },
        "required": [
            "member_id", "cluster_id", "role", "leader", "term", "revision", "applied_index",
            "connections", "uptime_seconds", "healthy",
        ],
    },
    "Member": closed(MEMBER, MATCH),
    "Members": closed({"members": items("Member"), "revision": REVISION}),
    "AddedMember": closed(
        {**MEMBER, "members": items("Member"), "revision": REVISION}, MATCH
    ),
    "Leader": closed({"leader": ID}),
    "Shrunk": closed({"before_bytes": WHOLE, "after_bytes": WHOLE}),
    "CompactAnswer": closed({"compact_revision": WHOLE, "revision": REVISION}),
    "Auth": closed(
        {
            "enabled": FLAG,
            "auth_revision": AUTH_REVISION,
            "user": {"type": ["string", "null"], "description": "Who asks; null: nobody knows."},
            "roles": TEXTS,
        }
    ),
    "LoggedIn": closed({"token": TEXT, "user": TEXT, "ttl": WHOLE}),
    "LoggedOut": closed({"ended": FLAG}),
    "AuthChanged": closed(
        {"auth_revision": AUTH_REVISION, "changed": FLAG, "revision": REVISION}
    ),
    "User": closed(
        {"user": TEXT, "roles": TEXTS, "no_password": FLAG, "auth_revision": AUTH_REVISION}
    ),
    "Users": closed({"users": TEXTS, "auth_revision": AUTH_REVISION}),
    "Permission": closed(
        {"access": {"type": "string", "enum": ["read", "write", "readwrite"]}},
        {
            "key": TEXT, "prefix": TEXT, "start": TEXT, "end": TEXT,
            "service": TEXT, "service_prefix": TEXT, "key_encoding": KEY_ENCODING,
        },
    ),
    "Role": closed(
        {"role": TEXT, "permissions": items("Permission"), "auth_revision": AUTH_REVISION}
    ),
    "Roles": closed({"roles": TEXTS, "auth_revision": AUTH_REVISION}),
    "Health": closed({"health": {"type": "string", "enum": ["true", "false"]}, "reason": TEXT}),
    "Version": closed(
        {"version": TEXT, "etcdserver": TEXT, "etcdcluster": TEXT, "storage": TEXT}
    ),
}  # fmt: skip
