"""Services with a TTL on real processes: gone in time, told in time, never too early."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.processes import Cluster, Member, running

BODY = {"address": "10.0.0.1", "port": 8080, "tags": ["v1"], "ttl": 2}


async def register(cluster: Cluster, member: Member, name: str, **more: Any) -> dict[str, Any]:
    code, body, _ = await cluster.call(
        member, "PUT", f"/api/services/web/{name}", json={**BODY, **more}
    )
    assert code in (200, 201), body
    return dict(body)


async def test_an_instance_expires_within_a_second_after_its_ttl(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster:
        told: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue()
        watching = asyncio.create_task(watch(cluster, cluster.members[2], told))
        try:
            assert (await told.get())[1]["type"] == "ready"
            await register(cluster, cluster.members[1], "a")
            assert (await told.get())[1]["type"] == "registered"
            for _ in range(6):
                await asyncio.sleep(0.5)
                code, body, _ = await cluster.call(
                    cluster.members[1], "POST", "/api/services/web/a/heartbeat", json={}
                )
                assert code == 200, body
            heartbeat = time.monotonic()
            at, event = await asyncio.wait_for(told.get(), 10)
            assert event["type"] == "deregistered" and event["reason"] == "expired", event
            assert 1.9 < at - heartbeat < 3.0
            code, body, _ = await cluster.call(cluster.members[0], "GET", "/api/services/web")
            assert code == 200 and body["instances"] == []
        finally:
            watching.cancel()


async def test_a_leader_change_or_full_restart_expires_no_live_instance(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster:
        leader = await cluster.leader()
        registered = await register(cluster, leader, "a", ttl=3)
        leader.kill()
        leader.start()
        await cluster.ready(leader)
        other = next(member for member in cluster.members if member is not leader)
        code, body, _ = await cluster.call(other, "POST", "/api/services/web/a/heartbeat", json={})
        assert code == 200 and body["lease"] == registered["lease"], body
        for member in cluster.members:
            member.kill()
        for member in cluster.members:
            member.start()
        for member in cluster.members:
            await cluster.ready(member)
        code, body, _ = await cluster.call(other, "GET", "/api/services/web")
        assert [each["instance"] for each in body["instances"]] == ["a"]
        code, body, _ = await cluster.call(other, "POST", "/api/services/web/a/heartbeat", json={})
        assert code == 200 and body["lease"] == registered["lease"], body


async def watch(
    cluster: Cluster, member: Member, told: "asyncio.Queue[tuple[float, dict[str, Any]]]"
) -> None:
    assert cluster.session is not None
    async with cluster.session.get(
        member.client_url + "/api/watch/services/web",
        headers={"Accept": "application/x-ndjson"},
        timeout=aiohttp.ClientTimeout(total=None),
    ) as answer:
        async for line in answer.content:
            event = json.loads(line)
            if event["type"] != "progress":
                told.put_nowait((time.monotonic(), event))
