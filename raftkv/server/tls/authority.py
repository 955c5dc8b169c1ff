"""Makes certificates: a CA of one's own, and what it signs.

Keys are EC P-256. A member's certificate is good for both ends of a connection, a client's for its
own end only, so that no client's passes for a member's. Files are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from raftkv.errors import ConfigError
from raftkv.server.tls.identity import (
    CLIENT_AUTH,
    MEMBER_USAGES,
    SERVER_AUTH,
    import_x509,
    usual_address,
)

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 365
CRL_DAYS: Final = 365
CLOCK_SKEW: Final = datetime.timedelta(minutes=5)
"""How far the clock of a machine may be behind the one on which a certificate was made."""
KEY_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
COMMON_NAME_MAX: Final = 64
"""RFC 5280, appendix A.1: ub-common-name."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A CA whose key is at hand. Made by `make` or `load`."""

    def __init__(self, certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def make(cls, name: str, *, days: int = CA_DAYS) -> Authority:
        """A new CA. Raises ConfigError."""
        x509 = import_x509()
        key = _new_key()
        subject = _name(name)
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        builder = (
            _builder(subject, subject, key.public_key(), key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(builder.sign(key, _hash()), key)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Authority:
        """The CA in two PEM files. Raises ConfigError."""
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        found = read_certificate(certificate)
        try:
            loaded = load_pem_private_key(_read(key), None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{key} is not a key in PEM without a password: {error}") from error
        if not isinstance(loaded, EllipticCurvePrivateKey):
            raise ConfigError(f"{key} is not an EC key, as `raftkv cert ca` makes them")
        if loaded.public_key() != found.public_key():
            raise ConfigError(f"{key} is not the key of {certificate}")
        return cls(found, loaded)

    def pem(self) -> Pair:
        """The CA itself."""
        return Pair(_pem(self.certificate), _key_pem(self._key))

    def member(self, name: str, hosts: Sequence[str], *, days: int = LEAF_DAYS) -> Pair:
        """For a member that is reached as any of `hosts`: names or IP addresses."""
        if not hosts:
            raise ConfigError("a member's certificate needs the hosts that it is reached as")
        return self._issue(name, hosts, days, server=True)

    def client(self, name: str, *, days: int = LEAF_DAYS) -> Pair:
        """For a client; `name` is its user where certificates stand for users."""
        return self._issue(name, (), days, server=False)

    def revocations(
        self, before: Path | None, certificates: Iterable[x509.Certificate], *, days: int = CRL_DAYS
    ) -> bytes:
        """A list in PEM of what was revoked `before` and `certificates`. Raises ConfigError."""
        x509 = import_x509()
        now = _now()
        revoked: dict[int, Any] = {}
        if before is not None:
            try:
                old = x509.load_pem_x509_crl(_read(before))
            except ValueError as error:
                raise ConfigError(f"{before} is not a list of revocations: {error}") from error
            if not old.is_signature_valid(self.certificate.public_key()):
                raise ConfigError(f"{before} is of another CA")
            revoked = {entry.serial_number: entry for entry in old}
        for certificate in certificates:
            if certificate.issuer != self.certificate.subject:
                raise ConfigError("the certificate is of another CA, which alone can revoke it")
            builder = x509.RevokedCertificateBuilder(certificate.serial_number, now)
            revoked.setdefault(certificate.serial_number, builder.build())
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - CLOCK_SKEW)
            .next_update(now + datetime.timedelta(days=days))
            .add_extension(_authority_key(self._key.public_key()), critical=False)
        )
        for entry in revoked.values():
            crl = crl.add_revoked_certificate(entry)
        return _pem(crl.sign(self._key, _hash()))

    def _issue(self, name: str, hosts: Sequence[str], days: int, *, server: bool) -> Pair:
        key = _new_key()
        builder = _builder(
            _name(name), self.certificate.subject, key.public_key(), self._key.public_key(), days
        )
        builder = _as_leaf(builder, hosts, server=server)
        certificate = builder.sign(self._key, _hash())
        if certificate.not_valid_after_utc > self.certificate.not_valid_after_utc:
            end = self.certificate.not_valid_after_utc
            raise ConfigError(f"the CA itself ends on {end:%Y-%m-%d}: give fewer --days")
        return Pair(_pem(certificate), _key_pem(key))


def self_signed(folder: Path, kind: str, hosts: Sequence[str]) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key; made unless they are there already."""
    cert, key_path = folder / f"{kind}.crt", folder / f"{kind}.key"
    if not (cert.exists() and key_path.exists()):
        key = _new_key()
        subject = _name("raftkv")
        builder = _builder(subject, subject, key.public_key(), key.public_key(), LEAF_DAYS)
        certificate = _as_leaf(builder, hosts, server=True).sign(key, _hash())
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_pair(cert, key_path, Pair(_pem(certificate), _key_pem(key)), force=True)
    return cert, key_path


# -- files ---------------------------------------------------------------------------------------


def write_pair(cert: Path, key: Path, pair: Pair, *, force: bool) -> None:
    """Write both files. Raises ConfigError when one is there and `force` is not set."""
    for path in (cert, key):
        if not force and path.exists():
            raise ConfigError(f"{path} is there already; --force overwrites it", path=str(path))
    write(key, pair.key, KEY_MODE)
    write(cert, pair.certificate, PUBLIC_MODE)


def write(path: Path, content: bytes, mode: int) -> None:
    """Put a file in place at once, so that nobody reads a half of it. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file. Raises ConfigError."""
    module = import_x509()
    try:
        found: x509.Certificate = module.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not a certificate in PEM: {error}") from error
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", path=str(path)) from error


# -- parts of certificates -----------------------------------------------------------------------


def _builder(subject: Any, issuer: Any, key: Any, issuer_key: Any, days: int) -> Any:
    x509 = import_x509()
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_key(issuer_key), critical=False)
    )


def _as_leaf(builder: Any, hosts: Sequence[str], *, server: bool) -> Any:
    x509 = import_x509()
    usages = [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    if server:
        usages.insert(0, x509.oid.ExtendedKeyUsageOID.SERVER_AUTH)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    if hosts:
        names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return builder


def _alternative(host: str) -> Any:
    x509 = import_x509()
    address = usual_address(host)
    if address is not None:
        return x509.IPAddress(ipaddress.ip_address(address))
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"{host!r} is not a host name or an IP address: {error}") from error


def _authority_key(key: Any) -> Any:
    return import_x509().AuthorityKeyIdentifier.from_issuer_public_key(key)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> Any:
    return import_x509().KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> Any:
    x509 = import_x509()
    if not 1 <= len(common_name.encode()) <= COMMON_NAME_MAX:
        raise ConfigError(f"a certificate's name has 1 to {COMMON_NAME_MAX} bytes")
    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, common_name)])


def _new_key() -> EllipticCurvePrivateKey:
    import_x509()
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _hash() -> Any:
    from cryptography.hazmat.primitives.hashes import SHA256

    return SHA256()


def _pem(thing: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(thing.public_bytes(Encoding.PEM))


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def described(certificate: x509.Certificate) -> dict[str, Any]:
    """What a certificate says, for people."""
    module = import_x509()
    extensions = certificate.extensions

    def extension(kind: Any) -> Any:
        try:
            return extensions.get_extension_for_class(kind).value
        except module.ExtensionNotFound:
            return None

    constraints = extension(module.BasicConstraints)
    usages = {usage.dotted_string for usage in extension(module.ExtendedKeyUsage) or ()}
    names = extension(module.SubjectAlternativeName)
    if constraints is not None and constraints.ca:
        role = "ca"
    elif usages >= MEMBER_USAGES:
        role = "member"
    elif CLIENT_AUTH in usages:
        role = "client"
    else:
        role = "server" if SERVER_AUTH in usages else "any"
    end = certificate.not_valid_after_utc
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "role": role,
        "hosts": [] if names is None else [str(name.value) for name in names],
        "serial": f"{certificate.serial_number:x}",
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "valid_until": end.isoformat(),
        "days_left": (end - _now()).days,
        "sha256": certificate.fingerprint(_hash()).hex(),
    }
