"""The audit log: every call of every door leaves its line, and no line tells a secret."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest

from raftkv.api.audit import AuditLog
from raftkv.api.etcd.gateway import PATHS
from raftkv.api.gate import PUBLIC, Gate
from raftkv.api.http.door import all_routes, start_http
from raftkv.api.observe import open_observer
from raftkv.errors import ConfigError
from raftkv.limits import AUDIT_KEY_BYTES_MAX, AUDIT_RANGES_MAX
from raftkv.machine import commands as c
from raftkv.server.config import ServerConfig
from raftkv.server.local import LocalStore
from tests.unit.audit_support import followed, lines_of
from tests.unit.auth_support import PASSWORDS, Guarded, Ruled, guarded, quick_passwords
from tests.unit.etcd_support import METHODS, EtcdClient
from tests.unit.http_support import Served, serving, until
from tests.unit.test_api_auth_guards import REQUESTS, prepared
from tests.unit.test_etcd_auth import REQUESTS as RPC_REQUESTS

SECRETS = (*PASSWORDS.values(), "the secret value", "hidden-host")
NEEDED = {"time", "request", "member", "term", "user", "source", "operation", "ranges",
          "outcome", "revision", "took_ms"}  # fmt: skip


def by_operation(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        assert set(line) >= NEEDED, line
        assert line["outcome"] in ("done", "begun", "refused", "unknown", "failed", "abandoned")
        found.setdefault(line["operation"], []).append(line)
    return found


def check_no_secret(path: Path, tokens: dict[str, str]) -> None:
    text = path.read_text()
    for secret in (*SECRETS, *tokens.values()):
        assert secret not in text


@asynccontextmanager
async def audited(path: Path) -> AsyncIterator[Guarded]:
    store = Ruled()
    async with guarded(store, observer=followed(store, path)) as world:
        yield world


# ---- every call ----------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["root", "stranger", None])
async def test_every_route_leaves_its_line(tmp_path: Path, user: str | None) -> None:
    path = tmp_path / "audit.log"
    async with audited(path) as world:
        await prepared(world)
        assert set(REQUESTS) == {route.operation for route in all_routes()}
        tokens = dict(world.tokens)
        expected: dict[str, int] = {}
        for operation, (method, target, body) in REQUESTS.items():
            if operation in ("disableAuth", "logOut"):
                continue
            url = f"http://127.0.0.1:{world.served.port}{target}"
            headers = {} if user is None else world.header(user)
            json_body = body if isinstance(body, dict) else None
            data = body if isinstance(body, bytes) else None
            async with world.served.session.request(
                method, url, json=json_body, data=data, headers=headers
            ) as answer:
                expected[operation] = answer.status
        for operation in ("disableAuth", "logOut"):
            method, target, body = REQUESTS[operation]
            headers = {} if user is None else world.header(user)
            answer_ = await world.served.call(method, target, body, headers)
            expected[operation] = answer_.status
    found = by_operation(lines_of(path))
    assert set(found) >= set(REQUESTS)
    for operation, status in expected.items():
        line = found[operation][-1]
        assert line["source"] == "127.0.0.1"
        if status in (401, 403):
            assert line["outcome"] == "refused"
            assert line["code"] in ("invalid_auth_token", "permission_denied"), line
        else:
            assert (line["outcome"] in ("done", "begun")) is (status < 400), (operation, line)
        # Root logs out last, when access control is off and nobody is anybody.
        if operation not in (*PUBLIC, "logOut") and status not in (401, 403):
            assert line["user"] == user, line
    check_no_secret(path, tokens)


@pytest.mark.parametrize("user", ["root", "stranger", None])
async def test_every_rpc_leaves_its_line_over_grpc(tmp_path: Path, user: str | None) -> None:
    path = tmp_path / "audit.log"
    async with etcd_audited(path) as (client, tokens):
        metadata = None if user is None else (("token", tokens[user]),)
        paths = [*(path for path, _ in METHODS.values() if not path.endswith("AuthDisable")),
                 METHODS["AuthDisable"][0]]  # fmt: skip
        for rpc in paths:
            await call(client, rpc.rpartition("/")[2], metadata)
        for standard in ("Health/Check", "Health/List", "Health/Watch"):
            await plain_call(client, f"/grpc.health.v1.{standard}")
        reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        await plain_call(client, reflection)
    found = by_operation(lines_of(path))
    for rpc in (*paths, reflection, *(f"/grpc.health.v1.Health/{n}" for n in ("Check", "Watch"))):
        assert rpc in found, rpc
        assert found[rpc][-1]["source"] == "127.0.0.1"
        if user != "root" and rpc.startswith("/etcdserverpb.KV"):
            assert found[rpc][-1]["outcome"] == "refused", rpc
    if user == "root":
        [put] = [line for line in found["/etcdserverpb.KV/Put"] if line["user"] == "root"]
        assert put["ranges"] == [{"access": "write", "key": "secret"}]
        assert put["outcome"] == "done" and put["revision"] > 1
        [watch] = found["/etcdserverpb.Watch/Watch"]
        assert watch["ranges"] == [{"access": "read", "key": "secret"}]
        assert watch["outcome"] == "begun"
    check_no_secret(path, tokens)


async def test_every_rpc_leaves_its_line_over_the_gateway(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with etcd_audited(path) as (client, tokens):
        root = f"http://127.0.0.1:{client.listener.port}/v3/"
        headers = {"Authorization": tokens["stranger"]}
        async with aiohttp.ClientSession() as session:
            for places in PATHS.values():
                for place in places:
                    body: dict[str, Any] = {"create_request": {"key": "YQ=="}}
                    body = body if place == "watch" else {}
                    async with session.post(root + place, json=body, headers=headers) as answer:
                        await answer.content.readline()
            async with session.post(root + "kv/put", data=b"{", headers=headers) as answer:
                assert answer.status == 400
    found = by_operation(lines_of(path))
    unary = {rpc for rpc in PATHS if not METHODS[rpc.rpartition("/")[2]][1].client_streaming}
    assert set(found) >= unary
    assert found["etcd /v3/kv/put"][-1]["outcome"] == "refused"
    assert found["/etcdserverpb.Auth/UserList"][-1]["code"] == "permission_denied"
    check_no_secret(path, tokens)


@asynccontextmanager
async def etcd_audited(path: Path) -> AsyncIterator[tuple[EtcdClient, dict[str, str]]]:
    store = Ruled()
    gate = Gate(
        store, passwords=quick_passwords(), clock_ms=store.wall_ms, observer=followed(store, path)
    )
    listener = await start_http(store, "127.0.0.1", 0, gate=gate)
    tokens = {}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        client = EtcdClient(channel, store, listener)
        for user in ("root", "stranger"):
            await client.UserAdd(name=user, password=PASSWORDS[user])
        await client.RoleAdd(name="root")
        await client.UserGrantRole(user="root", role="root")
        await client.AuthEnable()
        for user in ("root", "stranger"):
            tokens[user] = (await client.Authenticate(name=user, password=PASSWORDS[user])).token
        try:
            yield client, tokens
        finally:
            await listener.close(1.0)
            gate.close()
            store.close()


async def call(client: EtcdClient, name: str, metadata: Any) -> None:
    """One call, whatever its answer; of a stream, its first message."""
    callable_, request = client.method(name)
    message = request(**RPC_REQUESTS.get(name, {}))
    method = METHODS[name][1]
    try:
        if method.client_streaming:
            stream = callable_(metadata=metadata, timeout=10)
            await stream.write(message)
            await stream.read()
            stream.cancel()
        elif method.server_streaming:
            stream = callable_(message, metadata=metadata, timeout=10)
            first = asyncio.ensure_future(stream.read())
            await asyncio.wait([first], timeout=0.2)  # Observe may have nothing to tell
            stream.cancel()
            await asyncio.gather(first, return_exceptions=True)
        else:
            # These may wait for whoever holds the same name: cut off, it leaves a line, too.
            seconds = 0.5 if name in ("Lock", "Campaign") else 10
            await callable_(message, metadata=metadata, timeout=seconds)
    except grpc.aio.AioRpcError:
        pass


async def plain_call(client: EtcdClient, path: str) -> None:
    if path.endswith(("Watch", "Info")):
        stream = client.channel.stream_stream(path)(timeout=10)
        await stream.write(b"")
        await stream.done_writing()
        await stream.read()
        stream.cancel()
    else:
        await client.channel.unary_unary(path)(b"", timeout=10)


# ---- what a line says ----------------------------------------------------------------------------


async def test_a_line_tells_ranges_subjects_revision_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with audited(path) as world:
        await world.ok("alice", "PUT", "/api/kv/app/x", b"hush-value")
        revision = world.machine.revision
        await world.ok("alice", "GET", "/api/kv?prefix=app/")
        txn = {
            "if": [{"key": "app/x", "target": "version", "op": ">", "operand": 0}],
            "then": [{"op": "put", "key": "app/y", "value": "hush-value"}],
            "else": [{"op": "delete", "key": "app/z"}],
        }
        await world.by("alice", "POST", "/api/txn", txn)
        await world.by("alice", "GET", "/api/kv/secret")
        await world.by("alice", "GET", "/api/kv/app/none")
        await world.ok("root", "PUT", "/api/auth/users/stranger/roles/app")
        await world.log_in("alice", "a wrong guess")
        await world.log_in("nobody-at-all", "a wrong guess")
        await world.ok("alice", "PUT", "/api/services/web/1", {"address": "hidden-host", "port": 1})
    lines = lines_of(path)
    found = by_operation(lines)
    put = found["putKey"][-1]
    assert put["ranges"] == [{"access": "write", "key": "app/x"}]
    assert (put["user"], put["outcome"], put["revision"]) == ("alice", "done", revision)
    assert put["member"] == f"{world.store.member_id:016x}" and put["term"] == 1
    assert {"access": "read", "start": "app/", "end": "app0"} in found["listKeys"][-1]["ranges"]
    assert found["transact"][-1]["ranges"] == [
        {"access": "read", "key": "app/x"},
        {"access": "write", "key": "app/y"},
        {"access": "write", "key": "app/z"},
    ]
    refused, missing = found["getKey"][-2:]
    assert (refused["outcome"], refused["code"]) == ("refused", "permission_denied")
    assert (missing["outcome"], missing["code"]) == ("refused", "key_not_found")
    granted = found["grantRole"][-1]
    assert (granted["name"], granted["role"]) == ("stranger", "app")
    guess, stranger = found["logIn"][-2:]
    assert (guess["user"], guess["code"]) == ("alice", "authentication_failed")
    # A name that nobody has may be a password in the wrong field.
    assert stranger["user"] is None and "nobody-at-all" not in path.read_text()
    assert found["registerInstance"][-1]["ranges"][0]["keyspace"] == "services"
    assert "hush-value" not in path.read_text() and "a wrong guess" not in path.read_text()
    check_no_secret(path, world.tokens)
    requests = [line["request"] for line in lines]
    assert len(set(requests)) == len(requests)


async def test_long_keys_and_many_ranges_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with audited(path) as world:
        key = "app/" + "k" * 1000
        await world.ok("alice", "PUT", f"/api/kv/{key}", b"v")
        operations = [{"op": "put", "key": f"app/{n}", "value": "v"} for n in range(100)]
        await world.by("alice", "POST", "/api/txn", {"then": operations})
    found = by_operation(lines_of(path))
    assert len(found["putKey"][-1]["ranges"][0]["key"]) == AUDIT_KEY_BYTES_MAX + 1
    many = found["transact"][-1]
    assert len(many["ranges"]) == AUDIT_RANGES_MAX
    assert many["more_ranges"] == 100 - AUDIT_RANGES_MAX


class Slow(LocalStore):
    """A store that answers no command until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Any, Any]] = []

    def propose(self, command: c.Command, done: Any) -> None:
        self.held.append((command, done))

    def release(self) -> None:
        for command, done in self.held:
            super().propose(command, done)
        self.held.clear()


