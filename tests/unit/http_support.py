"""A real HTTP door on a real socket, and a client that holds every answer against the OpenAPI."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator
from yarl import URL

from raftkv.api.gate import Gate
from raftkv.api.http.connection import HttpConnection
from raftkv.api.http.door import HttpDoor
from raftkv.api.http.openapi import build_openapi
from raftkv.api.listener import Listener
from raftkv.errors import RaftkvError
from raftkv.server.local import LocalStore


class Answer:
    """One answer, read to its end."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A store behind a door. `errors` holds what handlers raised and should not have."""

    def __init__(self, store: LocalStore, door: HttpDoor, listener: Listener) -> None:
        self.store = store
        self.door = door
        self.listener = listener
        self.port = listener.port
        self.errors: list[Any] = []
        self.raws: list[Raw] = []
        self.spec = build_openapi(door.router.routes)
        self.session: aiohttp.ClientSession

    async def call(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One call; a dict or list is sent as JSON. The answer is checked against the OpenAPI."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = dict(headers or {})
        if data is not None and not isinstance(body, bytes):
            headers.setdefault("Content-Type", "application/json")
        url = URL(f"http://127.0.0.1:{self.port}{target}", encoded=True)
        async with self.session.request(
            method,
            url,
            data=None if data is None else io.BytesIO(data),
            headers=headers,
            skip_auto_headers=("Content-Type",),
        ) as got:
            answer = Answer(got.status, got.headers, await got.read())
        self.conforms(method, target, answer)
        return answer

    def conforms(self, method: str, target: str, answer: Answer) -> None:
        """The answer is one that the OpenAPI tells of."""
        assert len(answer.headers["Raftkv-Member"]) == 16
        assert int(answer.headers["Raftkv-Revision"]) >= 1
        assert int(answer.headers["Raftkv-Term"]) >= 1
        try:
            route, _ = self.door.router.find(method.encode(), target.partition("?")[0].encode())
        except RaftkvError:
            self.valid("Problem", answer.json)
            assert answer.json["status"] == answer.status
            return
        responses = self.spec["paths"][route.template][route.method.lower()]["responses"]
        assert str(answer.status) in responses, (method, target, answer.status, answer.body)
        told = responses[str(answer.status)]
        if "$ref" in told:
            told = self.spec["components"]["responses"][told["$ref"].rsplit("/", 1)[1]]
        if "content" not in told:
            assert answer.body == b""
            return
        media = answer.headers["Content-Type"].split(";")[0]
        assert media in told["content"], (method, target, media)
        if method == "HEAD":
            assert answer.body == b""
        elif media == "application/x-ndjson":
            for line in answer.body.splitlines():
                self.check(told["content"][media]["schema"], json.loads(line))
        elif media.endswith("json"):
            self.check(told["content"][media]["schema"], answer.json)

    def valid(self, schema: str, value: Any) -> None:
        """`value` is as the named schema says."""
        self.check({"$ref": f"#/components/schemas/{schema}"}, value)

    def check(self, schema: dict[str, Any], value: Any) -> None:
        """`value` is as the schema says."""
        Draft202012Validator({**schema, "components": self.spec["components"]}).validate(value)

    async def raw(self) -> Raw:
        """A connection for bytes of the test's own making."""
        raw = Raw(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**22))
        self.raws.append(raw)
        return raw

    @asynccontextmanager
    async def stream(
        self, target: str, headers: dict[str, str] | None = None, schema: str = "Event"
    ) -> AsyncIterator[Stream]:
        """An answer that goes on: NDJSON lines or server-sent events."""
        url = URL(f"http://127.0.0.1:{self.port}{target}", encoded=True)
        async with self.session.get(url, headers=headers or {}) as got:
            assert got.status == 200, await got.text()
            yield Stream(self, got, schema)


class Raw:
    """Bytes out, bytes in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next answer with a Content-Length or in chunks."""
        async with asyncio.timeout(10):
            status_line = await self.reader.readline()
            assert status_line.startswith(b"HTTP/1.1 "), status_line
            headers = {}
            while (line := await self.reader.readline()) != b"\r\n":
                name, _, value = line.decode().partition(":")
                headers[name.strip().lower()] = value.strip()
            status = int(status_line.split()[1])
            body = b""
            if head_only or status in (100, 204, 304):
                return status, headers, body
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readline(), 16):
                    body += await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            else:
                body = await self.reader.readexactly(int(headers["content-length"]))
            return status, headers, body

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        async with asyncio.timeout(10):
            return await self.reader.read(-1)

    async def close(self) -> None:
        """Go away, whatever is still to be sent."""
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Stream:
    """Messages of a watch, each checked against its schema."""

    def __init__(self, served: Served, got: aiohttp.ClientResponse, schema: str) -> None:
        self._served = served
        self.response = got
        self._schema = schema
        self._events = got.content_type == "text/event-stream"
        self.last_id = ""

    async def next(self) -> Any:
        """The next message; None at the end."""
        async with asyncio.timeout(10):
            fields: dict[str, str] = {}
            while True:
                line = (await self.response.content.readline()).decode()
                if not line:
                    return None
                if not self._events:
                    return self._checked(json.loads(line))
                if line == "\n":
                    break
                name, _, value = line.rstrip("\n").partition(": ")
                fields[name] = value
        self.last_id = fields.get("id", "")
        message = self._checked(json.loads(fields["data"]))
        assert fields["event"] == message["type"]
        return message

    def _checked(self, message: Any) -> Any:
        self._served.valid(self._schema, message)
        return message


@asynccontextmanager
async def serving(
    store: Any = None, *, expect_errors: bool = False, gate: Callable[[Any], Gate] = Gate
) -> AsyncIterator[Served]:
    """A door on a free port; at the end nothing is left behind, and no handler has failed."""
    store = store or LocalStore()
    door = HttpDoor(store, gate=gate(store))
    listener = Listener(
        lambda listener: HttpConnection(door, listener), on_sweep=door.tick, on_drain=door.drain
    )
    door.listener = listener
    await listener.open("127.0.0.1", 0)
    served = Served(store, door, listener)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: served.errors.append(context))
    try:
        async with aiohttp.ClientSession() as session:
            served.session = session
            yield served
    finally:
        for raw in served.raws:
            await raw.close()
        await listener.close(0.5)
        door.gate.close()
        store.close()
        loop.set_exception_handler(None)
    assert not door.tasks
    assert expect_errors or not served.errors, served.errors


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
