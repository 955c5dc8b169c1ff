"""Commands against the scripted store: several members, and faults that happen to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from click.testing import CliRunner, Result

from raftkv.cli import exits
from raftkv.cli.main import cli
from tests.unit.client_fake_store import FakeStore

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def store() -> AsyncIterator[FakeStore]:
    fake = FakeStore(endpoints=2)
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def run(store: FakeStore) -> Run:
    async def invoke(*args: str, code: int = 0, timeout: str = "3") -> Result:
        options = ["--endpoints", ",".join(store.urls), "--timeout", timeout]
        result: Result = await asyncio.to_thread(CliRunner().invoke, cli, [*options, *args])
        assert result.exit_code == code, (args, result.output, result.stderr, result.exception)
        return result

    return invoke


async def test_members_by_id_and_by_name(store: FakeStore, run: Run) -> None:
    text = (await run("member", "add", "http://h:1", "--name", "m3", "-o", "table")).stdout
    assert "--initial-cluster-state existing" in text and "m3=http://h:1" in text
    assert "raftkv member promote 0000000000000003" in text
    assert "votes" in (await run("member", "promote", "m3", "-o", "table")).stdout
    assert json.loads((await run("leader", "transfer", "m3")).stdout)["leader"] == f"{3:016x}"
    assert json.loads((await run("leader", "transfer")).stdout)["leader"] == "2" * 16
    assert "m3" in (await run("member", "list", "-o", "table")).stdout
    await run("member", "remove", f"{3:016X}")
    assert len(store.members) == 2
    store.members[1]["name"] = "m1"
    assert "several" in (await run("member", "remove", "m1", code=1)).stderr


async def test_status_of_the_whole_cluster_from_one_endpoint(store: FakeStore, run: Run) -> None:
    found = json.loads((await run("status", "--cluster", "--endpoints", store.urls[0])).stdout)
    assert [item["endpoint"] for item in found["members"]] == store.urls


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ({"kind": "problem", "code": "no_leader"}, exits.UNAVAILABLE, "`raftkv status`"),
        ({"kind": "hang_after"}, exits.UNKNOWN, "Read the key before"),
        (
            {"kind": "problem", "status": 507, "code": "no_space"},
            exits.FAILED,
            "--quota-backend-bytes",
        ),
        ({"kind": "raw", "status": 404}, exits.FAILED, "Check --endpoints"),
    ],
)
async def test_errors_say_what_to_do_in_one_line(
    store: FakeStore, run: Run, fault: dict[str, object], code: int, told: str
) -> None:
    store.fault(times=999, **fault)  # type: ignore[arg-type]
    result = await run("put", "a", "b", code=code, timeout="0.4")
    assert told in result.stderr and result.stderr.count("\n") == 1 and not result.stdout


async def test_a_broken_snapshot_leaves_nothing(
    store: FakeStore, run: Run, tmp_path: object
) -> None:
    store.fault("problem", code="no_leader", times=999)
    await run("snapshot", "save", f"{tmp_path}/image", code=exits.UNAVAILABLE, timeout="0.3")
    import os

    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("format_", ["table", "ndjson"])
async def test_service_watch_goes_on_after_a_break(
    store: FakeStore, run: Run, format_: str
) -> None:
    for name in ("w1", "w2"):
        await run("service", "register", "web", name, "--address", "h", "--port", "1")
    watching = asyncio.create_task(run("service", "watch", "web", "-o", format_, code=1))
    store.fault("cut", path="/api/watch", after_events=4)
    while not store.calls(path="/api/watch"):
        await asyncio.sleep(0.01)
    store.end_instance(("web", "w1"), "expired")
    store.fault("problem", path="/api/watch", status=400, code="enough", endpoint=1)
    store.end_instance(("web", "w2"), "deregistered")
    result = await asyncio.wait_for(watching, 10)
    assert "going on elsewhere" in result.stderr
    lines = result.stdout.splitlines()
    if format_ == "table":
        words = [line.split()[1] for line in lines]
        assert words == ["present", "present", "expired"]
        assert "waiting for changes" in result.stderr
    else:
        kinds = [json.loads(line)["type"] for line in lines]
        assert kinds == ["instance", "instance", "ready", "deregistered"]


async def test_keep_alive_goes_on_until_the_lease_is_gone(store: FakeStore, run: Run) -> None:
    lease = json.loads((await run("lease", "grant", "1")).stdout)["lease"]
    keeping = asyncio.create_task(run("lease", "keep-alive", lease, code=3, timeout="0.2"))
    while store.renewed.get(lease, 0) < 2:
        await asyncio.sleep(0.01)
    store.fault("problem", path="/api/leases", code="no_leader", times=8)
    while any(fault.times for fault in store.faults):
        await asyncio.sleep(0.01)
    store.end_lease(lease)
    result = await asyncio.wait_for(keeping, 10)
    assert "trying again" in result.stderr and len(result.stdout.splitlines()) >= 2
