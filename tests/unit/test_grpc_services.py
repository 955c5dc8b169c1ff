"""Health and reflection, asked by grpcio's own stubs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from raftkv.api.grpc.descriptors import STANDARD, Descriptors
from raftkv.api.grpc.health import Health
from raftkv.api.grpc.proto.compile import HERE, compile_to
from raftkv.api.grpc.reflection import Reflection
from raftkv.api.grpc.server import GrpcServer
from raftkv.api.grpc.shell import GrpcShell


@asynccontextmanager
async def served(*descriptors: Descriptors) -> AsyncIterator[tuple[grpc.aio.Channel, Health]]:
    server = GrpcServer()
    health = Health(server, "some.Service")
    Reflection(server, *descriptors)
    shell = GrpcShell(server)
    listening = await asyncio.get_running_loop().create_server(shell.protocol, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, health
    await shell.stop(grace_seconds=1.0)
    listening.close()


async def test_health_check_and_list() -> None:
    async with served() as (channel, health):
        stub = health_pb2_grpc.HealthStub(channel)
        check = health_pb2.HealthCheckRequest
        assert (await stub.Check(check())).status == 1
        health.set(False, "some.Service")
        assert (await stub.Check(check())).status == 1
        assert (await stub.Check(check(service="some.Service"))).status == 2
        health.set(False)
        assert (await stub.Check(check())).status == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(check(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        answer = await channel.unary_unary("/grpc.health.v1.Health/List")(b"")
        listed = STANDARD.message("grpc.health.v1.HealthListResponse").FromString(answer)
        assert {name: each.status for name, each in listed.statuses.items()} == {
            "": 2,
            "some.Service": 2,
        }
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_health_watch_tells_changes_once() -> None:
    async with served() as (channel, health):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == 1
        health.set(True)
        health.set(False)
        assert (await watch.read()).status == 2
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="later"))
        assert (await unknown.read()).status == 3
        health.set(True, "later")
        assert (await unknown.read()).status == 1
        watch.cancel()
        unknown.cancel()
        while health._watchers:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection(version: str) -> None:
    extra = FileDescriptorSet()
    file = extra.file.add(name="x.proto", package="x", syntax="proto2")
    message = file.message_type.add(name="Outer")
    message.extension_range.add(start=100, end=200)
    message.nested_type.add(name="Inner")
    message.enum_type.add(name="Kind").value.add(name="NONE", number=0)
    file.enum_type.add(name="Colour").value.add(name="RED", number=0)
    file.extension.add(name="more", number=101, type=5, label=1, extendee=".x.Outer")
    importer = extra.file.add(name="y.proto", package="y", dependency=["x.proto"])
    importer.message_type.add(name="M")
    async with served(Descriptors(extra.SerializeToString())) as (channel, _):
        if version == "v1alpha":
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        else:
            call = channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                reflection_pb2.ServerReflectionRequest.SerializeToString,
                reflection_pb2.ServerReflectionResponse.FromString,
            )()

        async def ask(**what: object) -> reflection_pb2.ServerReflectionResponse:
            await call.write(reflection_pb2.ServerReflectionRequest(host="h", **what))
            answer = await call.read()
            assert answer.valid_host == "h"
            return answer

        def files(answer: reflection_pb2.ServerReflectionResponse) -> list[str]:
            found = answer.file_descriptor_response.file_descriptor_proto
            return [FileDescriptorProto.FromString(each).name for each in found]

        names = [each.name for each in (await ask(list_services="")).list_services_response.service]
        assert names == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ]
        assert files(await ask(file_by_filename="y.proto")) == ["y.proto", "x.proto"]
        for symbol in (
            "grpc.health.v1.Health",
            "grpc.health.v1.Health.Check",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
            "grpc.health.v1.HealthCheckRequest.service",
        ):
            assert files(await ask(file_containing_symbol=symbol)) == ["health.proto"]
        for symbol in ("x.Outer.Inner", "x.Outer.NONE", "x.RED", "x.Colour", "x.more"):
            assert files(await ask(file_containing_symbol=symbol)) == ["x.proto"]
        wanted = reflection_pb2.ExtensionRequest(containing_type="x.Outer", extension_number=101)
        assert files(await ask(file_containing_extension=wanted)) == ["x.proto"]
        numbers = await ask(all_extension_numbers_of_type="x.Outer")
        assert list(numbers.all_extension_numbers_response.extension_number) == [101]
        for missing in (
            {"file_by_filename": "no"},
            {"file_containing_symbol": "no"},
            {"all_extension_numbers_of_type": "no"},
            {"file_containing_extension": reflection_pb2.ExtensionRequest(containing_type="no")},
        ):
            assert (await ask(**missing)).error_response.error_code == 5
        assert (await ask()).error_response.error_code == 3
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF


def test_compiled_descriptors_are_those_of_the_sources(tmp_path: Path) -> None:
    compile_to(tmp_path / "fresh")
    fresh = FileDescriptorSet.FromString((tmp_path / "fresh").read_bytes())
    assert fresh == STANDARD.files


def test_the_pool_is_private() -> None:
    # grpcio's own stubs hold the same names in the default pool of this very process.
    assert "grpc_health.v1.health_pb2" in sys.modules
    ours = STANDARD.message("grpc.health.v1.HealthCheckRequest")
    assert ours is not health_pb2.HealthCheckRequest
    assert HERE.is_dir()