async def test_a_write_whose_client_went_is_told_by_its_outcome(tmp_path: Path) -> None:
    path, store = tmp_path / "audit.log", Slow()
    async with served(store, path) as door:
        raw = await door.raw()
        raw.send(b"PUT /api/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv")
        await until(lambda: store.held)
        # A reset: an end of sending alone would still be answered.
        linger = struct.pack("ii", 1, 0)
        raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raw.writer.transport.abort()
        await until(lambda: not door.listener.connections)
        store.release()
        await until(lambda: store.machine.revision > 1)
        await asyncio.sleep(0)
    [line] = lines_of(path)
    assert (line["operation"], line["outcome"], line["revision"]) == ("putKey", "done", 2)


@asynccontextmanager
async def served(store: LocalStore, path: Path, **audit: Any) -> AsyncIterator[Served]:
    def make(store: Any) -> Gate:
        return Gate(store, observer=followed(store, path, **audit))

    async with serving(store, gate=make) as door:
        yield door


async def test_what_no_route_takes_leaves_a_line_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with served(LocalStore(), path) as door:
        await door.call("GET", "/nowhere")
        raw = await door.raw()
        raw.send(b"GARBAGE\r\n\r\n")
        await raw.answer()
    nowhere, garbage = lines_of(path)
    assert (nowhere["outcome"], nowhere["code"]) == ("refused", "route_not_found")
    assert garbage["outcome"] == "refused"


