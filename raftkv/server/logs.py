"""Log lines, for people or for machines, on standard error.

Lines are about the member's life (roles, members, files, refusals of peers), and about single
requests only when these are slow or fail to log in. Values and keys of users are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra` with a line."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class TextFormatter(logging.Formatter):
    """``12:00:01.250 info  raftkv became leader term=3``"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock}.{int(record.msecs):03d} {record.levelname.lower():<7} "
        line += record.getMessage()
        for name, value in facts_of(record).items():
            line += f" {name}={value}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message and the facts."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        body = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **facts_of(record),
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return json.dumps(body, default=str)


class Identity(logging.Filter):
    """Adds to each line which member it is of, and that member's term and revision then."""

    def __init__(self) -> None:
        super().__init__()
        self._stamp: Callable[[], tuple[int, int, int]] | None = None

    def begin(self, stamp: Callable[[], tuple[int, int, int]]) -> None:
        """From now on lines are of the member with this `Store.stamp`."""
        self._stamp = stamp

    def end(self) -> None:
        """From now on lines are of nobody in particular."""
        self._stamp = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a line. Facts that a line has of its own stay."""
        if self._stamp is not None:
            revision, term, member = self._stamp()
            facts = {"member": f"{member:016x}", "term": term, "revision": revision}
            for name, value in facts.items():
                record.__dict__.setdefault(name, value)
        return True


IDENTITY: Final = Identity()


def configure(level: str, form: str) -> None:
    """Send raftkv's log lines to standard error. `form` is "text", "console" (the same) or
    "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(IDENTITY)
    logger = logging.getLogger("raftkv")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
