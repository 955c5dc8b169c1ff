"""The command line against real members: every group of commands, exit codes, backups, dev."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from raftkv.cli import exits
from tests.support.processes import Cluster, Member, running

RAFTKV = [sys.executable, "-m", "raftkv"]
SECONDS = 20.0
SMALL_LOG = ["--wal-segment-bytes", "32MiB"]
"""A first file of the log that is quickly filled with zeros."""


class Command:
    """Runs `raftkv` against some endpoints, away from the loop."""

    def __init__(self, *urls: str, seconds: float = SECONDS) -> None:
        """`seconds`: what a command may take."""
        self._seconds = seconds
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAFTKV_")}
        self.environment = {**clean, "RAFTKV_ENDPOINTS": ",".join(urls)}

    async def __call__(self, *arguments: str, code: int = exits.OK, given: str = "") -> Any:
        """Standard output, decoded when it is JSON; with an error code: standard error."""
        done = await asyncio.to_thread(
            subprocess.run,
            [*RAFTKV, *arguments],
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=self._seconds,
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        if code not in (exits.OK, exits.PRECONDITION) or not done.stdout:
            return done.stderr
        try:
            return json.loads(done.stdout)
        except ValueError:
            return done.stdout

    @contextmanager
    def started(self, *arguments: str) -> Iterator["Running"]:
        """A command that goes on; killed at the end if it is still there."""
        process = subprocess.Popen(
            [*RAFTKV, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield Running(process)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


class Running:
    """A process whose output is read line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    async def line(self, stream: IO[str] | None = None) -> str:
        """The next line; what ended instead of saying it fails the test."""
        source = stream or self.process.stdout
        assert source is not None
        return await asyncio.wait_for(asyncio.to_thread(source.readline), SECONDS)

    async def until(self, stream: IO[str] | None, wanted: str) -> str:
        """Everything up to the first line that holds `wanted`."""
        seen = ""
        while True:
            line = await self.line(stream)
            assert line, f"ended before it said {wanted!r}: {seen}"
            seen += line
            if wanted in line:
                return seen

    async def end(self, number: int | None = None) -> int:
        """Signal it, if asked to, and wait; the exit code."""
        if number is not None:
            self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, SECONDS)


async def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something outside of this process is so."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def test_keys_watches_transactions_and_history(tmp_path: Path) -> None:
    async with running(tmp_path, 1, SMALL_LOG) as cluster:
        raftkv = Command(*cluster.urls)
        first = await raftkv("put", "a/1", "one")
        assert (await raftkv("get", "a/1"))["value"] == "one"
        assert await raftkv("get", "a/1", "--raw") == "one"
        await raftkv("put", "a/2", given="from a pipe")
        assert (await raftkv("get", "a/2"))["value"] == "from a pipe"
        assert "no key" in await raftkv("get", "nothing", code=exits.NOT_FOUND)
        revision = str(first["revision"])
        await raftkv("put", "a/1", "two", "--if-revision", revision)
        await asyncio.gather(
            raftkv("put", "a/1", "x", "--if-revision", revision, code=exits.PRECONDITION),
            raftkv("put", "a/1", "x", "--if-absent", code=exits.PRECONDITION),
            raftkv("put", "fresh", "x", "--if-present", code=exits.PRECONDITION),
        )
        assert (await raftkv("get", "a/1", "--revision", revision))["value"] == "one"
        page = await raftkv("get", "--prefix", "a/")
        assert [item["key"] for item in page["items"]] == ["a/1", "a/2"]

        body = {
            "if": [{"key": "a/1", "target": "value", "op": "=", "operand": "two"}],
            "then": [{"op": "put", "key": "a/1", "value": "three"}],
            "else": [{"op": "get", "key": "a/1"}],
        }
        assert (await raftkv("txn", given=json.dumps(body)))["succeeded"] is True
        failed = await raftkv("txn", given=json.dumps(body), code=exits.PRECONDITION)
        assert failed["succeeded"] is False and failed["results"][0]["item"]["value"] == "three"
        await raftkv("txn", given="no json", code=exits.USAGE)

        # A watch from the past goes on with the present, also past the death of the member.
        member = cluster.members[0]
        with raftkv.started("watch", "--prefix", "a/", "--from", revision, "-n", "6") as watch:
            seen = [json.loads(await watch.line()) for _ in range(4)]
            member.kill()
            member.start()
            await cluster.ready(member)
            await raftkv("del", "a/2")
            await raftkv("put", "a/3", "later")
            seen += [json.loads(await watch.line()) for _ in range(2)]
            assert await watch.end() == exits.OK
        assert [(each["type"], each["key"], each.get("value")) for each in seen] == [
            ("put", "a/1", "one"), ("put", "a/2", "from a pipe"), ("put", "a/1", "two"),
            ("put", "a/1", "three"), ("delete", "a/2", None), ("put", "a/3", "later"),
        ]  # fmt: skip
        with raftkv.started("watch", "a/1", "--from", revision) as watch:
            await watch.line()
            assert await watch.end(signal.SIGINT) == exits.INTERRUPTED

        await raftkv("del", "a/2", code=exits.NOT_FOUND)
        assert (await raftkv("del", "--prefix", "a/"))["deleted"] == 2
        now = (await raftkv("put", "last", "x"))["revision"]
        assert (await raftkv("compact", str(now)))["compact_revision"] == now
        await asyncio.gather(
            raftkv("get", "a/1", "--revision", revision, code=exits.FAILED),
            raftkv("watch", "a/1", "--from", revision, code=exits.FAILED),
        )


