"""A small store that speaks the HTTP API, with several endpoints over one state and faults on call.

It keeps keys, leases, instances and their history in memory, remembers idempotency keys, and does
to requests and streams what networks and members do: refuse, reset before or after the work, hang,
cut a stream in the middle of an event. It exists so that the client's behaviour under faults can
be checked exactly; what the real door answers is checked against the real door.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Fault:
    """What happens to the next request that it fits."""

    kind: str
    """reset_before, reset_after, hang, hang_after, problem, raw, cut."""
    method: str | None = None
    path: str | None = None
    endpoint: int | None = None
    status: int = 503
    code: str = "no_leader"
    outcome: str = "refused"
    times: int = 1
    after_events: int = 0
    """Of cut: so many whole events are sent before."""
    headers: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def fits(self, endpoint: int, request: web.Request) -> bool:
        return (
            self.times > 0
            and self.method in (None, request.method)
            and (self.path is None or request.path.startswith(self.path))
            and self.endpoint in (None, endpoint)
        )


@dataclass
class Seen:
    """One request as it arrived."""

    endpoint: int
    method: str
    raw_path: str
    headers: dict[str, str]
    body: bytes


def problem(status: int, code: str, outcome: str = "refused", **facts: Any) -> web.Response:
    body = {"type": f"urn:raftkv:problem:{code}", "title": code, "status": status, "code": code}
    body |= {"detail": f"the store says {code}", "outcome": outcome, **facts}
    return web.Response(
        status=status, body=json.dumps(body).encode(), content_type="application/problem+json"
    )


def text_or_base64(name: str, encoding: str, data: bytes, always: bool) -> dict[str, str]:
    try:
        return {name: data.decode(), **({encoding: "utf-8"} if always else {})}
    except UnicodeDecodeError:
        return {name: base64.b64encode(data).decode(), encoding: "base64"}


class FakeStore:
    """State plus endpoints. `urls` are valid between `start` and `stop`."""

    def __init__(self, endpoints: int = 1) -> None:
        self.revision = 1
        self.compacted = 0
        self.keys: dict[bytes, dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []
        self.leases: dict[str, int] = {}
        self.renewed: dict[str, int] = {}
        self.instances: dict[tuple[str, str], dict[str, Any]] = {}
        self.service_history: list[dict[str, Any]] = []
        self.members = [self._member(number) for number in range(1, endpoints + 1)]
        self.once: dict[str, web.Response] = {}
        self.applied = 0
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.urls: list[str] = []
        self.image = b"image" * 100_000
        self._changed = asyncio.Event()
        self._runners: list[web.AppRunner] = []
        self._count = endpoints

    def _member(self, number: int) -> dict[str, Any]:
        return {
            "member_id": f"{number:016x}",
            "name": f"m{number}",
            "peer_urls": [f"http://127.0.0.1:{number}"],
            "client_urls": [],
            "role": "voter",
            "leader": number == 1,
        }

    async def start(self) -> None:
        for endpoint in range(self._count):
            app = web.Application(client_max_size=2**24)
            app.router.add_route("*", "/{tail:.*}", self._handler(endpoint))
            runner = web.AppRunner(app, shutdown_timeout=0.05)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._runners.append(runner)
            port = runner.addresses[0][1]
            self.urls.append(f"http://127.0.0.1:{port}")
            self.members[endpoint]["client_urls"] = [self.urls[-1]]

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def kill(self, endpoint: int) -> None:
        """From now on connections to this endpoint are refused."""
        await self._runners[endpoint].cleanup()

    def fault(self, kind: str, **more: Any) -> None:
        self.faults.append(Fault(kind, **more))

    def calls(self, method: str | None = None, path: str = "") -> list[Seen]:
        return [
            seen
            for seen in self.seen
            if method in (None, seen.method) and seen.raw_path.startswith(path)
        ]

    def _handler(self, endpoint: int) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            seen = Seen(endpoint, request.method, request.raw_path, dict(request.headers), body)
            self.seen.append(seen)
            fault = next((f for f in self.faults if f.fits(endpoint, request)), None)
            if fault is not None:
                fault.times -= 1
            if fault is not None and fault.kind != "cut":
                return await self._suffer(fault, request, body)
            if request.path.startswith("/api/watch"):
                return await self._stream(request, fault)
            return self._once(request, body)

        return handle

    async def _suffer(self, fault: Fault, request: web.Request, body: bytes) -> web.StreamResponse:
        if fault.kind in ("reset_after", "hang_after"):
            self._once(request, body)
        if fault.kind.startswith("hang"):
            await asyncio.sleep(3600)
        if fault.kind.startswith("reset"):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault.kind == "raw":
            return web.Response(status=fault.status, text="proxy", headers=fault.headers)
        answer = problem(fault.status, fault.code, fault.outcome, **fault.facts)
        answer.headers.update(fault.headers)
        return answer

    def _once(self, request: web.Request, body: bytes) -> web.Response:
        key = request.headers.get("Idempotency-Key")
        if key and key in self.once:
            first = self.once[key]
            return web.Response(
                status=first.status, body=first.body, content_type=first.content_type
            )
        answer = self._do(request, body)
        if request.method != "GET":
            self.applied += 1
            if key:
                self.once[key] = answer
        return answer

    def _do(self, request: web.Request, body: bytes) -> web.Response:
        raw = request.raw_path.partition("?")[0]
        query = dict(request.query)
        parts = raw.strip("/").split("/")
        if raw.startswith("/api/kv/"):
            return self._key(request, unquote(raw.removeprefix("/api/kv/")), query, body)
        if raw == "/api/kv":
            return self._range(request, query)
        if raw == "/api/txn":
            return self._txn(json.loads(body))
        if raw.startswith("/api/leases"):
            return self._lease(request.method, parts[2:], body)
        if raw.startswith("/api/services"):
            return self._service(request.method, [unquote(p).decode() for p in parts[2:]], body)
        return self._cluster(request.method, raw, body)

    # Keys

    def _put(self, key: bytes, value: bytes, lease: str | None) -> dict[str, Any]:
        before = self.keys.get(key)
        self.keys[key] = record = {
            **text_or_base64("key", "key_encoding", key, False),
            **text_or_base64("value", "encoding", value, True),
            "create_revision": before["create_revision"] if before else self.revision,
            "mod_revision": self.revision,
            "version": before["version"] + 1 if before else 1,
            "lease": lease,
        }
        self._note({"type": "put", "revision": self.revision, **record, "previous": before}, key)
        return record

    def _drop(self, key: bytes) -> dict[str, Any]:
        before = self.keys.pop(key)
        named = text_or_base64("key", "key_encoding", key, False)
        self._note({"type": "delete", "revision": self.revision, **named, "previous": before}, key)
        return before

    def _note(self, event: dict[str, Any], key: bytes) -> None:
        self.history.append({"key_bytes": key, "event": event})
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _key(
        self, request: web.Request, key: bytes, query: dict[str, str], body: bytes
    ) -> web.Response:
        current = self.keys.get(key)
        if request.method == "GET":
            if current is None:
                return problem(404, "key_not_found")
            return web.json_response({**current, "revision": self.revision})
        match, none = request.headers.get("If-Match"), request.headers.get("If-None-Match")
        if match == "*":
            holds = current is not None
        elif match is not None:
            holds = current is not None and f'"{current["mod_revision"]}"' == match
        else:
            holds = none is None or current is None
        if not holds:
            return problem(412, "precondition_failed", current=current)
        if request.method == "DELETE":
            if current is not None:
                self.revision += 1
                self._drop(key)
            previous = [current] if current is not None and "prev" in query else None
            return web.json_response(
                {"revision": self.revision, "deleted": int(bool(current)), "previous": previous}
            )
        self.revision += 1
        record = self._put(key, body, query.get("lease"))
        previous = {"previous": current} if "prev" in query else {}
        return web.json_response({**record, "revision": self.revision, **previous})

    def _selected(self, query: dict[str, Any]) -> list[bytes]:
        def key(name: str) -> bytes | None:
            if name not in query:
                return None
            text = query[name]
            return base64.b64decode(text) if query.get("key_encoding") else text.encode()

        prefix, start, end = key("prefix"), key("start") or b"", key("end")
        return [
            item
            for item in sorted(self.keys)
            if (prefix is None or item.startswith(prefix))
            and item >= start
            and (end is None or item < end)
        ]

    def _range(self, request: web.Request, query: dict[str, str]) -> web.Response:
        keys = self._selected(query)
        if request.method == "DELETE":
            if keys:
                self.revision += 1
            gone = [self._drop(key) for key in keys]
            previous = gone if "prev" in query else None
            body = {"revision": self.revision, "deleted": len(keys), "previous": previous}
            return web.json_response(body)
        if "count_only" in query:
            body = {"revision": self.revision, "items": [], "count": len(keys), "more": False}
            return web.json_response(body)
        if "reverse" in query:
            keys.reverse()
        begin, limit = int(query.get("cursor", 0)), int(query.get("limit", 1000))
        page = keys[begin : begin + limit]
        more = begin + limit < len(keys)
        items = [dict(self.keys[key]) for key in page]
        if "keys_only" in query:
            for item in items:
                del item["value"], item["encoding"]
        return web.json_response(
            {
                "revision": int(query.get("revision", self.revision)),
                "items": items,
                "count": len(items),
                "more": more,
                "cursor": str(begin + limit) if more else None,
            }
        )

    def _txn(self, body: dict[str, Any]) -> web.Response:
        self.revision += 1
        return web.json_response({"revision": self.revision, **self._branch(body)})

    def _branch(self, body: dict[str, Any]) -> dict[str, Any]:
        succeeded = all(self._holds(item) for item in body.get("if", ()))
        results = [self._operation(op) for op in body.get("then" if succeeded else "else", ())]
        return {"succeeded": succeeded, "results": results}

    def _holds(self, item: dict[str, Any]) -> bool:
        record = self.keys.get(binary(item, "key"))
        left: Any = 0
        if item["target"] == "value":
            left, right = (record or {}).get("value", ""), item["operand"]
        else:
            left, right = (record or {}).get(item["target"], 0), item["operand"]
        return bool(
            {"=": left == right, "!=": left != right, "<": left < right, ">": left > right}[
                item["op"]
            ]
        )

    def _operation(self, op: dict[str, Any]) -> dict[str, Any]:
        match op["op"]:
            case "put":
                key = binary(op, "key")
                before = self.keys.get(key)
                value = binary(op, "value", "encoding")
                self._put(key, value, op.get("lease"))
                return {"op": "put", **({"previous": before} if op.get("prev") else {})}
            case "delete":
                keys = [binary(op, "key")] if "key" in op else self._selected(op)
                gone = [self._drop(key) for key in keys if key in self.keys]
                return {"op": "delete", "deleted": len(gone), "previous": gone}
            case "get":
                return {"op": "get", "item": self.keys.get(binary(op, "key"))}
            case "range":
                items = [self.keys[key] for key in self._selected(op)]
                return {"op": "range", "items": items, "count": len(items), "more": False}
        return {"op": "txn", **self._branch(op)}

    # Leases, services, cluster

    def _lease(self, method: str, parts: list[str], body: bytes) -> web.Response:
        if not parts:
            if method == "GET":
                leases = [{"lease": name, "ttl": ttl} for name, ttl in self.leases.items()]
                return web.json_response({"leases": leases, "revision": self.revision})
            asked = json.loads(body)
            lease = asked["id"]
            if lease in self.leases:
                return problem(409, "lease_exists", lease=lease)
            self.leases[lease] = asked["ttl"]
            answer = {"lease": lease, "ttl": asked["ttl"], "revision": self.revision}
            return web.json_response(answer, status=201)
        lease = parts[0]
        if lease not in self.leases:
            return problem(404, "lease_not_found", lease=lease)
        ttl = self.leases[lease]
        keys = [key for key, record in self.keys.items() if record["lease"] == lease]
        if method == "GET":
            shown = {"lease": lease, "ttl": ttl, "remaining": ttl - 0.5}
            return web.json_response({**shown, "keys": [key.decode() for key in keys]})
        if method == "POST":
            self.renewed[lease] = self.renewed.get(lease, 0) + 1
            return web.json_response({"lease": lease, "ttl": ttl})
        self.end_lease(lease)
        return web.json_response({"lease": lease, "revision": self.revision, "deleted": len(keys)})

    def end_lease(self, lease: str) -> None:
        """Revoke or expire a lease."""
        del self.leases[lease]
        keys = [key for key, record in self.keys.items() if record["lease"] == lease]
        if keys:
            self.revision += 1
        for key in keys:
            self._drop(key)

    def _service(self, method: str, parts: list[str], body: bytes) -> web.Response:
        if not parts:
            names = sorted({service for service, _ in self.instances})
            items = [
                {
                    "service": name,
                    "instances": len(self._of(name)),
                    "passing": sum(i["status"] == "passing" for i in self._of(name)),
                }
                for name in names
            ]
            return web.json_response({"services": items, "revision": self.revision})
        if len(parts) == 1:
            found = {"service": parts[0], "instances": self._of(parts[0])}
            return web.json_response({**found, "revision": self.revision})
        place = (parts[0], parts[1])
        current = self.instances.get(place)
        if method == "PUT":
            return self._register(place, current, json.loads(body))
        if current is None:
            return problem(404, "instance_not_found")
        if method == "GET":
            return web.json_response(current)
        if method == "DELETE":
            self.end_instance(place, "deregistered")
            return web.json_response({"revision": self.revision, "deleted": 1})
        if parts[2] == "heartbeat":
            self.renewed[parts[1]] = self.renewed.get(parts[1], 0) + 1
            return web.json_response({"lease": current["lease"], "ttl": current["ttl"]})
        draining = json.loads(body)["draining"]
        self._change(place, {**current, "status": "draining" if draining else "passing"})
        return web.json_response({"revision": self.revision})

    def _register(
        self, place: tuple[str, str], current: dict[str, Any] | None, asked: dict[str, Any]
    ) -> web.Response:
        same = current is None or (current["address"], current["port"]) == (
            asked["address"],
            asked["port"],
        )
        if not same and not asked.pop("takeover"):
            return problem(409, "instance_claimed", holder=current)
        asked.pop("takeover", None)
        new = {"service": place[0], "instance": place[1], **asked, "status": "passing"}
        new |= {"lease": "00000000000000aa", "create_revision": self.revision + 1}
        self._change(place, new)
        created = current is None
        answer = {"lease": new["lease"], "ttl": new["ttl"], "expires_at": "2030-01-01T00:00:00Z"}
        return web.json_response(
            {**answer, "revision": self.revision, "changed": True, "created": created}
        )

    def _of(self, service: str) -> list[dict[str, Any]]:
        return [item for (name, _), item in sorted(self.instances.items()) if name == service]

    def _change(self, place: tuple[str, str], new: dict[str, Any]) -> None:
        kind = "changed" if place in self.instances else "registered"
        self.revision += 1
        self.instances[place] = new = {**new, "mod_revision": self.revision}
        self.service_history.append({"type": kind, "revision": self.revision, **new})
        self._wake()

    def end_instance(self, place: tuple[str, str], reason: str) -> None:
        """Deregister or expire an instance."""
        gone = self.instances.pop(place)
        self.revision += 1
        event = {**gone, "type": "deregistered", "revision": self.revision, "reason": reason}
        self.service_history.append(event)
        self._wake()

    def _cluster(self, method: str, path: str, body: bytes) -> web.Response:
        if path == "/api/status":
            status = {"name": "m1", "member_id": "1" * 16, "cluster_id": "c" * 16, "term": 2}
            status |= {"role": "leader", "revision": self.revision, "healthy": True, "alarms": []}
            status |= {"state_hash": "ab" * 16, "hash_index": 5, "db_bytes": 4096}
            return web.json_response(status)
        if path == "/health":
            return web.json_response({"health": "true", "reason": ""})
        if path == "/api/members":
            if method == "POST":
                asked = json.loads(body)
                new = self._member(len(self.members) + 1)
                new |= {"peer_urls": asked["peer_urls"], "name": asked.get("name", "")}
                new |= {"role": "learner" if asked["learner"] else "voter"}
                self.members.append(new)
                answer = {"member_id": new["member_id"], "members": self.members}
                return web.json_response(answer, status=201)
            return web.json_response({"members": self.members, "revision": self.revision})
        if path.startswith("/api/members/"):
            wanted = path.split("/")[3]
            found = next((m for m in self.members if m["member_id"] == wanted), None)
            if found is None:
                return problem(404, "member_not_found", member_id=wanted)
            if method == "DELETE":
                self.members.remove(found)
            else:
                found["role"] = "voter"
            return web.json_response({"members": self.members})
        if path == "/api/leader/transfer":
            return web.json_response({"leader": json.loads(body).get("to") or "2" * 16})
        if path == "/api/compact":
            asked = json.loads(body)
            self.compacted = asked.get("revision") or self.revision - asked["keep"]
            answer = {"compact_revision": self.compacted, "revision": self.revision}
            return web.json_response(answer)
        if path == "/api/snapshot":
            return web.Response(body=self.image, headers={"Raftkv-Snapshot-Index": "17"})
        return problem(404, "route_not_found")

    # Streams

    async def _stream(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        services = request.path.startswith("/api/watch/services")
        last = request.headers.get("Last-Event-ID")
        start = int(last) + 1 if last else int(request.query.get("from", 0))
        if start and start <= self.compacted:
            return problem(410, "compacted", oldest_revision=self.compacted + 1)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        sent = 0

        async def send(body: dict[str, Any], *, last_of_revision: bool = True) -> bool:
            nonlocal sent
            lines = f"id: {body['revision']}\n" if last_of_revision else ""
            text = f"{lines}event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode()
            if fault is not None and sent == fault.after_events:
                await response.write(text[: len(text) // 2])
                await asyncio.sleep(0)
                assert request.transport is not None
                request.transport.abort()
                return False
            sent += 1
            await response.write(text)
            return True

        if services and not start:
            for item in list(self.instances.values()):
                if not await send(
                    {**item, "type": "instance", "revision": self.revision}, last_of_revision=False
                ):
                    return response
        position = (start or self.revision + 1) - 1
        if not await send({"type": "ready", "revision": self.revision}, last_of_revision=False):
            return response
        key = request.query.get("key")
        while True:
            changed = self._changed
            source: list[dict[str, Any]] = (
                self.service_history
                if services
                else [
                    item["event"]
                    for item in self.history
                    if key is None or item["key_bytes"] == key.encode()
                ]
            )
            fresh = [event for event in source if event["revision"] > position]
            for place, event in enumerate(fresh):
                final = place + 1 == len(fresh) or fresh[place + 1]["revision"] != event["revision"]
                if not await send(event, last_of_revision=final):
                    return response
                position = event["revision"]
            if position < self.revision:
                position = self.revision
                if not await send({"type": "progress", "revision": position}):
                    return response
            await changed.wait()


def binary(body: dict[str, Any], name: str, encoding: str = "key_encoding") -> bytes:
    text: str = body[name]
    return base64.b64decode(text) if body.get(encoding) == "base64" else text.encode()


def unquote(text: str) -> bytes:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(text)
