"""Python clients for raftkv: `AsyncClient` for asyncio and `Client` for threads.

    from raftkv.client import Client

    with Client("127.0.0.1:2379") as client:
        client.put("greeting", "hello")
        print(client.get("greeting").text)

What they answer is in `raftkv.client.results`, what they raise in `raftkv.errors` and
`raftkv.client.errors`, and the parts of transactions are in `raftkv.client.txn`.
"""

from raftkv.client.client import AsyncClient
from raftkv.client.errors import (
    BadAnswer,
    LeaseLost,
    PreconditionFailed,
    TransferBroken,
    Unreachable,
)
from raftkv.client.results import Event, Instance, Record, ServiceEvent
from raftkv.client.sync import Client

__all__ = [
    "AsyncClient",
    "BadAnswer",
    "Client",
    "Event",
    "Instance",
    "LeaseLost",
    "PreconditionFailed",
    "Record",
    "ServiceEvent",
    "TransferBroken",
    "Unreachable",
]
