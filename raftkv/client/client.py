"""`AsyncClient`: keys, ranges, transactions, and the way to everything else."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from raftkv.client.auth import Auth
from raftkv.client.cluster import Cluster
from raftkv.client.errors import PreconditionFailed
from raftkv.client.leases import Leases
from raftkv.client.locks import Locks
from raftkv.client.results import (
    DeleteResult,
    PutResult,
    RangePage,
    Record,
    TxnResult,
    optional_record,
    records,
    txn_result,
)
from raftkv.client.retry import Kind
from raftkv.client.services import Services
from raftkv.client.tls import TlsOptions
from raftkv.client.transport import DEFAULT_ENDPOINT, Answer, Call, Credentials, Transport
from raftkv.client.txn import TxnBuilder
from raftkv.client.watch import Interruption, Watcher
from raftkv.client.wire import Text, dumps, key_parameters, key_path, query, to_bytes, understood
from raftkv.errors import InvalidRequest, KeyNotFound

if TYPE_CHECKING:
    import aiohttp

TIMEOUT_SECONDS: Final = 10.0
PATIENCE_SECONDS: Final = 5.0

Consistency = Literal["linearizable", "serializable"]


class AsyncClient:
    """A client of one cluster, for one event loop.

    `endpoints` are the members' client URLs, a list or comma-separated; calls go to one of them
    and fail over to the next. `timeout` bounds every call in seconds, retries included, unless
    the call is given its own. `patience` is how many seconds a cluster that cannot be reached at
    all is tried again.

    Writes carry an idempotency key of their own, so they are retried safely; with
    `idempotency=False` they are sent once, and a broken connection raises `OutcomeUnknown`.

    With `user` and `password` it logs in before its first call, and again whenever its token has
    ended; with `token` it shows that one and no other.

    Over https it trusts the CA in the PEM file `cacert`, or those of the system, and shows the
    certificate `cert` with its `key` if it has one. With any of them, an endpoint without a scheme
    is https.

    Errors are those of `raftkv.errors` and `raftkv.client.errors`: `Refused` for what definitely
    did not happen, `OutcomeUnknown` for what may have.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] = DEFAULT_ENDPOINT,
        *,
        timeout: float = TIMEOUT_SECONDS,
        patience: float = PATIENCE_SECONDS,
        idempotency: bool = True,
        user: str = "",
        password: str = "",
        token: str = "",
        cacert: str = "",
        cert: str = "",
        key: str = "",
    ) -> None:
        self._transport = Transport(
            endpoints,
            timeout=timeout,
            patience=patience,
            credentials=Credentials(user, password, token),
            tls=TlsOptions(cacert, cert, key),
        )
        self._idempotency = idempotency
        self.leases = Leases(self)
        self.services = Services(self)
        self.locks = Locks(self, "locks/")
        self.elections = Locks(self, "elections/")
        self.cluster = Cluster(self)
        self.auth = Auth(self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    @property
    def transport(self) -> Transport:
        """The connections underneath, for calls that this class does not wrap."""
        return self._transport

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints, in the order given."""
        return tuple(self._transport.endpoints)

    async def put(
        self,
        key: Text,
        value: Text,
        *,
        lease: str | None = None,
        previous: bool = False,
        if_revision: int | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> PutResult:
        """Write `key`; durable on a majority once this returns.

        With `if_revision`, only if the key was last modified at that revision; with `if_absent`
        or `if_present`, only if it does not or does exist. Otherwise raises `PreconditionFailed`.
        """
        headers = _conditions(if_revision, if_absent, if_present)
        target = key_path(key) + query({"lease": lease, "prev": previous})
        answer = await self.write(
            "PUT",
            target,
            body=to_bytes(value),
            headers=headers,
            idempotency_key=idempotency_key,
            timeout=timeout,
        )
        body = answer.json()
        with understood():
            return PutResult(
                int(body["mod_revision"]),
                int(body["create_revision"]),
                int(body["version"]),
                optional_record(body.get("previous")),
            )

    async def get(
        self,
        key: Text,
        *,
        revision: int | None = None,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> Record | None:
        """The record of `key`, or None when there is none.

        Linearizable unless asked otherwise: it sees every write acknowledged before the call.
        ``serializable`` reads what the endpoint has, without asking the others.
        """
        target = key_path(key) + query(_reading(revision, consistency))
        try:
            body = (await self.read(target, timeout=timeout)).json()
        except KeyNotFound:
            return None
        with understood():
            return Record.from_json(body)

    async def delete(
        self,
        key: Text,
        *,
        previous: bool = False,
        if_revision: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete `key`; it is no error when there is none, `deleted` is then 0."""
        answer = await self.write(
            "DELETE",
            key_path(key) + query({"prev": previous}),
            headers=_conditions(if_revision, False, False),
            idempotency_key=idempotency_key,
            timeout=timeout,
        )
        return _deleted(answer)

    async def delete_range(
        self,
        *,
        prefix: Text | None = None,
        start: Text | None = None,
        end: Text | None = None,
        everything: bool = False,
        previous: bool = False,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete every key with `prefix`, or in [`start`, `end`), or all; at one revision."""
        keys = key_parameters(prefix=prefix, start=start, end=end)
        if bool(keys) == everything:
            raise InvalidRequest("give a prefix, or start and end, or everything=True")
        answer = await self.write(
            "DELETE",
            "/api/kv" + query({**keys, "all": everything, "prev": previous}),
            idempotency_key=idempotency_key,
            timeout=timeout,
        )
        return _deleted(answer)

    async def range(
        self,
        *,
        prefix: Text | None = None,
        start: Text | None = None,
        end: Text | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        revision: int | None = None,
        keys_only: bool = False,
        reverse: bool = False,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> RangePage:
        """One page of the keys with `prefix`, or in [`start`, `end`), or of all, in key order."""
        parameters = {
            **key_parameters(prefix=prefix, start=start, end=end),
            "limit": limit,
            "cursor": cursor,
            "keys_only": keys_only,
            "reverse": reverse,
            **_reading(revision, consistency),
        }
        body = (await self.read("/api/kv" + query(parameters), timeout=timeout)).json()
        with understood():
            return RangePage(
                int(body["revision"]),
                records(body["items"]),
                bool(body.get("more")),
                body.get("cursor"),
            )

    async def count(
        self,
        *,
        prefix: Text | None = None,
        start: Text | None = None,
        end: Text | None = None,
        revision: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many keys a range has."""
        parameters = {
            **key_parameters(prefix=prefix, start=start, end=end),
            "count_only": True,
            "revision": revision,
        }
        body = (await self.read("/api/kv" + query(parameters), timeout=timeout)).json()
        with understood():
            return int(body["count"])

    async def pages(
        self,
        *,
        prefix: Text | None = None,
        start: Text | None = None,
        end: Text | None = None,
        page_size: int | None = None,
        revision: int | None = None,
        keys_only: bool = False,
        reverse: bool = False,
    ) -> AsyncIterator[RangePage]:
        """Every page of a range, all at the revision of the first. Memory holds one page.

        Raises `Compacted` when that revision is compacted meanwhile.
        """
        cursor: str | None = None
        while True:
            page = await self.range(
                prefix=prefix,
                start=start,
                end=end,
                limit=page_size,
                cursor=cursor,
                revision=revision,
                keys_only=keys_only,
                reverse=reverse,
            )
            yield page
            cursor = page.cursor
            if not page.more or cursor is None:
                return
            revision = page.revision

    async def scan(
        self,
        *,
        prefix: Text | None = None,
        start: Text | None = None,
        end: Text | None = None,
        page_size: int | None = None,
        revision: int | None = None,
        keys_only: bool = False,
        reverse: bool = False,
    ) -> AsyncIterator[Record]:
        """Every record of a range, one by one, all at one revision."""
        pages = self.pages(
            prefix=prefix,
            start=start,
            end=end,
            page_size=page_size,
            revision=revision,
            keys_only=keys_only,
            reverse=reverse,
        )
        async for page in pages:
            for record in page.records:
                yield record

    async def create(self, key: Text, value: Text, *, lease: str | None = None) -> PutResult:
        """Write `key` if it does not exist; `PreconditionFailed` if it does."""
        return await self.put(key, value, lease=lease, if_absent=True)

    async def compare_and_set(self, record: Record, value: Text) -> PutResult:
        """Write the record's key if it is still as in `record`, keeping its lease."""
        return await self.put(
            record.key, value, lease=record.lease, if_revision=record.mod_revision
        )

    async def compare_and_delete(self, record: Record) -> DeleteResult:
        """Delete the record's key if it is still as in `record`."""
        return await self.delete(record.key, if_revision=record.mod_revision)

    async def update(self, key: Text, change: Callable[[bytes | None], Text]) -> PutResult:
        """Replace the value of `key` by what `change` makes of it, atomically.

        `change` gets None when there is no such key, and is called again when another writer came
        between; it must not have side effects.
        """
        while True:
            record = await self.get(key)
            value = change(None if record is None else record.value)
            try:
                if record is None:
                    return await self.create(key, value)
                return await self.compare_and_set(record, value)
            except PreconditionFailed:
                continue

    def txn(self, *, idempotency_key: str | None = None) -> TxnBuilder:
        """A transaction to be filled and committed; see `raftkv.client.txn`."""
        return TxnBuilder(lambda body: self.transact(body, idempotency_key=idempotency_key))

    async def transact(
        self,
        body: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> TxnResult:
        """A transaction in the API's own form: ``{"if": [...], "then": [...], "else": [...]}``."""
        answer = await self.write(
            "POST", "/api/txn", json=body, idempotency_key=idempotency_key, timeout=timeout
        )
        result = answer.json()
        with understood():
            return txn_result(result, int(result["revision"]))

    def watch(
        self,
        key: Text | None = None,
        *,
        prefix: Text | None = None,
        start: Text | None = None,
        end: Text | None = None,
        from_revision: int | None = None,
        previous: bool = False,
        keys_only: bool = False,
        only: Literal["put", "delete"] | None = None,
        on_interruption: Interruption | None = None,
    ) -> Watcher:
        """Changes of a key, of a prefix, of [`start`, `end`) or of everything.

        From now on, or from `from_revision` (inclusive). Iterate it, best in a block::

            async with client.watch(prefix="config/") as events:
                async for event in events: ...

        Every change comes exactly once and in order; when the connection breaks, the watch goes on
        at another endpoint where it was. Raises `Compacted` when the history it needs is gone.
        `on_interruption` is told of every break.
        """
        parameters = {
            **key_parameters(key=key, prefix=prefix, start=start, end=end),
            "prev": previous,
            "keys_only": keys_only,
            "filter": only,
        }
        return Watcher(self._transport, parameters, from_revision, on_interruption)

    async def call(self, call: Call, *, timeout: float | None = None) -> Answer:
        """Send any request, to any of the doors; retried as its kind allows."""
        return await self._transport.call(call, timeout)

    async def open(self, call: Call, *, stall: float) -> aiohttp.ClientResponse:
        """As `call`, with the body still to come; see `Transport.open`."""
        return await self._transport.open(call, stall=stall)

    async def read(self, target: str, *, timeout: float | None = None) -> Answer:
        """GET `target`; retried freely."""
        return await self._transport.call(Call("GET", target), timeout)

    async def write(
        self,
        method: str,
        target: str,
        *,
        body: bytes | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        repeatable: bool = False,
        once: bool = False,
        timeout: float | None = None,
    ) -> Answer:
        """Send a write, under an idempotency key unless those are switched off.

        `repeatable` says that doing it twice is the same as doing it once; `once`, that it is not,
        and that the store knows no idempotency keys for it.
        """
        sent = dict(headers or {})
        own = secrets.token_hex(16) if self._idempotency and not once else None
        key = idempotency_key or own
        if key and not repeatable:
            sent["Idempotency-Key"] = key
        if json is not None:
            body = dumps(json)
            sent["Content-Type"] = "application/json"
        elif body is not None:
            sent["Content-Type"] = "application/octet-stream"
        kind = Kind.READ if repeatable else Kind.KEYED if key else Kind.BARE
        return await self._transport.call(Call(method, target, kind, sent, body), timeout)


def _reading(revision: int | None, consistency: Consistency) -> dict[str, object]:
    other = consistency if consistency != "linearizable" else None
    return {"revision": revision, "consistency": other}


def _conditions(if_revision: int | None, if_absent: bool, if_present: bool) -> dict[str, str]:
    if (if_revision is not None) + if_absent + if_present > 1:
        raise InvalidRequest("give one of if_revision, if_absent and if_present")
    if if_revision == 0 or if_absent:
        return {"If-None-Match": "*"}
    if if_present:
        return {"If-Match": "*"}
    return {} if if_revision is None else {"If-Match": f'"{if_revision}"'}


def _deleted(answer: Answer) -> DeleteResult:
    body = answer.json()
    with understood():
        return DeleteResult(
            int(body["revision"]), int(body["deleted"]), records(body.get("previous"))
        )
