"""Log lines: whose they are, and that they can be read by machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from raftkv.server import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    logger = logging.getLogger("raftkv")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before
    logs.IDENTITY.end()


def test_a_line_names_member_term_and_revision(capsys: pytest.CaptureFixture[str]) -> None:
    revision = 10
    logs.configure("info", "json")
    log = logging.getLogger("raftkv.somewhere")
    log.info("opening")
    logs.IDENTITY.begin(lambda: (revision, 3, 0xAB))
    log.info("a request is slow", extra={"operation": "putKey", "request": "f-1"})
    revision = 11
    log.info("follows", extra={"term": 4})
    log.debug("not at this level")
    opening, slow, follows = map(json.loads, capsys.readouterr().err.splitlines())
    assert "member" not in opening
    assert slow["member"] == "00000000000000ab" and (slow["term"], slow["revision"]) == (3, 10)
    assert (slow["request"], slow["operation"]) == ("f-1", "putKey")
    assert (follows["term"], follows["revision"]) == (4, 11)
    assert slow["time"].endswith("Z") and slow["level"] == "info"


@pytest.mark.parametrize("form", ["text", "console"])
def test_lines_for_people(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", form)
    logs.IDENTITY.begin(lambda: (10, 3, 0xAB))
    log = logging.getLogger("raftkv.somewhere")
    log.info("not at this level")
    log.warning("out of space", extra={"used_bytes": 7})
    [line] = capsys.readouterr().err.splitlines()
    assert line[12:] == (
        " warning out of space used_bytes=7 member=00000000000000ab term=3 revision=10"
    )
