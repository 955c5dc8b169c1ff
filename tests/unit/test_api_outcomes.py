"""The table of outcomes is complete, and tells refused from unknown from failed."""

from __future__ import annotations

import pytest

from raftkv import errors
from raftkv.api.gate import Gate, check_origin
from raftkv.api.http import refusals
from raftkv.api.outcomes import HTTP, HTTP_REASONS, fact, http_outcome, http_problem


def leaves(kind: type[errors.RaftkvError]) -> set[type[errors.RaftkvError]]:
    """Every class below `kind` in the product's own modules."""
    found = set()
    for below in kind.__subclasses__():
        if below.__module__ in (errors.__name__, refusals.__name__):
            found |= {below} | leaves(below)
    return found


def test_every_error_is_in_the_table() -> None:
    missing = leaves(errors.RaftkvError) - set(HTTP)
    assert not missing


def test_codes_are_unique_and_statuses_have_reasons() -> None:
    codes = [kind.code for kind in HTTP]
    assert len(set(codes)) == len(codes)
    for row in HTTP.values():
        assert row.status in HTTP_REASONS


@pytest.mark.parametrize("kind", sorted(leaves(errors.RaftkvError), key=str))
def test_families_never_share_an_answer(kind: type[errors.RaftkvError]) -> None:
    error = kind("text", lease=255, key=b"k")
    problem = http_problem(error)
    if issubclass(kind, errors.Refused):
        assert problem["outcome"] == "refused" and problem["status"] not in (500, 504)
    elif issubclass(kind, errors.OutcomeUnknown):
        assert (problem["outcome"], problem["status"]) == ("unknown", 504)
    else:
        assert (problem["outcome"], problem["status"]) == ("failed", 500)
    assert problem["type"] == f"urn:raftkv:problem:{kind.code}"
    assert problem["lease"] == "00000000000000ff" and problem["key"] == "k"


def test_an_unlisted_error_is_answered_as_its_base() -> None:
    class Odd(errors.Compacted):
        code = "odd"

    assert http_outcome(Odd("x")).status == 410
    assert http_outcome(ValueError("x")).status == 500
    assert http_problem(ValueError("secret"))["detail"].find("secret") < 0


def test_facts_do_not_overwrite_the_form() -> None:
    problem = http_problem(errors.Compacted("x", status="mine", title="mine"))
    assert problem["status"] == 410 and problem["title"] != "mine"


def test_facts_become_json() -> None:
    assert fact("a", b"\xff") == "/w=="
    assert fact("a", {"lease": 1, "n": 1}) == {"lease": "0000000000000001", "n": 1}
    assert fact("member", [1, None, True, 1.5]) == ["0000000000000001", None, True, 1.5]
    assert fact("a", Gate).startswith("<class")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (b"http://h:2379", b"h:2379"),
        (b"http://h", b"h:80"),
        (b"https://h", b"h"),
        (b"https://H:443", b"h"),
        (b"http://[::1]:2379", b"[::1]:2379"),
    ],
)
def test_pages_of_the_same_host_may_write(origin: bytes, host: bytes) -> None:
    check_origin(origin, host)
    Gate.admit(b"POST", {b"origin": origin, b"host": host})


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (b"null", b"h"),
        (b"http://evil", b"h"),
        (b"http://h:1", b"h:2"),
        (b"https://h", b"h:80"),
        (b"http://h.evil", b"h"),
        (b"http://", b""),
        (b"", b""),
    ],
)
def test_pages_of_other_hosts_may_not(origin: bytes, host: bytes) -> None:
    with pytest.raises(refusals.ForeignOrigin):
        Gate.admit(b"PUT", {b"origin": origin, b"host": host})
    Gate.admit(b"GET", {b"origin": origin, b"host": host})
