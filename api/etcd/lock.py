"""Lock: a lock is held for as long as its key exists, which hangs on the holder's lease."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import ETCD
from raftkv.api.etcd.ownership import Ownership, plainly
from raftkv.api.etcd.rpc import Rpcs, Service, Unary
from raftkv.api.etcd.wire import field
from raftkv.machine.commands import delete, put_op, range_op

if TYPE_CHECKING:
    from raftkv.server.store import Store


class LockService(Service):
    """Service v3lockpb.Lock."""

    def __init__(self, rpcs: Rpcs) -> None:
        super().__init__(rpcs)
        rpcs.add("/v3lockpb.Lock/Lock", ETCD.message("v3lockpb.LockRequest"), self.lock)
        rpcs.add("/v3lockpb.Lock/Unlock", ETCD.message("v3lockpb.UnlockRequest"), self.unlock)

    def lock(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer LockResponse once the lock is held."""
        ownership = Ownership(self.rpcs, caller, request.name)
        self.rpcs.run(call, plainly(self._lock(call, ownership, request.lease)))

    async def _lock(self, call: Unary, ownership: Ownership, lease: int) -> None:
        lease = await ownership.session(lease)
        key = ownership.key(lease)
        result = await ownership.contend(
            key,
            [put_op(key, b"", lease=lease), ownership.oldest()],
            [range_op(key), ownership.oldest()],
        )
        own, owner = result.responses
        created = result.revision if result.succeeded else own.records[0].create_revision
        if owner.records[0].create_revision != created:
            await ownership.wait_for_turn(call, key, created)
            await ownership.confirmed()
            if self.store.machine.get(key) is None:
                raise answers.SESSION_EXPIRED.fault()
            call.reply(self.headers.now() + field(2, key))
        else:
            call.reply(self.headers.at(result.revision) + field(2, key))

    def unlock(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer UnlockResponse."""
        self.rpcs.run(call, plainly(self._unlock(caller, call, request.key)))

    async def _unlock(self, caller: Store, call: Unary, key: bytes) -> None:
        result = await self.rpcs.outcome(caller.propose, delete(key))
        call.reply(self.headers.at(result.revision))
