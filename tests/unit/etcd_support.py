"""A store behind its client port, asked over gRPC by grpcio as any etcd client would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from google.protobuf import json_format

from raftkv.api.etcd.messages import ETCD
from raftkv.api.http.door import start_http
from raftkv.api.listener import Listener
from raftkv.server.local import LocalStore

METHODS: dict[str, tuple[str, Any]] = {
    method.name: (f"/{file.package}.{service.name}/{method.name}", method)
    for file in ETCD.files.file
    for service in file.service
    for method in service.method
}
"""By the method's own name, which no two services share."""


class EtcdCalls:
    """Calls by the method's name and keyword arguments: ``await client.Put(key=b"a")``."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def method(self, name: str) -> tuple[Any, Any]:
        """(grpcio's callable, class of the request)."""
        path, method = METHODS[name]
        request = ETCD.message(method.input_type.lstrip("."))
        response = ETCD.message(method.output_type.lstrip("."))
        kind = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, True): self.channel.stream_stream,
        }[method.client_streaming, method.server_streaming]
        return kind(
            path,
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        ), request

    def __getattr__(self, name: str) -> Any:
        callable_, request = self.method(name)

        def call(metadata: Any = None, **fields: Any) -> Any:
            return callable_(request(**fields), metadata=metadata, timeout=10)

        return call

    async def refused(self, name: str, /, **fields: Any) -> tuple[str, str]:
        """The code's name and the text of a call that is refused."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(self, name)(**fields)
        return caught.value.code().name, caught.value.details() or ""


class EtcdClient(EtcdCalls):
    """The same, with the store that it talks to."""

    def __init__(self, channel: grpc.aio.Channel, store: LocalStore, listener: Listener) -> None:
        super().__init__(channel)
        self.store = store
        self.listener = listener


@asynccontextmanager
async def etcd_served() -> AsyncIterator[EtcdClient]:
    """A client of a fresh store."""
    store = LocalStore(member_id=7, cluster_id=9)
    listener = await start_http(store, "127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            yield EtcdClient(channel, store, listener)
    finally:
        await listener.close(1.0)
        store.close()


def shown(message: Any) -> Any:
    """A message as plain values, for comparisons."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
