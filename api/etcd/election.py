"""Election: the contender with the oldest key leads; its key's value is what it proclaims."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import ETCD
from raftkv.api.etcd.ownership import Ownership, plainly
from raftkv.api.etcd.rpc import Outlet, Rpcs, Service, Streaming, Unary
from raftkv.api.etcd.wire import field, number_field
from raftkv.machine.commands import (
    Compare,
    CompareTarget,
    Relation,
    compare,
    delete_op,
    put_op,
    range_op,
    txn,
)

if TYPE_CHECKING:
    from raftkv.machine.records import Record
    from raftkv.server.store import Store

PATH = "/v3electionpb.Election/"


def still_leads(leader: Any) -> Compare:
    """Holds while the leader's key is the one that was won."""
    return compare(CompareTarget.CREATE, Relation.EQUAL, leader.key, leader.rev)


class ElectionService(Service):
    """Service v3electionpb.Election."""

    def __init__(self, rpcs: Rpcs) -> None:
        super().__init__(rpcs)
        message = ETCD.message
        rpcs.add(PATH + "Campaign", message("v3electionpb.CampaignRequest"), self.campaign)
        rpcs.add(PATH + "Proclaim", message("v3electionpb.ProclaimRequest"), self.proclaim)
        rpcs.add(PATH + "Leader", message("v3electionpb.LeaderRequest"), self.leader)
        rpcs.add(PATH + "Resign", message("v3electionpb.ResignRequest"), self.resign)
        rpcs.add_server_stream(
            PATH + "Observe", message("v3electionpb.LeaderRequest"), self.observe
        )

    def campaign(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer CampaignResponse once the election is won."""
        self.rpcs.run(call, plainly(self._campaign(caller, call, request)))

    async def _campaign(self, caller: Store, call: Unary, request: Any) -> None:
        ownership = Ownership(self.rpcs, caller, request.name)
        lease = await ownership.session(request.lease)
        key = ownership.key(lease)
        put = put_op(key, request.value, lease=lease)
        result = await ownership.contend(key, [put], [range_op(key)])
        created = result.revision
        if not result.succeeded:
            own = result.responses[0].records[0]
            created = own.create_revision
            if own.value != request.value:
                await self._proclaim(ownership, key, created, request.value)
        await ownership.wait_for_turn(call, key, created)
        leader = b"".join(
            (field(1, request.name), field(2, key), number_field(3, created),
             number_field(4, lease))
        )  # fmt: skip
        call.reply(self.headers.at(result.revision) + field(2, leader))

    async def _proclaim(self, ownership: Ownership, key: bytes, created: int, value: bytes) -> None:
        leads = compare(CompareTarget.CREATE, Relation.EQUAL, key, created)
        put = put_op(key, value, ignore_lease=True)
        result = await ownership.transact(txn([leads], [put]))
        if not result.succeeded:
            raise answers.NOT_ELECTED.fault()

    def proclaim(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer ProclaimResponse; refused unless the election is still won."""
        leader = self._leader_of(request)
        self.rpcs.run(call, plainly(self._proclaimed(caller, call, leader, request.value)))

    async def _proclaimed(self, caller: Store, call: Unary, leader: Any, value: bytes) -> None:
        ownership = Ownership(self.rpcs, caller, leader.name)
        await self._proclaim(ownership, leader.key, leader.rev, value)
        call.reply(self.headers.now())

    @staticmethod
    def _leader_of(request: Any) -> Any:
        if not request.HasField("leader"):
            raise answers.LEADER_KEY_MISSING.fault()
        return request.leader

    def leader(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer LeaderResponse."""
        ownership = Ownership(self.rpcs, caller, request.name)
        self.rpcs.run(call, plainly(self._leader(call, ownership)))

    async def _leader(self, call: Unary, ownership: Ownership) -> None:
        owner = await ownership.owner()
        if owner is None:
            raise answers.NO_ELECTED_LEADER.fault()
        call.reply(self.headers.now() + field(2, owner.wire))

    def resign(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer ResignResponse, whether or not the election was still won."""
        leader = self._leader_of(request)
        self.rpcs.run(call, plainly(self._resign(caller, call, leader)))

    async def _resign(self, caller: Store, call: Unary, leader: Any) -> None:
        ownership = Ownership(self.rpcs, caller, leader.name)
        await ownership.transact(txn([still_leads(leader)], [delete_op(leader.key)]))
        call.reply(self.headers.now())

    def observe(self, caller: Store, call: Streaming, request: Any) -> None:
        """Answer a LeaderResponse for each leader and each value proclaimed, until cancelled."""
        ownership = Ownership(self.rpcs, caller, request.name)
        self.rpcs.run(call, plainly(self._observe(call, ownership)))

    async def _observe(self, call: Streaming, ownership: Ownership) -> None:
        outlet = Outlet(call)
        while True:
            owner = await ownership.owner()
            if owner is None:
                owner = await self._first_put(ownership)
            await self._tell(outlet, owner)
            changes = ownership.changes(owner.key, owner.mod_revision + 1)
            try:
                while not (event := await changes.next()).deleted:
                    await self._tell(outlet, event.record)
            finally:
                changes.cancel()

    async def _first_put(self, ownership: Ownership) -> Record:
        changes = ownership.changes(None, self.store.machine.revision + 1)
        try:
            return (await changes.next()).record
        finally:
            changes.cancel()

    async def _tell(self, outlet: Outlet, owner: Record) -> None:
        await outlet.send(self.headers.at(owner.mod_revision) + field(2, owner.wire))
        await asyncio.sleep(0)
