"""`Client`: the asynchronous client for code without an event loop.

There is one implementation: a thread runs an event loop with an `AsyncClient` on it, and every
method here runs the method of the same name there and waits. Signatures and documentation are
those of `AsyncClient` and its groups.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from raftkv.client.auth import Auth
from raftkv.client.client import PATIENCE_SECONDS, TIMEOUT_SECONDS, AsyncClient
from raftkv.client.cluster import Cluster
from raftkv.client.leases import LeaseKeeper, Leases
from raftkv.client.locks import Lock, Locks
from raftkv.client.results import Event, ServiceEvent, TxnResult
from raftkv.client.services import RegistrationKeeper, Services
from raftkv.client.transport import DEFAULT_ENDPOINT
from raftkv.client.txn import Compare, Operation, TxnBuilder
from raftkv.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)


class _Loop:
    """An event loop in a thread of its own."""

    __slots__ = ("_loop", "_thread")

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="raftkv-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run `work` there and wait; an interrupt here cancels it there."""
        if self._loop.is_closed():
            work.close()
            raise ConfigError("this client has been closed")
        future: concurrent.futures.Future[R] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the loop and its thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class _Inner(Protocol[A_co]):
    """What a synchronous face has: its loop and the asynchronous object behind it."""

    @property
    def loop(self) -> _Loop: ...
    @property
    def inner(self) -> A_co: ...


