"""Builds raftkv. With RAFTKV_COMPILE=1 its hot path is compiled by mypyc; see docs/performance.md.

Everything else about the package is in pyproject.toml. A compiled module stands beside its source,
which stays the one text of both; without a compiler the build says so and goes on without.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
STAMP = ROOT / ".compiled"
"""As old as what is compiled in place; the tests look at it."""

SHARED = "raftkv.compiled"
"""What compiled modules share. In the package: an editable installation finds nothing beside."""

COMPILED = {
    "raftkv": "buggify checks histogram packing",
    "raftkv/consensus": """
        codec confchange config core election follower invariants log memory node progress quorum
        reads replication types""",
    "raftkv/machine": """
        access apply auth auth_commands catalog cluster commands counts draft events leases machine
        mvcc once quota_commands quotas records removal results tables txn txnrules wire""",
    "raftkv/server": """
        append_thread aside disk_watch frames hash_checks lease_desk lessor levels member membership
        peer_link pending read_queue repeats replica shell_frames space store transport
        upkeep watch watch_index""",
    "raftkv/storage": "backend frames lmdb_backend logindex metadata wal wallog",
    "raftkv/api": "callers gate observe outcomes pace slow",
    "raftkv/api/etcd": """
        answers auth cluster door election gateway guards jsoncalls jsonform kv lease lock
        maintenance messages ownership ranges rpc sockets txn watch wire""",
    "raftkv/api/grpc": """
        budget calls connection frames header_blocks messages requests server shell status""",
    "raftkv/api/http": """
        auth cluster codec connection door exchange fields handling kv leases parser
        permissions quotas refusals router services txn watch websocket""",
}
"""Where a request passes, but for what must stay as it is:

- `errors`: a weak reference to an error is cleared in the interpreted form only;
- `storage/{disk,memory_backend}`, `server/{local,sync_pace}`: tests and the simulation derive from
  their classes;
- `storage/snapshots`: tests replace its methods;
- `api/http/metrics`: compiled, what derives from prometheus_client's classes ends the process;
- `server/file_chunks`: mypyc has no async generators;
- what does not belong to a request.
"""


def sources() -> list[str]:
    """The files to compile."""
    return [f"{folder}/{name}.py" for folder, names in COMPILED.items() for name in names.split()]


class Build(build_ext):
    """Compiles in parallel. What cannot be built leaves the interpreted form, and says so."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            print(f"raftkv stays interpreted: {error}", file=sys.stderr)
            for library in self.get_outputs():
                Path(library).unlink(missing_ok=True)
            self.extensions = []
        else:
            if self.inplace and self.extensions:
                STAMP.touch()

    def build_extension(self, ext: Any) -> None:
        """Compile the parts of one extension side by side."""
        compile_all = self.compiler.compile

        def side_by_side(files: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                done = pool.map(lambda file: compile_all([file], **options), files)
                return [name for names in done for name in names]

        self.compiler.compile = side_by_side
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_all


def extensions() -> list[Any]:
    """What mypyc makes of the sources."""
    from mypyc.build import mypycify

    os.chdir(ROOT)
    # Nothing but the sources decides what comes out: types are checked elsewhere, and what else is
    # installed does not matter.
    options = ["--config-file=", "--no-site-packages", "--ignore-missing-imports"]
    found: list[Any] = mypycify(
        [*options, *sources()], opt_level="2", debug_level="0", multi_file=True, group_name=SHARED
    )
    for extension in found:
        extension.include_dirs.append("build/" + SHARED.rpartition(".")[0])
    return found


COMPILE = os.environ.get("RAFTKV_COMPILE") == "1"
BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel"} & set(sys.argv)
"""Installers ask for names and needs first, with other commands."""

setup(
    ext_modules=extensions() if COMPILE and BUILDING else [],
    cmdclass={"build_ext": Build},
    setup_requires=["mypy>=2.0"] if COMPILE and not BUILDING else [],
)
