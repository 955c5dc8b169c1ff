"""The first members of a cluster out of DNS: SRV records, under the names that etcd gives them.

`_etcd-server._tcp.DOMAIN` lists hosts and ports, `_etcd-server-ssl._tcp.DOMAIN` those that speak
TLS, which is asked for when our own peer URL is https; a suffix is put before the `._tcp`. Each
record is a member. Which one we are is told by our own peer URL: its host and port are those of a
record, or its host has an address in common with a record's.

All members have to found the same cluster from what they are told, so each is called HOST:PORT as
in its record until it announces the name that it was given.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raftkv.errors import ConfigError
from raftkv.limits import DISCOVERY_SECONDS, VOTERS_MAX
from raftkv.server.config import ServerConfig, split_url

if TYPE_CHECKING:
    from pathlib import Path

Target = tuple[str, int]
"""Host, without the dot at its end, and port."""
AddressesOf = Callable[[str], set[str]]


def service(config: ServerConfig) -> str:
    """The name whose SRV records are asked for."""
    suffix = f"-{config.discovery_srv_name}" if config.discovery_srv_name else ""
    ssl = "-ssl" if _scheme(config) == "https" else ""
    return f"_etcd-server{ssl}{suffix}._tcp.{config.discovery_srv.rstrip('.')}"


def _scheme(config: ServerConfig) -> str:
    return urlsplit(config.advertised_peer_urls[0]).scheme


async def discovered(config: ServerConfig) -> ServerConfig:
    """`config` with the first members that DNS names, and this member called as there.

    Asked only for a first start, for what is founded knows its members. Waits in a thread. Raises
    ConfigError for an answer that founds nothing.
    """
    if not config.discovery_srv or founded(config.data_directory):
        return config
    loop = asyncio.get_running_loop()
    targets = await loop.run_in_executor(None, look_up, config)
    return await loop.run_in_executor(None, described, config, targets, addresses_of)


def founded(directory: Path) -> bool:
    """Whether a member with a state of its own is in a data directory."""
    return any((directory / "snapshots").glob("*.snapshot"))


def look_up(config: ServerConfig) -> list[Target]:
    """Ask for the records; blocks for at most DISCOVERY_SECONDS. Raises ConfigError."""
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        raise ConfigError(
            "--discovery-srv needs the package dnspython: pip install 'raftkv[dns]'"
        ) from None
    asked = service(config)
    resolver = dns.resolver.Resolver(configure=not config.discovery_resolver)
    resolver.lifetime = DISCOVERY_SECONDS
    if config.discovery_resolver:
        host, port = _host_and_port(config.discovery_resolver)
        resolver.nameservers, resolver.port = [host], port
    try:
        answer = resolver.resolve(asked, "SRV", search=False)
    except dns.exception.DNSException as error:
        raise ConfigError(
            f"no SRV records of {asked} could be had: {error or type(error).__name__}",
            setting="discovery-srv",
        ) from error
    return sorted({(str(record.target).rstrip("."), int(record.port)) for record in answer})


def described(
    config: ServerConfig, targets: Sequence[Target], addresses: AddressesOf
) -> ServerConfig:
    """See `discovered`. Raises ConfigError."""
    asked = service(config)
    if not targets or any(not host for host, _ in targets):
        raise ConfigError(f"the SRV records of {asked} name no host", setting="discovery-srv")
    if len(targets) > VOTERS_MAX:
        raise ConfigError(
            f"{asked} names {len(targets)} members; a cluster is founded by {VOTERS_MAX} at most",
            setting="discovery-srv",
        )
    mine = [split_url(url) for url in config.advertised_peer_urls]
    own = [target for target in targets if target in mine]
    if not own:
        own = [
            (host, port)
            for host, port in targets
            for my_host, my_port in mine
            if port == my_port and addresses(host) & addresses(my_host)
        ]
    if len(own) != 1:
        listed = ", ".join(f"{host}:{port}" for host, port in targets)
        raise ConfigError(
            f"{asked} names {listed}: {'none' if not own else 'several'} of them is this member; "
            "give its peer URL with --initial-advertise-peer-urls",
            setting="discovery-srv",
        )
    scheme = _scheme(config)
    initial = ",".join(f"{host}:{port}={scheme}://{host}:{port}" for host, port in targets)
    host, port = own[0]
    return dataclasses.replace(
        config,
        data_dir=str(config.data_directory),
        name=f"{host}:{port}",
        initial_cluster=initial,
        initial_advertise_peer_urls=(f"{scheme}://{host}:{port}",),
        discovery_srv="",
        discovery_srv_name="",
    )


def addresses_of(host: str) -> set[str]:
    """The addresses of a host; none when it cannot be resolved. Blocks."""
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


def _host_and_port(text: str) -> Target:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"--discovery-resolver must be HOST:PORT, not {text!r}", setting="discovery-resolver"
        )
    return host.strip("[]"), int(port)
