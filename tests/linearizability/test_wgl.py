"""WGL against all orders, against the witness check, and on the cases that it was built for."""

from __future__ import annotations

import pytest

from tests.linearizability.crosscheck import check_corrupt, check_values
from tests.linearizability.history import (
    Answer,
    Compare,
    Delete,
    DeleteAnswer,
    Grant,
    KeyRecord,
    LeaseAnswer,
    Operation,
    Outcome,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Request,
    Txn,
    TxnAnswer,
)
from tests.linearizability.perkey import split
from tests.linearizability.simulated import ONE_KEY, Profile, simulate
from tests.linearizability.wgl import Search, Verdict, follow, search

K = b"k"


@pytest.mark.parametrize("block", range(8))
def test_wgl_all_orders_and_the_witness_check_agree_on_histories_of_values(block: int) -> None:
    verdicts = [check_values(seed) for seed in range(40 * block, 40 * block + 40)]
    assert Verdict.LINEARIZABLE in verdicts and Verdict.NOT_LINEARIZABLE in verdicts


def test_what_wgl_refuses_of_corrupt_histories_the_witness_check_refuses_too() -> None:
    found = [agreement for seed in range(60) if (agreement := check_corrupt(seed)) is not None]
    assert len(found) > 40
    assert sum(each.wgl is Verdict.NOT_LINEARIZABLE for each in found) > 10


@pytest.mark.parametrize("profile", [Profile(), ONE_KEY, Profile(unknown=0.2)])
@pytest.mark.parametrize("seed", range(6))
def test_every_key_of_what_one_copy_did_is_linearizable(seed: int, profile: Profile) -> None:
    run = simulate(seed, profile)
    for key, mine in split(run.history.operations).items():
        found = search(mine)
        assert found.verdict is Verdict.LINEARIZABLE, (key, found.stuck)
        assert {each.index for each in found.order} >= {
            each.index for each in mine if each.required
        }


def op(request: Request, start: int, end: int, answer: Answer | None = None) -> Operation:
    if answer is None:
        return Operation(1, request, start)
    return Operation(1, request, start, end, Outcome.OK, answer)


def put(value: bytes, start: int, end: int) -> Operation:
    return op(Put(K, value), start, end, PutAnswer(2))


def read(value: bytes | None, start: int, end: int) -> Operation:
    records = () if value is None else (KeyRecord(K, value, 2, 2, 1),)
    return op(Range(K), start, end, RangeAnswer(2, records, len(records)))


def judge(*operations: Operation) -> Search:
    return search(split(operations)[K])


def linearizable(*operations: Operation) -> bool:
    verdict = judge(*operations).verdict
    assert verdict is not Verdict.NOT_DECIDED
    return verdict is Verdict.LINEARIZABLE


def test_reads_beside_a_write_may_see_it_or_not_but_not_go_back() -> None:
    assert linearizable(put(b"a", 0, 10), read(None, 1, 2), read(b"a", 3, 4))
    assert not linearizable(put(b"a", 0, 10), read(b"a", 1, 2), read(None, 3, 4))


def test_what_returned_before_is_seen() -> None:
    assert not linearizable(put(b"a", 0, 1), read(None, 2, 3))


def test_an_unknown_write_may_happen_late_or_never() -> None:
    unknown = op(Put(K, b"a"), 0, 0)
    assert linearizable(unknown, read(None, 50, 51), read(b"a", 60, 61))
    assert linearizable(unknown, read(None, 50, 51))
    assert not linearizable(unknown, read(b"a", 50, 51), read(None, 60, 61))


def test_an_unknown_write_happens_once() -> None:
    unknown = op(Put(K, b"a"), 0, 0)
    seen_twice = [read(b"a", 10, 11), put(b"b", 12, 13), read(b"b", 14, 15), read(b"a", 16, 17)]
    assert not linearizable(unknown, *seen_twice)


def test_an_unseen_unknown_write_is_found_where_a_delete_needs_it() -> None:
    delete = op(Delete(K), 10, 11, DeleteAnswer(3, 1))
    assert linearizable(op(Put(K, b"a"), 0, 0), delete)
    assert not linearizable(delete)
    assert not linearizable(op(Put(K, b"a"), 12, 0), delete)


