"""A member as systemd and an auditor see it: real processes."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path

from tests.support.processes import Cluster, running

OPTIONS = ["--log-format=json", "--slow-request-ms=50"]


class ServiceManager:
    """The socket that a unit with Type=notify is given."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def read(self) -> list[dict[str, str]]:
        while True:
            try:
                text = self._socket.recv(65_536).decode()
            except BlockingIOError:
                return self.told
            self.told.append(dict(line.split("=", 1) for line in text.splitlines()))

    async def hears(self, name: str, times: int = 1) -> dict[str, str]:
        deadline = time.monotonic() + 30
        while len(found := [each for each in self.read() if name in each]) < times:
            assert time.monotonic() < deadline, self.told
            await asyncio.sleep(0.02)
        return found[-1]

    def close(self) -> None:
        self._socket.close()


async def test_systemd_hears_of_readiness_of_life_and_of_the_end(tmp_path: Path) -> None:
    manager = ServiceManager(tmp_path / "notify")
    cluster = Cluster(tmp_path, 1, OPTIONS)
    [member] = cluster.members
    member.environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
    async with cluster:
        assert member.process is not None
        ready = await manager.hears("READY")
        assert ready["MAINPID"] == str(member.process.pid)
        code, _, _ = await cluster.call(member, "GET", "/livez")
        assert code == 200, "whoever is told so finds it ready"
        beat = await manager.hears("WATCHDOG", times=3)
        assert "term" in beat["STATUS"] and "revision" in beat["STATUS"]
        member.pause()
        manager.read()
        before = len(manager.told)
        await asyncio.sleep(0.5)
        assert len(manager.read()) == before, "a process that stands still is not alive"
        member.resume()
        await manager.hears("WATCHDOG", times=5)
        assert member.stop() == 0
        assert (await manager.hears("STOPPING"))["STOPPING"] == "1"
    manager.close()


async def test_the_audit_log_is_complete_after_the_end_and_logs_name_the_member(
    tmp_path: Path,
) -> None:
    audit = tmp_path / "audit.log"
    async with running(tmp_path, 1, [*OPTIONS, f"--audit-log={audit}"]) as cluster:
        [member] = cluster.members
        for number in range(200):
            await cluster.insist(member, "PUT", f"/api/kv/k{number}", data=b"hush-value")
        status = await cluster.status(member)
        assert member.stop() == 0
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        puts = [line for line in lines if line["operation"] == "putKey"]
        assert [line["ranges"][0]["key"] for line in puts] == [f"k{n}" for n in range(200)]
        assert [line["outcome"] for line in puts] == ["done"] * 200
        revisions = [line["revision"] for line in puts]
        assert revisions == sorted(set(revisions)) and revisions[-1] == status["revision"]
        assert {line["member"] for line in puts} == {status["member_id"]}
        assert "hush-value" not in audit.read_text()
        logged = [json.loads(line) for line in member.log_path.read_text().splitlines()
                  if line.startswith("{")]  # fmt: skip
        [stopping] = [line for line in logged if line["message"] == "stopping"]
        assert stopping["member"] == status["member_id"]
        assert (stopping["term"], stopping["revision"]) == (status["term"], status["revision"])
