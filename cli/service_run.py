"""service run: a program that is found for as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from raftkv.cli.output import Failure, note
from raftkv.cli.service import description_options, parse_meta
from raftkv.cli.session import Session, common_options

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient
    from raftkv.client.errors import LeaseLost

COMMAND_NOT_FOUND = 127
COMMAND_NOT_EXECUTABLE = 126
FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("service_name", metavar="NAME")
@click.option("--id", "instance", metavar="ID", help="The instance's id.  [default: HOST-PORT]")
@click.option(
    "--address",
    metavar="HOST",
    help="Where the instance is reached.  [default: this machine's address towards the store]",
)
@description_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@common_options
def run(
    session: Session,
    service_name: str,
    instance: str | None,
    address: str | None,
    command: tuple[str, ...],
    port: int,
    tags: tuple[str, ...],
    meta: tuple[str, ...],
    weight: int,
    ttl: int,
    owner: str,
    takeover: bool,
) -> None:
    """Run a program as an instance of a service.

    Registers NAME, runs COMMAND, keeps the registration alive while it runs, passes signals on to
    it, and deregisters when it ends. Exits with the code of COMMAND, or 128 + N when signal N
    ended it, 127 when there is no such program. COMMAND finds RAFTKV_SERVICE, RAFTKV_INSTANCE and
    PORT in its environment.
    """
    notes = parse_meta(meta)
    instance = instance or f"{socket.gethostname()}-{port}"
    address = address or own_address(session.endpoints)

    def lost(error: LeaseLost) -> None:
        note(f"{error}; the program goes on without being found")

    async def work(client: AsyncClient) -> int:
        keeper = client.services.registered(
            service_name,
            instance,
            address,
            port,
            tags=tags,
            meta=notes,
            weight=weight,
            ttl=ttl,
            owner=owner,
            takeover=takeover,
            cancel_on_loss=False,
            on_loss=lost,
        )
        async with keeper:
            note(f"{service_name}/{instance} registered at {address}:{port} for {ttl} s")
            code = await run_program(command, service_name, instance, port)
        note(f"{service_name}/{instance} deregistered")
        return code

    click.get_current_context().exit(session.run(work))


async def run_program(command: tuple[str, ...], service: str, instance: str, port: int) -> int:
    """Run `command` to its end, passing signals on; the exit code a shell would give."""
    variables = {"RAFTKV_SERVICE": service, "RAFTKV_INSTANCE": instance, "PORT": str(port)}
    try:
        child = await asyncio.create_subprocess_exec(*command, env={**os.environ, **variables})
    except FileNotFoundError:
        raise Failure(f"there is no program {command[0]!r}", COMMAND_NOT_FOUND) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Failure(f"{command[0]!r} cannot be run: {reason}", COMMAND_NOT_EXECUTABLE) from error
    with forwarding(child):
        code = await child.wait()
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def forwarding(child: Any) -> Iterator[None]:
    """Pass signals on to `child`. The terminal sends its own to both of us already."""
    loop = asyncio.get_running_loop()

    def forward(number: signal.Signals) -> None:
        if number in _FROM_TERMINAL and sys.stdin is not None and sys.stdin.isatty():
            return
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    for number in FORWARDED:
        loop.add_signal_handler(number, forward, number)
    try:
        yield
    finally:
        for number in FORWARDED:
            loop.remove_signal_handler(number)


def own_address(endpoints: str) -> str:
    """The address of this machine from which the first endpoint is reached."""
    first = endpoints.split(",")[0].strip()
    parts = urlsplit(first if "://" in first else f"http://{first}")
    try:
        host, port = parts.hostname or "127.0.0.1", parts.port or 80
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            # Connecting a datagram socket sends nothing; it only chooses the way.
            probe.connect(place)
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return socket.gethostname()
