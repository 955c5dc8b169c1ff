"""Messages as JSON, in the form of etcd's gateway: names as in the .proto files, bytes in base64,
64-bit integers as strings, enums by name, zero fields left out.

Both spellings of a name are read (``range_end``, ``rangeEnd``), unknown names are ignored, numbers
may be strings or numbers, base64 of either alphabet with or without padding.
Source: https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from raftkv.errors import InvalidRequest

NESTING_MAX: Final = 100
"""As protobuf's own decoder."""

_WIDE: Final = frozenset(
    (
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    )
)
_INTEGERS: Final = _WIDE | {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32}
_URL_SAFE: Final = str.maketrans("-_", "+/")


class _Field(NamedTuple):
    """How one field is written and read."""

    name: str
    repeated: bool
    message: bool
    show: Callable[[Any], Any] | None
    """None: as it is."""
    read: Callable[[Any, str], Any]


_plans: dict[str, tuple[dict[int, _Field], dict[str, _Field]]] = {}
"""By full name of the message: fields by number, and by either name."""


def plain(message: Any) -> dict[str, Any]:
    """`message` as values that JSON can hold."""
    fields = _plan(message.DESCRIPTOR)[0]
    shown: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        name, repeated, _, show, _ = fields[descriptor.number]
        if repeated:
            shown[name] = list(value) if show is None else [show(each) for each in value]
        else:
            shown[name] = value if show is None else show(value)
    return shown


def fill(message: Any, body: Any, depth: int = 0) -> Any:
    """Set the fields of `message` that `body` gives; answers `message`.

    Raises InvalidRequest for values that a field cannot have.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    if depth > NESTING_MAX:
        raise InvalidRequest(f"the body nests more than {NESTING_MAX} deep")
    fields = _plan(message.DESCRIPTOR)[1]
    for name, value in body.items():
        field = fields.get(name)
        if field is None or value is None:
            continue
        if field.repeated:
            _fill_list(getattr(message, field.name), field, value, depth)
        elif field.message:
            inner = getattr(message, field.name)
            inner.SetInParent()
            fill(inner, value, depth + 1)
        else:
            _assign(message, field, value)
    return message


def _assign(message: Any, field: _Field, value: Any) -> None:
    try:
        setattr(message, field.name, field.read(value, field.name))
    except ValueError:  # out of the field's range
        raise _bad(field.name, value) from None


def _fill_list(target: Any, field: _Field, values: Any, depth: int) -> None:
    if not isinstance(values, list):
        raise _bad(field.name, values)
    for value in values:
        if field.message:
            fill(target.add(), value, depth + 1)
        else:
            try:
                target.append(field.read(value, field.name))
            except ValueError:
                raise _bad(field.name, value) from None


def _bad(name: str, value: Any) -> InvalidRequest:
    return InvalidRequest(f"{name} cannot be {str(value)[:64]!r}")


def _plan(descriptor: Descriptor) -> tuple[dict[int, _Field], dict[str, _Field]]:
    plan = _plans.get(descriptor.full_name)
    if plan is None:
        by_number = {each.number: _field(each) for each in descriptor.fields}
        by_name = {each.json_name: by_number[each.number] for each in descriptor.fields}
        by_name |= {each.name: by_number[each.number] for each in descriptor.fields}
        plan = _plans[descriptor.full_name] = (by_number, by_name)
    return plan


def _field(field: FieldDescriptor) -> _Field:
    kind = field.cpp_type
    show: Callable[[Any], Any] | None = None
    read: Callable[[Any, str], Any] = _read_text
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        inner = field.message_type
        header = inner is not None and inner.name == "ResponseHeader"
        show = _show_header if header else plain
    elif field.type == FieldDescriptor.TYPE_BYTES:
        show, read = _show_bytes, _read_bytes
    elif field.enum_type is not None:
        show, read = _enum(field.enum_type)
    elif kind in _INTEGERS:
        show, read = (str if kind in _WIDE else None), _read_integer
    elif kind == FieldDescriptor.CPPTYPE_BOOL:
        read = _read_boolean
    repeated = field.is_repeated
    return _Field(field.name, repeated, kind == FieldDescriptor.CPPTYPE_MESSAGE, show, read)


def _show_header(header: Any) -> dict[str, Any]:
    """As `plain`, in a third of the time: nearly every answer has one."""
    shown = {}
    for name in ("cluster_id", "member_id", "revision", "raft_term"):
        value = getattr(header, name)
        if value:
            shown[name] = str(value)
    return shown


def _show_bytes(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode()


def _read_bytes(value: Any, name: str) -> bytes:
    if not isinstance(value, str):
        raise _bad(name, value)
    try:
        return binascii.a2b_base64(value, strict_mode=True)  # as nearly everybody writes it
    except ValueError:
        pass
    text = value.translate(_URL_SAFE).rstrip("=")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        raise InvalidRequest(f"{name} is not base64") from None


def _read_integer(value: Any, name: str) -> int:
    if isinstance(value, str) and value.strip() == value:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(name, value)
    return value


def _read_boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise _bad(name, value)
    return value


def _read_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _bad(name, value)
    return value


def _enum(
    enum: EnumDescriptor,
) -> tuple[Callable[[Any], Any], Callable[[Any, str], Any]]:
    names = {value.number: value.name for value in enum.values}
    numbers = {value.name: value.number for value in enum.values}

    def show(value: int) -> Any:
        return names.get(value, value)

    def read(value: Any, name: str) -> int:
        if isinstance(value, str):
            if value not in numbers:
                raise _bad(name, value)
            return numbers[value]
        return _read_integer(value, name)

    return show, read
