"""Calls of etcd's API that are measured: ready-made requests, and what answers must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.load.http2 import prefixed
from raftkv.api.etcd.messages import rpc_message

Check = Callable[[bytes], bool]
"""Whether an answer's message is the right one."""

PREFIX: Final = b"bench/"
PREFIX_END: Final = b"bench0"
LEASE_ID_FIRST: Final = 1_000_000
LEASE_TTL_SECONDS: Final = 600


@dataclass(frozen=True, slots=True)
class Job:
    """A request, ready to be sent any number of times."""

    path: str
    body: bytes
    """The gRPC message, prefixed."""
    check: Check


def key_of(number: int) -> bytes:
    """The key of a number; all have one length."""
    return PREFIX + b"%010d" % number


def value_of(number: int, size: int) -> bytes:
    """The one value that a key ever has, so that a read can be checked while others write."""
    key = key_of(number)
    return key[-size:] if size <= len(key) else key + b"|" + b"v" * (size - len(key) - 1)


def varint(number: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def after_header(message: bytes) -> bytes:
    """An answer without its header, which every answer of the API begins with."""
    if message[:1] != b"\x0a" or message[1] > 127:
        return b"\xff"
    return message[2 + message[1] :]


def put(number: int, size: int, **others: Any) -> Job:
    """Write a key."""
    request = rpc_message("PutRequest")(key=key_of(number), value=value_of(number, size), **others)
    return Job("/etcdserverpb.KV/Put", _body(request), lambda answer: not after_header(answer))


def get(number: int, size: int, *, serializable: bool = False) -> Job:
    """Read a key that is there."""
    request = rpc_message("RangeRequest")(key=key_of(number), serializable=serializable)
    key, value = field(1, key_of(number)), field(5, value_of(number, size))

    def check(answer: bytes) -> bool:
        return key in answer and value in answer and answer.endswith(b"\x20\x01")

    return Job("/etcdserverpb.KV/Range", _body(request), check)


def page(number: int, size: int, limit: int) -> Job:
    """Read `limit` keys from one on."""
    request = rpc_message("RangeRequest")(key=key_of(number), range_end=PREFIX_END, limit=limit)
    first, last = field(1, key_of(number)), field(1, key_of(number + limit - 1))
    mark = field(1, key_of(0))[:-10]

    def check(answer: bytes) -> bool:
        return first in answer and last in answer and answer.count(mark) == limit

    return Job("/etcdserverpb.KV/Range", _body(request), check)


def txn(number: int, size: int) -> Job:
    """Write a key if it exists; it does."""
    compare = rpc_message("Compare")(result=1, target=0, key=key_of(number), version=0)
    write = rpc_message("RequestOp")(
        request_put=rpc_message("PutRequest")(key=key_of(number), value=value_of(number, size))
    )
    request = rpc_message("TxnRequest")(compare=[compare], success=[write])

    def check(answer: bytes) -> bool:
        return after_header(answer).startswith(b"\x10\x01")

    return Job("/etcdserverpb.KV/Txn", _body(request), check)


def grant(number: int, ttl_seconds: int = LEASE_TTL_SECONDS) -> Job:
    """Grant a lease of a known id."""
    lease = LEASE_ID_FIRST + number
    mark = b"\x10" + varint(lease) + b"\x18" + varint(ttl_seconds)
    request = rpc_message("LeaseGrantRequest")(ID=lease, TTL=ttl_seconds)
    return Job(
        "/etcdserverpb.Lease/LeaseGrant",
        _body(request),
        lambda answer: mark in after_header(answer),
    )


def keep_alive(number: int) -> Job:
    """Renew a lease: its id comes back with a time to live that is not zero."""
    lease = LEASE_ID_FIRST + number
    mark = b"\x10" + varint(lease) + b"\x18"
    request = rpc_message("LeaseKeepAliveRequest")(ID=lease)
    return Job(
        "/etcdserverpb.Lease/LeaseKeepAlive",
        _body(request),
        lambda answer: after_header(answer).startswith(mark),
    )


def watch(key: bytes, range_end: bytes = b"") -> Job:
    """Begin a watch; its first answer says that it was created."""
    create = rpc_message("WatchCreateRequest")(key=key, range_end=range_end)
    request = rpc_message("WatchRequest")(create_request=create)
    return Job(
        "/etcdserverpb.Watch/Watch",
        _body(request),
        lambda answer: b"\x18\x01" in after_header(answer),
    )


MAKERS: Final[dict[str, Callable[[int, int], Job]]] = {
    "put": put,
    "get": get,
    "serializable": lambda number, size: get(number, size, serializable=True),
    "page": lambda number, size: page(number, size, 1000),
    "txn": txn,
    "grant": lambda number, _: grant(number),
}
"""Unary calls by name: makers from a key's number and a value's size."""


def _body(request: Any) -> bytes:
    return prefixed(request.SerializeToString())
