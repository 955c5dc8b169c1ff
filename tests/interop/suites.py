"""The test suites that real clients of etcd come with, run against a raftkv cluster.

    python -m tests.interop.suites [--size 1|3] [--secure] [--only NAME] [--baseline]

Each suite runs in its own environment, unchanged. `--baseline` runs it against real etcd 3.5 as
well; a test that fails there, too, is not counted against raftkv. What fails otherwise ends the run
with an error, unless its suite has the reason. The suites speak clear text as nobody: in a secure
run each member has a hop in front of it that speaks mTLS as root, and the members tell clients of
the hops' addresses.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.interop.peers import environment, etcd_programs, real_etcd, site_packages, sources
from tests.interop.security import add_options, cluster_of, serving
from tests.support.hop import hopping
from tests.support.processes import free_ports

NAME: Final = "pifpaf"
"""What python-etcd3's suite expects members to be called."""
SUITE_SECONDS: Final = 1200
TEST_SECONDS: Final = 120


@dataclass(frozen=True)
class Suite:
    """One client's suite: what to install, where its tests are, how it is told where to go."""

    name: str
    requirements: tuple[str, ...]
    folder: Callable[[Path], Path]
    """Given the environment's interpreter."""
    variables: Callable[[int], dict[str, str]]
    """Given the port."""
    options: tuple[str, ...] = ()
    conftest: str = ""
    """For a suite that is published without its own, or cannot be told all in another way."""
    known: dict[str, str] = field(default_factory=dict)
    """Tests that fail, and why."""
    known_alone: dict[str, str] = field(default_factory=dict)
    """The same against one member only."""
    known_secure: dict[str, str] = field(default_factory=dict)
    """The same with access control on."""


NOT_BBOLT: Final = (
    "reads the snapshot with `etcdctl snapshot status`, as a bbolt database; ours is a file of "
    "raftkv's own, for `raftkv snapshot status`"
)

DEFAULT_PORT: Final = "goes to port 2379, whatever it is told"
THREE_MEMBERS: Final = "is about a cluster of three, of which it stops two"

ETCETRA_CONFTEST: Final = """
import os

import pytest_asyncio
from etcetra import EtcdClient
from etcetra.types import HostPortPair


@pytest_asyncio.fixture
async def etcd():
    host, port = os.environ["BACKEND_ETCD_ADDR"].split(":")
    client = EtcdClient(HostPortPair(host, int(port)))
    async with client.connect() as communicator:
        for prefix in ("/test", "/tmp"):
            await communicator.delete_prefix(prefix)
    return client
"""

PYTHON_ETCD3_CONFTEST: Final = """
import os

import etcd3

# Some tests go to the default port, whatever they are told.
host, _, *rest = etcd3.client.__defaults__
port = int(os.environ["PYTHON_ETCD_HTTP_URL"].rsplit(":", 1)[1])
etcd3.client.__defaults__ = (host, port, *rest)
"""

SUITES: Final = [
    Suite(
        "aetcd",
        ("aetcd==1.0.0", "pytest==8.3.5", "pytest-asyncio==0.26.0", "pytest-mock==3.14.0",
         "pytest-cov==6.0.0", "pytest-timeout==2.3.1"),
        lambda python: sources("aetcd==1.0.0") / "tests" / "integration",
        lambda port: {"TEST_ETCD_HTTP_URL": f"http://127.0.0.1:{port}"},
        known={"test_snapshot": NOT_BBOLT, "test_auth": DEFAULT_PORT},
    ),
    Suite(
        "python-etcd3",
        ("etcd3==0.12.0", "protobuf==3.20.3", "hypothesis==5.49.0", "mock==5.1.0",
         "pytest==8.3.5", "pytest-timeout==2.3.1", "six==1.17.0", "tenacity==6.1.0"),
        lambda python: sources("etcd3==0.12.0") / "tests",
        lambda port: {
            "PYTHON_ETCD_HTTP_URL": f"http://127.0.0.1:{port}", "TEST_ETCD_VERSION": "v3.5.1",
        },
        conftest=PYTHON_ETCD3_CONFTEST,
        known={
            "test_snapshot": NOT_BBOLT,
            "test_user_pwd_auth": "imports a module `etcdrpc` that is not there",
        },
        known_alone={
            "test_member_list": "expects three members",
            "test_get_key_serializable": THREE_MEMBERS,
            "test_get_prefix_serializable": THREE_MEMBERS,
        },
        known_secure={"test_member_list": "demands that addresses of peers begin with http://"},
    ),
    Suite(
        "etcetra",
        ("etcetra==0.1.19", "pytest==8.3.5", "pytest-asyncio==0.26.0", "pytest-timeout==2.3.1"),
        lambda python: sources("etcetra==0.1.19") / "tests",
        lambda port: {"BACKEND_ETCD_ADDR": f"127.0.0.1:{port}"},
        conftest=ETCETRA_CONFTEST,
    ),
    Suite(
        "etcd3gw",
        ("etcd3gw==2.7.0", "oslotest==5.0.0", "pytest==8.3.5", "pytest-timeout==2.3.1",
         "testtools==2.7.2"),
        lambda python: site_packages(python) / "etcd3gw" / "tests",
        lambda port: {
            "TOOZ_TEST_ETCD_PORT": str(port), "TOOZ_TEST_HTTP_URL": f"http://127.0.0.1:{port}",
        },
    ),
    Suite(
        "tooz",
        ("tooz[etcd3gw,ipc,memcached,redis]==9.1.0", "ddt==1.7.2", "fixtures==4.3.2",
         "testtools==2.9.1", "pytest==8.3.5", "pytest-timeout==2.3.1"),
        lambda python: sources("tooz==9.1.0") / "tooz" / "tests",
        lambda port: {"TOOZ_TEST_URL": f"etcd3+http://127.0.0.1:{port}?api_version=v3"},
        options=("--ignore-glob=*drivers*", "--ignore-glob=*kubernetes*"),
    ),
]  # fmt: skip


