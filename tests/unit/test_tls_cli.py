"""`raftkv cert`, and our own clients over https."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raftkv.cli.main import cli
from raftkv.client import AsyncClient, Client, Unreachable
from raftkv.client.transport import Transport
from raftkv.errors import ConfigError, PermissionDenied, ReadTimedOut
from raftkv.server.tls.authority import Authority
from raftkv.server.tls.files import TlsFiles
from tests.support.certificates import Pki
from tests.unit.test_tls_clients import served


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def run(*arguments: str, code: int = 0, **more: Any) -> Result:
    result = CliRunner().invoke(cli, arguments, **more)
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result


def openssl(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_certificates_are_what_openssl_expects_of_each_role(tmp_path: Path) -> None:
    folder = str(tmp_path / "certs")
    run("cert", "ca", "--dir", folder)
    run("cert", "member", "m1", "--host", "10.0.0.1", "--host", "m1.example", "--dir", folder)
    run("cert", "client", "alice", "--dir", folder)
    ca = f"{folder}/ca.crt"
    for name, purposes, wrong in (
        ("m1", ("sslserver", "sslclient"), ()),
        ("alice", ("sslclient",), ("sslserver",)),
    ):
        for purpose in (*purposes, *wrong):
            said = openssl(
                "verify", "-x509_strict", "-CAfile", ca, "-purpose", purpose, f"{folder}/{name}.crt"
            )
            assert said.endswith("OK\n") is (purpose in purposes), said
        assert Path(folder, f"{name}.key").stat().st_mode & 0o777 == 0o600
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    text = openssl("x509", "-in", f"{folder}/m1.crt", "-noout", "-text")
    assert "IP Address:10.0.0.1, DNS:m1.example" in text and "prime256v1" in text

    shown = json.loads(run("cert", "show", f"{folder}/m1.crt", "-o", "json").stdout)
    assert shown["role"] == "member" and shown["hosts"] == ["10.0.0.1", "m1.example"]
    assert shown["days_left"] in (364, 365)
    assert json.loads(run("-o", "json", "cert", "show", ca).stdout)["role"] == "ca"
    assert "role         client" in run("cert", "show", f"{folder}/alice.crt", "-o", "table").stdout

    run("cert", "revoke", f"{folder}/alice.crt", "--dir", folder)
    run("cert", "revoke", f"{folder}/m1.crt", "--dir", folder)
    run("cert", "revoke", "--dir", folder, "--days", "2")
    for name in ("alice", "m1"):
        said = openssl(
            "verify", "-crl_check", "-CRLfile", f"{folder}/crl.pem", "-CAfile", ca,
            f"{folder}/{name}.crt",
        )  # fmt: skip
        assert "certificate revoked" in said


def test_nothing_is_overwritten_or_made_of_nonsense(tmp_path: Path) -> None:
    folder = str(tmp_path / "certs")
    where = ("--dir", folder)
    run("cert", "client", "a", *where, code=2)
    run("cert", "ca", *where)
    key = Path(folder, "ca.key").read_bytes()
    assert "--force overwrites it" in run("cert", "ca", *where, code=2).output
    assert Path(folder, "ca.key").read_bytes() == key
    run("cert", "client", "alice", *where)
    before = Path(folder, "alice.crt").read_bytes()
    run("cert", "client", "alice", *where, "--force")
    assert Path(folder, "alice.crt").read_bytes() != before
    assert not list(Path(folder).glob(".*"))
    run("cert", "member", "m1", *where, code=2)
    run("cert", "member", "m1", "--host", "b\u00fccher", *where, code=2)
    for name in ("ca", "../x", "", "x" * 65):
        run("cert", "client", name, *where, code=2)
    run("cert", "client", "late", *where, "--days", "30000", code=2)
    run("cert", "show", f"{folder}/ca.key", code=2)
    run("cert", "show", f"{folder}/none.crt", code=2)
    other = Pki(tmp_path / "other", "another CA")
    run("cert", "revoke", other.client("x").cert, *where, code=2)
    with pytest.raises(ConfigError, match="is not the key of"):
        Authority.load(Path(folder, "ca.crt"), tmp_path / "other" / "ca.key")


# -- clients -------------------------------------------------------------------------------------


def options(files: TlsFiles) -> dict[str, str]:
    return {"cacert": files.ca, "cert": files.cert, "key": files.key}


async def test_the_clients_speak_https_with_a_certificate(pki: Pki) -> None:
    alice = pki.client("alice")
    async with served(pki, auth=True, mutual=True, identifies=True) as world:
        async with AsyncClient(world.url, **options(alice)) as client:
            await client.put("app/a", "1")
            with pytest.raises(PermissionDenied):
                await client.put("secret", "1")
        # An endpoint without a scheme is https once anything of TLS was said.
        bare = world.url.partition("://")[2]

        def in_a_thread() -> None:
            with Client(bare, **options(alice)) as blocking:
                record = blocking.get("app/a")
                assert record is not None and record.text == "1"

        await asyncio.to_thread(in_a_thread)
        flags = [part for name, path in options(alice).items() for part in (f"--{name}", path)]
        variables = {f"RAFTKV_{name.upper()}": path for name, path in options(alice).items()}
        for arguments, env in (
            (["get", *flags, "app/a"], {}),
            ([*flags, "get", "app/a"], {}),
            (["get", "app/a"], variables),
        ):
            result = await asyncio.to_thread(
                CliRunner().invoke, cli, ["--endpoints", world.url, *arguments], env=env
            )
            assert result.exit_code == 0 and '"1"' in result.stdout, (arguments, result.output)


async def test_a_refused_handshake_is_a_definite_refusal(pki: Pki, tmp_path: Path) -> None:
    """With TLS 1.3 the refusal comes after the request was sent; it was never read."""
    foreign = Pki(tmp_path / "other", "another CA")
    revoked = pki.client("revoked")
    pki.revoke(revoked)
    async with served(pki, mutual=True) as world:
        for given, told in (
            ({"cacert": pki.ca}, "the lack of one (certificate required)"),
            ({**options(foreign.client("x")), "cacert": pki.ca}, "does not take our certificate"),
            ({**options(pki.odd("old", days=(-9, -1)))}, "certificate expired"),
            (options(revoked), "certificate revoked"),
            ({**options(pki.client("c")), "cacert": foreign.ca}, "is not to be trusted"),
            ({}, "is not to be trusted"),
        ):
            async with AsyncClient(world.url, patience=0, idempotency=False, **given) as client:
                with pytest.raises(Unreachable) as caught:
                    await client.put("a", "1")
                assert told in caught.value.message, given
        assert not world.store.proposed
        plain = world.url.replace("https", "http")
        async with AsyncClient(plain, patience=0) as client:
            with pytest.raises((Unreachable, ReadTimedOut)):
                await client.get("a")


async def test_a_member_without_tls_is_told_apart(pki: Pki) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    plain = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}"
    async with AsyncClient(url, patience=0, cacert=pki.ca) as client:
        with pytest.raises(Unreachable, match="does not speak TLS"):
            await client.get("a")
    plain.close()
    await plain.wait_closed()


def test_files_that_cannot_be_used_are_named(pki: Pki, tmp_path: Path) -> None:
    alice, bob = pki.client("alice"), pki.client("bob")

    def make(**given: str) -> None:
        Client("https://127.0.0.1:1", **given)  # type: ignore[arg-type]

    for given, told in (
        ({"cert": alice.cert}, "needs its key"),
        ({"cacert": str(tmp_path / "none")}, "none for TLS: no such file"),
        ({"cacert": alice.key}, "alice.key for TLS"),
        ({"cert": alice.cert, "key": bob.key}, "key values mismatch"),
    ):
        with pytest.raises(ConfigError, match=told):
            make(**given)
    assert Transport("h:1", timeout=1, patience=0).endpoints == ["http://h:1"]
