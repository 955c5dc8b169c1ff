"""The witness check accepts what one copy did: over seeds, with unknown outcomes and leases."""

from __future__ import annotations

import pytest

from tests.linearizability.simulated import ONE_KEY, Profile, simulate, watch
from tests.linearizability.witness import check_witness

PROFILES = {
    "plain": Profile(unknown=0),
    "some-unknown": Profile(),
    "many-unknown": Profile(unknown=0.25),
    "one-key": ONE_KEY,
    "wide": Profile(clients=10, keys=20, operations=600, unknown=0.08),
}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", PROFILES)
def test_what_one_copy_did_is_accepted(name: str, seed: int) -> None:
    run = simulate(seed, PROFILES[name])
    operations = run.history.operations
    check_witness(operations).check()
    check_witness(operations, final=run.final, final_revision=run.final_revision).check()


@pytest.mark.parametrize("seed", range(12))
def test_the_final_state_may_come_without_its_revision(seed: int) -> None:
    run = simulate(seed, Profile(unknown=0.1))
    check_witness(run.history.operations, final=run.final).check()


@pytest.mark.parametrize("seed", range(12))
def test_the_truth_found_is_what_happened(seed: int) -> None:
    run = simulate(seed, Profile(unknown=0))
    report = check_witness(
        run.history.operations, final=run.final, final_revision=run.final_revision
    ).check()
    assert list(report.truth) == run.truth
    assert report.causes is not None
    assert set(report.causes) == {event.record.mod_revision for event in run.truth}


@pytest.mark.parametrize("seed", range(12))
def test_watches_tell_what_unknown_operations_did(seed: int) -> None:
    run = simulate(seed, Profile(unknown=0.2))
    logs = [watch(seed * 10 + n, run)[0] for n in range(3)]
    report = check_witness(
        run.history.operations, final=run.final, final_revision=run.final_revision, watches=logs
    ).check()
    watched = {
        (event.record.mod_revision, event.record.key, event.kind)
        for log in logs
        for response in log.responses
        for event in response.events
    }
    truth = {(event.record.mod_revision, event.record.key, event.kind) for event in report.truth}
    assert watched <= truth
