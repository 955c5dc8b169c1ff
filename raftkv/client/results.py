"""What calls answer: frozen values with the names of the API.

Lease, member and cluster ids are texts of 16 hexadecimal digits. Revisions count the store's
writes. Durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raftkv.client.errors import BadAnswer
from raftkv.client.wire import decode, key_text


def _field(body: Mapping[str, Any], name: str) -> Any:
    try:
        return body[name]
    except KeyError:
        raise BadAnswer(f"the answer lacks {name!r}") from None


@dataclass(frozen=True, slots=True)
class Record:
    """A key with its value and history at one revision."""

    key: str
    """Bytes that are not UTF-8 appear as lone surrogates; `key_bytes` has them as they are."""
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    """How often the key was written since it was created."""
    lease: str | None

    @property
    def text(self) -> str:
        """The value as UTF-8 text; raises `UnicodeDecodeError` when it is not."""
        return self.value.decode()

    @property
    def key_bytes(self) -> bytes:
        """The key as stored."""
        return self.key.encode("utf-8", "surrogateescape")

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Record:
        """From a record of the API; keys-only records have an empty value."""
        return cls(
            key_text(decode(_field(body, "key"), body.get("key_encoding"))),
            decode(body.get("value", ""), body.get("encoding")),
            int(_field(body, "create_revision")),
            int(_field(body, "mod_revision")),
            int(_field(body, "version")),
            body.get("lease"),
        )


def optional_record(body: Any) -> Record | None:
    """A record, or None for JSON null."""
    return None if body is None else Record.from_json(body)


def records(items: Any) -> tuple[Record, ...]:
    """The records of a JSON list; null counts as empty."""
    return tuple(Record.from_json(item) for item in items or ())


@dataclass(frozen=True, slots=True)
class PutResult:
    """A write that took effect at `revision`."""

    revision: int
    create_revision: int
    version: int
    previous: Record | None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """How many keys went; `previous` only when it was asked for."""

    revision: int
    deleted: int
    previous: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class RangePage:
    """Some records of a range, all as of `revision`."""

    revision: int
    records: tuple[Record, ...]
    more: bool
    cursor: str | None
    """Pass it on for the next page; None on the last."""


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Which branch of a transaction ran, and what each of its operations answered, in place.

    A put answers a `TxnPut`, a delete a `TxnDelete`, a get a `Record` or None, a range a
    `TxnRange`, and a nested transaction a `TxnResult`.
    """

    revision: int
    succeeded: bool
    results: tuple[TxnPut | TxnDelete | Record | TxnRange | TxnResult | None, ...]


@dataclass(frozen=True, slots=True)
class TxnPut:
    """The answer of a put in a transaction."""

    previous: Record | None


@dataclass(frozen=True, slots=True)
class TxnDelete:
    """The answer of a delete in a transaction."""

    deleted: int
    previous: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class TxnRange:
    """The answer of a range in a transaction."""

    records: tuple[Record, ...]
    count: int
    more: bool


def txn_result(body: Mapping[str, Any], revision: int) -> TxnResult:
    """From the API's answer, nested transactions included."""
    return TxnResult(
        revision,
        bool(_field(body, "succeeded")),
        tuple(_txn_part(part, revision) for part in _field(body, "results")),
    )


def _txn_part(
    part: Mapping[str, Any], revision: int
) -> TxnPut | TxnDelete | Record | TxnRange | TxnResult | None:
    match _field(part, "op"):
        case "put":
            return TxnPut(optional_record(part.get("previous")))
        case "delete":
            return TxnDelete(int(_field(part, "deleted")), records(part.get("previous")))
        case "get":
            return optional_record(part.get("item"))
        case "range":
            items = records(part.get("items"))
            return TxnRange(items, int(part.get("count", len(items))), bool(part.get("more")))
        case "txn":
            return txn_result(part, revision)
        case other:
            raise BadAnswer(f"the answer holds an operation {other!r} that this client lacks")


