"""The cluster itself: members, leadership, history, snapshots."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from raftkv.client.errors import TransferBroken
from raftkv.client.results import Compaction, Member, Quota, Shrunk, SnapshotSaved, Status
from raftkv.client.transport import Answer, Call, network_errors, origin
from raftkv.client.wire import segment, understood
from raftkv.errors import InvalidRequest, RaftkvError

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient

SNAPSHOT_OPEN_SECONDS = 60.0
"""How long a member may take to make the copy that it sends: no other one would be quicker."""
SNAPSHOT_STALL_SECONDS = 30.0
SHRINK_SECONDS = 3600.0
SHRINK_PROGRESS_SECONDS = 0.5
SNAPSHOT_WRITE_BYTES = 1024 * 1024

Progress = Callable[[int, int | None], None]
"""Told (bytes so far, bytes in all or None)."""


class Cluster:
    """Calls about the cluster; reached as `AsyncClient.cluster`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def status(self, endpoint: str | None = None, *, timeout: float | None = None) -> Status:
        """One member's view: that of `endpoint`, or of the first that answers."""
        call = Call("GET", "/api/status", endpoint=endpoint)
        body = (await self._client.transport.call(call, timeout)).json()
        with understood():
            return Status.from_json(body)

    async def statuses(
        self, *, timeout: float | None = None
    ) -> tuple[tuple[str, Status | RaftkvError], ...]:
        """The view of every endpoint, asked at once, or why it gave none."""

        async def ask(endpoint: str) -> tuple[str, Status | RaftkvError]:
            try:
                return endpoint, await self.status(endpoint, timeout=timeout)
            except RaftkvError as error:
                return endpoint, error

        return tuple(await asyncio.gather(*map(ask, self._client.endpoints)))

    async def health(
        self, endpoint: str | None = None, *, timeout: float | None = None
    ) -> tuple[bool, str]:
        """Whether a member is healthy, and why not."""
        call = Call("GET", "/health", endpoint=endpoint, accept=(200, 503))
        body = (await self._client.transport.call(call, timeout)).json()
        return body.get("health") in (True, "true"), str(body.get("reason") or "")

    async def members(self, *, timeout: float | None = None) -> tuple[Member, ...]:
        """The members, by id."""
        return _members(await self._client.read("/api/members", timeout=timeout))

    async def add_member(
        self,
        peer_urls: Sequence[str],
        *,
        name: str = "",
        learner: bool = True,
        promote: bool = False,
        instead_of: str | None = None,
        timeout: float | None = None,
    ) -> tuple[str, tuple[Member, ...]]:
        """Add a member, as a learner unless told otherwise; its id, and all members.

        `promote`: the leader makes the learner a voter once it has caught up. `instead_of`: the id
        of a member that is removed in the same step.
        """
        body: dict[str, object] = {"peer_urls": list(peer_urls), "learner": learner}
        if name:
            body["name"] = name
        if promote:
            body["promote"] = True
        target = "/api/members"
        if instead_of is not None:
            target += f"/{segment(instead_of)}/replace"
        answer = await self._client.write("POST", target, json=body, timeout=timeout)
        with understood():
            return str(answer.json()["member_id"]), _members(answer)

    async def remove_member(self, member_id: str, *, timeout: float | None = None) -> None:
        """Remove a member. Raises ChangeRefused when that would be unsafe."""
        target = f"/api/members/{segment(member_id)}"
        await self._client.write("DELETE", target, timeout=timeout)

    async def promote_member(self, member_id: str, *, timeout: float | None = None) -> None:
        """Make a learner a voter. Raises ChangeRefused while it lags."""
        target = f"/api/members/{segment(member_id)}/promote"
        await self._client.write("POST", target, timeout=timeout)

    async def transfer_leader(
        self, to: str | None = None, *, timeout: float | None = None
    ) -> str | None:
        """Hand leadership to a member, or to the most advanced follower; the new leader's id."""
        body = {"to": to} if to else {}
        answer = await self._client.write(
            "POST", "/api/leader/transfer", json=body, timeout=timeout
        )
        leader = answer.json().get("leader")
        return None if leader is None else str(leader)

    async def compact(
        self,
        revision: int | None = None,
        *,
        keep: int | None = None,
        timeout: float | None = None,
    ) -> Compaction:
        """Forget history before `revision`, or all but the last `keep` revisions."""
        if (revision is None) == (keep is None):
            raise InvalidRequest("give either revision or keep")
        body = {"revision": revision} if revision is not None else {"keep": keep}
        result = (
            await self._client.write("POST", "/api/compact", json=body, timeout=timeout)
        ).json()
        with understood():
            return Compaction(int(result["compact_revision"]), int(result["revision"]))

    async def shrink(
        self,
        endpoint: str | None = None,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Shrunk:
        """Give free space inside one member's tables back to its disk: that of `endpoint`, or of
        the one that calls go to. Takes as long as copying them, an hour at most unless told; the
        member serves meanwhile. Repeated calls join one that is under way."""
        endpoint = endpoint or self._client.transport.current
        headers = {"Content-Type": "application/json"}
        call = Call("POST", "/api/shrink", headers=headers, body=b"{}", endpoint=endpoint)
        seconds = SHRINK_SECONDS if timeout is None else timeout
        answer = asyncio.ensure_future(self._client.transport.call(call, seconds))
        try:
            while progress is not None and not answer.done():
                await asyncio.wait({answer}, timeout=SHRINK_PROGRESS_SECONDS)
                shrink = (await self.status(endpoint)).raw.get("shrink") or {}
                if "total_bytes" in shrink and not answer.done():
                    progress(int(shrink["done_bytes"]), int(shrink["total_bytes"]))
            result = (await answer).json()
        finally:
            answer.cancel()
        with understood():
            return Shrunk(int(result["before_bytes"]), int(result["after_bytes"]))

    async def quotas(self, *, timeout: float | None = None) -> tuple[Quota, ...]:
        """All quotas of prefixes and users, and what is used of them."""
        body = (await self._client.read("/api/quotas", timeout=timeout)).json()
        with understood():
            return tuple(Quota.from_json(item) for item in body["quotas"])

    async def set_quota(
        self,
        *,
        prefix: str | bytes | None = None,
        user: str | None = None,
        keys: int = 0,
        size: int = 0,
        timeout: float | None = None,
    ) -> bool:
        """Limit a prefix or a user to so many keys and so many bytes (0: any number); both 0 ends
        the quota. Whether it was another before."""
        if (prefix is None) == (user is None):
            raise InvalidRequest("give either prefix or user")
        body: dict[str, object] = {"user": user, "keys": keys, "bytes": size}
        if prefix is not None:
            raw = prefix.encode(errors="surrogateescape") if isinstance(prefix, str) else prefix
            encoded = base64.b64encode(raw).decode()
            body |= {"prefix": encoded, "key_encoding": "base64"}
        answer = await self._client.write("POST", "/api/quotas", json=body, timeout=timeout)
        return bool(answer.json().get("changed"))

    async def save_snapshot(
        self, path: str | Path, *, progress: Progress | None = None, timeout: float | None = None
    ) -> SnapshotSaved:
        """Download a snapshot of the whole store to `path`.

        `timeout` bounds the seconds until the download begins; None: a minute, or the client's if
        that is longer. The file appears under its name only when all of it has arrived and is on
        disk. Raises `TransferBroken` when the download ends early, and `OSError` for the file.
        """
        call = Call("GET", "/api/snapshot", accept=(200,))
        transport = self._client.transport
        if timeout is None:
            timeout = max(transport.timeout, SNAPSHOT_OPEN_SECONDS)
        response = await transport.open(call, stall=SNAPSHOT_STALL_SECONDS, timeout=timeout)
        final = Path(path)
        partial = final.with_name(final.name + ".part")
        total, done, buffer = response.content_length, 0, bytearray()
        try:
            with await asyncio.to_thread(partial.open, "wb") as file:
                while True:
                    with network_errors(call, origin(response), SNAPSHOT_STALL_SECONDS):
                        chunk = await response.content.readany()
                    buffer += chunk
                    done += len(chunk)
                    if len(buffer) >= SNAPSHOT_WRITE_BYTES or (buffer and not chunk):
                        await asyncio.to_thread(file.write, bytes(buffer))
                        buffer.clear()
                    if progress is not None:
                        progress(done, total)
                    if not chunk:
                        break
                await asyncio.to_thread(_settle, file)
            if total is not None and done != total:
                raise TransferBroken(f"the snapshot ended after {done} of {total} bytes")
            await asyncio.to_thread(_publish, partial, final)
        except RaftkvError as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, TransferBroken):
                raise
            raise TransferBroken(
                f"the snapshot ended after {done} of {total or '?'} bytes: {error.message}"
            ) from error
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            response.close()
        return SnapshotSaved(
            str(final),
            done,
            _header(response.headers.get("Raftkv-Snapshot-Index")),
            _header(response.headers.get("Raftkv-Snapshot-Revision")),
        )


def _members(answer: Answer) -> tuple[Member, ...]:
    with understood():
        return tuple(Member.from_json(item) for item in answer.json()["members"])


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _publish(partial: Path, final: Path) -> None:
    os.replace(partial, final)
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _header(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
