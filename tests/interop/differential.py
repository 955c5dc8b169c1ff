"""The same requests to raftkv and to real etcd, answers compared field by field.

First come those of `cases`, then random ones.

    python -m tests.interop.differential [--seed N] [--operations N] [--json] [--secure]

Ids of cluster and member, the term and what is left of a TTL are not compared; everything else is,
errors by code and text. A difference ends the run with both answers and the seed, unless it is one
of those in `explained`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
from google.protobuf import json_format

from raftkv.api.etcd import gateway
from raftkv.api.etcd.messages import ETCD
from tests.interop.cases import CASES
from tests.interop.generator import Generator, message
from tests.interop.peers import real_etcd
from tests.interop.security import Security, add_options, cluster_of, serving

NOT_COMPARED: Final = frozenset(("cluster_id", "member_id", "raft_term"))
WAIT_SECONDS: Final = 10.0

SERVICES: Final = {
    method.name: (f"/{file.package}.{service.name}/{method.name}", method)
    for file in ETCD.files.file
    for service in file.service
    for method in service.method
}
PATHS: Final = {rpc.rsplit("/", 1)[1]: places[0] for rpc, places in gateway.PATHS.items()}


class Door(Protocol):
    """A way to ask one server."""

    lacks: frozenset[str]
    """RPCs that etcd 3.5.1 does not offer this way."""

    def ask(self, name: str, request: Any) -> Any:
        """The answer as plain values, or ``{"code", "text"}`` of an error."""

    def watch(self, create: Any, markers: Iterable[Any], last: Any) -> Any:
        """What a watcher is told up to the event that `markers` bring about; see `watched`."""


class GrpcDoor:
    """Over gRPC."""

    lacks: frozenset[str] = frozenset()

    def __init__(self, port: int, security: Security) -> None:
        self._channel = security.channel(port, [("grpc.max_receive_message_length", -1)])

    def _method(self, name: str) -> Any:
        path, method = SERVICES[name]
        request = ETCD.message(method.input_type.lstrip("."))
        response = ETCD.message(method.output_type.lstrip("."))
        kind = self._channel.stream_stream if method.client_streaming else self._channel.unary_unary
        return kind(
            path,
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def ask(self, name: str, request: Any) -> Any:
        """See `Door`."""
        method = self._method(name)
        try:
            if name == "LeaseKeepAlive":
                (answer,) = method(iter([request]), timeout=WAIT_SECONDS)
            else:
                answer = method(request, timeout=WAIT_SECONDS)
        except grpc.RpcError as error:
            return {"code": error.code().value[0], "text": error.details()}  # type: ignore[attr-defined]
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    def watch(self, create: Any, markers: Iterable[Any], last: Any) -> Any:
        """See `Door`."""
        import queue

        requests: queue.Queue[Any] = queue.Queue()
        requests.put(message("WatchRequest", create_request=create))
        answers = self._method("Watch")(iter(requests.get, None), timeout=WAIT_SECONDS)
        plain = (
            json_format.MessageToDict(each, preserving_proto_field_name=True) for each in answers
        )
        try:
            return watched(plain, self, markers, last)
        finally:
            requests.put(None)
            answers.cancel()


class JsonDoor:
    """Through the JSON gateway."""

    lacks = frozenset(("Downgrade", "HashKV"))

    def __init__(self, port: int, security: Security) -> None:
        self._port = port
        self._security = security
        self._http = security.http(port)
        self._headers = security.headers(port)

    def ask(self, name: str, request: Any) -> Any:
        """See `Door`."""
        body = json_format.MessageToJson(request, preserving_proto_field_name=True)
        self._http.request("POST", f"/v3/{PATHS[name]}", body, self._headers)
        answer = json.loads(self._http.getresponse().read())
        if name == "LeaseKeepAlive":
            answer = answer.get("result", answer)
        if "message" in answer:
            return {"code": answer["code"], "text": answer["message"]}
        return answer

    def watch(self, create: Any, markers: Iterable[Any], last: Any) -> Any:
        """See `Door`."""
        connection = self._security.http(self._port)
        request = message("WatchRequest", create_request=create)
        body = json_format.MessageToJson(request, preserving_proto_field_name=True)
        connection.request("POST", "/v3/watch", body, self._headers)
        answer = connection.getresponse()
        lines = iter(answer.readline, b"")
        try:
            plain = (json.loads(line)["result"] for line in lines)
            return watched(plain, self, markers, last)
        finally:
            connection.close()


def watched(answers: Any, door: Door, markers: Iterable[Any], last: Any) -> Any:
    """Follow a watcher: (what it was told at first, how it ended, its events).

    Once it exists, each of `markers` is asked for; `last` tells the event that follows from them.
    """
    created = next(answers)
    if created.get("canceled"):
        return [created, None, []]
    for name, request in markers:
        door.ask(name, request)
    events: list[Any] = []
    for answer in answers:
        if answer.get("canceled"):
            answer.get("header", {}).pop("revision", None)
            return [created, answer, events]
        events += answer.get("events", [])
        if events and last(events[-1]):
            return [created, None, events]
    raise AssertionError("the watch ended without a word")


def comparable(answer: Any) -> Any:
    """The answer without what differs between any two servers."""
    if isinstance(answer, dict):
        return {
            name: comparable(value) for name, value in answer.items() if name not in NOT_COMPARED
        }
    return [comparable(each) for each in answer] if isinstance(answer, list) else answer


class Differential:
    """Draws, asks both, compares."""

    def __init__(self, seed: int, ours: Door, theirs: Door) -> None:
        self.generator = Generator(seed)
        self.ours = ours
        self.theirs = theirs
        self.counts: dict[str, int] = {}
        self.refusals = 0

    def step(self) -> None:
        """One random request. Raises AssertionError for an unexplained difference."""
        self.compare(*self.generator.next())

    def compare(self, name: str, request: Any) -> None:
        """Ask both, and hold the answers against each other."""
        self.counts[name] = self.counts.get(name, 0) + 1
        if name == "Watch":
            ours, theirs = self._watch(request)
        else:
            ours, theirs = self.ours.ask(name, request), self.theirs.ask(name, request)
        left, right = comparable(ours), comparable(theirs)
        for side in (left, right):
            settle_ties(name, request, side)
        if name == "LeaseLeases":
            for side in (left, right):
                side.get("leases", []).sort(key=lambda lease: lease["ID"])
        if name == "LeaseTimeToLive":
            for side in (left, right):
                side["keys"] = sorted(side.get("keys", []))
                if int(side.get("TTL", 0)) > 0:
                    side["TTL"] = "some"
        if left != right and not explained(name, request, left, right):
            raise AssertionError(
                f"{name} {request}\nraftkv: {json.dumps(left, indent=1)}\n"
                f"etcd: {json.dumps(right, indent=1)}"
            )
        if isinstance(left, dict):
            self.refusals += "text" in left
            revision = left.get("header", {}).get("revision")
            self.generator.revision = int(revision or self.generator.revision)

    def _watch(self, create: Any) -> tuple[Any, Any]:
        """Both watch; a put and a deletion at the end of the range tell when all has come."""
        key = create.key if not create.range_end else create.key + b"\xff\xfe"
        markers = [
            ("Put", message("PutRequest", key=key, value=b"marker")),
            ("DeleteRange", message("DeleteRangeRequest", key=key)),
        ]
        wanted = "PUT" if 1 in create.filters else "DELETE"
        now = self.generator.revision

        def last(event: Any) -> bool:
            kind = event.get("type", "PUT")
            return kind == wanted and int(event["kv"]["mod_revision"]) > now + (wanted != "PUT")

        pair = []
        for door in (self.ours, self.theirs):
            now = self._revision(door)
            pair.append(door.watch(create, markers, last))
        return pair[0], pair[1]

    @staticmethod
    def _revision(door: Door) -> int:
        answer = door.ask("Range", message("RangeRequest", key=b"a"))
        return int(answer["header"]["revision"])


SORTED_BY: Final = ("key", "version", "create_revision", "mod_revision", "value")


def settle_ties(name: str, request: Any, answer: Any) -> None:
    """Order equals by key: etcd's sort leaves them in any order, and a limit cuts among them."""
    if name == "Range" and request.sort_target and "kvs" in answer:
        by = SORTED_BY[request.sort_target]
        if answer.get("more"):
            answer["kvs"] = [kv.get(by, "") for kv in answer["kvs"]]
        elif not (request.keys_only and by == "value"):
            places = {value: place for place, value in enumerate(
                dict.fromkeys(kv.get(by, "") for kv in answer["kvs"]))}  # fmt: skip
            answer["kvs"].sort(key=lambda kv: (places[kv.get(by, "")], kv["key"]))
        else:
            answer["kvs"].sort(key=lambda kv: kv["key"])
    elif name == "Txn" and "responses" in answer:
        branch = request.success if answer.get("succeeded") else request.failure
        for operation, response in zip(branch, answer["responses"], strict=True):
            if "response_range" in response:
                settle_ties("Range", operation.request_range, response["response_range"])
            elif "response_txn" in response:
                settle_ties("Txn", operation.request_txn, response["response_txn"])


