"""Run one member with its doors until it is told to stop: what `raftkv serve` does."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable
from functools import partial

from raftkv.api.gate import Gate, open_gate
from raftkv.api.listener import Listener, start_listeners
from raftkv.errors import ConfigError, RaftkvError
from raftkv.server import logs
from raftkv.server.config import ServerConfig
from raftkv.server.disaster import open_alone
from raftkv.server.discovery import discovered
from raftkv.server.heap import Trimmer, give_back_memory
from raftkv.server.member import Member
from raftkv.server.opening import open_member
from raftkv.server.sd_notify import Notifier
from raftkv.server.tls.settings import check_exposure

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""How long requests under way may take to finish once the member stops."""


def run(config: ServerConfig, on_started: Callable[[Member], None] | None = None) -> None:
    """Open, serve and close a member; returns after SIGTERM or SIGINT.

    Raises RaftkvError with a sentence for the operator when the member cannot start or go on.
    """
    give_back_memory()
    if config.event_loop == "uvloop":
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(config, on_started))


async def serve(config: ServerConfig, on_started: Callable[[Member], None] | None = None) -> None:
    """See `run`; on a loop that runs already."""
    loop = asyncio.get_running_loop()
    fresh = not config.data_directory.exists()
    if fresh:
        check_exposure(config, access_control=False)
    opened = await (open_alone if config.force_new_cluster else open_member)(
        await discovered(config)
    )
    try:
        if not fresh:
            check_exposure(config, access_control=opened.machine.auth.enabled)
    except ConfigError:
        opened.wal.close()
        opened.close(clean=True)
        raise
    member = Member(config, opened, loop)
    logs.IDENTITY.begin(member.stamp)
    notifier = Notifier(os.environ)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listeners: list[Listener] = []
    gate: Gate | None = None
    trimmer = Trimmer()
    try:
        await member.start()
        gate = open_gate(member, config)
        listeners = await start_listeners(member, config, gate)
        # What lives now lives for good: the collector need not look at it again, and a sweep of
        # the youngest objects every 700 of them would cost more than it ever frees.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        log.info(
            "serving",
            extra={
                "member": f"{member.member_id:016x}",
                "clients": ",".join(config.listen_client_urls),
                "peers": ",".join(config.listen_peer_urls),
                "data": str(config.data_directory),
            },
        )
        if on_started is not None:
            on_started(member)
        notifier.ready(loop, partial(_in_words, member))
        member.ended.add_done_callback(lambda _: stop.set())
        await stop.wait()
        if not member.ended.done():
            log.info("stopping")
    finally:
        notifier.stopping()
        trimmer.close()
        await asyncio.gather(*(listener.close(DRAIN_SECONDS) for listener in listeners))
        await member.stop()
        if gate is not None:
            # It writes out what waits for the audit log.
            await loop.run_in_executor(None, gate.close)
        notifier.close()
    error = member.ended.result()
    if isinstance(error, RaftkvError):
        raise error


def _in_words(member: Member) -> str:
    """What `systemctl status` shows."""
    status = member.status()
    problems = "; ".join(status["problems"]) or "healthy"
    return f"{status['role']}, term {status['term']}, revision {status['revision']}: {problems}"
