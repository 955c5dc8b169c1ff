"""What the log's writer calls durable is there after a power cut at that very moment."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from raftkv.consensus.types import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    SnapshotMeta,
    StorageWrite,
)
from raftkv.server.append_thread import Pause, append_steps
from raftkv.simulation.disk import SimDisk
from raftkv.storage.frames import WalIdentity
from raftkv.storage.wal import Wal

FOUNDING = SnapshotMeta(1, 1, ConfState(voters=(1,)))


def opened(disk: SimDisk) -> tuple[Wal, Any]:
    return Wal.open(
        disk, "/wal", identity=WalIdentity(7, 1), segment_bytes=1 << 16, spawn=None
    )  # fmt: skip


def write(index: int, term: int) -> StorageWrite:
    entry = Entry(index, term, EntryKind.BATCH, b"entry %d" % index)
    return StorageWrite((entry,), HardState(term, 1, 1), None, True, ())


@pytest.mark.parametrize("seed", range(20))
def test_what_is_told_as_written_outlives_a_power_cut(seed: int) -> None:
    disk = SimDisk(Random(seed))
    wal, _ = opened(disk)
    wal.write((), None, FOUNDING)
    wal.sync()
    items = [write(2, 1), write(3, 1), lambda wal: None, write(4, 2)]
    told: list[Any] = []
    steps = append_steps(wal, items)
    for _ in range(Random(seed).randrange(6)):
        step = next(steps, None)
        if step is not None and not isinstance(step, Pause):
            told += step
    disk.power_cut()
    _, recovered = opened(disk)
    last = max((write.entries[-1].index for write, _ in told), default=1)
    assert recovered.index.last_index >= last
    if told:
        assert recovered.hard_state.term >= told[-1][0].hard_state.term


def test_writes_share_a_sync_and_a_job_waits_for_those_before_it() -> None:
    disk = SimDisk(Random(1))
    wal, _ = opened(disk)
    wal.write((), None, FOUNDING)
    wal.sync()
    order: list[str] = []
    items = [write(2, 1), write(3, 1), lambda wal: order.append("job"), write(4, 1)]
    for step in append_steps(wal, items):
        order.append(
            step.value
            if isinstance(step, Pause)
            else f"told {[w.entries[0].index for w, _ in step]}"
        )
    assert order == ["sync", "told [2, 3]", "job", "sync", "told [4]"]