def _blocking(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[_Inner[A], P], R]:
    @functools.wraps(method)
    def call(self: _Inner[A], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.loop.run(method(self.inner, *args, **kwargs))

    return call


async def _next(iterator: AsyncIterator[R]) -> list[R]:
    # A list, because StopAsyncIteration cannot travel through a future.
    try:
        return [await anext(iterator)]
    except StopAsyncIteration:
        return []


def _drain(loop: _Loop, iterator: AsyncIterator[R]) -> Iterator[R]:
    try:
        while item := loop.run(_next(iterator)):
            yield item[0]
    finally:
        if (close := getattr(iterator, "aclose", None)) is not None:
            loop.run(close())


def _blocking_iterator(
    method: Callable[Concatenate[A, P], AsyncIterator[R]],
) -> Callable[Concatenate[_Inner[A], P], Iterator[R]]:
    @functools.wraps(method)
    def call(self: _Inner[A], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return _drain(self.loop, method(self.inner, *args, **kwargs))

    return call


def _blocking_block(
    method: Callable[Concatenate[A, P], AbstractAsyncContextManager[R]],
) -> Callable[Concatenate[_Inner[A], P], AbstractContextManager[R]]:
    @functools.wraps(method)
    @contextmanager
    def call(self: _Inner[A], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        async def enter() -> tuple[AbstractAsyncContextManager[R], R]:
            block = method(self.inner, *args, **kwargs)
            return block, await block.__aenter__()

        block, value = self.loop.run(enter())
        try:
            yield value
        finally:
            self.loop.run(_leave(block))

    return call


async def _leave(block: AbstractAsyncContextManager[Any]) -> None:
    await block.__aexit__(None, None, None)


class _Stream(Generic[R]):
    """A watch for code without an event loop: iterate it, and close it or use it as a block."""

    def __init__(self, loop: _Loop, iterator: Any) -> None:
        self._loop = loop
        self._iterator = iterator

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        found: list[R] = self._loop.run(_next(self._iterator))
        if not found:
            raise StopIteration
        return found[0]

    def next(self, timeout: float) -> R | None:
        """The next event, or None when none comes within `timeout` seconds; nothing is lost."""

        async def bounded() -> list[R]:
            try:
                async with asyncio.timeout(timeout):
                    return await _next(self._iterator)
            except TimeoutError:
                return []

        found = self._loop.run(bounded())
        return found[0] if found else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the watch."""
        self._loop.run(self._iterator.close())


def _blocking_watch(
    method: Callable[Concatenate[A, P], AsyncIterator[R]],
) -> Callable[Concatenate[_Inner[A], P], _Stream[R]]:
    @functools.wraps(method)
    def call(self: _Inner[A], /, *args: P.args, **kwargs: P.kwargs) -> _Stream[R]:
        return _Stream(self.loop, method(self.inner, *args, **kwargs))

    return call


class _Group(Generic[A]):
    __slots__ = ("inner", "loop")

    def __init__(self, loop: _Loop, inner: A) -> None:
        self.loop = loop
        self.inner = inner


def _hold_in_thread(cls: Any) -> Any:
    """In threads nothing can be cancelled from outside: `lost` and `check()` tell of a loss."""

    @functools.wraps(cls)
    def make(*args: Any, **kwargs: Any) -> Any:
        return cls(*args, **{**kwargs, "cancel_on_loss": False})

    return make


class SyncLeases(_Group[Leases]):
    """`Leases` for code without an event loop."""

    grant = _blocking(Leases.grant)
    revoke = _blocking(Leases.revoke)
    keep_alive = _blocking(Leases.keep_alive)
    show = _blocking(Leases.show)
    list = _blocking(Leases.list)
    keeper: Callable[..., AbstractContextManager[LeaseKeeper]] = _blocking_block(
        _hold_in_thread(Leases.keeper)
    )


class SyncServices(_Group[Services]):
    """`Services` for code without an event loop."""

    register = _blocking(Services.register)
    heartbeat = _blocking(Services.heartbeat)
    drain = _blocking(Services.drain)
    deregister = _blocking(Services.deregister)
    list = _blocking(Services.list)
    instances = _blocking(Services.instances)
    instance = _blocking(Services.instance)
    watch: Callable[..., _Stream[ServiceEvent]] = _blocking_watch(Services.watch)
    registered: Callable[..., AbstractContextManager[RegistrationKeeper]] = _blocking_block(
        _hold_in_thread(Services.registered)
    )


class SyncLocks(_Group[Locks]):
    """`Locks` for code without an event loop."""

    holder = _blocking(Locks.holder)
    leader = holder
    observe = _blocking_iterator(Locks.observe)
    hold: Callable[..., AbstractContextManager[Lock]] = _blocking_block(_hold_in_thread(Locks.hold))
    campaign = hold


class SyncCluster(_Group[Cluster]):
    """`Cluster` for code without an event loop."""

    status = _blocking(Cluster.status)
    statuses = _blocking(Cluster.statuses)
    health = _blocking(Cluster.health)
    members = _blocking(Cluster.members)
    add_member = _blocking(Cluster.add_member)
    remove_member = _blocking(Cluster.remove_member)
    promote_member = _blocking(Cluster.promote_member)
    transfer_leader = _blocking(Cluster.transfer_leader)
    compact = _blocking(Cluster.compact)
    shrink = _blocking(Cluster.shrink)
    quotas = _blocking(Cluster.quotas)
    set_quota = _blocking(Cluster.set_quota)
    save_snapshot = _blocking(Cluster.save_snapshot)


class SyncAuth(_Group[Auth]):
    """`Auth` for code without an event loop."""

    status = _blocking(Auth.status)
    enable = _blocking(Auth.enable)
    disable = _blocking(Auth.disable)
    logout = _blocking(Auth.logout)
    users = _blocking(Auth.users)
    user = _blocking(Auth.user)
    add_user = _blocking(Auth.add_user)
    delete_user = _blocking(Auth.delete_user)
    set_password = _blocking(Auth.set_password)
    grant_role = _blocking(Auth.grant_role)
    revoke_role = _blocking(Auth.revoke_role)
    roles = _blocking(Auth.roles)
    role = _blocking(Auth.role)
    add_role = _blocking(Auth.add_role)
    delete_role = _blocking(Auth.delete_role)
    grant_permission = _blocking(Auth.grant_permission)
    revoke_permission = _blocking(Auth.revoke_permission)


class SyncTxn:
    """`TxnBuilder` for code without an event loop."""

    __slots__ = ("_builder", "_loop")

    def __init__(self, loop: _Loop, builder: TxnBuilder) -> None:
        self._loop = loop
        self._builder = builder

    def when(self, *compares: Compare) -> SyncTxn:
        """All of these must hold for `then` to run; with none, `then` runs."""
        self._builder.when(*compares)
        return self

    def then(self, *operations: Operation) -> SyncTxn:
        """What to do when every compare holds."""
        self._builder.then(*operations)
        return self

    def otherwise(self, *operations: Operation) -> SyncTxn:
        """What to do when one does not."""
        self._builder.otherwise(*operations)
        return self

    def commit(self) -> TxnResult:
        """Send it: atomic, at one revision, with one answer for each operation of the branch."""
        return self._loop.run(self._builder.commit())


class Client:
    """The client of one cluster for threads; any number of them may share it.

    Takes what `AsyncClient` takes. Close it, or use it as a block::

        with Client("127.0.0.1:2379") as client:
            client.put("greeting", "hello")
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
        self.inner = AsyncClient(
            endpoints,
            timeout=timeout,
            patience=patience,
            idempotency=idempotency,
            user=user,
            password=password,
            token=token,
            cacert=cacert,
            cert=cert,
            key=key,
        )
        self.loop = _Loop()
        self.leases = SyncLeases(self.loop, self.inner.leases)
        self.services = SyncServices(self.loop, self.inner.services)
        self.locks = SyncLocks(self.loop, self.inner.locks)
        self.elections = SyncLocks(self.loop, self.inner.elections)
        self.cluster = SyncCluster(self.loop, self.inner.cluster)
        self.auth = SyncAuth(self.loop, self.inner.auth)

    put = _blocking(AsyncClient.put)
    get = _blocking(AsyncClient.get)
    delete = _blocking(AsyncClient.delete)
    delete_range = _blocking(AsyncClient.delete_range)
    range = _blocking(AsyncClient.range)
    count = _blocking(AsyncClient.count)
    pages = _blocking_iterator(AsyncClient.pages)
    create = _blocking(AsyncClient.create)
    compare_and_set = _blocking(AsyncClient.compare_and_set)
    compare_and_delete = _blocking(AsyncClient.compare_and_delete)
    update = _blocking(AsyncClient.update)
    transact = _blocking(AsyncClient.transact)
    scan = _blocking_iterator(AsyncClient.scan)
    watch: Callable[..., _Stream[Event]] = _blocking_watch(AsyncClient.watch)

    def txn(self, *, idempotency_key: str | None = None) -> SyncTxn:
        """A transaction to be filled and committed; see `raftkv.client.txn`."""
        return SyncTxn(self.loop, self.inner.txn(idempotency_key=idempotency_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. Closing twice is fine."""
        try:
            self.loop.run(self.inner.close())
        except ConfigError:
            return
        self.loop.close()
