"""Whatever bytes an RPC is sent, it answers as etcd might: never as if raftkv itself had failed."""

from __future__ import annotations

import random
from typing import Any

import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor

from raftkv.api.etcd.messages import ETCD
from tests.unit.etcd_support import METHODS, EtcdClient, etcd_served

WAITING = frozenset(("Lock", "Campaign", "Observe", "Watch", "MoveLeader"))
"""RPCs that may wait for good when what they are asked for is never to be."""
REQUESTS = 60


def odd(message: Any, chance: random.Random, depth: int = 0) -> Any:
    """Fill some fields of `message` with extremes."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4:
            continue
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            if depth < 4:
                target = getattr(message, field.name)
                odd(target.add() if field.is_repeated else target, chance, depth + 1)
            continue
        value = odd_value(field, chance)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    return message


def odd_value(field: FieldDescriptor, chance: random.Random) -> Any:
    """A value that a field can hold, seldom a sensible one."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return chance.choice((b"", b"\0", b"\xff" * 3, b"k", bytes(70_000), b"k\0"))
    if field.type == FieldDescriptor.TYPE_STRING:
        return chance.choice(("", "x", "\0", "é" * 300, "http://a:1", "3.6"))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return chance.random() < 0.5
    if field.type == FieldDescriptor.TYPE_ENUM:
        return chance.choice((0, 1, 2, 3, 99, -1))
    unsigned = field.type in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_UINT32)
    small = field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32)
    top = 2**31 if small else 2**63
    return chance.choice((0, 1, 2, 7, top - 1, *(() if unsigned else (-1, -top))))


async def answer_of(client: EtcdClient, path: str, method: Any, data: bytes) -> str:
    """The code's name, or OK; what a stream says is thrown away."""
    kind = {
        (False, False): client.channel.unary_unary,
        (False, True): client.channel.unary_stream,
        (True, True): client.channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    request: Any = iter([data]) if method.client_streaming else data
    call = kind(path)(request, timeout=0.2 if method.name in WAITING else 10)  # type: ignore[operator]
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        assert error.details() != "internal error", (path, data)
        if error.code() == grpc.StatusCode.UNKNOWN:
            # As in etcd, these lose their codes; see `ownership.plainly`.
            assert path.startswith(("/v3lock", "/v3election")) or method.name == "Downgrade", error
        return error.code().name
    return "OK"


@pytest.mark.parametrize("name", sorted(METHODS))
async def test_odd_requests(name: str) -> None:
    path, method = METHODS[name]
    chance = random.Random(name)
    async with etcd_served() as client:
        failures: list[Any] = []
        client.store._loop.set_exception_handler(lambda loop, context: failures.append(context))
        seen = set()
        for number in range(REQUESTS if name not in WAITING else 10):
            request = ETCD.message(method.input_type.lstrip("."))()
            data = odd(request, chance).SerializeToString()
            if number % 4 == 0:
                data = bytes(byte ^ chance.choice((0, 0, 0, 255)) for byte in data[:200]) + b"\xff"
            seen.add(await answer_of(client, path, method, data))
        assert seen and not failures
        # Whatever it was, others are served.
        assert (await client.Range(key=b"k", serializable=True)).header.member_id == 7
