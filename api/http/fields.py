"""Declared fields of JSON bodies: read strictly, rendered as JSON Schema from the same lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from raftkv.api.http.codec import INT64_MAX, load_json
from raftkv.errors import InvalidRequest

TYPES: Final[dict[str, dict[str, Any]]] = {
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "texts": {"type": "array", "items": {"type": "string"}},
    "text_map": {"type": "object", "additionalProperties": {"type": "string"}},
    "hex": {"type": "string", "pattern": "^[0-9A-Fa-f]{1,16}$"},
}
WORDS: Final = {
    "text": "a string",
    "integer": "a whole number",
    "boolean": "true or false",
    "texts": "a list of strings",
    "text_map": "an object of strings",
    "hex": "a string of up to 16 hexadecimal digits",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a JSON object. A missing optional field reads as `default`."""

    name: str
    kind: str
    doc: str
    required: bool = False
    default: Any = None
    minimum: int = 0
    maximum: int = INT64_MAX

    def read(self, value: Any) -> Any:
        """`value` when it is of this field's kind and within its bounds."""
        if not _is_kind(self.kind, value):
            raise InvalidRequest(f"{self.name} must be {WORDS[self.kind]}", field=self.name)
        if self.kind == "integer" and not self.minimum <= value <= self.maximum:
            raise InvalidRequest(
                f"{self.name} must be from {self.minimum} to {self.maximum}, not {value}",
                field=self.name,
            )
        return value

    def schema(self) -> dict[str, Any]:
        """This field as JSON Schema."""
        schema: dict[str, Any] = {**TYPES[self.kind], "description": self.doc}
        if self.kind == "integer":
            schema |= {"minimum": self.minimum, "maximum": self.maximum}
        if not self.required:  # null says the same as leaving it out
            schema["type"] = [schema["type"], "null"]
        if self.default is not None:
            schema["default"] = self.default
        return schema


def _is_kind(kind: str, value: Any) -> bool:
    if kind in ("text", "hex"):
        return isinstance(value, str)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "texts":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def read_fields(body: bytes, fields: tuple[Field, ...], required: bool = True) -> dict[str, Any]:
    """Parse a JSON object of exactly these fields. An absent body reads as ``{}`` if allowed.

    Raises `InvalidRequest` naming the field at fault, and the allowed ones for an unknown one.
    """
    if not body and not required:
        document: Any = {}
    else:
        document = load_json(body)
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object")
    only_known(document, tuple(field.name for field in fields), "the body")
    values = {}
    for field in fields:
        value = document.get(field.name)
        if value is None:
            if field.required:
                raise InvalidRequest(f"{field.name} is missing", field=field.name)
            value = field.default
        else:
            value = field.read(value)
        values[field.name] = value
    return values


def only_known(document: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    """Raise `InvalidRequest` if `document` has a member that is not allowed."""
    for name in document:
        if name not in allowed:
            raise InvalidRequest(
                f"Unknown field {name[:64]!r} in {where}; allowed: {', '.join(allowed)}",
                field=name[:64],
                allowed=list(allowed),
            )


def object_schema(fields: tuple[Field, ...]) -> dict[str, Any]:
    """A JSON Schema object of exactly these fields."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {field.name: field.schema() for field in fields},
        "additionalProperties": False,
    }
    required = [field.name for field in fields if field.required]
    if required:
        schema["required"] = required
    return schema
