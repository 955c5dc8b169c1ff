"""`-o json` and `-o fields` of commands that etcd has: what etcdctl prints.

`python -m tests.interop.cli` holds them against etcdctl itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from raftkv.cli.etcd_calls import place
from raftkv.cli.etcd_form import as_fields, as_json, quoted
from raftkv.cli.main import cli
from tests.unit.client_door import Door, real_door

Run = Callable[..., str]
HEADER = r'"cluster_id":\d+,"member_id":\d+,"revision":\d+,"raft_term":\d+'


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with real_door() as made:
        yield made


@pytest.fixture
def run(door: Door) -> Run:
    def invoke(*args: str, given: str | None = None, code: int = 0, form: str = "json") -> str:
        result = CliRunner().invoke(
            cli, ["--endpoints", door.url, *args, "--write-out", form], input=given
        )
        assert result.exit_code == code, (args, result.output, result.stderr, result.exception)
        return result.stdout.rstrip("\n")

    return invoke


def alike(shown: str, expected: str) -> None:
    """Equal but for the header's numbers."""
    assert re.sub(HEADER, "<header>", shown) == expected


def test_keys(run: Run) -> None:
    alike(run("put", "a", "1"), '{"header":{<header>}}')
    shown = json.loads(run("put", "a", "2", "--prev"))
    assert shown["header"]["revision"] == shown["prev_kv"]["mod_revision"] + 1
    assert list(shown["prev_kv"]) == ["key", "create_revision", "mod_revision", "version", "value"]
    shown = json.loads(run("get", "--prefix", "a", "--keys-only"))
    assert shown["count"] == 1 and "value" not in shown["kvs"][0]
    alike(run("get", "none", code=3), '{"header":{<header>}}')
    alike(run("del", "none", code=3), '{"header":{<header>}}')
    alike(run("get", "--prefix", "a", "--count-only"), '{"header":{<header>},"count":1}')
    fields = run("get", "a", form="fields").splitlines()
    assert fields[4] == '"Key" : "a"' and fields[-3:] == [
        '"Lease" : 0',
        '"More" : false',
        '"Count" : 1',
    ]
    assert run("del", "a", "--prev", form="fields").splitlines()[4:6] == [
        '"Deleted" : 1',
        '"PrevKey" : "a"',
    ]


def test_a_transaction(run: Run) -> None:
    body = {
        "if": [{"key": "t", "target": "version", "op": "=", "operand": 0}],
        "then": [
            {"op": "put", "key": "t", "value": "1"},
            {"op": "get", "key": "none"},
            {"op": "delete", "key": "none"},
            {"op": "range", "prefix": "t"},
            {"op": "txn", "then": [{"op": "put", "key": "u", "value": "1"}]},
        ],
    }
    shown = run("txn", given=json.dumps(body))
    head = r'{"header":{"revision":N}'
    shown = re.sub(
        r'"((?:create_|mod_)?revision)":\d+', r'"\1":N', re.sub(HEADER, "<header>", shown)
    )
    kv = '{"key":"dA==","create_revision":N,"mod_revision":N,"version":1,"value":"MQ=="}'
    parts = [
        f'{{"Response":{{"response_put":{head}}}}}}}',
        f'{{"Response":{{"response_range":{head}}}}}}}',
        f'{{"Response":{{"response_delete_range":{head}}}}}}}',
        f'{{"Response":{{"response_range":{head},"kvs":[{kv}],"count":1}}}}}}',
        f'{{"Response":{{"response_txn":{head},"succeeded":true,"responses":'
        f'[{{"Response":{{"response_put":{head}}}}}}}]}}}}}}',
    ]
    assert shown == '{"header":{<header>},"succeeded":true,"responses":[' + ",".join(parts) + "]}"
    failed = run("txn", given=json.dumps(body), code=4, form="fields").splitlines()
    assert failed[4:] == ['"Succeeded" : false']


def test_leases(run: Run) -> None:
    granted = run("lease", "grant", "100", "--id", "4d")
    alike(granted, '{<header>,"ID":77,"TTL":100,"Error":""}')
    run("put", "leased", "1", "--lease", "4d")
    shown = json.loads(run("lease", "show", "4d"))
    assert (shown["id"], shown["granted-ttl"], shown["keys"]) == (77, 100, ["bGVhc2Vk"])
    alike(run("lease", "list"), '{<header>,"leases":[{"id":77}]}')
    alike(run("lease", "keep-alive", "4d", "--once"), '{<header>,"ID":77,"TTL":100}')
    alike(run("lease", "revoke", "4d"), '{"header":{<header>}}')
    gone = '{<header>,"id":77,"ttl":-1,"granted-ttl":0,"keys":null}'
    alike(run("lease", "show", "4d", code=3), gone)
    alike(run("lease", "list"), '{<header>,"leases":[]}')


