"""Cluster: the members, and changes of them."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import rpc_message
from raftkv.api.etcd.rpc import Rpcs, Service, Unary, answering
from raftkv.errors import ChangeRefused, RaftkvError
from raftkv.machine.commands import member_update
from raftkv.server.config import BadValue, split_url
from raftkv.server.store import MemberInfo

if TYPE_CHECKING:
    from raftkv.server.store import Store

_Member = rpc_message("Member")
_Members = rpc_message("MemberListResponse")
_Added = rpc_message("MemberAddResponse")


def member_message(member: MemberInfo) -> Any:
    """An etcdserverpb.Member."""
    return _Member(
        ID=member.member_id,
        name=member.name,
        peerURLs=member.peer_urls,
        clientURLs=member.client_urls,
        isLearner=member.learner,
    )


def checked_urls(urls: Any) -> tuple[str, ...]:
    """Peer URLs that a member can have. Raises for others, and for none."""
    try:
        for url in urls:
            split_url(url)
    except BadValue:
        raise answers.BAD_MEMBER_URLS.fault() from None
    if not urls:
        raise answers.BAD_MEMBER_URLS.fault()
    return tuple(urls)


class ClusterService(Service):
    """Service etcdserverpb.Cluster. Headers tell no revision: nothing of the store is asked."""

    def __init__(self, rpcs: Rpcs) -> None:
        super().__init__(rpcs)
        path = "/etcdserverpb.Cluster/"
        rpcs.add(path + "MemberList", rpc_message("MemberListRequest"), self.list)
        rpcs.add(path + "MemberAdd", rpc_message("MemberAddRequest"), self.add)
        rpcs.add(path + "MemberRemove", rpc_message("MemberRemoveRequest"), self.remove)
        rpcs.add(path + "MemberUpdate", rpc_message("MemberUpdateRequest"), self.update)
        rpcs.add(path + "MemberPromote", rpc_message("MemberPromoteRequest"), self.promote)

    def list(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer MemberListResponse."""
        if request.linearizable:
            caller.read_index(partial(self._list, call))
        else:
            self._list(call, None)

    @answering
    def _list(self, call: Unary, error: RaftkvError | None) -> None:
        self._reply(call)

    def _reply(self, call: Unary) -> None:
        # Every answer of this service but that of MemberAdd has the members as field 2.
        members = _Members(members=map(member_message, self.store.members()))
        call.reply(self.headers.at(0) + members.SerializeToString())

    def add(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer MemberAddResponse, once the change is applied here."""
        self.rpcs.run(call, self._add(call, checked_urls(request.peerURLs), request.isLearner))

    async def _add(self, call: Unary, peer_urls: tuple[str, ...], learner: bool) -> None:
        try:
            member = await self.store.add_member("", peer_urls, learner)
        except ChangeRefused as refused:
            raise (answers.TOO_MANY_LEARNERS if learner else answers.row_of(refused)).fault() from (
                refused
            )
        added = _Added(
            member=member_message(member), members=map(member_message, self.store.members())
        )
        call.reply(self.headers.at(0) + added.SerializeToString())

    def remove(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer MemberRemoveResponse, once the change is applied here."""
        self.rpcs.run(call, self._change(call, self.store.remove_member(request.ID)))

    def promote(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer MemberPromoteResponse, once the change is applied here."""
        self.rpcs.run(call, self._change(call, self._promote(request.ID)))

    async def _promote(self, member_id: int) -> None:
        known = {member.member_id: member for member in self.store.members()}
        if member_id in known and not known[member_id].learner:
            raise answers.NOT_A_LEARNER.fault()
        try:
            await self.store.promote_member(member_id)
        except ChangeRefused as refused:
            raise answers.LEARNER_NOT_READY.fault() from refused

    async def _change(self, call: Unary, change: Coroutine[Any, Any, None]) -> None:
        await change
        self._reply(call)

    def update(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer MemberUpdateResponse, once the change is applied here."""
        if request.ID not in {member.member_id for member in self.store.members()}:
            raise answers.MEMBER_NOT_FOUND.fault()
        command = member_update(request.ID, peer_urls=checked_urls(request.peerURLs))
        caller.propose(command, partial(self._updated, call))

    @answering
    def _updated(self, call: Unary, result: Any) -> None:
        self._reply(call)
