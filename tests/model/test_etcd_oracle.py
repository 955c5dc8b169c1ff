"""Machine and model in step with a real etcd: the same commands, and every field of the answers.

A walk is a seed; it stops at the first difference and prints the command. `DIFFERENCES` lists what
is meant to differ. `RAFTKV_SEEDS=n` walks more seeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from raftkv.errors import (
    Compacted,
    DuplicateKey,
    FutureRevision,
    InvalidRequest,
    KeyNotFound,
    LeaseExists,
    LeaseNotFound,
    Refused,
)
from raftkv.machine import commands as c
from raftkv.storage.memory_backend import MemoryBackend
from tests.model.etcd import Etcd, EtcdError, b64, interval, row, running_etcd
from tests.model.store_model import (
    LEASES,
    Generator,
    Model,
    Row,
    as_answer,
    as_row,
    conflicts,
    to_op,
)
from tests.unit.machine_support import Driver

SEEDS: Final = int(os.environ.get("RAFTKV_SEEDS", "3"))
STEPS: Final = 500

MESSAGES: Final[dict[type[Refused], str]] = {
    KeyNotFound: "etcdserver: key not found",
    LeaseNotFound: "etcdserver: requested lease not found",
    LeaseExists: "etcdserver: lease already exists",
    DuplicateKey: "etcdserver: duplicate key given in txn request",
    Compacted: "etcdserver: mvcc: required revision has been compacted",
    FutureRevision: "etcdserver: mvcc: required revision is a future revision",
    InvalidRequest: "etcdserver: key is not provided",
}
"""What etcd says where raftkv raises."""

DIFFERENCES: Final = {
    "order of ties": "Sorted by anything but the key, etcd leaves records of equal rank in any "
    "order (it sorts unstably); raftkv keeps them in key order. Compared are the ranks.",
    "overlaps overlooked": "etcd sees a put under a delete only where both stand side by side and "
    "the delete has an end; raftkv refuses every key that a branch might both put and delete.",
    "limit without an order": "Asked to sort by something but in no order, both sort upwards; but "
    "etcd takes the first keys up to the limit before it sorts, raftkv after.",
    "deletes at the compaction": "A watch from the compacted revision on misses, in etcd, the "
    "deletes of that revision (etcd-io/etcd#18089); raftkv keeps them.",
    "compaction at 0": "etcd lets a store that was never compacted be compacted at 0, without "
    "effect; to raftkv everything below 1 has been compacted already.",
    "lowest TTL": "etcd raises TTLs below 2 seconds, raftkv takes 1. Walks grant long ones, "
    "which do not run out meanwhile either.",
    "expiry": "Leases run out by the clock of etcd's leader. Where a walk has raftkv's leader "
    "propose an expiry, etcd is told to revoke the same leases.",
}
"""Deliberate, with the reason; nothing else may differ. Every walk meets each of them."""

TARGETS: Final = ("VERSION", "CREATE", "MOD", "VALUE", "LEASE")
OPERANDS: Final = ("version", "create_revision", "mod_revision", "value", "lease")
RELATIONS: Final = ("EQUAL", "GREATER", "LESS", "NOT_EQUAL")
ORDERS: Final = ("NONE", "ASCEND", "DESCEND")
SORTS: Final = ("KEY", "VERSION", "CREATE", "MOD", "VALUE")


# -- etcd's words for our operations, and ours for its answers --------------------------------


def request(operation: Any) -> dict[str, Any]:
    """A `RequestOp`."""
    kind = operation[0]
    if kind == "put":
        return {"request_put": put_request(operation)}
    if kind == "delete":
        return {"request_delete_range": {**interval(*operation[1:]), "prev_kv": True}}
    if kind == "range":
        _, start, end, limit, revision = operation
        body = {**interval(start, end), "limit": limit, "revision": revision}
        return {"request_range": body}
    return {"request_txn": txn_request(operation)}


def put_request(operation: Any) -> dict[str, Any]:
    _, key, value, lease, same_value, same_lease = operation
    return {
        "key": b64(key),
        "value": b64(value),
        "lease": lease,
        "prev_kv": True,
        "ignore_value": same_value,
        "ignore_lease": same_lease,
    }


def txn_request(operation: Any) -> dict[str, Any]:
    _, compares, then, else_ = operation
    return {
        "compare": [compare_request(*compare) for compare in compares],
        "success": [request(inner) for inner in then],
        "failure": [request(inner) for inner in else_],
    }


def compare_request(
    target: int, relation: int, key: bytes, end: bytes | None, to: Any
) -> dict[str, Any]:
    operand = b64(to) if isinstance(to, bytes) else to
    return {
        **interval(key, end),
        "target": TARGETS[target],
        "result": RELATIONS[relation],
        OPERANDS[target]: operand,
    }


def answer(response: dict[str, Any]) -> Any:
    """A `ResponseOp` in the model's form."""
    if "response_put" in response:
        previous = response["response_put"].get("prev_kv")
        return ("put", row(previous)[1] if previous else None)
    if "response_delete_range" in response:
        return delete_answer(response["response_delete_range"])
    if "response_range" in response:
        return range_answer(response["response_range"])
    return txn_answer(response["response_txn"])


