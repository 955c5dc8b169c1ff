"""What the calls of the client send and answer, when nothing goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftkv.client import AsyncClient, PreconditionFailed, TransferBroken, results, txn, wire
from raftkv.client.errors import classes_by_code
from raftkv.client.transport import parse_endpoints
from raftkv.errors import (
    ConfigError,
    InvalidRequest,
    LeaseNotFound,
    MemberNotFound,
    ReadTimedOut,
)
from tests.unit.client_fake_store import FakeStore


@pytest.fixture
async def store() -> AsyncIterator[FakeStore]:
    fake = FakeStore()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def client(store: FakeStore) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(store.urls, timeout=3) as made:
        yield made


async def test_put_get_delete(client: AsyncClient) -> None:
    first = await client.put("a", "one")
    second = await client.put("a", b"\xff\x00", previous=True, lease="00000000000000ff")
    assert second.previous is not None and second.previous.text == "one"
    assert (second.create_revision, second.version) == (first.revision, 2)
    record = await client.get("a")
    assert record is not None
    assert (record.value, record.lease, record.mod_revision) == (
        b"\xff\x00",
        "00000000000000ff",
        second.revision,
    )
    gone = await client.delete("a", previous=True)
    assert gone.deleted == 1 and gone.previous == (record,)
    assert await client.get("a") is None
    assert (await client.delete("a")).deleted == 0


@pytest.mark.parametrize(
    "key", ["a/b", "a//b", "../x", "./", "a b?c#d%2F", "ключ", "..", b"\xff\xfe/\x00", "a/../b"]
)
async def test_every_key_survives_the_path(
    store: FakeStore, client: AsyncClient, key: str | bytes
) -> None:
    await client.put(key, "v")
    assert list(store.keys) == [wire.to_bytes(key)]
    record = await client.get(key)
    assert record is not None and record.key_bytes == wire.to_bytes(key)


async def test_compare_and_set(client: AsyncClient) -> None:
    await client.create("a", "1")
    with pytest.raises(PreconditionFailed):
        await client.create("a", "2")
    record = await client.get("a")
    assert record is not None
    await client.compare_and_set(record, "2")
    with pytest.raises(PreconditionFailed):
        await client.compare_and_set(record, "3")
    with pytest.raises(PreconditionFailed):
        await client.compare_and_delete(record)
    await client.put("a", "4", if_present=True)
    with pytest.raises(PreconditionFailed):
        await client.put("b", "4", if_present=True)
    with pytest.raises(InvalidRequest, match="one of"):
        await client.put("b", "4", if_present=True, if_absent=True)
    with pytest.raises(InvalidRequest, match="at least one byte"):
        await client.get("")


async def test_update_runs_again_after_a_conflict(client: AsyncClient) -> None:
    seen: list[bytes | None] = []

    def add(value: bytes | None) -> bytes:
        seen.append(value)
        return str(int(value or b"0") + 1).encode()

    await asyncio.gather(*(client.update("n", add) for _ in range(5)))
    record = await client.get("n")
    assert record is not None and record.value == b"5"
    assert None in seen


async def test_ranges_pages_and_counts(client: AsyncClient) -> None:
    for number in range(7):
        await client.put(f"k/{number}", str(number))
    await client.put(b"\xffbin", "x")
    page = await client.range(prefix="k/", limit=3)
    assert [record.key for record in page.records] == ["k/0", "k/1", "k/2"] and page.more
    rest = await client.range(prefix="k/", limit=3, cursor=page.cursor, revision=page.revision)
    assert rest.records[0].key == "k/3"
    keys = [record.key async for record in client.scan(prefix="k/", page_size=2)]
    assert keys == [f"k/{number}" for number in range(7)]
    backwards = await client.range(start="k/2", end="k/4", reverse=True, keys_only=True)
    assert [(r.key, r.value) for r in backwards.records] == [("k/3", b""), ("k/2", b"")]
    assert await client.count(prefix=b"\xff") == 1
    assert await client.count() == 8
    serial = await client.range(prefix="k/", consistency="serializable")
    assert len(serial.records) == 7
    assert (await client.delete_range(prefix="k/", previous=True)).deleted == 7
    with pytest.raises(InvalidRequest):
        await client.delete_range()
    assert (await client.delete_range(everything=True)).deleted == 1


async def test_transactions_answer_in_place(client: AsyncClient) -> None:
    await client.put("a", "1")
    record = await client.get("a")
    assert record is not None
    result = await (
        client.txn()
        .when(txn.unchanged(record), txn.exists("a"), txn.missing("b"))
        .when(txn.compare("a", "value", "=", "1"))
        .then(
            txn.put("a", b"\xfe", previous=True),
            txn.get("a"),
            txn.get("none"),
            txn.range_(prefix="a"),
            txn.nested([txn.exists("zzz")], [], [txn.delete("a", previous=True)]),
        )
        .otherwise(txn.get("a"))
        .commit()
    )
    put, get, none, found, nested = result.results
    assert result.succeeded and none is None
    assert isinstance(put, results.TxnPut) and put.previous == record
    assert isinstance(get, results.Record) and get.value == b"\xfe"
    assert isinstance(found, results.TxnRange) and found.count == 1
    assert isinstance(nested, results.TxnResult) and not nested.succeeded
    assert isinstance(nested.results[0], results.TxnDelete) and nested.results[0].deleted == 1
    other = await client.txn().when(txn.exists("a")).then().otherwise(txn.get("a")).commit()
    assert not other.succeeded and other.results == (None,)
    with pytest.raises(InvalidRequest):
        txn.compare("a", "value", "=", 5)
    with pytest.raises(InvalidRequest):
        txn.compare("a", "version", "=", "5")
    assert txn.compare("a", "lease", "=", "00ff")["operand"] == "00ff"


async def test_leases(store: FakeStore, client: AsyncClient) -> None:
    lease = await client.leases.grant(30)
    await client.put("a", "1", lease=lease.lease)
    shown = await client.leases.show(lease.lease)
    assert shown.keys == ("a",) and 0 < shown.remaining <= 30
    assert await client.leases.list() == (lease,)
    assert (await client.leases.keep_alive(lease.lease)).ttl == 30
    assert (await client.leases.revoke(lease.lease)).deleted == 1
    with pytest.raises(LeaseNotFound):
        await client.leases.keep_alive(lease.lease)
    store.fault("reset_after", method="POST", path="/api/leases")
    again = await client.leases.grant(5)
    assert list(store.leases) == [again.lease], "a repeated grant is one lease"


async def test_the_cluster(store: FakeStore, client: AsyncClient) -> None:
    status = await client.cluster.status()
    assert (status.role, status.healthy, status.raw["db_bytes"]) == ("leader", True, 4096)
    member_id, members = await client.cluster.add_member(["http://h:1"], name="new")
    assert [m.role for m in members] == ["voter", "learner"]
    await client.cluster.promote_member(member_id)
    assert [m.role for m in await client.cluster.members()] == ["voter", "voter"]
    await client.cluster.remove_member(member_id)
    with pytest.raises(MemberNotFound):
        await client.cluster.remove_member(member_id)
    assert await client.cluster.transfer_leader("3" * 16) == "3" * 16
    assert await client.cluster.transfer_leader() == "2" * 16
    assert (await client.cluster.compact(keep=0)).compact_revision == store.revision
    with pytest.raises(InvalidRequest):
        await client.cluster.compact()
    assert await client.cluster.health() == (True, "")
    views = await client.cluster.statuses()
    assert [endpoint for endpoint, _ in views] == store.urls


async def test_a_snapshot_appears_only_when_it_is_whole(
    store: FakeStore, client: AsyncClient, tmp_path: Path
) -> None:
    told: list[tuple[int, int | None]] = []
    path = tmp_path / "store.snapshot"
    saved = await client.cluster.save_snapshot(path, progress=lambda *at: told.append(at))
    assert path.read_bytes() == store.image
    assert (saved.size_bytes, saved.index, saved.revision) == (len(store.image), 17, None)
    assert told[-1] == (len(store.image), len(store.image))
    path.unlink()
    server = await asyncio.start_server(_half, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncClient(f"127.0.0.1:{port}", timeout=3) as other:
        with pytest.raises(TransferBroken, match="4 of 100"):
            await other.cluster.save_snapshot(path)
    assert list(tmp_path.iterdir()) == []


async def test_a_snapshot_may_take_longer_to_make_than_another_call(tmp_path: Path) -> None:
    ended: asyncio.Queue[None] = asyncio.Queue()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        with contextlib.suppress(ConnectionError):
            await _half(reader, writer)
        writer.close()
        ended.put_nowait(None)

    server = await asyncio.start_server(late, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncClient(f"127.0.0.1:{port}", timeout=0.2) as client:
        with pytest.raises(TransferBroken):
            await client.cluster.save_snapshot(tmp_path / "image")
        await ended.get()
        with pytest.raises(ReadTimedOut):
            await client.cluster.save_snapshot(tmp_path / "image", timeout=0.2)
        await ended.get()


async def _half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    writer.close()


@given(st.binary(min_size=1, max_size=40))
def test_any_key_has_a_text_and_a_path_of_its_own(key: bytes) -> None:
    assert wire.to_bytes(wire.key_text(key)) == key
    path = wire.key_path(key)
    assert path.isascii() and "?" not in path and "#" not in path
    assert "/../" not in path + "/" and "/./" not in path + "/"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40))
def test_values_survive_json(value: bytes) -> None:
    fields = wire.value_fields(value)
    assert wire.decode(fields["value"], fields.get("encoding")) == value


def test_endpoints_are_read_leniently_and_refused_clearly() -> None:
    assert parse_endpoints("h:1, http://h:1/,https://[::1]:2") == ["http://h:1", "https://[::1]:2"]
    for bad in ("", ",", "ftp://h:1", "http://h:1/path", "http://:1", "http://h:99999"):
        with pytest.raises(ConfigError):
            parse_endpoints(bad)


def test_codes_lead_to_one_class_each() -> None:
    classes = classes_by_code()
    assert classes["precondition_failed"] is PreconditionFailed
    assert classes["lease_not_found"] is LeaseNotFound
    assert all(kind.code == code for code, kind in classes.items())


def test_the_end_of_a_prefix() -> None:
    assert txn.prefix_end("a") == b"b"
    assert txn.prefix_end(b"a\xff\xff") == b"b"
    assert txn.prefix_end(b"\xff") == b""
