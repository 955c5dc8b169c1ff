"""The commands that talk to a store, against the real door: output, exit codes, advice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raftkv.cli.main import cli
from tests.unit.client_door import Door, real_door

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with real_door() as made:
        yield made


@pytest.fixture
def run(door: Door) -> Run:
    def invoke(*args: str, given: str | bytes | None = None, code: int = 0) -> Result:
        result = CliRunner().invoke(
            cli, ["--endpoints", door.url, "--timeout", "5", *args], input=given
        )
        assert result.exit_code == code, (args, result.output, result.stderr, result.exception)
        return result

    return invoke


def parsed(result: Result) -> Any:
    return json.loads(result.stdout)


def test_put_get_del(run: Run) -> None:
    assert parsed(run("put", "a", "one"))["version"] == 1
    record = parsed(run("get", "a"))
    assert (record["value"], record["encoding"]) == ("one", "utf-8")
    assert run("get", "a", "-o", "table").stdout == "one\n"
    assert run("get", "a", "--raw").stdout_bytes == b"one"
    shown = run("put", "a", "two", "--prev", "-o", "table").stdout
    assert "written at revision" in shown and "before: one" in shown
    assert "(nothing)" in run("put", "fresh", "x", "--prev", "-o", "table").stdout
    assert parsed(run("put", "fresh", "y", "--prev"))["previous"]["value"] == "x"
    assert "1 key deleted" in run("del", "a", "-o", "table").stdout
    missing = run("get", "a", code=3)
    assert missing.stdout == "" and "there is no key 'a'" in missing.stderr
    assert "there is no key" in run("del", "a", code=3).stderr


def test_values_from_standard_input_and_of_any_bytes(run: Run) -> None:
    run("put", "in", given="piped\n")
    assert run("get", "in", "--raw").stdout == "piped\n"
    run("put", "in", "-", given=b"\xff\x00")
    assert run("get", "in", "-o", "table").stdout == "base64:/wA=\n"
    assert parsed(run("get", "in"))["encoding"] == "base64"
    run("put", "in", "\x1b[31mred")
    assert "\x1b" not in run("get", "in", "-o", "table").stdout


def test_compare_and_set_from_the_shell(run: Run) -> None:
    revision = parsed(run("put", "cas", "1", "--if-absent"))["revision"]
    assert "error:" in run("put", "cas", "2", "--if-absent", code=4).stderr
    run("put", "cas", "2", "--if-revision", str(revision))
    run("put", "cas", "3", "--if-revision", str(revision), code=4)
    run("del", "cas", "--if-revision", str(revision), code=4)
    run("put", "cas", "3", "--if-present")


def test_ranges(run: Run) -> None:
    for number in range(5):
        run("put", f"r/{number}", str(number))
    page = parsed(run("get", "--prefix", "r/"))
    assert [item["key"] for item in page["items"]] == [f"r/{n}" for n in range(5)]
    assert page["count"] == 5 and page["revision"] > 0
    lines = run("get", "--prefix", "r/", "-o", "ndjson", "--limit", "2").stdout.splitlines()
    assert [json.loads(line)["value"] for line in lines] == ["0", "1"]
    table = run("get", "--prefix", "r/", "-o", "table").stdout.splitlines()
    assert table[0].split() == ["KEY", "VALUE", "MODIFIED", "VERSION", "LEASE"] and len(table) == 6
    keys = parsed(run("get", "r/1", "--end", "r/3", "--keys-only", "--reverse"))["items"]
    assert [item["key"] for item in keys] == ["r/2", "r/1"] and "value" not in keys[0]
    assert run("get", "--prefix", "r/", "--count-only", "-o", "table").stdout == "5\n"
    assert parsed(run("get", "--prefix", "none/"))["items"] == []
    assert parsed(run("del", "--prefix", "r/", "--prev"))["previous"][0]["key"] == "r/0"
    assert parsed(run("del", "--prefix", "r/"))["deleted"] == 0


@pytest.mark.parametrize(
    "args",
    [
        ("get",),
        ("get", "a", "--prefix", "b"),
        ("get", "a", "--limit", "2"),
        ("get", "--prefix", "a", "--raw"),
        ("del",),
        ("del", "--prefix", ""),
        ("del", "--all", "--if-revision", "3"),
        ("watch",),
        ("compact",),
        ("compact", "5", "--keep", "1"),
        ("put", "a", "b", "--if-revision", "-1"),
        ("service", "show", "web", "w1", "--passing"),
        ("service", "register", "web", "w1", "--address", "h", "--port", "1", "--meta", "x"),
        ("get", "a", "--endpoints", "ftp://x:1"),
        ("gett", "a"),
    ],
)
def test_usage_errors_exit_with_2(run: Run, args: tuple[str, ...]) -> None:
    assert run(*args, code=2).stderr


def test_a_transaction_answers_both_ways(run: Run, tmp_path: Path) -> None:
    run("put", "stock", "1")
    body = {
        "if": [{"key": "stock", "target": "value", "op": "=", "operand": "1"}],
        "then": [
            {"op": "put", "key": "stock", "value": "0"},
            {"op": "range", "prefix": "stock"},
            {"op": "txn", "if": [], "then": [{"op": "delete", "key": "none"}], "else": []},
        ],
        "else": [{"op": "get", "key": "stock"}, {"op": "get", "key": "no"}],
    }
    path = tmp_path / "txn.json"
    path.write_text(json.dumps(body))
    done = parsed(run("txn", str(path)))
    assert done["succeeded"] and [part["op"] for part in done["results"]] == ["put", "range", "txn"]
    failed = run("txn", "-o", "table", given=json.dumps(body), code=4)
    assert "else ran" in failed.stdout and "get: stock = 0" in failed.stdout
    run("put", "stock", "1")
    text = run("txn", str(path), "-o", "table").stdout
    assert "put: done" in text and "range: 1 keys" in text and "delete: 0 deleted" in text
    assert "not JSON" in run("txn", given="{", code=2).stderr
    assert "object" in run("txn", given="[]", code=2).stderr
    assert "iff" in run("txn", given='{"iff": []}', code=1).stderr


def test_watch_tells_history_in_order(run: Run) -> None:
    start = parsed(run("put", "w/a", "1"))["revision"]
    run("put", "w/a", "2")
    run("del", "w/a")
    args = ("watch", "--prefix", "w/", "--from", str(start), "-n", "3", "--prev")
    events = [json.loads(line) for line in run(*args).stdout.splitlines()]
    assert [event["type"] for event in events] == ["put", "put", "delete"]
    assert events[1]["previous"]["value"] == "1" and events[2]["revision"] == start + 2
    lines = run(*args, "-o", "table").stdout.splitlines()
    assert "PUT" in lines[0] and "w/a = 1" in lines[0] and "DELETE" in lines[2]
    only = run("watch", "w/a", "--from", str(start), "-n", "1", "--only", "delete", "--keys-only")
    assert parsed(only) == {"type": "delete", "revision": start + 2, "key": "w/a"}


def test_compaction_and_what_it_refuses(run: Run) -> None:
    revision = parsed(run("put", "c", "1"))["revision"]
    run("put", "c", "2")
    assert "is gone" in run("compact", "--keep", "0", "-o", "table").stdout
    stale = run("watch", "c", "--from", str(revision), code=1)
    assert "error:" in stale.stderr
    run("get", "c", "--revision", str(revision), code=1)


def test_leases(run: Run) -> None:
    lease = parsed(run("lease", "grant", "60"))["lease"]
    run("put", "leased", "x", "--lease", lease)
    assert parsed(run("lease", "show", lease))["keys"] == ["leased"]
    assert "leased" in run("lease", "show", lease, "-o", "table").stdout
    assert lease in run("lease", "list", "-o", "table").stdout
    assert parsed(run("lease", "keep-alive", lease, "--once"))["ttl"] == 60
    assert "1 keys deleted" in run("lease", "revoke", lease, "-o", "table").stdout
    for command in (("revoke",), ("show",), ("keep-alive",)):
        run("lease", *command, lease, code=3)
    run("lease", "grant", "0", code=1)


def test_services(run: Run) -> None:
    register = ("service", "register", "web", "w1", "--address", "::1", "--port", "80")
    text = run(*register, "--tag", "a", "--meta", "zone=b", "--owner", "me", "-o", "table").stdout
    assert "web/w1 registered for 10 s, until 2" in text
    claimed = run(*register, "--owner", "you", code=1)
    assert "--takeover" in claimed.stderr
    assert "web" in run("service", "list", "-o", "table").stdout
    table = run("service", "show", "web", "-o", "table").stdout
    assert "[::1]:80" in table and "passing" in table
    assert "zone=b" in run("service", "show", "web", "w1", "-o", "table").stdout
    run("service", "drain", "web", "w1")
    assert parsed(run("service", "show", "web", "--passing"))["instances"] == []
    assert "offered again" in run("service", "drain", "web", "w1", "--undo", "-o", "table").stdout
    run("service", "deregister", "web", "w1")
    run("service", "deregister", "web", "w1", code=3)
    assert "`raftkv service show web`" in run("service", "show", "web", "w1", code=3).stderr
    assert "no such instances" in run("service", "show", "web", "-o", "table").stderr


def test_the_cluster(run: Run, door: Door, tmp_path: Path) -> None:
    view = parsed(run("status"))["members"][0]
    assert view["endpoint"] == door.url and view["healthy"] is True
    assert "leader" in run("status", "-o", "table").stdout
    assert parsed(run("health"))["endpoints"][0]["healthy"] is True
    members = parsed(run("member", "list"))["members"]
    assert members[0]["leader"] is True
    assert "leads" in run("leader", "transfer", "local", "-o", "table").stdout
    assert members[0]["member_id"].startswith("0")
    as_etcd_shows_it = members[0]["member_id"].lstrip("0")
    assert "leads" in run("leader", "transfer", as_etcd_shows_it, "-o", "table").stdout
    assert "raftkv member list" in run("member", "remove", "nobody", code=3).stderr
    shrunk = parsed(run("shrink", "--cluster"))["members"]
    assert [one["endpoint"] for one in shrunk] == [door.url] and shrunk[0]["after_bytes"]
    assert "now" in run("shrink", "-o", "table").stdout
    assert parsed(run("quota", "set", "--prefix", "q/", "--keys", "1"))["changed"] is True
    run("put", "q/a", "1")
    assert "quota list" in run("put", "q/b", "1", code=1).stderr
    shown = parsed(run("quota", "list"))["quotas"]
    assert [one["prefix"] for one in shown] == ["q/"] and shown[0]["used_keys"] == 1
    assert "prefix q/" in run("quota", "list", "-o", "table").stdout
    assert "ended" in run("quota", "remove", "--prefix", "q/", "-o", "table").stdout
    assert "--of-user" in run("quota", "set", "--keys", "1", code=2).stderr
    path = tmp_path / "image.snap"
    saved = parsed(run("snapshot", "save", str(path)))
    assert saved["size_bytes"] == path.stat().st_size
    assert "--force" in run("snapshot", "save", str(path), code=2).stderr
    run("snapshot", "save", str(path), "--force", "-o", "table")


def test_an_endpoint_that_does_not_answer_is_a_row_of_status(run: Run, door: Door) -> None:
    both = ("--endpoints", f"{door.url},http://127.0.0.1:1")
    rows = [json.loads(line) for line in run("status", *both, "-o", "ndjson").stdout.splitlines()]
    assert rows[0]["healthy"] and rows[1]["code"] == "unreachable"
    assert "no answer" in run("status", *both, "-o", "table").stdout
    assert not parsed(run("health", *both, code=1))["endpoints"][1]["healthy"]
    down = ("--endpoints", "http://127.0.0.1:1")
    run("status", *down, code=5)
    assert "raftkv dev" in run("health", *down, code=5).stderr
    refused = run("put", "a", "b", *down, code=5)
    assert refused.stderr.startswith("error: http://127.0.0.1:1 cannot be reached")
    assert "raftkv dev" in refused.stderr and refused.stderr.count("\n") == 1