def test_a_watch(run: Run) -> None:
    first = json.loads(run("put", "w", "1"))["header"]["revision"]
    run("del", "w")
    shown = run("watch", "w", "--from", str(first), "-n", "2")
    told = json.loads(shown)
    assert list(told) == ["Header", "Events", "CompactRevision", "Canceled", "Created"]
    assert "type" not in told["Events"][0] and told["Events"][1]["type"] == 1
    fields = run("watch", "w", "--from", str(first), "-n", "2", "--prev", form="fields")
    assert [line for line in fields.splitlines() if "Type" in line or "PrevKey" in line] == [
        '"Type" : PUT', '"Type" : DELETE', '"PrevKey" : "w"'
    ]  # fmt: skip
    run("compact", str(first + 1))
    canceled = json.loads(run("watch", "w", "--from", str(first), code=1))
    assert (canceled["Canceled"], canceled["CompactRevision"]) == (True, first + 1)


def test_members_and_endpoints(run: Run, door: Door) -> None:
    listed = json.loads(run("member", "list"))
    assert isinstance(listed["members"][0]["ID"], int)
    (status,) = json.loads(run("endpoint", "status"))
    assert status["Endpoint"] == door.url and isinstance(status["Status"]["raftTerm"], int)
    (health,) = json.loads(run("endpoint", "health"))
    assert health["health"] is True and health["took"].endswith("ms")
    (hashed,) = json.loads(run("endpoint", "hashkv"))
    assert isinstance(hashed["HashKV"]["hash"], int)
    alike(run("alarm", "list"), '{"header":{<header>}}')
    for command in ("status", "health", "hashkv"):
        assert f'"Endpoint" : "{door.url}"' in run("endpoint", command, form="fields")
        assert door.url in run("endpoint", command, form="table")
    assert run("alarm", "list", form="table") == ""


def test_users_and_roles(run: Run) -> None:
    only_header = '{"header":{<header>}}'
    alike(run("user", "add", "u", "--no-password"), only_header)
    alike(run("role", "add", "r"), only_header)
    alike(run("role", "grant-permission", "r", "read", "--prefix", "p"), only_header)
    alike(run("user", "grant-role", "u", "r"), only_header)
    alike(run("user", "get", "u"), '{"header":{<header>},"roles":["r"]}')
    alike(run("user", "list"), '{"header":{<header>},"users":["u"]}')
    alike(run("role", "list"), '{"header":{<header>},"roles":["r"]}')
    # READ is zero, and Go leaves zeros out.
    alike(
        run("role", "get", "r"), '{"header":{<header>},"perm":[{"key":"cA==","range_end":"cQ=="}]}'
    )
    assert '"PermType" :  READ' in run("role", "get", "r", form="fields")
    assert json.loads(run("auth", "status"))["authRevision"] >= 4
    assert run("auth", "disable") == "Authentication Disabled"
    run("auth", "enable", code=1)
    run("user", "get", "nobody", code=4)


def test_what_has_no_fields_says_so(run: Run) -> None:
    assert run("auth", "status", code=1, form="fields") == ""


def test_the_api_form_and_other_commands_are_as_before(run: Run) -> None:
    run("put", "api", "text")
    assert json.loads(run("get", "api", form="api"))["value"] == "text"
    assert "members" in json.loads(run("status"))


@pytest.mark.parametrize(
    ("prefix", "range_end"), [("a", "Yg=="), ("", "AA=="), ("a\udcff", "Yg=="), ("\udcff", "AA==")]
)
def test_the_end_of_a_prefix(prefix: str, range_end: str) -> None:
    assert place(None, prefix)["range_end"] == range_end


def test_texts_as_go_quotes_them() -> None:
    assert quoted(b'a"\\\n\x00\xff\xc3\xbc\xe2\x80\xa8') == '"a\\"\\\\\\n\\x00\\xffü\\u2028"'
    assert as_json({"a": "<&>"}) == '{"a":"\\u003c\\u0026\\u003e"}'


def test_a_record_in_fields() -> None:
    answer: dict[str, Any] = {"header": {}, "kvs": [{"key": "AA==", "lease": 5}]}
    assert as_fields("get", answer) is not None
    assert (as_fields("get", answer) or [])[4:10] == [
        '"Key" : "\\x00"', '"CreateRevision" : 0', '"ModRevision" : 0', '"Version" : 0',
        '"Value" : ""', '"Lease" : 5',
    ]  # fmt: skip
