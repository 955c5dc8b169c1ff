"""A load of unary calls through grpcio, as a program in Python would make them.

    echo SPEC | python -m benchmarks.load.real_client

The client costs more than most servers; both sides get the same one. Prints an `Outcome`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc
import grpc.aio

from benchmarks.load.spec import Outcome, Spec, Tally
from benchmarks.load.unary import jobs_of


async def real_client_load(spec: Spec) -> Outcome:
    """As many workers as the spec has places, each with one call under way."""
    jobs = jobs_of(spec)
    next(jobs)  # builds them all
    started, cpu = time.perf_counter(), time.process_time()
    tally = Tally(spec, started)

    async def work(channel: grpc.aio.Channel) -> None:
        calls: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}
        while time.perf_counter() < tally.counts_until:
            job = next(jobs)
            call = calls.get(job.path) or calls.setdefault(job.path, channel.unary_unary(job.path))
            began = time.perf_counter()
            try:
                answer = await call(job.body[5:])
            except grpc.aio.AioRpcError as error:
                tally.wrong(f"gRPC status {error.code()}")
                continue
            if job.check(answer):
                tally.right(began, time.perf_counter())
            else:
                tally.wrong("an answer that is not the right one")

    channels = [
        grpc.aio.insecure_channel(
            spec.addresses[number % len(spec.addresses)], [("grpc.use_local_subchannel_pool", 1)]
        )
        for number in range(spec.connections)
    ]
    await asyncio.gather(*(work(channel) for channel in channels for _ in range(spec.streams)))
    ended = time.perf_counter()
    for channel in channels:
        await channel.close()
    return tally.outcome(ended, time.process_time() - cpu)


if __name__ == "__main__":
    outcome = asyncio.run(real_client_load(Spec.from_dict(json.loads(sys.stdin.readline()))))
    print(json.dumps(outcome.as_dict()))
