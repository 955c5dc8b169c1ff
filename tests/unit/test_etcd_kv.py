"""etcd's KV service over gRPC: what each RPC answers, and every refusal's code and text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from raftkv import errors
from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import ETCD, SERVICES
from raftkv.api.etcd.ranges import FIRST_SLICE_ROWS, SLICE_ROWS_MAX
from raftkv.api.grpc.proto.compile import FOLDERS, compile_to
from tests.unit.etcd_support import EtcdClient, etcd_served, shown


@pytest.fixture
async def client() -> AsyncIterator[EtcdClient]:
    async with etcd_served() as client:
        yield client


def op(**fields: Any) -> Any:
    return ETCD.message("etcdserverpb.RequestOp")(**fields)


def request(name: str, **fields: Any) -> Any:
    return ETCD.message(f"etcdserverpb.{name}")(**fields)


def put(key: bytes, value: bytes = b"", **more: Any) -> Any:
    return op(request_put=request("PutRequest", key=key, value=value, **more))


def get(key: bytes, range_end: bytes = b"", **more: Any) -> Any:
    return op(request_range=request("RangeRequest", key=key, range_end=range_end, **more))


def delete(key: bytes, range_end: bytes = b"", **more: Any) -> Any:
    return op(request_delete_range=request("DeleteRangeRequest", key=key, range_end=range_end))


def test_compiled_descriptors_are_those_of_the_sources(tmp_path: Path) -> None:
    compile_to(tmp_path / "fresh", FOLDERS[1])
    assert FileDescriptorSet.FromString((tmp_path / "fresh").read_bytes()) == ETCD.files
    declared = {f"{f.package}.{s.name}" for f in ETCD.files.file for s in f.service}
    assert declared == set(SERVICES)


def test_other_stubs_of_etcd_can_live_in_this_process() -> None:
    # As aetcd and others do, in the pool of the whole process; a second file there would clash.
    theirs = FileDescriptorProto(name="kv.proto", package="mvccpb", syntax="proto3")
    theirs.message_type.add(name="KeyValue").field.add(name="key", number=1, type=12, label=1)
    pool = descriptor_pool.Default()
    pool.Add(theirs)
    assert pool.FindMessageTypeByName("mvccpb.KeyValue").fields_by_name.keys() == ["key"]
    assert ETCD.message("mvccpb.KeyValue")(lease=5).lease == 5


async def test_put_get_and_delete(client: EtcdClient) -> None:
    header = {"cluster_id": "9", "member_id": "7", "revision": "2", "raft_term": "1"}
    assert shown(await client.Put(key=b"k", value=b"1")) == {"header": header}
    first = {
        "key": "aw==", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "MQ==",
    }  # fmt: skip
    assert shown(await client.Range(key=b"k")) == {"header": header, "kvs": [first], "count": "1"}
    answer = await client.Put(key=b"k", value=b"2", prev_kv=True)
    assert (answer.header.revision, answer.prev_kv.value) == (3, b"1")
    answer = await client.DeleteRange(key=b"k", prev_kv=True)
    assert (answer.deleted, answer.prev_kvs[0].value, answer.header.revision) == (1, b"2", 4)
    answer = await client.DeleteRange(key=b"k")
    assert (answer.deleted, answer.header.revision) == (0, 4)
    answer = await client.Range(key=b"k", revision=2)
    assert (answer.kvs[0].value, answer.header.revision) == (b"1", 4)
    assert shown(await client.Range(key=b"k", serializable=True)).keys() == {"header"}


async def test_refusals_of_single_operations(client: EtcdClient) -> None:
    await client.Put(key=b"k", value=b"1")
    for name, fields, code, text in [
        ("Put", {}, "INVALID_ARGUMENT", "key is not provided"),
        ("Range", {}, "INVALID_ARGUMENT", "key is not provided"),
        ("Range", {"range_end": b"\0"}, "INVALID_ARGUMENT", "key is not provided"),
        ("DeleteRange", {}, "INVALID_ARGUMENT", "key is not provided"),
        ("Put", {"key": b"n", "ignore_value": True}, "INVALID_ARGUMENT", "key not found"),
        ("Put", {"key": b"k", "ignore_value": True, "value": b"x"}, "INVALID_ARGUMENT",
         "value is provided"),
        ("Put", {"key": b"k", "ignore_lease": True, "lease": 1}, "INVALID_ARGUMENT",
         "lease is provided"),
        ("Put", {"key": b"k", "lease": 7}, "NOT_FOUND", "requested lease not found"),
        ("Put", {"key": b"k", "lease": -7}, "NOT_FOUND", "requested lease not found"),
        ("Put", {"key": b"k", "value": bytes(1_600_000)}, "INVALID_ARGUMENT",
         "request is too large"),
        ("Range", {"key": b"k", "revision": 99}, "OUT_OF_RANGE",
         "mvcc: required revision is a future revision"),
        ("Range", {"key": b"k", "sort_order": 9}, "INVALID_ARGUMENT", "invalid sort option"),
        ("Compact", {"revision": 99}, "OUT_OF_RANGE",
         "mvcc: required revision is a future revision"),
        ("Compact", {"revision": -1}, "OUT_OF_RANGE",
         "mvcc: required revision has been compacted"),
    ]:  # fmt: skip
        assert await client.refused(name, **fields) == (code, f"etcdserver: {text}"), (name, fields)
    await client.Put(key=b"k", value=b"2")
    assert (await client.Compact(revision=3, physical=True)).header.revision == 3
    compacted = ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")
    assert await client.refused("Range", key=b"k", revision=2) == compacted
    assert await client.refused("Compact", revision=3) == compacted


async def test_ranges_filter_sort_and_limit(client: EtcdClient) -> None:
    for key, value in ((b"a", b"3"), (b"b", b"1"), (b"c", b"2"), (b"a", b"0")):
        await client.Put(key=key, value=value)

    async def keys(**fields: Any) -> tuple[list[bytes], bool, int]:
        answer = await client.Range(key=b"\0", range_end=b"\0", **fields)
        return [kv.key for kv in answer.kvs], answer.more, answer.count

    assert await keys() == ([b"a", b"b", b"c"], False, 3)
    assert await keys(limit=2) == ([b"a", b"b"], True, 3)
    assert await keys(limit=3) == ([b"a", b"b", b"c"], False, 3)
    assert await keys(limit=1, sort_order=2) == ([b"c"], True, 3)
    assert await keys(sort_target=4) == ([b"a", b"b", b"c"], False, 3)
    assert await keys(sort_target=3, sort_order=2, limit=1) == ([b"a"], True, 3)
    assert await keys(min_mod_revision=4) == ([b"a", b"c"], False, 3)
    assert await keys(max_create_revision=3, limit=1) == ([b"a"], True, 3)
    assert await keys(count_only=True) == ([], False, 3)
    assert await keys(revision=2) == ([b"a"], False, 1)
    answer = await client.Range(key=b"b", range_end=b"d", keys_only=True)
    assert [(kv.key, kv.value) for kv in answer.kvs] == [(b"b", b""), (b"c", b"")]
    assert (await client.Range(key=b"d", range_end=b"b")).count == 0


async def test_long_ranges_are_read_in_slices_at_one_revision(client: EtcdClient) -> None:
    total = FIRST_SLICE_ROWS + SLICE_ROWS_MAX + 10
    for start in range(0, total, 1000):
        part = [put(b"p/%06d" % n, b"v") for n in range(start, min(start + 1000, total))]
        await client.Txn(success=part)
    answer = await client.Range(key=b"p/", range_end=b"p0")
    assert [kv.key for kv in answer.kvs] == [b"p/%06d" % n for n in range(total)]
    assert (answer.count, answer.more) == (total, False)
    answer = await client.Range(key=b"p/", range_end=b"p0", sort_order=2, limit=FIRST_SLICE_ROWS)
    assert answer.kvs[0].key == b"p/%06d" % (total - 1)
    assert (len(answer.kvs), answer.count, answer.more) == (FIRST_SLICE_ROWS, total, True)
    answer = await client.Range(key=b"p/", range_end=b"p0", sort_order=2, count_only=True)
    assert (len(answer.kvs), answer.count) == (0, total)
    answer = await client.Range(key=b"p/", range_end=b"p0", count_only=True)
    assert answer.count == total
    merged = ETCD.message("etcdserverpb.RangeResponse")()
    async for part in client.RangeStream(key=b"p/", range_end=b"p0", limit=total - 1):
        merged.MergeFrom(part.range_response)
    assert (len(merged.kvs), merged.count, merged.more) == (total - 1, total, True)
    assert merged.header.revision == client.store.machine.revision
    assert await client.refused("Range", key=b"p/", range_end=b"p0", revision=10**6) == (
        "OUT_OF_RANGE",
        "etcdserver: mvcc: required revision is a future revision",
    )


async def test_transactions(client: EtcdClient) -> None:
    await client.Put(key=b"a", value=b"1")
    compare = request("Compare", key=b"a", target=3, value=b"1")
    answer = await client.Txn(
        compare=[compare],
        success=[get(b"a"), put(b"b", b"2", prev_kv=True), get(b"b"), delete(b"a"),
                 get(b"\0", b"\0"), op(request_txn=request("TxnRequest", success=[get(b"b")]))],
    )  # fmt: skip
    assert (answer.succeeded, answer.header.revision) == (True, 3)
    read, wrote, reread, deleted, rest, nested = answer.responses
    assert read.response_range.header.revision == 2
    assert wrote.response_put.header.revision == 3
    assert reread.response_range.kvs[0].mod_revision == 3
    assert (deleted.response_delete_range.deleted, rest.response_range.count) == (1, 1)
    assert nested.response_txn.responses[0].response_range.header.revision == 3
    answer = await client.Txn(compare=[compare], success=[put(b"x")], failure=[get(b"b")])
    assert (answer.succeeded, answer.header.revision) == (False, 3)
    assert answer.responses[0].response_range.kvs[0].value == b"2"


async def test_refusals_of_transactions(client: EtcdClient) -> None:
    many = [put(b"%d" % n) for n in range(1025)]
    nested = op(request_txn=request("TxnRequest", success=[put(b"a")]))
    for fields, code, text in [
        ({"success": many}, "INVALID_ARGUMENT", "too many operations in txn request"),
        ({"success": [put(b"a"), put(b"a")]}, "INVALID_ARGUMENT",
         "duplicate key given in txn request"),
        ({"success": [put(b"a"), nested]}, "INVALID_ARGUMENT",
         "duplicate key given in txn request"),
        ({"success": [put(b"a"), delete(b"\0", b"\0")]}, "INVALID_ARGUMENT",
         "duplicate key given in txn request"),
        ({"success": [op()]}, "INVALID_ARGUMENT", "key not found"),
        ({"success": [put(b"")]}, "INVALID_ARGUMENT", "key is not provided"),
        ({"compare": [request("Compare")]}, "INVALID_ARGUMENT", "key is not provided"),
        ({"success": [put(b"a", lease=5)]}, "NOT_FOUND", "requested lease not found"),
        ({"success": [get(b"a", revision=50)]}, "OUT_OF_RANGE",
         "mvcc: required revision is a future revision"),
    ]:  # fmt: skip
        assert await client.refused("Txn", **fields) == (code, f"etcdserver: {text}"), fields
    assert client.store.machine.revision == 1


async def test_bad_protobuf_and_unknown_methods(client: EtcdClient) -> None:
    raw = client.channel.unary_unary("/etcdserverpb.KV/Put")
    with pytest.raises(Exception) as caught:
        await raw(b"\x0a\xff")
    assert caught.value.code().name == "INTERNAL"  # type: ignore[attr-defined]
    assert caught.value.details().startswith("grpc: error unmarshalling request")  # type: ignore[attr-defined]
    raw = client.channel.unary_unary("/etcdserverpb.KV/Nothing")
    with pytest.raises(Exception) as caught:
        await raw(b"")
    assert caught.value.code().name == "UNIMPLEMENTED"  # type: ignore[attr-defined]


def test_every_error_has_a_row_or_keeps_its_words() -> None:
    for kind in errors.Refused.__subclasses__():
        row = answers.row_of(kind("what happened"))
        assert row.text and row.code
    assert answers.row_of(errors.OutcomeUnknown("?")) == answers.TIMED_OUT
    assert answers.row_of(errors.CorruptionError("?")).code == 13