def explained(name: str, request: Any, ours: Any, theirs: Any) -> bool:
    """Differences that are meant."""
    if name == "Watch":
        # etcd 3.5.1 loses deletions at the very revision of the compaction (etcd#19179).
        first = str(request.start_revision)
        kept = [
            event
            for event in ours[2]
            if not (event.get("type") == "DELETE" and event["kv"]["mod_revision"] == first)
        ]
        return bool([*ours[:2], kept] == theirs)
    if name == "AuthStatus":
        # Switching access control on makes a new auth revision here: tokens of before end with it.
        revision = str(int(ours["authRevision"]) - 1)
        return bool(ours["enabled"] and ours | {"authRevision": revision} == theirs)
    return False


async def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=5_000)
    parser.add_argument("--json", action="store_true", help="through the JSON gateways")
    add_options(parser)
    options = parser.parse_args()
    kind: Any = JsonDoor if options.json else GrpcDoor
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster = cluster_of(options, folder)
        async with serving(cluster) as security:
            # Of several the one that leads: some calls only a leader answers.
            our_port = int((await cluster.leader()).client_url.rsplit(":", 1)[1])
            with real_etcd(folder, certificates=security.pki) as their_port:
                security.enable(security.url(their_port))
                doors = [kind(port, security) for port in (our_port, their_port)]
                await asyncio.to_thread(run, options.seed, options.operations, *doors)


def run(seed: int, operations: int, ours: Door, theirs: Door) -> None:
    """Carry out `operations` requests and print what they were."""
    differential = Differential(seed, ours, theirs)
    began = time.monotonic()
    for name, request in CASES:
        if name not in theirs.lacks:
            differential.compare(name, request)
    for number in range(operations):
        try:
            differential.step()
        except Exception as error:
            print(f"seed {seed}, operation {number}: {error}", file=sys.stderr)
            sys.exit(1)
    seconds = time.monotonic() - began
    drawn = ", ".join(f"{count} {name}" for name, count in sorted(differential.counts.items()))
    print(
        f"seed {seed}: {operations} operations alike ({drawn}; {differential.refusals} refused) "
        f"in {seconds:.0f} s"
    )


if __name__ == "__main__":
    asyncio.run(main())
