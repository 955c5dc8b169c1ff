"""A name server on loopback that knows a few SRV records and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset


class _Server(asyncio.DatagramProtocol):
    def __init__(self, records: Mapping[str, Sequence[tuple[str, int]]]) -> None:
        self._records = records
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query, recursion_available=True)
        (question,) = query.question
        targets = self._records.get(str(question.name).rstrip("."))
        if targets is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        else:
            rows = [f"0 0 {port} {host}." for host, port in targets]
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "SRV", *rows))
        assert self._transport is not None
        self._transport.sendto(answer.to_wire(), address)


@asynccontextmanager
async def name_server(records: Mapping[str, Sequence[tuple[str, int]]]) -> AsyncIterator[str]:
    """Serves SRV records, as {name: [(host, port)]}; yields its HOST:PORT."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Server(records), local_addr=("127.0.0.1", 0)
    )
    try:
        yield "{}:{}".format(*transport.get_extra_info("sockname"))
    finally:
        transport.close()