def delete_answer(response: dict[str, Any]) -> Any:
    rows = [row(item) for item in response.get("prev_kvs", [])]
    assert int(response.get("deleted", 0)) == len(rows)
    return ("delete", rows)


def range_answer(response: dict[str, Any]) -> Any:
    rows = [row(item) for item in response.get("kvs", [])]
    return ("range", rows, int(response.get("count", 0)), response.get("more", False))


def txn_answer(response: dict[str, Any]) -> Any:
    inner = [answer(item) for item in response.get("responses", [])]
    return ("txn", response.get("succeeded", False), inner)


def seen_by_etcd(branch: list[Any]) -> bool:
    """Whether etcd, too, has to refuse a branch: a key put twice, or put beside its delete."""
    puts = [_puts(operation) for operation in branch]
    for at, keys in enumerate(puts):
        if any(keys & other for other in puts[:at]):
            return True
    deletes = [("delete", *op[1:]) for op in branch if op[0] == "delete" and op[2] != b""]
    beside = [op for op in branch if op[0] == "put"]
    if any(conflicts([put, delete]) for put in beside for delete in deletes):
        return True
    nested = [op for op in branch if op[0] == "txn"]
    return any(seen_by_etcd(inner) for op in nested for inner in op[2:])


def _puts(operation: Any) -> set[bytes]:
    """Keys that an operation may put."""
    if operation[0] == "put":
        return {operation[1]}
    if operation[0] == "txn":
        return {key for branch in operation[2:] for inner in branch for key in _puts(inner)}
    return set()


def header_revision(response: dict[str, Any]) -> int:
    return int(response["header"]["revision"])


# -- the walk ----------------------------------------------------------------------------------


