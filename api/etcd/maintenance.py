"""Maintenance: status, alarms, hashes, snapshots, leadership."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import google_crc32c

from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import rpc_message
from raftkv.api.etcd.ranges import SLICE_ROWS_MAX
from raftkv.api.etcd.rpc import Outlet, Rpcs, Service, Streaming, Unary, answering
from raftkv.api.etcd.version import SERVER_VERSION
from raftkv.api.etcd.wire import field, number_field
from raftkv.errors import ChangeRefused, MemberNotFound, RaftkvError
from raftkv.limits import KIB
from raftkv.machine.commands import AlarmKind, alarm

if TYPE_CHECKING:
    from raftkv.api.callers import Caller
    from raftkv.machine.results import AlarmResult

SNAPSHOT_BLOB_BYTES: Final = 32 * KIB
SNAPSHOT_DIGEST_BYTES: Final = 32

_Status = rpc_message("StatusResponse")
_Alarms = rpc_message("AlarmResponse")
_GET, _ACTIVATE, _DEACTIVATE = 0, 1, 2
_CANCEL: Final = 2
_VERSION: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)(\.\d+)?")


class MaintenanceService(Service):
    """Service etcdserverpb.Maintenance."""

    def __init__(self, rpcs: Rpcs) -> None:
        super().__init__(rpcs)
        path = "/etcdserverpb.Maintenance/"
        rpcs.add(path + "Status", rpc_message("StatusRequest"), self.status)
        rpcs.add(path + "Alarm", rpc_message("AlarmRequest"), self.alarm)
        rpcs.add(path + "Defragment", rpc_message("DefragmentRequest"), self.defragment)
        rpcs.add(path + "Hash", rpc_message("HashRequest"), self.hash)
        rpcs.add(path + "HashKV", rpc_message("HashKVRequest"), self.hash_kv)
        rpcs.add(path + "MoveLeader", rpc_message("MoveLeaderRequest"), self.move_leader)
        rpcs.add(path + "Downgrade", rpc_message("DowngradeRequest"), self.downgrade)
        rpcs.add_server_stream(path + "Snapshot", rpc_message("SnapshotRequest"), self.snapshot)

    # ---- status and alarms

    def status(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer StatusResponse."""
        status = self.store.status()
        problems = []
        leader = int(status["leader"] or "0", 16)
        if not leader:
            problems.append(answers.NO_LEADER.text)
        for kind, member_id in sorted(self.store.machine.alarms):
            problems.append(f"memberID:{member_id} alarm:{AlarmKind(kind).name} ")
        answer = _Status(
            version=SERVER_VERSION,
            dbSize=status.get("db_bytes", 0),
            dbSizeInUse=status.get("db_used_bytes", 0),
            dbSizeQuota=status.get("quota_bytes", 0),
            leader=leader,
            raftIndex=status["commit_index"],
            raftAppliedIndex=status["applied_index"],
            raftTerm=status["term"],
            errors=problems,
            isLearner=status["role"] == "learner",
            storageVersion=SERVER_VERSION,
            downgradeInfo={},
        )
        call.reply(self.headers.now() + answer.SerializeToString())

    def alarm(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer AlarmResponse: the alarms asked for, or the one that changed."""
        kind = request.alarm
        if request.action not in (_ACTIVATE, _DEACTIVATE) or not kind:
            on = self.store.machine.alarms if request.action == _GET else frozenset()
            self._alarms(call, [each for each in sorted(on) if kind in (0, each[0])])
            return
        member_id = request.memberID
        command = alarm(kind, member_id, request.action == _ACTIVATE)
        caller.propose(command, partial(self._alarm_set, call, kind, member_id))

    @answering
    def _alarm_set(self, call: Unary, kind: int, member_id: int, result: AlarmResult) -> None:
        told = result.changed or [kind, member_id] in result.alarms
        self._alarms(call, [(kind, member_id)] if told else [])

    def _alarms(self, call: Unary, alarms: list[tuple[int, int]]) -> None:
        answer = _Alarms(alarms=[{"memberID": member, "alarm": kind} for kind, member in alarms])
        call.reply(self.headers.now() + answer.SerializeToString())

    def defragment(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer DefragmentResponse, once free space is back on the disk: beside the traffic, and
        never needed in order to go on."""
        self.rpcs.run(call, self._defragment(caller, call))

    async def _defragment(self, caller: Caller, call: Unary) -> None:
        await self.rpcs.confirmed(caller)
        await self.store.shrink()
        call.reply(b"")

    # ---- hashes

    def hash(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer HashResponse: of all state, equal on members that have applied as much."""
        digest = int.from_bytes(self.store.machine.state_hash[:4], "big")
        call.reply(self.headers.now() + number_field(2, digest))

    def hash_kv(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer HashKVResponse: of the keys as they are at a revision, 0 for the newest."""
        self.rpcs.run(call, self._hash_kv(call, max(request.revision, 0)))

    async def _hash_kv(self, call: Unary, revision: int) -> None:
        machine = self.store.machine
        compacted = machine.compact_revision
        start: bytes | None = b""
        crc = 0
        while start is not None:
            found = machine.range(start, b"", revision=revision, examine_max=SLICE_ROWS_MAX)
            revision, start = found.revision, found.resume
            for record in found.records:
                crc = google_crc32c.extend(crc, record.wire)
            await asyncio.sleep(0)
        call.reply(
            b"".join(
                (
                    self.headers.now(),
                    number_field(2, crc),
                    number_field(3, compacted),
                    number_field(4, revision),
                )
            )
        )

    # ---- snapshots

    def snapshot(self, caller: Caller, call: Streaming, request: Any) -> None:
        """Answer SnapshotResponses: the file in pieces, last the SHA-256 of all before it."""
        self.rpcs.run(call, self._snapshot(caller, call))

    async def _snapshot(self, caller: Caller, call: Streaming) -> None:
        outlet = Outlet(call)
        await self.rpcs.confirmed(caller)
        snapshot = await self.store.snapshot()
        left = snapshot.size_bytes - SNAPSHOT_DIGEST_BYTES
        version = field(4, SERVER_VERSION.encode())
        waiting = b""
        async for chunk in snapshot.chunks:
            waiting += chunk
            at = 0
            while left and len(waiting) - at >= min(left, SNAPSHOT_BLOB_BYTES):
                blob = waiting[at : at + min(left, SNAPSHOT_BLOB_BYTES)]
                at += len(blob)
                left -= len(blob)
                await outlet.send(number_field(2, left) + field(3, blob) + version)
            waiting = waiting[at:]
        await outlet.send(field(3, waiting) + version)
        call.finish()

    # ---- the cluster

    def move_leader(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer MoveLeaderResponse. Only the leader moves."""
        if self.store.status()["role"] != "leader":
            raise answers.NOT_LEADER.fault()
        self.rpcs.run(call, self._move_leader(caller, call, request.targetID))

    async def _move_leader(self, caller: Caller, call: Unary, target: int) -> None:
        await self.rpcs.confirmed(caller)
        try:
            await self.store.transfer_leader(target)
        except (MemberNotFound, ChangeRefused) as refused:
            raise answers.BAD_TRANSFEREE.fault() from refused
        call.reply(self.headers.now())

    def downgrade(self, caller: Caller, call: Unary, request: Any) -> None:
        """Refuse: there is no older version that could read this one's data."""
        if request.action == _CANCEL:
            raise answers.NO_DOWNGRADE.fault()
        if request.action > _CANCEL:
            raise answers.UNKNOWN_METHOD.fault()
        if _VERSION.fullmatch(request.version) is None:
            raise answers.DOWNGRADE_FORMAT.fault()
        caller.read_index(partial(self._downgrade, call, request.version))

    @answering
    def _downgrade(self, call: Unary, version: str, error: RaftkvError | None) -> None:
        raise answers.DOWNGRADE_TARGET.fault()
