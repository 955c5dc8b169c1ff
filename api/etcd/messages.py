"""etcd's messages, from our own .proto files, in a pool of their own.

Message classes are made at run time, so to the type checker they are `Any`.
"""

from __future__ import annotations

from typing import Any, Final

from raftkv.api.grpc.descriptors import Descriptors

ETCD: Final = Descriptors.load("raftkv.api.etcd")
"""Packages etcdserverpb, mvccpb, authpb, v3lockpb and v3electionpb."""

METHODS: Final = {
    f"/{file.package}.{service.name}/{method.name}": method
    for file in ETCD.files.file
    for service in file.service
    for method in service.method
}
"""Path -> descriptor of the RPC."""

SERVICES: Final = (
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3lockpb.Lock",
    "v3electionpb.Election",
)


def rpc_message(name: str) -> Any:
    """A class of package etcdserverpb, for example ``PutRequest``."""
    return ETCD.message(f"etcdserverpb.{name}")