@dataclass(frozen=True, slots=True)
class Event:
    """One change, as a watch tells it. Events come in the order of their revisions."""

    type: Literal["put", "delete"]
    revision: int
    key: str
    record: Record | None
    """The record as written; None for a delete."""
    previous: Record | None
    """What was there before, when the watch asked for it."""

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Event:
        """From an event of the API."""
        revision = int(_field(body, "revision"))
        previous = optional_record(body.get("previous"))
        if _field(body, "type") == "put":
            record = Record.from_json({"mod_revision": revision, **body})
            return cls("put", revision, record.key, record, previous)
        key = key_text(decode(_field(body, "key"), body.get("key_encoding")))
        return cls("delete", revision, key, None, previous)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as granted or renewed."""

    lease: str
    ttl: int


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """A lease with the seconds that remain and the keys that hang on it."""

    lease: str
    ttl: int
    remaining: float
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeaseRevoked:
    """A lease that is gone, with the number of keys that went with it."""

    lease: str
    revision: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service."""

    service: str
    instance: str
    address: str
    port: int
    tags: tuple[str, ...]
    meta: Mapping[str, str]
    weight: int
    ttl: int
    status: str
    """``passing``, or ``draining`` when it should get no new work."""
    owner: str
    lease: str
    create_revision: int
    mod_revision: int

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Instance:
        """From an instance of the API."""
        return cls(
            str(_field(body, "service")),
            str(_field(body, "instance")),
            str(body.get("address", "")),
            int(body.get("port", 0)),
            tuple(body.get("tags") or ()),
            dict(body.get("meta") or {}),
            int(body.get("weight", 1)),
            int(body.get("ttl", 0)),
            str(body.get("status", "passing")),
            str(body.get("owner", "")),
            str(body.get("lease") or ""),
            int(body.get("create_revision", 0)),
            int(body.get("mod_revision", body.get("revision", 0))),
        )


@dataclass(frozen=True, slots=True)
class Registration:
    """The answer to a registration."""

    service: str
    instance: str
    lease: str
    ttl: int
    expires_at: str
    revision: int
    changed: bool
    created: bool


@dataclass(frozen=True, slots=True)
class ServiceSummary:
    """A service by name, with how many instances it has."""

    service: str
    instances: int
    passing: int


@dataclass(frozen=True, slots=True)
class ServiceEvent:
    """A change in the catalog.

    A watch begins with one ``instance`` for each instance present and one ``ready``.
    """

    type: Literal["instance", "ready", "registered", "changed", "deregistered"]
    revision: int
    instance: Instance | None
    reason: str | None = None
    """Of ``deregistered``: ``expired`` or ``deregistered`` when it is known."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the cluster."""

    member_id: str
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    role: str
    leader: bool
    match_index: int | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Member:
        """From a member of the API."""
        return cls(
            str(_field(body, "member_id")),
            str(body.get("name") or ""),
            tuple(body.get("peer_urls") or ()),
            tuple(body.get("client_urls") or ()),
            str(body.get("role", "voter")),
            bool(body.get("leader", False)),
            body.get("match_index"),
        )


@dataclass(frozen=True, slots=True)
class Status:
    """One member as it sees itself. `raw` has every figure of the answer."""

    name: str
    member_id: str
    cluster_id: str
    version: str
    role: str
    leader: str | None
    term: int
    revision: int
    commit_index: int
    applied_index: int
    state_hash: str
    hash_index: int
    db_bytes: int
    healthy: bool
    alarms: tuple[str, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Status:
        """From GET /api/status."""
        return cls(
            str(body.get("name", "")),
            str(_field(body, "member_id")),
            str(_field(body, "cluster_id")),
            str(body.get("version", "")),
            str(body.get("role", "")),
            body.get("leader"),
            int(body.get("term", 0)),
            int(body.get("revision", 0)),
            int(body.get("commit_index", 0)),
            int(body.get("applied_index", 0)),
            str(body.get("state_hash") or ""),
            int(body.get("hash_index") or 0),
            int(body.get("db_bytes", 0)),
            bool(body.get("healthy", False)),
            tuple(str(alarm) for alarm in body.get("alarms") or ()),
            dict(body),
        )


@dataclass(frozen=True, slots=True)
class Compaction:
    """History older than `compact_revision` is gone."""

    compact_revision: int
    revision: int


@dataclass(frozen=True, slots=True)
class Quota:
    """Most keys and bytes of a prefix or of a user (0: any number), and what is used."""

    prefix: str | None
    user: str | None
    keys: int
    bytes: int
    used_keys: int
    used_bytes: int

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Quota:
        """From a quota of the API."""
        prefix = body.get("prefix")
        return cls(
            None if prefix is None else key_text(decode(prefix, body.get("key_encoding"))),
            body.get("user"),
            int(body["keys"]),
            int(body["bytes"]),
            int(body["used_keys"]),
            int(body["used_bytes"]),
        )


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Size of a member's tables before and after free space was given back."""

    before_bytes: int
    after_bytes: int


@dataclass(frozen=True, slots=True)
class SnapshotSaved:
    """A snapshot as downloaded."""

    path: str
    size_bytes: int
    index: int | None
    revision: int | None
