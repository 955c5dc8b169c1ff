"""Server reflection, grpc.reflection.v1 and v1alpha: what grpcurl and friends ask first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError

from raftkv.api.grpc.calls import StreamCall
from raftkv.api.grpc.descriptors import STANDARD, Descriptors
from raftkv.api.grpc.messages import CallFault
from raftkv.api.grpc.server import GrpcServer
from raftkv.api.grpc.status import Status

_VERSIONS: Final = ("v1", "v1alpha")


class Catalog:
    """Files by name, by the symbols they declare, and by the extensions they add."""

    def __init__(self, descriptors: Iterable[Descriptors]) -> None:
        self.files: dict[str, FileDescriptorProto] = {}
        self.symbols: dict[str, str] = {}
        self.extensions: dict[str, dict[int, str]] = {}
        for each in descriptors:
            for file in each.files.file:
                if file.name not in self.files:
                    self.files[file.name] = file
                    self._index(file)

    def _index(self, file: FileDescriptorProto) -> None:
        for symbol in _symbols(file):
            self.symbols[symbol] = file.name
        for extension in _extensions(file):
            numbers = self.extensions.setdefault(extension.extendee.lstrip("."), {})
            numbers[extension.number] = file.name

    def with_imports(self, name: str) -> list[bytes]:
        """The file and all that it imports, each serialised once, the file itself first."""
        wanted, seen = [name], {name}
        for current in wanted:
            for imported in self.files[current].dependency:
                if imported not in seen and imported in self.files:
                    seen.add(imported)
                    wanted.append(imported)
        return [self.files[each].SerializeToString() for each in wanted]


class Reflection:
    """Describes the services registered with `server`, from their descriptors.

    Create it after all services: the list is what is registered, itself included.
    """

    def __init__(self, server: GrpcServer, *descriptors: Descriptors) -> None:
        self._server = server
        self._catalog = Catalog((STANDARD, *descriptors))
        for version in _VERSIONS:
            package = f"grpc.reflection.{version}"
            server.streaming(
                f"/{package}.ServerReflection/ServerReflectionInfo", partial(self._start, package)
            )

    def _start(self, package: str, call: StreamCall) -> None:
        request_class = STANDARD.message(f"{package}.ServerReflectionRequest")
        response_class = STANDARD.message(f"{package}.ServerReflectionResponse")

        def take(message: bytes) -> None:
            try:
                request = request_class.FromString(message)
            except DecodeError as error:
                raise CallFault(Status.INTERNAL, f"bad reflection request: {error}") from error
            response = response_class(valid_host=request.host, original_request=request)
            self._answer(request, response)
            if not call.send(response.SerializeToString()):
                call.pause()

        call.on_message = take
        call.on_drain = call.resume
        call.on_end = call.finish

    def _answer(self, request: Any, response: Any) -> None:
        kind = request.WhichOneof("message_request")
        answer: Callable[[Any, Any], None] | None = {
            "list_services": self._list,
            "file_by_filename": self._by_name,
            "file_containing_symbol": self._by_symbol,
            "file_containing_extension": self._by_extension,
            "all_extension_numbers_of_type": self._extension_numbers,
        }.get(kind or "")
        if answer is None:
            _error(response, Status.INVALID_ARGUMENT, "empty reflection request")
        else:
            answer(request, response)

    def _list(self, request: Any, response: Any) -> None:
        for name in self._server.services:
            response.list_services_response.service.add(name=name)

    def _by_name(self, request: Any, response: Any) -> None:
        self._file(request.file_by_filename, response, f"file {request.file_by_filename}")

    def _by_symbol(self, request: Any, response: Any) -> None:
        symbol = request.file_containing_symbol
        self._file(self._catalog.symbols.get(symbol.lstrip(".")), response, f"symbol {symbol}")

    def _by_extension(self, request: Any, response: Any) -> None:
        wanted = request.file_containing_extension
        numbers = self._catalog.extensions.get(wanted.containing_type.lstrip("."), {})
        what = f"extension {wanted.extension_number} of {wanted.containing_type}"
        self._file(numbers.get(wanted.extension_number), response, what)

    def _extension_numbers(self, request: Any, response: Any) -> None:
        name = request.all_extension_numbers_of_type
        if name.lstrip(".") not in self._catalog.symbols:
            _error(response, Status.NOT_FOUND, f"type {name} is not known")
            return
        found = response.all_extension_numbers_response
        found.base_type_name = name
        found.extension_number.extend(sorted(self._catalog.extensions.get(name.lstrip("."), {})))

    def _file(self, name: str | None, response: Any, what: str) -> None:
        if name is None or name not in self._catalog.files:
            _error(response, Status.NOT_FOUND, f"{what} is not known")
        else:
            found = response.file_descriptor_response.file_descriptor_proto
            found.extend(self._catalog.with_imports(name))


def _error(response: Any, code: Status, text: str) -> None:
    response.error_response.error_code = int(code)
    response.error_response.error_message = text


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Full names of everything that `file` declares."""
    prefix = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _message_symbols(prefix, message)
    for enum in file.enum_type:
        yield prefix + enum.name
        yield from (f"{prefix}{value.name}" for value in enum.value)
    for extension in file.extension:
        yield prefix + extension.name
    for service in file.service:
        yield prefix + service.name
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)


def _message_symbols(prefix: str, message: DescriptorProto) -> Iterator[str]:
    name = prefix + message.name
    yield name
    inner = f"{name}."
    yield from (inner + field.name for field in message.field)
    yield from (inner + extension.name for extension in message.extension)
    yield from (inner + oneof.name for oneof in message.oneof_decl)
    for enum in message.enum_type:
        yield inner + enum.name
        yield from (inner + value.name for value in enum.value)
    for nested in message.nested_type:
        yield from _message_symbols(inner, nested)


def _extensions(file: FileDescriptorProto) -> Iterator[Any]:
    yield from file.extension
    waiting = list(file.message_type)
    while waiting:
        message = waiting.pop()
        yield from message.extension
        waiting.extend(message.nested_type)