# ---- the files -----------------------------------------------------------------------------------


def written(log: AuditLog, count: int, begin: int = 0) -> None:
    for number in range(begin, begin + count):
        log.put({"n": number, "pad": "x" * 80})


def test_files_are_private_rotated_and_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path, file_bytes_max=1_000, files_max=3)
    for number in range(200):
        written(log, 1, number)
        if not number % 3:
            # Let the thread take it: rotation is between writes, not within one.
            while log.lines + log.dropped < number:
                os.sched_yield()
    log.close()
    assert log.lines == 200 and log.dropped == 0
    files = sorted(each.name for each in tmp_path.iterdir())
    assert files == ["audit.log", "audit.log.1", "audit.log.2"]
    numbers = []
    for name in reversed(files):
        one = tmp_path / name
        assert one.stat().st_size <= 1_000
        assert stat.S_IMODE(one.stat().st_mode) == 0o600
        numbers += [json.loads(line)["n"] for line in one.read_text().splitlines()]
    assert numbers == list(range(200 - len(numbers), 200))
    again = AuditLog(path, file_bytes_max=10**6, files_max=3)
    written(again, 1)
    again.close()
    assert json.loads(path.read_text().splitlines()[-1])["n"] == 0, "it goes on with its file"


def test_what_finds_no_room_is_counted_and_said(tmp_path: Path) -> None:
    fifo = tmp_path / "audit.log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = AuditLog(fifo, file_bytes_max=10**9, files_max=1, waiting_max=10)
    written(log, 5_000)  # nobody reads the pipe, so its 64 KiB and the queue fill up
    assert log.dropped > 3_000
    os.set_blocking(reader, True)
    collected = bytearray()

    def drain() -> None:
        while data := os.read(reader, 65_536):
            collected.extend(data)

    draining = threading.Thread(target=drain)
    draining.start()
    log.close()
    draining.join(10)
    os.close(reader)
    lines = [json.loads(line) for line in collected.splitlines()]
    lost = sum(line.get("dropped", 0) for line in lines)
    assert lost == log.dropped
    assert sum("n" in line for line in lines) == 5_000 - lost


def test_a_full_disk_loses_lines_and_not_the_member(tmp_path: Path) -> None:
    log = AuditLog(Path("/dev/full"), file_bytes_max=10**9, files_max=1)
    written(log, 10)
    log.close()
    assert log.dropped == 10 and log.lines == 0


async def test_a_file_that_cannot_be_opened_is_said_at_the_start(tmp_path: Path) -> None:
    store = LocalStore()
    config = ServerConfig(audit_log=str(tmp_path / "none" / "audit.log"))
    with pytest.raises(ConfigError, match=r"--audit-log: cannot write .*No such file"):
        open_observer(store, config)
    assert open_observer(store, ServerConfig()) is None
    store.close()