class Trio(Generator):
    """Model, machine and etcd, which get the same commands."""

    def __init__(self, seed: int, etcd: Etcd) -> None:
        super().__init__(seed)
        self.etcd = etcd
        self.model = Model()
        self.driver = Driver(MemoryBackend())
        self.refused: set[str] = set()
        self.met: set[str] = set()

    def same(
        self, path: str, body: dict[str, Any], *refusals: type[Refused]
    ) -> dict[str, Any] | None:
        """etcd's answer; None when it refuses, which it must by a message that belongs."""
        try:
            response = self.etcd.call(path, body)
        except EtcdError as error:
            messages = [MESSAGES[refusal] for refusal in refusals]
            assert str(error) in messages, "only etcd refuses, or it refuses for another reason"
            assert str(error) == messages[0]
            self.refused.update(refusal.__name__ for refusal in refusals)
            return None
        assert not refusals, f"etcd does not refuse with {refusals}"
        return response

    def write(self, operation: Any) -> None:
        """A put or a delete on its own."""
        if operation[0] == "put":
            path, body = "kv/put", put_request(operation)
            _, key, value, lease, same_value, same_lease = operation
            command = c.put(
                key, value, lease=lease, prev=True, ignore_value=same_value,
                ignore_lease=same_lease,
            )  # fmt: skip
        else:
            path, body = "kv/deleterange", {**interval(*operation[1:]), "prev_kv": True}
            command = c.delete(operation[1], operation[2], prev=True)
        refusal = self.model.refusal([operation])
        outcome = self.driver.do(command)
        response = self.same(path, body, *_one(refusal))
        if refusal:
            assert type(outcome) is refusal
            return
        assert response is not None
        expected = self.model.run([operation])[0]
        assert as_answer(outcome) == expected
        wrapped = {f"response_{'put' if operation[0] == 'put' else 'delete_range'}": response}
        assert answer(wrapped) == expected
        assert outcome.revision == header_revision(response) == self.model.revision

    def transact(self, txn: Any) -> None:
        """A transaction, which may be nested, and may write a key twice."""
        body = txn_request(txn)
        _, _, then, else_ = txn
        inner = to_op(txn)
        if conflicts(then) or conflicts(else_):
            with pytest.raises(DuplicateKey):
                c.txn(*inner[1:])
            self.conflict(then, else_)
            return
        refusals = self.model.refusals([txn])
        outcome = self.driver.do(c.txn(*inner[1:]))
        response = self.same("kv/txn", body, *refusals)
        if refusals:
            assert type(outcome) is refusals[0]
            return
        assert response is not None
        expected = self.model.run([txn])[0]
        assert as_answer(outcome) == expected
        assert txn_answer(response) == expected
        assert outcome.revision == header_revision(response) == self.model.revision

    def conflict(self, *branches: list[Any]) -> None:
        """What writes a key twice. Never run: where etcd overlooks it, the stores would part."""
        never = compare_request(0, 1, b"a", None, 2**40)
        for branch in branches:
            body = {"compare": [never], "success": [request(inner) for inner in branch]}
            refusal = DuplicateKey if conflicts(branch) else None
            if refusal is not None and not seen_by_etcd(branch):
                self.met.add("overlaps overlooked")
                try:
                    self.etcd.call("kv/txn", body)
                except EtcdError as error:
                    assert str(error) == MESSAGES[DuplicateKey]
            else:
                self.same("kv/txn", body, *_one(refusal))

    def grant(self, lease: int) -> None:
        ttl = 100_000 + self.random.randrange(1000)
        self.met.add("lowest TTL")
        refusal = LeaseExists if lease in self.model.leases else None
        outcome = self.driver.do(c.lease_grant(lease, ttl))
        response = self.same("lease/grant", {"ID": lease, "TTL": ttl}, *_one(refusal))
        if refusal:
            assert type(outcome) is refusal
            return
        assert response is not None
        assert (outcome.lease, outcome.ttl_seconds) == (lease, ttl)
        assert (int(response["ID"]), int(response["TTL"])) == (lease, ttl)
        assert header_revision(response) == self.model.revision
        self.model.leases[lease] = ttl

    def revoke(self, lease: int) -> None:
        refusal = None if lease in self.model.leases else LeaseNotFound
        outcome = self.driver.do(c.lease_revoke(lease))
        response = self.same("lease/revoke", {"ID": lease}, *_one(refusal))
        if refusal:
            assert type(outcome) is refusal
            return
        assert response is not None
        assert outcome.deleted == self.model.end_lease(lease)
        assert outcome.revision == header_revision(response) == self.model.revision

    def expire(self, leases: list[int]) -> None:
        self.met.add("expiry")
        outcome = self.driver.do(c.lease_expire(leases, self.driver.term))
        assert outcome.expired == [one for one in dict.fromkeys(leases) if one in self.model.leases]
        for lease in outcome.expired:
            assert self.same("lease/revoke", {"ID": lease}) is not None
            self.model.end_lease(lease)

    def compact(self, revision: int) -> None:
        revision = max(revision, 0)
        refusal: type[Refused] | None = None
        if revision <= self.model.compact:
            refusal = Compacted
        elif revision > self.model.revision:
            refusal = FutureRevision
        outcome = self.driver.do(c.compact(revision))
        body = {"revision": revision, "physical": True}
        if revision == 0 and not self.model.compact:
            self.met.add("compaction at 0")
            assert type(outcome) is Compacted
            return  # etcd would count it as its first compaction
        self.same("kv/compaction", body, *_one(refusal))
        if refusal:
            assert type(outcome) is refusal
        else:
            assert outcome.compact_revision == revision
            self.model.compact = revision

    def lease_keys(self, lease: int) -> None:
        response = self.etcd.call("lease/timetolive", {"ID": lease, "keys": True})
        known = lease in self.model.leases
        assert (int(response["TTL"]) >= 0) is known
        if known:
            assert int(response["grantedTTL"]) == self.model.leases[lease]
        hanging = sorted(key for key, row in self.model.now.items() if row.lease == lease)
        assert sorted(map(_key, response.get("keys", []))) == hanging
        assert self.driver.machine.lease_keys(lease) == hanging

    def range(self) -> None:
        r, model = self.random, self.model
        start, end = self.interval()
        revision = max(model.revision - r.randint(-1, 15), 0) if r.random() < 0.7 else 0
        limit, by, order = r.randint(0, 4), r.randint(0, 4), r.randint(0, 2)
        bounds = tuple(self.number() if r.random() < 0.3 else 0 for _ in range(4))
        keys_only, count_only = r.random() < 0.2, r.random() < 0.2
        names = ("min_mod_revision", "max_mod_revision", "min_create_revision",
                 "max_create_revision")  # fmt: skip
        body = {
            **interval(start, end),
            **dict(zip(names, bounds, strict=True)),
            "revision": revision,
            "limit": limit,
            "sort_target": SORTS[by],
            "sort_order": ORDERS[order],
            "keys_only": keys_only,
            "count_only": count_only,
        }
        refusal: type[Refused] | None = None
        if revision > model.revision:
            refusal = FutureRevision
        elif revision and revision < model.compact:
            refusal = Compacted

        def ask() -> Any:
            return self.driver.machine.range(
                start, end, revision=revision, limit=limit, want_count=True, keys_only=keys_only,
                count_only=count_only, sort_target=by, sort_order=order, min_mod=bounds[0],
                max_mod=bounds[1], min_create=bounds[2], max_create=bounds[3],
            )  # fmt: skip

        response = self.same("kv/range", body, *_one(refusal))
        if refusal:
            with pytest.raises(refusal):
                ask()
            return
        assert response is not None
        result = ask()
        ours = ("range", [as_row(one) for one in result.records], result.count, result.more)
        theirs = range_answer(response)
        if by and not order and limit:
            self.met.add("limit without an order")
            assert (len(ours[1]), *ours[2:]) == (len(theirs[1]), *theirs[2:])
        elif by:
            self.met.add("order of ties")
            rank: Callable[[tuple[bytes, Row]], Any] = _ranks(by, keys_only, revision, model)
            assert [rank(one) for one in ours[1]] == [rank(one) for one in theirs[1]]
            assert ours[2:] == theirs[2:]
            if not limit:
                assert sorted(ours[1]) == sorted(theirs[1])
        else:
            assert ours == theirs
        assert header_revision(response) == model.revision

    def events(self, start: int) -> None:
        """The history since a revision, as a watch tells it."""
        model, machine = self.model, self.driver.machine
        if start < model.compact:
            with pytest.raises(EtcdError, match=f"compacted at {model.compact}"):
                self.etcd.watch(start, model.revision)
            with pytest.raises(Compacted):
                machine.history(start, model.revision, 1000)
            return
        if not any(revision >= start for revision in model.changes):
            return
        theirs = []
        for event in self.etcd.watch(start, model.revision):
            key, now = row(event["kv"])
            before = event.get("prev_kv")
            deleted = event.get("type") == "DELETE"
            previous = row(before)[1] if before else None
            theirs.append((now.mod, key, None if deleted else now, previous))
        ours = []
        for change in machine.history(start, model.revision, 100_000):
            found = machine.previous(change)
            shown = None if change.deleted else as_row(change.record)[1]
            previous = as_row(found)[1] if found else None
            ours.append((change.revision, change.key, shown, previous))
        if ours != theirs:
            self.met.add("deletes at the compaction")
            kept = [one for one in ours if one[2] is not None or one[0] > model.compact]
            assert kept == theirs

    def step(self) -> None:
        r = self.random
        self.revision = self.model.revision
        roll = r.random()
        if roll < 0.4:
            self.write(self.put() if r.random() < 0.8 else ("delete", *self.interval()))
        elif roll < 0.6:
            self.transact(self.transaction())
        elif roll < 0.65:
            self.grant(r.choice(LEASES))
        elif roll < 0.67:
            self.revoke(r.choice(LEASES))
        elif roll < 0.69:
            self.expire(r.choices(LEASES, k=2))
        elif roll < 0.72:
            self.compact(self.model.revision - r.randint(-1, 15))
        elif roll < 0.76:
            self.driver.machine.compact_step(r.randint(1, 9))
        elif roll < 0.79:
            self.lease_keys(r.choice(LEASES))
        elif roll < 0.82:
            self.events(max(self.model.revision - r.randint(0, 40), 1))
        else:
            self.range()


