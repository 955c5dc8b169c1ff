"""Deleting very many keys at once, with real processes: reads go on, and see all or nothing.

That nobody is elected meanwhile, tests/unit/test_server_aside.py shows in virtual time.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.support.processes import Cluster, Member, running

KEYS = 20_000
OPERATIONS = 500
PATIENT = ["--election-timeout", "5s"]


async def fill(cluster: Cluster, member: Member, lease: str) -> None:
    async def some(start: int) -> None:
        puts = [
            {"op": "put", "key": f"many/{number:06}", "value": "v" * 100, "lease": lease}
            for number in range(start, start + OPERATIONS)
        ]
        await cluster.insist(member, "POST", "/api/txn", json={"then": puts})

    await asyncio.gather(*(some(start) for start in range(0, KEYS, OPERATIONS)))


async def test_ending_a_lease_of_very_many_keys_is_one_change_beside_the_loop(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, 3, PATIENT) as cluster:
        leader = await cluster.leader()
        lease = await cluster.insist(leader, "POST", "/api/leases", json={"ttl": 3600})
        await fill(cluster, leader, lease["lease"])
        before = await cluster.equal_hashes()
        assert before["keys"] == KEYS
        ending = asyncio.ensure_future(
            cluster.insist(leader, "DELETE", f"/api/leases/{lease['lease']}")
        )
        local = "/api/kv/many/000001?consistency=serializable"
        seen = set()
        deadline = time.monotonic() + 30
        while not ending.done() and time.monotonic() < deadline:
            code, body, _ = await cluster.call(leader, "GET", local)
            # The old state whole, or the new one.
            seen.add((code, body.get("revision")))
        assert (await ending)["deleted"] == KEYS
        revision = before["revision"]
        assert seen <= {(200, revision), (404, revision + 1)}, seen
        after = await cluster.equal_hashes()
        assert after["keys"] == 0
        for member in cluster.members:
            _, metrics, _ = await cluster.call(member, "GET", "/metrics")
            assert b"\nraftkv_applies_aside_total 1.0\n" in metrics
