"""What must hold, checked in production too; apart from the errors because it is compiled."""

from __future__ import annotations

from typing import Any, NoReturn

from raftkv.errors import InvariantViolation


def check(condition: object, text: str, **facts: Any) -> None:
    """Raise `InvariantViolation` unless `condition` holds. On in production, also under ``-O``."""
    if not condition:
        violated(text, **facts)


def violated(text: str, **facts: Any) -> NoReturn:
    """Raise `InvariantViolation` with `text` and every fact spelled out."""
    detail = " ".join(f"{name}={value!r}" for name, value in facts.items())
    raise InvariantViolation(f"{text} [{detail}]" if detail else text, **facts)
