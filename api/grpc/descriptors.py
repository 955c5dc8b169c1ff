"""Protobuf messages from ahead-of-time compiled descriptors, in a pool of their own.

protobuf registers messages by name in a process-wide pool; two copies of the same file there are
an error. A private pool lets any gRPC stub live in the same process as raftkv.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


class Descriptors:
    """A FileDescriptorSet and the message classes made from it."""

    def __init__(self, serialized: bytes) -> None:
        self.files = descriptor_pb2.FileDescriptorSet.FromString(serialized)
        """Every file, imports before those that import them."""
        self._pool = descriptor_pool.DescriptorPool()
        for file in self.files.file:
            self._pool.Add(file)

    @classmethod
    def load(cls, package: str) -> Descriptors:
        """Read the compiled descriptor set of a package.

        By the package's name: `__file__` of a compiled module need not be where it lies.
        """
        return cls(resources.files(package).joinpath("proto", "descriptors.binpb").read_bytes())

    def message(self, name: str) -> Any:
        """The message class of a full name, for example ``grpc.health.v1.HealthCheckRequest``."""
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))


STANDARD = Descriptors.load("raftkv.api.grpc")
"""The services that every gRPC server has: health and reflection."""
