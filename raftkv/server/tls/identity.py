"""Who a verified certificate says that somebody is."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from raftkv.errors import ConfigError

SERVER_AUTH = "1.3.6.1.5.5.7.3.1"
CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
MEMBER_USAGES = frozenset({SERVER_AUTH, CLIENT_AUTH})
"""What a member's certificate is good for (RFC 5280, section 4.2.1.12): it dials and is dialled."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The parts of a certificate that decisions are made of. Its chain has been verified."""

    common_name: str
    """Of the subject; empty when there is none. The last one counts, as in Go."""
    dns_names: tuple[str, ...]
    addresses: tuple[str, ...]
    """IP addresses in their usual form."""
    der: bytes
    """The whole certificate."""

    def covers(self, host: str) -> bool:
        """Whether the certificate was made out to this host name or IP address."""
        address = usual_address(host)
        if address is not None:
            return address in self.addresses
        host = host.lower().rstrip(".")
        return any(_matches(name.lower().rstrip("."), host) for name in self.dns_names)

    def usages(self) -> frozenset[str]:
        """The object identifiers of its extended key usage; empty when it names none."""
        x509 = import_x509()
        certificate = x509.load_der_x509_certificate(self.der)
        try:
            extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        except x509.ExtensionNotFound:
            return frozenset()
        return frozenset(usage.dotted_string for usage in extension.value)


def identity_of(tls: ssl.SSLObject) -> Identity | None:
    """What the other side of a complete handshake proved; None: it showed no certificate."""
    der = tls.getpeercert(binary_form=True)
    shown: dict[str, Any] = tls.getpeercert() or {}
    if not der or not shown:
        return None
    names = [
        value for part in shown.get("subject", ()) for key, value in part if key == "commonName"
    ]
    alternatives: Iterable[tuple[str, str]] = shown.get("subjectAltName", ())
    dns_names = tuple(value for kind, value in alternatives if kind == "DNS")
    addresses = (usual_address(value) for kind, value in alternatives if kind == "IP Address")
    return Identity(names[-1] if names else "", dns_names, tuple(filter(None, addresses)), der)


def usual_address(text: str) -> str | None:
    """The one spelling of an IP address; None: it is none."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None


def import_x509() -> Any:
    """The module that reads and makes certificates. Raises ConfigError when it is not there."""
    try:
        from cryptography import x509
    except ImportError:
        raise ConfigError(
            "certificates are made, and those of members checked, with a package that is not "
            "installed: pip install 'raftkv[tls]'"
        ) from None
    return x509


def _matches(pattern: str, host: str) -> bool:
    """RFC 6125, section 6.4.3: a wildcard stands for the whole leftmost label."""
    if pattern.startswith("*."):
        label, dot, rest = host.partition(".")
        return bool(label and dot) and rest == pattern[2:]
    return pattern == host
