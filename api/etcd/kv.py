"""KV: Range, RangeStream, Put, DeleteRange, Txn, Compact."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import rpc_message
from raftkv.api.etcd.ranges import RangeReader, check_sort, interval
from raftkv.api.etcd.rpc import Rpcs, Service, Streaming, Unary, answering
from raftkv.api.etcd.txn import TxnEncoder, TxnParts, is_read_only, is_serializable, txn_parts
from raftkv.api.etcd.wire import field, number_field, records_field
from raftkv.errors import RaftkvError
from raftkv.machine.access import effects
from raftkv.machine.commands import compact, delete, put, txn

if TYPE_CHECKING:
    from raftkv.api.callers import Caller
    from raftkv.machine.results import CompactResult, DeleteResult, PutResult, TxnResult

COMPACTION_LOOK_SECONDS: Final = 0.02
ONE_KEY: Final = number_field(4, 1)


class Kv(Service):
    """Service etcdserverpb.KV."""

    def __init__(self, rpcs: Rpcs) -> None:
        super().__init__(rpcs)
        request = rpc_message("RangeRequest")
        rpcs.add("/etcdserverpb.KV/Range", request, self.range)
        rpcs.add_server_stream("/etcdserverpb.KV/RangeStream", request, self.range_stream)
        rpcs.add("/etcdserverpb.KV/Put", rpc_message("PutRequest"), self.put)
        rpcs.add("/etcdserverpb.KV/DeleteRange", rpc_message("DeleteRangeRequest"), self.delete)
        rpcs.add("/etcdserverpb.KV/Txn", rpc_message("TxnRequest"), self.txn)
        rpcs.add("/etcdserverpb.KV/Compact", rpc_message("CompactionRequest"), self.compact)

    # ---- reading

    def range(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer RangeResponse."""
        if not request.key:
            raise answers.EMPTY_KEY.fault()
        check_sort(request)
        if request.serializable:
            self._range(call, request, None)
        else:
            caller.read_index(partial(self._range, call, request))

    @answering
    def _range(self, call: Unary, request: Any, error: RaftkvError | None) -> None:
        if not (
            request.range_end
            or request.revision
            or request.keys_only
            or request.count_only
            or request.min_mod_revision
            or request.max_mod_revision
            or request.min_create_revision
            or request.max_create_revision
        ):
            record = self.store.machine.get(request.key)
            header = self.headers.now()
            call.reply(
                header if record is None else b"".join((header, field(2, record.wire), ONE_KEY))
            )
            return
        self._read_on(call, RangeReader(self.store.machine, request))

    def _read_on(self, call: Unary, reader: RangeReader) -> None:
        if reader.step():
            call.reply(reader.answer(self.headers.now()))
        else:
            self.rpcs.loop.call_soon(self._read_more, call, reader)

    @answering
    def _read_more(self, call: Unary, reader: RangeReader) -> None:
        self._read_on(call, reader)

    def range_stream(self, caller: Caller, call: Streaming, request: Any) -> None:
        """Answer RangeStreamResponses: records as they are read, then header, count and more."""
        if not request.key:
            raise answers.EMPTY_KEY.fault()
        check_sort(request)
        if (
            request.sort_target
            or request.sort_order
            or request.min_mod_revision
            or request.max_mod_revision
            or request.min_create_revision
            or request.max_create_revision
        ):
            raise answers.RANGE_STREAM_OPTION.fault()
        _RangeStream(self, caller, call, request)

    # ---- writing

    def put(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer PutResponse."""
        command = put(
            request.key,
            request.value,
            lease=request.lease,
            prev=request.prev_kv,
            ignore_value=request.ignore_value,
            ignore_lease=request.ignore_lease,
        )
        caller.propose(command, partial(self._put_done, call))

    @answering
    def _put_done(self, call: Unary, result: PutResult) -> None:
        header = self.headers.at(result.revision)
        previous = result.previous
        call.reply(header if previous is None else header + field(2, previous.wire))

    def delete(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer DeleteRangeResponse."""
        start, end = interval(request.key, request.range_end)
        command = delete(start, end, prev=request.prev_kv)
        caller.propose(command, partial(self._delete_done, call))

    @answering
    def _delete_done(self, call: Unary, result: DeleteResult) -> None:
        call.reply(
            b"".join(
                (
                    self.headers.at(result.revision),
                    number_field(2, result.deleted),
                    records_field([record.raw for record in result.previous], b"\x1a"),
                )
            )
        )

    def txn(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer TxnResponse. One that writes nothing is read here, without the log."""
        parts = txn_parts(request)
        command = txn(*parts)
        if not is_read_only(parts):
            caller.propose(command, partial(self._txn_done, call))
            return
        if caller.user is not None:
            needs = effects(command)
            caller.check(needs)
            caller = caller.asking(needs)
        if is_serializable(request):
            self._txn_read(call, parts, None)
        else:
            caller.read_index(partial(self._txn_read, call, parts))

    @answering
    def _txn_read(self, call: Unary, parts: TxnParts, error: RaftkvError | None) -> None:
        self._txn_reply(call, self.store.machine.read_txn(*parts))

    @answering
    def _txn_done(self, call: Unary, result: TxnResult) -> None:
        self._txn_reply(call, result)

    def _txn_reply(self, call: Unary, result: TxnResult) -> None:
        body = TxnEncoder(result).body(result)
        call.reply(self.headers.at(result.revision) + body)

    def compact(self, caller: Caller, call: Unary, request: Any) -> None:
        """Answer CompactionResponse, once the rows are removed here if it is to be physical."""
        # Below zero is below every revision there ever was.
        revision = request.revision if request.revision >= 0 else 0
        caller.propose(compact(revision), partial(self._compact_done, call, request.physical))

    @answering
    def _compact_done(self, call: Unary, physical: bool, result: CompactResult) -> None:
        self._compacted(call, physical)

    @answering
    def _compacted(self, call: Unary, physical: bool) -> None:
        if physical and self.store.machine.compaction_pending:
            self.rpcs.loop.call_later(COMPACTION_LOOK_SECONDS, self._compacted, call, True)
        else:
            call.reply(self.headers.now())


class _RangeStream:
    """One RangeStream call: a step of the range whenever the client has taken the last one."""

    __slots__ = ("_call", "_kv", "_reader", "_request", "_scheduled", "rpcs")

    def __init__(self, kv: Kv, caller: Caller, call: Streaming, request: Any) -> None:
        self._kv = kv
        self.rpcs = kv.rpcs
        self._call = call
        self._request = request
        self._scheduled = False
        self._reader = RangeReader(kv.store.machine, request, self._send)
        call.on_drain = self._go_on
        if request.serializable:
            self._go_on()
        else:
            caller.read_index(self._confirmed)

    def _confirmed(self, error: RaftkvError | None) -> None:
        if error is not None:
            self.rpcs.refuse(self._call, error)
        else:
            self._go_on()

    def _go_on(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.rpcs.loop.call_soon(self._step)

    def _step(self) -> None:
        self._scheduled = False
        call, reader = self._call, self._reader
        if call.ended:
            return
        try:
            last = reader.step()
        except Exception as error:
            self.rpcs.refuse(call, error)
            return
        if last:
            call.send(field(1, reader.answer(self._kv.headers.now())))
            call.finish()
        elif call.writable:
            self._go_on()

    def _send(self, kvs: bytes) -> None:
        self._call.send(field(1, kvs))
