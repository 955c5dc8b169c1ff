"""Other people's clients over mTLS: etcdctl, held against real etcd with the same certificates,
grpc-js, and curl.

    python -m tests.interop.tls [--size 1|3]

etcdctl acts as users that the common names of its certificates name; every one of its scenarios is
in `tests.interop.etcdctl --secure`. grpc-js runs over clear text, too. curl speaks HTTP/1.1 and
HTTP/2. Needs node and npm, curl, and what `tests.interop.peers` needs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from raftkv.server.tls.files import TlsFiles
from tests.interop.etcdctl import Ctl, compare
from tests.interop.peers import ROOT, etcd_programs, node_modules, real_etcd
from tests.interop.security import etcdctl_flags as flags
from tests.support.certificates import Pki
from tests.support.processes import Cluster, running

GRPC_JS: Final = ("@grpc/grpc-js@1.13.4", "@grpc/proto-loader@0.7.15")
DESCRIPTORS: Final = ROOT / "raftkv/api/etcd/proto/descriptors.binpb"
PUTS: Final = 200


def identity(ctl: Ctl, pki: Pki) -> None:
    """The common name is the user, a token goes first, and who is no user may do nothing."""
    root, alice, mallory = (
        Ctl(ctl.program, ctl.endpoints[:1], ctl.folder, flags(pki.client(name)))
        for name in ("root", "alice", "mallory")
    )
    root("user", "add", "root:root-pass")
    root("user", "grant-role", "root", "root")
    root("user", "add", "alice:alice-pass")
    root("role", "add", "app")
    root("role", "grant-permission", "app", "readwrite", "--prefix=true", "app/")
    root("user", "grant-role", "alice", "app")
    root("auth", "enable")
    alice("put", "app/x", "1")
    alice("get", "app/x")
    alice("put", "secret", "1")
    alice("get", "", "--prefix")
    alice("user", "list")
    alice("--user=root:root-pass", "put", "secret", "by root's token")
    alice("--user=root:wrong", "put", "secret", "no")
    mallory("get", "app/x")
    mallory("--user=alice:alice-pass", "get", "app/x")
    root("user", "list")
    root("auth", "disable")
    mallory("put", "app/x", "2")
    for name in ("root", "alice"):
        root("user", "delete", name)
    root("role", "delete", "app")
    root("role", "delete", "root")
    for one in (root, alice, mallory):
        ctl.record += one.record


def refusals(program: Path, url: str, pki: Pki, folder: Path) -> None:
    """No certificate, and ones that nobody should take, get nothing."""
    revoked = pki.client("revoked")
    pki.revoke(revoked)
    bad = {
        "none": (f"--cacert={pki.ca}",),
        "expired": flags(pki.odd("expired", days=(-9, -1))),
        "foreign": (f"--cacert={pki.ca}", *flags(Pki(folder / "foreign", "x").client("x"))[1:]),
        "revoked": flags(revoked),
    }
    for name, given in bad.items():
        ctl = Ctl(program, [url], folder, (*given, "--dial-timeout=1s", "--command-timeout=2s"))
        ctl("get", "a")
        assert ctl.record[-1] == "-> 1", (name, ctl.record)
    print(f"certificates refused: {', '.join(bad)}")


def curl_flags(files: TlsFiles) -> list[str]:
    """curl's."""
    return ["--cacert", files.ca, "--cert", files.cert, "--key", files.key]


def by_curl(curl: str, url: str, pki: Pki) -> None:
    """HTTP/1.1 with kept connections, a large body, and gRPC's HTTP/2 agreed on by ALPN."""
    given = curl_flags(pki.client("root"))
    base = [curl, "-s", "-S", "--fail", "--http1.1", *given]
    subprocess.run(
        [*base, "-X", "PUT", f"{url}/api/kv/curl", "--data-binary", "x" * 100_000],
        check=True, capture_output=True,
    )  # fmt: skip
    got = subprocess.run(
        [*base, f"{url}/api/kv/curl", f"{url}/health", "-w", "%{http_version} %{num_connects}\n"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "1.1 1\n" in got.stdout and "1.1 0\n" in got.stdout, got.stdout[-500:]
    agreed = subprocess.run(
        [curl, "-s", "--http2", *given, f"{url}/health", "-o", os.devnull, "-w", "%{http_version}"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert agreed.stdout in ("2", "1.1"), agreed
    print(f"curl: HTTP/1.1 kept alive; asked for 2, spoke {agreed.stdout}")


def by_grpc_js(address: str, files: TlsFiles | None) -> None:
    """put, get and watch."""
    folder = node_modules(*GRPC_JS)
    script = Path(__file__).with_name("grpcjs.js")
    given = [] if files is None else [files.ca, files.cert, files.key]
    done = subprocess.run(
        ["node", script, DESCRIPTORS, address, str(PUTS), *given],
        env={**os.environ, "NODE_PATH": str(folder / "node_modules")},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"puts": PUTS, "got": PUTS, "watched": PUTS}, done.stdout
    print(f"grpc-js over {'TLS' if files else 'clear text'}: {done.stdout.strip()}")


def with_etcdctl(program: Path, cluster: Cluster, etcd_port: int, folder: Path, pki: Pki) -> int:
    """All scenarios with one etcdctl; how many differ."""
    version = subprocess.run([program, "version"], capture_output=True, text=True, check=True)
    print(f"== {version.stdout.splitlines()[0]} over mTLS, {len(cluster.urls)} members")
    theirs = [f"https://127.0.0.1:{etcd_port}"]
    given = flags(pki.client("root"))

    def identities(ctl: Ctl) -> None:
        identity(ctl, pki)

    differing = compare(program, cluster.urls, theirs, folder, (identities,), given)
    refusals(program, cluster.urls[0], pki, folder)
    return differing


async def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1)
    options = parser.parse_args()
    curl, on_path = shutil.which("curl"), shutil.which("etcdctl")
    programs = [etcd_programs() / "etcdctl", *([Path(on_path)] if on_path else [])]
    differing = 0
    with tempfile.TemporaryDirectory() as name:
        async with running(Path(name), options.size) as clear:
            address = clear.urls[0].partition("://")[2]
            await asyncio.to_thread(by_grpc_js, address, None)
    for program in programs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pki = Pki(folder / "pki")
            async with running(folder, options.size, certificates=pki) as cluster:
                with real_etcd(folder, certificates=pki) as port:
                    differing += await asyncio.to_thread(
                        with_etcdctl, program, cluster, port, folder, pki
                    )
                address = cluster.urls[0].partition("://")[2]
                await asyncio.to_thread(by_grpc_js, address, pki.client("root"))
                if curl:
                    await asyncio.to_thread(by_curl, curl, cluster.urls[0], pki)
    if differing:
        sys.exit(f"{differing} scenarios differ")


if __name__ == "__main__":
    asyncio.run(main())
