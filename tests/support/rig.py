"""Replicas on one thread under virtual time: real consensus, log, machine and watches.

Messages take one turn of the rig, writes are durable when the rig says so. No sockets, no sleeps.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from raftkv.consensus.codec import encode_conf
from raftkv.consensus.config import RaftConfig
from raftkv.consensus.node import RaftNode
from raftkv.consensus.types import ConfState, Message, Role, SnapshotMeta, StorageWrite
from raftkv.machine.cluster import MemberInfo
from raftkv.machine.machine import Machine
from raftkv.server.replica import Batch, Replica
from raftkv.server.store import StoreStats
from raftkv.storage.backend import MemoryBackend
from raftkv.storage.disk import RealDisk
from raftkv.storage.frames import WalIdentity
from raftkv.storage.wal import Wal
from raftkv.storage.wallog import WalLog

TICK_MS = 100
FOUNDING = SnapshotMeta(1, 1, ConfState())


class Site:
    """One member's replica and the surroundings that it asks things of."""

    def __init__(self, rig: Rig, member_id: int, folder: Path) -> None:
        self.rig = rig
        self.member_id = member_id
        self.folder = folder
        self.boots = 0
        self.backend = MemoryBackend()
        self.down = False
        self.gone = False
        self.hold_writes = False
        self.writes: list[StorageWrite] = []
        self.awake = False
        self.boot()

    def boot(self) -> None:
        """Start from what is on disk and in the tables."""
        self.boots += 1
        founders = self.rig.founders
        meta = SnapshotMeta(1, 1, ConfState(voters=founders))
        machine = Machine(self.backend)
        if machine.applied_index == 0 and self.member_id in founders:
            members = [MemberInfo(i, f"n{i}", (f"http://m{i}:1",), (), False) for i in founders]
            machine.bootstrap(1, 1, encode_conf(meta.conf), members)
        self.wal, recovered = Wal.open(
            RealDisk(), str(self.folder), identity=WalIdentity(7, self.member_id),
            segment_bytes=1 << 20,
        )  # fmt: skip
        log = WalLog(RealDisk(), str(self.folder), recovered, conf=self.rig.conf_of(machine))
        if log.last_index() == 0 and machine.applied_index == 1:
            log.persisted(self.wal.write((), None, meta))
            self.wal.sync()
        node = RaftNode(
            RaftConfig(member_id=self.member_id),
            log,
            random.Random(self.member_id * 1000 + self.boots),
            applied=machine.applied_index,
        )
        self.replica = Replica(
            member_id=self.member_id,
            boot=self.boots,
            node=node,
            log=log,
            machine=machine,
            surroundings=self,
            stats=StoreStats(),
            request_timeout_ms=5_000,
            watches_max=1_000,
        )
        self.writes = []
        self.asides: list[list[Batch]] = []
        self.down = False

    def crash(self) -> None:
        """Lose what is not on disk; queued writes never happen."""
        self.down = True
        self.writes = []
        self.wal.close()

    # Surroundings

    def wake(self) -> None:
        self.awake = True

    def now_ms(self) -> int:
        return self.rig.now_ms

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.rig.now_ms

    def send(self, peer: int, messages: list[Message]) -> None:
        self.rig.mail.append((self.member_id, peer, messages))

    def send_frame(self, peer: int, kind: int, payload: bytes) -> bool:
        if self.rig.cut(self.member_id, peer):
            return False
        self.rig.frames.append((self.member_id, peer, kind, payload))
        return True

    def send_snapshot(self, message: Message) -> None:
        self.rig.snapshots.append(message)

    def append(self, write: StorageWrite) -> None:
        self.writes.append(write)

    def install(self, meta: SnapshotMeta) -> None:
        raise AssertionError("this rig sends no snapshots")

    def apply_aside(self, entries: list[Batch]) -> None:
        self.asides.append(entries)

    def work_out_aside(self) -> None:
        """Finish the apply that was begun aside."""
        self.replica.worked_out(self.replica.machine.work_out(self.asides.pop()))

    def members_changed(self) -> None:
        pass

    def removed(self) -> None:
        self.gone = True


class Rig:
    """Several sites and the network between them."""

    def __init__(self, folder: Path, size: int) -> None:
        self.now_ms = 0
        self.founders = tuple(range(1, size + 1))
        self.mail: list[tuple[int, int, list[Message]]] = []
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.snapshots: list[Message] = []
        self.isolated: set[int] = set()
        self.sites = {i: Site(self, i, folder / f"m{i}") for i in self.founders}

    @staticmethod
    def conf_of(machine: Machine) -> ConfState | None:
        from raftkv.consensus.codec import decode_conf

        return decode_conf(machine.conf) if machine.conf else None

    def cut(self, source: int, target: int) -> bool:
        """Whether nothing gets from `source` to `target` just now."""
        site = self.sites.get(target)
        return source in self.isolated or target in self.isolated or site is None or site.down

    def step(self) -> bool:
        """Let everything that is due happen once; whether anything did."""
        moved = False
        mail, self.mail = self.mail, []
        for source, target, messages in mail:
            moved = True
            if not self.cut(source, target):
                self.sites[target].replica.receive(source, messages)
        frames, self.frames = self.frames, []
        for source, target, kind, payload in frames:
            moved = True
            if not self.cut(source, target):
                self.sites[target].replica.receive_frame(source, kind, payload)
        for site in self.sites.values():
            if site.down:
                continue
            if site.writes and not site.hold_writes:
                moved = True
                writes, site.writes = site.writes, []
                written = [(w, site.wal.write(w.entries, w.hard_state, w.snapshot)) for w in writes]
                site.wal.sync()
                site.replica.written(written)
            if site.awake:
                moved = True
                site.awake = False
                site.replica.turn()
        return moved

    def settle(self) -> None:
        """Until nothing moves any more without time."""
        for _ in range(10_000):
            if not self.step():
                return
        raise AssertionError("the rig does not come to rest")

    def pass_time(self, milliseconds: int, stalled: int = 0) -> None:
        """Let time pass on all sites, tick by tick."""
        for _ in range(milliseconds // TICK_MS):
            self.now_ms += TICK_MS
            for site in self.sites.values():
                if not site.down:
                    site.replica.tick(self.now_ms)
            self.settle()

    def leader(self) -> Site:
        """The site that leads, after as much time as that takes."""
        for _ in range(100):
            leading = [
                site
                for site in self.sites.values()
                if not site.down
                and site.member_id not in self.isolated
                and site.replica.node.role is Role.LEADER
            ]
            if leading:
                return max(leading, key=lambda site: site.replica.node.term)
            self.pass_time(TICK_MS)
        raise AssertionError("no leader")

    def propose(self, site: Site, command: bytes) -> list[Any]:
        """Propose at a site; the list gets the answer once there is one."""
        answers: list[Any] = []
        site.replica.propose(command, answers.append)
        return answers

    def close(self) -> None:
        """Let go of files."""
        for site in self.sites.values():
            if not site.down:
                site.wal.close()
            site.replica.log.close()