async def test_leases_and_services(tmp_path: Path) -> None:
    async with running(tmp_path, 1, SMALL_LOG) as cluster:
        raftkv = Command(*cluster.urls)
        lease = (await raftkv("lease", "grant", "60"))["lease"]
        await raftkv("put", "leased", "x", "--lease", lease)
        assert (await raftkv("lease", "keep-alive", lease, "--once"))["ttl"] == 60
        assert (await raftkv("lease", "show", lease))["keys"] == ["leased"]
        assert [each["lease"] for each in (await raftkv("lease", "list"))["leases"]] == [lease]
        assert (await raftkv("lease", "revoke", lease))["deleted"] == 1
        await raftkv("get", "leased", code=exits.NOT_FOUND)
        await raftkv("lease", "keep-alive", lease, "--once", code=exits.NOT_FOUND)

        place = ["--address", "10.0.0.1", "--port", "80", "--ttl", "60"]
        with raftkv.started("service", "watch", "web") as watch:
            await watch.until(None, '"ready"')
            await raftkv("service", "register", "web", "w1", *place, "--owner", "a")
            told = await watch.until(None, "registered")
            assert "w1" in told
            assert (await raftkv("service", "list"))["services"][0]["service"] == "web"
            shown = await raftkv("service", "show", "web", "w1")
            assert (shown["address"], shown["port"]) == ("10.0.0.1", 80)
            other = ["--address", "10.0.0.2", "--port", "80", "--owner", "b"]
            claimed = await raftkv("service", "register", "web", "w1", *other, code=exits.FAILED)
            assert "--takeover" in claimed
            await raftkv("service", "drain", "web", "w1")
            assert (await raftkv("service", "show", "web", "w1"))["status"] == "draining"
            await raftkv("service", "deregister", "web", "w1")
            await watch.until(None, "deregistered")
        await raftkv("service", "deregister", "web", "w1", code=exits.NOT_FOUND)


CHILD = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.signal(signal.SIGUSR1, lambda *_: print("usr1", flush=True))
print(os.environ["RAFTKV_SERVICE"], os.environ["RAFTKV_INSTANCE"], os.environ["PORT"], flush=True)
while True:
    signal.pause()