def run(suite: Suite, port: int, folder: Path) -> dict[str, str]:
    """Outcome of each test of the suite: passed, failed or skipped."""
    python = environment(f"suite-{suite.name}", *suite.requirements)
    # A copy: the suite must find its configuration, but leave nothing behind.
    tests = suite.folder(python)
    copy = folder / suite.name
    shutil.rmtree(copy, ignore_errors=True)
    root = tests if suite.name == "etcd3gw" else sources_root(tests)
    shutil.copytree(root, copy / root.name)
    tests = copy / root.name / tests.relative_to(root)
    if suite.conftest:
        (tests / "conftest.py").write_text(suite.conftest)
    report = copy / "report.xml"
    variables = {
        **os.environ, **suite.variables(port),
        "PATH": f"{etcd_programs()}:{os.environ['PATH']}", "ETCDCTL_API": "3",
    }  # fmt: skip
    subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}",
         "-o", "addopts=", f"--junitxml={report}", *suite.options, tests],
        cwd=copy / root.name, env=variables, timeout=SUITE_SECONDS,
        stdout=(copy / "output").open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    return outcomes(report)


def sources_root(tests: Path) -> Path:
    """The unpacked distribution that holds `tests`."""
    while tests.parent.name != "sources":
        tests = tests.parent
    return tests


def outcomes(report: Path) -> dict[str, str]:
    """What pytest's XML says of each test."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314
        name = f"{case.get('classname')}.{case.get('name')}"
        kinds = {child.tag for child in case}
        failed = kinds & {"failure", "error"}
        found[name] = "failed" if failed else "skipped" if "skipped" in kinds else "passed"
    return found


def judge(
    suite: Suite, reasons: dict[str, str], ours: dict[str, str], theirs: dict[str, str] | None
) -> list[str]:
    """Print one line; answer the tests that fail for no reason of `reasons`."""
    failed = [name for name, outcome in ours.items() if outcome == "failed"]
    there = [name for name in failed if theirs is not None and theirs.get(name) == "failed"]
    known = [name for name in failed if name not in there and name.split(".")[-1] in reasons]
    counts = {kind: list(ours.values()).count(kind) for kind in ("passed", "failed", "skipped")}
    print(
        f"{suite.name}: {counts['passed']} passed, {counts['failed']} failed "
        f"({len(there)} with etcd, too; {len(known)} for a known reason), "
        f"{counts['skipped']} skipped"
    )
    for name in known:
        print(f"  {name}: {reasons[name.split('.')[-1]]}")
    for name in there:
        print(f"  {name}: fails with etcd 3.5, too")
    return [name for name in failed if name not in there and name not in known]


@asynccontextmanager
async def reachable(options: argparse.Namespace, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """(port of a member that a suite may be told of, how many members there are)."""
    async with AsyncExitStack() as stack:
        cluster = cluster_of(options, folder, name=NAME)
        ports = [int(member.client_url.rsplit(":", 1)[1]) for member in cluster.members]
        if options.secure:
            hops = free_ports(len(ports))
            for member, port in zip(cluster.members, hops, strict=True):
                member.arguments += ["--advertise-client-urls", f"http://127.0.0.1:{port}"]
        security = await stack.enter_async_context(serving(cluster))
        if options.secure:
            for member_port, port in zip(ports, hops, strict=True):
                hop = await asyncio.to_thread(security.hop, member_port)
                await stack.enter_async_context(hopping(hop, port))
            ports = hops
        # Not the first: python-etcd3 stops the first two of three.
        yield ports[-1], len(ports)


async def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--only", default="")
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for what the suites printed")
    options = parser.parse_args()
    unexplained: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        for suite in SUITES:
            if options.only not in ("", suite.name):
                continue
            folder = (options.keep or Path(name)) / suite.name
            folder.mkdir(parents=True, exist_ok=True)
            theirs = None
            if options.baseline:
                with real_etcd(folder, name=f"{NAME}1") as port:
                    theirs = await asyncio.to_thread(run, suite, port, folder / "etcd")
            with tempfile.TemporaryDirectory() as data:
                async with reachable(options, Path(data)) as (port, size):
                    ours = await asyncio.to_thread(run, suite, port, folder / "raftkv")
            reasons = suite.known | (suite.known_alone if size == 1 else {})
            reasons |= suite.known_secure if options.secure else {}
            missing = judge(suite, reasons, ours, theirs)
            for each in missing:
                print(f"  {each}: FAILED")
            unexplained += missing
    if unexplained:
        sys.exit(f"{len(unexplained)} tests fail for no known reason")


if __name__ == "__main__":
    asyncio.run(main())
