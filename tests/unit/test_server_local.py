"""The store without consensus keeps the promises of the seam."""

from __future__ import annotations

import asyncio
from typing import Any

from raftkv.errors import LeaseNotFound, Stopping
from raftkv.limits import BATCH_COMMANDS_MAX, VALUE_BYTES_MAX
from raftkv.machine.commands import compact, delete, lease_grant, put
from raftkv.machine.results import PutResult
from raftkv.server.local import LocalStore
from raftkv.server.store import KeepAliveResult, LeaseTime


class Calls:
    """Collects what `done` is called with."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def __call__(self, answer: Any) -> None:
        self.got.append(answer)


async def settle(calls: Calls, count: int) -> list[Any]:
    async with asyncio.timeout(10):
        while len(calls.got) < count:
            await asyncio.sleep(0)
    return calls.got


async def test_answers_come_later_once_and_in_order() -> None:
    store = LocalStore()
    calls = Calls()
    for at in range(3):
        store.propose(put(b"k", b"%d" % at), calls)
    store.read_index(calls)
    assert not calls.got and store.machine.revision == 1
    first, second, third, read = await settle(calls, 4)
    assert [one.revision for one in (first, second, third)] == [2, 3, 4]
    assert read is None and isinstance(first, PutResult)
    assert store.machine.applied_index == 2  # one turn is one entry, after the founding one
    assert store.stamp() == (4, 1, 1)
    store.close()


async def test_a_turn_of_any_size_is_cut_into_batches() -> None:
    store = LocalStore()
    calls = Calls()
    for at in range(BATCH_COMMANDS_MAX + 1):
        store.propose(put(b"%d" % at, b""), calls)
    await settle(calls, BATCH_COMMANDS_MAX + 1)
    assert store.machine.applied_index == 3
    for at in range(6):
        store.propose(put(b"%d" % at, b"x" * VALUE_BYTES_MAX), calls)
    await settle(calls, BATCH_COMMANDS_MAX + 7)
    assert store.machine.applied_index == 6
    store.close()


async def test_leases_are_kept_told_and_expire() -> None:
    store = LocalStore()
    calls = Calls()
    store.propose(lease_grant(7, 1), calls)
    store.propose(put(b"k", b"", lease=7), calls)
    await settle(calls, 2)
    store.keep_alive(7, calls)
    store.lease_time(7, calls)
    store.keep_alive(8, calls)
    store.lease_time(8, calls)
    kept, left, *unknown = (await settle(calls, 6))[2:]
    assert kept == KeepAliveResult(7, 1)
    assert isinstance(left, LeaseTime) and 0 < left.remaining_ms <= 1000
    assert all(isinstance(one, LeaseNotFound) for one in unknown)
    async with asyncio.timeout(5):
        while store.machine.get(b"k") is not None:
            await asyncio.sleep(0.05)
    assert store.machine.lease(7) is None and store.stats.leases_expired == 1
    store.close()


async def test_compaction_is_carried_through() -> None:
    store = LocalStore()
    calls = Calls()
    for _ in range(5):
        store.propose(put(b"k", b""), calls)
    store.propose(delete(b"k"), calls)
    store.propose(compact(6), calls)
    await settle(calls, 7)
    assert store.machine.compaction_pending
    async with asyncio.timeout(5):
        while store.machine.compaction_pending:
            await asyncio.sleep(0.05)
    store.close()


async def test_a_closed_store_refuses() -> None:
    store = LocalStore()
    calls = Calls()
    store.propose(lease_grant(7, 60), calls)
    await settle(calls, 1)
    store.close()
    store.propose(put(b"k", b""), calls)
    store.read_index(calls)
    store.keep_alive(7, calls)
    answers = (await settle(calls, 4))[1:]
    assert all(isinstance(one, Stopping) for one in answers)
    assert "stopping" in store.health()
