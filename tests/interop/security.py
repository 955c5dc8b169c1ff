"""What `--secure` means, the same in every tool here: mTLS everywhere, access control on.

Clients and peers show certificates of one CA, and whoever has none is refused. The driver is root:
over gRPC by the common name of its certificate; through the JSON gateway by a token, and with a
certificate without a common name, since etcd's gateway refuses one that has it. Real etcd runs on
the same terms.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from raftkv.server.tls.files import TlsFiles
from tests.interop.peers import etcd_programs
from tests.support.certificates import CLIENT, Pki
from tests.support.hop import Hop
from tests.support.processes import Cluster

ROOT_PASSWORD: Final = "root-pass"
SECURE_SIZE: Final = 3
PATIENCE_SECONDS: Final = 10.0
_ON: Final = (
    ("user", "add", f"root:{ROOT_PASSWORD}"), ("role", "add", "root"),
    ("user", "grant-role", "root", "root"), ("auth", "enable"),
)  # fmt: skip
_OFF: Final = (("auth", "disable"), ("user", "delete", "root"), ("role", "delete", "root"))


def add_options(parser: argparse.ArgumentParser, size: int = 1) -> None:
    """`--secure`, and `--size`, which is `size` unless it is given or the run is secure."""
    parser.add_argument("--size", type=int, default=None, help="how many members")
    parser.add_argument(
        "--secure", action="store_true", help="mTLS everywhere, access control on, three members"
    )
    parser.set_defaults(usual_size=size)


def etcdctl_flags(files: TlsFiles) -> tuple[str, ...]:
    """etcdctl's. Hashing passwords takes etcd seconds on a busy machine."""
    return (
        f"--cacert={files.ca}", f"--cert={files.cert}", f"--key={files.key}",
        "--command-timeout=25s", "--dial-timeout=20s",
    )  # fmt: skip


@dataclass(frozen=True)
class Security:
    """On what terms a run talks to its servers; without a `pki`: in clear text, as nobody."""

    pki: Pki | None = None

    def url(self, port: int) -> str:
        """Of a server on this port of the loopback interface."""
        return f"{'http' if self.pki is None else 'https'}://127.0.0.1:{port}"

    @cached_property
    def files(self) -> TlsFiles | None:
        """The driver's certificate, key and CA."""
        return None if self.pki is None else self.pki.client("root")

    @property
    def etcdctl_flags(self) -> tuple[str, ...]:
        """What goes with every command of etcdctl."""
        return () if self.files is None else etcdctl_flags(self.files)

    @property
    def mirror_flags(self) -> tuple[str, ...]:
        """How `etcdctl make-mirror` reaches its target."""
        files = self.files
        if files is None:
            return ()
        return (
            f"--dest-cacert={files.ca}", f"--dest-cert={files.cert}", f"--dest-key={files.key}",
            "--dest-insecure-transport=false",
        )  # fmt: skip

    @property
    def raftkv_flags(self) -> tuple[str, ...]:
        """What goes with every command of raftkv. A user, too: etcd's forms are those of the JSON
        gateway."""
        files = self.files
        if files is None:
            return ()
        user = f"root:{ROOT_PASSWORD}"
        return "--cacert", files.ca, "--cert", files.cert, "--key", files.key, "--user", user

    def channel(self, port: int, options: Any = ()) -> grpc.Channel:
        """A gRPC channel."""
        if self.pki is None:
            return grpc.insecure_channel(f"127.0.0.1:{port}", options)
        return grpc.secure_channel(f"127.0.0.1:{port}", self._credentials(), options)

    def aio_channel(self, url: str) -> grpc.aio.Channel:
        """The same for asyncio."""
        address = url.partition("://")[2]
        if self.pki is None:
            return grpc.aio.insecure_channel(address)
        return grpc.aio.secure_channel(address, self._credentials())

    def _credentials(self) -> grpc.ChannelCredentials:
        assert self.files is not None
        ca, cert, key = (
            Path(path).read_bytes() for path in (self.files.ca, self.files.cert, self.files.key)
        )
        return grpc.ssl_channel_credentials(ca, key, cert)

    def http(self, port: int) -> http.client.HTTPConnection:
        """A connection for HTTP/1.1."""
        if self.pki is None:
            return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        context = self.pki.connecting(self.pki.odd("nobody", usages=CLIENT, named=False))
        return http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=PATIENCE_SECONDS, context=context
        )

    def headers(self, port: int) -> dict[str, str]:
        """What every request to the JSON gateway carries: nothing, or a token of root's."""
        if self.pki is None:
            return {}
        connection = self.http(port)
        body = json.dumps({"name": "root", "password": ROOT_PASSWORD})
        connection.request("POST", "/v3/auth/authenticate", body)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return {"Authorization": str(answer["token"])}

    def hop(self, port: int) -> Hop:
        """What lends the driver's identity to clients in clear text."""
        assert self.pki is not None
        connecting = self.pki.connecting
        return Hop(
            port,
            grpc=connecting(self.files, "h2"),
            json=connecting(self.files, "http/1.1"),
            authorization=self.headers(port)["Authorization"],
        )

    def enable(self, *urls: str) -> None:
        """Make root and switch access control on, at one of `urls`; nothing in clear text."""
        self._carry_out(_ON, urls)

    def disable(self, *urls: str) -> None:
        """Undo `enable`."""
        self._carry_out(_OFF, urls)

    def _carry_out(self, commands: tuple[tuple[str, ...], ...], urls: tuple[str, ...]) -> None:
        if self.pki is None:
            return
        program = etcd_programs() / "etcdctl"
        for arguments in commands:
            done = subprocess.run(
                [program, f"--endpoints={','.join(urls)}", *self.etcdctl_flags, *arguments],
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, (arguments, done.stderr)


def cluster_of(options: argparse.Namespace, folder: Path, name: str = "n") -> Cluster:
    """The cluster that `add_options` asks for, not started yet."""
    size = options.size or (SECURE_SIZE if options.secure else options.usual_size)
    pki = Pki(folder / "pki") if options.secure else None
    return Cluster(folder, size, name=name, certificates=pki)


@asynccontextmanager
async def serving(cluster: Cluster, *, enabled: bool = True) -> AsyncIterator[Security]:
    """Run a cluster for the length of the block. `enabled`: a secure one has access control on."""
    security = Security(cluster.certificates)
    async with cluster:
        if enabled:
            await asyncio.to_thread(security.enable, *cluster.urls)
        yield security
