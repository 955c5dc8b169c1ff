"""What a client makes of answers that no member gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from raftkv.client import AsyncClient
from raftkv.client.errors import BadAnswer, error_from_problem
from raftkv.errors import NoSpace

CALLS: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
    "put": lambda client: client.put("a", "1"),
    "get": lambda client: client.get("a"),
    "delete": lambda client: client.delete("a"),
    "range": lambda client: client.range(prefix="a"),
    "count": lambda client: client.count(),
    "txn": lambda client: client.transact({}),
    "status": lambda client: client.cluster.status(),
    "members": lambda client: client.cluster.members(),
    "add member": lambda client: client.cluster.add_member(["http://a:1"]),
    "compact": lambda client: client.cluster.compact(1),
    "grant": lambda client: client.leases.grant(5),
    "revoke": lambda client: client.leases.revoke("7"),
    "show": lambda client: client.leases.show("7"),
    "leases": lambda client: client.leases.list(),
    "register": lambda client: client.services.register("a", "b", address="c", port=1, ttl=5),
    "heartbeat": lambda client: client.services.heartbeat("a", "b"),
    "deregister": lambda client: client.services.deregister("a", "b"),
    "services": lambda client: client.services.list(),
    "instances": lambda client: client.services.instances("a"),
    "instance": lambda client: client.services.instance("a", "b"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", [b"{}", b'{"revision":"x","items":3,"ttl":[],"lease":"7"}'])
async def test_an_answer_of_a_wrong_shape_is_a_bad_answer(call: str, body: bytes) -> None:
    """Not a KeyError from somewhere within."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=body, content_type="application/json")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with AsyncClient(f"http://127.0.0.1:{port}", timeout=3) as client:
            with pytest.raises(BadAnswer):
                await CALLS[call](client)
    finally:
        await runner.cleanup()


def test_a_problem_may_hold_facts_of_any_name() -> None:
    problem = {"code": "no_space", "outcome": "refused", "self": 1, "message": 2, "kind": 3}
    error = error_from_problem(problem, writes=True)
    assert type(error) is NoSpace
    assert error.facts == {"kind": 3, "code": "no_space"}
