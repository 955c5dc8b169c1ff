"""Members that make their certificates themselves: --auto-tls and --peer-auto-tls."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import Cluster, Member

HANDSHAKES = "raftkv_peer_tls_handshakes_total"


class Encrypted(Cluster):
    """Everything over https, with nobody's CA."""

    def _new_member(self) -> Member:
        member = super()._new_member()
        member.client_url = member.client_url.replace("http:", "https:")
        member.peer_url = member.advertised_peer_url = member.peer_url.replace("http:", "https:")
        member.tls_arguments = ["--auto-tls", "--peer-auto-tls"]
        return member

    async def __aenter__(self) -> Encrypted:
        await super().__aenter__()
        return self

    async def ready(self, member: Member, seconds: float = 30.0) -> None:
        assert self.session is not None
        self.session.connector._ssl = False  # type: ignore[union-attr]
        await super().ready(member, seconds)


async def handshakes(cluster: Cluster, member: Member) -> Iterator[tuple[str, str, float]]:
    _, page, _ = await cluster.call(member, "GET", "/metrics")
    return (
        (sample.labels["side"], sample.labels["outcome"], sample.value)
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name == HANDSHAKES
    )


async def test_a_cluster_without_a_ca_is_encrypted_and_outlives_its_leader(tmp_path: Path) -> None:
    async with Encrypted(tmp_path, 3) as cluster:
        leader = await cluster.leader()
        await cluster.insist(leader, "PUT", "/api/kv/k", data=b"1")
        await cluster.equal_hashes()
        done = {"accepted": 0.0, "dialled": 0.0}
        for member in cluster.members:
            for side, outcome, count in await handshakes(cluster, member):
                done[side] += count * (outcome == "done")
        # Each of three dials both others.
        assert min(done.values()) >= 6, done
        # A client that wants to know who it speaks with is told: nobody.
        async with aiohttp.ClientSession() as strict:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await strict.get(leader.client_url + "/readyz")
        for port in (leader.client_url, leader.peer_url):
            host, number = port.removeprefix("https://").split(":")
            pem = ssl.get_server_certificate((host, int(number)))
            assert pem.startswith("-----BEGIN CERTIFICATE-----")
        leader.kill()
        other = await cluster.leader(20)
        await cluster.insist(other, "PUT", "/api/kv/k2", data=b"2")
        leader.start()
        await cluster.ready(leader)
        await cluster.equal_hashes()
