"""Members that join by themselves, take a lost one's place, survive alone, and change version."""

import asyncio
import time
from pathlib import Path
from typing import Any

from raftkv.cli import exits
from tests.cluster.test_cli import Command
from tests.support.dns_server import name_server
from tests.support.processes import Cluster, Member, free_ports, running

SMALL = ["--wal-segment-bytes", "32MiB"]


async def put(cluster: Cluster, member: Member, name: str) -> None:
    await cluster.insist(member, "PUT", f"/api/kv/{name}", data=name.encode())


async def members(cluster: Cluster, member: Member) -> dict[str, dict[str, Any]]:
    _, body, _ = await cluster.call(member, "GET", "/api/members")
    return {each["name"]: each for each in body["members"]}


async def level(cluster: Cluster, goal: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while {(await cluster.status(member))["level"] for member in cluster.members} != {goal}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def voters(cluster: Cluster, through: Member, names: set[str], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        known = await members(cluster, through)
        if {name for name, each in known.items() if each["role"] == "voter"} == names == {*known}:
            return
        assert time.monotonic() < deadline, known
        await asyncio.sleep(0.1)


async def test_a_member_joins_by_itself_and_a_dead_one_is_replaced_by_one_command(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, 3, SMALL) as cluster:
        await level(cluster, 1)
        first = cluster.members[0]
        await put(cluster, first, "before")
        fourth = cluster._new_member()
        fourth.arguments = ["--join", first.client_url, *SMALL]
        fourth.start()
        cluster.members.append(fourth)
        await voters(cluster, first, {"n1", "n2", "n3", "n4"})
        await cluster.ready(fourth)
        fourth.stop()
        fourth.start()
        await cluster.ready(fourth)

        leader = await cluster.leader()
        dead = next(member for member in cluster.members if member not in (leader, fourth))
        dead.kill()
        dead.wipe()
        raftkv = Command(leader.client_url)
        # It may not come back as if nothing had happened, by --join no more than otherwise.
        dead.arguments = ["--join", leader.client_url, *SMALL]
        dead.start()
        assert dead.process is not None
        assert await asyncio.to_thread(dead.process.wait, 20) == exits.FAILED
        assert "has taken part, but its data is not here" in dead.output()

        old = (await members(cluster, leader))[dead.name]["member_id"]
        said = await raftkv("member", "replace", dead.name, "-o", "json")
        assert said["member_id"] != old
        dead.start()
        await voters(cluster, leader, {"n1", "n2", "n3", "n4"})
        await cluster.ready(dead)
        known = await members(cluster, leader)
        assert known[dead.name]["member_id"] == said["member_id"]
        await put(cluster, dead, "after")
        await cluster.equal_hashes()


async def test_a_survivor_goes_on_alone_when_told_to(tmp_path: Path) -> None:
    async with running(tmp_path, 3, SMALL) as cluster:
        survivor = cluster.members[0]
        await put(cluster, survivor, "kept")
        await cluster.equal_hashes()
        plain = survivor.arguments
        survivor.kill()
        survivor.arguments = [*plain, "--force-new-cluster", "true"]
        survivor.start()
        assert survivor.process is not None
        assert await asyncio.to_thread(survivor.process.wait, 20) == exits.USAGE
        assert "but another member of this cluster answers" in survivor.output()
        for member in cluster.members:
            member.kill()
        lost, cluster.members = cluster.members[1:], [survivor]
        survivor.start()
        await cluster.ready(survivor)
        assert "this member goes on alone" in survivor.log_path.read_text()
        assert "must never be started again" in survivor.log_path.read_text()
        assert set(await members(cluster, survivor)) == {survivor.name}
        code, body, _ = await cluster.call(survivor, "GET", "/api/kv/kept")
        assert (code, body["value"]) == (200, "kept")
        await put(cluster, survivor, "more")
        # Told again it does nothing, and without being told it is as any member.
        survivor.stop()
        survivor.start()
        await cluster.ready(survivor)
        assert "alone in its cluster already" in survivor.log_path.read_text()
        survivor.stop()
        survivor.arguments = plain
        survivor.start()
        await cluster.ready(survivor)
        await put(cluster, survivor, "most")
        # A lost one that is wiped comes in again.
        await level(cluster, 1)
        lost[0].wipe()
        lost[0].arguments = ["--join", survivor.client_url, *SMALL]
        lost[0].start()
        cluster.members.append(lost[0])
        await voters(cluster, survivor, {survivor.name, lost[0].name})
        await cluster.equal_hashes()


async def test_a_rolling_upgrade_agrees_on_a_level_and_a_downgrade_is_refused(
    tmp_path: Path,
) -> None:
    """Members of the former level tell none in the handshake, as its program does."""
    async with running(tmp_path, 3, [*SMALL, "--feature-level", "0"]) as cluster:
        first = cluster.members[0]
        raftkv = Command(*cluster.urls)
        await put(cluster, first, "old")
        said = await raftkv("member", "add", "http://127.0.0.1:1", "--promote", code=exits.FAILED)
        assert "needs feature level 1, and the cluster has agreed on 0" in said
        for number, member in enumerate(cluster.members):
            # Old and new in one cluster: both write and read, nothing is agreed.
            assert {(await cluster.status(each))["level"] for each in cluster.members} == {0}
            member.stop()
            member.arguments = [*member.arguments[:2], *SMALL]
            member.start()
            await cluster.ready(member)
            await put(cluster, member, f"new{number}")
        await level(cluster, 1)
        await cluster.equal_hashes()

        back = cluster.members[1]
        back.stop()
        back.arguments = [*back.arguments, "--feature-level", "0"]
        back.start()
        assert back.process is not None
        assert await asyncio.to_thread(back.process.wait, 20) == exits.FAILED
        assert "has agreed on feature level 1, and this member knows level 0" in back.output()
        back.arguments = back.arguments[:-2]

        # Nor may an old program come with an empty directory: the others refuse it.
        late = await cluster.add(learner=True)
        deadline = time.monotonic() + 20
        while "does not know: a downgrade is not possible any more" not in late.output():
            assert time.monotonic() < deadline, late.output()
            await asyncio.sleep(0.1)
        assert (await cluster.status(late))["applied_index"] == 0
        late.stop()
        cluster.members.remove(late)
        back.start()
        await cluster.ready(back)


async def test_a_cluster_is_founded_by_srv_records(tmp_path: Path) -> None:
    new = Cluster(tmp_path, 2)
    targets = [("localhost", int(member.peer_url.rpartition(":")[2])) for member in new.members]
    records = {"_etcd-server-blue._tcp.example.test": targets}
    async with name_server(records) as resolver:
        for member in new.members:
            member.arguments = [
                "--discovery-srv", "example.test", "--discovery-srv-name", "blue",
                "--discovery-resolver", resolver, *SMALL,
            ]  # fmt: skip
        async with new:
            await put(new, new.members[0], "k")
            status = await new.equal_hashes()
            await voters(new, new.members[1], {"n1", "n2"})
            assert status["revision"] == 2
            # Founded, it asks no name server any more.
            new.members[0].stop()
            new.members[0].arguments[5] = "127.0.0.1:9"
            new.members[0].start()
            await new.ready(new.members[0])
        client, peer = free_ports(2)
        stranger = Member("x", tmp_path, client, peer)
        for more, words in (
            (["--discovery-srv-name", "blue"], "none of them is this member"),
            ([], "no SRV records of _etcd-server._tcp.example.test could be had"),
        ):
            stranger.arguments = [
                "--discovery-srv", "example.test", "--discovery-resolver", resolver, *more,
            ]  # fmt: skip
            stranger.start()
            assert stranger.process is not None
            code = await asyncio.to_thread(stranger.process.wait, 20)
            assert code == exits.USAGE and words in stranger.output(), stranger.output()