def test_compares_of_a_transaction_count() -> None:
    cas = Txn((Compare(K, "value", "=", b"a"),), (Put(K, b"b"),))
    won = op(cas, 10, 11, TxnAnswer(3, True, (PutAnswer(3),)))
    lost = op(cas, 10, 11, TxnAnswer(3, False, ()))
    assert linearizable(put(b"a", 0, 1), won) and not linearizable(put(b"a", 0, 1), lost)
    assert linearizable(put(b"c", 0, 1), lost) and not linearizable(put(b"c", 0, 1), won)


def test_an_unknown_transaction_may_take_either_branch() -> None:
    txn = op(Txn((Compare(K, "version", "=", 0),), (Put(K, b"new"),), (Put(K, b"old"),)), 0, 0)
    assert linearizable(txn, read(b"new", 10, 11))
    assert linearizable(put(b"a", 0, 1), txn, read(b"old", 10, 11))
    assert not linearizable(txn, read(b"old", 10, 11))


def test_a_lease_may_take_its_key_but_no_other() -> None:
    grant = op(Grant(7, 5), 0, 1, LeaseAnswer(7, 5))
    leased = op(Put(K, b"a", 7), 2, 3, PutAnswer(2))
    assert linearizable(grant, leased, read(None, 10, 11))
    assert not linearizable(grant, put(b"a", 2, 3), read(None, 10, 11))
    assert not linearizable(grant, leased, put(b"b", 4, 5), read(None, 10, 11))
    assert not linearizable(grant, leased, read(None, 10, 11), read(b"a", 12, 13))


def test_a_read_of_an_interval_speaks_of_each_key() -> None:
    both = op(Range(b"a", b"z"), 10, 11, RangeAnswer(3, (KeyRecord(K, b"a", 2, 2, 1),), 1))
    assert linearizable(put(b"a", 0, 1), both)
    assert not linearizable(put(b"b", 0, 1), both)
    other = op(Put(b"j", b"x"), 0, 1, PutAnswer(3))
    assert search(split([put(b"a", 0, 1), other, both])[b"j"]).verdict is Verdict.NOT_LINEARIZABLE


def test_serializable_reads_are_dropped() -> None:
    stale = op(Range(K, serializable=True), 10, 11, RangeAnswer(1, (), 0))
    assert linearizable(put(b"a", 0, 1), stale)


def test_out_of_steps_is_not_decided() -> None:
    history = [put(b"%d" % n, 0, 100) for n in range(20)] + [read(b"none", 50, 60)]
    assert search(split(history)[K], steps_max=1000).verdict is Verdict.NOT_DECIDED


def test_what_is_stuck_is_told() -> None:
    found = judge(put(b"a", 0, 1), put(b"b", 2, 3), read(b"a", 4, 5), read(b"b", 6, 7))
    assert found.verdict is Verdict.NOT_LINEARIZABLE
    assert found.stuck is not None and found.stuck.index == 2 and found.state == b"b"


def test_clients_of_one_key_are_decided() -> None:
    run = simulate(3, Profile(clients=8, keys=1, operations=1000, unknown=0.02, intervals=False))
    [mine] = split(run.history.operations).values()
    assert search(mine).verdict is Verdict.LINEARIZABLE


def test_an_order_is_verified_without_a_search() -> None:
    mine = split([put(b"a", 0, 10), put(b"b", 1, 12), read(b"a", 11, 13), op(Delete(K), 5, 0)])[K]
    assert follow(mine, [2, 1, 3, None])
    assert not follow(mine, [1, 2, 3, None]), "the read sees b"
    assert follow(mine, [2, 1, 3, 2]), "the unknown delete may be left out"
    assert not follow(mine, [2, 1, None, None]), "the read has happened"
    late = split([put(b"a", 0, 1), read(None, 5, 6)])[K]
    assert not follow(late, [2, 1]), "the read came later"
