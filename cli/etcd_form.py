"""How etcdctl prints answers: the values that Go has, as JSON and as ``"Name" : value`` lines."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

Answer = dict[str, Any]

INTEGERS: Final = frozenset(
    (
        "cluster_id", "member_id", "revision", "raft_term", "create_revision", "mod_revision",
        "version", "lease", "count", "deleted", "ID", "TTL", "grantedTTL", "memberID", "leader",
        "dbSize", "raftIndex", "raftTerm", "raftAppliedIndex", "dbSizeInUse", "dbSizeQuota",
        "authRevision", "compact_revision", "hash_revision", "watch_id",
    )
)  # fmt: skip
"""Fields of 64 bits, which the gateway shows as text."""
ENUMS: Final = {
    "READ": 0, "WRITE": 1, "READWRITE": 2, "PUT": 0, "DELETE": 1,
    "NONE": 0, "NOSPACE": 1, "CORRUPT": 2,
}  # fmt: skip
ENUM_FIELDS: Final = frozenset(("permType", "type", "alarm"))
PERMISSIONS: Final = ("READ", "WRITE", "READWRITE")


def go_value(value: Any, name: str = "") -> Any:
    """What the gateway shows, as etcd's client in Go has it: numbers for 64 bits and for enums."""
    if isinstance(value, dict):
        return {key: go_value(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [go_value(item, name) for item in value]
    if name in INTEGERS and isinstance(value, str) and value.lstrip("-").isdigit():
        return int(value)
    if name in ENUM_FIELDS and value in ENUMS:
        return ENUMS[value]
    return value


def as_json(value: Any) -> str:
    """One line, as Go encodes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def watched(answer: Answer) -> Answer:
    """A message of a watch."""
    return {
        "Header": answer.get("header", {}),
        "Events": answer.get("events", []),
        "CompactRevision": answer.get("compact_revision", 0),
        "Canceled": answer.get("canceled", False),
        "Created": answer.get("created", False),
    }


def transacted(answer: Answer) -> Answer:
    """A transaction's answer, whose parts Go wraps once more."""
    if "responses" not in answer:
        return answer
    parts = [{"Response": {name: transacted(part) for name, part in each.items()}}
             for each in answer["responses"]]  # fmt: skip
    return {name: parts if name == "responses" else value for name, value in answer.items()}


def quoted(data: str | bytes) -> str:
    """A text in quotes, with Go's escapes."""
    escapes = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
               "\v": "\\v", "\\": "\\\\", '"': '\\"'}  # fmt: skip
    text = data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")
    parts = []
    for character in text:
        point = ord(character)
        if character in escapes:
            parts.append(escapes[character])
        elif character.isprintable():
            parts.append(character)
        elif 0xDC80 <= point <= 0xDCFF:
            parts.append(f"\\x{point - 0xDC00:02x}")
        elif point < 0x80:
            parts.append(f"\\x{point:02x}")
        else:
            parts.append(f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}")
    return '"' + "".join(parts) + '"'


def as_fields(kind: str, answer: Any) -> list[str] | None:
    """The lines of ``-w fields``; None when etcdctl has none for this kind of answer."""
    maker = _FIELDS.get(kind)
    return None if maker is None else list(maker(answer))


def _line(name: str, value: Any) -> str:
    if isinstance(value, bool):
        value = str(value).lower()
    return f'"{name}" : {value}'


def _header(answer: Answer) -> Iterator[str]:
    # Of leases it has the header's fields among the others.
    header: Answer = answer["header"] if "header" in answer else answer.get("Header", answer)
    yield _line("ClusterID", header.get("cluster_id", 0))
    yield _line("MemberID", header.get("member_id", 0))
    yield _line("Revision", header.get("revision", 0))
    yield _line("RaftTerm", header.get("raft_term", 0))


def _bytes(answer: Answer, name: str) -> str:
    return quoted(base64.b64decode(answer.get(name, "")))


def _kv(record: Answer, prefix: str = "") -> Iterator[str]:
    yield _line(f"{prefix}Key", _bytes(record, "key"))
    yield _line(f"{prefix}CreateRevision", record.get("create_revision", 0))
    yield _line(f"{prefix}ModRevision", record.get("mod_revision", 0))
    yield _line(f"{prefix}Version", record.get("version", 0))
    yield _line(f"{prefix}Value", _bytes(record, "value"))
    yield _line(f"{prefix}Lease", record.get("lease", 0))


def _put(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    if "prev_kv" in answer:
        yield from _kv(answer["prev_kv"], "Prev")


def _get(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    for record in answer.get("kvs", ()):
        yield from _kv(record)
    yield _line("More", answer.get("more", False))
    yield _line("Count", answer.get("count", 0))


def _delete(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    yield _line("Deleted", answer.get("deleted", 0))
    for record in answer.get("prev_kvs", ()):
        yield from _kv(record, "Prev")


def _txn(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    yield _line("Succeeded", answer.get("succeeded", False))
    for each in answer.get("responses", ()):
        for name, part in each["Response"].items():
            # An answer without fields has no header either, as if all of it were zero.
            yield from _PARTS[name]({"header": {}, **part})


def _events(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    for event in answer["Events"]:
        yield _line("Type", "DELETE" if event.get("type") else "PUT")
        if "prev_kv" in event:
            yield from _kv(event["prev_kv"], "Prev")
        yield from _kv(event["kv"])


def _lease(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    yield _line("ID", answer["ID"])
    yield _line("TTL", answer["TTL"])


def _lease_time(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    yield _line("ID", answer["id"])
    yield _line("TTL", answer["ttl"])
    yield _line("GrantedTTL", answer["granted-ttl"])
    for key in answer["keys"] or ():
        yield _line("Key", quoted(base64.b64decode(key)))


def _leases(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    for each in answer["leases"]:
        yield _line("ID", each["id"])


def _members(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    for member in answer.get("members", ()):
        yield _line("ID", member["ID"])
        yield _line("Name", quoted(member.get("name", "")))
        for url in member.get("peerURLs", ()):
            yield _line("PeerURL", quoted(url))
        for url in member.get("clientURLs", ()):
            yield _line("ClientURL", quoted(url))
        yield _line("IsLearner", member.get("isLearner", False))
        yield ""


def _role(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    for each in answer.get("perm", ()):
        yield f'"PermType" :  {PERMISSIONS[each.get("permType", 0)]}'
        yield _line("Key", _bytes(each, "key"))
        yield _line("RangeEnd", _bytes(each, "range_end"))


def _roles(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    yield " ".join(['"Roles" :', *map(quoted, answer.get("roles", ()))])


def _alarms(answer: Answer) -> Iterator[str]:
    yield from _header(answer)
    for each in answer.get("alarms", ()):
        yield _line("MemberID", each.get("memberID", 0))
        yield _line("AlarmType", ("NONE", "NOSPACE", "CORRUPT")[each.get("alarm", 0)])
        yield ""


def _statuses(answers: list[Answer]) -> Iterator[str]:
    for each in answers:
        status = each["Status"]
        yield from _header(status)
        yield _line("Version", quoted(status.get("version", "")))
        yield _line("DBSize", status.get("dbSize", 0))
        yield _line("Leader", status.get("leader", 0))
        yield _line("IsLearner", status.get("isLearner", False))
        yield _line("RaftIndex", status.get("raftIndex", 0))
        yield _line("RaftTerm", status.get("raftTerm", 0))
        yield _line("RaftAppliedIndex", status.get("raftAppliedIndex", 0))
        yield _line("Errors", f"[{' '.join(map(quoted, status.get('errors', ())))}]")
        yield _line("Endpoint", quoted(each["Endpoint"]))
        yield ""


def _hashes(answers: list[Answer]) -> Iterator[str]:
    for each in answers:
        yield from _header(each["HashKV"])
        yield _line("Endpoint", quoted(each["Endpoint"]))
        yield _line("Hash", each["HashKV"].get("hash", 0))
        yield ""


def _healths(answers: list[Answer]) -> Iterator[str]:
    for each in answers:
        yield _line("Endpoint", quoted(each["endpoint"]))
        yield _line("Health", each["health"])
        yield _line("Took", each["took"])
        yield _line("Error", each.get("error", ""))
        yield ""


_PARTS: Final[dict[str, Callable[[Any], Iterator[str]]]] = {
    "response_put": _put, "response_range": _get, "response_delete_range": _delete,
    "response_txn": _txn,
}  # fmt: skip

_FIELDS: Final[dict[str, Callable[[Any], Iterator[str]]]] = {
    "header": _header, "put": _put, "get": _get, "delete": _delete, "txn": _txn,
    "watch": _events, "lease": _lease, "lease time": _lease_time, "leases": _leases,
    "members": _members, "role": _role, "roles": _roles, "alarms": _alarms,
    "statuses": _statuses, "hashes": _hashes, "healths": _healths,
}  # fmt: skip
