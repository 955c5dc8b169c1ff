"""Doors whose requests are followed into a list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raftkv.api.audit import AuditLog
from raftkv.api.observe import Observer
from raftkv.server.store import Store


def followed(store: Store, path: Path, **audit: Any) -> Observer:
    """An observer that writes to `path`."""
    settings: dict[str, Any] = {"file_bytes_max": 10**9, "files_max": 2, **audit}
    return Observer(store, AuditLog(path, **settings))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """What was written so far, file by file; complete once the log is closed."""
    return [json.loads(line) for line in path.read_text().splitlines()]
