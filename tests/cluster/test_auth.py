"""Access control on real members: one set of rules, whichever member is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.support.processes import Cluster, Member, running

ROUNDS = 25


class Site:
    """A cluster with access control on, and calls as one user or another."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.tokens: dict[str, str] = {}

    async def by(
        self, user: str | None, member: Member, method: str, path: str, **more: Any
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.tokens[user]}" if user else ""}
        status, body, _ = await self.cluster.call(member, method, path, headers=headers, **more)
        return status, body

    async def root(self, member: Member, method: str, path: str, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.tokens['root']}"}
        return await self.cluster.insist(member, method, path, headers=headers, **more)

    async def log_in(self, user: str, member: Member) -> str:
        body = {"user": user, "password": f"{user}-pass"}
        answer = await self.cluster.insist(member, "POST", "/api/auth/login", json=body)
        self.tokens[user] = answer["token"]
        return str(answer["token"])

    async def announced(self, member: Member) -> None:
        """Wait until a member's client address is known to the cluster."""
        async with asyncio.timeout(10):
            while True:
                found = await self.root(member, "GET", "/api/members")
                if [member.client_url] in [each["client_urls"] for each in found["members"]]:
                    return
                await asyncio.sleep(0.05)

    async def enable(self) -> None:
        cluster, first = self.cluster, self.cluster.members[0]
        for user in ("root", "alice"):
            body = {"user": user, "password": f"{user}-pass"}
            await cluster.insist(first, "POST", "/api/auth/users", json=body)
        await cluster.insist(first, "PUT", "/api/auth/users/root/roles/root")
        await cluster.insist(first, "POST", "/api/auth/roles", json={"role": "app"})
        await cluster.insist(first, "PUT", "/api/auth/users/alice/roles/app")
        await cluster.insist(first, "POST", "/api/auth/enable")
        assert cluster.session is not None
        token = await self.log_in("root", first)
        # For what the support asks by itself, such as each member's status.
        cluster.session.headers["Authorization"] = f"Bearer {token}"


async def test_rules_hold_through_every_member_from_the_moment_they_are_acknowledged(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, 3) as cluster:
        site = Site(cluster)
        await site.enable()
        grant = {"access": "readwrite", "prefix": "app/"}
        permissions = "/api/auth/roles/app/permissions"
        for number in range(ROUNDS):
            here = cluster.members[number % 3]
            there = cluster.members[(number + 1) % 3]
            other = cluster.members[(number + 2) % 3]
            # A login at one member is one at all of them, at once.
            await site.log_in("alice", here)
            assert (await site.by("alice", there, "GET", "/api/auth"))[0] == 200
            assert (await site.by("alice", other, "PUT", "/api/kv/app/x", data=b"no"))[0] == 403
            await site.root(here, "POST", permissions, json=grant)
            status, body = await site.by("alice", there, "PUT", "/api/kv/app/x", data=b"yes")
            assert status == 200, body
            await site.root(here, "DELETE", f"{permissions}?prefix=app/")
            for member in (there, other):
                assert (await site.by("alice", member, "GET", "/api/kv/app/x"))[0] == 403
                status, body = await site.by("alice", member, "PUT", "/api/kv/app/x", data=b"no")
                assert status == 403, body
            # A logout counts at once where it was made, elsewhere once it was heard of; another
            # password, everywhere from when it was acknowledged.
            if number % 2:
                await site.by("alice", here, "POST", "/api/auth/logout")
                assert (await site.by("alice", here, "GET", "/api/auth"))[0] == 401
            else:
                body = {"password": "alice-pass"}
                await site.root(here, "PUT", "/api/auth/users/alice/password", json=body)
                for member in (there, other):
                    assert (await site.by("alice", member, "GET", "/api/kv/app/x"))[0] == 401
                    status, _ = await site.by("alice", member, "PUT", "/api/kv/app/x", data=b"no")
                    assert status == 401
        record = await site.root(cluster.members[1], "GET", "/api/kv/app/x")
        assert record["value"] == "yes" and record["version"] == ROUNDS
        health = await cluster.equal_hashes()
        assert health["healthy"]


async def test_rules_and_tokens_outlive_leaders_restarts_and_travel_in_snapshots(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, 3) as cluster:
        site = Site(cluster)
        await site.enable()
        await site.log_in("alice", cluster.members[0])
        leader = await cluster.leader()
        leader.kill()
        rest = [member for member in cluster.members if member is not leader]
        await site.root(rest[0], "PUT", "/api/kv/secret", data=b"v")
        assert (await site.by("alice", rest[1], "GET", "/api/kv/secret"))[0] == 403
        for member in rest:
            member.kill()
        for member in cluster.members:
            member.start()
        for member in cluster.members:
            await cluster.ready(member)
            assert (await site.by("alice", member, "GET", "/api/kv/secret"))[0] == 403
            assert (await site.by("root", member, "GET", "/api/kv/secret"))[0] == 200
            assert (await site.by(None, member, "GET", "/api/kv/secret"))[0] == 401

        newcomer = await cluster.add()
        await cluster.ready(newcomer)
        assert (await site.by("alice", newcomer, "GET", "/api/kv/secret"))[0] == 403
        assert (await site.by(None, newcomer, "PUT", "/api/kv/secret", data=b"no"))[0] == 401
        await site.root(newcomer, "PUT", "/api/kv/secret", data=b"w")
        # Members go on by themselves: the newcomer's addresses are announced on nobody's behalf.
        await site.announced(newcomer)
        await cluster.equal_hashes()
        for member in cluster.members:
            assert "-pass" not in member.output()
            assert not any(token in member.output() for token in site.tokens.values())
