"""A certificate authority for tests, which also makes certificates that nobody should take."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raftkv.server.tls.authority import Authority, Pair, read_certificate
from raftkv.server.tls.files import TlsFiles

BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
LOOPBACK = ("127.0.0.1", "localhost")


def replace(path: str | Path, content: bytes) -> None:
    """Put a file in the place of another at once."""
    draft = Path(f"{path}.new")
    draft.write_bytes(content)
    os.replace(draft, path)


class Pki:
    """A CA in a folder, and files that it signed."""

    def __init__(self, folder: Path, name: str = "test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority.make(name)
        self.ca = str(folder / "ca.crt")
        self.crl = ""
        Path(self.ca).write_bytes(self.authority.pem().certificate)
        (folder / "ca.key").write_bytes(self.authority.pem().key)

    def write(self, name: str, pair: Pair) -> TlsFiles:
        """Put a pair into files, each replaced at once."""
        paths = [self.folder / f"{name}.crt", self.folder / f"{name}.key"]
        for path, content in zip(paths, (pair.certificate, pair.key), strict=True):
            replace(path, content)
        return TlsFiles(str(paths[0]), str(paths[1]), self.ca, self.crl)

    def member(self, name: str, hosts: tuple[str, ...] = LOOPBACK) -> TlsFiles:
        """The files of a member."""
        return self.write(name, self.authority.member(name, hosts))

    def client(self, name: str) -> TlsFiles:
        """The files of a client."""
        return self.write(name, self.authority.client(name))

    def flags_of_member(self, name: str) -> list[str]:
        """Options of `raftkv serve`: mTLS for clients and peers, revocation for both."""
        files = self.member(name)
        if not self.crl:
            self.revoke()
        return [
            "--cert-file", files.cert, "--key-file", files.key,
            "--trusted-ca-file", self.ca, "--client-cert-auth", "--client-crl-file", self.crl,
            "--peer-cert-file", files.cert, "--peer-key-file", files.key,
            "--peer-trusted-ca-file", self.ca, "--peer-client-cert-auth",
            "--peer-crl-file", self.crl,
        ]  # fmt: skip

    def odd(
        self,
        name: str,
        *,
        usages: tuple[Any, ...] = BOTH,
        hosts: tuple[str, ...] = LOOPBACK,
        days: tuple[int, int] = (-1, 10),
        own: bool = False,
        named: bool = True,
    ) -> TlsFiles:
        """A certificate with these usages, valid from and to days from now, perhaps signed by
        itself, perhaps without `name` as its common name."""
        key = ec.generate_private_key(ec.SECP256R1())
        kind = NameOID.COMMON_NAME if named else NameOID.ORGANIZATION_NAME
        subject = x509.Name([x509.NameAttribute(kind, name)])
        now = datetime.datetime.now(datetime.UTC)
        issuer_key = key if own else self.authority._key
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if own else self.authority.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
            )
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        if hosts:
            import ipaddress

            names = [
                x509.IPAddress(ipaddress.ip_address(host))
                if host[0].isdigit()
                else x509.DNSName(host)
                for host in hosts
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        certificate = builder.sign(issuer_key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        return self.write(
            name,
            Pair(
                certificate.public_bytes(pem),
                key.private_bytes(
                    pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                ),
            ),
        )

    def revoke(self, *files: TlsFiles) -> str:
        """Revoke certificates; the path of the list."""
        before = Path(self.crl) if self.crl else None
        revoked = [read_certificate(Path(one.cert)) for one in files]
        self.crl = str(self.folder / "crl.pem")
        replace(self.crl, self.authority.revocations(before, revoked))
        return self.crl

    def begin_new_authority(self, name: str) -> None:
        """A second CA beside the first, which signs from now on; both are trusted."""
        authority, crl = Path(self.ca).read_bytes(), Path(self.crl).read_bytes()
        self.authority = Authority.make(name)
        replace(self.ca, authority + self.authority.pem().certificate)
        replace(self.crl, crl + self.authority.revocations(None, []))

    def end_old_authority(self) -> None:
        """Only the CA that signs now is trusted."""
        replace(self.ca, self.authority.pem().certificate)
        replace(self.crl, self.authority.revocations(None, []))

    def connecting(self, files: TlsFiles | None = None, *alpn: str) -> ssl.SSLContext:
        """The context of a client that trusts this CA."""
        context = ssl.create_default_context(cafile=self.ca)
        if files is not None:
            context.load_cert_chain(files.cert, files.key)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context