def _one(refusal: type[Refused] | None) -> tuple[type[Refused], ...]:
    return () if refusal is None else (refusal,)


def _key(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


def _ranks(by: int, keys_only: bool, revision: int, model: Model) -> Callable[[Any], Any]:
    """What records are sorted by; of values that were left out, those of the model."""
    field = ("", "version", "create", "mod", "value")[by]
    if field != "value" or not keys_only:
        return lambda item: getattr(item[1], field)
    state = model.states[revision or model.revision]
    return lambda item: state[item[0]].value


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_same_commands_have_the_same_answers(seed: int, tmp_path: Path) -> None:
    with running_etcd(tmp_path) as etcd:
        trio = Trio(seed, etcd)
        trio.compact(0)
        for step in range(STEPS):
            try:
                trio.step()
            except BaseException as error:
                error.add_note(f"seed {seed}, step {step}, revision {trio.model.revision}")
                raise
        late = ("range", b"a", None, 0, trio.model.revision + 1)
        trio.transact(("txn", [], [late, ("put", b"a", b"", 99, False, False)], []))
        trio.write(("put", b"a", b"", 0, False, False))
        trio.write(("delete", b"a", None))
        trio.compact(trio.model.revision)
        trio.write(("put", b"b", b"", 0, False, False))
        trio.events(trio.model.compact)
    assert trio.model.revision > STEPS // 5
    assert trio.refused >= {"KeyNotFound", "LeaseNotFound", "DuplicateKey", "FutureRevision"}
    assert trio.met == DIFFERENCES.keys()
