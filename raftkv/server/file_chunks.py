"""A snapshot file, chunk by chunk; not in the member because mypyc has no async generators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from raftkv.storage.snapshots import SnapshotInfo, SnapshotStore


async def file_chunks(
    store: SnapshotStore, info: SnapshotInfo, executor: Executor
) -> AsyncIterator[bytes]:
    """The bytes of a snapshot that was verified, in order; they are read in `executor`."""
    loop = asyncio.get_running_loop()
    offset = 0
    while offset < info.size:
        chunk, _ = await loop.run_in_executor(executor, store.read_chunk, info, offset)
        offset += len(chunk)
        yield chunk
