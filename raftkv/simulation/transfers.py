"""The snapshots that a simulated member sends and takes, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from raftkv.consensus.types import Message
from raftkv.errors import DiskFullError, PeerError, StorageError
from raftkv.simulation.world import SECOND_US
from raftkv.storage.snapshots import SnapshotInfo

if TYPE_CHECKING:
    from raftkv.simulation.member import SimMember

PATIENCE_US: Final = 3 * SECOND_US
"""A transfer that does not move for so long has failed."""


@dataclass(slots=True, eq=False)
class _Transfer:
    message: Message
    info: SnapshotInfo
    offset: int = 0


class Transfers:
    """Those of one process of `member`. Each chunk waits for the answer to the one before."""

    def __init__(self, member: SimMember) -> None:
        self._member = member
        self._sending: dict[int, _Transfer] = {}

    def send(self, message: Message) -> None:
        """Send the snapshot that `message` announces to its target."""
        member, peer = self._member, message.target
        info = member.opened.snapshots.latest()
        if info is None or message.snapshot is None or info.meta.index < message.snapshot.index:
            member.later(0, member.snapshot_sent, peer, False)
            return
        member.world.note(member.name, f"sends the snapshot at {info.meta.index} to {peer}")
        announced = Message(message.kind, message.source, peer, message.term, snapshot=info.meta)
        transfer = self._sending[peer] = _Transfer(announced, info)
        self._send_chunk(peer, transfer, 0)
        member.later(PATIENCE_US, self._look_after, peer, transfer, -1)

    def _send_chunk(self, peer: int, transfer: _Transfer, offset: int) -> None:
        member = self._member
        try:
            data, crc = member.opened.snapshots.read_chunk(
                transfer.info, offset, member.settings.snapshot_chunk_bytes
            )
        except StorageError:
            self._end(peer, transfer, False)
            return
        member.to_peer(peer, "transfers.take", transfer, offset, data, crc)

    def take(self, source: int, transfer: _Transfer, offset: int, data: bytes, crc: int) -> None:
        """A chunk has come from `source`."""
        member = self._member
        if member.tables_busy:
            return
        try:
            receiver = member.opened.snapshots.receive(transfer.info)
            receiver.write_chunk(offset, data, crc)
            if receiver.complete:
                receiver.finish()
                member.to_peer(source, "transfers.taken", transfer, -1)
                member.replica.receive(source, [transfer.message])
                return
        except PeerError:
            receiver = member.opened.snapshots.receive(transfer.info)
        except DiskFullError:
            return
        member.to_peer(source, "transfers.taken", transfer, receiver.offset)

    def taken(self, peer: int, transfer: _Transfer, offset: int) -> None:
        """`peer` has what comes before `offset`; -1: everything."""
        if self._sending.get(peer) is not transfer:
            return
        if offset < 0:
            self._end(peer, transfer, True)
        elif offset > transfer.offset:
            transfer.offset = offset
            self._send_chunk(peer, transfer, offset)

    def _look_after(self, peer: int, transfer: _Transfer, seen: int) -> None:
        if self._sending.get(peer) is not transfer:
            return
        if transfer.offset == seen:
            self._end(peer, transfer, False)
        else:
            self._member.later(PATIENCE_US, self._look_after, peer, transfer, transfer.offset)

    def _end(self, peer: int, transfer: _Transfer, delivered: bool) -> None:
        if self._sending.get(peer) is transfer:
            del self._sending[peer]
        self._member.later(0, self._member.snapshot_sent, peer, delivered)
