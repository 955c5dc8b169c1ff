"""serve --join: a new member adds itself, through any member, and learns who the others are."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from raftkv.cli.exits import FAILED
from raftkv.cli.output import Failure, Output, note
from raftkv.cli.session import Session, guarded
from raftkv.limits import VOTERS_MAX

if TYPE_CHECKING:
    from raftkv.client.results import Member
    from raftkv.server.config import ServerConfig

JOIN_PATIENCE_SECONDS = 30.0
"""How long a cluster that cannot take the member on just now is asked again."""


def joined(config: ServerConfig, user: str, token: str) -> ServerConfig:
    """`config` with the cluster that --join points at; unchanged once this member has data."""
    session = Session("", None, Output("table"), user, token, _tls(config))
    directory = config.data_directory
    if not config.join or any((directory / "snapshots").glob("*.snapshot")):
        return config

    async def work() -> tuple[Member, ...]:
        async with session.client(config.join, patience=JOIN_PATIENCE_SECONDS) as client:
            members = await client.cluster.members()
            own = _own(config, members)
            if own is None:
                member_id, members = await client.cluster.add_member(
                    config.advertised_peer_urls, name=config.name, promote=True
                )
                note(f"added to the cluster as member {member_id}; its leader promotes it")
            elif own.client_urls and not (directory / "FORMAT").exists():
                raise Failure(
                    f"member {own.member_id} ({own.name}) is reached at {own.peer_urls[0]} and has "
                    "taken part, but its data is not here",
                    FAILED,
                    f"If it is lost: raftkv member replace {own.member_id}",
                )
            return members

    return described(config, guarded(lambda: asyncio.run(work())))


def _tls(config: ServerConfig) -> dict[str, str]:
    """The member's own files serve it as a client, too."""
    files = {
        "cacert": config.trusted_ca_file or config.peer_trusted_ca_file,
        "cert": config.cert_file,
        "key": config.key_file,
    }
    secure = any(url.startswith("https:") for url in config.join)
    return {name: path for name, path in files.items() if path and secure}


def described(config: ServerConfig, members: tuple[Member, ...]) -> ServerConfig:
    """`config` for a member that joins these, itself among them."""
    own = _own(config, members)
    others = [member for member in members if member is not own]
    # Whoever votes knows who is in; no more are asked than a list may hold.
    others.sort(key=lambda member: member.role == "learner")
    named = [
        f"{member.member_id}={url}"
        for member in others[: VOTERS_MAX - 1]
        for url in member.peer_urls
    ]
    named += [f"{config.name}={url}" for url in config.advertised_peer_urls]
    return dataclasses.replace(
        config, join=(), initial_cluster=",".join(named), initial_cluster_state="existing"
    )


def _own(config: ServerConfig, members: tuple[Member, ...]) -> Member | None:
    mine = set(config.advertised_peer_urls)
    return next((member for member in members if mine & set(member.peer_urls)), None)
