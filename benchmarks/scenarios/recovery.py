"""A store full of keys: its memory, its restart. A leader that is killed."""

from __future__ import annotations

import threading
import time

from benchmarks.peers.servers import CallFailed, Cluster, Server
from benchmarks.peers.tools import BadRun
from benchmarks.ratios import EXCESS, OURS
from benchmarks.scenarios.bench import Bench
from raftkv.server.config import ServerConfig

ATTEMPT_EVERY_SECONDS = 0.02
GIVE_UP_SECONDS = 30.0


def full_store(bench: Bench) -> None:
    """The rows `memory` and `restart`, one store at a time, so that all have the whole machine."""
    keys = bench.settings.big_keys
    memory, restart = f"memory/{keys:,} keys", f"restart/{keys:,} keys"
    if not bench.wants(memory) and not bench.wants(restart):
        return
    for kind in bench.kinds:
        bench.say(f"  {restart}, {kind.label}")
        with bench.clusters(1, [kind]) as [cluster]:
            loaded = bench.fill(cluster, keys)
            server = cluster.servers[0]
            held = server.memory_bytes()
            bench.note(
                memory, bench.side(kind), held["resident"] / 1e6, "MB", better="lower",
                private_mb=held["private"] / 1e6, load_rate=loaded.rate,
            )  # fmt: skip
            revision = server.revision()
            for _ in range(bench.settings.rounds):
                took = restarted(cluster, server)
                bench.note(restart, bench.side(kind), took, "s", better="lower")
                if server.revision() < revision:
                    raise BadRun(f"{kind.label} lost acknowledged writes")


def restarted(cluster: Cluster, server: Server) -> float:
    """Seconds from kill -9 to the first linearizable answer of the process that follows."""
    began = time.monotonic()
    server.kill()
    server.start()
    return cluster.wait_ready(server) - began


def leader_killed(bench: Bench) -> None:
    """The row `failover`: ours over its election timeout; others are told beside it."""
    key = "failover/first write"
    if not bench.wants(key):
        return
    timeout = ServerConfig().election_timeout / 1000
    for kind in bench.kinds:
        bench.say(f"  {key}, {kind.label}")
        with bench.clusters(3, [kind]) as [cluster]:
            for _ in range(bench.settings.kills):
                took = first_write_after_kill(cluster)
                over = took - timeout if bench.side(kind) == OURS else took
                bench.note(key, bench.side(kind), over, "s", better="lower", kind=EXCESS, took=took)


def first_write_after_kill(cluster: Cluster) -> float:
    """Seconds from the leader's death to a write that one of the others acknowledged."""
    cluster.servers[0].put(b"bench/failover", b"before")
    leader = cluster.leader()
    others = [server for server in cluster.servers if server is not leader]
    acknowledged: list[float] = []
    began = time.monotonic()
    leader.kill()
    attempts = []
    while not acknowledged and time.monotonic() - began < GIVE_UP_SECONDS:
        for server in others:
            attempt = threading.Thread(target=_attempt, args=(server, acknowledged))
            attempt.start()
            attempts.append(attempt)
        time.sleep(ATTEMPT_EVERY_SECONDS)
    for attempt in attempts:
        attempt.join()
    if not acknowledged:
        raise BadRun(f"{cluster.kind.label}: no write for {GIVE_UP_SECONDS:.0f} s")
    leader.start()
    cluster.wait_ready(leader)
    return min(acknowledged) - began


def _attempt(server: Server, acknowledged: list[float]) -> None:
    try:
        server.put(b"bench/failover", b"after", 2.0)
    except CallFailed:
        return
    acknowledged.append(time.monotonic())