"""


async def test_service_run_keeps_a_program_registered_as_long_as_it_runs(tmp_path: Path) -> None:
    async with running(tmp_path, 1, SMALL_LOG) as cluster:
        raftkv = Command(*cluster.urls)
        program = ["service", "run", "web", "--id", "w1", "--port", "8123", "--ttl", "1", "--"]
        with raftkv.started(*program, sys.executable, "-c", CHILD) as run:
            assert (await run.line()).split() == ["web", "w1", "8123"]
            with raftkv.started("service", "watch", "web") as watch:
                await watch.until(None, '"w1"')
                run.process.send_signal(signal.SIGUSR1)
                assert await run.line() == "usr1\n"
                # Longer than its TTL: only heartbeats can have kept it.
                registered = await raftkv("service", "show", "web", "w1")
                await asyncio.sleep(1.5)
                assert await raftkv("service", "show", "web", "w1") == registered
                assert await run.end(signal.SIGTERM) == 7
                await watch.until(None, '"deregistered"')
        await raftkv("service", "run", "web", "--port", "1", "--", "no-such-program", code=127)


async def test_the_cluster_and_codes_of_one_that_cannot_serve(tmp_path: Path) -> None:
    async with running(tmp_path, 3, SMALL_LOG) as cluster:
        raftkv = Command(*cluster.urls)
        members = (await raftkv("member", "list"))["members"]
        assert sorted(each["name"] for each in members) == ["n1", "n2", "n3"]
        status = await raftkv("status", "--cluster")
        assert {each["name"] for each in status["members"]} == {"n1", "n2", "n3"}
        await raftkv("health")
        leader = await cluster.leader()
        target = next(member for member in cluster.members if member is not leader)
        ids = {each["name"]: each["member_id"] for each in members}
        moved = await raftkv("leader", "transfer", target.name)
        assert moved["leader"] == ids[target.name]
        assert await cluster.leader() is target
        await raftkv("leader", "transfer", "nobody", code=exits.NOT_FOUND)
        await raftkv("member", "promote", target.name, code=exits.FAILED)

        # Reads and writes go on when one is gone; two of three cannot, and say that they did not.
        cluster.members[0].kill()
        await raftkv("health", code=exits.FAILED)
        await raftkv("put", "k", "v")
        cluster.members[1].kill()
        left = Command(cluster.members[2].client_url)
        await eventually_unled(cluster, cluster.members[2])
        await left("--timeout", "2", "put", "k", "w", code=exits.UNAVAILABLE)
        assert (await left("get", "k", "--serializable"))["value"] == "v"
        cluster.members[2].kill()
        commands = (["get", "k"], ["health"], ["status"])
        await asyncio.gather(*(raftkv(*each, code=exits.UNAVAILABLE) for each in commands))


async def eventually_unled(cluster: Cluster, member: Member) -> None:
    deadline = time.monotonic() + SECONDS
    while (await cluster.status(member))["leader"] is not None:
        assert time.monotonic() < deadline, "a lone member of three knows that nobody leads"
        await asyncio.sleep(0.05)


async def test_a_write_without_an_answer_has_an_unknown_outcome(tmp_path: Path) -> None:
    async with running(tmp_path, 1, SMALL_LOG) as cluster:
        cluster.members[0].pause()
        raftkv = Command(*cluster.urls)
        await raftkv("--timeout", "1", "put", "k", "v", code=exits.UNKNOWN)
        cluster.members[0].resume()


async def everything(cluster: Cluster, member: Member) -> list[Any]:
    """All that a backup keeps, as one member tells it."""
    found = []
    for path in ("/api/kv?prefix=", "/api/services/web", "/api/leases"):
        code, body, _ = await cluster.call(member, "GET", path)
        assert code == 200, body
        found.append({name: value for name, value in body.items() if name in WHAT_IS_KEPT})
    return found


WHAT_IS_KEPT = {"items", "count", "revision", "instances", "leases"}


async def test_a_backup_is_restored_into_new_clusters(tmp_path: Path) -> None:
    saved = tmp_path / "backup"
    raftkv = Command()
    async with running(tmp_path, 1, SMALL_LOG) as cluster:
        member = cluster.members[0]
        _, lease, _ = await cluster.call(member, "POST", "/api/leases", json={"ttl": 600})
        await cluster.call(member, "PUT", f"/api/kv/leased?lease={lease['lease']}", data=b"x")
        for number in range(12):
            code, _, _ = await cluster.call(
                member, "PUT", f"/api/kv/k{number}", data=os.urandom(100)
            )
            assert code == 200
        await cluster.call(member, "DELETE", "/api/kv/k7")
        service = {"address": "10.0.0.1", "port": 80, "ttl": 600}
        await cluster.call(member, "PUT", "/api/services/web/w1", json=service)
        before = await everything(cluster, member)
        assert before[0]["count"] == 12 and before[1]["instances"] and before[2]["leases"]
        old = await cluster.status(member)
        await Command(*cluster.urls)("snapshot", "save", str(saved))
        await cluster.call(member, "PUT", "/api/kv/after", data=b"the backup")
    status = await raftkv("snapshot", "status", str(saved))
    assert (status["revision"], status["keys"]) == (old["revision"], 12)
    assert status["cluster_id"] == old["cluster_id"] and status["digest_verified"]

    for size in (1, 3):
        folder = tmp_path / f"new{size}"
        folder.mkdir()
        new = Cluster(folder, size, SMALL_LOG)
        restore = [
            [
                *("snapshot", "restore", str(saved), "--data-dir", str(member.data_dir)),
                *("--name", member.name, *member.arguments[:2]),
            ]
            for member in new.members
        ]
        await asyncio.gather(*(raftkv(*command) for command in restore))
        refused = await raftkv(*restore[0], code=exits.USAGE)
        assert "is not empty" in refused
        async with new:
            assert (await new.equal_hashes())["cluster_id"] != old["cluster_id"]
            for member in new.members:
                assert await everything(new, member) == before
            _, found, _ = await new.call(new.members[0], "GET", "/api/members")
            names = sorted(member.name for member in new.members)
            assert sorted(each["name"] for each in found["members"]) == names
            _, body, _ = await new.call(new.members[0], "PUT", "/api/kv/k0", data=b"new")
            assert body["revision"] == old["revision"] + 1
            for member in new.members:
                member.kill()
            for member in new.members:
                member.start()
            for member in new.members:
                await new.ready(member)
            _, body, _ = await new.call(new.members[-1], "GET", "/api/kv/k0")
            assert body["value"] == "new"
            await new.equal_hashes()

    damaged = bytearray(saved.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    saved.write_bytes(damaged)
    assert str(saved) in await raftkv("snapshot", "status", str(saved), code=exits.FAILED)
    nowhere = tmp_path / "nowhere"
    await raftkv("snapshot", "restore", str(saved), "--data-dir", str(nowhere), code=exits.FAILED)
    assert not nowhere.exists()


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def start_dev(run: Running) -> tuple[dict[str, int], str]:
    """Member processes by name, and the leader, as the printed table says."""
    seen = await run.until(None, "Ctrl-C stops all members")
    rows = [line.split() for line in seen.splitlines() if line[:1] == "m" and "http" in line]
    assert len(rows) == 3, seen
    (leader,) = (row[0] for row in rows if row[3] == "leader")
    return {row[0]: int(row[2]) for row in rows}, leader


async def test_dev_runs_a_cluster_heals_it_and_ends_it(tmp_path: Path) -> None:
    command = Command()
    with command.started("dev", "--members", "3", "--data-dir", str(tmp_path)) as run:
        pids, leader = await start_dev(run)
        assert all(map(alive, pids.values()))
        os.kill(pids[leader], signal.SIGKILL)
        said = await run.until(run.process.stderr, "started again")
        assert "SIGKILL" in said
        again = int(said.rsplit("pid ", 1)[1].split(")")[0])
        assert alive(again) and again not in pids.values()
        assert await run.end(signal.SIGINT) == exits.OK
        assert not any(map(alive, [*pids.values(), again]))


async def test_members_end_when_dev_is_killed(tmp_path: Path) -> None:
    with Command().started("dev", "--members", "3", "--data-dir", str(tmp_path)) as run:
        pids, _ = await start_dev(run)
        assert await run.end(signal.SIGKILL) == -signal.SIGKILL
        await eventually(
            lambda: not any(map(alive, pids.values())), "no member outlives its supervisor"
        )
