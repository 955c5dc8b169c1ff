"""Members come and go while writes go on."""

import asyncio
import time
from pathlib import Path

from raftkv.cli.exits import FAILED
from tests.support.load import Writers
from tests.support.processes import Cluster, Member, running

SMALL_LOG = ["--snapshot-log-bytes", "1MiB", "--snapshot-catchup-entries", "100"]


async def promoted(cluster: Cluster, member: Member) -> None:
    """Promote a learner as soon as the leader says that it has caught up."""
    member_id = (await cluster.status(member))["member_id"]
    deadline = time.monotonic() + 30
    while True:
        code, body, _ = await cluster.call(
            await cluster.leader(), "POST", f"/api/members/{member_id}/promote"
        )
        if code == 200:
            return
        assert code in (429, 503) or body["code"] == "change_refused", body
        assert time.monotonic() < deadline, body
        await asyncio.sleep(0.1)


async def test_grow_from_one_to_five_and_shrink_to_three_under_load(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as cluster:
        async with Writers(cluster, count=4) as writers:
            for _ in range(4):
                member = await cluster.add(learner=True)
                await cluster.ready_or_learner(member)
                await promoted(cluster, member)
                await writers.resumed(time.monotonic())
            statuses = [await cluster.status(member) for member in cluster.members]
            assert len(statuses) == 5
            first = cluster.members[0]
            await cluster.remove(first)
            await writers.resumed(time.monotonic())
            await cluster.remove(cluster.members[-1])
            await writers.resumed(time.monotonic())
        await cluster.equal_hashes()
        await writers.check()
        code, body, _ = await cluster.call(cluster.members[0], "GET", "/api/members")
        assert code == 200 and len(body["members"]) == 3
        assert {each["role"] for each in body["members"]} == {"voter"}


async def test_whoever_is_asked_to_remove_whomever_does_it_and_the_removed_ends(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, 4) as cluster:
        async with Writers(cluster, count=2) as writers:
            for leading, asking_itself in ((False, True), (False, False), (True, True)):
                leader = await cluster.leader()
                victim = leader if leading else next(m for m in cluster.members if m is not leader)
                rest = [member for member in cluster.members if member is not victim]
                member_id = (await cluster.status(victim))["member_id"]
                asked = victim if asking_itself else rest[0]
                await cluster.insist(asked, "DELETE", f"/api/members/{member_id}")
                cluster.members = rest
                assert victim.process is not None
                assert await asyncio.to_thread(victim.process.wait, 10) == FAILED
                assert "was removed from its cluster" in victim.output()
                await writers.resumed(time.monotonic())
        await cluster.equal_hashes()
        await writers.check()


async def test_a_wiped_member_added_again_catches_up_by_snapshot(tmp_path: Path) -> None:
    async with running(tmp_path, 3, SMALL_LOG) as cluster:
        async with Writers(cluster, count=4) as writers:
            leader = await cluster.leader()
            lost = next(member for member in cluster.members if member is not leader)
            await fill(cluster, leader, 3_000)
            await cluster.remove(lost)
            lost.wipe()
            await fill(cluster, leader, 3_000)
            code, body, _ = await cluster.call(
                await cluster.leader(),
                "POST",
                "/api/members",
                json={"name": lost.name, "peer_urls": [lost.peer_url], "learner": False},
            )
            assert code == 201, body
            await cluster.start_added(lost)
            await cluster.ready(lost)
            await writers.resumed(time.monotonic())
        await cluster.equal_hashes()
        await writers.check()
        _, metrics, _ = await cluster.call(lost, "GET", "/metrics")
        assert b"raftkv_snapshots_installed_total 1" in metrics


async def test_a_member_that_lost_its_data_is_not_let_in_as_if_it_were_new(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as cluster:
        lost = cluster.members[0]
        member_id = (await cluster.status(lost))["member_id"]
        deadline = time.monotonic() + 10
        while True:
            _, body, _ = await cluster.call(cluster.members[1], "GET", "/api/members")
            if all(each["client_urls"] for each in body["members"]):
                break
            assert time.monotonic() < deadline, body
            await asyncio.sleep(0.05)
        lost.stop()
        lost.wipe()
        lost.start()
        assert lost.process is not None
        assert await asyncio.to_thread(lost.process.wait, 20) != 0
        assert "has lost its data directory" in lost.output()
        assert f"raftkv member remove {member_id}" in lost.output()
        code, body, _ = await cluster.call(cluster.members[1], "PUT", "/api/kv/k", data=b"v")
        assert code in (200, 503), body


async def fill(cluster: Cluster, member: Member, count: int) -> None:
    """Put `count` keys of 512 bytes, many at a time."""

    async def put(number: int) -> None:
        code, body, _ = await cluster.call(member, "PUT", f"/api/kv/fill/{number}", data=b"x" * 512)
        assert code == 200, body

    for start in range(0, count, 200):
        await asyncio.gather(*(put(number) for number in range(start, start + 200)))
